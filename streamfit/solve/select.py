"""Choosing alpha by K-fold cross-validation from stored moments, without reading the corpus.

Floor 3: imports moments, errors. Held-out statistics are another fold's moments, and the loss of weights on
them is a quadratic form, so a fold costs one eigendecomposition and each alpha O(D²).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from streamfit.centered import Centered
from streamfit.errors import SolveError
from streamfit.moments import Moments
from streamfit.solve.certificate import eigenvalue_noise
from streamfit.solve.ridge import IllConditionedWarning, noise_share, weights_for, without_constants

_EIGEN_DIGITS = 1e-6
"""Rounding of eigenvalues, relative to the smallest of a system, up to which one decomposition serves an alpha."""


@dataclass(frozen=True)
class AlphaPath:
    """Held-out loss along a grid of alphas.

    Parameters
    ----------
    alphas : array of shape (n_alphas,)
        Ascending.
    losses : array of shape (n_folds, n_alphas)
        Mean squared error per held-out unit of weight, summed over targets.
    baseline : array of shape (n_folds,)
        The same loss for predicting the training mean.
    weights : array of shape (n_folds,)
        Weight of each fold's rows.
    trusted : boolean array of shape (n_alphas,)
        Whether rounding of the stored sums is small against the system. Others are never the best.
    """

    alphas: np.ndarray
    losses: np.ndarray
    baseline: np.ndarray
    weights: np.ndarray
    trusted: np.ndarray

    @property
    def mean_losses(self) -> np.ndarray:
        """Held-out loss of each alpha over all folds."""
        return np.asarray(self.weights @ self.losses / self.weights.sum())

    @property
    def best(self) -> float:
        """The alpha of least held-out loss."""
        return float(self.alphas[self._best])

    @property
    def _best(self) -> int:
        return int(np.argmin(np.where(self.trusted, self.mean_losses, np.inf)))

    @property
    def r2(self) -> np.ndarray:
        """Held-out share of the variance explained, for each alpha; NaN where it is not trusted."""
        shares = 1.0 - self.mean_losses / float(self.weights @ self.baseline / self.weights.sum())
        return np.where(self.trusted, shares, np.nan)

    def to_json(self) -> dict[str, list[float | None]]:
        """Alphas and held-out R², None where it is not trusted."""
        return {
            "alphas": self.alphas.tolist(),
            "held_out_r2": [None if np.isnan(share) else float(share) for share in self.r2],
        }

    @property
    def at_edge(self) -> bool:
        """Whether the best alpha is the first or last of the grid, so that a wider one may be better."""
        return len(self.alphas) > 1 and self._best in (0, len(self.alphas) - 1)


def cross_validate(folds: Mapping[int, Moments], alphas: np.ndarray, *, fit_intercept: bool = True) -> AlphaPath:
    """Evaluate each alpha on each fold with weights fitted to the other folds.

    Parameters
    ----------
    folds : mapping of int to Moments
        At least two, with rows in each.
    alphas : array of shape (n_alphas,)
        Positive.
    fit_intercept : bool

    Raises
    ------
    SolveError
        If there are fewer than two folds, an alpha is not positive, or every alpha is so small that rounding of the
        stored sums decides.

    Warns
    -----
    IllConditionedWarning
        If some alphas are left out for that reason.
    """
    grid = np.sort(np.asarray(alphas, dtype=np.float64))
    if not len(grid) or not (grid > 0).all() or not np.isfinite(grid).all():
        msg = f"alphas {grid.tolist()} for cross-validation"
        raise SolveError(msg, "positive finite numbers")
    filled = {k: m for k, m in sorted(folds.items()) if m.n_rows > 0}
    if len(filled) < 2:
        msg = f"{len(filled)} fold(s) with rows"
        raise SolveError(msg, "at least 2", "add more shards, or give one alpha instead of a grid")
    losses, baseline, weights = [], [], []
    for held, moments in filled.items():
        # The other folds are added, not subtracted from a total: the cost is the same, and no digit is lost.
        others = [m for k, m in filled.items() if k != held]
        train = others[0]
        for m in others[1:]:
            train = train + m
        fitted = _read(train, fit_intercept)
        test = moments.centered().about(fitted.mean_x, fitted.mean_y)
        losses.append(_held_out(fitted, test, grid))
        baseline.append(float(test.ss_y.sum()) / test.weight)
        weights.append(test.weight)
    sums = _read(train + moments, fit_intercept)
    # A squared error is not negative; where the quadratic form makes it so, rounding has taken over.
    nonnegative = (np.array(losses) >= -1e-6 * np.array(baseline)[:, None]).all(axis=0)
    trusted = nonnegative & np.array([noise_share(sums, alpha) <= 1.0 for alpha in grid])
    if not trusted.any():
        msg = f"alphas up to {grid[-1]:g}, all so small that rounding of the stored sums decides"
        raise SolveError(msg, "some larger alpha", "raise the grid, drop dependent features, or use precision float64")
    if not trusted.all():
        left_out = ", ".join(f"{alpha:g}" for alpha in grid[~trusted])
        warnings.warn(
            f"alphas {left_out} are left out, for rounding of the stored sums would decide; "
            "precision 'float64' allows smaller ones",
            IllConditionedWarning,
            stacklevel=2,
        )
    return AlphaPath(grid, np.maximum(losses, 0.0), np.array(baseline), np.array(weights), trusted)


def _read(moments: Moments, fit_intercept: bool) -> Centered:
    """Sums as `solve` reads them."""
    c = moments.centered()
    return without_constants(c) if fit_intercept else c.about(np.zeros_like(c.mean_x), np.zeros_like(c.mean_y))


def _held_out(train: Centered, test: Centered, alphas: np.ndarray) -> np.ndarray:
    """Loss `sum_yy - 2<B, C> + <B, G B>` of each alpha's B on held-out sums, per unit of weight.

    With G_train = V Λ V' and Z = V'C_train, B = V (Λ + α)^-1 Z; in this basis both terms need only
    diag(Z C_test'V) and (V'G_test V) ∘ (Z Z'), which no alpha changes.
    """
    eigenvalues, v = scipy.linalg.eigh(train.gram, check_finite=False)
    noise = eigenvalue_noise(len(eigenvalues), float(eigenvalues[-1]))
    exact = noise <= _EIGEN_DIGITS * (np.maximum(eigenvalues[0], 0.0) + alphas)
    eigenvalues = np.maximum(eigenvalues, 0.0)
    z = v.T @ train.cross
    linear = np.sum(z * (v.T @ test.cross), axis=1)
    quadratic = (v.T @ test.gram @ v) * (z @ z.T)
    shrink = 1.0 / (eigenvalues + alphas[:, None])
    fit = np.einsum("aj,jk,ak->a", shrink, quadratic, shrink, optimize=True)
    losses = test.ss_y.sum() - 2.0 * shrink @ linear + fit
    for i in np.flatnonzero(~exact):
        # Features of widely different units: eigenvectors of the unscaled matrix have lost the small ones, and
        # each alpha is solved for as `solve` does it.
        weights = weights_for(train, float(alphas[i]))
        losses[i] = test.ss_y.sum() - 2.0 * np.vdot(weights, test.cross) + np.vdot(weights, test.gram @ weights)
    return np.asarray(losses / test.weight)


def held_out_r2(weights: np.ndarray, train: Centered, test: Centered) -> float:
    """Share of held-out variance that weights explain, from sums alone.

    The intercept is the one that goes with the training means; variance is taken about them too.

    Parameters
    ----------
    weights : array of shape (n_features, n_targets)
    train, test : Centered
    """
    about = test.about(train.mean_x, train.mean_y)
    explained = 2.0 * np.vdot(weights, about.cross) - np.vdot(weights, about.gram @ weights)
    return float(explained / about.ss_y.sum())
