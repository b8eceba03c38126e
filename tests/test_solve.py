"""The solve against scikit-learn and plain least squares; the certificate against what it promises."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_squared_error, r2_score

from streamfit.errors import CertificateError, SolveError
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.solve import IllConditionedWarning, certify, cross_validate, held_out_r2, solve
from streamfit.targets import Dense, OneHot

N, D, K = 300, 6, 3
rng = np.random.default_rng(0)
PHI = rng.normal(size=(N, D)) @ rng.normal(size=(D, D)) + 3.0 * np.arange(D)
Y = PHI @ rng.normal(size=(D, K)) + rng.normal(size=(N, K)) + [0.0, 5.0, -50.0]
PHI_C = PHI - PHI.mean(axis=0)
W = rng.uniform(0.1, 2.0, size=N)
FRAME = Frame.from_sample(PHI[:100], Y[:100], Dense(K))
ALPHAS = np.array([1e-3, 1e-1, 1.0, 30.0, 1e3])


def moments(phi=PHI, y=Y, weights=None, frame=None):
    frame = Frame.from_sample(phi, y, Dense(y.shape[1])) if frame is None else frame
    return Moments.from_rows(phi, y, frame, Dense(y.shape[1]), weights=weights)


def objective(c, alpha, weights):
    """The penalised loss of centred moments, straight from its definition."""
    return (
        c.ss_y.sum() - 2 * np.vdot(weights, c.cross) + np.vdot(weights, c.gram @ weights) + alpha * (weights**2).sum()
    )


@pytest.mark.parametrize("alpha", [0.0, 1e-6, 1.0, 1e4])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weights", [None, W], ids=["plain", "weighted"])
def test_the_solution_is_scikit_learns(alpha, fit_intercept, weights):
    solver = "cholesky" if alpha else "svd"
    theirs = Ridge(alpha=alpha, fit_intercept=fit_intercept, solver=solver).fit(PHI, Y, sample_weight=weights)
    ours = solve(moments(weights=weights, frame=FRAME), alpha, fit_intercept=fit_intercept)
    assert np.linalg.norm(ours.weights - theirs.coef_.T) <= 1e-10 * np.linalg.norm(theirs.coef_)
    np.testing.assert_allclose(ours.predict(PHI), theirs.predict(PHI), rtol=1e-10, atol=1e-9)
    assert ours.method == "cholesky"
    assert (ours.rank, ours.weights.shape, ours.intercept.shape) == (D, (D, K), (K,))


@pytest.mark.parametrize("alpha", [0.1, 10.0])
def test_the_solution_is_augmented_least_squares(alpha):
    """Rows sqrt(alpha) e_j with target zero are the penalty; an unpenalised column of ones the intercept."""
    rows = np.block([[PHI, np.ones((N, 1))], [np.sqrt(alpha) * np.eye(D), np.zeros((D, 1))]])
    reference = np.linalg.lstsq(rows, np.vstack([Y, np.zeros((D, K))]), rcond=None)[0]
    ours = solve(moments(frame=FRAME), alpha)
    np.testing.assert_allclose(np.vstack([ours.weights, ours.intercept]), reference, rtol=1e-9, atol=1e-10)
    hat = np.trace(PHI_C @ np.linalg.solve(PHI_C.T @ PHI_C + alpha * np.eye(D), PHI_C.T))
    assert ours.effective_dof == pytest.approx(hat, rel=1e-10)
    assert solve(moments(frame=FRAME), 0.0).effective_dof == D


def test_class_ids_solve_like_their_indicators():
    ids = rng.integers(K, size=N)
    sparse = Moments.from_rows(PHI, ids, Frame.identity(D, K), OneHot(K))
    dense = Moments.from_rows(PHI, np.eye(K)[ids], Frame.identity(D, K), Dense(K))
    np.testing.assert_allclose(solve(sparse, 1.0).weights, solve(dense, 1.0).weights, rtol=1e-10, atol=1e-13)


@given(st.integers(0, 10**6), st.floats(1e-6, 1e3), st.floats(1e-8, 10.0))
def test_the_bound_holds_and_says_something(seed, alpha, size):
    """For any weights the loss exceeds the optimum by no more than the bound, and the bound by no more than cond."""
    c = moments(frame=FRAME).centered()
    best = solve(c, alpha)
    off = np.random.default_rng(seed).normal(size=(D, K)) * size
    eigenvalues = np.linalg.eigvalsh(c.gram)
    certificate = certify(c.gram, c.cross, c.ss_y, alpha, best.weights + off, eigenvalues)
    # The excess is the quadratic form of the error: exact, where the difference of losses would cancel.
    excess = np.vdot(off, c.gram @ off) + alpha * (off**2).sum()
    assert excess <= certificate.suboptimality * (1 + 1e-6)
    assert certificate.suboptimality <= excess * certificate.condition * (1 + 1e-6)
    assert certificate.loss == pytest.approx(objective(c, alpha, best.weights + off), rel=1e-9)
    assert certificate.relative_gradient > best.certificate.relative_gradient


@pytest.mark.parametrize("alpha", [0.0, 1.0, 100.0])
def test_the_certificate_of_a_solution(alpha):
    c = moments(frame=FRAME).centered()
    certificate = solve(c, alpha).certificate
    system = c.gram + alpha * np.eye(D)
    assert certificate.relative_gradient < 1e-12
    assert certificate.unique
    assert certificate.suboptimality < 1e-15 * certificate.loss
    assert certificate.condition == pytest.approx(np.linalg.cond(system), rel=1e-8)
    assert certificate.digits_lost == pytest.approx(np.log10(np.linalg.cond(system)), rel=1e-9)
    assert 0 < certificate.strong_convexity <= np.linalg.eigvalsh(system)[0] * (1 + 1e-12)
    residual = Y - solve(c, alpha).predict(PHI)
    penalty = alpha * (solve(c, alpha).weights ** 2).sum()
    assert certificate.loss == pytest.approx((residual**2).sum() + penalty, rel=1e-9)
    assert len(certificate.lines()) == 5
    assert certificate.to_json()["unique"] is True


@pytest.mark.parametrize("exponent", [2, 6, 10])
def test_condition_numbers_are_those_of_the_spectrum(exponent):
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))
    gram = (basis * np.geomspace(1.0, 10.0**exponent, D)) @ basis.T
    certificate = certify(gram, gram[:, :1], np.ones(1), 0.0, np.eye(D)[:, :1], np.linalg.eigvalsh(gram))
    assert certificate.condition == pytest.approx(np.linalg.cond(gram), rel=1e-3)
    assert certificate.relative_gradient == 0.0


def dependent(seed=1):
    """Integer columns, the fourth the sum of the first two, the last without any variance."""
    phi = np.random.default_rng(seed).integers(-5, 6, (200, 5)).astype(float)
    phi[:, 3], phi[:, 4] = phi[:, 0] + phi[:, 1], 7.0
    return moments(phi, phi[:, :1] - 2 * phi[:, 2:3], frame=Frame.identity(5, 1)), phi


def test_a_singular_system_gets_the_least_norm_and_a_warning_that_names_the_features_at_fault():
    m, phi = dependent()
    with pytest.warns(IllConditionedWarning, match=r"rank 3 of 5; features") as caught:
        solution = solve(m, 0.0, names=list("abcde"))
    named = str(caught[0].message).split("features ")[1].split(" nearly")[0].split(", ")
    assert sorted(named) == ["a", "b", "d", "e"]
    centred = phi - phi.mean(axis=0)
    reference = np.linalg.lstsq(centred, centred[:, :1] - 2 * centred[:, 2:3], rcond=1e-10)[0]
    np.testing.assert_allclose(solution.weights, reference, atol=1e-12)
    assert (solution.rank, solution.method, solution.effective_dof) == (3, "least_norm", 3.0)


@pytest.mark.parametrize("alpha", [0.0, 1e-12])
@pytest.mark.parametrize("seed", range(5))
def test_a_tiny_alpha_gives_the_least_norm_solution_and_a_warning(seed, alpha):
    """LAPACK's null eigenvalues are rounding, at any order of the matrix; none may enter the weights."""
    m, phi = dependent(seed)
    with pytest.warns(IllConditionedWarning, match="rank 3 of 5"):
        solution = solve(m, alpha)
    centred = phi - phi.mean(axis=0)
    reference = np.linalg.lstsq(centred, centred[:, :1] - 2 * centred[:, 2:3], rcond=1e-10)[0]
    np.testing.assert_allclose(solution.weights, reference, atol=1e-9)
    assert solution.method == "least_norm"
    assert solution.certificate.loss < 1e-6
    assert not solution.certificate.unique


