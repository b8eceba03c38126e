"""Arrow columns as the numbers that a recipe makes of them. Floor 4."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamfit.corpus.parquet_rows import Batch, same_floats
from streamfit.corpus.recipe import DatePart, Recipe, date_part
from streamfit.corpus.values import strings_of
from streamfit.errors import ShardError

_PARTS: dict[DatePart, Any] = {
    "year": pc.year,
    "month": pc.month,
    "yearday": pc.day_of_year,
    "weekday": pc.day_of_week,
    "hour": pc.hour,
    "minute": pc.minute,
}


_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+")
_MIDNIGHTS = (" 00:00:00", "T00:00:00", " 00:00:00.000000", " 00:00:00.000000000")
"""What a day may end with, once it has been taken for a time."""


def features_of(where: str, batch: Batch, recipe: Recipe) -> np.ndarray:
    """Features side by side, in float32 where all of them fit in it.

    Parameters
    ----------
    where : str
    batch : Batch
    recipe : Recipe

    Returns
    -------
    array of shape (n_rows, n_inputs)

    Raises
    ------
    ShardError
        Naming shard, row and column, if a value is missing or cannot be used.
    """
    if not recipe.categories and all(date_part(name)[1] is None for name in recipe.features):
        x = same_floats(batch, recipe.features)
        if x is not None and np.isfinite(x).all():
            return x
    fills = dict(recipe.fills)
    blocks = [encoded(where, batch, name, recipe, fills.get(name)) for name in recipe.features]
    return _together(where, batch, blocks, recipe.features)


def targets_of(where: str, batch: Batch, recipe: Recipe) -> np.ndarray:
    """Targets side by side; shape (n_rows, n_targets), or integer (n_rows,) of class ids.

    Raises
    ------
    ShardError
        Naming shard, row and column, if a value is missing or cannot be used.
    """
    if recipe.n_classes is None:
        blocks = [encoded(where, batch, name, recipe, None) for name in recipe.target]
        return _together(where, batch, blocks, recipe.target)
    name = recipe.target[0]
    if recipe.classes:
        return _named_classes(where, batch, name, recipe.classes)
    column = plain_column(batch.table, name)
    if not pa.types.is_integer(column.type):
        msg = f"{where}: column {name!r} has type {column.type}"
        raise ShardError(msg, "integer class ids")
    _refuse(where, batch, name, np.asarray(column.is_null().to_numpy(zero_copy_only=False)))
    ids = np.asarray(column.to_numpy(zero_copy_only=False)).astype(np.int64)
    bad = (ids < 0) | (ids >= recipe.n_classes)
    if bad.any():
        row = int(np.argmax(bad))
        msg = f"{where}, row {batch.positions[row]}: class id {ids[row]}"
        raise ShardError(msg, f"ids in [0, {recipe.n_classes})", "set `n_classes` in the config")
    return ids


def _named_classes(where: str, batch: Batch, name: str, classes: tuple[str, ...]) -> np.ndarray:
    """Positions of names among those of the classes."""
    texts = names_of(where, batch.table, name, classes)
    _refuse(where, batch, name, np.asarray(texts.is_null().to_numpy(zero_copy_only=False)))
    found = pc.index_in(texts, value_set=pa.array(classes, pa.string()))
    strange = np.asarray(found.is_null().to_numpy(zero_copy_only=False))
    if strange.any():
        row = int(np.argmax(strange))
        msg = f"{where}, row {batch.positions[row]}: {texts[row].as_py()!r} in the target {name!r}"
        told = ", ".join(map(repr, classes))
        raise ShardError(msg, f"one of the classes {told}", "name it in `classes` and fit again")
    return np.asarray(found.to_numpy(zero_copy_only=False)).astype(np.int64)


def weights_of(where: str, batch: Batch, recipe: Recipe) -> np.ndarray | None:
    """Row weights, if there are any; shape (n_rows,).

    Raises
    ------
    ShardError
        If one is no finite number, or negative.
    """
    if recipe.weight is None:
        return None
    block = encoded(where, batch, recipe.weight, recipe, None)
    weights = _together(where, batch, [block], (recipe.weight,))[:, 0]
    if (weights < 0).any():
        msg = f"{where}, row {batch.positions[np.argmax(weights < 0)]}: negative weight"
        raise ShardError(msg, f"{recipe.weight!r} >= 0")
    return weights


def _together(where: str, batch: Batch, blocks: list[np.ndarray], names: tuple[str, ...]) -> np.ndarray:
    kind = np.float32 if all(b.dtype in (np.float16, np.float32) for b in blocks) else np.float64
    x = np.concatenate([block.astype(kind, copy=False) for block in blocks], axis=1)
    if not np.isfinite(x).all():
        first = int(np.argmin(np.isfinite(x).all(axis=0)))
        row = int(np.argmin(np.isfinite(x[:, first])))
        name = names[int(np.searchsorted(np.cumsum([b.shape[1] for b in blocks]), first, side="right"))]
        msg = f"{where}, row {batch.positions[row]}: {x[row, first]} in column {name!r}"
        raise ShardError(msg, "finite numbers", "filter or fill the column, or skip bad shards")
    return x


def encoded(where: str, batch: Batch, name: str, recipe: Recipe, fill: tuple[float, ...] | None) -> np.ndarray:
    """The numbers of one feature.

    Parameters
    ----------
    where : str
    batch : Batch
    name : str
        A column, or a part of dates.
    recipe : Recipe
    fill : tuple of float, optional
        What stands for a missing value, by column; without it one is an error.

    Returns
    -------
    array of shape (n_rows, n_columns)
        float16 and float32 as they are, one-hot in float32, all else in float64; so are those with a missing value
        whose fill is none of their type.

    Raises
    ------
    ShardError
        Naming shard, row and column.
    """
    levels = recipe.levels(name)
    if levels is None:
        block = numbers(where, batch.table, name)
        lost = np.isnan(block)
    else:
        texts = names_of(where, batch.table, name, levels)
        block = _one_hot(where, batch, name, texts, levels, recipe)
        lost = np.asarray(texts.is_null().to_numpy(zero_copy_only=False))[:, None]
    if not lost.any():
        return block
    if fill is None:
        _refuse(where, batch, name, lost.any(axis=1))
    elif len(fill) != block.shape[1]:
        msg = f"{where}: {block.shape[1]} numbers a row in column {name!r}"
        raise ShardError(msg, f"{len(fill)}, as when the means were found")
    else:  # a list may lack one of its elements: the others stay
        with np.errstate(over="ignore"):
            values = np.asarray(fill, block.dtype)
        # A mean is seldom a number of float32, and less often one of float16.
        block = np.where(lost, values if np.array_equal(values, fill) else np.asarray(fill), block)
    return block


def names_of(where: str, table: pa.RecordBatch, name: str, levels: tuple[str, ...]) -> pa.Array:
    """A category's values as text; NaN is none, unless a dictionary of before has it."""
    values = values_of(where, table, name)
    if pa.types.is_floating(values.type) and "nan" not in levels:
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    texts = strings_of(values)
    if not levels or texts.type != pa.string():
        return texts
    # The same rows in another format, such as CSV, may spell a number, a day or a truth value otherwise.
    spelled, known = texts.dictionary_encode(), frozenset(levels)
    told = [_spelled(text, known) for text in spelled.dictionary.to_pylist()]
    return texts if told == spelled.dictionary.to_pylist() else pa.array(told, pa.string()).take(spelled.indices)


