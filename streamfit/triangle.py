"""The triangular factor of all rows: a sufficient statistic for problems too ill-conditioned for a Gram matrix.

Floor 2: imports arrays, centered, frame, targets, errors. With R the triangle of a QR decomposition of the rows
(1, φ, y), each times √w, R'R holds the same sums as `Moments` do, but forming them would square the condition number.
Triangles of parts merge by one more decomposition, ``R = qr([R1; R2])`` (TSQR: Demmel, Grigori, Hoemmen and Langou,
Communication-optimal parallel and sequential QR and LU factorizations, SIAM J. Sci. Comput. 34, 2012).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

from streamfit.arrays import Array, namespace, r_factor, row_major, to_device_of, to_host
from streamfit.centered import Centered
from streamfit.errors import ConfigError, MismatchError, ScaleError
from streamfit.frame import BLOCK_ROWS, Frame
from streamfit.targets import Targets

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Triangle:
    """Upper triangular factor of weighted rows (1, φ, y), in the units of `frame`; no diagonal entry is negative.

    `+` merges those of disjoint rows, `*` scales row weights by a number from zero up. Both round: unlike `Moments`,
    equal rows in another order or grouping give equal triangles up to rounding only, and there is no `-`.

    Parameters
    ----------
    frame : Frame
    one_hot : bool
        Whether targets are class ids; their indicators are columns here.
    n_rows : int
    factor : float64 array of shape (1 + n_features + n_targets, 1 + n_features + n_targets)
    """

    frame: Frame
    one_hot: bool
    n_rows: int
    factor: Array

    @classmethod
    def zeros(cls, frame: Frame, targets: Targets) -> Triangle:
        """The identity of `+`."""
        return TriangleAccumulator(frame, targets).moments()

    @classmethod
    def from_rows(
        cls, phi: Array, y: Array, frame: Frame, targets: Targets, *, weights: Array | None = None
    ) -> Triangle:
        """The triangle of some rows; see `TriangleAccumulator.add` for shapes and errors.

        Examples
        --------
        >>> import numpy as np
        >>> from streamfit.targets import Dense
        >>> phi, y = np.array([[1.0], [3.0]]), np.array([[1.0], [2.0]])
        >>> t = Triangle.from_rows(phi, y, Frame.identity(1, 1), Dense(1))
        >>> t.n_rows, t.centered().gram.round(9).tolist(), t.centered().cross.round(9).tolist()
        (2, [[2.0]], [[1.0]])
        """
        accumulator = TriangleAccumulator(frame, targets, like=phi)
        accumulator.add(phi, y, weights=weights)
        return accumulator.moments()

    @property
    def total_weight(self) -> float:
        """Sum of w."""
        return float(self.factor[0, 0]) ** 2

    def _check(self, other: Triangle) -> None:
        if self.frame != other.frame or self.one_hot != other.one_hot:
            msg = "triangles with different origins, units or targets"
            raise MismatchError(msg, "one frame for all", "accumulate both with the same store header")

    def __add__(self, other: Triangle) -> Triangle:
        self._check(other)
        if not self.n_rows or not other.n_rows:
            return other if not self.n_rows else self
        stacked = namespace(self.factor).concat([self.factor, other.factor])
        return replace(self, n_rows=self.n_rows + other.n_rows, factor=r_factor(stacked))

    def __sub__(self, other: Triangle) -> Triangle:
        msg = "taking rows out of a triangular factor"
        raise MismatchError(msg, "sums that can be subtracted", "count the rest anew: `forget` without --fast")

    def __mul__(self, factor: float) -> Triangle:
        """Weight every row by `factor`, which is not negative; `n_rows` as for `Moments`."""
        if not (factor >= 0 and np.isfinite(factor)):
            msg = f"a triangular factor of rows weighted by {factor}"
            raise MismatchError(msg, "finite weights >= 0", "a triangle cannot be subtracted")
        repeats = int(factor) if float(factor).is_integer() else 1
        return replace(self, n_rows=self.n_rows * repeats, factor=self.factor * float(np.sqrt(factor)))

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Triangle):
            return False
        same = (self.frame, self.one_hot, self.n_rows) == (other.frame, other.one_hot, other.n_rows)
        return same and np.array_equal(to_host(self.factor), to_host(other.factor))

    __hash__ = None  # type: ignore[assignment]

    def agrees(self, other: Triangle, tolerance: float = 1e-8) -> bool:
        """Whether two triangles are of rows that are equal but for rounding: each column to a share of its length.

        Triangles are compared after the best rotation (orthogonal Procrustes: Golub and Van Loan, Matrix Computations,
        6.4.1), for rounding of nearly dependent columns turns all that stand after them. The rotation is itself known
        to about the root of float64's last digit.
        """
        self._check(other)
        if self.n_rows != other.n_rows or self == other:
            return self.n_rows == other.n_rows
        mine, theirs = to_host(self.factor), to_host(other.factor)
        lengths = np.sqrt(np.sum(mine**2, axis=0))
        units = np.where(lengths > 0, lengths, 1.0)
        rotation, _ = scipy.linalg.orthogonal_procrustes((theirs / units).T, (mine / units).T)
        return bool(np.linalg.norm(rotation.T @ (theirs / units) - mine / units) <= tolerance)

    def to_host(self) -> Triangle:
        """The same triangle in host memory."""
        return replace(self, factor=to_host(self.factor))

    def centered_factor(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Triangles of the rows about their means, in natural units.

        Returns
        -------
        x : array of shape (n_features, n_features)
            Upper triangular; x'x is the centred Gram matrix.
        xy : array of shape (n_features, n_targets)
            x'xy are the centred cross products.
        y : array of shape (n_targets, n_targets)
            What of the targets lies outside of the span of the features: xy'xy + y'y are their sums of squares.
        """
        d = self.frame.n_features
        units, y_units = np.ldexp(1.0, self.frame.exponents), np.ldexp(1.0, self.frame.y_exponents)
        r = to_host(self.factor)
        # The first row belongs to the column of ones: what is below it is centred, without a subtraction.
        return r[1 : d + 1, 1 : d + 1] * units, r[1 : d + 1, d + 1 :] * y_units, r[d + 1 :, d + 1 :] * y_units

    def factor_about_zero(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same about zero, for fits without an intercept."""
        d = self.frame.n_features
        units, y_units = np.ldexp(1.0, self.frame.exponents), np.ldexp(1.0, self.frame.y_exponents)
        r = to_host(self.factor)
        origin = np.concatenate([self.frame.origin, self.frame.y_origin])
        natural = r[:, 1:] * np.concatenate([units, y_units]) + r[:, :1] * origin
        found = r_factor(natural)
        return found[:d, :d], found[:d, d:], found[d:, d:]

    @property
    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Weighted means of features and targets, shapes (n_features,) and (n_targets,).

        Raises
        ------
        MismatchError
            If there are no rows: nothing can be divided by their weight.
        """
        weight, d = self.total_weight, self.frame.n_features
        if not weight > 0:
            msg = f"a triangle of {self.n_rows} rows with total weight {weight:g}"
            raise MismatchError(msg, "a positive total weight", "add rows before solving")
        r = to_host(self.factor)
        x = self.frame.origin + np.ldexp(r[0, 1 : d + 1] / r[0, 0], self.frame.exponents)
        return x, self.frame.y_origin + np.ldexp(r[0, d + 1 :] / r[0, 0], self.frame.y_exponents)

    def noise(self) -> np.ndarray:
        """What rounding may have left of the sum of squares of a feature about its mean, shape (n_features,)."""
        d = self.frame.n_features
        raw = np.sum(to_host(self.factor)[:, 1 : d + 1] ** 2, axis=0) * np.ldexp(1.0, 2 * self.frame.exponents)
        return np.asarray((8.0 * _EPS) ** 2 * (raw + self.total_weight * self.means[0] ** 2))

    def centered(self) -> Centered:
        """The sums that `Moments` would hold, for everything that reads a Gram matrix; its condition is the square."""
        x, xy, y = self.centered_factor()
        mean_x, mean_y = self.means
        gram = x.T @ x
        return Centered(
            n_rows=self.n_rows,
            weight=self.total_weight,
            mean_x=mean_x,
            mean_y=mean_y,
            gram=gram,
            cross=x.T @ xy,
            ss_y=np.sum(xy**2, axis=0) + np.sum(y**2, axis=0),
            noise=self.noise() + _EPS * np.diag(gram),
        )


class TriangleAccumulator:
    """Adds rows to a triangle: the mutable builder of `Triangle`, in float64.

    Parameters
    ----------
    frame : Frame
    targets : Targets
    like : array, optional
        Gives the array library and device; NumPy without it.
    """

    def __init__(self, frame: Frame, targets: Targets, *, like: Array | None = None) -> None:
        self._like = np.empty(0) if like is None else like
        if frame.n_targets != targets.n_targets:
            msg = f"a frame for {frame.n_targets} targets"
            raise MismatchError(msg, f"{targets.n_targets} targets")
        self._frame, self._targets = frame, targets
        self._shift, self._scale, self._y_shift, self._y_scale = (
            to_device_of(a, self._like)
            for a in (
                frame.origin,
                np.ldexp(1.0, -frame.exponents),
                frame.y_origin,
                np.ldexp(1.0, -frame.y_exponents),
            )
        )
        n = 1 + frame.n_features + frame.n_targets
        self._n_rows, self._factor = 0, to_device_of(np.zeros((n, n)), self._like)
        self._waiting: list[Array] = []

    def add(self, phi: Array, y: Array, *, weights: Array | None = None) -> None:
        """Add rows. Each decomposition takes at least twice as many as it has columns, or a block.

        Parameters
        ----------
        phi : floating array of shape (n_rows, n_features)
        y : floating array of shape (n_rows, n_targets), or integer (n_rows,) for one-hot targets
        weights : floating array of shape (n_rows,), optional
            Nonnegative and finite; 1 for every row without it.

        Raises
        ------
        MismatchError
            If shapes do not fit the frame, or class ids are not integers.
        ConfigError
            If a class id or a row weight is out of range.
        ScaleError
            If a value is NaN or infinite. Nothing of these rows is added then.
        """
        xp, d, k = namespace(self._like), self._frame.n_features, self._frame.n_targets
        one_hot = self._targets.one_hot
        shape = (phi.shape[0],) if one_hot else (phi.shape[0], k)
        if phi.ndim != 2 or phi.shape[1] != d or tuple(y.shape) != shape:
            msg = f"features of shape {tuple(phi.shape)} with targets of shape {tuple(y.shape)}"
            raise MismatchError(msg, f"(n_rows, {d}) and {shape}")
        dense = _indicators(y, k) if one_hot else (xp.astype(y, xp.float64) - self._y_shift) * self._y_scale
        z = (xp.astype(phi, xp.float64) - self._shift) * self._scale
        ones = xp.ones((z.shape[0], 1), dtype=xp.float64, device=z.device)
        rows = xp.concat([ones, z, dense], axis=1)
        if weights is not None:
            if tuple(weights.shape) != (phi.shape[0],):
                msg = f"row weights of shape {tuple(weights.shape)}"
                raise MismatchError(msg, f"({phi.shape[0]},)")
            if not bool(xp.all(xp.isfinite(weights) & (weights >= 0))):
                msg = "a row weight that is negative, NaN or infinite"
                raise ConfigError(msg, "finite weights >= 0")
            rows = rows * xp.sqrt(xp.astype(weights, xp.float64))[:, None]
        if not bool(xp.all(xp.isfinite(rows))):
            msg = "a NaN, infinite or overflowing value"
            raise ScaleError(msg, "finite features and targets", "look at the rows of this shard")
        self._waiting.append(rows)
        self._n_rows += int(rows.shape[0])
        if sum(int(r.shape[0]) for r in self._waiting) >= max(BLOCK_ROWS, 2 * int(rows.shape[1])):
            self._take()

    def _take(self) -> None:
        if self._waiting:
            xp = namespace(self._like)
            self._factor = r_factor(row_major(xp.concat([self._factor, *self._waiting])))
            self._waiting = []

    def moments(self) -> Triangle:
        """The triangle so far."""
        self._take()
        return Triangle(self._frame, self._targets.one_hot, self._n_rows, self._factor)


def _indicators(ids: Array, n_classes: int) -> Array:
    xp = namespace(ids)
    if ids.ndim != 1 or not xp.isdtype(ids.dtype, "integral"):
        msg = f"class ids of shape {tuple(ids.shape)} and type {ids.dtype}"
        raise MismatchError(msg, "integers of shape (n_rows,)")
    if ids.shape[0] and (int(xp.min(ids)) < 0 or int(xp.max(ids)) >= n_classes):
        msg = f"class ids from {int(xp.min(ids))} to {int(xp.max(ids))}"
        raise ConfigError(msg, f"ids in [0, {n_classes})")
    classes = xp.arange(n_classes, dtype=ids.dtype, device=ids.device)
    return xp.astype(ids[:, None] == classes[None, :], xp.float64)
