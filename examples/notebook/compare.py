"""Print the table of a run on Shoal beside one on the standard library, joblib and NumPy: compare.py SHOAL.json
PEERS.json"""

from __future__ import annotations

import json
import sys


def main() -> None:
    ours, theirs = (json.load(open(path)) for path in sys.argv[1:3])
    if ours["length"] != theirs["length"]:
        print(f"note: vectors of {ours['length']} elements on Shoal, of {theirs['length']} on the others")
    width = max(map(len, ours["cells"]))
    print(f"\n{'cell':{width}}  {'Shoal':>10}  {'others':>10}  {'others / Shoal':>14}")
    print("-" * (width + 40))
    for name, seconds in ours["cells"].items():
        other = theirs["cells"].get(name)
        if other is None:
            continue
        print(f"{name:{width}}  {shown(seconds):>10}  {shown(other):>10}  {other / seconds:>13.1f}x")
    print(
        "\nothers: multiprocessing for the pool and the workers, joblib for Parallel and Memory, NumPy for the products"
    )


def shown(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3f} ms"


main()
