"""Dense sums: exports are the sum by its definition; imports are shifted, checked, and count once."""

import shutil
from functools import partial

import numpy as np
import pytest
import zarr
from store_helpers import D, K, add, header_of, leave_to_the_disk, moments_of, moved, new_store, rows_of

from streamfit.errors import ConfigError, MismatchError, StoreError
from streamfit.store import Mix, Store, export_dense, import_dense, verify
from streamfit.targets import Dense, OneHot


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    leave_to_the_disk(monkeypatch)


@pytest.fixture
def new(tmp_path):
    """Makes stores under a name."""
    return partial(new_store, tmp_path)


def plain_sums(header, seeds, factor=1.0):
    """The sums in natural units about the origin, by the definition."""
    total = {"n_rows": 0}
    for seed in seeds:
        x, y, w = rows_of(header, seed)
        d = x - header.frame.origin
        e = np.eye(K)[y] if header.targets.one_hot else y - header.frame.y_origin
        w = w * factor
        part = {"weight": w.sum(), "sum_x": w @ d, "sum_y": w @ e, "sum_yy": w @ e**2}
        part |= {"gram": (d * w[:, None]).T @ d, "cross": (d * w[:, None]).T @ e}
        total = {"n_rows": total["n_rows"] + len(w)} | {name: a + total.get(name, 0.0) for name, a in part.items()}
    return total | {"origin": header.frame.origin, "y_origin": header.frame.y_origin}


