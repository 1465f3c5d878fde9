"""`shoal.install()` and `python -m shoal`: programs run unchanged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import run_program

WHICH = """
    import sys
    from multiprocessing import Pool, Queue, Process
    import multiprocessing, multiprocessing.pool

    def where(_):
        return type(multiprocessing.current_process()).__mro__[1].__module__

    if __name__ == "__main__":
        if len(sys.argv) > 1:
            multiprocessing.set_start_method(sys.argv[1])
        with Pool(2) as pool:
            print(type(pool).__module__, isinstance(pool, multiprocessing.pool.Pool), pool.map(abs, [-1, -2]))
        print(type(Queue()).__module__)
        print(sys.argv[1:], __name__, __file__[-10:])
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_program_runs_on_shoal_unchanged(tmp_path: Path, method: str) -> None:
    done = run_program(tmp_path, WHICH, method, shoal=True)
    assert done.stdout.splitlines() == [
        "shoal.multiprocessing.pool True [1, 2]",
        "shoal.multiprocessing.queues",
        f"['{method}'] __main__ program.py",
    ], done.stderr


def test_without_shoal_the_same_program_runs_on_the_standard_library(tmp_path: Path) -> None:
    assert "multiprocessing.pool True [1, 2]" in run_program(tmp_path, WHICH).stdout


def test_install_reaches_those_who_imported_before_and_uninstall_undoes_it(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import multiprocessing
        from multiprocessing import Pool, Queue, pool, queues, popen_fork
        from joblib import Parallel as before
        import joblib, joblib.parallel, joblib.memory
        names = [(pool, "Pool"), (queues, "Queue"), (popen_fork, "Popen")]
        names += [(joblib, "Parallel"), (joblib.parallel, "Parallel"), (joblib, "Memory")]
        original = [getattr(module, name) for module, name in names]
        import shoal
        shoal.install()
        shoal.install()
        print(*(getattr(module, name).__module__.split(".")[0] for module, name in names))
        with Pool(1) as made:
            print(type(made).__module__, type(Queue()).__module__)
        shoal.uninstall()
        print([getattr(module, name) for module, name in names] == original)
        """,
    )
    assert done.stdout.splitlines() == [
        "shoal " * 5 + "shoal",
        "shoal.multiprocessing.pool shoal.multiprocessing.queues",
        "True",
    ], done.stderr


def test_classes_that_others_imported_before_are_the_same_types(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import multiprocessing as mp
        from multiprocessing.pool import AsyncResult, MapResult, Pool, ThreadPool
        from multiprocessing.queues import JoinableQueue, Queue, SimpleQueue

        class Derived(Pool):
            pass

        def square(x):
            return x * x

        if __name__ == "__main__":
            import shoal
            shoal.install()
            for method in ("fork", "spawn"):
                context = mp.get_context(method)
                print(
                    isinstance(context.Queue(), Queue), isinstance(context.SimpleQueue(), SimpleQueue),
                    isinstance(context.JoinableQueue(), JoinableQueue), isinstance(context.JoinableQueue(), Queue),
                )
                for kind in (Pool, Derived, mp.pool.Pool):
                    with kind(2, context=context) as pool:
                        applied, mapped = pool.apply_async(square, (3,)), pool.map_async(square, range(4))
                        print(
                            isinstance(pool, Pool), isinstance(applied, AsyncResult), isinstance(mapped, MapResult),
                            applied.get(20), mapped.get(20),
                        )
                        pool.close()
                        pool.join()
                    print(hasattr(pool, "stats"))
            with ThreadPool(2) as pool:
                print(isinstance(pool, Pool), pool.map(square, range(3)))
            shoal.uninstall()
            with Pool(1) as pool:
                print(type(pool) is Pool, pool.map(square, range(3)))
        """,
    )
    results = "True True True 9 [0, 1, 4, 9]"
    each = ["True True True True", results, "True", results, "False", results, "True"]
    assert done.stdout.splitlines() == [*each, *each, "True [0, 1, 4]", "True [0, 1, 4]"], done.stderr


