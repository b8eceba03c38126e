"""Corrected semi-normal equations: one more pass over the rows for the gradient, one solve with the stored sums.

Floor 3: imports arrays, centered, errors, frame, solve siblings. Rows stream through `GradientPass`; `Gradient` is the
frozen sum, and the only thing that a correction needs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

from streamfit.arrays import Array, class_sums, namespace, to_device_of, to_host
from streamfit.centered import Centered
from streamfit.errors import MismatchError, SolveError
from streamfit.solve.certificate import Certificate, eigenvalue_noise
from streamfit.solve.ridge import Solution, without_constants

_EPS = float(np.finfo(np.float64).eps)
_POORLY = 1e-8
"""Share of the largest eigenvalue that the smallest has, below which a system is looked at in its features' units."""
_ENTRIES = 2**22
"""Residuals held at a time."""
_TERMS = 4096
"""Rows of a block: terms that a product adds one after another."""


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


class Refinement:
    """Weights that come nearer to the optimum of the data with every pass: measure, correct, measure again.

    A correction is ``(G + alpha I)^-1 (slope - alpha B)``, the semi-normal equations with the residual from the rows
    (Björck, Numerical methods for least squares problems, 2.4.5 and 6.6.5). Alone, the error would shrink by
    ``||(G + alpha I)^-1 E||`` a step, E being how the stored sums differ from the data's. From the second correction
    on, the best point in the span of all steps so far is taken first, which what was measured tells exactly, for the
    gradient is linear: conjugate gradients with the stored sums as the preconditioner (Golub and Van Loan, Matrix
    Computations, 11.3 and 11.5). So each direction that rounding has taken from the sums costs about one pass more:
    sums in float32 reach the optimum of float64 in two or three passes where the rows' condition is up to 1e3, in six
    at 1e4, in about ten at 1e6. Beyond, rounding of the pass itself decides. A target whose gradient is no larger than
    that rounding is left where it was best. The preconditioner is the stored matrix plus what rounding may have taken
    from its diagonal, or ten times that until it is definite; features that it had taken for constant are let in.

    Parameters
    ----------
    c : Centered
        The sums that were solved.
    alpha : float
    solution : Solution
        Where to begin; `solution` afterwards.
    fit_intercept : bool

    Raises
    ------
    SolveError
        If a pass was not over the rows that were counted.

    Notes
    -----
    Memory for two arrays of the weights' shape a correction, besides a factor of the Gram matrix.

    Examples
    --------
    >>> from streamfit.frame import Frame
    >>> from streamfit.moments import Moments
    >>> from streamfit.solve.ridge import solve
    >>> from streamfit.targets import Dense
    >>> x = np.array([[0.0], [0.1], [0.3]])
    >>> c = Moments.from_rows(x, 3 * x, Frame.identity(1, 1), Dense(1), precision="float32").centered()
    >>> refinement = Refinement(c, 0.0, solve(c, 0.0))
    >>> for _ in range(3):
    ...     bound = refinement.measure(refinement.walk.block(x, 3 * x)).suboptimality
    ...     weights = refinement.correct().weights
    >>> bool(bound < 1e-25), round(float(weights[0, 0]), 14)
    (True, 3.0)
    """

    def __init__(self, c: Centered, alpha: float, solution: Solution, *, fit_intercept: bool = True) -> None:
        self.solution = solution
        self._c, self._alpha, self._fit_intercept = c, alpha, fit_intercept
        sums = without_constants(c) if fit_intercept else c.about(np.zeros_like(c.mean_x), np.zeros_like(c.mean_y))
        self._mean = c.mean_x if fit_intercept else np.zeros_like(c.mean_x)
        self._sums = sums
        self._factor: np.ndarray | None = None
        self._units = np.empty(0)
        self._best: tuple[np.ndarray, ...] = ()
        self._arrived = np.zeros(0, dtype=bool)
        self._steps: list[np.ndarray] = []
        self._changes: list[np.ndarray] = []
        self._here: np.ndarray | None = None
        self._slope: np.ndarray | None = None

    @property
    def walk(self) -> GradientPass:
        """The pass that measures the present weights."""
        return GradientPass.of(self.solution, self._mean)

    def measure(self, gradient: Gradient) -> Certificate:
        """Take the gradient of all rows at the present weights; gives their certificate of the data."""
        certificate = certify_data(self._c, self._alpha, self.solution, gradient, fit_intercept=self._fit_intercept)
        here = np.vstack([self.solution.weights, self.walk.offset])
        slope = np.vstack([gradient.slope - self._alpha * self.solution.weights, gradient.level])
        # A constant's sum of squares about its mean is rounding, and its weight stays as it is.
        own = gradient.spread - (gradient.first**2 / gradient.weight if self._fit_intercept else 0.0)
        varies = own > np.maximum((8.0 * _EPS * self._mean) ** 2 * gradient.weight, 1e-10 * gradient.spread)
        slope[:-1][~varies] = 0.0
        if not self._fit_intercept:
            slope[-1] = 0.0
        if self._factor is None:
            self._factor, self._units = _preconditioner(self._sums, self._alpha, np.where(varies, own, 0.0))
        if self._here is not None and self._slope is not None:
            self._steps.append(here - self._here)
            self._changes.append(self._slope - slope)
        sizes = np.linalg.norm(slope[:-1] / self._units[:, None], axis=0) + np.abs(slope[-1]) / gradient.weight**0.5
        if not self._best:
            self._best, self._arrived = (here, slope, sizes), np.zeros(len(sizes), dtype=bool)
        else:
            # Within what rounding may do, a gradient that no longer falls is rounding.
            rounding = _rounding(self._c, self.solution, gradient, self._fit_intercept)
            self._arrived |= (sizes > 0.5 * self._best[2]) & (self._best[2] <= rounding)
            better = sizes < self._best[2]
            pairs = zip((here, slope, sizes), self._best, strict=True)
            self._best = tuple(np.where(better, new, old) for new, old in pairs)
        self._here, self._slope = here, slope
        return certificate

    def correct(self) -> Solution:
        """Move to where the optimum should be, by all that was measured; `measure` comes first.

        Raises
        ------
        SolveError
            If nothing was measured yet.
        """
        if self._here is None or self._slope is None or self._factor is None:
            msg = "a correction before any pass"
            raise SolveError(msg, "a measured gradient", "call measure first")
        here, slope = self._here, self._slope
        if self._steps:
            steps, changes = np.array(self._steps), np.array(self._changes)
            curvature = np.einsum("idk,jdk->kij", steps, changes)
            # Symmetric but for rounding; steps of targets that have arrived are zero, and count for nothing.
            curvature = (curvature + curvature.transpose(0, 2, 1)) / 2
            along = np.einsum("idk,dk->ki", steps, slope)
            shares = np.einsum("kij,kj->ki", np.linalg.pinv(curvature, rcond=1e-13, hermitian=True), along)
            here = here + np.einsum("idk,ki->dk", steps, shares)
            slope = slope - np.einsum("idk,ki->dk", changes, shares)
        scaled = scipy.linalg.cho_solve((self._factor, True), slope[:-1] / self._units[:, None], check_finite=False)
        moved = np.where(self._arrived, self._best[0][:-1], here[:-1] + scaled / self._units[:, None])
        weights = np.ascontiguousarray(moved)
        offset = np.where(self._arrived, self._best[0][-1], here[-1] + slope[-1] / self._c.weight)
        intercept = offset - self._mean @ weights if self._fit_intercept else np.zeros_like(offset)
        self.solution = replace(self.solution, weights=weights, intercept=intercept)
        return self.solution


