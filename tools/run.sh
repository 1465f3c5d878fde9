#!/usr/bin/env bash
# The whole notebook on Shoal, the C examples, then the same notebook on the standard library and joblib, and a table of both.
. "$(dirname "$0")/common.sh"

python=$TOP/$VENV/bin/python
times=$(mktemp -d)
trap 'rm -rf "$times"' EXIT
trap 'exit 130' INT TERM

say "the notebook on Shoal"
"$python" -m shoal examples/notebook/notebook.py --times "$times/shoal.json" "$@"

say "the same jobs as C programs"
"$BUILD/examples/c/pool_map"
"$BUILD/examples/c/worker_queue"
"$BUILD/examples/c/memo_dot" "$@"

say "the notebook on the standard library, joblib and NumPy"
PYTHONPATH=examples/notebook/peers "$python" examples/notebook/notebook.py --times "$times/peers.json" "$@"

"$python" examples/notebook/compare.py "$times/shoal.json" "$times/peers.json"
