"""What each data source is worth, and in what proportions to mix them: from stored moments, without the corpus.

Floor 3: imports moments, ridge, errors. Each source is centred once; a mixture is then a sum of D x D matrices.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize

from streamfit.arrays import to_host
from streamfit.centered import Centered
from streamfit.errors import SolveError
from streamfit.moments import Moments
from streamfit.solve.ridge import IllConditionedWarning, noise_share, weights_for, without_constants

_EPS = float(np.finfo(np.float64).eps)
_STATIONARY = 1e-5
"""Frank-Wolfe gap, relative to the loss, up to which a mixture counts as stationary, and losses as the same."""
_STACK_GAP = 1e-9
"""Frank-Wolfe gap, relative to the loss of the best single model, up to which a stack is accepted."""
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


@dataclass(frozen=True)
class Stack:
    """Weights of the sources' own models of least held-out loss, and a proof of optimality.

    Parameters
    ----------
    shares : dict of str to float
        Weight v_s >= 0 of the model fitted to source s alone. Sums to 1.
    losses : dict of str to float
        Held-out mean squared error per unit of weight, summed over targets, of each model alone.
    loss : float
        The same of the weighted mean of the models.
    gap : float
        Frank-Wolfe gap. The problem is convex, so the loss is above the optimum by no more (rounding of the stored
        sums aside).
    weights : float64 array of shape (n_features, n_targets)
        Of the weighted mean of the models, which is linear too.
    intercept : float64 array of shape (n_targets,)
    """

    shares: dict[str, float]
    losses: dict[str, float]
    loss: float
    gap: float
    weights: np.ndarray
    intercept: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, without the model."""
        return {"shares": self.shares, "losses": self.losses, "loss": self.loss, "gap": self.gap}


def influence(
    parts: Mapping[str, Moments], target: Moments, alpha: float, *, fit_intercept: bool = True
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
    target : Moments
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
    >>> from streamfit.targets import Dense
    >>> x = np.arange(6.0)[:, None]
    >>> sums = [Moments.from_rows(x, y, Frame.identity(1, 1), Dense(1)) for y in (x, -x, 2 * x)]
    >>> good, bad = influence({"good": sums[0], "bad": sums[1]}, sums[2], alpha=1.0)
    >>> good.value > 0 > bad.value
    True
    """
    sources = _Sources.of(parts, target, alpha, fit_intercept)
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
    parts: Mapping[str, Moments],
    target: Moments,
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
    each source alone and from all sources but one; the result is never worse than any of these, nor than a source
    alone. With S sources a step costs O(S D (D + K)) for mixing, and two solves.

    Parameters
    ----------
    parts : mapping of str to Moments
        Training sums of at least two sources.
    target : Moments
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
    >>> from streamfit.targets import Dense
    >>> x = np.arange(6.0)[:, None]
    >>> sums = [Moments.from_rows(x, y, Frame.identity(1, 1), Dense(1)) for y in (x, 2 * x, -3 * x)]
    >>> best = best_mixture({"near": sums[1], "far": sums[2]}, sums[0], alpha=1e-6)
    >>> {name: round(share, 4) for name, share in best.shares.items()}
    {'near': 0.8, 'far': 0.2}
    """
    sources = _Sources.of(parts, target, alpha, fit_intercept)
    weights = np.array([part.weight for part in sources.parts])
    per_share = weights.sum() / weights
    plain, corners = weights / weights.sum(), np.eye(len(weights))
    plain_loss = sources.trusted_loss(np.ones(len(weights)), "the plain fit")
    stacked = np.array(list(_stack(sources).shares.values()))
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
        # First among the sources that the start has: a wild one that is absent would set the length of every step.
        for among in [start > 0, weights > 0][0 if 1 < (start > 0).sum() < len(start) else 1 :]:
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
    parts: Mapping[str, Moments],
    target: Moments,
    alpha: float,
    factors: Mapping[str, float],
    *,
    fit_intercept: bool = True,
) -> float:
    """Held-out loss of the fit to a given mixture, for instance on rows that had no say in its factors.

    Parameters
    ----------
    parts : mapping of str to Moments
    target : Moments
    alpha : float
    factors : mapping of str to float
        One a_s >= 0 for each source, not all 0.
    fit_intercept : bool

    Raises
    ------
    SolveError
        As in `best_mixture`, or if factors are missing or negative.
    """
    sources = _Sources.of(parts, target, alpha, fit_intercept)
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


