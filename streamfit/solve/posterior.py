"""How uncertain weights and predictions are: noise variance, standard errors, t statistics, leverage.

Floor 3: imports moments, centered, inverse, ridge, pieces, arrays, errors. All from the moments of one fit; one D x D
factor serves every target, for they differ only in their noise variance.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.special

from streamfit.arrays import Array, to_host
from streamfit.centered import Centered, Statistic, as_centered
from streamfit.errors import ConfigError, MismatchError, SolveError
from streamfit.pieces import cached_rows
from streamfit.solve.inverse import inverse_factor
from streamfit.solve.ridge import IllConditionedWarning, Solution, solve, without_constants

Spread = Literal["posterior", "sampling"]
"""Which standard errors: of the Bayesian posterior, or of the estimate over repeated draws of the noise."""

_TARGETS_AT_ONCE = 4096
_LEAST_DOF = 1e-9
"""Residual degrees of freedom, relative to the observations, up to which nothing is left to measure noise by."""


@dataclass(frozen=True)
class TStatistics:
    """Estimates over their standard errors, and two-sided p values under Student's t.

    Parameters
    ----------
    t, p : arrays of shape (n_features, n_targets)
    intercept_t, intercept_p : arrays of shape (n_targets,), or None without an intercept
    dof : float
        Degrees of freedom of t; infinite (the normal distribution) where the noise variance was given.
    """

    t: np.ndarray
    p: np.ndarray
    intercept_t: np.ndarray | None
    intercept_p: np.ndarray | None
    dof: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; the degrees of freedom None where they are infinite."""
        return {
            "t": self.t.tolist(),
            "p": self.p.tolist(),
            "intercept_t": None if self.intercept_t is None else self.intercept_t.tolist(),
            "intercept_p": None if self.intercept_p is None else self.intercept_p.tolist(),
            "dof": self.dof if np.isfinite(self.dof) else None,
        }


