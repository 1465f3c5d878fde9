"""What the tests of pools have called."""

from __future__ import annotations


def square(x: int) -> int:
    return x * x


def fail_on(x: int) -> int:
    if x in (7, 3):
        raise ValueError(f"item {x}")
    return x
