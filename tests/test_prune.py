"""Costs of removals and greedy pruning against refits on the rows that brute force makes."""

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfit.errors import SolveError
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.solve.inverse import DowndatedInverse
from streamfit.solve.prune import prune, removal_costs
from streamfit.solve.ridge import IllConditionedWarning, solve
from streamfit.targets import Dense

N, D, K = 90, 6, 2
rng = np.random.default_rng(21)
PHI = rng.normal(size=(N, D)) @ rng.normal(size=(D, D)) + 2.0 * np.arange(D)
Y = PHI @ rng.normal(size=(D, K)) + rng.normal(size=(N, K)) + [0.0, -50.0]
W = rng.uniform(0.1, 3.0, size=N)
OTHER = rng.normal(size=(50, D)) @ rng.normal(size=(D, D)) + 2.0 * np.arange(D)
OTHER_Y = OTHER @ rng.normal(size=(D, K)) + 3.0


def moments(phi=PHI, y=Y, w=None):
    return Moments.from_rows(phi, y, Frame.from_sample(phi, y, Dense(y.shape[1])), Dense(y.shape[1]), weights=w)


def refit(features, alpha, fit_intercept=True, w=None, phi=PHI, y=Y):
    """Loss, weights and intercept of augmented least squares on the rows."""
    features = list(features)
    root = np.sqrt(np.ones(len(phi)) if w is None else w)[:, None]
    x = np.column_stack([phi[:, features], np.ones((len(phi), int(fit_intercept)))])
    penalty = np.sqrt(alpha) * np.eye(len(features), x.shape[1])
    rows, targets = np.vstack([root * x, penalty]), np.vstack([root * y, np.zeros((len(features), y.shape[1]))])
    b = np.linalg.lstsq(rows, targets, rcond=None)[0]
    loss = ((targets - rows @ b) ** 2).sum()
    return loss, b[: len(features)], b[len(features)] if fit_intercept else np.zeros(y.shape[1])


def brute_force(alpha, units, target, **given):
    """Greedy elimination by refitting for every candidate: units in order of leaving, and losses."""
    left, order, losses = list(range(len(units))), [], [refit(np.concatenate(units), alpha, **given)[0]]

    def loss_without(i):
        return refit([j for u in left if u != i for j in units[u]], alpha, **given)[0]

    while sum(len(units[u]) for u in left) > target and len(left) > 1:
        trials = [(loss_without(i) - losses[-1]) / len(units[i]) for i in left]
        gone = left[int(np.argmin(trials))]
        losses.append(loss_without(gone))
        left.remove(gone)
        order.append(gone)
    return order, losses


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("w", [None, W], ids=["plain", "weighted"])
def test_costs_are_those_of_refits(alpha, fit_intercept, w):
    given = {"fit_intercept": fit_intercept, "w": w}
    full = refit(range(D), alpha, **given)[0]
    found = removal_costs(moments(w=w), alpha, fit_intercept=fit_intercept)
    assert found.loss == pytest.approx(full, rel=1e-9)
    refits = [refit(np.delete(np.arange(D), j), alpha, **given)[0] - full for j in range(D)]
    np.testing.assert_allclose(found.increases, refits, rtol=1e-8)
    blocks = [[0, 3], [5, 1, 2], [4], [0, 1, 2, 3, 4, 5], [3, 4]]
    found = removal_costs(moments(w=w), alpha, blocks, fit_intercept=fit_intercept)
    refits = [refit(np.setdiff1d(np.arange(D), b), alpha, **given)[0] - full for b in blocks]
    np.testing.assert_allclose(found.increases, refits, rtol=1e-8)
    assert found.blocks == tuple(map(tuple, blocks))


def exact_loss(gram, cross, ss_y):
    """ss_y - c' A^-1 c in rational arithmetic."""
    rows = [[*map(Fraction, row), Fraction(c)] for row, c in zip(gram, cross, strict=True)]
    total, n = Fraction(ss_y), len(rows)
    for i in range(n):
        for j in range(i + 1, n):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [a - factor * b for a, b in zip(rows[j], rows[i], strict=True)]
        total -= rows[i][n] ** 2 / rows[i][i]
    return total


