"""Parallel work three ways: a pool, processes with a queue, Parallel with a disk cache.

Runs on the standard library and joblib as it is, and on Shoal by `python -m shoal examples/notebook/notebook.py`.
Options: --length N (elements of each vector; 100000000), --times FILE (write each cell's seconds there, as JSON).
"""

# %% [markdown]
# What every cell uses: the time it takes, and how long the vectors are.

# %%
import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager

LENGTH = int(os.environ.get("NOTEBOOK_LENGTH", 100_000_000))
TIMES = {}


@contextmanager
def cell(name):
    """Print a cell's name and, after it, its time."""
    print(f"\n[{name}]", flush=True)
    started = time.perf_counter()
    yield
    TIMES[name] = time.perf_counter() - started
    print(f"    {TIMES[name]:.4f} s", flush=True)


# %% [markdown]
# ## A pool

# %%
import multiprocessing as mp


def f(x):
    return x * x


def pool_cell():
    with cell("pool map"):
        with mp.Pool(mp.cpu_count()) as pool:
            print(pool.map(f, [1, 2, 3, 4]))
        print("cpus:", mp.cpu_count())


# %% [markdown]
# ## Processes that share a queue

# %%
from multiprocessing import Process, Queue


class Worker(Process):
    def __init__(self, queue, idx, data):
        super().__init__()
        self.queue = queue
        self.idx = idx
        self.data = data

    def square(self):
        self.data = map(lambda x: x * x, self.data)
        return "Process idx=%s is called '%s'" % (self.idx, self.name)

    def run(self):
        self.queue.put(self.square())


def worker_cell():
    with cell("five workers and a queue"):
        queue = Queue()
        workers = [Worker(queue, idx, [1, 2, 3]) for idx in range(5)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        for _ in workers:
            print("RESULT:", queue.get())


# %% [markdown]
# ## Dot products: one after the other, in parallel, and from the disk

# %%
import numpy as np
from cython_dot2 import dot_product
from joblib import Memory, Parallel, delayed


def getProduct():
    return dot_product(np.arange(LENGTH, dtype=float), np.arange(LENGTH, dtype=float))


def serial_products():
    return [getProduct() for i in range(10)]


def parallel_products():
    return Parallel(n_jobs=2)(delayed(getProduct)() for i in range(10))


def product_cells():
    cache = tempfile.mkdtemp(prefix="notebook-")
    try:
        memory = Memory(cache, verbose=0)
        with cell("ten products, serially"):
            serial = serial_products()
            print(serial[0])
        with cell("ten products, Parallel(n_jobs=2)"):
            parallel = parallel_products()
            print(parallel[0], "the same:", parallel == serial)
        for name, function in (("serially", serial_products), ("Parallel(n_jobs=2)", parallel_products)):
            cached = memory.cache(function)
            with cell(f"{name}, Memory, first call"):
                first = cached()
                print(first[0])
            with cell(f"{name}, Memory, second call"):
                print(cached()[0], "the same:", cached() == first)
    finally:
        shutil.rmtree(cache)


# %% [markdown]
# ## Run all


# %%
def length_that_fits(length):
    """The serial cell holds two vectors, the parallel one four: take no more than memory has room for."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with open("/proc/meminfo") as info:
        for line in info:
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    fits = int(available * 0.8 / (4 * 8))
    if length > fits:
        print(f"memory is short: vectors of {fits} elements instead of {length}")
        return fits
    return length


def main(arguments=None):
    global LENGTH
    parser = argparse.ArgumentParser(description="The notebook's cells, each with its time.")
    parser.add_argument("--length", type=int, default=LENGTH, help="elements of each vector (default: %(default)s)")
    parser.add_argument("--times", help="write each cell's seconds to this file, as JSON")
    options = parser.parse_args(arguments)
    if options.length < 1:
        parser.error("--length must be at least 1")
    LENGTH = length_that_fits(options.length)
    print(f"vectors of {LENGTH} elements; multiprocessing's pool is {mp.pool.Pool.__module__}.Pool")
    pool_cell()
    worker_cell()
    product_cells()
    if options.times:
        with open(options.times, "w") as file:
            json.dump({"length": LENGTH, "cells": TIMES}, file, indent=1)


if __name__ == "__main__":
    try:
        main([] if "ipykernel" in sys.modules else None)
    except KeyboardInterrupt:
        sys.exit(130)
