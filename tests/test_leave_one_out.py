"""Leave-one-out errors from leverages against refits without each row, and against scikit-learn's RidgeCV."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV

from streamfit.errors import MismatchError, SolveError
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.solve.leave_one_out import LeaveOneOut
from streamfit.solve.spectrum import decompose
from streamfit.targets import Dense, OneHot

N, D, K = 50, 5, 4
rng = np.random.default_rng(6)
PHI = rng.normal(size=(N, D)) @ rng.normal(size=(D, D)) + np.arange(D)
Y = PHI @ rng.normal(size=(D, K)) * [0.02, 0.3, 1.0, 5.0] + rng.normal(size=(N, K)) - 4.0
W = rng.uniform(0.1, 3.0, size=N)
ALPHAS = np.array([1e-3, 0.5, 10.0, 200.0])


def moments(weights=None, phi=PHI, y=Y):
    targets = Dense(y.shape[1])
    return Moments.from_rows(phi, y, Frame.from_sample(phi, y, targets), targets, weights=weights)


def press(spectrum, weights=None, phi=PHI, y=Y, alphas=ALPHAS, cuts=(), block=3):
    one = LeaveOneOut(spectrum, alphas, block=block)
    for rows in np.split(np.arange(len(phi)), cuts):
        one.add(phi[rows], y[rows], None if weights is None else weights[rows])
    return one.press()


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weights", [None, W], ids=["plain", "weighted"])
def test_each_row_is_predicted_by_a_refit_to_the_others(fit_intercept, weights):
    w = np.ones(N) if weights is None else weights
    expected = np.zeros((len(ALPHAS), K))
    for a, alpha in enumerate(ALPHAS):
        for t in range(N):
            others = np.arange(N) != t
            model = Ridge(alpha=alpha, fit_intercept=fit_intercept, solver="cholesky")
            model.fit(PHI[others], Y[others], sample_weight=w[others])
            expected[a] += w[t] * (Y[t] - model.predict(PHI[t : t + 1])[0]) ** 2
    ours = press(decompose(moments(weights), fit_intercept=fit_intercept), weights, cuts=(7, 7, 30))
    np.testing.assert_allclose(ours.losses, expected, rtol=1e-8)
    np.testing.assert_allclose(ours.target_losses, expected / w.sum(), rtol=1e-8)
    np.testing.assert_allclose(ours.mean_losses, expected.sum(axis=1) / w.sum(), rtol=1e-8)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weights", [None, W], ids=["plain", "weighted"])
def test_errors_and_choices_are_ridge_cvs(fit_intercept, weights):
    options = {"alphas": ALPHAS, "fit_intercept": fit_intercept, "store_cv_results": True}
    each = RidgeCV(alpha_per_target=True, **options).fit(PHI, Y, sample_weight=weights)
    ours = press(decompose(moments(weights), fit_intercept=fit_intercept), weights)
    np.testing.assert_allclose(ours.losses, each.cv_results_.sum(axis=0).T, rtol=1e-8)
    np.testing.assert_array_equal(ours.best_per_target, each.alpha_)
    assert ours.best == RidgeCV(**options).fit(PHI, Y, sample_weight=weights).alpha_
    assert len(set(ours.best_per_target)) > 1


def test_passes_over_parts_add_up():
    """Two workers, each with some of the rows: the pass of both together, and no use of either alone."""
    spectrum = decompose(moments(W))
    whole, first, second = (
        press(spectrum, W[rows], PHI[rows], Y[rows]) for rows in (slice(0, N), slice(0, 20), slice(20, N))
    )
    both = first + second
    np.testing.assert_allclose(both.losses, whole.losses, rtol=1e-12)
    np.testing.assert_array_equal(both.peak_leverages, whole.peak_leverages)
    assert both.best == whole.best
    assert both.n_rows == N
    with pytest.raises(SolveError, match=f"over 20 rows .* expected all {N} fitted rows"):
        _ = first.best
    with pytest.raises(SolveError, match="expected all"):
        _ = press(spectrum).mean_losses  # the weights forgotten
    with pytest.raises(MismatchError, match="one spectrum and one grid"):
        _ = first + press(spectrum, W, alphas=ALPHAS * 2)
    with pytest.raises(MismatchError, match="one spectrum"):
        _ = first + replace(second, all_rows=N + 1)


@pytest.mark.parametrize("block", [1, 2, 100])
def test_class_ids_are_their_indicators(block):
    ids = rng.integers(K, size=N)
    sums = Moments.from_rows(PHI, ids, Frame.identity(D, K), OneHot(K))
    spectrum = decompose(sums)
    of_ids, of_rows = (press(spectrum, y=y, block=block) for y in (ids, np.eye(K)[ids]))
    np.testing.assert_allclose(of_ids.losses, of_rows.losses, rtol=1e-12)


@pytest.mark.parametrize("n_rows", [1023, 1024, 1025])
def test_blocks_of_rows_lose_none(n_rows):
    phi = rng.normal(size=(n_rows, 2)).astype(np.float32)
    y = phi[:, :1] + rng.normal(size=(n_rows, 1))
    ours = press(decompose(moments(None, phi, y)), None, phi, y)
    theirs = RidgeCV(alphas=ALPHAS, store_cv_results=True).fit(phi.astype(float), y[:, 0])
    np.testing.assert_allclose(ours.losses[:, 0], theirs.cv_results_.sum(axis=0), rtol=1e-6)


def test_a_row_that_stands_alone_takes_the_alphas_that_follow_it_out():
    """An indicator of one row: as alpha falls its leverage tends to 1, and nothing is left of 1 - h."""
    phi = np.column_stack([PHI, np.eye(N)[0]])
    grid = np.array([1e-10, 1e-4, 1.0, 100.0])
    ours = press(decompose(moments(None, phi)), None, phi, alphas=grid)
    assert ours.trusted.tolist() == [False, True, True, True]
    theirs = RidgeCV(alphas=grid[1:], store_cv_results=True).fit(phi, Y)
    np.testing.assert_allclose(ours.losses[1:], theirs.cv_results_.sum(axis=0).T, rtol=1e-6)
    assert ours.best in grid[1:]
    assert set(ours.best_per_target) <= set(grid[1:])
    assert ours.to_json()["trusted"] == ours.trusted.tolist()
    alone = press(decompose(moments(None, phi)), None, phi, alphas=grid[:1])
    with pytest.raises(SolveError, match="rounding decides"):
        _ = alone.best


def test_rows_that_do_not_fit_are_refused():
    one = LeaveOneOut(decompose(moments()), ALPHAS)
    for phi, y, w in (
        (PHI[:, 1:], Y, None),
        (PHI, Y[:, 1:], None),
        (PHI, Y[1:], None),
        (PHI, Y, W[1:]),
        (PHI, np.full(N, K), None),
        (PHI, np.full(N, 0.5), None),
    ):
        with pytest.raises(MismatchError):
            one.add(phi, y, w)
    assert one.press().n_rows == 0
    with pytest.raises(SolveError, match="finite numbers"):
        LeaveOneOut(decompose(moments()), [-1.0])