def test_the_least_norm_is_that_of_natural_units_whatever_they_are():
    """A column in units of 1e6 and its copy in units of 1e-6: nearly all of the least norm goes to the large one."""
    a, b = PHI[:, :1] - PHI[:, :1].mean(), PHI[:, 1:2]
    phi = np.hstack([1e6 * a, 1e-6 * a, b, 1e-4 * b])
    with pytest.warns(IllConditionedWarning, match="rank 2 of 4"):
        solution = solve(moments(phi, a + b), 0.0)
    share = 1.0 / (1.0 + 1e-8)
    # min w² + v² with w + 1e-4 v = 1
    np.testing.assert_allclose(solution.weights[:, 0], [1e-6, 1e-18, share, 1e-4 * share], rtol=1e-6, atol=1e-15)


def test_a_certificate_that_is_required_and_not_reached_is_an_error():
    m, _ = dependent()
    assert solve(moments(), 1.0, strict=True).certificate.share < 1e-20
    with pytest.warns(IllConditionedWarning), pytest.raises(CertificateError, match=r"not unique.*expected 1e-06"):
        solve(m, 0.0, strict=True)
    with pytest.raises(CertificateError, match="expected 0 or less"):
        solve(moments(), 1.0, strict=True, tolerance=0.0)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_units_do_not_make_a_system_singular(scale):
    units = np.array([scale, 1.0, 1.0, 1.0, 1.0, 1.0])
    solution = solve(moments(PHI * units), 0.0)
    np.testing.assert_allclose(solution.weights * units[:, None], solve(moments(), 0.0).weights, rtol=1e-8)
    assert solution.method == "cholesky"


