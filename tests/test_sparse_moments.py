"""Sums of sparse rows: the numbers of the dense sums, in any order, and the ridge solution that they hold."""

import importlib
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import Ridge

from streamfit.density import Density
from streamfit.errors import ConfigError, MismatchError, ScaleError, SolveError
from streamfit.exact import COARSE
from streamfit.frame import BLOCK_ROWS, Frame
from streamfit.moments import Moments
from streamfit.solve import cross_validate, cross_validate_sparse, solve, solve_sparse, widened
from streamfit.sparse_moments import SparseMoments, SparseRowsAccumulator, sparse_frame
from streamfit.sparse_sum import SparseAccumulator, SparseSum, total_of
from streamfit.targets import Dense, OneHot

N = BLOCK_ROWS + 500
conjugate = importlib.import_module("streamfit.solve.conjugate")  # the package's `solve` is a function


def rows_of(d, seed=0, n=N, density=0.03):
    rng = np.random.default_rng(seed)
    phi = sp.random_array((n, d), density=density, rng=rng, format="csr")
    phi.data = rng.integers(-3, 4, phi.nnz).astype(float)
    return phi, rng


@pytest.mark.parametrize(
    ("precision", "targets", "weighted", "d"),
    [
        ("float32", Dense(2), False, 37),
        ("float64", Dense(2), True, 37),
        ("float32", OneHot(3), True, 37),
        ("float64", OneHot(3), False, 37),
        ("float32", Dense(2), True, 520),  # several tiles
    ],
)
def test_whole_numbers_give_the_dense_sums(precision, targets, weighted, d):
    phi, rng = rows_of(d)
    y = rng.integers(0, 3, N) if targets.one_hot else rng.integers(-5, 6, (N, 2)).astype(float)
    weights = rng.integers(0, 4, N).astype(float) if weighted else None
    frame = Frame.identity(d, targets.n_targets)
    frame = replace(frame, exponents=rng.integers(-3, 2, d).astype(np.int32))
    dense = Moments.from_rows(phi.toarray(), y, frame, targets, weights=weights, precision=precision)
    accumulator = SparseRowsAccumulator(frame, targets, precision, gram="dense")
    accumulator.add(phi, y, weights=weights)
    assert accumulator.moments() == dense
    sparse = SparseMoments.from_rows(phi, y, frame, targets, weights=weights, precision=precision)
    assert sparse.narrowed(np.arange(d)) == dense
    assert sparse.n_rounded == 0
    kept = np.arange(0, d, 3)
    part = Moments.from_rows(
        phi.toarray()[:, kept], y, replace(frame, origin=frame.origin[kept], exponents=frame.exponents[kept]), targets,
        weights=weights, precision=precision,
    )  # fmt: skip
    assert sparse.narrowed(kept) == part


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_parts_add_and_leave_without_a_trace(scale):
    phi, rng = rows_of(300)
    phi.data *= scale
    y = rng.normal(size=(N, 1))
    frame, targets = sparse_frame(phi, y, Dense(1)), Dense(1)
    parts = [SparseMoments.from_rows(phi[i::3], y[i::3], frame, targets) for i in range(3)]
    a, b, c = parts
    total = a + b + c
    assert total == c + (a + b) == SparseMoments.zeros(frame, targets) + total
    assert total - b == a + c
    assert total - total == replace(SparseMoments.zeros(frame, targets), n_rows=0)
    assert (total - total).gram.n_entries == 0
    assert a * 2 == a + a
    assert (total.n_rounded > 0) == (scale != 1.0)
    with pytest.raises(MismatchError, match="different origins, units"):
        total + SparseMoments.zeros(Frame.identity(300, 1), targets)


def test_sparse_sums_have_the_digits_of_dense_ones():
    rng = np.random.default_rng(1)
    parts = []
    for size in (2.0**34, 2.0**34, 1.0, 2.0**50):
        keys = np.sort(rng.choice(10**6, 300, replace=False))
        parts.append(SparseSum.of_block(1000, keys, np.rint(rng.normal(size=300) * size), 2))
    total = total_of(parts)
    assert total.entries.top == COARSE
    dense = np.zeros(10**6)
    for part in parts:
        dense[part.keys] += part.entries.value()
    assert np.array_equal(total.entries.value(), dense[total.keys])
    accumulator = SparseAccumulator(1000, 2)
    for part in reversed(parts):
        accumulator.add(part)
    assert accumulator.total() == total
    small = total_of(parts[:3])
    assert total - parts[3] == small
    with pytest.raises(MismatchError, match="one size"):
        total + SparseSum.zeros(999, 2)


