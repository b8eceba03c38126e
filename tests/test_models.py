"""Estimators agree with scikit-learn, and models survive a round trip to disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from streamfit import RBFNetwork, Ridge
from streamfit.errors import ConfigError, StoreError
from streamfit.frame import BLOCK_ROWS
from streamfit.models import LinearModel, read_model


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(700, 6)) + 3.0
    return x, np.column_stack([x @ rng.normal(size=6), np.sin(x[:, 0])]) + 0.1 * rng.normal(size=(700, 2))


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("n_targets", [1, 2])
@pytest.mark.parametrize("weighted", [True, False])
def test_ridge_is_scikit_learns_ridge(data, fit_intercept, n_targets, weighted):
    x, y = data
    y = y[:, 0] if n_targets == 1 else y
    weights = np.random.default_rng(0).uniform(0.1, 3.0, len(x)) if weighted else None
    mine = Ridge(alpha=2.0, fit_intercept=fit_intercept).fit(x, y, weights)
    theirs = SklearnRidge(alpha=2.0, fit_intercept=fit_intercept, solver="cholesky").fit(x, y, weights)
    np.testing.assert_allclose(mine.coef_, theirs.coef_, rtol=1e-10)
    np.testing.assert_allclose(mine.intercept_, theirs.intercept_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(mine.predict(x), theirs.predict(x), rtol=1e-9)
    assert mine.coef_.shape == theirs.coef_.shape


def test_partial_fit_does_not_depend_on_the_order_of_later_blocks():
    """Once features and units are chosen; portions that are no whole blocks round at other rows in another order."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5 * BLOCK_ROWS, 4))
    y = x @ rng.normal(size=(4, 2)) + rng.normal(size=(len(x), 2))
    first, *rest = np.array_split(np.arange(len(x)), 5)

    def fitted(order: list[np.ndarray]) -> np.ndarray:
        model = Ridge().partial_fit(x[first], y[first])
        for rows in order:
            model.partial_fit(x[rows], y[rows])
        return model.coef_

    assert np.array_equal(fitted(rest), fitted(rest[::-1]))


def test_rbf_network_is_ridge_on_its_own_features(data):
    x, y = data
    model = RBFNetwork(n_centers=50, alpha=1e-2, random_state=1).fit(x, y)
    phi = model.features_(x)
    oracle = SklearnRidge(alpha=1e-2).fit(phi, y)
    np.testing.assert_allclose(model.predict(x), oracle.predict(phi), rtol=1e-7, atol=1e-9)
    assert model.score(x, y) > 0.9
    distances = model.features_.outer.centers
    assert len(np.unique(distances, axis=0)) == 50


def test_estimators_work_where_scikit_learn_puts_them(data):
    x, y = data
    search = GridSearchCV(make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": [0.1, 10.0]}, cv=3).fit(x, y)
    assert search.best_score_ > 0.4
    assert clone(RBFNetwork(n_centers=3, gamma=0.5)).get_params()["gamma"] == 0.5


def test_float32_input_keeps_its_accuracy_far_from_zero():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(5000, 4)) + 1000.0).astype(np.float64)
    y = x @ np.arange(1.0, 5.0)
    fitted = Ridge(alpha=1e-6, precision="float32").fit(x, y)
    np.testing.assert_allclose(fitted.coef_, np.arange(1.0, 5.0), rtol=1e-5)


def test_a_model_read_back_predicts_the_same_bits(data, tmp_path: Path):
    x, y = data
    fitted = RBFNetwork(n_centers=20).fit(x, y)
    model = LinearModel(fitted.features_, fitted.solution_, {"reader": {"kind": "table"}})
    model.save(tmp_path / "model")
    back = LinearModel.load(tmp_path / "model")
    assert np.array_equal(back.predict(x), model.predict(x))
    assert back.solution.certificate == fitted.solution_.certificate
    assert back.info == model.info


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda d: (d / "model.json").unlink(), "model.json is missing"),
        (lambda d: (d / "model.json").write_text("{"), "cannot be read"),
        (lambda d: (d / "model.json").write_text('{"format": "other"}'), "format 'other'"),
        (lambda d: (d / "model.safetensors").write_bytes(b"12345678"), "cannot be read"),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors is missing"),
    ],
)
def test_a_damaged_model_is_one_clear_error(data, tmp_path: Path, damage, complaint):
    fitted = Ridge().fit(*data)
    LinearModel(fitted.features_, fitted.solution_).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(StoreError, match=complaint):
        read_model(tmp_path)


def test_a_model_of_another_kind_is_refused(data, tmp_path: Path):
    fitted = Ridge().fit(*data)
    LinearModel(fitted.features_, fitted.solution_).save(tmp_path)
    with pytest.raises(StoreError, match="kind 'linear'"):
        read_model(tmp_path, "language_model")


def test_impossible_settings_are_refused(data):
    with pytest.raises(ConfigError, match="'n_centers' parameter"):
        RBFNetwork(n_centers=0).fit(*data)
    with pytest.raises(ConfigError, match="'precision' parameter"):
        Ridge(precision="float16").fit(*data)
