"""Running programs as a user would, for the tests."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run_program(
    folder: Path, source: str, *arguments: str, shoal: bool = False, limit: float = 40, **keywords: Any
) -> subprocess.CompletedProcess[str]:
    """Write a program to `folder` and run it, under `python -m shoal` if asked; its output as text."""
    path = folder / "program.py"
    path.write_text(textwrap.dedent(source))
    command = [sys.executable, *(["-m", "shoal"] if shoal else []), str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=limit, **keywords)


def run_with_cache(tmp_path: Path, source: str, *arguments: str, name: str = "program.py", **options: Any) -> str:
    """What a script prints that is given a cache's folder and the arguments."""
    script = tmp_path / name
    script.write_text(textwrap.dedent(source))
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "cache"), *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        **options,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def entries(tmp_path: Path) -> list[Path]:
    """The files in which the entries of a Memory at `tmp_path` lie: a larger one's own, and the small ones' shelves."""
    found = [path for path in (tmp_path / "shoal").rglob("*") if path.is_file()]
    return [path for path in found if len(path.name) == 32 or path.name == "shelf"]


class Interruption:
    """What is done in the midst of a call, as another thread may: `other` is run before the line of a number of its
    choice, of those that the call comes to in a file (`functions`: of that name only; `opcodes`: instructions instead
    of lines)."""

    def __init__(self, other: Callable[[], object], file: str, *functions: str, opcodes: bool = False) -> None:
        self._other = other
        self._file = file
        self._functions = functions
        self._kind = "opcode" if opcodes else "line"
        self._left = 0
        self._threads: list[threading.Thread] = []

    def everywhere(self, call: Callable[[], object], most: int = 1000) -> int:
        """Run `call` again and again, each time with `other` before the next line, to the last; how often that was."""
        number = 0
        while number < most and self._run(call, number):
            number += 1
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "it waits for ever"
        return number

    def _run(self, call: Callable[[], object], number: int) -> bool:
        self._left = number
        before = sys.gettrace()
        # CPython 3.12 tells of instructions if some frame wanted them before the function was set.
        sys._getframe().f_trace_opcodes = self._kind == "opcode"
        sys.settrace(self._enter)
        try:
            call()
        finally:
            sys.settrace(before)
        return self._left < 0

    def _enter(self, frame: Any, event: str, argument: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.endswith(self._file) or (self._functions and code.co_name not in self._functions):
            return None
        if self._kind == "opcode":
            frame.f_trace = self._step  # first: else CPython 3.13 does not see that they are wanted
            frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: Any, event: str, argument: Any) -> Any:
        if event == self._kind:
            self._left -= 1
            if self._left == -1:
                thread = threading.Thread(target=self._other, daemon=True)
                thread.start()
                thread.join(0.1)  # where it needs a lock that the call has, it goes on afterwards
                self._threads.append(thread)
        return self._step
