"""Wide tables are read some columns at a time: the same rows, the same errors, and less memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamfit.corpus import Files, wide
from streamfit.corpus.parquet import ParquetTable
from streamfit.corpus.spare import BLOCKS
from streamfit.errors import ShardError
from streamfit.frame import BLOCK_ROWS

WIDTH = 130
NAMES = tuple(f"x{j}" for j in range(WIDTH))


def rows_of(n_rows: int, dtype: type, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_rows, WIDTH)).astype(dtype)


def write(path: Path, x: np.ndarray, *, group: int = 10**6, order: tuple[int, ...] = (), **columns: pa.Array) -> None:
    """Feature columns in some order, between others."""
    table = {"first": pa.array(np.arange(len(x)))} | {f"x{j}": x[:, j] for j in order or range(WIDTH)}
    table |= {"y": x[:, 0] * 2.0, "w": np.abs(x[:, 1])} | columns
    pq.write_table(pa.table(table), path, row_group_size=group)


def read(source: ParquetTable) -> list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    with BLOCKS.reused():
        found = [rows for shard in source.shards() for rows in source.read(shard)]
        return [(rows.x.copy(), rows.y.copy(), rows.weights) for rows in found]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each row group was read some columns at a time."""
    told: list[bool] = []
    inner = wide.wide_rows

    def spied(*given: object) -> np.ndarray | None:
        found = inner(*given)
        told.append(found is not None)
        return found

    monkeypatch.setattr("streamfit.corpus.parquet.wide_rows", spied)
    return told


@settings(max_examples=12, deadline=None)
@given(
    dtype=st.sampled_from([np.float32, np.float64]),
    n_rows=st.integers(1, 2 * BLOCK_ROWS + 50),
    group=st.sampled_from([70, 2064, 10**6]),
    seed=st.integers(0, 99),
)
def test_rows_are_those_of_the_file(tmp_path_factory, dtype, n_rows, group, seed):
    """Whatever the order of columns in it: in blocks that end where a block of a narrow table does."""
    path = tmp_path_factory.mktemp("rows")
    order = tuple(int(j) for j in np.random.default_rng(seed).permutation(WIDTH))
    n_rows = min(n_rows, 40 * group)
    x = rows_of(n_rows, dtype, seed)
    write(path / "rows.parquet", x, group=group, order=order)
    found = read(ParquetTable(Files(str(path)), NAMES, ("y",), "w"))
    ends = [
        min(lo + BLOCK_ROWS, min(first + group, n_rows)) - lo
        for first in range(0, n_rows, group)
        for lo in range(first, min(first + group, n_rows), BLOCK_ROWS)
    ]
    assert [len(rows) for rows, _, _ in found] == ends
    assert all(rows.dtype == dtype for rows, _, _ in found)
    assert np.array_equal(np.concatenate([rows for rows, _, _ in found]), x)
    assert np.array_equal(np.concatenate([y for _, y, _ in found])[:, 0], x[:, 0] * 2.0)
    assert np.array_equal(np.concatenate([w for _, _, w in found]), np.abs(x[:, 1]))


def test_wide_and_whole_groups_alone_are_read_so(tmp_path: Path, reads: list[bool], monkeypatch: pytest.MonkeyPatch):
    x = rows_of(300, np.float32)
    write(tmp_path / "rows.parquet", x)
    source = ParquetTable(Files(str(tmp_path)), NAMES, ("y",))
    expected = read(source)[0][0]
    read(replace(source, features=NAMES[:10]))
    (shard,) = source.shards()
    (partly,) = source.read(replace(shard, without=(0, 7)))
    assert np.array_equal(partly.x, np.delete(x, [0, 7], axis=0))
    monkeypatch.setattr(wide, "READ_BYTES", 300 * WIDTH * 4 - 1)
    (in_parts,) = source.read(shard)
    assert np.array_equal(in_parts.x, expected)
    assert reads == [True, False, False, False]


@pytest.mark.parametrize("bad", [None, np.nan, np.inf])
def test_errors_name_row_and_column_as_in_a_narrow_table(tmp_path: Path, bad: float | None):
    x = rows_of(BLOCK_ROWS + 100, np.float64)
    values = [*x[:, 100].tolist()]
    values[BLOCK_ROWS + 3] = bad
    write(tmp_path / "rows.parquet", x, order=tuple(j for j in range(WIDTH) if j != 100), x100=pa.array(values))
    said = []
    for names in (NAMES, NAMES[90:110]):
        source = ParquetTable(Files(str(tmp_path)), names, ("y",))
        with pytest.raises(ShardError) as error:
            read(source)
        said.append(str(error.value))
    assert f"row {BLOCK_ROWS + 3}" in said[0]
    assert "'x100'" in said[0]
    assert said[0] == said[1]


def test_mixed_types_are_read_as_ever(tmp_path: Path, reads: list[bool]):
    x = rows_of(50, np.float32)
    write(tmp_path / "rows.parquet", x, order=tuple(range(1, WIDTH)), x0=pa.array(np.arange(50)))
    ((found, _, _),) = read(ParquetTable(Files(str(tmp_path)), NAMES, ("y",)))
    assert found.dtype == np.float64
    assert np.array_equal(found[:, 0], np.arange(50.0))
    assert np.array_equal(found[:, 1:], x[:, 1:])
    assert reads == [False]


def test_blocks_that_lie_together_are_told(tmp_path):
    """Of whole row groups of many plain columns; not of few columns, of other types, or where rows are left out."""
    write(tmp_path / "rows.parquet", rows_of(3 * BLOCK_ROWS + 1, np.float32), group=2 * BLOCK_ROWS + 1)
    table = ParquetTable(Files(str(tmp_path)), NAMES, ("y",))
    first, second = table.shards()
    assert [table.blocks_held(shard) for shard in (first, second)] == [3, 1]
    assert table.blocks_held(replace(first, without=(3,))) == 0
    assert replace(table, features=NAMES[:9]).blocks_held(first) == 0
    assert replace(table, features=(*NAMES, "first")).blocks_held(first) == 0
