"""Ridge regression where the Gram matrix is larger than memory: weights, and what is proved of them.

Floor 3: imports certificate, ridge, tiles, tiled_cholesky, errors.
"""

from __future__ import annotations

import warnings

import numpy as np
import scipy.linalg
from scipy.sparse.linalg import LinearOperator, onenormest

from streamfit.errors import SolveError
from streamfit.solve.certificate import Certificate, eigenvalue_noise
from streamfit.solve.ridge import RCOND_FLOOR, IllConditionedWarning, Solution
from streamfit.solve.tiled_cholesky import Progress, TiledFactor, factor_tiles, indefinite
from streamfit.solve.tiles import N_EXACT, N_PROBES, TiledPlan, TiledSums, TileSource, TileStore, tile_edges

_SHORTFALL = 0.5
"""Share of the inverse's largest eigenvalue by which Lanczos may have missed it."""
_DOUBT = 1e-9
"""Probability, over the start vectors, that it missed more."""
_STARTS = 16
"""Start vectors: walks through the factor are shared, and each start can miss only by itself."""


def solve_tiles(
    sums: TiledSums,
    alpha: float,
    plan: TiledPlan,
    scratch: TileStore,
    *,
    names: list[str] | None = None,
    progress: Progress | None = None,
) -> Solution:
    """Solve ridge regression from sums that are read tile by tile.

    Minimises ``sum_t w_t ||B'φ_t + b - y_t||² + alpha ||B||²`` as `solve` does, alpha unscaled by n, with one step of
    iterative refinement from the residual of the tiles themselves (Higham, Accuracy and stability of numerical
    algorithms, 12.1). What differs:

    - Where `solve` gives up Cholesky for a solution of least norm, this raises.
    - `strong_convexity` is half of what block Lanczos finds for λ_min, less its rounding error. With random starts, as
      many as here and with as many steps, it misses by more than half with probability 1e-9 at most (Kuczyński and
      Woźniakowski, Estimating the largest eigenvalue by the power and Lanczos algorithms with a random start, SIAM J.
      Matrix Anal. Appl. 13, 1992, for each of the starts). `condition` is an upper bound, with a norm of the system in
      place of λ_max. Up to 128 features λ_min is computed in full.
    - `effective_dof` is an estimate from 64 random solves (Hutchinson, A stochastic estimator of the trace of the
      influence matrix, Commun. Stat. Simul. Comput. 19, 1990), exact up to 128 features. Its standard error is at
      most sqrt(2 min(dof, D - dof) / 64): 19 where half of 24,000 degrees of freedom are in use.

    Both draw from a fixed seed.

    Parameters
    ----------
    sums : TiledSums
    alpha : float
        Nonnegative.
    plan : TiledPlan
    scratch : TileStore
        Takes the factor's tiles that memory has no room for.
    names : list of str, optional
        Feature names for errors.
    progress : callable, optional

    Raises
    ------
    SolveError
        If alpha is negative or not finite, or the system is not positive definite in float64.

    Warns
    -----
    IllConditionedWarning
        If alpha is so small that rounding of the stored sums decides.

    Examples
    --------
    >>> from streamfit.frame import Frame
    >>> from streamfit.moments import Moments
    >>> from streamfit.solve.tiles import ArrayTiles, plan_tiles
    >>> from streamfit.targets import Dense
    >>> x = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 4.0]])
    >>> c = Moments.from_rows(x, x @ [[2.0], [-1.0]], Frame.identity(2, 1), Dense(1)).centered()
    >>> sums = TiledSums.of(c, edge=1)
    >>> plan = plan_tiles(sums.gram, n_targets=1, memory_bytes=2**29)
    >>> solve_tiles(sums, 0.0, plan, ArrayTiles(np.empty((2, 2)), 1)).weights.round(6).tolist()
    [[2.0], [-1.0]]
    """
    if not (alpha >= 0 and np.isfinite(alpha)):
        msg = f"alpha {alpha}"
        raise SolveError(msg, "a finite number >= 0")
    d, k = len(sums.diagonal), len(sums.mean_y)
    factor = factor_tiles(sums.gram, sums.diagonal, alpha, plan, scratch, names=names, progress=progress)
    inverse_norm = _inverse_norm(factor)
    if 1.0 / (inverse_norm * factor.norm) < RCOND_FLOOR:
        raise indefinite(factor.weakest, alpha, names, "is nearly a combination of others")
    _warn_of_rounding(sums, alpha, inverse_norm)
    weights, tally = np.empty((d, k)), _Tally()
    for lo in range(0, k, plan.block_targets):
        part = slice(lo, min(lo + plan.block_targets, k))
        cross = sums.cross(part)
        found = factor.solve(cross.copy())
        fitted = multiply(sums.gram, found)
        found += factor.solve(cross - fitted - alpha * found)
        tally.add(cross, found, multiply(sums.gram, found), alpha)
        weights[:, part] = found
    lowest, dof = _lowest_and_dof(factor, alpha, d)
    intercept = sums.mean_y - sums.mean_x @ weights
    certificate = tally.certificate(factor, alpha, lowest, float(np.sum(sums.ss_y)))
    return Solution(weights, intercept, float(alpha), "cholesky", d, dof, certificate)


