"""`multiprocessing.synchronize` on Shoal's engine: the same classes and behaviour, in shared memory, without named
semaphores and without files.

New is what happens when a process dies with a lock:

- `Lock`, `RLock`: `acquire` raises `shoal.OwnerDied`, in each process, until somebody calls `reset()` (or `release()`,
  of a Lock). With `robust=True` the next who acquires gets it, and sees in `lock.inherited` that what the lock protects
  may be half done.
- `Semaphore`: units have no owners, as one process may take what another gives. With `owned=True` they have: when all
  units are held, and some by the dead, `acquire` raises `shoal.OwnerDied`; with `robust=True` it takes one over.
- `Condition`: `wait` raises `shoal.OwnerDied` if the process that held the lock meanwhile died; over a robust lock it
  returns True, with `lock.inherited`. What a waiter that died was told is told to another.
- `Barrier`: the death of a party that waits breaks it; the error is both `shoal.OwnerDied` and `BrokenBarrierError`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from multiprocessing import context, util
from multiprocessing import synchronize as _standard
from typing import Any

from shoal import _engine, errors
from shoal.multiprocessing import _insides

__all__ = ["BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore"]

RECURSIVE_MUTEX: int = _standard.RECURSIVE_MUTEX  # type: ignore[attr-defined]
SEMAPHORE: int = _standard.SEMAPHORE  # type: ignore[attr-defined]
SEM_VALUE_MAX: int = _standard.SEM_VALUE_MAX  # type: ignore[attr-defined]
SemLock = _standard.SemLock


class _PartyDied(errors.OwnerDied, threading.BrokenBarrierError):
    """A process died that waited at the barrier. Also what programs expect of a broken one."""


def _owner_died(pid: int, what: str) -> errors.OwnerDied:
    return (_PartyDied if what == "barrier" else errors.OwnerDied)(pid, what)


_engine.configure_sync(_owner_died, threading.BrokenBarrierError)


# Locks, semaphores and events lie in groups: a descriptor for each would end a program that has a thousand of them.
_group = None  # where the next is made
_arrived: dict[int, _engine.SyncGroup] = {}  # those that this process was given at its start


def _make(make_in: Callable[[Any], None]) -> None:
    """Make an object in the group that has room, a new one if need be."""
    global _group
    try:
        if _group is not None:
            return make_in(_group)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    _group = _engine.SyncGroup()
    return make_in(_group)


def _to_child(handle: Any) -> tuple[Any, ...]:
    """Where a process that is being started finds what a handle stands for; nobody else may have it. (descriptor,
    number of its group, place in it); a group's descriptor goes along once a process, and is None from then on."""
    context.assert_spawning(handle)
    from multiprocessing.reduction import DupFd

    fd, group, place = handle._home()
    if group is None:
        return DupFd(fd), 0, 0
    sent = context.get_spawning_popen().__dict__.setdefault("_shoal_groups", set())
    number = group.number
    if number in sent:
        return None, number, place
    sent.add(number)
    return DupFd(fd), number, place


@contextlib.contextmanager
def _from_parent(origin: tuple[Any, ...]) -> Iterator[tuple[int, Any, int]]:
    """(descriptor, group or None, place), for `_attach`; each handle keeps a duplicate of the descriptor."""
    duplicate, number, place = origin
    fd = -1 if duplicate is None else duplicate.detach()
    try:
        group = _arrived.get(number)
        if place and group is None:
            group = _arrived[number] = _engine.SyncGroup(fd)
        yield fd, group, place
    finally:
        if fd >= 0:
            os.close(fd)


class Lock(_engine.Lock, _standard.Lock, metaclass=_insides.KeepingType):  # type: ignore[misc]
    """A lock between processes; the interface of `multiprocessing.Lock`. Anybody may release it.

    robust: when its owner dies the lock goes to the next who acquires it, who sees `inherited`; else `acquire` raises
        `shoal.OwnerDied`.
    """

    SEM_VALUE_MAX = SEM_VALUE_MAX
    _recursive = False

    def __init__(self, *, robust: bool = False, ctx: Any) -> None:
        _make(lambda group: self._open(self._recursive, robust, group))

    def __getstate__(self) -> tuple[Any, ...]:
        return _to_child(self)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        with _from_parent(state) as origin:
            self._attach(self._recursive, *origin)


class RLock(_engine.Lock, _standard.RLock, metaclass=_insides.KeepingType):  # type: ignore[misc]
    """A lock that its owner may acquire again; the interface of `multiprocessing.RLock`. The thread that holds it
    releases it, as often as it acquired it.

    robust: as of `Lock`.
    """

    SEM_VALUE_MAX = SEM_VALUE_MAX
    _recursive = True

    __init__ = Lock.__init__
    __getstate__ = Lock.__getstate__
    __setstate__ = Lock.__setstate__


