"""Programs that use joblib, unchanged: the same results on Shoal as on joblib."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from helpers import run_program


def run_both(folder: Path, source: str) -> list[subprocess.CompletedProcess[str]]:
    """Run a program as it is and on Shoal, each in a folder of its own."""
    done = []
    for name, shoal in (("theirs", False), ("ours", True)):
        (folder / name).mkdir()
        done.append(run_program(folder / name, source, shoal=shoal, limit=80, cwd=folder / name))
        assert done[-1].returncode == 0, done[-1].stderr
    return done


LEARNING = """
    import hashlib, sys
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    import joblib

    def show(*arrays):
        print(*(hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:16] for array in arrays))

    X, y = load_digits(return_X_y=True)
    X, y = X[:400], y[:400]
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)),
        {"logisticregression__C": [0.01, 1.0]}, cv=2, n_jobs=2,
    ).fit(X, y)
    show(search.cv_results_["mean_test_score"], search.best_estimator_[1].coef_)
    forest = RandomForestClassifier(n_estimators=12, n_jobs=2, random_state=3).fit(X, y)
    show(forest.predict_proba(X), forest.feature_importances_)
    show(cross_val_predict(RandomForestClassifier(5, random_state=1), X, y, cv=3, n_jobs=2))
    with joblib.parallel_config("threading", n_jobs=2):
        show(cross_val_predict(LogisticRegression(max_iter=50), X, y, cv=3))
    print(joblib.Parallel.__module__, file=sys.stderr)
"""


@pytest.mark.timeout(180)  # it imports SciPy in some processes
def test_scikit_learn_computes_the_same(tmp_path: Path) -> None:
    theirs = run_program(tmp_path, LEARNING, limit=80)
    ours = run_program(tmp_path, LEARNING, shoal=True, limit=80)
    assert theirs.returncode == ours.returncode == 0, ours.stderr
    assert ours.stdout == theirs.stdout
    assert len(ours.stdout.split()) == 6
    assert theirs.stderr.splitlines()[-1] == "joblib.parallel"
    assert ours.stderr.splitlines()[-1] == "shoal.joblib.parallel"


def test_the_usual_progress_bar_for_joblib_works(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import contextlib
        import joblib
        from tqdm import tqdm

        @contextlib.contextmanager
        def tqdm_joblib(bar):
            class Callback(joblib.parallel.BatchCompletionCallBack):
                def __call__(self, *args, **kwargs):
                    bar.update(n=self.batch_size)
                    return super().__call__(*args, **kwargs)

            before = joblib.parallel.BatchCompletionCallBack
            joblib.parallel.BatchCompletionCallBack = Callback
            try:
                yield bar
            finally:
                joblib.parallel.BatchCompletionCallBack = before
                bar.close()

        with tqdm_joblib(tqdm(total=20)) as bar:
            print(sum(joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(-i) for i in range(20))), bar.n)
        """,
        shoal=True,
    )
    assert done.stdout == "190 20\n", done.stderr
    assert "20/20" in done.stderr


PIPELINE = """
    import contextlib, io, sys
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA
    from sklearn.model_selection import GridSearchCV
    from sklearn.naive_bayes import GaussianNB
    from sklearn.pipeline import Pipeline
    import joblib

    X, y = load_digits(return_X_y=True)
    X, y = X[:200], y[:200]
    for folder, n_jobs in (("one", 1), ("one", 1), ("two", 2), ("two", 2)):
        pipe = Pipeline(
            [("reduce", PCA(8, random_state=0)), ("fit", GaussianNB())],
            memory=joblib.Memory(folder, verbose=int(n_jobs == 1)),
        )
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            search = GridSearchCV(pipe, {"fit__var_smoothing": [1e-9, 1e-2]}, cv=2, n_jobs=n_jobs).fit(X, y)
        print(search.cv_results_["mean_test_score"].tolist(), search.predict(X)[:40].tolist())
        if n_jobs == 1:
            print("computed:", said.getvalue().count("[Memory] Calling"))
    print(joblib.Memory.__module__, file=sys.stderr)
"""