def test_many_columns_take_little_memory():
    d = 2**18
    rng = np.random.default_rng(2)
    places = np.repeat(np.arange(2000), 4), rng.integers(0, d, 8000)
    phi = sp.csr_array((np.ones(8000), places), shape=(2000, d))
    y = rng.normal(size=(2000, 1))
    tracemalloc.start()
    m = SparseMoments.from_rows(phi, y, Frame.identity(d, 1), Dense(1))
    solution = solve_sparse(m, 1.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e8  # a dense triangle would take 275 GB
    assert len(m.active) > 7000
    assert solution.certificate.share < 1e-12
    residual = y[:, 0] - phi @ solution.weights[:, 0] - solution.intercept
    gradient = phi.T @ residual - solution.weights[:, 0]
    assert abs(residual.sum()) < 1e-8
    assert np.abs(gradient).max() < 1e-9


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_conjugate_gradients_find_the_optimum_of_scikit_learn(fit_intercept):
    phi, rng = rows_of(300, n=2000)
    phi.data *= rng.uniform(0.1, 3.0, phi.nnz)
    weights = rng.uniform(0.2, 2.0, 2000)
    y = phi @ rng.normal(size=(300, 2)) + rng.normal(size=(2000, 2)) + 7.0
    m = SparseMoments.from_rows(phi, y, sparse_frame(phi, y, Dense(2), weights), Dense(2), weights=weights)
    found = solve_sparse(m, 0.3, fit_intercept=fit_intercept, strict=True)
    expected = Ridge(alpha=0.3, fit_intercept=fit_intercept, solver="cholesky").fit(phi.toarray(), y, weights)
    np.testing.assert_allclose(found.weights.T, expected.coef_, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(found.intercept, expected.intercept_, rtol=1e-8, atol=1e-8)
    dense = solve(m, 0.3, fit_intercept=fit_intercept)
    assert found.certificate.loss == pytest.approx(dense.certificate.loss, rel=1e-12)
    assert 0.3 * (1 - 1e-6) < found.certificate.strong_convexity <= dense.certificate.strong_convexity
    assert found.effective_dof == pytest.approx(dense.effective_dof, rel=0.05)


def test_the_bound_holds_for_weights_that_are_not_there_yet(monkeypatch):
    phi, rng = rows_of(200, n=1500)
    y = phi @ rng.normal(size=(200, 1)) + rng.normal(size=(1500, 1))
    m = SparseMoments.from_rows(phi, y, Frame.identity(200, 1), Dense(1))
    best = solve(m, 2.0).certificate.loss
    for most in (1, 2, 4, 8):
        monkeypatch.setattr(conjugate, "_MOST", most)
        early = solve_sparse(m, 2.0).certificate
        assert 0 <= early.loss - best <= early.suboptimality * (1 + 1e-9)
    assert early.share > 1e-12


def test_rounded_sums_prove_less():
    phi, rng = rows_of(150, n=1000)
    phi.data *= 0.1
    y = rng.normal(size=(1000, 1))
    frame = sparse_frame(phi, y, Dense(1))
    for precision, low in (("float32", 0.9), ("float64", 1.0 - 1e-9)):
        m = SparseMoments.from_rows(phi, y, frame, Dense(1), precision=precision)
        mu = solve_sparse(m, 1.0).certificate.strong_convexity
        assert low < mu < 1.0
    with pytest.raises(SolveError, match="alpha 0"):
        solve_sparse(m, 0.0)


def test_folds_choose_alpha_as_the_dense_ones_do():
    phi, rng = rows_of(120, n=3000)
    y = phi @ rng.normal(size=(120, 2)) + 20.0 * rng.normal(size=(3000, 2)) + 3.0
    frame, grid = Frame.identity(120, 2), np.array([1.0, 30.0, 1e3])
    folds = {i: SparseMoments.from_rows(phi[i::3], y[i::3], frame, Dense(2)) for i in range(3)}
    for fit_intercept in (True, False):
        found = cross_validate_sparse(folds, grid, fit_intercept=fit_intercept)
        expected = cross_validate(folds, grid, fit_intercept=fit_intercept)
        np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-9)
        np.testing.assert_allclose(found.baseline, expected.baseline, rtol=1e-12)
        assert found.best == expected.best
    with pytest.raises(SolveError, match="1 fold"):
        cross_validate_sparse({0: folds[0]}, grid)


def test_features_that_no_row_has_get_weight_zero():
    phi, rng = rows_of(60, n=800)
    y = rng.normal(size=(800, 1))
    places = np.sort(rng.choice(5000, 60, replace=False))
    wide = sp.csr_array((phi.data, places[phi.indices], phi.indptr), shape=(800, 5000))
    m = SparseMoments.from_rows(wide, y, Frame.identity(5000, 1), Dense(1))
    kept = m.active
    found = widened(solve(m.narrowed(kept), 1.0), kept, 5000)
    np.testing.assert_allclose(found.weights, solve_sparse(m, 1.0).weights, atol=1e-12)
    assert found.certificate.strong_convexity == 1.0
    with pytest.raises(MismatchError, match="a dense matrix of 5,000 hashed features"):
        m.centered()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda phi, y: (phi.toarray(), y), MismatchError, "csr_array"),
        (lambda phi, y: (phi[:, :5], y), MismatchError, r"\(10, 5\)"),
        (lambda phi, y: (phi, y[:5]), MismatchError, "targets of shape"),
        (lambda phi, y: (phi * np.nan, y), ScaleError, "NaN"),
        (lambda phi, y: (phi * 1e200, y), ScaleError, "overflowing feature"),
        (lambda phi, y: (phi, y * np.inf), ScaleError, "overflowing target"),
    ],
)
def test_bad_blocks_leave_nothing(change, kind, message):
    phi, y = rows_of(8, n=10, density=0.9)[0], np.ones((10, 1))
    accumulator = SparseRowsAccumulator(Frame.identity(8, 1), Dense(1), "float64", gram="sparse")
    with pytest.raises(kind, match=message):
        accumulator.add(*change(phi, y))
    assert accumulator.moments() == SparseMoments.zeros(Frame.identity(8, 1), Dense(1))


