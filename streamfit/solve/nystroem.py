"""Kernel ridge regression on centers, from sums of plain RBF features.

Floor 3: imports features, centered, errors and solve siblings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from streamfit.centered import Centered, Statistic, as_centered
from streamfit.errors import MismatchError
from streamfit.features.base import Chain, FeatureMap
from streamfit.features.nystroem import kernel_whitening
from streamfit.features.rbf import RBF
from streamfit.solve.ridge import Solution, solve


@dataclass(frozen=True)
class Whitened:
    """Sums of Nyström features W'k(x), made from sums of the RBF features k(x).

    Parameters
    ----------
    sums : Centered
        Of the features ``W'k(x)``: any solver, spectrum or choice of alpha takes them.
    whitening : array of shape (n_centers, rank)
        W = V Λ^(-1/2), of the kernel matrix K = V Λ V' of the centers.
    """

    sums: Centered
    whitening: np.ndarray

    def solve(self, alpha: float, *, fit_intercept: bool = True) -> Solution:
        """Minimise ``sum_t w_t ||B'k(x_t) + b - y_t||² + alpha trace(B'KB)`` over B and an unpenalised b.

        Parameters
        ----------
        alpha : float
            Nonnegative, not divided by the number of rows. Falkon's ``lambda`` is alpha / n_rows.
        fit_intercept : bool

        Returns
        -------
        Solution
            Weights of the RBF features, shape (n_centers, n_targets). The certificate, rank and degrees of freedom are
            those of the whitened problem, whose loss is the same.
        """
        found = solve(self.sums, alpha, fit_intercept=fit_intercept)
        return replace(found, weights=np.ascontiguousarray(self.whitening @ found.weights))


def whitened(sums: Statistic | Centered, features: FeatureMap) -> Whitened:
    """Turn sums of RBF features into those of Nyström features, without reading a row again.

    With φ = W'k, the sums of φφ' and φy' are ``W'GW`` and ``W'C``. Counting k and whitening once costs n_centers²
    operations a row, computing φ for every row three times as many (Rudi, Camoriano and Rosasco, Less is more:
    Nyström computational regularization, NIPS 2015, states the objective). What rounding left in G grows by 1/λ in a
    direction of eigenvalue λ: directions that are no more than it get no weight, as constant features do; precision
    'float64' keeps more of them.

    Parameters
    ----------
    sums : Moments or Centered
    features : RBF, or Chain that ends in one
        What the sums are of.

    Raises
    ------
    MismatchError
        If the features are of another kind or number.
    """
    kernel = features.outer if isinstance(features, Chain) else features
    if not isinstance(kernel, RBF):
        msg = f"sums of {type(kernel).__name__} features"
        raise MismatchError(msg, "RBF features", "count features of kind 'rbf'")
    c = as_centered(sums)
    if len(c.gram) != kernel.n_features:
        msg = f"sums of {len(c.gram)} features"
        raise MismatchError(msg, f"{kernel.n_features}, one for each center")
    w = kernel_whitening(kernel)
    gram = w.T @ (c.gram @ w)
    turned = replace(
        c,
        mean_x=w.T @ c.mean_x,
        gram=(gram + gram.T) / 2.0,
        cross=w.T @ c.cross,
        # Roundings of the entries of G are as good as independent: w'Ew is about as large as ||w||² times one of them.
        noise=(w * w).T @ c.noise,
        hidden=None,
    )
    return Whitened(turned, w)
