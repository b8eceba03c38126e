"""What stored sums say beyond the weights: learning curves, parts of R², what is in the store and since when. Floor 7.

Imports solve, store. The corpus is not read.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from streamfit.centered import Centered, Statistic, as_centered
from streamfit.density import DENSE_FEATURES
from streamfit.features import Chain, Concat, FeatureMap
from streamfit.solve import held_out_r2
from streamfit.solve.ridge import weights_for, without_constants
from streamfit.sparse_moments import SparseMoments
from streamfit.store import Store

_EVERY_FOLD = 512
"""Features up to which each fold is held out in turn; above, one is."""
_MOST = 20


def dense_features(total: Statistic) -> np.ndarray | None:
    """Features to look at with a dense matrix: all, those of sparse sums that occur, or None if they are too many."""
    if not isinstance(total, SparseMoments):
        return np.arange(total.frame.n_features)
    active = total.active if total.gram.n_entries else np.zeros(1, np.int64)
    return active if len(active) <= DENSE_FEATURES else None


def centered_of(total: Statistic, kept: np.ndarray, *, fit_intercept: bool) -> Centered:
    """Centred sums of some features, or about zero without an intercept, as they are solved."""
    c = as_centered(total.narrowed(kept) if isinstance(total, SparseMoments) else total)
    return without_constants(c) if fit_intercept else c.about(np.zeros_like(c.mean_x), np.zeros_like(c.mean_y))


def learning_curve(
    store: Store, alpha: float, points: int = 6, *, fit_intercept: bool = True, total: Statistic | None = None
) -> list[dict[str, Any]]:
    """Held-out R² against rows of the other folds, segments coming in the order in which they were counted.

    Parameters
    ----------
    store : Store
    alpha : float
    points : int
    fit_intercept : bool
    total : Moments, Triangle or SparseMoments, optional
        Of the whole store, if it is there already.

    Returns
    -------
    list of dict
        `fold`, `rows`, `r2`, `mse`: the mean squared error, summed over targets. Empty with one fold only, or too many
        sparse features.
    """
    segments = store.head().segments
    folds = sorted({segment.fold for segment in segments})
    kept = dense_features(store.moments() if total is None else total)
    if len(folds) < 2 or kept is None:
        return []
    found: list[dict[str, Any]] = []
    for fold in folds if len(kept) <= _EVERY_FOLD else folds[:1]:
        test = as_centered(_narrow(store.moments(lambda s, fold=fold: s.fold == fold), kept))  # type: ignore[misc]
        if not test.ss_y.sum() > 0:
            continue
        others = [s for s in segments if s.fold != fold]
        running, done = store.zeros(), 0
        for step in np.unique(np.linspace(0, len(others), points + 1).astype(int))[1:].tolist():
            for segment in others[done:step]:
                running = running + store.read(segment)
            done = step
            if not running.total_weight > 0:
                continue
            train = centered_of(running, kept, fit_intercept=fit_intercept)
            weights = weights_for(train, alpha)
            r2 = held_out_r2(weights, train, test)
            spread = float(test.about(train.mean_x, train.mean_y).ss_y.sum()) / test.weight
            found.append({"fold": fold, "rows": running.n_rows, "r2": r2, "mse": (1.0 - r2) * spread})
    return found


def _narrow(total: Statistic, kept: np.ndarray) -> Statistic:
    return total.narrowed(kept) if isinstance(total, SparseMoments) else total


def feature_shares(
    store: Store, total: Statistic, weights: np.ndarray, names: list[str], *, fit_intercept: bool = True
) -> list[dict[str, Any]]:
    """What each block of features contributes to R², by the product measure: see `contributions`.

    Blocks are the maps that features are made by; of one map alone, its features, the largest by themselves.

    Parameters
    ----------
    store : Store
    total : Moments, Triangle or SparseMoments
    weights : array of shape (n_features, n_targets)
    names : list of str
        Of the features.
    fit_intercept : bool

    Returns
    -------
    list of dict
        `block`, `features`, `r2`; they add up to R² on the training rows. Empty where no target varies, or with too
        many sparse features.
    """
    kept = dense_features(total)
    if kept is None:
        return []
    c, b = centered_of(total, kept, fit_intercept=fit_intercept), weights[kept]
    if not c.ss_y.sum() > 0:
        return []
    each = np.sum(b * (2.0 * c.cross - c.gram @ b), axis=1) / float(c.ss_y.sum())
    if isinstance(features := _last(store.header.features), Concat):
        blocks = features.blocks().items()
        return [{"block": n, "features": s.stop - s.start, "r2": float(each[s].sum())} for n, s in blocks]
    order = np.argsort(-np.abs(each), kind="stable")
    found = [{"block": names[kept[j]], "features": 1, "r2": float(each[j])} for j in order[:_MOST]]
    if len(rest := order[_MOST:]):
        found.append({"block": f"{len(rest):,} others", "features": len(rest), "r2": float(each[rest].sum())})
    return found


def _last(features: FeatureMap) -> FeatureMap:
    """The map that gives the features, whatever stands before it."""
    return _last(features.outer) if isinstance(features, Chain) else features


def segment_spans(store: Store) -> list[dict[str, Any]]:
    """Every segment that ever counted: since which commit, and until which if it counts no longer.

    Returns
    -------
    list of dict
        `segment`, `source`, `fold`, `time` (its label, if any), `rows`, `shards`, `since`, `until`, `why`.
    """
    records = store.records()
    found: dict[str, dict[str, Any]] = {}
    before: set[str] = set()
    for record in records:
        live = {segment.id for segment in record.segments}
        for segment in record.segments:
            if segment.id not in found:
                found[segment.id] = {
                    "segment": segment.id[:12],
                    "source": segment.source,
                    "fold": segment.fold,
                    "time": segment.label("time") or "",
                    "rows": segment.n_rows,
                    "shards": segment.n_shards,
                    "since": record.sequence,
                    "until": None,
                    "why": "",
                }
        for gone in before - live:
            found[gone] |= {"until": record.sequence, "why": record.action}
        before = live
    return list(found.values())


def rows_by_commit(store: Store) -> list[dict[str, Any]]:
    """Rows of each source after each commit.

    Returns
    -------
    list of dict
        `commit`, `when`, `action`, `source`, `rows`.
    """
    found = []
    for record in store.records():
        rows: dict[str, int] = {}
        for segment in record.segments:
            rows[segment.source] = rows.get(segment.source, 0) + segment.n_rows
        about = {"commit": record.sequence, "when": record.when, "action": record.action}
        found += [{**about, "source": source, "rows": n} for source, n in sorted(rows.items())]
    return found
