"""Calls of `Parallel`: the first, the next, small tasks, large arrays, nested, and in programs."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import measuring
import numpy as np
from measuring import best_of, joblib_of, now, scaled


def f(x: int) -> int:
    return x * x


def parallel_first_result(name: str) -> float:
    module = joblib_of(name)
    parallel, delayed = module.Parallel, module.delayed
    started = now()
    assert parallel(n_jobs=2)(delayed(f)(i) for i in range(10)) == [i * i for i in range(10)]
    return (now() - started) * 1e3


def parallel_next_call(name: str) -> float:
    parallel_first_result(name)
    return min(parallel_first_result(name) for _ in range(10))


def parallel_trivial_tasks(name: str) -> float:
    module = joblib_of(name)
    parallel_first_result(name)
    count = scaled(100_000)

    def measure() -> float:
        started = now()
        module.Parallel(n_jobs=2)(module.delayed(f)(i) for i in range(count))
        return (now() - started) / count * 1e6

    return best_of(measure)


def parallel_single_tasks(name: str) -> float:
    """Microseconds a task, each handed out alone."""
    module = joblib_of(name)
    parallel_first_result(name)
    count = scaled(5_000 if name == "joblib" else 50_000)

    def measure() -> float:
        started = now()
        module.Parallel(n_jobs=2, batch_size=1)(module.delayed(f)(i) for i in range(count))
        return (now() - started) / count * 1e6

    return best_of(measure)


def first_of(array: Any) -> float:
    return float(array[0])


def first_of_slowly(array: Any) -> float:
    time.sleep(0.05)
    return first_of(array)


def parallel_large(name: str, again: bool) -> float:
    """Milliseconds for a call of ten tasks that all have one array of 800 MB (times the scale).

    Each worker has had a small array before: joblib's import NumPy as they start, Shoal's when they need it, and it is
    the array's way that is measured.
    """
    module = joblib_of(name)
    module.Parallel(n_jobs=2)(module.delayed(first_of_slowly)(np.ones(3)) for _ in range(4))
    array = np.ones(scaled(100_000_000))

    def call() -> float:
        started = now()
        module.Parallel(n_jobs=2)(module.delayed(first_of)(array) for _ in range(10))
        return (now() - started) * 1e3

    first = call()
    return min(call() for _ in range(3)) if again else first


def parallel_large_first(name: str) -> float:
    return parallel_large(name, False)


def parallel_large_again(name: str) -> float:
    return parallel_large(name, True)


def inner_call(name: str, count: int) -> int:
    module = joblib_of(name)
    return sum(module.Parallel(n_jobs=2)(module.delayed(f)(i) for i in range(count)))


def parallel_nested(name: str) -> float:
    """Milliseconds for ten tasks that each make a call of ten tasks."""
    module = joblib_of(name)
    parallel_first_result(name)

    def measure() -> float:
        started = now()
        module.Parallel(n_jobs=2)(module.delayed(inner_call)(name, 10) for _ in range(10))
        return (now() - started) * 1e3

    measure()
    return best_of(measure)


def parallel_program(name: str) -> float:
    """Milliseconds for a whole program that makes one call."""
    module = "shoal.joblib" if name == "shoal" else "joblib"
    script = (
        f"from {module} import Parallel, delayed\n"
        "def f(x):\n    return x * x\n"
        "Parallel(n_jobs=2)(delayed(f)(i) for i in range(10))\n"
    )
    started = now()
    subprocess.run([sys.executable, "-c", script], check=True)
    return (now() - started) * 1e3


def grid_search(name: str) -> float:
    """Milliseconds for scikit-learn's GridSearchCV on its digits, with 60 short tasks."""
    if name == "shoal":
        import shoal

        shoal.install()
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsClassifier

    data, target = load_digits(return_X_y=True)
    search = GridSearchCV(KNeighborsClassifier(), {"n_neighbors": list(range(1, 13))}, cv=5, n_jobs=2)

    def measure() -> float:
        started = now()
        search.fit(data, target)
        return (now() - started) * 1e3

    measure()
    return best_of(measure)


if __name__ == "__main__":
    measuring.main(globals())
