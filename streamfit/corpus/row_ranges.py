"""Tables that no file cuts: a shard is a range of rows, and its content id is made of their values. Floor 4.

A range is read whole, checked against the content id that was planned, and then given on. Its number of rows follows
from the bytes of a row alone, so that the same rows are cut alike on every machine.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from streamfit.corpus.table import SHARD_ROWS, Table, require
from streamfit.errors import CorpusError, ShardChangedError, ShardError
from streamfit.frame import BLOCK_ROWS
from streamfit.identity import hasher
from streamfit.plan import Shard

_RANGE_BYTES = 2**26
"""Bytes of a range of rows, about."""


@dataclass(frozen=True)
class RowRanges(Table):
    """Rows that are cut into ranges.

    Parameters
    ----------
    shard_rows : int
        Rows of a range; 0 takes about 64 MiB.
    """

    shard_rows: int = field(default=0, kw_only=True)

    @abstractmethod
    def sets(self) -> list[tuple[str, str, int]]:
        """Name, address and rows of each set of columns."""

    @abstractmethod
    def names_of(self, uri: str) -> list[str]:
        """Columns of a set that make its rows what they are."""

    @abstractmethod
    def rows_of(self, uri: str, start: int, stop: int, columns: Sequence[str]) -> pa.RecordBatch:
        """Rows [start, stop) of some columns.

        Raises
        ------
        CorpusError
            If they cannot be read.
        """

    def parts(self) -> list[tuple[str, Shard]]:
        found = []
        for name, uri, n_rows in self.sets():
            step = self.shard_rows or self._step(uri, n_rows)
            for lo in range(0, n_rows, step):
                hi = min(lo + step, n_rows)
                batch = self.rows_of(uri, lo, hi, self.names_of(uri))
                shard = Shard(
                    key=name if step >= n_rows else f"{name}#{lo}-{hi}",
                    uri=uri,
                    start=lo,
                    stop=hi,
                    size=batch.nbytes,
                    planned_rows=hi - lo,
                    content_id=row_hash(batch),
                    source=self.label,
                )
                found.append((name, shard))
        if not found:
            msg = f"no rows in {', '.join(name for name, _, _ in self.sets()[:3]) or 'the corpus'}"
            raise CorpusError(msg, "at least one")
        return found

    def _step(self, uri: str, n_rows: int) -> int:
        few = self.rows_of(uri, 0, min(n_rows, 16), self.names_of(uri))
        row_bytes = sum(_row_bytes(column.type) for column in few.columns)
        return int(min(SHARD_ROWS, max(1, _RANGE_BYTES // row_bytes // BLOCK_ROWS) * BLOCK_ROWS))

    def batches(self, shard: Shard, columns: list[str]) -> Iterator[pa.RecordBatch]:
        try:
            names = self.names_of(shard.uri)
            require(shard.key, names, columns)
            batch = self.rows_of(shard.uri, shard.start, shard.stop, names)
        except ShardError:
            raise
        except CorpusError as error:
            msg = f"{shard.key}: {error.got}"
            raise ShardChangedError(msg, "the rows that were found when the run began", "run again") from error
        if row_hash(batch) != shard.bytes_id:
            msg = f"{shard.key}: content changed while the corpus was read"
            raise ShardChangedError(msg, f"content {shard.bytes_id[:12]}", "run again once nobody writes to it")
        chosen = batch.select(columns)
        for lo in range(0, len(chosen), BLOCK_ROWS):
            yield chosen.slice(lo, BLOCK_ROWS)

    def decode_bytes(self, shards: Sequence[Shard], row_bytes: int) -> int:
        return 2 * max((shard.size for shard in shards), default=0)


def _row_bytes(kind: pa.DataType) -> int:
    """Bytes of a value, by its type alone."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _row_bytes(kind.value_type)
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:
        return 32  # of any length


def batch_of(columns: dict[str, np.ndarray]) -> pa.RecordBatch:
    """NumPy columns as Arrow: those with more than one dimension become fixed-size lists, without a copy.

    Parameters
    ----------
    columns : dict of str to array of shape (n_rows, ...)

    Raises
    ------
    CorpusError
        If an array's type has no place in Arrow.
    """
    made = {}
    for name, array in columns.items():
        values = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
        try:
            if values.ndim <= 1:
                made[name] = _nullable(values)
            else:
                flat = _nullable(values.reshape(-1))
                made[name] = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))
        except pa.ArrowException as error:
            msg = f"column {name!r} of type {array.dtype} and shape {array.shape}"
            raise CorpusError(msg, "numbers, booleans, dates or strings, rows first") from error
    return pa.RecordBatch.from_pydict(made)


