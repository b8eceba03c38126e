"""One decomposition for every alpha: against scikit-learn alpha by alpha, and extended precision in odd units."""

import tracemalloc
import warnings
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from streamfit.errors import SolveError
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.solve import certify, solve
from streamfit.solve.per_target import solve_targets
from streamfit.solve.spectrum import decompose
from streamfit.targets import Dense, OneHot

N, D, K = 120, 7, 5
rng = np.random.default_rng(4)
PHI = rng.normal(size=(N, D)) @ rng.normal(size=(D, D)) + 2.0 * np.arange(D)
Y = PHI @ rng.normal(size=(D, K)) + rng.normal(size=(N, K)) + 10.0 * np.arange(K)
W = rng.uniform(0.1, 3.0, size=N)
ALPHAS = np.array([1e-3, 0.1, 1.0, 20.0, 1e3])


def moments(phi=PHI, y=Y, weights=None):
    targets = Dense(y.shape[1])
    return Moments.from_rows(phi, y, Frame.from_sample(phi, y, targets), targets, weights=weights)


def reference(c, alpha):
    """Solution of the normal equations by elimination in extended precision (80 bits on x86)."""
    a = np.array(c.gram, dtype=np.longdouble) + alpha * np.eye(len(c.gram), dtype=np.longdouble)
    b = np.array(c.cross, dtype=np.longdouble)
    for i in range(len(a)):
        for j in range(len(a)):
            if i != j:
                factor = a[j, i] / a[i, i]
                a[j] -= factor * a[i]
                b[j] -= factor * b[i]
    return b / np.diag(a)[:, None]


