"""Lasso, elastic net and nonnegative least squares against scikit-learn and SciPy on the rows; and the certificate."""

import json

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression

from streamfit.errors import MismatchError, SolveError
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.solve.duality import lasso_gaps
from streamfit.solve.ridge import solve
from streamfit.solve.sparse import (
    NotConvergedWarning,
    cross_validate_l1,
    elastic_net,
    elastic_net_path,
    largest_l1,
    nonnegative_least_squares,
)
from streamfit.targets import Dense

N, D, K = 70, 8, 3
rng = np.random.default_rng(21)
X = rng.normal(size=(N, D)) @ (np.eye(D) + 0.3 * rng.normal(size=(D, D))) + np.arange(D)
B = rng.normal(size=(D, K)) * (rng.uniform(size=(D, K)) < 0.5)
Y = X @ B + rng.normal(size=(N, K)) + [0.0, 10.0, -3.0]
W = rng.uniform(0.1, 3.0, size=N)
NEW = rng.normal(size=(6, D))

intercepts = pytest.mark.parametrize("fit_intercept", [True, False])
weightings = pytest.mark.parametrize("w", [None, W], ids=["plain", "weighted"])
signs = pytest.mark.parametrize("nonnegative", [False, True], ids=["any sign", "nonnegative"])


def moments(x=X, y=Y, w=None):
    return Moments.from_rows(x, y, Frame.from_sample(x, y, Dense(y.shape[1])), Dense(y.shape[1]), weights=w)


def objective(solution, x=X, y=Y, w=None):
    """The loss of each target, from rows and predictions."""
    squares = (np.ones(len(x)) if w is None else w) @ (y - solution.predict(x)) ** 2
    size = np.abs(solution.weights)
    return squares + solution.l1 * size.sum(axis=0) + solution.l2 * (size**2).sum(axis=0)


@intercepts
@weightings
@signs
@pytest.mark.parametrize(("l1", "l2"), [(40.0, 0.0), (5.0, 0.0), (5.0, 30.0), (0.5, 2.0)])
def test_scikit_learn(l1, l2, nonnegative, w, fit_intercept):
    total = N if w is None else w.sum()
    ours = elastic_net(moments(w=w), l1, l2, nonnegative=nonnegative, fit_intercept=fit_intercept)
    theirs = ElasticNet((l1 / 2 + l2) / total, l1_ratio=l1 / (l1 + 2 * l2), tol=1e-12, max_iter=100_000)
    theirs.set_params(positive=nonnegative, fit_intercept=fit_intercept)
    for k in range(K):
        theirs.fit(X, Y[:, k], sample_weight=w)
        np.testing.assert_allclose(ours.weights[:, k], theirs.coef_, atol=1e-6)
        np.testing.assert_allclose(ours.intercept[k], theirs.intercept_, atol=1e-5)
        np.testing.assert_array_equal(ours.weights[:, k] == 0, theirs.coef_ == 0)
    np.testing.assert_allclose(ours.losses, objective(ours, w=w), rtol=1e-10)
    assert (ours.gaps <= 1e-8 * ours.losses).all()


def test_the_lasso_of_scikit_learn():
    ours = elastic_net(moments(), 10.0)
    theirs = Lasso(10.0 / (2 * N), tol=1e-12).fit(X, Y[:, 1])
    np.testing.assert_allclose(ours.weights[:, 1], theirs.coef_, atol=1e-7)
    np.testing.assert_allclose(ours.predict(NEW)[:, 1], theirs.predict(NEW), atol=1e-6)


@intercepts
@weightings
@pytest.mark.parametrize("alpha", [0.0, 12.0])
def test_nonnegative_least_squares_on_the_rows(alpha, w, fit_intercept):
    ours = nonnegative_least_squares(moments(w=w), alpha, fit_intercept=fit_intercept)
    root = np.sqrt(np.ones(N) if w is None else w)[:, None]
    mean_x, mean_y = (np.average(a, axis=0, weights=w) * fit_intercept for a in (X, Y))
    design = np.vstack([root * (X - mean_x), np.sqrt(alpha) * np.eye(D)])
    for k in range(K):
        target = np.append(root[:, 0] * (Y - mean_y)[:, k], np.zeros(D))
        b, distance = scipy.optimize.nnls(design, target)
        np.testing.assert_allclose(ours.weights[:, k], b, atol=1e-9)
        assert ours.losses[k] == pytest.approx(distance**2, rel=1e-9)
    assert (ours.gaps <= 1e-8 * ours.losses).all()
    if not alpha:
        theirs = LinearRegression(positive=True, fit_intercept=fit_intercept).fit(X, Y, sample_weight=w)
        np.testing.assert_allclose(ours.weights, theirs.coef_.T, atol=1e-8)


