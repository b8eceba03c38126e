"""One eigendecomposition of the Gram matrix, from which the weights of every alpha and target follow.

Floor 3: imports moments, centered, errors and solve siblings. Everything that is as large as the cross products is made
block by block of targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import scipy.linalg

from streamfit.centered import Centered, Statistic, as_centered
from streamfit.errors import SolveError
from streamfit.factoring import eigh, eigvalsh
from streamfit.solve.certificate import eigenvalue_noise
from streamfit.solve.ridge import noise_share, without_constants

Method = Literal["auto", "eigh", "jacobi"]
BLOCK_TARGETS = 1024
"""Targets that are worked on at a time: 32 MiB an array with 4,096 features."""
_EIGEN_DIGITS = 1e-6
"""Rounding of eigenvalues, relative to the smallest of a system, up to which a decomposition serves an alpha."""


@dataclass(frozen=True)
class Spectrum:
    """``G = V Λ V'`` and ``Z = V'C``: what the fits of all alphas to all targets share.

    The weights of one alpha are ``B = V (Λ + αI)^-1 Z`` (Hastie, Tibshirani and Friedman, The Elements of Statistical
    Learning, 3.4.1).

    Parameters
    ----------
    eigenvalues : array of shape (rank,)
        Of the centred Gram matrix in natural units, ascending, none negative.
    vectors : array of shape (n_features, rank)
        Orthonormal columns; the rows of features that do not vary are zero.
    projections : array of shape (rank, n_targets)
        Z.
    sums : Centered
        What was decomposed, about zero where no intercept is fitted, without cross products: shape (n_features, 0).
    fit_intercept : bool
    method : {'eigh', 'jacobi'}
    serves_from : float
        The smallest alpha for which rounding of the eigenvalues does not matter.
    lowest : float
        Smallest eigenvalue of the whole Gram matrix as LAPACK computes it, perhaps negative: for certificates.
    """

    eigenvalues: np.ndarray
    vectors: np.ndarray
    projections: np.ndarray
    sums: Centered
    fit_intercept: bool
    method: str
    serves_from: float
    lowest: float

    @property
    def n_targets(self) -> int:
        """Number of targets K."""
        return int(self.projections.shape[1])

    @property
    def rank(self) -> int:
        """Number of directions kept."""
        return len(self.eigenvalues)

    def checked(self, alphas: np.ndarray | float) -> np.ndarray:
        """Alphas as float64, none of them below what this decomposition serves.

        Raises
        ------
        SolveError
            If one is below, negative or not finite.
        """
        found = np.asarray(alphas, dtype=np.float64)
        if not found.size or not (np.isfinite(found) & (found >= 0)).all():
            msg = f"alphas {found.tolist()}"
            raise SolveError(msg, "finite numbers >= 0")
        if found.min() < self.serves_from * (1.0 - 1e-12):
            msg = f"alpha {found.min():g} with eigenvalues that rounding leaves good for {self.serves_from:.3g}"
            raise SolveError(msg, "a larger alpha", f"decompose with smallest_alpha={found.min():g}")
        return found

    def effective_dof(self, alphas: np.ndarray | float) -> np.ndarray:
        """``trace(G (G + αI)^-1)`` of each alpha, in the alphas' shape: without the intercept's."""
        distinct, place = np.unique(self.checked(alphas), return_inverse=True)
        dof = np.empty(len(distinct))
        for part in target_blocks(len(distinct)):
            dof[part] = np.sum(self.eigenvalues / (self.eigenvalues + distinct[part, None]), axis=1)
        return np.asarray(dof[place])

    def weights(self, alphas: np.ndarray | float, targets: slice = slice(None)) -> np.ndarray:
        """Weights of shape (n_features, n_chosen) of the chosen targets.

        Makes two arrays of that size beside the result.

        Parameters
        ----------
        alphas : float, or array of shape (n_chosen,)
            Nonnegative; zero gives the solution of least norm.
        targets : slice
        """
        shrink = 1.0 / (self.eigenvalues[:, None] + np.atleast_1d(self.checked(alphas)))
        return np.asarray(self.vectors @ (self.projections[:, targets] * shrink))

    def intercept(self, weights: np.ndarray, targets: slice = slice(None)) -> np.ndarray:
        """Intercept of shape (n_chosen,) that goes with the weights; zeros where none is fitted."""
        return np.asarray(self.sums.mean_y[targets] - self.sums.mean_x @ weights)

    def blocks(
        self, alphas: np.ndarray | float, block: int = BLOCK_TARGETS
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Weights and intercepts block by block, so that they can be written without ever being whole.

        Parameters
        ----------
        alphas : float, or array of shape (n_targets,)
        block : int
            Targets at a time.

        Yields
        ------
        slice, array of shape (n_features, n_block), array of shape (n_block,)
            Targets, their weights and their intercepts.
        """
        each = np.broadcast_to(self.checked(alphas), (self.n_targets,))
        for targets in target_blocks(self.n_targets, block):
            weights = self.weights(each[targets], targets)
            yield targets, weights, self.intercept(weights, targets)

    def gains(self, alphas: np.ndarray, block: int = BLOCK_TARGETS) -> tuple[np.ndarray, np.ndarray]:
        """``diag(C'B)`` and ``||B_k||²`` of each alpha: what every closed form below is made of.

        Parameters
        ----------
        alphas : array of shape (n_alphas,)

        Returns
        -------
        two arrays of shape (n_alphas, n_targets)
            The penalised loss is ss_y less the first.
        """
        shrink = 1.0 / (self.eigenvalues + self.checked(alphas)[:, None])
        fit, norm = np.empty((len(alphas), self.n_targets)), np.empty((len(alphas), self.n_targets))
        for targets in target_blocks(self.n_targets, block):
            squares = self.projections[:, targets] ** 2
            fit[:, targets] = shrink @ squares
            norm[:, targets] = shrink**2 @ squares
        return fit, norm

    def trusted(self, alphas: np.ndarray) -> np.ndarray:
        """Whether rounding of the stored sums is small against the system, for alphas in ascending order.

        It shrinks as alpha grows, so a few factorisations tell for a whole grid.
        """
        low, high = 0, len(alphas)
        while low < high:
            middle = (low + high) // 2
            if noise_share(self.sums, float(alphas[middle])) <= 1.0:
                high = middle
            else:
                low = middle + 1
        return np.arange(len(alphas)) >= low

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, without the arrays."""
        largest, smallest = (float(v) for v in (self.eigenvalues[[-1, 0]] if self.rank else (0.0, 0.0)))
        return {
            "method": self.method,
            "rank": self.rank,
            "n_features": len(self.vectors),
            "n_targets": self.n_targets,
            "largest_eigenvalue": largest,
            "smallest_eigenvalue": smallest,
            "serves_from": self.serves_from,
        }


def target_blocks(n_targets: int, block: int = BLOCK_TARGETS) -> Iterator[slice]:
    """Cut targets into blocks."""
    if block < 1:
        msg = f"blocks of {block} targets"
        raise SolveError(msg, "at least 1")
    return (slice(lo, min(lo + block, n_targets)) for lo in range(0, n_targets, block))


def cross_block(c: Centered, targets: slice, *, fit_intercept: bool) -> np.ndarray:
    """Cross products of some targets, about zero where no intercept is fitted; shape (n_features, n_block)."""
    block = c.cross[:, targets]
    return block if fit_intercept else block + np.outer(c.weight * c.mean_x, c.mean_y[targets])


def decompose(
    moments: Statistic | Centered,
    *,
    fit_intercept: bool = True,
    smallest_alpha: float = 0.0,
    method: Method = "auto",
    block: int = BLOCK_TARGETS,
) -> Spectrum:
    """Decompose the centred Gram matrix once, for every alpha from `smallest_alpha` up.

    Serves ``min_B,b sum_t w_t ||B'φ_t + b - y_t||² + alpha ||B||²``, alpha unscaled by n, for all alphas and targets.
    The Gram matrix is decomposed in the features' own units: scaled to a unit diagonal it would have one
    eigenbasis for each alpha, because the penalty is on the weights in those units. What scaling is for, digits of
    features in small units, `eigh` loses: its error is one of the largest eigenvalue's units in the last place.
    Where this would matter at `smallest_alpha`, a pivoted Cholesky factor (of the matrix scaled to a unit diagonal,
    which also decides the rank) is decomposed by one-sided Jacobi rotations. Its relative error depends on
    the condition of the scaled matrix alone (Demmel and Veselić, Jacobi's method is more accurate than QR, SIAM J.
    Matrix Anal. Appl. 13, 1992; LAPACK's dgejsv, Drmač and Veselić 2008); it takes ten to thirty times as long.

    With D features and K targets, memory beside the centred moments is 8 D (D + K) bytes for the result, 16 D² (eigh)
    or 40 D² (Jacobi) while decomposing, and 8 D block while projecting: 2 GB at D = 4,096, K = 32,000.

    Parameters
    ----------
    moments : Moments or Centered
    fit_intercept : bool
    smallest_alpha : float
        Nonnegative. Zero, for dependent features too, always works; a known lower end of a grid may save time.
    method : {'auto', 'eigh', 'jacobi'}
    block : int
        Targets that are projected at a time.

    Raises
    ------
    SolveError
        If `smallest_alpha` is negative or not finite, the method is unknown, or the rotations do not converge.

    Examples
    --------
    >>> from streamfit.frame import Frame
    >>> from streamfit.moments import Moments
    >>> from streamfit.targets import Dense
    >>> x = np.array([[0.0], [1.0], [2.0]])
    >>> s = decompose(Moments.from_rows(x, 2.0 * x, Frame.identity(1, 1), Dense(1)))
    >>> [round(float(s.weights(alpha)[0, 0]), 6) for alpha in (0.0, 2.0)]
    [2.0, 1.0]
    """
    if not (smallest_alpha >= 0 and np.isfinite(smallest_alpha)):
        msg = f"smallest_alpha {smallest_alpha}"
        raise SolveError(msg, "a finite number >= 0")
    if method not in ("auto", "eigh", "jacobi"):
        msg = f"method {method!r}"
        raise SolveError(msg, "'auto', 'eigh' or 'jacobi'")
    c = as_centered(moments)
    sums = _as_solved(c, fit_intercept)
    varying = np.diag(sums.gram) > 0
    gram = sums.gram if varying.all() else sums.gram[np.ix_(varying, varying)]
    eigenvalues, basis, taken, serves_from, lowest = _eigenpairs(gram, smallest_alpha, method)
    vectors = basis
    if len(gram) < len(varying):
        vectors = np.zeros((len(varying), basis.shape[1]))
        vectors[varying] = basis
        lowest = min(lowest, 0.0)
    projections = np.empty((len(eigenvalues), c.cross.shape[1]))
    for targets in target_blocks(c.cross.shape[1], block):
        projections[:, targets] = vectors.T @ cross_block(c, targets, fit_intercept=fit_intercept)
    return Spectrum(eigenvalues, vectors, projections, sums, fit_intercept, taken, serves_from, lowest)


def _as_solved(c: Centered, fit_intercept: bool) -> Centered:
    """Sums as `solve` reads them, without cross products, so that nothing of their size is copied."""
    few = replace(c, cross=c.cross[:, :0])
    if fit_intercept:
        return without_constants(few)
    zero = np.zeros_like(c.mean_x)
    moved = replace(few, mean_y=c.mean_y[:0], ss_y=c.ss_y[:0]).about(zero, c.mean_y[:0])
    return replace(moved, mean_y=np.zeros_like(c.mean_y), ss_y=c.ss_y + c.weight * c.mean_y**2)


def _eigenpairs(
    gram: np.ndarray, smallest_alpha: float, method: Method
) -> tuple[np.ndarray, np.ndarray, str, float, float]:
    """Eigenvalues, eigenvectors, the method taken, the smallest alpha that it serves, and LAPACK's least eigenvalue."""
    if not len(gram):
        return np.empty(0), np.empty((0, 0)), "eigh", 0.0, 0.0
    if method == "jacobi":
        lowest = float(eigvalsh(gram)[0])
        return *_by_jacobi(gram), "jacobi", 0.0, lowest
    eigenvalues, vectors = eigh(gram)
    lowest = float(eigenvalues[0])
    needed = eigenvalue_noise(len(gram), float(eigenvalues[-1])) / _EIGEN_DIGITS
    serves_from = max(needed - max(lowest, 0.0), 0.0)
    if method == "auto" and serves_from > smallest_alpha:
        return *_by_jacobi(gram), "jacobi", 0.0, lowest
    return np.maximum(eigenvalues, 0.0), vectors, "eigh", serves_from, lowest


def _by_jacobi(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of the numerical rank, accurate in each feature's own unit."""
    n, units = len(gram), np.sqrt(np.diag(gram))
    unit_diagonal = gram / units
    unit_diagonal /= units[:, None]
    lower, pivots, rank, _ = scipy.linalg.lapack.dpstrf(
        unit_diagonal, lower=1, tol=eigenvalue_noise(n, 1.0), overwrite_a=1
    )
    factor = np.zeros((n, n), order="F")  # its transpose times itself is the Gram matrix
    factor[:rank, pivots - 1] = np.tril(lower[:, :rank]).T
    factor *= units
    singular, _, vectors, work, _, info = scipy.linalg.lapack.dgejsv(
        factor, joba=0, jobu=3, jobv=0, jobr=1, jobt=0, jobp=0, overwrite_a=1
    )
    if info != 0:
        msg = f"Jacobi rotations that did not converge (dgejsv returned {info})"
        raise SolveError(msg, "a finite Gram matrix", "decompose with method='eigh' and a larger smallest_alpha")
    eigenvalues = (singular[:rank] * (work[0] / work[1])) ** 2
    return eigenvalues[::-1], np.ascontiguousarray(vectors[:, :rank][:, ::-1])
