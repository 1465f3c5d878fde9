"""`Parallel(memory=…)`: a map that was interrupted or killed goes on where it stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shoal import _engine
from shoal.joblib import Memory, Parallel, delayed
from shoal.joblib._store_backends import CacheWarning

BACKENDS = ["loky", "multiprocessing", "threading", "sequential"]


def note(folder: str, x: Any) -> None:
    with open(os.path.join(folder, "log"), "a") as file:  # one write, appended whole
        file.write(f"{x}\n")


def noted(folder: Path) -> list[str]:
    path = folder / "log"
    return path.read_text().split() if path.exists() else []


def square(folder: str, x: int) -> int:
    note(folder, x)
    return x * x


def fail_at(folder: str, x: int, bad: int) -> int:
    note(folder, x)
    if x == bad and not os.path.exists(os.path.join(folder, "mended")):
        end = time.monotonic() + 20  # another worker may have taken an earlier one and not begun it
        while len(set(noted(Path(folder)))) <= bad and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.2)  # and is to have kept it
        raise ValueError(f"no {x}")
    return -x


def draw(folder: str, *, rng: np.random.Generator) -> float:
    note(folder, "draw")
    return float(rng.random())


def stamp(folder: str) -> int:
    note(folder, "stamp")
    return time.monotonic_ns()


class Adder:
    def __init__(self, folder: str, start: int) -> None:
        self.folder, self.start = folder, start

    def add(self, x: int) -> int:
        note(self.folder, x)
        return self.start + x


PROGRAM = """
    import sys, time
    from shoal.joblib import Parallel, delayed

    def work(folder, x):
        time.sleep(0.15)
        with open(folder + "/log", "a") as file:
            file.write(f"{x}\\n")
        return [x, x * x]

    if __name__ == "__main__":
        folder = sys.argv[1]
        got = Parallel(n_jobs=2, backend=sys.argv[2], memory=folder + "/kept")(
            delayed(work)(folder, x) for x in range(24)
        )
        print(got == [[x, x * x] for x in range(24)])
