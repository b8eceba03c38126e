"""Documents: text files, a document a file, and JSON lines, a document a line; plain or compressed. Floor 4."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from streamfit.corpus.base import Files, Split, content_ids, file_stamp, read_unchanged, split_of
from streamfit.corpus.labels import NO_LABELS, Labels, combinations, told
from streamfit.corpus.values import Select, json_value
from streamfit.errors import ConfigError, ShardError
from streamfit.plan import Shard

BYTES_PER_TOKEN = 3
"""Estimate for planning, before a tokenizer has seen the text."""


class Placed(NamedTuple):
    """A document and where it is found.

    Parameters
    ----------
    file : str
        Relative path; of a member of an archive the archive's, and the member's.
    number : int, optional
        Number in the file, from 0: of the line of JSON lines, of the row of a table. None where a file is a document.
    text : str
    """

    file: str
    number: int | None
    text: str


@dataclass(frozen=True)
class Documents(ABC):
    """A corpus of documents.

    Parameters
    ----------
    files : Files
    label : str
        Source label of its shards.
    leave_out : frozenset of str
        Content ids of what is not listed, such as the files of another part.
    """

    files: Files
    label: str = "text"
    leave_out: frozenset[str] = field(default=frozenset(), kw_only=True)

    def shards(self) -> list[Shard]:
        """Shards that have any documents, in the order of their keys."""
        parts = [(name, part) for name, part in self.wholes() if part.content_id not in self.leave_out]
        found = [shard for name, part in parts for shard in self.labelled(part, name)]
        return [shard for shard in found if shard.content_id not in self.leave_out]

    @abstractmethod
    def wholes(self) -> list[tuple[str, Shard]]:
        """Relative paths of files and their parts, whole and without labels, those that are left out among them."""

    @abstractmethod
    def labelled(self, whole: Shard, name: str) -> list[Shard]:
        """A part of the file of this relative path with its labels: several shards, where its documents differ."""

    def documents(self, shard: Shard) -> list[str]:
        """Texts of a shard: those it selects, without those it leaves out.

        Raises
        ------
        ShardError
            If they cannot be decoded.
        """
        return [text for _, text in self.numbered(shard)]

    @abstractmethod
    def numbered(self, shard: Shard) -> Iterator[tuple[int, str]]:
        """Numbers and texts of the documents: lines of JSON lines, and rows of tables, from the start of the part."""

    def placed(self, shard: Shard) -> Iterator[Placed]:
        """Documents of a shard with their places in the file, wherever it is cut and whatever is left out.

        Raises
        ------
        ShardError
            If they cannot be decoded.
        """
        before, name = self.before(shard), self.file_of(shard)
        for number, text in self.numbered(shard):
            yield Placed(name, None if before is None else before + number, text)

    def file_of(self, shard: Shard) -> str:
        """Relative path of the file that a shard is a part of."""
        return shard.key.removesuffix(told(shard.select)).removesuffix(f"#{shard.start}-{shard.stop}")

    def before(self, shard: Shard) -> int | None:
        """Lines or rows of the file before the shard's part; None where documents have no numbers."""
        return None

    @abstractmethod
    def positions(self, shard: Shard, column: str, values: frozenset[str]) -> tuple[int, ...]:
        """Positions of the shard's documents whose value in a column is one of some; see `Source.positions`.

        Documents count from the start of the part, those of all splits.
        """