class Semaphore(_engine.Semaphore, _standard.Semaphore, metaclass=_insides.KeepingType):  # type: ignore[misc]
    """A semaphore between processes; the interface of `multiprocessing.Semaphore`.

    owned: each unit belongs to the process that acquired it, which alone releases it; `value` (1 to 256) is all there
        are. When all are held, and some by processes that died, `acquire` raises `shoal.OwnerDied`.
    robust: owned, and the units of the dead go to the next who acquire, who see `inherited`.
    """

    SEM_VALUE_MAX = SEM_VALUE_MAX

    def __init__(self, value: int = 1, *, owned: bool = False, robust: bool = False, ctx: Any) -> None:
        self._make(value, SEM_VALUE_MAX, owned, robust)

    def _make(self, value: int, maximum: int, owned: bool, robust: bool) -> None:
        if owned or robust:
            self._open(value, maximum, True, robust)
        else:
            _make(lambda group: self._open(value, maximum, False, False, group))
        util.register_after_fork(self, type(self)._after_fork)

    def get_value(self) -> int:
        """How many units are free now."""
        return self._get_value()

    def __getstate__(self) -> tuple[Any, ...]:
        return self._owned, *_to_child(self)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        with _from_parent(state[1:]) as origin:
            self._attach(state[0], *origin)
        util.register_after_fork(self, type(self)._after_fork)


class BoundedSemaphore(Semaphore, _standard.BoundedSemaphore):  # type: ignore[misc]
    """A semaphore that never has more than `value` units: `release` raises ValueError then."""

    def __init__(self, value: int = 1, *, owned: bool = False, robust: bool = False, ctx: Any) -> None:
        self._make(value, value, owned, robust)

    __repr__ = _standard.BoundedSemaphore.__repr__


_standard_condition = _standard.Condition


class Condition(_engine.Condition, _standard.Condition, metaclass=_insides.KeepingType):  # type: ignore[misc]
    """Waiting for what another process announces; the interface of `multiprocessing.Condition`.

    lock: a `Lock` or `RLock`; an RLock of its own by default. Over anything else that has the inside of one of
        multiprocessing's locks, what is made is multiprocessing's own Condition.
    """

    def __new__(cls, lock: Any = None, *, ctx: Any = None) -> Any:
        if cls is Condition and lock is not None and not isinstance(lock, _engine.Lock):
            # Not by a call of the class: under `install()` that comes here.
            condition = object.__new__(_standard_condition)
            condition.__init__(lock, ctx=ctx)  # type: ignore[misc]
            return condition
        return super().__new__(cls)

    def __init__(self, lock: Any = None, *, ctx: Any) -> None:
        self._open(lock or ctx.RLock())

    def __getstate__(self) -> tuple[Any, ...]:
        return self._lock, *_to_child(self)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        with _from_parent(state[1:]) as (fd, _, _):
            self._open(state[0], fd)

    # What the standard library's own methods ask for.
    _sleeping_count = _insides.View(lambda condition: _insides.Number(condition._waiting()))
    _woken_count = _wait_semaphore = _insides.View(lambda condition: _insides.Number(0))


class Event(_engine.Event, _standard.Event, metaclass=_insides.KeepingType):  # type: ignore[misc]
    """A flag between processes that can be waited for; the interface of `multiprocessing.Event`."""

    def __init__(self, *, ctx: Any) -> None:
        _make(self._open)

    def __getstate__(self) -> tuple[Any, ...]:
        return _to_child(self)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        with _from_parent(state) as origin:
            self._attach(*origin)

    _flag = _insides.View(lambda event: _insides.Number(int(event.is_set()), "use set(), clear() and is_set()"))
    _cond = _insides.Absent(
        "use set(), clear() and wait(), each of which is one step; for more than one under a lock, a Condition"
    )


class Barrier(_engine.Barrier, _standard.Barrier, metaclass=_insides.KeepingType):  # type: ignore[misc]
    """A number of parties that wait for each other; the interface of `multiprocessing.Barrier`.

    parties: how many (1 to 4096).
    action: called once a round, in one of the parties, before they go on.
    timeout: seconds that `wait` waits unless it is told otherwise; running out breaks the barrier.
    """

    def __init__(
        self, parties: int, action: Callable[[], object] | None = None, timeout: float | None = None, *, ctx: Any
    ) -> None:
        self._open(parties)
        self._action = action
        self._timeout = timeout

    def wait(self, timeout: float | None = None) -> int:
        """Wait until all parties have come; the number of this one, from 0, another for each.

        Raises `threading.BrokenBarrierError` if they do not come in time or the barrier is broken or reset meanwhile,
        and what `action` raised. An exception of a signal's handler breaks the barrier.
        """
        return self._wait(self._timeout if timeout is None else timeout, self._action)

    def __getstate__(self) -> tuple[Any, ...]:
        return self._action, self._timeout, *_to_child(self)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._action, self._timeout, *origin = state
        with _from_parent(tuple(origin)) as (fd, _, _):
            self._open(1, fd)

    _parties = _insides.View(lambda barrier: barrier.parties)
    _count = _insides.View(lambda barrier: barrier.n_waiting)
    _state = _insides.View(lambda barrier: -2 if barrier.broken else 0)
    _cond = _insides.Absent("use wait(), reset() and abort(); a process that waits at it may be killed at any time")


_insides.KeepingType.replaced.update(
    (ours, getattr(_standard, ours.__name__))
    for ours in (Lock, RLock, Semaphore, BoundedSemaphore, Condition, Event, Barrier)
)
