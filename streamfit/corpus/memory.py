"""Rows in memory as a table: Arrow data, NumPy, dask and SciPy arrays. Floor 4.

A source travels to workers with its rows, so that large data is better spooled (`spool`) or lies in files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse

from streamfit.corpus.row_ranges import RowRanges, batch_of, plain
from streamfit.errors import CorpusError


@dataclass(frozen=True)
class ArrowRows(RowRanges):
    """The rows of an Arrow table in memory.

    Parameters
    ----------
    data : pyarrow.Table
    name : str
        What stands for a path in keys and messages.
    """

    data: pa.Table = field(repr=False)
    name: str = "memory"

    def origin(self) -> dict[str, Any]:
        return {"kind": "memory"}

    def sets(self) -> list[tuple[str, str, int]]:
        return [(self.name, f"memory:{self.name}", self.data.num_rows)]

    def names_of(self, uri: str) -> list[str]:
        return sorted(self.data.column_names)

    def rows_of(self, uri: str, start: int, stop: int, columns: Sequence[str]) -> pa.RecordBatch:
        part = self.data.slice(start, stop - start).select(list(columns)).combine_chunks()
        return pa.RecordBatch.from_pydict(
            {name: plain(_one_chunk(part.column(name), part.schema.field(name).type)) for name in columns}
        )


def _one_chunk(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    return column.chunk(0) if column.num_chunks else pa.array([], kind)


@dataclass(frozen=True)
class ArrayRows(RowRanges):
    """Arrays by name, rows first: NumPy, memory-mapped, dask, Zarr, or SciPy sparse ones.

    A range of rows is computed when it is read; a sparse one is spread out then.

    Parameters
    ----------
    arrays : mapping of str to array of shape (n_rows,) or (n_rows, ...)
    name : str
        What stands for a path in keys and messages.

    Raises
    ------
    CorpusError
        If their lengths differ.
    """

    arrays: Mapping[str, Any] = field(repr=False)
    name: str = "memory"

    def __post_init__(self) -> None:
        lengths = {name: _length(array) for name, array in self.arrays.items()}
        if len(set(lengths.values())) != 1:
            told = ", ".join(f"{name} has {n:,}" for name, n in lengths.items())
            msg = f"arrays of several lengths: {told}"
            raise CorpusError(msg, "as many rows in each")

    def origin(self) -> dict[str, Any]:
        return {"kind": "memory"}

    def sets(self) -> list[tuple[str, str, int]]:
        return [(self.name, f"memory:{self.name}", _length(next(iter(self.arrays.values()))))]

    def names_of(self, uri: str) -> list[str]:
        return sorted(self.arrays)

    def rows_of(self, uri: str, start: int, stop: int, columns: Sequence[str]) -> pa.RecordBatch:
        return batch_of({name: _computed(self.arrays[name], start, stop) for name in columns})


def _length(array: Any) -> int:
    n_rows = array.shape[0]
    if n_rows != n_rows:  # dask does not know the length of what a filter or a data frame left
        array.compute_chunk_sizes()
        n_rows = array.shape[0]
    return int(n_rows)


def _computed(array: Any, start: int, stop: int) -> np.ndarray:
    if scipy.sparse.issparse(array):
        rows = array if array.format in ("csr", "csc", "lil") else array.tocsr()
        return np.asarray(rows[start:stop].toarray())
    part = array[start:stop]
    if isinstance(part, np.ma.MaskedArray):
        return part
    if hasattr(part, "compute"):
        part = part.compute(scheduler="synchronous")
        part = part.toarray() if scipy.sparse.issparse(part) else part
    return np.asarray(part)