def _spelled(text: str, levels: frozenset[str]) -> str:
    """A value as it stands in a dictionary, where it is there in another spelling: true as True, 2.0 as 2, a day.

    Names differ by their case, and codes by their leading zeros: these stay as they are.
    """
    if text in levels:
        return text
    others = [text.removesuffix(ending) for ending in _MIDNIGHTS]
    if text.lower() in ("true", "false"):
        others += [text.capitalize(), text.lower()]
    if _DECIMAL.fullmatch(text):
        others.append(str(pa.scalar(float(text)).cast(pa.string()).as_py()))
    return next((other for other in others if other in levels), text)


def values_of(where: str, table: pa.RecordBatch, name: str) -> pa.Array:
    """A column, or a part of its dates.

    Raises
    ------
    ShardError
        If there is no such column, or it holds no dates.
    """
    column, part = date_part(name)
    values = plain_column(table, column)
    if part is None:
        return values
    times = times_of(where, column, values)
    if part == "days":
        return times
    return _PARTS[part](times)


def plain_column(table: pa.RecordBatch, name: str) -> pa.Array:
    """A column without a dictionary."""
    column = table.column(table.schema.get_field_index(name))
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def times_of(where: str, column: str, values: pa.Array) -> pa.Array:
    """Times without a zone, those of an instant in UTC.

    Raises
    ------
    ShardError
        If they are no dates or times, nor text of them.
    """
    kind = values.type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return values.cast(pa.timestamp(kind.unit, "UTC")).cast(pa.int64()).cast(pa.timestamp(kind.unit))
    if pa.types.is_timestamp(kind):
        return values
    if pa.types.is_date(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        try:
            try:
                return values.cast(pa.timestamp("us"))
            except pa.ArrowInvalid:  # instants, such as JSON has them: 2026-01-01T05:00:00Z
                if pa.types.is_date(kind):
                    raise
                return times_of(where, column, values.cast(pa.timestamp("us", "UTC")))
        except pa.ArrowInvalid as error:
            msg = f"{where}: column {column!r}: {str(error).splitlines()[0]}"
            raise ShardError(msg, "ISO 8601 dates or times") from error
    msg = f"{where}: column {column!r} has type {kind}"
    raise ShardError(msg, "dates or times")


def numbers(where: str, table: pa.RecordBatch, name: str) -> np.ndarray:
    """A column's numbers, NaN where there is none; shape (n_rows, n_elements).

    Raises
    ------
    ShardError
        If they are no numbers, or lists of several lengths.
    """
    column = values_of(where, table, name)
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _lists(where, name, column)
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return _days(times_of(where, name, column))[:, None]
    if pa.types.is_decimal(kind) or pa.types.is_null(kind):  # a file may have no value of a column
        return _floats(column.cast(pa.float64()))[:, None]
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        msg = f"{where}: column {name!r} has type {kind}"
        hint = "name a column of names in `categories`, or hash it; parts of dates are like weekday(date)"
        raise ShardError(msg, "numbers, booleans, dates or lists of numbers", hint)
    return _floats(column)[:, None]


def _floats(column: pa.Array) -> np.ndarray:
    if pa.types.is_floating(column.type):  # nulls become NaN, in the column's own type
        return np.asarray(column.to_numpy(zero_copy_only=False))
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    if column.null_count:
        column = column.cast(pa.float64(), safe=False)
    return np.asarray(column.to_numpy(zero_copy_only=False)).astype(np.float64)


def _lists(where: str, name: str, column: pa.Array) -> np.ndarray:
    element = column.type.value_type
    if not (pa.types.is_integer(element) or pa.types.is_floating(element) or pa.types.is_boolean(element)):
        msg = f"{where}: column {name!r} has type {column.type}"
        raise ShardError(msg, "lists of numbers")
    width = column.type.list_size if pa.types.is_fixed_size_list(column.type) else None
    there = np.asarray(column.is_valid().to_numpy(zero_copy_only=False))
    if width is None:
        lengths = np.unique(np.asarray(pc.list_value_length(column.drop_null()).to_numpy(zero_copy_only=False)))
        if len(lengths) > 1:
            msg = f"{where}: lists of {lengths[0]} and of {lengths[-1]} numbers in column {name!r}"
            raise ShardError(msg, "lists of one length")
        width = int(lengths[0]) if len(lengths) else 1
    flat = _floats(column.drop_null().flatten()).reshape(-1, width)
    if there.all():
        return flat
    block = np.full((len(column), width), np.nan, flat.dtype)
    block[there] = flat
    return block


def _days(times: pa.Array) -> np.ndarray:
    """Days since 1970-01-01, with fractions; exact for whole days."""
    unit = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[times.type.unit]
    ticks = times.cast(pa.int64())
    whole = np.asarray(ticks.fill_null(0).to_numpy(zero_copy_only=False)) if ticks.null_count else ticks.to_numpy()
    days = whole / (86_400.0 * unit)
    return np.where(np.asarray(ticks.is_null().to_numpy(zero_copy_only=False)), np.nan, days)


def _one_hot(
    where: str, batch: Batch, name: str, texts: pa.Array, levels: tuple[str, ...], recipe: Recipe
) -> np.ndarray:
    found = pc.index_in(texts, value_set=pa.array(levels, pa.string()), skip_nulls=True)
    there = np.asarray(found.is_valid().to_numpy(zero_copy_only=False))
    strange = ~there & np.asarray(texts.is_valid().to_numpy(zero_copy_only=False))
    if recipe.unseen == "error" and strange.any():
        row = int(np.argmax(strange))
        msg = f"{where}, row {batch.positions[row]}: {texts[row].as_py()!r} in column {name!r}"
        few = f"one of the {len(levels)} values that were there when the store was made"
        raise ShardError(msg, few, "skip bad shards, or make a store with unseen = 'zero'")
    block = np.zeros((len(texts), len(levels)), np.float32)
    rows = np.flatnonzero(there)
    block[rows, np.asarray(found.drop_null().to_numpy(zero_copy_only=False))] = 1.0
    return block


def _refuse(where: str, batch: Batch, name: str, gone: np.ndarray) -> None:
    if gone.any():
        row = int(np.argmax(gone))
        msg = f"{where}, row {batch.positions[row]}: null or NaN in column {name!r}"
        remedy = "set `missing` (or `missing_target`) in [corpus], filter or fill the column, or skip bad shards"
        raise ShardError(msg, "a value in every row", remedy)
