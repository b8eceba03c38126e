"""The posterior against textbook formulas on the rows themselves, BayesianRidge, and laws of the hat matrix."""

import json
import sys

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import BayesianRidge

from streamfit.errors import ConfigError, MismatchError, SolveError
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.solve.posterior import posterior
from streamfit.solve.ridge import IllConditionedWarning
from streamfit.targets import Dense, OneHot

N, D, K = 80, 5, 3
rng = np.random.default_rng(11)
PHI = rng.normal(size=(N, D)) @ rng.normal(size=(D, D)) + 2.0 * np.arange(D)
Y = PHI @ rng.normal(size=(D, K)) + rng.normal(size=(N, K)) * [0.1, 1.0, 5.0] + [0.0, 5.0, -50.0]
W = rng.uniform(0.1, 3.0, size=N)
NEW = rng.normal(size=(7, D)) * 3.0

intercepts = pytest.mark.parametrize("fit_intercept", [True, False])
weightings = pytest.mark.parametrize("w", [None, W], ids=["plain", "weighted"])


def moments(phi=PHI, y=Y, w=None):
    return Moments.from_rows(phi, y, Frame.from_sample(phi, y, Dense(y.shape[1])), Dense(y.shape[1]), weights=w)


def designed(phi, fit_intercept):
    return np.column_stack([phi, np.ones(len(phi))]) if fit_intercept else phi


def in_memory(alpha, fit_intercept, w, phi=PHI):
    """Design, its weighted rows and the inverse of the penalised system, intercept last and not penalised."""
    x = designed(phi, fit_intercept)
    root = np.sqrt(np.ones(len(phi)) if w is None else w)[:, None]
    penalty = np.diag(np.r_[np.full(phi.shape[1], alpha), np.zeros(int(fit_intercept))])
    return x, root, np.linalg.inv((root * x).T @ (root * x) + penalty)


@intercepts
@weightings
def test_ordinary_least_squares(fit_intercept, w):
    x, root, inverse = in_memory(0.0, fit_intercept, w)
    b = np.linalg.lstsq(root * x, root * Y, rcond=None)[0]
    dof = N - x.shape[1]
    variance = ((root * (Y - x @ b)) ** 2).sum(axis=0) / dof
    errors = np.sqrt(np.outer(np.diag(inverse), variance))
    p_values = 2 * scipy.stats.t.sf(np.abs(b / errors), dof)

    p = posterior(moments(w=w), 0.0, fit_intercept=fit_intercept)
    tests = p.t_statistics()
    assert p.residual_dof == tests.dof == dof
    np.testing.assert_allclose(p.noise_variance, variance, rtol=1e-9)
    for spread in ("posterior", "sampling"):
        np.testing.assert_allclose(p.standard_errors(spread), errors[:D], rtol=1e-8)
    np.testing.assert_allclose(tests.t, (b / errors)[:D], rtol=1e-7)
    np.testing.assert_allclose(tests.p, p_values[:D], rtol=1e-6, atol=1e-300)
    new = designed(NEW, fit_intercept)
    np.testing.assert_allclose(
        p.predictive_variance(NEW), np.outer(1 + np.sum(new @ inverse * new, axis=1), variance), rtol=1e-8
    )
    if fit_intercept:
        np.testing.assert_allclose(p.intercept_standard_errors(), errors[D], rtol=1e-8)
        np.testing.assert_allclose(tests.intercept_t, (b / errors)[D], rtol=1e-7)
        np.testing.assert_allclose(tests.intercept_p, p_values[D], rtol=1e-6, atol=1e-300)
    else:
        assert tests.intercept_t is None
        assert tests.intercept_p is None
        assert not p.intercept_standard_errors().any()


@intercepts
@weightings
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e3, 1e8])
def test_the_posterior_is_the_inverse_of_the_penalised_system(alpha, fit_intercept, w):
    x, root, inverse = in_memory(alpha, fit_intercept, w)
    p = posterior(moments(w=w), alpha, fit_intercept=fit_intercept)
    hat = np.sum((root * x) @ inverse * (root * x))
    assert p.effective_dof == pytest.approx(hat, rel=1e-9)
    residuals = root * (Y - p.solution.predict(PHI))
    np.testing.assert_allclose(p.noise_variance, (residuals**2).sum(axis=0) / (N - hat), rtol=1e-8)
    scale = np.sqrt(np.diag(inverse))
    np.testing.assert_allclose(p.standard_errors(), np.outer(scale[:D], np.sqrt(p.noise_variance)), rtol=1e-8)
    for k in range(K):
        np.testing.assert_allclose(
            p.covariance(k), p.noise_variance[k] * inverse[:D, :D], rtol=1e-7, atol=1e-9 * p.covariance(k).max()
        )
    if fit_intercept:
        np.testing.assert_allclose(p.intercept_standard_errors(), scale[D] * np.sqrt(p.noise_variance), rtol=1e-8)


