"""Queues: many objects at a time, waiting for a queue among other things, `SimpleQueue`."""

from __future__ import annotations

import abc
import os
import pickle
import queue
import sys
import time
from multiprocessing import connection
from pathlib import Path
from typing import Any

import pytest
import shoal.multiprocessing as mp
from helpers import run_program
from shoal.multiprocessing import queues

METHODS = ["fork", "spawn", "forkserver"]


def put_later(target: Any, objects: list[Any]) -> None:
    time.sleep(0.1)
    for obj in objects:
        target.put(obj)


def answer(asked: Any, answered: Any) -> None:
    answered.put(asked.get() + 1)


# ------------------------------------------------------------------- many at a time


def test_many_objects_are_put_and_taken_in_their_order() -> None:
    made = mp.Queue()
    made.put_many(iter(range(1000)))
    assert made.get_many(10) == list(range(10))
    assert made.get_many(5000) == list(range(10, 1000))
    with pytest.raises(queue.Empty):
        made.get_many(1, block=False)
    with pytest.raises(queue.Empty):
        made.get_many(1, timeout=0.05)


def test_put_many_says_how_many_were_put_where_room_ran_out() -> None:
    for made in (mp.Queue(3), mp.JoinableQueue(3)):
        with pytest.raises(queue.Full) as raised:
            made.put_many("abcde", timeout=0.05)
        assert raised.value.args == (3,)
        assert made.get_many(9) == ["a", "b", "c"]


def test_what_cannot_be_pickled_ends_put_many_after_those_before_it() -> None:
    class Refuses:
        def __reduce__(self) -> Any:
            raise RuntimeError("not this one")

    made = mp.Queue()
    with pytest.raises(RuntimeError, match="not this one"):
        made.put_many([1, 2, Refuses(), 3])
    assert made.get_many(9) == [1, 2]


def test_wrong_arguments_of_the_many_forms_are_refused() -> None:
    made = mp.Queue()
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            made.get_many(wrong)
    with pytest.raises(TypeError):
        made.get_many("three")
    with pytest.raises(TypeError, match="objs"):
        made.put_many()
    with pytest.raises(TypeError):
        made.put_many(3)
    made.put(1)
    made.close()
    with pytest.raises(ValueError, match="closed"):
        made.get_many(1)
    with pytest.raises(OSError, match="is closed"):
        made.empty()


def test_objects_of_put_many_count_as_unfinished() -> None:
    made = mp.JoinableQueue()
    made.put_many([1, 2])
    for _ in made.get_many(2):
        made.task_done()
    made.join()
    with pytest.raises(ValueError, match="too many"):
        made.task_done()


# ---------------------------------------------------------------- waiting for a queue


@pytest.mark.parametrize("method", METHODS)
def test_a_queue_is_waited_for_among_other_things(method: str) -> None:
    context = mp.get_context(method)
    for made in (context.Queue(), context.SimpleQueue()):
        assert not made._reader.poll()
        process = context.Process(target=put_later, args=(made, ["first", "second"]))
        process.start()
        reader, (receives, sends) = made._reader, connection.Pipe(duplex=False)
        assert connection.wait([reader, receives], timeout=30) == [reader]
        sends.close()
        assert made.get() == "first"
        assert reader.poll(30)
        assert made.get() == "second"
        assert not made._reader.poll(0)
        process.join()
        made.close()
        with pytest.raises(OSError, match="closed"):
            reader.fileno()


# ---------------------------------------------------------------------- SimpleQueue


@pytest.mark.parametrize("method", METHODS)
def test_a_simple_queue_goes_to_processes_of_each_method(method: str) -> None:
    context = mp.get_context(method)
    asked, answered = context.SimpleQueue(), context.SimpleQueue()
    process = context.Process(target=answer, args=(asked, answered))
    process.start()
    asked.put(41)
    assert answered.get() == 42
    process.join()
    assert asked.empty()
    assert answered.empty()


