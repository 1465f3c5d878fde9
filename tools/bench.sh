#!/usr/bin/env bash
# Run the benchmarks: all of them, or a short run with QUICK=1. Extra arguments go to bench/run.py.
. "$(dirname "$0")/common.sh"

if [ -n "${QUICK:-}" ]; then
    set -- --rounds 3 --scale 0.2 "$@"
fi
[ -s "$VENV/.peers-missing" ] && say "peers that did not install: $(tr '\n' ' ' <"$VENV/.peers-missing")"
exec "$VENV/bin/python" bench/run.py "$@"
