"""Criteria of banded ridge against densities, refits and differences; the choice against plain ridge and ARD."""

import json

import numpy as np
import pytest
import scipy.optimize
from banded_rows import BLOCKS, PHI, D, K, N, W, Y, folds, in_memory, moments, whole
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.linear_model import ARDRegression

from streamfit.errors import SolveError
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.solve import cross_validate
from streamfit.solve.alpha_scores import maximise_evidence, score_alphas
from streamfit.solve.banded import solve_banded
from streamfit.solve.banded_choice import choose_banded
from streamfit.solve.banded_criteria import BandedEvidence, BandedFolds
from streamfit.solve.bands import Bands, as_solved
from streamfit.solve.spectrum import decompose
from streamfit.targets import Dense, OneHot

intercepts = pytest.mark.parametrize("fit_intercept", [True, False])


# The criteria


@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_the_evidence_is_the_density_of_the_rows(seed, fit_intercept, weighted):
    """Gaussian with covariance σ² (I + sum_g Φ_g Φ_g'/alpha_g) on the contrasts that hold no intercept."""
    random = np.random.default_rng(seed)
    n, bands = 14, Bands.of(BLOCKS, D)
    phi, y = random.normal(size=(n, D)) + 1.0, random.normal(size=(n, 2)) + 3.0
    w = random.uniform(0.1, 2.0, size=n) if weighted else np.ones(n)
    log_alphas = random.uniform(-4.0, 6.0, size=3)
    problem = BandedEvidence(as_solved(moments(phi, y, w), fit_intercept), bands, fit_intercept)
    rows = np.linalg.svd(np.sqrt(w)[None])[2][1:] * np.sqrt(w) if fit_intercept else np.diag(np.sqrt(w))
    scaled = rows @ phi / np.sqrt(np.exp(log_alphas)[bands.member])
    covariance = np.eye(len(rows)) + scaled @ scaled.T
    sigma2 = problem.noise_variance(np.exp(log_alphas))

    def density(k, variance):
        return multivariate_normal(np.zeros(len(rows)), variance * covariance).logpdf(rows @ y[:, k])

    total = sum(density(k, sigma2[k]) for k in range(2))
    assert -2.0 * problem(log_alphas)[0] == pytest.approx(total, rel=1e-9, abs=1e-8)
    for k in range(2):
        assert density(k, sigma2[k]) > max(density(k, 0.99 * sigma2[k]), density(k, 1.01 * sigma2[k]))


@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([1, 3, 40]))
def test_held_out_loss_is_that_of_refits_on_rows(seed, fit_intercept, n_targets):
    """With many more targets than features too, where cross products are compressed."""
    random = np.random.default_rng(seed)
    y = PHI @ random.normal(size=(D, n_targets)) + random.normal(size=(N, n_targets))
    log_alphas, n, loss = random.uniform(-4.0, 6.0, size=3), 3, 0.0
    each = np.exp(log_alphas)[Bands.of(BLOCKS, D).member]
    for k in range(n):
        held = np.arange(N) % n == k
        b, intercept = in_memory(PHI[~held], y[~held], each, W[~held], fit_intercept)
        loss += np.sum(W[held, None] * (PHI[held] @ b + intercept - y[held]) ** 2)
    problem = BandedFolds(folds(PHI, y, n, W), Bands.of(BLOCKS, D), fit_intercept)
    assert problem(log_alphas)[0] == pytest.approx(loss / W.sum(), rel=1e-9)


@given(st.integers(0, 10**6), st.booleans(), st.sampled_from(["evidence", "kfold"]))
def test_gradients_are_those_of_finite_differences(seed, fit_intercept, criterion):
    random, bands = np.random.default_rng(seed), Bands.of(BLOCKS, D)
    if criterion == "evidence":
        problem = BandedEvidence(as_solved(moments(w=W), fit_intercept), bands, fit_intercept)
    else:
        problem = BandedFolds(folds(w=W), bands, fit_intercept)
    at = random.uniform(-3.0, 8.0, size=3)
    value, gradient = problem(at)
    h = 1e-4
    for g, step in enumerate(h * np.eye(3)):
        slope = (problem(at + step)[0] - problem(at - step)[0]) / (2 * h)
        assert gradient[g] == pytest.approx(slope, rel=1e-5, abs=1e-7 * abs(value))


