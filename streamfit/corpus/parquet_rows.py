"""Rows of a Parquet row group: those that count, in blocks that depend on them alone, as arrays of numbers. Floor 4."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
        while len(positions) >= BLOCK_ROWS:
            table = pa.Table.from_batches(held).combine_chunks()
            yield Batch(table.slice(0, BLOCK_ROWS).to_batches()[0], positions[:BLOCK_ROWS])
            held, positions = table.slice(BLOCK_ROWS).to_batches(), positions[BLOCK_ROWS:]
    if len(positions):
        yield Batch(pa.Table.from_batches(held).combine_chunks().to_batches()[0], positions)


def _counted(shard: Shard, file: pq.ParquetFile, columns: list[str]) -> Iterator[Batch]:
    wanted = list(dict.fromkeys(columns))
    read = list(dict.fromkeys([*columns, *(column_of(key)[0] for key, _ in shard.select)]))
    mask = kept(file.metadata.row_group(shard.start).num_rows, shard.without)
    first = 0
    for table in file.iter_batches(BLOCK_ROWS, row_groups=[shard.start], columns=read):
        positions = np.arange(first, first + table.num_rows)
        first += table.num_rows
        if shard.select or shard.without:
            chosen = mask[positions] & selected(table.num_rows, shard.select, table.column)
            table, positions = table.filter(pa.array(chosen)), positions[chosen]
        yield Batch(table.select(wanted), positions)


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
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(len(values), 1)


def matrix(shard: Shard, batch: Batch, names: tuple[str, ...]) -> np.ndarray:
    """Columns side by side, in float32 where all of them fit in it.

    Raises
    ------
    ShardError
        If a value is null, NaN or infinite.
    """
    blocks = [column(shard, batch, name) for name in names]
    kind = np.float32 if all(b.dtype in (np.float16, np.float32) for b in blocks) else np.float64
    for name, block in zip(names, blocks, strict=True):
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            value = block[row][~np.isfinite(block[row])][0]
            msg = f"{shard.key}, row {batch.positions[row]}: {value} in column {name!r}"
            raise ShardError(msg, "finite numbers", "filter or fill the column, or skip bad shards")
    return np.concatenate([b.astype(kind, copy=False) for b in blocks], axis=1)


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