def load(path):
    """Arrays, feature names and header hash, with NumPy or Zarr alone."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        return arrays, arrays.pop("features").tolist(), str(arrays.pop("header"))
    group = zarr.open_group(path, mode="r")
    return {name: a[...] for name, a in group.arrays()}, group.attrs["features"], group.attrs["header"]


def assert_close(arrays, expected, rtol=1e-12):
    assert sorted(arrays) == sorted([*expected, "contents"])
    for name, array in expected.items():
        scale = np.abs(array).max()
        np.testing.assert_allclose(arrays[name], array, rtol=rtol, atol=rtol * scale, err_msg=name)


@pytest.mark.parametrize("suffix", [".npz", ".zarr"])
@pytest.mark.parametrize("targets", [Dense(K), OneHot(K)], ids=["dense", "one_hot"])
def test_dense_export_is_the_sum_by_its_definition(tmp_path, new, suffix, targets):
    """Plain arrays in natural units about the origin, equal to those of the rows in memory, readable by anyone."""
    header = header_of(targets=targets, n_folds=2)
    store = new("s", header, range(4))
    path = tmp_path / f"sums{suffix}"
    export_dense(store, path)
    arrays, features, content = load(path)
    assert_close(arrays, plain_sums(header, range(4)))
    assert features == [*header.features.names()]
    assert content == header.content_hash
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", path.name]


def test_dense_export_of_a_mixture_and_of_a_past_commit(tmp_path, new):
    """Weights of segments are applied, and a store opened at a commit exports what it held then."""
    store = new("s", None, [1], source="a")
    add(store, number=2, seed=2, source="b")
    export_dense(store, tmp_path / "mixed.npz", Mix.parse(["source:b=0.25"]))
    whole, part = plain_sums(store.header, [1]), plain_sums(store.header, [2], 0.25)
    summed = {n: whole[n] + part[n] for n in ("weight", "sum_x", "sum_y", "sum_yy", "gram", "cross", "n_rows")}
    assert_close(load(tmp_path / "mixed.npz")[0], whole | summed)
    export_dense(Store(store.place.local, at=1), tmp_path / "then.npz")
    assert_close(load(tmp_path / "then.npz")[0], whole)


@pytest.mark.parametrize("n_features", [1, 700])
def test_dense_export_of_many_tiles(tmp_path, new, n_features):
    """The tiles of the upper triangle become one symmetric matrix."""
    header = header_of("float32", n_features=n_features)
    export_dense(new("s", header, [0]), tmp_path / "s.npz")
    arrays = load(tmp_path / "s.npz")[0]
    assert_close(arrays, plain_sums(header, [0]), rtol=1e-5)
    assert (arrays["gram"] == arrays["gram"].T).all()


@pytest.mark.parametrize("name", ["taken.npz", "taken.zarr", "sums.csv", "sums"])
def test_dense_export_overwrites_nothing(tmp_path, new, name):
    """What is there stays, and other suffixes are refused with the two that are known."""
    path = tmp_path / name
    if name.startswith("taken"):
        path.write_text("mine")
    with pytest.raises(ConfigError, match=r"a new \.npz or \.zarr"):
        export_dense(new("s", None, [0]), path)
    assert path.exists() == name.startswith("taken")
    with pytest.raises(StoreError, match="a writable folder"):
        export_dense(new("s"), tmp_path / "nowhere" / "sums.npz")


@pytest.mark.parametrize("suffix", [".npz", ".zarr"])
@pytest.mark.parametrize(("precision", "rtol"), [("float64", 1e-13), ("float32", 1e-5)])
def test_dense_sums_come_back_as_a_labelled_segment(tmp_path, new, suffix, precision, rtol):
    """Export and import give the sums again up to float64, under the labels that were given, and once only."""
    header = header_of(precision, n_folds=1)
    path = tmp_path / f"sums{suffix}"
    there, here = new("there", header, range(3)), new("here", header, [7])
    export_dense(there, path)
    segment = import_dense(here, path, "partner", (("time", "2026-03"),))
    assert here.moments() == moments_of(header, 7)  # not committed: does not count
    here.commit([segment])
    assert (segment.source, segment.n_rows) == ("partner", 150)
    assert dict(segment.labels) == {"time": "2026-03", "imported": path.name}
    export_dense(here, tmp_path / "both.npz")
    assert_close(load(tmp_path / "both.npz")[0], plain_sums(header, [0, 1, 2, 7]), rtol)
    assert verify(here).faults == []
    again = tmp_path / f"renamed{suffix}"
    shutil.move(path, again)
    with pytest.raises(MismatchError, match=f"{again.name}: sums that are counted already"):
        here.commit([import_dense(here, again, "other")])
    assert here.moments() - here.read(segment) == moments_of(header, 7)


@pytest.mark.parametrize("targets", [Dense(K), OneHot(K)], ids=["dense", "one_hot"])
def test_raw_uncentred_sums_are_shifted_to_the_origin(tmp_path, new, targets):
    """Sums about zero, as X.T @ X gives them, without any origin, come near the store's own sums of the same rows."""
    header = header_of(targets=targets)
    assert header.frame.origin.any()
    if not targets.one_hot:
        header = moved(header, y_origin=np.full(K, 5.0))
    store = new("s", header)
    x, y, w = rows_of(header, 3)
    y = np.eye(K)[y] if targets.one_hot else y
    raw = {"n_rows": 50, "weight": w.sum(), "sum_x": w @ x, "sum_y": w @ y, "sum_yy": w @ y**2}
    np.savez(tmp_path / "raw.npz", gram=(x * w[:, None]).T @ x, cross=(x * w[:, None]).T @ y, **raw)
    store.commit([import_dense(store, tmp_path / "raw.npz", "raw")])
    mine, own = store.moments().centered(), moments_of(header, 3).centered()
    for name in ("weight", "mean_x", "mean_y", "gram", "cross", "ss_y"):
        a, b = getattr(mine, name), getattr(own, name)
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11 * np.abs(b).max(), err_msg=name)


def skewed(gram):
    gram = gram.copy()
    gram[0, 1] *= 1.01
    return gram