@dataclass(frozen=True)
class Posterior:
    """Weights with their uncertainty, given alpha and a noise variance per target.

    Target k has posterior covariance ``noise_variance[k] * factor.T @ factor`` over its weights; no array of shape
    (n_targets, n_features, n_features) is ever made. Derived arrays are as large as the weights at most.

    Parameters
    ----------
    solution : Solution
        Weights, intercept and certificate.
    noise_variance : array of shape (n_targets,)
        σ², in squared units of the target, of a row of weight 1; see `posterior` for the estimator.
    n_observations : float
        What degrees of freedom were counted against.
    effective_dof : float
        trace(G (G + alpha I)^-1), and 1 for an intercept.
    residual_dof : float
        n_observations - effective_dof; infinite where the noise variance was given.
    weight : float
        W, the sum of row weights.
    mean_x : array of shape (n_features,)
        Weighted mean of the features; zeros without an intercept.
    factor : array of shape (n_features, n_features)
        T, with (G + alpha I)^-1 = T'T.
    posterior_scale, sampling_scale : arrays of shape (n_features + 1,)
        Standard errors for σ = 1, of the weights and then of the intercept.
    fit_intercept : bool
    """

    solution: Solution
    noise_variance: np.ndarray
    n_observations: float
    effective_dof: float
    residual_dof: float
    weight: float
    mean_x: np.ndarray
    factor: np.ndarray
    posterior_scale: np.ndarray
    sampling_scale: np.ndarray
    fit_intercept: bool

    @property
    def alpha(self) -> float:
        """Penalty of the fit."""
        return self.solution.alpha

    def standard_errors(self, spread: Spread = "posterior") -> np.ndarray:
        """Standard errors of the weights, shape (n_features, n_targets).

        Parameters
        ----------
        spread : {'posterior', 'sampling'}
            Square roots of the diagonal of σ² A^-1, A = G + alpha I: of the posterior under the prior that ridge
            implies, B ~ N(0, σ²/alpha) (Bishop, Pattern recognition and machine learning, 3.3.1). Or of σ² A^-1 G A^-1:
            of the estimate over draws of the noise, which says nothing of its bias (Hoerl and Kennard,
            Technometrics 12, 1970). Both are ordinary least squares' where alpha is zero.

        Raises
        ------
        ConfigError
            If `spread` is neither.
        """
        return np.outer(self._scale(spread)[:-1], np.sqrt(self.noise_variance))

    def intercept_standard_errors(self, spread: Spread = "posterior") -> np.ndarray:
        """Standard errors of the intercept, shape (n_targets,); zeros without one. See `standard_errors`."""
        return np.asarray(self._scale(spread)[-1] * np.sqrt(self.noise_variance))

    def _scale(self, spread: Spread) -> np.ndarray:
        scales = {"posterior": self.posterior_scale, "sampling": self.sampling_scale}
        if spread not in scales:
            msg = f"standard errors {spread!r}"
            raise ConfigError(msg, "'posterior' or 'sampling'")
        return scales[spread]

    def covariance(self, target: int = 0) -> np.ndarray:
        """Posterior covariance of one target's weights, shape (n_features, n_features)."""
        return np.asarray(self.noise_variance[target] * (self.factor.T @ self.factor))

    def t_statistics(self) -> TStatistics:
        """Weights over their standard errors, and two-sided p values of "this weight is zero".

        The textbook test of ordinary least squares: exact for independent Gaussian noise of variance σ²/w (Greene,
        Econometric analysis, 4.7). A target that is fitted without residual has infinite t, or NaN where its weight
        is zero as well.

        Raises
        ------
        SolveError
            If alpha is positive: a ridge estimate is biased, and its ratio has no t distribution.
        """
        if self.alpha > 0:
            msg = f"t statistics with alpha {self.alpha:g}"
            raise SolveError(msg, "alpha 0", "use standard_errors('posterior') for credible intervals instead")
        dof, intercept = self.residual_dof, self.solution.intercept
        with np.errstate(divide="ignore", invalid="ignore"):
            t = self.solution.weights / self.standard_errors()
            intercept_t = intercept / self.intercept_standard_errors() if self.fit_intercept else None
        intercept_p = None if intercept_t is None else _two_sided(intercept_t, dof)
        return TStatistics(t, _two_sided(t, dof), intercept_t, intercept_p, dof)

    def leverage(self, phi: Array, weights: Array | None = None) -> np.ndarray:
        """How little the corpus says of rows like these: w (1/W + φ_c' (G + alpha I)^-1 φ_c), shape (n_rows,).

        Of a row that was fitted, the diagonal entry of the hat matrix: between 0 and 1, and `effective_dof` in sum
        over all of them. Of a new row (of weight 1), the variance of its fitted mean in units of σ²; near or above 1,
        nothing like it was in the corpus. Without an intercept, neither 1/W nor the centring.

        Parameters
        ----------
        phi : array of shape (n_rows, n_features)
        weights : array of shape (n_rows,), optional
            With which the rows were fitted; 1 without.

        Raises
        ------
        MismatchError
            If shapes do not fit.
        """
        n_features = len(self.mean_x)
        if phi.ndim != 2 or phi.shape[1] != n_features:
            msg = f"features of shape {tuple(phi.shape)}"
            raise MismatchError(msg, f"(n_rows, {n_features})")
        if weights is not None and tuple(weights.shape) != (phi.shape[0],):
            msg = f"row weights of shape {tuple(weights.shape)}"
            raise MismatchError(msg, f"({phi.shape[0]},)")
        found = np.empty(phi.shape[0])
        for rows in cached_rows(phi.shape[0], n_features, found):
            z = (to_host(phi[rows, :]).astype(np.float64, copy=False) - self.mean_x) @ self.factor.T
            found[rows] = np.einsum("nd,nd->n", z, z)
        if self.fit_intercept:
            found += 1.0 / self.weight
        return found if weights is None else found * to_host(weights)

    def predictive_variance(self, phi: Array) -> np.ndarray:
        """Variance σ² (1 + leverage) of a new target of weight 1 about its prediction, shape (n_rows, n_targets).

        Noise, and uncertainty of weights and intercept (Bishop, 3.59, and a flat prior on the intercept).

        Parameters
        ----------
        phi : array of shape (n_rows, n_features)

        Raises
        ------
        MismatchError
            If the number of features is another.
        """
        return np.outer(1.0 + self.leverage(phi), self.noise_variance)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, without the weights and the factor."""
        return {
            "alpha": self.alpha,
            "n_observations": self.n_observations,
            "effective_dof": self.effective_dof,
            "residual_dof": self.residual_dof if np.isfinite(self.residual_dof) else None,
            "noise_variance": self.noise_variance.tolist(),
        }


def posterior(
    moments: Statistic | Centered,
    alpha: float,
    *,
    fit_intercept: bool = True,
    noise_variance: np.ndarray | float | None = None,
    n_observations: float | None = None,
) -> Posterior:
    """Solve, and say how uncertain the solution is.

    Of the fit that minimises ``sum_t w_t ||B'φ_t + b - y_t||² + alpha ||B||²``. The model is y_t = B'φ_t + b + noise of
    variance σ²/w_t, independent between rows; each target has a σ² of its own. With alpha > 0, B has the prior
    N(0, σ²/alpha) and b a flat one, so that B has the posterior covariance σ² (G + alpha I)^-1.

    The noise variance of target k is estimated as ``σ² = sum_t w_t r_tk² / (n_observations - effective_dof)`` with
    residuals r and ``effective_dof = trace(G (G + alpha I)^-1) + 1``. With alpha zero that is the unbiased estimator
    of least squares; with alpha positive, MacKay's (Bayesian interpolation, Neural Computation 4, 1992), unbiased over
    prior and noise when alpha is the prior's.

    Parameters
    ----------
    moments : Moments or Centered
    alpha : float
        Nonnegative.
    fit_intercept : bool
    noise_variance : float or array of shape (n_targets,), optional
        σ² where it is known.
    n_observations : float, optional
        The number of rows unless given, rows of weight zero included. Give the sum of weights where weights count
        repetitions.

    Raises
    ------
    SolveError
        If alpha is negative or not finite; if the Gram matrix is singular with alpha zero, or nearly so with alpha
        above; if there are no more observations than degrees of freedom; if a given noise variance is not a finite
        nonnegative number, or one of each target.

    Warns
    -----
    IllConditionedWarning
        If rounding of the stored sums would decide the weights, or the noise variance that is estimated.

    Notes
    -----
    O(D³ + D² K) work, and memory for six D x D matrices besides the moments.

    Examples
    --------
    >>> from streamfit.frame import Frame
    >>> from streamfit.moments import Moments
    >>> from streamfit.targets import Dense
    >>> x = np.arange(6.0)[:, None]
    >>> m = Moments.from_rows(x, 2 * x + [[1.0], [-1], [0], [0], [-1], [1]], Frame.identity(1, 1), Dense(1))
    >>> p = posterior(m, alpha=0.0)
    >>> p.solution.weights.round(6).tolist(), p.noise_variance.round(6).tolist(), p.residual_dof
    ([[2.0]], [1.0], 4.0)
    >>> p.leverage(np.array([[2.5], [100.0]])).round(3).tolist()
    [0.167, 543.381]
    """
    if not (alpha >= 0 and np.isfinite(alpha)):
        msg = f"alpha {alpha}"
        raise SolveError(msg, "a finite number >= 0")
    c = as_centered(moments)
    c = without_constants(c) if fit_intercept else c.about(np.zeros_like(c.mean_x), np.zeros_like(c.mean_y))
    # First, so that a system without one answer is refused rather than solved in part.
    factor = inverse_factor(c.gram, alpha)
    solution = solve(c, alpha, fit_intercept=fit_intercept)
    inverse = factor.T @ factor
    shrink = inverse @ c.gram
    dof = (float(np.trace(shrink)) if alpha > 0 else float(len(shrink))) + float(fit_intercept)
    observed = float(c.n_rows if n_observations is None else n_observations)
    if noise_variance is None:
        left = observed - dof
        if not left > _LEAST_DOF * observed:
            msg = f"{observed:g} observations for {dof:.6g} degrees of freedom"
            remedy = "add rows, drop features or raise alpha; or give the noise variance"
            raise SolveError(msg, "more observations than degrees of freedom", remedy)
        squares = _residual_squares(c, solution.weights)
        _warn_of_rounding(squares, c.ss_y, getattr(moments, "precision", "float64"))
        variance = squares / left
    else:
        variance, left = _given(noise_variance, len(c.mean_y)), np.inf
    # The mean stands for the intercept, which is mean_y - mean_x'B: the two are independent.
    level = 1.0 / c.weight if fit_intercept else 0.0
    mean = c.mean_x if fit_intercept else np.zeros_like(c.mean_x)
    pulled = inverse @ mean
    scales = (
        np.append(np.diag(inverse), level + mean @ pulled),
        # A quadratic form in G, for A^-1 - alpha A^-2 cancels where alpha is large.
        np.append(np.einsum("ij,ij->i", shrink, inverse), level + pulled @ c.gram @ pulled),
    )
    posterior_scale, sampling_scale = (np.sqrt(np.maximum(s, 0.0)) for s in scales)
    return Posterior(
        solution=solution,
        noise_variance=variance,
        n_observations=observed,
        effective_dof=dof,
        residual_dof=float(left),
        weight=c.weight,
        mean_x=mean,
        factor=factor,
        posterior_scale=posterior_scale,
        sampling_scale=sampling_scale,
        fit_intercept=fit_intercept,
    )


_RESOLVED: dict[str, float] = {"float32": 2.0**-19, "tf32": 2.0**-10, "bf16": 2.0**-7}
"""Share of the targets' squares below which rounding of products decides what is left of them."""


