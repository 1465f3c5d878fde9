"""`shoal cache ls|stat|verify|prune|rm DIR`: what lies in a cache, whether it is sound, and how to make it smaller.

DIR is what `Memory` was given, or the folder `shoal` in it. Every command takes --json, which prints one object.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import re
import signal
import sys
import time
from typing import Any, NoReturn

from shoal import _engine
from shoal.joblib._store_backends import function_of, parse_size

_KEY = re.compile("[0-9a-f]{32}")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def _since(then: float, now: float) -> str:
    return _span(max(now - then, 0)) if then != 0 else ""  # of what is damaged it is not known


def _parse_age(text: str) -> int:
    """Nanoseconds from "30d", "12h", "90m", "10s" or "2w"."""
    try:
        seconds = float(text[:-1]) * _UNITS[text[-1:]]
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"an age is a number with s, m, h, d or w, not {text!r}") from None
    if math.isnan(seconds) or seconds < 0:
        raise argparse.ArgumentTypeError("an age is not negative")
    return max(int(min(seconds * 1e9, 2.0**62)), 1)


def _parse_items(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a number of entries is 0 or more, not {text!r}")
    return min(int(text), 2**64 - 1)


def _parse_bytes(text: str) -> int:
    try:
        size = parse_size(int(text) if text.isdigit() else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    assert size is not None
    return size


def _size(number: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 or seconds == 0 else f"{seconds * 1000:.1f} ms"


def _table(head: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())


def _find(directory: str) -> str:
    """The store's own folder. SystemExit where there is none."""
    inner = os.path.join(directory, "shoal")
    path = inner if os.path.isdir(inner) else directory
    if not os.path.isdir(path):
        raise SystemExit(f"shoal cache: there is no folder {directory}")
    if not _is_store(path):
        raise SystemExit(
            f"shoal cache: {directory} is no cache: neither it nor a folder 'shoal' in it was made by Memory (or is a "
            "store of the C library)"
        )
    return path


def _is_store(path: str) -> bool:
    """Whether a folder has what a store makes in it. Opening any other would make it one."""
    try:
        names = os.listdir(path)
        if ".uses" in names or ".claims" in names or (".gitignore" in names and os.path.basename(path) == "shoal"):
            return True
        inner = [os.path.join(path, name) for name in names if not name.startswith(".")]
    except OSError as error:
        raise SystemExit(f"shoal cache: {error}") from None
    for folder in inner:
        with contextlib.suppress(OSError):
            if any(name == "shelf" or _KEY.fullmatch(name) for name in os.listdir(folder)):
                return True
    return False


def _entries(store: Any) -> list[dict[str, Any]]:
    return [
        {
            "function": function_of(folder),
            "key": key.hex(),
            "bytes": size,
            "created": created / 1e9,
            "used": used / 1e9,
            "cost": cost / 1e9,
            "hits": hits,
            "saved": hits * cost / 1e9,
            "sound": error == 0,
        }
        for folder, key, size, created, cost, error, hits, used in store.entries()
    ]


def _ls(store: Any, options: argparse.Namespace) -> dict[str, Any]:
    entries = sorted(_entries(store), key=lambda entry: (entry["function"], -entry["used"]))
    if options.function:
        entries = [entry for entry in entries if options.function in entry["function"]]
    if not options.json:
        now = time.time()
        _table(
            ["function", "key", "size", "age", "used", "hits", "time saved"],
            [
                [
                    entry["function"], entry["key"][:12], _size(entry["bytes"]),
                    _since(entry["created"], now) if entry["sound"] else "damaged",
                    _since(entry["used"], now) + (" ago" if entry["used"] != 0 else ""), str(entry["hits"]),
                    _span(entry["saved"]),
                ]
                for entry in entries
            ],
        )  # fmt: skip
    return {"entries": entries}


def _stat(store: Any, options: argparse.Namespace) -> dict[str, Any]:
    functions: dict[str, dict[str, Any]] = {}
    for entry in _entries(store):
        sums = functions.setdefault(
            entry["function"],
            {"entries": 0, "bytes": 0, "hits": 0, "cost": 0.0, "saved": 0.0, "oldest": entry["created"], "used": 0.0},
        )
        sums["entries"] += 1
        for name in ("bytes", "hits", "cost", "saved"):
            sums[name] += entry[name]
        if entry["created"] != 0:
            sums["oldest"] = min(sums["oldest"] or entry["created"], entry["created"])
        sums["used"] = max(sums["used"], entry["used"])
    total = {name: sum(sums[name] for sums in functions.values()) for name in ("entries", "bytes", "hits", "saved")}
    if not options.json:
        now = time.time()
        ordered = sorted(functions.items(), key=lambda item: -item[1]["bytes"])
        rows = [
            [
                name, str(sums["entries"]), _size(sums["bytes"]), _since(sums["oldest"], now),
                _since(sums["used"], now) + (" ago" if sums["used"] != 0 else ""), str(sums["hits"]),
                _span(sums["saved"]),
            ]
            for name, sums in ordered
        ]  # fmt: skip
        rows.append(
            ["all", str(total["entries"]), _size(total["bytes"]), "", "", str(total["hits"]), _span(total["saved"])]
        )
        _table(["function", "entries", "size", "oldest", "used", "hits", "time saved"], rows)
    return {"functions": functions, "total": total}


