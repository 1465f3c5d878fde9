"""`Memory` beyond the look-up: limits, compression, other stores, `explain`, `shoal cache`."""

from __future__ import annotations

import asyncio
import datetime
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
from cached_calls import add
from helpers import entries, run_with_cache
from shoal import _cache_command, _engine
from shoal.joblib import Memory, register_store_backend
from shoal.joblib._store_backends import StoreBackendBase, StoreBackendMixin, parse_compress, parse_size

CALLS: list[object] = []


@pytest.fixture(autouse=True)
def no_calls_yet():
    CALLS.clear()


def double(x):
    CALLS.append(x)
    return x * 2


def block(n):
    CALLS.append(n)
    return np.full(100_000, n, dtype=np.uint8)


def stored(path):
    return _engine.Store(str(path / "shoal")).entries()


# ---- limits ----


def test_reduce_size_removes_what_was_used_longest_ago(tmp_path):
    memory = Memory(tmp_path, verbose=0)
    f = memory.cache(block)
    for n in range(4):
        f(n)
    time.sleep(1.1)  # uses are known to the second
    f(0), f(1)
    memory.reduce_size(items_limit=2)
    assert [f.check_call_in_cache(n) for n in range(4)] == [True, True, False, False]
    memory.reduce_size(bytes_limit="150K")
    assert len(stored(tmp_path)) == 1
    memory.reduce_size(age_limit=datetime.timedelta(hours=1))
    assert len(stored(tmp_path)) == 1
    memory.reduce_size(bytes_limit=0)
    assert stored(tmp_path) == []
    memory.reduce_size()
    with pytest.raises(ValueError, match="positive timedelta"):
        memory.reduce_size(age_limit=datetime.timedelta(seconds=-1))


def test_results_of_a_certain_age_are_removed(tmp_path):
    memory = Memory(tmp_path, verbose=0)
    f = memory.cache(double)
    f(1)
    time.sleep(2.1)
    f(2)
    memory.reduce_size(age_limit=datetime.timedelta(seconds=1.05))
    assert [f.check_call_in_cache(1), f.check_call_in_cache(2)] == [False, True]


def test_a_limit_at_construction_is_kept_in_the_background(tmp_path):
    f = Memory(tmp_path, verbose=0, bytes_limit="1M").cache(block)
    for n in range(40):
        assert f(n)[0] == n
    deadline = time.monotonic() + 20
    while sum(entry[2] for entry in stored(tmp_path)) > 1024 * 1024 * 17 // 16 + 110_000:
        assert time.monotonic() < deadline
        f(time.monotonic_ns() % 251)
        time.sleep(0.05)
    assert len(stored(tmp_path)) >= 5


def test_hits_are_counted_and_survive_the_process(tmp_path):
    f = Memory(tmp_path, verbose=0).cache(double)
    f(1), f(1), f(1)
    ((*_, hits, used),) = stored(tmp_path)
    assert hits == 2 and abs(used / 1e9 - time.time()) < 30


@pytest.mark.parametrize("damage", ["cut", "folder", "link", "open to others"])
def test_a_damaged_table_of_uses_harms_nothing(tmp_path, damage):
    f = Memory(tmp_path, verbose=0).cache(double)
    f(1)
    table = tmp_path / "shoal" / ".uses"
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    table.unlink()
    if damage == "cut":
        table.write_bytes(b"x" * 100)
    elif damage == "folder":
        (table / "inner").mkdir(parents=True)
    elif damage == "link":
        table.symlink_to(target)
    else:
        table.write_bytes(bytes(524288))
        table.chmod(0o666)
    program = "import sys; from shoal import _engine; s = _engine.Store(sys.argv[1]); print(len(s.entries()))"
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "shoal"], capture_output=True, text=True, check=True
    )
    assert result.stdout == "1\n" and target.read_bytes() == b"precious"
    assert table.is_file() and not table.is_symlink() and table.stat().st_mode & 0o777 == 0o600


# ---- compression ----


