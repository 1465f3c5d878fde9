#!/usr/bin/env bash
# Make everything that a purpose needs: tools/setup.sh build|run|test|fuzz|models|lint|bench
#
# System packages come from apt where this user may install them without being asked for a password; otherwise the
# script names them and stops. Python packages go into a virtual environment (see common.sh). When all is there already
# it takes a moment and uses no network: a stamp in the environment tells which requirements were installed last.
. "$(dirname "$0")/common.sh"

purpose=${1:?usage: tools/setup.sh build|run|test|fuzz|models|lint|bench}
requirements=tools/requirements/$purpose.txt
[ -f "$requirements" ] || fail "no such purpose: $purpose"

# -- which Python --

find_python() {
    local candidate found
    if [ -n "${PYTHON:-}" ]; then
        found=$(real_python "$PYTHON")
        [ -n "$found" ] || fail "PYTHON=$PYTHON is not a CPython 3.10 to 3.13 that runs"
        printf '%s\n' "$found"
        return
    fi
    for candidate in "$VENV/bin/python" python3 python3.13 python3.12 python3.11 python3.10; do
        found=$(real_python "$candidate")
        if [ -n "$found" ]; then
            printf '%s\n' "$found"
            return
        fi
    done
}

python=$(find_python)

# -- system packages --

missing=()

need_command() { # command package
    command -v "$1" >/dev/null || missing+=("$2")
}

need_library() { # pkg-config name, package
    command -v pkg-config >/dev/null && pkg-config --exists "$1" || missing+=("$2")
}

need_command gcc gcc
[ -f /usr/include/stdio.h ] || missing+=(libc6-dev)
need_command pkg-config pkg-config
need_library libxxhash libxxhash-dev
need_library libzstd libzstd-dev
need_library liblz4 liblz4-dev
case $purpose in
fuzz) need_command clang clang ;;
test)
    need_library cmocka libcmocka-dev
    need_command mpiexec openmpi-bin # mpi4py's wheels bring no MPI
    ;;
models) need_command spin spin ;;
lint)
    need_library cmocka libcmocka-dev
    need_command clang-tidy clang-tidy
    need_command cppcheck cppcheck
    ;;
esac
if [ -z "$python" ]; then
    missing+=(python3 python3-venv python3-dev)
else
    "$python" -c 'import ensurepip, venv' 2>/dev/null </dev/null || missing+=(python3-venv)
    python_has_headers "$python" || missing+=(python3-dev)
fi

if [ ${#missing[@]} -gt 0 ]; then
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        as_root=(sudo -n)
        sudo -n true 2>/dev/null || fail "please install (as root): apt-get install ${missing[*]}"
    fi
    command -v apt-get >/dev/null || fail "please install what your distribution calls: ${missing[*]}"
    say "installing ${missing[*]}"
    apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)
    "${apt[@]}" update </dev/null
    "${apt[@]}" install -y --no-install-recommends "${missing[@]}" </dev/null
    python=$(find_python)
    [ -n "$python" ] || fail "this system's Python is not 3.10 to 3.13; name one with PYTHON=…"
    python_has_headers "$python" ||
        fail "$python has no C headers; install them, or name another Python with PYTHON=…"
fi

# -- the environment --

version() {
    "$1" -c 'import platform; print(platform.python_version())' </dev/null
}

wanted=$(version "$python")
if [ "$(version "$VENV/bin/python" 2>/dev/null || true)" != "$wanted" ]; then
    say "making $VENV with Python $wanted"
    rm -rf "$VENV"
    "$python" -m venv "$VENV" </dev/null
fi

install() {
    "$VENV/bin/python" -m pip install --quiet --no-input --disable-pip-version-check "$@" </dev/null
}

stamp=$VENV/.stamp-$purpose
state=$(cat tools/requirements/*.txt | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$state" ]; then
    say "installing Python packages to $purpose"
    install -r "$requirements"
    if [ "$purpose" = bench ]; then
        # One by one: the table is made without a peer that cannot be had.
        : >"$VENV/.peers-missing"
        while read -r peer; do
            case $peer in '' | '#'*) continue ;; esac
            install "$peer" || { say "$peer does not install: left out" && echo "$peer" >>"$VENV/.peers-missing"; }
        done <tools/requirements/bench-peers.txt
    fi
    printf '%s\n' "$state" >"$stamp"
fi