def test_bad_ids_weights_and_frames_are_named():
    phi = rows_of(8, n=10)[0]
    accumulator = SparseRowsAccumulator(Frame.identity(8, 3), OneHot(3), "float64", gram="dense")
    with pytest.raises(ConfigError, match="class id 7"):
        accumulator.add(phi, np.full(10, 7))
    with pytest.raises(MismatchError, match="integers"):
        accumulator.add(phi, np.full(10, 0.5))
    with pytest.raises(ConfigError, match="row weight"):
        accumulator.add(phi, np.zeros(10, int), weights=np.full(10, -1.0))
    shifted = replace(Frame.identity(8, 1), origin=np.ones(8))
    with pytest.raises(MismatchError, match="about zero"):
        SparseRowsAccumulator(shifted, Dense(1), "float64", gram="sparse")


def test_the_density_is_extrapolated_between_its_bounds():
    rng = np.random.default_rng(3)
    ranks = np.minimum(rng.zipf(1.3, (40_000, 6)) - 1, 2**16 - 1)
    rows = sp.csr_array((np.ones(240_000), (np.repeat(np.arange(40_000), 6), ranks.ravel())), shape=(40_000, 2**16))
    rows.sum_duplicates()
    sample = Density.of(rows[::20])
    true = Density.of(rows)
    assert true.entries <= sample.projected(40_000) <= 3 * true.entries
    assert sample.projected(2_000) == sample.entries
    assert sample.projected(10**15) == 2**16 * (2**16 + 1) // 2
    full = Density.of(sp.csr_array(np.ones((4, 1024))))
    assert (full.entries, full.growth, full.projected(10**6)) == (524_800, 0.0, 524_800)
    assert not full.sparse_is_smaller(10**6, "float64")
    assert sample.sparse_is_smaller(40_000, "float64")