def stack(parts: Mapping[str, Moments], target: Moments, alpha: float, *, fit_intercept: bool = True) -> Stack:
    """Weigh the sources' own models so that their weighted mean has the least held-out loss.

    Model s minimises ``sum_t w_t ||B'φ_t + b - y_t||² + alpha ||B||²`` over the rows of source s alone. With f_s its
    predictions, minimises ``mean_t ||sum_s v_s f_s(φ_t) - y_t||²`` over v >= 0 with ``sum_s v_s = 1``: a convex
    quadratic v'Qv, Q the products of the models' errors on the target (Breiman, Stacked regressions, Machine
    Learning 24, 1996). It is solved as nonnegative least squares and proved by its Frank-Wolfe gap (Jaggi,
    Revisiting Frank-Wolfe, ICML 2013).

    Parameters
    ----------
    parts : mapping of str to Moments
        Training sums of at least two sources.
    target : Moments
        Held-out sums, of a fold that is not in `parts`.
    alpha : float
        Positive.
    fit_intercept : bool

    Raises
    ------
    SolveError
        If alpha is not positive, there are fewer than two sources, a source or the target has no weight, numbers of
        features or targets differ, or the gap is above 1e-9 of the best single model's loss.

    Warns
    -----
    IllConditionedWarning
        If rounding of the stored sums would decide one of the models.
    """
    sources = _Sources.of(parts, target, alpha, fit_intercept)
    for corner, name in zip(np.eye(len(sources.names)), sources.names, strict=True):
        sources.trusted_loss(corner, f"the fit to {name!r} alone")
    found = _stack(sources)
    limit = _STACK_GAP * min(found.losses.values()) + sources.rounding
    if not found.gap <= limit:
        msg = f"a stack with duality gap {found.gap:.3g}"
        raise SolveError(msg, f"at most {limit:.3g}", "raise alpha, or leave out sources that are nearly equal")
    return found


def _stack(sources: _Sources) -> Stack:
    """The stack, its gap not yet judged."""
    target, n = sources.target, len(sources.names)
    models = [sources.fit(corner) for corner in np.eye(n)]
    misses = np.array([sources.miss(c, b) for c, b in models])
    products = misses @ misses.T
    for s, (_, b) in enumerate(models):
        toward = target.gram @ b - target.cross
        for r in range(s + 1):
            # <B_r, G B_s> - <B_r, C> - <B_s, C> + ss_y
            rest = np.vdot(models[r][1], toward) - np.vdot(b, target.cross) + target.ss_y.sum()
            products[s, r] = products[r, s] = products[s, r] + rest / target.weight
    # Of t·v with v on the simplex, t² v'Qv + (t - 1)² is least over t at v'Qv / (1 + v'Qv), which grows with v'Qv: so
    # the constraint can be a row of least squares. Columns have unit length, lest a wild model drown the others.
    units = np.sqrt(np.maximum(np.diag(products), sources.rounding))
    eigenvalues, vectors = np.linalg.eigh(products / np.outer(units, units))
    rows = np.vstack([np.sqrt(np.maximum(eigenvalues, 0.0))[:, None] * vectors.T, units.min() / units])
    scaled, _ = scipy.optimize.nnls(rows, np.eye(n + 1)[n])
    shares = scaled / units
    shares /= shares.sum()
    gradient = 2.0 * products @ shares
    return Stack(
        shares=dict(zip(sources.names, shares.tolist(), strict=True)),
        losses=dict(zip(sources.names, np.maximum(np.diag(products), 0.0).tolist(), strict=True)),
        loss=max(float(shares @ products @ shares), 0.0),
        gap=max(float(gradient @ shares - gradient.min()), 0.0),
        weights=sum((v * b for v, (_, b) in zip(shares, models, strict=True)), np.zeros_like(target.cross)),
        intercept=sum(
            (v * (c.mean_y - c.mean_x @ b) for v, (c, b) in zip(shares, models, strict=True)),
            np.zeros_like(target.mean_y),
        ),
    )