# The choice


@pytest.mark.parametrize("criterion", ["evidence", "kfold"])
@intercepts
def test_the_choice_is_better_than_plain_ridge_and_than_its_neighbours(criterion, fit_intercept):
    parts, bands = folds(w=W), Bands.of(BLOCKS, D)
    choice = choose_banded(parts, BLOCKS, criterion=criterion, fit_intercept=fit_intercept)
    assert choice.converged
    if criterion == "evidence":
        problem, sign = BandedEvidence(as_solved(whole(parts), fit_intercept), bands, fit_intercept), -K
        plain = maximise_evidence(decompose(whole(parts), fit_intercept=fit_intercept))
        assert choice.plain_value == pytest.approx(plain.log_evidence.sum(), rel=1e-8)
        assert choice.plain_alpha == pytest.approx(plain.alphas[0], rel=1e-2)
        penalised = solve_banded(whole(parts), choice.alphas, BLOCKS, fit_intercept=fit_intercept).certificate.loss
        assert choice.noise_variance.sum() * (N - fit_intercept) == pytest.approx(penalised, rel=1e-9)
        assert choice.value > choice.plain_value
    else:
        problem, sign = BandedFolds(parts, bands, fit_intercept), 1.0
        path = cross_validate(parts, np.geomspace(1e-6, 1e6, 200), fit_intercept=fit_intercept)
        assert choice.plain_value <= path.mean_losses.min() * (1 + 1e-10)
        assert choice.plain_value == pytest.approx(path.mean_losses.min(), rel=1e-3)
        assert choice.noise_variance is None
        assert choice.value < choice.plain_value
    best = np.log([choice.alphas[name] for name in BLOCKS])
    assert sign * problem(best)[0] == pytest.approx(choice.value, rel=1e-11)
    bounds = np.log(list(choice.bounds.values()))
    for seed in range(3):
        # Nelder-Mead knows nothing of gradients.
        other = scipy.optimize.minimize(
            lambda x: problem(x)[0],
            np.clip(best + np.random.default_rng(seed).normal(size=3), *bounds.T),
            method="Nelder-Mead",
            bounds=bounds,
            options={"maxiter": 150},
        )
        assert problem(best)[0] <= other.fun * (1.0 + 1e-9 * np.sign(other.fun))
    assert choice.history[0] == choice.plain_value
    assert (np.diff(choice.history * np.sign(sign)) <= 0).all()
    again = solve_banded(whole(parts), choice.alphas, BLOCKS, fit_intercept=fit_intercept)
    np.testing.assert_array_equal(choice.solution.weights, again.weights)
    assert json.loads(json.dumps(choice.to_json()))["converged"] is True


@given(st.integers(0, 10**6), st.sampled_from(["evidence", "kfold"]))
def test_never_worse_than_plain_ridge(seed, criterion):
    """Also where there is nothing to find, where features outnumber rows, and in any units."""
    random = np.random.default_rng(seed)
    n, d = int(random.integers(8, 30)), int(random.integers(2, 12))
    units = 10.0 ** random.integers(-4, 5, size=d)
    phi = random.normal(size=(n, d)) * units
    y = (phi / units) @ random.normal(size=(d, 2)) * random.choice([0.0, 0.3, 3.0]) + random.normal(size=(n, 2))
    cut = int(random.integers(1, d))
    choice = choose_banded(
        folds(phi, y, 3), {"a": slice(0, cut), "b": slice(cut, d)}, criterion=criterion, max_iterations=50
    )
    sign = -1.0 if criterion == "evidence" else 1.0
    assert sign * choice.value <= sign * choice.plain_value + 1e-11 * abs(choice.plain_value)
    for name, (low, high) in choice.bounds.items():
        assert low <= choice.plain_alpha <= high
        assert low * (1 - 1e-12) <= choice.alphas[name] <= high * (1 + 1e-12)


