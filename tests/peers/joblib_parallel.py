"""joblib's own tests of parallel work, run on joblib and then on Shoal (under `shoal.install()`), and compared.

    .venv/bin/python tests/peers/joblib_parallel.py [--json FILE] [-k EXPRESSION]

How they are run, and what the outcome means, is joblib_store.py's; here is what differs, and why.
"""

from __future__ import annotations

import sys

import joblib_store

LIMIT = 1800  # seconds for a module
MODULES = (
    "test_parallel", "test_memmapping", "test_config", "test_cloudpickle_wrapper", "test_module",
    "test_missing_multiprocessing", "test_utils", "test_init", "test_dask",
)  # fmt: skip

FILES = "arrays lie in memory files without a name: there is none in temp_folder"
ALONE = "results that are dropped end their own call alone, where joblib's other calls fail with a shared executor"
DIFFERENCES: dict[str, str] = {
    "*::test_memmapping_leaks[*": FILES,
    "*::test_multiple_generator_call_separated_gc[*-loky-True]": ALONE,
}

if __name__ == "__main__":
    joblib_store.MODULES = MODULES
    joblib_store.DIFFERENCES = DIFFERENCES
    joblib_store.LIMIT = LIMIT
    sys.exit(joblib_store.main())
