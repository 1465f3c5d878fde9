"""Processes that are forked at one go, as the workers of a pool are."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest
from shoal import _engine
from shoal import multiprocessing as mp
from shoal.multiprocessing.popen_fork import Siblings

fork: Any = mp.get_context("fork")


def children() -> set[int]:
    found: set[int] = set()
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/children") as file:
            found.update(map(int, file.read().split()))
    return found


def test_siblings_are_forked_at_one_go_and_those_not_started_are_ended() -> None:
    before, descriptors = children(), len(os.listdir("/proc/self/fd"))
    processes = [fork.Process(target=time.sleep, args=(60,), daemon=True) for _ in range(3)]
    with Siblings(processes):
        processes[0].start()
        assert len(children() - before) == 3
        processes[1].start()
    assert children() - before == {processes[0].pid, processes[1].pid}
    processes[2].start()  # a fork of its own
    assert len(children() - before) == 3
    assert len({process.pid for process in processes}) == 3
    for process in processes:
        process.kill()
        process.join(10)
        assert process.exitcode == -9
        process.close()
    assert children() == before
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1  # the null device, open from the first start on


@pytest.mark.parametrize("cores, rest", [(1, True), (3, True), (4, False), (64, False)])
def test_where_cores_are_scarce_the_first_sibling_begins_alone(
    cores: int, rest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests = []
    fork_process = _engine.fork_process

    def spy(function: Any, daemonic: bool, rest: float) -> Any:
        rests.append(rest)
        return fork_process(function, daemonic, rest)

    monkeypatch.setattr(_engine, "fork_process", spy)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    processes = [fork.Process(target=print) for _ in range(3)]
    with Siblings(processes):
        for process in processes:
            process.start()
    for process in processes:
        process.join(10)
        assert process.exitcode == 0
    assert rests[0] == 0
    assert [number > 0 for number in rests[1:]] == [rest, rest]
    assert max(rests) <= 0.003


def test_a_process_rests_before_it_begins() -> None:
    begun, begin = os.pipe()
    started = time.monotonic()
    process = _engine.fork_process(lambda: os.write(begin, b"%.6f" % time.monotonic()) and 0, False, 0.1)
    assert process.wait(10) == 0
    assert float(os.read(begun, 100)) - started >= 0.1
    os.close(begun)
    os.close(begin)
    for wrong in (-0.1, 0.2, float("nan")):
        with pytest.raises(ValueError, match="a tenth of a second"):
            _engine.fork_process(int, False, wrong)


def tell(queue: Any) -> None:
    current = mp.current_process()
    parent = mp.parent_process()
    queue.put((current.name, current._identity, current.daemon, parent.pid, parent.is_alive(), os.getpid()))


def test_a_sibling_is_what_it_would_be_forked_alone() -> None:
    queue = mp.SimpleQueue()
    processes = [fork.Process(target=tell, args=(queue,), name=f"sibling {number}") for number in range(3)]
    with Siblings(processes):
        for process in processes:
            process.start()
            assert process.is_alive() or process.exitcode == 0
    told = sorted(queue.get() for _ in processes)
    for process in processes:
        process.join(10)
    assert [one[0] for one in told] == ["sibling 0", "sibling 1", "sibling 2"]
    assert [one[1] for one in told] == [process._identity for process in processes]
    assert all(one[2:5] == (False, os.getpid(), True) for one in told)
    assert [one[5] for one in told] == [process.pid for process in processes]
    assert [process.exitcode for process in processes] == [0, 0, 0]


class WithAStartOfItsOwn(fork.Process):  # type: ignore[misc]
    def start(self) -> None:
        self.name = f"started by {threading.current_thread().name}"
        super().start()


def test_a_class_with_a_start_of_its_own_is_forked_by_it() -> None:
    queue = mp.SimpleQueue()
    processes = [WithAStartOfItsOwn(target=tell, args=(queue,)) for _ in range(2)]
    with Siblings(processes):
        for process in processes:
            process.start()
    names = [queue.get()[0] for _ in processes]
    for process in processes:
        process.join(10)
    assert names == ["started by MainThread"] * 2


def test_a_sibling_may_start_processes_itself() -> None:
    def nest(queue: Any) -> None:
        inner = fork.Process(target=queue.put, args=("from within",))
        inner.start()
        inner.join()
        queue.put(inner.exitcode)

    queue = mp.SimpleQueue()
    processes = [fork.Process(target=nest, args=(queue,)) for _ in range(2)]
    with Siblings(processes):
        for process in processes:
            process.start()
    told = [queue.get() for _ in range(4)]
    for process in processes:
        process.join(10)
    assert sorted(map(str, told)) == ["0", "0", "from within", "from within"]


def test_a_fork_that_fails_fails_its_own_process_and_those_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal import _engine

    before = children()
    forked = _engine.fork_process
    calls = []

    def some(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise BlockingIOError(11, "cannot start a process")
        return forked(*arguments)

    monkeypatch.setattr(_engine, "fork_process", some)
    processes = [fork.Process(target=time.sleep, args=(60,), daemon=True) for _ in range(3)]
    with Siblings(processes):
        processes[0].start()
        for process in processes[1:]:
            with pytest.raises(BlockingIOError):
                process.start()
    assert children() - before == {processes[0].pid}
    processes[0].kill()
    processes[0].join(10)
