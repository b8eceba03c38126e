"""Leaving features out, cheapest first: what each costs, exactly, and what remains, from moments alone.

Floor 3: imports moments, centered, inverse, ridge, errors. The inverse of the system is downdated, so that a removal
costs O(D²), whatever the number of targets.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamfit.centered import Centered, Statistic, as_centered
from streamfit.errors import SolveError
from streamfit.solve.inverse import DowndatedInverse
from streamfit.solve.ridge import IllConditionedWarning, Solution, noise_share, solve, without_constants


@dataclass(frozen=True)
class RemovalCosts:
    """By how much the loss rises when blocks of features leave and the others are solved for again.

    Parameters
    ----------
    blocks : tuple of tuples of int
    increases : array of shape (n_blocks,)
        In the units of the loss: a sum over rows and targets of weighted squared error, and the penalty.
    loss : float
        With all features.
    """

    blocks: tuple[tuple[int, ...], ...]
    increases: np.ndarray
    loss: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"blocks": [list(b) for b in self.blocks], "increases": self.increases.tolist(), "loss": self.loss}


@dataclass(frozen=True)
class Pruned:
    """Features that stay, the model solved from their sums, and the curve on the way there.

    Parameters
    ----------
    kept : integer array of shape (n_kept,)
        Indices of the features that stay, ascending.
    steps : tuple of tuples of int
        Features that left, step by step.
    n_left : integer array of shape (n_steps + 1,)
        Features left before the first step and after each.
    losses : array of shape (n_steps + 1,)
        Penalised loss of the best fit to the features left. Never falls.
    held_out : array of shape (n_steps + 1,), or None
        Mean squared error per unit of held-out weight, summed over targets, of these fits.
    solution : Solution
        Of the features kept: weights of shape (n_kept, n_targets), solved from the sums, with its certificate.
    n_inverses : int
        How often the inverse was computed anew.
    drift : float
        Largest difference between a loss from downdates and from a new inverse, relative to the loss.
    """

    kept: np.ndarray
    steps: tuple[tuple[int, ...], ...]
    n_left: np.ndarray
    losses: np.ndarray
    held_out: np.ndarray | None
    solution: Solution
    n_inverses: int
    drift: float

    @property
    def order(self) -> np.ndarray:
        """Indices of the features that left, in order."""
        return np.array([j for step in self.steps for j in step], dtype=np.int64)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, without the model."""
        return {
            "kept": self.kept.tolist(),
            "steps": [list(step) for step in self.steps],
            "n_left": self.n_left.tolist(),
            "losses": self.losses.tolist(),
            "held_out": None if self.held_out is None else self.held_out.tolist(),
            "n_inverses": self.n_inverses,
            "drift": self.drift,
            "certificate": self.solution.certificate.to_json(),
        }


def removal_costs(
    moments: Statistic | Centered,
    alpha: float,
    blocks: Sequence[Sequence[int]] | None = None,
    *,
    fit_intercept: bool = True,
) -> RemovalCosts:
    """Price the removal of each block of features, alone and exactly.

    Of ``L(B) = sum_t w_t ||B'φ_t + b - y_t||² + alpha ||B||²`` at its minimum. With P = (G + alpha I)^-1, the minimum
    over the features outside of J is higher by ``trace(B_J' (P_JJ)^-1 B_J)``; for one feature j by
    ``||B_j||² / P_jj`` (Hassibi and Stork, Second order derivatives for network pruning: optimal brain surgeon,
    NIPS 5, 1993). Not the sum over a block of its features' costs.

    Parameters
    ----------
    moments : Moments or Centered
    alpha : float
        Nonnegative.
    blocks : sequence of sequences of int, optional
        They may overlap. Each feature alone without it.
    fit_intercept : bool

    Raises
    ------
    SolveError
        If alpha is negative or not finite, the system is singular or nearly so, or a block is empty, names a feature
        twice, or one that does not exist.

    Warns
    -----
    IllConditionedWarning
        If rounding of the stored sums would decide the weights.

    Examples
    --------
    >>> from streamfit.frame import Frame
    >>> from streamfit.moments import Moments
    >>> from streamfit.targets import Dense
    >>> x = np.array([[1.0, 1], [-1, 1], [1, -1], [-1, -1]])
    >>> m = Moments.from_rows(x, x @ [[3.0], [1]], Frame.identity(2, 1), Dense(1))
    >>> removal_costs(m, 0.0, [[0], [1], [0, 1]]).increases.round(6).tolist()
    [36.0, 4.0, 40.0]
    """
    c = _read(moments, alpha, fit_intercept)
    groups = [np.array([j]) for j in range(len(c.gram))] if blocks is None else _blocks(blocks, len(c.gram))
    state = _state(c, alpha, None)
    return RemovalCosts(tuple(tuple(g.tolist()) for g in groups), state.costs(groups), state.loss)


