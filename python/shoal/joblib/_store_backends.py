"""Where `Memory` keeps results: Shoal's own store, and stores of others that speak joblib's interface.

`Location` is Shoal's store in a folder of this process; every `Memory` and cached function there shares it. Another
kind of store (a database, an object store) is a sub-class of `StoreBackendBase`, usually with `StoreBackendMixin`, that
`register_store_backend` gives a name.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import numbers
import os
import re
import urllib.parse
import uuid
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from shoal import _engine

_METHODS = {"zstd": _engine.COMPRESS_ZSTD, "lz4": _engine.COMPRESS_LZ4}
_MOST = 2**64 - 1
_MOST_AGE = 2**63 - 1  # nanoseconds, 292 years
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?)\s*([KMGT]?)B?\s*", re.IGNORECASE)


class CacheWarning(Warning):
    """A result could not be kept, or what was kept could not be used; the call itself is not affected."""


class CacheItemInfo(NamedTuple):
    """One entry: where it lies, its bytes, and when it was last used."""

    path: str
    size: int
    last_access: datetime.datetime


def _whole(number: float) -> int:
    """The whole number up to it, or the most that the engine counts to."""
    return _MOST if number >= _MOST else int(number)


def parse_size(size: float | str | None) -> int | None:
    """Bytes, from a number or a text such as "500K", "10M", "2G". ValueError for anything else."""
    if size is None:
        return None
    if isinstance(size, numbers.Real) and not math.isnan(size):
        return _whole(size)
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is None:
        raise ValueError(f"a size is a number of bytes, or a text such as '500K', '10M' or '2G', not {size!r}")
    return _whole(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def parse_compress(compress: Any) -> tuple[int, int]:
    """The engine's method and level for `compress`: False, True, a level, a method's name, or (name, level).

    Other names that `dump` knows (zlib, gzip …) stand for zstd at a like level. ValueError for any other.
    """
    name, level = compress if isinstance(compress, (tuple, list)) and len(compress) == 2 else ("zstd", compress)
    if isinstance(level, str):
        name, level = level, True
    if str(name) not in _METHODS:
        from shoal.joblib.compressor import COMPRESSORS  # which most programs with a Memory never need

        if str(name) not in COMPRESSORS:
            raise ValueError(f"compress is one of {', '.join(COMPRESSORS)}, True, False, or a level, not {name!r}")
    if level is True:
        level = 0
    elif not level:
        return 0, 0
    return _METHODS.get(str(name), _engine.COMPRESS_ZSTD), int(level)


class Options(NamedTuple):
    """How a store is opened: part of what tells two locations from each other."""

    flags: int = 0
    compression: int = 0
    level: int = 0
    bytes_limit: int = 0


class Location:
    """The store of one folder in this process, opened when it is first needed."""

    _all: dict[tuple[str, Options], Location] = {}

    def __init__(self, path: str, options: Options) -> None:
        self.path = path
        self.options = options
        self._store: _engine.Store | None = None
        self._warned = False

    @classmethod
    def at(cls, path: str, options: Options | tuple[int, ...] = Options()) -> Location:  # noqa: B008
        key = (os.path.abspath(os.path.expanduser(path)), Options(*options))
        location = cls._all.get(key)
        if location is None:
            location = cls._all.setdefault(key, cls(*key))
        return location

    @property
    def location(self) -> str:
        """The folder, under joblib's name for it."""
        return self.path

    def store(self) -> _engine.Store | None:
        """The store, or None where the folder cannot be made (after one warning).

        Raises PermissionError where others could write to it.
        """
        if self._store is None:
            try:
                store = _engine.Store(self.path, *self.options)
            except PermissionError as error:
                if error.errno == 1:  # EPERM: not ours, as against EACCES: may not
                    raise
                self.warn(error)
                return None
            except OSError as error:
                self.warn(error)
                return None
            self._ignore_in_git()
            self._store = store
        return self._store

    def _ignore_in_git(self) -> None:
        """Have git pass over the store. The file appears whole: one that a killed process left empty would stay so."""
        place = os.path.join(self.path, ".gitignore")
        if os.path.lexists(place):
            return
        try:
            try:
                flags, named = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, False
                fd = os.open(self.path, flags, 0o600)
            except OSError:  # a file system without unnamed files
                flags, named = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, True
                fd = os.open(place, flags, 0o600)
            with open(fd, "w") as file:
                os.fchmod(fd, 0o600)  # the umask may have taken bits
                file.write("# Created by shoal.\n*\n")
                file.flush()
                if not named:  # with a folder's descriptor, else the link itself is linked
                    os.link(f"/proc/self/fd/{fd}", place, src_dir_fd=fd, follow_symlinks=True)
        except OSError:
            pass

    def warn(self, error: BaseException) -> None:
        """Say, once, that nothing can be kept here."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"Results cannot be kept in {self.path}: {error}. They are computed again each time.",
                CacheWarning,
                stacklevel=2,
            )

    def get_items(self) -> list[CacheItemInfo]:
        """All entries."""
        store = self.store()
        return [
            CacheItemInfo(os.path.join(self.path, folder, key.hex()), size, datetime.datetime.fromtimestamp(used / 1e9))
            for folder, key, size, _, _, _, _, used in (store.entries() if store is not None else ())
        ]

    def clear_path(self, call_id: tuple[str, ...]) -> None:
        """Remove all results of a function."""
        if (store := self.store()) is not None:
            store.clear(call_id[0])

    def clear(self) -> None:
        """Remove all results."""
        if (store := self.store()) is not None:
            store.clear()

    def enforce_store_limits(
        self,
        bytes_limit: float | str | None,
        items_limit: float | None = None,
        age_limit: datetime.timedelta | None = None,
    ) -> None:
        """Remove what was used longest ago until all limits hold."""
        age = 0 if age_limit is None else min(int(age_limit.total_seconds() * 1e9), _MOST_AGE)
        if age < 0:
            raise ValueError("age_limit has to be a positive timedelta")
        store = self.store()
        if store is not None and not (bytes_limit is None and items_limit is None and age_limit is None):
            size = parse_size(bytes_limit)
            size = None if size is None else max(size, 0)
            count = None if items_limit is None else max(_whole(items_limit), 0)
            store.reduce(size, count, max(age, 1) if age_limit is not None else 0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(location={self.path!r})"


def function_of(folder: str) -> str:
    """A function's name from that of its folder on disk; too long a name comes out as it is, cut short."""
    return urllib.parse.unquote(folder, errors="replace")


