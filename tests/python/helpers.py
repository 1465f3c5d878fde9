"""Running programs as a user would, for the tests."""

from __future__ import annotations

import subprocess
import sys
import textwrap
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
