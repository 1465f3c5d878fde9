"""Clean interpreters that fork clean workers: `get().start(…)`.

A zygote is started once a process, when first needed: a fresh Python that imports what its workers need and then only
forks, half a millisecond a worker, however large or threaded this program is. What it forks stands where its asker
stands: same sys.path, arguments, directory, environment and cpus. It is gone as soon as this process is, and with it
what it forked, unless that may outlive us.

What a process cannot simply put on afterwards (credentials, umask, nice value, resource limits: `_standing`) it has
from the zygote. So a zygote serves only while ours are those it was started with. After a change another one is
started, and the old one is set aside, not ended: its processes end with it, and the change may be undone. Of those set
aside without processes the oldest ends once there are more than a few.

There may be several, told apart by what they import beforehand ("warmth"): workers of `Parallel` need little and must
be there soon, those of `spawn` and `forkserver` import the program's modules anyway.
"""

from __future__ import annotations

import marshal
import os
import sys

from shoal import _engine

TYPE_CHECKING = False  # typing costs each start of a worker more than the rest of this file
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    _Standing = tuple[Any, ...]


def _is_start_wanted() -> bool:
    crew = sys.modules.get("shoal._crew")
    return crew is None or crew.is_start_wanted()


_zygotes: dict[str, Zygote] = {}  # by warmth: those in use
_aside: dict[tuple[str, _Standing], Zygote] = {}  # those that were started while we stood otherwise
# Reentrant: the collector, or a signal's handler, may start a process as one is being started. Who waits for it asks
# whether its worker is still wanted: who has it may have been interrupted by the collector as that ended a pool, and
# that waits for the pool's supervisor.
_lock = _engine.WantedLock(_is_start_wanted)
_ASIDE_MOST = 4  # zygotes set aside that may be of use again, beside those that have processes
_FDS_MOST = 200  # a request's; the engine takes 240, the kernel 253. More go another way
_HINTS = {11: "; the user's limit of processes and threads is reached", 12: "; there is too little memory"}  # by errno
_SIGCONT = 18  # by number: the module of that name costs each worker's start