def prune(
    moments: Statistic | Centered,
    alpha: float,
    *,
    n_features: int | None = None,
    budget: float | None = None,
    keep: Sequence[int] = (),
    groups: Sequence[Sequence[int]] | None = None,
    at_once: int = 1,
    held_out: Statistic | Centered | None = None,
    fit_intercept: bool = True,
) -> Pruned:
    """Remove the cheapest features one after another, and solve for those that stay.

    Each step removes what raises the minimum of ``sum_t w_t ||B'φ_t + b - y_t||² + alpha ||B||²`` least, the other
    features solved for again, exactly: see `removal_costs`. Backward elimination is greedy: the best subset may be
    another. Removing J changes ``P = (G + alpha I)^-1`` to its Schur complement ``P - P_:J (P_JJ)^-1 P_J:`` and B to
    ``B - P_:J (P_JJ)^-1 B_J`` (Golub and Van Loan, Matrix computations, 2.1.4 and 6.5).

    Downdates lose digits. Each removal's cost is therefore taken again from a refined column of P; where the two
    differ by more than 1e-9 of the loss, and at the latest when a quarter of the features has left, P is
    computed anew. The final weights come from `solve`, whatever the downdates did.

    Parameters
    ----------
    moments : Moments or Centered
    alpha : float
        Nonnegative.
    n_features : int, optional
        Remove until at most so many are left, at least 1.
    budget : float, optional
        Remove while the loss stays within (1 + budget) times that with all features. A group that would go beyond is
        passed over for one that does not.
    keep : sequence of int
        Features that stay, and their groups with them.
    groups : sequence of sequences of int, optional
        Features that leave together, for instance all columns of a center; in no two groups. A feature in none is a
        group of its own. Groups of several sizes compare by the increase of the loss per feature. One group stays.
    at_once : int
        Groups that leave before costs are compared again: faster, but two that stand in for each other may leave
        together. The losses stay exact.
    held_out : Moments or Centered, optional
        Sums of other rows, on which the curve is evaluated too. The choice does not look at them.
    fit_intercept : bool

    Raises
    ------
    SolveError
        If alpha is negative or not finite; the system is singular or nearly so; neither target nor budget are given,
        or out of range; groups overlap or name features that do not exist; or held-out sums are of other features.

    Warns
    -----
    IllConditionedWarning
        If rounding of the stored sums would decide the weights.

    Notes
    -----
    O(D²) work a removal, O(D³ + D² min(K, D)) in all, and memory for about six D x D matrices besides the moments:
    targets enter by the triangular factor of their cross moments alone, min(K, D) columns (min(K, 2 D) with held-out
    sums).

    Examples
    --------
    >>> from streamfit.frame import Frame
    >>> from streamfit.moments import Moments
    >>> from streamfit.targets import Dense
    >>> x = np.array([[1.0, 1], [-1, 1], [1, -1], [-1, -1]])
    >>> pruned = prune(Moments.from_rows(x, x @ [[3.0], [1]], Frame.identity(2, 1), Dense(1)), 0.0, n_features=1)
    >>> pruned.kept.tolist(), pruned.solution.weights.round(6).tolist(), pruned.losses.round(6).tolist()
    ([0], [[3.0]], [0.0, 4.0])
    """
    c = _read(moments, alpha, fit_intercept)
    d = len(c.gram)
    _check_options(n_features, budget, at_once)
    units, fixed = _groups(groups, keep, d)
    test = None if held_out is None else _held_out(held_out, c)
    state = _state(c, alpha, test)
    target = 1 if n_features is None else n_features
    limit = np.inf if budget is None else state.loss * (1.0 + budget)
    sizes = np.array([len(g) for g in units], dtype=np.int64)
    live = np.arange(len(units))
    steps: list[tuple[int, ...]] = []
    curve = [(d, state.loss, state.held_out)]
    while (left := fixed + int(sizes[live].sum())) > target and len(live) > int(not fixed):
        costs = state.costs([units[i] for i in live])
        affordable = state.loss + costs <= limit
        if not affordable.any():
            break
        ranked = live[affordable][np.argsort((costs / sizes[live])[affordable], kind="stable")]
        enough = int(np.searchsorted(np.cumsum(sizes[ranked]), left - target)) + 1
        count = min(at_once, enough, len(ranked), len(live) - int(not fixed))
        removal = state.price(np.concatenate([units[i] for i in ranked[:count]]))
        while state.loss + removal.increase > limit and count > 1:
            # Each is within the budget alone, together they are not.
            count //= 2
            removal = state.price(np.concatenate([units[i] for i in ranked[:count]]))
        if state.stale(removal):
            state.invert()
            continue
        state.remove(removal)
        live = np.setdiff1d(live, ranked[:count], assume_unique=True)
        steps.append(tuple(int(j) for i in ranked[:count] for j in units[i]))
        curve.append((left - sum(sizes[ranked[:count]]), state.loss, state.held_out))
    kept = np.setdiff1d(np.arange(d), [j for step in steps for j in step])
    n_left, losses, errors = zip(*curve, strict=True)
    return Pruned(
        kept=kept,
        steps=tuple(steps),
        n_left=np.array(n_left, dtype=np.int64),
        losses=np.array(losses),
        held_out=None if test is None else np.array(errors),
        solution=solve(_columns(c, kept), alpha, fit_intercept=fit_intercept),
        n_inverses=state.n_inverses,
        drift=state.drift,
    )


