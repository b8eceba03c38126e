"""Rows of one file, array or stream are rows, however often they recur; copies of a file count once."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse

from streamfit import Corpus, accumulate, add, forget, solve
from streamfit.corpus import Labels
from streamfit.corpus.recipe import Recipe
from streamfit.corpus.stream import spool
from streamfit.engine import Machine
from streamfit.errors import MismatchError
from streamfit.stores import verify_store
from streamfit.verbs import RepeatedContentWarning, SkippedShardWarning


def write(path, *, n_groups=4, n_rows=100):
    """A file of equal row groups."""
    x = np.tile(np.arange(float(n_rows)), n_groups)
    table = pa.table({"x": x, "y": 2 * x, "region": np.where(x < 30, "eu", "us")})
    pq.write_table(table, path, row_group_size=n_rows)
    return x


@pytest.mark.parametrize("given", [{}, {"missing": "drop"}], ids=["plain", "recipe"])
def test_equal_row_groups_all_count_and_a_copy_of_the_file_does_not(tmp_path, given):
    (tmp_path / "in").mkdir()
    x = write(tmp_path / "in" / "a.parquet")
    corpus = Corpus(str(tmp_path / "in"), ["x"], ["y"], **given)
    store = accumulate(corpus, tmp_path / "s", precision="float64")
    sums = store.moments().centered()
    assert sums.n_rows == len(x)
    np.testing.assert_allclose(sums.gram[0, 0], ((x - x.mean()) ** 2).sum())
    assert len({shard.content_id for shard in corpus.source().shards()}) == 4
    assert len({shard.fold(1000) for shard in corpus.source().shards()}) == 1
    assert add(store, corpus).head().sequence == store.head().sequence  # all of it is counted
    shutil.copy(tmp_path / "in" / "a.parquet", tmp_path / "in" / "b.parquet")
    with pytest.warns(RepeatedContentWarning, match=r"b.parquet#0 has the content of a.parquet#0, and 3 more"):
        add(store, corpus)
    assert store.head().n_rows == len(x)


def test_one_of_equal_parts_can_leave_and_rows_leave_all_of_them(tmp_path):
    (tmp_path / "in").mkdir()
    x = write(tmp_path / "in" / "a.parquet")
    corpus = Corpus(str(tmp_path / "in"), ["x"], ["y"])
    store = accumulate(corpus, tmp_path / "s", precision="float64")
    forget(store, shards=["a.parquet#2"], why="a part")
    assert store.head().n_rows == 300
    forget(store, where={"x": [5.0, 6.0]}, why="rows", fast=True)
    kept = x[:300][~np.isin(x[:300], [5.0, 6.0])]
    sums = store.moments().centered()
    assert sums.n_rows == len(kept)
    np.testing.assert_allclose(sums.mean_x, [kept.mean()])
    np.testing.assert_allclose(sums.gram[0, 0], ((kept - kept.mean()) ** 2).sum())
    assert add(store, corpus).head().n_rows == len(kept)  # neither comes back
    with pytest.raises(MismatchError, match="no counted row"):
        forget(store, where={"x": 5.0}, why="again")


def test_labels_cut_equal_parts_alike(tmp_path):
    (tmp_path / "in").mkdir()
    x = write(tmp_path / "in" / "a.parquet")
    corpus = Corpus(str(tmp_path / "in"), ["x"], ["y"], labels=Labels(columns=("region",)))
    store = accumulate(corpus, tmp_path / "s", precision="float64")
    rows = {segment.label("region"): 0 for segment in store.head().segments}
    for segment in store.head().segments:
        rows[segment.label("region")] += segment.n_rows
    assert rows == {"eu": (x < 30).sum(), "us": (x >= 30).sum()}
    assert verify_store(store, Machine("serial"), None, against=str(tmp_path / "in")).faults == []


@pytest.mark.parametrize("kind", ["array", "sparse", "spool"])
def test_rows_in_memory_and_in_streams_all_count(tmp_path, kind):
    n_rows = 200_000
    y = np.sort(np.random.default_rng(0).integers(0, 2, n_rows)).astype(float)
    rows = {"x": 3 - y, "y": y}
    given = {}
    if kind == "sparse":
        rows["x"] = scipy.sparse.csr_matrix((3 - y)[:, None])
    if kind == "spool":
        rows, given = pa.table(rows), {"spool": tmp_path / "spool"}
    store = accumulate(Corpus(rows, ["x"], ["y"], **given), tmp_path / "s", precision="float64")
    assert store.head().n_rows == n_rows
    assert solve(store, alpha=1e-9, tolerance=1e-6).weights[0, 0] == pytest.approx(-1)
    assert accumulate(Corpus(rows, ["x"], ["y"], **given), tmp_path / "s", precision="float64").head().n_rows == n_rows


def test_a_spool_of_equal_ranges_is_written_once(tmp_path):
    table = pa.table({"x": np.ones(1000), "y": np.ones(1000)})
    ids = []
    for _ in range(2):
        source = spool(table, tmp_path / "spool", shard_rows=100, recipe=Recipe(("x",), ("y",)))
        ids.append([shard.content_id for shard in source.shards()])
        stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "spool").iterdir()}
    assert ids[0] == ids[1]
    assert len({*ids[0]}) == len(stamps) == 10
    spool(table, tmp_path / "spool", shard_rows=100, recipe=Recipe(("x",), ("y",)))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "spool").iterdir()} == stamps


def test_files_that_are_skipped_are_told(tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.parquet")
    (tmp_path / "in" / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.warns(SkippedShardWarning, match=r"skipped: b.parquet"):
        accumulate(Corpus(str(tmp_path / "in"), ["x"], ["y"]), tmp_path / "s", skip_bad_shards=True)
