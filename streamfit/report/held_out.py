"""Residuals on rows that a fit has not seen, and whether its uncertainty is what they show. Floor 7.

A fold is left out of the sums, the rest is solved again, and some of the fold's rows are read: nothing is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.special

from streamfit.corpus import Source
from streamfit.errors import SolveError
from streamfit.models import LinearModel
from streamfit.moments import Moments
from streamfit.plan import Shard
from streamfit.solve import posterior, solve
from streamfit.store import Store

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_POSTERIOR = 4096
"""Features up to which the posterior is taken."""


@dataclass(frozen=True)
class HeldOut:
    """Rows of one fold and what a fit of the others predicts for them.

    Parameters
    ----------
    fold : int
    predicted : array of shape (n_rows, n_targets)
    observed : array of shape (n_rows, n_targets)
        Indicators, where targets are classes.
    std : array of shape (n_rows, n_targets), or None
        Predictive standard deviation; None for classes, or where there is no posterior.
    """

    fold: int
    predicted: np.ndarray
    observed: np.ndarray
    std: np.ndarray | None

    @property
    def residuals(self) -> np.ndarray:
        """Observed less predicted."""
        return np.asarray(self.observed - self.predicted)

    def coverage(self) -> list[dict[str, float]]:
        """How often targets lie in intervals that should hold them with some probability: `nominal`, `actual`."""
        if self.std is None:
            return []
        away = np.abs(self.residuals) / np.maximum(self.std, np.finfo(float).tiny)
        inside = [float(np.mean(away < scipy.special.ndtri(0.5 + level / 2))) for level in LEVELS]
        return [{"nominal": level, "actual": share} for level, share in zip(LEVELS, inside, strict=True)]

    def by_prediction(self, bins: int = 12) -> list[dict[str, float]]:
        """Residuals against predictions: bins of equal numbers of rows, and quantiles in each."""
        predicted, residuals = self.predicted.ravel(), self.residuals.ravel()
        order = np.argsort(predicted, kind="stable")
        parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
        names = {"low": 0.1, "median": 0.5, "high": 0.9}
        return [
            {
                "predicted": float(predicted[part].mean()),
                "rows": len(part),
                **{name: float(np.quantile(residuals[part], q)) for name, q in names.items()},
            }
            for part in parts
        ]


def read_held_out(
    store: Store,
    source: Source,
    alpha: float,
    *,
    fit_intercept: bool = True,
    fold: int | None = None,
    rows: int = 20_000,
) -> HeldOut | None:
    """Read rows of one fold, and predict them by a fit of the others.

    Parameters
    ----------
    store : Store
        With exact sums, of at least two folds.
    source : Source
        Reads the shards of its ledger.
    alpha : float
    fit_intercept : bool
    fold : int, optional
        The first that there is without it.
    rows : int
        At most so many, of shards in the order of their content ids, which is as good as random.

    Returns
    -------
    HeldOut or None
        None where there is one fold, or sums of another kind.

    Raises
    ------
    ShardError
        If a shard is no longer what was counted.
    """
    segments = store.head().segments
    folds = sorted({segment.fold for segment in segments})
    if len(folds) < 2 or store.header.statistic != "gram":
        return None
    chosen = folds[0] if fold is None else fold
    train = store.moments(lambda s: s.fold != chosen)
    assert isinstance(train, Moments)
    features, one_hot = store.header.features, store.header.targets.one_hot
    found = None
    if not one_hot and features.n_features <= _POSTERIOR:
        try:
            found = posterior(train, alpha, fit_intercept=fit_intercept)
        except SolveError:
            found = None  # no more rows than degrees of freedom
    solution = solve(train, alpha, fit_intercept=fit_intercept) if found is None else found.solution
    model = LinearModel(features, solution, posterior=found)
    shards = sorted((s for s in store.counted().values() if s.fold(store.header.n_folds) == chosen), key=_content)
    predicted, observed, spread = [], [], []
    for x, y in _some(source, shards, rows):
        predicted.append(model.predict(x))
        observed.append(np.eye(store.header.targets.n_targets)[y] if one_hot else y)
        if found is not None:
            spread.append(model.predict_std(x))
    if not predicted:
        return None
    std = np.concatenate(spread) if spread else None
    return HeldOut(chosen, np.concatenate(predicted), np.concatenate(observed), std)


def _content(shard: Shard) -> str:
    return shard.content_id


def _some(source: Source, shards: Sequence[Shard], rows: int) -> Iterator[tuple[Any, np.ndarray]]:
    left = rows
    for shard in shards:
        for block in source.read(replace(shard, stamp=0)):
            if left <= 0:
                return
            yield block.x[:left], block.y[:left]
            left -= min(left, len(block.y))


def reliability(confidence: np.ndarray, hits: np.ndarray, bins: int = 10) -> list[dict[str, float]]:
    """How often what was predicted with some confidence comes true.

    Parameters
    ----------
    confidence : array of shape (n,)
        Probabilities, or scores that estimate them.
    hits : boolean array of shape (n,)
    bins : int
        Of equal numbers of predictions.

    Returns
    -------
    list of dict
        `confidence` (mean), `accuracy`, `rows`.
    """
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    return [
        {"confidence": float(confidence[p].mean()), "accuracy": float(hits[p].mean()), "rows": len(p)} for p in parts
    ]


def expected_error(bins: Sequence[dict[str, float]]) -> float:
    """Expected calibration error: mean distance of confidence and accuracy, over predictions."""
    n = sum(each["rows"] for each in bins)
    return float(sum(each["rows"] * abs(each["confidence"] - each["accuracy"]) for each in bins) / n)
