"""What each data source is worth, and in what proportions to mix them: from stored moments, without the corpus.

Floor 3: imports moments, sources, stack, errors.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize

from streamfit.centered import Statistic
from streamfit.errors import SolveError
from streamfit.solve.sources import Sources
from streamfit.solve.stack import stack_of

_EPS = float(np.finfo(np.float64).eps)
_STATIONARY = 1e-5
"""Frank-Wolfe gap, relative to the loss, up to which a mixture counts as stationary, and losses as the same."""
_SAME = 1e-12
"""Relative difference of two losses that rounding may have made."""
_ABSENT = 1e-10
"""Share of the weight below which a source is left out of a mixture."""


@dataclass(frozen=True)
class Influence:
    """What one source is worth: the held-out loss with it and without it.

    Parameters
    ----------
    source : str
    n_rows : int
    weight : float
        Of the source's rows.
    loss, loss_without : float
        Held-out mean squared error per unit of weight, summed over targets, of the fit to all sources and of the
        fit to the others.
    value, relative : float
        Rise of the held-out loss when the source is left out, in its units and over the loss with all sources:
        negative where the source does harm.
    """

    source: str
    n_rows: int
    weight: float
    loss: float
    loss_without: float
    value: float
    relative: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)


@dataclass(frozen=True)
class Mixture:
    """Factors for the sources' sums of least held-out loss found, and a first-order certificate.

    Parameters
    ----------
    factors : dict of str to float
        a_s >= 0 by which the sums of each source are multiplied; 1 for all is the plain fit.
    shares : dict of str to float
        a_s W_s / W, the share of each source in the total weight. Sums to 1.
    loss, plain_loss : float
        Held-out mean squared error per unit of weight, summed over targets, of this mixture and of the plain fit.
    gap : float
        Frank-Wolfe gap ``max_s <∇L, p - e_s>`` over shares p, in units of the loss: the steepest first-order descent
        towards a single source. Nonnegative, and zero exactly at points that satisfy the Karush-Kuhn-Tucker
        conditions. It proves stationarity. The loss is not convex in p: it proves neither a global minimum nor,
        alone, a local one.
    n_iterations, n_starts : int
        Of the local searches together.
    n_minima : int
        Distinct losses (by more than 1e-5 relative) among the stationary points that the searches ended in. One says
        that all starts agree, not that there is no other minimum.
    """

    factors: dict[str, float]
    shares: dict[str, float]
    loss: float
    plain_loss: float
    gap: float
    n_iterations: int
    n_starts: int
    n_minima: int

    @property
    def stationary(self) -> bool:
        """Whether the gap is at most 1e-5 of the loss."""
        return self.gap <= _STATIONARY * self.loss

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {**asdict(self), "stationary": self.stationary}


def influence(
    parts: Mapping[str, Statistic], target: Statistic, alpha: float, *, fit_intercept: bool = True
) -> tuple[Influence, ...]:
    """Refit without each source in turn, and compare held-out losses.

    Each fit minimises ``sum_t w_t ||B'φ_t + b - y_t||² + alpha ||B||²`` over the rows of the sources that remain,
    with the same alpha. Their moments are added, never subtracted from a total. The refit is exact, not the
    first-order estimate of influence functions (Koh and Liang, Understanding black-box predictions via influence
    functions, ICML 2017).

    Parameters
    ----------
    parts : mapping of str to Moments
        Training sums of at least two sources.
    target : Statistic
        Held-out sums, of a fold that is not in `parts`.
    alpha : float
        Positive.
    fit_intercept : bool

    Returns
    -------
    tuple of Influence
        One a source, in the order of `parts`.

    Raises
    ------
    SolveError
        If alpha is not positive, there are fewer than two sources, a source or the target has no weight, or numbers
        of features or targets differ.

    Warns
    -----
    IllConditionedWarning
        If rounding of the stored sums would decide one of the fits.

    Examples
    --------
    >>> from streamfit.frame import Frame
    >>> from streamfit.moments import Moments
    >>> from streamfit.targets import Dense
    >>> x = np.arange(6.0)[:, None]
    >>> sums = [Moments.from_rows(x, y, Frame.identity(1, 1), Dense(1)) for y in (x, -x, 2 * x)]
    >>> good, bad = influence({"good": sums[0], "bad": sums[1]}, sums[2], alpha=1.0)
    >>> good.value > 0 > bad.value
    True
    """
    sources = Sources.of(parts, target, alpha, fit_intercept)
    everything = np.ones(len(sources.names))
    loss = sources.trusted_loss(everything, "the fit to all sources")
    found = []
    for s, name in enumerate(sources.names):
        others = everything.copy()
        others[s] = 0.0
        without = sources.trusted_loss(others, f"the fit without {name!r}")
        part, value = sources.parts[s], without - loss
        found.append(
            Influence(name, part.n_rows, part.weight, loss, without, value, value / max(loss, sources.rounding))
        )
    return tuple(found)


def best_mixture(
    parts: Mapping[str, Statistic],
    target: Statistic,
    alpha: float,
    *,
    fit_intercept: bool = True,
    max_iterations: int = 200,
    n_scouts: int = 64,
) -> Mixture:
    """Weigh the sources so that the fit to their mixture has the least held-out loss.

    Minimises, over factors a_s >= 0 with ``sum_s a_s W_s = sum_s W_s`` (W_s the weight of source s, so that alpha
    keeps its meaning), the mean squared error on the target of ``B(a), b(a)``, which minimise
    ``sum_s a_s sum_t w_t ||B'φ_t + b - y_t||² + alpha ||B||²`` (t over the rows of s). The gradient is exact, by
    implicit differentiation (Bengio, Gradient-based optimization of hyperparameters, 2000). The loss is smooth but
    not convex: sequential quadratic programming starts from the plain fit, from the shares of `stack`, from near
    each source alone and from all sources but one; the result is never worse (to 12 digits) than any of these, nor
    than a source alone. With S sources a step costs O(S D (D + K)) for mixing, and two solves.

    Parameters
    ----------
    parts : mapping of str to Moments
        Training sums of at least two sources.
    target : Statistic
        Held-out sums, of a fold that is not in `parts`. The loss found on it is optimistic by the choice of S - 1
        numbers: report that of a third fold.
    alpha : float
        Positive.
    fit_intercept : bool
    max_iterations : int
        Of each local search.
    n_scouts : int
        Further mixtures, drawn with a fixed seed, that are looked at; a search starts from those that are better
        than all found before.

    Raises
    ------
    SolveError
        If alpha is not positive, there are fewer than two sources, a source or the target has no weight, or numbers
        of features or targets differ.

    Warns
    -----
    IllConditionedWarning
        If rounding of the stored sums would decide the fit to the plain or to the best mixture.

    Examples
    --------
    >>> from streamfit.frame import Frame
    >>> from streamfit.moments import Moments
    >>> from streamfit.targets import Dense
    >>> x = np.arange(6.0)[:, None]
    >>> sums = [Moments.from_rows(x, y, Frame.identity(1, 1), Dense(1)) for y in (x, 2 * x, -3 * x)]
    >>> best = best_mixture({"near": sums[1], "far": sums[2]}, sums[0], alpha=1e-6)
    >>> {name: round(share, 4) for name, share in best.shares.items()}
    {'near': 0.8, 'far': 0.2}
    """
    sources = Sources.of(parts, target, alpha, fit_intercept)
    weights = np.array([part.weight for part in sources.parts])
    per_share = weights.sum() / weights
    plain, corners = weights / weights.sum(), np.eye(len(weights))
    plain_loss = sources.trusted_loss(np.ones(len(weights)), "the plain fit")
    stacked = np.array(list(stack_of(sources).shares.values()))
    without = (plain - corners * plain) / (1.0 - plain)[:, None]

    def held_out(shares: np.ndarray) -> float:
        return sources.loss(*sources.fit(shares * per_share))

    # The optimiser stops by absolute differences: one harmful source in the plain fit must not set their scale.
    unit = max(min(held_out(start) for start in (plain, stacked, *without, *corners)), sources.rounding)

    def objective(shares: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = sources.loss_and_gradient(np.maximum(shares, 0.0) * per_share)
        return loss / unit, gradient * per_share / unit

    def judge(shares: np.ndarray) -> _Point:
        loss, gradient = objective(shares)
        return _Point(loss, max(float(gradient @ shares - gradient.min()), 0.0), shares)

    def descend(start: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, int]:
        def reduced(part: np.ndarray) -> tuple[float, np.ndarray]:
            loss, gradient = objective(part @ corners[among])
            return loss, gradient[among]

        with warnings.catch_warnings():
            # Steps that leave the bounds by rounding are clipped, and said so.
            warnings.simplefilter("ignore", RuntimeWarning)
            found = scipy.optimize.minimize(
                reduced,
                start[among],
                jac=True,
                method="SLSQP",
                bounds=[(0.0, 1.0)] * int(among.sum()),
                constraints={"type": "eq", "fun": lambda p: p.sum() - 1.0, "jac": np.ones_like},
                options={"ftol": 1e-15, "maxiter": max_iterations},
            )
        shares = np.where(found.x > _ABSENT, found.x, 0.0)
        return shares / shares.sum() @ corners[among], int(found.nit)

    def search(start: np.ndarray) -> tuple[_Point, int]:
        best, n_iterations = judge(start), 0
        own, every = start > 0, np.ones(len(start), dtype=bool)
        # First among the sources that the start has: a wild one that is absent would set the length of every step.
        for among in (own, every) if 1 < own.sum() < len(start) else (every,):
            end, n_more = descend(best.shares, among)
            best, n_iterations = _best([best, judge(end)]), n_iterations + n_more
        return best, n_iterations

    runs = [search(start) for start in (plain, stacked, *without, *(0.9 * corners + 0.1 * plain))]
    # Half a unit of concentration: scouts stand near edges and corners too, where searches seldom pass.
    for scout in (*corners, *np.random.default_rng(0).dirichlet(np.full(len(plain), 0.5), n_scouts)):
        if held_out(scout) < unit * min(point.loss for point, _ in runs):
            runs.append(search(scout))
    best = _best([point for point, _ in runs])
    factors = best.shares * per_share
    sources.trusted_loss(factors, "the best mixture")
    ends = sorted(point.loss for point, _ in runs if point.gap <= _STATIONARY * abs(point.loss))
    return Mixture(
        factors=dict(zip(sources.names, factors.tolist(), strict=True)),
        shares=dict(zip(sources.names, best.shares.tolist(), strict=True)),
        loss=max(best.loss, 0.0) * unit,
        plain_loss=plain_loss,
        gap=best.gap * unit,
        n_iterations=sum(n_iterations for _, n_iterations in runs),
        n_starts=len(runs),
        n_minima=sum(i == 0 or end - ends[i - 1] > _STATIONARY * abs(end) for i, end in enumerate(ends)),
    )


def mixture_loss(
    parts: Mapping[str, Statistic],
    target: Statistic,
    alpha: float,
    factors: Mapping[str, float],
    *,
    fit_intercept: bool = True,
) -> float:
    """Held-out loss of the fit to a given mixture, for instance on rows that had no say in its factors.

    Parameters
    ----------
    parts : mapping of str to Moments
    target : Statistic
    alpha : float
    factors : mapping of str to float
        One a_s >= 0 for each source, not all 0.
    fit_intercept : bool

    Raises
    ------
    SolveError
        As in `best_mixture`, or if factors are missing or negative.
    """
    sources = Sources.of(parts, target, alpha, fit_intercept)
    given = np.array([factors.get(name, -1.0) for name in sources.names])
    if not (given >= 0).all() or not given.any():
        msg = f"factors {dict(factors)}"
        raise SolveError(msg, f"one >= 0 for each of {', '.join(sources.names)}, not all 0")
    return sources.trusted_loss(given, "the mixture")


class _Point(NamedTuple):
    """A mixture that a search has come to."""

    loss: float
    gap: float
    shares: np.ndarray


def _best(points: list[_Point]) -> _Point:
    """The point of least loss; of those that rounding cannot tell apart, the one of least gap."""
    least = min(point.loss for point in points)
    return min((p for p in points if p.loss <= least + _SAME * abs(least)), key=lambda p: p.gap)
