"""Choosing alpha by K-fold cross-validation from stored moments, without reading the corpus.

Floor 3: imports moments, errors. Held-out statistics are another fold's moments, and the loss of weights on
them is a quadratic form, so a fold costs one eigendecomposition and each alpha O(D²).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from streamfit.centered import Centered, Statistic
from streamfit.errors import SolveError
from streamfit.solve.ridge import IllConditionedWarning, noise_share, weights_for, without_constants
from streamfit.solve.spectrum import BLOCK_TARGETS, decompose, target_blocks


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
    target_losses : array of shape (n_folds, n_alphas, n_targets), optional
        `losses` of each target, where they were asked for.
    """

    alphas: np.ndarray
    losses: np.ndarray
    baseline: np.ndarray
    weights: np.ndarray
    trusted: np.ndarray
    target_losses: np.ndarray | None = None

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
    def standard_errors(self) -> np.ndarray:
        """Standard error of `mean_losses` over folds, shape (n_alphas,); see `one_se`."""
        return _standard_error(self.losses, self.weights)

    @property
    def one_se(self) -> float:
        """The largest trusted alpha whose mean loss is within one standard error of the best one's.

        The simplest model that the folds cannot tell from the best (Breiman, Friedman, Olshen and Stone,
        Classification and regression trees, 1984, 3.4.3). With each fold's share p of the weight, the error of the
        mean is ``sqrt(F / (F - 1) sum_f p_f² (loss_f - mean)²)``: for F equal folds, their standard deviation over √F.
        """
        return float(_one_se(self.alphas, self.mean_losses[:, None], self.standard_errors[:, None], self.trusted)[0])

    @property
    def best_per_target(self) -> np.ndarray:
        """The trusted alpha of least held-out loss of each target, shape (n_targets,).

        Raises
        ------
        SolveError
            If losses of targets were not kept.
        """
        means = _mean(self._of_targets, self.weights)
        return np.asarray(self.alphas[np.argmin(np.where(self.trusted[:, None], means, np.inf), axis=0)])

    @property
    def one_se_per_target(self) -> np.ndarray:
        """`one_se` of each target, shape (n_targets,)."""
        means, errors = _mean(self._of_targets, self.weights), _standard_error(self._of_targets, self.weights)
        return _one_se(self.alphas, means, errors, self.trusted)

    @property
    def _of_targets(self) -> np.ndarray:
        if self.target_losses is None:
            msg = "losses summed over targets"
            raise SolveError(msg, "losses of each target", "cross-validate with per_target=True")
        return self.target_losses

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


