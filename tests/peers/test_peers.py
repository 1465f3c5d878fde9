"""A part of the judge that takes a minute at the most; `make peers` runs all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).resolve().parent / "run.py"
SELECTION = [
    "fork:WithProcessesTestProcess.*",
    "fork:WithProcessesTestPool.*",
    "fork:WithProcessesTestQueue.*",
    "fork:WithProcessesTestPicklingConnections.*",
    "fork:WithThreadsTestPool.*",
    "fork:_TestImportStar.*",
    "fork:TestInvalidHandle.*",
    "fork:TestStartMethod.*",
    "fork:TestSimpleQueue.*",
    "fork:TestSyncManagerTypes.test_*queue",
    "main_handling:ForkCmdLineTest.test_basic_script",
]


@pytest.mark.timeout(180)
def test_a_selection_of_cpythons_own_tests_passes_but_for_those_that_are_listed() -> None:
    result = subprocess.run(
        [sys.executable, str(RUNNER), "--no-standard", "--limit", "40", "--only", *SELECTION],
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert result.returncode == 0, result.stdout + result.stderr
