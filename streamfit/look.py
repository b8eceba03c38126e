"""A look at data: of which kind it is, how many rows it has, and what its columns hold. Floor 7."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streamfit.corpus import array_files
from streamfit.corpus.array_files import ARRAYS, ArrayFiles
from streamfit.corpus.base import Files
from streamfit.corpus.dataset import DatasetFiles, path_values
from streamfit.corpus.recipe import Recipe
from streamfit.corpus.text_formats import Csv
from streamfit.corpus.values import is_plain, strings_of
from streamfit.errors import CorpusError
from streamfit.rows import kind_of

_ROWS = 20_000
"""Rows that are looked at."""
_FEW = 64
"""Values up to which names are one-hot; more are better hashed."""


@dataclass(frozen=True)
class Column:
    """What the first rows say of a column.

    Parameters
    ----------
    name : str
    role : {'number', 'list', 'category', 'text', 'date', 'id', 'constant', 'other'}
    n_values : int
        Distinct ones among the rows that were looked at.
    missing : int
        Rows without a value.
    whole : bool
        Whether all numbers are whole.
    top : int
        Largest number, where all are whole and none is negative; -1 otherwise.
    kind : str
        Its type.
    values : tuple of str
        Those of a category, sorted.
    """

    name: str
    role: str
    n_values: int
    missing: int
    whole: bool
    top: int
    kind: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Look:
    """What was found of a data set.

    Parameters
    ----------
    root, kind : str
    n_files, n_rows : int
        Rows of text formats are an estimate.
    exact : bool
        Whether the number of rows is known.
    columns : tuple of Column
    n_looked : int
        Rows that were looked at.
    hive : bool
        Whether folders are named as ``column=value``: these are columns as well, the last ones.
    n_parts : int
        Shards that it has at least.
    options : dict
        Of the format, such as a delimiter.
    """

    root: str
    kind: str
    n_files: int
    n_rows: int
    exact: bool
    columns: tuple[Column, ...]
    n_looked: int
    hive: bool = False
    n_parts: int = 1
    options: dict[str, Any] = field(default_factory=dict)


def look(root: str) -> Look:
    """Look at the schema, the number of rows, and the first of them.

    Raises
    ------
    CorpusError
        If there is nothing, or it cannot be read.
    ConfigError
        If its names do not say of which kind it is.
    """
    kind = kind_of(root)
    dummy = Recipe(("_",), ("_",))
    if kind in ARRAYS:
        return _look_at_arrays(root, kind)
    options: dict[str, Any] = {}
    table = DatasetFiles.of(kind, Files(root), recipe=dummy)
    first = table.found()[0]
    hive = "=" in (first.name.rpartition("/")[0] if first.name != first.uri else first.uri)
    if kind == "csv":
        options = _delimiter(first.uri)
        table = DatasetFiles.of(kind, Files(root), options=options, recipe=dummy)
    parts = {each.uri: table.format.cut(each.uri) for each in table.found()}
    cut = [part for found in parts.values() for part in found]
    first = next((each for each in table.found() if parts[each.uri]), first)
    if not cut or cut[0].start < 0:
        msg = f"{first.uri} has no rows, or is no whole file of kind {kind!r}"
        raise CorpusError(msg, "rows to look at")
    names = DatasetFiles.of(kind, Files(first.uri), options=options, recipe=dummy).settled().format.names_of(first.uri)
    # As features of a fit, so that columns of text are read as what they hold.
    every = Recipe(tuple(names), (names[-1],))
    table = DatasetFiles.of(kind, Files(first.uri), options=options, recipe=every).settled()
    batches, n_rows, whole = [], 0, True
    for batch in table.batches(table.parts()[0][1], names):
        if n_rows >= _ROWS:
            whole = False
            break
        batches.append(batch)
        n_rows += len(batch)
    total = sum(part.n_rows for part in cut)
    if kind in ("csv", "jsonl") and whole:  # what was read tells how long a line is
        total = round(n_rows * sum(part.high - part.low for part in cut) / (cut[0].high - cut[0].low))
    rows = pa.Table.from_batches(batches).slice(0, _ROWS)
    columns = tuple(_column(name, rows.column(name)) for name in names)
    if hive:
        columns += tuple(each for each in _in_paths(list(parts)) if each.name not in names)
    return Look(
        root,
        kind,
        len(parts),
        total,
        kind not in ("csv", "jsonl") or (whole and len(cut) == 1),
        columns,
        rows.num_rows,
        hive,
        len(cut),
        options,
    )


def _in_paths(uris: Sequence[str]) -> Iterator[Column]:
    """Columns whose values are in paths: names, as a path has them."""
    found = [path_values(uri, "hive") for uri in uris]
    for name in dict.fromkeys(name for values in found for name in values):
        texts = pa.chunked_array([pa.array([values.get(name) for values in found], pa.string())])
        values = tuple(sorted(texts.unique().drop_null().to_pylist()))
        role = "constant" if len(values) < 2 else "category" if len(values) <= _FEW else "text"
        given = values if role == "category" else ()
        yield Column(name, role, len(values), texts.null_count, False, -1, "text in the path", given)


def _delimiter(uri: str) -> dict[str, Any]:
    line = Csv().first_line(uri).decode("utf-8", "replace")
    best = max((",", ";", "\t", "|"), key=line.count)
    return {} if best == "," or not line.count(best) else {"delimiter": best}


def _look_at_arrays(root: str, kind: str) -> Look:
    names = array_files.columns_of(kind, root)
    if not names:
        msg = f"no arrays in {root}"
        raise CorpusError(msg, "an array for each column")
    table = ArrayFiles(Files(root), kind, recipe=Recipe((names[0],), (names[-1],)))
    _, uri, _ = table.sets()[0]
    longest = max(array_files.length_of(kind, uri, name) for name in names)
    same = [name for name in names if array_files.length_of(kind, uri, name) == longest]
    rows = pa.Table.from_batches([table.rows_of(uri, 0, min(longest, _ROWS), same)])
    columns = tuple(_column(name, rows.column(name)) for name in same)
    return Look(root, kind, len(table.sets()), longest, True, columns, rows.num_rows)


def _column(name: str, column: pa.ChunkedArray) -> Column:
    kind, array = column.type, column.combine_chunks()
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        element = kind.value_type
        numeric = pa.types.is_integer(element) or pa.types.is_floating(element)
        return Column(name, "list" if numeric else "other", 0, array.null_count, False, -1, str(kind))
    if not is_plain(kind):
        return Column(name, "other", 0, array.null_count, False, -1, str(kind))
    n_values = len(strings_of(array).unique().drop_null())
    missing = array.null_count
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return Column(name, "date", n_values, missing, False, -1, str(kind))
    if pa.types.is_boolean(kind):
        return Column(name, "number", n_values, missing, True, 1, str(kind))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = np.asarray(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
        values = values[np.isfinite(values)]
        missing = len(array) - len(values)
        whole = bool(len(values)) and bool((values == np.round(values)).all())
        top = int(values.max()) if whole and values.min() >= 0 and values.max() < 2**53 else -1
        role = "constant" if n_values < 2 else "number"
        if role == "number" and whole and n_values == len(array) and _steps_by_one(values):
            role = "id"
        return Column(name, role, n_values, missing, whole, top, str(kind))
    if n_values < 2:
        return Column(name, "constant", n_values, missing, False, -1, str(kind))
    named = n_values <= _FEW and 2 * n_values <= max(4, len(array))
    length = pc.mean(pc.utf8_length(strings_of(array))).as_py() or 0
    role = "category" if named else "id" if n_values == len(array) and length < 40 else "text"
    names = tuple(sorted(strings_of(array).unique().drop_null().to_pylist())) if role == "category" else ()
    return Column(name, role, n_values, missing, False, -1, str(kind), names)


def _steps_by_one(values: np.ndarray) -> bool:
    return len(values) > 2 and bool((np.abs(np.diff(values)) == 1).all())
