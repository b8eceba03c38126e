"""Solving from a triangular factor of the rows: no Gram matrix is formed, and no digits are lost to its condition.

Floor 3: imports triangle, errors and solve siblings. Plain functions on float64 host arrays.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from streamfit.errors import SolveError
from streamfit.solve.certificate import TOLERANCE, Certificate
from streamfit.solve.ridge import IllConditionedWarning, Solution, involved_features
from streamfit.solve.select import AlphaPath, checked_grid
from streamfit.triangle import Triangle

_EPS = float(np.finfo(np.float64).eps)
RCOND_FLOOR = 1e-14
"""Reciprocal condition, of the rows scaled to columns of length one, below which features are taken as dependent."""


@dataclass(frozen=True)
class _System:
    """Triangle X of the features, XY and Y as in `Triangle.centered_factor`; columns that do not vary are zero."""

    x: np.ndarray
    xy: np.ndarray
    ss_y: np.ndarray

    @classmethod
    def of(cls, triangle: Triangle, fit_intercept: bool) -> _System:
        x, xy, y = triangle.centered_factor() if fit_intercept else triangle.factor_about_zero()
        if fit_intercept:
            # Rounding is all that a constant leaves: noise must not be given a weight.
            x = np.where(np.sum(x**2, axis=0) <= triangle.noise(), 0.0, x)
        return cls(x, xy, np.sum(xy**2, axis=0) + np.sum(y**2, axis=0))

    def rows(self, alpha: float) -> np.ndarray:
        """Rows whose Gram matrix is G + alpha I."""
        return np.vstack([self.x, np.sqrt(alpha) * np.eye(len(self.x))]) if alpha > 0 else self.x

    def right(self, alpha: float) -> np.ndarray:
        return np.vstack([self.xy, np.zeros_like(self.xy)]) if alpha > 0 else self.xy


def solve_triangle(
    triangle: Triangle,
    alpha: float,
    *,
    fit_intercept: bool = True,
    names: list[str] | None = None,
    strict: bool = False,
    tolerance: float = TOLERANCE,
) -> Solution:
    """Solve ridge regression from a triangular factor of its rows.

    Minimises ``sum_t w_t ||B'φ_t + b - y_t||² + alpha ||B||²``, as `solve` does, by a QR decomposition of the triangle
    with rows √alpha e_j below it (Golub and Van Loan, Matrix Computations, 5.3 and 6.1.5; Björck, Numerical methods for
    least squares problems, 2.7). Weights lose as many digits as the condition number of the scaled rows has, not of its
    square. Dependent features get the solution of least norm.

    Parameters
    ----------
    triangle : Triangle
    alpha, fit_intercept, names, strict, tolerance
        As for `solve`.

    Raises
    ------
    SolveError
        If alpha is negative or not finite.
    CertificateError
        With `strict`, if the bound is above the tolerance.

    Warns
    -----
    IllConditionedWarning
        If features are dependent but for rounding; it states the rank and names them.
    """
    if not (alpha >= 0 and np.isfinite(alpha)):
        msg = f"alpha {alpha}"
        raise SolveError(msg, "a finite number >= 0")
    system = _System.of(triangle, fit_intercept)
    d = len(system.x)
    rows, right = system.rows(alpha), system.right(alpha)
    varies = np.any(system.x != 0, axis=0)
    units = np.where(varies, np.sqrt(np.sum(rows**2, axis=0)), 1.0)
    scaled = np.where(varies, rows / units, 0.0)
    basis, factor, order = scipy.linalg.qr(scaled, mode="economic", pivoting=True, check_finite=False)
    diagonal = np.abs(np.diag(factor))
    rank = int((diagonal > max(d * _EPS, RCOND_FLOOR) * diagonal[0]).sum()) if diagonal[0] > 0 else 0
    basis, factor = basis[:, :rank], factor[:rank]
    method, projected = "qr", basis.T @ right
    weights = np.zeros_like(system.xy)
    if rank == d:
        weights[order] = scipy.linalg.solve_triangular(factor, projected, check_finite=False)
        weights /= units[:, None]
    elif rank:
        method = "qr_least_norm"
        weights[order] = _least_norm(factor * units[order], projected)
    if rank < d:
        warnings.warn(
            f"alpha {alpha:g} leaves dependent features: the solution of least norm, with rank {rank} of {d}; "
            f"{_dependent(factor, order, names)} nearly dependent or constant",
            IllConditionedWarning,
            stacklevel=2,
        )
    singular = scipy.linalg.svdvals(system.x, check_finite=False)
    certificate = _certificate(system, alpha, weights, basis, factor, units, singular)
    if strict:
        certificate.require(tolerance)
    mean_x, mean_y = triangle.means
    intercept = mean_y - mean_x @ weights if fit_intercept else np.zeros_like(mean_y)
    dof = float(np.sum(singular**2 / (singular**2 + alpha))) if alpha > 0 else float(rank)
    return Solution(weights, intercept, float(alpha), method, rank, dof, certificate)


def _least_norm(factor: np.ndarray, projected: np.ndarray) -> np.ndarray:
    """Pseudo-inverse solution with a factor of full row rank, in natural units: N' = QT, so B = Q T'^-1 z."""
    rows = np.argsort(-np.abs(factor).max(axis=0), kind="stable")
    basis, triangle, pivots = scipy.linalg.qr(factor[:, rows].T, mode="economic", pivoting=True, check_finite=False)
    inner = scipy.linalg.solve_triangular(triangle, projected[pivots], trans="T", check_finite=False)
    found = np.empty((factor.shape[1], projected.shape[1]))
    found[rows] = basis @ inner
    return found


def _dependent(factor: np.ndarray, order: np.ndarray, names: list[str] | None) -> str:
    rank, d = factor.shape
    combination = scipy.linalg.solve_triangular(factor[:, :rank], factor[:, rank:], check_finite=False)
    vectors = np.zeros((d, d - rank))
    vectors[order] = np.vstack([-combination, np.eye(d - rank)])
    return involved_features(vectors, names)


def _certificate(
    system: _System,
    alpha: float,
    weights: np.ndarray,
    basis: np.ndarray,
    factor: np.ndarray,
    units: np.ndarray,
    singular: np.ndarray,
) -> Certificate:
    """What the weights are known to satisfy, of the stored triangle.

    With A the rows of the system and r = A B - Y, ``L(B) - L* = ||P r||²``, P projecting onto the span of A: known from
    the orthonormal factor but for rounding of r, and of that span by an angle of eps times the condition of the scaled
    rows (Higham, Accuracy and stability of numerical algorithms, 19.3 and 20.1).
    """
    d, rank = len(weights), factor.shape[0]
    rows = system.rows(alpha)
    residual = rows @ weights - system.right(alpha)
    gradient = rows.T @ residual
    scale = float(np.linalg.norm(system.x.T @ system.xy))
    gamma = 10.0 * d * _EPS
    reach = float(np.linalg.norm(np.abs(rows) @ np.abs(weights)) + np.linalg.norm(system.xy))
    full = rank == d and d > 0
    rcond = 0.0
    if full:
        value, _ = scipy.linalg.lapack.dtrcon(np.asfortranarray(factor), norm="1", uplo="U")
        rcond = float(value)
    certain = full and rcond > 0
    angle = min(gamma * d / rcond, 1.0) if certain else 1.0
    missed = float(np.linalg.norm(basis.T @ residual)) + gamma * reach + angle * float(np.linalg.norm(residual))
    top = float(singular[0]) if d else 0.0
    # Singular values err by a modest multiple of eps times the largest (Golub and Van Loan, 8.6).
    least = max(float(singular[-1]) - gamma * top, 0.0) if d else 0.0
    mu = least**2 + alpha
    condition = (top**2 + alpha) / mu if mu > 0 else float("inf")
    loss = float(system.ss_y.sum() - np.sum(system.xy**2) + np.vdot(residual, residual))
    norm = float(np.linalg.norm(gradient))
    # Strong convexity bounds it as well, and better where alpha is large.
    slack = gamma * float(np.linalg.norm(rows)) * (reach + float(np.linalg.norm(residual)))
    bounds = [missed**2] if certain else []
    bounds += [(norm + slack) ** 2 / mu] if mu > 0 else []
    return Certificate(
        relative_gradient=norm / scale if scale > 0 else norm,
        strong_convexity=mu,
        suboptimality=min(bounds, default=float("inf")),
        loss=loss,
        condition=condition,
        digits_lost=float(0.5 * np.log10(condition)),
        null_loss=float(system.ss_y.sum()),
    )


def cross_validate_triangles(
    folds: Mapping[int, Triangle], alphas: np.ndarray, *, fit_intercept: bool = True, per_target: bool = False
) -> AlphaPath:
    """`cross_validate` from triangular factors: one singular value decomposition a fold serves every alpha.

    With X = U S V', B = V (S² + alpha)^-1 S U'XY. The held-out loss is the squared length of the held-out triangle
    times (-b, B, -1): a sum of squares, which cannot cancel.

    Parameters
    ----------
    folds : mapping of int to Triangle
    alphas, fit_intercept, per_target
        As for `cross_validate`.

    Raises
    ------
    SolveError
        If there are fewer than two folds, or an alpha is not positive.
    """
    grid = checked_grid(alphas)
    filled = {k: t for k, t in sorted(folds.items()) if t.n_rows > 0}
    if len(filled) < 2:
        msg = f"{len(filled)} fold(s) with rows"
        raise SolveError(msg, "at least 2", "add more shards, or give one alpha instead of a grid")
    losses, baseline = [], []
    for held, test in filled.items():
        others = [t for k, t in filled.items() if k != held]
        train = others[0]
        for other in others[1:]:
            train = train + other
        system = _System.of(train, fit_intercept)
        u, s, vt = scipy.linalg.svd(system.x, check_finite=False)
        projected = u.T @ system.xy
        mean_x, mean_y = train.means if fit_intercept else (np.zeros(len(system.x)), np.zeros(system.xy.shape[1]))
        none = np.zeros_like(system.xy)
        baseline.append(float(_missed(test, none, mean_y).sum()) / test.total_weight)
        each = []
        for alpha in grid:
            weights = vt.T @ (projected * (s / (s**2 + alpha))[:, None])
            each.append(_missed(test, weights, mean_y - mean_x @ weights if fit_intercept else 0.0 * mean_y))
        losses.append(np.array(each) / test.total_weight)
    of_targets = np.array(losses)
    share = np.array([t.total_weight for t in filled.values()])
    trusted = np.ones(len(grid), dtype=bool)
    each_target = of_targets if per_target else None
    return AlphaPath(grid, of_targets.sum(axis=2), np.array(baseline), share, trusted, each_target)


def _missed(test: Triangle, weights: np.ndarray, intercept: np.ndarray) -> np.ndarray:
    """Squared error of predictions on the rows of a triangle, shape (n_targets,)."""
    frame = test.frame
    level = frame.y_origin - intercept - frame.origin @ weights
    slope = -np.ldexp(1.0, frame.exponents)[:, None] * weights
    columns = np.vstack([level[None, :], slope, np.diag(np.ldexp(1.0, frame.y_exponents))])
    return np.asarray(np.sum((np.asarray(test.factor) @ columns) ** 2, axis=0))
