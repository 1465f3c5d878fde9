"""Programs that use joblib, unchanged: the same results on Shoal as on joblib."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import run_program

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