def _mean(losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.asarray(np.tensordot(weights / weights.sum(), losses, 1))


def _standard_error(losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Standard error, over the first axis, of a mean with weights."""
    shares, n = weights / weights.sum(), len(weights)
    away = losses - _mean(losses, weights)
    return np.asarray(np.sqrt(n / (n - 1) * np.tensordot(shares**2, away**2, 1)))


def _one_se(alphas: np.ndarray, means: np.ndarray, errors: np.ndarray, trusted: np.ndarray) -> np.ndarray:
    """Largest trusted alpha within one error of the best mean, for each column of shape (n_alphas,)."""
    means = np.where(trusted[:, None], means, np.inf)
    best = np.argmin(means, axis=0)[None]
    limit = np.take_along_axis(means, best, 0) + np.take_along_axis(errors, best, 0)
    return np.asarray(alphas[len(alphas) - 1 - np.argmax((means <= limit)[::-1], axis=0)])


def cross_validate(
    folds: Mapping[int, Statistic],
    alphas: np.ndarray,
    *,
    fit_intercept: bool = True,
    per_target: bool = False,
    block: int = BLOCK_TARGETS,
) -> AlphaPath:
    """Evaluate each alpha on each fold with weights fitted to the other folds.

    With D features, K targets and A alphas, a fold costs one eigendecomposition and O(D² (D + K) + A D²); for losses
    of each target 2 A D² K operations more, and memory for arrays of shape (A, K) and four of shape (D, block), or
    (D, D) where rounding of eigenvalues matters: the weights of all targets and alphas never exist at a time.

    Parameters
    ----------
    folds : mapping of int to Moments
        At least two, with rows in each.
    alphas : array of shape (n_alphas,)
        Positive.
    fit_intercept : bool
    per_target : bool
        Whether to keep the losses of each target, for `AlphaPath.best_per_target`.
    block : int
        Targets at a time.

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
    grid = checked_grid(alphas)
    filled = {k: m for k, m in sorted(folds.items()) if m.n_rows > 0}
    if len(filled) < 2:
        msg = f"{len(filled)} fold(s) with rows"
        raise SolveError(msg, "at least 2", "add more shards, or give one alpha instead of a grid")
    losses, of_targets, baseline, weights = [], [], [], []
    for held, moments in filled.items():
        # The other folds are added, not subtracted from a total: the cost is the same, and no digit is lost.
        others = [m for k, m in filled.items() if k != held]
        train = others[0]
        for m in others[1:]:
            train = train + m
        fitted = _read(train, fit_intercept)
        test = moments.centered().about(fitted.mean_x, fitted.mean_y)
        if per_target:
            of_targets.append(_held_out_targets(fitted, test, grid, fit_intercept, block))
            losses.append(of_targets[-1].sum(axis=1))
        else:
            losses.append(_held_out(fitted, test, grid, fit_intercept))
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
    each = np.maximum(of_targets, 0.0) if per_target else None
    return AlphaPath(grid, np.maximum(losses, 0.0), np.array(baseline), np.array(weights), trusted, each)


def checked_grid(alphas: np.ndarray) -> np.ndarray:
    """Alphas in ascending order.

    Raises
    ------
    SolveError
        If there is none, or one is not positive and finite.
    """
    grid = np.sort(np.asarray(alphas, dtype=np.float64))
    if not len(grid) or not (grid > 0).all() or not np.isfinite(grid).all():
        msg = f"alphas {grid.tolist()} for cross-validation"
        raise SolveError(msg, "positive finite numbers")
    return grid


def _read(moments: Statistic, fit_intercept: bool) -> Centered:
    """Sums as `solve` reads them."""
    c = moments.centered()
    return without_constants(c) if fit_intercept else c.about(np.zeros_like(c.mean_x), np.zeros_like(c.mean_y))


def _held_out(train: Centered, test: Centered, alphas: np.ndarray, fit_intercept: bool) -> np.ndarray:
    """Loss `sum_yy - 2<B, C> + <B, G B>` of each alpha's B on held-out sums, per unit of weight.

    With G_train = V Λ V' and Z = V'C_train, B = V (Λ + α)^-1 Z; in this basis both terms need only
    diag(Z C_test'V) and (V'G_test V) ∘ (Z Z'), which no alpha changes.
    """
    spectrum = decompose(train, fit_intercept=fit_intercept, method="eigh")
    v, z = spectrum.vectors, spectrum.projections
    linear = np.sum(z * (v.T @ test.cross), axis=1)
    quadratic = (v.T @ test.gram @ v) * (z @ z.T)
    shrink = 1.0 / (spectrum.eigenvalues + alphas[:, None])
    fit = np.einsum("aj,jk,ak->a", shrink, quadratic, shrink, optimize=True)
    losses = test.ss_y.sum() - 2.0 * shrink @ linear + fit
    for i in np.flatnonzero(alphas < spectrum.serves_from):
        # Features of widely different units: eigenvectors of the unscaled matrix have lost the small ones, and
        # each alpha is solved for as `solve` does it.
        weights = weights_for(train, float(alphas[i]))
        losses[i] = test.ss_y.sum() - 2.0 * np.vdot(weights, test.cross) + np.vdot(weights, test.gram @ weights)
    return np.asarray(losses / test.weight)


def _held_out_targets(
    train: Centered, test: Centered, alphas: np.ndarray, fit_intercept: bool, block: int
) -> np.ndarray:
    """The same for each target, shape (n_alphas, n_targets), a block of targets at a time."""
    spectrum = decompose(train, fit_intercept=fit_intercept, method="eigh", block=block)
    v, losses = spectrum.vectors, np.empty((len(alphas), spectrum.n_targets))
    served = alphas >= spectrum.serves_from
    rotated = v.T @ test.gram @ v
    for targets in target_blocks(spectrum.n_targets, block):
        linear = 2.0 * (v.T @ test.cross[:, targets])
        for i in np.flatnonzero(served):
            b = spectrum.projections[:, targets] / (spectrum.eigenvalues[:, None] + alphas[i])
            losses[i, targets] = test.ss_y[targets] + np.sum(b * (rotated @ b - linear), axis=0)
    # Each of these blocks factors the matrix anew: they are as large as it is.
    for targets in target_blocks(spectrum.n_targets, max(block, len(v))):
        for i in np.flatnonzero(~served):
            b = weights_for(replace(train, cross=train.cross[:, targets]), float(alphas[i]))
            losses[i, targets] = test.ss_y[targets] + np.sum(b * (test.gram @ b - 2.0 * test.cross[:, targets]), axis=0)
    return losses / test.weight


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
