"""Feature maps equal their formulas in both precisions and on every device, and survive their own description."""

import json
import math

import numpy as np
import pytest

from streamfit.arrays import column_major, in_columns, to_host
from streamfit.errors import ConfigError, MismatchError
from streamfit.features import (
    RBF,
    Chain,
    Concat,
    Linear,
    Lookup,
    Nystroem,
    RandomFourier,
    Standardize,
    choose_centers,
    from_spec,
    median_gamma,
)
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.pieces import Pieces
from streamfit.targets import Dense

rng = np.random.default_rng(0)
X = rng.normal(size=(40, 3))
CENTERS = rng.normal(size=(7, 3))
TABLES = (rng.normal(size=(5, 2)), rng.normal(size=(5, 4)))
IDS = rng.integers(5, size=(40, 2))

MAPS = {
    "linear": Linear(3),
    "standardize": Standardize.fit(X * [1.0, 10.0, 0.1] + 5.0),
    "rbf": RBF(CENTERS, gamma=0.3),
    "fourier": RandomFourier(n=6, gamma=0.3, seed=1, dim=3),
    "nystroem": Nystroem(CENTERS, gamma=0.3),
    "concat": Linear(3) + RBF(CENTERS, gamma=2.0),
    "chain": Chain(Standardize.fit(X), RBF(CENTERS, gamma=0.5) + Linear(3)),
    "lookup": Lookup(TABLES),
    "embedded": Chain(Lookup(TABLES), RandomFourier(n=4, gamma=1.0, seed=2, dim=6)),
}


def inputs(features, dtype=np.float64):
    return IDS if features.n_inputs == 2 else X.astype(dtype)


def naive(features, x):
    """The formula of each kind, one Python number at a time."""
    match features:
        case Linear():
            return [list(row) for row in x]
        case Standardize():
            return [[(v - m) / s for v, m, s in zip(r, features.mean, features.scale, strict=True)] for r in x]
        case RBF():
            return [[math.exp(-features.gamma * math.dist(r, c) ** 2) for c in features.centers] for r in x]
        case Nystroem():
            near, columns = naive(RBF(features.centers, features.gamma), x), features.whitening.T
            return [[math.fsum(k * w for k, w in zip(row, c, strict=True)) for c in columns] for row in near]
        case RandomFourier():
            waves, scale = list(zip(features.frequencies.T, features.phases, strict=True)), math.sqrt(2 / features.n)
            return [[scale * math.cos(sum(a * b for a, b in zip(r, w, strict=True)) + p) for w, p in waves] for r in x]
        case Lookup():
            return [[v for t, i in zip(features.tables, r, strict=True) for v in t[i]] for r in x]
        case Concat():
            return np.hstack([naive(part, x) for part in features.parts]).tolist()
        case Chain():
            return naive(features.outer, naive(features.inner, x))
    pytest.fail(f"no naive formula for {type(features).__name__}")


@pytest.fixture(params=MAPS)
def features(request):
    return MAPS[request.param]


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 2e-6)])
def test_a_map_is_its_formula(features, dtype, tolerance):
    x = inputs(features, dtype)
    phi = features(x)
    np.testing.assert_allclose(phi, naive(features, x.tolist()), rtol=tolerance, atol=tolerance)
    assert phi.shape == (len(x), features.n_features)
    assert len(features.names()) == features.n_features
    assert phi.dtype == (x.dtype if x.dtype.kind == "f" else np.float64)
    assert features(x[:0]).shape == (0, features.n_features)


def test_every_backend_gives_numpys_features(features, on):
    x = inputs(features)
    there = on(x)
    phi = features.like(there)(there)
    assert type(phi) is type(there)
    assert phi.device == there.device
    np.testing.assert_allclose(to_host(phi), features(x), rtol=1e-13, atol=1e-14)


def test_a_description_restores_the_map(features):
    spec, arrays = features.to_spec()
    again = from_spec(json.loads(json.dumps(spec)), {name: a.copy() for name, a in arrays.items()})
    x = inputs(features)
    assert type(again) is type(features)
    assert again(x).tobytes() == features(x).tobytes()
    assert again.content_hash == features.content_hash


def changed(spec, arrays):
    """Every description that differs in one number or in the last bit of one array entry."""
    for name, array in arrays.items():
        other = array.copy()
        other.flat[-1] = np.nextafter(other.flat[-1], np.inf)
        yield spec, arrays | {name: other}
    for key, value in spec.items():
        if isinstance(value, (int, float)):
            yield spec | {key: value + 1}, arrays