"""


def kept(folder: Path) -> int:
    return len(_engine.Store(str(folder / "kept" / "shoal")).entries())


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_program_that_is_killed_or_interrupted_half_way_goes_on_there(
    tmp_path: Path, backend: str, how: signal.Signals
) -> None:
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, str(path), str(tmp_path), backend]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while len(noted(tmp_path)) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(how)
    output = first.communicate(timeout=20)
    assert first.returncode == (-9 if how is signal.SIGKILL else -2), output
    assert output[0] == ""
    before: list[str] = []
    while noted(tmp_path) != before:  # until the workers that were in a task are gone
        before = noted(tmp_path)
        time.sleep(1)
    before, there = noted(tmp_path), kept(tmp_path)
    assert 8 <= len(before) < 24
    # The two that were just finished may have been killed between their line and the store.
    assert len(before) - 2 <= there <= len(before)
    second = subprocess.run(command, capture_output=True, text=True, timeout=40)
    assert second.stdout == "True\n", second.stderr
    again = noted(tmp_path)[len(before) :]
    assert len(again) == 24 - there
    assert set(before) | set(again) == {str(x) for x in range(24)}
    third = subprocess.run(command, capture_output=True, text=True, timeout=40)
    assert third.stdout == "True\n"
    assert len(noted(tmp_path)) == len(before) + len(again)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_in_the_store_is_not_run_again(tmp_path: Path, backend: str) -> None:
    calls = Parallel(n_jobs=2, backend=backend, memory=tmp_path / "kept")
    folder = str(tmp_path)
    assert calls(delayed(square)(folder, x) for x in (3, 5)) == [9, 25]
    assert calls(delayed(square)(folder, x) for x in range(7)) == [x * x for x in range(7)]
    assert sorted(noted(tmp_path)) == sorted("35" + "01246")
    assert calls([delayed(square)(folder, x) for x in range(7)]) == [x * x for x in range(7)]
    assert len(noted(tmp_path)) == 7


@pytest.mark.parametrize("backend", ["loky", "threading", "sequential"])
def test_an_error_ends_the_call_and_what_was_done_is_kept(tmp_path: Path, backend: str) -> None:
    calls = Parallel(n_jobs=2, backend=backend, memory=Memory(tmp_path / "kept", verbose=0), batch_size=1)
    tasks = [delayed(fail_at)(str(tmp_path), x, 5) for x in range(10)]
    with pytest.raises(ValueError, match="no 5"):
        calls(tasks)
    done = set(noted(tmp_path))
    assert {"0", "1", "2", "3", "5"} <= done
    (tmp_path / "mended").touch()
    (tmp_path / "log").unlink()
    assert calls(tasks) == [-x for x in range(10)]
    assert "5" in noted(tmp_path)
    assert not {"0", "1", "2", "3"} & set(noted(tmp_path))


def test_generators_give_all_results_in_their_order(tmp_path: Path) -> None:
    folder = str(tmp_path)
    some = [1, 2, 4, 9, 10, 11, 17]
    for return_as in ("generator", "generator_unordered"):
        memory = Memory(tmp_path / return_as, verbose=0)
        Parallel(n_jobs=2, memory=memory)(delayed(square)(folder, x) for x in some)
        (tmp_path / "log").unlink()
        got = list(
            Parallel(n_jobs=2, memory=memory, return_as=return_as)(delayed(square)(folder, x) for x in range(20))
        )
        assert (got if return_as == "generator" else sorted(got)) == [x * x for x in range(20)]
        assert sorted(map(int, noted(tmp_path))) == [x for x in range(20) if x not in some]


def test_results_that_come_before_the_first_task_are_given_at_once(tmp_path: Path) -> None:
    def slow(x: int) -> int:
        deadline = time.monotonic() + 20
        while x == 3 and not (tmp_path / "read").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return x if time.monotonic() < deadline else -x

    kept = tmp_path / "kept"
    Parallel(n_jobs=2, memory=kept)(delayed(slow)(x) for x in range(3))
    results = Parallel(n_jobs=2, memory=kept, return_as="generator")(delayed(slow)(x) for x in range(4))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    (tmp_path / "read").touch()
    assert list(results) == [3]


def test_equal_tasks_of_one_call_keep_a_result_each(tmp_path: Path) -> None:
    calls = Parallel(n_jobs=2, memory=tmp_path / "kept")
    first = calls(delayed(stamp)(str(tmp_path)) for _ in range(6))
    assert len(set(first)) == 6
    assert calls(delayed(stamp)(str(tmp_path)) for _ in range(6)) == first
    assert len(noted(tmp_path)) == 6
    assert calls(delayed(stamp)(str(tmp_path)) for _ in range(8))[:6] == first
    assert len(noted(tmp_path)) == 8


def test_a_cached_function_and_a_map_share_their_results(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "kept", verbose=0)
    folder = str(tmp_path)
    cached = memory.cache(square, ignore=["folder"])
    Parallel(n_jobs=2, memory=memory)(delayed(cached)(folder, x) for x in range(4))
    assert cached("anywhere", 3) == 9
    assert len(noted(tmp_path)) == 4
    plain = memory.cache(square)
    Parallel(n_jobs=2, memory=memory)(delayed(square)(folder, x) for x in range(4))
    assert plain(folder, 3) == 9
    assert "a hit" in str(plain.explain(folder, 3))
    assert len(noted(tmp_path)) == 8


def test_seeded_tasks_are_told_apart_by_their_seeds(tmp_path: Path) -> None:
    def run(seed: int, n_jobs: int = 2) -> list[float]:
        calls = Parallel(n_jobs=n_jobs, seed=seed, memory=tmp_path / "kept")
        return calls(delayed(draw)(str(tmp_path)) for _ in range(5))  # type: ignore[no-any-return]

    first = run(7)
    assert len(set(first)) == 5
    assert run(7) == run(7, n_jobs=1) == first
    assert len(noted(tmp_path)) == 5
    assert run(8) != first
    assert len(noted(tmp_path)) == 10


def test_partials_methods_and_closures_are_kept_too(tmp_path: Path) -> None:
    folder = str(tmp_path)
    factor = 3

    def times(x: int) -> int:
        note(folder, x)
        return factor * x

    adders = [Adder(folder, start) for start in (1, 1, 2)]
    tasks = [delayed(partial(square, folder))(x) for x in range(3)]
    tasks += [delayed(adder.add)(x) for adder in adders for x in range(2)]
    tasks += [delayed(times)(x) for x in range(3)]
    expected = [0, 1, 4, 1, 2, 1, 2, 2, 3, 0, 3, 6]
    for _ in range(2):
        assert Parallel(n_jobs=2, memory=tmp_path / "kept")(tasks) == expected
        assert len(noted(tmp_path)) == len(tasks)


def test_a_changed_function_is_run_again(tmp_path: Path) -> None:
    def run(factor: int) -> Any:
        namespace: dict[str, Any] = {"note": note}
        exec(f"def f(folder, x):\n    note(folder, x)\n    return {factor} * x", namespace)
        return Parallel(n_jobs=2, memory=tmp_path / "kept")(delayed(namespace["f"])(str(tmp_path), x) for x in (1, 2))

    assert (run(2), run(3), run(3)) == ([2, 4], [3, 6], [3, 6])
    assert len(noted(tmp_path)) == 4


def test_large_arrays_are_kept_and_come_back(tmp_path: Path) -> None:
    def half(x: Any) -> Any:
        return x / 2

    data = [np.arange(300_000.0) + i for i in range(3)]
    for _ in range(2):
        got = Parallel(n_jobs=2, memory=tmp_path)(delayed(half)(x) for x in data)
        assert all(np.array_equal(mine, x / 2) for mine, x in zip(got, data, strict=True))


def test_a_damaged_entry_is_computed_again(tmp_path: Path) -> None:
    calls = Parallel(n_jobs=2, memory=tmp_path / "kept")
    calls(delayed(square)(str(tmp_path), x) for x in range(3))
    (victim,) = (tmp_path / "kept").rglob("shelf")  # which ends with the last of the three
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.warns(CacheWarning, match="computed again"):
        assert calls(delayed(square)(str(tmp_path), x) for x in range(3)) == [0, 1, 4]
    assert len(noted(tmp_path)) == 4
    assert calls(delayed(square)(str(tmp_path), x) for x in range(3)) == [0, 1, 4]
    assert len(noted(tmp_path)) == 4


def test_progress_counts_what_was_found(tmp_path: Path) -> None:
    calls = Parallel(n_jobs=2, memory=tmp_path / "kept")
    calls(delayed(square)(str(tmp_path), x) for x in range(5))
    told: list[tuple[int, int | None]] = []
    calls = Parallel(n_jobs=2, memory=tmp_path / "kept", progress=lambda *all: told.append(all))
    calls([delayed(square)(str(tmp_path), x) for x in range(9)])
    assert told[-1] == (9, 9)
    calls(delayed(square)(str(tmp_path), x) for x in range(9))
    assert told[-1] == (9, 9)


def test_arguments_that_do_not_fit_are_the_functions_own_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="square"):
        Parallel(n_jobs=2, memory=tmp_path)([delayed(square)(1, 2, 3)])


def test_only_a_memory_or_a_folder_is_taken(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="memory= takes a folder or a Memory"):
        Parallel(memory=3)
    assert Parallel(n_jobs=2, memory=Memory(None))(delayed(abs)(-x) for x in range(3)) == [0, 1, 2]
