"""Several threads in one part of Shoal at once, and what the collector, or a signal's handler, does in between."""

from __future__ import annotations

import contextvars
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shoal.joblib
import shoal.multiprocessing
from helpers import Interruption, run_program
from shoal import _pickling, _serving, _threads
from shoal.joblib import _arrays, _depends, _resume, _trace, _workers, compressor
from shoal.joblib.externals import loky


def returns(call: Callable[[], object]) -> bool:
    """Whether it does, rather than wait for ever."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    if errors:
        raise errors[0]
    return not thread.is_alive()


# ------------------------------------------------------------------------ what all rest on


def test_each_thread_pickles_with_the_reducers_that_it_asked_for() -> None:
    class Kind:
        pass

    tables = [{**_pickling._reducers(), Kind: reducer} for reducer in (id, len)]

    def ask() -> None:
        made = _pickling._by_value_pickler(tables[0])
        assert made.dispatch_table[Kind] is id
        assert _pickling._by_value_pickler(tables[0]).dispatch_table[Kind] is id

    def ask_otherwise() -> None:
        _pickling._by_value_pickler(tables[1])

    assert Interruption(ask_otherwise, "shoal/_pickling.py").everywhere(ask) > 4


def test_supervisors_of_several_pools_keep_last_words_at_once() -> None:
    words = _serving._LastWords()
    numbers = iter(range(1, 1_000_000))

    def keep() -> None:
        while len(words._texts) < 256:  # all that are kept
            words._texts[next(numbers)] = "Segmentation fault"
        words.keep(next(numbers), "Segmentation fault")
        assert len(words._texts) <= 256

    def keep_too() -> None:
        words.keep(next(numbers), "Segmentation fault")

    assert Interruption(keep_too, "shoal/_serving.py", opcodes=True).everywhere(keep) > 4


def test_the_programs_own_number_of_threads_comes_back_where_two_threads_fork_workers(tmp_path: Path) -> None:
    pytest.importorskip("threadpoolctl")
    source = """
        import os
        os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "2"
        import numpy
        import threadpoolctl
        from shoal import _threads

        numbers = lambda: [library["num_threads"] for library in threadpoolctl.threadpool_info()]
        numpy.ones((300, 300)) @ numpy.ones((300, 300))
        before = numbers()
        one, other = _threads.forking(1), _threads.forking(1)
        one.__enter__()
        other.__enter__()
        one.__exit__()
        between = numbers()
        other.__exit__()
        print(len(before) > 0, set(between), numbers() == before)
    """
    result = run_program(tmp_path, source)
    assert result.stdout.split() == ["True", "{1}", "True"], result.stdout + result.stderr


def test_the_programs_own_number_of_threads_comes_back_wherever_ctrl_c_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Libraries:
        number = 8

        def limit(self, threads: int) -> Callable[[], None]:
            before, self.number = self.number, threads

            def undo() -> None:
                self.number = before

            return undo

    libraries = Libraries()
    monkeypatch.setattr(_threads, "prepare_fork", lambda: None)
    monkeypatch.setattr(_threads, "_controller", libraries)
    place, left = -1, -1

    def interrupt(frame: Any, event: str, argument: Any) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left == -1:
                raise KeyboardInterrupt
        return interrupt

    def enter(frame: Any, event: str, argument: Any) -> Any:
        return interrupt if frame.f_code.co_name in ("__enter__", "__exit__") else None

    while left == -1:  # until there is no such place any more
        place = left = place + 1
        before = sys.gettrace()
        sys.settrace(enter)
        try:
            with _threads.forking(1):
                assert libraries.number == 1
        except KeyboardInterrupt:
            left = -1
        finally:
            sys.settrace(before)
        assert libraries.number == 8, place
        assert _threads._forked_with is None
    assert place > 8


def test_install_in_two_threads_at_once(tmp_path: Path) -> None:
    source = """
        import multiprocessing.pool
        import sys
        sys.path.insert(0, sys.argv[1])
        from helpers import Interruption
        import shoal, shoal._install

        before = multiprocessing.pool.Pool, multiprocessing.pool.ApplyResult

        def install():
            shoal.install()
            with multiprocessing.pool.ThreadPool(1) as pool:
                assert pool.map(abs, [-1]) == [1]
            shoal.uninstall()
            assert (multiprocessing.pool.Pool, multiprocessing.pool.ApplyResult) == before

        print(Interruption(shoal.install, "shoal/_install.py", "install").everywhere(install) > 2)
    """
    result = run_program(tmp_path, source, str(Path(__file__).parent))
    assert result.stdout.split() == ["True"], result.stdout + result.stderr


# ------------------------------------------------------- a pool that the collector ends


ENDS_WITHIN = """
    import threading
    import time
    from shoal import _zygote
    from shoal.multiprocessing import get_context, pool

    def main():
        made = get_context({method!r}).Pool(1, maxtasksperchild=1)
        crew = made._crew
        first = crew.processes[0].pid
        with {held}:
            made.apply(abs, (-1,))
            # Until the supervisor is about to start another worker, with the crew's lock, or has done so.
            while getattr(crew.processes[0], "pid", None) == first:
                time.sleep(0.001)
            time.sleep(0.2)
            ending = threading.Thread(target=made.terminate, daemon=True)  # it would be the collector, in this thread
            ending.start()
            ending.join(10)
            print("waits for ever" if ending.is_alive() else "ended", flush=True)
            if ending.is_alive():
                import os
                os._exit(1)

    if __name__ == "__main__":
        main()