def _nullable(values: np.ndarray) -> pa.Array:
    """One dimension; what a mask hides is null."""
    if isinstance(values, np.ma.MaskedArray):
        return pa.array(np.ascontiguousarray(values.data), mask=np.ascontiguousarray(np.ma.getmaskarray(values)))
    return pa.array(np.ascontiguousarray(values))


def row_hash(batch: pa.RecordBatch) -> str:
    """BLAKE3 of the names, types and values of rows, wherever and however they lie in memory.

    Parameters
    ----------
    batch : RecordBatch

    Returns
    -------
    str
        Hexadecimal. What lies under a null does not count, nor does the order of columns, nor whether strings are
        views or encoded by a dictionary.

    Examples
    --------
    >>> one = pa.RecordBatch.from_pydict({"a": [1.0, None], "b": ["x", "y"]})
    >>> two = pa.RecordBatch.from_pydict({"b": pa.array(["x", "y"]).dictionary_encode(), "a": [1.0, None]})
    >>> row_hash(one) == row_hash(two)
    True
    >>> row_hash(one) == row_hash(one.slice(0, 1))
    False
    """
    digest = hasher()
    for name in sorted(batch.schema.names):
        column = plain(batch.column(batch.schema.get_field_index(name)))
        digest.update(f"{name}:{column.type}:{len(column)}\n".encode())
        _update(digest, column)
    return digest.hexdigest()


def has_views(kind: pa.DataType) -> bool:
    """Whether a column's values are views, or a list or dictionary of them."""
    inner = getattr(kind, "value_type", kind)
    return any(each in (pa.string_view(), pa.binary_view()) for each in (kind, inner))


def without_views(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Columns of views, such as polars writes, as others are: Arrow takes none of them by index."""
    if not any(has_views(kind) for kind in batch.schema.types):
        return batch
    return pa.RecordBatch.from_pydict({name: plain(batch.column(name)) for name in batch.schema.names})


def plain(column: pa.Array) -> pa.Array:
    """A column in the one way that its values are kept in: no dictionary, no views, short offsets."""
    if pa.types.is_dictionary(column.type):  # whose values may be views, of which Arrow takes none by index
        values = pa.DictionaryArray.from_arrays(column.indices, plain(column.dictionary))
        column = values.dictionary_decode()
    if pa.types.is_large_string(column.type) or column.type == pa.string_view():
        return column.cast(pa.string())
    if pa.types.is_large_binary(column.type) or column.type == pa.binary_view():
        return column.cast(pa.binary())
    if pa.types.is_large_list(column.type):
        column = column.cast(pa.list_(column.type.value_type))
    if pa.types.is_list(column.type):
        kind = plain(pa.array([], column.type.value_type)).type
        return column if kind == column.type.value_type else column.cast(pa.list_(kind))
    return column


def _update(digest: Any, column: pa.Array) -> None:
    column = plain(column)
    if column.null_count:
        digest.update(np.packbits(column.is_valid().to_numpy(zero_copy_only=False)).tobytes())
        column = column.drop_null()
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        _update(digest, column.flatten())
    elif pa.types.is_list(kind):
        digest.update(np.diff(column.offsets.to_numpy()).tobytes())
        _update(digest, column.flatten())
    elif pa.types.is_struct(kind):
        for part in column.flatten():
            _update(digest, part)
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        if not len(column):
            return
        _, offsets, data = column.buffers()
        at = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
        digest.update(np.diff(at).tobytes())
        if data is not None:
            digest.update(memoryview(data)[int(at[0]) : int(at[-1])])
    elif pa.types.is_null(kind):
        return
    elif pa.types.is_boolean(kind):
        digest.update(np.packbits(column.to_numpy(zero_copy_only=False)).tobytes())
    else:  # of fixed width
        width = kind.bit_width // 8
        start = column.offset * width
        digest.update(memoryview(column.buffers()[1])[start : start + len(column) * width] if len(column) else b"")