def _warn_of_rounding(left: np.ndarray, squares: np.ndarray, precision: str) -> None:
    lost = (left <= _RESOLVED.get(precision, 0.0) * squares) & (squares > 0)
    if precision in _RESOLVED and lost.any():
        msg = (
            f"residuals of {int(lost.sum())} target(s) are below {_RESOLVED[precision]:.1g} of their squares, which"
            f" products in {precision} do not resolve: noise, standard errors and deviations are not to be relied on;"
            " count in float64, or give the noise variance"
        )
        warnings.warn(msg, IllConditionedWarning, stacklevel=3)


def _residual_squares(c: Centered, weights: np.ndarray) -> np.ndarray:
    """Weighted sum of squared residuals of each target. Stationary in the weights: their rounding does not show."""
    squares = c.ss_y.copy()
    for lo in range(0, len(squares), _TARGETS_AT_ONCE):
        part = slice(lo, lo + _TARGETS_AT_ONCE)
        b = weights[:, part]
        squares[part] += np.einsum("dk,dk->k", b, c.gram @ b - 2.0 * c.cross[:, part])
    return np.asarray(np.maximum(squares, 0.0))


def _given(noise_variance: np.ndarray | float, n_targets: int) -> np.ndarray:
    given = np.asarray(noise_variance, dtype=np.float64)
    if given.shape not in ((), (n_targets,)) or not (np.isfinite(given).all() and (given >= 0).all()):
        msg = f"a noise variance of shape {given.shape}, least value {given.min() if given.size else np.nan:g}"
        raise SolveError(msg, f"a finite number >= 0, or {n_targets} of them")
    return np.full(n_targets, given)


def _two_sided(t: np.ndarray, dof: float) -> np.ndarray:
    lower = scipy.special.ndtr(-np.abs(t)) if np.isinf(dof) else scipy.special.stdtr(dof, -np.abs(t))
    return np.asarray(2.0 * lower)
