"""How rows change with time, from the sums of a store alone: each period against the fit of all that came before it.

Floor 7. Nothing is read: a period's loss under other weights is a form of its own sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from streamfit.centered import Centered, Statistic
from streamfit.errors import MismatchError, SolveError
from streamfit.feature_names import names_of
from streamfit.solve import Solution, solve, solve_triangle
from streamfit.sparse_moments import SparseMoments
from streamfit.store import Segment, Store
from streamfit.triangle import Triangle

_CONSTANT = 1e-12


@dataclass(frozen=True)
class Period:
    """One period, seen from all before it.

    Parameters
    ----------
    period : str
        Value of the label.
    n_rows, n_before : int
        Its rows, and those before it.
    r2_before : float
        Of the fit of what came before, on what came before.
    r2 : float
        Of the same fit on the period: what a model of the day before would have been worth.
    r2_refit : float
        On the period, of a fit that has seen it as well.
    bias : tuple of float
        Mean of target minus prediction, in the target's own units.
    shift : float
        Largest move of a feature's mean, in standard deviations of the time before.
    feature : str
        The one that moved.
    weights_moved : float
        Length of the change of weights that the period makes, relative to theirs.
    """

    period: str
    n_rows: int
    n_before: int
    r2_before: float
    r2: float
    r2_refit: float
    bias: tuple[float, ...]
    shift: float
    feature: str
    weights_moved: float

    @property
    def lost(self) -> float:
        """R² that the fit of before loses on the period."""
        return self.r2_before - self.r2

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "bias": [*self.bias], "lost": self.lost}


def drift(store: Store, *, by: str = "time", alpha: float = 1.0, last: int | None = None) -> list[Period]:
    """Go through the periods of a store.

    Parameters
    ----------
    store : Store
    by : str
        Label whose values are the periods, in the order of their text.
    alpha : float
    last : int, optional
        Only so many of the newest periods; all but the first without it.

    Returns
    -------
    list of Period
        The first period has nothing before it, and is not in it.

    Raises
    ------
    MismatchError
        If there are fewer than two periods.
    SolveError
        If the store's Gram matrix is sparse.
    """
    head = store.head()
    periods = sorted({value for s in head.segments if s.n_rows and (value := s.label(by)) is not None})
    if len(periods) < 2:
        labels = sorted({"source", *(name for s in head.segments for name, _ in s.labels)})
        msg = f"{len(periods)} value(s) of the label {by!r} in {store.place}"
        raise MismatchError(msg, f"at least two; there are the labels {', '.join(labels)}", "`streamfit add --label`")
    start = 1 if last is None else max(1, len(periods) - last)
    before = store.moments(_of(by, frozenset(periods[:start])))
    found = []
    for period in periods[start:]:
        now = store.moments(_of(by, frozenset([period])))
        if isinstance(before, SparseMoments) or isinstance(now, SparseMoments):
            msg = f"{store.place} keeps a sparse Gram matrix"
            raise SolveError(msg, "a dense one, for the loss of a period under other weights")
        both = before + now
        found.append(_seen(period, before, now, both, alpha, names_of(store.header)))
        before = both
    return found


def _of(by: str, values: frozenset[str]) -> Callable[[Segment], bool]:
    return lambda segment: segment.label(by) in values


def _seen(
    period: str, before: Statistic, now: Statistic, both: Statistic, alpha: float, names: list[str] | None
) -> Period:
    old, new = _solved(before, alpha), _solved(both, alpha)
    past, present = before.centered(), now.centered()
    spread = np.sqrt(np.maximum(np.diag(past.gram), 0.0) / past.weight)
    varies = spread > _CONSTANT * np.abs(past.mean_x)
    moved = np.zeros_like(spread)
    np.divide(np.abs(present.mean_x - past.mean_x), spread, out=moved, where=varies)
    largest = int(np.argmax(moved))
    bias = present.mean_y - present.mean_x @ old.weights - old.intercept
    size = float(np.linalg.norm(old.weights))
    return Period(
        period=period,
        n_rows=now.n_rows,
        n_before=before.n_rows,
        r2_before=r2_of(old, past),
        r2=r2_of(old, present),
        r2_refit=r2_of(new, present),
        bias=tuple(bias.tolist()),
        shift=float(moved[largest]),
        feature=names[largest] if names else str(largest),
        weights_moved=float(np.linalg.norm(new.weights - old.weights)) / size if size else 0.0,
    )


def _solved(sums: Statistic, alpha: float) -> Solution:
    return solve_triangle(sums, alpha) if isinstance(sums, Triangle) else solve(sums, alpha)


def r2_of(solution: Solution, sums: Centered) -> float:
    """Share of the targets' variance that weights explain, on rows of which there are only sums.

    Parameters
    ----------
    solution : Solution
    sums : Centered
        ``sum w |y - B'φ - b|²`` is ``SS - 2 <B, C> + <B, G B> + W |mean_y - B' mean_x - b|²`` of sums about the means.

    Returns
    -------
    float
        All targets together; NaN where they do not vary.
    """
    b = solution.weights
    offset = sums.mean_y - sums.mean_x @ b - solution.intercept
    error = float(sums.ss_y.sum() - 2 * np.sum(b * sums.cross) + np.sum(b * (sums.gram @ b)))
    total = float(sums.ss_y.sum())
    return 1.0 - (error + sums.weight * float(offset @ offset)) / total if total > 0 else float("nan")
