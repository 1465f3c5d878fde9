"""Names and signatures are those of multiprocessing, as far as programs can ask for them."""

from __future__ import annotations

import inspect
import multiprocessing
import multiprocessing.pool
import multiprocessing.queues
import multiprocessing.sharedctypes
import multiprocessing.synchronize
from typing import Any

import pytest
from shoal.multiprocessing import get_context, pool, queues, sharedctypes, synchronize

CLASSES = [
    *((multiprocessing.pool, pool, name) for name in ("Pool", "ApplyResult", "MapResult", "IMapIterator")),
    (multiprocessing.pool, pool, "IMapUnorderedIterator"),
    *((multiprocessing.queues, queues, name) for name in ("Queue", "JoinableQueue", "SimpleQueue")),
    *(
        (multiprocessing.synchronize, synchronize, name)
        for name in ("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event", "Barrier")
    ),
    *((multiprocessing.sharedctypes, sharedctypes, name) for name in ("Synchronized", "SynchronizedArray")),
]
SPECIAL = ("__enter__", "__exit__", "__next__")

Parameters = list[tuple[str, bool, Any]]


def parameters(method: Any) -> Parameters:
    """Name, whether it takes all the rest, default; without Shoal's own, which are all given by keyword, and self."""
    found = inspect.signature(method).parameters.values()
    ours = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    return [
        (each.name, each.kind is inspect.Parameter.VAR_POSITIONAL, each.default)
        for each in found
        if each.kind not in ours and each.name != "self"
    ]


def methods(kind: type) -> dict[str, Parameters]:
    names = [name for name in dir(kind) if (name in SPECIAL or name[0] != "_") and callable(getattr(kind, name))]
    return {name: parameters(getattr(kind, name)) for name in names}


@pytest.mark.parametrize("standard, ours, name", CLASSES, ids=[each[2] for each in CLASSES])
def test_methods_have_the_signatures_of_the_standard_librarys(standard: Any, ours: Any, name: str) -> None:
    theirs, found = methods(getattr(standard, name)), methods(getattr(ours, name))
    assert {method: found.get(method) for method in theirs} == theirs


@pytest.mark.parametrize("name", ["Lock", "RLock", "Semaphore", "Condition", "Event"])
def test_bound_methods_too(name: str) -> None:
    made = getattr(synchronize, name)(ctx=get_context())
    theirs = getattr(multiprocessing, name)()
    for method in ("acquire", "release", "__enter__", "__exit__", "wait", "set"):
        if hasattr(theirs, method):
            assert parameters(getattr(made, method)) == parameters(getattr(theirs, method)), method


@pytest.mark.parametrize("name", ["Lock", "RLock", "Semaphore"])
def test_what_is_inside_a_lock_tells_what_multiprocessings_does(name: str) -> None:
    made = [getattr(synchronize, name)(ctx=get_context()), getattr(multiprocessing, name)()]
    for method in ("acquire", "release") if name == "Lock" else ("acquire", "release", "acquire", "acquire"):
        if name == "Semaphore":
            method = "release" if method == "acquire" else "acquire"
        told = []
        for lock in made:
            getattr(lock, method)()
            inside = lock._semlock
            told.append(
                (inside._is_mine(), inside._count(), inside._get_value(), inside._is_zero(), inside.kind)
                + (inside.maxvalue, inside.name, isinstance(inside.handle, int), repr(lock))
            )
        assert told[0] == told[1]
