"""`shoal cache` as a process, as a shell runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from cached_calls import add
from shoal.joblib.memory import Memory

COMMANDS = [
    ["ls", "DIR"], ["ls", "DIR", "--json"], ["stat", "DIR"], ["verify", "DIR"], ["prune", "DIR", "--items", "1"],
    ["rm", "DIR"], ["rm", "DIR", "--json"], ["--help"], ["ls", "--help"],
]  # fmt: skip


@pytest.fixture
def cache(tmp_path):
    cached = Memory(tmp_path, verbose=0).cache(add)
    for number in range(5):
        cached(number)
    return tmp_path


@pytest.mark.parametrize("program", ["module", "script"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_who_went_ends_it_without_a_word(cache, program, command, unbuffered):
    start = [sys.executable, "-m", "shoal"]
    if program == "script":
        start = [sys.executable, "-c", "from shoal._cache_command import run; run()"]
    ours, theirs = os.pipe()
    os.close(ours)
    ended = subprocess.run(
        [*start, "cache", *(str(cache) if word == "DIR" else word for word in command)],
        stdout=theirs,
        stderr=subprocess.PIPE,
        timeout=40,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(theirs)
    assert ended.stderr == b""
    # argparse sees that its help goes nowhere, if it writes it at once
    assert ended.returncode == -signal.SIGPIPE or ("--help" in command and unbuffered and ended.returncode == 0)


def test_a_full_disk_behind_its_output_is_one_line_and_a_failure(cache):
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "shoal", "cache", "ls", str(cache)], stdout=full, stderr=subprocess.PIPE, timeout=40
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith(b"shoal cache: ") and ended.stderr.count(b"\n") == 1


def test_ctrl_c_ends_it_without_a_word():
    program = """if True:
        from shoal import _cache_command
        def main(arguments):
            raise KeyboardInterrupt
        _cache_command.main = main
        _cache_command.run_command([])
    """
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=40)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, b"")
