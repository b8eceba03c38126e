"""Streams of rows, written once to a folder of Arrow files, from which they are read again and again. Floor 4.

A stream can be read only once, but a store must be able to go on after a crash, to verify and to forget. So what comes
from a query, a generator or a data set that is streamed is spooled: ranges of rows are written as Arrow files in
bounded memory. A folder is the copy of one stream, and a file the range of it that its name counts: spooling the same
rows again writes nothing, and a stream that has grown or changed is seen as a file is that has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from streamfit.corpus.base import Files
from streamfit.corpus.dataset import DatasetFiles
from streamfit.corpus.formats import ArrowFile
from streamfit.corpus.row_ranges import plain, row_hash
from streamfit.corpus.table import SHARD_ROWS
from streamfit.errors import CorpusError

_HF_ROWS = 1024
_NAMES = "rows-*.arrow"
_BEFORE = "equal ranges before"
"""Key of a file's metadata: how many ranges of the stream before it have its content."""


def batches_from(rows: Any) -> Iterator[pa.RecordBatch]:
    """Arrow batches of anything that gives rows, a bounded number at a time.

    Parameters
    ----------
    rows : object
        What has ``__arrow_c_stream__`` (polars, duckdb, pandas, pyarrow), a Hugging Face data set (map-style or
        streaming; no code of it is run), a dask data frame, or an iterable of Arrow tables and batches.

    Raises
    ------
    CorpusError
        If it is none of them, or its rows are of a type that Arrow does not know.
    """
    try:
        yield from _batches_from(rows)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        msg = f"rows from a {type(rows).__name__}: {str(error).splitlines()[0]}"
        raise CorpusError(msg, "types of Arrow", "cast the column") from error


def _batches_from(rows: Any) -> Iterator[pa.RecordBatch]:
    module = type(rows).__module__
    if module.startswith("datasets."):
        if getattr(rows, "format", None) and rows.format["type"] == "custom":
            msg = "a Hugging Face data set with a transform, which is code that a refit may not find"
            raise CorpusError(
                msg, "rows as they are", "write what it makes: rows.map(transform), or rows.reset_format()"
            )
        for table in rows.with_format("arrow").iter(_HF_ROWS):
            yield from _batches(table)
    elif hasattr(rows, "dask") and hasattr(rows, "npartitions") and hasattr(rows, "get_partition"):
        for i in range(rows.npartitions):
            frame = rows.get_partition(i).compute(scheduler="synchronous")
            yield from pa.Table.from_pandas(frame, preserve_index=False).to_batches()
    elif hasattr(rows, "__arrow_c_stream__"):
        yield from pa.RecordBatchReader.from_stream(rows)
    elif isinstance(rows, pa.RecordBatch) or hasattr(rows, "__arrow_c_array__"):
        yield pa.record_batch(rows)
    elif isinstance(rows, Iterable) and not isinstance(rows, str | bytes):
        for each in rows:
            yield from _batches(each)
    else:
        msg = f"rows from a {type(rows).__name__}"
        expected = "an Arrow stream, a Hugging Face data set, a dask data frame, or Arrow batches"
        remedy = "collect it first: rows.collect()" if hasattr(rows, "collect") else ""
        raise CorpusError(msg, expected, remedy)


def _batches(each: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(each, pa.RecordBatch):
        yield each
    elif isinstance(each, pa.Table):
        yield from each.to_batches()
    elif hasattr(each, "__arrow_c_stream__"):
        yield from pa.RecordBatchReader.from_stream(each)
    else:
        msg = f"a {type(each).__name__} in a stream of rows"
        raise CorpusError(msg, "Arrow tables or batches")


def spool(rows: Any, folder: str | Path, *, shard_rows: int = SHARD_ROWS, **given: Any) -> DatasetFiles:
    """Write a stream to a folder, and give the source that reads it from there.

    Parameters
    ----------
    rows : object
        As in `batches_from`.
    folder : str or Path
        Of this stream alone: what it has of another, or of more rows than there are now, gives way.
    shard_rows : int
        Rows of a file.
    **given
        As in `DatasetFiles`, above all `recipe`.

    Raises
    ------
    CorpusError
        If rows are of several schemas, or there are none.
    """
    target = Path(folder).expanduser().absolute()
    target.mkdir(parents=True, exist_ok=True)
    written, seen = set(), Counter[str]()
    for i, batch in enumerate(_ranges(batches_from(rows), shard_rows)):
        written.add(path := target / f"rows-{i:06d}.arrow")
        digest = row_hash(batch)
        before = seen[digest]
        seen[digest] += 1
        # Rows of one stream are rows, however often: the same content once more is another file.
        _write(path, batch.replace_schema_metadata({_BEFORE: str(before)} if before else None), digest)
    if not written:
        msg = f"a {type(rows).__name__} without rows"
        raise CorpusError(msg, "at least one")
    for left in {*target.glob(_NAMES)} - written:
        left.unlink()
    return DatasetFiles(Files(str(target), include=(_NAMES,)), "arrow", ArrowFile(), **given)


def _ranges(batches: Iterable[pa.RecordBatch], n_rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of exactly `n_rows` but for the last, all of one schema."""
    held: list[pa.RecordBatch] = []
    for raw in batches:
        batch = pa.RecordBatch.from_pydict({name: plain(raw.column(name)) for name in raw.schema.names})
        if held and batch.schema != held[0].schema:
            msg = f"rows of the columns {batch.schema.to_string(show_field_metadata=False)!r}"
            raise CorpusError(msg, f"those of the first rows: {held[0].schema.to_string()!r}")
        held.append(batch)
        while sum(map(len, held)) >= n_rows:
            whole = _joined(held)
            yield whole.slice(0, n_rows)
            held = [whole.slice(n_rows)]
    if held and sum(map(len, held)):
        yield _joined(held)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def _holds(path: Path, batch: pa.RecordBatch, digest: str) -> bool:
    try:
        with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as file:
            same = file.num_record_batches == 1 and file.schema.metadata == batch.schema.metadata
            return same and row_hash(file.get_batch(0)) == digest
    except (pa.ArrowException, OSError):
        return False


def _write(path: Path, batch: pa.RecordBatch, digest: str) -> None:
    if _holds(path, batch, digest):
        return
    partial = path.with_suffix(".partial")
    with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    partial.replace(path)
