"""Equal rows, multiplied once with their number, give the sums of all of them: `==` on integers."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from store_helpers import leave_to_the_disk

from streamfit import counted
from streamfit.config import load_problem
from streamfit.corpus import Files, ParquetTable
from streamfit.counted import PIECE_ROWS, count_rows, equal_rows, piece_rows
from streamfit.engine import Machine, accumulate, plan_for, rewrite
from streamfit.errors import ConfigError, MismatchError
from streamfit.forgetting import forget
from streamfit.frame import BLOCK_ROWS, Frame
from streamfit.jobs import fit, open_store
from streamfit.moments import Moments, MomentsAccumulator
from streamfit.repeats import WORTH, Repeats, choose_counting
from streamfit.store import Store, digest_of, verify
from streamfit.tables import Block, prepare_table
from streamfit.targets import Dense, OneHot

D, K = 3, 4
PLAIN = Frame.identity(D, K)
INTEGER = Frame(
    np.array([2.0, 0, -1]), np.array([1, 0, -1], np.int32), np.arange(4.0), np.array([0, 1, 0, -1], np.int32)
)


@st.composite
def shards(draw):
    """Integer inputs of few values, targets or class ids, and weights or none."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, values = draw(st.sampled_from([0, 1, 7, 300, BLOCK_ROWS + 1])), draw(st.sampled_from([1, 4, 30]))
    low = draw(st.sampled_from([0, -2]))
    x = rng.integers(low, low + values, (n, D)).astype(draw(st.sampled_from(["int32", "int64", "float32", "float64"])))
    one_hot = draw(st.booleans())
    y = rng.integers(0, K, n) if one_hot else rng.integers(-9, 10, (n, K)).astype(float)
    return x, y, draw(st.sampled_from([None, rng.integers(0, 4, n).astype(float)])), OneHot(K) if one_hot else Dense(K)


def sums_of(shard, frame, precision, on=lambda a: a):
    x, y, w, targets = shard
    sums = MomentsAccumulator(frame, targets, precision, like=on(np.empty(0)))
    for block in count_rows(x, y, w, frame, targets):
        moved = block.moved(on)
        sums.add_counted(on(block.x.astype(precision)), moved)
    return sums.moments()


def uncounted(shard, frame, precision):
    x, y, w, targets = shard
    return Moments.from_rows(x.astype(precision), y, frame, targets, weights=w, precision=precision)


@given(shards(), st.sampled_from(["float32", "float64"]))
def test_counted_integers_have_the_sums_of_all_rows(shard, precision):
    frame = PLAIN if shard[3].one_hot else INTEGER
    assert sums_of(shard, frame, precision) == uncounted(shard, frame, precision)


@given(shards(), shards())
def test_counted_shards_add_and_are_taken_out_again(a, b):
    b = (b[0], b[1], b[2], b[3]) if a[3] == b[3] else (b[0], *a[1:])
    if len(b[0]) != len(b[1]):
        n = min(len(b[0]), len(b[1]))
        b = (b[0][:n], b[1][:n], None if b[2] is None else b[2][:n], b[3])
    one, other = sums_of(a, PLAIN, "float64"), sums_of(b, PLAIN, "float64")
    assert one + other == other + one
    assert (one + other) - one == other


@given(shards())
def test_every_row_is_in_one_block_and_no_row_is_twice(shard):
    x, y, w, targets = shard
    blocks = list(count_rows(x, y, w, PLAIN, targets))
    assert sum(block.n_rows for block in blocks) == len(x)
    assert all(0 < len(block.x) <= BLOCK_ROWS for block in blocks)
    found = np.concatenate([b.x for b in blocks]) if blocks else x
    assert len(found) == len(np.unique(x, axis=0)) == len(np.unique(found, axis=0))
    weight = sum(len(b.x) if b.weights is None else b.weights.sum() for b in blocks)
    assert weight == (len(x) if w is None else w.sum())


@pytest.mark.parametrize("dtype", ["int32", "float32", "float64", "int16", "bool"])
def test_hashes_that_collide_are_noticed(monkeypatch, dtype):
    x = np.random.default_rng(0).integers(-3, 3, (500, 2)).astype(dtype)
    _, expected = equal_rows(x)
    monkeypatch.setattr(counted, "_hashed", lambda words, seed: np.zeros(len(words), np.uint64))
    order, starts = equal_rows(x - np.int16(5) if dtype == "int16" else x)
    assert len(starts) == len(expected) == len(np.unique(x, axis=0))
    assert sorted(order) == list(range(500))


@pytest.mark.parametrize("targets", [Dense(K), OneHot(K)], ids=["dense", "one_hot"])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_backend_counts_alike(on, targets, weighted):
    rng = np.random.default_rng(1)
    y = rng.integers(K, size=400) if targets.one_hot else rng.integers(-9, 10, (400, K)).astype(float)
    shard = (rng.integers(0, 7, (400, D)), y, rng.integers(0, 3, 400).astype(float) if weighted else None, targets)
    frame = PLAIN if targets.one_hot else INTEGER
    assert sums_of(shard, frame, "float32", on).to_host() == uncounted(shard, frame, "float32")


