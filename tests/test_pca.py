"""Principal components against scikit-learn on the rows, and laws of orthogonal directions."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import decomposition
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from streamfit.errors import MismatchError, SolveError
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.solve.pca import pca
from streamfit.targets import Dense

N, D = 90, 6
rng = np.random.default_rng(3)
X = rng.normal(size=(N, D)) @ rng.normal(size=(D, D)) + 10.0 * np.arange(D)
NEW = rng.normal(size=(5, D)) * 4.0


def moments(x=X, w=None, precision="float64"):
    y = np.zeros((len(x), 1))
    return Moments.from_rows(x, y, Frame.from_sample(x, y, Dense(1)), Dense(1), weights=w, precision=precision)


@pytest.mark.parametrize("n_components", [None, 1, 3, 6, 0.6, 0.999])
@pytest.mark.parametrize("scale", [False, True], ids=["plain", "scaled"])
def test_scikit_learn(n_components, scale):
    theirs = decomposition.PCA(n_components, svd_solver="full")
    pipeline = make_pipeline(StandardScaler(with_mean=scale, with_std=scale), theirs).fit(X)
    ours = pca(moments(), n_components, scale=scale)
    np.testing.assert_allclose(ours.explained_variance, theirs.explained_variance_, rtol=1e-10)
    np.testing.assert_allclose(ours.explained_variance_ratio, theirs.explained_variance_ratio_, rtol=1e-10)
    np.testing.assert_allclose(ours.components, theirs.components_, atol=1e-9)
    np.testing.assert_allclose(ours.mean, X.mean(axis=0), rtol=1e-12)
    assert ours.noise_variance == pytest.approx(theirs.noise_variance_, rel=1e-9, abs=1e-12)
    z = ours.transform(NEW)
    np.testing.assert_allclose(z, pipeline.transform(NEW), atol=1e-8)
    np.testing.assert_allclose(ours.inverse_transform(z), pipeline.inverse_transform(z), atol=1e-8)
    np.testing.assert_allclose(ours.whiten(NEW), pipeline.set_params(pca__whiten=True).transform(NEW), atol=1e-8)
    assert ours.rank == D


def test_fewer_rows_than_features():
    x = X[:4]
    ours, theirs = pca(moments(x), 2), decomposition.PCA(2, svd_solver="full").fit(x)
    np.testing.assert_allclose(ours.transform(NEW), theirs.transform(NEW), atol=1e-8)
    assert ours.noise_variance == pytest.approx(theirs.noise_variance_, rel=1e-9)
    assert (ours.rank, len(pca(moments(x)).components)) == (3, 3)
    with pytest.raises(SolveError, match=r"4 components of features of rank 3"):
        pca(moments(x), 4)


def test_weights_that_count_repetitions_and_weights_that_do_not():
    times = np.arange(N) % 3 + 1
    repeated = pca(moments(np.repeat(X, times, axis=0)))
    counted = pca(moments(w=times.astype(float)), n_observations=times.sum())
    np.testing.assert_allclose(counted.explained_variance, repeated.explained_variance, rtol=1e-10)
    np.testing.assert_allclose(counted.components, repeated.components, atol=1e-9)
    # Otherwise the unit of the weights does not matter.
    w = rng.uniform(0.5, 2.0, N)
    p, q = pca(moments(w=w)), pca(moments(w=w / 100))
    np.testing.assert_allclose(q.explained_variance, p.explained_variance, rtol=1e-9)
    covariance = np.cov(X.T, aweights=w, ddof=0) * N / (N - 1)
    np.testing.assert_allclose(p.components.T * p.explained_variance @ p.components, covariance, atol=1e-9)


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 8), st.booleans())
def test_laws_of_directions(seed, d, true_rank, scale):
    r = np.random.default_rng(seed)
    true_rank = min(d, true_rank)
    x = r.normal(size=(40, true_rank)) @ r.normal(size=(true_rank, d)) + r.normal(size=d) * 5
    p = pca(moments(x), scale=scale)
    assert p.rank == true_rank
    np.testing.assert_allclose(p.components @ p.components.T, np.eye(true_rank), atol=1e-10)
    assert (np.diff(p.explained_variance) <= 0).all()
    assert p.explained_variance_ratio.sum() == pytest.approx(1.0)
    # Whitened rows are uncorrelated and of unit variance, and nothing is lost on the way back.
    top = p.explained_variance > 1e-6 * p.explained_variance[0]
    white = p.whiten(x)[:, top]
    np.testing.assert_allclose(np.cov(white.T), np.eye(int(top.sum())), atol=1e-6)
    np.testing.assert_allclose(p.inverse_transform(p.transform(x)), x, atol=1e-6)
    for v in p.components:
        assert v[np.isclose(np.abs(v), np.abs(v).max(), rtol=1e-7)][0] > 0


def test_signs_of_ties_do_not_hang_on_rounding():
    """Two entries of equal size: scikit-learn's rule takes the larger by an ulp, and so either sign."""
    for seed in range(20):
        r = np.random.default_rng(seed)
        a, b = r.normal(size=(2, 50))
        swapped = np.vstack([np.column_stack([a, -a + 0.3 * b]), np.column_stack([a - 0.3 * b, -a])])
        first = pca(moments(swapped)).components[0]
        assert abs(first[0]) == pytest.approx(abs(first[1]))
        assert first[0] > 0


def test_rounding_is_not_variance():
    constant = np.column_stack([X, np.full(N, 0.1), X[:, 0] - X[:, 1]])
    for precision in ("float64", "float32"):
        p = pca(moments(constant, precision=precision))
        assert p.rank == D
        assert not p.components[:, D].any()
        scaled = pca(moments(constant, precision=precision), scale=True)
        assert (scaled.rank, scaled.scale[D]) == (D, 1.0)
    # A feature in tiny units is real all the same, if others are not too large beside it.
    assert pca(moments(X * 10.0 ** np.array([0, -5, 0, 0, 0, 0]))).rank == D
    assert pca(moments(X * 10.0 ** np.array([0, -9, 0, 0, 0, 0]))).rank == D - 1
    assert pca(moments(X * 10.0 ** np.array([0, -9, 0, 0, 0, 0])), scale=True).rank == D


def test_rows_on_any_device(on):
    p = pca(moments(), 2)
    np.testing.assert_array_equal(p.transform(on(NEW)), p.transform(NEW))
    assert p.inverse_transform(on(p.transform(NEW))).shape == NEW.shape
    assert p.transform(NEW[:0]).shape == (0, 2)


def test_wrong_arguments_are_named():
    p = pca(moments(), 2)
    assert json.loads(json.dumps(p.to_json()))["explained_variance"] == p.explained_variance.tolist()
    with pytest.raises(MismatchError, match=r"rows of shape \(5, 2\).*\(n_rows, 6\)"):
        p.transform(NEW[:, :2])
    with pytest.raises(MismatchError, match=r"\(n_rows, 2\)"):
        p.inverse_transform(NEW)
    for wrong in (0, -1, 7, 2.5, np.nan, 0.0, np.inf):
        with pytest.raises(SolveError, match="components of features of rank 6"):
            pca(moments(), wrong)
    with pytest.raises(SolveError, match=r"from 1 observation"):
        pca(moments(X[:1]))
    with pytest.raises(SolveError, match=r"2 features that do not vary"):
        pca(moments(np.full((9, 2), 0.1)))
