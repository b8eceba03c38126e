"""Banded ridge: a separate alpha for each block of features, and what each block contributes to the fit.

Floor 3: imports moments, centered, errors and solve siblings. Features scaled by their blocks' alphas make it plain
ridge, so that conditioning, warnings and the certificate are those of `solve`. `banded_choice` chooses the alphas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamfit.centered import Centered, Statistic, as_centered
from streamfit.errors import SolveError
from streamfit.solve.bands import Bands, Blocks, as_solved
from streamfit.solve.certificate import Certificate
from streamfit.solve.ridge import solve, weights_for
from streamfit.solve.spectrum import decompose

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class BandedSolution:
    """Weights of the optimum, in the features' own units, and what is known about them.

    Parameters
    ----------
    weights : float64 array of shape (n_features, n_targets)
    intercept : float64 array of shape (n_targets,)
    alphas : dict of str to float
        Of each block; infinite where it was left out.
    bands : Bands
        The blocks.
    effective_dof : dict of str to float
        Effective degrees of freedom of each block, ``sum over j in block of [A^-1 G]_jj`` with A = G + diag(alpha):
        between 0 and its number of features. Without the intercept.
    method : {'cholesky', 'least_norm'}
    rank : int
        Numerical rank of the system that was solved; features left out count, by their penalty.
    certificate : Certificate
        Loss and suboptimality are of the banded objective itself. Gradient, strong convexity and condition are in
        features scaled to equal alphas, where the optimum is as unique as here.
    mean_x : float64 array of shape (n_features,)
        Weighted mean of the features; zeros without an intercept.
    fit_intercept : bool
    """

    weights: np.ndarray
    intercept: np.ndarray
    alphas: dict[str, float]
    bands: Bands
    effective_dof: dict[str, float]
    method: str
    rank: int
    certificate: Certificate
    mean_x: np.ndarray
    fit_intercept: bool

    def predict(self, phi: np.ndarray) -> np.ndarray:
        """Predictions `φ B + b`, shape (n_rows, n_targets), from features of shape (n_rows, n_features)."""
        return np.asarray(phi @ self.weights + self.intercept)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, without the model; an infinite alpha is None."""
        return {
            "blocks": {name: len(at) for name, at in self.bands.indices.items()},
            "alphas": {name: a if np.isfinite(a) else None for name, a in self.alphas.items()},
            "effective_dof": self.effective_dof,
            "method": self.method,
            "rank": self.rank,
            "certificate": self.certificate.to_json(),
        }


def solve_banded(
    moments: Statistic | Centered,
    alphas: Mapping[str, float],
    blocks: Blocks,
    *,
    fit_intercept: bool = True,
    names: list[str] | None = None,
) -> BandedSolution:
    """Solve ridge regression with one alpha for each block of features.

    Minimises ``sum_t w_t ||B'φ_t + b - y_t||² + sum_g alpha_g ||B_g||²``, B_g the rows of block g, over B and, unless
    switched off, an unpenalised intercept b. Alphas are not divided by the number of rows (la Tour, Eickenberg,
    Nunez-Elizalde and Gallant, Feature-space selection with banded ridge regression, NeuroImage 264, 2022). Features
    times ``1/sqrt(alpha_g)`` make it plain ridge, a special case of Tikhonov's general form (Hansen, Rank-deficient
    and discrete ill-posed problems, 2.3), which is how it is solved.

    Parameters
    ----------
    moments : Moments or Centered
    alphas : mapping of str to float
        Positive, one for each block. Infinity leaves a block out: its weights are zero.
    blocks : mapping of str to sequence of int, or slice
        Indices of each block's features; together they name every feature once.
    fit_intercept : bool
    names : list of str, optional
        Feature names for warnings.

    Raises
    ------
    SolveError
        If the blocks do not partition the features, or an alpha is missing or not positive.

    Warns
    -----
    IllConditionedWarning
        If the alphas are too small to make Cholesky trustworthy, or rounding of the stored sums would decide the
        weights; it names the least of them.

    Examples
    --------
    >>> from streamfit.frame import Frame
    >>> from streamfit.moments import Moments
    >>> from streamfit.targets import Dense
    >>> x = np.array([[1.0, 1], [-1, 1], [1, -1], [-1, -1]])
    >>> m = Moments.from_rows(x, x @ [[3.0], [1]], Frame.identity(2, 1), Dense(1))
    >>> solution = solve_banded(m, {"a": 2.0, "b": 4.0}, {"a": [0], "b": slice(1, 2)})
    >>> solution.weights.round(6).tolist(), {name: round(dof, 6) for name, dof in solution.effective_dof.items()}
    ([[2.0], [0.5]], {'a': 0.666667, 'b': 0.5})
    """
    c = as_centered(moments)
    bands = Bands.of(blocks, len(c.gram))
    each = bands.read(alphas)
    scaled, s, alpha = bands.scaled(as_solved(c, fit_intercept), each)
    plain = solve(scaled, alpha, fit_intercept=fit_intercept, names=names)
    weights = plain.weights * s[:, None]
    spectrum = decompose(scaled, fit_intercept=fit_intercept, smallest_alpha=alpha)
    # The scaled system is similar to the unscaled one, by S: the diagonal of A^-1 G is the same.
    dof = spectrum.vectors**2 @ (spectrum.eigenvalues / (spectrum.eigenvalues + alpha))
    mean_x = c.mean_x if fit_intercept else np.zeros_like(c.mean_x)
    return BandedSolution(
        weights=weights,
        intercept=c.mean_y - mean_x @ weights if fit_intercept else np.zeros_like(c.mean_y),
        alphas=bands.named(each),
        bands=bands,
        effective_dof=bands.named(bands.sums(dof)),
        method=plain.method,
        rank=plain.rank,
        certificate=plain.certificate,
        mean_x=mean_x,
        fit_intercept=fit_intercept,
    )