# ------------------------------------------------------------------- stores of others


class StoreBackendBase(ABC):
    """What a store of another kind must have; the rest can come from StoreBackendMixin."""

    location: Any = None

    @abstractmethod
    def _open_item(self, f: Any, mode: str) -> Any:
        """A file object for the item called `f`; mode "rb" or "wb"."""

    @abstractmethod
    def _item_exists(self, location: str) -> bool:
        """Whether there is an item or a location of that name."""

    @abstractmethod
    def _move_item(self, src: str, dst: str) -> None:
        """Give an item another name, at which it appears whole."""

    @abstractmethod
    def create_location(self, location: str) -> None:
        """Make a place for items."""

    @abstractmethod
    def clear_location(self, location: str) -> None:
        """Remove a place with all that is in it."""

    @abstractmethod
    def get_items(self) -> list[Any]:
        """What is there: objects with `path`, `size` and `last_access`."""

    @abstractmethod
    def configure(self, location: str, verbose: int = 0, backend_options: dict[str, Any] | None = None) -> None:
        """Set the store up; called once before anything else."""


class StoreBackendMixin:
    """Results, and what is known of them, as items of a store: `LOCATION/FUNCTION/KEY/output.pkl` and so on."""

    location: Any
    compress: Any = False
    mmap_mode: str | None = None
    verbose: int = 0

    def _path(self, call_id: Any, *names: str) -> str:
        return os.path.join(self.location, *call_id, *names)

    def load_item(self, call_id: Any, verbose: int = 1, timestamp: Any = None, metadata: Any = None) -> Any:
        """A result; KeyError where there is none."""
        from shoal.joblib import numpy_pickle

        path = self._path(call_id, "output.pkl")
        if verbose > 1:
            print(f"[Memory]: Loading {os.path.basename(call_id[0])}...")
        if not self._item_exists(path):  # type: ignore[attr-defined]
            raise KeyError(f"Non-existing item (may have been cleared).\nFile {path} does not exist")
        if self.mmap_mode is not None:
            return numpy_pickle.load(path, mmap_mode=self.mmap_mode)
        with self._open_item(path, "rb") as file:  # type: ignore[attr-defined]
            return numpy_pickle.load(file)

    def dump_item(self, call_id: Any, item: Any, verbose: int = 1) -> None:
        """Keep a result; where that fails, warn."""
        from shoal.joblib import numpy_pickle

        def write(file: Any) -> None:
            numpy_pickle.dump(item, file, compress=self.compress)

        try:
            self._write(call_id, "output.pkl", write)
        except Exception as error:
            warnings.warn(f"Unable to cache to disk. Exception: {error}.", CacheWarning, stacklevel=2)

    def _write(self, call_id: Any, name: str, write: Callable[[Any], None]) -> None:
        self.create_location(self._path(call_id))  # type: ignore[attr-defined]
        path = self._path(call_id, name)
        temporary = f"{path}.{uuid.uuid4().hex}"
        with self._open_item(temporary, "wb") as file:  # type: ignore[attr-defined]
            write(file)
        self._move_item(temporary, path)  # type: ignore[attr-defined]

    def contains_item(self, call_id: Any) -> bool:
        """Whether there is such a result."""
        return bool(self._item_exists(self._path(call_id, "output.pkl")))  # type: ignore[attr-defined]

    def clear_item(self, call_id: Any) -> None:
        """Remove one result."""
        self.clear_path(call_id)

    def clear_path(self, call_id: Any) -> None:
        """Remove all results under a name."""
        path = self._path(call_id)
        if self._item_exists(path):  # type: ignore[attr-defined]
            self.clear_location(path)  # type: ignore[attr-defined]

    def clear(self) -> None:
        """Remove all results."""
        self.clear_location(self.location)  # type: ignore[attr-defined]

    def get_metadata(self, call_id: Any) -> dict[str, Any]:
        """What is known of a result; nothing where it cannot be read."""
        try:
            with self._open_item(self._path(call_id, "metadata.json"), "rb") as file:  # type: ignore[attr-defined]
                return dict(json.loads(file.read()))
        except Exception:
            return {}

    def store_metadata(self, call_id: Any, metadata: dict[str, Any]) -> None:
        """Keep what is known of a result, if that can be."""
        with contextlib.suppress(Exception):
            self._write(call_id, "metadata.json", lambda file: file.write(json.dumps(metadata).encode()))

    def enforce_store_limits(self, bytes_limit: Any, items_limit: Any = None, age_limit: Any = None) -> None:
        """Remove what was used longest ago until all limits hold."""
        if age_limit is not None and age_limit.total_seconds() < 0:
            raise ValueError("age_limit has to be a positive timedelta")
        items = sorted(self.get_items(), key=lambda item: item.last_access)  # type: ignore[attr-defined]
        most_bytes, size, count = parse_size(bytes_limit), sum(item.size for item in items), len(items)
        deadline = None if age_limit is None else datetime.datetime.now() - age_limit
        for item in items:
            if (
                (most_bytes is None or size <= most_bytes)
                and (items_limit is None or count <= items_limit)
                and (deadline is None or item.last_access > deadline)
            ):
                return
            with contextlib.suppress(OSError):
                self.clear_location(item.path)  # type: ignore[attr-defined]
            size -= item.size
            count -= 1

    def __repr__(self) -> str:
        return f'{type(self).__name__}(location="{self.location}")'


STORE_BACKENDS: dict[str, Any] = {}  # all but "local"


def register_store_backend(backend_name: str, backend: Any) -> None:
    """Give a kind of store a name for `Memory(…, backend=…)`.

    backend: a sub-class of StoreBackendBase (Shoal's, or joblib's own). ValueError for anything else.
    """
    if not isinstance(backend_name, str):
        raise ValueError(f"Store backend name should be a string, {backend_name!r} given.")
    names = [kind.__name__ for kind in getattr(backend, "__mro__", ())]
    if "StoreBackendBase" not in names:
        raise ValueError(f"Store backend should inherit StoreBackendBase, {backend!r} given.")
    STORE_BACKENDS[backend_name] = backend


def make_backend(name: str, location: Any, verbose: int, options: dict[str, Any]) -> Any:
    """A registered store at a location, set up. TypeError for a name that nobody registered."""
    kind = STORE_BACKENDS.get(name)
    if kind is None:
        raise TypeError(f"Unknown location {location} or backend {name}")
    backend = kind()
    backend.configure(location, verbose=verbose, backend_options=options)
    return backend
