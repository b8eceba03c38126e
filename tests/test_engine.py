"""The run loop on real processes: equal bits on any executor, each shard once, and faults that stop or are skipped."""

import os
import shutil
import signal
import time
from dataclasses import dataclass, fields, replace
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from sklearn.linear_model import Ridge

from streamfit.corpus import Documents, Files, JsonLines, ParquetTable, Source, Tally, TextFiles
from streamfit.corpus.base import blocks_of
from streamfit.counts import add_tables
from streamfit.engine import Machine, WorkOptions, accumulate, connect
from streamfit.errors import CorpusError, PlanError, ShardChangedError, ShardError
from streamfit.features import Linear
from streamfit.frame import Frame
from streamfit.solve import solve
from streamfit.store import Header, Store
from streamfit.tables import Block, prepare_table
from streamfit.targets import Dense

X = tuple(f"x{j}" for j in range(8))


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes, for all tests of this module."""
    with connect(Machine(n_workers=2, threads_per_worker=1, memory_limit=2**31)) as client:
        yield client


@pytest.fixture(params=["serial", "cluster"])
def client(request):
    """No Dask at all, or the cluster."""
    return request.getfixturevalue("cluster") if request.param == "cluster" else None


@pytest.fixture
def source(table):
    return ParquetTable(Files(str(table[0])), X, ("y",))


def as_kind(kind, source, **more):
    """The same corpus read by another class."""
    return kind(**{f.name: getattr(source, f.name) for f in fields(source)}, **more)


@pytest.fixture
def make(tmp_path, source):
    """Makes empty stores for the table, all with one header for each choice of features."""

    def make(name, precision="float64", block=Block("linear")):  # noqa: B008
        header = prepare_table(source, [block], precision=precision, n_folds=2, seed=0, sample_rows=2000)
        return Store.create(tmp_path / name, header)

    return make


class Unread(ParquetTable):
    """A table that nobody may read."""

    def read(self, shard):
        pytest.fail(f"{shard.key} was read")


@dataclass(frozen=True)
class Deadly(ParquetTable):
    """The first readers, `deaths` of them, kill their process when they have a block in hand."""

    marker: str = ""
    deaths: int = 1

    def read(self, shard):
        for rows in super().read(shard):
            for n in range(self.deaths):
                if not Path(f"{self.marker}-{n}").exists():
                    Path(f"{self.marker}-{n}").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)
            yield rows


class Signs(Tally):
    """Counts rows, and positive features."""

    def __init__(self):
        self.n_rows, self.positive = 0, np.zeros(len(X), np.int64)

    def add(self, rows):
        self.n_rows += len(rows.x)
        self.positive += (rows.x > 0).sum(axis=0)

    def tables(self):
        seen = np.flatnonzero(self.positive)
        return {
            "rows": (np.zeros((1, 1), np.int32), np.array([self.n_rows])),
            "positive": (seen[:, None].astype(np.int32), self.positive[seen]),
        }


class Tallied(ParquetTable):
    def tally(self):
        return Signs()


class Turned(ParquetTable):
    """A table whose rows come in memory that lies column by column, as wide ones do, with gaps between the columns."""

    def read(self, shard):
        for rows in super().read(shard):
            n, d = rows.x.shape
            columns = np.empty((d, n + 24), rows.x.dtype)[:, :n]
            columns[...] = rows.x.T
            yield replace(rows, x=columns.T)


@dataclass(frozen=True)
class Numbers(Source):
    """Documents that are one or more lines of two numbers, an input and a target."""

    documents: Documents

    def shards(self):
        return self.documents.shards()

    def read(self, shard):
        lines = [line for text in self.documents.documents(shard) for line in text.splitlines()]
        table = np.array([line.split() for line in lines], float)
        yield from blocks_of(table[:, :1], table[:, 1:])

    def positions(self, shard, column, values):
        return self.documents.positions(shard, column, values)


# Sums


@pytest.mark.parametrize(("precision", "rtol"), [("float64", 1e-10), ("float32", 1e-4)])
def test_fit_from_files_is_the_ridge_of_all_rows(table, source, make, client, precision, rtol):
    """From Parquet through workers, store and solve comes what scikit-learn computes in memory."""
    _, x, y = table
    store = make("store", precision)
    summary = accumulate(store, source, client=client, group_rows=2000)
    solution = solve(store.moments(), 10.0)
    reference = Ridge(alpha=10.0).fit(x, y)
    assert np.linalg.norm(solution.weights[:, 0] - reference.coef_) <= rtol * np.linalg.norm(reference.coef_)
    np.testing.assert_allclose(solution.intercept[0], reference.intercept_, rtol=rtol, atol=rtol)
    assert (summary.n_rows, summary.n_shards, summary.already, summary.refused) == (12_000, 12, (), ())
    assert store.head().n_rows == 12_000


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_sums_have_equal_bits_on_any_executor(source, make, cluster, precision):
    """Processes, threads and groups are a matter of speed alone: three tiles of Gram, bit for bit."""
    block = Block("fourier", 520)
    reference = make("reference", precision, block)
    accumulate(reference, source, group_rows=10**6)
    expected = reference.moments()
    for i, (client, n_threads, group_rows) in enumerate([(None, 2, 5000), (cluster, 1, 3000), (cluster, 2, 6000)]):
        store = make(f"store-{i}", precision, block)
        accumulate(store, source, client=client, options=WorkOptions(n_threads=n_threads), group_rows=group_rows)
        assert store.moments() == expected


@pytest.mark.parametrize("kind", ["linear", "rbf", "fourier", "nystroem"])
def test_sums_have_equal_bits_however_rows_lie_in_memory(tmp_path, source, make, kind):
    """Also a block of one row, which lies both ways at once."""
    x = np.random.default_rng(0).normal(size=(2001, 8)).astype(np.float32)
    columns = {f"x{j}": x[:, j] for j in range(8)} | {"y": x.sum(axis=1, dtype=float)}
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "rows" / "0.parquet", row_group_size=1000)
    source = replace(source, files=Files(str(tmp_path / "rows")))
    block = Block(kind) if kind == "linear" else Block(kind, 100)
    store, turned = (make(name, "float32", block) for name in ("store", "turned"))
    accumulate(store, source)
    accumulate(turned, as_kind(Turned, source))
    assert store.moments() == turned.moments()


def test_counted_rows_have_equal_bits_on_any_executor(tmp_path, cluster):
    """Equal rows are looked for within a shard, so groups and workers are a matter of speed alone."""
    rng = np.random.default_rng(0)
    for i in range(3):
        x = rng.normal(size=40)[rng.integers(0, 40, 2500)]
        part = pa.table({"x": x, "y": x + rng.normal(size=2500), "w": rng.uniform(size=2500)})
        (tmp_path / "rows").mkdir(exist_ok=True)
        pq.write_table(part, tmp_path / "rows" / f"{i}.parquet", row_group_size=1250)
    source = ParquetTable(Files(str(tmp_path / "rows")), ("x",), ("y",), "w")
    chosen = {"precision": "float32", "n_folds": 2, "seed": 0, "sample_rows": 500}
    header = prepare_table(source, [Block("fourier", 20)], count_rows="always", **chosen)
    sums = []
    for name, client, group_rows in (("serial", None, 10**6), ("cluster", cluster, 1000)):
        store = Store.create(tmp_path / name, header)
        accumulate(store, source, client=client, group_rows=group_rows)
        sums.append(store.moments())
    assert sums[0] == sums[1]
    assert sums[0].n_rows == 7500


def test_tallies_are_summed_beside_the_moments(table, source, make, client):
    """Another sum over the same rows is kept in the same segments."""
    store = make("store")
    accumulate(store, as_kind(Tallied, source), client=client, group_rows=3000)
    tables = list(store.tables())
    assert len(tables) > 1
    total = add_tables(tables, [1] * len(tables))
    assert total["rows"][1].tolist() == [12_000]
    np.testing.assert_array_equal(total["positive"][1], (table[1] > 0).sum(axis=0))


# Exactly once


def test_second_run_reads_nothing_and_changes_nothing(source, make, client):
    """What is counted is not read again, and a run without anything new commits nothing."""
    store = make("store")
    accumulate(store, source, client=client)
    head, moments = store.head(), store.moments()
    console = Console(file=StringIO(), width=200)
    summary = accumulate(store, as_kind(Unread, source), client=client, console=console)
    assert (summary.n_rows, summary.n_shards, len(summary.already), len(summary.plan.groups)) == (0, 0, 12, 0)
    assert (store.head(), store.moments()) == (head, moments)
    assert "12 shards are counted already" in console.file.getvalue()


def test_content_counts_once_under_any_name(table, source, make, client):
    """A copy in the corpus, and a file that was renamed after it was counted, add nothing."""
    folder = table[0]
    shutil.copy(folder / "part-2.parquet", folder / "a-copy.parquet")
    store = make("store")
    summary = accumulate(store, source, client=client)
    assert [(again.key, first.key) for again, first in summary.repeats] == [
        (f"part-2.parquet#{i}", f"a-copy.parquet#{i}") for i in range(3)
    ]
    assert store.head().n_rows == summary.n_rows == 12_000
    (folder / "part-1.parquet").rename(folder / "renamed.parquet")
    assert len(accumulate(store, as_kind(Unread, source)).already) == 12


def test_changed_table_is_refused_with_both_ids(table, source, make):
    """A counted file with other content is no new file: it is refused before anything is read."""
    folder, x, _ = table
    store = make("store")
    accumulate(store, source)
    before = next(s for s in source.shards() if s.key == "part-3.parquet#1")
    columns = {name: -x[:3000, j] for j, name in enumerate(X)} | {"y": x[:3000, 0]}
    pq.write_table(pa.table(columns), folder / "part-3.parquet", row_group_size=1000)
    now = next(s for s in source.shards() if s.key == "part-3.parquet#0")
    with pytest.raises(ShardChangedError, match=rf"part-3.parquet#0 has changed.*now {now.content_id[:12]}") as caught:
        accumulate(store, as_kind(Unread, source))
    assert before.content_id != now.content_id
    assert caught.value.expected.startswith("content ")
    assert store.head().n_rows == 12_000


@pytest.mark.parametrize("kind", ["text", "jsonl"])
@pytest.mark.parametrize("change", ["grown", "shrunk", "replaced"])
def test_changed_document_is_refused_though_it_is_cut_elsewhere(tmp_path, kind, change):
    """A file that grew holds rows that were counted: it is refused, not counted a second time as a whole."""
    lines = [f'{{"text": "{i} 1"}}\n' if kind == "jsonl" else f"{i} 1\n" for i in range(10, 30)]
    path = tmp_path / "data"
    path.write_text("".join(lines))
    files = Files(str(path))
    source = Numbers(JsonLines(files, shard_bytes=50) if kind == "jsonl" else TextFiles(files))
    store = Store.create(tmp_path / "store", Header(Linear(1), Dense(1), Frame.identity(1, 1), "float64", 2))
    assert accumulate(store, source).n_rows == 20
    after = {"grown": lines + lines[:1], "shrunk": lines[:-1], "replaced": lines[::-1]}[change]
    path.write_text("".join(after))
    with pytest.raises(ShardChangedError, match="has changed since it was counted"):
        accumulate(store, source)
    assert store.head().n_rows == 20


# Faults


@pytest.fixture
def spoilt(table, source, make):
    """The table with a NaN in one of its twelve shards, a store for it, and the moments of the other eleven."""
    folder, _, _ = table
    good, store = make("good"), make("store")
    path = folder / "part-1.parquet"
    whole = pq.read_table(path)
    pq.write_table(pa.concat_tables([whole[:1000], whole[2000:]]), path, row_group_size=1000)
    accumulate(good, source)
    values = whole["x3"].to_numpy().copy()
    values[1500] = np.nan
    pq.write_table(whole.set_column(X.index("x3"), "x3", pa.array(values)), path, row_group_size=1000)
    return store, good.moments()


def test_bad_shard_stops_the_run_and_what_was_committed_stays(source, spoilt, client):
    """The error names the shard and the row; the store is whole, and the next run begins after the last commit."""
    store, good = spoilt
    with pytest.raises(ShardError, match=r"part-1.parquet#1, row 500: nan in column 'x3'"):
        accumulate(store, source, client=client, group_rows=1000)
    assert store.head().n_rows == sum(s.planned_rows for s in store.counted().values()) <= 11_000
    summary = accumulate(store, source, client=client, group_rows=1000, options=WorkOptions(skip_bad_shards=True))
    assert len(summary.already) + summary.n_shards == 11
    assert store.moments() == good


@pytest.mark.parametrize("group_rows", [1000, 10**6], ids=["alone", "among others"])
def test_skipped_shard_leaves_no_trace_in_the_sums(source, spoilt, client, group_rows):
    """The rest equals a fit without the bad shard; the refusal is on record, and not tried again."""
    store, good = spoilt
    options = WorkOptions(skip_bad_shards=True)
    summary = accumulate(store, source, client=client, group_rows=group_rows, options=options)
    assert [r.key for r in summary.refused] == [r.key for r in store.head().refused] == ["part-1.parquet#1"]
    assert "row 500: nan" in store.head().refused[0].reason
    assert (summary.n_shards, store.moments()) == (11, good)
    again = accumulate(store, as_kind(Unread, source), client=client, options=options)
    assert (again.n_shards, again.refused) == (0, ())


@pytest.mark.parametrize("value", [1e30, 1e200])
def test_shard_with_a_number_too_large_is_named_or_skipped(source, make, table, value):
    """Only the products can tell; in float64 1e30 is a number like any other until it is squared."""
    path = table[0] / "part-1.parquet"
    whole = pq.read_table(path)
    good, store = make("good"), make("store")
    pq.write_table(pa.concat_tables([whole[:1000], whole[2000:]]), path, row_group_size=1000)
    accumulate(good, source)
    values = whole["x3"].to_numpy().copy()
    values[1500] = value
    pq.write_table(whole.set_column(X.index("x3"), "x3", pa.array(values)), path, row_group_size=1000)
    with pytest.raises(ShardError, match=r"part-1.parquet#1, rows 0 to 999: .*(large|overflowing)"):
        accumulate(store, source)
    summary = accumulate(store, source, options=WorkOptions(skip_bad_shards=True))
    assert [r.key for r in summary.refused] == ["part-1.parquet#1"]
    assert store.moments() == good.moments()


def test_shard_whose_lists_have_another_width_is_named_or_skipped(tmp_path):
    """The width of a fixed-size list is known only once it is read."""
    folder = tmp_path / "lists"
    folder.mkdir()
    for name, width in (("a", 3), ("b", 3), ("c", 2)):
        values = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(100.0 * width) + ord(name)), width)
        pq.write_table(pa.table({"v": values, "y": np.full(100, float(ord(name)))}), folder / f"{name}.parquet")
    source = ParquetTable(Files(str(folder)), ("v",), ("y",))
    good = ParquetTable(Files(str(folder), exclude=("c.parquet",)), ("v",), ("y",))
    header = prepare_table(good, [Block("linear")], precision="float64", n_folds=2, seed=0, sample_rows=100)
    store = Store.create(tmp_path / "store", header)
    with pytest.raises(ShardError, match=r"c.parquet#0, rows 0 to 99: inputs of shape \(100, 2\)"):
        accumulate(store, source)
    summary = accumulate(store, source, options=WorkOptions(skip_bad_shards=True))
    assert [r.key for r in summary.refused] == ["c.parquet#0"]
    assert store.head().n_rows == 200
    with pytest.raises(ShardError, match=r"#0: \d feature columns once lists are spread out"):
        prepare_table(source, [Block("linear")], precision="float64", n_folds=2, seed=0, sample_rows=100)


@pytest.mark.parametrize("deaths", [1, 2], ids=["one worker", "every worker"])
def test_group_of_a_killed_worker_is_worked_again(tmp_path, source, make, cluster, deaths):
    """After SIGKILL in the middle of groups the sums have the bits of a quiet run, and each shard is counted once."""
    quiet, store = make("quiet"), make("store")
    accumulate(quiet, source)
    deadly = as_kind(Deadly, source, marker=str(tmp_path / "died"), deaths=deaths)
    summary = accumulate(store, deadly, client=cluster, group_rows=2000)
    assert len(list(tmp_path.glob("died-*"))) == deaths
    assert (summary.n_rows, len(store.counted())) == (12_000, 12)
    assert store.moments() == quiet.moments()
    cluster.wait_for_workers(2, timeout=60)


@pytest.mark.slow
def test_group_that_always_kills_its_worker_is_given_up(tmp_path, source, make, cluster):
    """After some deaths the run stops with the likely cause, not for ever."""
    deadly = as_kind(Deadly, source, marker=str(tmp_path / "died"), deaths=10**6)
    with pytest.raises(PlanError, match=r"workers that kept dying.*out-of-memory"):
        accumulate(make("store"), deadly, client=cluster, group_rows=10**6)
    cluster.wait_for_workers(2, timeout=60)


def test_plan_that_does_not_fit_is_refused_before_reading(source, make):
    """Both numbers are named, and nothing was read or committed."""
    store = make("store")
    with pytest.raises(PlanError, match=r"needs 3\d\d MB for a worker, with 1\.05 MB there"):
        accumulate(store, as_kind(Unread, source), worker_memory=2**20)
    assert store.head().sequence == 0


def test_corpus_without_rows_is_refused(tmp_path, source, make):
    """An empty corpus is a mistake in the config, not an empty fit."""
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.table({name: pa.array([], pa.float64()) for name in (*X, "y")}), tmp_path / "empty" / "e")
    empty = replace(source, files=Files(str(tmp_path / "empty")))
    with pytest.raises(CorpusError, match="without any rows"):
        accumulate(make("store"), empty)


def test_plan_and_progress_are_shown_on_a_console(source, make, client):
    """With a console the plan is printed and the bar reaches its end; the sums are the same without one."""
    console = Console(file=StringIO(), width=200, force_terminal=True)
    shown, silent = make("shown"), make("silent")
    accumulate(shown, source, client=client, console=console)
    accumulate(silent, source, client=client)
    text = console.file.getvalue()
    assert "12 shards" in text
    assert "100%" in text
    assert shown.moments() == silent.moments()