@pytest.mark.parametrize("seed", range(10))
def test_costs_in_exact_arithmetic(seed):
    r = np.random.default_rng(seed)
    phi, y = r.integers(-4, 5, size=(16, 4)).astype(float), r.integers(-4, 5, size=(16, 1)).astype(float)
    m = Moments.from_rows(phi, y, Frame.identity(4, 1), Dense(1))
    gram, cross, ss_y = (phi.T @ phi + 2 * np.eye(4)).tolist(), (phi.T @ y)[:, 0].tolist(), float((y**2).sum())
    full = exact_loss(gram, cross, ss_y)
    costs = removal_costs(m, 2.0, fit_intercept=False).increases
    for j in range(4):
        others = [i for i in range(4) if i != j]
        without = exact_loss([[gram[a][b] for b in others] for a in others], [cross[a] for a in others], ss_y)
        assert costs[j] == pytest.approx(float(without - full), rel=1e-12, abs=1e-13 * ss_y)


@given(st.integers(0, 10**6), st.integers(2, 7), st.sampled_from([0.0, 0.3, 20.0]), st.booleans(), st.integers(1, 12))
def test_greedy_removal_is_brute_force(seed, d, alpha, fit_intercept, k):
    """Order, losses and held-out losses; with more targets than features too."""
    r = np.random.default_rng(seed)
    mixing = r.normal(size=(d, d))
    phi, b = r.normal(size=(40, d)) @ mixing + r.normal(size=d), r.normal(size=(d, k))
    y, w = phi @ b + r.normal(size=(40, k)), r.uniform(0.5, 2.0, 40)
    test = r.normal(size=(25, d)) @ mixing + 1.0
    test_y, test_w = test @ b + r.normal(size=(25, k)), r.uniform(0.5, 2.0, 25)
    given = {"fit_intercept": fit_intercept, "w": w, "phi": phi, "y": y}
    order, losses = brute_force(alpha, [[j] for j in range(d)], 1, **given)
    held_out = moments(test, test_y, test_w)
    pruned = prune(moments(phi, y, w), alpha, n_features=1, fit_intercept=fit_intercept, held_out=held_out)
    assert pruned.order.tolist() == order
    np.testing.assert_allclose(pruned.losses, losses, rtol=1e-7)
    assert pruned.n_left.tolist() == list(range(d, 0, -1))
    for step in range(d):
        left = [j for j in range(d) if j not in order[:step]]
        _, weights, intercept = refit(left, alpha, **given)
        squares = ((test[:, left] @ weights + intercept - test_y) ** 2).sum(axis=1)
        assert pruned.held_out[step] == pytest.approx(np.average(squares, weights=test_w), rel=1e-7)


@pytest.mark.parametrize("groups", [[[0, 1], [2, 3], [4, 5]], [[5, 0, 3], [1, 2]], [[1, 4]]])
def test_groups_leave_together(groups):
    rest = [[j] for j in range(D) if not any(j in g for g in groups)]
    order, losses = brute_force(3.0, groups + rest, 1)
    pruned = prune(moments(), 3.0, n_features=1, groups=groups)
    assert pruned.steps == tuple(tuple((groups + rest)[i]) for i in order)
    np.testing.assert_allclose(pruned.losses, losses, rtol=1e-9)


def test_one_group_stays_however_many_leave_at_once():
    pairs = [[0, 1], [2, 3], [4, 5]]
    for options in ({"n_features": 1}, {"budget": 1e12}):
        pruned = prune(moments(), 1.0, groups=pairs, at_once=10, **options)
        assert pruned.kept.tolist() in pairs
        assert len(pruned.steps) == 1


