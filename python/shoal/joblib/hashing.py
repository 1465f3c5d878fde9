"""`hash(obj)`: a digest of any value that is the same in every process, by what the value is equal to."""

from __future__ import annotations

import hashlib
from typing import Any

from shoal import _engine
from shoal.joblib import func_inspect  # noqa: F401  # tells the engine how functions are described

__all__ = ["hash"]


def hash(obj: Any, hash_name: str = "md5", coerce_mmap: bool = False) -> str:
    """The digest of a value as hexadecimal digits: 32, or 40 for "sha1".

    Values that are equal for joblib's `hash` are equal here: the order of dicts and sets does not count; types, the
    dtype, shape, strides and order of arrays do. The digest itself is another than joblib's (XXH3, 128 bits).

    hash_name: "md5" or "sha1", for compatibility: the digest is as long as theirs, and holds 128 bits in both cases.
    coerce_mmap: a memory-mapped array equals an array in memory.

    Raises what reducing an object for pickling raises (TypeError, PicklingError) for objects that cannot be.
    """
    if hash_name not in ("md5", "sha1"):
        raise ValueError(f"Valid options for 'hash_name' are ('md5', 'sha1'). Got hash_name={hash_name!r} instead.")
    digest = _engine.hash_object(obj, coerce_mmap)
    return digest.hex() if hash_name == "md5" else hashlib.sha1(digest).hexdigest()