def test_any_change_changes_the_hash(features):
    hashes = [from_spec(*description).content_hash for description in changed(*features.to_spec())]
    assert hashes
    assert features.content_hash not in hashes
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_pieces_are_the_features_in_the_layout_of_the_inputs(features, dtype):
    x = inputs(features, dtype)
    for rows in (x, np.asfortranarray(x)):
        whole, pieces = features(rows), features.pieces(rows)
        assert isinstance(pieces, Pieces) == features.in_pieces
        np.testing.assert_array_equal(pieces.whole() if isinstance(pieces, Pieces) else pieces, whole)
        np.testing.assert_allclose(whole, features(x), rtol=0, atol=1e-6)
        if features.by_columns:
            assert in_columns(whole) == in_columns(rows)
    with pytest.raises(MismatchError):
        features.pieces(x[:, 1:])


def test_one_row_is_mapped_alike_whatever_memory_it_lies_in():
    """A row of a wide table is a part of its columns."""
    row = rng.normal(size=(1, 100)).astype(np.float32)
    gapped = np.empty((100, 4120), np.float32)[:, :1].T
    gapped[...] = row
    assert in_columns(gapped)
    assert not in_columns(column_major(gapped))
    np.testing.assert_array_equal(column_major(gapped), row)
    features = RBF(rng.normal(size=(60, 100)), 0.001)
    found, alone = (features.pieces(column_major(x)) for x in (gapped, row))
    np.testing.assert_array_equal(found.whole(), alone.whole())


def test_integers_become_floating_features():
    x = np.arange(6).reshape(2, 3)
    for features in (MAPS["linear"], MAPS["standardize"], MAPS["rbf"], MAPS["nystroem"], MAPS["fourier"]):
        np.testing.assert_allclose(features(x), features(x.astype(np.float64)), rtol=1e-15)
        assert features(x).dtype == np.float64


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-6)])
@pytest.mark.parametrize("centers_dtype", [np.float64, np.float32])
def test_rbf_keeps_its_digits_far_from_the_origin(dtype, tolerance, centers_dtype):
    x, centers = (X + 1e4).astype(dtype), (CENTERS + 1e4).astype(centers_dtype)
    features = RBF(centers, gamma=0.5)
    np.testing.assert_allclose(features(x), naive(features, x.tolist()), rtol=0, atol=tolerance)
    assert features(centers).max() <= 1.0


def test_rbf_does_not_depend_on_the_cache_blocks():
    """Rows are cut into cache-sized pieces; a row's features do not know which."""
    many = RBF(rng.normal(size=(3000, 3)), gamma=1.0)
    x = rng.normal(size=(200, 3))
    np.testing.assert_allclose(many(x), np.concatenate([many(x[i : i + 1]) for i in range(200)]), rtol=1e-13)


def test_random_fourier_error_falls_as_one_over_root_n():
    """Quadrupling n halves the root mean square error of the kernel, here within a factor of 1.5."""
    kernel = np.exp(-0.3 * ((X[:, None] - X) ** 2).sum(axis=2))

    def error(n):
        maps = [RandomFourier(n=n, gamma=0.3, seed=seed, dim=3)(X) for seed in range(10)]
        return np.sqrt(np.mean([(phi @ phi.T - kernel) ** 2 for phi in maps]))

    for n in (50, 200, 800):
        assert 2 / 1.5 < error(n) / error(4 * n) < 2 * 1.5
    assert error(3200) < 0.02


