"""How far a lasso solution may be from the optimum, by weak duality, from sums alone. Floor 3."""

from __future__ import annotations

import numpy as np


def lasso_gaps(
    gram: np.ndarray,
    cross: np.ndarray,
    ss_y: np.ndarray,
    weights: np.ndarray,
    l1: float,
    *,
    nonnegative: bool,
    strong: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Loss of each target, and how far above the optimum it is at most.

    Of ``L(b) = b'Gb - 2 b'c + ss_y + l1 sum_j |b_j|``, over all b or b >= 0. Take rows (R, z) with R'R = G and R'z = c,
    residuals r = z - R b and g = R'r = c - G b. Every θ with R'θ <= l1 / 2, and >= -l1 / 2 unless weights are
    nonnegative, bounds the optimum from below by ``2 z'θ - ||θ||²`` (Kim, Koh, Lustig, Boyd and Gorinevsky, IEEE J.
    Selected Topics in Signal Processing 1, 2007, III). Two such are taken, and the smaller gap counts: θ = s r with the
    largest s <= 1 that is allowed, which leaves ``(1 - s)² ||r||² + sum_j (l1 |b_j| - 2 s b_j g_j)``; and θ = r - R
    G^-1 e, with e what of g is beyond the limits, which leaves ``sum_j (l1 |b_j| - 2 b_j (g_j - e_j)) + e'G^-1 e``. In
    neither do large terms cancel. With l1 = 0 only the second says anything.

    Parameters
    ----------
    gram, cross, ss_y : arrays of shape (D, D), (D, K), (K,)
        A second penalty l2 ||b||² is part of the Gram matrix: ``G + l2 I``.
    weights : array of shape (D, K)
    l1 : float
    nonnegative : bool
        Whether b >= 0; the weights must be.
    strong : float
        No more than the smallest eigenvalue of the Gram matrix; 0 where nothing positive is certain.

    Returns
    -------
    losses, gaps : arrays of shape (K,)
        Rounding of their own computation is part of the gaps.
    """
    size, half = np.abs(weights), 0.5 * l1
    g = cross - gram @ weights
    # Rounding of g itself (Higham, Accuracy and stability of numerical algorithms, 3.5).
    delta = (len(gram) + 3) * float(np.finfo(np.float64).eps) * (np.abs(gram) @ size + np.abs(cross))
    slack = 2.0 * np.sum(size * delta, axis=0)
    squares = np.maximum(ss_y - np.sum(weights * (cross + g), axis=0), 0.0)
    penalty = l1 * size.sum(axis=0)
    gaps = np.full(len(ss_y), np.inf)
    if strong > 0:
        allowed = np.clip(g, -np.inf if nonnegative else -half, half)
        beyond = np.sum((np.abs(g - allowed) + delta) ** 2, axis=0) / strong
        gaps = penalty - 2.0 * np.sum(weights * allowed, axis=0) + beyond + slack
    if l1 > 0:
        peak = np.max((g if nonnegative else np.abs(g)) + delta, axis=0, initial=0.0)
        s = half / np.maximum(peak, half)
        scaled = (1.0 - s) ** 2 * (squares + slack) + penalty - 2.0 * s * np.sum(weights * g, axis=0) + slack
        gaps = np.minimum(gaps, scaled)
    return squares + penalty, np.maximum(gaps, 0.0)
