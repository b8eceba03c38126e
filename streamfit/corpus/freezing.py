"""What a recipe must find in the data before the first row is counted: dictionaries of categories, and means. Floor 4.

One pass over the columns in question alone, of the rows that count for training.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamfit.corpus import encode
from streamfit.corpus.base import Source
from streamfit.corpus.choosing import counting
from streamfit.corpus.dataset import DatasetFiles
from streamfit.corpus.parquet import ParquetTable
from streamfit.corpus.recipe import MAX_LEVELS, Recipe, date_part
from streamfit.corpus.table import Table
from streamfit.corpus.text_formats import TextFormat
from streamfit.corpus.values import column_of
from streamfit.errors import CorpusError, MismatchError, ShardError

_Any = TypeVar("_Any", bound=Source)


def frozen(source: _Any, *, skip_bad_shards: bool = False) -> _Any:
    """A source whose recipe leaves nothing open, so that all data from now on is read alike.

    Parameters
    ----------
    source : Source
        Returned as it is, unless it is a `Table` with something open.
    skip_bad_shards : bool

    Returns
    -------
    Source of the same kind

    Raises
    ------
    CorpusError
        If a category has no value or more than `MAX_LEVELS`, or a feature no value at all to take a mean of.
    ShardError
        If a shard cannot be read and is not skipped.
    """
    if not isinstance(source, Table):
        return source
    settled = source.settled()
    if settled.recipe.is_frozen:
        return settled
    return replace(settled, recipe=_found(settled, skip_bad_shards))


def types_of(source: Source) -> dict[str, str]:
    """Types of the features that are dates, times or truth values, as text that is read later is to be taken for them.

    Parts of dates, categories and numbers are not among them: they are read alike from text without being told. Of
    what is hashed all are, for there a name that looks like a number is another feature than the number.

    Parameters
    ----------
    source : Source
        Without a recipe, and not hashed, there are none.

    Returns
    -------
    dict of str to str
        Names of Arrow types by column, the same for all that gives the same numbers: dates are times at midnight.
    """
    if isinstance(source, Table | ParquetTable) and source.hashed is not None:
        return {name: _hashed_as(kind) for name, kind in column_types(source).items() if _hashed_as(kind)}
    if not isinstance(source, Table):
        return {}
    names = [name for name in source.features if source.recipe.levels(name) is None and date_part(name)[1] is None]
    found: dict[str, str] = {}
    if not names:
        return found
    for _, shard in source.parts():
        try:
            first = next(iter(source.batches(shard, names)), None)
        except ShardError:
            continue  # it is skipped, or refused when it is counted
        if first is None:
            continue
        for name in names:
            kind = encode.plain_column(first, name).type
            if pa.types.is_boolean(kind):
                found[name] = "bool"
            elif pa.types.is_date(kind) or pa.types.is_timestamp(kind):
                zoned = pa.types.is_timestamp(kind) and kind.tz is not None
                found[name] = "timestamp[us, tz=UTC]" if zoned else "timestamp[us]"
        return found
    return found


def column_types(source: Table | ParquetTable) -> dict[str, pa.DataType]:
    """Types of the feature columns in the first part that can be read; none where there is no such part."""
    names = list(dict.fromkeys(column_of(name)[0] for name in source.features))
    if isinstance(source, ParquetTable):
        try:
            schema = pq.read_schema(source.files.of_rows()[0][1])
        except (pa.ArrowException, OSError, CorpusError):
            return {}  # reading will say what is wrong
        return {name: schema.field(name).type for name in names if name in schema.names}
    # Where parts are not hashed when they are listed, they need not be for this.
    shards = [piece.shard for piece in source.pieces()] if isinstance(source, DatasetFiles) else source.shards()
    read = source.decoded if isinstance(source, DatasetFiles) else source.batches
    for shard in shards:
        with suppress(ShardError):
            first = next(iter(read(shard, names)), None)
            if first is not None:
                return {name: encode.plain_column(first, name).type for name in names}
    return {}


def _hashed_as(kind: pa.DataType) -> str:
    """What a column of a type is hashed as; empty for dates and lists, which nothing else is taken for."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
        return "string"
    if pa.types.is_boolean(kind):
        return "bool"
    return "double" if pa.types.is_integer(kind) or pa.types.is_floating(kind) else ""


