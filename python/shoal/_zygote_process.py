"""What a zygote is: a fresh Python that waits for requests and forks a process for each (`_zygote.py` asks).

How soon the first worker of a program runs is how soon this is imported, with all that it needs.
"""

from __future__ import annotations

import _thread
import marshal
import os
import sys
import time

from shoal import _engine

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


_ATTEMPTS_MOST = 3  # at leaving out single modules; then all from the next one on are


def serve(
    asker: int, modules: Sequence[str], main: str | None, derived: Sequence[tuple[str | None, str]], attempts: int = 0
) -> None:
    """Be a zygote on descriptor 0 until the asker is gone."""
    import _signal as signal  # type: ignore[import-not-found]  # the C module: the Python one makes enums of everything, at a cost to each start

    # A forked child of the asker may hold the socket's other end longer than the asker lives.
    _engine.die_with(asker)
    # Ctrl-C goes to the whole foreground group; the asker decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    # What every worker needs, once for all of them.
    import faulthandler  # noqa: F401

    _import_pickle()
    import shoal._functions
    import shoal._pickling
    import shoal._serving
    import shoal.joblib._in_worker  # noqa: F401

    if modules or main is not None:
        _warm(asker, modules, main, derived, attempts)
    _engine.serve_zygote(0, _run)
    os._exit(0)


def _import_pickle() -> None:
    """Import `_pickle` without `functools` and what that imports, a fifth of a zygote's start.

    `_pickle` takes one thing from there, `partial`, which is the C module's own. `functools` itself is imported when a
    program's code asks for it, as if nobody had before.
    """
    if "functools" not in sys.modules:
        from _functools import partial  # type: ignore[import-not-found]

        stand_in = type(sys)("functools")
        stand_in.partial = partial  # type: ignore[attr-defined]
        sys.modules["functools"] = stand_in
        try:
            import _pickle  # noqa: F401
        finally:
            del sys.modules["functools"]


def _warm(
    asker: int, modules: Sequence[str], main: str | None, derived: Sequence[tuple[str | None, str]], attempts: int
) -> None:
    """Import what the workers will, so that they find it there. What fails here fails again where it matters.

    A module that starts a thread as it is imported must not be among these: a forked process has its executor and not
    the thread, and waits for it for ever. Such an import cannot be undone, so the zygote begins anew without it.
    """
    path, environment = list(sys.path), dict(os.environ)  # imports may change them
    threads = _thread._count()
    if derived:
        from shoal.multiprocessing import _insides

        _insides.kept.update(derived)

    def begin_anew(modules: Sequence[str], main: str | None) -> None:
        from shoal import _zygote

        arguments = _zygote.command_line(path, asker, modules, main, derived, attempts + 1)
        os.execve(sys.executable, arguments, environment)

    packages = set()
    for number, name in enumerate(modules):
        try:
            __import__(name)
        except BaseException:
            pass
        package = name.partition(".")[0]
        if _are_more_threads_than(threads):
            # They come in the order in which their imports ended. Where another one of this package went well it was
            # this very one; else it may have been the package itself, which all of its modules import.
            left_out = f"{name}." if package in packages else f"{package}."
            later = [other for other in modules[number + 1 :] if not f"{other}.".startswith(left_out)]
            begin_anew([*modules[:number], *(later if attempts < _ATTEMPTS_MOST else [])], main)
        packages.add(package)
    from shoal import _threads

    _threads.prepare_fork()
    if main is not None:
        from multiprocessing import process, spawn

        process.current_process()._inheriting = True  # type: ignore[attr-defined]
        try:
            spawn.import_main_path(main)
        except BaseException:
            pass
        finally:
            del process.current_process()._inheriting  # type: ignore[attr-defined]
        if _are_more_threads_than(threads):
            begin_anew(modules, None)


def _are_more_threads_than(count: int) -> bool:
    """Whether Python runs more threads, beside the main one; those that are just ending do not count."""
    # Not by what the kernel says: the threads of a numerical library find their way through a fork.
    patience = 20
    while _thread._count() > count and patience:
        patience -= 1
        time.sleep(0.001)
    return _thread._count() > count


def _run(request: bytes, fds: tuple[int, ...]) -> Any:
    """In a process that the zygote forked."""
    import _signal as signal  # type: ignore[import-not-found]

    null = os.open(os.devnull, os.O_RDONLY)
    if null == 0:  # the zygote's socket was there, and is closed
        os.set_inheritable(0, True)
    else:
        os.dup2(null, 0)
        os.close(null)
    function, payload, path, argv, directory, environment, cpus, further, is_worker = marshal.loads(request)
    if not is_worker:  # a pool's leaves Ctrl-C to its asker, and sees to that itself once it serves
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if further:
        from shoal import _descriptors

        fds = (*fds[:-1], *_descriptors.take(fds[-1], further))
    sys.path[:] = path
    sys.argv[:] = argv
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
    if cpus is not None:
        os.sched_setaffinity(0, cpus)
    # Every process that imports it seeds its own.
    if (random := sys.modules.get("numpy.random")) is not None:
        random.seed()
    try:
        os.chdir(directory)
    except OSError:
        pass
    module_name, _, name = function.partition(":")
    __import__(module_name)
    code = 1
    try:
        code = getattr(sys.modules[module_name], name)(payload, fds)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    finally:
        _end_of_process()
    return code


def _end_of_process() -> None:
    """What an interpreter does at its end and _exit() does not."""
    threading = sys.modules.get("threading")
    if threading is not None:
        threading._shutdown()
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._exit_function()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass
