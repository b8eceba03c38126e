"""The one final solve: Cholesky on the centred moments, with an exact intercept and a certificate.

Floor 3: imports moments, errors. Plain functions on float64 host arrays.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

from streamfit.centered import Centered, Statistic, as_centered
from streamfit.errors import SolveError
from streamfit.factoring import cho_solve, cholesky, condition, eigvalsh
from streamfit.solve.certificate import TOLERANCE, Certificate, certify, eigenvalue_noise

RCOND_FLOOR = 1e-14
"""Reciprocal condition below which a Cholesky solution is not trusted."""


_NEARLY = 1e-6
"""Share of a feature's spread that the others do not explain, at or below which it is named in a warning."""


class IllConditionedWarning(UserWarning):
    """A system of nearly dependent features, solved for the least norm because Cholesky would have lost most digits."""


@dataclass(frozen=True)
class Solution:
    """Weights of the optimum and what is known about them.

    Parameters
    ----------
    weights : float64 array of shape (n_features, n_targets)
    intercept : float64 array of shape (n_targets,)
    alpha : float
    method : {'cholesky', 'least_norm'}
    rank : int
        Numerical rank of the system that was solved.
    effective_dof : float
        trace(G (G + αR)^-1), the effective degrees of freedom without the intercept.
    certificate : Certificate
    target_alphas : array of shape (n_targets,), optional
        Where each target has its own; `alpha` is their geometric mean then, and degrees of freedom are a mean.
    block_alphas : dict of str to float, optional
        Where each block of features has its own; `alpha` is their geometric mean then.
    """

    weights: np.ndarray
    intercept: np.ndarray
    alpha: float
    method: str
    rank: int
    effective_dof: float
    certificate: Certificate
    target_alphas: np.ndarray | None = None
    block_alphas: dict[str, float] | None = None

    def predict(self, phi: np.ndarray) -> np.ndarray:
        """Predictions `φ B + b`, shape (n_rows, n_targets), from features of shape (n_rows, n_features)."""
        dtype = phi.dtype if phi.dtype in (np.float32, np.float64) else np.float64
        return np.asarray(phi @ self.weights.astype(dtype, copy=False) + self.intercept.astype(dtype, copy=False))


def solve(
    moments: Statistic | Centered,
    alpha: float,
    *,
    fit_intercept: bool = True,
    names: list[str] | None = None,
    strict: bool = False,
    tolerance: float = TOLERANCE,
) -> Solution:
    """Solve ridge regression from its moments.

    Minimises ``sum_t w_t ||B'φ_t + b - y_t||² + alpha ||B||²`` over B and, unless switched off, an unpenalised
    intercept b. Alpha is not divided by the number of rows, as in scikit-learn's Ridge. With the moments
    centred about their means, B solves (G + alpha I) B = C and b = mean_y - B'mean_x (Hastie, Tibshirani and
    Friedman, The Elements of Statistical Learning, 3.4.1). Where features are dependent and alpha is zero, or too small
    to tell, it is the solution of least norm, the limit of ridge as alpha vanishes (Golub and Van Loan, Matrix
    Computations, 5.5).

    Normal equations square the condition number: features whose correlations leave a condition above 1e14 (of the
    Gram matrix scaled to a unit diagonal; 1e7 of the rows) are taken as dependent. Sums kept as a triangular factor
    (`statistic = "qr"`) go to 1e14 of the rows.

    Parameters
    ----------
    moments : Moments or Centered
    alpha : float
        Nonnegative.
    fit_intercept : bool
    names : list of str, optional
        Feature names for warnings and errors.
    strict : bool
        Raise if the certificate does not reach the tolerance.
    tolerance : float
        Largest bound on ``L(B) - L*`` that is accepted then, as a share of the targets' sum of squares.

    Raises
    ------
    SolveError
        If alpha is negative or not finite.
    CertificateError
        With `strict`, if the bound is above the tolerance: for one, wherever the optimum is not unique.

    Warns
    -----
    IllConditionedWarning
        If the system is too ill-conditioned to trust Cholesky; the solution of least norm is then given, by a
        pivoted factor. The warning states the rank and names the features that are nearly dependent.
    """
    if not (alpha >= 0 and np.isfinite(alpha)):
        msg = f"alpha {alpha}"
        raise SolveError(msg, "a finite number >= 0")
    c = as_centered(moments)
    zeros = np.zeros_like(c.mean_x), np.zeros_like(c.mean_y)
    if fit_intercept:
        _warn_of_hidden(c, names)
        c = without_constants(c)
    else:
        c = c.about(*zeros)
    d = len(c.gram)
    method, rank = "cholesky", int((np.diag(c.gram) > 0).sum())
    weights = _cholesky(c.gram, alpha, c.cross)
    if weights is not None:
        eigenvalues = eigvalsh(c.gram)
        share = noise_share(c, alpha)
        if share > 1.0:
            warnings.warn(
                f"alpha {alpha:g} is below what rounding of the stored sums allows (to first order the weights may "
                f"change by {share:.2g} times themselves): raise alpha, or count with precision 'float64'",
                IllConditionedWarning,
                stacklevel=2,
            )
    else:
        method = "least_norm"
        weights, rank, involved = _by_pivots(c.gram, alpha, c.cross, names)
        eigenvalues = eigvalsh(c.gram)
        warnings.warn(
            f"alpha {alpha:g} leaves the system ill-conditioned: the solution of least norm, with rank {rank} of "
            f"{d}; {involved} nearly dependent or constant",
            IllConditionedWarning,
            stacklevel=2,
        )
    # One memory layout, so that predictions round the same before and after a model was saved.
    weights = np.ascontiguousarray(weights)
    certificate = certify(c.gram, c.cross, c.ss_y, alpha, weights, eigenvalues)
    intercept = c.mean_y - c.mean_x @ weights if fit_intercept else np.zeros_like(c.mean_y)
    positive = np.maximum(eigenvalues, 0.0)
    dof = float(np.sum(positive / (positive + alpha))) if alpha > 0 else float(rank)
    if strict:
        certificate.require(tolerance)
    return Solution(weights, intercept, float(alpha), method, rank, dof, certificate)


