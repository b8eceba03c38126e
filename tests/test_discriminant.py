"""Discriminant analysis from sums against scikit-learn on the rows, and Fisher's criterion against SciPy."""

import json

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from streamfit.errors import MismatchError, SolveError
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.solve.discriminant import discriminant
from streamfit.targets import Dense, OneHot

N, D, K = 160, 5, 4
rng = np.random.default_rng(8)
IDS = np.r_[np.arange(K), rng.choice(K, size=N - K, p=[0.1, 0.2, 0.3, 0.4])]
X = rng.normal(size=(N, D)) @ rng.normal(size=(D, D)) + rng.normal(size=(K, D))[IDS] * 2.0 + 20.0
NEW = X.mean(axis=0) + rng.normal(size=(30, D)) * 3.0


def moments(x=X, ids=IDS, k=K, w=None):
    return Moments.from_rows(x, ids, Frame.from_sample(x, ids, OneHot(k)), OneHot(k), weights=w)


def relative(scores):
    """Scores without what is common to all classes of a row."""
    scores = np.column_stack([-scores / 2, scores / 2]) if scores.ndim == 1 else scores
    return scores - scores.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("k", [2, K])
@pytest.mark.parametrize("solver", ["svd", "lsqr", "eigen"])
@pytest.mark.parametrize("shrinkage", [None, 0.0, 0.2, 0.9, 1.0])
def test_scikit_learn(k, solver, shrinkage):
    if solver == "svd" and shrinkage is not None:
        solver = "lsqr"
    x, ids = X[k > IDS], IDS[k > IDS]
    theirs = LinearDiscriminantAnalysis(solver=solver, shrinkage=shrinkage).fit(x, ids)
    ours = discriminant(moments(x, ids, k), shrinkage=shrinkage or 0.0)
    np.testing.assert_allclose(
        relative(ours.decision_function(NEW)), relative(theirs.decision_function(NEW)), atol=1e-7
    )
    np.testing.assert_array_equal(ours.predict(NEW), theirs.predict(NEW))
    np.testing.assert_allclose(ours.predict_proba(NEW), theirs.predict_proba(NEW), atol=1e-9)
    np.testing.assert_allclose(ours.class_means, theirs.means_, rtol=1e-10)
    np.testing.assert_allclose(ours.priors, theirs.priors_, rtol=1e-12)
    if solver == "eigen" and not shrinkage:
        np.testing.assert_allclose(ours.ratio_shares, theirs.explained_variance_ratio_, rtol=1e-8)
        z = theirs.transform(NEW)
        z -= theirs.transform(X[k > IDS]).mean(axis=0)
        np.testing.assert_allclose(np.abs(ours.transform(NEW)), np.abs(z), atol=1e-7)


def test_given_priors_against_the_pooled_covariance():
    priors = [0.4, 0.3, 0.2, 0.1]
    theirs = LinearDiscriminantAnalysis(solver="svd", priors=priors).fit(X, IDS)
    ours = discriminant(moments(), priors=priors)
    np.testing.assert_allclose(ours.predict_proba(NEW), theirs.predict_proba(NEW), atol=1e-9)
    np.testing.assert_allclose(ours.weights, discriminant(moments()).weights, rtol=1e-12)


@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_directions_maximise_fishers_criterion(shrinkage):
    means = np.stack([X[k == IDS].mean(axis=0) for k in range(K)])
    within = (X - means[IDS]).T @ (X - means[IDS]) / N
    between = np.cov(X.T, ddof=0) - within
    shrunk = (1 - shrinkage) * within + shrinkage * np.trace(within) / D * np.eye(D)
    ratios, vectors = scipy.linalg.eigh(between, shrunk)
    ours = discriminant(moments(), shrinkage=shrinkage)
    assert ours.scalings.shape == (D, K - 1)
    np.testing.assert_allclose(ours.ratios, ratios[::-1][: K - 1], rtol=1e-9)
    np.testing.assert_allclose(np.abs(ours.scalings), np.abs(vectors[:, ::-1][:, : K - 1]), atol=1e-9)
    np.testing.assert_allclose(ours.scalings.T @ shrunk @ ours.scalings, np.eye(K - 1), atol=1e-9)
    few = discriminant(moments(), shrinkage=shrinkage, n_components=2)
    np.testing.assert_array_equal(few.transform(NEW), ours.transform(NEW)[:, :2])
    np.testing.assert_array_equal(few.ratio_shares, ours.ratio_shares[:2])
    # Nearest class mean in the space of all directions is the rule itself, where priors are equal.
    equal = discriminant(moments(), shrinkage=shrinkage, priors=np.full(K, 1 / K))
    distance = ((ours.transform(NEW)[:, None] - ours.transform(means)) ** 2).sum(axis=2)
    np.testing.assert_array_equal(equal.predict(NEW), distance.argmin(axis=1))
    np.testing.assert_allclose(relative(equal.decision_function(NEW)), relative(-distance / 2), atol=1e-8)


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(2, 6))
def test_scores_do_not_hang_on_the_features_basis(seed, d, k):
    r = np.random.default_rng(seed)
    ids = np.r_[np.arange(k), np.arange(k), r.integers(k, size=40)]
    x = r.normal(size=(len(ids), d)) + r.normal(size=(k, d))[ids]
    basis = scipy.linalg.qr(r.normal(size=(d, d)))[0] * 10.0 ** r.integers(-2, 3, d)
    p, q = discriminant(moments(x, ids, k)), discriminant(moments(x @ basis + 7.0, ids, k))
    np.testing.assert_allclose(q.decision_function(x @ basis + 7.0), p.decision_function(x), atol=1e-6)
    np.testing.assert_allclose(q.ratios, p.ratios, rtol=1e-6, atol=1e-9)
    assert len(p.ratios) == min(d, k - 1)
    np.testing.assert_allclose(p.predict_proba(x).sum(axis=1), 1.0)


