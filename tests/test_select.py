"""Cross-validation target by target, and the rule of one standard error."""

import tracemalloc

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from streamfit.errors import SolveError
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.solve import cross_validate
from streamfit.solve.per_target import solve_targets
from streamfit.solve.select import AlphaPath
from streamfit.targets import Dense, OneHot

N, D, K, F = 200, 6, 5, 4
rng = np.random.default_rng(3)
PHI = rng.normal(size=(N, D)) + np.arange(D)
Y = PHI @ rng.normal(size=(D, K)) * [0.0, 0.05, 0.2, 1.0, 5.0] + rng.normal(size=(N, K)) + 3.0
W = rng.uniform(0.1, 2.0, size=N)
fold_of = rng.integers(F, size=N)
ALPHAS = np.geomspace(1e-2, 1e4, 9)


def folds(phi=PHI, y=Y, n=F):
    frame = Frame.from_sample(phi, y, Dense(y.shape[1]))
    return {
        k: Moments.from_rows(phi[fold_of == k], y[fold_of == k], frame, Dense(y.shape[1]), weights=W[fold_of == k])
        for k in range(n)
    }


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("units", [1.0, 10.0 ** np.array([-6, 6, 0, 3, -3, 5])], ids=["plain", "odd units"])
def test_losses_of_targets_are_those_of_refits(fit_intercept, units):
    """Without units also against scikit-learn; with them, the sum over targets against the path without targets."""
    path = cross_validate(folds(PHI * units), ALPHAS, fit_intercept=fit_intercept, per_target=True, block=2)
    assert path.target_losses.shape == (F, len(ALPHAS), K)
    np.testing.assert_allclose(path.target_losses.sum(axis=2), path.losses, rtol=1e-12)
    summed = cross_validate(folds(PHI * units), ALPHAS, fit_intercept=fit_intercept)
    np.testing.assert_allclose(path.losses, summed.losses, rtol=1e-7)
    assert (path.best, path.to_json()["alphas"]) == (summed.best, summed.to_json()["alphas"])
    for k in range(F):
        for a, alpha in enumerate(ALPHAS):
            # In odd units the reference is an SVD of rows that are standardised, with a penalty each.
            scale = np.broadcast_to(units, (D,))
            w, x, y = W[fold_of != k], PHI[fold_of != k], Y[fold_of != k]
            mean, mean_y = (np.average(v, axis=0, weights=w) * fit_intercept for v in (x, y))
            rows = np.vstack([np.sqrt(w)[:, None] * (x - mean), np.diag(np.sqrt(alpha) / scale)])
            b = np.linalg.lstsq(rows, np.vstack([np.sqrt(w)[:, None] * (y - mean_y), np.zeros((D, K))]), rcond=None)[0]
            errors = Y[fold_of == k] - mean_y - (PHI[fold_of == k] - mean) @ b
            expected = np.average(errors**2, axis=0, weights=W[fold_of == k])
            np.testing.assert_allclose(path.target_losses[k, a], expected, rtol=1e-7)


def test_each_target_gets_the_alpha_of_its_own_cross_validation():
    path = cross_validate(folds(), ALPHAS, per_target=True)
    alone = [cross_validate(folds(y=Y[:, k : k + 1]), ALPHAS) for k in range(K)]
    np.testing.assert_array_equal(path.best_per_target, [one.best for one in alone])
    np.testing.assert_array_equal(path.one_se_per_target, [one.one_se for one in alone])
    assert len(set(path.best_per_target)) > 2
    total = sum(folds().values(), start=Moments.zeros(folds()[0].frame, Dense(K)))
    theirs = Ridge(alpha=path.best_per_target, solver="cholesky").fit(PHI, Y, sample_weight=W)
    ours = solve_targets(total, path.best_per_target)
    np.testing.assert_allclose(ours.weights, theirs.coef_.T, rtol=1e-9, atol=1e-12)


