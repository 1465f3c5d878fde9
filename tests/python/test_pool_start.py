"""How a pool's workers begin: initializers of a prompt, Ctrl-C before they serve, the zygotes that fork them."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from helpers import run_program
from shoal import ProcessPoolExecutor
from shoal.multiprocessing import Pool

METHODS = ["fork", "spawn", "forkserver"]


@pytest.mark.parametrize("kind", ["Pool", "ProcessPoolExecutor"])
@pytest.mark.parametrize("method", METHODS)
def test_what_an_initializer_of_a_prompt_sets_up_is_there_for_its_functions(
    tmp_path: Path, method: str, kind: str
) -> None:
    program = f"""
from shoal import ProcessPoolExecutor
from shoal.multiprocessing import get_context
cache, model = {{}}, None
def load(value):
    global model
    model = value * 2
def begin(value):
    cache["value"] = value
    load(value)
def use(x): return x + cache["value"] + model
context = get_context({method!r})
if {kind!r} == "Pool":
    pool = context.Pool(2, begin, (10,))
else:
    pool = ProcessPoolExecutor(2, mp_context=context, initializer=begin, initargs=(10,))
with pool:
    print(list(pool.map(use, range(3))))
    print(list(pool.map(lambda x: x + model, range(3))))
print(cache, model)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, cwd=tmp_path)
    assert done.stdout.splitlines() == ["[30, 31, 32]", "[20, 21, 22]", "{} None"], done.stderr


@pytest.mark.parametrize("method", METHODS)
def test_lambdas_and_functions_of_a_prompt_may_be_a_workers_first_and_last_calls(tmp_path: Path, method: str) -> None:
    program = f"""
from shoal.multiprocessing import get_context
def end(): print("the end", flush=True)
with get_context({method!r}).Pool(1, initializer=lambda: print("begun", flush=True), worker_exit=end) as pool:
    print(pool.map(abs, [-1]), flush=True)
    pool.close()
    pool.join()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, cwd=tmp_path)
    assert done.stdout.splitlines() == ["begun", "[1]", "the end"], done.stderr


def test_ctrl_c_before_a_forked_worker_serves_is_the_parents_alone(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import os, signal
        from shoal.multiprocessing import Pool
        # As Ctrl-C reaches the whole group, in each worker's first instant.
        os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGINT))
        with Pool(2) as pool:
            print(pool.map(abs, range(-3, 0), chunksize=1))
        """,
    )
    assert (done.stdout, done.stderr) == ("[3, 2, 1]\n", "")


def test_ctrl_c_as_workers_are_forked_leaves_ctrl_c_as_it_was_and_no_worker(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import _signal, _thread, functools, operator, os, signal
        from shoal.multiprocessing import Pool

        real = signal.pthread_sigmask

        def just_before(how, signals):
            # Two calls with nothing of Python's between them: the first finds the signal that came.
            if signal.SIGINT in signals:
                calls = [_thread.interrupt_main, functools.partial(_signal.pthread_sigmask, how, signals)]
                return list(map(operator.methodcaller("__call__"), calls))[-1]
            return real(how, signals)

        def just_after(how, signals):
            before = real(how, signals)
            if how == signal.SIG_BLOCK and signal.SIGINT in signals:
                os.kill(os.getpid(), signal.SIGINT)
            return before

        def children():
            folder = f"/proc/{os.getpid()}/task"
            return "".join(open(f"{folder}/{thread}/children").read() for thread in os.listdir(folder))

        for patched in (just_before, just_after):
            signal.pthread_sigmask = patched
            try:
                with Pool(2) as pool:
                    pass
            except KeyboardInterrupt:
                print(patched.__name__, signal.SIGINT in real(signal.SIG_BLOCK, ()), repr(children()))
            signal.pthread_sigmask = real
        dup = os.dup

        def once_they_are_there(fd):
            os.dup = dup
            raise KeyboardInterrupt

        os.dup = once_they_are_there
        try:
            with Pool(2) as pool:
                pass
        except KeyboardInterrupt:
            print("once they are there", repr(children()))
        with Pool(2) as pool:
            print(pool.map(abs, range(-3, 0)))
        """,
    )
    assert done.stdout.splitlines() == [
        "just_before False ''",
        "just_after False ''",
        "once they are there ''",
        "[3, 2, 1]",
    ], done.stderr


def test_ctrl_c_still_interrupts_what_a_worker_starts(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import subprocess, signal, sys
        from shoal.multiprocessing import Pool
        def start(_):
            child = subprocess.Popen([sys.executable, "-c", "print(1, flush=True); import time; time.sleep(30)"],
                                     stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            child.stdout.readline()
            child.send_signal(signal.SIGINT)
            return child.wait(20)
        with Pool(1) as pool:
            print(pool.map(start, [0]))
        """,
    )
    assert done.stdout == "[-2]\n", done.stderr


