"""The same rows from any kind of source are the same sums; what cannot be read is one named error."""

import bz2
import gzip
import itertools
import json
import pickle
from dataclasses import replace
from pathlib import Path

import dask.array
import dask.dataframe
import datasets
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import scipy.sparse
import zarr

from streamfit.config_corpus import TableSection
from streamfit.corpus import Files, Labels, ParquetTable
from streamfit.corpus.array_files import ArrayFiles
from streamfit.corpus.dataset import DatasetFiles
from streamfit.corpus.freezing import frozen
from streamfit.corpus.memory import ArrayRows, ArrowRows
from streamfit.corpus.recipe import Recipe
from streamfit.corpus.stream import spool
from streamfit.engine import accumulate
from streamfit.errors import ConfigError, CorpusError, MismatchError, ShardChangedError, ShardError
from streamfit.features import Linear
from streamfit.frame import BLOCK_ROWS, Frame
from streamfit.store import Header, Store
from streamfit.targets import Dense

N_ROWS = 5000
RNG = np.random.default_rng(5)
ROWS = {
    "a": RNG.integers(-50, 50, N_ROWS).astype(np.float64),
    "b": RNG.integers(0, 9, N_ROWS).astype(np.float64),
    "y": RNG.integers(-9, 9, N_ROWS).astype(np.float64),
    "w": RNG.integers(1, 4, N_ROWS).astype(np.float64),
}
TABLE = pa.table(ROWS)
RECIPE = Recipe(("a", "b"), ("y",), "w")
HEADER = Header(Linear(2), Dense(1), Frame.identity(2, 1), "float64", 3, {"kind": "table"})


def read_all(source):
    return [list(source.read(shard)) for shard in source.shards()]


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """Without waiting for the disk; no test here pulls the plug."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def moments_of(source, where):
    store = Store.create(where, HEADER)
    accumulate(store, source)
    return store.moments()


def parquet(folder):
    pq.write_table(TABLE, folder / "part.parquet", row_group_size=2000)
    return DatasetFiles.of("parquet", Files(str(folder)), recipe=RECIPE)


def arrow_stream(folder):
    with pa.OSFile(str(folder / "part.arrow"), "wb") as file, pa.ipc.new_stream(file, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=700)
    return DatasetFiles.of("arrow", Files(str(folder)), recipe=RECIPE)


def feather(folder):
    pa.feather.write_feather(TABLE, folder / "part.feather", compression="zstd", chunksize=900)
    return DatasetFiles.of("feather", Files(str(folder)), recipe=RECIPE)


def saved(folder):
    datasets.Dataset(TABLE).save_to_disk(folder / "set")
    return DatasetFiles.of("dataset", Files(str(folder / "set")), recipe=RECIPE)


def csv(folder, name="part.csv", pack=lambda data: data):
    pa.csv.write_csv(TABLE, folder / "plain")
    (folder / name).write_bytes(pack((folder / "plain").read_bytes()))
    (folder / "plain").unlink()
    options = {"shard_bytes": 2**14}
    return DatasetFiles.of("csv", Files(str(folder)), options=options, recipe=RECIPE).settled()


def zst(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return sink.getvalue().to_pybytes()


def jsonl(folder):
    lines = [json.dumps({name: int(column[i]) for name, column in ROWS.items()}) for i in range(N_ROWS)]
    (folder / "part.jsonl").write_text("\n".join(lines) + "\n")
    options = {"shard_bytes": 2**16}
    return DatasetFiles.of("jsonl", Files(str(folder)), options=options, recipe=RECIPE).settled()


def npy(folder):
    for name, column in ROWS.items():
        np.save(folder / f"{name}.npy", column)
    return ArrayFiles(Files(str(folder)), "npy", recipe=RECIPE, shard_rows=1500)


def zarr_group(folder):
    group = zarr.open_group(folder / "rows.zarr", mode="w")
    for name, column in ROWS.items():
        group.create_array(name, data=column, chunks=(512,))
    return ArrayFiles(Files(str(folder / "rows.zarr")), "zarr", recipe=RECIPE)


WIDE = Recipe(("x",), ("y",), "w")
X = np.column_stack([ROWS["a"], ROWS["b"]])


def dask_arrays(_):
    chunked = dask.array.from_array(X, chunks=(700, 1))
    return ArrayRows({"x": chunked, "y": ROWS["y"], "w": ROWS["w"]}, recipe=WIDE)


def sparse(_):
    return ArrayRows({"x": scipy.sparse.csr_array(X), "y": ROWS["y"], "w": ROWS["w"]}, recipe=WIDE)


def embeddings(folder):
    """Fixed-size lists of half floats."""
    x = pa.FixedSizeListArray.from_arrays(pa.array(X.astype(np.float16).ravel()), 2)
    pq.write_table(pa.table({"x": x, "y": ROWS["y"], "w": ROWS["w"]}), folder / "part.parquet")
    return DatasetFiles.of("parquet", Files(str(folder)), recipe=WIDE)


def lists(folder):
    """Lists that have one length without saying so, as of JSON."""
    datasets.Dataset.from_dict({"x": X.tolist(), "y": ROWS["y"], "w": ROWS["w"]}).save_to_disk(folder / "set")
    return DatasetFiles.of("dataset", Files(str(folder / "set")), recipe=WIDE)


class OneShot:
    """An Arrow stream that can be taken once, as a query's result."""

    def __init__(self, table):
        self._reader = table.to_reader(max_chunksize=333)

    def __arrow_c_stream__(self, requested_schema=None):
        return self._reader.__arrow_c_stream__(requested_schema)


