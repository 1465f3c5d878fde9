#!/usr/bin/env bash
# Python's tests on another interpreter, in an environment and build folder of its own (PYTHON, VENV, BUILD from the caller).
# ALL=1: those too that stand on the same code whatever the interpreter is, and that `make test` runs on its own.
. "$(dirname "$0")/common.sh"

tools/setup.sh test
tools/build.sh
say "Python tests on $("$VENV/bin/python" --version)"
left_out=()
if [ -z "${ALL:-}" ]; then
    for subject in build dot notebook parallel_dask parallel_mpi parallel_programs parallel_resume parallel_trace; do
        left_out+=(--ignore "tests/python/test_$subject.py")
    done
fi
exec "$VENV/bin/python" -m pytest tests/python -q "${left_out[@]}"
