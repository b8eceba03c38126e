"""Tables of counts that memory need not hold: read a block at a time, and merged as they are read.

Floor 2: imports numpy and counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from streamfit.counts import Int64, Tables, add_counts

Block = tuple[np.ndarray, Int64]
"""Some rows of a sorted table: keys of shape (n, width), distinct, and their counts of shape (n,)."""


@dataclass(frozen=True)
class BlockTable:
    """A sorted table of counts that lies somewhere else, and is read a part at a time.

    Parameters
    ----------
    n_rows, width : int
    dtype : numpy.dtype
        Of keys.
    keys : callable
        Rows lo up to hi of the keys, an array of shape (hi - lo, width).
    counts : callable
        The same rows of the counts, int64 of shape (hi - lo,).
    """

    n_rows: int
    width: int
    dtype: np.dtype
    keys: Callable[[int, int], np.ndarray]
    counts: Callable[[int, int], Int64]

    @classmethod
    def of(cls, keys: np.ndarray, counts: Int64) -> BlockTable:
        """A table that is in memory, as one of blocks."""
        return cls(len(keys), keys.shape[1], keys.dtype, lambda a, b: keys[a:b], lambda a, b: counts[a:b])

    @property
    def nbytes(self) -> int:
        """Bytes of keys and counts together."""
        return self.n_rows * (self.width * self.dtype.itemsize + 8)

    def blocks(self, n_rows: int) -> Iterator[Block]:
        """All rows in order, so many at a time."""
        for lo in range(0, self.n_rows, n_rows):
            hi = min(lo + n_rows, self.n_rows)
            yield self.keys(lo, hi), self.counts(lo, hi)

    def whole(self) -> Block:
        """All of it, in memory."""
        return self.keys(0, self.n_rows), self.counts(0, self.n_rows)


LargeTables = Mapping[str, Block | BlockTable]
"""Tables by name, each in memory or elsewhere."""


def as_blocks(table: Block | BlockTable) -> BlockTable:
    """A table as one of blocks, wherever it is."""
    return table if isinstance(table, BlockTable) else BlockTable.of(*table)


def in_memory(tables: LargeTables) -> Tables:
    """Read what is not in memory."""
    return {name: table.whole() if isinstance(table, BlockTable) else table for name, table in tables.items()}


def merge_blocks(streams: Iterable[Iterator[Block]], signs: Iterable[int] | None = None) -> Iterator[Block]:
    """Sum sorted tables of counts, a block of each in memory at a time.

    A step takes, of all blocks, the rows up to the smallest of their last rows: nothing that is still to come can
    fall among them. So each step uses up a block, and rows are compared by NumPy, many at a time.

    Parameters
    ----------
    streams : iterable of iterators of blocks
        Each is a sorted table; keys are of one width.
    signs : iterable of int, optional
        -1 for tables that are taken away.

    Yields
    ------
    block
        The sorted table of sums, without those that come to nothing.

    Raises
    ------
    MismatchError
        If a count would be negative.

    Examples
    --------
    >>> one = (np.array([[1], [4]]), np.array([2, 1]))
    >>> other = (np.array([[1], [9]]), np.array([5, 3]))
    >>> [(k.ravel().tolist(), c.tolist()) for k, c in merge_blocks([iter([one]), iter([other])])]
    [([1, 4], [7, 1]), ([9], [3])]
    """
    streams = list(streams)
    heads = [_Head(s, g) for s, g in zip(streams, [1] * len(streams) if signs is None else signs, strict=True)]
    while heads := [head for head in heads if head.filled()]:
        bound = min(head.last for head in heads)
        parts = [part for head in heads if len((part := head.taken(bound))[1])]
        if len(parts) == 1 and parts[0][1].min() > 0:
            yield parts[0]
            continue
        # One part after the other is soon sorted: the sort finds the runs.
        keys, counts = add_counts(np.concatenate([k for k, _ in parts]), np.concatenate([c for _, c in parts]))
        if len(counts):
            yield keys, counts


class _Head:
    """The block that a table is at, and what of it is left."""

    def __init__(self, blocks: Iterator[Block], sign: int) -> None:
        self._blocks, self._sign = blocks, sign
        self._keys, self._counts = np.empty((0, 0), np.int32), np.empty(0, np.int64)
        self.last: tuple[int, ...] = ()

    def filled(self) -> bool:
        """Whether there are rows, of the next block where this one is used up."""
        while not len(self._counts):
            following = next(self._blocks, None)
            if following is None:
                return False
            self._keys, self._counts = following[0], self._sign * following[1]
            if len(self._counts):
                self.last = tuple(self._keys[-1].tolist())
        return True

    def taken(self, bound: tuple[int, ...]) -> Block:
        """Take the rows up to and including `bound`."""
        n = len(self._counts) if self.last <= bound else rows_up_to(self._keys, bound)
        block = self._keys[:n], self._counts[:n]
        self._keys, self._counts = self._keys[n:], self._counts[n:]
        return block


def rows_up_to(keys: np.ndarray, bound: Sequence[int]) -> int:
    """How many rows of a sorted table are not above a row.

    Examples
    --------
    >>> rows_up_to(np.array([[0, 7], [1, 2], [1, 5], [2, 0]]), (1, 3))
    2
    """
    lo, hi = 0, len(keys)
    for column, value in enumerate(bound):
        among = keys[lo:hi, column]
        below, above = np.searchsorted(among, value, "left"), np.searchsorted(among, value, "right")
        lo, hi = lo + int(below), lo + int(above)
    return hi


def gathered(blocks: Iterable[Block], n_rows: int) -> Iterator[Block]:
    """Join small blocks to blocks of so many rows, or somewhat more."""
    held: list[Block] = []
    for block in blocks:
        held.append(block)
        if sum(len(counts) for _, counts in held) >= n_rows:
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def _joined(blocks: Sequence[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate([keys for keys, _ in blocks]), np.concatenate([counts for _, counts in blocks])
