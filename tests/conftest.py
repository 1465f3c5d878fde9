"""What every Python test has: a limit in time (pyproject.toml), and a look at what it left behind."""

from __future__ import annotations

import gc
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterator

import pytest


def _children() -> set[int]:
    path = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
    try:
        with open(path) as file:
            return {int(pid) for pid in file.read().split()}
    except OSError:  # not on this kernel
        return set()


def _of_nobody(names: set[str]) -> set[str]:
    """Those of these files in /dev/shm that no process has mapped, and that name no living process but this one: not
    another program's, which may run meanwhile. Nor what the standard library and joblib put there, and Shoal never."""
    names = {name for name in names if not name.startswith(("sem.", "joblib_memmapping_folder_"))}
    others = {process for process in os.listdir("/proc") if process.isdecimal() and process != str(os.getpid())}
    names = {name for name in names if others.isdisjoint(re.split(r"[-_]", name))}
    for process in os.listdir("/proc") if names else []:
        try:
            with open(f"/proc/{process}/maps") as file:
                maps = file.read()
        except OSError:
            continue
        names = {name for name in names if f"/dev/shm/{name}" not in maps}
    return names


def pytest_configure() -> None:
    """Let Ctrl-C be what it is at a terminal: a shell has what it starts with `&` in a script ignore SIGINT, the
    programs that the tests start would inherit that, and those that are interrupted never end."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What is there before the first test (modules, the tests themselves) is no test's garbage: each looks for its own
    in a millisecond or two then, and not in a tenth of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """A test must not leave a process or a file in /dev/shm behind. What `Parallel` keeps for the next call is
    dropped first."""
    shared_before, children_before = set(os.listdir("/dev/shm")), _children()
    yield
    if (parallel := sys.modules.get("shoal.joblib.parallel")) is not None:
        parallel._end_crews()
    if (zygote := sys.modules.get("shoal._zygote")) is not None:
        zygote._drop()
    # The standard library's own helper of spawned processes, one a program for as long as it runs.
    if (tracker := sys.modules.get("multiprocessing.resource_tracker")) is not None:
        tracker._resource_tracker._stop()
    gc.collect()
    deadline = time.monotonic() + 5
    while (left := _children() - children_before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left, f"processes left behind: {left}"
    files = _of_nobody(set(os.listdir("/dev/shm")) - shared_before)
    while files and time.monotonic() < deadline:
        time.sleep(0.1)
        files &= _of_nobody(set(os.listdir("/dev/shm")))  # what comes after the test is another program's
    assert not files, f"left behind in /dev/shm: {files}"


@pytest.fixture
def dice() -> random.Random:
    """Random numbers whose seed is printed; SHOAL_SEED repeats a run."""
    seed = int(os.environ.get("SHOAL_SEED", "0")) or random.SystemRandom().randrange(1, 10**9)
    print(f"seed {seed} (SHOAL_SEED={seed} repeats it)")
    return random.Random(seed)
