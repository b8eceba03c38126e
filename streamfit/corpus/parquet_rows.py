"""Rows of a Parquet row group: those that count, in blocks that depend on them alone, as arrays of numbers. Floor 4."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamfit.corpus.spare import BLOCKS
from streamfit.corpus.values import column_of, kept, selected
from streamfit.errors import ShardError
from streamfit.frame import BLOCK_ROWS
from streamfit.plan import Shard


class Batch(NamedTuple):
    """Some rows and where each stands in its row group.

    Parameters
    ----------
    table : RecordBatch
    positions : int64 array of shape (n_rows,)
    """

    table: pa.RecordBatch
    positions: np.ndarray


READ_BYTES = 2**28
"""Bytes in memory that are decoded at a time: enough that starting on each column costs little."""
_TEXT_BYTES = 64
_PIECE = (528, 128)
"""Rows that Arrow lays out at a time, and columns of them that become rows at a time: what was measured best.

Little enough that its memory stays in the cache, and not a multiple of 1,024 bytes, or the columns would all be kept in
the same few places of it.
"""


def batches_of(shard: Shard, file: pq.ParquetFile, columns: list[str]) -> Iterator[Batch]:
    """Batches of exactly `BLOCK_ROWS` of a shard's rows but for the last.

    Rows that the shard does not select, or leaves out, are gone before blocks are cut: where a block ends depends on
    the rows that count alone, as if a file had never held the others.
    """
    held: list[pa.RecordBatch] = []
    positions = np.zeros(0, np.int64)
    for batch in _counted(shard, file, columns):
        held.append(batch.table)
        positions = np.concatenate([positions, batch.positions])
        if len(positions) < BLOCK_ROWS:
            continue
        table = _joined(held)
        whole = len(positions) // BLOCK_ROWS * BLOCK_ROWS
        for lo in range(0, whole, BLOCK_ROWS):
            yield Batch(table.slice(lo, BLOCK_ROWS), positions[lo : lo + BLOCK_ROWS])
        held, positions = [table.slice(whole)] if whole < len(positions) else [], positions[whole:]
    if len(positions):
        yield Batch(_joined(held), positions)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def _counted(shard: Shard, file: pq.ParquetFile, columns: list[str]) -> Iterator[Batch]:
    wanted = list(dict.fromkeys(columns))
    read = list(dict.fromkeys([*columns, *(column_of(key)[0] for key, _ in shard.select)]))
    n_rows = file.metadata.row_group(shard.start).num_rows
    mask = kept(n_rows, shard.without)
    first = 0
    for table in _decoded(shard, file, read):
        positions = np.arange(first, first + table.num_rows)
        first += table.num_rows
        if shard.select or shard.without:
            chosen = mask[positions] & selected(table.num_rows, shard.select, table.column)
            table, positions = table.filter(pa.array(chosen)), positions[chosen]
        yield Batch(table.select(wanted), positions)


def _decoded(shard: Shard, file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """A row group, whole where no more than `READ_BYTES` come of it: that is decoded faster than in parts."""
    group = file.metadata.row_group(shard.start)
    row_bytes = decoded_row_bytes(file.schema_arrow, group, columns)
    if group.num_rows * row_bytes <= READ_BYTES:
        table = file.read_row_group(shard.start, columns=columns, use_threads=False)
        yield from table.combine_chunks().to_batches()
        return
    # One part is held while the next grows in buffers that double.
    n_rows = max(1, READ_BYTES // 2 // row_bytes // BLOCK_ROWS) * BLOCK_ROWS
    yield from file.iter_batches(n_rows, row_groups=[shard.start], columns=columns, use_threads=False)


def decoded_row_bytes(schema: pa.Schema, group: pq.RowGroupMetaData, columns: Sequence[str]) -> int:
    """Bytes of a row in memory, which may be many times those in the file: a dictionary's indices take a few bits.

    Of text and lists of any length only the encoded size is known; they are taken to be `_TEXT_BYTES` at least.
    """
    kinds = dict(zip(schema.names, schema.types, strict=True))
    total, unknown = 0.0, []
    for name in columns:
        kind = kinds[name]
        length, element = (kind.list_size, kind.value_type) if pa.types.is_fixed_size_list(kind) else (1, kind)
        try:
            total += length * element.bit_width / 8
        except ValueError:  # no width
            unknown.append(name)
    if unknown:
        encoded = chunks_of(group, unknown)
        total += max(
            _TEXT_BYTES * len(unknown), sum(c.total_uncompressed_size for c in encoded) / max(1, group.num_rows)
        )
    return max(1, round(total))


def chunks_of(group: pq.RowGroupMetaData, columns: Sequence[str]) -> list[pq.ColumnChunkMetaData]:
    """Column chunks of a row group that hold some columns, nested ones included."""
    wanted = set(columns)
    chunks = (group.column(i) for i in range(group.num_columns))
    return [c for c in chunks if c.path_in_schema in wanted or c.path_in_schema.split(".")[0] in wanted]


def column(shard: Shard, batch: Batch, name: str) -> np.ndarray:
    """A column as an array of shape (n_rows, n_elements).

    Raises
    ------
    ShardError
        If a value is null.
    """
    values = batch.table.column(batch.table.schema.get_field_index(name))
    if values.null_count:
        row = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
        msg = f"{shard.key}, row {batch.positions[row]}: null in column {name!r}"
        raise ShardError(msg, "a number in every row", "filter or fill the column, or skip bad shards")
    if pa.types.is_fixed_size_list(values.type):
        flat = values.flatten()
        if flat.null_count:
            row = int(np.argmax(flat.is_null().to_numpy(zero_copy_only=False))) // values.type.list_size
            msg = f"{shard.key}, row {batch.positions[row]}: null inside the list in column {name!r}"
            raise ShardError(msg, "a number in every element")
        return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(values), -1)
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(len(values), 1)


def matrix(shard: Shard, batch: Batch, names: tuple[str, ...]) -> np.ndarray:
    """Columns side by side, in float32 where all of them fit in it.

    Raises
    ------
    ShardError
        If a value is null, NaN or infinite.
    """
    x, widths = same_floats(batch, names), [1] * len(names)
    if x is None:
        blocks = [column(shard, batch, name) for name in names]
        widths = [block.shape[1] for block in blocks]
        kind = np.float32 if all(b.dtype in (np.float16, np.float32) for b in blocks) else np.float64
        x = np.concatenate([block.astype(kind, copy=False) for block in blocks], axis=1)
    if not np.isfinite(x).all():
        ends = np.cumsum(widths)
        first = int(np.argmin(np.isfinite(x).all(axis=0)))
        row = int(np.argmin(np.isfinite(x[:, first])))
        name = names[int(np.searchsorted(ends, first, side="right"))]
        msg = f"{shard.key}, row {batch.positions[row]}: {x[row, first]} in column {name!r}"
        raise ShardError(msg, "finite numbers", "filter or fill the column, or skip bad shards")
    return x


def same_floats(batch: Batch, names: tuple[str, ...]) -> np.ndarray | None:
    """Columns side by side, if they are plain floats of one type and without nulls: the way of wide tables.

    Arrow lays the columns one after another faster than a loop over them could; what is left is to turn them.
    """
    table = batch.table.select(list(names))
    kinds = {field.type for field in table.schema}
    if len(names) == 1 or kinds not in ({pa.float32()}, {pa.float64()}) or any(c.null_count for c in table.columns):
        return None
    x = BLOCKS.empty((table.num_rows, len(names)), table.schema.field(0).type.to_pandas_dtype())
    rows, width = _PIECE
    for lo in range(0, len(x), rows):
        columns = table.slice(lo, rows).to_tensor(row_major=False).to_numpy()
        for left in range(0, len(names), width):
            x[lo : lo + rows, left : left + width] = columns[:, left : left + width]
    return x


def weights_of(shard: Shard, batch: Batch, name: str) -> np.ndarray:
    """A column of weights.

    Raises
    ------
    ShardError
        If a value is no finite number, or negative.
    """
    weights = matrix(shard, batch, (name,))[:, 0]
    if (weights < 0).any():
        msg = f"{shard.key}, row {batch.positions[np.argmax(weights < 0)]}: negative weight"
        raise ShardError(msg, f"{name!r} >= 0")
    return weights


def class_ids(shard: Shard, batch: Batch, name: str, n_classes: int) -> np.ndarray:
    """A column of class ids.

    Raises
    ------
    ShardError
        If a value is null or not in [0, n_classes).
    """
    y = column(shard, batch, name)[:, 0].astype(np.int64)
    bad = (y < 0) | (y >= n_classes)
    if bad.any():
        row = int(np.argmax(bad))
        msg = f"{shard.key}, row {batch.positions[row]}: class id {y[row]}"
        raise ShardError(msg, f"ids in [0, {n_classes})", "set `n_classes` in the config")
    return y
