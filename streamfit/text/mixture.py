"""Combining experts: weights that maximise the likelihood of held-out text, a convex problem. Floor 6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.optimize

from streamfit.errors import SolveError

_EDGES = (1, 2, 4, 8, 32, 128)
"""Counts at which a matched suffix falls into the next bucket."""
_MIN_ROWS = 200
"""Held-out rows that a bucket needs for weights of its own."""
_GAP = 1e-6
"""Nats a row from the optimum that weights may be."""
_POLISH_STEPS = 200


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


def fit_mixture(likelihoods: np.ndarray) -> MixtureFit:
    """Minimise ``-mean_t log(sum_e w_e p_e(t))`` over the simplex.

    The objective is convex. With ``g_e = mean_t p_e(t) / sum w p(t)``, convexity bounds the distance to the optimum
    by ``max_e g_e - 1`` (Boyd and Vandenberghe, Convex optimization, 5.5.3, with the simplex's multiplier at 1).
    Solved by sequential quadratic programming, ended by steps of expectation maximisation (Jelinek and Mercer 1980),
    which cannot leave the simplex nor increase the loss.

    Parameters
    ----------
    likelihoods : array of shape (n_rows, n_experts)
        Probability of each observed token under each expert; some expert's must be positive in each row.

    Raises
    ------
    SolveError
        If there are no rows, or one that no expert allows.
    """
    p = np.asarray(likelihoods, dtype=np.float64)
    if not len(p) or not (p.max(axis=1) > 0).all():
        msg = f"{len(p)} rows of likelihoods, {int((p.max(axis=1) <= 0).sum()) if len(p) else 0} of them all zero"
        raise SolveError(msg, "a positive likelihood in each row", "give validation text, or mix in the unigram")
    scaled = p / p.max(axis=1, keepdims=True)  # only ratios within a row matter, and tiny ones would underflow
    n_experts = p.shape[1]

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.maximum(scaled @ w, 1e-300)
        return float(-np.log(mixed).mean()), -(scaled / mixed[:, None]).mean(axis=0)

    start = np.full(n_experts, 1.0 / n_experts)
    solved = scipy.optimize.minimize(
        loss,
        start,
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * n_experts,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1.0, "jac": np.ones_like},
        options={"ftol": 1e-12, "maxiter": 200},
    )
    weights = np.maximum(solved.x, 1e-12)
    weights /= weights.sum()
    for _ in range(_POLISH_STEPS):
        gradient = -loss(weights)[1]
        if gradient.max() - 1.0 <= _GAP:
            break
        weights = weights * gradient / (weights @ gradient)
    gap = float(-loss(weights)[1].min() - 1.0)
    return MixtureFit(weights, float(-np.log(p @ weights).mean()), gap)


class BucketFit(NamedTuple):
    """Weights of several buckets.

    Parameters
    ----------
    weights : float64 array of shape (n_buckets, n_experts)
    gap : float
        The largest bound, over the buckets, on the loss above the optimum, in nats per token.
    """

    weights: np.ndarray
    gap: float


def fit_buckets(likelihoods: np.ndarray, bucket: np.ndarray, count: int) -> BucketFit:
    """Weights of each bucket; one with little held-out text takes those of all text.

    Parameters
    ----------
    likelihoods : array of shape (n_rows, n_experts)
    bucket : integer array of shape (n_rows,)
    count : int
        Number of buckets.

    Returns
    -------
    BucketFit
        Of `count` buckets.
    """
    overall = fit_mixture(likelihoods)
    weights, gaps = np.tile(overall.weights, (count, 1)), [overall.gap]
    for index in range(count):
        rows = bucket == index
        if rows.sum() >= _MIN_ROWS:
            found = fit_mixture(likelihoods[rows])
            weights[index] = found.weights
            gaps.append(found.gap)
    return BucketFit(weights, max(gaps))