def test_real_rows_are_summed_to_the_last_digits():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, D))[rng.integers(0, 200, 5000)]
    y, w = x[:, :1] * rng.normal(size=K) + rng.normal(size=(5000, K)), rng.uniform(size=5000)
    frame = Frame.from_sample(x, y, Dense(K))
    a, b = (f((x, y, w, Dense(K)), frame, "float64").centered() for f in (sums_of, uncounted))
    for name in ("gram", "cross", "ss_y", "mean_x", "mean_y"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize(
    ("y", "w", "error"),
    [
        (np.zeros((2, K)), None, MismatchError),
        (np.array([0.0, 1.0]), None, MismatchError),
        (np.array([0, K]), None, ConfigError),
        (np.array([-1, 0]), None, ConfigError),
        (np.array([0, 1]), np.ones(3), MismatchError),
        (np.array([0, 1]), np.array([1.0, -1.0]), ConfigError),
        (np.array([0, 1]), np.array([1.0, np.nan]), ConfigError),
    ],
)
def test_rows_that_cannot_be_counted_are_refused(y, w, error):
    """A negative weight would be lost in the sum with its equals."""
    with pytest.raises(error):
        list(count_rows(np.zeros((2, D)), y, w, PLAIN, OneHot(K)))


# The decision


@pytest.mark.parametrize(
    ("n_values", "n_features", "worth"), [(50, 512, True), (50, 16, False), (10**9, 512, False), (10**9, 4096, False)]
)
def test_counting_is_chosen_where_it_pays(n_values, n_features, worth):
    """Many equal rows and many features; finding equal rows costs more than the products of few."""
    pieces = [np.random.default_rng(i).integers(0, n_values, (30_000, 1)) for i in range(2)]
    choice = choose_counting("auto", pieces, n_features, 1, one_hot=True)
    assert choice.counted is worth
    assert (choice.speedup >= WORTH) is worth
    assert f"{choice.repeats.distinct:.1%} of 60,000 sampled rows" in choice.line()
    assert choose_counting("always", pieces, n_features, 1, one_hot=True).counted
    assert not choose_counting("never", pieces, n_features, 1, one_hot=True).counted


def test_repeats_of_a_sample():
    found = Repeats.of([np.array([[1], [1], [2]]), np.empty((0, 1), int), np.array([[1]])])
    assert found.pieces == ((3, 2, 1), (1, 1, 1))
    assert (found.n_rows, found.distinct) == (4, 0.75)
    with pytest.raises(ConfigError, match="'auto', 'always' or 'never'"):
        choose_counting("maybe", [], 1, 1, one_hot=False)


def test_wide_rows_are_looked_through_in_smaller_pieces():
    assert piece_rows(1, 1) == PIECE_ROWS
    assert piece_rows(4000, 96) == BLOCK_ROWS
    assert piece_rows(10**6, 1) == BLOCK_ROWS


# Stores


@pytest.fixture
def repeating(tmp_path, monkeypatch):
    """Nine row groups, one longer than a block, whose rows are drawn from 60."""
    leave_to_the_disk(monkeypatch)
    rng = np.random.default_rng(5)
    x = rng.normal(size=(60, 2))[rng.integers(0, 60, 12_600)]
    (tmp_path / "data").mkdir()
    for i in range(3):
        part = slice(4200 * i, 4200 * (i + 1))
        y = x[part] @ [1.0, -1.0] + rng.normal(size=4200)
        table = pa.table({"a": x[part, 0], "b": x[part, 1], "y": y, "doc": np.arange(4200) // 100 + 100 * i})
        pq.write_table(table, tmp_path / "data" / f"{i}.parquet", row_group_size=4200 if i == 0 else 1050)
    return ParquetTable(Files(str(tmp_path / "data")), ("a", "b"), ("y",))


def header_of(source, count_rows="always"):
    chosen = {"precision": "float64", "n_folds": 2, "seed": 0, "sample_rows": 500}
    return prepare_table(source, [Block("fourier", 64)], count_rows=count_rows, **chosen)


@pytest.mark.parametrize("limit", [PIECE_ROWS, BLOCK_ROWS])
def test_counted_sums_are_those_of_all_rows_however_shards_are_cut(tmp_path, repeating, monkeypatch, limit):
    monkeypatch.setattr("streamfit.engine.work.piece_rows", lambda *_: limit)
    sums = []
    for choice in ("always", "never"):
        store = Store.create(tmp_path / choice, header_of(repeating, choice))
        accumulate(store, repeating)
        sums.append(store.moments().centered())
    assert [(c.n_rows, c.weight) for c in sums] == [(12_600, 12_600.0)] * 2
    for name in ("gram", "cross", "ss_y"):
        np.testing.assert_allclose(*(getattr(c, name) for c in sums), rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("fast", [False, True])
def test_a_forgotten_shard_was_never_counted(tmp_path, repeating, fast):
    store = Store.create(tmp_path / "store", header_of(repeating))
    accumulate(store, repeating, group_rows=10**6)
    assert not verify(store).faults
    gone = next(s for s in repeating.shards() if s.key == "1.parquet#1")
    forget(store, Machine("serial"), None, where=["doc=7"], why="asked", fast=fast)
    rewrite(store, repeating, {gone.content_id: None}, why="asked", fast=fast)
    never = Store.create(tmp_path / "never", store.header)
    kept = [replace(s, without=tuple(range(700, 800))) if s.key == "0.parquet#0" else s for s in repeating.shards()]
    accumulate(never, _Only(**vars(repeating), kept=tuple(s for s in kept if s.content_id != gone.content_id)))
    assert store.moments() == never.moments()
    assert digest_of(store.moments()) == digest_of(never.moments())


class _Only(ParquetTable):
    """Some shards of a table."""

    def __init__(self, *, kept, **fields):
        super().__init__(**fields)
        object.__setattr__(self, "kept", kept)

    def shards(self):
        return list(self.kept)


def test_the_choice_is_part_of_the_header_only_where_rows_are_counted(repeating):
    plain, always = header_of(repeating, "never"), header_of(repeating)
    assert "counted" not in plain.to_spec()[0]
    assert "counting" not in plain.reader
    assert replace(plain, counted=False).content_hash == plain.content_hash != always.content_hash
    assert always.reader["counting"]["distinct"] == pytest.approx(60 / 1050, abs=0.05)
    assert "counted" in plain.difference(always)
    with pytest.raises(ConfigError, match="'qr' of counted rows"):
        replace(always, statistic="qr", precision="float64")


@pytest.mark.parametrize(("n_distinct", "counted"), [(40, True), (4000, False)])
def test_wide_rows_are_compared_in_some_columns_first(tmp_path, monkeypatch, n_distinct, counted):
    rng = np.random.default_rng(n_distinct)
    x = rng.normal(size=(n_distinct, 20))[rng.integers(0, n_distinct, 4000) if counted else np.arange(4000)]
    columns = {f"x{j}": x[:, j] for j in range(20)} | {"y": x[:, 0]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    source = ParquetTable(Files(str(tmp_path)), tuple(f"x{j}" for j in range(20)), ("y",))
    whole, read = [], ParquetTable.read

    def noting(self, shard):
        whole.append(len(self.features) == 20)
        return read(self, shard)

    monkeypatch.setattr(ParquetTable, "read", noting)
    said = []
    chosen = {"precision": "float64", "n_folds": 2, "seed": 0, "sample_rows": 500}
    header = prepare_table(source, [Block("fourier", 900)], count_rows="auto", report=said.append, **chosen)
    assert header.counted == counted
    assert whole == [True, False, *([True] if counted else [])]  # the sample, the screen, and all of the rows
    assert ("within their shard by 8 of 20 columns" in said[0]) != counted


def test_a_run_decides_says_so_and_keeps_to_it(tmp_path, repeating, quiet, capsys):
    text = (
        f'kind = "ridge"\nrun = "{tmp_path / "run"}"\nprecision = "float64"\nCOUNT\n[corpus]\n'
        f'root = "{tmp_path / "data"}"\nfeatures = ["a", "b"]\ntarget = ["y"]\n'
        '[[features]]\nkind = "fourier"\nn = 520\n'
        "[solve]\nfolds = 2\n"
    )
    path = tmp_path / "ridge.toml"

    def problem(choice):
        path.write_text(text.replace("COUNT", choice))
        return load_problem(path)

    fitted = fit(problem(""), Machine("serial"), None, Console(width=300))
    printed = capsys.readouterr().out
    assert fitted.store.header.counted
    assert "equal rows of a shard are multiplied once: " in printed
    assert "GFLOP if 4.3% of a shard's rows are distinct" in printed
    assert "about" in printed.split("counted 12,600 rows")[1]
    assert fitted.summary.plan.distinct == fitted.store.header.reader["counting"]["distinct"] < 0.1
    assert open_store(problem('count_rows = "always"'), quiet).header.counted
    with pytest.raises(MismatchError, match="was made with count_rows = 'always'"):
        open_store(problem('count_rows = "never"'), quiet)
    with pytest.raises(ConfigError, match="count_rows"):
        problem('count_rows = "often"')
    with pytest.raises(ConfigError, match="takes every row by itself"):
        problem('statistic = "qr"\ncount_rows = "always"')
    assert json.loads((tmp_path / "run" / "problem.json").read_text())["count_rows"] == "auto"


def test_the_plan_has_room_for_what_is_looked_through(tmp_path, repeating):
    """More than counting a piece takes by Python's own figure."""
    store = Store.create(tmp_path / "store", header_of(repeating))
    plain = Store.create(tmp_path / "plain", header_of(repeating, "never"))
    shards = [replace(s, planned_rows=100_000) for s in repeating.shards()]
    one, other = (plan_for(s, shards, n_workers=1).worker_bytes for s in (store, plain))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100_000, 2)), rng.normal(size=(100_000, 1))
    frame = Frame.identity(2, 1)
    tracemalloc.start()
    for _ in count_rows(x, y, None, frame, Dense(1)):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    read = 2 * (x.nbytes + y.nbytes)
    assert peak < one - other - read
