#!/usr/bin/env bash
# CPython's own tests of multiprocessing and concurrent.futures, on the standard library and on Shoal: a table of both.
# PYTHON, VENV and BUILD from the caller choose another interpreter. Extra arguments go to tests/peers/run.py.
. "$(dirname "$0")/common.sh"

tools/setup.sh test
tools/build.sh
"$VENV/bin/python" -c 'import test._test_multiprocessing' 2>/dev/null ||
    fail "$("$VENV/bin/python" --version) comes without CPython's tests (Debian: apt-get install libpython3-testsuite)"
exec "$VENV/bin/python" tests/peers/run.py "$@"