@intercepts
@weightings
@pytest.mark.parametrize("alpha", [0.0, 1.0, 1e3, 1e14])
def test_sampling_errors_are_what_noise_does_to_the_estimate(alpha, fit_intercept, w):
    """The estimate is linear in the targets: fitting unit targets gives its matrix, and so its exact covariance."""
    unit = moments(y=np.eye(N), w=w)
    p = posterior(unit, alpha, fit_intercept=fit_intercept, noise_variance=1.0)
    noise = 1.0 / (np.ones(N) if w is None else w)
    exact = np.sqrt((p.solution.weights**2 * noise).sum(axis=1))
    np.testing.assert_allclose(p.standard_errors("sampling")[:, 0], exact, rtol=1e-7)
    assert (p.standard_errors("sampling") <= p.standard_errors() * (1 + 1e-9)).all()
    level = np.sqrt((p.solution.intercept**2 * noise).sum())
    np.testing.assert_allclose(p.intercept_standard_errors("sampling"), level, rtol=1e-7)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 300.0])
@weightings
def test_the_noise_variance_is_unbiased_over_prior_and_noise(alpha, w):
    """Squared residuals are a quadratic form in y: the columns of a root of y's covariance give its expectation."""
    x = PHI
    noise = np.diag(1.0 / (np.ones(N) if w is None else w))
    covariance = 1.7 * (noise + (x @ x.T / alpha if alpha else x @ x.T))
    p = posterior(moments(y=np.linalg.cholesky(covariance), w=w), alpha)
    assert p.noise_variance.sum() == pytest.approx(1.7, rel=1e-8)


@pytest.mark.parametrize("weights", [None, W], ids=["plain", "weighted"])
@intercepts
def test_bayesian_ridge_at_its_own_hyperparameters(weights, fit_intercept):
    y = Y[:, 1]
    theirs = BayesianRidge(alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, tol=1e-13, max_iter=5000)
    theirs.set_params(fit_intercept=fit_intercept).fit(PHI, y, sample_weight=weights)
    m, alpha = moments(y=y[:, None], w=weights), theirs.lambda_ / theirs.alpha_
    mean, std = theirs.predict(NEW, return_std=True)

    p = posterior(m, alpha, fit_intercept=fit_intercept, noise_variance=1 / theirs.alpha_)
    np.testing.assert_allclose(p.solution.predict(NEW)[:, 0], mean, rtol=1e-7)
    np.testing.assert_allclose(p.covariance(), theirs.sigma_, rtol=1e-6, atol=1e-9 * theirs.sigma_.max())
    # Theirs takes the intercept for known.
    level = fit_intercept / p.weight / theirs.alpha_
    np.testing.assert_allclose(p.predictive_variance(NEW)[:, 0] - level, std**2, rtol=1e-7)

    # Their noise is the fixed point of the same estimator, without a degree of freedom for the intercept.
    estimated = posterior(m, alpha, fit_intercept=fit_intercept)
    observations = float(N) if weights is None else weights.sum()
    freed = posterior(m, alpha, fit_intercept=fit_intercept, n_observations=observations + fit_intercept)
    assert freed.noise_variance[0] == pytest.approx(1 / theirs.alpha_, rel=1e-6)
    assert estimated.residual_dof == pytest.approx(N - estimated.effective_dof)


@intercepts
@weightings
@pytest.mark.parametrize("alpha", [0.0, 1.0, 100.0])
def test_leverages_are_the_diagonal_of_the_hat_matrix(alpha, fit_intercept, w, on):
    x, root, inverse = in_memory(alpha, fit_intercept, w)
    hat = np.diag((root * x) @ inverse @ (root * x).T)
    p = posterior(moments(w=w), alpha, fit_intercept=fit_intercept)
    ours = p.leverage(on(PHI), None if w is None else on(w))
    np.testing.assert_allclose(ours, hat, rtol=1e-8)
    assert ours.sum() == pytest.approx(p.effective_dof, rel=1e-9)


