"""A clean interpreter that forks clean workers: `get().start(…)`.

Started once a process, when first needed: a fresh Python that imports what every worker needs and then only forks,
half a millisecond
a worker, however large or threaded this program is. It and all it forked are gone as soon as this process is.
"""

from __future__ import annotations

import marshal
import os
import sys
import threading

from shoal import _engine

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_zygote: Zygote | None = None
_lock = threading.Lock()


class Zygote:
    """The asker's side."""

    def __init__(self) -> None:
        import socket

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = (
            f"import sys; sys.path[:] = {list(map(str, sys.path))!r}; "
            f"from shoal import _zygote; _zygote.serve({os.getpid()})"
        )
        arguments = [sys.executable, *_interpreter_flags(), "-c", program]
        with theirs:
            # Its descriptor 0 is the socket; all others are close-on-exec.
            self.pid = os.posix_spawn(
                sys.executable,
                arguments,
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)],
            )
        self._engine = _engine.Zygote(ours.detach(), self.pid)
        self.owner = os.getpid()

    def start(self, function: str, payload: bytes, fds: Sequence[int]) -> _engine.Process:
        """Fork a process that runs `function` ("module:name") with (payload, fds); what that returns is its exit code.

        BrokenPipeError: the zygote is gone.
        """
        request = marshal.dumps((function, payload, list(map(str, sys.path)), list(map(str, sys.argv)), _directory()))
        return self._engine.start(request, fds)

    def close(self) -> None:
        """End the zygote and everything it forked."""
        self._engine.close()
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass


def _directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return "/"


def _interpreter_flags() -> list[str]:
    """The flags that this interpreter was started with and that change what programs mean."""
    flags = []
    for name, letter in (
        ("optimize", "O"),
        ("dont_write_bytecode", "B"),
        ("no_user_site", "s"),
        ("ignore_environment", "E"),
    ):
        value = getattr(sys.flags, name)
        if value:
            flags.append("-" + letter * (value if name == "optimize" else 1))
    flags += [f"-W{option}" for option in sys.warnoptions]
    for option, value in sys._xoptions.items():
        flags += ["-X", option if value is True else f"{option}={value}"]
    return flags


class _Restarting:
    """A zygote that is made again when it turns out to have died."""

    def start(self, function: str, payload: bytes, fds: Sequence[int]) -> _engine.Process:
        try:
            return _current().start(function, payload, fds)
        except BrokenPipeError:
            _drop()
            return _current().start(function, payload, fds)


def _current() -> Zygote:
    global _zygote
    with _lock:
        if _zygote is None or _zygote.owner != os.getpid():
            _zygote = Zygote()
        return _zygote


def _drop() -> None:
    global _zygote
    with _lock:
        zygote, _zygote = _zygote, None
    if zygote is not None:
        zygote.close()


def _after_fork() -> None:
    # The zygote is the parent's; its socket must not be kept open by a child that lives longer.
    global _zygote, _lock
    _lock = threading.Lock()
    _zygote = None


os.register_at_fork(after_in_child=_after_fork)


def get() -> _Restarting:
    """What starts clean processes for this process."""
    return _Restarting()


# ------------------------------------------------------------------------ in the zygote


def serve(asker: int) -> None:
    """Be a zygote on descriptor 0 until the asker is gone."""
    import _signal as signal  # type: ignore[import-not-found]  # the C module: the Python one makes enums of everything, at a cost to each start

    # A forked child of the asker may hold the socket's other end longer than the asker lives.
    _engine.die_with(asker)
    # Ctrl-C goes to the whole foreground group; the asker decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    # What every worker needs, once for all of them.
    import shoal._crew
    import shoal._pickling
    import shoal.joblib.parallel  # noqa: F401

    _engine.serve_zygote(0, _run)
    os._exit(0)


def _run(request: bytes, fds: tuple[int, ...]) -> Any:
    """In a process that the zygote forked."""
    import _signal as signal  # type: ignore[import-not-found]

    signal.signal(signal.SIGINT, signal.default_int_handler)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    function, payload, path, argv, directory = marshal.loads(request)
    sys.path[:] = path
    sys.argv[:] = argv
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
    threading._shutdown()  # type: ignore[attr-defined]
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._exit_function()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass
