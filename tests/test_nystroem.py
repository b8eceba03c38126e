"""Nyström features are scikit-learn's up to a rotation, and the same fit comes from sums of RBF features."""

import warnings

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn import kernel_approximation
from sklearn.linear_model import Ridge

from streamfit import RBF, Dense, Frame, Linear, LinearModel, Moments, Nystroem, Standardize, solve
from streamfit.arrays import to_host
from streamfit.config import RidgeProblem
from streamfit.corpus import Files, ParquetTable
from streamfit.engine import accumulate
from streamfit.errors import MismatchError
from streamfit.features import Chain
from streamfit.solve import whitened
from streamfit.store import Store
from streamfit.tables import Block, prepare_table

GAMMA = 2.5
rng = np.random.default_rng(0)
X = rng.uniform(-2.0, 2.0, size=(1500, 2)) + 3.0
Y = np.column_stack([np.sin(X[:, 0]) * X[:, 1], np.cos(2.0 * X[:, 1])]) + 0.1 * rng.normal(size=(1500, 2)) + 50.0
CENTERS = X[:60]
Z = rng.uniform(-2.0, 2.0, size=(200, 2)) + 3.0


def kernel(a, b):
    return np.exp(-GAMMA * cdist(a, b, "sqeuclidean"))


def peer(centers=CENTERS):
    return kernel_approximation.Nystroem(gamma=GAMMA, n_components=len(centers), random_state=0).fit(centers)


def sums(features, precision="float64"):
    phi = features(X)
    return Moments.from_rows(
        phi, Y, Frame.from_sample(phi, Y, Dense(2), features.bounds), Dense(2), precision=precision
    )


def test_inner_products_are_scikit_learns_on_every_backend(on):
    features = Nystroem(CENTERS, GAMMA)
    there = on(Z)
    phi, theirs = to_host(features.like(there)(there)), peer().transform(Z)
    np.testing.assert_allclose(phi @ phi.T, theirs @ theirs.T, atol=1e-6)
    turn = np.linalg.lstsq(theirs, phi, rcond=None)[0]
    np.testing.assert_allclose(turn.T @ turn, np.eye(features.n_features), atol=1e-3)


def test_the_kernel_is_exact_on_the_centers_and_features_are_bounded():
    features = Nystroem(CENTERS, GAMMA)
    phi = features(CENTERS)
    np.testing.assert_allclose(phi @ phi.T, kernel(CENTERS, CENTERS), atol=1e-9)
    assert np.sum(features(X) ** 2, axis=1).max() <= 1.0 + 1e-9
    assert (np.diff(np.sum(phi**2, axis=0)) < 0).all()


@pytest.mark.parametrize("spread", [1e-3, 0.05])
def test_directions_that_are_rounding_are_left_out(spread):
    """Centers so close that their kernel matrix has a rank far below their number."""
    centers = 3.0 + spread * rng.normal(size=(60, 2))
    features = Nystroem(centers, GAMMA)
    assert 3 <= features.n_features < 60
    phi = features(centers)
    np.testing.assert_allclose(phi @ phi.T, kernel(centers, centers), atol=1e-9)


@pytest.mark.parametrize(("gamma", "lost"), [(0.4, 1e-6), (40.0, 1e-3)])
def test_float32_rows_keep_the_digits_of_the_small_features(gamma, lost):
    """In float64 where K is nearly singular, else in float32; relative to each feature's own size."""
    features, x = Nystroem(CENTERS, gamma), X.astype(np.float32)
    phi, exact = features(x), features(x.astype(np.float64))
    assert phi.dtype == np.float32
    size = np.sqrt(np.mean(exact**2, axis=0))
    assert (np.abs(phi - exact).max(axis=0) / size).max() < 20 * lost


@pytest.mark.parametrize("alpha", [1e-3, 1.0])
def test_three_ways_to_one_fit(alpha):
    """Ridge on these features, on scikit-learn's, and RBF sums whitened before the solve."""
    theirs = peer()
    reference = Ridge(alpha=alpha).fit(theirs.transform(X), Y).predict(theirs.transform(Z))
    features = Nystroem(CENTERS, GAMMA)
    np.testing.assert_allclose(solve(sums(features), alpha).predict(features(Z)), reference, atol=1e-6)
    rbf = RBF(CENTERS, GAMMA)
    found = whitened(sums(rbf), rbf).solve(alpha)
    assert found.certificate.relative_gradient < 1e-9
    np.testing.assert_allclose(LinearModel(rbf, found).predict(Z), reference, atol=1e-6)