"""


@pytest.mark.parametrize(
    ("method", "held"), [("spawn", "_zygote._lock"), ("fork", "pool._children_allowed()")], ids=["spawn", "fork"]
)
def test_a_pool_ends_in_the_midst_of_another_start(tmp_path: Path, method: str, held: str) -> None:
    """The collector may end a pool as its thread starts a process, and waits for the pool's supervisor: which must not
    wait for that start."""
    result = run_program(tmp_path, ENDS_WITHIN.format(method=method, held=held))
    assert result.stdout == "ended\n", result.stdout + result.stderr


def test_a_pool_is_closed_as_another_thread_ends_it() -> None:
    pools: list[Any] = []

    def close() -> None:
        pools.append(shoal.multiprocessing.Pool(1))
        pools[-1].close()
        pools[-1].join()

    assert Interruption(lambda: pools[-1].terminate(), "shoal/_crew.py", "close").everywhere(close) > 4


def test_a_zygote_is_asked_for_in_the_midst_of_making_one(tmp_path: Path) -> None:
    source = """
        import threading
        from shoal import _zygote

        inner = []

        def make():
            if not inner:
                inner.append(None)
                inner[0] = _zygote.get("own", make).start("time:sleep", b"", [])  # a handler's, or the collector's
            return _zygote.Zygote()

        def run():
            process = _zygote.get("own", make).start("shoal._descriptors:__name__", b"", [])
            process.wait()
            print(inner[0].poll() is not None or "lives on")

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(10)
        print(not thread.is_alive(), flush=True)
        import os
        os._exit(0)
    """
    source = source.replace('"time:sleep", b""', '"nested:wait", b""')
    (tmp_path / "nested.py").write_text("import time\ndef wait(payload, fds):\n    time.sleep(60)\n")
    result = run_program(tmp_path, source)
    assert result.stdout.split("\n") == ["lives on", "True", ""], result.stdout + result.stderr


# ------------------------------------------------------------------------------- Parallel


def test_threads_hand_the_same_function_to_workers_at_once() -> None:
    class Held:  # by cloudpickle
        pass

    held = Held()

    def function(number: int) -> tuple[int, str]:
        return number, type(held).__name__

    wanted = [(number, "Held") for number in range(3)]
    results: list[Any] = []

    def call() -> None:
        results.append(shoal.joblib.Parallel(n_jobs=2)(shoal.joblib.delayed(function)(n) for n in range(3)))

    count = Interruption(call, "shoal/joblib/_tasks.py", "_share_by_value").everywhere(call)
    assert count > 4
    assert results == [wanted] * (2 * count + 1)


def test_a_call_keeps_its_workers_whatever_other_threads_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of workers that no call has in use some only are kept."""

    def call(name: str) -> list[int]:
        with shoal.joblib.parallel_config("loky", env={"NAME": name}):
            result: list[int] = shoal.joblib.Parallel(n_jobs=2)(shoal.joblib.delayed(abs)(n) for n in range(3))
        return result

    looked: list[float] = []

    def look_after(seconds: float) -> None:
        looked.append(seconds)
        if len(looked) == 1:  # the first call has its workers, and has not handed out anything
            for name in ("1", "2", "3", "4"):
                thread = threading.Thread(target=call, args=(name,))
                thread.start()
                thread.join()

    monkeypatch.setattr(_workers, "look_after", look_after)
    assert call("0") == [0, 1, 2]


