"""Choosing alpha from the training sums alone: generalised cross-validation and the evidence, in closed form.

Floor 3: imports errors and solve siblings. No held-out sums and no rows are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from streamfit.errors import SolveError
from streamfit.solve.spectrum import BLOCK_TARGETS, Spectrum, target_blocks

Criterion = Literal["gcv", "evidence"]
_EPS = float(np.finfo(np.float64).eps)
_STEPS_A_DECADE = 4
_SAME = 1e-11
"""Relative difference of two alphas, or of a slope from zero, that counts as none."""
_MOST_STEPS = 60


@dataclass(frozen=True)
class AlphaScores:
    """What the training sums say of each alpha for each target.

    The rows' noise is Gaussian with variance ``σ_k² / w_t``; n rows count as n observations whatever their weights, so
    leave rows of weight zero out. With W the total weight, the hat matrix has trace ``effective_dof + 1`` (the 1 for
    the intercept, where one is fitted).

    Parameters
    ----------
    alphas : array of shape (n_alphas,)
        Ascending.
    effective_dof : array of shape (n_alphas,)
        ``trace(G (G + αI)^-1)``, without the intercept.
    losses : array of shape (n_alphas, n_targets)
        Training loss ``sum_t w_t (B'φ_t + b - y_t)²``, without the penalty.
    norms : array of shape (n_alphas, n_targets)
        ``||B_k||²``.
    log_volumes : array of shape (n_alphas,)
        ``log det(I + G/α)``; infinite for zero.
    varies : boolean array of shape (n_targets,)
        Targets that do not vary are left out of sums over targets: any alpha fits them.
    n_rows, freedom : int
        Rows, and rows less one for the intercept: ν.
    trusted : boolean array of shape (n_alphas,)
        Whether rounding of the stored sums is small against the system. Others are never the best.
    """

    alphas: np.ndarray
    effective_dof: np.ndarray
    losses: np.ndarray
    norms: np.ndarray
    log_volumes: np.ndarray
    varies: np.ndarray
    n_rows: int
    freedom: int
    trusted: np.ndarray

    @property
    def gcv(self) -> np.ndarray:
        """Generalised cross-validation ``n RSS / (n - tr H)²``, shape (n_alphas, n_targets).

        Estimates the squared error of a row that was not counted, in units of the loss over n (Golub, Heath and
        Wahba, Technometrics 21, 1979). Infinite where the fit has as many degrees of freedom as rows.
        """
        left = self.freedom - self.effective_dof
        some = left > 1e-8 * self.n_rows
        factor = self.n_rows / np.where(some, left, 1.0) ** 2
        return np.where(some[:, None], self.losses * factor[:, None], np.inf)

    @property
    def sigma2(self) -> np.ndarray:
        """Noise variances of greatest evidence, ``(RSS + α ||B||²) / ν``, shape (n_alphas, n_targets)."""
        return np.asarray((self.losses + self.alphas[:, None] * self.norms) / self.freedom)

    @property
    def log_evidence(self) -> np.ndarray:
        """Log marginal likelihood with σ² at its maximum, shape (n_alphas, n_targets).

        ``-ν/2 (log 2πσ² + 1) - ½ log det(I + G/α)`` for the prior ``B_k ~ N(0, σ²/α I)`` (MacKay, Bayesian
        interpolation, 1992; Bishop, Pattern recognition and machine learning, 3.5.1). The intercept is integrated out
        under a flat prior, as the density of the n - 1 orthonormal contrasts that do not hold it (restricted
        likelihood; Patterson and Thompson, Biometrika 58, 1971): ν = n - 1, else n. A constant ``½ sum_t log w_t`` is
        left out.
        """
        return log_evidence(self.sigma2, self.log_volumes[:, None], self.freedom)

    def total(self, criterion: Criterion) -> np.ndarray:
        """GCV or log evidence summed over the targets that vary, shape (n_alphas,)."""
        return np.asarray(self._scores(criterion)[:, self.varies].sum(axis=1))

    def best(self, criterion: Criterion) -> float:
        """The trusted alpha of the grid of least total GCV, or of greatest total evidence."""
        sign = 1.0 if criterion == "gcv" else -1.0
        return float(self.alphas[np.argmin(np.where(self.trusted, sign * self.total(criterion), np.inf))])

    def best_per_target(self, criterion: Criterion) -> np.ndarray:
        """The same for each target, shape (n_targets,); `best` for targets that do not vary."""
        sign = 1.0 if criterion == "gcv" else -1.0
        scores = np.where(self.trusted[:, None], sign * self._scores(criterion), np.inf)
        return np.where(self.varies, self.alphas[np.argmin(scores, axis=0)], self.best(criterion))

    def _scores(self, criterion: Criterion) -> np.ndarray:
        if criterion not in ("gcv", "evidence"):
            msg = f"criterion {criterion!r}"
            raise SolveError(msg, "'gcv' or 'evidence'")
        return self.gcv if criterion == "gcv" else self.log_evidence

    def to_json(self) -> dict[str, Any]:
        """Alphas, degrees of freedom and totals over targets, None where they are not finite."""
        totals = {
            "alphas": self.alphas,
            "effective_dof": self.effective_dof,
            "loss": self.losses.sum(axis=1),
            "gcv": self.total("gcv"),
            "log_evidence": self.total("evidence"),
        }
        plain = {k: [float(x) if np.isfinite(x) else None for x in v] for k, v in totals.items()}
        return {**plain, "trusted": self.trusted.tolist(), "n_rows": self.n_rows}


def log_evidence(sigma2: np.ndarray, log_volumes: np.ndarray, freedom: int) -> np.ndarray:
    """``-ν/2 (log 2πσ² + 1) - ½ log det(I + G/α)``."""
    return np.asarray(-0.5 * freedom * (np.log(2.0 * np.pi * sigma2) + 1.0) - 0.5 * log_volumes)


def score_alphas(spectrum: Spectrum, alphas: np.ndarray, *, block: int = BLOCK_TARGETS) -> AlphaScores:
    """Training loss, degrees of freedom, GCV and evidence of a grid of alphas, per target, from one decomposition.

    Costs O(n_alphas D K) and memory for arrays of shape (n_alphas, K) and (D, block).

    Parameters
    ----------
    spectrum : Spectrum
    alphas : array of shape (n_alphas,)
        Nonnegative, unscaled by n.
    block : int
        Targets at a time.

    Raises
    ------
    SolveError
        If an alpha is not served by the decomposition, or there are fewer than two rows.

    Examples
    --------
    >>> from streamfit.frame import Frame
    >>> from streamfit.moments import Moments
    >>> from streamfit.solve.spectrum import decompose
    >>> from streamfit.targets import Dense
    >>> x = np.arange(8.0)[:, None]
    >>> y = x + np.array([1.0, -1.0] * 4)[:, None]
    >>> m = Moments.from_rows(x, y, Frame.identity(1, 1), Dense(1))
    >>> score_alphas(decompose(m), np.array([0.1, 1.0, 1e3])).best("gcv")
    1.0
    """
    freedom = _freedom(spectrum)
    grid = np.sort(spectrum.checked(np.atleast_1d(alphas)))
    fit, norms = spectrum.gains(grid, block)
    with np.errstate(divide="ignore"):
        log_volumes = np.log1p(spectrum.eigenvalues / grid[:, None]).sum(axis=1)
    return AlphaScores(
        alphas=grid,
        effective_dof=spectrum.effective_dof(grid),
        losses=np.maximum(_floored(spectrum.sums.ss_y, fit) - grid[:, None] * norms, 0.0),
        norms=norms,
        log_volumes=log_volumes,
        varies=_varying(spectrum),
        n_rows=spectrum.sums.n_rows,
        freedom=freedom,
        trusted=spectrum.trusted(grid),
    )


@dataclass(frozen=True)
class Evidence:
    """Alphas and noise variances of greatest evidence.

    Parameters
    ----------
    alphas, sigma2, log_evidence, effective_dof : arrays of shape (n_targets,)
        All alphas are the same where one was asked for; the evidence is that of `AlphaScores`.
    at_edge : boolean array of shape (n_targets,)
        Whether the evidence still grows at an end of the range: a target that the features do not help to predict has
        its maximum at infinity. For targets that do not vary, alpha is the upper end.
    """

    alphas: np.ndarray
    sigma2: np.ndarray
    log_evidence: np.ndarray
    effective_dof: np.ndarray
    at_edge: np.ndarray

    def to_json(self) -> dict[str, list[Any]]:
        """Plain numbers, one a target."""
        return {name: value.tolist() for name, value in vars(self).items()}


def maximise_evidence(
    spectrum: Spectrum,
    *,
    per_target: bool = False,
    bounds: tuple[float, float] | None = None,
    block: int = BLOCK_TARGETS,
) -> Evidence:
    """Find the alpha of greatest evidence, for all targets together or for each, with σ² of each target at its best.

    Maximises `AlphaScores.log_evidence` over alpha on a grid of four steps a decade, and next to its best point by
    the root of the derivative by log α, ``½ (γ - ν α ||B||² / (RSS + α ||B||²))`` with γ the effective degrees of
    freedom. It vanishes at the fixed points ``α = γ σ² / ||B||²`` of MacKay (Bayesian interpolation, Neural Computation
    4, 1992), where also ``σ² = RSS / (ν - γ)`` (Bishop, Pattern recognition and machine learning, 3.92 and 3.95, with
    α there being α / σ² here).

    Parameters
    ----------
    spectrum : Spectrum
    per_target : bool
    bounds : pair of float, optional
        Range of alpha; from a thousandth of the smallest eigenvalue (of what the decomposition serves and rounding of
        the stored sums allows, if that is more) to a thousand times the largest without it.
    block : int
        Targets at a time. Memory beside the result: arrays of shape (n_grid, K), and three of shape (D, block).

    Raises
    ------
    SolveError
        If there are fewer than two rows, no feature varies, the range is empty, or no alpha in it can be trusted.
    """
    grid = _grid(spectrum, bounds)
    scores = score_alphas(spectrum, grid, block=block)
    if not scores.trusted.any():
        msg = f"alphas from {grid[0]:g} to {grid[-1]:g}, all so small that rounding of the stored sums decides"
        raise SolveError(msg, "some larger alpha", "raise the bounds, or use precision float64")
    gains = np.where(scores.trusted[:, None], scores.log_evidence, -np.inf)
    if not per_target:
        gains = gains[:, scores.varies].sum(axis=1, keepdims=True)
    peak = np.argmax(gains, axis=0)
    first, last = np.argmax(scores.trusted), len(grid) - 1
    near = np.log(grid[[np.maximum(peak - 1, first), peak, np.minimum(peak + 1, last)]])
    if per_target:
        alphas, found = np.empty(spectrum.n_targets), np.empty((3, spectrum.n_targets))
        for targets in target_blocks(spectrum.n_targets, block):
            local = _Block(spectrum, targets)
            alphas[targets] = np.exp(_turn(local.slopes, *near[:, targets]))
            alphas[targets] = np.where(scores.varies[targets], alphas[targets], grid[-1])
            found[:, targets] = local.read(alphas[targets])
        penalised, dof, volumes = found[0], found[1], found[2]
        sigma2 = penalised / _freedom(spectrum)
        evidence = log_evidence(sigma2, volumes, _freedom(spectrum))
    else:

        def slope(log_alpha: np.ndarray) -> np.ndarray:
            fit, norms = spectrum.gains(np.exp(log_alpha), block)
            each = _slopes(spectrum, np.exp(log_alpha), norms[0], _floored(spectrum.sums.ss_y, fit[0]))
            return np.asarray(each[scores.varies].sum(keepdims=True))

        one = score_alphas(spectrum, np.exp(_turn(slope, *near)), block=block)
        alphas = np.full(spectrum.n_targets, one.alphas[0])
        sigma2, evidence = one.sigma2[0], one.log_evidence[0]
        dof = np.full(spectrum.n_targets, one.effective_dof[0])
    at_edge = (alphas <= grid[first] * (1.0 + 1e-6)) | (alphas >= grid[-1] * (1.0 - 1e-6))
    return Evidence(alphas, sigma2, evidence, dof, at_edge)


class _Block:
    """Some targets, each with an alpha of its own."""

    def __init__(self, spectrum: Spectrum, targets: slice) -> None:
        self._spectrum, self._ss_y = spectrum, spectrum.sums.ss_y[targets]
        self._squares = spectrum.projections[:, targets] ** 2

    def slopes(self, log_alphas: np.ndarray) -> np.ndarray:
        """Derivative of the log evidence by log α."""
        alphas = np.exp(log_alphas)
        ratio = self._squares / (self._spectrum.eigenvalues[:, None] + alphas)
        fit = ratio.sum(axis=0)
        ratio /= self._spectrum.eigenvalues[:, None] + alphas
        return _slopes(self._spectrum, alphas, ratio.sum(axis=0), _floored(self._ss_y, fit))

    def read(self, alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Penalised loss, degrees of freedom and log det(I + G/α)."""
        eigenvalues = self._spectrum.eigenvalues[:, None]
        penalised = _floored(self._ss_y, np.sum(self._squares / (eigenvalues + alphas), axis=0))
        volumes = np.sum(np.log1p(eigenvalues / alphas), axis=0)
        return penalised, self._spectrum.effective_dof(alphas), volumes


def _slopes(spectrum: Spectrum, alphas: np.ndarray, norms: np.ndarray, penalised: np.ndarray) -> np.ndarray:
    weight_share = _freedom(spectrum) * alphas * norms / penalised
    return np.asarray(0.5 * (spectrum.effective_dof(alphas) - weight_share))


def _turn(slope: Callable[[np.ndarray], np.ndarray], low: np.ndarray, peak: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where slopes turn from positive to negative, next to the best points of a grid; an end where they do not.

    Elementwise false position with the Illinois modification (Dowell and Jarratt, BIT 11, 1971).
    """
    up = slope(peak) > 0
    a, b = np.where(up, peak, low), np.where(up, high, peak)
    f_a, f_b = slope(a), slope(b)
    a, b = np.where(f_b >= 0, b, a), np.where(f_a <= 0, a, b)
    size, x, moved = np.maximum(f_a, -f_b), a, np.zeros(len(a))
    for _ in range(_MOST_STEPS):
        x = np.where(a < b, a + (b - a) * f_a / np.where(a < b, f_a - f_b, 1.0), a)
        f = slope(x)
        if ((b - a < _SAME) | (np.abs(f) <= _SAME * size)).all():
            break
        side = np.where(f > 0, 1.0, -1.0)
        # An end that stays twice counts half, lest the other creep.
        f_a = np.where(f > 0, f, np.where(moved == side, 0.5 * f_a, f_a))
        f_b = np.where(f > 0, np.where(moved == side, 0.5 * f_b, f_b), f)
        a, b, moved = np.where(f > 0, x, a), np.where(f > 0, b, x), side
    return np.asarray(x)


def _grid(spectrum: Spectrum, bounds: tuple[float, float] | None) -> np.ndarray:
    positive = spectrum.eigenvalues[spectrum.eigenvalues > 0]
    if not len(positive):
        msg = "features of which none varies"
        raise SolveError(msg, "a feature that varies")
    low, high = (1e-3 * positive[0], 1e3 * positive[-1]) if bounds is None else bounds
    low = max(low, spectrum.serves_from) if bounds is None else low
    if not 0 < low < high:
        msg = f"alphas from {low:g} to {high:g}"
        raise SolveError(msg, "0 < lower < upper")
    return np.geomspace(low, high, 1 + max(2, int(np.ceil(_STEPS_A_DECADE * np.log10(high / low)))))


def _freedom(spectrum: Spectrum) -> int:
    """Rows less the intercept."""
    if spectrum.sums.n_rows < 2:
        msg = f"{spectrum.sums.n_rows} row(s)"
        raise SolveError(msg, "at least 2")
    return spectrum.sums.n_rows - spectrum.fit_intercept


def _floored(ss_y: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """Penalised loss, no less than its rounding."""
    return np.asarray(np.maximum(ss_y - fit, 8.0 * _EPS * ss_y + float(np.finfo(np.float64).tiny)))


def _varying(spectrum: Spectrum) -> np.ndarray:
    """Targets whose variance is more than rounding."""
    sums = spectrum.sums
    return np.asarray(sums.ss_y > 8.0 * _EPS * sums.weight * sums.mean_y**2)