def one_shot(folder):
    return spool(OneShot(TABLE), folder / "spool", shard_rows=1234, recipe=RECIPE)


def polars_frame(_):
    return ArrowRows(pa.table(pytest.importorskip("polars").DataFrame(ROWS)), recipe=RECIPE)


def pandas_frame(folder):
    return spool(TABLE.to_pandas(), folder / "spool", recipe=RECIPE)


def dask_frame(folder):
    return spool(dask.dataframe.from_pandas(TABLE.to_pandas(), npartitions=3), folder / "spool", recipe=RECIPE)


def map_style(folder):
    return spool(datasets.Dataset(TABLE), folder / "spool", recipe=RECIPE)


def streaming(folder):
    stream = datasets.Dataset(TABLE).to_iterable_dataset(num_shards=2)
    return spool(stream, folder / "spool", recipe=RECIPE)


KINDS = {
    "parquet": parquet,
    "arrow": arrow_stream,
    "feather": feather,
    "saved": saved,
    "csv": csv,
    "csv.gz": lambda folder: csv(folder, "part.csv.gz", gzip.compress),
    "csv.bz2": lambda folder: csv(folder, "part.csv.bz2", bz2.compress),
    "csv.zst": lambda folder: csv(folder, "part.csv.zst", zst),
    "jsonl": jsonl,
    "npy": npy,
    "zarr": zarr_group,
    "dask.array": dask_arrays,
    "sparse": sparse,
    "embeddings": embeddings,
    "lists": lists,
    "one shot": one_shot,
    "polars": polars_frame,
    "pandas": pandas_frame,
    "dask.dataframe": dask_frame,
    "map-style": map_style,
    "streaming": streaming,
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    pq.write_table(TABLE, folder / "part.parquet")
    return moments_of(ParquetTable(Files(str(folder / "part.parquet")), ("a", "b"), ("y",), "w"), folder / "store")


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_from_any_source_are_the_same_sums(kind, tmp_path, reference):
    """Bit for bit, whatever the shards; and every shard has a content id that is there again the next time."""
    (tmp_path / "data").mkdir()
    source = KINDS[kind](tmp_path / "data")
    assert moments_of(source, tmp_path / "store") == reference
    again = pickle.loads(pickle.dumps(source))  # bytes of this very process: a source travels to workers so
    assert [s.content_id for s in again.shards()] == [s.content_id for s in source.shards()]
    assert len({s.content_id for s in source.shards()}) == len(source.shards())


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "npy", "zarr", "arrow"])
def test_a_source_counts_once_and_forgets_rows(kind, tmp_path):
    """Counting again changes nothing; positions are those of the rows with a value, in every part."""
    (tmp_path / "data").mkdir()
    source = KINDS[kind](tmp_path / "data")
    store = Store.create(tmp_path / "store", HEADER)
    accumulate(store, source)
    before = store.head()
    accumulate(store, source)
    assert store.head() == before
    left = 0
    for shard in source.shards():
        there = np.concatenate([batch.column(0).to_numpy() for batch in source.batches(shard, ["b"])])
        found = source.positions(shard, "b", frozenset(["3.0", "3"]))
        np.testing.assert_array_equal(found, np.flatnonzero(there == 3))
        rest = list(source.read(replace(shard, without=found)))
        assert not any((rows.x[:, 1] == 3).any() for rows in rest)
        left += sum(len(rows.y) for rows in rest)
        assert all(len(rows.y) == BLOCK_ROWS for rows in rest[:-1])
    assert left == (ROWS["b"] != 3).sum()


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather", "csv.gz", "csv.bz2", "csv.zst", "jsonl", "csv", "npy"])
def test_a_truncated_file_is_one_clear_error(kind, tmp_path):
    """It names the shard, and the next file is read all the same."""
    source = KINDS[kind](tmp_path)
    path = max((p for p in tmp_path.rglob("*") if p.is_file()), key=lambda p: (p.stat().st_size, p.name))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 3])
    with pytest.raises(CorpusError) as caught:
        read_all(source)
    assert path.name.removesuffix(".npy") in caught.value.got
    assert caught.value.expected
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv", "jsonl", "npy", "zarr"])
def test_rows_that_change_after_they_were_listed_are_refused(kind, tmp_path):
    """By their content, not by their names or sizes."""
    source = KINDS[kind](tmp_path)
    shards = source.shards()
    ROWS["a"][7] += 1
    try:
        global TABLE
        TABLE = pa.table(ROWS)
        KINDS[kind](tmp_path)
    finally:
        ROWS["a"][7] -= 1
        TABLE = pa.table(ROWS)
    with pytest.raises(ShardChangedError, match="changed"):
        [list(source.read(shard)) for shard in shards]