@pytest.mark.parametrize("compress", [True, 3, "lz4", ("zstd", 1), ("lz4", 1), ("gzip", 3)])
def test_compressed_results_are_smaller_and_equal(tmp_path, compress):
    memory = Memory(tmp_path, verbose=0, compress=compress)
    f = memory.cache(block)
    expected = block(7)
    CALLS.clear()
    assert np.array_equal(f(7), expected) and np.array_equal(f(7), expected) and CALLS == [7]
    assert stored(tmp_path)[0][2] < 5000
    assert np.array_equal(Memory(tmp_path, verbose=0).cache(block)(7), expected) and CALLS == [7]
    value = f(7)
    value[0] = 1  # the process's own
    assert f(7)[0] == 7


def some_noise(n):
    return np.append(np.random.default_rng(n).integers(0, 256, 5_000, dtype=np.uint8), np.full(1_000, n, np.uint8))


@pytest.mark.parametrize("function", [block, some_noise])
def test_every_changed_bit_of_a_compressed_entry_is_a_miss(tmp_path, function):
    f = Memory(tmp_path, verbose=0, compress=True).cache(function)
    expected = f(1)
    ((_, _, size, *_),) = stored(tmp_path)
    (path,) = entries(tmp_path)
    assert (path.name == "shelf") == (function is block) and size < expected.nbytes
    sound = path.read_bytes()
    for at in range(128 if function is block else 0, len(sound), 3 if function is block else 17):
        damaged = bytearray(sound)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.warns(Warning, match="cannot be used"):
            assert np.array_equal(f(1), expected)


def test_texts_for_sizes_and_compression_are_understood():
    assert [parse_size(text) for text in (5, "7", "1K", "1.5 MB", "2g")] == [5, 7, 1024, 1572864, 2 << 30]
    assert [parse_size(size) for size in (1e9, 2.5, np.int64(7), 10**30)] == [10**9, 2, 7, 2**64 - 1]
    for wrong in ("many", math.nan, [1]):
        with pytest.raises(ValueError):
            parse_size(wrong)
    assert parse_compress(False) == parse_compress(0) == parse_compress(None) == (0, 0)
    assert parse_compress(True) == (_engine.COMPRESS_ZSTD, 0) and parse_compress(3) == (_engine.COMPRESS_ZSTD, 3)
    assert parse_compress(("lz4", 2)) == (_engine.COMPRESS_LZ4, 2)
    assert parse_compress("gzip") == (_engine.COMPRESS_ZSTD, 0)


@pytest.mark.parametrize("compress", ["zsdt", ("zsdt", 3), ("zsdt", 0), ""])
def test_a_compression_that_nobody_knows_is_an_error_at_once(tmp_path, compress):
    with pytest.raises(ValueError, match=r"compress is one of .*zstd"):
        Memory(tmp_path, compress=compress, verbose=0)


# ---- who computes ----