@pytest.mark.parametrize("alpha", [-1.0, np.nan, np.inf])
def test_alpha_must_be_a_number_from_zero_up(alpha):
    with pytest.raises(SolveError, match="finite number >= 0"):
        solve(moments(), alpha)


fold_of = np.arange(N) % 4


def folds(y=Y, n=4):
    frame = Frame.from_sample(PHI[:100], y[:100], Dense(K))
    return {k: moments(PHI[fold_of == k], y[fold_of == k], W[fold_of == k], frame) for k in range(n)}


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_cross_validation_is_a_refit_per_fold(fit_intercept):
    path = cross_validate(folds(), ALPHAS[::-1], fit_intercept=fit_intercept)
    expected = np.empty((4, len(ALPHAS)))
    for k in range(4):
        test, train = fold_of == k, fold_of != k
        for a, alpha in enumerate(ALPHAS):
            model = Ridge(alpha=alpha, fit_intercept=fit_intercept, solver="cholesky")
            predicted = model.fit(PHI[train], Y[train], sample_weight=W[train]).predict(PHI[test])
            expected[k, a] = K * mean_squared_error(Y[test], predicted, sample_weight=W[test])
    np.testing.assert_allclose(path.losses, expected, rtol=1e-9)
    np.testing.assert_array_equal(path.alphas, ALPHAS)
    pooled = np.average(expected, axis=0, weights=[W[fold_of == k].sum() for k in range(4)])
    np.testing.assert_allclose(path.mean_losses, pooled, rtol=1e-9)
    assert path.best == ALPHAS[np.argmin(pooled)]
    centre = np.average(Y, axis=0, weights=W) if fit_intercept else np.zeros(K)
    spread = np.average((Y - centre) ** 2, axis=0, weights=W).sum()
    np.testing.assert_allclose(path.r2, 1 - pooled / spread, atol=0.01)


