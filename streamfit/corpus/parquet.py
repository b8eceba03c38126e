"""Tables: Parquet files with feature columns and target columns; a row group is a shard. Floor 4."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamfit.corpus.base import Files, Rows, Source, content_ids, file_stamp, hash_range, stamp_of
from streamfit.corpus.hashed_rows import check_hashable, hashed_rows
from streamfit.corpus.labels import NO_LABELS, Labels, combinations
from streamfit.corpus.parquet_rows import READ_BYTES, batches_of, chunks_of, class_ids, matrix, weights_of
from streamfit.corpus.values import Select, column_of, is_plain, kept, matching, selected, strings_of
from streamfit.corpus.wide import held_together, wide_bytes, wide_rows, wide_type
from streamfit.errors import CorpusError, ShardChangedError, ShardError
from streamfit.features import Hashed
from streamfit.identity import rows_id
from streamfit.plan import Shard, told_apart


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
    labels : Labels
        Other labels of its shards, and where they come from.
    hashed : Hashed, optional
        Makes sparse rows of the feature columns, which then may hold text, and lists of text, too.
    """

    files: Files
    features: tuple[str, ...]
    target: tuple[str, ...]
    weight: str | None = None
    n_classes: int | None = None
    label: str = "table"
    labels: Labels = NO_LABELS
    hashed: Hashed | None = None

    @property
    def columns(self) -> list[str]:
        """Columns that are read."""
        features = self.features if self.hashed is None else [column_of(key)[0] for key in self.features]
        return [*features, *self.target, *([self.weight] if self.weight else [])]

    def shards(self) -> list[Shard]:
        laid = [(name, path, _layout(path)) for name, path in self.files.of_rows()]
        found = [(name, path, *group) for name, path, layout in laid for group in layout.groups]
        stamps = {path: stamp_of(path) for _, path, _ in laid}  # before the bytes are hashed
        hashes = content_ids([(path, start, stop) for _, path, _, _, start, stop in found])
        schemas = {path: layout.schema for _, path, layout in laid}
        ids = [rows_id(schemas[path], h) for (_, path, *_), h in zip(found, hashes, strict=True)]
        parts = [
            (
                name,
                Shard(
                    key=f"{name}#{group}" if group >= 0 else name,
                    uri=str(path),
                    start=group,
                    stop=group + 1,
                    size=stop - start,
                    planned_rows=rows,
                    content_id=content_id,
                    source=self.label,
                    stamp=stamps[path],
                ),
            )
            for (name, path, group, rows, start, stop), content_id in zip(found, ids, strict=True)
        ]
        return told_apart(s for name, group in groupby(parts, lambda p: p[0]) for s in self._labelled(name, group))

    def _labelled(self, name: str, parts: Iterator[tuple[str, Shard]]) -> list[Shard]:
        """The shards of one file with their labels."""
        whole = [shard for _, shard in parts]
        if not self.labels.keys or whole[0].start < 0:  # a file that cannot be read is refused whole
            return [self.labels.label(shard, name) for shard in whole]
        found = _combinations(self.labels.keys, *whole)
        return [s for shard, sets in zip(whole, found, strict=True) for s in self.labels.cut(shard, name, sets)]

    @property
    def is_weighted(self) -> bool:
        return self.weight is not None

    @property
    def row_item(self) -> int:
        try:
            schema = pq.read_schema(self.files.of_rows()[0][1])
            kinds = [schema.field(name).type for name in self.features]
        except (pa.ArrowException, OSError, KeyError, CorpusError):
            return 8  # reading will say what is wrong
        elements = {kind.value_type if pa.types.is_fixed_size_list(kind) else kind for kind in kinds}
        return 4 if elements <= {pa.float16(), pa.float32()} else 8

    def decode_bytes(self, shards: Sequence[Shard], row_bytes: int) -> int:
        # Arrow holds the pages of a row group, as they are and decompressed, and of each column what is decoded, twice,
        # and the levels that say where nulls are: all until the last column is done.
        if not shards:
            return 0
        n_rows = max(shard.planned_rows for shard in shards)
        decoded = n_rows * row_bytes
        whole = not any(shard.select or shard.without for shard in shards)
        if whole and decoded <= READ_BYTES and self._wide_type(shards[0]) is not None:
            return wide_bytes(n_rows, row_bytes, len(shards))
        decoded = 3 * decoded if decoded <= READ_BYTES else 2 * READ_BYTES  # parts are half as large, see `batches_of`
        return self._page_bytes(max(shards, key=lambda shard: shard.size)) + decoded

    def blocks_held(self, shard: Shard) -> int:
        kind = self._wide_type(shard)
        return 0 if kind is None else held_together(shard, shard.planned_rows, len(self.features) * kind.itemsize)

    def _wide_type(self, shard: Shard) -> np.dtype | None:
        """Type of the numbers, if the shard is of a wide table of plain floats; else None."""
        footer = _footer(Path(shard.uri)) if self.hashed is None else None
        return None if footer is None else wide_type(footer.schema.to_arrow_schema(), self.features)

    def _page_bytes(self, shard: Shard) -> int:
        """Bytes of the columns that are read of a row group, as they are and decompressed."""
        footer = _footer(Path(shard.uri))
        if footer is None or not 0 <= shard.start < footer.num_row_groups:
            return 2 * shard.size  # reading will say what is wrong
        read = {*self.columns, *(column_of(key)[0] for key, _ in shard.select)}
        chunks = chunks_of(footer.row_group(shard.start), sorted(read))
        return sum(chunk.total_compressed_size + chunk.total_uncompressed_size for chunk in chunks)

    def read(self, shard: Shard) -> Iterator[Rows]:
        with _opened(shard) as file:
            self._check_schema(shard, file.schema_arrow)
            _check_unchanged(shard, file)
            whole = wide_rows(shard, file, self.features) if self.hashed is None else None
            first = 0
            for batch in batches_of(shard, file, self.columns if whole is None else self.columns[len(self.features) :]):
                if whole is not None:
                    x = whole[first : first + len(batch.positions)]
                    first += len(x)
                elif self.hashed is None:
                    x = matrix(shard, batch, self.features)
                else:
                    x = hashed_rows(shard, batch, self.hashed)
                if self.n_classes is None:
                    y = matrix(shard, batch, self.target)
                else:
                    y = class_ids(shard, batch, self.target[0], self.n_classes)
                yield Rows(x, y, None if self.weight is None else weights_of(shard, batch, self.weight))

    def positions(self, shard: Shard, column: str, values: frozenset[str]) -> tuple[int, ...]:
        with _opened(shard) as file:
            _check_unchanged(shard, file)
            _require(shard, file.schema_arrow, [column], "name a column of the table")
            kind = file.schema_arrow.field(column).type
            if not is_plain(kind):
                msg = f"{shard.key}: column {column!r} has type {kind}"
                raise ShardError(msg, "numbers, strings or dates")
            table = file.read_row_group(shard.start, list({column, *(column_of(key)[0] for key, _ in shard.select)}))
            mask = kept(table.num_rows, shard.without) & matching(table.column(column), values)
            mask &= selected(table.num_rows, shard.select, table.column)
        return tuple(np.flatnonzero(mask).tolist())

    def _check_schema(self, shard: Shard, schema: pa.Schema) -> None:
        _require(shard, schema, self.columns, "correct `features` and `target` in the config")
        if self.hashed is not None:
            for key in self.features:
                check_hashable(shard, schema.field(column_of(key)[0]).type, key, self.hashed)
        kinds = dict(zip(schema.names, schema.types, strict=True))
        # Wide tables have few types: a column of each is looked at.
        first = {kinds[column]: column for column in reversed(self.features)} if self.hashed is None else {}
        for column in (*first.values(), *self.columns[len(self.features) :]):
            kind = kinds[column]
            element = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
            is_class = self.n_classes is not None and column in self.target
            if is_class and not pa.types.is_integer(kind):
                msg = f"{shard.key}: column {column!r} has type {kind}"
                raise ShardError(msg, "integer class ids")
            plain = pa.types.is_integer(element) or pa.types.is_floating(element) or pa.types.is_boolean(element)
            if not (plain or pa.types.is_decimal(kind)):
                msg = f"{shard.key}: column {column!r} has type {kind}"
                hint = "name a column of names in `categories`, or hash it"
                raise ShardError(msg, "numbers, booleans or fixed-size lists of numbers", hint)


