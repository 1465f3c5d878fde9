#!/usr/bin/env bash
# The whole notebook on Shoal, the C examples, then the same notebook on the standard library and joblib, and a table of both.
. "$(dirname "$0")/common.sh"

python=$TOP/$VENV/bin/python
times=$(mktemp -d)
trap 'rm -rf "$times"' EXIT
trap 'exit 130' INT TERM

# Memory that nobody has had for a while is slow to get on a virtual machine, by seconds for what the vectors take: both
# runs of the notebook are to find it at hand.
touch_memory() {
    "$python" - <<'PROGRAM'
import os
import numpy
available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
numpy.ones(min(3_200_000_000, available // 2), dtype=numpy.uint8)
PROGRAM
}

say "the notebook on Shoal"
touch_memory
"$python" -m shoal examples/notebook/notebook.py --times "$times/shoal.json" "$@"

say "the same jobs as C programs"
"$BUILD/examples/c/pool_map"
"$BUILD/examples/c/worker_queue"
"$BUILD/examples/c/memo_dot" "$@"

say "the notebook on the standard library, joblib and NumPy"
touch_memory
PYTHONPATH=examples/notebook/peers "$python" examples/notebook/notebook.py --times "$times/peers.json" "$@"

"$python" examples/notebook/compare.py "$times/shoal.json" "$times/peers.json"
