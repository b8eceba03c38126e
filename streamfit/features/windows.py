"""Features of a window of past tokens: its nearest columns alone, and decayed sums over all of it. Floor 2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse

from streamfit.arrays import Array, namespace, to_host
from streamfit.errors import ConfigError, MismatchError
from streamfit.features.base import FeatureMap, register

_ROWS = 1024
"""Rows whose windows are laid out as one sparse matrix at a time."""


@register
@dataclass(frozen=True, eq=False)
class Nearest(FeatureMap):
    """The last columns of a window: φ(x) = x[-n_kept:].

    Parameters
    ----------
    n_inputs : int
    n_kept : int
        1 to n_inputs.

    Raises
    ------
    MismatchError
        If it keeps none, or more than there are.
    """

    n_columns: int
    n_kept: int

    def __post_init__(self) -> None:
        if not 1 <= self.n_kept <= self.n_columns:
            msg = f"the nearest {self.n_kept} of {self.n_columns} columns"
            raise MismatchError(msg, f"1 to {self.n_columns}")

    @property
    def n_inputs(self) -> int:
        return self.n_columns

    @property
    def n_features(self) -> int:
        return self.n_kept

    def apply(self, x: Array) -> Array:
        return x[:, self.n_columns - self.n_kept :]


@register
@dataclass(frozen=True, eq=False)
class Decayed(FeatureMap):
    """Sum of the vectors of a window's values, weighted down with their distance.

    ``φ(x) = (1 - decay) sum_j decay^j T[x_(w-j)]`` over the w columns of a window, the last one nearest (j = 0).

    Parameters
    ----------
    table : floating array of shape (n_values, n_features)
    decay : float
        In (0, 1).
    width : int
        Columns w of a window.

    Raises
    ------
    MismatchError
        If the decay or the width is out of range.
    ConfigError
        When applied, if an index is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> Decayed(np.eye(3), 0.5, 2)(np.array([[0, 2], [1, 1]])).tolist()
    [[0.25, 0.0, 0.5], [0.0, 0.75, 0.0]]
    """

    table: np.ndarray
    decay: float
    width: int

    def __post_init__(self) -> None:
        if not (0.0 < self.decay < 1.0 and self.width >= 1):
            msg = f"decay {self.decay} over windows of {self.width}"
            raise MismatchError(msg, "a decay between 0 and 1, and at least one column")

    @property
    def n_inputs(self) -> int:
        return self.width

    @property
    def n_features(self) -> int:
        return int(self.table.shape[1])

    def apply(self, x: Array) -> Array:
        xp = namespace(x)
        n_values = self.table.shape[0]
        if x.shape[0] and not ((low := int(xp.min(x))) >= 0 and (high := int(xp.max(x))) < n_values):
            msg = f"window index {low if low < 0 else high}"
            raise ConfigError(msg, f"indices in [0, {n_values})")
        weights = (1.0 - self.decay) * self.decay ** np.arange(self.width - 1, -1, -1, dtype=np.float64)
        if isinstance(x, np.ndarray):
            return self._on_host(x, weights)
        total = None
        for column, weight in enumerate(weights.tolist()):
            part = xp.take(self.table, x[:, column], axis=0) * weight
            total = part if total is None else total + part
        return total

    def _on_host(self, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """By a sparse product, which reads each row of the table once and writes nothing in between."""
        table = np.asarray(to_host(self.table))
        out = np.empty((len(x), table.shape[1]), table.dtype)
        starts = np.arange(min(len(x), _ROWS) + 1) * self.width
        data = np.tile(weights.astype(table.dtype), min(len(x), _ROWS))
        for lo in range(0, len(x), _ROWS):
            rows = np.ascontiguousarray(x[lo : lo + _ROWS])
            n = len(rows)
            shape = (n, len(table))
            window = scipy.sparse.csr_array((data[: n * self.width], rows.ravel(), starts[: n + 1]), shape=shape)
            out[lo : lo + n] = window @ table
        return out