def test_one_thread_looks_after_idle_workers_in_the_end() -> None:
    """Two that see that there is none may start one each: that which was replaced ends, and harms nobody."""

    def living() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "shoal-idle-workers"]

    def look() -> None:
        _workers._reaper = None
        _workers.look_after(300.0)

    assert (
        Interruption(lambda: _workers.look_after(300.0), "shoal/joblib/_workers.py", "look_after").everywhere(look) > 2
    )
    deadline = time.monotonic() + 20
    while living() != [_workers._reaper]:
        assert time.monotonic() < deadline
        _workers._reaper_wakes.ring()
        time.sleep(0.001)


def test_what_a_call_handed_out_is_ended_as_more_is_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Future:
        ends = 0

        def __init__(self, *arguments: Any) -> None:
            pass

        def abort(self) -> None:
            self.ends += 1

    monkeypatch.setattr(_workers, "Future", Future)
    handle = _workers.Handle(None)  # type: ignore[arg-type]
    first = [handle.submit(abs, None, None) for _ in range(3)]
    later: list[Any] = []
    count = sum(
        Interruption(lambda: later.append(handle.submit(abs, None, None)), file).everywhere(handle.abort, 20)
        for file in ("shoal/joblib/_workers.py", "_weakrefset.py")
    )
    assert count > 4
    ends: list[int] = [future.ends for future in first]  # type: ignore[attr-defined]
    assert ends == [ends[0]] * 3
    assert ends[0] >= count


def test_the_collector_ends_a_call_while_workers_are_started_or_looked_after() -> None:
    """It may do so in any thread: in that which has the lock, and in another, for which that one waits."""
    use = _workers.get_crew(2, 0)
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with _workers._lock:
            held.set()
            over.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    try:
        assert returns(use.end)
    finally:
        over.set()
        thread.join()

    def take_another() -> None:
        with _workers._lock:
            assert shoal.joblib.Parallel(n_jobs=2)(shoal.joblib.delayed(abs)(n) for n in range(2)) == [0, 1]

    assert returns(take_another)


def test_workers_that_the_collector_has_started_meanwhile_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may run a call of the same kind as a call's workers are made."""
    uses: list[Any] = []
    make = _workers.Crew

    def make_late(*arguments: Any, **options: Any) -> Any:
        if not uses:
            uses.append(None)
            uses[0] = _workers.get_crew(2, 0)
        return make(*arguments, **options)

    _workers.end_idle_crews()
    monkeypatch.setattr(_workers, "Crew", make_late)
    uses.append(_workers.get_crew(2, 0))
    crews = [use.crew for use in uses]
    assert crews[0] is not crews[1]
    _workers.end_idle_crews()
    assert [crew._closed for crew in crews] == [False, False]  # in use
    for use in uses:
        use.end()
    _workers.end_idle_crews()
    assert [crew._closed for crew in crews] == [True, True]


def test_workers_are_not_in_use_for_good_where_the_end_of_their_use_is_interrupted() -> None:
    use = _workers.get_crew(2, 0)
    crew = use.crew
    lines = iter(range(100))

    def interrupt(frame: Any, event: str, argument: Any) -> Any:
        if event == "line" and next(lines) == place:
            raise KeyboardInterrupt
        return interrupt

    place = 0
    while True:
        lines, before = iter(range(100)), sys.gettrace()
        sys.settrace(lambda frame, *_: interrupt if frame.f_code.co_name == "end" else None)
        try:
            use.end()
            break
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        del use  # as who was to end it
        assert not crew.calls, place
        use, place = _workers.get_crew(2, 0), place + 1
        assert use.crew is crew
    assert place > 2


