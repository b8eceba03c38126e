"""Counting more distinct keys than memory holds: sorted runs on disk, merged by blocks.

Floor 4: imports merging, counts and pyarrow. Runs lie in files that have no name, as Arrow record batches: whatever
ends the process, the system takes them back, and nothing that was half counted can be found.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from streamfit.counts import Int64, add_counts
from streamfit.errors import ConfigError, StoreError
from streamfit.merging import Block, BlockTable, LargeTables, as_blocks, gathered, in_memory, merge_blocks
from streamfit.store.arrays_io import reading
from streamfit.store.sums import pairs_of

COUNT_BYTES = 2**28
"""Memory for counting, where nothing else is said."""
_FAN_IN = 16
"""Runs that are merged at a time."""
_LEAST_ROWS = 64
_BLOCK_ROWS = 2**16


def row_bytes(width: int) -> int:
    """Memory of a row of a key of some numbers while rows are sorted and merged."""
    # The key and its copy in order; a packed key, its order, and what ranking them takes; counts twice.
    return 8 * width + 96


class CountRuns:
    """Counts rows of integers in bounded memory; exact, and the same for any budget.

    Rows are gathered up to the budget, then sorted and their counts summed. If that does not make them much fewer they
    are written as a sorted run; of `_FAN_IN` runs of one size one larger run is made, so that a row is written about
    once for each power of `_FAN_IN` in the size of the table over the budget.

    Parameters
    ----------
    width : int
        Numbers of a key.
    budget : int
        Bytes that are taken at most, what sorting and merging takes included; a few hundred rows always fit.
    folder : Path, optional
        Where runs are written; the system's folder for temporary files without it.

    Raises
    ------
    ConfigError
        If the budget or the width is not positive.
    StoreError
        If a run cannot be written.

    Examples
    --------
    >>> runs = CountRuns(2, budget=1)  # everything beyond some rows goes to disk
    >>> for i in range(300):
    ...     runs.add(np.array([[i % 150, 1], [7, 7]], np.int32))
    >>> table = runs.table()
    >>> table.n_rows, int(table.counts(7, 8)[0]), int(table.counts(0, table.n_rows).sum())
    (151, 2, 600)
    """

    def __init__(self, width: int, budget: int = COUNT_BYTES, folder: Path | None = None) -> None:
        if budget < 1 or width < 1:
            msg = f"a budget of {budget} bytes for keys of {width} numbers"
            raise ConfigError(msg, "positive numbers")
        self._width, self._folder = width, folder
        self._limit = max(_LEAST_ROWS, budget // row_bytes(width))
        self._block = block_rows(width, budget, _FAN_IN)
        self._held: list[Block] = []
        self._n_held, self._sorted = 0, True
        self._levels: list[list[BlockTable]] = []
        self.spilled_rows = 0

    def add(self, keys: np.ndarray, counts: Int64 | None = None) -> None:
        """Count rows, once each or so many times.

        Parameters
        ----------
        keys : int32 array of shape (n, width)
            Not negative, in any order, equal ones among them.
        counts : int64 array of shape (n,), optional
            Positive.
        """
        for lo in range(0, len(keys), self._limit):
            some = slice(lo, lo + self._limit)
            part = keys[some].astype(np.int32)  # a copy: the caller's array may be a view of a larger one
            if self._n_held + len(part) > self._limit:
                self._settle()
            ones = np.ones(len(part), np.int64) if counts is None else counts[some]
            self._held.append((part, ones))
            self._n_held, self._sorted = self._n_held + len(part), False

    def table(self) -> BlockTable:
        """The table of all that was added; it may be added to no more."""
        self._sort()
        runs = [run for level in self._levels for run in level]
        if not runs:
            none = np.empty((0, self._width), np.int32), np.empty(0, np.int64)
            return BlockTable.of(*(self._held[0] if self._held else none))
        return self._written(self.blocks())

    def blocks(self) -> Iterator[Block]:
        """The same table, as blocks that are made while they are read, once."""
        self._sort()
        if self._held and self._levels:
            self._spill()
        runs = [run for level in self._levels for run in level]
        while len(runs) > _FAN_IN:  # the smallest first
            runs = [*runs[_FAN_IN:], self._written(merge_blocks(run.blocks(self._block) for run in runs[:_FAN_IN]))]
        held, self._held, self._levels = self._held, [], []
        yield from merge_blocks([iter(held), *(run.blocks(self._block) for run in runs)])

    def _sort(self) -> None:
        if self._sorted:
            return
        keys = np.concatenate([keys for keys, _ in self._held])
        counts = np.concatenate([counts for _, counts in self._held])
        self._held = []  # frees the parts before they are sorted
        self._held = [add_counts(keys, counts)]
        self._n_held, self._sorted = len(self._held[0][1]), True

    def _settle(self) -> None:
        """Make room: by summing counts, and if that is not enough by writing them."""
        self._sort()
        if 2 * self._n_held > self._limit:
            self._spill()

    def _spill(self) -> None:
        self.spilled_rows += self._n_held
        run = self._written(iter(self._held))
        self._held, self._n_held = [], 0
        for level in self._levels:
            level.append(run)
            if len(level) < _FAN_IN:
                return
            run = self._written(merge_blocks(part.blocks(self._block) for part in level))
            level.clear()
        self._levels.append([run])

    def _written(self, blocks: Iterable[Block]) -> BlockTable:
        return spill(blocks, self._width, np.dtype(np.int32), self._block, self._folder)


def block_rows(width: int, budget: int, n_streams: int) -> int:
    """Rows of a block, so that one of each stream, their sum and the sorting of it keep to a budget."""
    return max(_LEAST_ROWS, min(_BLOCK_ROWS, budget // ((12 * width + 112) * (n_streams + 1))))


def spill(
    blocks: Iterable[Block], width: int, dtype: np.dtype, n_rows: int = _BLOCK_ROWS, folder: Path | None = None
) -> BlockTable:
    """Write a sorted table to a file without a name, which lasts as long as what reads it.

    Parameters
    ----------
    blocks : iterable of blocks
    width : int
    dtype : numpy.dtype
        Of keys.
    n_rows : int
        Rows of a record batch, about.
    folder : Path, optional

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    schema = pa.schema([*((f"k{i}", pa.from_numpy_dtype(dtype)) for i in range(width)), ("count", pa.int64())])
    starts = [0]
    try:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as the table is
        run = _Run(file, dtype)
        weakref.finalize(run, file.close)
        sink = pa.PythonFile(file, mode="w")
        with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
            for keys, counts in gathered(blocks, n_rows):
                for lo in range(0, len(counts), n_rows):
                    part = slice(lo, lo + n_rows)
                    columns = [pa.array(np.ascontiguousarray(column[part])) for column in keys.T]
                    writer.write_batch(pa.record_batch([*columns, pa.array(counts[part])], schema=schema))
                    starts.append(starts[-1] + len(counts[part]))
        file.flush()
        file.seek(0)
        return run.table(width, starts)
    except OSError as error:
        msg = f"cannot write a run of counts to {folder or tempfile.gettempdir()}: {error}"
        raise StoreError(msg, "a folder with room", "free some space, or set TMPDIR to another disk") from error


