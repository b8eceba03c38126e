"""Data sets of files: Parquet, Arrow, CSV or JSON lines in folders, with partitions in their paths. Floor 4.

Local or in an object store; only the columns that are needed are decoded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple, Self

import pyarrow as pa
import pyarrow.dataset as ds

from streamfit.corpus.base import Files
from streamfit.corpus.formats import ArrowFile, Format, Parquet
from streamfit.corpus.openings import Found, found, hashes, is_stamped, stamp
from streamfit.corpus.recipe import date_part
from streamfit.corpus.row_ranges import without_views
from streamfit.corpus.table import Table, require
from streamfit.corpus.text_formats import Csv, JsonRows, TextFormat
from streamfit.corpus.values import column_of
from streamfit.errors import ConfigError, CorpusError, ShardChangedError, ShardError
from streamfit.identity import rows_id
from streamfit.plan import Shard

FORMATS: dict[str, type[Format]] = {
    "parquet": Parquet,
    "arrow": ArrowFile,
    "feather": ArrowFile,
    "dataset": ArrowFile,
    "csv": Csv,
    "jsonl": JsonRows,
}
"""Formats by the `kind` of a config's corpus; `dataset` is a Hugging Face data set saved to disk."""


Partitions = Literal["", "hive"] | tuple[str, ...]


class Piece(NamedTuple):
    """A part of a file: its relative path, the part as a shard without a content id, and the bytes that hold it."""

    name: str
    shard: Shard
    low: int
    high: int