def multiply(gram: TileSource, x: np.ndarray) -> np.ndarray:
    """G x for an array of shape (n_features, n_columns), reading each tile of the upper triangle once."""
    out = np.zeros_like(x)
    rows = list(enumerate(tile_edges(gram.n_features, gram.edge)))
    for i, r in rows:
        for j, c in rows[i:]:
            tile = gram.read(i, j)
            out[r] += tile @ x[c]
            if i != j:
                out[c] += tile.T @ x[r]
    return out


def _warn_of_rounding(sums: TiledSums, alpha: float, inverse_norm: float) -> None:
    """As `solve` judges it; see `noise_share`."""
    varying = sums.diagonal > 0
    share = float(np.max(sums.noise[varying] / (sums.diagonal[varying] + alpha), initial=0.0)) * inverse_norm
    if share > 1.0:
        warnings.warn(
            f"alpha {alpha:g} is below what rounding of the stored sums allows (to first order the weights may "
            f"change by {share:.2g} times themselves): raise alpha, or count with precision 'float64'",
            IllConditionedWarning,
            stacklevel=3,
        )


def _inverse_norm(factor: TiledFactor) -> float:
    """1-norm of the scaled system's inverse, estimated from below and seldom by more than a factor of three.

    Higham and Tisseur, A block algorithm for matrix 1-norm estimation, SIAM J. Matrix Anal. Appl. 21, 2000. With one
    column it is Hager's method, which draws nothing at random.
    """
    d = len(factor.units)

    def apply(x: np.ndarray) -> np.ndarray:
        return factor.solve_scaled(np.array(x, dtype=np.float64).reshape(d, -1)).reshape(x.shape)

    operator = LinearOperator((d, d), matvec=apply, rmatvec=apply, matmat=apply, rmatmat=apply, dtype=np.float64)
    return float(onenormest(operator, t=1)) if d > 1 else float(apply(np.ones((1, 1)))[0, 0])


def _lowest_and_dof(factor: TiledFactor, alpha: float, d: int) -> tuple[float, float]:
    """A lower bound of λ_min(A) in exact arithmetic, and the effective degrees of freedom D - alpha trace(A^-1)."""
    if d <= N_EXACT:
        inverse = factor.solve(np.eye(d))
        return 1.0 / float(scipy.linalg.eigvalsh((inverse + inverse.T) / 2)[-1]), d - alpha * float(np.trace(inverse))
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(d, _STARTS)))
    probes = rng.choice([-1.0, 1.0], size=(d, N_PROBES if alpha > 0 else 0))
    solved = factor.solve(np.hstack([basis, probes]))
    dof = d - alpha * float(np.vdot(probes, solved[:, _STARTS:])) / N_PROBES
    # From one start, s products miss a share e with probability 1.648 sqrt(D) exp(-sqrt(e) (2 s - 1)) at most.
    each = _DOUBT ** (1.0 / _STARTS)
    steps = int(np.ceil((np.log(1.648 * np.sqrt(d) / each) / np.sqrt(_SHORTFALL) + 1.0) / 2.0)) + 1
    image, projected = solved[:, :_STARTS].copy(), np.zeros((_STARTS * steps, _STARTS * steps))
    for step in range(steps):
        here = slice(_STARTS * step, _STARTS * (step + 1))
        projected[: here.stop, here] = basis.T @ image
        if step + 1 < steps:
            for _ in range(2):  # once more, for what is left may be rounding
                image -= basis @ (basis.T @ image)
                image, _ = np.linalg.qr(image)
            basis = np.hstack([basis, image])
            image = factor.solve(image)
    largest = float(scipy.linalg.eigvalsh(projected, lower=False)[-1])
    return (1.0 - _SHORTFALL) / largest, dof


class _Tally:
    """Adds up, over blocks of targets, what a certificate is made of."""

    def __init__(self) -> None:
        self._residual = self._cross = self._weights = self._gain = 0.0

    def add(self, cross: np.ndarray, weights: np.ndarray, fitted: np.ndarray, alpha: float) -> None:
        residual = fitted + alpha * weights
        self._gain += float(np.vdot(weights, residual) - 2.0 * np.vdot(weights, cross))
        residual -= cross
        self._residual += float(np.vdot(residual, residual))
        self._cross += float(np.vdot(cross, cross))
        self._weights += float(np.vdot(weights, weights))

    def certificate(self, factor: TiledFactor, alpha: float, lowest: float, ss_y: float) -> Certificate:
        """As `certify` makes it, from sums of squares, a lower bound of λ_min and an upper one of λ_max."""
        d, eps = len(factor.units), float(np.finfo(np.float64).eps)
        norm, scale, size = (float(np.sqrt(s)) for s in (self._residual, self._cross, self._weights))
        # Rounding of A B - C itself (Higham, Accuracy and stability of numerical algorithms, 3.5).
        n = d + 3
        slack = n * eps / (1.0 - n * eps) * ((factor.frobenius + alpha * np.sqrt(d)) * size + scale)
        mu = max(lowest - eigenvalue_noise(d, factor.top), 0.0)
        condition = factor.top / mu if mu > 0 else float("inf")
        return Certificate(
            relative_gradient=norm / scale if scale > 0 else norm,
            strong_convexity=mu,
            suboptimality=(norm + slack) ** 2 / mu if mu > 0 else float("inf"),
            loss=ss_y + self._gain,
            condition=condition,
            digits_lost=float(np.log10(condition)),
            null_loss=ss_y,
        )