def _state(c: Centered, alpha: float, test: Centered | None) -> DowndatedInverse:
    state = DowndatedInverse(c, alpha, test)
    if (share := noise_share(c, alpha)) > 1.0:
        warnings.warn(
            f"alpha {alpha:g} is below what rounding of the stored sums allows (its weights may change by {share:.2g} "
            "times themselves): costs of removals are uncertain; raise alpha, or count with precision 'float64'",
            IllConditionedWarning,
            stacklevel=3,
        )
    return state


def _read(moments: Statistic | Centered, alpha: float, fit_intercept: bool) -> Centered:
    if not (alpha >= 0 and np.isfinite(alpha)):
        msg = f"alpha {alpha}"
        raise SolveError(msg, "a finite number >= 0")
    c = as_centered(moments)
    return without_constants(c) if fit_intercept else c.about(np.zeros_like(c.mean_x), np.zeros_like(c.mean_y))


def _held_out(moments: Statistic | Centered, train: Centered) -> Centered:
    """Held-out sums about the means that go with the training intercept."""
    c = as_centered(moments)
    if c.cross.shape != train.cross.shape:
        msg = f"held-out sums of {c.cross.shape[0]} features and {c.cross.shape[1]} targets"
        raise SolveError(msg, "{} and {}".format(*train.cross.shape), "count all with the same features")
    return c.about(train.mean_x, train.mean_y)


def _columns(c: Centered, kept: np.ndarray) -> Centered:
    """The sums of some features."""
    return replace(
        c, mean_x=c.mean_x[kept], gram=c.gram[np.ix_(kept, kept)], cross=c.cross[kept], noise=c.noise[kept], hidden=None
    )


def _check_options(n_features: int | None, budget: float | None, at_once: int) -> None:
    if n_features is None and budget is None:
        msg = "neither a number of features nor a budget"
        raise SolveError(msg, "one of them", "give n_features=1 for the whole curve")
    if n_features is not None and n_features < 1:
        msg = f"{n_features} features to keep"
        raise SolveError(msg, "at least 1")
    if budget is not None and not (budget >= 0 and np.isfinite(budget)):
        msg = f"a budget of {budget}"
        raise SolveError(msg, "a finite relative increase of the loss, >= 0")
    if at_once < 1:
        msg = f"{at_once} groups at once"
        raise SolveError(msg, "at least 1")


def _blocks(blocks: Sequence[Sequence[int]], n_features: int) -> list[np.ndarray]:
    found = [np.asarray(block, dtype=np.int64).reshape(-1) for block in blocks]
    for block in found:
        if not len(block) or len(np.unique(block)) < len(block) or block.min() < 0 or block.max() >= n_features:
            msg = f"a block of features {block.tolist()}"
            raise SolveError(msg, f"one or more different indices in [0, {n_features})")
    return found


def _groups(
    groups: Sequence[Sequence[int]] | None, keep: Sequence[int], n_features: int
) -> tuple[list[np.ndarray], int]:
    """Groups that may leave, and how many features may not."""
    found = _blocks(groups or (), n_features)
    times = np.bincount(np.concatenate([np.empty(0, np.int64), *found]), minlength=n_features)
    if (times > 1).any():
        msg = f"feature {int(np.argmax(times > 1))} in more than one group"
        raise SolveError(msg, "disjoint groups")
    found += [np.array([j]) for j in np.flatnonzero(times == 0)]
    stay = _blocks([keep], n_features)[0] if len(keep) else np.empty(0, np.int64)
    leaving = [g for g in found if not np.isin(g, stay).any()]
    return leaving, n_features - sum(len(g) for g in leaving)
