"""The five verbs: any order of them leaves the bits of one fit of the rows that are left; mistakes are named."""

import dask.array
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import streamfit
from streamfit import Block, Corpus, Moments, Store, accumulate, add, forget, merge, model_of, solve
from streamfit.errors import ConfigError, CorpusError, MismatchError, ShardChangedError
from streamfit.rows import kind_of

RNG = np.random.default_rng(6)
X = RNG.normal(size=(900, 3))
Y = X @ [1.0, 2.0, -1.0] + 0.1 * RNG.normal(size=900)


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """Without waiting for the disk; no test here pulls the plug."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def part(lo, hi, **given):
    rows = {"x": X[lo:hi], "y": Y[lo:hi], "user": np.arange(lo, hi) % 7}
    return Corpus(rows, ["x"], ["y"], label=f"{lo}-{hi}", **given)


@pytest.fixture
def store(tmp_path):
    return accumulate(part(0, 300), tmp_path / "store", features=["linear", Block("fourier", 5)], precision="float64")


def empty(store, where):
    return Store.create(where, store.header)


def test_any_order_of_the_verbs_is_one_fit_of_what_is_left(store, tmp_path):
    """Added, merged and forgotten again, to the last bit."""
    other = add(add(empty(store, tmp_path / "b"), part(600, 900)), part(300, 600))
    both = merge([store, other], tmp_path / "both")
    whole = add(add(add(empty(store, tmp_path / "w"), part(300, 600)), part(0, 300)), part(600, 900))
    assert both.moments() == whole.moments()
    alone = empty(store, tmp_path / "alone")
    add(alone, part(0, 300))
    add(alone, part(300, 600))
    forget(alone, shards=["300-600"], corpus=[part(0, 300), part(300, 600)])
    assert alone.moments() == store.moments()
    assert (solve(alone, 1.0).weights == solve(store, 1.0).weights).all()


def test_rows_are_forgotten_by_a_column(store, tmp_path):
    """The rows are given again where they were in memory, and not needed of a file."""
    forget(store, where={"user": {2, 5}}, corpus=part(0, 300))
    kept = ~np.isin(np.arange(300) % 7, [2, 5])
    rows = {"x": X[:300][kept], "y": Y[:300][kept], "user": (np.arange(300) % 7)[kept]}
    never = add(empty(store, tmp_path / "never"), Corpus(rows, ["x"], ["y"]))
    assert store.moments() == never.moments()
    with pytest.raises(MismatchError, match="memory"):
        forget(store, where={"user": 3})
    columns = {f"x{j}": X[:, j] for j in range(3)} | {"y": Y, "ok": np.arange(900) % 2 == 0}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    filed = accumulate(Corpus(tmp_path / "t.parquet", ["x0", "x1", "x2"], ["y"]), tmp_path / "filed")
    assert forget(filed, where={"ok": True}).head().n_rows == 450


def test_accumulating_again_goes_on(store, tmp_path):
    """The same corpus is counted once; a longer one under the same label is refused, and other choices as well."""
    choices = {"features": ["linear", Block("fourier", 5)], "precision": "float64"}
    assert accumulate(part(0, 300), tmp_path / "store", **choices).head() == store.head()
    longer = Corpus({"x": X, "y": Y, "user": np.arange(900) % 7}, ["x"], ["y"], label="0-300")
    with pytest.raises(ShardChangedError, match="another label"):
        add(store, longer)
    with pytest.raises(MismatchError, match="precision"):
        accumulate(part(0, 300), tmp_path / "store", **{**choices, "precision": "float32"})
    with pytest.raises(MismatchError, match="recipe"):
        add(store, Corpus({"x": X, "y": Y, "w": Y}, ["x"], ["y"], weight="w", missing="drop"))


def test_solve_takes_stores_and_sums(store):
    """One alpha or a grid; a solution is the model's, with the features."""
    one = solve(store, 2.0)
    moments = store.moments()
    assert isinstance(moments, Moments)
    np.testing.assert_array_equal(one.weights, solve(moments, 2.0).weights)
    chosen = solve(store, [0.1, 1.0, 10.0], choose_by="gcv")
    assert min(abs(chosen.alpha / a - 1) for a in (0.1, 1.0, 10.0)) < 1e-12
    assert solve(store, mix=["source:0-300=2"], alpha=2.0).weights.tolist() == pytest.approx(solve(store, 1.0).weights)
    with pytest.raises(ConfigError, match="one alpha"):
        solve(moments, [1.0, 2.0])
    with pytest.raises(ConfigError, match="alpha"):
        solve(store, -1.0)
    model = model_of(store, one)
    np.testing.assert_allclose(model.predict(X)[:, 0], Y, atol=0.6)


def test_a_corpus_is_files_arrays_or_frames(tmp_path):
    """The same sums from each, and the verbs in the package's own name."""
    columns = {"a": X[:, 0], "b": X[:, 1], "y": Y}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    pa.csv.write_csv(pa.table(columns), tmp_path / "t.csv")
    pl = pytest.importorskip("polars")
    dask_columns = {name: dask.array.from_array(values, chunks=100) for name, values in columns.items()}
    every = [
        tmp_path / "t.parquet",
        str(tmp_path / "t.csv"),
        columns,
        dask_columns,
        pa.table(columns),
        pl.DataFrame(columns),
        pl.LazyFrame(columns).collect(),
        pa.table(columns).to_pandas(),
    ]
    stores = []
    first = accumulate(Corpus(every[0], ["a", "b"], ["y"]), tmp_path / "first", precision="float64")
    for i, rows in enumerate(every[2:]):
        corpus = Corpus(rows, ["a", "b"], ["y"], label=str(i))
        found = streamfit.accumulate(corpus, tmp_path / str(i), precision="float64")
        stores.append(found)
    assert all(found.moments() == first.moments() for found in stores)
    text = accumulate(Corpus(every[1], ["a", "b"], ["y"]), tmp_path / "text", precision="float64")
    np.testing.assert_allclose(solve(text, 1.0).weights, solve(first, 1.0).weights, rtol=1e-10)
    spooled = Corpus(pa.table(columns), ["a", "b"], ["y"], spool=tmp_path / "spool")
    assert accumulate(spooled, tmp_path / "s", precision="float64").moments() == first.moments()
    assert kind_of(str(tmp_path / "spool")) == "arrow"


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Corpus("t.csv", "x", ["y"]), "list"),
        (lambda: Corpus("t.csv", ["x"], ["y"], missing="never"), "missing"),
        (lambda: Corpus("t.csv", ["x"], ["y"], categories=["z"]), "'z'"),
        (lambda: Corpus("t.csv", ["x"], ["y"], filters=[("x", "~", 1)]), "'~'"),
        (lambda: Corpus("t.docx", ["x"], ["y"]).source(), "docx"),
        (lambda: Corpus([], ["x"], ["y"]).source(), "without rows"),
        (lambda: Corpus(3, ["x"], ["y"]).source(), "int"),
    ],
)
def test_mistakes_are_named(make, match):
    with pytest.raises((ConfigError, CorpusError), match=match):
        make()