def test_standardize_keeps_constant_columns_and_float32_digits():
    x = np.column_stack([X[:, 0] + 1e6, np.full(40, 7.0)])
    z = Standardize.fit(x)(x)
    np.testing.assert_allclose(z.mean(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose(z.std(axis=0), [1.0, 0.0], atol=1e-12)
    x32 = x.astype(np.float32)
    np.testing.assert_allclose(Standardize.fit(x)(x32), Standardize.fit(x)(x32.astype(float)), rtol=1e-6)


def test_adding_maps_flattens_and_names_their_features():
    both = Linear(3) + RBF(CENTERS[:2], gamma=1.0)
    three = both + Linear(3)
    assert len(three.parts) == 3
    assert both.names() == ["linear[0]", "linear[1]", "linear[2]", "rbf[0]", "rbf[1]"]
    assert Chain(Linear(3), both).names() == both.names()
    np.testing.assert_array_equal(three(X), np.hstack([both(X), X]))


def test_centers_are_distinct_rows_and_follow_the_seed():
    x = np.repeat(rng.normal(size=(20, 2)), 5, axis=0)
    centers = choose_centers(x, 12, seed=3)
    assert len(np.unique(centers, axis=0)) == 12
    assert all((x == c).all(axis=1).any() for c in centers)
    np.testing.assert_array_equal(centers, choose_centers(x, 12, seed=3))
    assert not np.array_equal(centers, choose_centers(x, 12, seed=4))
    assert len(choose_centers(x, 20, seed=0)) == 20
    with pytest.raises(ConfigError, match="21 centers from 20 distinct rows"):
        choose_centers(x, 21, seed=0)


def test_median_gamma_is_the_reciprocal_median_distance():
    squared = ((X[:, None] - X) ** 2).sum(axis=2)
    expected = 1.0 / np.median(squared[squared > 0])
    assert median_gamma(X, seed=0) == pytest.approx(expected, rel=0.05)
    assert median_gamma(X, seed=0) == median_gamma(X, seed=0)
    with pytest.raises(ConfigError, match="all equal"):
        median_gamma(np.ones((5, 2)), seed=0)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Linear(3)(X[:, :2]), MismatchError),
        (lambda: Linear(3)(X[0]), MismatchError),
        (lambda: Linear(3) + Linear(2), MismatchError),
        (lambda: Concat(()), MismatchError),
        (lambda: Chain(Linear(3), Linear(2)), MismatchError),
        (lambda: Lookup((TABLES[0], TABLES[1][:4])), MismatchError),
        (lambda: Lookup(TABLES)(IDS - 5), ConfigError),
        (lambda: Lookup(TABLES)(IDS + 1), ConfigError),
        (lambda: RBF(CENTERS[:0], gamma=1.0), ConfigError),
        (lambda: RBF(CENTERS, gamma=0.0), ConfigError),
        (lambda: RBF(CENTERS, gamma=math.nan), ConfigError),
        (lambda: Nystroem(CENTERS, gamma=0.0), ConfigError),
        (lambda: Nystroem(CENTERS, gamma=1.0, whitening=np.eye(6)), ConfigError),
        (lambda: RandomFourier(n=0, gamma=1.0, seed=0, dim=2), ConfigError),
        (lambda: from_spec({"kind": "Quadratic"}, {}), ConfigError),
    ],
)
def test_what_makes_no_map_is_refused(make, error):
    with pytest.raises(error):
        make()


def test_float32_distances_between_far_clusters_are_taken_in_float64():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(6, 3)) + np.repeat([[0.0], [1e4]], 3, axis=0)
    x = centers + 0.3 * rng.normal(size=(6, 3))
    features = RBF(centers, 0.5)
    np.testing.assert_allclose(features(x.astype(np.float32)), features(x), atol=5e-3)
    assert features(x.astype(np.float32)).dtype == np.float32


def test_a_bounded_feature_that_the_sample_hardly_touches_keeps_its_room():
    """The unit of an RBF feature is chosen from a sample far from its center; later rows may sit right on it."""
    features = RBF(np.array([[0.0], [30.0]]), 1.0)
    x = np.linspace(-1.0, 1.0, 100)[:, None]
    frame = Frame.from_sample(features(x), x, Dense(1), features.bounds)
    later = np.full((5000, 1), 30.0)
    sums = Moments.from_rows(features(later), later, frame, Dense(1))
    assert sums.centered().mean_x[1] == pytest.approx(1.0)


def test_names_tell_equal_blocks_apart():
    assert (Linear(2) + RandomFourier(1, 1.0, 0, 2)).names() == ["linear[0]", "linear[1]", "randomfourier[0]"]
    assert len(set((Linear(2) + Linear(2)).names())) == 4


def test_a_description_with_a_wrong_field_is_refused():
    spec, arrays = Linear(2).to_spec()
    with pytest.raises(ConfigError, match="does not fit"):
        from_spec({**spec, "m": 3}, arrays)


def test_number_types_do_not_change_the_identity():
    centers = np.eye(2)
    assert RBF(centers, 1).content_hash == RBF(centers, np.float64(1.0)).content_hash
