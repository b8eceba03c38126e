"""GCV against the hat matrix, the evidence against the Gaussian density it is, its maximum against MacKay's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.linear_model import BayesianRidge, Ridge

from streamfit.errors import SolveError
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.solve import solve
from streamfit.solve.alpha_scores import maximise_evidence, score_alphas
from streamfit.solve.spectrum import decompose
from streamfit.targets import Dense

N, D, K = 40, 6, 4
rng = np.random.default_rng(8)
PHI = rng.normal(size=(N, D)) @ rng.normal(size=(D, D)) + 3.0 * np.arange(D)
Y = PHI @ rng.normal(size=(D, K)) * [0.1, 0.5, 1.0, 4.0] + rng.normal(size=(N, K)) + 7.0
W = rng.uniform(0.2, 3.0, size=N)
ALPHAS = np.array([1e-4, 0.1, 1.0, 20.0, 1e3])


def moments(phi=PHI, y=Y, weights=None):
    targets = Dense(y.shape[1])
    return Moments.from_rows(phi, y, Frame.from_sample(phi, y, targets), targets, weights=weights)


def contrasts(w, fit_intercept):
    """Rows of an orthonormal basis of what the intercept does not touch, in the units of weighted rows."""
    if not fit_intercept:
        return np.diag(np.sqrt(w))
    basis = np.linalg.svd(np.sqrt(w)[None])[2][1:]
    return basis * np.sqrt(w)


@given(st.integers(0, 10**6), st.floats(1e-4, 1e4), st.booleans(), st.booleans())
def test_losses_dof_and_gcv_are_those_of_the_hat_matrix(seed, alpha, fit_intercept, weighted):
    """y_hat = H y with the penalty on all but the column of ones: in memory, from the definition of each."""
    random = np.random.default_rng(seed)
    n, d = 25, int(random.integers(1, 8))
    phi, y = random.normal(size=(n, d)) + 1.0, random.normal(size=(n, 2)) + 5.0
    w = random.uniform(0.1, 2.0, size=n) if weighted else np.ones(n)
    design = np.column_stack([phi, np.ones(n)]) if fit_intercept else phi
    penalty = alpha * np.diag([1.0] * d + [0.0] * fit_intercept)
    inverse = np.linalg.inv(design.T @ (design * w[:, None]) + penalty)
    hat = design @ inverse @ (design * w[:, None]).T
    rss = w @ (y - hat @ y) ** 2
    scores = score_alphas(decompose(moments(phi, y, w if weighted else None), fit_intercept=fit_intercept), [alpha])
    np.testing.assert_allclose(scores.losses[0], rss, rtol=1e-9)
    np.testing.assert_allclose(scores.norms[0], ((inverse @ (design * w[:, None]).T @ y)[:d] ** 2).sum(0), rtol=1e-8)
    assert scores.effective_dof[0] + fit_intercept == pytest.approx(np.trace(hat), rel=1e-9)
    np.testing.assert_allclose(scores.gcv[0], (rss / n) / (np.trace(np.eye(n) - hat) / n) ** 2, rtol=1e-8)


@given(st.integers(0, 10**6), st.floats(1e-3, 1e4), st.booleans(), st.booleans())
def test_the_evidence_is_the_density_of_the_rows(seed, alpha, fit_intercept, weighted):
    """Gaussian with covariance σ² (I + ΦΦ'/α) on the contrasts that hold no intercept; σ² is where it is greatest."""
    random = np.random.default_rng(seed)
    n, d = 15, int(random.integers(1, 6))
    phi, y = random.normal(size=(n, d)) + 1.0, random.normal(size=(n, 2)) + 3.0
    w = random.uniform(0.1, 2.0, size=n) if weighted else np.ones(n)
    scores = score_alphas(decompose(moments(phi, y, w if weighted else None), fit_intercept=fit_intercept), [alpha])
    rows = contrasts(w, fit_intercept)
    covariance = np.eye(len(rows)) + (rows @ phi) @ (rows @ phi).T / alpha
    for k in range(2):
        sigma2 = scores.sigma2[0, k]

        def density(variance, k=k):
            return multivariate_normal(np.zeros(len(rows)), variance * covariance).logpdf(rows @ y[:, k])

        assert scores.log_evidence[0, k] == pytest.approx(density(sigma2), rel=1e-9, abs=1e-8)
        assert scores.log_evidence[0, k] > max(density(0.99 * sigma2), density(1.01 * sigma2))


@pytest.mark.parametrize("target", range(K))
def test_the_greatest_evidence_is_bayesian_ridge(target):
    """scikit-learn's fixed point without hyperpriors: its lambda / alpha is our alpha, its 1 / alpha our σ²."""
    none = {"alpha_1": 0.0, "alpha_2": 0.0, "lambda_1": 0.0, "lambda_2": 0.0}
    y = Y[:, target] - 7.0
    theirs = BayesianRidge(fit_intercept=False, max_iter=10_000, tol=1e-13, compute_score=True, **none).fit(PHI, y)
    ours = maximise_evidence(decompose(moments(y=y[:, None]), fit_intercept=False))
    assert ours.alphas[0] == pytest.approx(theirs.lambda_ / theirs.alpha_, rel=1e-6)
    assert ours.sigma2[0] == pytest.approx(1.0 / theirs.alpha_, rel=1e-6)
    assert ours.log_evidence[0] == pytest.approx(theirs.scores_[-1], rel=1e-7)
    assert not ours.at_edge.any()


@pytest.mark.parametrize("weights", [None, W], ids=["plain", "weighted"])
def test_every_target_ends_at_mackays_fixed_point(weights):
    """α = γ σ² / ||B||² and σ² = RSS / (ν - γ), and no alpha of a fine grid has more evidence."""
    spectrum = decompose(moments(weights=weights))
    ours = maximise_evidence(spectrum, per_target=True, block=3)
    squares = (spectrum.weights(ours.alphas) ** 2).sum(axis=0)
    np.testing.assert_allclose(ours.alphas, ours.effective_dof * ours.sigma2 / squares, rtol=1e-7)
    residual = Y - PHI @ spectrum.weights(ours.alphas)
    w = np.ones(N) if weights is None else weights
    residual -= np.average(residual, axis=0, weights=w)
    np.testing.assert_allclose(ours.sigma2, w @ residual**2 / (N - 1 - ours.effective_dof), rtol=1e-7)
    fine = score_alphas(spectrum, np.geomspace(1e-6, 1e6, 600))
    assert (ours.log_evidence >= fine.log_evidence.max(axis=0)).all()
    np.testing.assert_allclose(fine.best_per_target("evidence"), ours.alphas, rtol=0.03)
    assert len(set(ours.alphas)) == K
    assert ours.to_json()["alphas"] == ours.alphas.tolist()


def test_one_alpha_for_all_targets_has_the_greatest_sum():
    spectrum = decompose(moments(weights=W))
    ours = maximise_evidence(spectrum, block=3)
    assert len(set(ours.alphas)) == 1
    fine = score_alphas(spectrum, ours.alphas[0] * np.array([0.999, 1.0, 1.001]))
    assert np.argmax(fine.total("evidence")) == 1
    assert ours.log_evidence.sum() == pytest.approx(fine.total("evidence")[1], rel=1e-12)
    near = score_alphas(spectrum, np.geomspace(1e-5, 1e5, 400))
    assert near.total("evidence").max() <= ours.log_evidence.sum()
    one = maximise_evidence(decompose(moments(y=Y[:, :1])))
    each = maximise_evidence(decompose(moments(y=Y[:, :1])), per_target=True)
    assert one.alphas[0] == pytest.approx(each.alphas[0], rel=1e-8)


def test_the_best_of_a_grid_is_the_best_target_by_target():
    scores = score_alphas(decompose(moments()), ALPHAS[::-1])
    np.testing.assert_array_equal(scores.alphas, ALPHAS)
    np.testing.assert_array_equal(scores.best_per_target("gcv"), ALPHAS[np.argmin(scores.gcv, axis=0)])
    np.testing.assert_array_equal(scores.best_per_target("evidence"), ALPHAS[np.argmax(scores.log_evidence, axis=0)])
    assert scores.best("gcv") == ALPHAS[np.argmin(scores.gcv.sum(axis=1))]
    assert len(set(scores.best_per_target("evidence"))) > 1
    for a, alpha in enumerate(ALPHAS):
        model = Ridge(alpha=alpha, solver="cholesky").fit(PHI, Y)
        np.testing.assert_allclose(scores.losses[a], ((Y - model.predict(PHI)) ** 2).sum(axis=0), rtol=1e-8)
        assert scores.effective_dof[a] == pytest.approx(solve(moments(), alpha).effective_dof, rel=1e-10)
    plain = scores.to_json()
    assert plain["gcv"] == pytest.approx(scores.gcv.sum(axis=1).tolist())
    assert len(plain["log_evidence"]) == len(ALPHAS)


def test_a_target_that_does_not_vary_has_no_say():
    """Its evidence has no bound: left in the sum, it would choose for all the others."""
    still = np.column_stack([Y, np.full(N, 0.1), np.zeros(N)])
    with_still, without = (score_alphas(decompose(moments(y=y)), ALPHAS) for y in (still, Y))
    assert with_still.varies.tolist() == [True] * K + [False] * 2
    for criterion in ("gcv", "evidence"):
        np.testing.assert_allclose(with_still.total(criterion), without.total(criterion), rtol=1e-10)
        assert (with_still.best_per_target(criterion)[K:] == without.best(criterion)).all()
    one = maximise_evidence(decompose(moments(y=still)))
    assert one.alphas[0] == pytest.approx(maximise_evidence(decompose(moments())).alphas[0], rel=1e-8)
    each = maximise_evidence(decompose(moments(y=still)), per_target=True)
    assert each.at_edge.tolist() == [False] * K + [True] * 2
    assert np.isfinite(each.log_evidence).all()


def test_features_that_do_not_help_send_alpha_to_the_edge():
    """A target orthogonal to all features: the evidence grows with alpha for ever."""
    centred = PHI - PHI.mean(axis=0)
    noise = rng.normal(size=(N, 1))
    noise -= noise.mean(axis=0)
    noise -= centred @ np.linalg.lstsq(centred, noise, rcond=None)[0]
    found = maximise_evidence(decompose(moments(y=noise)))
    assert found.at_edge.all()
    assert found.effective_dof[0] < 0.01
    inside = maximise_evidence(decompose(moments(y=noise)), bounds=(1e-3, 10.0))
    assert inside.alphas[0] == pytest.approx(10.0)


def test_more_features_than_rows_leave_no_gcv_at_zero():
    wide = rng.normal(size=(10, 30))
    scores = score_alphas(decompose(moments(wide, wide[:, :1] + rng.normal(size=(10, 1)))), [0.0, 1e-3, 1.0])
    assert np.isinf(scores.gcv[0]).all()
    assert scores.log_evidence[0, 0] == -np.inf
    assert np.isfinite(scores.gcv[1:]).all()
    assert not scores.trusted[0]
    assert scores.best("gcv") > 0
    assert scores.to_json()["gcv"][0] is None


@pytest.mark.parametrize("lower", [1e-13, 1.2e-13, 1.4e-13, 1.6e-13])
def test_alphas_that_rounding_decides_are_never_the_best(lower):
    """In float32 a copy of a column differs from it by rounding alone, and small alphas fit to that."""
    random = np.random.default_rng(0)
    phi = random.normal(size=(5000, 4))
    y = phi.sum(axis=1, keepdims=True)
    phi = np.column_stack([phi, phi[:, 0] * (1 + 1e-9)])
    m = Moments.from_rows(phi, y, Frame.from_sample(phi, y, Dense(1)), Dense(1), precision="float32")
    spectrum = decompose(m)
    scores = score_alphas(spectrum, np.geomspace(1e-13, 10.0, 15))
    assert not scores.trusted[0]
    assert scores.trusted[-1]
    for criterion in ("gcv", "evidence"):
        assert scores.trusted[scores.alphas == scores.best(criterion)].all()
    found = maximise_evidence(spectrum, bounds=(lower, 10.0))
    assert spectrum.trusted(found.alphas).all()
    assert found.at_edge.all()
    assert (found.alphas <= 1e-2).all()
    with pytest.raises(SolveError, match="rounding of the stored sums decides"):
        maximise_evidence(spectrum, bounds=(1e-13, 1e-12))


def test_what_cannot_be_scored_is_refused():
    spectrum = decompose(moments())
    with pytest.raises(SolveError, match="'gcv' or 'evidence'"):
        score_alphas(spectrum, ALPHAS).best("aic")
    with pytest.raises(SolveError, match="at least 2"):
        score_alphas(decompose(moments(PHI[:1], Y[:1])), ALPHAS)
    with pytest.raises(SolveError, match="0 < lower < upper"):
        maximise_evidence(spectrum, bounds=(1.0, 1.0))
    with pytest.raises(SolveError, match="a feature that varies"):
        maximise_evidence(decompose(moments(np.ones((N, 2)))))
