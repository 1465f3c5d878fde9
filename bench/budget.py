"""Where the time of one task goes: runs a case under `perf record` and prints nanoseconds a task by process and kind.

`python bench/budget.py [CASE…]` with perf at hand (Debian's linux-perf). Samples are of the cpu's clock, so a process
that sleeps costs nothing here; the figures of docs/performance.md come from this.
"""

from __future__ import annotations

import collections
import re
import subprocess
import sys
import tempfile
from pathlib import Path

RATE = 4000  # samples a second of each cpu
CASES = {  # what a program does with a pool of two, and how many tasks that are
    "map, default chunks": ("for _ in range(6): pool.map(f, range(1_000_000))", 6_000_000),
    "map, chunksize 1": ("for _ in range(5): pool.map(f, range(200_000), chunksize=1)", 1_000_000),
    "apply": ("for i in range(200_000): pool.apply(f, (i,))", 200_000),
    "apply_async": (
        "for _ in range(30): [r.get() for r in [pool.apply_async(f, (i,)) for i in range(10_000)]]",
        300_000,
    ),
}
PROGRAM = """
from shoal.multiprocessing import Pool
def f(x):
    return x * x
if __name__ == "__main__":
    with Pool(2) as pool:
        {}
"""
KINDS = (  # the first one whose pattern matches (library, symbol)
    ("kernel", r"kernel|vdso", r""),
    ("encoding and decoding", r"_engine", r"codec|decode|encode|take$"),
    ("jobs: feed, collect, settle", r"_engine", r"job_|feed|deliver|collect_|settle|next_|send|wait_for|list_task"),
    ("worker's loop", r"_engine", r"worker_run|do_|call|find_function|answer"),
    ("task table, waiting", r"_engine", r""),
    ("CPython: memory", r"python", r"Malloc|Free|NewReference|dealloc|alloc"),
    ("CPython: ints", r"python", r"Long|long_"),
    ("CPython: calls", r"python", r"Eval|initialize_locals|Frame|Vectorcall|CallOneArg|Function"),
    ("CPython: garbage collection", r"python", r"gc_|visit|traverse"),
    ("CPython: other", r"python", r""),
    ("C library", r"", r""),
)
SAMPLE = re.compile(r"\s*(\d+)\s+[0-9a-f]+\s+(.*?)\s+\((.*)\)\s*$")


def kind_of(library: str, symbol: str) -> str:
    return next(kind for kind, where, what in KINDS if re.search(where, library) and re.search(what, symbol))


def budget(program: str) -> tuple[collections.Counter[str], dict[str, collections.Counter[str]]]:
    """Samples by process (the parent's threads count as processes), and by process and kind."""
    with tempfile.TemporaryDirectory() as folder:
        script, data = Path(folder, "program.py"), Path(folder, "perf.data")
        script.write_text(PROGRAM.format(program))
        record = ["perf", "record", "-q", "-F", str(RATE), "-o", str(data), sys.executable, str(script)]
        subprocess.run(record, check=True, timeout=300)
        listing = ["perf", "script", "-i", str(data), "-F", "pid,ip,sym,dso"]
        text = subprocess.run(listing, check=True, capture_output=True, text=True, timeout=300).stdout
    processes: collections.Counter[str] = collections.Counter()
    kinds: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for line in text.splitlines():
        if match := SAMPLE.match(line):
            pid, symbol, library = match.groups()
            processes[pid] += 1
            kinds[pid][kind_of(library, symbol)] += 1
    return processes, kinds


def main() -> None:
    for name in sys.argv[1:] or CASES:
        program, tasks = CASES[name]
        processes, kinds = budget(program)
        print(f"\n{name}: ns a task")
        # The program was there before its workers, whichever of them worked most.
        parent, *workers = sorted((pid for pid, _ in processes.most_common(3)), key=int)
        for kind, _, _ in KINDS:
            own = kinds[parent][kind] / RATE / tasks * 1e9
            theirs = sum(kinds[pid][kind] for pid in workers) / RATE / tasks * 1e9
            print(f"  {kind:<30}{own:>8.0f} {theirs:>8.0f}")
        own = processes[parent] / RATE / tasks * 1e9
        theirs = sum(processes[pid] for pid in workers) / RATE / tasks * 1e9
        print(f"  {'in all (parent, workers)':<30}{own:>8.0f} {theirs:>8.0f}")


if __name__ == "__main__":
    main()