def test_the_collector_ends_a_call_while_its_arrays_are_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(1000)
    sharing = _arrays.Sharing(10, "r")
    sharing._reduce(array)

    class Segment:
        @property
        def until(self) -> float:
            sharing.end()
            return 0.0

        def close(self) -> None:
            pass

    kept: dict[int, Any] = {1: Segment()}
    monkeypatch.setattr(_arrays, "_kept", kept)
    assert returns(lambda: _arrays.expire(1.0))
    assert list(kept) == [id(array)]


def test_arrays_of_tasks_that_are_pickled_as_their_call_ends() -> None:
    numpy = pytest.importorskip("numpy")
    arrays: list[Any] = []

    def call() -> None:
        sharing.append(_arrays.Sharing(10, "r+"))
        arrays.extend(numpy.arange(1000) for _ in range(2))
        sharing[-1]._reduce(arrays[-1])
        sharing[-1]._reduce(arrays[-2])
        sharing[-1].end()

    def pickle() -> None:
        arrays.append(numpy.arange(1000))
        sharing[-1]._reduce(arrays[-1])

    sharing: list[Any] = []
    assert Interruption(pickle, "shoal/joblib/_arrays.py", "end").everywhere(call) > 4


def test_results_are_received_as_their_call_ends() -> None:
    numpy = pytest.importorskip("numpy")
    sharing: list[Any] = []

    def call() -> None:
        sharing.append(_arrays.Sharing(10, "r"))
        for array in [numpy.arange(1000) for _ in range(3)]:
            sharing[-1]._reduce(array)
        del array  # none is alive
        sharing[-1].received(1)

    file = "shoal/joblib/_arrays.py"
    assert Interruption(lambda: sharing[-1].end(), file, "received").everywhere(call) > 10


def test_a_timeline_without_a_file_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise OSError(24, "too many open files")

    wrong: list[Any] = []
    monkeypatch.setattr(_trace, "_make_file", fail)
    monkeypatch.setattr(sys, "unraisablehook", wrong.append)
    with pytest.raises(OSError, match="too many open files"):
        _trace.Recorder("call")
    assert not wrong


def test_the_timeline_is_looked_at_as_its_call_ends() -> None:
    recorders: list[_trace.Recorder] = []

    def look() -> None:
        recorders.append(_trace.Recorder("call"))
        list(recorders[-1].tasks([(abs, (1,), {})], None))
        assert [event.name for event in recorders[-1].trace().events] == ["abs"]

    assert Interruption(lambda: recorders[-1].end(), "shoal/joblib/_trace.py", "trace", "_read").everywhere(look) > 4


def test_the_executor_of_loky_is_asked_for_in_the_midst_of_asking() -> None:
    def ask() -> None:
        with loky._lock:
            loky.get_reusable_executor(1).shutdown()

    assert returns(ask)


# ------------------------------------------------------------------------------ the cache


def test_a_place_of_results_is_found_as_others_are_forgotten(tmp_path: Path) -> None:
    place = (str(tmp_path / "shoal"), (0, 0, 0, 0), "function", b"1" * 16)
    _resume._open_place(*place)
    try:
        assert Interruption(_resume._places.clear, "shoal/joblib/_resume.py", opcodes=True).everywhere(
            lambda: (_resume._open_place(*place), _resume._open_place(*place))
        )
    finally:
        _resume._places.clear()


def test_a_class_registers_a_function_as_its_functions_are_looked_through() -> None:
    registry = {len, int, str}
    depends = _depends.Depends(abs, _depends.Project(abs, False), object())

    def look() -> None:
        depends._count_registered(registry)

    def register() -> None:
        registry.add(type("Another", (), {}))

    # As many lines as there are in it: the registry grows.
    assert Interruption(register, "shoal/joblib/_depends.py", "_count_registered").everywhere(look, 5) == 5