def test_partitions_give_columns_and_are_part_of_what_a_file_is(tmp_path):
    """Folders as Hive writes them: numbers for features, text for categories; the same bytes elsewhere are others."""
    for year, carrier in itertools.product((2024, 2025), ("AA", "B 6")):
        folder = tmp_path / "root" / f"year={year}" / f"carrier={carrier.replace(' ', '%20')}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"y": [1.0, 2.0]}), folder / "part.parquet")
    recipe = Recipe(("year", "carrier"), ("y",), categories=(("carrier", ()),))
    source = frozen(DatasetFiles.of("parquet", Files(str(tmp_path / "root")), recipe=recipe, partitions="hive"))
    assert source.recipe.levels("carrier") == ("AA", "B 6")
    x = np.concatenate([rows.x for shard in source.shards() for rows in source.read(shard)])
    assert x.tolist() == [[2024, 1, 0]] * 2 + [[2024, 0, 1]] * 2 + [[2025, 1, 0]] * 2 + [[2025, 0, 1]] * 2
    assert len({shard.content_id for shard in source.shards()}) == 4
    path = tmp_path / "root" / "year=2025" / "carrier=AA" / "part.parquet"
    alone = DatasetFiles.of("parquet", Files(str(path)), recipe=recipe, partitions="hive")
    assert alone.shards()[0].content_id in {shard.content_id for shard in source.shards()}
    labelled = DatasetFiles.of(
        "parquet", Files(str(tmp_path / "root")), recipe=recipe, partitions="hive", labels=Labels(columns=("carrier",))
    )
    assert {dict(shard.labels)["carrier"] for shard in labelled.shards()} == {"AA", "B 6"}


def test_types_of_text_are_found_once_and_kept(tmp_path):
    """A later file that would be read as whole numbers, or as dates, is read as the first was."""
    (tmp_path / "1.csv").write_text("n,code,when,y\n1,007,2026-01-01,1\n2,008,2026-01-02 06:00:00,2\n")
    recipe = Recipe(("n", "code", "when"), ("y",), categories=(("code", ()),), unseen="zero")
    source = frozen(DatasetFiles.of("csv", Files(str(tmp_path)), recipe=recipe))
    assert source.recipe.levels("code") == ("007", "008")
    (tmp_path / "2.csv").write_text("y,when,code,n\n3,2026-01-03,7,2.5\n")
    rows = [next(source.read(shard)).x.tolist() for shard in source.shards()]
    assert rows == [[[1, 1, 0, 20454.0], [2, 0, 1, 20455.25]], [[2.5, 0, 0, 20456.0]]]
    (tmp_path / "3.csv").write_text("n,code,when,y\nmany,7,2026-01-03,1\n")
    with pytest.raises(ShardError, match=r"3\.csv.*many"):
        list(source.read(source.shards()[2]))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_numbers_that_are_names_are_found_as_they_are_written(kind, tmp_path):
    """Large ones, which a float would round, and in CSV those with zeros before them."""
    ids = [9007199254740993, 123456789012, 7]
    rows = [{"user": user, "code": f"{i:03}", "x": 1.0, "y": 1.0} for i, user in enumerate(ids)]
    if kind == "csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    else:
        lines = [json.dumps(row) for row in rows]
    (tmp_path / f"t.{kind}").write_text("\n".join(lines) + "\n")
    source = DatasetFiles.of(kind, Files(str(tmp_path)), recipe=Recipe(("x",), ("y",))).settled()
    shard = source.shards()[0]
    assert [source.positions(shard, "user", frozenset([str(user)])) for user in ids] == [(0,), (1,), (2,)]
    assert source.positions(shard, "code", frozenset(["001"])) == (1,)


