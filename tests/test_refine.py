"""One more pass over the rows: the gradient is NumPy's, corrections end at least squares, the data's bound holds."""

import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from streamfit.errors import MismatchError, SolveError
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.solve import GradientPass, IllConditionedWarning, Refinement, certify_data, solve
from streamfit.targets import Dense, OneHot

N, D, K = 3000, 8, 3
rng = np.random.default_rng(3)
W = rng.uniform(0.0, 2.0, N)
Y = rng.normal(size=(N, K)) + np.array([0.0, 1e3, -5.0])


def features(condition, seed=0):
    """Rows whose centred matrix has this condition number, about a mean of fifty."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.normal(size=(N, D)) - 0.0)
    v, _ = np.linalg.qr(rng.normal(size=(D, D)))
    return np.sqrt(N) * u * np.geomspace(1.0, 1.0 / condition, D) @ v.T + 50.0


def sums(phi, y, weights=None, precision="float32"):
    kind = Dense(y.shape[1]) if y.ndim == 2 else OneHot(K)
    frame = Frame.from_sample(phi[:500], y[:500] if y.ndim == 2 else np.eye(K)[y[:500]], kind)
    return Moments.from_rows(phi, y, frame, kind, weights=weights, precision=precision).centered()


def exact(phi, y, alpha):
    """Weights and loss of the optimum by QR in extended precision of the centred rows."""
    z, t = phi.astype(np.longdouble), y.astype(np.longdouble)
    mean_x, mean_y = z.mean(axis=0), t.mean(axis=0)
    rows = np.vstack([z - mean_x, np.sqrt(np.longdouble(alpha)) * np.eye(D, dtype=np.longdouble)])
    right = np.vstack([t - mean_y, np.zeros((D, y.shape[1]), np.longdouble)])
    # NumPy has no extended LAPACK: modified Gram-Schmidt, twice.
    q, r = rows.copy(), np.eye(D, dtype=np.longdouble)
    for _ in range(2):
        step = np.zeros((D, D), np.longdouble)
        for j in range(D):
            step[j, j] = np.sqrt((q[:, j] ** 2).sum())
            q[:, j] /= step[j, j]
            step[j, j + 1 :] = q[:, j] @ q[:, j + 1 :]
            q[:, j + 1 :] -= np.outer(q[:, j], step[j, j + 1 :])
        r = step @ r
    weights = q.T @ right
    for j in range(D - 1, -1, -1):
        weights[j] = (weights[j] - r[j, j + 1 :] @ weights[j + 1 :]) / r[j, j]
    return weights, float(((rows @ weights - right) ** 2).sum())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [False, True])
def test_the_gradient_is_numpys(on, weighted, classes):
    phi, w = features(10.0), W if weighted else None
    y = rng.integers(K, size=N) if classes else Y
    dense = np.eye(K)[y] if classes else y
    walk = GradientPass(rng.normal(size=(D, K)), rng.normal(size=K), phi.mean(axis=0))
    parts = [
        walk.block(on(phi[s]), on(y[s]), None if w is None else on(w[s]))
        for s in (slice(0, 1000), slice(1000, 1001), slice(1001, N))
    ]
    found = parts[0] + parts[1] + parts[2]
    each = np.ones(N) if w is None else w
    z = phi - walk.mean_x
    residual = dense - walk.offset - z @ walk.weights
    np.testing.assert_allclose(found.slope, (z * each[:, None]).T @ residual, rtol=1e-10, atol=1e-8)
    np.testing.assert_allclose(found.level, each @ residual, rtol=1e-10, atol=1e-8)
    np.testing.assert_allclose(found.squares, each @ residual**2, rtol=1e-10)
    np.testing.assert_allclose(found.spread, each @ z**2, rtol=1e-10)
    np.testing.assert_allclose(found.first, each @ z, rtol=1e-9, atol=1e-9)
    assert (found.n_rows, found.weight) == (N, pytest.approx(each.sum()))


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weights", [None, W], ids=["plain", "weighted"])
def test_a_float32_fit_ends_at_scikit_learns_optimum(fit_intercept, weights):
    phi = features(30.0)
    c = sums(phi, Y, weights)
    first = solve(c, 0.5, fit_intercept=fit_intercept)
    theirs = Ridge(0.5, fit_intercept=fit_intercept, solver="svd").fit(phi, Y, sample_weight=weights)
    refinement = Refinement(c, 0.5, first, fit_intercept=fit_intercept)
    for _ in range(3):
        refinement.measure(refinement.walk.block(phi, Y, weights))
        fitted = refinement.correct()
    size = np.linalg.norm(theirs.coef_)
    # Without an intercept the condition is 6.5e6: rounding of the gradient alone may leave 1e-9 then.
    assert np.linalg.norm(fitted.weights - theirs.coef_.T) <= (1e-11 if fit_intercept else 1e-10) * size
    assert np.linalg.norm(first.weights - theirs.coef_.T) > 1e-9 * size, "nothing was to be corrected"
    np.testing.assert_allclose(fitted.intercept, theirs.intercept_, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("condition", "alpha", "passes"), [(1e4, 0.0, 6), (1e4, 1e-4 * N, 4), (1e5, 0.0, 8)])
def test_condition_1e8_and_more_counted_in_float32_reaches_the_float64_optimum(condition, alpha, passes):
    """The Gram matrix has the square; the bound holds on every step of the way, and falls by orders of magnitude."""
    phi = features(condition)
    best, least = exact(phi, Y, alpha)
    c = sums(phi, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)
        refinement = Refinement(c, alpha, solve(c, alpha))
    gaps, bounds, errors = [], [], []
    for _ in range(passes):
        certificate = refinement.measure(refinement.walk.block(phi, Y))
        errors.append(float(np.linalg.norm(refinement.solution.weights - best) / np.linalg.norm(best)))
        gaps.append(certificate.loss - least)
        bounds.append(certificate.suboptimality)
        refinement.correct()
    assert all(gap <= bound + 1e-12 * least for gap, bound in zip(gaps, bounds, strict=True))
    assert errors[-1] < 1e-9 < 1e-7 < errors[0]
    if alpha > 0:
        assert bounds[-1] < 1e-6 * bounds[0]


@given(st.integers(0, 10**6), st.sampled_from([0.0, 1e-3, 1.0]), st.floats(1e-10, 10.0))
def test_the_bound_of_the_data_holds_for_any_weights(seed, alpha, size):
    phi = features(20.0)
    c = sums(phi, Y)
    best, _ = exact(phi, Y, alpha)
    draw = np.random.default_rng(seed)
    off = size * draw.normal(size=(D, K))
    moved = solve(c, alpha)
    weights = np.asarray(best + off, dtype=np.float64)
    level = size * draw.normal(size=K)
    mean = phi.mean(axis=0)
    moved = type(moved)(weights, Y.mean(axis=0) + level - mean @ weights, alpha, "", D, 0.0, moved.certificate)
    certificate = certify_data(c, alpha, moved, GradientPass.of(moved, c.mean_x).block(phi, Y), fit_intercept=True)
    z = phi - mean
    excess = np.sum((z @ off) ** 2) + alpha * np.sum(off**2) + N * np.sum(level**2)
    assert excess <= certificate.suboptimality * (1 + 1e-9)


def test_a_pass_over_other_rows_is_refused():
    phi = features(10.0)
    c = sums(phi, Y)
    refinement = Refinement(c, 1.0, solve(c, 1.0))
    walk = refinement.walk
    with pytest.raises(SolveError, match="before any pass"):
        refinement.correct()
    with pytest.raises(SolveError, match=r"2,999 rows.*expected all 3,000"):
        refinement.measure(walk.block(phi[1:], Y[1:]))
    with pytest.raises(MismatchError, match=r"\(n_rows, 8\)"):
        walk.block(phi[:, 1:], Y)


def test_nothing_is_lost_once_the_optimum_is_reached():
    """Corrections from rounding alone would lead away again: a target that has arrived stays."""
    phi = features(1e4)
    best, _ = exact(phi, Y, 0.0)
    c = sums(phi, Y, precision="float64")
    refinement = Refinement(c, 0.0, solve(c, 0.0))
    errors = []
    for _ in range(25):
        refinement.measure(refinement.walk.block(phi, Y))
        errors.append(float(np.linalg.norm(refinement.solution.weights - best) / np.linalg.norm(best)))
        refinement.correct()
    assert max(errors[5:]) < 1e-9


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("mean", [0.0, 1e6, 1e9])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_the_bound_of_the_data_holds_for_targets_far_from_zero(precision, mean, fit_intercept):
    """Against rationals: weights and intercept as they are stored, the rows as they are."""
    rng = np.random.default_rng(7)
    phi, y = rng.normal(size=(60, 3)) + 2.0, rng.normal(size=(60, 1)) + mean
    c = sums(phi, y, precision=precision)
    refinement = Refinement(c, 1.0, solve(c, 1.0, fit_intercept=fit_intercept), fit_intercept=fit_intercept)
    for _ in range(4):
        solution = refinement.solution
        bound = refinement.measure(refinement.walk.block(phi, y)).suboptimality
        assert float(gap_in_rationals(phi, y[:, 0], solution, 1.0, fit_intercept)) <= bound
        refinement.correct()


def gap_in_rationals(phi, y, solution, alpha, fit_intercept):
    """L - L* exactly: the quadratic form of the distance to the optimum, which Cramer's rule gives."""
    rows = [[Fraction(v) for v in row] + ([Fraction(1)] if fit_intercept else []) for row in phi.tolist()]
    n, d = len(rows[0]), phi.shape[1]
    right = [Fraction(v) for v in y.tolist()]
    penalty = [Fraction(alpha) if j < d else Fraction(0) for j in range(n)]
    a = [[sum(r[i] * r[j] for r in rows) + (penalty[i] if i == j else 0) for j in range(n)] for i in range(n)]
    b = [sum(r[i] * t for r, t in zip(rows, right, strict=True)) for i in range(n)]
    full, x = [row[:] for row in a], b[:]
    for i in range(n):  # Gauss, exactly
        for k in range(i + 1, n):
            share = a[k][i] / a[i][i]
            a[k] = [p - share * q for p, q in zip(a[k], a[i], strict=True)]
            x[k] -= share * x[i]
    for i in range(n - 1, -1, -1):
        x[i] = (x[i] - sum(a[i][j] * x[j] for j in range(i + 1, n))) / a[i][i]
    mine = [*solution.weights[:, 0].tolist(), *(solution.intercept.tolist() if fit_intercept else [])]
    off = [Fraction(m) - o for m, o in zip(mine, x, strict=True)]
    return sum(off[i] * full[i][j] * off[j] for i in range(n) for j in range(n))


def test_a_feature_that_rounding_had_hidden_is_found():
    """Zero in the sample that units come from, then small: float32 sums take it for a constant, and say so."""
    rng = np.random.default_rng(1)
    phi = rng.normal(size=(3000, 2))
    phi[:500, 0], phi[500:, 0] = 0.0, 1e-4 * phi[500:, 0]
    y = phi @ np.array([[1e4], [1.0]]) + 0.1 * rng.normal(size=(3000, 1))
    c = sums(phi, y)
    with pytest.warns(IllConditionedWarning, match="feature 0: no more variation"):
        first = solve(c, 1e-9)
    assert (first.weights[0, 0], first.rank) == (0.0, 1)
    refinement = Refinement(c, 1e-9, first)
    for _ in range(4):
        refinement.measure(refinement.walk.block(phi, y))
        refinement.correct()
    theirs = Ridge(1e-9, solver="svd").fit(phi, y)
    np.testing.assert_allclose(refinement.solution.weights[:, 0], np.ravel(theirs.coef_), rtol=1e-8)