def put_in_each(queues: list[Any]) -> None:
    for number, each in enumerate(queues):
        each.put(number)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_more_queues_go_to_a_process_than_a_message_takes_descriptors(method: str) -> None:
    context = mp.get_context(method)
    queues = [context.Queue() for _ in range(150)]
    process = context.Process(target=put_in_each, args=(queues,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert [queue.get(timeout=10) for queue in queues] == list(range(150))
    for each in queues:
        each.close()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_pools_initializer_may_get_that_many(method: str) -> None:
    context = mp.get_context(method)
    queues = [context.Queue() for _ in range(150)]
    with context.Pool(2, put_in_each, (queues,)) as pool:
        assert pool.map(abs, [-1, 2], 1) == [1, 2]
        assert [queue.get(timeout=10) for queue in queues] == list(range(150))


def test_a_closed_simple_queue_says_so() -> None:
    made = mp.SimpleQueue()
    made.put(1)
    assert not made.empty()
    made.close()
    for use in (made.get, made.empty, lambda: made.put(2)):
        with pytest.raises(OSError, match="closed"):
            use()


def test_a_simple_queue_with_insides_of_its_own_rests_on_the_standard_one() -> None:
    class Counted(queues.SimpleQueue):
        def put(self, obj: Any) -> None:
            with self._wlock:  # type: ignore[attr-defined]
                self._writer.send((1, obj))

    made = Counted(ctx=mp.get_context("fork"))
    made.put("x")
    assert made.get() == (1, "x")


# ------------------------------------------------------------------- sub-classes


class WithOwnEnds(queues.Queue):
    """As PyTorch's: it wraps what it thinks the ends of a pipe are."""

    def __init__(self, maxsize: int = 0, *, ctx: Any) -> None:
        super().__init__(maxsize, ctx=ctx)
        self._reader = ("reader", self._reader)
        self._writer = ("writer", self._writer)


def test_a_sub_class_may_put_its_own_ends_there() -> None:
    made = WithOwnEnds(ctx=mp.get_context())
    made.put(1)
    assert made._reader[0] == "reader"
    assert made._reader[1].poll()
    assert made._writer[0] == "writer"
    assert made.get() == 1


def add_to_count(made: Any) -> None:
    with made.count.get_lock():
        made.count.value += 1


class Counting(queues.Queue):
    """As many programs have it: a queue with something of its own that goes along to other processes."""

    def __init__(self, maxsize: int = 0, *, ctx: Any) -> None:
        super().__init__(maxsize, ctx=ctx)
        self.count = ctx.Value("i", 0)

    def __getstate__(self) -> Any:
        return {"parent": super().__getstate__(), "count": self.count}

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state["parent"])
        self.count = state["count"]

    def put(self, *args: Any, **keywords: Any) -> None:
        super().put(*args, **keywords)
        add_to_count(self)


class CountingJoinable(queues.JoinableQueue):
    """The same by a longer tuple."""

    def __init__(self, maxsize: int = 0, *, ctx: Any) -> None:
        super().__init__(maxsize, ctx=ctx)
        self.count = ctx.Value("i", 0)

    def __getstate__(self) -> Any:
        return (*super().__getstate__(), self.count)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state[:-1])
        self.count = state[-1]

    def put(self, *args: Any, **keywords: Any) -> None:
        super().put(*args, **keywords)
        add_to_count(self)


class CountingSimple(queues.SimpleQueue):
    def __init__(self, *, ctx: Any) -> None:
        super().__init__(ctx=ctx)
        self.count = ctx.Value("i", 0)

    def __getstate__(self) -> Any:
        return (*super().__getstate__(), self.count)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state[:-1])
        self.count = state[-1]

    def put(self, obj: Any) -> None:
        super().put(obj)
        add_to_count(self)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [Counting, CountingJoinable, CountingSimple])
def test_what_a_sub_class_adds_to_its_state_arrives(kind: Any, method: str) -> None:
    context = mp.get_context(method)
    made = kind(ctx=context)
    made.put(0)
    process = context.Process(target=put_later, args=(made, [1, 2]))
    process.start()
    assert [made.get() for _ in range(3)] == [0, 1, 2]
    process.join()
    assert made.count.value == 3