def test_the_standard_error_of_equal_folds_is_the_textbooks():
    losses = rng.uniform(1.0, 2.0, size=(5, 3))
    path = AlphaPath(np.arange(1.0, 4.0), losses, np.ones(5), np.full(5, 7.0), np.ones(3, bool))
    np.testing.assert_allclose(path.standard_errors, losses.std(axis=0, ddof=1) / np.sqrt(5), rtol=1e-12)


def test_the_error_of_a_weighted_mean_counts_each_fold_by_its_share():
    """A fold without weight has no say; by hand for two folds of shares 1/4 and 3/4."""
    path = AlphaPath(np.ones(1), np.array([[1.0], [5.0]]), np.ones(2), np.array([1.0, 3.0]), np.ones(1, bool))
    mean = 4.0
    by_hand = np.sqrt(2.0 * ((1 / 4 * (1 - mean)) ** 2 + (3 / 4 * (5 - mean)) ** 2))
    assert path.standard_errors[0] == pytest.approx(by_hand, rel=1e-12)


def test_one_standard_error_takes_the_largest_alpha_within_it():
    """Means 3, 2, 2.2, 2.4, 9 with an error of 0.3 at the best: 2.2 is within it, 2.4 is not."""
    means = np.array([3.0, 2.0, 2.2, 2.4, 9.0])
    spread = 0.3 * np.array([[1.0], [-1.0]])  # of two folds: the error of the mean is 0.3
    alphas = np.array([0.1, 1.0, 10.0, 100.0, 1e3])
    trusted = np.ones(5, dtype=bool)
    path = AlphaPath(alphas, means + spread, np.ones(2), np.ones(2), trusted)
    np.testing.assert_allclose(path.standard_errors, 0.3)
    assert (path.best, path.one_se) == (1.0, 10.0)
    wider = AlphaPath(alphas, means + 2 * spread, np.ones(2), np.ones(2), trusted)
    assert wider.one_se == 100.0
    still = AlphaPath(alphas, means + 0 * spread, np.ones(2), np.ones(2), trusted)
    assert still.one_se == still.best
    # Beyond the limit and back within it: still the largest.
    back = AlphaPath(alphas, np.array([3.0, 2.0, 9.0, 2.1, 9.0]) + spread, np.ones(2), np.ones(2), trusted)
    assert back.one_se == 100.0


def test_what_is_not_trusted_is_neither_the_best_nor_within_an_error_of_it():
    means = np.array([0.0, 2.0, 2.1, 1.0])
    losses = means + 0.3 * np.array([[1.0], [-1.0]])
    trusted = np.array([False, True, True, False])
    path = AlphaPath(np.arange(1.0, 5.0), losses, np.ones(2), np.ones(2), trusted, losses[:, :, None])
    assert (path.best, path.one_se) == (2.0, 3.0)
    assert (path.best_per_target, path.one_se_per_target) == (np.array([2.0]), np.array([3.0]))


def test_losses_of_targets_must_have_been_asked_for():
    path = cross_validate(folds(), ALPHAS)
    assert path.target_losses is None
    for name in ("best_per_target", "one_se_per_target"):
        with pytest.raises(SolveError, match="per_target=True"):
            getattr(path, name)


def test_weights_of_all_targets_and_alphas_never_exist_at_a_time():
    """Losses of targets cost their own size and a few blocks more than the summed path does."""
    d, k, block = 64, 4096, 64
    random = np.random.default_rng(0)
    frame = Frame.identity(d, k)
    parts = {
        f: Moments.from_rows(random.normal(size=(300, d)), random.integers(k, size=300), frame, OneHot(k))
        for f in range(2)
    }
    grid = np.geomspace(1.0, 10.0, 8)
    peaks = []
    for per_target in (False, True):
        tracemalloc.start()
        cross_validate(parts, grid, per_target=per_target, block=block)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] <= 4 * (2 * len(grid) * 8 * k) + 6 * 8 * d * block < 8 * d * k * len(grid) / 4
