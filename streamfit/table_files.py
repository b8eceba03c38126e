"""Files of rows that are written whole, on a disk or in an object store. Floor 7."""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from streamfit.corpus.openings import is_empty, local_path, put_file
from streamfit.errors import ConfigError, CorpusError, StoreError

FORMATS = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "csv", ".feather": "feather"}
FORMATS |= {".arrow": "feather", ".jsonl": "json", ".ndjson": "json"}


def ending_of(path: str) -> str:
    """Ending of a name, where it says of which format a file is; empty otherwise."""
    suffix = PurePosixPath(path).suffix.lower()
    return suffix if suffix in FORMATS else ""


@contextmanager
def whole_folder(output: str | Path) -> Iterator[str]:
    """A folder to write files to, new or empty, that is there only once it is whole.

    In an object store, which has no folders, files are there as they come, and `_SUCCESS` once they all are.

    Raises
    ------
    ConfigError
        If it holds something.
    """
    where = local_path(str(output)).rstrip("/")
    remote = "://" in where
    if not is_empty(where) if remote else Path(where).is_dir() and any(Path(where).iterdir()):
        msg = f"{output} holds something already"
        raise ConfigError(msg, "a new or empty folder, or a file's name such as out.parquet")
    if remote:
        yield where
        with tempfile.NamedTemporaryFile() as nothing:
            put_file(f"{where}/_SUCCESS", Path(nothing.name))
        return
    target = Path(where).absolute()
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")  # a name that is nobody else's
    try:
        with _made(output):
            partial.mkdir(parents=True)
        yield str(partial)
        with _made(output):
            partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _made(output: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        msg = f"cannot write {output}: {error.strerror or error}"
        raise StoreError(msg, "a folder that can be made", "check disk space and permissions") from error


@contextmanager
def writing(output: str | Path) -> Iterator[Any]:
    """A function that appends a table to a file, which is there only once it is whole.

    What is for an object store is written to a temporary file first, and put there at the end.

    Raises
    ------
    CorpusError
        If there were no rows.
    StoreError
        If it cannot be written.
    """
    where = local_path(str(output))
    if "://" not in where:
        path = Path(where)
        with _whole(path.with_name(path.name + ".partial"), output) as write:
            yield write
            write.close()
            path.with_name(path.name + ".partial").replace(path)
        return
    with tempfile.TemporaryDirectory() as scratch:
        partial = Path(scratch) / PurePosixPath(where).name
        with _whole(partial, output) as write:
            yield write
            write.close()
            put_file(where, partial)


class _Written:
    """Tables one after another in a file that is being written; called with each."""

    def __init__(self, path: Path, output: str | Path, kind: str) -> None:
        self._path, self._output, self._kind = path, output, kind
        self._writer: Any = None
        self._schema = pa.schema([])

    def __call__(self, table: pa.Table | None) -> int:
        if table is None:
            return 0
        if self._writer is None:
            self._writer, self._schema = _writer(self._kind, self._path, table.schema), table.schema
        if table.schema != self._schema and self._kind != "json":
            try:
                table = table.cast(self._schema)
            except (pa.ArrowException, ValueError) as error:
                msg = f"rows of {table.schema.to_string(show_field_metadata=False)!r} for {self._output}"
                remedy = "keep other columns, or predict each file into one of its own"
                raise CorpusError(msg, f"those of the first: {self._schema.to_string()!r}", remedy) from error
        self._writer.write_table(table)
        return int(table.num_rows)

    def close(self) -> None:
        if self._writer is None:
            msg = f"no rows for {self._output}"
            raise CorpusError(msg, "at least one row")
        self._writer.close()


@contextmanager
def _whole(partial: Path, output: str | Path) -> Iterator[_Written]:
    try:
        yield _Written(partial, output, FORMATS[ending_of(str(output))])
    except OSError as error:
        msg = f"cannot write {output}: {error.strerror or error}"
        raise StoreError(msg, "a writable folder", "check disk space and permissions") from error
    finally:
        partial.unlink(missing_ok=True)


def _writer(kind: str, path: Path, schema: pa.Schema) -> Any:
    if kind == "parquet":
        return pq.ParquetWriter(path, schema)
    if kind == "feather":
        return pa.ipc.new_file(path, schema)
    if kind == "csv":
        tabs = ".tsv" in (suffix.lower() for suffix in path.suffixes)
        how = pyarrow.csv.WriteOptions(delimiter="\t" if tabs else ",")
        return pyarrow.csv.CSVWriter(path, schema, write_options=how)
    return _JsonWriter(path)


class _JsonWriter:
    """Rows as lines of JSON."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write_table(self, table: pa.Table) -> None:
        self._file.writelines(json_line(row) for row in table.to_pylist())

    def close(self) -> None:
        self._file.close()


def json_line(row: dict[str, Any]) -> str:
    """A row as a line of JSON."""
    return json.dumps(row, default=str) + "\n"