def test_joblib_that_is_imported_later_is_ours_too(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        from joblib import Parallel, delayed, Memory
        import joblib
        print(Parallel.__module__, Memory.__module__, joblib.dump.__module__)
        print(Parallel(n_jobs=2)(delayed(abs)(-i) for i in range(3)))
        """,
        shoal=True,
    )
    assert done.stdout.splitlines() == [
        "shoal.joblib.parallel shoal.joblib.memory shoal.joblib.numpy_pickle",
        "[0, 1, 2]",
    ], done.stderr


def test_where_joblib_is_not_installed_ours_takes_its_name(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import sys, importlib.util
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "joblib" else real(name, *rest)
        import shoal
        shoal.install()
        from joblib import Parallel, delayed
        print(sys.modules["joblib"].__name__, Parallel(n_jobs=1)([delayed(abs)(-1)]))
        import joblib
        print(joblib.__version__, joblib.StoreBackendBase.__name__)
        shoal.uninstall()
        print("joblib" in sys.modules)
        """,
    )
    assert done.stdout.splitlines() == ["shoal.joblib [1]", "1.6.0 StoreBackendBase", "False"], done.stderr


def _shoal(*arguments: str, **keywords: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shoal", *arguments],
        capture_output=True,
        text=True,
        timeout=40,
        **keywords,  # type: ignore[call-overload]
    )


def test_code_and_modules_run_as_python_runs_them(tmp_path: Path) -> None:
    assert _shoal("-c", "import sys; print(sys.argv, __name__)", "a").stdout == "['-c', 'a'] __main__\n"
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "tool.py").write_text(
        "import sys\nfrom multiprocessing import Pool, get_context\n\ndef double(x):\n    return 2 * x\n\n"
        "if __name__ == '__main__':\n    with get_context('spawn').Pool(1) as pool:\n"
        "        print(sys.argv[1:], __spec__.name, pool.map(double, [1, 2]), type(pool).__module__)\n"
    )
    done = _shoal("-m", "package.tool", "x", "-y", cwd=tmp_path)
    assert done.stdout == "['x', '-y'] package.tool [2, 4] shoal.multiprocessing.pool\n", done.stderr


def test_exit_codes_and_tracebacks_are_the_programs(tmp_path: Path) -> None:
    assert run_program(tmp_path, "raise SystemExit(5)", shoal=True).returncode == 5
    failed = run_program(tmp_path, "1 / 0", shoal=True)
    assert failed.returncode == 1
    assert "ZeroDivisionError" in failed.stderr


def test_wrong_use_is_explained() -> None:
    assert "usage" in _shoal("--help").stdout
    assert _shoal("--version").stdout.startswith("shoal ")
    missing = _shoal("no-such-file.py")
    assert missing.returncode == 2
    assert "can't open file 'no-such-file.py'" in missing.stderr
    assert _shoal("--nonsense").returncode == 2
    assert _shoal("-m").returncode == 2
    assert _shoal().returncode == 2


