"""The inputs themselves, as they are or standardised. Floor 2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamfit.arrays import Array, namespace
from streamfit.features.base import FeatureMap, register


@register
@dataclass(frozen=True, eq=False)
class Linear(FeatureMap):
    """The inputs as features: φ(x) = x.

    Parameters
    ----------
    n : int
        Number of input columns.
    """

    n: int

    @property
    def n_inputs(self) -> int:
        return self.n

    @property
    def n_features(self) -> int:
        return self.n

    @property
    def by_columns(self) -> bool:
        return True

    def apply(self, x: Array) -> Array:
        xp = namespace(x)
        return x if xp.isdtype(x.dtype, "real floating") else xp.astype(x, xp.float64)


@register
@dataclass(frozen=True, eq=False)
class Standardize(FeatureMap):
    """Shift and scale each column: φ(x) = (x - mean) / scale. Kernels need columns of one size.

    Parameters
    ----------
    mean, scale : float64 arrays of shape (n_inputs,)
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray) -> Standardize:
        """Take mean and standard deviation from a sample; constant columns keep their scale.

        Parameters
        ----------
        x : array of shape (n_rows, n_inputs)
        """
        x = np.asarray(x, dtype=np.float64)
        spread = x.std(axis=0)
        return cls(x.mean(axis=0), np.where(spread > 0, spread, 1.0))

    @property
    def n_inputs(self) -> int:
        return int(self.mean.shape[0])

    @property
    def n_features(self) -> int:
        return int(self.mean.shape[0])

    @property
    def by_columns(self) -> bool:
        return True

    def apply(self, x: Array) -> Array:
        # The difference is taken in float64: in the inputs' float32 a large mean would cost the digits.
        xp = namespace(x)
        z = (xp.astype(x, xp.float64, copy=False) - self.mean) / self.scale
        return xp.astype(z, x.dtype, copy=False) if xp.isdtype(x.dtype, "real floating") else z