def test_features_that_must_stay():
    cheapest = prune(moments(), 1.0, n_features=1).order[:3].tolist()
    pruned = prune(moments(), 1.0, n_features=1, keep=cheapest)
    assert pruned.kept.tolist() == sorted(cheapest)
    grouped = prune(moments(), 1.0, n_features=1, keep=[0], groups=[[0, 5], [1, 2]])
    assert grouped.kept.tolist() == [0, 5]
    everything = prune(moments(), 1.0, n_features=1, keep=range(D))
    assert everything.steps == ()
    assert everything.kept.tolist() == list(range(D))
    np.testing.assert_array_equal(everything.solution.weights, solve(moments(), 1.0).weights)


def test_a_budget_is_spent_and_not_exceeded():
    whole = prune(moments(), 1.0, n_features=1)
    for step in range(D):
        budget = whole.losses[step] / whole.losses[0] - 1
        pruned = prune(moments(), 1.0, budget=budget * (1 + 1e-9) + 1e-12)
        assert pruned.order.tolist() == whole.order[:step].tolist()
        below = prune(moments(), 1.0, budget=max(budget * (1 - 1e-6), 0.0))
        assert len(below.steps) == max(step - 1, 0)
        joint = prune(moments(), 1.0, budget=budget * (1 + 1e-9) + 1e-12, at_once=D)
        assert joint.losses[-1] <= whole.losses[step] * (1 + 1e-8)
    both = prune(moments(), 1.0, budget=1e9, n_features=4)
    assert both.kept.tolist() == np.setdiff1d(np.arange(D), whole.order[:2]).tolist()


def test_a_group_beyond_the_budget_is_passed_over():
    """Columns without correlation: the wide group is cheaper a feature, but only the single one fits the budget."""
    x = np.kron(np.eye(5), np.array([[1.0], [-1.0]]))
    y = x @ np.array([[1.0], [1.0], [1.0], [1.4], [100.0]]) + np.repeat(np.arange(5.0), 2)[:, None]
    m = Moments.from_rows(x, y, Frame.identity(5, 1), Dense(1))
    costs = removal_costs(m, 0.0, [[0, 1, 2], [3]], fit_intercept=False)
    np.testing.assert_allclose(costs.increases, [6.0, 2 * 1.4**2])
    limit = {"groups": [[0, 1, 2]], "fit_intercept": False}
    assert prune(m, 0.0, n_features=4, **limit).steps == ((0, 1, 2),)
    assert prune(m, 0.0, budget=5.0 / costs.loss, **limit).steps == ((3,),)


@pytest.mark.parametrize("at_once", [2, 3, 100])
def test_several_at_once_have_exact_losses(at_once):
    pruned = prune(moments(), 1.0, n_features=2, at_once=at_once)
    assert len(pruned.kept) == 2
    first = np.argsort(removal_costs(moments(), 1.0).increases)[: min(at_once, D - 2)]
    assert pruned.steps[0] == tuple(first)
    left = list(range(D))
    for step, loss in zip(pruned.steps, pruned.losses[1:], strict=True):
        left = [j for j in left if j not in step]
        assert loss == pytest.approx(refit(left, 1.0)[0], rel=1e-9)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_the_model_is_a_fit_to_the_features_that_stay(fit_intercept):
    pruned = prune(moments(w=W), 2.0, n_features=3, fit_intercept=fit_intercept)
    loss, weights, intercept = refit(pruned.kept, 2.0, fit_intercept, W)
    assert pruned.solution.weights.shape == (3, K)
    np.testing.assert_allclose(pruned.solution.weights, weights, rtol=1e-9)
    np.testing.assert_allclose(pruned.solution.intercept, intercept, rtol=1e-9, atol=1e-12)
    assert pruned.solution.certificate.loss == pytest.approx(loss, rel=1e-9)
    assert pruned.losses[-1] == pytest.approx(loss, rel=1e-9)
    assert pruned.solution.certificate.relative_gradient < 1e-12
    told = json.loads(json.dumps(pruned.to_json()))
    assert told["kept"] == pruned.kept.tolist()
    assert told["held_out"] is None