@pytest.mark.parametrize("criterion", ["evidence", "kfold"])
def test_one_block_is_plain_ridge(criterion):
    choice = choose_banded(folds(), {"all": slice(None)}, criterion=criterion)
    assert choice.alphas["all"] == pytest.approx(choice.plain_alpha, rel=1e-2)
    assert choice.value == pytest.approx(choice.plain_value, rel=1e-6)
    if criterion == "evidence":
        ours = maximise_evidence(decompose(whole(folds())))
        assert choice.alphas["all"] == pytest.approx(ours.alphas[0], rel=1e-5)
        score = score_alphas(decompose(whole(folds())), np.array([choice.alphas["all"]]))
        assert choice.value == pytest.approx(score.total("evidence")[0], rel=1e-11)


def test_blocks_of_one_feature_are_automatic_relevance_determination():
    """scikit-learn's fixed point without hyperpriors and pruning: its lambda / alpha is our alpha, 1 / alpha our σ²."""
    random = np.random.default_rng(3)
    phi = random.normal(size=(200, 3))
    y = phi @ [[2.0], [0.5], [0.2]] + 0.5 * random.normal(size=(200, 1))
    none = {"alpha_1": 0.0, "alpha_2": 0.0, "lambda_1": 0.0, "lambda_2": 0.0}
    theirs = ARDRegression(fit_intercept=False, max_iter=5000, tol=1e-12, **none).fit(phi, y[:, 0])
    ours = choose_banded(moments(phi, y), {f"x{j}": [j] for j in range(3)}, fit_intercept=False)
    np.testing.assert_allclose(list(ours.alphas.values()), theirs.lambda_ / theirs.alpha_, rtol=1e-4)
    assert ours.noise_variance[0] == pytest.approx(1.0 / theirs.alpha_, rel=1e-5)
    np.testing.assert_allclose(ours.solution.weights[:, 0], theirs.coef_, rtol=1e-5)


@pytest.mark.parametrize("criterion", ["evidence", "kfold"])
def test_a_block_of_noise_gets_a_large_alpha(criterion):
    random = np.random.default_rng(2)
    phi, noise = random.normal(size=(240, 4)), random.normal(size=(240, 20))
    y = phi @ random.normal(size=(4, 2)) + random.normal(size=(240, 2))
    choice = choose_banded(
        folds(np.hstack([phi, noise]), y), {"signal": slice(0, 4), "noise": slice(4, 24)}, criterion=criterion
    )
    assert choice.alphas["noise"] > 100 * choice.alphas["signal"]
    assert choice.solution.effective_dof["noise"] < 2
    assert choice.solution.effective_dof["signal"] > 3.5


def test_a_block_that_carries_nothing_ends_at_its_bound():
    """Orthogonal to the targets given the others, in all folds: no finite alpha is better than none of it."""
    random = np.random.default_rng(4)
    phi, noise = random.normal(size=(120, 3)), random.normal(size=(120, 5))
    y = phi @ random.normal(size=(3, 1)) + random.normal(size=(120, 1))
    for k in range(4):
        known = np.column_stack([phi[k::4], np.ones(30)])
        known = np.column_stack([known, y[k::4]])
        noise[k::4] -= known @ np.linalg.lstsq(known, noise[k::4], rcond=None)[0]
    blocks = {"signal": slice(0, 3), "noise": slice(3, 8), "still": [8]}
    parts = folds(np.column_stack([phi, noise, np.full(120, 0.1)]), y)
    for criterion in ("evidence", "kfold"):
        choice = choose_banded(parts, blocks, criterion=criterion)
        assert choice.at_bound == {"signal": "", "noise": "upper", "still": "upper"}
        assert choice.alphas["noise"] == choice.bounds["noise"][1]
        assert choice.solution.effective_dof["noise"] < 1e-4
        assert choice.converged
        assert "carries nothing that the others do not" in choice.lines()[1]
    near = choose_banded(parts, blocks, bounds=(1e-3, 20.0))
    assert near.at_bound["noise"] == "upper"
    assert near.lines()[1].endswith("raise it")