def test_an_alpha_at_the_edge_of_the_grid_is_told():
    noise = np.random.default_rng(5).normal(size=(N, K))
    assert cross_validate(folds(noise), ALPHAS).at_edge
    assert cross_validate(folds(noise), ALPHAS).best == ALPHAS[-1]
    assert not cross_validate(folds(noise), ALPHAS[:1]).at_edge
    inner = cross_validate(folds(PHI[:, :K] + 20 * noise), np.geomspace(1e-9, 1e12, 22))
    assert not inner.at_edge


def test_cross_validation_needs_folds_and_positive_alphas():
    empty = Moments.zeros(FRAME, Dense(K))
    for too_few in ({}, folds(n=1), folds(n=1) | {9: empty}):
        with pytest.raises(SolveError, match="at least 2"):
            cross_validate(too_few, ALPHAS)
    for bad in ([], [0.0, 1.0], [-1.0], [np.inf]):
        with pytest.raises(SolveError, match="positive"):
            cross_validate(folds(), np.array(bad))


def test_held_out_r2_is_scikit_learns_about_the_training_mean():
    """scikit-learn takes variance about the test rows' own mean, so the two agree where the means do."""
    train, test = slice(0, 200), slice(200, N)
    model = Ridge(alpha=1.0, solver="cholesky").fit(PHI[train], Y[train])
    parts = [moments(PHI[s], Y[s], frame=FRAME).centered() for s in (train, test)]
    ours = held_out_r2(model.coef_.T, *parts)
    squared = ((Y[test] - model.predict(PHI[test])) ** 2).sum()
    assert ours == pytest.approx(1 - squared / ((Y[test] - Y[train].mean(axis=0)) ** 2).sum(), rel=1e-10)
    inside = r2_score(Y[train], model.predict(PHI[train]), multioutput="variance_weighted")
    assert held_out_r2(model.coef_.T, parts[0], parts[0]) == pytest.approx(inside, rel=1e-10)


def test_a_column_that_only_rounding_moves_is_constant():
    """0.1 has no exact float: its centred variance is noise, and noise must not be given a weight."""
    phi = np.column_stack([PHI[:, 0], np.full(len(PHI), 0.1)])
    m = Moments.from_rows(phi, phi[:, :1], Frame.from_sample(phi, phi[:, :1], Dense(1)), Dense(1))
    with pytest.warns(IllConditionedWarning, match="feature 1 nearly dependent or constant"):
        assert solve(m, 0.0).weights[1, 0] == 0.0
    assert abs(solve(m, 1e-3).weights[1, 0]) < 1e-12


@pytest.mark.parametrize("extra", ["constant", "copy"])
def test_cross_validation_does_not_choose_by_rounding(extra):
    """In float32 a constant or repeated column leaves noise in its direction; small alphas would fit to it."""
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(20_000, 4))
    y = phi.sum(axis=1, keepdims=True) + 2 * rng.normal(size=(20_000, 1))
    column = np.full(len(phi), 123456.7) if extra == "constant" else phi[:, 0] * (1 + 1e-9)
    phi = np.column_stack([phi, column])
    frame = Frame.from_sample(phi[:4096], y[:4096], Dense(1))
    grid = np.array([1e-13, 1e-9, 1e-5, 1e-1, 10.0, 1e3])

    def folds(precision):
        return {k: Moments.from_rows(phi[k::4], y[k::4], frame, Dense(1), precision=precision) for k in range(4)}

    if extra == "copy":
        with pytest.warns(IllConditionedWarning, match=r"alphas 1e-13.* are left out"):
            path = cross_validate(folds("float32"), grid)
        assert not path.trusted[0]
        with pytest.raises(SolveError, match="rounding of the stored sums decides"):
            cross_validate(folds("float32"), grid[:1])
    else:
        path = cross_validate(folds("float32"), grid)
    honest = cross_validate(folds("float64"), np.array([10.0, 1e3]))
    assert path.r2[path.alphas == path.best] == pytest.approx(honest.r2.max(), abs=1e-4)


