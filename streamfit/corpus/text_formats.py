"""CSV and JSON lines as tables: cut at line ends, with the types of columns frozen; compressed files whole. Floor 4.

Text has no types of its own, and a guess from each file's first rows would change with the file. So types are found
once, in the first file that has values, where every whole number is taken as a number that may get a fraction later,
and are kept.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json

from streamfit.corpus.formats import Format, Part
from streamfit.corpus.openings import open_file, size_of
from streamfit.corpus.table import require
from streamfit.errors import CorpusError
from streamfit.plan import Shard

SHARD_BYTES = 2**25
"""Bytes of a part of a plain text file."""
_BLOCK = 2**22
"""Bytes that are decoded at a time; longer lines than this are refused."""
_ROW_BYTES = 64
"""Bytes of a line, to plan with."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_LOOKED_AT = 100
"""Files in which a type is looked for, where those before have no value."""
_SCALARS = ("string", "bool", "double", "int64", "date32[day]", "time32[s]", "time64[ns]", "null")


def compression_of(uri: str) -> str | None:
    """How a file is compressed, by its ending.

    Examples
    --------
    >>> compression_of("part-0.csv.gz"), compression_of("part-0.csv")
    ('gzip', None)
    """
    return next((name for ending, name in COMPRESSIONS.items() if uri.lower().endswith(ending)), None)