@dataclass(frozen=True)
class DatasetFiles(Table):
    """Files of rows.

    Parameters
    ----------
    files : Files
        Its root may be an address such as ``s3://bucket/prefix``.
    kind : str
        One of `FORMATS`.
    format : Format
    partitions : '', 'hive' or tuple of str
        Columns whose values are in the path: ``year=2026/part-0.csv`` as Hive writes it, or by the names of its last
        folders, the outermost first. A value is text for a category or label, a number otherwise.
    """

    files: Files
    kind: str = "parquet"
    format: Format = field(default_factory=Parquet)
    partitions: Partitions = ""

    @classmethod
    def of(cls, kind: str, files: Files, *, options: dict[str, Any] | None = None, **given: Any) -> Self:
        """A data set of a kind, with its format's options.

        Raises
        ------
        ConfigError
            If there is no such kind.
        """
        if kind not in FORMATS:
            msg = f"files of kind {kind!r}"
            raise ConfigError(msg, f"one of {', '.join(FORMATS)}")
        return cls(files, kind, FORMATS[kind](**(options or {})), **given)

    def settled(self) -> Self:
        if not isinstance(self.format, TextFormat) or self.format.types:
            return self
        uris = [each.uri for each in self.found()]
        whole = frozenset(self.target if self.n_classes is not None else ())
        in_path = path_values(uris[0], self.partitions)
        asked = [name for name in self.recipe.columns if name not in in_path]
        made = self.format.typed(uris, whole, self._typed_columns(), asked)
        if self.kind == "csv":  # names that look like numbers: 00501 is not 501
            named = {name for name, levels in self.recipe.categories if levels and date_part(name)[1] is None}
            named |= {*self.target} if self.recipe.classes else set()
            made = replace(made, types=tuple((name, "string" if name in named else t) for name, t in made.types))
        return replace(self, format=made)

    def _typed_columns(self) -> frozenset[str]:
        """Columns whose type matters: numbers, dates, and what filters compare. All others are names of something."""
        named = self.hashed.categories if self.hashed is not None else ()
        typed = [name for name in (*self.features, *self.target) if name not in named]
        typed = [name for name in typed if self.recipe.levels(name) is None or date_part(name)[1] is not None]
        weight = [self.recipe.weight] if self.recipe.weight else []
        return frozenset([date_part(name)[0] for name in typed] + weight + [f.column for f in self.recipe.filters])

    def origin(self) -> dict[str, Any]:
        options = json.loads(json.dumps(asdict(self.format)))
        parts = self.partitions if isinstance(self.partitions, str) else [*self.partitions]
        return {"kind": self.kind, "options": options, "partitions": parts}

    def found(self) -> list[Found]:
        """Files with their names, sorted."""
        return found(self.files, self.format.endings)

    def parts(self) -> list[tuple[str, Shard]]:
        listed = self.found()
        stamps = {each.uri: stamp(each.uri) for each in listed}  # before the bytes are hashed
        pieces = self.pieces()
        ids = hashes([(part.uri, low, high) for _, part, low, high in pieces])
        described = {each.uri: self._described(each.uri) for each in listed}
        return [
            (
                name,
                replace(part, content_id=rows_id(described[part.uri], digest), stamp=stamps[part.uri]),
            )
            for (name, part, _, _), digest in zip(pieces, ids, strict=True)
        ]

    def pieces(self) -> list[Piece]:
        """Parts of files whose bytes nobody has looked at: to be read by `decoded`."""
        listed = self.found()
        cuts = {each.uri: self.format.cut(each.uri) for each in listed}
        return [
            Piece(
                each.name,
                Shard(
                    key=self.format.key(each.name, part, len(cuts[each.uri])),
                    uri=each.uri,
                    start=part.start,
                    stop=part.stop,
                    size=part.high - part.low,
                    planned_rows=part.n_rows,
                    content_id="",
                    source=self.label,
                ),
                part.low,
                part.high,
            )
            for each in listed
            for part in cuts[each.uri]
        ]

    def _described(self, uri: str) -> str:
        # Of the path only what rows take from it, so that a file is the same file from wherever it is looked for.
        wanted = {*self.columns}
        values = [f"/{key}={value}" for key, value in sorted(self._values(uri).items()) if key in wanted]
        return "\n".join([self.format.described(uri), *values])

    def _values(self, uri: str) -> dict[str, str | None]:
        """Values that a file's path gives to columns."""
        return path_values(uri, self.partitions)

    def batches(self, shard: Shard, columns: list[str]) -> Iterator[pa.RecordBatch]:
        self._check_unchanged(shard)
        yield from self.decoded(shard, columns)

    def decoded(self, shard: Shard, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Rows as `batches` gives them, whether or not they are those that were planned."""
        if shard.start < 0:
            _refuse_damaged(shard, self.format)
        values = {key: value for key, value in self._values(shard.uri).items() if key in columns}
        own = [name for name in columns if name not in values]
        try:
            for batch in map(without_views, self.format.batches(shard, own or _any_column(self.format, shard))):
                yield self._with_values(shard, batch, values, columns) if values else batch
        except (pa.ArrowException, OSError) as error:
            raise _damaged(shard, error) from error

    def _with_values(
        self, shard: Shard, batch: pa.RecordBatch, values: dict[str, str | None], columns: list[str]
    ) -> pa.RecordBatch:
        found = {name: batch.column(name) for name in columns if name not in values}
        for name, value in values.items():
            column = pa.repeat(pa.scalar(value, pa.string()), batch.num_rows)
            found[name] = column if self._is_text(name) else _as_numbers(shard, name, column)
        return pa.RecordBatch.from_pydict({name: found[name] for name in columns})

    def _is_text(self, name: str) -> bool:
        """Whether a column of the path is taken as text."""
        numbers = {n for n in (*self.features, *self.target, self.weight) if n and self.recipe.levels(n) is None}
        filtered = {f.column for f in self.recipe.filters if _is_number(f.value)}
        return self.hashed is not None or name not in numbers | filtered

    def _check_unchanged(self, shard: Shard) -> None:
        if is_stamped(shard):
            return
        try:
            there = [
                part for part in self.format.cut(shard.uri) if (part.start, part.stop) == (shard.start, shard.stop)
            ]
            digests = hashes([(shard.uri, part.low, part.high) for part in there])
            same = [rows_id(self._described(shard.uri), digest) == shard.bytes_id for digest in digests]
        except CorpusError as error:
            msg = f"{shard.key}: {error.got}"
            raise ShardChangedError(msg, "the file that was found when the corpus was listed", "run again") from error
        if not any(same):
            msg = f"{shard.key}: content changed while the corpus was read"
            raise ShardChangedError(msg, f"content {shard.bytes_id[:12]}", "run again once nobody writes to it")

    def decode_bytes(self, shards: Sequence[Shard], row_bytes: int) -> int:
        if not shards:
            return 0
        largest, n_rows = max(shards, key=lambda shard: shard.size), max(shard.planned_rows for shard in shards)
        read = dict.fromkeys([*self.columns, *(column_of(key)[0] for key, _ in largest.select)])
        return self.format.decode_bytes(largest, n_rows, list(read))


def path_values(uri: str, partitions: Partitions) -> dict[str, str | None]:
    """Values that a file's path gives to columns.

    Examples
    --------
    >>> path_values("data/year=2026/month=11/part-0.csv", "hive")
    {'year': '2026', 'month': '11'}
    >>> path_values("data/2026/11/part-0.csv", ("year", "month"))
    {'year': '2026', 'month': '11'}
    """
    folders = uri.partition("://")[2].split("/")[1:-1] if "://" in uri else uri.split("/")[:-1]
    if partitions == "hive":
        keys = [part.partition("=")[0] for part in folders if "=" in part]
        flavor: Any = ds.HivePartitioning(pa.schema([(key, pa.string()) for key in dict.fromkeys(keys)]))
    else:
        keys, folders = [*partitions], folders[len(folders) - len(partitions) :]
        flavor = ds.DirectoryPartitioning(pa.schema([(key, pa.string()) for key in keys]))
    found = ds.get_partition_keys(flavor.parse("/".join(folders) + "/")) if keys else {}
    return {key: found[key] for key in dict.fromkeys(keys) if key in found}


def _is_number(value: Any) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _as_numbers(shard: Shard, name: str, column: pa.Array) -> pa.Array:
    try:
        return column.cast(pa.float64())
    except pa.ArrowInvalid as error:
        msg = f"{shard.key}: {column[0].as_py()!r} in the path for column {name!r}"
        raise ShardError(msg, "a number", "name the column in `categories`") from error


def _any_column(kind: Format, shard: Shard) -> list[str]:
    """Some column to read where all that are asked for are in the path: rows must be counted."""
    names = kind.names_of(shard.uri)
    require(shard.key, names, [] if names else ["any"])
    return names[:1]


def _refuse_damaged(shard: Shard, kind: Format) -> None:
    """Say what is wrong with a file that could not be cut.

    Raises
    ------
    ShardError
        Always.
    """
    try:
        kind.names_of(shard.uri)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(shard, error) from error
    raise _damaged(shard, OSError("its parts reach beyond its end"))


def _damaged(shard: Shard, error: Exception) -> ShardError:
    msg = f"{shard.key}: {str(error).strip().splitlines()[0]}"
    return ShardError(msg, "a whole file of its kind", "write the file again, correct `kind`, or skip bad shards")
