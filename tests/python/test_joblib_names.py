"""Under `install()` everything that can be imported from joblib's modules still can be; and what is there of them where
joblib is not installed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from helpers import run_program

NAMES_OF_ALL_MODULES = """
    import importlib, json, os, pkgutil, sys, warnings

    warnings.simplefilter("ignore")
    if "shoal" in sys.argv:
        import shoal
        shoal.install()
    import joblib
    found = {}
    for module in ["joblib", *(m.name for m in pkgutil.walk_packages(joblib.__path__, "joblib."))]:
        if ".test" in module:
            continue
        try:
            loaded = importlib.import_module(module)
        except (ImportError, AttributeError):  # those for Windows
            continue
        wanted = json.loads(os.environ["WANTED"]).get(module, []) if "WANTED" in os.environ else dir(loaded)
        found[module] = [name for name in wanted if not name.startswith("__") and hasattr(loaded, name)]
    print(json.dumps(found))
"""

NO_JOBLIB = """
        import importlib.util
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "joblib" else real(name, *rest)
        import shoal
        shoal.install()
"""


def test_every_name_of_joblibs_modules_is_there_under_install(tmp_path: Path) -> None:
    before = json.loads(run_program(tmp_path, NAMES_OF_ALL_MODULES).stdout)
    assert len(before["joblib.parallel"]) > 60 and len(before) > 40
    done = run_program(tmp_path, NAMES_OF_ALL_MODULES, "shoal", env={**os.environ, "WANTED": json.dumps(before)})
    after = json.loads(done.stdout)
    missing = {module: sorted(set(names) - set(after.get(module, []))) for module, names in before.items()}
    assert not any(missing.values()), missing


def test_names_that_are_no_part_of_the_interface_do_what_joblibs_do(tmp_path: Path) -> None:
    source = """
        import sys
        if "shoal" in sys.argv:
            import shoal
            shoal.install()
        from joblib import parallel, parallel_config
        from joblib.parallel import (
            VALID_BACKEND_CONSTRAINTS, VALID_BACKEND_HINTS, Logger, _get_active_backend, _get_config_param,
            _verbosity_filter, default_parallel_config, eval_expr, memstr_to_bytes, short_format_time,
        )
        print(VALID_BACKEND_CONSTRAINTS, VALID_BACKEND_HINTS, eval_expr("2 * 3 // 4"), memstr_to_bytes("3K"))
        print(short_format_time(3), short_format_time(100), [_verbosity_filter(i, 5) for i in range(40)])
        print(_verbosity_filter(1, 0), _verbosity_filter(3, 11))
        with parallel_config("threading", n_jobs=3):
            backend, config = _get_active_backend(prefer="threads")
            print(type(backend).__name__, _get_config_param(default_parallel_config["n_jobs"], config, "n_jobs"))
        print(Logger(depth=1).format([[1]]), parallel.threading.__name__, callable(parallel.loky.get_reusable_executor))
        try:
            parallel.no_such_name
        except AttributeError as error:
            print("no_such_name" in str(error))
    """
    theirs, ours = run_program(tmp_path, source), run_program(tmp_path, source, "shoal")
    assert theirs.stdout.splitlines()[-1] == "True", theirs.stderr
    assert ours.stdout == theirs.stdout, ours.stderr


def test_where_joblib_is_not_installed_its_documented_modules_are_there(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        NO_JOBLIB
        + """
        import logging, os, re, sys
        import joblib
        from joblib import Logger, PrintTime, Parallel, externals
        from joblib.logger import format_time, short_format_time, pformat
        from joblib.disk import disk_used, memstr_to_bytes, mkdirp, rm_subdirs, delete_folder
        from joblib.externals import cloudpickle
        import joblib.externals.cloudpickle.cloudpickle, cloudpickle as installed
        from joblib.externals.loky import cpu_count, get_reusable_executor
        print(cloudpickle is installed, joblib.externals.cloudpickle is installed, joblib.logger.Logger is Logger)
        print(joblib.externals.cloudpickle.cloudpickle is installed.cloudpickle)
        print(isinstance(Parallel(), Logger), format_time(90), short_format_time(90), memstr_to_bytes("1M"))
        logging.basicConfig(stream=sys.stdout, level=logging.DEBUG, format="%(name)s %(levelname)s %(message)s")
        class Speaking(Logger):
            def __repr__(self):
                return "me"
        Speaking(name="its").warn("50% heard")
        Speaking().debug("x")
        print(Speaking(depth=1).format([[1, 2]]))
        mkdirp("logs/a/b"); mkdirp("logs")
        rm_subdirs("logs")
        print(os.listdir("logs"), disk_used("logs") >= 0)
        for _ in range(3):
            clock = PrintTime(logdir="logs")
            clock("now"); clock("all", total=True)
        took = open("logs/joblib.log").read().splitlines()[-1]
        print(sorted(os.listdir("logs")), re.sub("\\d+", "#", took))
        delete_folder("logs")
        print(os.path.exists("logs"))
        for wrong in ("joblib.pool", "joblib.externals.nothing", "joblib.no_such_module"):
            try:
                __import__(wrong)
            except ModuleNotFoundError as error:
                print(error)
        """,
        cwd=tmp_path,
    )
    assert done.stdout.splitlines() == [
        "True True True",
        "True",
        "True 90.0s, 1.5min  1.5min 1048576",
        "its WARNING [me]: 50% heard",
        "joblib DEBUG [me]: x",
        "[[...]]",
        "[] True",
        "['joblib.log', 'joblib.log.1', 'joblib.log.2'] all: #.#s, #.# min",
        "False",
        "No module named 'joblib.pool'",
        "No module named 'joblib.externals.nothing'",
        "No module named 'joblib.no_such_module'",
    ], done.stderr
    assert re.search(r"now: \d+\.\ds, \d+\.\dmin", done.stderr)


def test_where_joblib_is_not_installed_its_example_of_other_picklers_runs(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        NO_JOBLIB
        + """
        from joblib import Parallel, delayed, wrap_non_picklable_objects
        from joblib.externals.loky import set_loky_pickler
        if __name__ == "__main__":
            def double(x):
                return 2 * x
            for pickler in ("pickle", "cloudpickle", None, ""):
                set_loky_pickler(pickler)
                wrapped = delayed(wrap_non_picklable_objects(double))
                print(Parallel(n_jobs=2)(wrapped(x) for x in range(3)))
            for wrong in ("no_such_module", "math"):
                try:
                    set_loky_pickler(wrong)
                except (ImportError, AttributeError) as error:
                    print(type(error).__name__)
        """,
    )
    assert done.stdout.splitlines() == ["[0, 2, 4]"] * 4 + ["ModuleNotFoundError", "AttributeError"], done.stderr


EXECUTOR = """
        import os
        from joblib import Parallel, delayed
        from joblib.externals.loky import get_reusable_executor

        if __name__ == "__main__":
            executor = get_reusable_executor(2)
            print(list(executor.map(abs, [-1, -2])), {get_reusable_executor(), get_reusable_executor(2)} == {executor})
            first = set(Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(20)))
            again = set(Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(20)))
            get_reusable_executor().shutdown(wait=True)
            print([pid for pid in first if os.path.exists(f"/proc/{pid}")])
            other = set(Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(20)))
            print(again <= first or len(again | first) <= 2, other & first, get_reusable_executor() is executor)
            with Parallel(n_jobs=2) as parallel:  # these are in use
                parallel(delayed(abs)(x) for x in range(4))
                get_reusable_executor().shutdown(wait=True)
                print(parallel(delayed(abs)(x) for x in range(4)))
        """


def test_the_shutdown_of_lokys_executor_ends_the_workers(tmp_path: Path) -> None:
    done = run_program(tmp_path, EXECUTOR, shoal=True)
    assert done.stdout.splitlines() == ["[1, 2] True", "[]", "True set() False", "[0, 1, 2, 3]"], done.stderr


def test_where_joblib_is_not_installed_the_executor_of_loky_ends_the_workers(tmp_path: Path) -> None:
    done = run_program(tmp_path, NO_JOBLIB + EXECUTOR)
    assert done.stdout.splitlines() == ["[1, 2] True", "[]", "True set() False", "[0, 1, 2, 3]"], done.stderr
