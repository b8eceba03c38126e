"""Sections of a problem's config that say where its rows come from. Floor 7."""

from __future__ import annotations

import datetime
import sysconfig
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BeforeValidator, Field, FiniteFloat, model_validator

from streamfit.corpus import Documents, Files, JsonLines, Labels, ParquetTable, Split, TextFiles
from streamfit.corpus.array_files import ArrayFiles
from streamfit.corpus.base import SPLITS
from streamfit.corpus.dataset import DatasetFiles
from streamfit.corpus.recipe import Filter, Missing, Operator, Recipe, Unseen
from streamfit.corpus.row_ranges import has_views
from streamfit.corpus.streamed import streamed
from streamfit.corpus.table import Table
from streamfit.corpus.table_text import TableText
from streamfit.corpus.tar import TarText
from streamfit.corpus.text_formats import SHARD_BYTES
from streamfit.errors import ConfigError, CorpusError
from streamfit.features import Hashed
from streamfit.sections import Count, Section


def _filter_value(value: Any) -> Any:
    """Dates as ISO 8601 has them, NumPy's numbers as plain ones."""
    if isinstance(value, np.datetime64):
        return str(value)
    if isinstance(value, datetime.date):  # times are dates too
        return value.isoformat()
    return value.item() if isinstance(value, np.generic) else value


FilterValue = Annotated[bool | int | float | str, BeforeValidator(_filter_value)]


class LabelsSection(Section):
    """Where the labels of shards come from; see `streamfit.corpus.Labels`."""

    path: str = ""
    columns: tuple[str, ...] = ()
    time: str = ""
    period: Literal["day", "month", "year"] = "day"
    fixed: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _can_be_used(self) -> LabelsSection:
        try:
            self.settings()
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    def settings(self) -> Labels:
        """What sources take."""
        return Labels(self.path, self.columns, self.time, self.period, tuple(sorted(self.fixed.items())))


class FilesSection(Section):
    """Which files: a directory, a glob or a file.

    `python:stdlib` stands for the directory of Python's own standard library. `licence` is that of the data, as an SPDX
    expression or in words; models that are fitted to it say so.
    """

    root: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    label: str = "corpus"
    labels: LabelsSection = LabelsSection()
    licence: str = ""

    def files(self, split: Split | None, fractions: tuple[float, float, float]) -> Files:
        """Files of one part of the corpus."""
        root = sysconfig.get_path("stdlib") if self.root == "python:stdlib" else self.root
        return Files(root, self.include, self.exclude, split, fractions)

    def absolute(self) -> Self:
        """The same with paths that hold from any directory."""
        if self.root == "python:stdlib" or "://" in self.root:
            return self
        return self.model_copy(update={"root": str(Path(self.root).expanduser().absolute())})


def _has_more_than_numbers(files: Files, columns: Sequence[str], *, hashed: bool) -> bool:
    """Whether columns of Parquet hold what the way for plain numbers, or for what is hashed, does not read."""
    try:
        schema = pq.read_schema(files.of_rows()[0][1])
    except (pa.ArrowException, OSError, CorpusError):
        return False  # reading will say what is wrong
    kinds = [schema.field(name).type for name in columns if name in schema.names]
    types = pa.types
    others = (types.is_date, types.is_timestamp, types.is_list, types.is_large_list, types.is_null)
    return any(has_views(kind) or (not hashed and any(of(kind) for of in others)) for kind in kinds)