def test_quoted_line_ends_take_files_whole(tmp_path):
    """Where values may hold line ends, no cut can fall into one."""
    text = 'name,y\n"a\nb",1\n"c,d",2\n'
    (tmp_path / "t.csv").write_text(text)
    recipe = Recipe(("name",), ("y",), categories=(("name", ("a\nb", "c,d")),))
    options = {"quoted_newlines": True, "shard_bytes": 4}
    source = DatasetFiles.of("csv", Files(str(tmp_path)), options=options, recipe=recipe).settled()
    assert [rows.x.tolist() for rows in source.read(source.shards()[0])] == [[[1, 0], [0, 1]]]


def test_spooling_again_writes_nothing_new(tmp_path):
    """Nor does a stream that goes on rewrite the ranges that stay; rows that are of other columns are refused."""
    one = spool(OneShot(TABLE), tmp_path, shard_rows=1000, recipe=RECIPE)
    names = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    spool(datasets.Dataset(TABLE), tmp_path, shard_rows=1000, recipe=RECIPE)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == names
    assert sum(shard.planned_rows for shard in one.shards()) == N_ROWS
    longer = spool([TABLE, TABLE], tmp_path, shard_rows=1000, recipe=RECIPE)
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert sum(shard.planned_rows for shard in longer.shards()) == 2 * N_ROWS
    assert {name: kept[name] for name in sorted(names)[:-1]} == dict(sorted(names.items())[:-1])
    shorter = spool(TABLE.slice(0, 1500), tmp_path, shard_rows=1000, recipe=RECIPE)
    assert [shard.planned_rows for shard in shorter.shards()] == [1000, 500]
    with pytest.raises(CorpusError, match="columns"):
        spool([TABLE, TABLE.drop_columns(["w"])], tmp_path / "other", recipe=RECIPE)
    with pytest.raises(CorpusError, match="int"):
        spool(3, tmp_path / "third", recipe=RECIPE)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda f: DatasetFiles.of("xlsx", Files(str(f)), recipe=RECIPE), "xlsx"),
        (lambda f: DatasetFiles.of("parquet", Files(str(f / "none")), recipe=RECIPE).shards(), "none"),
        (lambda f: DatasetFiles.of("csv", Files(str(f)), recipe=RECIPE).shards(), "csv"),
        (lambda f: ArrayFiles(Files(str(f)), "npy", recipe=RECIPE).shards(), "a.npy"),
        (lambda f: ArrayFiles(Files(str(f / "x.zarr")), "zarr", recipe=RECIPE).shards(), "x.zarr"),
        (lambda f: ArrayRows({"a": np.zeros(3), "y": np.zeros(4)}, recipe=RECIPE), "a has 3, y has 4"),
    ],
)
def test_what_is_not_there_is_named(make, match, tmp_path):
    """Each with what was expected."""
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises((CorpusError, ConfigError), match=match) as caught:
        make(tmp_path)
    assert caught.value.expected


def test_missing_columns_and_wrong_types_are_named(tmp_path):
    """With the columns that are there."""
    pq.write_table(pa.table({"a": ["x"], "y": [1.0]}), tmp_path / "t.parquet")
    files = Files(str(tmp_path))
    for recipe, match in (
        (Recipe(("z",), ("y",)), "no column 'z' among a, y"),
        (Recipe(("a",), ("y",)), "type string"),
    ):
        source = DatasetFiles.of("parquet", files, recipe=recipe)
        with pytest.raises(ShardError, match=match):
            list(source.read(source.shards()[0]))


