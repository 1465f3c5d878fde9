"""`joblib.logger`: messages that begin with who sends them, and times on the standard error stream."""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False  # typing costs each start of a program more than the rest of this file
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Logger", "PrintTime", "format_time", "pformat", "short_format_time"]

_LOGS_KEPT = 9


def format_time(t: float) -> str:
    """Seconds as both seconds and minutes: '12.3s, 0.2min'."""
    return f"{t:.1f}s, {t / 60.0:.1f}min"


def short_format_time(t: float) -> str:
    """Seconds as seconds, or, where they are more than 60, as minutes: '  12.3s', ' 1.2min'."""
    return f"{t / 60.0:4.1f}min" if t > 60 else f" {t:5.1f}s"


def pformat(obj: Any, indent: int = 0, depth: int = 3) -> str:
    """As `pprint.pformat`, with the arrays in it shortened."""
    import pprint

    numpy = sys.modules.get("numpy")
    if numpy is None:
        return pprint.pformat(obj, depth=depth, indent=indent)
    with numpy.printoptions(precision=6, threshold=64, edgeitems=1):
        return pprint.pformat(obj, depth=depth, indent=indent)


class Logger:
    """Sends messages to the logger `name` of `logging`, by default "joblib"'s; `Parallel` is one.

    depth: how deep `format` goes into what it shows.
    """

    depth = 3
    _name = "joblib"

    def __init__(self, depth: int = 3, name: str | None = None) -> None:
        self.depth = depth
        self._name = name or "joblib"

    def warn(self, msg: object) -> None:
        import logging

        logging.getLogger(self._name).warning("[%s]: %s", self, msg)

    def info(self, msg: object) -> None:
        import logging

        logging.info("[%s]: %s", self, msg)

    def debug(self, msg: object) -> None:
        import logging

        logging.getLogger(self._name).debug("[%s]: %s", self, msg)

    def format(self, obj: Any, indent: int = 0) -> str:
        return pformat(obj, indent=indent, depth=self.depth)


class PrintTime:
    """Called with a message, prints it and the time since the last call, or, with `total=True`, since the beginning.

    logfile: a file that has the same lines; the one of an earlier run is kept as `LOGFILE.1`, that as `.2` …
    logdir: the folder of a log file named joblib.log, instead of `logfile`. What cannot be written is left out.
    """

    def __init__(self, logfile: str | None = None, logdir: str | None = None) -> None:
        if logfile is not None and logdir is not None:
            raise ValueError("Cannot specify both logfile and logdir")
        self.last_time = self.start_time = time.time()
        self.logfile = logfile if logdir is None else os.path.join(logdir, "joblib.log")
        if self.logfile is None:
            return
        os.makedirs(os.path.dirname(self.logfile) or ".", exist_ok=True)
        try:
            self._rotate(self.logfile)
            with open(self.logfile, "w", encoding="utf-8") as file:
                file.write(f"\nLogging joblib python script\n\n---{time.ctime(self.last_time)}---\n")
        except OSError:
            pass

    @staticmethod
    def _rotate(path: str) -> None:
        import shutil

        if not os.path.exists(path):
            return
        for number in range(_LOGS_KEPT - 1, 0, -1):
            if os.path.exists(f"{path}.{number}"):
                os.replace(f"{path}.{number}", f"{path}.{number + 1}")
        shutil.copy(path, f"{path}.1")  # not moved: whoever follows the file goes on

    def __call__(self, msg: str = "", total: bool = False) -> None:
        now = time.time()
        if total:
            took = now - self.start_time
            line = f"{msg}: {took:.2f}s, {took / 60:.1f} min"
        else:
            line = f"{msg}: {format_time(now - self.last_time)}"
        print(line, file=sys.stderr)
        if self.logfile is not None:
            try:
                with open(self.logfile, "a", encoding="utf-8") as file:
                    print(line, file=file)
            except OSError:
                pass
        self.last_time = time.time()