def ill_conditioned(d=80, condition=1e10, seed=0):
    r = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(r.normal(size=(d, d)))
    phi = r.normal(size=(3 * d, d)) @ (basis * np.geomspace(1.0, condition**-0.5, d)) @ basis.T
    return phi, phi @ r.normal(size=(d, 3)) * 10 + r.normal(size=(3 * d, 3))


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e10])
def test_errors_of_downdates_do_not_grow(condition):
    phi, y = ill_conditioned(condition=condition)
    pruned = prune(moments(phi, y), 1e-9, n_features=1)
    assert pruned.n_inverses > 5
    assert pruned.drift < 1e-8
    assert (np.diff(pruned.losses) >= 0).all()
    for step in range(0, 80, 9):
        left = np.setdiff1d(np.arange(80), pruned.order[:step])
        expected = refit(left, 1e-9, phi=phi, y=y)[0]
        assert pruned.losses[step] == pytest.approx(expected, rel=1e-8)


def test_an_inverse_gone_wrong_is_noticed_and_made_anew():
    c = moments().centered()
    state = DowndatedInverse(c, 1.0, None)
    first = state.price(np.array([0]))
    assert not state.stale(first)
    state.remove(first)
    assert not state.stale(state.price(np.array([1])))
    good = state.costs([np.array([1]), np.array([2, 4])])
    state._inverse *= 1 + 1e-5
    off = state.price(np.array([1]))
    assert state.stale(off)
    assert off.increase == pytest.approx(good[0], rel=1e-8)  # the column was refined
    state.invert()
    np.testing.assert_allclose(state.costs([np.array([1]), np.array([2, 4])]), good, rtol=1e-10)
    assert state.n_inverses == 2
    state.remove(state.price(np.array([2])))
    state._inverse *= -1.0
    assert state.stale(state.price(np.array([1])))


def test_many_targets_cost_what_few_do():
    """Targets enter by a triangular factor: more of them than features change nothing but its entries."""
    r = np.random.default_rng(3)
    phi, k = r.normal(size=(60, 5)), 5000
    y = phi @ r.normal(size=(5, k)) + r.normal(size=(60, k))
    m = moments(phi, y)
    state = DowndatedInverse(m.centered(), 1.0, m.centered())
    assert state._weights.shape == (5, 10)
    found = removal_costs(m, 1.0)
    full = refit(range(5), 1.0, phi=phi, y=y)[0]
    refits = [refit(np.delete(np.arange(5), j), 1.0, phi=phi, y=y)[0] - full for j in range(5)]
    np.testing.assert_allclose(found.increases, refits, rtol=1e-8)
    inside = prune(m, 1.0, n_features=1, held_out=m)
    penalty = [
        1.0 * (refit(np.setdiff1d(range(5), inside.order[:i]), 1.0, phi=phi, y=y)[1] ** 2).sum() for i in range(5)
    ]
    np.testing.assert_allclose(60 * inside.held_out, inside.losses - penalty, rtol=1e-8)


def test_units_do_not_decide_who_leaves():
    units = 10.0 ** np.array([-9.0, 4, 0, 9, -3, 2])
    plain, scaled = prune(moments(), 0.0, n_features=1), prune(moments(PHI * units), 0.0, n_features=1)
    np.testing.assert_array_equal(scaled.order, plain.order)
    np.testing.assert_allclose(scaled.losses, plain.losses, rtol=1e-7)


def test_useless_features_leave_first():
    r = np.random.default_rng(8)
    phi = r.normal(size=(4000, 30))
    useful = [3, 7, 12, 29]
    b = r.choice([-1.0, 1.0], size=(4, 2))
    y = phi[:, useful] @ b + r.normal(size=(4000, 2))
    test = r.normal(size=(4000, 30))
    test_y = test[:, useful] @ b + r.normal(size=(4000, 2))
    pruned = prune(moments(phi, y), 1e-6, budget=0.05, held_out=moments(test, test_y))
    assert pruned.kept.tolist() == useful
    # They only fitted noise: without them other rows are predicted better.
    assert pruned.held_out[-1] < pruned.held_out[0]


