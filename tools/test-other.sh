#!/usr/bin/env bash
# Python's tests on another interpreter, in an environment and build folder of its own (PYTHON, VENV, BUILD from the caller).
. "$(dirname "$0")/common.sh"

tools/setup.sh test
tools/build.sh
say "Python tests on $("$VENV/bin/python" --version)"
exec "$VENV/bin/python" -m pytest tests/python -q