@dataclass(frozen=True)
class TextFormat(Format):
    """Rows as lines of text.

    Parameters
    ----------
    types : tuple of (str, str)
        Arrow types of columns by name, frozen; see `typed`.
    shard_bytes : int
        Files are cut into parts of about so many bytes.
    """

    types: tuple[tuple[str, str], ...] = ()
    shard_bytes: int = SHARD_BYTES

    def typed(self, uris: Sequence[str], whole: frozenset[str], typed: frozenset[str], asked: Sequence[str]) -> Self:
        """The same with the types of the columns of the first file; of those that it leaves open, of later ones.

        Parameters
        ----------
        uris : sequence of str
        whole : frozenset of str
            Columns whose whole numbers stay whole, as class ids do.
        typed : frozenset of str
            Columns whose type matters. All others are read as they are written: names, and numbers that are names.
        asked : sequence of str
            Columns that must not be left open where some file can tell.

        Raises
        ------
        CorpusError
            If the first file cannot be decoded.
        """
        fields: dict[str, pa.Field] = {}
        for uri in itertools.islice(filter(self.cut, uris), _LOOKED_AT):
            try:
                found = self._guess(uri)
            except (pa.ArrowException, OSError, CorpusError) as error:
                if fields:  # it is refused or skipped when it is read
                    continue
                if isinstance(error, CorpusError):
                    raise
                msg = f"{uri}: {str(error).splitlines()[0]}"
                raise CorpusError(msg, "a readable file to find the types of columns in") from error
            taken = found if not fields else [f for f in found if f.name in asked and _is_open(fields.get(f.name))]
            fields |= {f.name: f for f in taken}
            if not any(_is_open(fields.get(name)) for name in asked):
                break
        if not fields:
            msg = f"no rows in {len(uris)} files, the first of which is {uris[0]}"
            raise CorpusError(msg, "rows to find the types of columns in")
        return replace(self, types=tuple((f.name, str(self._kept(f, whole, typed))) for f in fields.values()))

    def _kept(self, found: pa.Field, whole: frozenset[str], typed: frozenset[str]) -> pa.DataType:
        stays = found.name in whole or found.name not in typed
        return pa.int64() if stays and pa.types.is_integer(found.type) else _wider(found.type)

    @abstractmethod
    def _guess(self, uri: str) -> pa.Schema:
        """Names and types, by some of the file."""

    def schema(self) -> dict[str, pa.DataType]:
        """Frozen types by name."""
        return {name: type_of(text) for name, text in self.types}

    def first_line(self, uri: str) -> bytes:
        """Bytes before the first row."""
        return b""

    def cut(self, uri: str) -> list[Part]:
        size = size_of(uri)
        if compression_of(uri) or not self.can_cut:
            return [Part(0, size, 0, size, max(1, size // _ROW_BYTES))] if size else []
        cuts = [len(self.first_line(uri))]
        with open_file(uri) as file:
            while cuts[-1] < size:
                file.seek(min(cuts[-1] + self.shard_bytes, size))
                file.readline()
                cuts.append(file.tell())
        pairs = itertools.pairwise(cuts)
        return [Part(lo, hi, lo, hi, max(1, (hi - lo) // _ROW_BYTES)) for lo, hi in pairs]

    @property
    def can_cut(self) -> bool:
        """Whether every end of a line is the end of a row."""
        return True

    def decode_bytes(self, shard: Shard, n_rows: int, columns: Sequence[str]) -> int:
        return shard.size + 8 * _BLOCK

    def _stream(self, shard: Shard) -> pa.NativeFile:
        """Text of a part: from memory where it is a range, decompressed on the way where it is compressed."""
        kind = compression_of(shard.uri)
        if kind:
            return pa.CompressedInputStream(pa.PythonFile(open_file(shard.uri), "r"), kind)
        with open_file(shard.uri) as file:
            file.seek(shard.start)
            return pa.BufferReader(file.read(shard.stop - shard.start))


@dataclass(frozen=True)
class Csv(TextFormat):
    """Comma-separated values with a line of names.

    Parameters
    ----------
    delimiter : str
    quoted_newlines : bool
        Whether values in quotes may hold line ends; files are not cut then.
    """

    delimiter: str = ","
    quoted_newlines: bool = False

    @property
    def endings(self) -> tuple[str, ...]:
        plain = (".csv", ".tsv", ".txt")
        return (*plain, *(p + c for p in plain for c in COMPRESSIONS))

    @property
    def can_cut(self) -> bool:
        return not self.quoted_newlines

    def first_line(self, uri: str) -> bytes:
        with open_file(uri) as file:
            kind = compression_of(uri)
            opened = io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, "r"), kind)) if kind else file
            return opened.readline()

    def names_of(self, uri: str) -> list[str]:
        """Names of the columns.

        Raises
        ------
        CorpusError
            If the first line has none, or one twice.
        """
        try:
            line = self.first_line(uri).decode("utf-8-sig").rstrip("\r\n")
            names = next(csv.reader([line], delimiter=self.delimiter), [])
        except (UnicodeDecodeError, csv.Error) as error:
            msg = f"{uri}: {error}"
            raise CorpusError(msg, "a first line of column names in UTF-8") from error
        if not names or len(set(names)) < len(names):
            msg = f"{uri}: a first line of {len(names)} names, {len(set(names))} of them different"
            raise CorpusError(msg, "the columns' names, each once", "write a line of names, or correct `delimiter`")
        return names

    def described(self, uri: str) -> str:
        try:
            return "\n".join(self.names_of(uri))
        except (CorpusError, OSError):
            return ""  # reading it says why

    def batches(self, shard: Shard, columns: list[str]) -> Iterator[pa.RecordBatch]:
        names = self.names_of(shard.uri)
        require(shard.key, names, columns)
        skip = 1 if shard.start == 0 else 0
        kinds = self.schema()
        convert = pa_csv.ConvertOptions(
            column_types={name: kinds.get(name, pa.string()) for name in columns},
            include_columns=columns,
            strings_can_be_null=True,
        )
        with self._stream(shard) as stream, self._reader(stream, names, skip, convert) as reader:
            yield from reader

    def _reader(
        self, stream: pa.NativeFile, names: list[str], skip: int, convert: pa_csv.ConvertOptions
    ) -> pa_csv.CSVStreamingReader:
        return pa_csv.open_csv(
            stream,
            pa_csv.ReadOptions(use_threads=False, block_size=_BLOCK, column_names=names, skip_rows=skip),
            pa_csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=self.quoted_newlines),
            convert,
        )

    def _guess(self, uri: str) -> pa.Schema:
        whole = Shard(uri, uri, 0, size_of(uri), 0, 0, "", "")
        convert = pa_csv.ConvertOptions(strings_can_be_null=True)
        if compression_of(uri) is None:
            whole = replace(whole, stop=min(whole.stop, 2 * _BLOCK))
        with self._stream(whole) as stream:
            return self._reader(stream, self.names_of(uri), 1, convert).schema

    def _kept(self, found: pa.Field, whole: frozenset[str], typed: frozenset[str]) -> pa.DataType:
        return super()._kept(found, whole, typed) if found.name in typed else pa.string()


@dataclass(frozen=True)
class JsonRows(TextFormat):
    """JSON lines: an object a line, its fields the columns."""

    @property
    def endings(self) -> tuple[str, ...]:
        plain = (".jsonl", ".ndjson", ".json")
        return (*plain, *(p + c for p in plain for c in COMPRESSIONS))

    def names_of(self, uri: str) -> list[str]:
        return [name for name, _ in self.types]

    def described(self, uri: str) -> str:
        return ""  # names are in the bytes

    def batches(self, shard: Shard, columns: list[str]) -> Iterator[pa.RecordBatch]:
        kinds = self.schema()
        known = [name for name in columns if name in kinds]
        options = pa_json.ParseOptions(
            explicit_schema=pa.schema([(name, kinds[name]) for name in known]),
            unexpected_field_behavior="ignore" if len(known) == len(columns) else "infer",
        )
        with self._stream(shard) as stream:
            for batch in _json_batches(stream, pa_json.ReadOptions(use_threads=False, block_size=_BLOCK), options):
                require(shard.key, batch.schema.names, columns)
                yield batch.select(columns)

    def _guess(self, uri: str) -> pa.Schema:
        whole = Shard(uri, uri, 0, size_of(uri), 0, 0, "", "")
        if compression_of(uri) is None:
            with open_file(uri) as file:  # whole lines of the beginning
                file.seek(min(_BLOCK, whole.stop))
                file.readline()
                whole = replace(whole, stop=file.tell())
        with self._stream(whole) as stream:
            first = next(_json_batches(stream, pa_json.ReadOptions(use_threads=False, block_size=2 * _BLOCK)), None)
        if first is None:
            return pa.schema([])
        return pa.schema([(field.name, _of_times(column)) for field, column in zip(first.schema, first, strict=True)])


def _of_times(column: pa.Array) -> pa.DataType:
    """A column's type, that of times where all of its text is of times: Arrow sees only those of whole seconds."""
    if not pa.types.is_string(column.type) or column.null_count == len(column):
        return column.type
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            column.cast(kind)
        except pa.ArrowInvalid:
            continue
        return pa.timestamp("us")  # which JSON's own zones are turned into
    return column.type


def _json_batches(
    stream: pa.NativeFile, how: pa_json.ReadOptions, parsing: pa_json.ParseOptions | None = None
) -> Iterator[pa.RecordBatch]:
    """Batches of lines of JSON: none of blank lines alone, which Arrow takes for a mistake."""
    try:
        reader = pa_json.open_json(stream, how, parsing)
    except pa.ArrowInvalid as error:
        if "Empty JSON" in str(error):
            return
        raise
    yield from reader


_TIME = re.compile(r"timestamp\[(\w+)(?:, tz=(.+))?\]")


def type_of(text: str) -> pa.DataType:
    """An Arrow type by its name.

    Examples
    --------
    >>> type_of("timestamp[us, tz=UTC]"), type_of("list<item: double>")
    (TimestampType(timestamp[us, tz=UTC]), ListType(list<item: double>))
    """
    if found := _TIME.fullmatch(text):
        return pa.timestamp(found[1], found[2])
    if text.startswith("list<item: "):
        return pa.list_(type_of(text[len("list<item: ") : -1]))
    if text not in _SCALARS:
        msg = f"a column of type {text}"
        raise CorpusError(msg, f"one of {', '.join(_SCALARS)}, times, or lists of them")
    return pa.null() if text == "null" else pa.type_for_alias(text)


def _is_open(found: pa.Field | None) -> bool:
    """Whether a column has not been seen with a value."""
    return found is None or pa.types.is_null(getattr(found.type, "value_type", found.type))


def _wider(kind: pa.DataType) -> pa.DataType:
    """The type that later values of a column may need as well: a fraction, a part of a second."""
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind):
        return pa.float64()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    if pa.types.is_list(kind):
        return pa.list_(_wider(kind.value_type))
    return kind if str(kind) in _SCALARS else pa.string()
