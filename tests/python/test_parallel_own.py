"""What Shoal's `Parallel` has beyond joblib's: limits for single tasks, retries, progress, seeds."""

from __future__ import annotations

import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shoal
from shoal import _engine
from shoal.joblib import Parallel, delayed


def wait(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def die(x: int, when: int) -> int:
    if x == when:
        os.kill(os.getpid(), 9)
    return x


def die_once(folder: str, x: int) -> int:
    path = Path(folder) / str(x)
    if x % 5 == 0 and not path.exists():
        path.touch()
        os.kill(os.getpid(), 9)
    return x


def draw(count: int, *, rng: np.random.Generator) -> list[float]:
    return rng.random(count).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_a_task_over_its_limit_fails_alone(backend: str) -> None:
    tasks = [delayed(wait)(30 if i == 3 else 0) for i in range(8)]
    started = time.monotonic()
    got = Parallel(n_jobs=2, backend=backend, task_timeout=8, return_exceptions=True)(tasks)
    assert time.monotonic() - started < 25
    assert got[:3] + got[4:] == [0] * 7
    assert isinstance(got[3], shoal.TaskTimeout)
    assert "item 3 took longer" in str(got[3])
    # A short limit here: there is no other task that a busy machine might hold up for as long.
    with pytest.raises(shoal.TaskTimeout, match="item 0 took longer"):
        Parallel(n_jobs=2, backend=backend, task_timeout=1)([delayed(wait)(30)])
    assert Parallel(n_jobs=2, backend=backend)(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]


def test_what_a_backend_cannot_do_is_said() -> None:
    for option in ({"task_timeout": 3}, {"retries": 1}, {"timeout": 3}):
        with pytest.warns(UserWarning, match=f"'SequentialBackend' does not support {next(iter(option))}"):
            Parallel(n_jobs=1, **option)(delayed(wait)(0) for _ in range(2))  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_a_dead_worker_fails_only_the_task_it_held(backend: str) -> None:
    got = Parallel(n_jobs=2, backend=backend, return_exceptions=True)(delayed(die)(i, 6) for i in range(20))
    assert got[:6] + got[7:] == [i for i in range(20) if i != 6]
    assert isinstance(got[6], shoal.WorkerDied)
    assert (got[6].item, got[6].signal) == (6, "SIGKILL")


def test_a_task_whose_worker_died_may_be_tried_again(tmp_path: Path) -> None:
    got = Parallel(n_jobs=2, retries=1)(delayed(die_once)(str(tmp_path), i) for i in range(20))
    assert got == list(range(20))


@pytest.mark.parametrize("backend", ["loky", "threading", "sequential"])
def test_exceptions_may_be_results(backend: str) -> None:
    calls = Parallel(n_jobs=2, backend=backend, return_exceptions=True, batch_size=1)
    got = calls(delayed(divmod)(6, i) for i in (1, 0, 2))
    assert (got[0], got[2]) == ((6, 0), (3, 0))
    assert isinstance(got[1], ZeroDivisionError)


@pytest.mark.parametrize("seed", ["x", -1, 0.5, np.random.default_rng(1)])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_what_is_no_seed_is_refused_before_anything_runs(seed: Any, n_jobs: int) -> None:
    with pytest.raises((TypeError, ValueError), match=r"SeedSequence|non-negative"):
        Parallel(n_jobs=n_jobs, seed=seed)


def test_a_function_that_cannot_be_sent_is_told_by_what_it_holds() -> None:
    lock = threading.Lock()
    with pytest.raises(pickle.PicklingError, match=r"a call of .*<lambda>: TypeError: cannot pickle '_thread.lock'"):
        Parallel(n_jobs=2)(delayed(lambda: lock)() for _ in range(2))


def test_seeds_give_the_same_numbers_wherever_tasks_run() -> None:
    ways: list[dict[str, Any]] = [
        {"n_jobs": 1},
        {"n_jobs": 2},
        {"n_jobs": 3, "batch_size": 1},
        {"n_jobs": 2, "backend": "threading"},
        {"n_jobs": 2, "backend": "multiprocessing"},
        {"n_jobs": 2, "return_as": "generator"},
    ]
    drawn = [list(Parallel(seed=42, **way)(delayed(draw)(i % 3 + 1) for i in range(9))) for way in ways]
    assert all(other == drawn[0] for other in drawn[1:])
    assert len({numbers[0] for numbers in drawn[0]}) == 9
    first = np.random.default_rng(np.random.SeedSequence(42, spawn_key=(0,))).random()
    assert drawn[0][0] == [first]
    assert list(Parallel(seed=43)(delayed(draw)(1) for _ in range(1))) != [[first]]
    child = np.random.SeedSequence(42).spawn(2)[1]
    assert Parallel(seed=child)(delayed(draw)(1) for _ in range(2)) == Parallel(n_jobs=2, seed=child)(
        delayed(draw)(1) for _ in range(2)
    )
    with pytest.raises(TypeError, match="rng"):
        Parallel(n_jobs=2, seed=1)([delayed(draw)(1, rng=np.random.default_rng())])


@pytest.mark.parametrize("backend", ["loky", "threading", "sequential"])
def test_progress_is_told_with_its_total(backend: str) -> None:
    told: list[tuple[int, int | None]] = []
    calls = Parallel(n_jobs=2, backend=backend, progress=lambda done, total: told.append((done, total)))
    assert calls([delayed(wait)(0.01) for _ in range(30)]) == [0.01] * 30
    assert told[-1] == (30, 30)
    assert told == sorted(told)
    list(
        Parallel(n_jobs=2, return_as="generator", progress=lambda *all: told.append(all))(
            delayed(wait)(0) for _ in range(5)
        )
    )
    assert told[-1] == (5, 5)


def test_progress_true_shows_tqdms_bar(capfd: pytest.CaptureFixture[str]) -> None:
    Parallel(n_jobs=2, progress=True)([delayed(wait)(0.01) for _ in range(10)])
    assert "10/10" in capfd.readouterr().err


def test_a_progress_function_that_raises_ends_the_call() -> None:
    def fail(done: int, total: int | None) -> None:
        raise KeyError("shown")

    with pytest.raises(KeyError, match="shown"):
        Parallel(n_jobs=2, progress=fail)(delayed(wait)(0.01) for _ in range(10))
    assert Parallel(n_jobs=2)(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]


@pytest.mark.parametrize("closed_by", ["the iterable", "prepare"])
def test_what_is_prepared_of_a_task_is_released_where_the_call_ends_meanwhile(closed_by: str) -> None:
    prepared: list[Any] = []
    released: list[Any] = []

    def source() -> Any:
        if closed_by == "the iterable":
            tasks.close()
        yield abs, (object(),), {}

    def prepare(task: Any) -> Any:
        if closed_by == "prepare":
            tasks.close()
        prepared.append(task[1])
        return task[1]

    tasks = _engine.Tasks(source(), {}, prepare, released.append)
    assert list(tasks) == []
    assert released == prepared