@contextmanager
def _opened(shard: Shard) -> Iterator[pq.ParquetFile]:
    try:
        # Parts of columns that lie side by side are few bytes to read ahead, and files here are local.
        opened = pq.ParquetFile(shard.uri, metadata=_footer(Path(shard.uri)), pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        if shard.start < 0:  # it could not be read when it was listed, either
            msg = f"{shard.key}: {_first_line(error)}"
            raise ShardError(msg, "a whole Parquet file", "write the file again, or skip bad shards") from error
        msg = f"{shard.key}: {_first_line(error)}"
        raise ShardChangedError(msg, "the file that was found when the corpus was listed", "run again") from error
    try:
        with opened as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        msg = f"{shard.key}: {_first_line(error)}"
        raise ShardError(msg, "a whole Parquet file", "write the file again, or skip bad shards") from error


def _require(shard: Shard, schema: pa.Schema, columns: list[str], remedy: str) -> None:
    there = set(schema.names)  # `names` makes a list each time
    missing = [c for c in columns if c not in there]
    if missing:
        msg = f"{shard.key}: no column {', '.join(map(repr, missing))} among {', '.join(schema.names)}"
        raise ShardError(msg, "every configured column", remedy)


def _check_unchanged(shard: Shard, file: pq.ParquetFile) -> None:
    if 0 <= shard.start < file.metadata.num_row_groups:
        if shard.stamp and Path(shard.uri).stat().st_ctime_ns == shard.stamp:
            return  # nobody has touched the file since its content was hashed
        span = _byte_range(file.metadata.row_group(shard.start))
        if rows_id(_describe(file.schema_arrow), hash_range(Path(shard.uri), *span)) == shard.bytes_id:
            _require(shard, file.schema_arrow, [column_of(key)[0] for key, _ in shard.select], "list the corpus again")
            return
    msg = f"{shard.key}: content changed while the corpus was read"
    raise ShardChangedError(msg, f"content {shard.bytes_id[:12]}", "run again once nobody writes to it")


@cache
def _combinations(keys: tuple[str, ...], *parts: Shard) -> tuple[tuple[tuple[Select, int], ...], ...]:
    """Sets of label values in each row group of a file; content ids tell when they must be read again."""
    found = []
    labelling = [(key, *column_of(key)) for key in keys]
    with _opened(parts[0]) as file:
        names = file.schema_arrow.names
        for _, column, _ in labelling:
            if column not in names:
                msg = f"{parts[0].uri}: no label column {column!r} among {', '.join(names)}"
                raise CorpusError(msg, "every column of [corpus.labels]")
        for part in parts:
            table = file.read_row_group(part.start, list({column for _, column, _ in labelling}))
            columns = {key: strings_of(table.column(column), period) for key, column, period in labelling}
            found.append(combinations(part.key, columns))
    return tuple(found)


class _Layout(NamedTuple):
    """What listing needs of a file: small, where a footer of thousands of columns takes megabytes.

    Parameters
    ----------
    schema : str
        Names and types; empty for a file without a footer.
    groups : tuple of (number, rows, start, stop)
        Row groups that have rows, and their byte ranges.
    """

    schema: str
    groups: tuple[tuple[int, int, int, int], ...]


def _layout(path: Path) -> _Layout:
    """Row groups of a file; one without a footer is one shard, to be refused."""
    stamp = file_stamp(path)
    try:
        return _layout_once(path, *stamp)
    except (pa.ArrowException, OSError):
        return _Layout("", ((-1, 0, 0, stamp[0]),))


@cache
def _layout_once(path: Path, size: int, modified: int, changed: int) -> _Layout:
    footer = _footer_once(path, size, modified, changed)
    spans = [(g, footer.row_group(g)) for g in range(footer.num_row_groups)]
    groups = tuple((g, span.num_rows, *_byte_range(span)) for g, span in spans if span.num_rows)
    schema = intern(_describe(footer.schema.to_arrow_schema()))  # the same in all files of a corpus
    sound = all(0 <= start < stop <= size for _, _, start, stop in groups)
    return _Layout(schema, groups if sound else ((-1, 0, 0, size),))


def _footer(path: Path) -> pq.FileMetaData | None:
    try:
        return _footer_once(path, *file_stamp(path))
    except (pa.ArrowException, OSError, CorpusError):
        return None  # one shard that reading will refuse


@lru_cache(2)
def _footer_once(path: Path, size: int, modified: int, changed: int) -> pq.FileMetaData:
    # Row groups of a file are read one after another; its footer may take longer to decode than some of their columns.
    return pq.read_metadata(path)


def _describe(schema: pa.Schema) -> str:
    return "\n".join(f"{field.name}: {field.type}" for field in schema)


def _byte_range(span: Any) -> tuple[int, int]:
    columns = [span.column(i) for i in range(span.num_columns)]
    starts = [
        c.data_page_offset if c.dictionary_page_offset is None else min(c.dictionary_page_offset, c.data_page_offset)
        for c in columns
    ]
    ends = [start + c.total_compressed_size for start, c in zip(starts, columns, strict=True)]
    return min(starts), max(ends)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
