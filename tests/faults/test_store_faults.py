"""Campaigns against the store from Python: writers are killed with SIGKILL at random instants, several processes work
on the same keys, who computes an entry dies. Every value is right or computed again, nothing hangs, no stray file is
left.

Bounded: some seconds each; SHOAL_FAULT_ROUNDS asks for more rounds, SHOAL_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from shoal import _engine
from shoal.joblib import Memory

ROUNDS = int(os.environ.get("SHOAL_FAULT_ROUNDS", "0"))

pytestmark = pytest.mark.timeout(90 + 60 * ROUNDS)


@pytest.fixture
def dice() -> random.Random:
    seed = int(os.environ.get("SHOAL_SEED", "0")) or random.SystemRandom().randrange(1, 10**9)
    print(f"seed {seed} (SHOAL_SEED={seed} repeats it)")
    return random.Random(seed)


# What every program begins with: it dies with the tests that started it, also where these were killed.
DIES_WITH_PARENT = """\
import ctypes, os, signal
if ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != {parent}:
    raise SystemExit("the tests are gone")
"""


def write_program(path: Path, source: str) -> Path:
    """A program's file."""
    path.write_text(DIES_WITH_PARENT.format(parent=os.getpid()) + textwrap.dedent(source))
    return path


def start(tmp_path: Path, source: str, *arguments: object) -> subprocess.Popen[bytes]:
    """A program that shares the functions of `shared.py` with the others; it prints a line when it is ready."""
    program = tmp_path / f"program-{abs(hash(source))}.py"
    if not program.exists():  # others may just be starting from it
        write_program(program, source)
    return subprocess.Popen(
        [sys.executable, program, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip


SHARED = """
    import numpy as np

    def value(n):
        "Right or not can be told from the value itself; small ones, mapped ones, and some in between."
        size = (5, 3000, 90_000, 700_000)[n % 4]
        return np.full(size, n, dtype=np.int64)
"""


def share(tmp_path: Path) -> Path:
    (tmp_path / "shared.py").write_text(textwrap.dedent(SHARED))
    return tmp_path / "cache"


# A program that has imported all that writers need forks one for each line that it reads, so that a writer's start
# takes some milliseconds; it tells when a writer begins and when one has ended.
WRITERS = """
    import itertools, os, sys

    def fork_writers(write):
        for line in sys.stdin:
            pid = os.fork()
            if pid == 0:
                ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # for the fork does not inherit it
                print("ready", os.getpid(), flush=True)
                write(line.strip())
            os.waitpid(pid, 0)
            print("dead", flush=True)
"""

WRITER = (
    WRITERS
    + """
    from shared import value
    from shoal.joblib import Memory

    def write(compress):
        f = Memory(sys.argv[1], verbose=0, compress=compress == "1").cache(value)
        for n in itertools.count():
            f.call(n % 40)

    fork_writers(write)
"""
)

# Named temporary files, as on file systems that have no unnamed ones: what a dead writer leaves is there to be seen.
NAMED_WRITER = (
    WRITERS
    + """
    from shoal import _engine

    def write(_):
        store = _engine.Store(sys.argv[1], _engine.STORE_NAMED_FILES)
        for n in itertools.count():
            n %= 40
            store.put("f", bytes([n]) * 16, [bytes([n]) * (100, 5000, 400_000)[n % 3]])

    fork_writers(write)
"""
)


# Small entries alone, put, replaced and removed as fast as can be, each under its key's own numbers: which one was
# begun last, and which one's call has returned, stand in a file that both sides map. Few keys, so that the shelf is
# made anew now and then, and goes with its last entry.
SHELF_WRITER = (
    WRITERS
    + """
    import mmap, random, struct
    from shoal import _engine

    def write(seed):
        dice = random.Random(int(seed))
        store = _engine.Store(sys.argv[1])
        with open(sys.argv[2], "r+b") as file:
            told = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")
        while True:
            n = dice.randrange(len(told) // 2)
            number = told[2 * n] + 1
            told[2 * n] = number
            if number % 7 == 0:
                store.remove("f", bytes([n + 1]) * 16)
            else:
                store.put("f", bytes([n + 1]) * 16, [struct.pack("qq", n, number) * (1 + dice.randrange(200))])
            told[2 * n + 1] = number

    fork_writers(write)
"""
)


def kill_while_writing(writers: subprocess.Popen[bytes], word: str, seconds: float) -> None:
    assert writers.stdin is not None and writers.stdout is not None and writers.stderr is not None
    writers.stdin.write(f"{word}\n".encode())
    writers.stdin.flush()
    ready = writers.stdout.readline().split()
    assert ready[:1] == [b"ready"], writers.stderr.read().decode()
    time.sleep(seconds)
    os.kill(int(ready[1]), signal.SIGKILL)
    assert writers.stdout.readline() == b"dead\n"


def end(writers: subprocess.Popen[bytes]) -> None:
    _, errors = writers.communicate(timeout=30)
    assert (writers.returncode, errors) == (0, b"")


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]


def test_killed_writers_leave_right_entries_and_nothing_else(tmp_path: Path, dice: random.Random) -> None:
    cache = share(tmp_path)
    kills = ROUNDS * 50 or 12
    writers = start(tmp_path, WRITER, cache)
    for turn in range(kills):
        kill_while_writing(writers, str(turn % 2), dice.random() * 0.1)
        damaged: list[tuple[str, bytes]] = []
        store = _engine.Store(str(cache / "shoal"))
        store.verify(lambda folder, key, size, error, damaged=damaged: error and damaged.append((folder, key)))
        assert not damaged, f"after {turn + 1} kills"
    end(writers)
    keys = {key.hex() for _, key, *_ in store.entries()}
    store.put("shared.value", b"k" * 16, [b"one that sweeps what the last of them may have left"])
    assert store.remove("shared.value", b"k" * 16)
    names = {path.name for path in files(cache)}
    assert names - {"shelf"} <= keys and len(keys) <= 40
    assert "shelf" in names or names == keys  # the small ones have no files of their own
    sys.path.insert(0, str(tmp_path))
    try:
        from shared import value  # type: ignore[import-not-found]

        f = Memory(cache, verbose=0).cache(value)
        assert all(set(f(n)) == {n} for n in range(40))
    finally:
        sys.path.remove(str(tmp_path))
        del sys.modules["shared"]
    print(f"{kills} kills, {len(store.entries())} entries, 0 damaged, 0 stray files")


def test_what_killed_writers_of_named_files_leave_is_swept(tmp_path: Path, dice: random.Random) -> None:
    cache = share(tmp_path) / "shoal"
    cache.mkdir(parents=True, mode=0o700)
    kills, strays = ROUNDS * 50 or 12, 0
    writers = start(tmp_path, NAMED_WRITER, cache)
    for _ in range(kills):
        kill_while_writing(writers, "", dice.random() * 0.05)
        temporary = cache / ".temporary"
        strays += len(list(temporary.iterdir())) if temporary.exists() else 0
        store = _engine.Store(str(cache), _engine.STORE_NAMED_FILES)
        store.put("f", b"x" * 16, [b"x"])
        assert list(temporary.iterdir()) == []
        for n in range(40):
            parts = store.get("f", bytes([n]) * 16)
            assert parts is None or not bytes(parts[0]).strip(bytes([n]))
    end(writers)
    print(f"{kills} kills, {strays} stray files, all swept")


def test_writers_killed_at_the_shelf_lose_nothing_that_they_had_put(tmp_path: Path, dice: random.Random) -> None:
    cache, numbers, keys = tmp_path / "cache", tmp_path / "numbers", 24
    numbers.write_bytes(bytes(16 * keys))
    kills, cut, written = ROUNDS * 50 or 40, 0, 0
    reader = _engine.Store(str(cache))
    writers = start(tmp_path, SHELF_WRITER, cache, numbers)
    for turn in range(kills):
        kill_while_writing(writers, str(dice.randrange(10**9)), dice.random() * 0.02)
        told = struct.unpack(f"{2 * keys}q", numbers.read_bytes())
        fresh = _engine.Store(str(cache))
        for store in (reader, fresh):
            for n in range(keys):
                begun, returned = told[2 * n : 2 * n + 2]
                parts = store.get("f", bytes([n + 1]) * 16)  # raises where something is damaged, or said to be
                data = bytes(parts[0]) if parts is not None else b""
                found = struct.unpack_from("qq", data) if data else None
                allowed = {(n, number) if number % 7 != 0 else None for number in (begun, returned)}
                assert found in allowed, f"key {n} after {turn + 1} kills"
                assert found is None or data == struct.pack("qq", *found) * (len(data) // 16)
        damaged: list[bytes] = []
        fresh.verify(lambda folder, key, size, error, damaged=damaged: error and damaged.append(key))
        assert not damaged, f"after {turn + 1} kills"
        settled = list(told[::2])
        for n in range(keys):
            if told[2 * n] != told[2 * n + 1]:  # what the dead one began is over
                cut += 1
                settled[n] += settled[n] % 7 == 0
                fresh.put("f", bytes([n + 1]) * 16, [struct.pack("qq", n, settled[n])])
        numbers.write_bytes(struct.pack(f"{2 * keys}q", *(number for number in settled for _ in range(2))))
        written = sum(settled)
        assert {path.name for path in files(cache)} <= {"shelf"}
    end(writers)
    print(f"{kills} kills, {written} changes, {cut} of them cut off, nothing lost, damaged or stray")


WORKER = """
    import random, sys, time, warnings
    import shared
    from shoal.joblib import Memory
    warnings.simplefilter("error")
    random.seed(int(sys.argv[2]))
    memory = Memory(sys.argv[1], verbose=0, bytes_limit="12M", compress=int(sys.argv[2]) % 2 == 0)
    f = memory.cache(shared.value)
    print("ready", flush=True)
    end, done = time.monotonic() + float(sys.argv[3]), 0
    while time.monotonic() < end:
        n, what = random.randrange(12), random.random()
        if what < 0.9:
            array = f(n)
            assert array[0] == n and array[-1] == n and len(set(array[:: max(len(array) // 50, 1)])) == 1
        elif what < 0.94:
            f.call(n)
        elif what < 0.96:
            memory.reduce_size(items_limit=random.randrange(8))
        elif what < 0.98:
            memory.reduce_size(bytes_limit=random.randrange(10_000_000))
        elif what < 0.99:
            f.clear(warn=False)
        else:
            memory.clear(warn=False)
        done += 1
    print(done)
"""


def test_processes_read_write_evict_and_clear_the_same_keys(tmp_path: Path, dice: random.Random) -> None:
    cache = share(tmp_path)
    seconds = 60 if ROUNDS else 4
    workers = [start(tmp_path, WORKER, cache, dice.randrange(10**6) * 2 + n % 2, seconds) for n in range(8)]
    calls = 0
    for worker in workers:
        out, err = worker.communicate(timeout=seconds + 60)
        assert worker.returncode == 0, err.decode()
        calls += int(out.split()[-1])
    print(f"8 processes, {seconds} s, {calls} calls, no error and no wrong value")


COMPUTER = """
    import os, sys, time
    from shoal.joblib import Memory
    memory = Memory(sys.argv[1], verbose=0)

    def slow(n):
        with open(sys.argv[2], "a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(float(sys.argv[3]))
        return n * 2

    slow.__module__, slow.__qualname__ = "campaign", "slow"
    f = memory.cache(slow)
    print("ready", flush=True)
    sys.stdin.readline()
    print(f(21), flush=True)
"""


def computers(tmp_path: Path, count: int, seconds: float) -> tuple[list[subprocess.Popen[str]], Path]:
    log = tmp_path / "log"
    program = write_program(tmp_path / "computer.py", COMPUTER)
    started = [
        subprocess.Popen(
            [sys.executable, program, tmp_path / "cache", log, str(seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(count)
    ]  # fmt: skip
    for process in started:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return started, log


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_of_several_who_miss_the_same_one_computes(tmp_path: Path) -> None:
    processes, log = computers(tmp_path, 4, 0.5)
    for process in processes:
        go(process)
    for process in processes:
        assert process.communicate(timeout=30)[0] == "42\n"
    assert len(log.read_text().split()) == 1


RUNNER = """
    import subprocess, sys
    import test_store_faults
    from pathlib import Path

    place = Path(sys.argv[1])
    writers = test_store_faults.start(place, test_store_faults.WRITER, test_store_faults.share(place))
    writers.stdin.write(b"0\\n")
    writers.stdin.flush()
    print(writers.pid, writers.stdout.readline().split()[1].decode(), flush=True)
    sys.stdin.readline()
"""


def test_the_programs_die_with_the_tests_that_started_them(tmp_path: Path) -> None:
    program = tmp_path / "runner.py"
    program.write_text(textwrap.dedent(RUNNER))
    runner = subprocess.Popen(
        [sys.executable, program, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)},
    )  # fmt: skip
    assert runner.stdout is not None
    pids = [int(word) for word in runner.stdout.readline().split()]
    assert len(pids) == 2
    runner.kill()
    runner.communicate(timeout=10)
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_if_who_computes_dies_another_does(tmp_path: Path, dice: random.Random) -> None:
    processes, log = computers(tmp_path, 3, 1.0)
    go(processes[0])
    while not log.exists() or not log.read_text():
        time.sleep(0.01)
    for process in processes[1:]:
        go(process)
    time.sleep(dice.random() * 0.5)
    processes[0].kill()
    assert processes[0].communicate(timeout=10)[0] == ""
    for process in processes[1:]:
        assert process.communicate(timeout=30)[0] == "42\n"
    ran = log.read_text().split()
    assert len(ran) == 2 and ran[0] == str(processes[0].pid) != ran[1]