def _preconditioner(sums: Centered, alpha: float, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cholesky factor of the system scaled to a unit diagonal, made definite, and the scales."""
    gram = sums.gram.copy()
    cleared = np.diag(gram) <= 0
    gram[cleared, cleared] = spread[cleared]
    diagonal = np.diag(gram) + alpha
    units = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    noise = np.where(cleared, 0.0, sums.noise / units**2)
    while True:
        system = gram / units / units[:, None]
        system[np.diag_indices(len(units))] += np.where(diagonal > 0, alpha / units**2 + noise, 1.0)
        try:
            return scipy.linalg.cholesky(system, lower=True, check_finite=False), units
        except np.linalg.LinAlgError:
            noise = 10.0 * np.maximum(noise, _EPS)


def certify_data(
    c: Centered, alpha: float, solution: Solution, gradient: Gradient, *, fit_intercept: bool
) -> Certificate:
    """The certificate of weights from a pass over the rows: of the data, not of the stored sums alone.

    ``L - L* <= (||slope - alpha B - first level'/weight|| + slack)² / μ + (|level| + slack)² / weight``, where the
    second is what the intercept may still gain, and the slacks are rounding of the pass and of the intercept. μ is
    alpha, which the rows' own Gram matrix, having no negative eigenvalue, cannot go below; or, where that is more, the
    stored matrix's smallest eigenvalue less what rounding may have done to it.

    Parameters
    ----------
    c, alpha, solution, fit_intercept
        As for `Refinement`.
    gradient : Gradient
        Of all rows, at this solution.

    Raises
    ------
    SolveError
        If the pass was not over the rows that were counted.
    """
    _refuse_other_rows(c, gradient)
    sums = c if fit_intercept else c.about(np.zeros_like(c.mean_x), np.zeros_like(c.mean_y))
    toward = gradient.slope - alpha * solution.weights
    if fit_intercept:
        toward = toward - np.outer(gradient.first, gradient.level / gradient.weight)
    norm, scale = float(np.linalg.norm(toward)), float(np.linalg.norm(sums.cross))
    eigenvalues = scipy.linalg.eigvalsh(sums.gram, check_finite=False)
    top = max(float(eigenvalues[-1]), 0.0) + alpha
    # |E_ij| <= sqrt(noise_i noise_j) bounds the norm of the rounding E of the stored matrix by its trace.
    certain = float(eigenvalues[0]) + alpha - eigenvalue_noise(len(eigenvalues), top) - float(sums.noise.sum())
    mu = max(certain, alpha, 0.0)
    sizes, missed = np.sqrt(gradient.spread), _rounding(c, solution, gradient, fit_intercept)
    slack = float(np.linalg.norm(sizes)) * float(np.linalg.norm(missed))
    level = float(np.sum((np.abs(gradient.level) / gradient.weight**0.5 + missed) ** 2)) if fit_intercept else 0.0
    loss = float(gradient.squares.sum() + alpha * np.vdot(solution.weights, solution.weights))
    bound = (norm + slack) ** 2 / mu if mu > 0 else float("inf")
    units = np.sqrt(np.maximum(np.diag(sums.gram) + alpha, 0.0))
    if mu < _POORLY * top and (units > 0).all() and (sizes > 0).any():
        # As for `certify`: in units of their own, features keep digits that a common unit costs.
        own = scipy.linalg.eigvalsh(sums.gram / units / units[:, None] + np.diag(alpha / units**2), check_finite=False)
        least = float(own[0]) - eigenvalue_noise(len(own), float(own[-1])) - float(np.sum(sums.noise / units**2))
        if least > 0:
            own_slack = slack * float(np.linalg.norm(sizes / units) / np.linalg.norm(sizes))
            missing = float(np.linalg.norm(toward / units[:, None])) + own_slack
            mu, bound = max(mu, least * float(units.min()) ** 2), min(bound, missing**2 / least)
    condition = top / mu if mu > 0 else float("inf")
    return Certificate(
        relative_gradient=norm / scale if scale > 0 else norm,
        strong_convexity=mu,
        suboptimality=bound + level,
        loss=loss,
        condition=condition,
        digits_lost=float(np.log10(condition)),
        null_loss=float(sums.ss_y.sum()),
    )


def _rounding(c: Centered, solution: Solution, gradient: Gradient, fit_intercept: bool) -> np.ndarray:
    """What rounding may do to the residuals of each target, as a root of a sum of squares; shape (n_targets,).

    Of sums over the rows of a block, of predictions, of targets and their offset, and of the intercept as it is stored
    (Higham, Accuracy and stability of numerical algorithms, 3.1 and 3.5).
    """
    d, weight = len(c.gram), gradient.weight
    size = np.abs(solution.weights)
    reach = np.sqrt(gradient.spread) @ size
    targets = np.sqrt(c.ss_y + weight * c.mean_y**2)
    held = np.abs(solution.intercept) + (np.abs(c.mean_x) @ size if fit_intercept else 0.0)
    residuals = np.sqrt(np.maximum(gradient.squares, 0.0))
    return np.asarray(_EPS * ((d + _TERMS) * residuals + (d + 4) * (reach + np.sqrt(weight) * held) + 4.0 * targets))


def _refuse_other_rows(c: Centered, gradient: Gradient) -> None:
    if gradient.n_rows != c.n_rows or abs(gradient.weight - c.weight) > 1e-6 * c.weight:
        msg = f"a pass over {gradient.n_rows:,} rows of weight {gradient.weight:.9g}"
        raise SolveError(msg, f"all {c.n_rows:,} counted rows, of weight {c.weight:.9g}", "read what was counted")
