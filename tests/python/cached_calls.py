"""Functions for a Memory to keep the results of, and what was called of them: a hit calls nothing."""

from __future__ import annotations

import numpy as np

CALLS: list[object] = []


def add(x, y=1, *args, z=0, **kwargs):
    CALLS.append((x, y))
    return x + y + sum(args) + z + sum(kwargs.values())


def make_array(n):
    CALLS.append(n)
    return np.arange(n, dtype=float)