def test_of_several_threads_one_computes(tmp_path):
    def slow(x):
        CALLS.append(x)
        time.sleep(0.3)
        return x

    f = Memory(tmp_path, verbose=0).cache(slow)
    results = []
    threads = [threading.Thread(target=lambda: results.append(f(5))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == [5] * 6 and CALLS == [5]


def test_of_several_tasks_one_computes(tmp_path):
    async def slow(x):
        CALLS.append(x)
        await asyncio.sleep(0.1)
        return x

    f = Memory(tmp_path, verbose=0).cache(slow)

    async def main():
        return await asyncio.gather(f(1), f(1), f(1), f(2))

    assert asyncio.run(main()) == [1, 1, 1, 2] and sorted(CALLS) == [1, 2]


def test_an_error_lets_the_next_one_compute_at_once(tmp_path):
    def fail(x):
        CALLS.append(x)
        raise KeyError(x)

    f = Memory(tmp_path, verbose=0).cache(fail)
    errors = []
    for _ in range(2):
        try:
            f(1)
        except KeyError as error:
            errors.append(error)  # its traceback keeps the frames of the call alive
    started = time.monotonic()

    def call_again():
        with pytest.raises(KeyError):
            f(1)

    thread = threading.Thread(target=call_again)
    thread.start()
    thread.join(20)
    assert not thread.is_alive() and time.monotonic() - started < 20 and len(CALLS) == 3


def test_calls_that_wait_for_each_other_do_not_hang(tmp_path):
    memory = Memory(tmp_path, verbose=0)
    both = threading.Barrier(2, timeout=20)
    functions = {}

    def first(depth):
        if depth:
            both.wait()
            return functions["second"](0) + 1
        return 1

    def second(depth):
        if depth:
            both.wait()
            return functions["first"](1 if depth == 2 else 0) + 1
        return 2

    functions["first"], functions["second"] = memory.cache(first), memory.cache(second)
    results = []
    threads = [threading.Thread(target=lambda name=name: results.append(functions[name](1))) for name in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(results) == [2, 3]


def test_a_child_of_fork_does_not_keep_its_parents_claims(tmp_path):
    def forking(x):
        pid = os.fork()
        if pid == 0:
            time.sleep(30)
            os._exit(0)
        CALLS.append(pid)
        raise ValueError

    f = Memory(tmp_path, verbose=0).cache(forking)
    try:
        with pytest.raises(ValueError):
            f(1)
        done = []
        thread = threading.Thread(target=lambda: done.append(f._claim(f._key((1,), {}), 0)))
        thread.start()
        thread.join(20)
        assert done[0]
        f._release(done[0])
    finally:
        for pid in CALLS:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


# ---- stores of others ----


class FolderBackend(StoreBackendBase, StoreBackendMixin):
    """The least that a store can be."""

    _open_item = staticmethod(open)
    _item_exists = staticmethod(os.path.exists)
    _move_item = staticmethod(os.replace)

    def create_location(self, location):
        os.makedirs(location, exist_ok=True)

    def clear_location(self, location):
        import shutil

        shutil.rmtree(location, ignore_errors=True)

    def get_items(self):
        return []

    def configure(self, location, verbose=0, backend_options=None):
        self.location, self.verbose = str(location), verbose


def test_a_registered_store_keeps_results(tmp_path):
    register_store_backend("folder-of-the-test", FolderBackend)
    memory = Memory(tmp_path / "here", backend="folder-of-the-test", verbose=0)
    f = memory.cache(block)
    assert set(f(3)) == {3} and set(f(3)) == {3} and CALLS == [3]
    assert f.check_call_in_cache(3) and not f.check_call_in_cache(4)
    shelved = f.call_and_shelve(3)
    assert set(shelved.get()) == {3}
    shelved.clear()
    assert set(f(3)) == {3} and CALLS == [3, 3]
    f.clear()
    assert not f.check_call_in_cache(3)

    async def later(x):
        CALLS.append(x)
        return x

    g = memory.cache(later)
    assert asyncio.run(g(9)) == 9 and asyncio.run(g(9)) == 9 and CALLS == [3, 3, 9]
    with pytest.raises(ValueError, match="should be a string"):
        register_store_backend(None, FolderBackend)
    with pytest.raises(ValueError, match="should inherit"):
        register_store_backend("x", dict)
    with pytest.raises(TypeError, match="Unknown location"):
        Memory(tmp_path, backend="nobody registered this")


def test_a_number_that_python_does_not_write_out_is_an_argument_like_others(tmp_path):
    cached = Memory(tmp_path, verbose=0).cache(double)
    huge = 10**5000
    assert cached(huge) == 2 * huge == cached(huge)
    assert cached.check_call_in_cache(huge) and not cached.check_call_in_cache(huge + 1)
    assert not cached.explain(huge + 1)


# ---- the command ----


def cache_command(capsys, *arguments):
    status = _cache_command.main([str(argument) for argument in arguments])
    return status, capsys.readouterr().out


def test_the_command_lists_sums_prunes_and_removes(tmp_path, capsys):
    memory = Memory(tmp_path, verbose=0)
    f, g = memory.cache(double), memory.cache(block)
    f(1), f(1), g(1), g(2)
    status, out = cache_command(capsys, "ls", tmp_path, "--json")
    entries = json.loads(out)["entries"]
    assert status == 0 and len(entries) == 3
    assert {entry["function"].rpartition(".")[2] for entry in entries} == {"double", "block"}
    assert sorted(entry["hits"] for entry in entries) == [0, 0, 1] and all(entry["sound"] for entry in entries)
    status, out = cache_command(capsys, "ls", tmp_path, "--function", "double")
    assert status == 0 and len(out.splitlines()) == 2 and out.startswith("function")
    status, out = cache_command(capsys, "stat", tmp_path / "shoal", "--json")
    assert json.loads(out)["total"]["entries"] == 3
    assert "all" in cache_command(capsys, "stat", tmp_path)[1]
    status, out = cache_command(capsys, "prune", tmp_path, "--items", 2, "--json")
    assert status == 0 and json.loads(out)["removed"] == 1
    with pytest.raises(SystemExit, match="at least one"):
        cache_command(capsys, "prune", tmp_path)
    for option, wrong in (
        ("items", "-1"),
        ("items", "x"),
        ("bytes", "-1"),
        ("age", "nand"),
        ("age", "5"),
        ("age", "-1d"),
    ):
        with pytest.raises(SystemExit) as caught:
            cache_command(capsys, "prune", tmp_path, f"--{option}={wrong}")
        assert caught.value.code == 2
    for most in (f"--items={10**30}", f"--bytes={10**30}", "--age=infd", "--age=1e300d"):
        assert json.loads(cache_command(capsys, "prune", tmp_path, most, "--json")[1])["removed"] == 0
    with pytest.raises(SystemExit, match="no function"):
        cache_command(capsys, "rm", tmp_path, "--function", "nobody")
    with pytest.raises(SystemExit, match="no folder"):
        cache_command(capsys, "ls", tmp_path / "missing")
    name = next(iter(json.loads(cache_command(capsys, "stat", tmp_path, "--json")[1])["functions"]))
    assert cache_command(capsys, "rm", tmp_path, "--function", name)[0] == 0
    assert cache_command(capsys, "rm", tmp_path)[0] == 0
    assert stored(tmp_path) == []


def test_the_command_finds_and_removes_every_damaged_entry(tmp_path, capsys):
    f = Memory(tmp_path, verbose=0).cache(block)
    for n in range(3):
        f(n)
    folder, key, *_ = stored(tmp_path)[0]
    path = tmp_path / "shoal" / folder / key.hex()
    times = path.stat()
    with open(path, "r+b") as file:
        file.seek(50_000)
        file.write(b"\xff")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    status, out = cache_command(capsys, "verify", tmp_path)
    assert status == 1 and key.hex() in out and "3 entries, 1 damaged" in out
    status, out = cache_command(capsys, "verify", tmp_path, "--remove", "--json")
    assert status == 0 and [entry["key"] for entry in json.loads(out)["damaged"]] == [key.hex()]
    assert cache_command(capsys, "verify", tmp_path)[1] == "2 entries, 0 damaged\n"


def test_the_command_finds_what_was_cut_off_and_small_results_that_are_unreadable(tmp_path, capsys):
    f = Memory(tmp_path, verbose=0).cache(some_noise)
    g = Memory(tmp_path, verbose=0).cache(add)
    f(1), [g(n) for n in range(4)]
    (shelf,) = [path for path in entries(tmp_path) if path.name == "shelf"]
    sound = shelf.read_bytes()
    for cut, left in ((len(sound) - 1, 4), (len(sound) // 2, None), (128, 1), (100, 1), (0, 1)):
        shelf.write_bytes(sound[:cut])
        status, out = cache_command(capsys, "verify", tmp_path)
        assert status == 1 and f"damaged: {shelf.parent.name}/shelf\n" in out and ", 1 damaged\n" in out
        status, out = cache_command(capsys, "verify", tmp_path, "--remove", "--json")
        assert status == 0 and len(json.loads(out)["damaged"]) == 1
        status, out = cache_command(capsys, "verify", tmp_path)
        assert status == 0 and ", 0 damaged\n" in out
        assert left is None or out.startswith(f"{left} entries")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert [g(n) for n in range(4)] == [1, 2, 3, 4]
        sound = shelf.read_bytes()


def test_the_command_lists_damaged_entries_as_such(tmp_path, capsys):
    g = Memory(tmp_path, verbose=0).cache(add)
    [g(n) for n in range(8)]
    (shelf,) = entries(tmp_path)
    with open(shelf, "r+b") as file:
        file.seek(1024)
        file.write(bytes(512))
    listed = json.loads(cache_command(capsys, "ls", tmp_path, "--json")[1])["entries"]
    damaged = [entry for entry in listed if not entry["sound"]]
    rows = cache_command(capsys, "ls", tmp_path)[1].splitlines()[1:]
    assert 0 < len(damaged) < len(listed) == len(rows)
    assert sum("damaged" in row for row in rows) == len(damaged)
    created = [entry["created"] for entry in listed if entry["sound"]]
    (sums,) = json.loads(cache_command(capsys, "stat", tmp_path, "--json")[1])["functions"].values()
    assert sums["oldest"] == min(created)
    assert not re.search(r"\d{4}\.\d d", "\n".join(rows) + cache_command(capsys, "stat", tmp_path)[1])  # since 1970


def test_the_command_is_there_as_python_m_shoal_cache(tmp_path):
    Memory(tmp_path, verbose=0).cache(double)(1)
    out = subprocess.run(
        [sys.executable, "-m", "shoal", "cache", "stat", tmp_path, "--json"], capture_output=True, check=True
    ).stdout
    assert json.loads(out)["total"]["entries"] == 1


def test_a_calls_id_is_its_entrys_key(tmp_path):
    f = Memory(tmp_path, verbose=0).cache(add)
    assert f(1) == f(1, y=1) == 2 and f(2) == 3
    assert f._get_args_id(1) == f._get_args_id(x=1, y=1) != f._get_args_id(2)
    assert {key.hex() for _, key, *_ in stored(tmp_path)} == {f._get_args_id(1), f._get_args_id(2)}


# ---- threads ----


def test_threads_may_make_the_first_call_of_a_cached_function_at_the_same_time(tmp_path):
    """In a program of its own: what the last of them opened replaced what the others were reading from."""
    source = """
        import sys, threading
        from shoal.joblib import Memory

        def f(x):
            return x

        memory = Memory(sys.argv[1], verbose=0)
        memory.cache(f)(1)
        sys.setswitchinterval(1e-5)
        for _ in range(200):
            cached = memory.cache(f)
            begin, store = threading.Barrier(8), cached.store_backend.store

            def open_late():
                found = store()
                begin.wait()  # so that each finds that nothing was opened yet
                return found

            def call():
                for _ in range(20):
                    assert cached(1) == 1

            cached.store_backend.store = open_late
            threads = [threading.Thread(target=call) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            cached.store_backend.store = store
        print("done")
    """
    assert run_with_cache(tmp_path, source) == "done\n"


def test_a_function_may_change_while_its_arguments_are_bound(tmp_path):
    """By what the collector runs, which before CPython 3.12 comes wherever a tuple is made."""
    parameters = ", ".join(f"p{i}=0" for i in range(25))  # more than a tuple has that is not allocated
    source = f"""
        import gc, sys
        from shoal.joblib import Memory

        class Default:
            def __init__(self, number):
                self.number = number

        def f(a, {parameters}, last=Default(0), *, named=Default(0), **others):
            return a

        cached, changes, within = Memory(sys.argv[1], verbose=0).cache(f), 0, False

        def change(phase, info):
            global changes, within
            if phase == "start" and not within:
                within = True
                changes += 1
                f.__defaults__ = (0,) * 25 + (Default(changes),)
                f.__kwdefaults__ = {{"named": Default(changes)}}
                assert cached(changes % 3) == changes % 3
                within = False

        cached(1)
        gc.callbacks.append(change)
        for i in range(600):
            gc.set_threshold(1 + i % 11)
            assert (cached(1, 2, 3) if i % 2 else cached(1, other=1)) == 1
        gc.callbacks.clear()
        assert changes > 0 and not within
        print("done")
    """
    options = {"env": {**os.environ, "PYTHONMALLOC": "debug"}}  # what is freed is overwritten
    assert run_with_cache(tmp_path, source, **options) == "done\n"