def test_memory_is_bounded_by_ranges_and_blocks(tmp_path):
    """A large file is read in parts: no batch is larger than what is decoded at a time."""
    lines = b"a,b,y,w\n" + b"1,2,3,1\n" * 300_000
    (tmp_path / "large.csv").write_bytes(lines)
    source = DatasetFiles.of("csv", Files(str(tmp_path)), options={"shard_bytes": 2**19}, recipe=RECIPE).settled()
    shards = source.shards()
    assert max(shard.size for shard in shards) <= 2**19 + 8
    before = pa.total_allocated_bytes()
    pool = pa.default_memory_pool()
    peak = 0
    for rows in source.read(shards[0]):
        assert len(rows.y) <= BLOCK_ROWS
        peak = max(peak, pool.bytes_allocated() - before)
    assert peak < source.decode_bytes(shards[:1], 32)


def test_folders_of_arrays_are_sets(tmp_path: Path):
    """Several folders with the same arrays are one corpus."""
    for name, part in (("one", slice(0, 10)), ("two", slice(10, 30))):
        (tmp_path / name).mkdir()
        for column, values in ROWS.items():
            np.save(tmp_path / name / f"{column}.npy", values[part])
    source = ArrayFiles(Files(str(tmp_path)), "npy", recipe=RECIPE)
    assert [(shard.key, shard.planned_rows) for shard in source.shards()] == [("one", 10), ("two", 20)]


def test_columns_that_are_not_read_are_not_planned_for(tmp_path: Path):
    """By a recipe as without one: of Parquet only what is decoded takes memory."""
    wide = ROWS | {"note": ["x" * 500 + str(i) for i in range(N_ROWS)], "kind": ["p", "q"] * (N_ROWS // 2)}
    for name, columns in (("wide", wide), ("bare", ROWS | {"kind": wide["kind"]})):
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet", row_group_size=1000)
    recipe = Recipe(("a", "b", "kind"), ("y",), "w", categories=(("kind", ("p", "q")),))
    planned = {}
    for name in ("wide", "bare"):
        source = DatasetFiles.of("parquet", Files(str(tmp_path / f"{name}.parquet")), recipe=recipe)
        planned[name] = source.decode_bytes(source.shards(), 32)
    assert planned["wide"] == pytest.approx(planned["bare"], rel=0.01)
    assert planned["wide"] < min(shard.size for shard in source.shards()) + 3 * 1000 * 200


def test_a_data_set_that_streams_is_spooled_once_by_a_config(tmp_path: Path, monkeypatch):
    """Its rows are those of the files; a spool that was left half is written anew, and another's is refused."""
    (tmp_path / "hub").mkdir()
    pq.write_table(TABLE.slice(0, 3000), tmp_path / "hub" / "train-0.parquet")
    pq.write_table(TABLE.slice(3000), tmp_path / "hub" / "train-1.parquet")
    given = {"kind": "stream", "root": str(tmp_path / "hub"), "spool": str(tmp_path / "spool"), "weight": "w"}
    section = TableSection(**given, features=("a", "b"), target=("y",))
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "left.arrow").write_bytes(b"of a process that was stopped")
    rows = [rows for part in read_all(section.table()) for rows in part]
    np.testing.assert_array_equal(np.concatenate([r.x for r in rows])[:, 0].sum(), ROWS["a"].sum())
    assert sum(len(r.y) for r in rows) == N_ROWS
    monkeypatch.setattr(datasets, "load_dataset", None)  # not asked again
    assert len(section.table().shards()) == len(list((tmp_path / "spool").glob("*.arrow")))
    with pytest.raises(MismatchError, match="another `spool`"):
        section.model_copy(update={"part": "test"}).table()
    monkeypatch.undo()
    nowhere = section.model_copy(update={"spool": str(tmp_path / "more"), "part": "june"})
    with pytest.raises(CorpusError, match="june"):
        nowhere.table()
    with pytest.raises(ValueError, match="takes `spool`"):
        TableSection(**{**given, "spool": ""}, features=("a",), target=("y",))
    with pytest.raises(ValueError, match="part is for kind stream"):
        TableSection(kind="csv", root="x", part="test", features=("a",), target=("y",))
