"""Which rows of a table count, by a recipe: filters, the part that they are for, and what they lack. Floor 4."""

from __future__ import annotations

import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamfit.corpus.base import Split
from streamfit.corpus.encode import names_of, numbers, plain_column, times_of, values_of
from streamfit.corpus.recipe import Filter, Recipe
from streamfit.corpus.values import matching
from streamfit.errors import ShardError

_COMPARE = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def counting(where: str, table: pa.RecordBatch, recipe: Recipe, split: Split | None) -> np.ndarray:
    """Which rows count: those of the split that meet the filters and lack nothing that drops them.

    Parameters
    ----------
    where : str
        Key of the shard, for messages.
    table : RecordBatch
    recipe : Recipe
    split : {'train', 'validation', 'test'}, optional

    Returns
    -------
    mask : boolean array of shape (n_rows,)

    Raises
    ------
    ShardError
        If a column cannot be compared with a filter's value, or is of no usable type.
    """
    mask = np.ones(table.num_rows, bool)
    for each in recipe.filters:
        mask &= _meets(where, plain_column(table, each.column), each)
    if recipe.split_column and split is not None:
        mask &= matching(plain_column(table, recipe.split_column), frozenset([recipe.split_value(split)]))
    for name in recipe.needed:
        mask &= ~lacking(where, table, name, recipe)
    if recipe.missing_target == "drop":
        for name in (*recipe.target, *([recipe.weight] if recipe.weight else [])):
            mask &= ~lacking(where, table, name, recipe)
    return mask


def lacking(where: str, table: pa.RecordBatch, name: str, recipe: Recipe) -> np.ndarray:
    """Which rows have no value for a feature, or NaN; of lists, in any element. A boolean array of shape (n_rows,)."""
    levels = recipe.classes if recipe.classes and name in recipe.target else recipe.levels(name)
    if levels is not None:
        return np.asarray(names_of(where, table, name, levels).is_null().to_numpy(zero_copy_only=False))
    column = values_of(where, table, name)
    if not column.null_count and (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
        return np.zeros(len(column), bool)
    return np.asarray(np.isnan(numbers(where, table, name)).any(axis=1))


def _meets(where: str, column: pa.Array, each: Filter) -> np.ndarray:
    """Which rows meet a condition."""
    if pa.types.is_null(column.type):
        return np.zeros(len(column), bool)
    values = each.value if isinstance(each.value, tuple) else (each.value,)
    try:
        wanted = pa.array([_as(column.type, value) for value in values])
        if pa.types.is_string(wanted.type) and (pa.types.is_date(column.type) or pa.types.is_timestamp(column.type)):
            # A day, a time and an instant compare whatever the column is: without a zone they are of UTC.
            wanted, column = times_of(where, each.column, wanted), times_of(where, each.column, column)
            column = column if column.type.unit in ("us", "ns") else column.cast(wanted.type)
        if _is_number(column.type) and wanted.type != column.type:  # 2.5 among whole numbers, 300 among bytes, halves
            column = column.cast(pa.float32()).cast(pa.float64()) if column.type == pa.float16() else column
            try:
                wanted = wanted.cast(column.type)
            except pa.ArrowInvalid:
                column, wanted = column.cast(pa.float64(), safe=False), wanted.cast(pa.float64())
        if pa.types.is_decimal(column.type):  # as it is written: 5.05 is no binary fraction
            wanted = pa.array([decimal.Decimal(repr(value)) for value in values])
            column = column.cast(kind := pa.decimal256(76, max(column.type.scale, wanted.type.scale)))
            wanted = wanted.cast(kind)
        wanted = wanted.cast(column.type)
        if each.operator in ("in", "not in"):
            found = pc.is_in(column, value_set=wanted, skip_nulls=True)
            found = pc.and_(pc.invert(found), column.is_valid()) if each.operator == "not in" else found
        else:
            found = _COMPARE[each.operator](column, wanted[0])
    except (pa.ArrowException, TypeError, ValueError, ShardError) as error:
        msg = f"{where}: the filter {each.column} {each.operator} {each.value!r} on a column of type {column.type}"
        raise ShardError(msg, "a value of the column's type", "correct `filters` in the config") from error
    if pa.types.is_floating(column.type):
        found = pc.and_(found, pc.invert(pc.is_nan(column)))
    return np.asarray(found.fill_null(False).to_numpy(zero_copy_only=False)).astype(bool)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _as(kind: pa.DataType, value: Any) -> Any:
    """A filter's value as something that casts to a column's type, or an error."""
    if isinstance(value, str) == (_is_number(kind) or pa.types.is_decimal(kind) or pa.types.is_boolean(kind)):
        msg = f"{value!r} for {kind}"
        raise TypeError(msg)
    return value
