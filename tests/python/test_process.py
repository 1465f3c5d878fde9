"""`Process`, contexts and the zygote, as their users see them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import shoal
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


@pytest.mark.parametrize("end", ["close", "del"])
def test_what_a_process_keeps_is_closed_with_it_and_not_by_a_child_of_fork(end: str) -> None:
    reader, writer = os.pipe()
    process: Any = _engine.fork_process(int)
    process.keep(writer)
    with pytest.raises(ValueError, match="keeps a descriptor already"):
        process.keep(reader)
    pid = os.fork()
    if pid == 0:
        process.close()
        try:
            os.write(writer, b"open")  # by now the number might be another file's
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert process.wait() == 0
    if end == "close":
        process.close()
        with pytest.raises(ValueError, match="closed"):
            process.keep(reader)
    del process
    assert [os.read(reader, 100), os.read(reader, 100)] == [b"open", b""]
    os.close(reader)


def test_a_process_may_be_closed_while_other_threads_join_it() -> None:
    wrong: list[BaseException] = []

    def join(process: Any) -> None:
        try:
            process.join()
        except BaseException as error:
            # It was closed before this thread had asked, as the standard library has it.
            if str(error) not in ("process object is closed", "can only join a started process"):
                wrong.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(100):
            process = mp.get_context("fork").Process(target=time.sleep, args=(0.005,))
            process.start()
            threads = [threading.Thread(target=join, args=(process,), daemon=True) for _ in range(12)]
            for thread in threads:
                thread.start()
            while process.exitcode is None:
                pass
            process.close()
            for thread in threads:
                thread.join(20)
                assert not thread.is_alive(), "it still waits for a process that is gone"
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


# -- queues of other kinds --


def deal_with(queue: Any) -> None:
    while queue.get() is not None:
        queue.task_done()
    queue.task_done()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_joinable_queue_is_joined_once_all_is_dealt_with(method: str) -> None:
    context = mp.get_context(method)
    queue = context.JoinableQueue()
    process = context.Process(target=deal_with, args=(queue,))
    process.start()
    for item in [*range(100), None]:
        queue.put(item)
    queue.join()
    assert queue.empty()
    process.join()
    with pytest.raises(ValueError, match="too many times"):
        queue.task_done()


def test_a_full_joinable_queue_does_not_count_what_it_refused() -> None:
    import queue as standard_queue

    queue = mp.JoinableQueue(1)
    queue.put(1)
    with pytest.raises(standard_queue.Full):
        queue.put(2, timeout=0.01)
    queue.get()
    queue.task_done()
    queue.join()


def test_classes_made_on_the_insides_of_the_standard_queue_go_on_working(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import multiprocessing, multiprocessing.queues
        ours = multiprocessing.queues.Queue

        class Reporting(ours):
            def _on_queue_feeder_error(self, error, obj):
                print("could not send", obj)

        if __name__ == "__main__":
            queue = Reporting(ctx=multiprocessing.get_context())
            queue.put(lambda: 0) if False else queue.put(5)
            print(queue.get(timeout=10), ours.__module__, issubclass(Reporting, ours))
            joinable = multiprocessing.JoinableQueue()
            joinable.put(1)
            print(joinable.get(), type(joinable).__module__)
            joinable.task_done()
            joinable.join()
        """,
        shoal=True,
    )
    assert done.stdout.splitlines() == [
        "5 shoal.multiprocessing.queues False",
        "1 shoal.multiprocessing.queues",
    ], done.stderr


# -- processes of the clean start --


