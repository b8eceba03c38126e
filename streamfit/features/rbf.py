"""Gaussian radial basis functions around given centers, and how centers and width are chosen. Floor 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streamfit.arrays import Array, computed, device_of, in_place, namespace
from streamfit.errors import ConfigError
from streamfit.features.base import PiecewiseMap, register
from streamfit.pieces import Pieces

_WIDE = 1e3
"""Squared spread of centers, in kernel widths, above which float32 inputs are mapped in float64."""


@register
@dataclass(frozen=True, eq=False)
class RBF(PiecewiseMap):
    """φ_j(x) = exp(-gamma ||x - c_j||²).

    Source: Broomhead and Lowe, Multivariable functional interpolation and adaptive networks (1988).

    Parameters
    ----------
    centers : floating array of shape (n_features, n_inputs)
    gamma : float
        1 / (2 sigma²), in squared units of the inputs.

    Raises
    ------
    ConfigError
        If there are no centers or gamma is not positive and finite.

    Examples
    --------
    >>> import numpy as np
    >>> RBF(np.array([[0.0], [1.0]]), gamma=1.0)(np.array([[0.0]])).round(4).tolist()
    [[1.0, 0.3679]]
    """

    centers: np.ndarray
    gamma: float

    def __post_init__(self) -> None:
        if self.centers.ndim != 2 or 0 in self.centers.shape:
            msg = f"centers of shape {tuple(self.centers.shape)}"
            raise ConfigError(msg, "(n_features, n_inputs), neither of them 0")
        if not (self.gamma > 0 and np.isfinite(self.gamma)):
            msg = f"gamma {self.gamma}"
            raise ConfigError(msg, "a positive finite number")
        # A plain number, so that the description is JSON and equal maps hash alike.
        object.__setattr__(self, "gamma", float(self.gamma))

    @property
    def n_inputs(self) -> int:
        return int(self.centers.shape[1])

    @property
    def n_features(self) -> int:
        return int(self.centers.shape[0])

    def keep(self, indices: Sequence[int]) -> RBF:
        return RBF(self.centers[np.asarray(indices)], self.gamma)

    @property
    def bounds(self) -> np.ndarray:
        return np.ones(self.n_features)

    def made(self, x: Array) -> Pieces:
        xp = namespace(x)
        x = x if xp.isdtype(x.dtype, "real floating") else xp.astype(x, xp.float64)
        # Distances by one matrix product, taken about the centers' mean: ||x||² + ||c||² - 2 x'c loses
        # its digits to cancellation when both are far from the origin. The centers are rounded to the inputs'
        # type only after the shift, and the shift is one number in both types.
        exact = xp.astype(self.centers, xp.float64, copy=False)
        middle = xp.astype(xp.mean(exact, axis=0), x.dtype, copy=False)
        exact = exact - xp.astype(middle, xp.float64)
        # Exponents are differences of terms as large as gamma ||c||²; where float32 would leave fewer than about
        # four digits of them, they are taken in float64.
        wide = _is_wide(exact, self.gamma)
        kind = xp.float64 if wide else x.dtype
        centers = xp.astype(exact, kind, copy=False)
        near = xp.astype(x - middle, kind, copy=False)
        # The product adds what belongs to a row alone and to a center alone as well.
        ones = xp.ones_like(near[:, :1])
        near = xp.concat([near, ones, -self.gamma * xp.sum(near * near, axis=1)[:, None]], axis=1)
        offsets = -self.gamma * xp.sum(centers * centers, axis=1)[None, :]
        slopes = xp.concat([xp.matrix_transpose(centers) * (2.0 * self.gamma), offsets, xp.ones_like(offsets)], axis=0)
        zero = xp.zeros((1, 1), dtype=kind, device=device_of(x))

        def fill(rows: slice, columns: slice, out: Array) -> None:
            exponent = out if kind == x.dtype else xp.empty_like(out, dtype=kind)
            computed(xp.matmul, near[rows, :], slopes[:, columns], out=exponent)
            # Rounding can leave a distance of zero slightly negative.
            computed(xp.minimum, exponent, zero, out=exponent)
            in_place(xp.exp, exponent)
            if exponent is not out:
                out[...] = xp.astype(exponent, x.dtype)

        return Pieces(x, self.n_features, fill)


def computed_wide(features: RBF) -> bool:
    """Whether features of float32 inputs are computed in float64, for the sake of their digits."""
    exact = np.asarray(features.centers, dtype=np.float64)
    return _is_wide(exact - exact.mean(axis=0), features.gamma)


def _is_wide(centers: Array, gamma: float) -> bool:
    xp = namespace(centers)
    return gamma * float(xp.max(xp.sum(centers * centers, axis=1))) > _WIDE


def choose_centers(x: np.ndarray, n_centers: int, seed: int) -> np.ndarray:
    """Pick distinct rows of a sample, uniformly at random.

    Parameters
    ----------
    x : array of shape (n_rows, n_inputs)
    n_centers : int
    seed : int

    Returns
    -------
    array of shape (n_centers, n_inputs)
        In the order of the sample.

    Raises
    ------
    ConfigError
        If the sample has fewer distinct rows.
    """
    _, first = np.unique(x, axis=0, return_index=True)
    if len(first) < n_centers:
        msg = f"{n_centers} centers from {len(first)} distinct rows"
        raise ConfigError(msg, "at least as many distinct rows", "ask for fewer centers or a larger sample")
    picked = np.random.default_rng(seed).choice(np.sort(first), size=n_centers, replace=False)
    return np.asarray(x[np.sort(picked)])


def median_gamma(x: np.ndarray, seed: int, n_pairs: int = 20_000) -> float:
    """The median heuristic: 1 / median ||x - z||² over random pairs of distinct rows.

    Parameters
    ----------
    x : array of shape (n_rows, n_inputs)
    seed : int
    n_pairs : int

    Raises
    ------
    ConfigError
        If all pairs are equal.
    """
    rng = np.random.default_rng(seed)
    a, b = rng.integers(len(x), size=(2, n_pairs))
    distances = ((x[a].astype(np.float64) - x[b]) ** 2).sum(axis=1)
    distances = distances[distances > 0]
    if not len(distances):
        msg = "a sample whose rows are all equal"
        raise ConfigError(msg, "rows that differ", "set gamma by hand, or look at the inputs")
    return float(1.0 / np.median(distances))