def test_a_compressor_is_registered_as_a_file_is_read(tmp_path: Path) -> None:
    path = str(tmp_path / "value.z")
    names: list[str] = []

    def register() -> None:
        names.append(f"own {len(names)}")
        shoal.joblib.register_compressor(names[-1], compressor.CompressorWrapper(io.BytesIO, b"own", ".own"))

    def use() -> None:
        shoal.joblib.dump(1, path)
        assert shoal.joblib.load(path) == 1

    try:
        functions = "_choose", "_kind_of", "<genexpr>"
        assert Interruption(register, "shoal/joblib/numpy_pickle.py", *functions).everywhere(use, 60) > 20
    finally:
        for name in names:
            del compressor.COMPRESSORS[name]


# -------------------------------------------------------------------- a child of os.fork()


def test_a_child_that_is_forked_as_a_thread_learns_of_an_end(tmp_path: Path) -> None:
    """The lock of what tells of the end is then held by a thread that the child does not have."""
    source = """
        import os
        import signal
        import threading
        import time
        from shoal import _zygote
        from shoal.multiprocessing import active_children, get_context

        if __name__ == "__main__":
            process = get_context("spawn").Process(target=time.sleep, args=(60,))
            process.start()
            zygote = _zygote._zygotes["spawn"].pid
            os.kill(zygote, signal.SIGSTOP)  # who is asked how it ended, and takes its time
            process.kill()
            joining = threading.Thread(target=process.join)
            joining.start()
            time.sleep(0.1)
            child = os.fork()
            if child == 0:
                signal.alarm(5)
                active_children()
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            os.kill(zygote, signal.SIGCONT)
            joining.join()
            print(os.waitstatus_to_exitcode(status))
    """
    result = run_program(tmp_path, source)
    assert result.stdout == "0\n", result.stdout + result.stderr


def test_a_child_that_is_forked_as_a_timeline_is_looked_at() -> None:
    """Its file's lock is then held by a thread that the child does not have, in which the call is dropped."""
    recorder = _trace.Recorder("call")
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with recorder._lock:
            held.set()
            over.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        status = 1
        try:
            recorder.end()
            status = 0
        finally:
            os._exit(status)
    over.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


# ------------------------------------------------------------ what the collector comes upon


def test_a_supervisor_collects_its_own_pool_as_it_starts_a_worker(tmp_path: Path) -> None:
    source = """
        import gc
        import threading
        from shoal.multiprocessing import get_context, pool

        dropped, collected = threading.Event(), threading.Event()

        class Pool(pool.Pool):
            @staticmethod
            def Process(ctx, *args, **keywords):
                if threading.current_thread().name == "shoal-supervisor":
                    dropped.wait(10)
                    gc.collect()
                    collected.set()
                return ctx.Process(*args, **keywords)

        gc.disable()
        made = Pool(1, maxtasksperchild=1, context=get_context("fork"))
        crew = made._crew
        made.apply(abs, (-1,))
        made.me = made
        del made
        dropped.set()
        collected.wait(10)
        crew._thread.join(10)
        print(collected.is_set(), crew._thread.is_alive(), crew._closed, crew.processes)
    """
    result = run_program(tmp_path, source)
    assert result.stdout == "True False True [None]\n", result.stdout + result.stderr
    assert result.stderr == ""


def test_a_cached_coroutine_that_is_closed_in_another_context(tmp_path: Path) -> None:
    memory = shoal.joblib.Memory(tmp_path, verbose=0)

    class Later:
        def __await__(self) -> Any:
            yield

    @memory.cache  # type: ignore[untyped-decorator, unused-ignore]
    async def wait(number: int) -> int:
        await Later()
        return number

    call = wait(1)
    contextvars.copy_context().run(call.send, None)
    call.close()
    with pytest.raises(StopIteration) as end:  # nobody has it in hand any more
        again = wait(1)
        again.send(None)
        again.send(None)
    assert end.value.value == 1
