"""What choosing alphas by blocks looks at, with exact gradients by log alpha: the evidence, or held-out loss.

Floor 3: imports moments, centered, errors and solve siblings. Both are turned so that less is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np

from streamfit.centered import Centered, Statistic
from streamfit.errors import SolveError
from streamfit.solve.alpha_scores import log_evidence
from streamfit.solve.bands import Bands, as_solved
from streamfit.solve.inverse import inverse_factor

_EPS = float(np.finfo(np.float64).eps)


class BandedCriterion(Protocol):
    """A function of the log alphas of blocks."""

    @property
    def systems(self) -> list[Centered]:
        """Sums of every fit that it takes."""

    def __call__(self, log_alphas: np.ndarray) -> tuple[float, np.ndarray]:
        """Value to be made small and its derivatives, from an array of shape (n_blocks,)."""


class BandedEvidence:
    """Less the log marginal likelihood, per target that varies, each target's noise variance at its best.

    For ``B_gk ~ N(0, σ_k²/alpha_g I)`` and the ν contrasts of rows that hold no intercept, A = G + diag(alpha) and
    ``P_k = ss_y - C_k'A^-1 C_k = ν σ_k²``: ``-ν/2 (log 2πσ_k² + 1) - ½ log det(A diag(alpha)^-1)``, with derivative
    ``½ (γ_g - alpha_g ||B_gk||² / σ_k²)`` by log alpha_g, γ_g the block's effective degrees of freedom (MacKay,
    Bayesian interpolation, Neural Computation 4, 1992; Tipping, Sparse Bayesian learning, JMLR 1, 2001, appendix A).
    See `alpha_scores.AlphaScores` for weights of rows and what is left out.

    Parameters
    ----------
    c : Centered
        As `bands.as_solved` gives them.
    bands : Bands
    fit_intercept : bool

    Raises
    ------
    SolveError
        If there are fewer than two rows, or no target varies.
    """

    def __init__(self, c: Centered, bands: Bands, fit_intercept: bool) -> None:
        if c.n_rows < 2:
            msg = f"{c.n_rows} row(s)"
            raise SolveError(msg, "at least 2")
        # Any alpha fits a target that does not vary: its evidence has no bound.
        self.varies = c.ss_y > 8.0 * _EPS * c.weight * c.mean_y**2
        if not self.varies.any():
            msg = "targets of which none varies"
            raise SolveError(msg, "a target with variance to explain")
        self._bands, self._freedom = bands, c.n_rows - fit_intercept
        self._cross, self._ss_y = c.cross[:, self.varies], c.ss_y[self.varies]
        self.systems = [c]

    def __call__(self, log_alphas: np.ndarray) -> tuple[float, np.ndarray]:
        alphas = np.exp(log_alphas)
        inverse, b, penalised = self._fit(alphas)
        each = alphas[self._bands.member]
        log_volume = -2.0 * float(np.log(np.diag(inverse) * np.sqrt(each)).sum())
        evidence = log_evidence(penalised / self._freedom, np.array(log_volume), self._freedom)
        dof = self._bands.sizes - alphas * self._bands.sums(np.einsum("ij,ij->j", inverse, inverse))
        shares = self._freedom * alphas * self._bands.sums(np.einsum("jk,jk,k->j", b, b, 1.0 / penalised))
        return -float(evidence.mean()), -0.5 * (dof - shares / len(penalised))

    def noise_variance(self, alphas: np.ndarray) -> np.ndarray:
        """σ² of greatest evidence of each target, shape (n_targets,); 0 for those that do not vary."""
        found = np.zeros(len(self.varies))
        found[self.varies] = self._fit(alphas)[2] / self._freedom
        return found

    def _fit(self, alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inverse = _inverse(self.systems[0], alphas[self._bands.member])
        half = inverse @ self._cross
        penalised = self._ss_y - np.einsum("jk,jk->k", half, half)
        return inverse, inverse.T @ half, np.maximum(penalised, 8.0 * _EPS * self._ss_y)


class _Fold(NamedTuple):
    """The other folds' sums, and the held-out ones about the means that go with their intercept."""

    train: Centered
    test: Centered


class BandedFolds:
    """Held-out mean squared error per unit of weight, summed over targets, of fits to all folds but one.

    Of the fold's fit ``B = A^-1 C`` on held-out sums, ``L = ss_y + <B, G B - 2 C>``. Since ``dB/dlog alpha_g = -alpha_g
    A^-1 E_g B``, with E_g the identity on block g and ``A U = G B - C``, ``dL/dlog alpha_g = -2 alpha_g <U_g, B_g>``
    (implicit differentiation: Bengio, Gradient-based optimization of hyperparameters, Neural Computation 12, 2000).

    Parameters
    ----------
    folds : mapping of int to Moments
        At least two with rows.
    bands : Bands
    fit_intercept : bool

    Raises
    ------
    SolveError
        If there are fewer folds.
    """

    def __init__(self, folds: Mapping[int, Statistic], bands: Bands, fit_intercept: bool) -> None:
        filled = {k: m for k, m in sorted(folds.items()) if m.n_rows > 0}
        if len(filled) < 2:
            msg = f"{len(filled)} fold(s) with rows"
            raise SolveError(msg, "at least 2", "add more shards, or choose by 'evidence'")
        self._bands, self._folds = bands, []
        for held, moments in filled.items():
            # The other folds are added, not subtracted from a total: no digit is lost.
            train = as_solved(total({k: m for k, m in filled.items() if k != held}), fit_intercept)
            self._folds.append(_compressed(train, moments.centered().about(train.mean_x, train.mean_y)))
        self._weight = sum(fold.test.weight for fold in self._folds)
        self.systems = [fold.train for fold in self._folds]

    def __call__(self, log_alphas: np.ndarray) -> tuple[float, np.ndarray]:
        alphas = np.exp(log_alphas)
        loss, gradient = 0.0, np.zeros(len(alphas))
        for train, test in self._folds:
            inverse = _inverse(train, alphas[self._bands.member])
            b = inverse.T @ (inverse @ train.cross)
            toward = test.gram @ b - test.cross
            loss += float(test.ss_y.sum() + np.vdot(b, toward - test.cross))
            u = inverse.T @ (inverse @ toward)
            gradient -= 2.0 * alphas * self._bands.sums(np.einsum("jk,jk->j", u, b))
        return loss / self._weight, gradient / self._weight


def total(folds: Mapping[int, Statistic]) -> Statistic:
    """Sums of all folds.

    Raises
    ------
    SolveError
        If there is none.
    """
    if not folds:
        msg = "0 fold(s) with rows"
        raise SolveError(msg, "at least 2", "count rows before choosing")
    first, *others = folds.values()
    for m in others:
        first = first + m
    return first


def _inverse(c: Centered, alphas: np.ndarray) -> np.ndarray:
    """Lower triangular T with (G + diag(alphas))^-1 = T'T. Alphas are kept where the system can be trusted."""
    system = c.gram.copy()
    system[np.diag_indices(len(system))] += alphas
    return inverse_factor(system, 0.0, least_rcond=0.0)


def _compressed(train: Centered, test: Centered) -> _Fold:
    """Cross products in a basis of the targets' space that they span: no product or norm of theirs changes."""
    d, k = train.cross.shape
    if k > 2 * d:
        both = np.asarray(np.linalg.qr(np.vstack([train.cross, test.cross]).T, mode="r")).T
        train, test = replace(train, cross=both[:d]), replace(test, cross=both[d:])
    return _Fold(train, test)
