"""Ctrl-C at places all over programs that use pools, executors, processes and Parallel: see interrupted.py.

Bounded: some seconds a program; SHOAL_FAULT_ROUNDS asks for more places, SHOAL_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import sysconfig
from pathlib import Path

import interrupted
import pytest

ROUNDS = int(os.environ.get("SHOAL_FAULT_ROUNDS", "0"))
PLACES = (ROUNDS or 1) * 100

pytestmark = pytest.mark.timeout(120 + 120 * ROUNDS)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("library") / "interrupt_at.so"
    source = Path(__file__).with_name("interrupt_at.c")
    headers = sysconfig.get_path("include")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-o", built, source, f"-I{headers}"], check=True)
    return built


@pytest.mark.parametrize("scenario", interrupted.SCENARIOS)
def test_ctrl_c_anywhere_is_told_and_leaves_nothing(library: Path, scenario: str) -> None:
    seed = int(os.environ.get("SHOAL_SEED", "0")) or random.SystemRandom().randrange(1, 10**9)
    print(f"seed {seed} (SHOAL_SEED={seed} repeats it)")
    command = [sys.executable, interrupted.__file__, str(library), scenario, str(PLACES), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110 + 110 * ROUNDS)
    print(done.stdout[-5000:])
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("places, 0 times something was wrong\n"), done.stdout[-5000:]
