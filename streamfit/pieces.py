"""Matrices in pieces that a core's cache holds: walked through, made, and summed. Floor 1: imports arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamfit.arrays import Array, device_of, in_columns, namespace, rows_like

_CACHE_ENTRIES = 2**17
_FEW_ROWS = 16


def cached_rows(n_rows: int, n_columns: int, like: Array) -> Iterator[slice]:
    """Cut rows into pieces that a core's cache holds; one piece on a GPU, where a launch costs more than a miss."""
    step = max(1, n_rows)
    if isinstance(like, np.ndarray):
        step = max(_FEW_ROWS, _CACHE_ENTRIES // max(1, n_columns) // _FEW_ROWS * _FEW_ROWS)
    for lo in range(0, n_rows, step):
        yield slice(lo, min(lo + step, n_rows))


def cached_parts(array: Array) -> Iterator[tuple[slice, slice]]:
    """Cut a matrix into pieces that a core's cache holds, along the way it lies: of rows, or of columns."""
    n_rows, n_columns = array.shape
    if in_columns(array):
        for columns in cached_rows(n_columns, n_rows, array):
            yield slice(0, n_rows), columns
        return
    for rows in cached_rows(n_rows, n_columns, array):
        yield rows, slice(0, n_columns)


@dataclass(frozen=True)
class Pieces:
    """A matrix that is made piece by piece, each where it is to lie: to write it out first takes a pass through memory.

    Parameters
    ----------
    inputs : floating array of shape (n_rows, any)
        What it is made of, a row of a row: its type and device, and whether it is made by columns, are theirs.
    n_columns : int
    fill : callable
        Of rows, columns, and an array of that shape and type to be filled.
    """

    inputs: Array
    n_columns: int
    fill: Callable[[slice, slice, Array], None]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.inputs.shape[0], self.n_columns

    @property
    def dtype(self) -> Any:
        """Type of the numbers."""
        return self.inputs.dtype

    def whole(self) -> Array:
        """All of it, laid out by columns if the inputs are."""
        made = rows_like(self.inputs, self.n_columns)
        for rows, columns in cached_parts(made):
            self.fill(rows, columns, made[rows, columns])
        return made

    def part(self, rows: slice, columns: slice, place: Array) -> Array:
        """One piece: in `place`, if that is of its type, else in memory of its own."""
        out = place if place.dtype == self.dtype else namespace(place).empty_like(place, dtype=self.dtype)
        self.fill(rows, columns, out)
        return out


class ColumnSums:
    """Float64 sums of columns, the same bits in any layout.

    The rows are folded a few times over, in their own type, which is several times faster; what is left of them is
    added in float64, row by row.

    Parameters
    ----------
    like : array of shape (n_rows, n_columns)
        What is to be summed, or as large and of that type.
    """

    def __init__(self, like: Array) -> None:
        xp, (n_rows, n_columns) = namespace(like), like.shape
        self._height = n_rows // _FEW_ROWS
        self._few = xp.empty((self._height, n_columns), dtype=like.dtype, device=device_of(like))
        self._rest = xp.empty((n_rows % _FEW_ROWS, n_columns), dtype=like.dtype, device=device_of(like))

    def fold(self, values: Array, columns: slice) -> None:
        """Add whole columns: an array of shape (n_rows, n), and which of them it is."""
        height = self._height
        if height:
            folded = values[:height, :] + values[height : 2 * height, :]
            for i in range(2, _FEW_ROWS):
                folded += values[i * height : (i + 1) * height, :]
            self._few[:, columns] = folded
        self._rest[:, columns] = values[height * _FEW_ROWS :, :]

    def total(self) -> Array:
        """The sums, of shape (n_columns,), once every column is added."""
        xp = namespace(self._few)
        return xp.sum(self._few, axis=0, dtype=xp.float64) + xp.sum(self._rest, axis=0, dtype=xp.float64)


def column_sums(rows: Array) -> Array:
    """Float64 sums of the columns of a matrix; see `ColumnSums`."""
    sums, (n_rows, n_columns) = ColumnSums(rows), rows.shape
    for columns in cached_rows(n_columns, max(1, n_rows // _FEW_ROWS), rows):
        sums.fold(rows[:, columns], columns)
    return sums.total()