def _warn_of_hidden(c: Centered, names: list[str] | None) -> None:
    """Name features that are cleared as constants though more than a constant's rounding is there."""
    hidden = np.flatnonzero(np.zeros(0) if c.hidden is None else c.hidden)
    if len(hidden):
        found = [names[j] if names else f"feature {j}" for j in hidden[:5].tolist()]
        more = f" and {len(hidden) - 5} more" if len(hidden) > 5 else ""
        warnings.warn(
            f"{', '.join(found)}{more}: no more variation than rounding of the stored sums may leave, and so weight 0; "
            "count with precision 'float64', or refine",
            IllConditionedWarning,
            stacklevel=3,
        )


def without_constants(c: Centered) -> Centered:
    """Clear what rounding leaves of features that do not vary, lest noise be given a weight."""
    constant = np.diag(c.gram) <= c.noise
    if not constant.any():
        return c
    gram, cross = c.gram.copy(), c.cross.copy()
    gram[constant, :] = gram[:, constant] = 0.0
    cross[constant, :] = 0.0
    return replace(c, gram=gram, cross=cross)


def _cholesky(gram: np.ndarray, alpha: float, cross: np.ndarray) -> np.ndarray | None:
    """Solve by Cholesky; None where too few digits would be left."""
    factored = _factor(gram, alpha)
    if factored is None or factored[2] < RCOND_FLOOR:
        return None
    factor, units, _, _ = factored
    return np.asarray(cho_solve(factor, cross / units[:, None]) / units[:, None])


def weights_for(c: Centered, alpha: float) -> np.ndarray:
    """Weights of one alpha, without intercept, certificate or warnings."""
    weights = _cholesky(c.gram, alpha, c.cross)
    return _by_pivots(c.gram, alpha, c.cross, None)[0] if weights is None else weights


def _factor(gram: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray, float, float] | None:
    """Cholesky factor of the system scaled to a unit diagonal, the scales, 1/condition and the inverse's 1-norm."""
    system = gram.copy()
    system[np.diag_indices(len(gram))] += alpha
    # Scaling to a unit diagonal makes the judgement independent of the features' units.
    units = np.sqrt(np.maximum(np.diag(system), 0.0))
    if not (units > 0).all():
        return None
    system /= units
    system /= units[:, None]
    factor = cholesky(system)
    if factor is None:
        return None
    norm = float(np.abs(system).sum(axis=0).max())
    rcond = condition(factor, norm)
    return (factor, units, rcond, 1.0 / (rcond * norm)) if rcond > 0 else None


