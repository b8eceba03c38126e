"""Estimators: scikit-learn's own checks, any table, portions that sum to the whole bit for bit, uncertainty."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import BayesianRidge
from sklearn.linear_model import RidgeClassifier as SklearnRidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import streamfit
from streamfit import FourierRidge, RBFNetwork, Ridge, RidgeClassifier, posterior
from streamfit.errors import SolveError
from streamfit.estimators import InputError
from streamfit.models import LinearModel

EVERY = [Ridge(alpha=0.3), RBFNetwork(40), FourierRidge(50, alpha=0.1), RidgeClassifier()]
REGRESSORS = EVERY[:3]
kind = pytest.mark.parametrize("estimator", EVERY, ids=lambda e: type(e).__name__)
regressor = pytest.mark.parametrize("estimator", REGRESSORS, ids=lambda e: type(e).__name__)
CHECKS = """
import sys, warnings
warnings.simplefilter("ignore")
from sklearn.utils.estimator_checks import check_estimator
import streamfit
for name in sys.argv[1:]:
    for r in check_estimator(getattr(streamfit, name)(), on_fail=None, on_skip=None):
        print(name, r["status"], r["check_name"], "" if r["status"] == "passed" else repr(r["exception"]))
"""


@pytest.fixture(scope="module")
def checked() -> list[str]:
    """Outcomes of scikit-learn's checks; their array API check is skipped unless SciPy's variable was set before."""
    names = [type(estimator).__name__ for estimator in EVERY]
    run = [sys.executable, "-c", CHECKS, *names]
    done = subprocess.run(run, capture_output=True, text=True, env=os.environ | {"SCIPY_ARRAY_API": "1"}, check=True)
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(9_500, 3)) * [1.0, 30.0, 0.1] + [0.0, 500.0, 1.0]
    y = np.sin(x[:, 0]) + x[:, 1] / 100 + 0.1 * rng.normal(size=len(x))
    return x, y, rng.integers(0, 4, len(x)).astype(float)


def labels(estimator, y: np.ndarray) -> np.ndarray:
    return np.array(["low", "mid", "high"])[np.digitize(y, [4.5, 5.5])] if isinstance(estimator, RidgeClassifier) else y


@kind
def test_scikit_learns_checks_pass_whole(estimator, checked):
    name = type(estimator).__name__
    outcomes = [line.split(" ", 2) for line in checked if line.startswith(f"{name} ")]
    print(f"{name}: {len(outcomes)} checks")
    assert len(outcomes) >= 55
    assert [line for line in outcomes if line[1] != "passed"] == []


def test_the_package_names_them_without_loading_scikit_learn():
    code = "import sys, streamfit.cli; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert {type(e).__name__ for e in EVERY} <= set(streamfit.__all__)
    with pytest.raises(AttributeError, match="Lasso"):
        _ = streamfit.Lasso


@kind
@pytest.mark.parametrize("cuts", [[1, 5, 4000, 4096, 9000], [4096, 8192], [9_400], list(range(500, 9_500, 500))])
def test_portions_make_the_fit_of_the_whole_bit_for_bit(rows, estimator, cuts):
    """Units, centers and widths too: all are chosen from the same first rows, of blocks cut at the same places."""
    x, y, weights = rows
    y = labels(estimator, y)
    sample = {"sample_rows": 5000} if hasattr(estimator, "sample_rows") else {}
    whole = clone(estimator).set_params(**sample).fit(x, y, sample_weight=weights)
    parts = clone(estimator).set_params(**sample)
    first = {"classes": np.unique(y)} if isinstance(estimator, RidgeClassifier) else {}
    for part in np.split(np.arange(len(x)), cuts):
        own = x[part]
        parts.partial_fit(own, y[part], sample_weight=weights[part], **first)
        own[:] = np.nan  # what was given may be written over
    assert np.array_equal(parts.coef_, whole.coef_)
    assert np.array_equal(parts.intercept_, whole.intercept_)
    assert np.array_equal(parts.predict(x), whole.predict(x))
    assert parts.moments_.n_rows == (weights > 0).sum()


@regressor
def test_rows_of_weight_zero_are_none_and_weights_of_one_are_no_weights(rows, estimator):
    x, y, weights = rows
    there = weights > 0
    weighted = clone(estimator).fit(x, y, sample_weight=there.astype(float))
    plain = clone(estimator).fit(x[there], y[there])
    assert np.array_equal(weighted.coef_, plain.coef_)
    mean, std = weighted.predict(x[:50], return_std=True)
    assert np.array_equal(std, plain.predict(x[:50], return_std=True)[1])
    assert np.array_equal(mean, weighted.predict(x[:50]))


def tables(x: np.ndarray) -> dict[str, object]:
    named = {f"c{j}": x[:, j] for j in range(x.shape[1])}
    table = pa.table(named)
    return {
        "pandas": pd.DataFrame(named),
        "polars": pl.DataFrame(named),
        "arrow": table,
        "batch": table.combine_chunks().to_batches()[0],
        "stream": pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=700)),
    }


@kind
@pytest.mark.parametrize("name", ["pandas", "polars", "arrow", "batch", "stream"])
def test_a_table_is_its_array_with_names(rows, estimator, name):
    x, y, weights = (part[:2000] for part in rows)
    y = labels(estimator, y)
    plain = clone(estimator).fit(x, y, sample_weight=weights)
    beside = {"pandas": pd.Series, "polars": lambda v: pl.Series(v.tolist()), "arrow": lambda v: pa.chunked_array([v])}
    series = beside.get(name, np.asarray)
    fitted = clone(estimator).fit(tables(x)[name], series(y), sample_weight=series(weights))
    assert np.array_equal(fitted.coef_, plain.coef_)
    assert np.array_equal(fitted.predict(tables(x)[name]), plain.predict(x))
    assert fitted.feature_names_in_.tolist() == ["c0", "c1", "c2"]
    if isinstance(estimator, Ridge | RidgeClassifier):
        assert fitted.get_feature_names_out().tolist() == ["c0", "c1", "c2"]
        assert plain.get_feature_names_out(["a", "b", "c"]).tolist() == ["a", "b", "c"]
    else:
        assert len(fitted.get_feature_names_out()) == fitted.coef_.shape[-1]
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(pd.DataFrame(x, columns=["c2", "c1", "c0"]))
    with pytest.raises(InputError, match="names of the fit"):
        fitted.get_feature_names_out(["c2", "c1", "c0"])


SEEN: list[int] = []


def _watched(block):
    SEEN.append(len(block))
    return block


@kind
@pytest.mark.parametrize("framed", [False, True], ids=["array", "dataframe"])
@pytest.mark.parametrize("y_lazy", [False, True])
def test_dask_is_read_a_block_at_a_time(rows, estimator, framed, y_lazy):
    import dask.array as da
    import dask.dataframe as dd

    x, y, weights = (part[:3000] for part in rows)
    y = labels(estimator, y)
    plain = clone(estimator).fit(x, y, sample_weight=weights)
    SEEN.clear()
    if framed:
        frame = pd.DataFrame(x, columns=["a", "b", "c"]).assign(y=y, w=weights)
        whole = dd.from_pandas(frame, npartitions=4)
        lazy = whole[["a", "b", "c"]].map_partitions(_watched, meta=frame[["a", "b", "c"]].iloc[:0])
        lazy_y, lazy_w = whole["y"], whole["w"]
    else:
        lazy = da.from_array(x, chunks=(800, 2)).map_blocks(_watched, dtype=x.dtype, meta=x[:0])
        lazy_y, lazy_w = da.from_array(y, chunks=800), da.from_array(weights, chunks=800)
    fitted = clone(estimator).fit(lazy, lazy_y if y_lazy else y, sample_weight=lazy_w if y_lazy else weights)
    assert max(SEEN) <= 800
    assert np.array_equal(fitted.coef_, plain.coef_)
    predicted = fitted.predict(lazy)
    # Inner products of fewer rows at a time may end in another last bit.
    if isinstance(estimator, RidgeClassifier):
        assert np.array_equal(np.asarray(predicted), plain.predict(x))
    else:
        assert isinstance(predicted, da.Array)
        np.testing.assert_allclose(predicted.compute(), plain.predict(x), rtol=1e-12)
        std = fitted.predict(lazy, return_std=True)[1]
        np.testing.assert_allclose(std.compute(), plain.predict(x, return_std=True)[1], rtol=1e-9)
    assert fitted.score(lazy, lazy_y.compute()) == pytest.approx(plain.score(x, y), rel=1e-12)


def test_blocks_that_do_not_pair_are_refused(rows):
    import dask.array as da

    x, y, _ = (part[:1000] for part in rows)
    lazy = da.from_array(x, chunks=(250, 3))
    with pytest.raises(InputError, match="y in 2 blocks of rows; expected 4"):
        Ridge().fit(lazy, da.from_array(y, chunks=500))
    with pytest.raises(InputError, match="1000 rows of y; expected 500"):
        Ridge().fit(lazy[:500], y)


def test_sparse_rows_are_made_dense_by_the_block(rows):
    x, y, weights = (part[:5000] for part in rows)
    x = np.where(x > 0.9, x, 0.0)
    for estimator in (Ridge(), RidgeClassifier()):
        target = labels(estimator, y)
        dense = clone(estimator).fit(x, target, sample_weight=weights)
        for rows_of in (scipy.sparse.csr_array, scipy.sparse.csc_matrix, scipy.sparse.coo_array):
            sparse = clone(estimator).fit(rows_of(x), target, sample_weight=weights)
            assert np.array_equal(sparse.coef_, dense.coef_)
            assert np.array_equal(sparse.predict(rows_of(x)), dense.predict(x))
    with pytest.raises(TypeError, match="parse"):
        RBFNetwork().fit(scipy.sparse.csr_array(x), y)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_the_classifier_is_scikit_learns(rows, n_classes, fit_intercept):
    """One fits indicators, the other 1 and -1: the same by linearity, also without an intercept."""
    x, y, weights = (part[:3000] for part in rows)
    names = np.array(["no", "yes", "maybe"])[np.digitize(y, [5.0, 5.6][: n_classes - 1])]
    mine = RidgeClassifier(0.7, fit_intercept=fit_intercept).fit(x, names, sample_weight=weights)
    theirs = SklearnRidgeClassifier(0.7, fit_intercept=fit_intercept, solver="cholesky").fit(x, names, weights)
    np.testing.assert_allclose(mine.coef_, np.atleast_2d(theirs.coef_), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(mine.intercept_, theirs.intercept_, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(mine.decision_function(x), theirs.decision_function(x), rtol=1e-7, atol=1e-10)
    assert np.array_equal(mine.predict(x), theirs.predict(x))
    assert not hasattr(mine, "predict_proba")


def test_probabilities_come_of_calibration(rows):
    x, y, _ = (part[:1000] for part in rows)
    model = CalibratedClassifierCV(RidgeClassifier(), cv=3).fit(x, y > 5)
    assert model.predict_proba(x).shape == (1000, 2)
    assert ((model.predict_proba(x)[:, 1] > 0.5) == (y > 5)).mean() > 0.9


def test_classes_come_with_the_first_portion(rows):
    x, y, _ = (part[:200] for part in rows)
    target = np.where(y > 5, "b", "a")
    with pytest.raises(InputError, match="no classes at the first partial_fit"):
        RidgeClassifier().partial_fit(x, target)
    model = RidgeClassifier().partial_fit(x, target, classes=["c", "a", "b"])
    assert model.classes_.tolist() == ["a", "b", "c"]
    with pytest.raises(InputError, match=r"label .*'z'.*; expected one of \['a', 'b', 'c'\]"):
        model.partial_fit(x, np.where(y > 5, "z", "a"))
    with pytest.raises(InputError, match="those of the first call"):
        model.partial_fit(x, target, classes=["a", "b"])


def test_the_deviation_is_that_of_the_posterior_and_of_bayesian_ridge(rows):
    x, y, _ = (part[:400] for part in rows)
    model = Ridge(alpha=2.0).fit(x, y)
    mean, std = model.predict(x, return_std=True)
    found = posterior(model.moments_, 2.0)
    np.testing.assert_array_equal(std, np.sqrt(found.predictive_variance(x))[:, 0])
    np.testing.assert_array_equal(mean, model.predict(x))
    theirs = BayesianRidge(tol=1e-12, max_iter=2000).fit(x, y)
    mine = Ridge(alpha=theirs.lambda_ / theirs.alpha_).fit(x, y)
    np.testing.assert_allclose(mine.predict(x), theirs.predict(x), rtol=1e-9)
    # Theirs has no uncertainty of the intercept, and noise over n less degrees of freedom without it.
    np.testing.assert_allclose(mine.predict(x, return_std=True)[1], theirs.predict(x, return_std=True)[1], rtol=5e-3)
    with pytest.raises(SolveError, match="degrees of freedom"):
        Ridge(alpha=0.0).fit(x[:4], y[:4]).predict(x, return_std=True)


def test_deviations_cover_what_they_say(rows):
    x, y, _ = rows
    model = RBFNetwork(60, alpha=1e-3).fit(x[:6000], y[:6000])
    mean, std = model.predict(x[6000:], return_std=True)
    inside = np.abs(y[6000:] - mean) < 1.96 * std
    assert 0.94 < inside.mean() < 0.96
    assert std[:100].max() < 0.2 < 2 * float(model.predict(x[:1] + np.array([40.0, 0, 0]), return_std=True)[1][0])


@regressor
def test_several_targets_keep_their_shape(rows, estimator):
    x, y, _ = (part[:500] for part in rows)
    both = clone(estimator).fit(x, np.column_stack([y, -2 * y]))
    assert both.predict(x).shape == (500, 2) == both.predict(x, return_std=True)[1].shape
    np.testing.assert_allclose(both.predict(x)[:, 1], -2 * both.predict(x)[:, 0], rtol=1e-6, atol=1e-6)
    assert both.coef_.shape == (2, len(both.get_feature_names_out()))
    with pytest.raises(InputError, match="y of shape"):
        both.partial_fit(x, y)


@kind
def test_pipelines_searches_pickles_and_clones(rows, estimator):
    x, y, _ = (part[:600] for part in rows)
    y = labels(estimator, y)
    step = type(estimator).__name__.lower()
    search = GridSearchCV(make_pipeline(StandardScaler(), clone(estimator)), {f"{step}__alpha": [1e-3, 1e6]}, cv=3)
    search.fit(pd.DataFrame(x, columns=list("abc")), y)
    assert search.best_params_ == {f"{step}__alpha": 1e-3}
    back = pickle.loads(pickle.dumps(search.best_estimator_))  # bytes of this very process, as joblib sends them
    frame = pd.DataFrame(x, columns=list("abc"))
    assert np.array_equal(back.predict(frame), search.predict(frame))
    assert back[-1].partial_fit(x, y).moments_.n_rows == 1200


def test_a_failed_portion_leaves_the_fit_as_it_was(rows):
    x, y, _ = (part[:300] for part in rows)
    model = Ridge().fit(x, y)
    before = model.coef_
    with pytest.raises(ValueError, match="NaN"):
        model.partial_fit(np.full((5, 3), np.nan), y[:5])
    with pytest.raises(InputError, match="sample weight of -1"):
        model.partial_fit(x, y, sample_weight=-np.ones(300))
    assert model.partial_fit(x[:0:-1], y[:0:-1]).moments_.n_rows == 599
    assert not np.array_equal(model.coef_, before)


@kind
def test_a_fit_leaves_as_a_model(rows, estimator, tmp_path):
    x, y, _ = (part[:400] for part in rows)
    frame = pd.DataFrame(x, columns=list("abc"))
    fitted = clone(estimator).fit(frame, labels(estimator, y))
    fitted.to_model(std=True).save(tmp_path)
    back = LinearModel.load(tmp_path)
    assert back.posterior is not None
    assert back.info["reader"]["features"] == ["a", "b", "c"]
    scores = back.predict(x)
    if isinstance(estimator, RidgeClassifier):
        assert np.array_equal(
            fitted.classes_[scores.argmax(axis=1)], fitted.predict(pd.DataFrame(x, columns=list("abc")))
        )
    else:
        assert np.array_equal(scores[:, 0], fitted.predict(frame))


@pytest.mark.parametrize(
    ("estimator", "said"),
    [
        (Ridge([1.0]), "'alpha' parameter of Ridge"),
        (Ridge("1"), "'alpha' parameter of Ridge"),
        (Ridge(-1.0), "range [0"),
        (Ridge(precision="float16"), "'precision' parameter"),
        (RidgeClassifier(float("nan")), "'alpha' parameter of RidgeClassifier"),
        (RBFNetwork(gamma="scale"), "'gamma' parameter of RBFNetwork"),
        (RBFNetwork(gamma=0.0), "'gamma' parameter"),
        (RBFNetwork(0), "'n_centers' parameter"),
        (RBFNetwork(2.5), "'n_centers' parameter"),
        (FourierRidge(sample_rows=0), "'sample_rows' parameter"),
        (FourierRidge("many"), "'n_components' parameter"),
    ],
    ids=repr,
)
def test_parameters_that_cannot_be_used_are_named(estimator, said: str, rows) -> None:
    x, y, _ = rows
    labels = (y > 5).astype(int) if isinstance(estimator, RidgeClassifier) else y
    with pytest.raises(InputError) as caught:
        estimator.fit(x[:50], labels[:50])
    assert said in str(caught.value)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_deviations_of_decisions_are_those_of_signs(rows, fit_intercept: bool, n_classes: int) -> None:
    x, y, weights = rows
    x = (x[:400] - x[:400].mean(axis=0)) / x[:400].std(axis=0)
    labels, weights = np.digitize(y[:400], np.quantile(y[:400], [0.5, 0.8][: n_classes - 1])), weights[:400]
    signs = np.where(labels[:, None] == np.arange(n_classes), 1.0, -1.0)
    signs = signs[:, 1:] if n_classes == 2 else signs
    model = RidgeClassifier(0.5, fit_intercept=fit_intercept).fit(x, labels, weights)
    oracle = Ridge(0.5, fit_intercept=fit_intercept).fit(x, signs, weights)
    found, std = model.predict(x[:50], return_std=True)
    _, expected = oracle.predict(x[:50], return_std=True)
    np.testing.assert_array_equal(found, model.predict(x[:50]))
    np.testing.assert_allclose(std, expected[:, 0] if n_classes == 2 else expected, rtol=1e-9)
