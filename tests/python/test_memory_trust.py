"""`Memory`: right values with others at work, after damage, and where nothing can be written."""

from __future__ import annotations

import fcntl
import os
import pickle
import re
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import cloudpickle
import numpy as np
import pytest
from cached_calls import CALLS, add, make_array
from helpers import entries, run_with_cache
from shoal.joblib.memory import (
    CacheWarning,
    Memory,
)


@pytest.fixture(autouse=True)
def no_calls_yet():
    CALLS.clear()


@pytest.fixture
def memory(tmp_path):
    return Memory(tmp_path, verbose=0)


# ---- other processes and threads ----


def test_memory_and_cached_functions_can_be_pickled(memory, tmp_path):
    cached = memory.cache(add, ignore=["z"])
    cached(1)
    again = pickle.loads(pickle.dumps(cached))
    assert again(1) == 2
    assert pickle.loads(pickle.dumps(memory)).cache(add, ignore=["z"])(1) == 2
    assert len(CALLS) == 1
    by_value = cloudpickle.loads(cloudpickle.dumps(memory.cache(lambda x: x + 1)))
    assert by_value(1) == 2


def test_a_decorated_function_of_a_module_is_pickled_by_name(tmp_path):
    (tmp_path / "library.py").write_text(
        f"from shoal.joblib.memory import Memory\n@Memory({str(tmp_path)!r}, verbose=0).cache\ndef f(x): return x\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        import library

        assert pickle.loads(pickle.dumps(library.f)) is library.f
    finally:
        sys.path.remove(str(tmp_path))


PARALLEL = """
    import sys, os, multiprocessing
    from shoal.joblib.memory import Memory
    memory = Memory(sys.argv[1], verbose=0)

    def f(x):
        with open(sys.argv[1] + "/calls", "a") as file:
            file.write("x")
        return x * 2
    cached = memory.cache(f)

    if __name__ == "__main__":
        with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
            assert pool.map(cached, range(20), chunksize=1) == [2 * x for x in range(20)]
            assert pool.map(cached, range(20), chunksize=1) == [2 * x for x in range(20)]
        assert [cached(x) for x in range(20)] == [2 * x for x in range(20)]
        print(os.path.getsize(sys.argv[1] + "/calls"))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_share_the_results(tmp_path, method):
    assert run_with_cache(tmp_path, PARALLEL, method).split() == ["20"]


def test_threads_may_call_at_the_same_time(memory):
    cached = memory.cache(make_array)
    wrong = []

    def work():
        for turn in range(100):
            n = 20_000 * (turn % 3)
            if len(cached(n)) != n:
                wrong.append(n)
            if turn % 10 == 0:
                cached.clear(warn=False)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_killed_writer_leaves_right_values_and_no_stray_file(tmp_path):
    script = tmp_path / "writer.py"
    script.write_text(
        textwrap.dedent("""
        import sys, numpy as np
        from shoal.joblib.memory import Memory
        f = Memory(sys.argv[1], verbose=0).cache(lambda n: np.full(100_000 + n, n))
        if len(sys.argv) > 2:
            assert all((f(n) == n).all() for n in range(5))
            raise SystemExit
        print("ready", flush=True)
        while True:
            for n in range(5):
                f.call(n)
    """)
    )
    command = [sys.executable, "-W", "error", str(script), str(tmp_path)]
    for turn in range(12):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.003 * turn)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    time.sleep(1.1)  # what the last of them may have left is young until then
    subprocess.run([*command, "read"], check=True, timeout=50)
    names = [path.name for path in (tmp_path / "shoal").rglob("[!.]*") if path.is_file()]
    assert len(names) == 5 and not [name for name in names if not re.fullmatch("[0-9a-f]{32}", name)]


# ---- damage, rights, room ----


def damages_of(path, tmp_path):
    """Each kind of damage to a file that holds one entry, as a name and what does it."""
    sound = path.read_bytes()
    on_shelf = path.name == "shelf"
    first, step = (128, 7) if on_shelf else (0, len(sound) // 20)  # all of a shelf's head is there twice
    contents = {"empty": b"", "noise": os.urandom(len(sound)), "cut to 100 bytes": sound[:100]}
    contents |= {"cut by a byte": sound[:-1], "half": sound[: len(sound) // 2]}
    others = {}  # in a file of its own: who has the shelf open knows the head
    if on_shelf:
        contents |= {"cut to the head": sound[:128], "cut within the record": sound[:200]}
        others |= {"no head": bytes(128) + sound[128:], "a shelf without a length": shelf_of_version(sound, 1)}
        others |= {"newer": shelf_of_version(sound, 3), "other byte order": shelf_of_version(sound, sound[7] ^ 128)}
    else:
        contents |= {"a byte more": sound + b"x"}
    for at in range(first, len(sound), step):
        contents[f"bit flipped in byte {at}"] = sound[:at] + bytes([sound[at] ^ 16]) + sound[at + 1 :]
    for name, content in contents.items():
        yield name, lambda content=content: path.write_bytes(content)

    def put_other(content):
        path.unlink()
        path.write_bytes(content)

    for name, content in others.items():
        yield name, lambda content=content: put_other(content)

    def put_folder():
        path.unlink()
        path.mkdir()
        (path / "something").write_bytes(sound)

    def put_link():
        (tmp_path / "elsewhere").write_bytes(sound)
        path.unlink()
        path.symlink_to(tmp_path / "elsewhere")

    yield "a folder in its place", put_folder
    yield "a link in its place", put_link


def shelf_of_version(sound, version):
    """The same shelf as another version, or a machine of the other byte order, would mark it."""
    from shoal import _engine

    half = sound[:7] + bytes([version]) + sound[8:24]
    half += _engine.digest_bytes(half)[:8]
    return half + half + sound[64:]


@pytest.mark.parametrize("way", ["call", "validated", "shelved"])
@pytest.mark.parametrize("n", [10, 100_000])
def test_damage_is_a_miss_with_a_warning_and_is_repaired(memory, tmp_path, n, way):
    callback = (lambda metadata: True) if way == "validated" else None
    cached = memory.cache(make_array, cache_validation_callback=callback)
    call = (lambda n: cached.call_and_shelve(n).get()) if way == "shelved" else cached
    call(n)
    (path,) = entries(tmp_path)
    for number, (name, do) in enumerate(damages_of(path, tmp_path)):
        do()
        assert not cached.explain(n).hit
        assert not cached.check_call_in_cache(n)
        with pytest.warns(CacheWarning, match="cannot be used") as caught:
            assert np.array_equal(call(n), np.arange(n, dtype=float)), name
        assert len(caught) == 1, name
        assert len(CALLS) == number + 2, name
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(call(n), np.arange(n, dtype=float)), name
            assert cached.check_call_in_cache(n) and cached.explain(n).hit
        assert len(CALLS) == number + 2, name
        assert [path] == entries(tmp_path) and stat.S_ISREG(path.lstat().st_mode), name


@pytest.mark.parametrize("where", ["at a record's end", "within a record", "to the head"])
def test_small_results_that_were_cut_off_are_computed_again_with_a_warning(memory, tmp_path, where):
    cached = memory.cache(make_array)
    ends = []
    for n in range(6):
        cached(n)
        (path,) = entries(tmp_path)
        ends.append(path.stat().st_size)
    left = {"at a record's end": ends[2], "within a record": ends[2] + 100, "to the head": 128}[where]
    os.truncate(path, left)
    kept = [n for n in range(6) if ends[n] <= left]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(np.array_equal(cached(n), np.arange(n, dtype=float)) for n in kept)
    assert len(CALLS) == 6
    with pytest.warns(CacheWarning, match="cannot be used") as caught:
        assert np.array_equal(cached(5), np.arange(5, dtype=float))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said once
        for _ in range(2):
            assert all(np.array_equal(cached(n), np.arange(n, dtype=float)) for n in range(7))
    assert sorted(CALLS[6:]) == sorted({*range(6)} - {*kept} | {6})


def test_small_results_that_were_overwritten_are_computed_again_with_a_warning(memory, tmp_path):
    cached = memory.cache(make_array)
    for n in range(20):
        cached(n)
    (path,) = entries(tmp_path)
    with open(path, "r+b") as file:  # a block of the disk that came back empty
        file.seek(1024)
        file.write(bytes(1024))
    with pytest.warns(CacheWarning, match="cannot be used"):
        assert all(np.array_equal(cached(n), np.arange(n, dtype=float)) for n in range(20))
    assert len(CALLS) > 21
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(np.array_equal(cached(n), np.arange(n, dtype=float)) for n in range(20))
        memory.cache(make_array)(20)


def test_a_value_whose_class_is_gone_is_computed_again(memory):
    class Gone:
        pass

    module = sys.modules[__name__]
    module.Gone, Gone.__qualname__ = Gone, "Gone"
    cached = memory.cache(lambda: module.__dict__.get("Gone", int)())
    assert isinstance(cached(), Gone)
    del module.Gone
    with pytest.warns(CacheWarning, match="cannot be used"):
        assert cached() == 0
    assert cached() == 0


def test_what_others_could_have_written_is_refused(memory, tmp_path):
    cached = memory.cache(add)
    cached(1)
    (path,) = entries(tmp_path)
    path.chmod(0o666)
    with pytest.raises(PermissionError, match="group or others may write"):
        cached(1)
    path.chmod(0o600)
    assert cached(1) == 2
    (tmp_path / "shoal").chmod(0o777)
    with pytest.raises(PermissionError, match="not used"):
        subprocess_memory(tmp_path)
    assert len(CALLS) == 1


def subprocess_memory(tmp_path):
    from shoal import _engine

    return _engine.Store(str(tmp_path / "shoal"))


@pytest.mark.parametrize("umask", [0, 0o777])
def test_folders_and_files_are_the_users_alone_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        memory = Memory(tmp_path / "new" / "one", verbose=0)
        memory.cache(add)(1)
    finally:
        os.umask(before)
    paths = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    assert tmp_path / "new" / "one" / "shoal" / ".gitignore" in paths
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


READ_ONLY = """
    import os, sys, warnings
    from shoal.joblib.memory import Memory
    os.makedirs(sys.argv[1])
    if sys.argv[2] == "folder":
        os.chmod(sys.argv[1], 0o555)
    if os.geteuid() == 0:
        os.chown(sys.argv[1], 12345, 12345)
        os.setgid(12345), os.setuid(12345)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        memory = Memory(sys.argv[1], verbose=0)
        if sys.argv[2] == "later":
            os.chmod(sys.argv[1] + "/shoal", 0o500)
        f = memory.cache(lambda x: x + 1)
        print([f(1), f(1), f(2), memory.cache(lambda x: x + 3)(1)])
    print(len(caught))
"""


@pytest.mark.parametrize("when", ["folder", "later"])
def test_in_a_read_only_folder_values_are_computed_with_one_warning(tmp_path, when):
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent != parent.parent and parent.stat().st_uid == os.geteuid():
            parent.chmod(parent.stat().st_mode | 0o055)
    assert run_with_cache(tmp_path, READ_ONLY, when).split("\n")[:2] == ["[2, 2, 3, 4]", "1"]


def test_where_there_is_no_room_values_are_computed_with_one_warning(tmp_path):
    cached = Memory(tmp_path, verbose=0).cache(make_array)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.warns(CacheWarning, match="cannot be kept") as caught:
            for _ in range(3):
                assert len(cached(5000)) == 5000
        assert len(caught) == 1
        cached(10), cached(10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert CALLS == [5000, 5000, 5000, 10]


def test_where_another_was_stopped_in_a_folder_hits_go_on_and_a_clear_names_the_cache(memory, tmp_path):
    cached = memory.cache(make_array)
    cached(1)
    (shelf,) = entries(tmp_path)
    with open(shelf, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert np.array_equal(cached(1), [0.0]) and len(CALLS) == 1
        with pytest.raises(TimeoutError, match=re.escape(str(tmp_path))):
            memory.clear(warn=False)
    memory.clear(warn=False)
    assert not cached.check_call_in_cache(1)


def test_a_value_that_cannot_be_pickled_is_returned_with_one_warning(memory):
    cached = memory.cache(lambda: threading.Lock())
    with pytest.warns(CacheWarning, match="cannot be pickled") as caught:
        assert cached() is not cached()
    assert len(caught) == 1


def test_what_would_come_back_as_another_kind_of_thing_is_not_kept(memory):
    for make in (
        lambda: memoryview(b"abc"),
        lambda: [memoryview(b"abc"), lambda: 1],
        lambda: os.fdopen(os.open(os.devnull, os.O_RDONLY)),
    ):
        cached = memory.cache(make)
        with pytest.warns(CacheWarning, match="cannot be pickled"):
            first = cached()
        second = cached()
        assert type(second) is type(first)
        if isinstance(second, list):
            assert type(second[0]) is memoryview
        for value in first, second:
            if hasattr(value, "close"):
                value.close()
        assert not cached.check_call_in_cache()
    assert memory.cache(lambda: [lambda: 5])()[0]() == 5


def test_a_cached_function_goes_away_with_its_last_reference(memory):
    import gc
    import weakref

    def cycle():
        @memory.cache
        def function(x):
            return function, x

        return function

    function = cycle()
    function(1) if False else function.check_call_in_cache(1)
    gone = weakref.ref(function)
    del function
    gc.collect()
    assert gone() is None


def test_who_is_killed_as_it_makes_a_store_leaves_no_empty_gitignore(tmp_path):
    child = os.fork()
    if child == 0:
        os.fchmod = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # between making the file and writing it
        Memory(tmp_path, verbose=0).cache(add)(1)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert Memory(tmp_path, verbose=0).cache(add)(1) == add(1)
    assert (tmp_path / "shoal" / ".gitignore").read_text().endswith("\n*\n")
