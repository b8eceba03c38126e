"""Rounded features: against a bit-for-bit oracle, against integers, and refined to the optimum of float64."""

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfit.arrays import cholesky_factor, cholesky_solve, eigenvalues, to_host
from streamfit.doctor_gpu import parity
from streamfit.errors import MismatchError
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.precision import by_addition, by_bits, rounded
from streamfit.solve import solve
from streamfit.solve.refine import Refinement
from streamfit.targets import Dense

BITS = {"tf32": 11, "bf16": 8}
finite = st.integers(0, 2**32 - 1).filter(lambda n: (n >> 23) & 0xFF != 0xFF)


def oracle(value, significant):
    """Round half to even in whole numbers, straight from the definition of float32."""
    n = int(np.float32(value).view(np.uint32))
    sign, exponent, mantissa = n >> 31, (n >> 23) & 0xFF, n & 0x7FFFFF
    whole = mantissa + (2**23 if exponent else 0)
    unit = 2 ** (24 - significant)
    q, r = divmod(whole, unit)
    q += r * 2 > unit or (r * 2 == unit and q % 2)
    with np.errstate(over="ignore"):
        return np.float32((-1) ** sign * q * unit * 2.0 ** (max(exponent, 1) - 150)), sign


@pytest.mark.parametrize("significant", [11, 8])
@given(st.lists(finite, min_size=1, max_size=50), st.integers(0, 2**32 - 1))
def test_rounding_is_to_nearest_even(significant, patterns, seed):
    drawn = np.random.default_rng(seed).integers(0, 2**32, 50, dtype=np.uint32)
    half = 1 << (23 - significant)
    ties = (drawn & ~np.uint32(2 * half - 1)) | np.uint32(half)
    edges = np.array([0, 1 << 31, 1, half, 3 * half, 0x7FFFFF, 0x7F7FFFFF, 0xFF7FFFFF], np.uint32)
    x = np.concatenate([np.array(patterns, np.uint32), drawn, ties, edges]).view(np.float32)
    x = x[np.isfinite(x)]
    expected = np.array([oracle(v, significant)[0] for v in x])
    with np.errstate(over="ignore"):
        for found in (by_bits(x, significant), by_addition(x, significant)):
            np.testing.assert_array_equal(found, expected)
            assert (np.signbit(found) == np.signbit(x)).all()
    there = array_api_strict.asarray(x, device=array_api_strict.Device("device1"))
    np.testing.assert_array_equal(to_host(by_addition(there, significant)), expected)


@pytest.mark.parametrize("precision", BITS)
def test_what_is_not_finite_stays_so(precision):
    x = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F800000, 0xFF800000], np.uint32).view(np.float32)
    for found in (rounded(x, precision), by_addition(x, BITS[precision])):
        np.testing.assert_array_equal(np.isnan(found), np.isnan(x))
        np.testing.assert_array_equal(np.isinf(found), np.isinf(x))


@pytest.mark.parametrize("precision", BITS)
def test_repeated_rows_count_as_their_weight(precision, on):
    rng = np.random.default_rng(3)
    phi, y = rng.normal(size=(200, 5)).astype(np.float32), rng.integers(-9, 10, (200, 1)).astype(float)
    # Features of few bits, so that whole counts leave no rounding in float32 sums.
    phi, counts = np.round(phi * 8) / 8, rng.integers(0, 2 ** BITS[precision], 200)
    counts[:150] = 0
    frame = Frame.identity(5, 1)
    weighed = Moments.from_rows(on(phi), on(y), frame, Dense(1), weights=on(counts.astype(float)), precision=precision)
    exact = (phi.astype(float) * counts[:, None]).T @ phi.astype(float)
    np.testing.assert_array_equal(np.triu(to_host(weighed.gram.value())[0]), np.triu(exact))


def test_sums_of_two_precisions_do_not_add():
    frame = Frame.identity(2, 1)
    with pytest.raises(MismatchError, match="sums in tf32 and bf16"):
        Moments.zeros(frame, Dense(1), "tf32") + Moments.zeros(frame, Dense(1), "bf16")


@pytest.mark.parametrize(("precision", "unit"), [("float32", 2.0**-24), ("tf32", 2.0**-11), ("bf16", 2.0**-8)])
def test_refinement_ends_at_the_optimum_of_float64(precision, unit):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(3000, 12)) + rng.normal(size=12)
    y = x @ rng.normal(size=(12, 2)) + rng.normal(size=(3000, 2))
    frame = Frame.from_sample(x[:300], y[:300], Dense(2))
    best = solve(Moments.from_rows(x, y, frame, Dense(2)), 2.0)
    c = Moments.from_rows(x, y, frame, Dense(2), precision=precision).centered()
    found = solve(c, 2.0)

    def error(solution):
        return np.linalg.norm(solution.weights - best.weights) / np.linalg.norm(best.weights)

    assert error(found) < 16 * unit
    refinement = Refinement(c, 2.0, found)
    for _ in range(4):
        refinement.measure(refinement.walk.block(x, y))
        refinement.correct()
    assert error(refinement.solution) < 1e-12


@pytest.mark.parametrize("precision", BITS)
def test_a_constant_is_found_constant_whatever_its_rounding(precision):
    rng = np.random.default_rng(6)
    x = np.column_stack([np.full(5000, 1.2345), rng.normal(size=5000)])
    weights = rng.uniform(0.1, 3.0, 5000)
    for w in (None, weights):
        c = Moments.from_rows(x, x[:, 1:], Frame.identity(2, 1), Dense(1), weights=w, precision=precision).centered()
        assert (np.diag(c.gram) <= c.noise).tolist() == [True, False]


def test_checks_of_a_device_pass_under_every_namespace(on):
    found = list(parity(on(np.zeros(1))))
    assert len(found) > 30
    assert [check for check in found if not check.passed] == []


def test_factors_on_a_device(on):
    a = np.random.default_rng(7).normal(size=(20, 6))
    system, right = a.T @ a, a[:6, :2].T @ a[:6]
    factor = cholesky_factor(on(system))
    np.testing.assert_allclose(to_host(cholesky_solve(factor, on(right.T))), np.linalg.solve(system, right.T))
    np.testing.assert_allclose(eigenvalues(on(system)), np.linalg.eigvalsh(system))
    assert cholesky_factor(on(-system)) is None
