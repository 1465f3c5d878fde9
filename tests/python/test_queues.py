"""Queues: many objects at a time, waiting for a queue among other things, `SimpleQueue`."""

from __future__ import annotations

import queue
import time
from multiprocessing import connection
from typing import Any

import pytest
import shoal.multiprocessing as mp
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
