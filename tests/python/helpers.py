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