def test_the_whitened_fit_solves_its_normal_equations():
    alpha, k, centered = 0.3, kernel(X, CENTERS), kernel(X, CENTERS) - kernel(X, CENTERS).mean(axis=0)
    found = whitened(sums(RBF(CENTERS, GAMMA)), RBF(CENTERS, GAMMA)).solve(alpha)
    left = centered.T @ (Y - k @ found.weights - found.intercept)
    np.testing.assert_allclose(left, alpha * kernel(CENTERS, CENTERS) @ found.weights, atol=1e-7)
    np.testing.assert_allclose((Y - k @ found.weights - found.intercept).mean(axis=0), 0.0, atol=1e-9)


def test_float32_sums_give_the_fit_up_to_their_rounding():
    rbf = RBF(CENTERS, GAMMA)
    exact, rough = (LinearModel(rbf, whitened(sums(rbf, p), rbf).solve(1.0)).predict(Z) for p in ("float64", "float32"))
    assert 0.0 < np.abs(exact - rough).max() < 3e-3


@pytest.mark.filterwarnings("ignore:alpha 0.001 is below")
def test_float32_rows_are_predicted_in_float64_where_weights_cancel():
    """Of a wide kernel the weights that whitening gives are large; ridge on the features keeps them small."""
    z, rbf = Z.astype(np.float32), RBF(CENTERS, 0.2)
    large, tame = (LinearModel(rbf, found) for found in (whitened(sums(rbf), rbf).solve(1e-3), solve(sums(rbf), 1.0)))
    assert np.abs(large.solution.weights).max() > 1e3 * np.abs(tame.solution.weights).max()
    exact = z.astype(np.float64)
    assert (large.needs_float64, tame.needs_float64) == (True, False)
    np.testing.assert_array_equal(large.predict(z), large.predict(exact).astype(np.float32))
    assert np.abs(large.solution.predict(rbf(z)) - large.predict(exact)).max() > 1e-3
    assert tame.predict(z).dtype == np.float32
    np.testing.assert_allclose(tame.predict(z), tame.predict(exact), atol=1e-3)


def test_standardised_inputs_and_no_intercept():
    scale = Standardize.fit(X)
    rbf = Chain(scale, RBF(scale(CENTERS), 1.0))
    features = Chain(scale, Nystroem(scale(CENTERS), 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a = whitened(sums(rbf), rbf).solve(1.0, fit_intercept=False)
        b = solve(sums(features), 1.0, fit_intercept=False)
    np.testing.assert_allclose(a.predict(rbf(Z)), b.predict(features(Z)), atol=1e-5)


@pytest.mark.parametrize("features", [Linear(60), RBF(CENTERS[:59], GAMMA)])
def test_other_sums_are_refused(features):
    with pytest.raises(MismatchError):
        whitened(sums(RBF(CENTERS, GAMMA)), features)


def test_a_config_names_it_and_a_store_keeps_it(table, tmp_path):
    """From Parquet through a store that is opened again: the fit of the same features in memory."""
    folder, x, y = table
    columns = tuple(f"x{j}" for j in range(8))
    section = {"root": str(folder), "features": columns, "target": ("y",)}
    problem = RidgeProblem(kind="ridge", run="r", corpus=section, features=[{"kind": "nystroem", "n": 20}])
    block = Block(problem.features[0].kind, problem.features[0].n, problem.features[0].gamma)
    source = ParquetTable(Files(str(folder)), columns, ("y",))
    header = prepare_table(source, [block], precision="float64", n_folds=2, seed=0, sample_rows=500)
    accumulate(Store.create(tmp_path / "store", header), source)
    store = Store(tmp_path / "store")
    features = store.header.features
    assert isinstance(features.outer, Nystroem)
    assert features.n_features == 20
    found = solve(store.moments(), 0.5)
    phi = features(x)
    reference = Ridge(alpha=0.5).fit(phi, y)
    np.testing.assert_allclose(found.predict(phi)[:, 0], reference.predict(phi), atol=1e-8)