@given(st.integers(0, 10**6), st.integers(1, 7), st.floats(-3, 0), st.sampled_from([0.0, 1e-3, 10.0]), st.booleans())
def test_stationary_and_certified(seed, d, exponent, l2, nonnegative):
    """The optimality conditions of each weight; and the gap holds for the solution and for weights far from it."""
    r = np.random.default_rng(seed)
    x = r.normal(size=(30, d)) * 10.0 ** r.integers(-2, 3, d)
    y = x @ r.normal(size=(d, 2)) + r.normal(size=(30, 2))
    c = moments(x, y).centered()
    l1 = 10.0**exponent * max(float(largest_l1(c, nonnegative=nonnegative).max()), 1e-9)
    s = elastic_net(c, l1, l2, nonnegative=nonnegative)
    system = c.gram + l2 * np.eye(d)
    pull, units = 2.0 * (c.cross - system @ s.weights), np.sqrt(np.diag(system))[:, None]
    slack = 1e-4 * (l1 + units * np.sqrt(c.ss_y))
    assert (np.where(s.weights > 0, np.abs(pull - l1), 0.0) <= slack).all()
    assert (np.where(s.weights < 0, np.abs(pull + l1), 0.0) <= slack).all()
    assert ((pull if nonnegative else np.abs(pull)) <= l1 + slack).all()
    assert (s.weights >= 0).all() or not nonnegative
    assert (s.gaps <= 1e-8 * c.ss_y).all()
    lowest = 0.99 * np.linalg.eigvalsh(system)[0]
    for size in (1e-6, 1e-2, 10.0):
        moved = s.weights + size * r.normal(size=s.weights.shape) / units
        moved = np.maximum(moved, 0.0) if nonnegative else moved
        for strong in (0.0, lowest):
            losses, gaps = lasso_gaps(system, c.cross, c.ss_y, moved, l1, nonnegative=nonnegative, strong=strong)
            assert (losses - gaps <= s.losses * (1 + 1e-12)).all()


def test_a_gap_is_of_the_size_of_the_distance():
    """Each way of finding a dual point says something: weights a little off are certified as a little off."""
    c, s = moments().centered(), elastic_net(moments(), 20.0)
    moved = s.weights * (1 + 1e-4)
    lowest = 0.99 * float(np.linalg.eigvalsh(c.gram)[0])
    for strong in (0.0, lowest):
        losses, gaps = lasso_gaps(c.gram, c.cross, c.ss_y, moved, 20.0, nonnegative=False, strong=strong)
        assert (losses - s.losses > 0).all()
        assert (gaps < 1e-2 * s.losses).all()
    plain = nonnegative_least_squares(moments())
    both = [
        lasso_gaps(c.gram, c.cross, c.ss_y, plain.weights + 1e-5, 0.0, nonnegative=True, strong=strong)[1]
        for strong in (0.0, lowest)
    ]
    assert np.isinf(both[0]).all()
    assert (both[1] < 1e-3 * plain.losses).all()


def test_a_path_in_any_order():
    grid = np.array([3.0, 300.0, 0.1, 30.0, 3.0])
    path = elastic_net_path(moments(), grid, 1.0)
    assert [s.l1 for s in path] == grid.tolist()
    for s in path:
        alone = elastic_net(moments(), s.l1, 1.0)
        np.testing.assert_allclose(s.weights, alone.weights, atol=1e-6)
        np.testing.assert_allclose(s.losses, alone.losses, rtol=1e-9)
    nearly_ridge = elastic_net(moments(), 1e-6, 1.0)
    np.testing.assert_allclose(nearly_ridge.weights, solve(moments(), 1.0).weights, atol=1e-5)
    mixed = elastic_net_path(moments(), [0.0, 2.0], 1.0, nonnegative=True)
    np.testing.assert_array_equal(mixed[0].weights, nonnegative_least_squares(moments(), 1.0).weights)


@signs
def test_where_a_grid_starts(nonnegative):
    largest = largest_l1(moments(), nonnegative=nonnegative)
    for k in range(K):
        at, below = elastic_net_path(moments(), largest[k] * np.array([1.0, 0.999]), nonnegative=nonnegative)
        assert at.n_nonzero[k] == 0
        assert below.n_nonzero[k] == 1
        assert at.gaps[k] <= 1e-10 * at.losses[k]
    assert at.losses[k] == pytest.approx(((Y - Y.mean(axis=0)) ** 2).sum(axis=0)[k])