class TextSection(FilesSection):
    """Documents to model: a file each, a JSON line each, or a row each of tables and saved data sets.

    Tables are Parquet or Arrow files, on a disk or in an object store; data sets Hugging Face's, saved to disk.

    With kind 'tar' a member each of tar files, those whose ending is `field` (.txt if none is given); text, JSON lines
    and tar files may be compressed. `validation` and `test` are the files of these parts, where they are known: all
    others are then for training, and what is in both is for the named part alone. Without them, `split`
    has the shares that a hash chooses.
    """

    kind: Literal["text", "jsonl", "dataset", "tar", "parquet", "arrow"] = "text"
    encoding: str = "utf-8"
    field: str = "text"
    shard_bytes: Count = 2**20
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    validation: str = ""
    test: str = ""

    @model_validator(mode="after")
    def _is_whole(self) -> TextSection:
        if min(self.split) < 0 or abs(sum(self.split) - 1.0) > 1e-9 or not self.split[0] > 0:
            msg = f"split {list(self.split)}: three shares that add up to 1, some of it for training"
            raise ValueError(msg)
        if self.kind == "text" and (self.labels.columns or self.labels.time):
            msg = "labels: text files have only paths, so labels come by `path` or `fixed`, not by columns or time"
            raise ValueError(msg)
        return self

    def documents(self, split: Split) -> Documents:
        """Documents of one part: that of its files; or as a hash decides, of each file's path or of each text."""
        named = {"validation": self.validation, "test": self.test}
        if named.get(split):  # which are not counted, and so need no labels
            bare = {"root": named[split], "include": (), "exclude": (), "labels": LabelsSection()}
            return self.model_copy(update=bare)._part(None)
        found = self._part(split)
        if split == "train" and any(named.values()):
            found = replace(found, leave_out=self.ids_of_named())
        return found

    def ids_of_named(self) -> frozenset[str]:
        """Content ids of the files that `validation` and `test` name, whole."""
        parts: list[Split] = [part for part, name in (("validation", self.validation), ("test", self.test)) if name]  # type: ignore[misc]
        return frozenset(shard.bytes_id for part in parts for shard in self.documents(part).shards())

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares of `split` among the files below `root`."""
        train, validation, test = self.split
        if self.validation:
            return (1.0, 0.0, 0.0)
        return (train + test, validation, 0.0) if self.test else self.split

    def absolute(self) -> Self:
        found = super().absolute()
        paths = {"validation": found.validation, "test": found.test}
        return found.model_copy(
            update={name: str(Path(path).expanduser().absolute()) for name, path in paths.items() if path}
        )

    def _part(self, split: Split | None) -> Documents:
        if self.kind == "text":
            files = self.files(split, self.shares)
            return TextFiles(files, self.label, self.encoding, labels=self.labels.settings())
        files = self.files(None, self.shares)
        labels = self.labels.settings()
        if self.kind == "jsonl":
            return JsonLines(files, self.label, self.field, split, self.shares, self.shard_bytes, labels)
        if self.kind == "tar":
            ending = "txt" if self.field == "text" else self.field.removeprefix(".")
            return TarText(files, self.label, ending, self.encoding, split, self.shares, self.shard_bytes, labels)
        if self.kind in ("parquet", "arrow"):
            return TableText(files, self.label, self.field, split, self.shares, labels, self.kind)
        # Imported here alone: `datasets` takes a second to load, which every command and worker would pay.
        from streamfit.corpus.saved import SavedDataset

        return SavedDataset(files, self.label, self.field, split, self.shares, labels=labels)


class TableSection(FilesSection):
    """Rows with feature columns and target columns.

    Parameters
    ----------
    kind : {'parquet', 'arrow', 'feather', 'csv', 'jsonl', 'dataset', 'stream', 'npy', 'zarr'}
        Formats of files; 'dataset' is a Hugging Face data set saved to disk, 'npy' a folder with a .npy file for each
        column, 'zarr' a group of arrays. With 'stream' the root is a data set that Hugging Face `datasets` streams: a
        name on the Hub, or a folder; its rows are written to `spool` first.
    features, target : tuple of str
        Columns; numbers, booleans, dates, lists of numbers, or parts of dates such as ``weekday(date)``.
    weight : str, optional
        Column of row weights.
    n_classes : int, optional
        Makes the target's whole numbers one-hot.
    classes : tuple of str
        Its values, where they are names: class by class, which gives n_classes.
    categories : dict of str to values, or tuple of str
        Features that are one-hot; without values these are found in the data once.
    unseen, missing, missing_target, split_column, split_values
        See `streamfit.corpus.recipe.Recipe`.
    fill : dict of str to number
        What stands for features of numbers that are lacking, whatever `missing` says of others.
    filters : tuple of (column, operator, value)
        Rows that meet all of them count.
    partitions : '', 'hive' or tuple of str
        Columns that are in the path: as Hive writes it, ``year=2026/``, or by the names of the last folders.
    delimiter : str
        Of CSV.
    quoted_newlines : bool
        Whether values of CSV may hold line ends; files are then not cut.
    shard_bytes : int
        Bytes of a part of CSV or JSON lines.
    spool : str
        Folder that keeps the rows of a data set that streams, so that they can be read again.
    subset, part : str
        Its configuration, if it has several, and its split.
    """

    kind: Literal["parquet", "arrow", "feather", "csv", "jsonl", "dataset", "stream", "npy", "zarr"] = "parquet"
    features: Annotated[tuple[str, ...], Field(min_length=1)]
    target: Annotated[tuple[str, ...], Field(min_length=1)]
    weight: str | None = None
    n_classes: Count | None = None
    classes: tuple[str, ...] = ()
    categories: dict[str, tuple[str, ...]] | tuple[str, ...] = ()
    unseen: Unseen = "error"
    missing: Missing = "error"
    missing_target: Literal["error", "drop"] = "error"
    fill: dict[str, FiniteFloat] = Field(default_factory=dict)
    filters: tuple[tuple[str, Operator, FilterValue | tuple[FilterValue, ...]], ...] = ()
    split_column: str = ""
    split_values: tuple[str, str, str] = SPLITS
    partitions: Literal["", "hive"] | tuple[str, ...] = ""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    quoted_newlines: bool = False
    shard_bytes: Annotated[int, Field(ge=2**16)] = SHARD_BYTES
    spool: str = ""
    subset: str = ""
    part: str = "train"

    @model_validator(mode="after")
    def _can_be_read(self) -> TableSection:
        if (self.n_classes or self.classes) and len(self.target) != 1:
            msg = f"n_classes needs exactly one target column, got {len(self.target)}"
            raise ValueError(msg)
        for what, names in (("features", self.features), ("target", self.target)):
            if twice := sorted(name for name, n in Counter(names).items() if n > 1):
                msg = f"{what} name {', '.join(map(repr, twice))} more than once"
                raise ValueError(msg)
        only: dict[str, tuple[str, ...]] = {
            "delimiter": ("csv",),
            "quoted_newlines": ("csv",),
            "shard_bytes": ("csv", "jsonl"),
            "partitions": ("parquet", "arrow", "feather", "csv", "jsonl", "dataset"),
            **dict.fromkeys(("spool", "subset", "part"), ("stream",)),
        }
        for name, kinds in only.items():
            if getattr(self, name) != type(self).model_fields[name].default and self.kind not in kinds:
                msg = f"{name} is for kind {', '.join(kinds)}, not {self.kind!r}"
                raise ValueError(msg)
        if self.kind == "stream" and (not self.spool or self.include or self.exclude):
            msg = "kind 'stream' takes `spool`, a folder that keeps the rows, and neither include nor exclude"
            raise ValueError(msg)
        if named := sorted({*self.fill} & {*self.categories}):
            msg = f"fill for the categories {', '.join(map(repr, named))}: a value that lacks has no column"
            raise ValueError(msg)
        if self.unseen != "error" and not self.categories:
            msg = "unseen is for categories, and there are none"
            raise ValueError(msg)
        try:
            self.recipe()
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    def absolute(self) -> Self:
        if self.kind != "stream":
            return super().absolute()
        found = super().absolute() if Path(self.root).expanduser().exists() else self  # else it is a name
        return found.model_copy(update={"spool": str(Path(self.spool).expanduser().absolute())})

    def recipe(self) -> Recipe:
        """How columns become rows."""
        given = self.categories
        named = tuple(given.items()) if isinstance(given, dict) else tuple((name, ()) for name in given)
        return Recipe(
            self.features,
            self.target,
            self.weight,
            self.n_classes or len(self.classes) or None,
            named,
            self.unseen,
            self.missing,
            self.missing_target,
            tuple(sorted((name, (float(value),)) for name, value in self.fill.items())),
            filters=tuple(Filter(*each) for each in self.filters),
            split_column=self.split_column,
            split_values=self.split_values,
            classes=self.classes,
        )

    def table(self, hashed: Hashed | None = None) -> ParquetTable | Table:
        """The source of rows: Parquet without any policy the fast way, all else by a recipe."""
        files, labels, recipe = self.files(None, (0.8, 0.1, 0.1)), self.labels.settings(), self.recipe()
        if self.kind == "parquet" and not self.partitions and "://" not in self.root:
            bare = replace(recipe, features=("x",)).is_plain if hashed else recipe.is_plain
            if bare and not _has_more_than_numbers(files, recipe.columns, hashed=hashed is not None):
                plain = (self.features, self.target, self.weight, self.n_classes, self.label, labels, hashed)
                return ParquetTable(files, *plain)
        if self.kind in ("npy", "zarr"):
            return ArrayFiles(files, self.kind, recipe=recipe, label=self.label, labels=labels, hashed=hashed)
        if self.kind == "stream":
            given = {"recipe": recipe, "label": self.label, "labels": labels, "hashed": hashed}
            return streamed(self.root, self.subset, self.part, self.spool, **given)
        options: dict[str, Any] = {}
        if self.kind in ("csv", "jsonl"):
            options["shard_bytes"] = self.shard_bytes
        if self.kind == "csv":
            options |= {"delimiter": self.delimiter, "quoted_newlines": self.quoted_newlines}
        return DatasetFiles.of(
            self.kind,
            files,
            options=options,
            partitions=self.partitions,
            recipe=recipe,
            label=self.label,
            labels=labels,
            hashed=hashed,
        )