@pytest.mark.parametrize("criterion", ["evidence", "kfold"])
def test_units_move_chosen_alphas_and_nothing_else(criterion):
    units = np.repeat([2.0**10, 1.0, 2.0**-7], [3, 3, 2])
    plain, moved = (choose_banded(folds(PHI * u), BLOCKS, criterion=criterion) for u in (np.ones(D), units))
    # Bounds are widened to hold the best single alpha, which does depend on units.
    assert moved.value == pytest.approx(plain.value, rel=1e-7)
    # Held-out loss is flat near its optimum: alphas are known to half the digits.
    np.testing.assert_allclose(moved.solution.weights * units[:, None], plain.solution.weights, rtol=1e-4, atol=1e-6)
    for name, u in zip(BLOCKS, units[[0, 3, 6]], strict=True):
        if not plain.at_bound[name]:
            assert moved.alphas[name] == pytest.approx(plain.alphas[name] * u**2, rel=1e-3)


def test_class_ids_and_a_target_that_does_not_vary():
    ids = np.random.default_rng(6).integers(K, size=N)
    sparse = Moments.from_rows(PHI, ids, Frame.identity(D, K + 1), OneHot(K + 1))
    dense = moments(y=np.eye(K)[ids])
    a, b = choose_banded(sparse, BLOCKS), choose_banded(dense, BLOCKS)
    assert a.value == pytest.approx(b.value, rel=1e-8)
    assert a.noise_variance[K] == 0


def test_alphas_that_rounding_decides_are_out_of_bounds():
    """In float32 a copy of a column differs by rounding alone; lower ends are raised, and the fit does not warn."""
    random = np.random.default_rng(0)
    phi = random.normal(size=(5000, 4))
    y = phi @ np.ones((4, 1))
    phi = np.column_stack([phi, phi[:, 0] * (1 + 1e-9)])
    m = Moments.from_rows(phi, y, Frame.from_sample(phi, y, Dense(1)), Dense(1), precision="float32")
    blocks = {"a": slice(0, 4), "b": [4]}
    choice = choose_banded(m, blocks)
    assert min(low for low, _ in choice.bounds.values()) > 1e-6
    with pytest.raises(SolveError, match="rounding of the stored sums decides"):
        choose_banded(m, blocks, bounds=(1e-13, 1e-12))


# Wrong input


def test_choices_that_cannot_be_made():
    with pytest.raises(SolveError, match="'evidence' or 'kfold'"):
        choose_banded(moments(), BLOCKS, criterion="gcv")
    with pytest.raises(SolveError, match="a mapping of folds"):
        choose_banded(moments(), BLOCKS, criterion="kfold")
    for parts in ({}, {0: moments()}):
        with pytest.raises(SolveError, match=r"fold\(s\) with rows"):
            choose_banded(parts, BLOCKS, criterion="kfold")
    for bounds in ((1.0, 1.0), (0.0, 1.0), (1.0, np.inf), (np.nan, 1.0)):
        with pytest.raises(SolveError, match="0 < lower < upper"):
            choose_banded(moments(), BLOCKS, bounds=bounds)
    with pytest.raises(SolveError, match="a feature that varies"):
        choose_banded(moments(np.ones((N, D))), BLOCKS)
    with pytest.raises(SolveError, match="a target with variance"):
        choose_banded(moments(y=np.ones((N, K))), BLOCKS)
    with pytest.raises(SolveError, match="at least 2"):
        choose_banded(moments(PHI[:1] + 1, Y[:1]), BLOCKS, fit_intercept=False)