def noise_share(c: Centered, alpha: float) -> float:
    """Relative error that rounding of the stored sums may cause in the weights, to first order.

    The rounding that the diagonal may carry, relative to it, times the norm of the inverse of the system scaled to
    a unit diagonal (Higham, Accuracy and stability of numerical algorithms, 7.2). Near or above 1, the system's
    smallest directions are rounding and nothing else.

    Parameters
    ----------
    c : Centered
        Without constant features.
    alpha : float
    """
    factored = _factor(c.gram, alpha)
    if factored is None:
        return np.inf
    varying = np.diag(c.gram) > 0
    relative = c.noise[varying] / (np.diag(c.gram)[varying] + alpha)
    return float(relative.max() * factored[3]) if varying.any() else 0.0


def _by_pivots(
    gram: np.ndarray, alpha: float, cross: np.ndarray, names: list[str] | None
) -> tuple[np.ndarray, int, str]:
    """The solution of least norm in the numerical rank of a system; returns weights, rank and who is dependent.

    The rank is decided by Cholesky with complete pivoting of the system scaled to a unit diagonal (Higham, Accuracy and
    stability of numerical algorithms, 10.3), so that a feature in small units is not taken for rounding of one in large
    units. With factor N of full column rank in natural units and N = QT, the pseudo-inverse is ``Q (TT')^-1 Q'``;
    sorted rows and pivoted columns keep this QR accurate row by row (Cox and Higham, 1998).
    """
    system, varies = gram.copy(), np.diag(gram) > 0
    # What does not vary has weight zero whatever alpha is: it counts among the dependent ones.
    system[np.diag_indices(len(gram))] += np.where(varies, alpha, 0.0)
    units = np.sqrt(np.where(varies, np.diag(system), 1.0))
    system /= units
    system /= units[:, None]
    if not varies.any():
        return np.zeros_like(cross), 0, involved_features(np.eye(len(gram)), names)
    noise = eigenvalue_noise(len(gram), 1.0)
    lower, pivots, rank, _ = scipy.linalg.lapack.dpstrf(system, lower=1, tol=noise)
    factor, order = np.tril(lower[:, :rank]), pivots - 1
    natural = factor * units[order, None]
    rows = np.argsort(-np.abs(natural).max(axis=1), kind="stable")
    basis, triangle, _ = scipy.linalg.qr(natural[rows], mode="economic", pivoting=True, check_finite=False)
    place = order[rows]
    half = scipy.linalg.solve_triangular(triangle, basis.T @ cross[place], check_finite=False)
    weights = np.empty_like(cross)
    weights[place] = basis @ scipy.linalg.solve_triangular(triangle, half, trans="T", check_finite=False)
    # Those that stand this little above the others before them belong to a dependency, too.
    n_clear = int((np.diag(factor) > _NEARLY).sum())
    combination = scipy.linalg.solve_triangular(
        factor[:n_clear, :n_clear], factor[n_clear:, :n_clear].T, lower=True, trans="T", check_finite=False
    )
    vectors = np.zeros((len(gram), len(gram) - n_clear))
    vectors[order] = np.vstack([-combination, np.eye(vectors.shape[1])])
    return weights, int(rank), involved_features(vectors, names)


def involved_features(vectors: np.ndarray, names: list[str] | None, most: int = 5) -> str:
    """Name features with a large part in dependencies.

    Parameters
    ----------
    vectors : array of shape (n_features, n_dependencies)
        Combinations of the scaled features that vanish.
    names : list of str, optional
    most : int
        So many are named.
    """
    if not vectors.size:
        return "no single feature"
    share = np.abs(vectors / np.linalg.norm(vectors, axis=0)).max(axis=1)
    worst = [int(j) for j in np.argsort(-share, kind="stable") if share[j] > 0.1]
    labels = [names[j] if names else f"feature {j}" for j in worst[:most]]
    more = f" and {len(worst) - most} more" if len(worst) > most else ""
    return "features " + ", ".join(labels) + more if labels else "many features together"