@dataclass(frozen=True)
class _Sources:
    """Sources and target, centred once; about zero where no intercept is fitted."""

    names: tuple[str, ...]
    parts: tuple[Centered, ...]
    target: Centered
    alpha: float
    fit_intercept: bool

    @classmethod
    def of(cls, parts: Mapping[str, Moments], target: Moments, alpha: float, fit_intercept: bool) -> _Sources:
        if not (alpha > 0 and np.isfinite(alpha)):
            msg = f"alpha {alpha} for a mixture of sources"
            raise SolveError(msg, "a positive finite number")
        if len(parts) < 2:
            msg = f"{len(parts)} source(s): {', '.join(parts) or 'none'}"
            raise SolveError(msg, "at least 2", "label the shards of each source, or give more of them")
        shape = target.frame.n_features, target.frame.n_targets
        for name, m in parts.items():
            if (got := (m.frame.n_features, m.frame.n_targets)) != shape:
                msg = f"source {name!r} with {got[0]} features and {got[1]} targets"
                raise SolveError(msg, f"{shape[0]} and {shape[1]}, as held out", "count all with the same features")
        empty = [name for name, m in parts.items() if not float(to_host(m.weight.value())) > 0]
        if empty:
            msg = f"sources without weight: {', '.join(empty)}"
            raise SolveError(msg, "rows of positive weight in each", "leave them out")
        if not float(to_host(target.weight.value())) > 0:
            msg = f"held-out sums of {target.n_rows} rows without weight"
            raise SolveError(msg, "rows of positive weight", "hold out more shards")

        def read(m: Moments) -> Centered:
            c = m.centered()
            return c if fit_intercept else c.about(np.zeros_like(c.mean_x), np.zeros_like(c.mean_y))

        # A source must not pass on what rounding left of features that are constant in it: they vary in the mixture.
        clean = without_constants if fit_intercept else (lambda c: c)
        return cls(tuple(parts), tuple(clean(read(m)) for m in parts.values()), read(target), alpha, fit_intercept)

    @property
    def rounding(self) -> float:
        """What rounding may do to a held-out loss, roughly: no less tells two losses apart."""
        second = self.target.ss_y.sum() / self.target.weight + self.target.mean_y @ self.target.mean_y
        return float(1e3 * _EPS * second) + float(np.finfo(np.float64).tiny)

    def mix(self, factors: np.ndarray) -> Centered:
        """The sums, each times its factor, about their common means (the parallel axis theorem)."""
        weights = factors * [part.weight for part in self.parts]
        total = float(weights.sum())
        means_x, means_y = np.array([p.mean_x for p in self.parts]), np.array([p.mean_y for p in self.parts])
        mean_x, mean_y = weights @ means_x / total, weights @ means_y / total
        dx, dy = means_x - mean_x, means_y - mean_y
        weighted = dx * weights[:, None]
        gram, cross = weighted.T @ dx, weighted.T @ dy
        ss_y = weights @ (dy * dy)
        # Of squares of differences between means, when each mean is off by some units in the last place.
        noise = np.sum(np.abs(weighted) * (16.0 * _EPS * np.abs(means_x)), axis=0)
        for factor, part in zip(factors, self.parts, strict=True):
            if factor:
                gram += factor * part.gram
                cross += factor * part.cross
                ss_y += factor * part.ss_y
                noise += factor * part.noise
        n_rows = sum(part.n_rows for factor, part in zip(factors, self.parts, strict=True) if factor)
        mixed = Centered(n_rows, total, mean_x, mean_y, gram, cross, ss_y, noise)
        return without_constants(mixed) if self.fit_intercept else mixed

    def fit(self, factors: np.ndarray) -> tuple[Centered, np.ndarray]:
        """The mixture and its weights B; the intercept is ``mean_y - B'mean_x``."""
        mixed = self.mix(factors)
        return mixed, weights_for(mixed, self.alpha)

    def miss(self, mixed: Centered, b: np.ndarray) -> np.ndarray:
        """Mean error on the target, shape (n_targets,), of B with the intercept that goes with the mixture."""
        return np.asarray((self.target.mean_x - mixed.mean_x) @ b - (self.target.mean_y - mixed.mean_y))

    def loss(self, mixed: Centered, b: np.ndarray) -> float:
        """Held-out mean squared error: the variance of the errors and the square of their mean."""
        t, miss = self.target, self.miss(mixed, b)
        spread = t.ss_y.sum() + np.vdot(b, t.gram @ b - 2.0 * t.cross)
        return float(spread / t.weight + miss @ miss)

    def trusted_loss(self, factors: np.ndarray, what: str) -> float:
        """Held-out loss of a mixture, with a warning where rounding of the stored sums decides its fit."""
        mixed, b = self.fit(factors)
        if (share := noise_share(mixed, self.alpha)) > 1.0:
            warnings.warn(
                f"alpha {self.alpha:g} is below what rounding of the stored sums allows for {what} (its weights may "
                f"change by {share:.2g} times themselves): raise alpha, or count with precision 'float64'",
                IllConditionedWarning,
                stacklevel=3,
            )
        return max(self.loss(mixed, b), 0.0)

    def loss_and_gradient(self, factors: np.ndarray) -> tuple[float, np.ndarray]:
        """Held-out loss L of a mixture, and its derivatives by the factors.

        The joint stationarity of B and b is differentiated. With A = G + αI of the mixture, m and W its mean and
        weight, M the target's weight, e its mean error and r_s that of source s, let
        ``A U = (G_target B - C_target) / M + (mean_target - m) e'``. Then
        ``dL/da_s = -2 (<U, G_s B - C_s> + W_s <U'(mean_s - m) + e / W, r_s>)``.
        """
        t, (mixed, b) = self.target, self.fit(factors)
        miss = self.miss(mixed, b)
        toward = t.gram @ b - t.cross
        loss = (t.ss_y.sum() + np.vdot(b, toward - t.cross)) / t.weight + miss @ miss
        pull = toward / t.weight + np.outer(t.mean_x - mixed.mean_x, miss)
        u = weights_for(replace(mixed, cross=pull), self.alpha)
        outer, gradient = u @ b.T, np.empty(len(self.parts))
        for s, part in enumerate(self.parts):
            dx = part.mean_x - mixed.mean_x
            residual = dx @ b - (part.mean_y - mixed.mean_y)
            level = (dx @ u + miss / mixed.weight) @ residual
            gradient[s] = -2.0 * (np.vdot(outer, part.gram) - np.vdot(u, part.cross) + part.weight * level)
        return float(loss), gradient
