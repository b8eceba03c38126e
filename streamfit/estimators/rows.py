"""Rows of whatever holds a table, a piece at a time: arrays, data frames, Arrow streams, dask collections.

Floor 6: imports errors. What lies in memory is one piece; what does not is never loaded whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from dask.base import compute, is_dask_collection

from streamfit.errors import ConfigError


class InputError(ConfigError, ValueError):
    """A mistake in what an estimator was given; a `ValueError` as well, as scikit-learn has it."""


def pieces(x: Any, y: Any, weights: Any = None) -> Iterator[tuple[Any, Any, Any]]:
    """Go through rows in the order in which they lie.

    Parameters
    ----------
    x : array-like, sparse array, data frame, Arrow table or stream, or dask array or data frame
        Of shape (n_rows, n_inputs).
    y : array-like or dask collection of shape (n_rows,) or (n_rows, n_targets)
        With as many partitions as `x`, and as many rows in each, where both are dask collections.
    weights : array-like or dask collection of shape (n_rows,), optional

    Yields
    ------
    x, y, weights
        In memory. Of a dask collection a block or partition at a time, of an Arrow stream a record batch.

    Raises
    ------
    InputError
        If pieces or rows of the three do not pair.
    """
    if is_dask_collection(x):
        yield from _paired(x, y, weights)
    elif _is_stream(x):
        yield from _beside((_table(batch) for batch in _batches(x)), local(y), local(weights))
    else:
        yield _table(x), local(y), local(weights)


def local(values: Any) -> Any:
    """Targets or weights in memory; None stays None. What NumPy reads by itself is left as it is."""
    if is_dask_collection(values):
        values = values.compute()
    if isinstance(values, pa.Array | pa.ChunkedArray | pa.Table) or type(values).__module__.startswith("polars"):
        return np.asarray(values)
    return values


def dask_blocks(x: Any) -> list[Any]:
    """A dask collection as its blocks of rows, each a dask collection of one partition."""
    if hasattr(x, "partitions") and not hasattr(x, "chunks"):
        return [x.partitions[i] for i in range(x.npartitions)]
    if x.ndim > 1 and x.numblocks[1] > 1:
        x = x.rechunk({1: -1})
    return [x.blocks[i] for i in range(x.numblocks[0])]


def _is_stream(x: Any) -> bool:
    """Whether these are Arrow batches that have yet to be read; tables in memory have a shape."""
    return hasattr(x, "__arrow_c_stream__") and not hasattr(x, "__array__")


def _batches(x: Any) -> Iterator[pa.RecordBatch]:
    return (batch for batch in pa.RecordBatchReader.from_stream(x) if batch.num_rows)


def _table(x: Any) -> Any:
    return pa.Table.from_batches([x]) if isinstance(x, pa.RecordBatch) else x


def _paired(x: Any, y: Any, weights: Any) -> Iterator[tuple[Any, Any, Any]]:
    blocks = dask_blocks(x)
    beside: list[Any] = []
    for name, other in (("y", y), ("sample_weight", weights)):
        if not is_dask_collection(other):
            beside.append(None)
            continue
        parts = dask_blocks(other)
        if len(parts) != len(blocks):
            msg = f"{name} in {len(parts)} blocks of rows"
            raise InputError(msg, f"{len(blocks)}, as X has", "rechunk or repartition one of them")
        beside.append(parts)
    given, kept = local(y) if beside[0] is None else None, local(weights) if beside[1] is None else None
    lo = 0
    for i, block in enumerate(blocks):
        # Together, so that what they share is computed once.
        rows, targets, heavy = compute(block, *(parts[i] if parts is not None else None for parts in beside))
        hi = lo + len(rows)
        yield (
            rows,
            targets if beside[0] is not None else _part(given, lo, hi),
            heavy if beside[1] is not None else _part(kept, lo, hi),
        )
        lo = hi
    _refuse_rest(given, kept, lo)


def _beside(tables: Iterator[Any], y: Any, weights: Any) -> Iterator[tuple[Any, Any, Any]]:
    lo = 0
    for table in tables:
        hi = lo + len(table)
        yield table, _part(y, lo, hi), _part(weights, lo, hi)
        lo = hi
    _refuse_rest(y, weights, lo)


def _part(values: Any, lo: int, hi: int) -> Any:
    return None if values is None else np.asarray(values)[lo:hi]


def _refuse_rest(y: Any, weights: Any, n_rows: int) -> None:
    for name, values in (("y", y), ("sample_weight", weights)):
        if values is not None and len(values) != n_rows:
            msg = f"{len(values)} rows of {name}"
            raise InputError(msg, f"{n_rows}, as X has")
