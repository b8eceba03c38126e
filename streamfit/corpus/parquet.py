"""Tables: Parquet files with feature columns and target columns; a row group is a shard. Floor 4."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamfit.corpus.base import Files, Rows, Source, content_ids, hash_range
from streamfit.errors import ShardChangedError, ShardError
from streamfit.frame import BLOCK_ROWS
from streamfit.plan import Shard


@dataclass(frozen=True)
class ParquetTable(Source):
    """Rows of numbers from Parquet.

    Parameters
    ----------
    files : Files
    features : tuple of str
        Feature columns, in order: numeric, boolean, or fixed-size lists of numbers (one feature an element).
    target : tuple of str
        Target columns, likewise; with `n_classes` a single integer column of class ids.
    weight : str, optional
        Column of row weights.
    n_classes : int, optional
    label : str
        Source label of its shards.
    """

    files: Files
    features: tuple[str, ...]
    target: tuple[str, ...]
    weight: str | None = None
    n_classes: int | None = None
    label: str = "table"

    @property
    def columns(self) -> list[str]:
        """Columns that are read."""
        return [*self.features, *self.target, *([self.weight] if self.weight else [])]

    def shards(self) -> list[Shard]:
        found = [(name, path, *group) for name, path in self.files.find() for group in self._groups(name, path)]
        hashes = content_ids([(path, start, stop) for _, path, _, _, start, stop in found])
        schemas = {path: _schema_of(path) for path in {path for _, path, *_ in found}}
        ids = [_identity(schemas[path], h) for (_, path, *_), h in zip(found, hashes, strict=True)]
        return [
            Shard(
                key=f"{name}#{group}" if group >= 0 else name,
                uri=str(path),
                start=group,
                stop=group + 1,
                size=stop - start,
                planned_rows=rows,
                content_id=content_id,
                source=self.label,
            )
            for (name, path, group, rows, start, stop), content_id in zip(found, ids, strict=True)
        ]

    def _groups(self, name: str, path: Path) -> list[tuple[int, int, int, int]]:
        """Number, rows, and byte range of each row group; a file without a footer is one shard, to be refused."""
        try:
            metadata = pq.read_metadata(path)
        except (pa.ArrowException, OSError):
            return [(-1, 0, 0, path.stat().st_size)]
        size = path.stat().st_size
        spans = [(g, metadata.row_group(g)) for g in range(metadata.num_row_groups)]
        groups = [(g, span.num_rows, *_byte_range(span)) for g, span in spans if span.num_rows]
        if any(not 0 <= start < stop <= size for _, _, start, stop in groups):
            return [(-1, 0, 0, size)]
        return groups

    def read(self, shard: Shard) -> Iterator[Rows]:
        try:
            with pq.ParquetFile(shard.uri) as file:
                self._check_schema(shard, file.schema_arrow)
                self._check_unchanged(shard, file)
                first = 0
                batches = file.iter_batches(BLOCK_ROWS, row_groups=[shard.start], columns=self.columns)
                for batch in _reblocked(batches):
                    yield self._rows(shard, batch, first)
                    first += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            msg = f"{shard.key}: {_first_line(error)}"
            raise ShardError(msg, "a whole Parquet file", "write the file again, or skip bad shards") from error

    def _check_schema(self, shard: Shard, schema: pa.Schema) -> None:
        missing = [c for c in self.columns if c not in schema.names]
        if missing:
            msg = f"{shard.key}: no column {', '.join(map(repr, missing))} among {', '.join(schema.names)}"
            raise ShardError(msg, "every configured column", "correct `features` and `target` in the config")
        for column in self.columns:
            kind = schema.field(column).type
            element = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
            is_class = self.n_classes is not None and column in self.target
            if is_class and not pa.types.is_integer(kind):
                msg = f"{shard.key}: column {column!r} has type {kind}"
                raise ShardError(msg, "integer class ids")
            if not (pa.types.is_integer(element) or pa.types.is_floating(element) or pa.types.is_boolean(element)):
                msg = f"{shard.key}: column {column!r} has type {kind}"
                raise ShardError(msg, "numbers, booleans or fixed-size lists of numbers")

    @staticmethod
    def _check_unchanged(shard: Shard, file: pq.ParquetFile) -> None:
        if 0 <= shard.start < file.metadata.num_row_groups:
            span = _byte_range(file.metadata.row_group(shard.start))
            if _identity(_describe(file.schema_arrow), hash_range(Path(shard.uri), *span)) == shard.content_id:
                return
        msg = f"{shard.key}: content changed while the corpus was read"
        raise ShardChangedError(msg, f"content {shard.content_id[:12]}", "run again once nobody writes to it")

    def _rows(self, shard: Shard, batch: pa.RecordBatch, first: int) -> Rows:
        x = _matrix(shard, batch, self.features, first)
        if self.n_classes is None:
            y = _matrix(shard, batch, self.target, first)
        else:
            y = _column(shard, batch, self.target[0], first)[:, 0].astype(np.int64)
            self._check_classes(shard, y, first)
        weights = None
        if self.weight is not None:
            weights = _matrix(shard, batch, (self.weight,), first)[:, 0]
            if (weights < 0).any():
                msg = f"{shard.key}, row {first + int(np.argmax(weights < 0))}: negative weight"
                raise ShardError(msg, f"{self.weight!r} >= 0")
        return Rows(x, y, weights)

    def _check_classes(self, shard: Shard, y: np.ndarray, first: int) -> None:
        bad = (y < 0) | (y >= (self.n_classes or 0))
        if bad.any():
            row = int(np.argmax(bad))
            msg = f"{shard.key}, row {first + row}: class id {y[row]}"
            raise ShardError(msg, f"ids in [0, {self.n_classes})", "set `n_classes` in the config")


def _schema_of(path: Path) -> str:
    try:
        return _describe(pq.read_schema(path))
    except (pa.ArrowException, OSError):
        return ""  # no footer: one shard that reading will refuse


def _describe(schema: pa.Schema) -> str:
    return "\n".join(f"{field.name}: {field.type}" for field in schema)


def _identity(schema: str, data: str) -> str:
    # Pages hold values alone: the same bytes under other column names are other rows.
    return hashlib.sha256(f"{schema}\n{data}".encode()).hexdigest()


def _byte_range(span: Any) -> tuple[int, int]:
    columns = [span.column(i) for i in range(span.num_columns)]
    starts = [
        c.data_page_offset if c.dictionary_page_offset is None else min(c.dictionary_page_offset, c.data_page_offset)
        for c in columns
    ]
    ends = [start + c.total_compressed_size for start, c in zip(starts, columns, strict=True)]
    return min(starts), max(ends)


def _reblocked(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches of exactly `BLOCK_ROWS` rows but for the last: where a block ends must depend on the shard alone."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        while rows >= BLOCK_ROWS:
            table = pa.Table.from_batches(held).combine_chunks()
            yield table.slice(0, BLOCK_ROWS).to_batches()[0]
            held = table.slice(BLOCK_ROWS).to_batches()
            rows -= BLOCK_ROWS
    if rows:
        yield pa.Table.from_batches(held).combine_chunks().to_batches()[0]


def _column(shard: Shard, batch: pa.RecordBatch, name: str, first: int) -> np.ndarray:
    column = batch.column(batch.schema.get_field_index(name))
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        msg = f"{shard.key}, row {first + row}: null in column {name!r}"
        raise ShardError(msg, "a number in every row", "filter or fill the column, or skip bad shards")
    if pa.types.is_fixed_size_list(column.type):
        flat = column.flatten()
        if flat.null_count:
            row = int(np.argmax(flat.is_null().to_numpy(zero_copy_only=False))) // column.type.list_size
            msg = f"{shard.key}, row {first + row}: null inside the list in column {name!r}"
            raise ShardError(msg, "a number in every element")
        return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(column), -1)
    return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(len(column), 1)


def _matrix(shard: Shard, batch: pa.RecordBatch, names: tuple[str, ...], first: int) -> np.ndarray:
    blocks = [_column(shard, batch, name, first) for name in names]
    kind = np.float32 if all(b.dtype in (np.float16, np.float32) for b in blocks) else np.float64
    for name, block in zip(names, blocks, strict=True):
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            msg = f"{shard.key}, row {first + row}: {block[row][~np.isfinite(block[row])][0]} in column {name!r}"
            raise ShardError(msg, "finite numbers", "filter or fill the column, or skip bad shards")
    return np.concatenate([b.astype(kind, copy=False) for b in blocks], axis=1)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