class _Bar:
    """A line on a terminal's stderr that says how far a long look is; nothing anywhere else."""

    def __init__(self, total: int, quiet: bool) -> None:
        self._total = total
        self._done = 0
        self._shown = 0.0
        self._on = not quiet and sys.stderr.isatty()

    def add(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if self._on and now - self._shown > 0.1:
            self._shown = now
            part = min(self._done / self._total, 1.0) if self._total else 1.0
            filled = int(part * 40)
            sys.stderr.write(f"\r{'#' * filled}{'.' * (40 - filled)} {part:4.0%} of {_size(self._total)}")
            sys.stderr.flush()

    def end(self) -> None:
        if self._on and self._shown:
            sys.stderr.write("\r\x1b[K")


def _verify(store: Any, options: argparse.Namespace) -> dict[str, Any]:
    bar = _Bar(sum(entry[2] for entry in store.entries()), options.json)
    damaged: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    count = 0

    def tell(folder: str, key: bytes, size: int, error: int) -> None:
        nonlocal count
        count += 1
        bar.add(size)
        if error != 0:
            name = key.hex() if any(key) else "shelf"  # what is missing of it, or all that is there
            entry = {"function": function_of(folder), "key": key.hex(), "path": os.path.join(folder, name)}
            (refused if error == -1 else damaged).append(entry)

    try:
        store.verify(tell, options.remove)
    finally:
        bar.end()
    if not options.json:
        for entry in damaged:
            print(f"damaged{' and removed' if options.remove else ''}: {entry['path']}")
        for entry in refused:
            print(f"not the user's own, not read: {entry['path']}")
        print(f"{count} entries, {len(damaged)} damaged" + (f", {len(refused)} refused" if refused else ""))
    options.failed = bool(refused) or (bool(damaged) and not options.remove)
    return {"entries": count, "damaged": damaged, "refused": refused, "removed": bool(options.remove)}


def _prune(store: Any, options: argparse.Namespace) -> dict[str, Any]:
    if options.bytes is None and options.items is None and options.age is None:
        raise SystemExit("shoal cache prune: say at least one of --bytes, --items, --age")
    removed, removed_bytes, items, size = store.reduce(options.bytes, options.items, options.age or 0)
    if not options.json:
        print(f"{removed} entries removed ({_size(removed_bytes)}), {items} left ({_size(size)})")
    return {"removed": removed, "removed_bytes": removed_bytes, "entries": items, "bytes": size}


def _rm(store: Any, options: argparse.Namespace) -> dict[str, Any]:
    entries = store.entries()
    if options.function is None:
        store.clear()
        gone = entries
    else:
        gone = [entry for entry in entries if function_of(entry[0]) == options.function]
        if not gone:
            raise SystemExit(f"shoal cache rm: there is no function {options.function}; see shoal cache stat")
        for folder in {entry[0] for entry in gone}:
            store.remove_listed(folder)
    if not options.json:
        print(f"{len(gone)} entries removed ({_size(sum(entry[2] for entry in gone))})")
    return {"removed": len(gone), "removed_bytes": sum(entry[2] for entry in gone)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="shoal cache", description="Look after a cache that Memory keeps.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        own = commands.add_parser(name, help=text, description=text)
        own.add_argument("directory", metavar="DIR", help="what Memory was given")
        own.add_argument("--json", action="store_true", help="print one JSON object")
        own.set_defaults(run=run)
        return own

    add("ls", _ls, "List the entries.").add_argument("--function", help="only of functions whose name holds this")
    add("stat", _stat, "Sums for each function.")
    add("verify", _verify, "Read every entry and tell which are damaged; ends with 1 if some are.").add_argument(
        "--remove", action="store_true", help="remove those"
    )
    prune = add("prune", _prune, "Remove what was used longest ago.")
    prune.add_argument("--bytes", type=_parse_bytes, help="until no more than this is left, such as 500M")
    prune.add_argument("--items", type=_parse_items, help="until no more entries than this are left")
    prune.add_argument("--age", type=_parse_age, help="what was not used for so long, such as 30d")
    add("rm", _rm, "Remove all entries, or those of a function.").add_argument("--function", help="its full name")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    options = _parser().parse_args(arguments)
    options.failed = False
    path = _find(options.directory)
    try:
        store = _engine.Store(path)
        result = options.run(store, options)
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"shoal cache: {error}", file=sys.stderr)
        return 1
    if options.json:
        result = {"path": os.path.abspath(path), "time": datetime.datetime.now().isoformat(), **result}
        print(json.dumps(result))
    return 1 if options.failed else 0


def _end_by(number: int) -> NoReturn:
    """End as a program does that does not handle a signal: without a word, and its parent sees which it was."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still to be written goes nowhere
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)  # it is blocked


def run_command(arguments: list[str]) -> NoReturn:
    """`shoal cache ARGUMENTS` as a process: whoever reads what it prints may stop (`| head`), and Ctrl-C is no
    error."""
    try:
        try:
            status: Any = main(arguments)
        except SystemExit as end:  # of the parser's, which may have printed its help
            status = end.code
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _end_by(signal.SIGPIPE)
    except KeyboardInterrupt:
        _end_by(signal.SIGINT)
    except OSError as error:  # a full disk, say
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = f"shoal cache: {error}"
    raise SystemExit(status)


def run() -> None:
    """The program `shoal`: `shoal cache …`; anything else as `python -m shoal` takes it."""
    if sys.argv[1:2] == ["cache"]:
        run_command(sys.argv[2:])
    from shoal.__main__ import main as run_program

    run_program()
