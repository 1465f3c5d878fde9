"""joblib's own tests of parallel work, run on joblib and then on Shoal (under `shoal.install()`), and compared.

    .venv/bin/python tests/peers/joblib_parallel.py [--json FILE] [-k EXPRESSION] [--module MODULE]…

How they are run, and what the outcome means, is joblib_store.py's; here is what differs, and why.
"""

from __future__ import annotations

import sys

import joblib_store
from joblib_store import NOT_OURS

LIMIT = 1800  # seconds for a module
MODULES = (
    "test_parallel", "test_memmapping", "test_config", "test_cloudpickle_wrapper", "test_module",
    "test_missing_multiprocessing", "test_utils", "test_init", "test_dask",
)  # fmt: skip

FILES = "arrays lie in memory files without a name: there is none in temp_folder"
ALONE = "results that are dropped end their own call alone, where joblib's other calls fail with a shared executor"
QUEUES = NOT_OURS + "joblib.pool's class of pools, which replaces the private queues of the standard library's"
CALLBACKS = "the thread that Dask calls a future's callbacks in stays until the program's end"
WARM = "the pool of a Dask worker, here one in this very process, stays warm, with its supervisor's thread"
FINDER = NOT_OURS + "joblib's search for the mmap.mmap below an array; ours lie in mappings of several files"
ADAPTER = NOT_OURS + "joblib._dask's class of back-ends, which is another one than that in use"
FOLDER = NOT_OURS + "the folder that joblib's executor has for its files, by its private name"
LOG = NOT_OURS + "loky's own log of its processes, which it looks for"
NEEDED_ALL = "Shoal needs _multiprocessing, which the test takes away"
DIFFERENCES: dict[str, str] = {
    "*::test_child_raises_parent_exits_cleanly[*": FOLDER,
    "*::test_parallel_with_interactively_defined_bound_method_loky": LOG,
    "*::test_missing_multiprocessing": NEEDED_ALL,
    "*::test_memmapping_leaks[*": FILES,
    "*::test_multiple_generator_call_separated_gc[*-loky-True]": ALONE,
    "*::test_parallel_isolated_temp_folders[*": FILES,
    "*::test_memmapping_temp_folder_thread_safety": FILES,
    "*::test_parallel_config_no_backend": FILES,
    "*::test_memmap_returned_as_regular_array[*": FINDER,
    "*::test_simple": CALLBACKS,
    "*::test_secede_with_no_processes": WARM,
    "*::test_dask_backend_uses_autobatching": ADAPTER,
    "*::test_correct_nested_backend": ADAPTER,
    "*::test_pool_with_memmap[multiprocessing]": QUEUES,
    "*::test_pool_with_memmap_array_view[multiprocessing]": QUEUES,
    "*::test_memmapping_pool_for_large_arrays[multiprocessing]": QUEUES,
    "*::test_memmapping_on_large_enough_dev_shm[multiprocessing]": QUEUES,
    "*::test_workaround_against_bad_memmap_with_copied_buffers[multiprocessing]": QUEUES,
    "*::test_pool_memmap_with_big_offset[multiprocessing, *": QUEUES,
}

if __name__ == "__main__":
    sys.exit(joblib_store.main(MODULES, DIFFERENCES, LIMIT))
