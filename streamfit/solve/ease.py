"""EASE, a recommender from one inverse: each item from all others by ridge regression, items with themselves left out.

Floor 3: imports moments, centered, inverse, rows, arrays, errors. The targets play no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamfit.arrays import Array
from streamfit.centered import Centered, Statistic, as_centered
from streamfit.errors import SolveError
from streamfit.solve.inverse import inverse_factor
from streamfit.solve.rows import host_rows


@dataclass(frozen=True)
class EASE:
    """Weights between items, and how well they tell each item from the others.

    Parameters
    ----------
    weights : array of shape (n_items, n_items)
        B: column j predicts item j. Zero diagonal.
    alpha : float
    losses : array of shape (n_items,)
        ``sum_t w_t (x_tj - x_t'B_j)² + alpha ||B_j||²`` of each item.
    relative_gradient : float
        Gradient of their sum off the diagonal, ``(X'X + alpha I) B - X'X`` there, relative to X'X (Frobenius), from
        the stored sums.
    """

    weights: np.ndarray
    alpha: float
    losses: np.ndarray
    relative_gradient: float

    def scores(self, x: Array) -> np.ndarray:
        """``x B``, shape (n_rows, n_items).

        Parameters
        ----------
        x : array of shape (n_rows, n_items)
            What users have, in the units of the rows that were summed.

        Raises
        ------
        MismatchError
            If the number of items is another.
        """
        return np.asarray(host_rows(x, len(self.weights)) @ self.weights)

    def recommend(self, x: Array, n: int, *, exclude_seen: bool = True) -> np.ndarray:
        """Ids of the n items of highest score for each user, best first, shape (n_rows, n).

        Of items with equal scores the one of lower id comes first. Where a user has fewer than n unseen items, -1
        stands in place of the others.

        Parameters
        ----------
        x : array of shape (n_rows, n_items)
        n : int
            Between 1 and the number of items.
        exclude_seen : bool
            Whether to leave out items with a nonzero entry in x.

        Raises
        ------
        MismatchError
            If the number of items is another.
        SolveError
            If n is out of range.
        """
        n_items = len(self.weights)
        if not 1 <= n <= n_items:
            msg = f"{n} recommendations"
            raise SolveError(msg, f"a number in [1, {n_items}]")
        rows = host_rows(x, n_items)
        scores = rows @ self.weights
        if exclude_seen:
            scores[rows != 0] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, :n]
        return np.where(np.isneginf(np.take_along_axis(scores, best, axis=1)), -1, best)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, without the weights."""
        return {
            "alpha": self.alpha,
            "n_items": len(self.weights),
            "loss": float(self.losses.sum()),
            "relative_gradient": self.relative_gradient,
        }


def ease(moments: Statistic | Centered, alpha: float) -> EASE:
    """Fit EASE: items from items, none from itself.

    Minimises ``sum_t w_t ||x_t - B'x_t||² + alpha ||B||²`` over B with a zero diagonal; no intercept, alpha unscaled
    by the number of rows. With ``P = (X'X + alpha I)^-1`` of the Gram matrix about zero, ``B_ij = -P_ij / P_jj`` off
    the diagonal (Steck, Embarrassingly shallow autoencoders for sparse data, WWW 2019), and item j's loss is
    ``1 / P_jj - alpha`` (the Schur complement of the others in X'X + alpha I).

    Parameters
    ----------
    moments : Moments or Centered
        A row a user, a feature an item.
    alpha : float
        Nonnegative; Steck's λ. Some hundreds for counts of clicks.

    Raises
    ------
    SolveError
        If alpha is negative or not finite, or so small that the system is singular or nearly so.

    Notes
    -----
    O(D³) work, and memory for four D x D matrices besides the moments.

    Examples
    --------
    Two items go together, the third alone.

    >>> from streamfit.frame import Frame
    >>> from streamfit.moments import Moments
    >>> from streamfit.targets import Dense
    >>> x = np.array([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    >>> e = ease(Moments.from_rows(x, x[:, :1], Frame.identity(3, 1), Dense(1)), alpha=2.0)
    >>> (e.weights.round(6) + 0.0).tolist()
    [[0.0, 0.5, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]
    >>> e.recommend(np.array([[0.0, 1.0, 0.0]]), n=1).tolist()
    [[0]]
    """
    if not (alpha >= 0 and np.isfinite(alpha)):
        msg = f"alpha {alpha}"
        raise SolveError(msg, "a finite number >= 0")
    c = as_centered(moments)
    gram = c.about(np.zeros_like(c.mean_x), np.zeros_like(c.mean_y)).gram
    factor = inverse_factor(gram, alpha)
    weights = factor.T @ factor
    precision = np.diag(weights).copy()
    weights /= -precision
    np.fill_diagonal(weights, 0.0)
    gradient = gram @ weights + alpha * weights - gram
    losses = -np.diag(gradient)  # as the cross products with what is left of an item are orthogonal to all others
    np.fill_diagonal(gradient, 0.0)
    size = float(np.linalg.norm(gram))
    return EASE(weights, float(alpha), losses.copy(), float(np.linalg.norm(gradient)) / size if size > 0 else 0.0)
