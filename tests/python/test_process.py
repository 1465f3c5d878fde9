"""`Process`, contexts and the zygote, as their users see them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import run_program
from shoal import _engine
from shoal import multiprocessing as mp


class Worker(mp.Process):  # type: ignore[name-defined, misc]
    def __init__(self, queue: Any, idx: int, data: list[int]) -> None:
        super().__init__()
        self.queue = queue
        self.idx = idx
        self.data = data

    def run(self) -> None:
        self.queue.put((self.idx, self.name, [x * x for x in self.data]))


def test_five_workers_put_on_a_queue_are_joined_and_then_read() -> None:
    queue = mp.Queue()
    workers = [Worker(queue, idx, [idx, 2]) for idx in range(5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    results = sorted(queue.get(timeout=10) for _ in workers)
    assert [result[0] for result in results] == list(range(5))
    assert all(name.startswith("Worker-") for _, name, _ in results)
    assert [result[2] for result in results] == [[idx * idx, 4] for idx in range(5)]
    assert [worker.exitcode for worker in workers] == [0] * 5


def test_names_are_numbered_as_in_multiprocessing(tmp_path: Path) -> None:
    source = """
        from {module} import Process
        class Worker(Process):
            def run(self):
                print(self.name, flush=True)
        for _ in range(2):
            worker = Worker()
            worker.start()
            worker.join()
        print(Process(target=print).name, Process(name="mine").name)
    """
    ours = run_program(tmp_path, source.format(module="shoal.multiprocessing"))
    theirs = run_program(tmp_path, source.format(module="multiprocessing"))
    assert ours.stdout == theirs.stdout == "Worker-1\nWorker-2\nProcess-3 mine\n"


@pytest.mark.parametrize("status, expected", [(0, 0), (3, 3), ("text", 1)])
def test_exit_codes_are_multiprocessings(status: Any, expected: int, capfd: pytest.CaptureFixture[str]) -> None:
    process = mp.Process(target=sys.exit, args=(status,))
    process.start()
    process.join(10)
    assert process.exitcode == expected


def test_an_exception_is_printed_and_ends_with_1(capfd: pytest.CaptureFixture[str]) -> None:
    process = mp.Process(target=int, args=("no number",))
    process.start()
    process.join(10)
    assert process.exitcode == 1
    assert "ValueError" in capfd.readouterr().err


def test_terminate_kill_and_the_sentinel() -> None:
    from multiprocessing.connection import wait

    for end, code in (("terminate", -signal.SIGTERM), ("kill", -signal.SIGKILL)):
        process = mp.Process(target=time.sleep, args=(30,))
        process.start()
        assert process.is_alive()
        assert process in mp.active_children()
        assert wait([process.sentinel], 0.05) == []
        getattr(process, end)()
        assert wait([process.sentinel], 10) == [process.sentinel]
        process.join()
        assert process.exitcode == code
        assert not process.is_alive()
        process.close()


def test_join_obeys_its_timeout() -> None:
    process = mp.Process(target=time.sleep, args=(30,), daemon=True)
    process.start()
    started = time.monotonic()
    process.join(0.1)
    assert time.monotonic() - started < 5
    assert process.exitcode is None
    process.kill()
    process.join()


def test_types_agree_with_multiprocessings() -> None:
    assert issubclass(mp.Process, multiprocessing.process.BaseProcess)
    assert isinstance(mp.get_context("fork"), multiprocessing.context.BaseContext)
    assert mp.get_context("spawn").get_start_method() == "spawn"
    assert set(multiprocessing.__all__) <= set(dir(mp))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_queue_reaches_a_process_however_it_starts(tmp_path: Path, method: str) -> None:
    done = run_program(
        tmp_path,
        """
        import sys
        from shoal.multiprocessing import get_context

        def put(queue, value):
            queue.put(value)

        if __name__ == "__main__":
            context = get_context(sys.argv[1])
            queue = context.Queue()
            process = context.Process(target=put, args=(queue, [1, "two"]))
            process.start()
            process.join()
            print(process.exitcode, queue.get(timeout=10))
        """,
        method,
    )
    assert done.stdout == "0 [1, 'two']\n", done.stderr


def _gone(pid: int, within: float = 5) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("daemon", [True, False])
def test_a_killed_parent_takes_its_daemons_along_and_nobody_else(tmp_path: Path, daemon: bool) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import time, sys\nfrom shoal.multiprocessing import Process\n"
        f"process = Process(target=time.sleep, args=(3,), daemon={daemon})\n"
        "process.start()\nprint(process.pid, flush=True)\ntime.sleep(30)\n"
    )
    parent = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert _gone(pid, within=1) is daemon
    assert _gone(pid, within=10)


# -- the zygote --


def answer(payload: bytes, fds: tuple[int, ...]) -> int:
    """Runs in a zygote's process."""
    text = f"{payload.decode()} {os.getcwd()} {sys.argv[0]} {len(fds)}"
    os.write(fds[0], text.encode())
    return len(payload)


def test_a_zygotes_process_is_clean_and_stands_where_its_asker_stands() -> None:
    from shoal import _zygote

    read, write = os.pipe()
    os.environ.pop("SHOAL_TEST", None)
    sys.path.insert(0, os.path.dirname(__file__))
    try:
        process = _zygote.get().start("test_process:answer", b"hello", [write])
        os.close(write)
        assert process.wait(10) == 5
        assert os.read(read, 10_000).decode() == f"hello {os.getcwd()} {sys.argv[0]} 1"
    finally:
        sys.path.pop(0)
        os.close(read)
    assert process.poll() == 5


def test_a_zygote_that_was_killed_is_made_again() -> None:
    from shoal import _zygote

    first = _zygote.get().current()
    os.kill(first.pid, signal.SIGKILL)
    time.sleep(0.05)
    read, write = os.pipe()
    sys.path.insert(0, os.path.dirname(__file__))
    process = _zygote.get().start("test_process:answer", b"x", [write])
    sys.path.pop(0)
    assert process.wait(10) == 1
    assert _zygote.get().current().pid != first.pid
    os.close(read)
    os.close(write)


def test_forking_makes_no_warning_about_threads(recwarn: pytest.WarningsRecorder) -> None:
    with mp.Pool(1) as pool:
        pool.map(int, "12")
        process = mp.Process(target=int)
        process.start()
        process.join()
    assert not [warning for warning in recwarn.list if issubclass(warning.category, DeprecationWarning)]


def test_a_process_object_of_the_engine_tells_who_it_is() -> None:
    process = _engine.fork_process(lambda: 7)
    assert process.wait() == 7
    assert process.poll() == 7
    with pytest.raises(ProcessLookupError):
        process.signal(15)
    process.close()
    with pytest.raises(ValueError, match="closed"):
        process.pid  # noqa: B018
