"""Large arrays among the arguments of `Parallel`: written once, views in the workers, gone after the call."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shoal import _engine
from shoal.joblib import Parallel, _arrays, delayed


def files() -> int:
    """How many arrays this process has stored."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += "shoal-array" in os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass
    return count


@pytest.fixture(autouse=True)
def no_file_stays() -> Any:
    yield
    gc.collect()
    assert files() == len(_arrays._kept)
    _arrays.expire(time.monotonic() + 1000)
    assert files() == 0


def look(array: Any) -> tuple[str, bool, float, str]:
    order = "C" if array.flags.c_contiguous else "F" if array.flags.f_contiguous else "none"
    return type(array).__name__, array.flags.writeable, float(array.sum()), order


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_an_array_above_max_nbytes_is_a_read_only_view(backend: str) -> None:
    big, small = np.ones(200_000), np.ones(10)
    got = Parallel(n_jobs=2, backend=backend)(delayed(look)(array) for array in (big, small, big))
    assert got == [("memmap", False, 200_000.0, "C"), ("ndarray", True, 10.0, "C"), ("memmap", False, 200_000.0, "C")]
    got = Parallel(n_jobs=2, backend=backend, max_nbytes=8)(delayed(look)(small) for _ in range(2))
    assert got == [("memmap", False, 10.0, "C")] * 2


@pytest.mark.parametrize("off", [{"max_nbytes": None}, {"mmap_mode": None}])
def test_sharing_can_be_switched_off(off: dict[str, Any]) -> None:
    assert (
        Parallel(n_jobs=2, **off)(delayed(look)(np.ones(200_000)) for _ in range(2))
        == [("ndarray", True, 200_000.0, "C")] * 2
    )


def test_order_types_and_odd_shapes_survive() -> None:
    fields = np.zeros(5000, dtype=[("a", "i4"), ("b", "f8", 3)])
    fields["b"] = 2
    arrays = [
        np.asfortranarray(np.arange(60_000.0).reshape(200, 300)),
        np.arange(60_000, dtype=">i4").reshape(3, -1)[:, ::2],
        np.arange(60_000)[::-1],
        np.array(["a", "bc"] * 20_000),
        fields,
        np.broadcast_to(np.arange(100.0), (500, 100)),
        np.array([object()] * 20_000)[:0],
    ]
    got = Parallel(n_jobs=2, max_nbytes=1000)(delayed(np.asarray)(array) for array in arrays)
    for array, result in zip(arrays, got, strict=True):
        assert result.dtype == array.dtype
        np.testing.assert_array_equal(array, result)


def write(array: Any, place: int) -> float:
    array[place] = 5
    return float(array.sum())


def total_of(array: Any) -> float:
    return float(array.sum())


def test_modes_mean_what_numpy_means_by_them() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Parallel(n_jobs=2)(delayed(write)(np.zeros(200_000), i) for i in range(2))
    array = np.zeros(200_000)
    # One worker, one after the other: each writes to its own copy, or to what all see.
    own = Parallel(n_jobs=2, mmap_mode="c", batch_size=4)(delayed(write)(array, i) for i in range(4))
    assert own == [5.0] * 4
    for mode in ("r+", "w+"):
        seen = Parallel(n_jobs=2, mmap_mode=mode, batch_size=4)(delayed(write)(array, i) for i in range(4))
        assert seen == [5.0, 10.0, 15.0, 20.0]
    assert not array.any()


def test_an_array_in_many_tasks_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = _arrays._Segment.__init__

    def count(self: Any, array: Any) -> None:
        made.append(array.nbytes)
        real(self, array)

    monkeypatch.setattr(_arrays._Segment, "__init__", count)
    array = np.ones(300_000)
    holders = [{"deep": [array]}, (array, 1), np.ones(300_000)]
    tasks = [delayed(deep_total)(holders[i % 2]) for i in range(50)] + [delayed(deep_total)([holders[2]])]
    assert Parallel(n_jobs=2)(tasks) == [300_000.0] * 51
    assert len(made) == 2
    # Handed over again: what has not changed is not written again, what has is.
    assert Parallel(n_jobs=2)(delayed(total_of)(array) for _ in range(4)) == [300_000.0] * 4
    assert len(made) == 2
    array[0] = 2
    assert Parallel(n_jobs=2)(delayed(total_of)(array) for _ in range(4)) == [300_001.0] * 4
    assert len(made) == 3


def deep_total(holder: Any) -> float:
    while not isinstance(holder, np.ndarray):
        holder = holder["deep"] if isinstance(holder, dict) else holder[0]
    return float(holder.sum())


def test_arrays_that_are_made_for_one_task_each_do_not_pile_up() -> None:
    most = 0

    def tasks() -> Any:
        nonlocal most
        for i in range(300):
            most = max(most, files())
            yield delayed(total_of)(np.full(20_000, i, dtype=float))

    got = Parallel(n_jobs=2, max_nbytes=1000, batch_size=1, pre_dispatch=8)(tasks())
    assert got == [20_000.0 * i for i in range(300)]
    assert most <= 20
    gc.collect()
    assert files() == 0


_kept_in_worker: list[Any] = []


def keep(array: Any) -> None:
    _kept_in_worker.append(array)


def look_at_kept() -> list[float]:
    import test_parallel_arrays

    return [float(array.sum()) for array in test_parallel_arrays._kept_in_worker]


