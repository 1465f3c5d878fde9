"""Why a cached call would be a hit, or be computed again: by what the entries of the function say of themselves."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shoal.joblib import _value

if TYPE_CHECKING:
    from shoal.joblib.memory import MemorizedFunc

_LOOKED_AT = 2000  # entries of a function that are read to find a reason, the newest first


@dataclass
class Explanation:
    """Whether a call would be a hit, why, and what changed since an equal call was kept, if that is the reason."""

    hit: bool
    reason: str
    changed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return self.reason

    def __bool__(self) -> bool:
        return self.hit


def _changes(old: dict[str, str], parts: dict[str, bytes]) -> list[str]:
    new = {name: parts[name][:4].hex() for name in list(parts)[: _value.PARTS]}
    changes = [f"{name} changed" for name in new if name in old and old[name] != new[name]]
    changes += [f"{name} is new" for name in new if name not in old]
    return changes + [f"{name} is no longer used" for name in old if name not in new]


def explain(memorized: MemorizedFunc, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Explanation:
    """See MemorizedFunc.explain."""
    try:
        key = memorized._key(args, kwargs)
    except Exception:
        if memorized._undecidable() is None:
            raise
    undecidable = memorized._undecidable()
    if undecidable is not None:
        return Explanation(False, f"computed each time: {undecidable}")
    if key is None:
        return Explanation(False, "the arguments do not fit the function: the call raises TypeError")
    if not memorized._is_open:
        return Explanation(False, f"computed: nothing can be kept in {memorized._location.location}")
    about = memorized._about(key)
    if about is not None:
        return _explain_entry(memorized, key)
    found, problem = memorized._look_up(key)
    if not found and problem is not None:
        return Explanation(False, "computed again: its entry is damaged")
    return _explain_miss(memorized, args, kwargs, _kept(memorized)[:_LOOKED_AT])


def _explain_entry(memorized: MemorizedFunc, key: bytes) -> Explanation:
    callback = memorized.cache_validation_callback
    metadata = memorized._metadata(key) or {}
    if callback is not None and not callback(metadata):
        return Explanation(False, "computed again: cache_validation_callback refuses the entry")
    took = metadata.get("duration", 0.0)
    return Explanation(True, f"a hit: the value was kept, and took {took:.3g} s to compute")


def _explain_miss(
    memorized: MemorizedFunc, args: tuple[Any, ...], kwargs: dict[str, Any], kept: list[bytes]
) -> Explanation:
    seen = memorized._parameters
    assert seen is not None
    own = seen.identity
    versions: dict[bytes, bytes] = {}  # identity -> about one of its entries
    same: list[dict[str, str]] = []  # the arguments of entries of this very function
    calls: list[tuple[bytes, bytes]] = []  # identity and about, of all
    for key in kept:
        about = memorized._about(key)
        if about is None:
            continue
        text, _, _, identity = about
        versions.setdefault(identity, text)
        calls.append((identity, text))
        if identity == own:
            same.append(_value.read_call(text, seen))
    if not versions:
        return Explanation(False, "computed: no call of this function was kept")
    for identity, text in versions.items():
        earlier = memorized._key(args, kwargs, identity) if identity != own else None
        if earlier is not None and memorized._about(earlier) is not None:
            changes = _changes(_value.read_parts(text), seen.parts)
            return Explanation(
                False, f"computed again: {', '.join(changes) or 'the function changed'} since it was kept", changes
            )
    mine = _value.describe_call(args, kwargs, {}, seen)
    for identity, text in calls:
        defaults = [f"the default of {name} changed" for name in _value.changed_defaults(text, mine, seen)]
        if defaults:
            changes = _changes(_value.read_parts(text), seen.parts) if identity != own else []
            return Explanation(
                False, f"computed again: {', '.join(defaults + changes)} since it was kept", defaults + changes
            )
    if not same:
        return Explanation(
            False, "computed: only calls of other versions of the function, with other arguments, were kept"
        )
    given = _value.read_call(mine, seen)
    nearest = min(same, key=lambda other: sum(given.get(name) != other.get(name) for name in given | other))
    different = [name for name in given | nearest if given.get(name) != nearest.get(name)]
    where = ", ".join(f"{name} was {nearest.get(name, 'not given')}" for name in different)
    where = where or "they looked the same: their contents, or the code of their classes or functions, differ"
    return Explanation(
        False, "computed: no call with these arguments was kept" + (f"; in the nearest {where}" if where else "")
    )


def _kept(memorized: MemorizedFunc) -> list[bytes]:
    """The keys of a function's entries, the newest first, also of damaged ones."""
    store, folder = memorized._location.store(), os.path.basename(memorized._path())
    found = [(entry[3], entry[1]) for entry in store.entries() if entry[0] == folder] if store is not None else []
    return [key for _, key in sorted(found, reverse=True)]
