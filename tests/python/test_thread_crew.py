"""The threads of the back-end `threading`."""

from __future__ import annotations

import gc
import multiprocessing
import threading
import time
from typing import Any

import pytest
import shoal.joblib
from shoal.joblib._thread_crew import ThreadCrew


def until(condition: Any, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def others_than(before: list[threading.Thread]) -> int:
    """How many threads there are now beside these, of which some may have ended."""
    return len(set(threading.enumerate()).difference(before))


@pytest.fixture
def crew() -> Any:
    made = ThreadCrew(3)
    yield made
    made.terminate()


def test_outcomes_are_those_of_a_thread_pool(crew: ThreadCrew) -> None:
    assert crew.apply_async(divmod, (7, 2)).get() == (3, 1)
    assert crew.apply_async(dict, kwds={"a": 1}).get(10) == {"a": 1}
    failed = crew.apply_async(divmod, (7, 0))
    failed.wait()
    assert failed.ready() and not failed.successful()
    with pytest.raises(ZeroDivisionError):
        failed.get()


def test_who_waits_too_long_is_told_so(crew: ThreadCrew) -> None:
    gate = threading.Event()
    outcome = crew.apply_async(gate.wait)
    with pytest.raises(multiprocessing.TimeoutError):
        outcome.get(0.01)
    with pytest.raises(ValueError, match="not ready"):
        outcome.successful()
    assert not outcome.ready()
    gate.set()
    assert outcome.get(20) is True
    assert outcome.successful()


def test_as_many_tasks_as_threads_run_at_once(crew: ThreadCrew) -> None:
    together = threading.Barrier(3)
    outcomes = [crew.apply_async(together.wait, (20,)) for _ in range(6)]
    assert sorted(outcome.get(20) for outcome in outcomes) == [0, 0, 1, 1, 2, 2]


def test_a_task_that_a_callback_gives_has_a_thread_while_the_callback_goes_on(crew: ThreadCrew) -> None:
    ran = threading.Event()
    seen = []

    def callback(value: int) -> None:
        crew.apply_async(ran.set)
        seen.append(ran.wait(20))

    crew.apply_async(int, callback=callback)
    assert until(lambda: seen == [True])


def test_callbacks_that_take_long_keep_no_thread_from_the_tasks(crew: ThreadCrew) -> None:
    crew.apply_async(int, callback=lambda _: time.sleep(0.05)).get(20)
    begun, gate = threading.Event(), threading.Event()
    told: list[Any] = []

    def hold(value: Any) -> None:
        begun.set()
        gate.wait(20)
        told.append(value)

    crew.apply_async(str, ("first",), callback=hold)
    assert begun.wait(20)
    together = threading.Barrier(3)
    outcomes = [crew.apply_async(together.wait, (5,), callback=told.append) for _ in range(3)]
    assert sorted(outcome.get(20) for outcome in outcomes) == [0, 1, 2]
    assert told == []  # still one at a time, and in order
    gate.set()
    assert until(lambda: len(told) == 4)
    assert told[0] == "first" and sorted(told[1:]) == [0, 1, 2]


def test_callbacks_come_one_at_a_time_and_each_once(crew: ThreadCrew) -> None:
    inside = []
    told: list[int] = []

    def callback(value: int) -> None:
        inside.append(value)
        time.sleep(0.0005)  # lets the other threads in
        assert inside == [value]
        inside.clear()
        told.append(value)

    for number in range(200):
        crew.apply_async(int, (number,), callback=callback)
    assert until(lambda: len(told) == 200)
    assert sorted(told) == list(range(200))


def test_a_callback_that_fails_is_said_and_the_next_one_comes(
    crew: ThreadCrew, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    told: list[int] = []
    monkeypatch.setattr(threading, "excepthook", said.append)

    def callback(value: int) -> None:
        if value == 1:
            raise KeyError(value)
        told.append(value)

    for number in range(3):
        crew.apply_async(int, (number,), callback=callback)
    assert until(lambda: len(told) == 2)
    assert sorted(told) == [0, 2]
    assert [arguments.exc_type for arguments in said] == [KeyError]


def test_errors_go_to_their_own_callback(crew: ThreadCrew) -> None:
    wrong: list[Any] = []
    crew.apply_async(divmod, (1, 0), callback=wrong.append, error_callback=lambda error: wrong.append(type(error)))
    assert until(lambda: bool(wrong))
    assert wrong == [ZeroDivisionError]


def test_an_ended_crew_drops_what_has_not_begun() -> None:
    before = threading.enumerate()
    crew = ThreadCrew(1)
    began, gate = threading.Event(), threading.Event()
    ran: list[int] = []

    def first() -> None:
        began.set()
        gate.wait(20)

    running = crew.apply_async(first)
    left = crew.apply_async(ran.append, (1,))
    assert began.wait(20)
    crew.terminate()
    gate.set()
    running.get(20)
    assert until(lambda: others_than(before) == 0)
    assert ran == [] and not left.ready()
    with pytest.raises(ValueError, match="ended"):
        crew.apply_async(int)


@pytest.mark.parametrize("ended", [True, False], ids=["terminated", "dropped"])
def test_no_thread_outlives_its_crew(ended: bool) -> None:
    before = threading.enumerate()
    crew = ThreadCrew(4)
    together = threading.Barrier(4)
    for outcome in [crew.apply_async(together.wait, (20,)) for _ in range(4)]:
        outcome.get(20)
    assert others_than(before) == 4
    if ended:
        crew.terminate()
    del crew, outcome
    gc.collect()
    assert until(lambda: others_than(before) == 0)


def test_nor_does_the_one_that_tells_where_callbacks_take_long() -> None:
    before = threading.enumerate()
    crew = ThreadCrew(1)
    crew.apply_async(int, callback=lambda _: time.sleep(0.05))
    assert until(lambda: others_than(before) == 2)
    del crew
    gc.collect()
    assert until(lambda: others_than(before) == 0)


def test_where_no_thread_can_be_started_the_others_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = ThreadCrew(2)
    gate = threading.Event()
    first = crew.apply_async(gate.wait, (20,))

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        second = crew.apply_async(int, ("2",))
        alone = ThreadCrew(2)
        ran: list[int] = []
        with pytest.raises(RuntimeError, match="can't start"):
            alone.apply_async(ran.append, (1,))
    assert alone.apply_async(int).get(20) == 0
    assert ran == []
    gate.set()
    assert first.get(20) is True
    assert second.get(20) == 2
    together = threading.Barrier(2)
    for outcome in [crew.apply_async(together.wait, (20,)) for _ in range(2)]:  # the second thread is tried again
        outcome.get(20)
    crew.terminate()


def test_parallel_leaves_no_thread() -> None:
    before = threading.enumerate()
    for _ in range(20):
        calls = (shoal.joblib.delayed(abs)(-i) for i in range(10))
        assert shoal.joblib.Parallel(n_jobs=3, backend="threading")(calls) == list(range(10))
    assert until(lambda: others_than(before) == 0)


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_iterator_in_a_thread_ends_the_call(return_as: str, error: type[BaseException]) -> None:
    def tasks() -> Any:
        for number in range(10):
            yield shoal.joblib.delayed(abs)(number)
        raise error("within")

    with pytest.raises(error, match="within"):
        list(shoal.joblib.Parallel(2, backend="threading", return_as=return_as)(tasks()))


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_a_backend_that_takes_no_more_tasks_fails_the_call(return_as: str) -> None:
    class Refusing(shoal.joblib.parallel.ThreadingBackend):
        batches = 0

        def submit(self, func: Any, callback: Any = None) -> Any:
            self.batches += 1
            if self.batches > 8:
                raise OSError("no more")
            return super().submit(func, callback)

    with pytest.raises(OSError, match="no more"):
        tasks = (shoal.joblib.delayed(abs)(number) for number in range(100))
        list(shoal.joblib.Parallel(2, backend=Refusing(), return_as=return_as)(tasks))


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_progress_lines_that_fail_fail_the_call(return_as: str) -> None:
    class Failing(shoal.joblib.Parallel):
        def print_progress(self) -> None:
            if threading.current_thread() is not threading.main_thread():
                raise LookupError("no progress")

    with pytest.raises(LookupError, match="no progress"):
        tasks = (shoal.joblib.delayed(abs)(number) for number in range(100))
        list(Failing(2, backend="threading", return_as=return_as)(tasks))


def test_an_iterator_that_ends_while_its_first_tasks_are_given_out_ends_the_call() -> None:
    """The thread that calls looks whether there is more to come while another takes the last of it."""

    class Slow(shoal.joblib.Parallel):
        rest: Any = None

        @property
        def _original_iterator(self) -> Any:
            rest = self.rest
            if rest is not None and threading.current_thread() is threading.main_thread():
                until(lambda: self.rest is None, 0.5)
            return rest

        @_original_iterator.setter
        def _original_iterator(self, value: Any) -> None:
            self.rest = value

    tasks = (shoal.joblib.delayed(abs)(number) for number in range(3))
    ended: list[Any] = []
    call = Slow(2, backend="threading", pre_dispatch=1)
    output = call(tasks)
    ended.append(output)
    assert ended == [[0, 1, 2]]