def surroundings() -> tuple[Any, ...]:
    return os.environ.get("SHOAL_TEST"), os.getcwd(), sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_clean_process_stands_where_its_parent_stands_now(
    method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = mp.get_context(method)
    with context.Pool(1) as pool:
        pool.apply(surroundings)  # the zygote is there before what follows
    monkeypatch.setenv("SHOAL_TEST", "later")
    monkeypatch.chdir(tmp_path)
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        with context.Pool(1) as pool:
            assert pool.apply(surroundings) == ("later", str(tmp_path), [min(cpus)])
    finally:
        os.sched_setaffinity(0, cpus)


def random_number(_: Any) -> float:
    import random

    import numpy

    time.sleep(0.01)
    return float(numpy.random.random()) + random.random()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_clean_processes_have_random_numbers_of_their_own(method: str) -> None:
    import numpy  # noqa: F401  (so that the zygote imports it)

    with mp.get_context(method).Pool(3) as pool:
        numbers = pool.map(random_number, range(12), chunksize=1)
    assert len(set(numbers)) == 12


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("size", [10, 200_000])
def test_a_clean_process_prints_where_its_parent_does(method: str, size: int, tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        f"""
        import os, sys
        from shoal.multiprocessing import get_context

        def say(text):
            print(len(text), flush=True)
            os.write(2, b"error\\n")

        if __name__ == "__main__":
            context = get_context({method!r})
            context.Process(target=str).start()
            with open("output", "w") as file:
                os.dup2(file.fileno(), 1)
            process = context.Process(target=say, args=("x" * {size},))
            process.start()
            process.join()
            sys.exit(process.exitcode)
        """,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output").read_text() == f"{size}\n"
    assert done.stderr == "error\n"


def test_the_main_module_of_a_fork_server_is_imported_once(tmp_path: Path) -> None:
    source = """
        import os, sys
        from shoal.multiprocessing import get_context

        if __name__ != "__main__":
            with open("imported", "a") as file:
                file.write(f"{{os.getpid()}}\\n")

        def pid():
            return os.getpid()

        if __name__ == "__main__":
            for _ in range(3):
                with get_context({method!r}).Pool(1) as pool:
                    pool.apply(pid)
        """
    for method, times in (("forkserver", 1), ("spawn", 3)):
        (tmp_path / "imported").unlink(missing_ok=True)
        done = run_program(tmp_path, source.format(method=method), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len((tmp_path / "imported").read_text().split()) == times


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_killed_program_takes_the_workers_of_its_clean_pools_along(method: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, time\nfrom shoal.multiprocessing import get_context\n"
        "if __name__ == '__main__':\n"
        f"    pool = get_context({method!r}).Pool(2)\n"
        "    pool.map(abs, [0])\n"
        "    print(*[process.pid for process in pool._pool], flush=True)\n"
        "    pool.map(time.sleep, [30, 30], chunksize=1)\n"
    )
    parent = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    time.sleep(0.1)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert len(pids) == 2
    assert all(_gone(pid, within=1) for pid in pids)


def test_a_killed_zygote_harms_no_task() -> None:
    from shoal import _zygote

    with mp.get_context("spawn").Pool(2) as pool:
        result = pool.map_async(time.sleep, [0.3] * 4, chunksize=1)
        time.sleep(0.1)
        os.kill(_zygote._zygotes["spawn"].pid, signal.SIGKILL)
        assert result.get(30) == [None] * 4
        with pytest.raises(shoal.WorkerDied):
            pool.apply(os._exit, (3,))
        assert pool.map(abs, [-1, -2]) == [1, 2]  # by a worker of a new zygote


# -- modules that start threads as they are imported --

STARTS_A_THREAD = """
from concurrent.futures import ThreadPoolExecutor
executor = ThreadPoolExecutor(1)
executor.submit(abs, -1).result()  # its thread runs from now on
"""
TELLS = """
import importlib, os, sys
def tell(payload, fds):
    there = [name for name in payload.decode().split() if name in sys.modules]
    for name in payload.decode().split():
        if executor := getattr(importlib.import_module(name), "executor", None):
            executor.submit(abs, -2).result(timeout=5)
    os.write(fds[0], " ".join(there).encode())
"""
STARTS_AND_ENDS_A_THREAD = """
import threading
thread = threading.Thread(target=abs, args=(-1,))
thread.start()
thread.join()
"""


@pytest.mark.parametrize(
    ("modules", "warm"),
    [
        ("plain starts later", "plain later"),
        ("plain ends_it later", "plain ends_it later"),
        ("apart.plain apart.starts apart later", "apart.plain apart later"),  # but for the one, the package is harmless
        ("plain whole.plain whole later", "plain later"),  # its modules bring the package with them
        ("plain starts uses later", "plain later"),
        ("plain starts starts1 starts2 starts3 starts4 later", "plain"),  # it does not begin anew for ever
    ],
)
def test_a_zygote_does_without_modules_that_start_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modules: str, warm: str
) -> None:
    from shoal import _zygote

    for name in ("plain", "later", "apart/__init__", "apart/plain", "whole/plain"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").touch()
    for name in ("starts", *(f"starts{i}" for i in range(5)), "apart/starts", "whole/__init__"):
        (tmp_path / f"{name}.py").write_text(STARTS_A_THREAD)
    (tmp_path / "uses.py").write_text("import starts")
    (tmp_path / "ends_it.py").write_text(STARTS_AND_ENDS_A_THREAD)
    (tmp_path / "tells.py").write_text(TELLS)
    monkeypatch.syspath_prepend(tmp_path)
    read, write = os.pipe()
    zygote = _zygote.Zygote(modules.split())
    try:
        process = zygote.start("tells:tell", modules.encode(), [write])
        os.close(write)
        assert process.wait(20) == 0
        with open(read, "rb") as pipe:
            assert pipe.read().decode() == warm
    finally:
        zygote.close()


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages/"])
def test_packages_are_imported_once_for_all_wherever_they_are_installed(tmp_path: Path, folder: str) -> None:
    """Debian's are in folders of their own, and so are a user's, and those that an environment has from the system."""
    place = tmp_path / folder
    place.mkdir()
    (place / "installed.py").write_text("import os\nprocess = os.getpid()")
    done = run_program(
        tmp_path,
        f"""
        import os, sys
        sys.path.insert(0, {os.path.join(tmp_path, folder)!r})
        import installed
        from shoal.multiprocessing import get_context

        def tell():
            print(installed.process == os.getpid(), flush=True)

        if __name__ == "__main__":
            for _ in range(2):
                process = get_context("spawn").Process(target=tell)
                process.start()
                process.join()
        """,
    )
    assert (done.stdout, done.stderr) == ("False\n" * 2, "")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_main_module_may_start_a_thread_as_it_is_imported(tmp_path: Path, method: str) -> None:
    program = f"""
        import sys
        from concurrent.futures import ThreadPoolExecutor
        from shoal.multiprocessing import get_context

        executor = ThreadPoolExecutor(1)
        executor.submit(abs, -1).result()

        def use(queue):
            queue.put(executor.submit(abs, -2).result(timeout=5))

        if __name__ == "__main__":
            context = get_context({method!r})
            queue = context.Queue()
            process = context.Process(target=use, args=(queue,))
            process.start()
            print(queue.get(timeout=10))
            process.join()
    """
    done = run_program(tmp_path, program)
    assert done.stdout == "2\n", done.stderr


# -- a zygote that dies, and one that is out of date --


def test_what_a_zygote_forked_and_did_not_tell_of_before_it_died_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal import _zygote

    (tmp_path / "first").touch()
    (tmp_path / "dies_at_fork.py").write_text(
        "import os\n"
        "def die():\n"
        "    os.kill(os.getpid(), 9)\n"
        "def note(payload, fds):\n"
        "    os.write(fds[0], b'ran ')\n"
        "try:\n"
        f"    os.unlink({str(tmp_path / 'first')!r})\n"
        "except OSError:\n"
        "    pass\n"
        "else:\n"
        "    os.register_at_fork(after_in_parent=die)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    read, write = os.pipe()
    zygotes: list[_zygote.Zygote] = []

    def make() -> _zygote.Zygote:
        zygotes.append(_zygote.Zygote(["dies_at_fork"]))
        return zygotes[-1]

    process = _zygote.get("dies at fork", make).start("dies_at_fork:note", b"", [write])
    os.close(write)
    assert process.wait(10) == 0
    with open(read, "rb") as pipe:
        assert pipe.read() == b"ran "  # up to its end: both processes are gone
    assert len(zygotes) == 2


def standing() -> tuple[Any, ...]:
    import resource

    with open("/proc/self/status") as file:
        umask = next(line.split()[1] for line in file if line.startswith("Umask:"))
    return umask, resource.getrlimit(resource.RLIMIT_NOFILE)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_clean_process_has_the_umask_and_the_limits_of_its_parent_now(method: str) -> None:
    import resource

    from shoal import _zygote

    context = mp.get_context(method)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with context.Pool(1) as before:
        assert before.apply(standing) == standing()
        zygote = _zygote._zygotes[method]
        umask = os.umask(0o077)
        try:
            with context.Pool(1) as pool:
                assert pool.apply(standing)[0] == "0077"
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
            with context.Pool(1) as pool:
                assert pool.apply(standing)[:2] == ("0077", (soft - 1, hard))
        finally:
            os.umask(umask)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert before.apply(standing) == standing()  # by a process that the change did no harm
        with context.Pool(1) as pool:
            assert pool.apply(standing) == standing()
        assert _zygote._zygotes[method] is zygote


def test_a_clean_process_has_the_priority_and_the_credentials_of_its_parent_now(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import os
        from shoal.multiprocessing import get_context

        def credentials():
            return os.nice(0), os.getuid(), os.geteuid(), os.getgid(), os.getegid(), os.getgroups()

        def tell(queue):
            queue.put(credentials())

        if __name__ == "__main__":
            context = get_context("spawn")
            queue = context.Queue()
            def changed(change):
                change()
                process = context.Process(target=tell, args=(queue,))
                process.start()
                process.join()
                return queue.get(timeout=10) == credentials()
            changes = [lambda: None, lambda: os.nice(1)]
            if os.geteuid() == 0:
                changes += [lambda: os.setgroups([1, 2]), lambda: os.setegid(3), lambda: os.setgid(4)]
            print({changed(change) for change in changes})
        """,
    )
    assert done.stdout == "{True}\n", done.stderr


def test_zygotes_are_reused_by_threads_that_stand_the_same() -> None:
    from shoal import _zygote

    first = _zygote.get().current()
    umask = os.umask(0o077)
    try:
        second = _zygote.get().current()
    finally:
        os.umask(umask)
    assert second is not first
    assert _zygote.get().current() is first


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_exit_functions_of_a_process_run_as_in_multiprocessing(tmp_path: Path, method: str) -> None:
    source = """
        import atexit, sys
        from multiprocessing import util
        from {module} import get_context

        def task():
            atexit.register(print, "atexit", flush=True)
            util.Finalize(None, print, ("finalizer",), {{"flush": True}}, exitpriority=1)

        if __name__ == "__main__":
            atexit.register(print, "the program's own")
            process = get_context(sys.argv[1]).Process(target=task)
            process.start()
            process.join()
    """
    ours, theirs = (
        run_program(tmp_path, source.format(module=module), method)
        for module in ("shoal.multiprocessing", "multiprocessing")
    )
    assert ours.stdout == theirs.stdout, ours.stderr
    assert "finalizer" in ours.stdout


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_an_exit_status_too_large_for_an_int_is_a_failure(method: str) -> None:
    expected = {3: 3, 256 + 3: 3, 2**40: 1, -1: 255, "words": 1, None: 0}
    # All in one test: the zygote that forks them, which imports all that we have, starts once.
    processes = {status: mp.get_context(method).Process(target=sys.exit, args=(status,)) for status in expected}
    for process in processes.values():
        process.start()
    for process in processes.values():
        process.join(30)
    assert {status: process.exitcode for status, process in processes.items()} == expected


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_process_that_there_is_no_room_for_says_what_could_not_be_started(method: str, tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        f"""
        import os, resource
        from multiprocessing import resource_tracker
        from shoal.multiprocessing import get_context

        def start():
            process = get_context({method!r}).Process(target=abs, args=(1,))
            process.start()
            process.join()
            return process.exitcode

        if __name__ == "__main__":
            print(start())  # all that is imported on need
            if os.getuid() == 0:
                os.setuid(65534)  # the limit does not hold for root
            hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
            resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(2):
                try:
                    start()
                except BlockingIOError as error:
                    print(error)
                print(len(os.listdir("/proc/self/fd")) - before)
                resource_tracker._resource_tracker._stop()
                before = len(os.listdir("/proc/self/fd"))
        """,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 5, done.stderr
    assert (lines[0], lines[2], lines[4]) == ("0", "0", "0")
    assert "the interpreter that clean processes are forked from: " in lines[1]
    assert "multiprocessing's resource tracker: " in lines[3]
    assert all("the user's limit of processes" in line for line in (lines[1], lines[3]))