def test_a_sub_class_may_be_abstract_as_well() -> None:
    class Abstract(queues.Queue, abc.ABC):
        @abc.abstractmethod
        def purpose(self) -> str: ...

    class Concrete(Abstract):
        def purpose(self) -> str:
            return "none"

    made = Concrete(ctx=mp.get_context())
    made.put(made.purpose())
    assert made.get() == "none"


# ------------------------------------------------- what programs ask for of the insides


def test_the_insides_that_mean_something_here_say_what_is_so() -> None:
    made = mp.Queue(3)
    made.put("a")
    assert (made._maxsize, made._opid, made._sem.get_value()) == (3, os.getpid(), 2)
    assert not made._sem._semlock._is_zero()
    assert len(made._buffer) == 0
    made._buffer.clear()
    assert made._thread is made._jointhread is None
    assert made._joincancelled is made._ignore_epipe is False
    made.cancel_join_thread()
    assert made._joincancelled
    assert made._poll()
    assert pickle.loads(made._recv_bytes()) == "a"
    made._send_bytes(pickle.dumps([1]))
    assert made.get() == [1]
    simple = mp.SimpleQueue()
    assert not simple._poll()
    simple._writer.send_bytes(pickle.dumps(2))
    assert pickle.loads(simple._reader.recv_bytes()) == 2


def hold_both(made: Any, held: Any, go: Any) -> None:
    with made._rlock, made._wlock:
        held.set()
        go.wait(20)


@pytest.mark.parametrize("method", METHODS)
def test_a_queues_locks_are_the_same_in_all_processes(method: str) -> None:
    context = mp.get_context(method)
    for made in (context.Queue(), context.SimpleQueue(), context.JoinableQueue()):
        held, go = context.Event(), context.Event()
        process = context.Process(target=hold_both, args=(made, held, go))
        process.start()
        assert held.wait(20)
        assert not made._rlock.acquire(False)
        assert not made._wlock.acquire(False)
        made.put(1)  # as the queue itself needs neither
        assert made.get() == 1
        go.set()
        process.join()
        with made._rlock, made._wlock:
            pass


def test_insides_that_could_only_pretend_say_what_to_use() -> None:
    made = mp.Queue()
    with pytest.raises(AttributeError, match="Queue has no _notempty: put"):
        _ = made._notempty
    assert not hasattr(made, "_notempty")
    with pytest.raises(AttributeError, match=r"cannot be taken: put\(\) and get\(\)"):
        made._sem.acquire()


class Shown:
    """Shows memory, from CPython 3.12 on by a method of its own."""

    def __init__(self, size: int) -> None:
        self.memory = bytearray(size)

    def __buffer__(self, flags: int) -> memoryview:
        return memoryview(self.memory)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return len, (pickle.PickleBuffer(self if sys.version_info >= (3, 12) else self.memory),)  # type: ignore[arg-type, unused-ignore]


@pytest.mark.parametrize("size", [100_000, 2 << 20])
def test_a_buffer_of_a_class_of_python(size: int) -> None:
    made = mp.Queue()
    made.put(Shown(size))
    assert made.get() == size


def test_a_buffer_that_is_released_while_it_is_put_stays_as_long_as_it_is_read(tmp_path: Path) -> None:
    """In a program of its own, which crashed."""
    source = """
        import pickle, sys, threading, time
        from shoal import multiprocessing as mp

        class Large:
            def __init__(self):
                self.data = bytearray(16 << 20)
                self.view = pickle.PickleBuffer(self.data)

            def __reduce_ex__(self, protocol):
                return len, (self.view,)

        def release(large, put):
            while not put.is_set():
                time.sleep(0.001)
                large.view.release()
                try:
                    large.data.clear()
                except BufferError:  # it is read
                    pass

        sys.setswitchinterval(1e-5)
        queue = mp.Queue()
        for _ in range(60):
            large, put = Large(), threading.Event()
            thread = threading.Thread(target=release, args=(large, put))
            thread.start()
            try:
                queue.put(large)
                assert queue.get() == 16 << 20
            except ValueError:  # it was released before it was put
                pass
            finally:
                put.set()
            thread.join()
        print("done")
    """
    result = run_program(tmp_path, source)
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr
