#!/usr/bin/env bash
# Run all tests on what tools/build.sh installed: the engine's, then Python's. Extra arguments go to pytest.
# `tools/test.sh faults` runs the campaigns of kills alone (SHOAL_FAULT_ROUNDS makes them longer).
. "$(dirname "$0")/common.sh"

export PATH=$TOP/$VENV/bin:$PATH
status=0
suites=()
folders=(tests/python tests/faults)
if "$VENV/bin/python" -c 'import test._test_multiprocessing' 2>/dev/null; then
    folders+=(tests/peers)
else
    say "this Python comes without CPython's own tests, which are left out (Debian: libpython3-testsuite)"
fi
if [ "${1:-}" = faults ]; then
    shift
    suites=(--suite faults --timeout-multiplier 20)
    folders=(tests/faults -s)
fi
say "engine tests"
meson test -C "$BUILD" --no-rebuild --print-errorlogs "${suites[@]}" || status=1
say "Python tests on $("$VENV/bin/python" --version)"
# A run that finds no test fails too (pytest's exit 5).
alone=tests/python/test_parallel_dask.py
if [ $# -eq 0 ] && [ "${folders[0]}" = tests/python ]; then
    # By itself: Dask takes a second to import, and what one test has imported each zygote of all others would import.
    "$VENV/bin/python" -m pytest "${folders[@]}" --ignore "$alone" || status=1
    "$VENV/bin/python" -m pytest "$alone" || status=1
else
    "$VENV/bin/python" -m pytest "${folders[@]}" "$@" || status=1
fi
exit $status
