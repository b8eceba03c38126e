"""The certificate of weights from a pass over the rows, of the data and not of the stored sums alone. Floor 3."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamfit.centered import Centered
from streamfit.errors import SolveError
from streamfit.factoring import eigvalsh
from streamfit.solve.certificate import Certificate, eigenvalue_noise
from streamfit.solve.gradient import Gradient
from streamfit.solve.ridge import Solution

_EPS = float(np.finfo(np.float64).eps)
_POORLY = 1e-8
"""Share of the largest eigenvalue that the smallest has, below which a system is looked at in its features' units."""
_TERMS = 4096
"""Rows of a block: terms that a product adds one after another."""


@dataclass(frozen=True)
class Convexity:
    """What the stored sums tell of the curvature of the data's loss: the same for every pass.

    Parameters
    ----------
    mu : float
        Certain of the smallest eigenvalue; alpha at least.
    top : float
        The largest.
    units : array of shape (n_features,)
        Roots of the system's diagonal.
    least : float
        Certain of the smallest eigenvalue in those units; 0 where `mu` serves.
    """

    mu: float
    top: float
    units: np.ndarray
    least: float

    @classmethod
    def of(cls, sums: Centered, alpha: float) -> Convexity:
        eigenvalues = eigvalsh(sums.gram)
        top = max(float(eigenvalues[-1]), 0.0) + alpha
        # |E_ij| <= sqrt(noise_i noise_j) bounds the norm of the rounding E of the stored matrix by its trace.
        certain = float(eigenvalues[0]) + alpha - eigenvalue_noise(len(eigenvalues), top) - float(sums.noise.sum())
        mu, least = max(certain, alpha, 0.0), 0.0
        units = np.sqrt(np.maximum(np.diag(sums.gram) + alpha, 0.0))
        if mu < _POORLY * top and (units > 0).all():
            # As for `certify`: in units of their own, features keep digits that a common unit costs.
            scaled = sums.gram / units / units[:, None] + np.diag(alpha / units**2)
            own = eigvalsh(scaled)
            least = float(own[0]) - eigenvalue_noise(len(own), float(own[-1])) - float(np.sum(sums.noise / units**2))
        return cls(mu, top, units, max(least, 0.0))


def certify_data(
    c: Centered,
    alpha: float,
    solution: Solution,
    gradient: Gradient,
    *,
    fit_intercept: bool,
    convexity: Convexity | None = None,
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
    convexity : optional
        Of these sums, where an earlier pass has taken the eigenvalues.

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
    known = convexity or Convexity.of(sums, alpha)
    mu, top, units = known.mu, known.top, known.units
    sizes, missed = np.sqrt(gradient.spread), rounding_of(c, solution, gradient, fit_intercept)
    slack = float(np.linalg.norm(sizes)) * float(np.linalg.norm(missed))
    level = float(np.sum((np.abs(gradient.level) / gradient.weight**0.5 + missed) ** 2)) if fit_intercept else 0.0
    loss = float(gradient.squares.sum() + alpha * np.vdot(solution.weights, solution.weights))
    bound = (norm + slack) ** 2 / mu if mu > 0 else float("inf")
    if known.least > 0 and (sizes > 0).any():
        own_slack = slack * float(np.linalg.norm(sizes / units) / np.linalg.norm(sizes))
        missing = float(np.linalg.norm(toward / units[:, None])) + own_slack
        mu, bound = max(mu, known.least * float(units.min()) ** 2), min(bound, missing**2 / known.least)
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


def rounding_of(c: Centered, solution: Solution, gradient: Gradient, fit_intercept: bool) -> np.ndarray:
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
