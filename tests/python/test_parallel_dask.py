"""`parallel_config(backend="dask")`: a Dask cluster, each of whose workers has a pool of Shoal's."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest
import shoal
from helpers import run_program
from shoal.joblib import Parallel, delayed, parallel_config
from shoal.joblib.parallel import BACKENDS

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client
    BACKENDS.pop("dask", None)  # it was registered when it was first asked for


@pytest.fixture(autouse=True)
def nothing_is_left_behind(client: Any) -> Iterator[None]:
    """The cluster's processes outlive each test of this file; what is looked for is what the tests leave in it."""
    yield
    gc.collect()  # an exception holds the frames that it went through
    deadline = time.monotonic() + 20
    while client.run_on_scheduler(count_tasks) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert client.run_on_scheduler(count_tasks) == 0


def count_tasks(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


def where(x: Any = None) -> int:
    time.sleep(0.05)
    return os.getpid()


def double(x: Any) -> Any:
    return x + x


def total(x: Any, more: int = 0) -> tuple[float, bool, int]:
    return float(x.sum()) + more, bool(x.flags.writeable), os.getpid()


def fail(x: int) -> int:
    raise LookupError(f"no {x}")


def die_at(x: int, bad: int) -> int:
    if x == bad:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


class Odd(Exception):
    """Pickled, but not made again."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("odd")


def raise_odd() -> None:
    raise Odd(1, 2)


def linger(folder: str) -> None:
    Path(folder, f"{os.getpid()}.begun").touch()
    time.sleep(30)


def test_tasks_run_in_the_pools_of_the_workers(client: Any) -> None:
    workers = set(client.run(os.getpid).values())
    with parallel_config(backend="dask"):
        pids = Parallel(batch_size=1)(delayed(where)(i) for i in range(24))
        assert Parallel()(delayed(double)(i) for i in range(100)) == [2 * i for i in range(100)]
    assert not set(pids) & (workers | {os.getpid()})
    # Children of the zygotes of both workers, no more than there are threads.
    assert 2 <= len(set(pids)) <= 4
    assert Parallel(backend="dask", n_jobs=2)(delayed(double)(i) for i in range(3)) == [0, 2, 4]


def test_results_come_in_order_and_as_they_are_ready(client: Any) -> None:
    with parallel_config(backend="dask"):
        for way in ("generator", "generator_unordered"):
            got = list(Parallel(return_as=way)(delayed(double)(i) for i in range(50)))
            assert (got if way == "generator" else sorted(got)) == [2 * i for i in range(50)]


def test_batches_have_the_names_that_joblibs_back_end_gives(client: Any) -> None:
    def names(dask_scheduler: Any) -> list[str]:
        return [key for key, *_ in dask_scheduler.transition_log if "_calls-" in key]

    with parallel_config(backend="dask"):
        # Enough of them that the last batches need not be smaller to keep all of the four threads busy.
        Parallel(batch_size=2, pre_dispatch="all")([*(delayed(abs)(i) for i in range(7)), delayed(len)("")])
    kinds = {name.partition("-")[0] for name in client.run_on_scheduler(names)}
    assert {"batch_of_abs_2_calls", "mixed_batch_of_abs_2_calls"} <= kinds


def test_an_error_comes_with_its_traceback_and_ends_the_call(client: Any) -> None:
    with parallel_config(backend="dask"):
        with pytest.raises(LookupError, match="no 3") as caught:
            Parallel(batch_size=1)([delayed(double)(1), delayed(fail)(3)])
        assert "in fail" in str(caught.value.__cause__)
        with pytest.raises(RuntimeError, match="Odd: odd"):
            Parallel()([delayed(raise_odd)()])
        got = Parallel(return_exceptions=True)(delayed(fail)(i) for i in range(3))
    assert [repr(error) for error in got] == [f"LookupError('no {i}')" for i in range(3)]


def test_a_process_that_dies_takes_only_its_batch_with_it(client: Any) -> None:
    with parallel_config(backend="dask"):
        with pytest.raises(shoal.WorkerDied, match="SIGKILL"):
            Parallel(batch_size=1)(delayed(die_at)(x, 2) for x in range(6))
        assert Parallel()(delayed(double)(i) for i in range(9)) == [2 * i for i in range(9)]


def wait(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def die_once(folder: str, number: int) -> int:
    path = Path(folder, str(number))
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), 9)
    return number


def test_limits_of_single_tasks_hold_on_the_workers(client: Any, tmp_path: Path) -> None:
    """In batches too: each task has its own limit, and dies alone."""
    tasks = [delayed(wait)(30 if i == 3 else 0) for i in range(6)]
    with parallel_config(backend="dask"):
        started = time.monotonic()
        got = Parallel(batch_size=3, task_timeout=5, return_exceptions=True)(tasks)
        with pytest.raises(shoal.TaskTimeout, match="took longer than 5 s"):
            Parallel(batch_size=3, task_timeout=5)(tasks)
        assert time.monotonic() - started < 28
        assert got[:3] + got[4:] == [0] * 5
        assert isinstance(got[3], shoal.TaskTimeout)
        calls = (delayed(die_once)(str(tmp_path), i) for i in range(6))
        assert Parallel(batch_size=3, retries=1)(calls) == list(range(6))


def test_a_call_that_failed_ends_what_still_runs(client: Any, tmp_path: Path) -> None:
    started = time.monotonic()
    with parallel_config(backend="dask"), pytest.raises(LookupError):
        Parallel(batch_size=1)([delayed(linger)(str(tmp_path)), delayed(wait_then_fail)(str(tmp_path))])
    pids = [int(path.stem) for path in tmp_path.glob("*.begun")]
    assert len(pids) == 1
    while os.path.exists(f"/proc/{pids[0]}/stat") and time.monotonic() < started + 25:
        time.sleep(0.05)
    assert time.monotonic() < started + 25  # it would have run for 30


def wait_then_fail(folder: str) -> None:
    deadline = time.monotonic() + 20
    while not list(Path(folder).glob("*.begun")) and time.monotonic() < deadline:
        time.sleep(0.01)
    raise LookupError("enough")


def test_large_arguments_go_once_and_are_shared_on_the_node(client: Any) -> None:
    data = np.arange(400_000.0)
    with parallel_config(backend="dask"):
        got = Parallel(batch_size=1)(delayed(total)(data, more=i) for i in range(12))
    assert [value for value, _, _ in got] == [data.sum() + i for i in range(12)]
    assert not any(writeable for _, writeable, _ in got)  # a view of the node's shared memory
    with parallel_config(backend="dask", scatter=[data]):
        got = Parallel(batch_size=1)(delayed(total)(data) for _ in range(4))
    assert {value for value, _, _ in got} == {data.sum()}
    with pytest.raises(TypeError, match="scatter must be a list/tuple, got `ndarray`"):
        parallel_config(backend="dask", scatter=data)


def test_large_results_come_back(client: Any) -> None:
    with parallel_config(backend="dask"):
        got = Parallel()(delayed(np.full)(300_000, i) for i in range(4))
    assert [int(array[0]) for array in got] == [0, 1, 2, 3]


def test_a_call_in_a_task_of_dask_has_a_thread_to_wait_in(client: Any) -> None:
    def nested(x: int) -> list[int]:
        with parallel_config(backend="dask"):
            return Parallel()(delayed(double)(x + i) for i in range(3))  # type: ignore[no-any-return]

    futures = [client.submit(nested, x, pure=False) for x in range(6)]
    assert client.gather(futures) == [[2 * (x + i) for i in range(3)] for x in range(6)]


def nested_places(depth: int, data: Any = None) -> list[tuple[int, str]]:
    """Where the tasks of a call in a call … ran, and by which back-end. data: is sent along."""
    calls = Parallel(n_jobs=2)
    if depth == 0:
        return [(os.getpid(), type(calls._backend).__name__)]
    return [place for found in calls(delayed(nested_places)(depth - 1, data) for _ in range(3)) for place in found]


def test_calls_in_a_task_of_ours_go_to_the_cluster_too(client: Any) -> None:
    with parallel_config(backend="dask"):
        got = Parallel(batch_size=1)(delayed(nested_places)(1, np.arange(200_000.0)) for _ in range(6))
    places = [place for found in got for place in found]
    assert len(places) == 18
    assert {name for _, name in places} == {"DaskDistributedBackend"}
    assert not {pid for pid, _ in places} & {os.getpid(), *client.run(os.getpid).values()}


def test_calls_in_calls_on_a_single_thread_of_dask_wait_for_no_place() -> None:
    """More tasks that wait than there are threads and processes, at three depths."""
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster, set_as_default=False) as small,
        parallel_config(backend="dask", client=small),
    ):
        got = Parallel(batch_size=1, pre_dispatch="all")(delayed(nested_places)(2) for _ in range(3))
    assert [len(found) for found in got] == [9, 9, 9]


def look_around(x: int) -> dict[str, Any]:
    from distributed import get_client, get_worker, secede
    from distributed.worker_client import worker_client

    worker = get_worker()
    with pytest.raises(AttributeError, match="runs in a process of the pool of Dask's worker"):
        worker.data  # noqa: B018
    with worker_client() as one:
        inner = one.gather(one.submit(double, one.scatter(x, hash=False), pure=False))
    secede()
    return {
        "address": worker.address,
        "threads": worker.state.nthreads,
        "task": worker.get_current_task(),
        "same": get_client() is one,
        "inner": inner,
        "pid": os.getpid(),
    }


def test_a_task_knows_its_worker_and_has_a_client(client: Any) -> None:
    addresses = list(client.run(os.getpid))
    for address in addresses:
        with parallel_config(backend="dask", workers=address):
            got = Parallel(batch_size=1)(delayed(look_around)(i) for i in range(4))
        assert [seen["inner"] for seen in got] == [0, 2, 4, 6]
        assert {seen["address"] for seen in got} == {address}
        assert {seen["threads"] for seen in got} == {2}
        assert all(seen["same"] and seen["task"].startswith("batch_of_look_around") for seen in got)
        assert os.getpid() not in {seen["pid"] for seen in got}

    def outside() -> str:
        try:
            return str(distributed.get_worker())
        except ValueError as error:
            return str(error)

    import distributed as theirs

    assert theirs is distributed
    assert Parallel(n_jobs=2)(delayed(outside)() for _ in range(2)) == ["No worker found"] * 2


def test_a_task_may_ask_whether_there_is_distributed_before_it_imports_it(tmp_path: Path) -> None:
    result = run_program(
        tmp_path,
        """
        import importlib.util

        from shoal.joblib import _dask_task


        def task():
            assert importlib.util.find_spec("distributed") and importlib.util.find_spec("distributed")
            import distributed

            return distributed.get_worker().address


        names = ("scheduler", "name", "threads", "directory", "key", "seat", "security")
        place = _dask_task.Place(address="tcp://here:1", **dict.fromkeys(names))
        print(_dask_task.run_at(place, task))
        """,
    )
    assert (result.stdout, result.returncode) == ("tcp://here:1\n", 0), result.stderr


def test_a_cluster_in_this_process_has_threads_for_calls_in_tasks() -> None:
    """Its scheduler cannot be reached from another process."""

    def where_am_i() -> str:
        try:
            return str(distributed.get_worker())
        except ValueError as error:
            return f"{type(Parallel(n_jobs=2)._backend).__name__}: {error}"

    with (
        distributed.Client(processes=False, set_as_default=False, dashboard_address=":0") as inside,
        parallel_config(backend="dask", client=inside),
    ):
        assert Parallel()([delayed(where_am_i)()]) == ["ThreadingBackend: No worker found"]


def test_small_arguments_that_many_tasks_have_travel_once(client: Any) -> None:
    def count_scattered(dask_worker: Any) -> int:
        log = [event for task in list(dask_worker.state.tasks) for event in dask_worker.state.story(task)]
        return sum("receive-from-scatter" in event for event in log)

    shared, lone = np.arange(1000.0), [np.arange(1000.0) for _ in range(6)]
    results = Parallel(backend="dask", batch_size=1, return_as="generator")(
        delayed(lambda a, b: float(a.sum() + b.sum()))(shared, b) for b in lone
    )
    first = next(results)
    assert sum(client.run(count_scattered).values()) == 1
    assert [first, *results] == [999000.0] * 6


def test_a_worker_that_is_killed_is_made_up_for(client: Any, tmp_path: Path) -> None:
    def slowly(x: int) -> int:
        time.sleep(0.2)
        return x

    workers = list(client.run(os.getpid).values())
    with parallel_config(backend="dask"):
        results = Parallel(return_as="generator", batch_size=1)(delayed(slowly)(i) for i in range(24))
        first = next(results)
        os.kill(workers[0], signal.SIGKILL)
        assert [first, *results] == list(range(24))
    client.wait_for_workers(2, timeout=30)


def test_a_cluster_of_spawned_processes_works_under_install(tmp_path: Path) -> None:
    # The module that makes it starts a thread as it is imported, of an executor that Dask's scheduler needs.
    program = """
        from dask.distributed import Client
        from distributed.utils_test import cluster
        from joblib import Parallel, delayed, parallel_config

        if __name__ == "__main__":
            with cluster() as (scheduler, workers), Client(scheduler["address"]):
                with parallel_config(backend="dask"):
                    print(Parallel()(delayed(abs)(-i) for i in range(4)))
    """
    done = run_program(tmp_path, program, shoal=True)
    assert done.stdout == "[0, 1, 2, 3]\n", done.stderr


def test_with_a_memory_the_workers_keep_the_results(client: Any, tmp_path: Path) -> None:
    calls = Parallel(backend="dask", memory=tmp_path)
    first = calls(delayed(where)(i) for i in range(6))
    assert calls(delayed(where)(i) for i in range(6)) == first


def test_joblibs_own_adapter_can_be_registered(client: Any) -> None:
    import joblib._dask
    from shoal.joblib import register_parallel_backend

    register_parallel_backend("their-dask", joblib._dask.DaskDistributedBackend)
    try:
        with parallel_config(backend="their-dask"):
            assert Parallel()(delayed(double)(i) for i in range(10)) == [2 * i for i in range(10)]
    finally:
        del BACKENDS["their-dask"]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import sys
        from shoal.joblib import Parallel, parallel_config

        try:
            parallel_config(backend="dask")
        except ValueError as error:
            print(str(error).splitlines()[0])
        for name in [name for name in sys.modules if name.startswith(("distributed", "shoal.joblib._dask"))]:
            del sys.modules[name]
        import shoal.joblib.parallel
        shoal.joblib.parallel.BACKENDS.pop("dask")
        sys.modules["distributed"] = None
        try:
            Parallel(backend="dask")
        except ImportError as error:
            print(error)
        """,
    )
    assert done.stdout.splitlines() == [
        "To use Joblib with Dask first create a Dask Client",
        "The back-end 'dask' needs the packages dask and distributed: pip install distributed",
    ], done.stderr


def test_a_cluster_without_workers_is_an_error_in_time() -> None:
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as cluster,
        distributed.Client(cluster, set_as_default=False) as empty,
        parallel_config(backend="dask", client=empty, wait_for_workers_timeout=0.2),
        pytest.raises(TimeoutError, match=r"no worker after 0\.2 seconds"),
    ):
        Parallel()(delayed(double)(i) for i in range(2))
