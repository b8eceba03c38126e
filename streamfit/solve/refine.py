"""Corrected semi-normal equations: one more pass over the rows for the gradient, one solve with the stored sums.

Floor 3: imports centered, errors, solve siblings.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.linalg

from streamfit.centered import Centered
from streamfit.errors import SolveError
from streamfit.solve.certificate import Certificate
from streamfit.solve.certificate_of_data import Convexity, certify_data, rounding_of
from streamfit.solve.gradient import Gradient, GradientPass
from streamfit.solve.ridge import Solution, without_constants

_EPS = float(np.finfo(np.float64).eps)


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
        self._convexity: Convexity | None = None
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
        if self._convexity is None:
            about = np.zeros_like(self._c.mean_x), np.zeros_like(self._c.mean_y)
            self._convexity = Convexity.of(self._c if self._fit_intercept else self._c.about(*about), self._alpha)
        certificate = certify_data(
            self._c,
            self._alpha,
            self.solution,
            gradient,
            fit_intercept=self._fit_intercept,
            convexity=self._convexity,
        )
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
            rounding = rounding_of(self._c, self.solution, gradient, self._fit_intercept)
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
