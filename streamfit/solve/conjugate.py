"""Ridge regression from a sparse Gram matrix by conjugate gradients: no dense matrix of features is ever formed.

Floor 3: imports sparse_moments, errors and solve siblings. The centred matrix G - s s'/w is full, and applied as it
is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse

from streamfit.errors import MismatchError, SolveError
from streamfit.frame import BLOCK_ROWS
from streamfit.solve.certificate import TOLERANCE, Certificate
from streamfit.solve.ridge import Solution
from streamfit.solve.select import AlphaPath, checked_grid
from streamfit.sparse_moments import SparseMoments

_EPS = float(np.finfo(np.float64).eps)
_MOST = 10_000
"""Products with the matrix at most, for one alpha."""
_PROBES = 16
"""Random solves that effective degrees of freedom are estimated from."""
_FINE, _COARSE = 1e-14, 1e-9
"""Share of ||C|| that the gradient of each target is brought to: for a solution, and to compare alphas."""


@dataclass(frozen=True, eq=False)
class SparseSystem:
    """Centred sums of the features that occur, in natural units: ``A = G - s s'/w + alpha I`` and C.

    Parameters
    ----------
    gram : csr_array of shape (n, n)
        Both triangles, about zero.
    diagonal : array of shape (n,)
        Of the centred matrix.
    sum_x : array of shape (n,)
        s; zeros without an intercept.
    weight : float
    cross : array of shape (n, n_targets)
    cross_size : array of shape (n, n_targets)
        Magnitudes that `cross` is the difference of, for its rounding.
    ss_y : array of shape (n_targets,)
    mean_x, mean_y : arrays of shape (n,), (n_targets,)
        Zeros without an intercept.
    defect : float
        How far below zero rounding may have brought an eigenvalue of the centred matrix.
    """

    gram: scipy.sparse.csr_array
    diagonal: np.ndarray
    sum_x: np.ndarray
    weight: float
    cross: np.ndarray
    cross_size: np.ndarray
    ss_y: np.ndarray
    mean_x: np.ndarray
    mean_y: np.ndarray
    defect: float

    @classmethod
    def of(cls, moments: SparseMoments, kept: np.ndarray, fit_intercept: bool) -> SparseSystem:
        """Read sums of some features.

        Raises
        ------
        MismatchError
            If there are no rows.
        """
        weight, frame = moments.total_weight, moments.frame
        if not weight > 0:
            msg = f"moments of {moments.n_rows} rows with total weight {weight:g}"
            raise MismatchError(msg, "a positive total weight", "add rows before solving")
        units, y_units = np.ldexp(1.0, frame.exponents[kept]), np.ldexp(1.0, frame.y_exponents)
        gram = _symmetric(moments, kept, units)
        s, cross = moments.sum_x.value()[kept] * units, moments.cross.value()[:, kept].T * y_units * units[:, None]
        sum_y, ss_y, origin = moments.sum_y.value() * y_units, moments.sum_yy.value() * y_units**2, frame.y_origin
        if fit_intercept:  # about the means, in which the origin of targets cancels
            shift = np.outer(s, sum_y / weight)
            mean_x, mean_y, ss_y = s / weight, origin + sum_y / weight, ss_y - sum_y**2 / weight
            centred, about = cross - shift, s
        else:
            shift = np.outer(s, origin)
            mean_x, mean_y = np.zeros(len(kept)), np.zeros_like(origin)
            ss_y = ss_y + 2.0 * origin * sum_y + origin**2 * weight
            centred, about = cross + shift, np.zeros_like(s)
        diagonal = np.maximum(gram.diagonal() - about**2 / weight, 0.0)
        defect = _defect(moments, gram, about, weight, units)
        size = np.abs(cross) + np.abs(shift)
        return cls(gram, diagonal, about, weight, centred, size, np.maximum(ss_y, 0.0), mean_x, mean_y, defect)

    def apply(self, b: np.ndarray, alpha: float = 0.0) -> np.ndarray:
        """A b, of shape (n, n_columns)."""
        found = np.asarray(self.gram @ b) - np.outer(self.sum_x, (self.sum_x @ b) / self.weight)
        return found + alpha * b if alpha else found

    def loss(self, b: np.ndarray) -> float:
        """Squared error of weights on the rows of these sums, with the intercept that goes with their own means."""
        return float(self.ss_y.sum() - 2.0 * np.vdot(b, self.cross) + np.vdot(b, self.apply(b)))


def _symmetric(moments: SparseMoments, kept: np.ndarray, units: np.ndarray) -> scipy.sparse.csr_array:
    place = np.full(moments.frame.n_features, -1)
    place[kept] = np.arange(len(kept))
    rows, columns, values = place[moments.gram.rows], place[moments.gram.columns], moments.gram.entries.value()
    inside = (rows >= 0) & (columns >= 0)
    rows, columns, values = rows[inside], columns[inside], values[inside]
    values = values * units[rows] * units[columns]
    off = rows != columns
    both = (np.r_[rows, columns[off]], np.r_[columns, rows[off]])
    return scipy.sparse.csr_array((np.r_[values, values[off]], both), shape=(len(kept), len(kept)))


def _defect(
    moments: SparseMoments, gram: scipy.sparse.csr_array, s: np.ndarray, weight: float, units: np.ndarray
) -> float:
    """Norm of what the stored matrix may differ by from that of the rows, which has no eigenvalue below zero.

    Blocks whose products are whole steps of the grid leave nothing. Each other one leaves half a step an entry, and a
    sum of up to `BLOCK_ROWS` products errs by so many roundings relative to the norms of both columns (Higham, Accuracy
    and stability of numerical algorithms, 3.1): in all, by that share of the trace. Reading the two limbs of an entry
    as one float64 rounds once more.
    """
    trace, n_rounded = float(gram.diagonal().sum()), max(moments.n_rounded, 0)
    found = _EPS * trace
    if n_rounded:
        share = 1.01 * (BLOCK_ROWS + 2) * _EPS
        found += share * trace + n_rounded * 2.0 ** (moments.gram.entries.bottom - 1) * float(units @ units)
        of_sum = share * np.sqrt(weight * trace) + n_rounded * 2.0**-53 * float(np.linalg.norm(units))
        found += (2.0 * float(np.linalg.norm(s)) + of_sum) * of_sum / weight
    return found


def solve_sparse(
    moments: SparseMoments,
    alpha: float,
    *,
    fit_intercept: bool = True,
    strict: bool = False,
    tolerance: float = TOLERANCE,
) -> Solution:
    """Solve ridge regression from a sparse Gram matrix.

    Minimises ``sum_t w_t ||B'φ_t + b - y_t||² + alpha ||B||²`` over B and, unless switched off, an unpenalised
    intercept b, as `solve` does, by conjugate gradients with the diagonal as preconditioner (Hestenes and Stiefel,
    1952; Saad, Iterative methods for sparse linear systems, 9.2), all targets at a time. Memory is that of the entries
    and of some arrays of shape (n_features, n_targets).

    The certificate needs no eigenvalues: G is a sum of squares, so ``λ_min(A) >= alpha`` but for a bound on rounding,
    and the loss is above its optimum by at most ``||∇L||² / (4 alpha)``. The condition number is a bound from above,
    effective degrees of freedom are an estimate from 16 random solves (Hutchinson, A stochastic estimator of the trace
    of the influence matrix, 1990).

    Parameters
    ----------
    moments : SparseMoments
    alpha : float
        Positive, unscaled by n.
    fit_intercept : bool
    strict : bool
        Raise if the certificate does not reach the tolerance.
    tolerance : float
        As for `solve`.

    Raises
    ------
    SolveError
        If alpha is not positive and finite.
    CertificateError
        With `strict`, if the bound is above the tolerance.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_array
    >>> from streamfit.frame import Frame
    >>> from streamfit.targets import Dense
    >>> phi, y = csr_array(np.eye(3, 1000)), np.array([[1.0], [2.0], [6.0]])
    >>> s = solve_sparse(SparseMoments.from_rows(phi, y, Frame.identity(1000, 1), Dense(1)), 1.0)
    >>> s.weights[:4, 0].round(9).tolist(), s.intercept.round(9).tolist(), s.certificate.strong_convexity > 0.999
    ([-1.0, -0.5, 1.5, 0.0], [3.0], True)
    """
    if not (alpha > 0 and np.isfinite(alpha)):
        msg = f"alpha {alpha:g} for a sparse Gram matrix of {moments.frame.n_features:,} features"
        raise SolveError(msg, "a positive finite number", "without a penalty, iterations prove no optimum")
    kept = moments.active
    system = SparseSystem.of(moments, kept, fit_intercept)
    found = _descend(system, alpha, np.zeros_like(system.cross), _FINE)
    certificate = _certify(system, alpha, found)
    weights = np.zeros((moments.frame.n_features, moments.frame.n_targets))
    weights[kept] = found
    intercept = system.mean_y - system.mean_x @ found
    if strict:
        certificate.require(tolerance)
    dof = _effective_dof(system, alpha)
    return Solution(weights, intercept, float(alpha), "conjugate_gradients", len(kept), dof, certificate)


def _effective_dof(system: SparseSystem, alpha: float) -> float:
    n = len(system.diagonal)
    probes = np.random.default_rng(0).choice([-1.0, 1.0], size=(n, _PROBES))
    solved = _descend(replace(system, cross=probes), alpha, np.zeros_like(probes), _COARSE)
    return n - alpha * float(np.vdot(probes, solved)) / _PROBES


def widened(solution: Solution, kept: np.ndarray, n_features: int) -> Solution:
    """A solution of some features as one of all, where the others have no sums: their weights are zero.

    Parameters
    ----------
    solution : Solution
    kept : integer array of shape (n_kept,)
    n_features : int
    """
    weights = np.zeros((n_features, solution.weights.shape[1]))
    weights[kept] = solution.weights
    if len(kept) == n_features:
        return replace(solution, weights=weights)
    # The whole system is that of these features beside alpha times the identity.
    least = solution.alpha if solution.target_alphas is None else float(solution.target_alphas.min())
    known, c = solution.certificate.strong_convexity, solution.certificate
    mu = min(known, least)
    condition = c.condition * known / mu if mu > 0 and known > 0 else float("inf")
    certificate = replace(c, strong_convexity=mu, condition=condition, digits_lost=float(np.log10(condition)))
    return replace(solution, weights=weights, certificate=certificate)


def _descend(system: SparseSystem, alpha: float, start: np.ndarray, share: float) -> np.ndarray:
    """Conjugate gradients, begun again from the gradient itself for as long as that still gets smaller."""
    b, left = start, _MOST
    scale = np.linalg.norm(system.cross, axis=0)
    wanted = share * scale
    gradient = system.cross - system.apply(b, alpha)
    norm = np.linalg.norm(gradient, axis=0)
    while left > 0 and (norm > wanted).any():
        step, used = _once(system, alpha, gradient, wanted, left)
        left -= used
        better = b + step
        after = system.cross - system.apply(better, alpha)
        lower = np.linalg.norm(after, axis=0)
        if not (lower < 0.5 * norm)[norm > wanted].any():  # rounding of the gradient is all that is left of it
            return np.where(lower < norm, better, b)
        b, gradient, norm = (
            np.where(lower < norm, better, b),
            np.where(lower < norm, after, gradient),
            np.minimum(lower, norm),
        )
    return b


def _once(
    system: SparseSystem, alpha: float, right: np.ndarray, wanted: np.ndarray, most: int
) -> tuple[np.ndarray, int]:
    """Solve ``A x = right``, each column by itself, from zero; returns x and the products taken."""
    inverse = 1.0 / (system.diagonal + alpha)[:, None]
    x, r = np.zeros_like(right), right.copy()
    z = inverse * r
    p, rz = z.copy(), np.sum(r * z, axis=0)
    for used in range(1, most + 1):
        ap = system.apply(p, alpha)
        curvature = np.sum(p * ap, axis=0)
        size = np.divide(rz, curvature, out=np.zeros_like(rz), where=curvature > 0)
        x += size * p
        r -= size * ap
        if not ((np.linalg.norm(r, axis=0) > 0.5 * wanted) & (size > 0)).any():
            return x, used
        z = inverse * r
        after = np.sum(r * z, axis=0)
        p = z + np.divide(after, rz, out=np.zeros_like(rz), where=rz > 0) * p
        rz = after
    return x, most


def _certify(system: SparseSystem, alpha: float, b: np.ndarray) -> Certificate:
    fitted = system.apply(b)
    residual = fitted + alpha * b - system.cross
    norm, scale = float(np.linalg.norm(residual)), float(np.linalg.norm(system.cross))
    # Rounding of A B - C itself (Higham, Accuracy and stability of numerical algorithms, 3.5), entry by entry: a sum
    # has as many terms as the fullest row of G, that of s'B as many as there are features.
    magnitudes = scipy.sparse.csr_array((np.abs(system.gram.data), system.gram.indices, system.gram.indptr))
    magnitudes.resize(system.gram.shape)
    size, s = np.abs(b), np.abs(system.sum_x)
    fullest = int(np.max(np.diff(system.gram.indptr), initial=0))
    slack = _gamma(fullest + 5) * (np.asarray(magnitudes @ size) + alpha * size + system.cross_size)
    slack += _gamma(len(b) + 5) * np.outer(s, (s @ size) / system.weight)
    mu = max(alpha - system.defect, 0.0)
    # An eigenvalue is at most the largest sum of magnitudes in a row, and at most the trace.
    rows = float(np.max(np.asarray(magnitudes.sum(axis=1)), initial=0.0))
    top = min(rows, float(system.gram.diagonal().sum())) * (1.0 + 1e-12) + alpha
    condition = top / mu if mu > 0 else float("inf")
    return Certificate(
        relative_gradient=norm / scale if scale > 0 else norm,
        strong_convexity=mu,
        suboptimality=float(np.linalg.norm(np.abs(residual) + slack)) ** 2 / mu if mu > 0 else float("inf"),
        loss=system.loss(b) + alpha * float(np.vdot(b, b)),
        condition=condition,
        digits_lost=float(np.log10(condition)),
        null_loss=float(system.ss_y.sum()),
    )


def _gamma(n: int) -> float:
    return n * _EPS / (1.0 - n * _EPS)


def cross_validate_sparse(
    folds: Mapping[int, SparseMoments], alphas: np.ndarray, *, fit_intercept: bool = True
) -> AlphaPath:
    """Evaluate each alpha on each fold with weights fitted to the other folds, by conjugate gradients.

    Parameters
    ----------
    folds : mapping of int to SparseMoments
        At least two, with rows in each.
    alphas : array of shape (n_alphas,)
        Positive.
    fit_intercept : bool

    Raises
    ------
    SolveError
        If there are fewer than two folds, or no alpha is above what rounding may have left of eigenvalues.
    """
    grid = checked_grid(alphas)
    filled = {k: m for k, m in sorted(folds.items()) if m.n_rows > 0}
    if len(filled) < 2:
        msg = f"{len(filled)} fold(s) with rows"
        raise SolveError(msg, "at least 2", "add more shards, or give one alpha instead of a grid")
    losses, baseline, weights, defect = [], [], [], 0.0
    for held, moments in filled.items():
        # The other folds are added, not subtracted from a total: the cost is the same, and no digit is lost.
        others = [m for k, m in filled.items() if k != held]
        train = others[0]
        for m in others[1:]:
            train = train + m
        kept = train.active
        fitted, test = SparseSystem.of(train, kept, fit_intercept), SparseSystem.of(moments, kept, fit_intercept)
        defect, dx, dy = max(defect, fitted.defect), test.mean_x - fitted.mean_x, test.mean_y - fitted.mean_y
        b, found = np.zeros_like(fitted.cross), np.empty(len(grid))
        for i in range(len(grid) - 1, -1, -1):  # from the largest on, each from the solution before
            b = _descend(fitted, float(grid[i]), b, _COARSE)
            found[i] = (test.loss(b) + test.weight * float(np.sum((dy - dx @ b) ** 2))) / test.weight
        losses.append(found)
        baseline.append(float(test.ss_y.sum()) / test.weight + float(np.sum(dy**2)))
        weights.append(test.weight)
    trusted = (np.array(losses) >= -1e-6 * np.array(baseline)[:, None]).all(axis=0) & (grid > defect)
    if not trusted.any():
        msg = f"alphas up to {grid[-1]:g}, all so small that rounding of the stored sums decides"
        raise SolveError(msg, "some larger alpha", "raise the grid, or use precision float64")
    return AlphaPath(grid, np.maximum(losses, 0.0), np.array(baseline), np.array(weights), trusted)