def test_weights_are_repetitions_and_indicators_are_ids():
    times = np.arange(N) % 3 + 1
    repeated = discriminant(moments(np.repeat(X, times, axis=0), np.repeat(IDS, times)))
    counted = discriminant(moments(w=times.astype(float)))
    np.testing.assert_allclose(counted.decision_function(NEW), repeated.decision_function(NEW), atol=1e-8)
    y = np.eye(K)[IDS]
    dense = discriminant(Moments.from_rows(X, y, Frame.from_sample(X, y, Dense(K)), Dense(K)))
    np.testing.assert_allclose(dense.decision_function(NEW), discriminant(moments()).decision_function(NEW), atol=1e-8)


def test_shares_of_a_corpus_add_up():
    parts = [slice(0, 70), slice(70, N)]
    frame = Frame.from_sample(X, IDS, OneHot(K))
    first, second = (Moments.from_rows(X[p], IDS[p], frame, OneHot(K)) for p in parts)
    np.testing.assert_array_equal(discriminant(first + second).weights, discriminant(second + first).weights)
    np.testing.assert_allclose(discriminant(first + second).weights, discriminant(moments()).weights, rtol=1e-8)


def test_rows_on_any_device(on):
    d = discriminant(moments())
    np.testing.assert_array_equal(d.predict_proba(on(NEW)), d.predict_proba(NEW))
    np.testing.assert_array_equal(d.transform(on(NEW)), d.transform(NEW))


def test_equal_class_means_have_no_direction():
    x = np.vstack([X[:20], X[:20]])
    d = discriminant(moments(x, np.repeat([0, 1], 20), 2))
    assert d.transform(NEW).shape == (30, 0)
    np.testing.assert_allclose(d.predict_proba(NEW), 0.5, atol=1e-9)


def test_targets_that_are_not_classes():
    for y in (X[:, :2], np.eye(K)[IDS][:, : K - 1], np.full((N, 2), 0.5), 2 * np.eye(K)[IDS]):
        k = y.shape[1]
        with pytest.raises(SolveError, match=rf"{k} target\(s\) that are not one-hot"):
            discriminant(Moments.from_rows(X, y, Frame.from_sample(X, y, Dense(k)), Dense(k)))
    with pytest.raises(SolveError, match=r"no rows of 2 class\(es\), the first of id 4"):
        discriminant(moments(k=K + 2))
    with pytest.raises(SolveError, match="at least 2"):
        discriminant(moments(ids=np.zeros(N, dtype=int), k=1))


def test_singular_covariances_need_shrinkage():
    """A feature that tells classes apart without varying within them, one that is a sum of others, and a constant."""
    for extra, why in ((IDS * 0.1, "feature 5 does not vary"), (X[:, 0] + X[:, 1], "combination"), (X[:, 0] * 0, "5")):
        x = np.column_stack([X, extra])
        with pytest.raises(SolveError, match=rf"singular covariance within classes.*{why}.*raise shrinkage"):
            discriminant(moments(x))
        theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1).fit(x, IDS)
        ours = discriminant(moments(x), shrinkage=0.1)
        np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-8)
    with pytest.raises(SolveError, match="singular covariance"):
        discriminant(moments(X[:K], IDS[:K]), shrinkage=0.5)  # one row a class: nothing varies within


def test_wrong_arguments_are_named():
    d = discriminant(moments())
    assert json.loads(json.dumps(d.to_json()))["ratios"] == d.ratios.tolist()
    with pytest.raises(MismatchError, match=r"\(n_rows, 5\)"):
        d.predict(NEW[:, :2])
    for shrinkage in (-0.1, 1.1, np.nan):
        with pytest.raises(SolveError, match="between 0 and 1"):
            discriminant(moments(), shrinkage=shrinkage)
    for priors in ([0.5, 0.5], [0.5, 0.5, 0.5, -0.5], [0.1] * 4, [np.nan] * 4, [1.0, 0.0, 0.0, 0.0]):
        with pytest.raises(SolveError, match="4 positive numbers with sum 1"):
            discriminant(moments(), priors=priors)
    with pytest.raises(SolveError, match="0 discriminant directions"):
        discriminant(moments(), n_components=0)
