"""Integer columns to vectors: what an embedding layer does, with tables that are given. Floor 2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamfit.arrays import Array, namespace
from streamfit.errors import ConfigError, MismatchError
from streamfit.features.base import FeatureMap, register


@register
@dataclass(frozen=True, eq=False)
class Lookup(FeatureMap):
    """Concatenate a row of one table for each column: φ(x) = [T_1[x_1], T_2[x_2], ...].

    Parameters
    ----------
    tables : tuple of floating arrays, each of shape (n_values, n_dims)
        One table an input column; all have the same `n_values`, their `n_dims` may differ.

    Raises
    ------
    MismatchError
        If the tables differ in length.
    ConfigError
        When applied, if an index is out of range.
    """

    tables: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        if len({t.shape[0] for t in self.tables}) != 1:
            msg = f"look-up tables of {[t.shape[0] for t in self.tables]} rows"
            raise MismatchError(msg, "the same number of rows in each")

    @property
    def n_inputs(self) -> int:
        return len(self.tables)

    @property
    def n_features(self) -> int:
        return sum(t.shape[1] for t in self.tables)

    def apply(self, x: Array) -> Array:
        xp = namespace(x)
        n_values = self.tables[0].shape[0]
        # Unchecked, a negative index would count from the end, and a GPU would wrap any index round.
        if x.shape[0] and not ((low := int(xp.min(x))) >= 0 and (high := int(xp.max(x))) < n_values):
            msg = f"look-up index {low if low < 0 else high}"
            raise ConfigError(msg, f"indices in [0, {n_values})")
        return xp.concat([xp.take(t, x[:, i], axis=0) for i, t in enumerate(self.tables)], axis=1)
