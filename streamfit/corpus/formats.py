"""Formats of files of rows: how a file is cut into parts, and how a part is decoded a bounded number of rows at a time.

Floor 4. The formats of text, which have no types of their own, are in `text_formats`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from streamfit.corpus.openings import open_file, size_of
from streamfit.corpus.parquet_rows import READ_BYTES, chunks_of, decoded_row_bytes
from streamfit.corpus.table import require
from streamfit.errors import CorpusError
from streamfit.frame import BLOCK_ROWS
from streamfit.plan import Shard


class Part(NamedTuple):
    """A part of a file.

    Parameters
    ----------
    start, stop : int
        In the format's own unit, as in `Shard`; a file that cannot be read is one part that starts at -1.
    low, high : int
        Bytes that hold it.
    n_rows : int
        Rows, or an estimate of them.
    """

    start: int
    stop: int
    low: int
    high: int
    n_rows: int


@dataclass(frozen=True)
class Format(ABC):
    """How files are read. Instances travel to workers."""

    @property
    @abstractmethod
    def endings(self) -> tuple[str, ...]:
        """Endings of names."""

    @abstractmethod
    def cut(self, uri: str) -> list[Part]:
        """Parts of a file that have rows. Damage is not reported here, but when the one part is read.

        Raises
        ------
        CorpusError
            If the file cannot be opened.
        """

    @abstractmethod
    def names_of(self, uri: str) -> list[str]:
        """Names of the columns.

        Raises
        ------
        CorpusError, ArrowException, OSError
            If they cannot be read.
        """

    def key(self, name: str, part: Part, n_parts: int) -> str:
        """What a part is called in messages and ledgers."""
        return name if n_parts == 1 else f"{name}#{part.low}-{part.high}"

    @abstractmethod
    def described(self, uri: str) -> str:
        """What makes the same bytes other rows: names and types of columns, where they are outside of the part."""

    @abstractmethod
    def batches(self, shard: Shard, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Decode a part.

        Raises
        ------
        ShardError
            If a column is missing.
        ArrowException, OSError
            If it is damaged.
        """

    @abstractmethod
    def decode_bytes(self, shard: Shard, n_rows: int, columns: Sequence[str]) -> int:
        """Most memory that decoding some columns of a shard takes, if it has so many rows."""


@dataclass(frozen=True)
class Parquet(Format):
    """Apache Parquet: a row group is a part."""

    @property
    def endings(self) -> tuple[str, ...]:
        return (".parquet", ".pq", ".parq")

    def cut(self, uri: str) -> list[Part]:
        size = size_of(uri)
        try:
            with open_file(uri) as file:
                metadata = pq.read_metadata(file)
        except (pa.ArrowException, OSError):
            return [Part(-1, 0, 0, size, 0)]
        groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
        parts = [Part(g, g + 1, *byte_range(group), group.num_rows) for g, group in enumerate(groups) if group.num_rows]
        whole = all(0 <= part.low < part.high <= size for part in parts)
        return parts if whole else [Part(-1, 0, 0, size, 0)]

    def key(self, name: str, part: Part, n_parts: int) -> str:
        return f"{name}#{part.start}" if part.start >= 0 else name

    def names_of(self, uri: str) -> list[str]:
        with open_file(uri) as file:
            return list(pq.read_schema(file).names)

    def described(self, uri: str) -> str:
        try:
            with open_file(uri) as file:
                schema = pq.read_schema(file)
        except (pa.ArrowException, OSError):
            return ""
        return "\n".join(f"{field.name}: {field.type}" for field in schema)

    def batches(self, shard: Shard, columns: list[str]) -> Iterator[pa.RecordBatch]:
        with open_file(shard.uri) as opened, pq.ParquetFile(opened, pre_buffer=True) as file:
            require(shard.key, file.schema_arrow.names, columns)
            group = file.metadata.row_group(shard.start)
            row_bytes = decoded_row_bytes(file.schema_arrow, group, columns)
            n_rows = max(1, READ_BYTES // 2 // row_bytes // BLOCK_ROWS) * BLOCK_ROWS
            yield from file.iter_batches(n_rows, row_groups=[shard.start], columns=columns, use_threads=False)

    def decode_bytes(self, shard: Shard, n_rows: int, columns: Sequence[str]) -> int:
        try:
            with open_file(shard.uri) as file:
                footer, schema = (found := pq.ParquetFile(file)).metadata, found.schema_arrow
                group = footer.row_group(shard.start)
        except (pa.ArrowException, OSError, IndexError, CorpusError):
            return 2 * shard.size  # reading will say what is wrong
        own = [name for name in columns if name in schema.names]
        chunks = chunks_of(group, own)
        pages = sum(chunk.total_compressed_size + chunk.total_uncompressed_size for chunk in chunks)
        return int(pages) + 3 * min(READ_BYTES, n_rows * decoded_row_bytes(schema, group, own))


def byte_range(group: pq.RowGroupMetaData) -> tuple[int, int]:
    """Bytes of a file that hold a row group: from its first page to the end of its last."""
    columns = [group.column(i) for i in range(group.num_columns)]
    starts = [
        c.data_page_offset if c.dictionary_page_offset is None else min(c.dictionary_page_offset, c.data_page_offset)
        for c in columns
    ]
    return min(starts), max(start + c.total_compressed_size for start, c in zip(starts, columns, strict=True))


@dataclass(frozen=True)
class ArrowFile(Format):
    """Arrow IPC, as a file (Feather version 2) or a stream, which is what Hugging Face `save_to_disk` writes.

    A file is one part. Its batches are decoded one at a time.
    """

    @property
    def endings(self) -> tuple[str, ...]:
        return (".arrow", ".feather", ".ipc", ".arrows")

    def cut(self, uri: str) -> list[Part]:
        size = size_of(uri)
        try:
            with open_file(uri) as file:
                n_rows = _n_rows(file)
        except (pa.ArrowException, OSError):
            return [Part(-1, 0, 0, size, 0)]
        return [Part(0, size, 0, size, n_rows)] if n_rows else []

    def names_of(self, uri: str) -> list[str]:
        with open_file(uri) as file:
            first = next(_arrow_batches(file, [], uri), None)
            return [] if first is None else list(first.schema.names)

    def described(self, uri: str) -> str:
        return ""  # the schema is in the bytes

    def batches(self, shard: Shard, columns: list[str]) -> Iterator[pa.RecordBatch]:
        with open_file(shard.uri) as opened:
            for batch in _arrow_batches(opened, columns, shard.key):
                for lo in range(0, batch.num_rows, _ARROW_ROWS):
                    yield batch.slice(lo, _ARROW_ROWS)

    def decode_bytes(self, shard: Shard, n_rows: int, columns: Sequence[str]) -> int:
        return 2 * shard.size  # a file may be one batch, and a batch is read with all of its columns


_ARROW_ROWS = 16 * BLOCK_ROWS
_MAGIC = b"ARROW1"


def _n_rows(file: object) -> int:
    return sum(batch.num_rows for batch in _arrow_batches(file, [], ""))


def _arrow_batches(file: object, columns: list[str], where: str) -> Iterator[pa.RecordBatch]:
    is_file = file.read(len(_MAGIC)) == _MAGIC  # type: ignore[attr-defined]
    file.seek(0)  # type: ignore[attr-defined]
    if is_file:
        reader = pa.ipc.open_file(file)
        require(where, reader.schema.names, columns)
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i).select(columns) if columns else reader.get_batch(i)
        return
    stream = pa.ipc.open_stream(file)
    require(where, stream.schema.names, columns)
    for batch in stream:
        yield batch.select(columns) if columns else batch