def test_a_constant_feature_costs_nothing():
    phi = np.column_stack([PHI[:, :2], np.full(N, 0.1), PHI[:, 2:]])
    assert removal_costs(moments(phi), 1.0).increases[2] == 0
    pruned = prune(moments(phi), 1.0, budget=0.0)
    assert pruned.order.tolist() == [2]
    with pytest.raises(SolveError, match="feature 2 does not vary"):
        removal_costs(moments(phi), 0.0)


@pytest.mark.parametrize("seed", range(10))
def test_a_perfect_fit_is_pruned_down_to_what_it_needs(seed):
    r = np.random.default_rng(seed)
    phi = r.integers(-5, 6, size=(60, 8)).astype(float)
    m = Moments.from_rows(phi, phi[:, [1, 6]].sum(axis=1, keepdims=True), Frame.identity(8, 1), Dense(1))
    pruned = prune(m, 0.0, n_features=1)
    assert pruned.losses[6] < 1e-9
    assert pruned.losses[7] > 1.0
    assert set(pruned.order[6:]) | set(pruned.kept) == {1, 6}
    assert pruned.drift < 1e-8
    assert (np.diff(pruned.losses) >= 0).all()


def test_what_cannot_be_pruned_is_refused():
    m = moments()
    for options, message in (
        ({}, "neither a number of features nor a budget"),
        ({"n_features": 0}, "at least 1"),
        ({"budget": -0.1}, "finite relative increase"),
        ({"budget": np.inf}, "finite relative increase"),
        ({"n_features": 2, "at_once": 0}, "at least 1"),
        ({"n_features": 2, "groups": [[0, 1], [1, 2]]}, "feature 1 in more than one group"),
        ({"n_features": 2, "groups": [[0, 6]]}, r"different indices in \[0, 6\)"),
        ({"n_features": 2, "groups": [[]]}, r"one or more different indices"),
        ({"n_features": 2, "keep": [-1]}, r"different indices in \[0, 6\)"),
        ({"n_features": 2, "held_out": moments(OTHER[:, :3], OTHER_Y)}, "held-out sums of 3 features and 2 targets"),
    ):
        with pytest.raises(SolveError, match=message):
            prune(m, 1.0, **options)
    with pytest.raises(SolveError, match="different indices"):
        removal_costs(m, 1.0, [[1, 1]])
    for alpha in (-1.0, np.nan, np.inf):
        with pytest.raises(SolveError, match="finite number >= 0"):
            removal_costs(m, alpha)
    twice = moments(np.round(np.column_stack([PHI, PHI[:, 0]]) * 100))
    with pytest.raises(SolveError, match="feature 6"):
        prune(twice, 0.0, n_features=2)
    with pytest.raises(SolveError, match="feature 6"):
        removal_costs(twice, 1e-12)


def test_a_duplicate_leaves_and_its_twin_stays():
    twice = moments(np.column_stack([PHI, PHI[:, 0]]))
    pruned = prune(twice, 1e-3, n_features=D)
    assert pruned.order.tolist() in ([0], [6])
    assert pruned.losses[1] == pytest.approx(refit(range(D), 1e-3)[0], rel=1e-7)


def test_rounding_of_the_sums_is_told():
    r = np.random.default_rng(0)
    phi = r.normal(size=(20_000, 3))
    phi = np.column_stack([phi, phi[:, 0] + 5e-4 * r.normal(size=20_000)])
    y = phi[:, :1] + r.normal(size=(20_000, 1))
    m = Moments.from_rows(phi, y, Frame.from_sample(phi, y, Dense(1)), Dense(1), precision="float32")
    with pytest.warns(IllConditionedWarning, match="costs of removals are uncertain"):
        removal_costs(m, 1e-5)
