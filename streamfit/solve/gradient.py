"""The gradient of one more pass over the rows: what weights miss, in float64.

Floor 3: imports arrays, errors and solve siblings. Rows stream through `GradientPass`; `Gradient` is the frozen sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamfit.arrays import Array, class_sums, namespace, to_device_of, to_host
from streamfit.errors import MismatchError
from streamfit.solve.ridge import Solution

_ENTRIES = 2**22
"""Residuals held at a time."""


@dataclass(frozen=True)
class Gradient:
    """Sums over rows of what weights miss; `+` joins those of disjoint rows.

    Of residuals ``r_t = y_t - offset - B'(φ_t - mean_x)``, all in float64.

    Parameters
    ----------
    slope : array of shape (n_features, n_targets)
        ``sum_t w_t (φ_t - mean_x) r_t'``: minus half the gradient of the loss by B, the penalty left out.
    level : array of shape (n_targets,)
        ``sum_t w_t r_t``, the same by the offset.
    squares : array of shape (n_targets,)
        ``sum_t w_t r_t²``.
    first, spread : arrays of shape (n_features,)
        ``sum_t w_t (φ_t - mean_x)``, which rounding of the mean leaves, and ``sum_t w_t (φ_t - mean_x)²``.
    n_rows : int
    weight : float
    """

    slope: np.ndarray
    level: np.ndarray
    squares: np.ndarray
    first: np.ndarray
    spread: np.ndarray
    n_rows: int
    weight: float

    def __add__(self, other: Gradient) -> Gradient:
        return Gradient(
            self.slope + other.slope,
            self.level + other.level,
            self.squares + other.squares,
            self.first + other.first,
            self.spread + other.spread,
            self.n_rows + other.n_rows,
            self.weight + other.weight,
        )


@dataclass(frozen=True)
class GradientPass:
    """What a pass is made with: weights, and the point about which features are taken.

    Parameters
    ----------
    weights : array of shape (n_features, n_targets)
    offset : array of shape (n_targets,)
        Prediction at `mean_x`.
    mean_x : array of shape (n_features,)
    """

    weights: np.ndarray
    offset: np.ndarray
    mean_x: np.ndarray

    @classmethod
    def of(cls, solution: Solution, mean_x: np.ndarray) -> GradientPass:
        """The pass for a solution."""
        return cls(solution.weights, solution.intercept + mean_x @ solution.weights, mean_x)

    def block(self, phi: Array, y: Array, weights: Array | None = None) -> Gradient:
        """The gradient of some rows. In float64, on the device of `phi`; O(n D K).

        Parameters
        ----------
        phi : array of shape (n_rows, n_features)
        y : array of shape (n_rows, n_targets), or integer (n_rows,) for class ids
        weights : array of shape (n_rows,), optional

        Raises
        ------
        MismatchError
            If shapes do not fit.
        """
        (d, k), step = self.weights.shape, max(64, _ENTRIES // self.weights.shape[1])
        if phi.ndim != 2 or phi.shape[1] != d or y.shape[0] != phi.shape[0] or (y.ndim == 2 and y.shape[1] != k):
            msg = f"features of shape {tuple(phi.shape)}, targets of shape {tuple(y.shape)}"
            raise MismatchError(msg, f"(n_rows, {d}), and (n_rows, {k}) or class ids of shape (n_rows,)")
        n = int(phi.shape[0])
        parts = [slice(lo, min(lo + step, n)) for lo in range(0, max(1, n), step)]
        some = [self._part(phi[p, :], y[p, ...], None if weights is None else weights[p]) for p in parts]
        return sum(some[1:], some[0])

    def _part(self, phi: Array, y: Array, weights: Array | None) -> Gradient:
        xp, k = namespace(phi), self.weights.shape[1]
        b, offset = to_device_of(self.weights, phi), to_device_of(self.offset, phi)
        z = xp.astype(phi, xp.float64) - to_device_of(self.mean_x, phi)
        residual = -(z @ b + offset)
        if y.ndim == 2:
            residual = residual + xp.astype(y, xp.float64)
        w = (
            xp.ones(z.shape[0], dtype=xp.float64, device=z.device)
            if weights is None
            else xp.astype(weights, xp.float64)
        )
        wz = z * w[:, None]
        slope = xp.matrix_transpose(wz) @ residual
        level = w @ residual
        squares = w @ (residual * residual)
        if y.ndim == 1:
            # With indicators e_y, never formed: r = e_y + residual.
            present, own = class_sums(wz, y, k)
            _, counts = class_sums(w[:, None], y, k)
            at_own = xp.take_along_axis(residual, xp.astype(y, xp.int64)[:, None], axis=1)
            _, at_own = class_sums(w[:, None] * at_own, y, k)
            each = np.arange(k) if present is None else to_host(present)
            slope, level, squares = (np.array(to_host(a)) for a in (slope, level, squares))
            counted = to_host(counts)[:, 0]
            slope[:, each] += to_host(own).T
            level[each] += counted
            squares[each] += counted + 2.0 * to_host(at_own)[:, 0]
        sums = (slope, level, squares, xp.sum(wz, axis=0), xp.sum(wz * z, axis=0))
        slope, level, squares, first, spread = (np.asarray(to_host(a)) for a in sums)
        return Gradient(slope, level, squares, first, spread, int(phi.shape[0]), float(xp.sum(w)))
