"""Triangular factors: laws up to rounding, and conditions that no Gram matrix bears, in extended precision."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf
from sklearn.linear_model import Ridge

from streamfit.errors import CertificateError, ConfigError, MismatchError, ScaleError, SolveError
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.solve import IllConditionedWarning, cross_validate, cross_validate_triangles, solve, solve_triangle
from streamfit.targets import Dense, OneHot
from streamfit.triangle import Triangle, TriangleAccumulator

N, D, K = 400, 6, 2
rng = np.random.default_rng(5)
PHI = rng.normal(size=(N, D)) @ rng.normal(size=(D, D)) + 3.0 * np.arange(D)
Y = PHI @ rng.normal(size=(D, K)) + rng.normal(size=(N, K)) + 5.0
W = rng.uniform(0.0, 2.0, N)
FRAME = Frame.from_sample(PHI[:100], Y[:100], Dense(K))


def triangle(phi=PHI, y=Y, weights=None, frame=None):
    kind = Dense(y.shape[1])
    return Triangle.from_rows(phi, y, frame or Frame.from_sample(phi, y, kind), kind, weights=weights)


def close(a, b):
    assert a.n_rows == b.n_rows
    size = np.sqrt(np.sum(np.asarray(a.factor) ** 2, axis=0))
    np.testing.assert_allclose(np.asarray(a.factor) / size, np.asarray(b.factor) / size, atol=1e-13)


@given(st.lists(st.integers(0, N), min_size=2, max_size=4), st.booleans())
def test_parts_merge_to_the_whole_in_any_order(cuts, weighted):
    at = [0, *sorted(cuts), N]
    parts = [triangle(PHI[a:b], Y[a:b], W[a:b] if weighted else None, FRAME) for a, b in pairwise(at)]
    whole = triangle(weights=W if weighted else None, frame=FRAME)
    for order in (parts, parts[::-1]):
        total = Triangle.zeros(FRAME, Dense(K))
        for part in order:
            total = total + part
        close(total, whole)
    assert (whole + Triangle.zeros(FRAME, Dense(K))) == whole == (Triangle.zeros(FRAME, Dense(K)) + whole)


def test_equal_rows_give_equal_bits():
    assert triangle() == triangle(PHI.copy(order="F"), Y.copy())
    close(triangle(frame=FRAME) * 2.0, triangle(frame=FRAME) + triangle(frame=FRAME))
    assert (triangle() * 0.25).total_weight == pytest.approx(N / 4)


@pytest.mark.parametrize("weights", [None, W], ids=["plain", "weighted"])
def test_it_holds_the_sums_that_moments_do(on, weights):
    kind = Dense(K)
    put = None if weights is None else on(weights)
    ours = Triangle.from_rows(on(PHI), on(Y), FRAME, kind, weights=put).to_host().centered()
    theirs = Moments.from_rows(PHI, Y, FRAME, kind, weights=weights).centered()
    for name in ("n_rows", "weight", "mean_x", "mean_y", "gram", "cross", "ss_y"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-11, atol=1e-11)


def test_class_ids_are_indicators():
    ids = rng.integers(K, size=N)
    frame = Frame.from_sample(PHI, np.eye(K)[ids], OneHot(K))
    dense = Triangle.from_rows(PHI, np.eye(K)[ids], frame, Dense(K))
    np.testing.assert_array_equal(dense.factor, Triangle.from_rows(PHI, ids, frame, OneHot(K)).factor)


@pytest.mark.parametrize("alpha", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weights", [None, W], ids=["plain", "weighted"])
def test_the_solution_is_scikit_learns(alpha, fit_intercept, weights):
    theirs = Ridge(alpha, fit_intercept=fit_intercept, solver="svd").fit(PHI, Y, sample_weight=weights)
    ours = solve_triangle(triangle(weights=weights), alpha, fit_intercept=fit_intercept, strict=True)
    assert np.linalg.norm(ours.weights - theirs.coef_.T) <= 1e-11 * np.linalg.norm(theirs.coef_)
    np.testing.assert_allclose(ours.predict(PHI), theirs.predict(PHI), rtol=1e-10, atol=1e-9)
    gram = solve(Moments.from_rows(PHI, Y, FRAME, Dense(K), weights=weights), alpha, fit_intercept=fit_intercept)
    assert ours.effective_dof == pytest.approx(gram.effective_dof, rel=1e-9)
    assert ours.certificate.loss == pytest.approx(gram.certificate.loss, rel=1e-9)
    assert ours.certificate.condition == pytest.approx(gram.certificate.condition, rel=1e-6)
    assert ours.method == "qr"


def reference(phi, y, alpha):
    """Weights and penalised loss in 60 decimal digits, with an intercept."""
    mp.dps = 60
    n, d = phi.shape
    rows = mp.matrix([[mpf(float(v)) for v in r] for r in phi])
    means = [sum(rows[:, j]) / n for j in range(d)]
    for j in range(d):
        for i in range(n):
            rows[i, j] -= means[j]
    right = mp.matrix([mpf(float(v)) for v in y[:, 0]])
    level = sum(right) / n
    for i in range(n):
        right[i] -= level
    weights = mp.lu_solve(rows.T * rows + mpf(alpha) * mp.eye(d), rows.T * right)
    missed = rows * weights - right
    return weights, sum(v * v for v in missed) + mpf(alpha) * sum(v * v for v in weights), rows, right


def hard(log_condition, seed=0, n=60, d=5):
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.normal(size=(n, d)))
    v, _ = np.linalg.qr(rng.normal(size=(d, d)))
    phi = u * np.logspace(0, -log_condition, d) @ v.T
    return phi + rng.normal(size=d), phi @ rng.normal(size=(d, 1)) + 1e-3 * rng.normal(size=(n, 1))


@pytest.mark.parametrize("log_condition", [2, 6, 10, 12, 13])
def test_digits_are_lost_to_the_condition_and_not_to_its_square(log_condition):
    phi, y = hard(log_condition)
    best, least, rows, right = reference(phi, y, 0.0)
    ours = solve_triangle(triangle(phi, y), 0.0)
    weights = mp.matrix([mpf(float(v)) for v in ours.weights[:, 0]])
    error = float(mp.norm(weights - best) / mp.norm(best))
    assert error < 10.0 ** (log_condition - 14.5)
    # The rows themselves are rounded when they are taken about the origin: the bound is of what is stored.
    missed = rows * weights - right
    gap = float(sum(v * v for v in missed) - least)
    assert gap <= ours.certificate.suboptimality + 1e-25
    assert ours.certificate.digits_lost == pytest.approx(np.log10(np.linalg.cond(phi - phi.mean(axis=0))), abs=0.5)
    if log_condition > 8:
        with pytest.warns(IllConditionedWarning):
            squared = solve(Moments.from_rows(phi, y, Frame.from_sample(phi, y, Dense(1)), Dense(1)), 0.0)
        assert np.linalg.norm(squared.weights - np.array(best.tolist(), dtype=float)) > 1e-3 * float(mp.norm(best))


@given(st.integers(0, 10**6), st.sampled_from([0.0, 1e-6, 1.0]), st.floats(1e-12, 1.0))
def test_the_bound_holds_for_any_weights(seed, alpha, size):
    """As for `certify`: the excess of any weights is the length of the triangle times their error."""
    from streamfit.solve.orthogonal import _certificate, _System

    t = triangle()
    best = solve_triangle(t, alpha)
    system = _System.of(t, True)
    off = size * np.random.default_rng(seed).normal(size=best.weights.shape)
    rows = system.rows(alpha)
    units = np.sqrt(np.sum(rows**2, axis=0))
    basis, factor = np.linalg.qr(rows / units)
    found = _certificate(system, alpha, best.weights + off, basis, factor, units, scipy.linalg.svdvals(system.x))
    excess = np.sum((rows @ off) ** 2)
    assert excess <= found.suboptimality * (1 + 1e-9)
    assert found.suboptimality <= 4 * excess + 1e-18 * found.null_loss


def test_dependent_features_get_the_least_norm_and_are_named():
    phi = PHI.copy()
    phi[:, 3], phi[:, 5] = 2 * phi[:, 0] + phi[:, 1], 7.1
    with pytest.warns(IllConditionedWarning, match=r"rank 4 of 6; features") as caught:
        ours = solve_triangle(triangle(phi), 0.0, names=list("abcdef"))
    assert set(str(caught[0].message).split("features ")[1].split(" nearly")[0].split(", ")) == set("abdf")
    centred = phi - phi.mean(axis=0)
    theirs = np.linalg.lstsq(centred, Y - Y.mean(axis=0), rcond=1e-10)[0]
    np.testing.assert_allclose(ours.weights, theirs, atol=1e-11)
    assert (ours.rank, ours.method) == (4, "qr_least_norm")
    with pytest.warns(IllConditionedWarning), pytest.raises(CertificateError, match="not unique"):
        solve_triangle(triangle(phi), 0.0, strict=True)
    ridge = Ridge(0.3, solver="svd").fit(phi, Y)
    with pytest.warns(IllConditionedWarning, match="rank 5 of 6; feature f|features f"):  # the constant
        np.testing.assert_allclose(solve_triangle(triangle(phi), 0.3).weights, ridge.coef_.T, atol=1e-11)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_cross_validation_is_that_of_the_sums(fit_intercept):
    fold = np.arange(N) % 4
    grid = np.logspace(-3, 3, 5)
    ours = cross_validate_triangles(
        {k: triangle(PHI[fold == k], Y[fold == k], W[fold == k], FRAME) for k in range(4)},
        grid,
        fit_intercept=fit_intercept,
        per_target=True,
    )
    theirs = cross_validate(
        {k: Moments.from_rows(PHI[fold == k], Y[fold == k], FRAME, Dense(K), weights=W[fold == k]) for k in range(4)},
        grid,
        fit_intercept=fit_intercept,
        per_target=True,
    )
    for name in ("losses", "baseline", "weights", "target_losses"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-9)


def test_what_it_cannot_do_is_said():
    with pytest.raises(MismatchError, match="without --fast"):
        triangle() - triangle()
    with pytest.raises(MismatchError, match="one frame"):
        triangle() + triangle(frame=Frame.identity(D, K))
    with pytest.raises(MismatchError, match="weights >= 0"):
        triangle() * -1.0
    with pytest.raises(SolveError, match="finite number"):
        solve_triangle(triangle(), -1.0)
    with pytest.raises(MismatchError, match="positive total weight"):
        solve_triangle(Triangle.zeros(FRAME, Dense(K)), 1.0)
    rows = TriangleAccumulator(FRAME, Dense(K))
    with pytest.raises(ScaleError, match="NaN"):
        rows.add(np.full((2, D), np.nan), np.zeros((2, K)))
    with pytest.raises(MismatchError, match=r"\(n_rows, 6\)"):
        rows.add(np.zeros((2, D - 1)), np.zeros((2, K)))
    with pytest.raises(ConfigError, match=r"ids in \[0, 2\)"):
        Triangle.from_rows(PHI, np.full(N, 2), FRAME, OneHot(K))
    with pytest.raises(ConfigError, match="weights >= 0"):
        rows.add(PHI, Y, weights=-W)
    assert rows.moments() == Triangle.zeros(FRAME, Dense(K))