@dataclass(frozen=True)
class Contributions:
    """What each block of features contributes to R².

    Variance is about the training means (about zero without an intercept), as the intercept goes with them. Arrays are
    NaN for targets that do not vary; totals over targets weigh each by its sum of squares.

    Parameters
    ----------
    names : tuple of str
        Of the blocks.
    r2 : array of shape (n_targets,)
        Share of each target's variance that the fit explains.
    r2_total : float
    product : array of shape (n_blocks, n_targets)
        Product measure: sums over blocks to `r2`. Can be negative, where a block corrects another.
    product_total : array of shape (n_blocks,)
        Sums to `r2_total`.
    unique : array of shape (n_blocks, n_targets)
        Fall of `r2` when the block is left out and the rest is solved for again with the same alphas. Of correlated
        blocks both can be near zero. On held-out sums it is negative where the block does harm.
    unique_total : array of shape (n_blocks,)
    """

    names: tuple[str, ...]
    r2: np.ndarray
    r2_total: float
    product: np.ndarray
    product_total: np.ndarray
    unique: np.ndarray
    unique_total: np.ndarray

    def lines(self) -> list[str]:
        """A line a block, and their sum."""
        wide = max(len("all"), *map(len, self.names))
        parts = zip(self.names, self.product_total, self.unique_total, strict=True)
        rows = [f"{name:<{wide}}  {product:+9.4f}  {unique:+9.4f}" for name, product, unique in parts]
        return [f"{'block':<{wide}}    product     unique", *rows, f"{'all':<{wide}}  {self.r2_total:+9.4f}"]

    def to_json(self) -> dict[str, Any]:
        """Totals over targets by block, as plain numbers."""
        return {
            "r2": self.r2_total,
            "product": dict(zip(self.names, self.product_total.tolist(), strict=True)),
            "unique": dict(zip(self.names, self.unique_total.tolist(), strict=True)),
        }


def contributions(
    train: Statistic | Centered, solution: BandedSolution, *, held_out: Statistic | Centered | None = None
) -> Contributions:
    """Share out R² among the blocks, and refit without each.

    With C and G of the rows looked at, about the training means, the product measure of block g and target k is
    ``(2 <B_g, C_g> - <B_g, (G B)_g>) / ss_y``, that is ``sum_t ŷ_gt (2 y_t - ŷ_t) / sum_t y_t²``: the sum over blocks
    is R² (Hoffman, Psychological Bulletin 57, 1960; Pratt, Dividing the indivisible, 1987; in this form, which holds
    for ridge and for held-out rows too, la Tour et al., NeuroImage 264, 2022). The unique contribution takes one
    factorisation for each block.

    Parameters
    ----------
    train : Moments or Centered
        What the solution was solved from.
    solution : BandedSolution
    held_out : Moments or Centered, optional
        Sums of other rows, on which R² is taken; the training sums without it.

    Raises
    ------
    SolveError
        If the solution is not of these sums, held-out sums are of other features or targets, or no target varies.

    Examples
    --------
    >>> from streamfit.frame import Frame
    >>> from streamfit.moments import Moments
    >>> from streamfit.targets import Dense
    >>> x = np.array([[1.0, 1], [-1, 1], [1, -1], [-1, -1]])
    >>> m = Moments.from_rows(x, x @ [[3.0], [1]], Frame.identity(2, 1), Dense(1))
    >>> found = contributions(m, solve_banded(m, {"a": 1e-9, "b": 1e-9}, {"a": [0], "b": [1]}))
    >>> found.product_total.round(6).tolist(), found.unique_total.round(6).tolist()
    ([0.9, 0.1], [0.9, 0.1])
    """
    fitted, b = as_solved(train, solution.fit_intercept), solution.weights
    if fitted.cross.shape != b.shape or not np.array_equal(fitted.mean_x, solution.mean_x):
        msg = "a solution of other sums"
        raise SolveError(msg, "the sums that it was solved from")
    rows = fitted
    if held_out is not None:
        rows = as_centered(held_out)
        if rows.cross.shape != b.shape:
            msg = f"held-out sums of {rows.cross.shape[0]} features and {rows.cross.shape[1]} targets"
            raise SolveError(msg, "{} and {}".format(*b.shape), "count all with the same features")
        rows = rows.about(fitted.mean_x, fitted.mean_y)
    varies = rows.ss_y > 8.0 * _EPS * rows.weight * rows.mean_y**2
    if not varies.any():
        msg = "targets of which none varies"
        raise SolveError(msg, "a target with variance to explain")
    bands, alphas = solution.bands, np.array([solution.alphas[name] for name in solution.bands.names])
    product = bands.sums(b * (2.0 * rows.cross - rows.gram @ b))
    explained = product.sum(axis=0)
    unique = np.empty_like(product)
    for g in range(len(bands.names)):
        others = alphas.copy()
        others[g] = np.inf
        scaled, s, alpha = bands.scaled(fitted, others)
        rest = weights_for(scaled, alpha) * s[:, None]
        unique[g] = explained - np.sum(rest * (2.0 * rows.cross - rows.gram @ rest), axis=0)
    each, total = np.where(varies, rows.ss_y, np.nan), float(rows.ss_y.sum())
    return Contributions(
        names=bands.names,
        r2=explained / each,
        r2_total=float(explained.sum()) / total,
        product=product / each,
        product_total=product.sum(axis=1) / total,
        unique=unique / each,
        unique_total=unique.sum(axis=1) / total,
    )