@pytest.mark.parametrize("method", ["eigh", "jacobi"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weights", [None, W], ids=["plain", "weighted"])
def test_every_alpha_is_scikit_learns_ridge(method, fit_intercept, weights):
    spectrum = decompose(moments(weights=weights), fit_intercept=fit_intercept, method=method)
    assert spectrum.method == method
    for alpha in ALPHAS:
        theirs = Ridge(alpha=alpha, fit_intercept=fit_intercept, solver="cholesky").fit(PHI, Y, sample_weight=weights)
        ours = spectrum.weights(alpha)
        assert np.linalg.norm(ours - theirs.coef_.T) <= 1e-10 * np.linalg.norm(theirs.coef_)
        np.testing.assert_allclose(spectrum.intercept(ours), theirs.intercept_, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_a_target_each_has_an_alpha_of_its_own(fit_intercept):
    theirs = Ridge(alpha=ALPHAS, fit_intercept=fit_intercept, solver="cholesky").fit(PHI, Y, sample_weight=W)
    ours = solve_targets(moments(weights=W), ALPHAS, fit_intercept=fit_intercept, block=2)
    np.testing.assert_allclose(ours.weights, theirs.coef_.T, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(ours.predict(PHI), theirs.predict(PHI), rtol=1e-9, atol=1e-10)
    for k, alpha in enumerate(ALPHAS):
        one = solve(moments(y=Y[:, k : k + 1], weights=W), alpha, fit_intercept=fit_intercept)
        assert ours.effective_dof[k] == pytest.approx(one.effective_dof, rel=1e-10)
    assert ours.to_json()["alphas"] == ALPHAS.tolist()


@given(st.integers(1, 9), st.integers(0, 4))
def test_blocks_of_targets_change_nothing(block, start):
    """Bits may differ by how a product is cut; the numbers do not."""
    spectrum = decompose(moments(), block=block)
    whole = spectrum.weights(ALPHAS)
    seen = np.zeros(K, dtype=int)
    for targets, weights, intercept in spectrum.blocks(ALPHAS, block):
        np.testing.assert_allclose(weights, whole[:, targets], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(intercept, spectrum.intercept(whole)[targets], rtol=1e-12)
        seen[targets] += 1
    assert (seen == 1).all()
    part = slice(start, K)
    np.testing.assert_allclose(spectrum.weights(ALPHAS[part], part), whole[:, part], rtol=1e-12, atol=1e-13)
    for one, other in zip(spectrum.gains(ALPHAS, block), spectrum.gains(ALPHAS), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_units_of_features_cost_no_digits():
    """Feature by feature, to ten digits, where plain eigenvectors have lost the small ones altogether."""
    units = 10.0 ** np.array([-6, 5, 0, -3, 3, 6, -5])
    c = moments(PHI * units).centered()
    spectrum = decompose(c)
    assert (spectrum.method, spectrum.rank, spectrum.serves_from) == ("jacobi", D, 0.0)
    assert (np.diff(spectrum.eigenvalues) > 0).all()
    plain = decompose(c, method="eigh")
    for alpha in (0.0, 1e-9, 1e-3, 1.0):
        expected = reference(c, alpha)
        size = np.linalg.norm(expected, axis=1)
        assert (np.linalg.norm(spectrum.weights(alpha) - expected, axis=1) <= 1e-10 * size).all()
        with pytest.raises(SolveError, match="rounding leaves good for"):
            plain.weights(alpha)
    enough = decompose(c, smallest_alpha=plain.serves_from)
    assert enough.method == "eigh"
    assert decompose(moments()).method == "eigh"


@given(st.integers(0, 10**6))
def test_an_alpha_that_is_served_has_the_digits_promised(seed):
    """From `serves_from` up, plain eigenvectors agree with elimination to six digits of the largest weight."""
    random = np.random.default_rng(seed)
    phi = PHI * 10.0 ** random.uniform(-4, 4, size=D)
    c = moments(phi).centered()
    plain = decompose(c, method="eigh")
    alpha = max(plain.serves_from, 1e-9)
    expected = reference(c, alpha)
    assert np.linalg.norm(plain.weights(alpha) - expected) <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_alpha_zero_is_the_solution_of_least_norm(fit_intercept):
    """A repeated and a constant column: the rank is found, and the weight is shared."""
    phi = np.column_stack([PHI, PHI[:, 0], np.full(N, 0.1)])
    spectrum = decompose(moments(phi), fit_intercept=fit_intercept)
    assert spectrum.rank == D + (not fit_intercept)
    ours = spectrum.weights(0.0)
    centred = phi - phi.mean(axis=0) * fit_intercept
    wanted = np.linalg.lstsq(centred, Y - Y.mean(axis=0) * fit_intercept, rcond=1e-10)[0]
    np.testing.assert_allclose(ours, wanted, rtol=1e-7, atol=1e-9)
    if fit_intercept:
        assert (ours[-1] == 0.0).all()
    assert spectrum.effective_dof(0.0) == pytest.approx(spectrum.rank)


def test_features_of_which_none_varies_predict_the_mean():
    spectrum = decompose(moments(np.full((N, 2), 3.0)))
    assert spectrum.rank == 0
    assert (spectrum.weights(1.0) == 0).all()
    np.testing.assert_allclose(spectrum.intercept(spectrum.weights(1.0)), Y.mean(axis=0))
    assert solve_targets(moments(np.full((N, 2), 3.0)), 1.0).certificate.unique


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_one_alpha_for_all_has_the_certificate_of_the_solve(fit_intercept):
    one = solve(moments(weights=W), 2.0, fit_intercept=fit_intercept).certificate
    ours = solve_targets(moments(weights=W), 2.0, fit_intercept=fit_intercept, block=2).certificate
    assert ours.relative_gradient < 1e-12
    for name in ("strong_convexity", "loss", "condition", "digits_lost"):
        assert getattr(ours, name) == pytest.approx(getattr(one, name), rel=1e-9)
    assert ours.suboptimality <= 10 * one.suboptimality


@pytest.mark.filterwarnings("ignore::streamfit.solve.IllConditionedWarning")
def test_nothing_is_certified_that_rounding_could_undo():
    """A constant column's eigenvalue is zero, a copy's is rounding: μ is alpha, or nothing where alpha is tiny."""
    phi = np.column_stack([PHI, PHI[:, 0], np.full(N, 0.1)])
    c = moments(phi).centered()
    assert solve_targets(c, 1.0).certificate.strong_convexity == pytest.approx(1.0, rel=1e-9)
    assert solve_targets(moments(phi[:, [0, 1, -1]]), 1.0).certificate.strong_convexity == pytest.approx(1.0, rel=1e-9)
    noise = 50 * np.finfo(float).eps * np.linalg.eigvalsh(c.gram)[-1]
    tiny = solve_targets(c, 0.5 * noise).certificate
    assert not tiny.unique
    assert tiny.suboptimality == tiny.condition == np.inf
    assert solve_targets(c, 2.0 * noise).certificate.unique
    # A feature whose variance is all rounding has no weight, and its cross products no say in the gradient.
    still = replace(c, noise=np.where(np.arange(D + 2) == 1, np.inf, c.noise))
    ours, one = solve_targets(still, 1.0), solve(still, 1.0)
    assert (ours.weights[1] == 0.0).all()
    np.testing.assert_allclose(ours.weights, one.weights, rtol=1e-9, atol=1e-12)
    assert ours.certificate.relative_gradient < 1e-12


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_holds_in_exact_arithmetic(seed):
    """Distance to the optimum of the stored sums, in rational numbers, an alpha a target, in odd units."""
    random = np.random.default_rng(seed)
    phi = random.normal(size=(20, 2)) * 10.0 ** random.integers(-3, 4, size=2)
    y = random.normal(size=(20, 2))
    c = moments(phi, y).centered()
    alphas = 10 ** random.uniform(-3, 2, size=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = solve_targets(c, alphas, block=1)
    gap = Fraction(0)
    for k in range(2):
        (p, q), (_, s) = [[Fraction(v) for v in row] for row in c.gram.tolist()]
        p, s = p + Fraction(float(alphas[k])), s + Fraction(float(alphas[k]))
        u, v = (Fraction(float(x)) for x in c.cross[:, k])
        det = p * s - q * q
        best = (s * u - q * v) / det, (p * v - q * u) / det
        e, f = (Fraction(float(solution.weights[i, k])) - best[i] for i in range(2))
        gap += p * e * e + 2 * q * e * f + s * f * f
    assert gap <= Fraction(solution.certificate.suboptimality)
    assert solution.certificate.suboptimality < 1e-12 * solution.certificate.loss


def test_a_wrong_weight_is_seen_by_the_certificate():
    """The parts of blocks add up to what `certify` finds for all targets at once."""
    c = moments().centered()
    spectrum = decompose(c)
    wrong = replace(spectrum, projections=spectrum.projections * 1.01)
    ours = solve_targets(c, 3.0, spectrum=wrong, block=2).certificate
    whole = certify(c.gram, c.cross, c.ss_y, 3.0, wrong.weights(3.0), np.linalg.eigvalsh(c.gram))
    for name in ("relative_gradient", "suboptimality", "loss"):
        assert getattr(ours, name) == pytest.approx(getattr(whole, name), rel=1e-6)


def test_what_cannot_be_decomposed_is_refused():
    m, spectrum = moments(), decompose(moments())
    for call, message in (
        (lambda: decompose(m, smallest_alpha=-1.0), "finite number >= 0"),
        (lambda: decompose(m, method="qr"), "'auto', 'eigh' or 'jacobi'"),
        (lambda: decompose(m, block=0), "at least 1"),
        (lambda: spectrum.weights(np.nan), "finite numbers >= 0"),
        (lambda: spectrum.gains(np.empty(0)), "finite numbers >= 0"),
        (lambda: solve_targets(m, np.ones(K + 1)), rf"\({K},\)"),
        (lambda: solve_targets(m, 1.0, spectrum=spectrum, fit_intercept=False), "of other moments"),
        (lambda: solve_targets(m * 2, 1.0, spectrum=spectrum), "of other moments"),
    ):
        with pytest.raises(SolveError, match=message):
            call()
    assert spectrum.to_json()["rank"] == D


def peak_bytes(call):
    tracemalloc.start()
    result = call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, result


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_memory_is_what_the_docstrings_say(fit_intercept):
    """Nothing as large as the cross products is made beside what is returned: 64 blocks of 64 targets."""
    d, k, block = 192, 4096, 64
    random = np.random.default_rng(0)
    phi, ids = random.normal(size=(1000, d)), random.integers(k, size=1000)
    c = Moments.from_rows(phi, ids, Frame.identity(d, k), OneHot(k)).centered()
    large, few = 8 * d * k, 8 * d * block
    peak, spectrum = peak_bytes(lambda: decompose(c, fit_intercept=fit_intercept, block=block))
    assert peak <= large + 8 * d * d * 8 + 4 * few + 6 * 8 * k
    alphas = np.geomspace(1.0, 10.0, k)
    peak, _ = peak_bytes(lambda: sum(float(b.sum()) for _, b, _ in spectrum.blocks(alphas, block)))
    assert peak <= 5 * few + 4 * 8 * k < large / 4
    peak, _ = peak_bytes(lambda: spectrum.gains(np.ones(3), block))
    assert peak <= 3 * few + 8 * 8 * k < large / 4
    peak, solution = peak_bytes(
        lambda: solve_targets(c, alphas, fit_intercept=fit_intercept, spectrum=spectrum, block=block)
    )
    assert peak <= large + 8 * few + 10 * 8 * k + 3 * 8 * d * d
    # Constant features cost no copy of the cross products either.
    still = replace(c, noise=np.where(np.arange(d) < 5, np.inf, c.noise))
    peak, _ = peak_bytes(lambda: decompose(still, block=block))
    assert peak <= large + 8 * d * d * 9 + 4 * few + 6 * 8 * k
    assert solution.certificate.relative_gradient < 1e-12