def test_dependent_and_constant_features():
    x = np.column_stack([X, X[:, 0], np.full(N, 0.1), X[:, 1] + X[:, 2]])
    ours = elastic_net(moments(x), 8.0)
    assert not ours.weights[D + 1].any()
    for k in range(K):
        theirs = Lasso(8.0 / (2 * N), tol=1e-12, max_iter=100_000).fit(x, Y[:, k])
        np.testing.assert_allclose(ours.predict(x)[:, k], theirs.predict(x), atol=1e-4)
    np.testing.assert_allclose(ours.losses, objective(ours, x), rtol=1e-10)
    assert (ours.gaps <= 1e-8 * ours.losses).all()
    # Without a penalty nothing certain can be said of a singular system; the loss is that of the features told apart.
    plain = nonnegative_least_squares(moments(x))
    assert plain.losses.sum() <= nonnegative_least_squares(moments()).losses.sum() * (1 + 1e-9)
    assert np.isinf(plain.gaps).all()
    assert json.loads(json.dumps(plain.to_json()))["gaps"] == [None] * K
    nothing = elastic_net(moments(np.full((9, 2), 0.1), Y[:9]), 1.0)
    assert not nothing.weights.any()
    np.testing.assert_allclose(nothing.intercept, Y[:9].mean(axis=0))
    assert not elastic_net(moments(y=np.zeros((N, 1))), 1.0).weights.any()


@intercepts
def test_folds_choose_a_penalty(fit_intercept):
    """Held-out errors of scikit-learn's fits on the rows of the other folds."""
    fold, grid, w = np.arange(N) % 3, np.array([200.0, 2.0, 20.0]), W
    frame = Frame.from_sample(X, Y, Dense(K))
    folds = {f: Moments.from_rows(X[f == fold], Y[f == fold], frame, Dense(K), weights=w[f == fold]) for f in range(3)}
    path = cross_validate_l1(folds, grid, 1.0, fit_intercept=fit_intercept)
    np.testing.assert_array_equal(path.alphas, [2.0, 20.0, 200.0])
    for f in range(3):
        train, test = f != fold, f == fold
        for i, l1 in enumerate(path.alphas):
            for k in range(K):
                theirs = ElasticNet((l1 / 2 + 1.0) / w[train].sum(), l1_ratio=l1 / (l1 + 2.0), tol=1e-12)
                theirs.set_params(fit_intercept=fit_intercept, max_iter=100_000)
                theirs.fit(X[train], Y[train, k], sample_weight=w[train])
                errors = (Y[test, k] - theirs.predict(X[test])) ** 2
                assert path.target_losses[f, i, k] == pytest.approx(np.average(errors, weights=w[test]), rel=1e-5)
    assert path.best == path.alphas[path.mean_losses.argmin()]
    assert path.best_per_target.shape == (K,)
    assert path.one_se >= path.best
    with pytest.raises(SolveError, match="1 fold"):
        cross_validate_l1({0: folds[0], 1: folds[1] - folds[1]}, grid)


def test_descent_that_stops_early_says_how_far_it_is():
    with pytest.warns(NotConvergedWarning, match=r"after 2 sweeps at l1 0.01 of target 0 \(3 in all\)"):
        early = elastic_net(moments(), 0.01, max_iter=2)
    best = elastic_net(moments(), 0.01)
    assert (early.losses > best.losses).all()
    assert (early.gaps >= early.losses - best.losses).all()
    assert np.isfinite(early.gaps).all()


def test_rows_on_any_device(on):
    s = elastic_net(moments(), 3.0)
    np.testing.assert_array_equal(s.predict(on(NEW)), NEW @ s.weights + s.intercept)


def test_wrong_arguments_are_named(monkeypatch):
    s = elastic_net(moments(), 30.0)
    assert s.lines()[1].startswith("loss - optimum     <= ")
    assert s.lines()[2] == f"nonzero weights    {s.n_nonzero.sum()} of {D * K}"
    assert json.loads(json.dumps(s.to_json()))["n_nonzero"] == s.n_nonzero.tolist()
    with pytest.raises(MismatchError, match=r"\(n_rows, 8\)"):
        s.predict(NEW[:, :2])
    for l1s in ([-1.0], [np.nan], [np.inf], [], [[1.0]]):
        with pytest.raises(SolveError, match="l1 penalties"):
            elastic_net_path(moments(), l1s)
    for l2 in (-1.0, np.nan, np.inf):
        with pytest.raises(SolveError, match="l2 penalty"):
            elastic_net(moments(), 1.0, l2)
    with pytest.raises(SolveError, match="use `solve` with alpha = l2"):
        elastic_net(moments(), 0.0, 1.0)

    def endless(*_):
        raise RuntimeError

    monkeypatch.setattr(scipy.optimize, "nnls", endless)
    with pytest.raises(SolveError, match="did not end within 24 steps"):
        nonnegative_least_squares(moments())
