"""Rows from standard input, predictions to standard output, as they come. Floor 7."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TextIO

import pyarrow as pa
import pyarrow.compute as pc

from streamfit.errors import ConfigError, ShardError
from streamfit.features import Hashed
from streamfit.frame import BLOCK_ROWS
from streamfit.predicting import Predictor
from streamfit.table_files import json_line

RowFormat = Literal["csv", "jsonl"]
_READ_BYTES = 2**16


class Lines:
    """Lines of a file descriptor; `idle` where the next would have to be waited for.

    Parameters
    ----------
    descriptor : int
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._ready: list[str] = []
        self._rest = b""
        self._done = False

    @property
    def idle(self) -> bool:
        """Whether no whole line lies here."""
        return not self._ready

    def peek(self) -> str:
        """The next line, which stays; empty at the end."""
        self._fill()
        return self._ready[-1] if self._ready else ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self._fill()
        if not self._ready:
            raise StopIteration
        return self._ready.pop()

    def _fill(self) -> None:
        while not self._ready and not self._done:
            data = os.read(self._descriptor, _READ_BYTES)
            self._done = not data
            *whole, self._rest = (self._rest + data).split(b"\n")
            if self._done and self._rest:
                whole, self._rest = [*whole, self._rest], b""
            try:
                self._ready = [line.decode() + "\n" for line in reversed(whole)]
            except UnicodeDecodeError as error:
                msg = f"standard input: {error}"
                raise ShardError(msg, "text in UTF-8") from error


def predict_lines(predictor: Predictor, descriptor: int, out: TextIO, form: RowFormat | None = None) -> int:
    """Predict rows as they come, and write a line for each: CSV with a header, or JSON objects.

    Lines that are there are predicted together, and what is predicted is written before more is waited for.

    Parameters
    ----------
    predictor : Predictor
    descriptor : int
        File descriptor of the input.
    out : text file
    form : {'csv', 'jsonl'}, optional
        Of input and output; without it JSON where the first line is an object.

    Returns
    -------
    int
        Number of rows.

    Raises
    ------
    ShardError
        If a line is no row of numbers; lines before it may have been answered.
    ConfigError
        If rows to be hashed are CSV, which does not say what is a number and what is a name.
    """
    lines = Lines(descriptor)
    if form is None:
        form = "jsonl" if lines.peek().lstrip().startswith("{") else "csv"
    if form == "csv" and isinstance(predictor.model.features, Hashed):
        msg = "CSV rows for hashed features"
        raise ConfigError(msg, "JSON lines", "CSV does not say what is a number and what is a name")
    write = _csv_writer(out) if form == "csv" else _json_writer(out)
    n_rows = 0
    for batch in _batches(lines, _csv_rows(lines, predictor.columns) if form == "csv" else _json_rows(lines)):
        table = _table(batch, predictor, n_rows, text=form == "csv")
        write(predictor.of(table, "standard input", n_rows))
        out.flush()
        n_rows += len(batch)
    return n_rows


def _batches(lines: Lines, rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if lines.idle or len(batch) == BLOCK_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _json_rows(lines: Lines) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            msg = f"standard input, line {number + 1}: {error}"
            raise ShardError(msg, "a JSON object a line") from error
        if not isinstance(row, dict):
            msg = f"standard input, line {number + 1}: {type(row).__name__}"
            raise ShardError(msg, "a JSON object a line")
        yield row


def _require(names: list[str], there: Iterable[str], where: str) -> None:
    told = set(there)
    if missing := [name for name in names if name not in told]:
        msg = f"standard input, {where}: no {', '.join(map(repr, missing))} among {', '.join(there)}"
        raise ShardError(msg, "every feature of the model, and every column to keep")


def _csv_rows(lines: Lines, names: list[str]) -> Iterator[dict[str, Any]]:
    reader = csv.reader(lines)
    header = next(reader, [])
    header[:1] = [name.removeprefix("\ufeff") for name in header[:1]]  # what some programs begin UTF-8 with
    if header:
        _require(names, header, "header")
    for row in reader:
        if not row:
            continue
        if len(row) != len(header):
            msg = f"standard input, line {reader.line_num}: {len(row)} values"
            raise ShardError(msg, f"{len(header)}, as the header has names")
        yield dict(zip(header, row, strict=True))


def _table(rows: list[dict[str, Any]], predictor: Predictor, first: int, *, text: bool) -> pa.RecordBatch:
    names = predictor.columns
    _require(names, rows[0], f"row {first}")
    try:
        columns = [pa.array([row.get(name) for row in rows]) for name in names]
        plain, told = dict.fromkeys(predictor.numbers, pa.float64()), predictor.types
        columns = [_typed(column, plain.get(n), told.get(n), text) for n, column in zip(names, columns, strict=True)]
        columns = [_fixed(column) for column in columns]
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        msg = f"standard input, rows {first} to {first + len(rows) - 1}: {str(error).splitlines()[0]}"
        raise ShardError(msg, "a number for every feature") from error
    return pa.RecordBatch.from_arrays(columns, names)


def _typed(column: pa.Array, plain: pa.DataType | None, told: pa.DataType | None, text: bool) -> pa.Array:
    """Text as the type that its column has, or as numbers where all is text; no text at all is no value."""
    kind = told or (plain if text or pa.types.is_null(column.type) else None)
    if kind is None or not (pa.types.is_string(column.type) or pa.types.is_null(column.type)):
        return column
    if pa.types.is_string(column.type):
        column = pc.replace_with_mask(column, pc.equal(column, ""), pa.scalar(None, pa.string()))
    return pc.cast(column, kind)


def _fixed(column: pa.Array) -> pa.Array:
    """Lists that are all of one length as such; JSON does not say it."""
    if not pa.types.is_list(column.type) or pa.types.is_string(column.type.value_type):
        return column
    lengths = pc.unique(pc.list_value_length(column))
    return column.cast(pa.list_(column.type.value_type, lengths[0].as_py())) if len(lengths) == 1 else column


def _json_writer(out: TextIO) -> Callable[[pa.Table], None]:
    return lambda table: out.writelines(json_line(row) for row in table.to_pylist())


def _csv_writer(out: TextIO) -> Callable[[pa.Table], None]:
    begun = False

    def write(table: pa.Table) -> None:
        nonlocal begun
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not begun:
            writer.writerow(table.column_names)
            begun = True
        writer.writerows(row.values() for row in table.to_pylist())
        out.write(text.getvalue())

    return write
