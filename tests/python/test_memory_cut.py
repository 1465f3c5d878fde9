"""`Memory` beside a program that cuts its files short, in place, while they are used. Each in a process of its own:
what must not happen is a SIGBUS."""

from __future__ import annotations

from helpers import run_with_cache

START = """
    import glob, os, pickle, random, sys, threading, time, warnings
    import numpy as np
    from shoal.joblib.memory import CacheWarning, Memory

    def file_of(cached):
        (path,) = [path for path in glob.glob(cached._path() + "/*") if len(os.path.basename(path)) == 32]
        return path
"""


def test_views_of_a_cut_file_can_be_dropped_and_their_call_is_computed_again(tmp_path):
    program = (
        START
        + """
    cached = Memory(sys.argv[1], verbose=0).cache(lambda n: np.full(n, 7.0))
    cached(100_000)
    view = cached(100_000)
    os.truncate(file_of(cached), 0)
    assert view.nbytes == 800_000
    del view
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert cached(100_000).sum() == 700_000
    assert [w.category for w in caught] == [CacheWarning]
    print("good")
    """
    )
    assert run_with_cache(tmp_path, program) == "good\n"


def test_arrays_that_are_not_mapped_outlive_their_file(tmp_path):
    program = (
        START
        + """
    memory = Memory(sys.argv[1], verbose=0, backend_options={"mapped": False})
    for mode in None, "r", "c":
        cached = memory.cache(lambda n: np.full(n, 7.0), mmap_mode=mode)
        cached(100_000)
        array = cached(100_000)
        os.truncate(file_of(cached), 0)
        assert array.sum() == 700_000 and array.flags.writeable == (mode != "r")
        cached.clear(warn=False)
    print("good")
    """
    )
    assert run_with_cache(tmp_path, program) == "good\n"


CUTTER = (
    START
    + """
    rng = random.Random(int(sys.argv[2]))
    makers = {"pickle": lambda n: list(range(n)), "array": lambda n: np.arange(n), "bytes": lambda n: bytes(8 * n)}
    make = makers[sys.argv[3]]
    expected = make(100_000)
    cached = Memory(sys.argv[1], verbose=0).cache(make)
    cached(100_000)
    path = file_of(cached)
    with open(path, "rb") as file:
        whole = file.read()
    end = time.monotonic() + 20
    damaged = turns = 0
    child = os.fork()
    if child == 0:
        while os.getppid() != 1:
            try:
                fd = os.open(path, os.O_RDWR)
                os.ftruncate(fd, rng.randrange(len(whole)))
                time.sleep(rng.random() / 1000)
                os.pwrite(fd, whole, 0)
                os.close(fd)
            except FileNotFoundError:  # it is being replaced
                pass
            time.sleep(rng.random() / 1000)
        os._exit(0)
    warnings.simplefilter("error")
    while turns < 400 or (damaged == 0 and time.monotonic() < end):
        turns += 1
        found, value = cached._look_up(cached._key((100_000,), {}))
        if not found:
            damaged += 1
        elif sys.argv[3] != "array":  # a view is not protected
            assert value == expected
        value = None
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert damaged > 0, turns
    print("good")
"""
)


def test_a_value_is_unpickled_right_or_not_at_all_while_its_file_is_cut(tmp_path):
    for kind in "pickle", "bytes", "array":
        (tmp_path / kind).mkdir()
        assert run_with_cache(tmp_path / kind, CUTTER, "1", kind) == "good\n"


def test_load_of_a_file_that_is_cut_meanwhile_raises_or_is_right(tmp_path):
    program = (
        START
        + """
    from shoal.joblib import dump, load
    path = sys.argv[1] + ".pkl"
    expected = ["x" * 100_000] * 3 + [bytes(20_000_000)]
    dump(expected, path)
    with open(path, "rb") as file:
        whole = file.read()
    child = os.fork()
    if child == 0:
        rng = random.Random(1)
        while os.getppid() != 1:
            os.truncate(path, rng.randrange(len(whole)))
            time.sleep(rng.random() / 1000)
            with open(path, "r+b") as file:
                file.write(whole)
            time.sleep(rng.random() / 200)
        os._exit(0)
    failed = 0
    for _ in range(150):
        try:
            value = load(path)
        except (EOFError, ValueError, pickle.UnpicklingError):
            failed += 1
        else:
            assert value == expected
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert failed > 0
    print("good")
    """
    )
    assert run_with_cache(tmp_path, program) == "good\n"