def test_what_classes_make_that_others_imported_before_is_ours(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import multiprocessing as mp, threading
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing.queues import JoinableQueue, Queue, SimpleQueue
        from multiprocessing.synchronize import Barrier, BoundedSemaphore, Condition, Event, Lock, RLock, Semaphore

        class Derived(JoinableQueue):
            pass

        class DerivedExecutor(ProcessPoolExecutor):
            pass

        class Foreign:  # has what multiprocessing's condition asks of a lock, and is not ours
            def __init__(self, lock):
                self._semlock, self.acquire, self.release = lock._semlock, lock.acquire, lock.release

            def __enter__(self):
                return self._semlock.__enter__()

            def __exit__(self, *args):
                return self._semlock.__exit__(*args)

        def work(lock, queue):
            with lock:
                queue.put(mp.current_process().name != "MainProcess")

        def show(*makes):
            for make in makes:
                made = make()
                print(type(made).__module__.split(".")[0], type(made).__name__, end="; ")
            print()

        if __name__ == "__main__":
            import shoal
            context = mp.get_context("fork")
            synchronizing = [
                lambda: Lock(ctx=context), lambda: RLock(ctx=context), lambda: Semaphore(2, ctx=context),
                lambda: BoundedSemaphore(value=2, ctx=context), lambda: Condition(ctx=context),
                lambda: Event(ctx=context), lambda: Barrier(2, ctx=context),
            ]
            queues = [lambda: Queue(ctx=context), lambda: JoinableQueue(3, ctx=context),
                      lambda: SimpleQueue(ctx=context), lambda: Derived(ctx=context)]
            executors = [lambda: ProcessPoolExecutor(1), lambda: DerivedExecutor(1)]
            for _ in range(2):
                shoal.install()
                show(*synchronizing)
                show(*queues)
                show(*executors)
                for method in ("fork", "spawn"):
                    context = mp.get_context(method)
                    for kind in (Queue, JoinableQueue, SimpleQueue, Derived):
                        queue, lock = kind(ctx=context), Lock(ctx=context)
                        process = context.Process(target=work, args=(lock, queue))
                        process.start()
                        print(queue.get(), end=" ")
                        process.join()
                for kind in (ProcessPoolExecutor, DerivedExecutor):
                    with kind(1, mp_context=context) as executor:
                        print(isinstance(executor, ProcessPoolExecutor), executor.submit(abs, -3).result(), end=" ")
                condition = Condition(Foreign(mp.Lock()), ctx=mp)
                with condition:
                    print(type(condition) is Condition, condition.wait(0.01))
                shoal.uninstall()
                show(*synchronizing, *queues, *executors)
        """,
    )
    synchronizing = ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event", "Barrier"]
    queues = ["Queue", "JoinableQueue", "SimpleQueue"]
    standard = [f"multiprocessing {name}; " for name in [*synchronizing, *queues]]
    executor = "ProcessPoolExecutor; "
    assert done.stdout.splitlines() == 2 * [
        "".join(f"shoal {name}; " for name in synchronizing),
        "".join(f"shoal {name}; " for name in queues) + "__main__ Derived; ",
        f"shoal {executor}__main__ DerivedExecutor; ",
        "True " * 8 + "True 3 " * 2 + "True False",
        "".join(standard) + f"__main__ Derived; concurrent {executor}__main__ DerivedExecutor; ",
    ], done.stderr


def test_classes_derived_before_install_go_to_clean_processes(tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text(
        "from multiprocessing.queues import Queue\n\nclass OfLibrary(Queue):\n    def put_twice(self, obj):\n"
        "        self.put(obj)\n        self.put(obj)\n"
    )
    done = run_program(
        tmp_path,
        """
        import multiprocessing as mp
        from multiprocessing.queues import JoinableQueue, Queue, SimpleQueue
        from multiprocessing.synchronize import Event, Lock
        import library, shoal

        class Joinable(JoinableQueue):
            pass

        class Simple(SimpleQueue):
            pass

        class OwnState(Queue):
            def __getstate__(self):
                return super().__getstate__() + (self.extra,)

            def __setstate__(self, state):
                super().__setstate__(state[:-1])
                self.extra = state[-1]

        class Locked(Lock):
            pass

        class Flag(Event):
            pass

        if __name__ == "__main__":
            shoal.install()

        class After(Queue):  # by the class that was imported before
            pass

        class AfterByName(mp.queues.Queue):
            pass

        def relay(queues, lock, flag):
            with lock:
                for queue in queues:
                    queue.put(queue.get() + getattr(queue, "extra", 1))
            queues[0].task_done()
            flag.set()

        if __name__ == "__main__":
            for method in ("spawn", "forkserver"):
                context = mp.get_context(method)
                if method == "forkserver":
                    context.set_forkserver_preload(["__main__", "library"])
                kinds = Joinable, Simple, OwnState, After, AfterByName, library.OfLibrary
                queues = [kind(ctx=context) for kind in kinds]
                queues[2].extra = 5
                for queue in queues:
                    queue.put(1)
                lock, flag = Locked(ctx=context), Flag(ctx=context)
                process = context.Process(target=relay, args=(queues, lock, flag))
                process.start()
                print(flag.wait(20), [queue.get() for queue in queues])
                process.join()
        """,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout.splitlines() == ["True [2, 2, 6, 2, 2, 2]"] * 2, done.stderr


SHOW = """
    import re, sys, threading, time
    import multiprocessing as mp
    from concurrent.futures import ProcessPoolExecutor

    def show(what, thing):
        text = re.sub(r"0x[0-9a-f]+", "ADDRESS", repr(thing))
        print(what, re.sub(r"((?:pid|parent)=|Process-)[0-9]+", r"\\1N", text))

    def leave():
        raise SystemExit(3)

    def hold(lock, held, go):
        with lock:
            held.set()
            go.wait()

    if __name__ == "__main__":
        context = mp.get_context(sys.argv[1])
        show("context", context)
        for name in ("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event", "Queue", "JoinableQueue",
                     "SimpleQueue"):
            show(name, getattr(context, name)())
        lock, recursive = context.Lock(), context.RLock()
        lock.acquire(), recursive.acquire(), recursive.acquire()
        show("held", (lock, recursive, context.Condition(lock)))
        lock.release(), recursive.release(), recursive.release()
        for kind in (lock, recursive):
            for start in (threading.Thread, context.Process):
                held, go = (threading.Event(), threading.Event()) if start is threading.Thread else (
                    context.Event(), context.Event())
                other = start(target=hold, args=(kind, held, go))
                other.start()
                held.wait()
                show("held by another", kind)
                go.set()
                other.join()
        bounded, event, barrier = context.BoundedSemaphore(4), context.Event(), context.Barrier(2)
        show("barrier", barrier)
        bounded.acquire(), event.set(), barrier.abort()
        show("used", (bounded, event, barrier))
        for options in ({}, {"daemon": True}, {"name": "a name"}):
            process = context.Process(target=time.sleep, args=(60,), **options)
            show("made", process)
            process.start()
            show("started", process)
            process.terminate()
            process.join()
            show("ended", process)
            process.close()
            show("closed", process)
        process = context.Process(target=leave)
        process.start()
        process.join()
        show("left", process)
        show("connections", context.Pipe(False))
        pool = context.Pool(2)
        show("pool", pool)
        show("results", (pool.apply_async(abs, (1,)), pool.map_async(abs, [1])))
        show("iterators", (pool.imap(abs, [1]), pool.imap_unordered(abs, [1])))
        pool.close()
        show("closed", pool)
        pool.join()
        show("joined", pool)
        pool = context.Pool(3)
        pool.terminate()
        pool.join()
        show("terminated", pool)
        show("values", (context.Value("i", 3), context.Array("c", 3), context.RawArray("d", 2)))
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            future = executor.submit(abs, -1)
            future.result()
            show("executor", (executor, future))
        show("executor", executor)
        show("processes", (mp.current_process(), mp.parent_process(), mp.active_children()))
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_reprs_are_the_standard_librarys(tmp_path: Path, method: str) -> None:
    (theirs, ours) = (run_program(tmp_path, SHOW, method, shoal=shoal) for shoal in (False, True))
    assert theirs.stdout.count("\n") > 30, theirs.stderr
    shown = ours.stdout.replace("shoal.multiprocessing.", "multiprocessing.")
    shown = shown.replace("shoal.futures.", "concurrent.futures.process.")
    assert shown.splitlines() == theirs.stdout.splitlines(), ours.stderr


def test_a_thread_pool_is_a_pool_by_either_name(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import abc, multiprocessing.pool
        from multiprocessing.pool import Pool as before
        import shoal
        shoal.install()
        from multiprocessing.pool import Pool, ThreadPool

        class Derived(Pool):
            pass

        class Abstract(Pool, abc.ABC):
            pass

        with ThreadPool(1) as threads, Pool(1) as pool:
            for kind in (before, Pool, Derived, Abstract, ThreadPool):
                print(isinstance(threads, kind), issubclass(ThreadPool, kind), isinstance(pool, kind))
        """,
    )
    both, neither, threads = "True True True", "False False False", "True True False"
    assert done.stdout.splitlines() == [both, both, neither, neither, threads], done.stderr


def test_thread_pools_stay_the_standard_librarys(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import multiprocessing.dummy
        from multiprocessing.pool import ThreadPool
        import shoal
        shoal.install()
        with ThreadPool(2) as pool, multiprocessing.dummy.Pool(2) as other:
            print(pool.map(abs, [-1, 2]), list(pool.imap(abs, [-3])), pool.apply_async(abs, (-4,)).get())
            print(other.map(abs, [-5]))
        shoal.uninstall()
        with ThreadPool(1) as pool:
            print(pool.map(abs, [-6]))
        """,
    )
    assert done.stdout.splitlines() == ["[1, 2] [3] 4", "[5]", "[6]"], done.stderr


def test_there_is_one_start_method_by_either_name(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import multiprocessing
        import shoal.multiprocessing as ours

        def show():
            methods = ours.get_start_method(), multiprocessing.get_start_method()
            print(*methods, type(ours.Queue()).__module__, flush=True)

        if __name__ == "__main__":
            print(multiprocessing.get_start_method(allow_none=True), ours.get_start_method(allow_none=True))
            multiprocessing.set_start_method("spawn")
            show()
            ours.set_start_method("forkserver", force=True)
            show()
            process = multiprocessing.Process(target=show)
            process.start()
            process.join()
            try:
                ours.set_start_method("fork")
            except RuntimeError as error:
                print(error)
        """,
        shoal=True,
    )
    assert done.stdout.splitlines() == [
        "None None",
        "spawn spawn shoal.multiprocessing.queues",
        "forkserver forkserver shoal.multiprocessing.queues",
        "forkserver forkserver shoal.multiprocessing.queues",
        "context has already been set",
    ], done.stderr


def test_under_install_clean_processes_come_from_a_zygote(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import multiprocessing, multiprocessing.pool, os, sys

        def parent(queue):
            queue.put(multiprocessing.pool.Pool.__module__ if os.getppid() != int(sys.argv[1]) else "our child")

        if __name__ == "__main__":
            sys.argv.append(str(os.getpid()))
            for method in ("spawn", "forkserver"):
                context = multiprocessing.get_context(method)
                queue = context.SimpleQueue()
                process = context.Process(target=parent, args=(queue,))
                process.start()
                print(type(process._popen).__module__, queue.get())
                process.join()
        """,
        shoal=True,
    )
    assert done.stdout.splitlines() == ["shoal.multiprocessing.popen_clean shoal.multiprocessing.pool"] * 2, done.stderr


def test_zip_files_and_compiled_programs_run(tmp_path: Path) -> None:
    import py_compile
    import zipfile

    source = tmp_path / "program.py"
    source.write_text("import sys\nprint(__name__, sys.argv[1:])\n")
    compiled = py_compile.compile(str(source), cfile=str(tmp_path / "program.pyc"))
    with zipfile.ZipFile(tmp_path / "program.zip", "w") as file:
        file.write(source, "__main__.py")
    for path in (compiled, str(tmp_path / "program.zip")):
        done = subprocess.run(
            [sys.executable, "-m", "shoal", str(path), "x"], capture_output=True, text=True, timeout=40
        )
        assert done.stdout == "__main__ ['x']\n", done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "connection",
        "managers",
        "shared_memory",
        "reduction",
        "dummy",
        "util",
        "process",
        "spawn",
        "resource_tracker",
        "resource_sharer",
        "heap",
        "forkserver",
    ],
)
def test_what_is_the_standard_librarys_own_is_there_under_our_name(name: str) -> None:
    import importlib

    ours = importlib.import_module(f"shoal.multiprocessing.{name}")
    assert ours is importlib.import_module(f"multiprocessing.{name}")
    namespace: dict[str, object] = {}
    exec(f"from shoal.multiprocessing import {name}", namespace)
    assert namespace[name] is ours


def test_the_program_shoal_is_where_the_package_is() -> None:
    program = Path(sys.executable).parent / "shoal"
    done = subprocess.run([program, "cache", "--help"], capture_output=True, text=True, timeout=40)
    assert done.returncode == 0 and "verify" in done.stdout, done.stderr