@pytest.mark.timeout(180)
def test_a_pipeline_with_a_memory_fits_its_steps_as_often(tmp_path: Path) -> None:
    theirs, ours = run_both(tmp_path, PIPELINE)
    assert ours.stdout == theirs.stdout
    # For the two candidates together one a fold, and the best one's refit; then nothing.
    assert [line for line in ours.stdout.splitlines() if "computed" in line] == ["computed: 3", "computed: 0"]
    assert theirs.stderr.splitlines()[-1] == "joblib.memory"
    assert ours.stderr.splitlines()[-1] == "shoal.joblib.memory"


CLUSTERS = """
    import os, sys
    import numpy as np
    import hdbscan, joblib
    from sklearn.datasets import make_blobs

    if __name__ == "__main__":
        X, _ = make_blobs(n_samples=900, centers=7, cluster_std=0.5, random_state=4)
        for size in (5, 15, 5):
            found = hdbscan.HDBSCAN(
                min_cluster_size=size, min_samples=5, memory=joblib.Memory("kept", verbose=0), core_dist_n_jobs=2,
                algorithm="boruvka_kdtree", approx_min_span_tree=False,
            ).fit(X)
            print(np.bincount(found.labels_ + 1).tolist(), round(float(found.probabilities_.sum()), 9))
        found = hdbscan.HDBSCAN(memory="kept", algorithm="prims_kdtree").fit(X)
        print(np.bincount(found.labels_ + 1).tolist(), found.labels_[:60].tolist())
        print([name for name in os.listdir("kept") if not name.startswith(".")], file=sys.stderr)
"""


@pytest.mark.timeout(180)
def test_hdbscan_keeps_its_trees_and_finds_the_same_clusters(tmp_path: Path) -> None:
    theirs, ours = run_both(tmp_path, CLUSTERS)
    assert ours.stdout == theirs.stdout
    assert len(ours.stdout.splitlines()) == 4
    assert theirs.stderr.splitlines()[-1] == "['joblib']"
    assert ours.stderr.splitlines()[-1] == "['shoal']"


FRAMES = """
    import sys
    import pandas as pd
    from pandarallel import pandarallel
    import multiprocessing

    def triple(x):
        return 3 * x

    if __name__ == "__main__":
        for use_memory_fs in (False, True):
            pandarallel.initialize(nb_workers=2, progress_bar=False, use_memory_fs=use_memory_fs, verbose=0)
            df = pd.DataFrame({"a": range(1000), "b": [i % 7 for i in range(1000)]})
            print(df.parallel_apply(lambda row: row.a * row.b, axis=1).tolist())
            print(df.a.parallel_map(triple).sum(), df.a.parallel_apply(lambda x: x + 1).sum())
            print(df.groupby("b").parallel_apply(lambda group: group.a.sum()).tolist())
            print(df.a.rolling(4).parallel_apply(lambda values: values[0], raw=True).sum())
        print(type(multiprocessing.get_context("fork").Pool(1)).__module__, file=sys.stderr)
"""


@pytest.mark.timeout(180)
def test_pandarallel_makes_the_same_frames(tmp_path: Path) -> None:
    theirs, ours = run_both(tmp_path, FRAMES)
    assert ours.stdout == theirs.stdout
    assert len(ours.stdout.splitlines()) == 8
    assert theirs.stderr.splitlines()[-1] == "multiprocessing.pool"
    assert ours.stderr.splitlines()[-1] == "shoal.multiprocessing.pool"


def test_tqdms_process_map_computes_the_same(tmp_path: Path) -> None:
    theirs, ours = run_both(
        tmp_path,
        """
        import concurrent.futures, sys
        from tqdm.contrib.concurrent import process_map, thread_map

        def square(x):
            return x * x

        if __name__ == "__main__":
            print(process_map(square, range(200), max_workers=2, chunksize=7))
            print(process_map(pow, range(30), [2] * 30, max_workers=2))
            print(thread_map(square, range(5), max_workers=2))
            print(concurrent.futures.ProcessPoolExecutor.__module__, file=sys.stderr)
        """,
    )
    assert ours.stdout == theirs.stdout
    assert len(ours.stdout.splitlines()) == 3
    assert "/200 [" in ours.stderr  # the bar; how far it gets is up to its clock
    assert theirs.stderr.splitlines()[-1] == "concurrent.futures.process"
    assert ours.stderr.splitlines()[-1] == "shoal.futures"