class Zygote:
    """The asker's side. modules: what it imports before it forks, as far as that works; main: the path of a main module
    that it runs as `__mp_main__`; derived: their classes that rest on the standard library's own (`_insides`)."""

    def __init__(
        self, modules: Sequence[str] = (), main: str | None = None, derived: Sequence[tuple[str | None, str]] = ()
    ) -> None:
        arguments = command_line(list(map(str, sys.path)), os.getpid(), modules, main, derived)
        self._environment = dict(os.environ)
        self._cpus = os.sched_getaffinity(0)
        self.standing = _standing()
        ours, theirs = _engine.zygote_sockets()
        crew = sys.modules.get("shoal._crew")
        mask = crew.outer_mask() if crew is not None else None
        try:
            # Its descriptor 0 is the socket; all others are close-on-exec.
            self.pid = os.posix_spawn(
                sys.executable,
                arguments,
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, theirs, 0)],
                **({} if mask is None else {"setsigmask": mask}),
            )
        except BaseException as error:
            os.close(ours)
            if not isinstance(error, OSError):
                raise
            what = f"{sys.executable!r}, the interpreter that clean processes are forked from"
            raise start_error(what, error.errno or 0) from error
        finally:
            os.close(theirs)
        self._engine = _engine.Zygote(ours, self.pid)
        self.owner = os.getpid()

    def start(self, function: str, payload: bytes, fds: Sequence[int], *, outlives: bool = False) -> _engine.Process:
        """Fork a process that runs `function` ("module:name") with (payload, fds); what that returns is its exit code.

        outlives: it is not killed when this process is gone.
        BrokenPipeError: the zygote is gone. TimeoutError: it does not answer, being stopped perhaps. OSError
        (ECANCELED): the crew that asks does not want it any more.
        """
        environment = dict(os.environ)
        cpus = os.sched_getaffinity(0)
        further = fds[_FDS_MOST:]
        crew = sys.modules.get("shoal._crew")
        request = marshal.dumps(
            (
                function,
                payload,
                list(map(str, sys.path)),
                list(map(str, sys.argv)),
                _directory(),
                environment if environment != self._environment else None,
                cpus if cpus != self._cpus else None,
                len(further),
                crew is not None and crew.is_starting(),
            )
        )
        if not further:
            return self._engine.start(request, fds, outlives, _is_start_wanted)
        from shoal import _descriptors

        with _descriptors.queue(further) as channel:
            return self._engine.start(request, [*fds[:_FDS_MOST], channel.fileno()], outlives, _is_start_wanted)

    def has_processes(self) -> bool:
        """Whether something that it forked is still there, as far as can be told."""
        try:
            fd = os.open(f"/proc/{self.pid}/task/{self.pid}/children", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return True
        try:
            return bool(os.read(fd, 1))
        finally:
            os.close(fd)

    def is_stopped(self) -> bool:
        """Whether a signal or a debugger has stopped it."""
        return self._engine.is_stopped()

    def close(self) -> None:
        """End the zygote and everything it forked."""
        self._engine.close()
        try:
            if os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                os.kill(self.pid, _SIGCONT)  # one that is stopped would not see that it is to end
                os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass


def start_error(what: str, number: int) -> OSError:
    """What to raise when something cannot be started: which else nobody could tell from "temporarily unavailable"."""
    return OSError(number, f"cannot start {what}: {os.strerror(number)}{_HINTS.get(number, '')}")


def command_line(
    path: list[str],
    asker: int,
    modules: Sequence[str],
    main: str | None,
    derived: Sequence[tuple[str | None, str]],
    attempts: int = 0,
) -> list[str]:
    """What runs as a zygote, with its socket as descriptor 0. attempts: how often it has begun anew."""
    program = (
        f"import sys; sys.path[:] = {path!r}; from shoal import _zygote_process; "
        f"_zygote_process.serve({asker}, {list(modules)!r}, {main!r}, {list(derived)!r}, {attempts})"
    )
    return [sys.executable, *_interpreter_flags(), "-c", program]


def _standing() -> _Standing:
    """What a zygote's processes inherit from it as it was when it started. 30 to 45 µs, half of it for the umask."""
    return (
        os.getuid(),
        os.geteuid(),
        os.getgid(),
        os.getegid(),
        tuple(os.getgroups()),
        os.getpriority(os.PRIO_PROCESS, 0),
        _umask(),
        _engine.resource_limits(),
    )


def _umask() -> bytes:
    # os.umask() would have to change it, for all threads.
    try:
        fd = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 256).partition(b"\nUmask:")[2].partition(b"\n")[0]  # the second line
    finally:
        os.close(fd)


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
    """A zygote of one warmth, that is made again when it turns out to have died."""

    def __init__(self, warmth: str, make: Callable[[], Zygote]) -> None:
        self._warmth = warmth
        self._make = make

    def start(self, function: str, payload: bytes, fds: Sequence[int], *, outlives: bool = False) -> _engine.Process:
        """As Zygote.start."""
        zygote = self.current()
        try:
            return zygote.start(function, payload, fds, outlives=outlives)
        except BrokenPipeError:  # so it never runs: to ask again is safe
            self._remove(zygote)
        except TimeoutError:  # nor does it here
            if not zygote.is_stopped():
                raise
            self._leave(zygote)
        return self.current().start(function, payload, fds, outlives=outlives)

    def current(self) -> Zygote:
        """The zygote itself, made if need be."""
        standing = _standing()
        ended: list[Zygote] = []
        try:
            with _lock:
                zygote = _zygotes.get(self._warmth)
                if zygote is not None and zygote.owner == os.getpid():
                    if zygote.standing == standing:
                        return zygote
                    _aside[self._warmth, zygote.standing] = _zygotes.pop(self._warmth)
                    ended = _take_useless()
                zygote = _aside.pop((self._warmth, standing), None) or self._make()
                other = _zygotes.get(self._warmth)
                if other is not None:  # of what this thread was interrupted by; processes may rest on it
                    _aside[self._warmth, (other.pid,)] = other
                _zygotes[self._warmth] = zygote
                return zygote
        finally:
            for old in ended:
                old.close()

    def _remove(self, zygote: Zygote) -> None:
        """Forget a zygote that is gone, and none that another thread has made since."""
        with _lock:
            if _zygotes.get(self._warmth) is zygote:
                del _zygotes[self._warmth]
            elif _aside.get((self._warmth, zygote.standing)) is zygote:
                del _aside[self._warmth, zygote.standing]
            else:
                return
        zygote.close()

    def _leave(self, zygote: Zygote) -> None:
        """Use another zygote from now on. What this one forked lives on, and so does it as long."""
        with _lock:
            if _zygotes.get(self._warmth) is zygote:
                del _zygotes[self._warmth]
                _aside[self._warmth, (zygote.pid,)] = zygote  # a standing that nobody ever has


def _take_useless() -> list[Zygote]:
    """Of the zygotes set aside those that are too many, the oldest first, and have no processes. Locked."""
    idle = [key for key, zygote in _aside.items() if not zygote.has_processes()]
    return [_aside.pop(key) for key in idle[: max(0, len(idle) - _ASIDE_MOST)]]


def _drop() -> None:
    """End all zygotes."""
    with _lock:
        dropped = [*_zygotes.values(), *_aside.values()]
        _zygotes.clear()
        _aside.clear()
    for zygote in dropped:
        if zygote.owner == os.getpid():
            zygote.close()


def _after_fork() -> None:
    # The zygotes are the parent's; their sockets must not be kept open by a child that lives longer.
    global _lock
    _lock = _engine.WantedLock(_is_start_wanted)
    _zygotes.clear()
    _aside.clear()


os.register_at_fork(after_in_child=_after_fork)


def get(warmth: str = "", make: Callable[[], Zygote] = Zygote) -> _Restarting:
    """What starts clean processes for this process. make: how the zygote of this warmth is made, where there is
    none."""
    return _Restarting(warmth, make)