@dataclass(frozen=True)
class CutFiles(Documents):
    """Documents of local files that are cut into ranges of bytes."""

    @abstractmethod
    def parts(self, path: Path) -> list[tuple[int, int]]:
        """Byte ranges that a file is cut into."""

    def wholes(self) -> list[tuple[str, Shard]]:
        found = [(name, path, *part) for name, path in self.files.find() for part in self.parts(path)]
        ids = content_ids([(path, start, stop) for _, path, start, stop in found])
        parts = (
            Shard(
                key=name if start == 0 and stop == path.stat().st_size else f"{name}#{start}-{stop}",
                uri=str(path),
                start=start,
                stop=stop,
                size=stop - start,
                planned_rows=max(1, (stop - start) // BYTES_PER_TOKEN),
                content_id=content_id,
                source=self.label,
            )
            for (name, path, start, stop), content_id in zip(found, ids, strict=True)
        )
        return [(name, part) for part, (name, *_) in zip(parts, found, strict=True)]


@dataclass(frozen=True)
class TextFiles(CutFiles):
    """Each file is one document and one shard; a name that ends in .gz, .bz2 or .zst says how it is compressed.

    Parameters
    ----------
    encoding : str
    labels : Labels
        By path and by hand alone.
    """

    encoding: str = "utf-8"
    labels: Labels = NO_LABELS

    def __post_init__(self) -> None:
        try:
            "".encode(self.encoding)
        except LookupError as error:
            msg = f"encoding {self.encoding!r}"
            raise ConfigError(msg, "a name that Python knows, such as 'utf-8'") from error
        if self.labels.keys:
            msg = "labels by columns or time for text files, which have only paths"
            raise ConfigError(msg, "labels by path or fixed ones")

    def parts(self, path: Path) -> list[tuple[int, int]]:
        size = path.stat().st_size
        return [(0, size)] if size else []

    def numbered(self, shard: Shard) -> Iterator[tuple[int, str]]:
        data = self._data(shard)
        if not shard.without:
            yield 0, decode(shard, data, self.encoding)

    def positions(self, shard: Shard, column: str, values: frozenset[str]) -> tuple[int, ...]:
        self._data(shard)
        if column not in _FILE_COLUMNS:
            msg = f"{shard.key}: no column {column!r} in a text file"
            raise ShardError(msg, " or ".join(map(repr, _FILE_COLUMNS)), "name a file by its path")
        return (0,) if not shard.without and values & {shard.key, shard.uri} else ()

    def labelled(self, whole: Shard, name: str) -> list[Shard]:
        return [self.labels.label(whole, name)]

    @staticmethod
    def _data(shard: Shard) -> bytes:
        if shard.select:
            msg = f"{shard.key}: a selection by {', '.join(key for key, _ in shard.select)} from a text file"
            raise ShardError(msg, "a whole file", "read it the way it was counted")
        return decompressed(shard, read_unchanged(shard))


@dataclass(frozen=True)
class JsonLines(CutFiles):
    """Each line is one document: a JSON object with its text under `field`.

    Files are cut into shards of about `shard_bytes` at line ends; compressed ones (.gz, .bz2, .zst) are one shard each.

    Parameters
    ----------
    field : str
    split : {'train', 'validation', 'test'}, optional
        Keep the documents of one part: a hash of the text decides, so that equal texts are never on both sides.
    fractions : tuple of float
        Shares of train, validation and test.
    shard_bytes : int
    labels : Labels
        Its columns are fields of the lines.
    """

    field: str = "text"
    split: Split | None = None
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    shard_bytes: int = 2**20
    labels: Labels = NO_LABELS

    def parts(self, path: Path) -> list[tuple[int, int]]:
        size = path.stat().st_size
        if is_compressed(str(path)):
            return [(0, size)] if size else []
        cuts = [0]
        with path.open("rb") as file:
            while cuts[-1] < size:
                file.seek(min(cuts[-1] + self.shard_bytes, size))
                file.readline()
                cuts.append(file.tell())
        return list(itertools.pairwise(cuts))

    def numbered(self, shard: Shard) -> Iterator[tuple[int, str]]:
        for line, record in _selected(shard):
            text = self._text(shard, line, record)
            if self.split in (None, split_of(text, self.fractions)):
                yield line.number - 1, text

    def before(self, shard: Shard) -> int | None:
        return sum(
            _n_lines(shard.uri, *part, *file_stamp(Path(shard.uri)))
            for part in self.parts(Path(shard.uri))
            if part[1] <= shard.start
        )

    def positions(self, shard: Shard, column: str, values: frozenset[str]) -> tuple[int, ...]:
        """Positions of the documents with one of some values in a field; a line without the field has none of them."""
        return tuple(line.position for line, record in _selected(shard) if json_value(record, column) in values)

    def labelled(self, whole: Shard, name: str) -> list[Shard]:
        if self.labels.keys:
            try:
                return self.labels.cut(whole, name, _combinations(whole, self.labels.keys))
            except ShardError:
                pass  # a part that cannot be read is listed whole, and refused or skipped when it is read
        return [self.labels.label(whole, name)]

    def _text(self, shard: Shard, line: _Line, record: dict[str, Any]) -> str:
        text = record.get(self.field)
        if not isinstance(text, str):
            value = f"{text!r:.40} under {self.field!r}" if self.field in record else f"fields {sorted(record)}"
            msg = f"{shard.key}, line {line.number} of the shard: {value}"
            raise ShardError(msg, f"a string under {self.field!r}", "set `field` in the config's [corpus]")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which no tokenizer takes
            msg = f"{shard.key}, line {line.number} of the shard: {text[error.start]!r} is half a surrogate pair"
            raise ShardError(msg, "Unicode text", "leave the line out, or skip bad shards") from error
        return text


_FILE_COLUMNS = ("doc_id", "path")


class _Line(NamedTuple):
    """A line that is not blank: its document's position, its number and offset in the part, and its bytes."""

    position: int
    number: int
    offset: int
    data: bytes


def _lines(data: bytes) -> Iterator[_Line]:
    position = offset = 0
    for number, line in enumerate(data.split(b"\n"), start=1):
        # A line that is not UTF-8 is not blank: it has a position, by which it can be left out.
        if line.startswith(b"{") or line.decode("utf-8", "replace").strip():
            yield _Line(position, number, offset, line)
            position += 1
        offset += len(line) + 1


def _selected(shard: Shard) -> Iterator[tuple[_Line, dict[str, Any]]]:
    """Lines of a shard and their records: nothing is asked of a line that is left out."""
    without = frozenset(shard.without)
    for line in _lines(decompressed(shard, read_unchanged(shard))):
        if line.position not in without:
            record = _record(shard, line)
            if all(json_value(record, key) == value for key, value in shard.select):
                yield line, record


def _record(shard: Shard, line: _Line) -> dict[str, Any]:
    text = decode(shard, line.data, "utf-8", line.offset)
    try:
        record: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"{shard.key}, line {line.number} of the shard: not JSON ({error})"
        raise ShardError(msg, "one JSON object a line") from error
    if not isinstance(record, dict):
        msg = f"{shard.key}, line {line.number} of the shard: a {type(record).__name__}"
        raise ShardError(msg, "one JSON object a line")
    return record


@cache
def _n_lines(path: str, start: int, stop: int, *_stamp: int) -> int:
    """Line ends in a part of a file, which end with it."""
    with Path(path).open("rb") as file:
        file.seek(start)
        return file.read(stop - start).count(b"\n")


@cache
def _combinations(whole: Shard, keys: tuple[str, ...]) -> tuple[tuple[Select, int], ...]:
    """Sets of label values in the lines of a part; its content id tells when they must be read again."""
    records = [record for _, record in _selected(whole)]
    return combinations(whole.key, {key: pa.array([json_value(r, key) for r in records], pa.string()) for key in keys})


def is_compressed(name: str) -> bool:
    """Whether a file's name says that it is compressed."""
    return name.lower().endswith((".gz", ".bz2", ".zst"))


def decompressed(shard: Shard, data: bytes) -> bytes:
    """Bytes of a shard as they were before its file was compressed, if it was.

    Raises
    ------
    ShardError
        If they are damaged or cut off.
    """
    name = shard.uri.lower()
    try:
        if name.endswith(".gz"):
            return gzip.decompress(data)
        if name.endswith(".bz2"):
            return bz2.decompress(data)
        if name.endswith(".zst"):
            with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as file:
                return bytes(file.read())
    except (OSError, EOFError, ValueError, zlib.error) as error:
        msg = f"{shard.key}: {error}"
        raise ShardError(msg, "a whole compressed file", "write the file again, or skip bad shards") from error
    return data


def decode(shard: Shard, data: bytes, encoding: str, offset: int = 0) -> str:
    """Text of bytes.

    Raises
    ------
    ShardError
        Naming the first byte that is none, at its offset in the file.
    """
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        place = shard.start + offset + error.start
        msg = f"{shard.key}: byte {data[error.start]:#04x} at offset {place} is not {encoding}"
        raise ShardError(msg, f"{encoding} text", "set `encoding`, leave the file out, or skip bad shards") from error
