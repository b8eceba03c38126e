"""Columns of Parquet hashed into sparse rows, distinct values once. Floor 4."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import scipy.sparse

from streamfit.corpus.parquet_rows import Batch, column
from streamfit.corpus.values import column_of, is_plain, strings_of
from streamfit.errors import ShardError
from streamfit.features import Hashed
from streamfit.plan import Shard


def hashed_rows(shard: Shard, batch: Batch, hashed: Hashed) -> scipy.sparse.csr_array:
    """Rows of a batch by the conventions of `Hashed`, entries of a row in ascending order, none of them zero.

    A column may be named with a period, such as `stamp|month`, for times that are cut to it.

    Raises
    ------
    ShardError
        If a value is null, NaN or infinite.
    """
    n_rows = batch.table.num_rows
    parts = [_column(shard, batch, hashed, name) for name in hashed.columns]
    rows = np.concatenate([where for where, _, _ in parts])
    indices = np.concatenate([place for _, place, _ in parts])
    values = np.concatenate([value for _, _, value in parts])
    found = scipy.sparse.csr_array((values, (rows, indices)), shape=(n_rows, hashed.n))
    found.sum_duplicates()
    found.eliminate_zeros()
    return found


def check_hashable(shard: Shard, kind: pa.DataType, key: str, hashed: Hashed) -> None:
    """Refuse a column that has no tokens.

    Raises
    ------
    ShardError
        Naming its type.
    """
    name, period = column_of(key)
    if _is_list(kind):
        good = period is None and _is_text(kind.value_type)
    elif key in hashed.categories or period is not None:
        good = is_plain(kind)
    else:
        good = _is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if not good:
        msg = f"{shard.key}: column {name!r} has type {kind}"
        remedy = "" if not is_plain(kind) else "name it in `categories` to hash its values as names"
        raise ShardError(msg, "text, numbers, booleans or lists of text", remedy)


def _column(shard: Shard, batch: Batch, hashed: Hashed, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and value of each token."""
    name, period = column_of(key)
    values = batch.table.column(batch.table.schema.get_field_index(name))
    every = np.arange(len(values))
    if _is_list(values.type):
        _refuse_nulls(shard, batch, values, name, every)
        lengths = np.diff(values.offsets.to_numpy()) if not pa.types.is_fixed_size_list(values.type) else None
        each = np.full(len(values), values.type.list_size) if lengths is None else lengths
        rows, words = np.repeat(every, each), values.flatten()
        _refuse_nulls(shard, batch, words, name, rows)
        return rows, *_named(hashed, key, words)
    if _is_text(values.type) or key in hashed.categories or period is not None:
        texts = strings_of(values, period)
        _refuse_nulls(shard, batch, texts, name, every)
        return every, *_named(hashed, key, texts)
    numbers = column(shard, batch, name)[:, 0].astype(np.float64)
    if not np.isfinite(numbers).all():
        row = int(np.argmin(np.isfinite(numbers)))
        msg = f"{shard.key}, row {batch.positions[row]}: {numbers[row]} in column {name!r}"
        raise ShardError(msg, "finite numbers", "filter or fill the column, or skip bad shards")
    index, sign = hashed.tokens([key])
    return every, np.broadcast_to(index, numbers.shape), numbers * sign


def _named(hashed: Hashed, key: str, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Column and sign of "key=text" of each text; distinct ones are hashed once."""
    encoded = texts if pa.types.is_dictionary(texts.type) else texts.dictionary_encode()
    indices, signs = hashed.tokens([f"{key}={text}" for text in encoded.dictionary.to_pylist()])
    which = encoded.indices.to_numpy(zero_copy_only=False)
    return indices[which], signs[which]


def _refuse_nulls(shard: Shard, batch: Batch, values: pa.Array, name: str, rows: np.ndarray) -> None:
    if values.null_count:
        row = int(rows[np.argmax(values.is_null().to_numpy(zero_copy_only=False))])
        msg = f"{shard.key}, row {batch.positions[row]}: null, or nothing of the column's kind, in column {name!r}"
        raise ShardError(msg, "a value in every row", "filter or fill the column, or skip bad shards")


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
