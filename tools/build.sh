#!/usr/bin/env bash
# Build everything and install it into the environment: tools/build.sh [MESON OPTION…]
# The package, libshoal, its header and its pkg-config file go into $VENV; the examples and tests stay in $BUILD.
. "$(dirname "$0")/common.sh"

export PATH=$TOP/$VENV/bin:$PATH
options=(--prefix="$TOP/$VENV" -Dlibdir=lib -Dpython.install_env=venv "$@")

# Another compiler, interpreter, place or set of options needs another configuration.
signature=$(printf '%s\n' "${options[@]}" && "$VENV/bin/python" -c 'import sys; print(sys.version)' && "${CC:-cc}" --version)
if [ "$(cat "$BUILD/.signature" 2>/dev/null || true)" != "$signature" ]; then
    rm -rf "$BUILD"
    meson setup "$BUILD" "${options[@]}"
    printf '%s\n' "$signature" >"$BUILD/.signature"
fi

log=$BUILD/build.log
if ! meson compile -C "$BUILD" ${JOBS:+-j "$JOBS"} >"$log" 2>&1; then
    cat "$log"
    fail "the build failed"
fi
# A module that was removed from the source must not live on in the environment.
rm -rf "$VENV"/lib/python3.*/site-packages/shoal
meson install -C "$BUILD" --no-rebuild --quiet
# The program that pyproject.toml names, as an installer would make it.
if [ -d "$VENV/lib" ] && [ -e "$VENV/bin/python" ]; then
    printf '#!%s\nfrom shoal._cache_command import run\n\nrun()\n' "$(cd "$VENV/bin" && pwd)/python" >"$VENV/bin/shoal"
    chmod +x "$VENV/bin/shoal"
fi