BAD = {
    "shape of gram": (lambda a: {"gram": a["gram"][:-1]}, MismatchError, rf"gram of shape \({D - 1}, {D}\)"),
    "features": (lambda a: {"sum_x": np.zeros(D + 1)}, MismatchError, rf"expected \({D},\), as in the store"),
    "cross transposed": (lambda a: {"cross": a["cross"].T}, MismatchError, "cross of shape"),
    "nan": (lambda a: {"cross": a["cross"] * np.nan}, ConfigError, "cross is not made of finite numbers"),
    "inf": (lambda a: {"origin": np.full(D, np.inf)}, ConfigError, "origin is not made of finite numbers"),
    "text": (lambda a: {"sum_x": np.full(D, "x")}, ConfigError, "sum_x is not made of finite numbers"),
    "complex": (lambda a: {"gram": a["gram"] * 1j}, ConfigError, "gram is not made of finite numbers"),
    "asymmetric": (lambda a: {"gram": skewed(a["gram"])}, ConfigError, "not symmetric"),
    "one triangle": (lambda a: {"gram": np.triu(a["gram"])}, ConfigError, "not symmetric"),
    "indefinite": (lambda a: {"gram": a["gram"] - 100 * np.eye(D)}, ConfigError, "no rows can have"),
    "centred": (lambda a: {"sum_x": 40 * a["weight"] * np.ones(D)}, ConfigError, "do not centre the Gram matrix"),
    "no weight": (lambda a: {"weight": 0.0}, ConfigError, "150 rows of weight 0"),
    "no rows": (lambda a: {"n_rows": 0}, ConfigError, "0 rows of weight"),
    "half a row": (lambda a: {"n_rows": 1.5}, ConfigError, "a whole number of rows"),
    "negative squares": (lambda a: {"sum_yy": -a["sum_yy"]}, ConfigError, "sum_y or cross is too large for sum_yy"),
    "small squares": (lambda a: {"sum_yy": a["sum_yy"] * 1e-4}, ConfigError, "too large for sum_yy"),
    "large sum_y": (lambda a: {"sum_y": a["sum_y"] + 20 * a["weight"]}, ConfigError, "too large for sum_yy"),
    "large cross": (lambda a: {"cross": a["cross"] * 1e3}, ConfigError, "too large for sum_yy"),
}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """A store that no test changes."""
    return Store.create(tmp_path_factory.mktemp("untouched") / "s", header_of(n_folds=1))


@pytest.mark.parametrize("case", BAD)
def test_dense_sums_that_cannot_be_are_refused(tmp_path, untouched, case):
    """Wrong shapes, numbers that are none, and sums that no rows can have never become a segment."""
    store = untouched
    arrays = plain_sums(store.header, range(3))
    change, error, pattern = BAD[case]
    np.savez(tmp_path / "bad.npz", **(arrays | change(arrays)))
    before = sorted(store.place.local.rglob("*"))
    with pytest.raises(error, match=pattern):
        import_dense(store, tmp_path / "bad.npz", "x")
    assert sorted(store.place.local.rglob("*")) == before


def test_files_that_hold_no_sums_are_refused(tmp_path, new):
    """Rubbish, pickles, missing arrays, nothing at all: one ConfigError that names the file."""
    store = new("s")
    arrays = plain_sums(store.header, [0])
    (tmp_path / "rubbish.npz").write_bytes(b"PK\x03\x04 and no more")
    np.savez(tmp_path / "pickle.npz", **arrays | {"gram": np.array([{}], object)})
    np.savez(tmp_path / "missing.npz", **{name: a for name, a in arrays.items() if name not in ("gram", "weight")})
    (tmp_path / "empty.zarr").mkdir()
    for name, pattern in {"rubbish.npz": "cannot read", "pickle.npz": "cannot read", "none.npz": "cannot read"}.items():
        with pytest.raises(ConfigError, match=f"{pattern} .*{name}"):
            import_dense(store, tmp_path / name, "x")
    with pytest.raises(ConfigError, match=r"missing\.npz without weight, gram"):
        import_dense(store, tmp_path / "missing.npz", "x")
    with pytest.raises(ConfigError, match=r"empty\.zarr"):
        import_dense(store, tmp_path / "empty.zarr", "x")


def test_store_of_token_contexts_takes_no_dense_sums(tmp_path, new):
    """Its n-gram counts would no longer be of the same rows."""
    store = new("s", header_of(reader={"kind": "tokens"}))
    with pytest.raises(MismatchError, match="without counts of n-grams"):
        import_dense(store, tmp_path / "any.npz", "x")
