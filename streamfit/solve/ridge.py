"""The one final solve: Cholesky on the centred moments, with an exact intercept and a certificate.

Floor 3: imports moments, errors. Plain functions on float64 host arrays.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from streamfit.errors import SolveError
from streamfit.moments import Centered, Moments
from streamfit.solve.certificate import Certificate, certify, eigenvalue_noise

RCOND_FLOOR = 1e-14
"""Reciprocal condition below which a Cholesky solution is not trusted."""


class IllConditionedWarning(UserWarning):
    """A system solved by eigendecomposition, because Cholesky would have lost most digits."""


@dataclass(frozen=True)
class Solution:
    """Weights of the optimum and what is known about them.

    Parameters
    ----------
    weights : float64 array of shape (n_features, n_targets)
    intercept : float64 array of shape (n_targets,)
    alpha : float
    method : {'cholesky', 'eigen'}
    rank : int
        Numerical rank of the system that was solved.
    effective_dof : float
        trace(G (G + αR)^-1), the effective degrees of freedom without the intercept.
    certificate : Certificate
    """

    weights: np.ndarray
    intercept: np.ndarray
    alpha: float
    method: str
    rank: int
    effective_dof: float
    certificate: Certificate

    def predict(self, phi: np.ndarray) -> np.ndarray:
        """Predictions `φ B + b`, shape (n_rows, n_targets), from features of shape (n_rows, n_features)."""
        dtype = phi.dtype if phi.dtype in (np.float32, np.float64) else np.float64
        return np.asarray(phi @ self.weights.astype(dtype, copy=False) + self.intercept.astype(dtype, copy=False))


def solve(
    moments: Moments | Centered,
    alpha: float,
    *,
    fit_intercept: bool = True,
    names: list[str] | None = None,
) -> Solution:
    """Solve ridge regression from its moments.

    Minimises ``sum_t w_t ||B'φ_t + b - y_t||² + alpha ||B||²`` over B and, unless switched off, an unpenalised
    intercept b. Alpha is not divided by the number of rows, as in scikit-learn's Ridge. With the moments
    centred about their means, B solves (G + alpha I) B = C and b = mean_y - B'mean_x (Hastie, Tibshirani and
    Friedman, The Elements of Statistical Learning, 3.4.1).

    Parameters
    ----------
    moments : Moments or Centered
    alpha : float
        Nonnegative.
    fit_intercept : bool
    names : list of str, optional
        Feature names for warnings and errors.

    Raises
    ------
    SolveError
        If alpha is negative or not finite, or if it is zero and the Gram matrix is singular.

    Warns
    -----
    IllConditionedWarning
        If alpha > 0 is too small to make Cholesky trustworthy; the system is then solved by eigenvectors.
    """
    if not (alpha >= 0 and np.isfinite(alpha)):
        msg = f"alpha {alpha}"
        raise SolveError(msg, "a finite number >= 0")
    c = moments.centered() if isinstance(moments, Moments) else moments
    if not fit_intercept:
        c = c.about(np.zeros_like(c.mean_x), np.zeros_like(c.mean_y))
    d = len(c.gram)
    system = c.gram.copy()
    system[np.diag_indices(d)] += alpha
    weights = _cholesky(system, c.cross)
    if weights is not None:
        method, rank = "cholesky", d
        eigenvalues = scipy.linalg.eigvalsh(c.gram, overwrite_a=False, check_finite=False)
    else:
        method = "eigen"
        eigenvalues, vectors = scipy.linalg.eigh(c.gram, check_finite=False)
        shifted = eigenvalues + alpha
        keep = shifted > eigenvalue_noise(d, float(shifted[-1]))
        rank = int(keep.sum())
        involved = _involved(vectors[:, ~keep | (shifted < 1e-12 * shifted[-1])], names)
        if alpha == 0:
            msg = f"a singular Gram matrix with alpha 0: rank {rank} of {d}, {involved} nearly dependent"
            raise SolveError(msg, "independent features, or alpha > 0", "raise alpha, or drop one of them")
        warnings.warn(
            f"alpha {alpha:g} leaves the system ill-conditioned: solved by eigenvectors with rank {rank} of {d}; "
            f"{involved} nearly dependent",
            IllConditionedWarning,
            stacklevel=2,
        )
        basis = vectors[:, keep]
        weights = basis @ ((basis.T @ c.cross) / shifted[keep, None])
    # One memory layout, so that predictions round the same before and after a model was saved.
    weights = np.ascontiguousarray(weights)
    certificate = certify(c.gram, c.cross, c.ss_y, alpha, weights, eigenvalues)
    intercept = c.mean_y - c.mean_x @ weights if fit_intercept else np.zeros_like(c.mean_y)
    positive = np.maximum(eigenvalues, 0.0)
    dof = float(np.sum(positive / (positive + alpha))) if alpha > 0 else float(rank)
    return Solution(weights, intercept, float(alpha), method, rank, dof, certificate)


def _cholesky(system: np.ndarray, cross: np.ndarray) -> np.ndarray | None:
    # Scaling to a unit diagonal makes the judgement independent of the features' units.
    diagonal = np.sqrt(np.maximum(np.diag(system), 0.0))
    if not (diagonal > 0).all():
        return None
    scaled = system / diagonal / diagonal[:, None]
    try:
        factor = scipy.linalg.cholesky(scaled, lower=True, overwrite_a=False, check_finite=False)
    except np.linalg.LinAlgError:
        return None
    rcond, info = scipy.linalg.lapack.dpocon(factor, np.abs(scaled).sum(axis=0).max(), uplo="L")
    if info != 0 or rcond < RCOND_FLOOR:
        return None
    solution = scipy.linalg.cho_solve((factor, True), cross / diagonal[:, None], check_finite=False)
    return np.asarray(solution / diagonal[:, None])


def _involved(vectors: np.ndarray, names: list[str] | None, most: int = 5) -> str:
    if not vectors.size:
        return "no single feature"
    share = np.abs(vectors).max(axis=1)
    # A dependency shows as large entries of one null vector; an all-zero feature as a single 1.
    worst = [int(j) for j in np.argsort(-share) if share[j] > 0.1][:most]
    labels = [names[j] if names else f"feature {j}" for j in worst]
    return "features " + ", ".join(labels) if labels else "many features together"