def test_zygotes_of_other_umasks_do_not_pile_up(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import os
        from shoal.multiprocessing import get_context
        def children():
            folder = f"/proc/{os.getpid()}/task"
            return sum(len(open(f"{folder}/{thread}/children").read().split()) for thread in os.listdir(folder))
        def mask():
            before = os.umask(0)
            os.umask(before)
            return before
        if __name__ == "__main__":
            context = get_context("spawn")
            os.umask(0o50)
            kept = context.Pool(1)  # its zygote has a process: it stays, however many come after it
            for number in range(12):
                os.umask(0o20 + number)
                with context.Pool(1) as pool:
                    assert pool.apply(mask) == 0o20 + number
            print(children() <= 9, kept.apply(mask) == 0o50)
            kept.terminate()
        """,
        limit=50,
    )
    assert done.stdout == "True True\n", done.stderr


def test_a_pool_that_is_too_large_says_how_large_it_may_be() -> None:
    with pytest.raises(ValueError, match="4096 workers at the most, not 100000"):
        Pool(100_000)


def test_a_program_may_come_from_standard_input(tmp_path: Path) -> None:
    program = (
        "import multiprocessing, sys\n"
        "def f(x): return x + 1\n"
        "with multiprocessing.Pool(1) as pool: print(sys.argv, multiprocessing.Pool.__module__, pool.map(f, [1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "shoal", "-", "a"],
        input=program,
        capture_output=True,
        text=True,
        timeout=40,
        cwd=tmp_path,
        env={**os.environ},
    )
    assert done.stdout.startswith("['-', 'a'] shoal.") and done.stdout.endswith(" [2]\n"), done.stderr


def test_a_clean_worker_imports_functools_when_somebody_asks_for_it() -> None:
    """The zygote does without: what asks later finds the module itself, and the class that pickle knows."""
    program = """
import sys
from shoal.joblib import Parallel, delayed
def look(x):
    early = "functools" in sys.modules
    import functools
    import pickle
    known = pickle.loads(pickle.dumps(functools.partial(int, "7")))
    return early, type(known) is functools.partial, known(), functools.reduce(lambda a, b: a + b, range(x))
print(Parallel(n_jobs=2)(delayed(look)(x) for x in [4])[0])
import functools
print(Parallel(n_jobs=2)(delayed(functools.partial(pow, 2))(x) for x in range(3)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert done.stdout.splitlines() == ["(False, True, 7, 6)", "[1, 2, 4]"], done.stderr


def collect_garbage(_: int) -> tuple[int, int]:
    """Bytes of this process's own memory before and after a full collection, which finds the cycle made here."""
    cycle: list[object] = []
    cycle.append(cycle)
    cycle.append(made := Made())
    there = weakref.ref(made)
    before = own_memory()
    del cycle, made
    gc.collect()
    assert there() is None
    return before, own_memory()


class Made:
    pass


def own_memory() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(1024 * int(size) for size in re.findall(r"Private_\w+: +(\d+) kB", text))


@pytest.mark.parametrize("kind", ["pool", "executor"])
def test_a_collection_in_a_worker_leaves_what_it_has_from_its_parent_shared(kind: str) -> None:
    large = [[i] for i in range(400_000)]  # 35 MB that the collector knows of
    if kind == "pool":
        with Pool(1) as pool:
            before, after = pool.apply(collect_garbage, (0,))
    else:
        with ProcessPoolExecutor(1) as executor:
            before, after = executor.submit(collect_garbage, 0).result()
    assert after - before < 8_000_000, (before, after)
    assert len(large) == 400_000


def test_a_forked_worker_imports_nothing_that_its_parent_could_have(tmp_path: Path) -> None:
    program = """
    import sys
    from shoal import ProcessPoolExecutor
    from shoal.multiprocessing import Pool

    def modules(_):
        return set(sys.modules)

    if __name__ == "__main__":
        with Pool(1, initializer=len, initargs=("",)) as pool:
            print(pool.apply(modules, (0,)) - set(sys.modules))
        with ProcessPoolExecutor(1, initializer=len, initargs=("",)) as executor:
            print(executor.submit(modules, 0).result() - set(sys.modules))
    """
    done = run_program(tmp_path, program)
    assert (done.stdout, done.stderr) == ("set()\n" * 2, "")