@given(st.integers(0, 10**6), st.integers(1, 8), st.floats(1e-6, 1e6), st.booleans())
def test_leverages_sum_to_the_degrees_of_freedom(seed, d, alpha, fit_intercept):
    r = np.random.default_rng(seed)
    phi, w = r.normal(size=(30, d)) * 10.0 ** r.integers(-3, 4, d) + r.normal(size=d), r.uniform(0, 2, 30)
    p = posterior(moments(phi, r.normal(size=(30, 2)), w), alpha, fit_intercept=fit_intercept)
    h = p.leverage(phi, w)
    assert (h >= 0).all()
    assert (h <= 1 + 1e-9).all()
    assert h.sum() == pytest.approx(p.effective_dof, rel=1e-8)
    assert 0 < p.effective_dof <= d + fit_intercept + 1e-9


def test_leverage_by_blocks_and_in_single_precision():
    many = np.tile(PHI, (2000, 1))
    p = posterior(moments(), 1.0)
    np.testing.assert_allclose(p.leverage(many), np.tile(p.leverage(PHI), 2000), rtol=1e-12)
    np.testing.assert_allclose(p.leverage(many.astype(np.float32))[:N], p.leverage(PHI), rtol=1e-3)
    assert p.leverage(PHI[:0]).shape == (0,)
    assert p.predictive_variance(PHI[:0]).shape == (0, K)


def test_what_was_never_seen_has_leverage_above_one():
    """Also where it differs only in a feature that the corpus has as a constant."""
    phi = np.column_stack([PHI, np.full(N, 0.1)])
    p = posterior(moments(phi), 1.0)
    strange = np.vstack([phi.mean(axis=0)] * 3)
    strange[1, 0] += 1000.0
    strange[2, D] += 10.0
    near, *far = p.leverage(strange)
    assert near == pytest.approx(1 / N, abs=1e-9)
    assert min(far) > 1
    assert far[1] == pytest.approx(100.0 + 1 / N, rel=1e-9)  # the prior's variance is all that is known of it


@given(st.lists(st.integers(-12, 12), min_size=D, max_size=D))
def test_units_of_features_and_targets_do_not_matter_to_t(exponents):
    units = 10.0 ** np.array(exponents)
    p, q = posterior(moments(), 0.0), posterior(moments(PHI * units, Y * 1e3), 0.0)
    np.testing.assert_allclose(q.t_statistics().t, p.t_statistics().t, rtol=1e-6)
    np.testing.assert_allclose(q.noise_variance, 1e6 * p.noise_variance, rtol=1e-7)
    np.testing.assert_allclose(q.leverage(PHI * units), p.leverage(PHI), rtol=1e-6)


def test_weights_that_count_repetitions():
    times = np.arange(N) % 3 + 1
    repeated = moments(np.repeat(PHI, times, axis=0), np.repeat(Y, times, axis=0))
    counted = moments(w=times.astype(float))
    for alpha in (0.0, 2.0):
        p, q = posterior(repeated, alpha), posterior(counted, alpha, n_observations=times.sum())
        np.testing.assert_allclose(q.noise_variance, p.noise_variance, rtol=1e-9)
        np.testing.assert_allclose(q.standard_errors(), p.standard_errors(), rtol=1e-9)
    # Otherwise weights say how precise a row is, and their scale says nothing of the number of rows.
    scaled = posterior(moments(w=7.0 * times), 0.0)
    np.testing.assert_allclose(scaled.standard_errors(), posterior(counted, 0.0).standard_errors(), rtol=1e-9)


def test_confidence_intervals_cover():
    """Of 2,000 simulated targets, about 95% have their weight within the interval; 4 standard deviations allowed."""
    r = np.random.default_rng(5)
    phi, b, n = r.normal(size=(12, 4)), r.normal(size=(4, 2000)), 2000
    y = phi @ b + r.normal(size=(12, n))
    p = posterior(moments(phi, y), 0.0)
    reach = scipy.stats.t.ppf(0.975, p.residual_dof) * p.standard_errors()
    covered = (np.abs(p.solution.weights - b) <= reach).mean(axis=1)
    assert np.abs(covered - 0.95).max() <= 4 * np.sqrt(0.05 * 0.95 / n)


def test_a_known_noise_variance_makes_t_normal():
    p = posterior(moments(), 0.0, noise_variance=[1.0, 2.0, 3.0])
    tests = p.t_statistics()
    assert tests.dof == np.inf
    np.testing.assert_allclose(tests.p, 2 * scipy.stats.norm.sf(np.abs(tests.t)), rtol=1e-9, atol=1e-300)
    np.testing.assert_array_equal(p.noise_variance, [1.0, 2.0, 3.0])
    assert json.loads(json.dumps(p.to_json()))["residual_dof"] is None
    assert json.loads(json.dumps(tests.to_json()))["dof"] is None


