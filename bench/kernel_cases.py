"""Dot products of large vectors."""

from __future__ import annotations

import measuring
import numpy as np
from measuring import best_of, now, scaled


def dot(name: str, threads: int) -> float:
    count = scaled(100_000_000)
    a, b = np.arange(count, dtype=float), np.arange(count, dtype=float)
    if name == "shoal":
        import shoal

        call = lambda: shoal.dot_product(a, b, threads=threads)  # noqa: E731
    else:
        call = lambda: float(a @ b)  # noqa: E731

    def measure() -> float:
        started = now()
        call()
        return (now() - started) * 1e3

    return best_of(measure, 5)


def dot_1(name: str) -> float:
    return dot(name, 1)


def dot_2(name: str) -> float:
    return dot(name, 2)


if __name__ == "__main__":
    measuring.main(globals())