def read_as_hashed(source: _Any, types: Mapping[str, str]) -> _Any:
    """A hashed source that takes columns for what they were when the store was made.

    Parameters
    ----------
    source : Source
    types : mapping of str to str
        As `types_of` found them.

    Raises
    ------
    MismatchError
        If columns that have types of their own have others.
    """
    if not isinstance(source, Table | ParquetTable) or source.hashed is None or not types:
        return source
    if isinstance(source, DatasetFiles) and isinstance(source.format, TextFormat):
        told = tuple((dict(source.format.types) | dict(types)).items())
        return replace(source, format=replace(source.format, types=told))
    for name, kind in column_types(source).items():
        if name in types and (found := _hashed_as(kind)) and found != types[name]:
            msg = f"column {name!r} of type {kind}, which is hashed as {found}"
            raise MismatchError(msg, f"{types[name]}, as when the store was made", "write the column in that type")
    return source


def _found(table: Table, skip: bool) -> Recipe:
    recipe = table.recipe
    # Rows that lack a value are no reason to look at every column here; nor are categories needed to see who counts.
    rows = replace(recipe, missing="error", missing_target="error")
    levels: dict[str, set[str]] = {name: set() for name, given in recipe.categories if not given}
    filled = dict(recipe.fills)
    means = [name for name in recipe.features if recipe.missing == "mean" and name not in filled]
    sums: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    shares: dict[str, dict[str, int]] = {name: {} for name in means if recipe.levels(name) is not None}
    read = [date_part(name)[0] for name in (*levels, *means)]
    read += [f.column for f in recipe.filters] + ([recipe.split_column] if recipe.split_column else [])
    for shard in (part for _, part in table.parts()):
        try:
            for whole in table.batches(shard, list(dict.fromkeys(read))):
                batch = whole.filter(pa.array(counting(shard.key, whole, rows, table.split)))
                for name in {*levels, *shares}:
                    texts = encode.names_of(shard.key, batch, name, recipe.levels(name) or ())
                    _count(texts, levels.get(name), shares.get(name))
                    if len(levels.get(name, ())) > MAX_LEVELS:
                        msg = f"more than {MAX_LEVELS} values of the category {name!r}"
                        raise CorpusError(msg, "few", "hash the column: features of kind 'hashed'")
                for name in means:
                    if name not in shares:
                        _add(sums, name, encode.numbers(shard.key, batch, name))
        except ShardError:
            if not skip:
                raise
    dictionaries = {name: tuple(sorted(found)) for name, found in levels.items()}
    for name, found in dictionaries.items():
        if not found:
            msg = f"no value in the category {name!r}"
            raise CorpusError(msg, "at least one", "check the column and the filters")
    made = recipe.frozen(dictionaries, {})
    averages = {name: _mean(name, *sums[name]) for name in means if name in sums}
    averages |= {name: _shares(made.levels(name) or (), found) for name, found in shares.items()}
    if missing := [name for name in means if name not in averages]:
        msg = f"no rows to take the mean of {', '.join(map(repr, missing))}"
        raise CorpusError(msg, "at least one", "check the paths and the filters")
    return made.frozen({}, averages)


def _count(texts: pa.Array, levels: set[str] | None, shares: dict[str, int] | None) -> None:
    for each in texts.drop_null().value_counts().to_pylist():
        if levels is not None:
            levels.add(each["values"])
        if shares is not None:
            shares[each["values"]] = shares.get(each["values"], 0) + each["counts"]


def _add(sums: dict[str, tuple[np.ndarray, np.ndarray]], name: str, block: np.ndarray) -> None:
    there = np.isfinite(block)
    total, count = np.where(there, block, 0.0).sum(axis=0, dtype=np.float64), there.sum(axis=0)
    if name in sums:
        total, count = sums[name][0] + total, sums[name][1] + count
    sums[name] = total, count


def _mean(name: str, total: np.ndarray, count: np.ndarray) -> tuple[float, ...]:
    if not count.all():
        msg = f"no number at all in column {name!r}"
        raise CorpusError(msg, "some values to take the mean of", "leave the column out")
    return tuple((total / count).tolist())


def _shares(levels: tuple[str, ...], found: dict[str, int]) -> tuple[float, ...]:
    total = sum(found.get(level, 0) for level in levels)
    return tuple(found.get(level, 0) / max(1, total) for level in levels)
