"""`Parallel` and `delayed` as their users see them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shoal
from helpers import run_program
from shoal.joblib import Parallel, delayed


def square(x: int) -> int:
    return x * x


def add(a: int, b: int = 1, *, c: int = 0) -> int:
    return a + b + c


def kill_on_five(x: int) -> int:
    if x == 5:
        os.kill(os.getpid(), 9)
    return x


def fail(x: int) -> int:
    raise KeyError(x)


BACKENDS = ["loky", "multiprocessing", "threading", "sequential"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_jobs", [1, 2, -1])
def test_results_come_in_order(backend: str, n_jobs: int) -> None:
    assert Parallel(n_jobs=n_jobs, backend=backend)(delayed(square)(i) for i in range(100)) == [
        i * i for i in range(100)
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_arguments_and_keywords_arrive(backend: str) -> None:
    tasks = [delayed(add)(1), delayed(add)(1, 2), delayed(add)(1, c=5), delayed(square)(4), delayed(add)(a=3)]
    assert Parallel(n_jobs=2, backend=backend)(tasks) == [2, 3, 7, 16, 4]


def test_no_tasks_give_no_results() -> None:
    assert Parallel(n_jobs=2)([]) == []


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_results_may_come_one_by_one(return_as: str) -> None:
    results = Parallel(n_jobs=2, return_as=return_as)(delayed(square)(i) for i in range(50))
    assert sorted(results) == [i * i for i in range(50)]


def test_a_generator_that_is_given_up_leaves_the_next_call_well() -> None:
    results = Parallel(n_jobs=2, return_as="generator")(delayed(time.sleep)(0.01) for _ in range(100))
    next(results)
    results.close()
    assert Parallel(n_jobs=2)(delayed(square)(i) for i in range(5)) == [0, 1, 4, 9, 16]


def test_more_functions_than_are_sent_once_work_too() -> None:
    functions = [lambda x, k=k: x + k for k in range(100)]
    assert Parallel(n_jobs=2)(delayed(f)(1) for f in functions) == [1 + k for k in range(100)]


def test_a_lambda_sees_what_it_closes_over_as_it_is_now() -> None:
    for offset in (1, 2):
        assert Parallel(n_jobs=2)(delayed(lambda x: x + offset)(i) for i in range(3)) == [  # noqa: B023
            offset,
            1 + offset,
            2 + offset,
        ]


def test_arrays_come_through() -> None:
    arrays = [np.full(200_000, i) for i in range(4)]
    results = Parallel(n_jobs=2)(delayed(np.add)(array, 1) for array in arrays)
    assert [int(result[0]) for result in results] == [1, 2, 3, 4]
    assert all(len(result) == 200_000 for result in results)


def test_an_exception_arrives_with_the_remote_traceback() -> None:
    with pytest.raises(KeyError) as caught:
        Parallel(n_jobs=2)(delayed(fail)(i) for i in range(4))
    assert "in fail" in str(caught.value.__cause__)
    assert Parallel(n_jobs=2)(delayed(square)(i) for i in range(3)) == [0, 1, 4]


def test_a_killed_worker_is_named_and_the_next_call_works() -> None:
    with pytest.raises(shoal.WorkerDied, match=r"item 5.*SIGKILL"):
        Parallel(n_jobs=2)(delayed(kill_on_five)(i) for i in range(10))
    assert Parallel(n_jobs=2)(delayed(square)(i) for i in range(3)) == [0, 1, 4]


def slow_pid() -> int:
    time.sleep(0.02)
    return os.getpid()


def test_workers_stay_for_the_next_call() -> None:
    # Whoever takes what: workers that were made anew would be others.
    calls = [set(Parallel(n_jobs=2, batch_size=1)(delayed(slow_pid)() for _ in range(20))) for _ in range(3)]
    assert len(set.union(*calls)) <= 2
    first = calls[0]
    assert os.getpid() not in first


def nest(n: int) -> list[int]:
    return Parallel(n_jobs=2)(delayed(square)(i) for i in range(n))


def test_nested_calls_work() -> None:
    assert Parallel(n_jobs=2)(delayed(nest)(n) for n in range(4)) == [[], [0], [0, 1], [0, 1, 4]]


def test_a_task_that_takes_too_long_times_out() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        Parallel(n_jobs=2, timeout=0.2)(delayed(time.sleep)(20) for _ in range(2))
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "arguments",
    [
        {"n_jobs": 0},
        {"backend": "nope"},
        {"return_as": "heap"},
        {"batch_size": 0},
        {"prefer": "magic"},
        {"require": "magic"},
        {"prefer": "processes", "require": "sharedmem"},
        {"backend": "loky", "require": "sharedmem", "n_jobs": 2},
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Parallel(**arguments)([])


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
@pytest.mark.parametrize(
    ("ahead", "has_length", "expected"),
    [  # joblib 1.6 printed these
        ("2 * n_jobs", True, ["Done 14 out of 23 | elapsed:"]),
        ("2 * n_jobs", False, ["Done  14 tasks      | elapsed:"]),
        ("all", True, [f"Done {done:2d} out of 23 | elapsed: remaining:" for done in (4, 9, 14, 19)]),
    ],
)
def test_lines_of_progress_are_joblibs_word_by_word(
    backend: str, ahead: str, has_length: bool, expected: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    # The first are long: a task that ends before the first four are all handed out has one more handed out than four,
    # with joblib too, and the lines come at other counts.
    tasks = [delayed(time.sleep)(0.3 if i < 2 else 0.02) for i in range(23)]
    Parallel(n_jobs=2, backend=backend, verbose=5, batch_size=1, pre_dispatch=ahead)(
        tasks if has_length else iter(tasks)
    )
    lines = re.sub(r" +\d+\.\d+(s|min)", "", capfd.readouterr().err).splitlines()
    name = {"loky": "Loky", "multiprocessing": "Multiprocessing", "threading": "Threading"}[backend]
    end = "Done 23 out of 23 | elapsed: finished" if has_length else "Done  23 out of  23 | elapsed: finished"
    expected = [f"Using backend {name}Backend with 2 concurrent workers.", *expected, end]
    assert lines == [f"[Parallel(n_jobs=2)]: {line}" for line in expected]


def test_what_was_read_of_a_generator_counts_as_used() -> None:
    calls = Parallel(n_jobs=2, return_as="generator", batch_size=1)
    results = calls(delayed(time.sleep)(20 * (i > 0)) for i in range(6))
    next(results)
    with pytest.warns(UserWarning, match=r"^\d+ tasks which were still being processed by the workers"):
        results.close()


def test_the_last_task_is_shown_also_where_the_end_comes_late() -> None:
    class Bar(Parallel):
        def print_progress(self) -> None:
            shown.append(self.n_completed_tasks)

    def tasks() -> Iterator[Any]:
        for i in range(40):
            yield delayed(square)(i)
        time.sleep(0.5)

    shown: list[int] = []
    assert len(Bar(n_jobs=2)(tasks())) == 40
    assert shown[-1] == 40


def test_verbose_says_how_far_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    Parallel(n_jobs=2, verbose=11)(delayed(square)(i) for i in range(3))
    errors = capfd.readouterr().err
    assert "[Parallel(n_jobs=2)]: Using backend LokyBackend with 2 concurrent workers." in errors
    assert re.search(r"Done +3 out of +3 \|", errors)
    assert "finished" in errors


def test_functions_of_a_program_itself_work_and_a_killed_program_leaves_nothing(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import os, sys
        from shoal.joblib import Parallel, delayed

        FACTOR = 3

        class Thing:
            def __init__(self, x):
                self.x = x
            def times(self):
                return self.x * FACTOR

        def use(thing):
            return thing.times()

        # No guard: the workers do not run this program again.
        print(Parallel(n_jobs=2)(delayed(use)(Thing(i)) for i in range(4)))
        print(Parallel(n_jobs=2)(delayed(Thing(i).times)() for i in range(4)))
        pids = set(Parallel(n_jobs=2, batch_size=1)(delayed(os.getpid)() for i in range(40)))
        print(*pids, flush=True)
        os.kill(os.getpid(), 9)
        """,
    )
    lines = done.stdout.splitlines()
    assert lines[:2] == ["[0, 3, 6, 9]"] * 2, done.stderr
    deadline = time.monotonic() + 5
    alive = lines[2].split()
    while alive and time.monotonic() < deadline:
        alive = [pid for pid in alive if os.path.exists(f"/proc/{pid}")]
        time.sleep(0.01)
    assert not alive


def test_who_waits_for_results_sleeps_also_while_there_is_more_to_hand_out() -> None:
    Parallel(n_jobs=2)(delayed(square)(i) for i in range(2))
    before = time.process_time()
    Parallel(n_jobs=2)(delayed(time.sleep)(0.1) for _ in range(40))
    assert time.process_time() - before < 0.2


def test_a_first_call_imports_nothing_that_takes_longer_than_the_call(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import sys
        before = set(sys.modules)
        from shoal.joblib import Parallel, delayed

        def find_costly(_):
            import sys
            return {"ast", "enum", "re", "socket", "typing"} & set(sys.modules)

        found = Parallel(n_jobs=2)(delayed(find_costly)(i) for i in range(4))
        print(set().union(find_costly(0), *found) - before)
        """,
    )
    assert done.stdout == "set()\n", done.stderr
