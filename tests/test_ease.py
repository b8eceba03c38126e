"""EASE against one constrained least-squares problem an item, solved on the rows."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from streamfit.errors import MismatchError, SolveError
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.solve.ease import ease
from streamfit.targets import Dense

USERS, ITEMS = 120, 9
rng = np.random.default_rng(4)
TASTES = rng.dirichlet(np.full(ITEMS, 0.5), size=3)
X = (rng.uniform(size=(USERS, ITEMS)) < 2.5 * TASTES[rng.integers(3, size=USERS)]).astype(float)


def moments(x=X, w=None):
    y = np.zeros((len(x), 1))
    return Moments.from_rows(x, y, Frame.from_sample(x, y, Dense(1)), Dense(1), weights=w)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 5.0, 1e4])
@pytest.mark.parametrize("w", [None, rng.uniform(0.1, 3.0, USERS)], ids=["plain", "weighted"])
def test_each_item_from_all_others(alpha, w):
    e = ease(moments(w=w), alpha)
    root = np.sqrt(np.ones(USERS) if w is None else w)[:, None] * X
    for j in range(ITEMS):
        others = np.delete(np.arange(ITEMS), j)
        design = np.vstack([root[:, others], np.sqrt(alpha) * np.eye(ITEMS - 1)])
        target = np.append(root[:, j], np.zeros(ITEMS - 1))
        b, *_ = np.linalg.lstsq(design, target, rcond=None)
        np.testing.assert_allclose(e.weights[others, j], b, atol=1e-8)
        assert e.losses[j] == pytest.approx(((target - design @ b) ** 2).sum(), rel=1e-9)
    assert not np.diag(e.weights).any()
    assert e.relative_gradient < 1e-12


def test_ridge_of_scikit_learn():
    w = np.arange(USERS) % 2 + 0.5
    e = ease(moments(w=w), 3.0)
    for j in range(ITEMS):
        others = np.delete(np.arange(ITEMS), j)
        theirs = Ridge(3.0, fit_intercept=False).fit(X[:, others], X[:, j], sample_weight=w)
        np.testing.assert_allclose(e.weights[others, j], theirs.coef_, atol=1e-8)
        np.testing.assert_allclose(e.scores(X)[:, j], theirs.predict(X[:, others]), atol=1e-8)


@given(st.integers(0, 10**6), st.integers(1, 10), st.floats(0.01, 1e5))
def test_items_may_be_numbered_in_any_order(seed, d, alpha):
    r = np.random.default_rng(seed)
    x, order = r.integers(0, 3, size=(25, d)).astype(float), r.permutation(d)
    e, moved = ease(moments(x), alpha), ease(moments(x[:, order]), alpha)
    np.testing.assert_allclose(moved.weights, e.weights[np.ix_(order, order)], atol=1e-9)
    # No worse than predicting nothing, and no other weights do better.
    assert (e.losses <= (x**2).sum(axis=0) * (1 + 1e-9) + 1e-9).all()
    other = e.weights + 0.01 * r.normal(size=(d, d)) * (1 - np.eye(d))
    assert ((x - x @ other) ** 2).sum() + alpha * (other**2).sum() >= e.losses.sum() * (1 - 1e-9)


def test_recommendations_are_the_best_unseen():
    e = ease(moments(), 2.0)
    for n in (1, 3, ITEMS):
        found = e.recommend(X, n)
        assert found.shape == (USERS, n)
        for row, ids, scores in zip(X, found, e.scores(X), strict=True):
            unseen = np.flatnonzero(row == 0)
            expected = unseen[np.argsort(-scores[unseen], kind="stable")][:n]
            np.testing.assert_array_equal(ids[: len(expected)], expected)
            assert (ids[len(expected) :] == -1).all()
    everything = e.recommend(X, ITEMS, exclude_seen=False)
    np.testing.assert_array_equal(np.sort(everything, axis=1), np.tile(np.arange(ITEMS), (USERS, 1)))
    assert (e.recommend(np.ones((1, ITEMS)), 2) == -1).all()


def test_new_users_are_more_sums():
    frame = Frame.identity(ITEMS, 1)
    first, second = (Moments.from_rows(x, np.zeros((60, 1)), frame, Dense(1)) for x in (X[:60], X[60:]))
    np.testing.assert_array_equal(ease(first + second, 1.0).weights, ease(second + first, 1.0).weights)
    np.testing.assert_allclose(ease(first + second, 1.0).weights, ease(moments(), 1.0).weights, atol=1e-10)


def test_rows_on_any_device(on):
    e = ease(moments(), 2.0)
    np.testing.assert_array_equal(e.scores(on(X)), e.scores(X))
    np.testing.assert_array_equal(e.recommend(on(X), 2), e.recommend(X, 2))


def test_an_item_that_nobody_has():
    x = np.column_stack([X, np.zeros(USERS)])
    e = ease(moments(x), 1.0)
    assert not e.weights[ITEMS].any()
    assert not e.weights[:, ITEMS].any()
    assert e.losses[ITEMS] == 0
    np.testing.assert_allclose(e.weights[:ITEMS, :ITEMS], ease(moments(), 1.0).weights, atol=1e-10)
    with pytest.raises(SolveError, match="feature 9 does not vary"):
        ease(moments(x), 0.0)


def test_wrong_arguments_are_named():
    e = ease(moments(), 1.0)
    assert json.loads(json.dumps(e.to_json()))["loss"] == e.losses.sum()
    with pytest.raises(MismatchError, match=r"\(n_rows, 9\)"):
        e.scores(X[:, :2])
    for n in (0, ITEMS + 1):
        with pytest.raises(SolveError, match=r"\[1, 9\]"):
            e.recommend(X, n)
    for alpha in (-1.0, np.nan, np.inf):
        with pytest.raises(SolveError, match="finite number >= 0"):
            ease(moments(), alpha)
