"""An exact sum of sparse matrices: the entries that are not zero, as integers on fixed power-of-two grids.

Floor 2: imports exact, errors. What holds for `GridSum` holds here: totals do not depend on the order or grouping of
the additions, and what was taken out again leaves no trace, for entries that came to zero are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from streamfit.errors import MismatchError
from streamfit.exact import BASE, COARSE, DIGIT_BITS, MAX_ADDS, ROOM, GridAccumulator, GridSum, canonical

LARGEST = 2**31
"""Columns from which on places no longer fit in an int64."""


@dataclass(frozen=True)
class SparseSum:
    """Entries of a matrix of `size` columns that are not zero.

    Parameters
    ----------
    size : int
        Below 2^31.
    keys : int64 array of shape (n_entries,)
        ``row * size + column`` of each, strictly ascending.
    entries : GridSum of shape (n_entries,)
        None of them zero.
    """

    size: int
    keys: np.ndarray
    entries: GridSum

    @classmethod
    def zeros(cls, size: int, n_limbs: int) -> SparseSum:
        """The identity of `+`, with one limb (steps of 2^-16) or two (2^-52)."""
        return cls(size, np.zeros(0, np.int64), GridSum(tuple(np.zeros(0) for _ in range(n_limbs))))

    @classmethod
    def of_block(cls, size: int, keys: np.ndarray, values: np.ndarray, n_limbs: int) -> SparseSum:
        """Entries of one product, each rounded once to the grid.

        Parameters
        ----------
        size : int
        keys : int64 array of shape (n_entries,)
            Strictly ascending.
        values : float64 array of shape (n_entries,)
        n_limbs : int

        Raises
        ------
        ScaleError
            If a value is not finite, or too large.
        """
        accumulator = GridAccumulator(values.shape, n_limbs, like=values)
        accumulator.add(values.copy(), peak=float(np.max(np.abs(values), initial=0.0)))
        return _without_zeros(size, keys, accumulator.total())

    @property
    def n_entries(self) -> int:
        """Entries that are not zero."""
        return len(self.keys)

    @property
    def n_limbs(self) -> int:
        """1 for steps of 2^-16, 2 for 2^-52, a coarse limb not counted."""
        return 1 if self.entries.bottom == BASE else 2

    @property
    def rows(self) -> np.ndarray:
        """Row of each entry, int64."""
        return self.keys // self.size

    @property
    def columns(self) -> np.ndarray:
        """Column of each entry, int64."""
        return self.keys % self.size

    def __add__(self, other: SparseSum) -> SparseSum:
        return total_of([self, other])

    def __sub__(self, other: SparseSum) -> SparseSum:
        return total_of([self, other * -1.0])

    def __mul__(self, factor: float) -> SparseSum:
        """Multiply, as a `GridSum` does."""
        return _without_zeros(self.size, self.keys, self.entries * factor)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SparseSum) or self.size != other.size:
            return False
        return np.array_equal(self.keys, other.keys) and self.entries == other.entries

    __hash__ = None  # type: ignore[assignment]


def total_of(parts: Sequence[SparseSum]) -> SparseSum:
    """The sum of some matrices, in one merge of their places.

    Parameters
    ----------
    parts : sequence of SparseSum
        At least one.

    Raises
    ------
    MismatchError
        If sizes or grids differ.
    ScaleError
        If the total needs more than the coarsest limb holds.
    """
    first = parts[0]
    if any(part.size != first.size or part.entries.bottom != first.entries.bottom for part in parts):
        msg = f"sparse sums of {sorted({p.size for p in parts})} columns, {sorted({p.n_limbs for p in parts})} limbs"
        raise MismatchError(msg, "one size and one precision", "fit both with the same store header")
    if len(parts) > MAX_ADDS:
        return total_of([total_of(parts[:MAX_ADDS]), *parts[MAX_ADDS:]])
    top = max(part.entries.top for part in parts)
    if sum(_peak(part.entries, top) for part in parts) >= ROOM:
        top = COARSE  # digits there are 2^36 times smaller: all of them together have room
    raised = [_raised(part.entries, top) for part in parts]
    keys = np.concatenate([part.keys for part in parts])
    # Each part is in order already: a stable sort merges such runs instead of sorting anew.
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, np.int64)
    limbs = []
    for digits in zip(*raised, strict=True):
        column = np.concatenate(digits)[order]
        limbs.append(np.add.reduceat(column, starts) if len(starts) else column)
    return _without_zeros(first.size, keys[starts], canonical(tuple(limbs), top))


def _peak(entries: GridSum, top: int) -> float:
    """Largest magnitude in steps of `top`, and one more."""
    return float(np.max(np.abs(entries.limbs[0]), initial=0.0)) * 2.0 ** (entries.top - top) + 1.0


def _raised(entries: GridSum, top: int) -> tuple[np.ndarray, ...]:
    if entries.top == top:
        return entries.limbs
    extra = tuple(np.zeros_like(entries.limbs[0]) for _ in range((top - entries.top) // DIGIT_BITS))
    return canonical(extra + entries.limbs, top, fold=False).limbs


def _without_zeros(size: int, keys: np.ndarray, entries: GridSum) -> SparseSum:
    there = np.zeros(len(keys), bool)
    for limb in entries.limbs:
        there |= limb != 0
    if there.all():
        return SparseSum(size, keys, entries)
    return SparseSum(size, keys[there], replace(entries, limbs=tuple(limb[there] for limb in entries.limbs)))


class SparseAccumulator:
    """Adds sparse blocks: the mutable builder of a `SparseSum`.

    Blocks wait until they hold half as many entries as the total does, so that an entry is merged a few times only,
    however many blocks there are.

    Parameters
    ----------
    size, n_limbs
        As in `SparseSum.zeros`.
    """

    def __init__(self, size: int, n_limbs: int) -> None:
        self._total, self._waiting, self._n_waiting = SparseSum.zeros(size, n_limbs), list[SparseSum](), 0

    def add(self, block: SparseSum) -> None:
        """Add a block."""
        self._waiting.append(block)
        self._n_waiting += block.n_entries
        if self._n_waiting >= max(_FEW, self._total.n_entries // 2) or len(self._waiting) >= MAX_ADDS - 1:
            self.total()

    def total(self) -> SparseSum:
        """The sum so far."""
        if self._waiting:
            self._total = total_of([self._total, *self._waiting])
            self._waiting, self._n_waiting = [], 0
        return self._total


_FEW = 2**20
