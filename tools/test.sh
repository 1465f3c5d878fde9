#!/usr/bin/env bash
# Run all tests on what tools/build.sh installed: the engine's, then Python's. Extra arguments go to pytest.
. "$(dirname "$0")/common.sh"

export PATH=$TOP/$VENV/bin:$PATH
status=0
say "engine tests"
meson test -C "$BUILD" --no-rebuild --print-errorlogs || status=1
say "Python tests on $("$VENV/bin/python" --version)"
# A run that finds no test fails too (pytest's exit 5).
"$VENV/bin/python" -m pytest tests/python tests/faults "$@" || status=1
exit $status
