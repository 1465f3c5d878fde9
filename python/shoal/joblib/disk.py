"""`joblib.disk`: sizes and folders."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

from shoal.joblib._backends import parse_size as memstr_to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["delete_folder", "disk_used", "memstr_to_bytes", "mkdirp", "rm_subdirs"]

_TRIES = 10  # others may write into a folder while it is deleted


def disk_used(path: str) -> int:
    """KiB that a folder and the files in it take on the disk; what lies in folders of it does not count."""
    return sum(os.stat(os.path.join(path, name)).st_blocks * 512 for name in [*os.listdir(path), "."]) // 1024


def mkdirp(d: str) -> None:
    """Make a folder, and those that it lies in, where they are not there yet."""
    os.makedirs(d, exist_ok=True)


def rm_subdirs(path: str, onerror: Callable[..., Any] | None = None) -> None:
    """Delete the folders that lie in a folder. onerror: called as `shutil.rmtree`'s, instead of raising."""
    try:
        names = os.listdir(path)
    except OSError:
        if onerror is None:
            raise
        onerror(os.listdir, path, sys.exc_info())
        return
    for name in names:
        delete_folder(os.path.join(path, name), onerror=onerror)


def delete_folder(folder_path: str, onerror: Callable[..., Any] | None = None, allow_non_empty: bool = True) -> None:
    """Delete a folder if it is there. allow_non_empty: False: OSError if there is something in it."""
    if not os.path.isdir(folder_path):
        return
    if onerror is not None:
        shutil.rmtree(folder_path, onerror=onerror)
        return
    found = os.listdir(folder_path)
    if found and not allow_non_empty:
        raise OSError(f"Expected empty folder {folder_path} but got {len(found)} files.")
    for left in reversed(range(_TRIES)):
        try:
            shutil.rmtree(folder_path)
            return
        except OSError:
            if not left:
                raise