def test_targets_without_residual():
    y = np.column_stack([PHI[:, 0], np.zeros(N), Y[:, 0]])
    p = posterior(Moments.from_rows(np.round(PHI), np.round(y), Frame.identity(D, 3), Dense(3)), 0.0)
    tests = p.t_statistics()
    assert p.noise_variance[0] < 1e-12
    assert p.noise_variance[1] == 0
    assert tests.p[0, 0] < 1e-12
    assert np.isnan(tests.p[:, 1]).all()
    assert np.isfinite(tests.p[:, 2]).all()


def test_class_ids():
    ids = rng.integers(K, size=N)
    sparse = posterior(Moments.from_rows(PHI, ids, Frame.identity(D, K), OneHot(K)), 1.0)
    dense = posterior(moments(y=np.eye(K)[ids]), 1.0)
    np.testing.assert_allclose(sparse.noise_variance, dense.noise_variance, rtol=1e-9)
    np.testing.assert_allclose(sparse.leverage(NEW), dense.leverage(NEW), rtol=1e-9)


def test_more_targets_than_one_block(monkeypatch):
    whole = posterior(moments(), 1.0)
    monkeypatch.setattr(sys.modules["streamfit.solve.posterior"], "_TARGETS_AT_ONCE", 2)
    np.testing.assert_allclose(posterior(moments(), 1.0).noise_variance, whole.noise_variance, rtol=1e-12)


def test_too_few_rows_and_singular_systems_are_refused():
    for rows, alpha in ((D + 1, 0.0), (D + 1, 1e-12)):
        with pytest.raises(SolveError, match=r"6 observations for 6 degrees.*noise variance"):
            posterior(moments(PHI[:rows], Y[:rows]), alpha)
    assert posterior(moments(PHI[: D + 2], Y[: D + 2]), 0.0).residual_dof == 1
    assert posterior(moments(PHI[: D + 1], Y[: D + 1]), 0.0, noise_variance=1.0).residual_dof == np.inf
    assert posterior(moments(PHI[:3], Y[:3]), 1.0).residual_dof > 0
    with pytest.raises(SolveError, match="singular system with alpha 0"):
        posterior(moments(PHI[:D], Y[:D]), 0.0)
    twice = np.round(np.column_stack([PHI, PHI[:, 0]]) * 100)
    with pytest.raises(SolveError, match="feature 5"):
        posterior(moments(twice), 0.0)
    constant = np.column_stack([PHI[:, :2], np.full(N, 0.1), PHI[:, 2:]])
    with pytest.raises(SolveError, match="feature 2 does not vary"):
        posterior(moments(constant), 0.0)
    with pytest.raises(SolveError, match="singular system with alpha 1e-12"):
        posterior(moments(twice), 1e-12)


def test_rounding_of_the_sums_is_told():
    r = np.random.default_rng(0)
    phi = r.normal(size=(20_000, 3))
    phi = np.column_stack([phi, phi[:, 0] + 5e-4 * r.normal(size=20_000)])
    y = phi[:, :1] + r.normal(size=(20_000, 1))
    m = Moments.from_rows(phi, y, Frame.from_sample(phi, y, Dense(1)), Dense(1), precision="float32")
    with pytest.warns(IllConditionedWarning, match="rounding of the stored sums"):
        posterior(m, 1e-5)


def test_wrong_arguments_are_named():
    p = posterior(moments(), 1.0)
    with pytest.raises(SolveError, match="t statistics with alpha 1"):
        p.t_statistics()
    with pytest.raises(ConfigError, match="'posterior' or 'sampling'"):
        p.standard_errors("sandwich")
    with pytest.raises(MismatchError, match=r"\(n_rows, 5\)"):
        p.leverage(PHI[:, :2])
    with pytest.raises(MismatchError, match=r"row weights of shape"):
        p.leverage(PHI, W[:3])
    for alpha in (-1.0, np.nan, np.inf):
        with pytest.raises(SolveError, match="finite number >= 0"):
            posterior(moments(), alpha)
    for variance in (-1.0, np.nan, [1.0, 2.0], np.ones((K, K))):
        with pytest.raises(SolveError, match="a noise variance"):
            posterior(moments(), 1.0, noise_variance=variance)
    assert json.loads(json.dumps(p.to_json()))["noise_variance"] == p.noise_variance.tolist()