def test_what_a_worker_keeps_stays_as_it_was() -> None:
    array = np.ones(200_000)
    Parallel(n_jobs=2)(delayed(keep)(array) for _ in range(2))
    array[:] = 7
    Parallel(n_jobs=2)(delayed(total_of)(array) for _ in range(4))
    del array
    gc.collect()
    kept = [
        one for each in Parallel(n_jobs=2, batch_size=1)(delayed(look_at_kept)() for _ in range(20)) for one in each
    ]
    assert set(kept) == {200_000.0}


def test_an_array_that_is_mapped_from_a_file_goes_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "data"
    np.arange(300_000.0).tofile(path)
    mapped = np.memmap(path, float, "r")
    assert Parallel(n_jobs=2)(delayed(where)(part) for part in (mapped, mapped[1000:250_000:2])) == [
        (str(path), 0, float(mapped.sum())),
        (str(path), 8000, float(mapped[1000:250_000:2].sum())),
    ]
    (back,) = Parallel(n_jobs=2)(delayed(itself)(mapped[5:]) for _ in range(1))
    np.testing.assert_array_equal(back, mapped[5:])
    changed = np.memmap(path, float, "c")
    changed[0] = 1.0
    assert Parallel(n_jobs=2)(delayed(total_of)(changed) for _ in range(2)) == [float(changed.sum())] * 2


def where(array: Any) -> tuple[str, int, float]:
    return str(array.filename), array.offset, float(array.sum())


def itself(array: Any) -> Any:
    return array


def test_results_come_back_as_arrays_that_may_be_written() -> None:
    array = np.ones(200_000)
    for result in Parallel(n_jobs=2)(delayed(itself)(array) for _ in range(2)):
        np.testing.assert_array_equal(result, array)
    made = Parallel(n_jobs=2)(delayed(np.zeros)(200_000) for _ in range(2))
    made[0][0] = 1
    assert type(made[0]) is np.ndarray


def wait(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def total(array: Any) -> float:
    return float(array.sum())


def test_arrays_after_many_tasks_without_any_are_there_until_their_tasks_began() -> None:
    def tasks() -> Any:
        for _ in range(40):
            yield delayed(wait)(0.01)
        for i in range(30):
            yield delayed(total)(np.full(200_000, float(i)))

    assert Parallel(n_jobs=2)(tasks())[40:] == [200_000.0 * i for i in range(30)]


def change(array: Any, add: int) -> tuple[bytes, bytes]:
    before = array.tobytes()
    if add:
        array += add
    return before, array.tobytes()


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
def test_an_array_may_lie_in_several_files(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_arrays, "_PART", 1 << 19)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    count: list[int] = []
    real = _arrays._Segment.__init__
    monkeypatch.setattr(_arrays._Segment, "__init__", lambda self, array: (real(self, array), count.append(files()))[0])
    # One byte past a chunk, so that the last file has one byte; others are left without any.
    array = np.random.default_rng(1).integers(0, 200, (4 << 20) + 1).astype(np.uint8)
    tasks = 1 if mode == "r+" else 2  # whose changes the other would see
    got = Parallel(n_jobs=2, mmap_mode=mode)(delayed(change)(array, mode != "r") for _ in range(tasks))
    assert count == [7]
    assert got == [(array.tobytes(), (array + (mode != "r")).tobytes())] * tasks
    fortran = np.asfortranarray(array[:-1].reshape(1 << 11, 1 << 11))
    assert Parallel(n_jobs=2)(delayed(change)(fortran, 0) for _ in range(2))[1][0] == fortran.tobytes()


def test_an_array_that_was_changed_between_calls_is_written_anew() -> None:
    array = np.zeros(300_000)
    for change_it in (
        lambda: None,
        lambda: array.__setitem__(299_999, 5),
        lambda: array.resize((1000, 300), refcheck=False),
    ):
        change_it()
        got = Parallel(n_jobs=2)(delayed(np.copy)(array) for _ in range(2))
        assert all(np.array_equal(one, array) for one in got)


def test_files_that_are_too_short_or_cannot_be_written_are_refused(tmp_path: Path) -> None:
    short = os.memfd_create("short")
    try:
        os.truncate(short, 4095)
        with pytest.raises(OSError, match="cannot map"):
            _engine.Mapping([short], 4096, "r")
        for files, size, mode in (([], 1, "r"), ([short], 0, "r"), ([short], 1, "w"), ([-1], 1, "r")):
            with pytest.raises((ValueError, OSError)):
                _engine.Mapping(files, size, mode)
    finally:
        os.close(short)
    with open(tmp_path / "file", "xb"), open(tmp_path / "file", "rb") as file, pytest.raises(OSError, match="store"):
        _engine.write_files(b"x" * 10, [file.fileno()])
    assert _engine.digest_bytes(b"a" * (3 << 20)) != _engine.digest_bytes(b"a" * ((3 << 20) - 1) + b"b")


def test_the_file_of_a_living_array_goes_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nothing else wakes the thread that ends what is not needed any more."""
    array = np.ones(300_000)
    Parallel(n_jobs=2)(delayed(look)(array) for _ in range(2))
    monkeypatch.setattr(_arrays, "KEPT", 0.3)
    Parallel(n_jobs=2)(delayed(look)(array) for _ in range(2))
    assert files() == 1
    deadline = time.monotonic() + 6  # before it would look of itself, for the file of the first call
    while files() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert files() == 0
    assert array[0] == 1  # it is alive


def test_a_file_may_change_the_list_of_files_that_it_is_in() -> None:
    class File:
        def fileno(self) -> int:
            files.clear()
            return os.open(os.devnull, os.O_RDONLY)

    files = [File() for _ in range(40)]
    with pytest.raises(OSError, match="cannot store an array"):
        _engine.write_files(b"x", files)
