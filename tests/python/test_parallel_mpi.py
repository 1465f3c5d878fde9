"""`parallel_config(backend="mpi")`: ranks of an MPI program, each of which has a pool of Shoal's."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers import run_program

pytestmark = pytest.mark.timeout(120)

HEAD = """
    import os, sys, time
    from shoal.joblib import Parallel, delayed, parallel_config

    def double(x):
        return 2 * x

    def where(x):
        time.sleep(0.02)
        return os.getpid(), os.getppid()

    def fail(x):
        raise LookupError(f"no {x}")

    def die(x):
        if x == 3:
            os.kill(os.getpid(), 9)
        return x

    class Point:
        def __init__(self, x):
            self.x = x

"""


def mpi(
    folder: Path, source: str, *arguments: str, ranks: int = 3, module: tuple[str, ...] = ("-m", "mpi4py.futures")
) -> subprocess.CompletedProcess[str]:
    path = folder / "program.py"
    path.write_text(textwrap.dedent(HEAD) + textwrap.dedent(source))
    # In a container tests run as root, and on fewer cpus than ranks.
    command = ["mpiexec", "--allow-run-as-root", "--oversubscribe", "-n", str(ranks), sys.executable, *module]
    quiet = {"OMPI_MCA_btl_vader_single_copy_mechanism": "none", "OMPI_MCA_btl": "self,vader,tcp"}
    return subprocess.run(
        [*command, str(path), *arguments], capture_output=True, text=True, timeout=90, env={**os.environ, **quiet}
    )


def test_tasks_run_in_the_pools_of_the_ranks(tmp_path: Path) -> None:
    done = mpi(
        tmp_path,
        """
        if __name__ == "__main__":
            from mpi4py import MPI
            from mpi4py.futures import MPIPoolExecutor

            with parallel_config(backend="mpi"):
                print(Parallel()(delayed(double)(i) for i in range(200)) == [2 * i for i in range(200)])
                places = Parallel(batch_size=1)(delayed(where)(i) for i in range(40))
                print(list(Parallel(return_as="generator")(delayed(double)(i) for i in range(9))))
                print(sorted(Parallel(return_as="generator_unordered")(delayed(double)(i) for i in range(9))))
                print([point.x for point in Parallel()(delayed(Point)(i) for i in range(3))])
                print(type(Parallel()(delayed(Point)(i) for i in range(3))[0]) is Point)
            # Each rank's processes are children of a zygote of its own.
            print(len({parent for _, parent in places}), os.getpid() not in {pid for pid, _ in places})
        """,
    )
    assert done.stdout.splitlines() == [
        "True", str([2 * i for i in range(9)]), str([2 * i for i in range(9)]), "[0, 1, 2]", "True", "2 True",
    ], done.stderr  # fmt: skip
    assert done.returncode == 0


def test_errors_come_back_and_the_ranks_go_on(tmp_path: Path) -> None:
    done = mpi(
        tmp_path,
        """
        if __name__ == "__main__":
            import shoal

            with parallel_config(backend="mpi"):
                try:
                    Parallel(batch_size=1)(delayed(fail if i == 4 else double)(i) for i in range(9))
                except LookupError as error:
                    print(error.args, "in fail" in str(error.__cause__))
                try:
                    Parallel(batch_size=1)(delayed(die)(i) for i in range(9))
                except shoal.WorkerDied as error:
                    print(error.signal)
                print(Parallel()(delayed(double)(i) for i in range(5)))
                print(sum(isinstance(x, LookupError) for x in Parallel(return_exceptions=True)(
                    delayed(fail)(i) for i in range(5))))
        """,
    )
    assert done.stdout.splitlines() == ["('no 4',) True", "SIGKILL", "[0, 2, 4, 6, 8]", "5"], done.stderr
    assert done.returncode == 0


def test_limits_of_single_tasks_hold_on_the_ranks(tmp_path: Path) -> None:
    done = mpi(
        tmp_path,
        """
        def die_once(folder, x):
            path = os.path.join(folder, str(x))
            if not os.path.exists(path):
                open(path, "w").close()
                os.kill(os.getpid(), 9)
            return x

        if __name__ == "__main__":
            with parallel_config(backend="mpi"):
                got = Parallel(batch_size=3, task_timeout=4, return_exceptions=True)(
                    delayed(time.sleep)(60 if i == 3 else 0) for i in range(6))
                print([type(x).__name__ for x in got])
                print(Parallel(batch_size=3, retries=1)(delayed(die_once)(sys.argv[1], i) for i in range(6)))
        """,
        str(tmp_path),
    )
    none = "NoneType"
    assert done.stdout.splitlines() == [str([none] * 3 + ["TaskTimeout"] + [none] * 2), str([*range(6)])], done.stderr
    assert done.returncode == 0


def test_a_rank_runs_several_batches_at_a_time(tmp_path: Path) -> None:
    done = mpi(
        tmp_path,
        """
        def meet(folder, x):
            # Done when another task is there at the same time.
            open(f"{folder}/{x}", "w").close()
            deadline = time.monotonic() + 20
            while len(os.listdir(folder)) < 4 and time.monotonic() < deadline:
                time.sleep(0.01)
            return len(os.listdir(folder))

        if __name__ == "__main__":
            with parallel_config(backend="mpi", jobs_per_rank=2):
                try:
                    parallel_config(backend="mpi", jobs_per_rank=0)
                except ValueError as error:
                    print(error)
                calls = Parallel(batch_size=1)
                os.mkdir(sys.argv[1])
                print(calls(delayed(meet)(sys.argv[1], x) for x in range(4)))
                print(calls._backend.effective_n_jobs(-1), calls._backend.effective_n_jobs(3))
                print(len({pid for pid, _ in Parallel(n_jobs=2)(delayed(where)(i) for i in range(20))}) <= 4)
        """,
        str(tmp_path / "met"),
    )
    assert done.stdout.splitlines() == [
        "jobs_per_rank must be at least 1, not 0", "[4, 4, 4, 4]", "4 3", "True",
    ], done.stderr  # fmt: skip


def test_a_program_that_uses_joblib_runs_on_ranks_unchanged(tmp_path: Path) -> None:
    done = mpi(
        tmp_path,
        """
        if __name__ == "__main__":
            import joblib

            with joblib.parallel_config(backend="mpi"):
                print(joblib.Parallel()(joblib.delayed(double)(i) for i in range(6)), joblib.Parallel.__module__)
        """,
        module=("-m", "mpi4py.futures", "-m", "shoal"),
    )
    assert done.stdout == "[0, 2, 4, 6, 8, 10] shoal.joblib.parallel\n", done.stderr


def test_a_map_on_ranks_goes_on_where_it_stopped(tmp_path: Path) -> None:
    source = """
        if __name__ == "__main__":
            calls = Parallel(backend="mpi", memory=sys.argv[1], batch_size=1)
            try:
                print(calls(delayed(die if sys.argv[2] == "die" else abs)(i) for i in range(3)))
                print(calls(delayed(where)(i) for i in range(6)))
            except Exception as error:
                print(type(error).__name__)
        """
    first = mpi(tmp_path, source, str(tmp_path / "kept"), "live")
    assert first.stdout.startswith("[0, 1, 2]\n"), first.stderr
    assert mpi(tmp_path, source, str(tmp_path / "kept"), "live").stdout == first.stdout


def test_the_executor_of_a_communicator_may_be_given(tmp_path: Path) -> None:
    done = mpi(
        tmp_path,
        """
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor

        with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
            if executor is not None:
                with parallel_config(backend="mpi", executor=executor):
                    print(Parallel()(delayed(double)(i) for i in range(4)))
        """,
        module=(),
    )
    assert done.stdout == "[0, 2, 4, 6]\n", done.stderr


def test_a_wrong_start_is_said(tmp_path: Path) -> None:
    source = """
        try:
            parallel_config(backend="mpi")
        except RuntimeError as error:
            sys.stdout.write(f"{error}\\n")
        """
    alone = run_program(tmp_path, textwrap.dedent(HEAD) + textwrap.dedent(source))
    assert alone.stdout == (
        "The back-end 'mpi' has no rank to send work to: start the program with: mpiexec -n RANKS python -m "
        "mpi4py.futures SCRIPT, with RANKS at least 2\n"
    ), alone.stderr
    all_run = mpi(tmp_path, source, module=(), ranks=2)
    assert all_run.stdout.count("every rank runs the program, and none waits for work") == 2


def test_a_missing_package_is_said(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import sys
        from shoal.joblib import Parallel

        sys.modules["mpi4py"] = None
        try:
            Parallel(backend="mpi")
        except ImportError as error:
            print(error)
        """,
    )
    assert done.stdout.startswith("The back-end 'mpi' needs the package mpi4py and an MPI library"), done.stderr
