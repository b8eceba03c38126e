"""Choosing one alpha for each block of features from stored sums, by the evidence or by K-fold cross-validation.

Floor 3: imports moments, centered, errors and solve siblings. Both criteria come with their exact gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from streamfit.centered import Centered, Statistic
from streamfit.errors import SolveError
from streamfit.solve.banded import BandedSolution, solve_banded
from streamfit.solve.banded_criteria import BandedEvidence, BandedFolds, total
from streamfit.solve.banded_search import Search, best_single, raised
from streamfit.solve.bands import Bands, Blocks, as_solved

Criterion = Literal["evidence", "kfold"]

_RANGE = 1e-12, 1e6
"""Default bounds of alpha, relative to the mean of the diagonal of its block's Gram matrix."""
_NOTHING = 1e-3
"""Effective degrees of freedom a feature, up to which a block counts as left out."""
_STATIONARY = 1e-5
"""Slope by log alpha, in units of the objective that is minimised, up to which it counts as zero."""


@dataclass(frozen=True)
class BandedChoice:
    """Alphas of the best criterion found, the fit to all sums with them, and plain ridge beside it.

    Parameters
    ----------
    solution : BandedSolution
    criterion : {'evidence', 'kfold'}
    value, plain_value : float
        Log evidence summed over the targets that vary, greater is better; or held-out mean squared error per unit of
        weight, summed over targets, less is better. With these alphas, and with the best single alpha.
    plain_alpha : float
        The single alpha of best criterion.
    bounds : dict of str to pair of float
        Within which each block's alpha was looked for.
    at_bound : dict of str to {'', 'lower', 'upper'}
        Which of them an alpha ended at. Upper, by default bounds: the block carries nothing that helps beside the
        others. Lower: it asks for no penalty, or for less than rounding of the stored sums allows.
    slope : float
        Largest derivative by log alpha that does not lead out of bounds: of the log evidence per target, or of the
        held-out loss relative to plain ridge's.
    converged : bool
        Whether the slope is at most 1e-5. Neither criterion is concave or convex: other optima are not excluded.
    history : array of shape (n_evaluations,)
        Best value so far, after each evaluation; `plain_value` comes first.
    noise_variance : array of shape (n_targets,), or None
        σ² of greatest evidence of each target, of a row of weight 1; None for K-fold.
    """

    solution: BandedSolution
    criterion: Criterion
    value: float
    plain_value: float
    plain_alpha: float
    bounds: dict[str, tuple[float, float]]
    at_bound: dict[str, str]
    slope: float
    converged: bool
    history: np.ndarray
    noise_variance: np.ndarray | None

    @property
    def alphas(self) -> dict[str, float]:
        """Chosen alpha of each block."""
        return self.solution.alphas

    def lines(self) -> list[str]:
        """The choice as text, a line a block and two for the criterion."""
        what = "log evidence" if self.criterion == "evidence" else "held-out loss"
        wide, dof = max(map(len, self.alphas)), self.solution.effective_dof
        end = "converged" if self.converged else "NOT converged"
        return [
            *(
                f"{name:<{wide}}  alpha {alpha:<10.4g} dof {dof[name]:<8.3g} {self._says(name)}".rstrip()
                for name, alpha in self.alphas.items()
            ),
            f"{what}  {self.value:.8g}  (one alpha, {self.plain_alpha:.4g}: {self.plain_value:.8g})",
            f"{end} after {len(self.history)} evaluations, slope {self.slope:.1e}",
        ]

    def _says(self, name: str) -> str:
        if self.at_bound[name] == "upper":
            nothing = self.solution.effective_dof[name] <= _NOTHING * len(self.solution.bands.indices[name])
            return "at its upper bound: " + ("carries nothing that the others do not" if nothing else "raise it")
        return "at its lower bound: asks for no penalty" if self.at_bound[name] else ""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, without the model."""
        return {
            "criterion": self.criterion,
            "value": self.value,
            "plain_value": self.plain_value,
            "plain_alpha": self.plain_alpha,
            "bounds": {name: list(pair) for name, pair in self.bounds.items()},
            "at_bound": self.at_bound,
            "slope": self.slope,
            "converged": self.converged,
            "history": self.history.tolist(),
            "noise_variance": None if self.noise_variance is None else self.noise_variance.tolist(),
            "solution": self.solution.to_json(),
        }


def choose_banded(
    sums: Statistic | Centered | Mapping[int, Statistic],
    blocks: Blocks,
    *,
    criterion: Criterion = "evidence",
    bounds: tuple[float, float] | None = None,
    fit_intercept: bool = True,
    max_iterations: int = 200,
) -> BandedChoice:
    """Choose one alpha for each block, shared by all targets, and fit with them.

    The fit minimises ``sum_t w_t ||B'φ_t + b - y_t||² + sum_g alpha_g ||B_g||²``, see `solve_banded`.
    'evidence' maximises the log marginal likelihood of the rows for priors ``B_gk ~ N(0, σ_k²/alpha_g I)``, each
    target's σ_k² at its best (automatic relevance determination by blocks: MacKay, Bayesian interpolation, 1992;
    Tipping, Sparse Bayesian learning and the relevance vector machine, JMLR 1, 2001). 'kfold' minimises the loss on
    each fold of the fit to the others (la Tour et al., Feature-space selection with banded ridge regression, NeuroImage
    264, 2022; gradient by implicit differentiation, Bengio 2000).

    Over log alphas within bounds, L-BFGS-B (Byrd, Lu, Nocedal and Zhu, 1995) starts from the best single alpha and
    from the best multiple of each block's mean sum of squares; then seven alphas are tried for each block in turn, and
    a better one starts it again, up to five times. So the result is never worse than plain ridge on its criterion, to
    12 digits. With D features, K targets and G blocks, an evaluation costs two thirds of D³ and O(D² min(K, D))
    operations, F times as much with F folds; there are some tens to hundreds, and 7 G more for each try of all blocks.
    Memory, beside the moments: about five D x D matrices, and with folds two for each more.

    Parameters
    ----------
    sums : Moments or Centered, or mapping of int to Moments
        Folds, at least two with rows, are needed for 'kfold'; 'evidence' adds them.
    blocks : mapping of str to sequence of int, or slice
        See `solve_banded`.
    criterion : {'evidence', 'kfold'}
    bounds : pair of float, optional
        Range of all alphas. Without it each block's is from 1e-12 to 1e6 times the mean of the diagonal of its Gram
        matrix, and wide enough to hold the best single alpha. Lower ends are raised together as far as rounding of
        the stored sums asks for.
    fit_intercept : bool
    max_iterations : int
        Of each search.

    Raises
    ------
    SolveError
        If the blocks do not partition the features, the criterion is unknown or cannot be had from these sums, bounds
        are not 0 < lower < upper or so low that rounding decides, there are fewer than two rows or folds, or no feature
        or target varies.

    Warns
    -----
    IllConditionedWarning
        If rounding of the stored sums would decide the weights.

    Examples
    --------
    >>> from streamfit.frame import Frame
    >>> from streamfit.moments import Moments
    >>> from streamfit.targets import Dense
    >>> x = np.random.default_rng(0).normal(size=(200, 6))
    >>> y = x[:, :2] @ [[1.0], [2.0]] + np.random.default_rng(1).normal(size=(200, 1))
    >>> m = Moments.from_rows(x, y, Frame.identity(6, 1), Dense(1))
    >>> choice = choose_banded(m, {"signal": [0, 1], "noise": slice(2, 6)})
    >>> choice.alphas["signal"] < 1 < 100 < choice.alphas["noise"], choice.value > choice.plain_value
    (True, True)
    """
    if criterion not in ("evidence", "kfold"):
        msg = f"criterion {criterion!r}"
        raise SolveError(msg, "'evidence' or 'kfold'")
    if bounds is not None and not 0 < bounds[0] < bounds[1] < np.inf:
        msg = f"bounds {bounds[0]:g} and {bounds[1]:g}"
        raise SolveError(msg, "0 < lower < upper, finite")
    whole = total(sums) if isinstance(sums, Mapping) else sums
    c = as_solved(whole, fit_intercept)
    bands = Bands.of(blocks, len(c.gram))
    unit = _units(bands, c)
    problem: BandedEvidence | BandedFolds
    if criterion == "evidence":
        problem = BandedEvidence(c, bands, fit_intercept)
    elif isinstance(sums, Mapping):
        problem = BandedFolds(sums, bands, fit_intercept)
    else:
        msg = "sums of all rows together for criterion 'kfold'"
        raise SolveError(msg, "a mapping of folds to their moments", "choose by 'evidence', or keep folds apart")
    lower, upper = (unit * end for end in _RANGE) if bounds is None else (np.full(len(unit), end) for end in bounds)
    systems = [c, *problem.systems] if criterion == "kfold" else problem.systems
    plain_alpha, plain = best_single(problem, bands, systems, float(lower.min()), float(upper.max()))
    # The best single alpha is within bounds, and all lower ends together are still trusted.
    lower, upper = np.minimum(lower, plain_alpha), np.maximum(upper, plain_alpha)
    lower = raised(bands, systems, lower, plain_alpha)
    scale = 1.0 if criterion == "evidence" else max(plain, float(np.finfo(np.float64).tiny))
    search = Search(problem, np.log(lower), np.log(upper), scale)
    search.run(np.full(len(unit), np.log(plain_alpha)), np.log(unit), max_iterations)
    alphas = np.clip(np.exp(search.best), lower, upper)
    back = -float(problem.varies.sum()) if isinstance(problem, BandedEvidence) else scale
    slope = search.slope
    return BandedChoice(
        solution=solve_banded(whole, bands.named(alphas), blocks, fit_intercept=fit_intercept),
        criterion=criterion,
        value=back * search.value,
        plain_value=back * search.history[0],
        plain_alpha=plain_alpha,
        bounds=dict(zip(bands.names, zip(lower.tolist(), upper.tolist(), strict=True), strict=True)),
        at_bound=dict(zip(bands.names, search.ends, strict=True)),
        slope=slope,
        converged=slope <= _STATIONARY,
        history=back * np.array(search.history),
        noise_variance=problem.noise_variance(alphas) if isinstance(problem, BandedEvidence) else None,
    )


def _units(bands: Bands, c: Centered) -> np.ndarray:
    """Mean of the diagonal of each block's Gram matrix; of all where a block does not vary."""
    sums = bands.sums(np.diag(c.gram))
    if not sums.any():
        msg = "features of which none varies"
        raise SolveError(msg, "a feature that varies")
    return np.asarray(np.where(sums > 0, sums / bands.sizes, sums.sum() / len(c.gram)))
