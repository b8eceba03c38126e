"""Banded ridge against Ridge on rescaled columns and the rows; contributions to R² against refits without a block."""

import json

import numpy as np
import pytest
from banded_rows import ALPHAS, BLOCKS, EACH, PHI, D, K, N, W, Y, in_memory, moments
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from streamfit.errors import SolveError
from streamfit.frame import Frame
from streamfit.solve import solve
from streamfit.solve.banded import contributions, solve_banded
from streamfit.solve.banded_choice import choose_banded
from streamfit.solve.bands import as_solved
from streamfit.solve.ridge import IllConditionedWarning
from streamfit.targets import Dense

intercepts = pytest.mark.parametrize("fit_intercept", [True, False])
weightings = pytest.mark.parametrize("w", [None, W], ids=["plain", "weighted"])


# The solve


@given(st.floats(1e-6, 1e6), st.booleans())
def test_equal_alphas_are_plain_ridge(alpha, fit_intercept):
    plain = solve(moments(w=W), alpha, fit_intercept=fit_intercept)
    banded = solve_banded(moments(w=W), dict.fromkeys(BLOCKS, alpha), BLOCKS, fit_intercept=fit_intercept)
    np.testing.assert_allclose(banded.weights, plain.weights, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(banded.intercept, plain.intercept, rtol=1e-10, atol=1e-12)
    assert sum(banded.effective_dof.values()) == pytest.approx(plain.effective_dof, rel=1e-10)
    assert banded.certificate == plain.certificate
    np.testing.assert_array_equal(banded.predict(PHI), PHI @ banded.weights + banded.intercept)


@intercepts
@weightings
def test_blocks_are_sklearns_ridge_on_rescaled_columns(fit_intercept, w):
    s = 1.0 / np.sqrt(EACH)
    theirs = Ridge(alpha=1.0, fit_intercept=fit_intercept, solver="cholesky").fit(PHI * s, Y, sample_weight=w)
    ours = solve_banded(moments(w=w), ALPHAS, BLOCKS, fit_intercept=fit_intercept)
    np.testing.assert_allclose(ours.weights, theirs.coef_.T * s[:, None], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ours.intercept, theirs.intercept_, rtol=1e-9, atol=1e-9)


@intercepts
@weightings
def test_the_loss_the_bound_and_the_degrees_of_freedom(fit_intercept, w):
    ours = solve_banded(moments(w=w), ALPHAS, BLOCKS, fit_intercept=fit_intercept)
    weight = np.ones(N) if w is None else w

    def objective(b, intercept):
        return np.sum(weight[:, None] * (PHI @ b + intercept - Y) ** 2) + np.sum(EACH[:, None] * b**2)

    best, proof = objective(*in_memory(PHI, Y, EACH, w, fit_intercept)), ours.certificate
    assert proof.loss == pytest.approx(best, rel=1e-11)
    assert objective(ours.weights, ours.intercept) == pytest.approx(best, rel=1e-11)
    assert 0 < proof.suboptimality < 1e-9 * best
    assert proof.unique
    c = as_solved(moments(w=w), fit_intercept)
    diagonal = np.diag(np.linalg.solve(c.gram + np.diag(EACH), c.gram))
    for name, at in (("strong", slice(0, 3)), ("weak", slice(3, 6)), ("noise", slice(6, 8))):
        assert ours.effective_dof[name] == pytest.approx(diagonal[at].sum(), rel=1e-9)


def test_infinite_alpha_leaves_a_block_out():
    ours = solve_banded(moments(), {**ALPHAS, "weak": np.inf}, BLOCKS)
    rest = [0, 1, 2, 6, 7]
    b, intercept = in_memory(PHI[:, rest], Y, EACH[rest], None, True)
    np.testing.assert_allclose(ours.weights[rest], b, rtol=1e-9)
    np.testing.assert_allclose(ours.intercept, intercept, rtol=1e-9)
    assert not ours.weights[3:6].any()
    assert ours.effective_dof["weak"] == 0
    assert json.loads(json.dumps(ours.to_json()))["alphas"]["weak"] is None
    far = solve_banded(moments(), {**ALPHAS, "weak": 1e12}, BLOCKS)
    np.testing.assert_allclose(far.weights[rest], ours.weights[rest], rtol=1e-7)
    nothing = solve_banded(moments(), dict.fromkeys(BLOCKS, np.inf), BLOCKS)
    assert not nothing.weights.any()
    np.testing.assert_allclose(nothing.intercept, Y.mean(axis=0), rtol=1e-12)


@given(st.integers(-30, 30))
def test_units_of_a_block_only_move_its_alpha(exponent):
    """By powers of two, so that the sums are the same bits."""
    units = np.where(np.arange(D) < 3, 2.0**exponent, 1.0)
    ours, moved = (
        solve_banded(moments(PHI * u), {**ALPHAS, "strong": ALPHAS["strong"] * u[0] ** 2}, BLOCKS)
        for u in (np.ones(D), units)
    )
    np.testing.assert_allclose(moved.weights * units[:, None], ours.weights, rtol=1e-9, atol=1e-13)
    assert moved.certificate.loss == pytest.approx(ours.certificate.loss, rel=1e-10)
    assert moved.effective_dof == pytest.approx(ours.effective_dof, rel=1e-9)


def test_dependent_features_under_a_tiny_alpha():
    """As `solve` does: a warning, and of the solutions that fit the same the least penalised one."""
    twice = np.column_stack([PHI[:, :2], PHI[:, 0]])
    with pytest.warns(IllConditionedWarning, match=r"third nearly dependent|first.*nearly dependent"):
        ours = solve_banded(
            moments(twice), {"a": 1e-16, "b": 4e-16}, {"a": [0, 1], "b": [2]}, names=["first", "second", "third"]
        )
    assert ours.method == "least_norm"
    assert ours.rank == 2
    np.testing.assert_allclose(ours.weights[0], 4.0 * ours.weights[2], rtol=1e-5)
    assert ours.effective_dof["a"] + ours.effective_dof["b"] == pytest.approx(2.0, rel=1e-6)


def test_features_that_do_not_vary():
    still = np.column_stack([PHI, np.full(N, 0.1)])
    ours = solve_banded(moments(still), {**ALPHAS, "still": 1.0}, {**BLOCKS, "still": [8]})
    np.testing.assert_allclose(ours.weights[:D], solve_banded(moments(), ALPHAS, BLOCKS).weights, rtol=1e-9)
    assert not ours.weights[D].any()


# Contributions


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_products_sum_to_r2_and_are_those_of_the_rows(fit_intercept):
    solution = solve_banded(moments(), ALPHAS, BLOCKS, fit_intercept=fit_intercept)
    found = contributions(moments(), solution)
    mean = PHI.mean(axis=0) * fit_intercept
    y = Y - Y.mean(axis=0) * fit_intercept
    parts = {name: (PHI - mean)[:, at] @ solution.weights[at] for name, at in solution.bands.indices.items()}
    predicted = sum(parts.values())
    np.testing.assert_allclose(found.r2, 1 - ((y - predicted) ** 2).sum(0) / (y**2).sum(0), rtol=1e-9)
    for row, part in zip(found.product, parts.values(), strict=True):
        np.testing.assert_allclose(row, (part * (2 * y - predicted)).sum(0) / (y**2).sum(0), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found.product.sum(axis=0), found.r2, rtol=1e-12)
    assert found.product_total.sum() == pytest.approx(found.r2_total, rel=1e-12)
    assert found.r2_total == pytest.approx(1 - ((y - predicted) ** 2).sum() / (y**2).sum(), rel=1e-9)
    if fit_intercept:
        np.testing.assert_allclose(found.r2, r2_score(Y, solution.predict(PHI), multioutput="raw_values"), rtol=1e-9)


def test_unique_contributions_are_refits_without_the_block():
    train, test = slice(0, 60), slice(60, N)
    frame = Frame.from_sample(PHI, Y, Dense(K))
    fitted, held = (moments(PHI[part], Y[part], frame=frame) for part in (train, test))
    solution = solve_banded(fitted, ALPHAS, BLOCKS)
    for sums, part in ((None, train), (held, test)):
        found = contributions(fitted, solution, held_out=sums)
        y = Y[part] - Y[train].mean(axis=0)
        # With the training mean taken off, R² about zero is R² about the training mean.
        r2 = 1 - ((Y[part] - solution.predict(PHI[part])) ** 2).sum(0) / (y**2).sum(0)
        np.testing.assert_allclose(found.r2, r2, rtol=1e-8)
        np.testing.assert_allclose(found.product.sum(axis=0), r2, rtol=1e-8)
        for g, at in enumerate(solution.bands.indices.values()):
            rest = np.setdiff1d(np.arange(D), at)
            b, intercept = in_memory(PHI[train][:, rest], Y[train], EACH[rest], None, True)
            errors = ((Y[part] - PHI[part][:, rest] @ b - intercept) ** 2).sum(axis=0)
            np.testing.assert_allclose(found.unique[g], r2 - 1 + errors / (y**2).sum(0), rtol=1e-7, atol=1e-11)
            total = found.r2_total - 1 + errors.sum() / (y**2).sum()
            assert found.unique_total[g] == pytest.approx(total, rel=1e-7, abs=1e-11)
    plain = json.loads(json.dumps(found.to_json()))
    assert sum(plain["product"].values()) == pytest.approx(plain["r2"])
    assert len(found.lines()) == 5


def test_orthogonal_blocks_have_one_contribution_whichever_way():
    q = np.linalg.qr(np.column_stack([np.ones(N), PHI]))[0][:, 1:]
    found = contributions(moments(q), solve_banded(moments(q), dict.fromkeys(BLOCKS, 1e-9), BLOCKS))
    np.testing.assert_allclose(found.product, found.unique, rtol=1e-6, atol=1e-9)
    assert (found.product >= 0).all()


def test_a_target_that_does_not_vary_has_no_r2():
    m = moments(y=np.column_stack([Y, np.full(N, 3.0)]))
    found = contributions(m, solve_banded(m, ALPHAS, BLOCKS))
    same = contributions(moments(), solve_banded(moments(), ALPHAS, BLOCKS))
    assert np.isnan(found.r2[K])
    assert np.isnan(found.product[:, K]).all()
    np.testing.assert_allclose(found.product_total, same.product_total, rtol=1e-9)


# Wrong input


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        ({"a": [0, 1, 2]}, "5 of 8 features in no block: 3, 4, 5, 6, 7"),
        ({"a": slice(0, 5), "b": slice(4, 8)}, "feature 4 twice, in block 'a' and in block 'b'"),
        ({"a": slice(0, 8), "b": []}, "block 'b' with features"),
        ({"a": slice(0, 9)}, "a slice within 0:8"),
        ({"a": [*range(8), 8]}, r"indices in \[0, 8\)"),
        ({"a": range(-1, 7)}, r"indices in \[0, 8\)"),
        ({"a": [*range(8), 7]}, "feature 7 twice, in block 'a' and in block 'a'"),
        ({"a": [True] * 8}, r"indices in \[0, 8\)"),
        ({"a": [0.5, 1.0]}, r"indices in \[0, 8\)"),
        ({}, "8 of 8 features in no block"),
    ],
)
def test_blocks_that_are_no_partition(blocks, says):
    for call in (
        lambda: solve_banded(moments(), dict.fromkeys(blocks, 1.0), blocks),
        lambda: choose_banded(moments(), blocks),
    ):
        with pytest.raises(SolveError, match=says):
            call()


def test_alphas_that_cannot_be_used():
    for wrong in (0.0, -1.0, np.nan):
        with pytest.raises(SolveError, match="positive numbers, or infinity"):
            solve_banded(moments(), {**ALPHAS, "weak": wrong}, BLOCKS)
    for alphas in ({"strong": 1.0}, {**ALPHAS, "other": 1.0}):
        with pytest.raises(SolveError, match="one for each block: 'strong', 'weak', 'noise'"):
            solve_banded(moments(), alphas, BLOCKS)


def test_contributions_of_other_sums():
    solution = solve_banded(moments(), ALPHAS, BLOCKS)
    with pytest.raises(SolveError, match="a solution of other sums"):
        contributions(moments(w=W), solution)
    with pytest.raises(SolveError, match="held-out sums of 8 features and 1 targets"):
        contributions(moments(), solution, held_out=moments(y=Y[:, :1]))
    still = moments(y=np.ones((N, K)))
    with pytest.raises(SolveError, match="none varies"):
        contributions(still, solve_banded(still, ALPHAS, BLOCKS))
