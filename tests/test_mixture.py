"""What sources are worth and how to mix them, against refits on rows in memory, finite differences and grids."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import approx_fprime
from sklearn.linear_model import Ridge

from streamfit.errors import SolveError
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.solve import IllConditionedWarning, best_mixture, influence, mixture_loss, solve, stack
from streamfit.solve.sources import Sources
from streamfit.targets import Dense, OneHot

D, K, N = 6, 2, 80
ALPHA = 3.0
both = pytest.mark.parametrize("fit_intercept", [True, False])


class Rows:
    """Sources that share a part of their weights, and a target that is like none of them."""

    def __init__(self, seed=0, n_sources=3):
        rng = np.random.default_rng(seed)
        common = rng.normal(size=(D, K))
        self.data = {}
        for s in range(n_sources + 1):
            phi = rng.normal(size=(N, D)) * rng.uniform(0.3, 2.0, size=D) + rng.normal(size=D)
            b = common + (0.7 * rng.normal(size=(D, K)) if s else 0.0)
            y = phi @ b + rng.normal(size=K) + rng.normal(size=(N, K))
            self.data[f"s{s}" if s else "target"] = phi, y, rng.uniform(0.1, 2.0, size=N)
        self.target = self.data.pop("target")

    def sums(self):
        frame = Frame.from_sample(self.target[0], self.target[1], Dense(K))
        read = {s: Moments.from_rows(x, y, frame, Dense(K), weights=w) for s, (x, y, w) in self.data.items()}
        x, y, w = self.target
        return read, Moments.from_rows(x, y, frame, Dense(K), weights=w)

    def model(self, factors, fit_intercept, alpha=ALPHA):
        used = [s for s in self.data if factors[s] > 0]
        x, y = (np.concatenate([self.data[s][i] for s in used]) for i in (0, 1))
        w = np.concatenate([factors[s] * self.data[s][2] for s in used])
        return Ridge(alpha=alpha, fit_intercept=fit_intercept, solver="cholesky").fit(x, y, sample_weight=w)

    def held_out(self, predict):
        x, y, w = self.target
        return np.average(((predict(x) - y) ** 2).sum(axis=1), weights=w)

    def loss(self, factors, fit_intercept, alpha=ALPHA):
        return self.held_out(self.model(factors, fit_intercept, alpha).predict)

    def ones(self):
        return dict.fromkeys(self.data, 1.0)

    def simplex(self, n, seed=0):
        """Mixtures of the total weight of all sources, from the inside, near the edges, and the corners."""
        shares = np.random.default_rng(seed).dirichlet(np.full(len(self.data), 0.5), size=n)
        weights = np.array([w.sum() for _, _, w in self.data.values()])
        factors = np.vstack([shares, np.eye(len(self.data))]) * weights.sum() / weights
        return [dict(zip(self.data, row, strict=True)) for row in factors]


@both
def test_influence_is_a_refit_without_the_source(fit_intercept):
    rows = Rows()
    found = influence(*rows.sums(), ALPHA, fit_intercept=fit_intercept)
    assert [i.source for i in found] == list(rows.data)
    for i in found:
        loss, without = (rows.loss(rows.ones() | {i.source: a}, fit_intercept) for a in (1.0, 0.0))
        np.testing.assert_allclose([i.loss, i.loss_without], [loss, without], rtol=1e-10)
        assert i.value == pytest.approx(without - loss, rel=1e-8)
        assert i.relative == pytest.approx((without - loss) / loss, rel=1e-8)
        assert (i.n_rows, i.weight) == (N, pytest.approx(rows.data[i.source][2].sum()))
        assert json.loads(json.dumps(i.to_json()))["value"] == i.value


@both
def test_the_loss_of_a_mixture_is_that_of_weighted_rows(fit_intercept):
    rows = Rows(1)
    sources = Sources.of(*rows.sums(), ALPHA, fit_intercept)
    for factors in rows.simplex(10):
        ours = sources.loss(*sources.fit(np.array(list(factors.values()))))
        assert ours == pytest.approx(rows.loss(factors, fit_intercept), rel=1e-10)


@both
def test_the_loss_of_given_factors(fit_intercept):
    rows = Rows(1)
    parts, target = rows.sums()
    factors = {"s3": 2.5, "s1": 0.5, "s2": 0.0}
    ours = mixture_loss(parts, target, ALPHA, factors, fit_intercept=fit_intercept)
    assert ours == pytest.approx(rows.loss(factors, fit_intercept), rel=1e-10)
    for bad in ({"s1": 1.0, "s2": 1.0}, dict.fromkeys(parts, 0.0), factors | {"s1": -1.0}):
        with pytest.raises(SolveError, match="one >= 0 for each of s1, s2, s3"):
            mixture_loss(parts, target, ALPHA, bad)


def test_mixing_centred_sums_is_solving_the_sum():
    """Also for features that are constant in each source but not in all of them together."""
    rows = Rows(2)
    for s, (x, _, _) in enumerate(rows.data.values()):
        x[:, 0], x[:, 1] = 0.1 * (s + 1), 0.7
    parts, target = rows.sums()
    mixed, b = Sources.of(parts, target, ALPHA, True).fit(np.array([2.0, 0.0, 1.0]))
    whole = solve(parts["s1"] * 2 + parts["s3"], ALPHA)
    # What a product leaves of a constant depends on the order of its additions, and so on the processor.
    np.testing.assert_allclose(b, whole.weights, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(mixed.mean_y - mixed.mean_x @ b, whole.intercept, rtol=1e-10)
    assert mixed.n_rows == 2 * N
    assert (b[0] != 0).all()
    np.testing.assert_allclose(b[1], 0.0, atol=1e-12)


@both
@given(seed=st.integers(0, 10**6), alpha=st.floats(1e-3, 1e3), on_an_edge=st.booleans())
def test_the_gradient_is_that_of_finite_differences(fit_intercept, seed, alpha, on_an_edge):
    sources = Sources.of(*Rows(seed).sums(), alpha, fit_intercept)
    at = np.random.default_rng(seed).uniform(0.2, 2.0, size=3)
    loss, gradient = sources.loss_and_gradient(at)
    assert loss == pytest.approx(sources.loss(*sources.fit(at)), rel=1e-12)
    h = 1e-4
    numeric = np.array(
        [
            sum(c * sources.loss_and_gradient(at + k * h * e)[0] for k, c in ((-2, 1), (-1, -8), (1, 8), (2, -1)))
            / (12 * h)
            for e in np.eye(3)
        ]
    )
    assert np.linalg.norm(gradient - numeric) <= 1e-5 * np.linalg.norm(gradient) + 1e-9 * loss
    if on_an_edge:
        # One-sided, into the simplex, where a source has no weight yet.
        at[0] = 0.0
        inward = approx_fprime(at, lambda a: sources.loss_and_gradient(a)[0], 1e-7)
        gradient = sources.loss_and_gradient(at)[1]
        assert np.linalg.norm(gradient - inward) <= 1e-3 * np.linalg.norm(gradient) + 1e-6 * loss


@both
@pytest.mark.parametrize("seed", range(4))
def test_no_mixture_looked_at_is_better_than_the_best(fit_intercept, seed):
    rows = Rows(seed)
    parts, target = rows.sums()
    best = best_mixture(parts, target, ALPHA, fit_intercept=fit_intercept)
    assert best.loss == pytest.approx(rows.loss(best.factors, fit_intercept), rel=1e-9)
    assert best.plain_loss == pytest.approx(rows.loss(rows.ones(), fit_intercept), rel=1e-10)
    assert best.loss <= best.plain_loss
    sources = Sources.of(parts, target, ALPHA, fit_intercept)
    # Mixtures at random from another seed than the search's own.
    for factors in rows.simplex(200, seed=seed + 1):
        assert best.loss <= sources.loss(*sources.fit(np.array(list(factors.values())))) * (1 + 1e-9)
    weights = {s: w.sum() for s, (_, _, w) in rows.data.items()}
    assert sum(best.factors[s] * w for s, w in weights.items()) == pytest.approx(sum(weights.values()))
    assert sum(best.shares.values()) == pytest.approx(1.0)
    for s, a in best.factors.items():
        assert best.shares[s] == pytest.approx(a * weights[s] / sum(weights.values()))
    assert best.stationary
    assert 0 <= best.gap <= 1e-6 * best.loss
    assert best.n_starts >= 8
    assert 1 <= best.n_minima <= best.n_starts
    assert json.loads(json.dumps(best.to_json()))["stationary"] is True


def test_the_gap_is_the_steepest_descent_towards_a_source():
    """At a search cut short the gap is large, and a derivative that finite differences see."""
    rows = Rows(3)
    parts, target = rows.sums()
    short = best_mixture(parts, target, ALPHA, max_iterations=1, n_scouts=0)
    assert short.gap > 1e-6 * short.loss
    shares, step = np.array(list(short.shares.values())), 1e-6
    weights = np.array([w.sum() for _, _, w in rows.data.values()])
    sources = Sources.of(parts, target, ALPHA, True)

    def loss(p):
        return sources.loss(*sources.fit(p * weights.sum() / weights))

    falls = [(loss(shares) - loss(shares + step * (corner - shares))) / step for corner in np.eye(3)]
    assert short.gap == pytest.approx(max(falls), rel=1e-3)


def test_a_corrupted_source_does_harm_and_gets_no_weight():
    rows = Rows(4)
    x, y, w = rows.data["s2"]
    rows.data["s2"] = x, -5.0 * y + 20.0, w
    parts, target = rows.sums()
    values = {i.source: i.value for i in influence(parts, target, ALPHA)}
    assert min(values, key=values.__getitem__) == "s2"
    assert values["s2"] < 0
    best = best_mixture(parts, target, ALPHA)
    assert best.shares["s2"] < 1e-6
    assert best.loss < 0.1 * best.plain_loss
    assert stack(parts, target, ALPHA).shares["s2"] < 0.1


@both
@pytest.mark.parametrize("n_sources", [2, 3])
def test_a_stack_is_the_best_of_a_grid_and_proves_it(n_sources, fit_intercept):
    rows = Rows(5, n_sources)
    found = stack(*rows.sums(), ALPHA, fit_intercept=fit_intercept)
    alone = [rows.model(dict.fromkeys(rows.data, 0.0) | {s: 1.0}, fit_intercept) for s in rows.data]
    np.testing.assert_allclose(list(found.losses.values()), [rows.held_out(m.predict) for m in alone], rtol=1e-10)
    x, y, w = rows.target
    errors = np.array([m.predict(x) - y for m in alone])
    steps = 200 if n_sources == 2 else 60
    grid = np.array([v for v in np.ndindex((steps + 1,) * n_sources) if sum(v) == steps]) / steps
    products = np.einsum("srk,trk,r->st", errors, errors, w / w.sum())
    values = np.einsum("gs,st,gt->g", grid, products, grid)
    shares = np.array(list(found.shares.values()))
    assert found.loss == pytest.approx(shares @ products @ shares, rel=1e-10)
    assert found.loss <= values.min() * (1 + 1e-12)
    assert found.loss >= values.min() - 0.05 * np.ptp(values)
    assert np.abs(shares - grid[values.argmin()]).max() <= 2.0 / steps
    assert 0 <= found.gap <= 1e-9 * found.loss + 1e-12
    assert found.loss == pytest.approx(rows.held_out(lambda x: x @ found.weights + found.intercept), rel=1e-10)
    assert json.loads(json.dumps(found.to_json()))["loss"] == found.loss


@pytest.mark.parametrize("size", [1e2, 1e3, 1e6])
def test_a_wild_source_does_not_spoil_the_others(size):
    rows = Rows(6)
    x, y, w = rows.data["s3"]
    parts, target = rows.sums()
    rows.data["s3"] = x, size * y, w
    wild, _ = rows.sums()
    pair = {s: parts[s] for s in ("s1", "s2")}
    found = stack(wild, target, ALPHA)
    assert found.loss <= stack(pair, target, ALPHA).loss * (1 + 1e-12)
    assert found.shares["s3"] < 10.0 / size
    assert 0 <= found.gap <= 1e-9 * found.loss + 1e-13 * size
    best = best_mixture(wild, target, ALPHA)
    assert best.plain_loss > size * best.loss
    assert best.shares["s3"] < 1.0 / size
    # Mixtures keep the total weight, so the pair alone compares at less alpha.
    total = {n: sum(part.centered().weight for part in p.values()) for n, p in (("all", parts), ("pair", pair))}
    alone = best_mixture(pair, target, ALPHA * total["pair"] / total["all"])
    assert best.loss <= alone.loss * (1 + 1e-9)
    # A source a thousand times too large leaves few digits for the search: there the certificate may say no.
    assert best.stationary or size > 1e2


def test_equal_sources_are_one_source():
    parts, target = Rows(7, 2).sums()
    twice = parts | {"again": parts["s1"], "once more": parts["s1"]}
    assert stack(twice, target, ALPHA).loss == pytest.approx(stack(parts, target, ALPHA).loss, rel=1e-10)
    # Mixtures keep the total weight, so that of four sources compares at half the alpha.
    total = {n: sum(p.centered().weight for p in s.values()) for n, s in (("all", twice), ("two", parts))}
    best = best_mixture(twice, target, ALPHA * total["all"] / total["two"])
    assert best.loss == pytest.approx(best_mixture(parts, target, ALPHA).loss, rel=1e-9)


def test_class_ids_are_mixed_like_their_indicators():
    rng = np.random.default_rng(8)
    sparse, dense = {}, {}
    centers = 2.0 * rng.normal(size=(4, 5))
    for s, wrong in (("clean", 0.05), ("noisy", 0.4), ("wrong", 1.0), ("target", 0.0)):
        ids = rng.integers(4, size=200)
        phi = centers[ids] + rng.normal(size=(200, 5))
        ids = np.where(rng.random(200) < wrong, (ids + 1) % 4, ids)
        sparse[s] = Moments.from_rows(phi, ids, Frame.identity(5, 4), OneHot(4))
        dense[s] = Moments.from_rows(phi, np.eye(4)[ids], Frame.identity(5, 4), Dense(4))
    targets = sparse.pop("target"), dense.pop("target")
    ours, theirs = (best_mixture(p, t, 1.0) for p, t in zip((sparse, dense), targets, strict=True))
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-9)
    assert max(ours.shares, key=ours.shares.__getitem__) == "clean"
    assert ours.shares["wrong"] < 1e-6
    assert [i.value < 0 for i in influence(sparse, targets[0], 1.0)] == [False, False, True]
    assert stack(sparse, targets[0], 1.0).loss == pytest.approx(stack(dense, targets[1], 1.0).loss, rel=1e-10)


every = pytest.mark.parametrize("ask", [influence, best_mixture, stack])


@every
def test_what_cannot_be_mixed_is_refused(ask):
    parts, target = Rows().sums()
    empty = Moments.zeros(target.frame, Dense(K))
    for alpha in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(SolveError, match="expected a positive finite number"):
            ask(parts, target, alpha)
    for few in ({}, {"s1": parts["s1"]}):
        with pytest.raises(SolveError, match=r"source\(s\).*expected at least 2"):
            ask(few, target, ALPHA)
    with pytest.raises(SolveError, match="without weight: void, null"):
        ask(parts | {"void": empty, "null": parts["s1"] * 0}, target, ALPHA)
    with pytest.raises(SolveError, match="held-out sums of 0 rows"):
        ask(parts, empty, ALPHA)
    for d, k in ((D + 1, K), (D, K + 1)):
        other = Moments.from_rows(np.ones((2, d)), np.ones((2, k)), Frame.identity(d, k), Dense(k))
        with pytest.raises(SolveError, match=f"'odd' with {d} features and {k} targets; expected {D} and {K}"):
            ask(parts | {"odd": other}, target, ALPHA)


@every
def test_an_alpha_below_rounding_is_told(ask):
    rng = np.random.default_rng(9)
    frame, sums = Frame.identity(3, 1), {}
    for s in ("a", "b", "target"):
        phi = rng.normal(size=(5000, 3))
        phi[:, 2] = phi[:, 0] * (1 + 1e-9)
        y = phi[:, :1] + rng.normal(size=(5000, 1))
        sums[s] = Moments.from_rows(phi, y, frame, Dense(1), precision="float32")
    target = sums.pop("target")
    with pytest.warns(IllConditionedWarning, match="rounding of the stored sums"):
        ask(sums, target, 1e-6)
