"""Wide tables of plain floats: some columns of a row group at a time, which stay columns. Floor 4.

A row group that is decoded whole holds its pages, what they are decompressed to and its columns all at once, until the
last column is done: several times its rows. Products take columns as they are; to turn them into rows took as long as
to decode them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamfit.arrays import COLUMN_GAP
from streamfit.corpus.parquet_rows import READ_BYTES
from streamfit.corpus.spare import BLOCKS
from streamfit.frame import BLOCK_ROWS
from streamfit.plan import BLOCKS_AHEAD, Shard

_LEAST = 64
"""Columns of a table that is called wide: with fewer, starting to read takes as long as is gained."""
_COLUMNS = 48
"""Columns that are decoded at a time: what was measured best."""


def wide_type(schema: pa.Schema, names: Sequence[str]) -> np.dtype | None:
    """Type of the numbers, if there are many columns and all of them are floats of one type; else None."""
    if len(names) < _LEAST:
        return None
    types = dict(zip(schema.names, schema.types, strict=True))
    kinds = {types.get(name) for name in names}
    if kinds == {pa.float32()}:
        return np.dtype(np.float32)
    return np.dtype(np.float64) if kinds == {pa.float64()} else None


def wide_rows(shard: Shard, file: pq.ParquetFile, names: Sequence[str]) -> np.ndarray | None:
    """Columns of a whole row group side by side: an array of shape (n_rows, n_columns), laid out by columns.

    Parameters
    ----------
    shard : Shard
    file : ParquetFile
    names : sequence of str

    Returns
    -------
    array or None
        None if the shard leaves rows out, columns are not plain, a value is null, NaN or infinite, or the rows take
        more than `READ_BYTES`: then it is to be read a block of rows at a time, which can say what is wrong.
    """
    kind = wide_type(file.schema_arrow, names)
    n_rows = file.metadata.row_group(shard.start).num_rows
    if kind is None or not held_together(shard, n_rows, len(names) * kind.itemsize):
        return None
    columns = BLOCKS.empty((len(names), n_rows + COLUMN_GAP // kind.itemsize), kind)[:, :n_rows]
    for left in range(0, len(names), _COLUMNS):
        some = list(names[left : left + _COLUMNS])
        table = file.read_row_group(shard.start, columns=some, use_threads=False).select(some)
        for column, values in zip(columns[left:], table.columns, strict=False):
            if values.null_count:
                return None
            start = 0
            for chunk in values.chunks:
                column[start : start + len(chunk)] = chunk.to_numpy()
                start += len(chunk)
            # The sum of squares is taken several times faster, and finite only if every number is.
            if not np.isfinite(np.dot(column, column)) and not np.isfinite(column).all():
                return None
    return columns.T


def held_together(shard: Shard, n_rows: int, row_bytes: int) -> int:
    """Blocks of a wide table's row group that lie in one piece of memory; 0 if it is read a block at a time.

    Parameters
    ----------
    shard : Shard
    n_rows, row_bytes : int
        Of the row group.
    """
    if shard.select or shard.without or n_rows * row_bytes > READ_BYTES:
        return 0
    return -(-n_rows // BLOCK_ROWS)


def wide_bytes(n_rows: int, row_bytes: int, n_groups: int) -> int:
    """Memory of row groups that are read so one after another, beside blocks of rows.

    It is that of the one that is read, of one or more that wait, and of those that the sums still hold two blocks of.
    Where decoding is slower than the sums, none waits, and it is less.

    Of the columns that are read at a time, Arrow holds the pages, what they are decompressed to, and what is decoded.
    """
    n_blocks = max(1, -(-n_rows // BLOCK_ROWS))
    most = 1 + -(-max(n_blocks, BLOCKS_AHEAD - 2) // n_blocks) + -(-2 // n_blocks)
    return max(0, min(n_groups, most) * n_rows - BLOCKS_AHEAD * BLOCK_ROWS) * row_bytes + 3 * n_rows * _COLUMNS * 8
