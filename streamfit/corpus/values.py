"""Values of columns and of JSON fields as strings, so that a label, a selection and a deletion mean the same thing.

A *key* names what a row is told apart by: a column's name, or a column's name and a period, such as `stamp|day`, for
a column of times that counts by its day, month or year. Booleans are `true` and `false`, dates are ISO 8601, and an
instant with a time zone falls on its day in UTC, the same on every machine. Floor 4.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Period = Literal["day", "month", "year"]
Select = tuple[tuple[str, str], ...]

_LENGTH: dict[Period, int] = {"day": 10, "month": 7, "year": 4}
_ISO = re.compile(r"\d{4}|\d{4}-\d{2}|\d{4}-\d{2}-\d{2}([T ].+)?|\d{8}(T.+)?", re.ASCII)


def time_key(column: str, period: Period) -> str:
    """Key of a column of times."""
    return f"{column}|{period}"


def column_of(key: str) -> tuple[str, Period | None]:
    """Column that a key speaks of, and the period that its times are cut to.

    Examples
    --------
    >>> column_of("stamp|month"), column_of("region")
    (('stamp', 'month'), ('region', None))
    """
    column, _, ending = key.rpartition("|")
    for period in get_args(Period):
        if ending == period and column:
            return column, period
    return key, None


def period_of(text: str, period: Period) -> str | None:
    """Date, month or year of an ISO 8601 time, cut to a period where it is finer; None for anything else.

    Examples
    --------
    >>> period_of("2026-11-23T23:30:00-05:00", "day"), period_of("20261123", "month"), period_of("2026", "day")
    ('2026-11-24', '2026-11', '2026')
    >>> period_of("23.11.2026", "day") is None
    True
    """
    if not _ISO.fullmatch(text):
        return None
    try:
        if len(text) < 8:
            date(int(text[:4]), int(text[5:] or 1), 1)
            whole = text
        else:
            moment = datetime.fromisoformat(text)
            whole = (moment.astimezone(UTC) if moment.tzinfo else moment).date().isoformat()
    except (ValueError, OverflowError):
        return None
    return whole[: _LENGTH[period]]


def is_plain(kind: pa.DataType) -> bool:
    """Whether a column's values can be told apart as strings: numbers, strings, dates, no lists."""
    try:
        pa.array([], kind).cast(pa.string())
    except pa.ArrowException:
        return False
    return not pa.types.is_nested(kind)


def strings_of(column: pa.Array | pa.ChunkedArray, period: Period | None = None) -> pa.Array:
    """A column as strings, null where a value is null, no string, or (with a period) no time."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not is_plain(array.type):
        return pa.nulls(len(array), pa.string())
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_timestamp(array.type):
        if array.type.tz is not None:
            array = array.cast(pa.timestamp(array.type.unit, "UTC"))
        if period is not None:  # straight to whole days: years that ISO 8601 has no room for stay visible
            array = array.cast(pa.int64()).cast(pa.timestamp(array.type.unit)).cast(pa.date32())
    try:
        texts = array.cast(pa.string())
    except pa.ArrowInvalid:  # bytes that are no text
        return pa.nulls(len(array), pa.string())
    if period is None:
        return texts
    encoded = texts.dictionary_encode()
    cut = [None if text is None else period_of(text, period) for text in encoded.dictionary.to_pylist()]
    return pa.array(cut, pa.string()).take(encoded.indices)


def json_value(record: dict[str, Any], key: str) -> str | None:
    """Value of a JSON object under a key as a string; None where there is none that is plain.

    Examples
    --------
    >>> record = {"ok": True, "n": 3, "at": "2026-11-23T10:00:00Z", "tags": []}
    >>> [json_value(record, key) for key in ("ok", "n", "at|month", "tags", "other")]
    ['true', '3', '2026-11', None, None]
    """
    column, period = column_of(key)
    value = record.get(column)
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str | int | float):
        text = str(value)
    else:
        return None
    if not _is_text(text):
        return None
    return text if period is None else period_of(text, period)


def _is_text(text: str) -> bool:
    # JSON and the command line can spell half a surrogate pair, which is no text.
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def selected(n_rows: int, select: Select, column: Callable[[str], pa.Array]) -> np.ndarray:
    """Which rows have the values that are selected.

    Parameters
    ----------
    n_rows : int
    select : tuple of (key, value)
    column : callable
        From a column's name to its values.

    Returns
    -------
    mask : boolean array of shape (n_rows,)
    """
    mask = np.ones(n_rows, bool)
    for key, value in select:
        name, period = column_of(key)
        mask &= matching(column(name), frozenset([value]), period)
    return mask


def matching(column: pa.Array | pa.ChunkedArray, values: frozenset[str], period: Period | None = None) -> np.ndarray:
    """Which rows have one of some values."""
    wanted = pa.array(sorted(filter(_is_text, values)), pa.string())
    found = pc.is_in(strings_of(column, period), value_set=wanted, skip_nulls=True)
    return np.asarray(found.to_numpy(zero_copy_only=False))


def kept(n_rows: int, without: tuple[int, ...]) -> np.ndarray:
    """Which rows of a part are not left out: a boolean array of shape (n_rows,)."""
    mask = np.ones(n_rows, bool)
    out = np.asarray(without, np.int64)
    mask[out[out < n_rows]] = False
    return mask
