"""One alpha for each target: the solve and its certificate, block by block of targets.

Floor 3: imports moments, centered, errors and solve siblings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamfit.centered import Centered, Statistic, as_centered
from streamfit.errors import SolveError
from streamfit.solve.certificate import Certificate, eigenvalue_noise
from streamfit.solve.spectrum import BLOCK_TARGETS, Spectrum, cross_block, decompose


@dataclass(frozen=True)
class TargetSolution:
    """Weights of many targets, each the optimum for its own alpha.

    Parameters
    ----------
    weights : float64 array of shape (n_features, n_targets)
    intercept : float64 array of shape (n_targets,)
    alphas : float64 array of shape (n_targets,)
    effective_dof : float64 array of shape (n_targets,)
        Without the intercept.
    certificate : Certificate
        Of all targets together; its suboptimality is the sum of theirs, its strong convexity the least.
    """

    weights: np.ndarray
    intercept: np.ndarray
    alphas: np.ndarray
    effective_dof: np.ndarray
    certificate: Certificate

    def predict(self, phi: np.ndarray) -> np.ndarray:
        """Predictions `φ B + b`, shape (n_rows, n_targets), from features of shape (n_rows, n_features)."""
        return np.asarray(phi @ self.weights + self.intercept)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, without the model."""
        return {
            "alphas": self.alphas.tolist(),
            "effective_dof": self.effective_dof.tolist(),
            "certificate": self.certificate.to_json(),
        }


def solve_targets(
    moments: Statistic | Centered,
    alphas: np.ndarray | float,
    *,
    fit_intercept: bool = True,
    spectrum: Spectrum | None = None,
    block: int = BLOCK_TARGETS,
) -> TargetSolution:
    """Solve ridge regression with an alpha for each target, from one decomposition.

    Minimises ``sum_k sum_t w_t (B_k'φ_t + b_k - y_tk)² + sum_k alpha_k ||B_k||²``, alpha unscaled by n. With D features
    and K targets, memory beside the centred moments is 8 D K bytes for the weights, what `decompose` takes, and four
    arrays of shape (D, block); `Spectrum.blocks` makes the same weights without holding them all.

    Parameters
    ----------
    moments : Moments or Centered
    alphas : float, or array of shape (n_targets,)
        Nonnegative. Zero gives the solution of least norm.
    fit_intercept : bool
    spectrum : Spectrum, optional
        Of these moments, if there is one already.
    block : int
        Targets at a time.

    Raises
    ------
    SolveError
        If an alpha is negative, not finite, or not served by the spectrum, their number is not that of the targets, or
        the spectrum is not of these moments.

    Examples
    --------
    >>> from streamfit.frame import Frame
    >>> from streamfit.moments import Moments
    >>> from streamfit.targets import Dense
    >>> x = np.array([[0.0], [1.0], [2.0]])
    >>> m = Moments.from_rows(x, np.hstack([x, x]), Frame.identity(1, 2), Dense(2))
    >>> solve_targets(m, np.array([0.0, 2.0])).weights.round(6).tolist()
    [[1.0, 0.5]]
    """
    c = as_centered(moments)
    k = c.cross.shape[1]
    wanted = np.asarray(alphas, dtype=np.float64)
    if wanted.shape not in ((), (k,)):
        msg = f"alphas of shape {wanted.shape}"
        raise SolveError(msg, f"one number, or ({k},)")
    if spectrum is None:
        spectrum = decompose(c, fit_intercept=fit_intercept, smallest_alpha=float(np.min(wanted)), block=block)
    elif not _same(spectrum, c, fit_intercept):
        msg = "a spectrum of other moments, or with another intercept"
        raise SolveError(msg, "one of the moments given", "decompose them, or leave it out")
    each = np.array(np.broadcast_to(spectrum.checked(wanted), (k,)))
    weights, intercept, dof = np.empty((len(c.gram), k)), np.empty(k), np.empty(k)
    parts = _Parts(spectrum)
    for targets, some, offsets in spectrum.blocks(each, block):
        weights[:, targets], intercept[targets] = some, offsets
        dof[targets] = spectrum.effective_dof(each[targets])
        parts.add(some, each[targets], cross_block(c, targets, fit_intercept=fit_intercept), targets)
    return TargetSolution(weights, intercept, each, dof, parts.certificate(each))


def _same(spectrum: Spectrum, c: Centered, fit_intercept: bool) -> bool:
    sums = spectrum.sums
    ss_y = c.ss_y if fit_intercept else c.ss_y + c.weight * c.mean_y**2
    return (
        spectrum.fit_intercept == fit_intercept
        and (sums.n_rows, sums.weight, sums.gram.shape) == (c.n_rows, c.weight, c.gram.shape)
        and np.array_equal(sums.ss_y, ss_y)
    )


class _Parts:
    """The certificate of blocks of targets: norms of gradients add up, each over its own strong convexity."""

    def __init__(self, spectrum: Spectrum) -> None:
        self._spectrum = spectrum
        self._norm = float(np.linalg.norm(spectrum.sums.gram))
        self._top = float(spectrum.eigenvalues[-1]) if spectrum.rank else 0.0
        self._gradient = self._scale = self._loss = self._bound = 0.0

    def convexity(self, alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """μ and largest eigenvalue of each alpha's system, as in `certify`."""
        top = self._top + alphas
        noise = eigenvalue_noise(len(self._spectrum.vectors), 1.0) * top
        return np.maximum(self._spectrum.lowest + alphas - noise, 0.0), top

    def add(self, weights: np.ndarray, alphas: np.ndarray, cross: np.ndarray, targets: slice) -> None:
        sums = self._spectrum.sums
        constant = np.diag(sums.gram) <= 0
        if constant.any():
            cross = np.where(constant[:, None], 0.0, cross)
        fitted = sums.gram @ weights
        fitted += alphas * weights
        # The loss first: the residual then takes the place of the fit.
        self._loss += float(sums.ss_y[targets].sum() - 2.0 * np.vdot(weights, cross) + np.vdot(weights, fitted))
        fitted -= cross
        norms, size = np.linalg.norm(fitted, axis=0), np.linalg.norm(cross, axis=0)
        n, eps = len(weights) + 3, np.finfo(float).eps
        reach = (self._norm + alphas * np.sqrt(len(weights))) * np.linalg.norm(weights, axis=0)
        slack = n * eps / (1.0 - n * eps) * (reach + size)
        mu, _ = self.convexity(alphas)
        self._gradient += float(norms @ norms)
        self._scale += float(size @ size)
        with np.errstate(divide="ignore"):
            self._bound += float(np.sum((norms + slack) ** 2 / mu)) if (mu > 0).all() else np.inf

    def certificate(self, alphas: np.ndarray) -> Certificate:
        mu, top = self.convexity(alphas)
        condition = float(np.max(top / mu)) if (mu > 0).all() else float("inf")
        scale = np.sqrt(self._scale) if self._scale > 0 else 1.0
        return Certificate(
            relative_gradient=float(np.sqrt(self._gradient) / scale),
            strong_convexity=float(mu.min()),
            suboptimality=self._bound,
            loss=self._loss,
            condition=condition,
            digits_lost=float(np.log10(condition)),
            null_loss=float(self._spectrum.sums.ss_y.sum()),
        )
