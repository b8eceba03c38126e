"""Matrices of a solve are factored on a device where one asks for it; the host's results are the oracle."""

import array_api_strict
import numpy as np
import pytest
from rich.console import Console

from streamfit import Header, Linear, Store, factoring
from streamfit.arrays import bare_product
from streamfit.config import SolveSection
from streamfit.errors import ConfigError
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.plan import Shard
from streamfit.solve import cross_validate, decompose, solve
from streamfit.solving import solve_store
from streamfit.targets import Dense

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 12)) @ RNG.normal(size=(12, 12))
Y = X[:, :3] + RNG.normal(size=(400, 3))
DEVICE = array_api_strict.asarray(np.zeros(1), device=array_api_strict.Device("device1"))


def _moments(rows=slice(None)):
    return Moments.from_rows(X[rows], Y[rows], Frame.identity(12, 3), Dense(3))


@pytest.fixture
def moved(monkeypatch):
    """Shapes of the matrices that were taken to the device."""
    shapes, taken = [], factoring.to_device_of

    def counted(host, like):
        if not isinstance(like, np.ndarray):
            shapes.append(host.shape)
        return taken(host, like)

    monkeypatch.setattr(factoring, "to_device_of", counted)
    return shapes


def test_a_solve_on_a_device_is_the_hosts(moved):
    host = solve(_moments(), 0.5)
    assert not moved
    with factoring.factored_on(DEVICE):
        there = solve(_moments(), 0.5)
    assert moved.count((12, 12)) >= 3  # factor, right sides' factor, eigenvalues
    assert (12, 3) in moved
    np.testing.assert_allclose(there.weights, host.weights, rtol=0, atol=1e-12)
    assert there.certificate.suboptimality < 1e-12
    assert isinstance(there.weights, np.ndarray)


def test_a_choice_of_alpha_and_a_spectrum_are_the_hosts(moved):
    folds = {i: _moments(slice(i, None, 4)) for i in range(4)}
    grid = np.array([0.1, 1.0, 10.0])
    host, spectrum = cross_validate(folds, grid), decompose(_moments())
    with factoring.factored_on(DEVICE):
        there, other = cross_validate(folds, grid), decompose(_moments())
    assert len(moved) >= 5
    np.testing.assert_allclose(there.losses, host.losses, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(other.eigenvalues, spectrum.eigenvalues, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(other.weights(0.3), spectrum.weights(0.3), rtol=1e-9, atol=1e-12)


def test_dependent_features_are_refused_by_the_devices_cholesky_as_by_the_hosts():
    gram = np.ones((3, 3)) - 2 * np.eye(3)
    assert factoring.cholesky(gram) is None
    with factoring.factored_on(DEVICE):
        assert factoring.cholesky(gram) is None


def test_right_sides_are_solved_in_blocks(monkeypatch):
    monkeypatch.setattr(factoring, "_COLUMNS", 2)
    gram, right = X.T @ X, RNG.normal(size=(12, 5))
    for sides in (right, right[:, 0], right[:, :0]):
        with factoring.factored_on(DEVICE):
            found = factoring.cho_solve(factoring.cholesky(gram), sides)
        assert found.shape == sides.shape
        np.testing.assert_allclose(gram @ found, sides, atol=1e-9)


def test_the_place_is_the_hosts_again_after_the_block():
    with factoring.factored_on(DEVICE):
        pass
    assert isinstance(factoring._placed(np.eye(2), 1), np.ndarray)


def test_without_a_gpu_a_solve_on_one_is_one_clear_error(tmp_path):
    frame = Frame.identity(12, 3)
    store = Store.create(tmp_path / "store", Header(Linear(12), Dense(3), frame, "float64", 1))
    shard = Shard("a", "a", 0, 1, 1, 400, "0" * 64, "table")
    store.commit([store.write_segment(_moments(), [shard], [400])])
    with pytest.raises(ConfigError, match="array backend 'cuda', but"):
        solve_store(store, SolveSection(alphas=(1.0,)), Console(quiet=True), backend="cuda")


def test_a_bare_product_is_a_call_that_can_be_timed():
    assert bare_product(np.eye(3, dtype=np.float32), "float32")() is None
