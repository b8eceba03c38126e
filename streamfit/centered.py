"""Moments about their own means, as float64 matrices in natural units: where division first happens.

Floor 2: imports frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np

from streamfit.frame import Frame, tile_pairs


@dataclass(frozen=True)
class Centered:
    """Moments about their own means, float64, natural units, on the host: what the solvers read.

    Parameters
    ----------
    n_rows : int
    weight : float
        Sum of w.
    mean_x, mean_y : arrays of shape (n_features,), (n_targets,)
    gram : array of shape (n_features, n_features)
        Sum of w (φ - mean_x)(φ - mean_x)'.
    cross : array of shape (n_features, n_targets)
        Sum of w (φ - mean_x)(y - mean_y)'.
    ss_y : array of shape (n_targets,)
        Sum of w (y - mean_y)².
    noise : array of shape (n_features,)
        What rounding may have left on the diagonal of `gram`: no less tells a feature from a constant.
    hidden : boolean array of shape (n_features,), optional
        Features that are no more than that noise, but not constant by other signs.
    """

    n_rows: int
    weight: float
    mean_x: np.ndarray
    mean_y: np.ndarray
    gram: np.ndarray
    cross: np.ndarray
    ss_y: np.ndarray
    noise: np.ndarray
    hidden: np.ndarray | None = None

    def about(self, mean_x: np.ndarray, mean_y: np.ndarray) -> Centered:
        """The same sums taken about other points, for instance the means of a training set."""
        dx, dy = self.mean_x - mean_x, self.mean_y - mean_y
        return replace(
            self,
            mean_x=mean_x,
            mean_y=mean_y,
            gram=self.gram + self.weight * np.outer(dx, dx),
            cross=self.cross + self.weight * np.outer(dx, dy),
            ss_y=self.ss_y + self.weight * dy * dy,
        )

    def of(self, columns: slice) -> Centered:
        """The sums of some of the features alone."""
        return replace(
            self,
            mean_x=self.mean_x[columns],
            gram=self.gram[columns, columns],
            cross=self.cross[columns],
            noise=self.noise[columns],
            hidden=None if self.hidden is None else self.hidden[columns],
        )


class Statistic(Protocol):
    """What of rows adds up in a store and is enough for a solve: `Moments`, or a `Triangle`."""

    @property
    def n_rows(self) -> int:
        """Rows summed."""

    @property
    def frame(self) -> Frame:
        """Units that it is taken in."""

    @property
    def total_weight(self) -> float:
        """Sum of w."""

    def __add__(self, other: Any, /) -> Self: ...

    def __sub__(self, other: Any, /) -> Self: ...

    def __mul__(self, factor: float, /) -> Self: ...

    def centered(self) -> Centered:
        """Centred float64 matrices in natural units."""

    def to_host(self) -> Self:
        """The same in host memory."""


def as_centered(sums: Statistic | Centered) -> Centered:
    """Sums as solvers read them."""
    return sums if isinstance(sums, Centered) else sums.centered()


def unpack_tiles(tiles: np.ndarray, n_features: int) -> np.ndarray:
    """The full symmetric matrix of the tiles of its upper triangle."""
    full = np.empty((n_features, n_features))
    for index, r, c in tile_pairs(n_features):
        tile = tiles[index, : r.stop - r.start, : c.stop - c.start]
        full[r, c] = tile
        # With row weights the two halves of a diagonal tile may differ by rounding; the upper one counts.
        full[c, r] = tile.T if r != c else np.triu(tile) + np.triu(tile, 1).T
    return full