def test_functions_are_as_they_are_now_in_each_call(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import types
        from shoal.joblib import Parallel, delayed

        scale = 2
        settings = types.ModuleType("settings")  # none that workers could import
        settings.offset = 10

        def configured(x):
            return x + settings.offset

        def helper(x):
            return x * scale

        def scaled(x):
            return helper(x)

        def remember(x, seen=[]):
            seen.append(x)
            return len(seen)

        def call(function, *items):
            return Parallel(n_jobs=2, batch_size=8)(delayed(function)(x) for x in items)

        if __name__ == "__main__":
            print(call(scaled, 1, 2), call(scaled, 3))
            scale = 10
            print(call(scaled, 1, 2))
            helper = abs
            print(call(scaled, -1, 2))
            print(call(remember, 1, 2), call(remember, 3))
            for offset in range(100):  # more than are kept
                namespace = {"__name__": "__main__"}
                exec(f"def added(x): return x + {offset}", namespace)
                assert call(namespace["added"], 1) == [1 + offset]
            # While one call is at it with a function, another has it otherwise.
            scale, helper = 1, lambda x: x * scale
            results = Parallel(n_jobs=2, return_as="generator", batch_size=1)(delayed(scaled)(x) for x in range(50))
            first = next(results)
            scale = 7
            print(first, call(scaled, 1), sum(results), call(scaled, 2))
            print(call(configured, 1), [setattr(settings, "offset", 20), call(configured, 1)][1])
        """,
    )
    assert done.stdout.splitlines() == [
        "[2, 4] [6]",
        "[10, 20]",
        "[1, 2]",
        "[1, 2] [1]",
        "0 [7] 1225 [14]",
        "[11] [21]",
    ], done.stderr


ERRORS = """
    import os, pickle, sys, threading
    from concurrent.futures.process import BrokenProcessPool
    if sys.argv[1] == "shoal":
        from shoal.joblib import Parallel, delayed
        Terminated, Broken = BrokenProcessPool, BrokenProcessPool
    else:
        from joblib import Parallel, delayed
        from joblib.externals.loky import process_executor as loky
        Terminated, Broken = loky.TerminatedWorkerError, loky.BrokenProcessPool

    class Refuses:
        def __reduce__(self):
            raise KeyError("not this")

    class CannotBeMade:
        def __reduce__(self):
            return fail, ()

    class NeedsTwo(Exception):
        def __init__(self, first, second):
            super().__init__("one")

    def fail():
        raise ValueError("cannot be made")

    def fail_with_two(_):
        raise NeedsTwo(1, 2)

    def give(what):
        return {"lock": threading.Lock, "refuses": Refuses, "cannot": CannotBeMade}[what]()

    def die(_):
        os._exit(3)

    def echo(x=0):
        return x

    def show(tasks):
        try:
            return Parallel(n_jobs=2)(tasks)
        except Exception as error:
            kinds = TypeError, KeyError, pickle.PicklingError, BrokenProcessPool, Terminated, Broken
            return [kind.__name__ for kind in kinds if isinstance(error, kind)], (
                str(error).replace("__main__.", "") if type(error) in (TypeError, KeyError) else "")

    if __name__ == "__main__":
        for what in ("lock", "refuses", "cannot"):
            print(what, show([delayed(give)(what)] * 2))
        for what in (threading.Lock(), Refuses(), CannotBeMade()):
            print("argument", show([delayed(echo)(what)] * 2))
        for function in (fail_with_two, die):
            print(function.__name__, show([delayed(function)(0)] * 2))
        for args, keywords in (((1,), None), ((1,), []), ((1,), [("x", 2)]), (None, {}), ([5], {}), (3, {})):
            print(args, keywords, show([(echo, args, keywords)] * 2), show([(echo, (7,), {}), (echo, args, keywords)]))
"""


def test_what_cannot_be_sent_raises_what_loky_raises(tmp_path: Path) -> None:
    (theirs, installed) = (run_program(tmp_path, ERRORS, "joblib", shoal=shoal) for shoal in (False, True))
    assert theirs.stdout.count("\n") == 14, theirs.stderr
    assert installed.stdout.splitlines() == theirs.stdout.splitlines(), installed.stderr
    # Without joblib the errors are those of concurrent.futures that joblib's derive from.
    ours = run_program(tmp_path, ERRORS, "shoal")
    without = theirs.stdout.replace("'TerminatedWorkerError', ", "'BrokenProcessPool', ")
    for line in ours.stdout.splitlines():
        if "fail_with_two" not in line and "cannot" not in line and "argument" not in line:
            assert line in without, (line, ours.stderr)


def test_an_initializer_that_fails_is_told_as_loky_tells_it(tmp_path: Path) -> None:
    source = """
        from concurrent.futures.process import BrokenProcessPool
        from joblib import Parallel, delayed
        from joblib.externals.loky import process_executor as loky

        def begin():
            raise ValueError("not today")

        if __name__ == "__main__":
            for batches in (False, True):
                if batches:  # the other way into the workers
                    import joblib.parallel
                    class CallBack(joblib.parallel.BatchCompletionCallBack):
                        pass
                    joblib.parallel.BatchCompletionCallBack = CallBack
                try:
                    Parallel(n_jobs=2, initializer=begin)(delayed(abs)(x) for x in range(3))
                except Exception as error:
                    print(isinstance(error, loky.TerminatedWorkerError), isinstance(error, BrokenProcessPool))
        """
    (theirs, ours) = (run_program(tmp_path, source, shoal=shoal) for shoal in (False, True))
    assert theirs.stdout == "True True\nTrue True\n", theirs.stderr
    assert ours.stdout == theirs.stdout, ours.stderr
    assert "ValueError: not today" in ours.stderr


def test_a_result_that_cannot_be_pickled_is_told_by_what_it_holds(tmp_path: Path) -> None:
    source = """
        import threading
        from joblib import Parallel, delayed

        class Holds:
            def __init__(self):
                self.lock = threading.Lock()

        class Fails(Exception):
            def __init__(self, text):
                super().__init__(text)
                self.lock = threading.Lock()

        def make(kind):
            if kind == "instance":
                return [Holds()]
            if kind == "closure":
                lock = threading.Lock()
                return lambda: lock
            raise Fails("the task's own")

        def show(kind):
            try:
                Parallel(n_jobs=2)(delayed(make)(kind) for _ in range(2))
            except Exception as error:
                return error

        if __name__ == "__main__":
            for kind in ("instance", "closure"):
                print(repr(show(kind)))
            error = show("exception")
            if type(error).__name__ != "TerminatedWorkerError":
                print(repr(error), "Fails: the task's own" in str(error.__cause__), "in make" in str(error.__cause__))
        """
    (theirs, installed) = (run_program(tmp_path, source, shoal=shoal) for shoal in (False, True))
    held = """TypeError("cannot pickle '_thread.lock' object")"""
    assert theirs.stdout.splitlines() == [held] * 2, theirs.stderr
    assert installed.stdout.splitlines() == [held, held, f"{held} True True"], installed.stderr


def test_a_pool_in_a_task_has_its_own_errors(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import threading
        from shoal import multiprocessing
        from shoal.joblib import Parallel, delayed

        def make_lock(_):
            return threading.Lock()

        def use_a_pool(method):
            with multiprocessing.get_context(method).Pool(1) as pool:
                try:
                    pool.map(make_lock, [1])
                except Exception as error:
                    return type(error).__name__

        if __name__ == "__main__":
            print(Parallel(n_jobs=2)(delayed(use_a_pool)(method) for method in ("fork", "spawn")))
        """,
    )
    assert done.stdout == "['MaybeEncodingError', 'MaybeEncodingError']\n", done.stderr


def test_what_a_task_does_to_a_function_of_the_programs_ends_with_its_call(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import functools
        from joblib import Parallel, delayed

        def plain():
            "plain"

        def other():
            "other"

        def task():
            found = plain.__doc__, hasattr(plain, "__wrapped__")
            functools.update_wrapper(plain, other)
            return found

        if __name__ == "__main__":
            call = Parallel(n_jobs=2)
            print({call([delayed(task)()])[0] for _ in range(8)})
        """,
        shoal=True,
    )
    assert done.stdout == "{('plain', False)}\n", done.stderr