@pytest.mark.parametrize("seed", range(40))
def test_the_certificates_bound_holds_in_exact_arithmetic(seed):
    """The distance to the optimum of the stored sums, in rational numbers, is never above the bound."""
    rng = np.random.default_rng(seed)
    d = int(rng.integers(1, 4))
    phi, y = rng.normal(size=(20, d)), rng.normal(size=(20, 1))
    c = Moments.from_rows(phi, y, Frame.identity(d, 1), Dense(1)).centered()
    solution = solve(c, float(10 ** rng.uniform(-3, 2)))
    a = [[Fraction(v) for v in row] for row in c.gram.tolist()]
    for i in range(d):
        a[i][i] += Fraction(solution.alpha)
    rows = [[*a[i], Fraction(float(c.cross[i, 0]))] for i in range(d)]
    for i in range(d):
        rows[i] = [v / rows[i][i] for v in rows[i]]
        for j in range(d):
            if j != i:
                rows[j] = [v - rows[j][i] * w for v, w in zip(rows[j], rows[i], strict=True)]
    error = [Fraction(float(solution.weights[i, 0])) - rows[i][d] for i in range(d)]
    gap = sum(error[i] * a[i][j] * error[j] for i in range(d) for j in range(d))
    assert gap <= Fraction(solution.certificate.suboptimality)
    assert solution.certificate.suboptimality < 1e-20


def test_cross_validation_solves_as_the_final_solve_does_whatever_the_units():
    rng = np.random.default_rng(2)
    phi = rng.normal(size=(4000, 5))
    y = phi.sum(axis=1, keepdims=True) + 0.5 * rng.normal(size=(4000, 1))
    phi = phi * [1e-6, 1e-3, 1.0, 1e3, 1e6]
    frame = Frame.from_sample(phi, y, Dense(1))
    folds = {k: Moments.from_rows(phi[k::2], y[k::2], frame, Dense(1)) for k in range(2)}
    path = cross_validate(folds, np.array([1e-13, 1e-11, 1e-8, 1e-3, 1.0]))
    for i, alpha in enumerate(path.alphas):
        for held in (0, 1):
            train, test = folds[1 - held].centered(), folds[held].centered()
            r2 = held_out_r2(solve(train, alpha).weights, train, test)
            assert 1 - path.losses[held, i] / path.baseline[held] == pytest.approx(r2, abs=1e-6)
    assert path.best < 1e-10


@pytest.mark.parametrize("weight", [1e-9, 1e-3, 1e6])
def test_the_scale_of_row_weights_costs_no_digits(weight):
    """Ridge with weights w and penalty alpha w is ridge with weights 1 and alpha, also on the grid of float32."""
    rng = np.random.default_rng(3)
    phi = rng.normal(size=(20_000, 3))
    y = phi.sum(axis=1, keepdims=True) + rng.normal(size=(20_000, 1))
    w = np.full(len(phi), weight)
    frame = Frame.from_sample(phi, y, Dense(1), weights=w)
    m = Moments.from_rows(phi, y, frame, Dense(1), weights=w, precision="float32")
    reference = Ridge(alpha=1.0).fit(phi, y[:, 0]).coef_
    np.testing.assert_allclose(solve(m, weight).weights[:, 0], reference, rtol=2e-6)
