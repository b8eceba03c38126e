"""Combining experts: weights that maximise the likelihood of held-out text, a convex problem. Floor 6."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamfit.errors import SolveError

_EDGES = (1, 2, 4, 8, 32, 128)
"""Counts at which a matched suffix falls into the next bucket."""
_MIN_ROWS = 200
"""Held-out rows that a bucket needs for weights of its own."""


def n_buckets(order: int) -> int:
    """Buckets for an n-gram model of this order."""
    return 1 + (order - 1) * len(_EDGES)


def buckets(length: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Bucket of each row: how long a suffix of its context was seen in training, and how often.

    Parameters
    ----------
    length, count : integer arrays of shape (n_rows,)
        As `KneserNey.support` gives them.

    Returns
    -------
    int64 array of shape (n_rows,)
        0 where nothing of the context was seen.
    """
    level = np.searchsorted(np.array(_EDGES), count, side="right") - 1
    return np.where(length > 0, 1 + (length - 1) * len(_EDGES) + np.maximum(level, 0), 0)


@dataclass(frozen=True)
class MixtureFit:
    """Optimal weights and their certificate.

    Parameters
    ----------
    weights : array of shape (n_experts,)
        Nonnegative, adding up to 1.
    loss : float
        Mean negative log-likelihood, nats a row.
    gap : float
        Bound on loss - optimum, from the optimality conditions.
    """

    weights: np.ndarray
    loss: float
    gap: float


def fit_mixture(likelihoods: np.ndarray, *, tolerance: float = 1e-6, max_steps: int = 5000) -> MixtureFit:
    """Minimise ``-mean_t log(sum_e w_e p_e(t))`` over the simplex by expectation maximisation.

    The objective is convex and each step decreases it (Jelinek and Mercer 1980). With
    ``g_e = mean_t p_e(t) / sum w p(t)``, convexity bounds the distance to the optimum by ``max_e g_e - 1``.

    Parameters
    ----------
    likelihoods : array of shape (n_rows, n_experts)
        Probability of each observed token under each expert; some expert's must be positive in each row.
    tolerance : float
        Gap at which to stop, nats.
    max_steps : int

    Raises
    ------
    SolveError
        If there are no rows, or one that no expert allows.
    """
    p = np.asarray(likelihoods, dtype=np.float64)
    if not len(p) or not (p.max(axis=1) > 0).all():
        msg = f"{len(p)} rows of likelihoods, {int((p.max(axis=1) <= 0).sum()) if len(p) else 0} of them all zero"
        raise SolveError(msg, "a positive likelihood in each row", "give validation text, or mix in the unigram")
    weights = np.full(p.shape[1], 1.0 / p.shape[1])
    for _ in range(max_steps):
        mixed = p @ weights
        gradient = (p / mixed[:, None]).mean(axis=0)
        gap = float(gradient.max() - 1.0)
        if gap <= tolerance:
            break
        weights = weights * gradient
        weights /= weights.sum()
    return MixtureFit(weights, float(-np.log(p @ weights).mean()), gap)


def fit_buckets(likelihoods: np.ndarray, bucket: np.ndarray, count: int) -> np.ndarray:
    """Weights of each bucket; one with little held-out text takes those of all text.

    Parameters
    ----------
    likelihoods : array of shape (n_rows, n_experts)
    bucket : integer array of shape (n_rows,)
    count : int
        Number of buckets.

    Returns
    -------
    float64 array of shape (count, n_experts)
    """
    overall = fit_mixture(likelihoods).weights
    weights = np.tile(overall, (count, 1))
    for index in range(count):
        rows = bucket == index
        if rows.sum() >= _MIN_ROWS:
            weights[index] = fit_mixture(likelihoods[rows]).weights
    return weights