class _Run:
    """Record batches of a file."""

    def __init__(self, file: Any, dtype: np.dtype) -> None:
        self._file, self._dtype = file, dtype
        self._last: tuple[int, pa.RecordBatch] | None = None

    def table(self, width: int, starts: Sequence[int]) -> BlockTable:
        """What was written; `starts` tells where each batch begins, and the last one ends."""
        self._reader = pa.ipc.open_file(pa.PythonFile(self._file, mode="r"))
        self._starts = np.array(starts)
        return BlockTable(starts[-1], width, self._dtype, self.keys, self.counts)

    def keys(self, lo: int, hi: int) -> np.ndarray:
        """Keys of some rows."""
        width = self._reader.schema.names.index("count")
        keys = np.empty((hi - lo, width), self._dtype)
        for at, batch in self._batches(lo, hi):
            for i in range(width):
                keys[at : at + batch.num_rows, i] = batch.column(i).to_numpy()
        return keys

    def counts(self, lo: int, hi: int) -> Int64:
        """Counts of some rows."""
        counts = np.empty(hi - lo, np.int64)
        for at, batch in self._batches(lo, hi):
            counts[at : at + batch.num_rows] = batch.column("count").to_numpy()
        return counts

    def _batches(self, lo: int, hi: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Parts of batches, and the place of each among the rows that are asked for."""
        first = int(np.searchsorted(self._starts, lo, "right")) - 1
        for i in range(first, len(self._starts) - 1):
            start = int(self._starts[i])
            if start >= hi:
                return
            if self._last is None or self._last[0] != i:  # counts are asked for after the keys of the same rows
                self._last = (i, self._reader.get_batch(i))
            skip = max(lo - start, 0)
            part = self._last[1].slice(skip, hi - start - skip)
            yield start + skip - lo, part


def add_large(
    tables: Sequence[LargeTables], signs: Sequence[int] | None = None, *, budget: int = COUNT_BYTES,
    folder: Path | None = None,
) -> LargeTables:  # fmt: skip
    """Sum tables of counts, some of them taken away, in bounded memory: what does not fit is written and read.

    Parameters
    ----------
    tables : sequence of mappings of str to tables
    signs : sequence of int, optional
        -1 for tables that are taken away, 2 for those that count twice.
    budget : int
        Bytes; tables that take no more together with what adding them takes are summed in memory.
    folder : Path, optional
        Where sums are written that memory does not hold.

    Raises
    ------
    MismatchError
        If a count would be negative.
    StoreError
        If a sum cannot be written.
    """
    parts: dict[str, list[tuple[BlockTable, int]]] = {}
    for table, sign in zip(tables, [1] * len(tables) if signs is None else signs, strict=True):
        for name, rows in table.items():
            parts.setdefault(name, []).append((as_blocks(rows), sign))
    return {name: _added(of_name, budget, folder) for name, of_name in parts.items()}


def _added(parts: Sequence[tuple[BlockTable, int]], budget: int, folder: Path | None) -> Block | BlockTable:
    width, dtype = parts[0][0].width, np.result_type(*(part.dtype for part, _ in parts))
    if sum(part.n_rows for part, _ in parts) * (8 * width + 96) <= budget:
        pairs = [(*in_memory({"": part})[""], sign) for part, sign in parts]
        return add_counts(np.concatenate([k for k, _, _ in pairs]), np.concatenate([s * c for _, c, s in pairs]))
    n_rows = block_rows(width, budget, len(parts))
    merged = merge_blocks([part.blocks(n_rows) for part, _ in parts], [sign for _, sign in parts])
    return spill(merged, width, dtype, n_rows, folder)


def stored_tables(arrays: Mapping[str, Any], where: str) -> dict[str, BlockTable]:
    """Tables of counts of a segment that was opened and not read: a chunk of keys and one of counts in memory each.

    Parameters
    ----------
    arrays : mapping of str to zarr.Array
        As `open_group` gives them.
    where : str
        Path of the segment, for messages.
    """
    found = {}
    for name, (keys, counts) in pairs_of(arrays).items():
        chunks = _Chunks(keys, where), _Chunks(counts, where)
        found[name] = BlockTable(keys.shape[0], keys.shape[1], keys.dtype, *chunks)
    return found


class _Chunks:
    """Rows of a Zarr array, read by whole chunks, of which the last is kept."""

    def __init__(self, array: Any, where: str) -> None:
        self._array, self._where = array, where
        self._last: tuple[int, np.ndarray] | None = None

    def __call__(self, lo: int, hi: int) -> np.ndarray:
        step, parts = self._array.chunks[0], []
        for i in range(lo // step, -(-hi // step)):
            if self._last is None or self._last[0] != i:
                self._last = None  # frees it first
                with reading(self._where):
                    self._last = i, np.asarray(self._array[i * step : (i + 1) * step])
            parts.append(self._last[1][max(lo - i * step, 0) : hi - i * step])
        if not parts:
            return np.empty((0, *self._array.shape[1:]), self._array.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
