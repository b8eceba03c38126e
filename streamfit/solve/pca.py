"""Principal components from the centred Gram matrix: one eigendecomposition, no rows.

Floor 3: imports moments, centered, certificate, ridge, rows, arrays, errors. The targets play no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from streamfit.arrays import Array
from streamfit.centered import Centered, Statistic, as_centered
from streamfit.errors import SolveError
from streamfit.solve.certificate import eigenvalue_noise
from streamfit.solve.ridge import without_constants
from streamfit.solve.rows import host_rows

_TIE = 1e-6
"""Entries of a direction, relative to the largest, that count as equally large when its sign is chosen."""


@dataclass(frozen=True)
class PCA:
    """Orthonormal directions of largest variance.

    Parameters
    ----------
    components : array of shape (n_components, n_features)
        Of features divided by `scale`, by descending variance; of the largest entries of each, the first is positive.
    explained_variance : array of shape (n_components,)
        Variance along each, with the divisor of `pca`.
    explained_variance_ratio : array of shape (n_components,)
        The same as shares of the variance of all features.
    mean, scale : arrays of shape (n_features,)
        Subtracted, and then divided by: ones unless features are brought to unit variance.
    noise_variance : float
        Mean variance along the directions left out: the noise of probabilistic PCA at its maximum likelihood (Tipping
        and Bishop, J. R. Statist. Soc. B 61, 1999, 3.2); zero where none is left out.
    rank : int
        Number of directions whose variance stands above rounding.
    n_observations : float
    """

    components: np.ndarray
    explained_variance: np.ndarray
    explained_variance_ratio: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    noise_variance: float
    rank: int
    n_observations: float

    def transform(self, phi: Array) -> np.ndarray:
        """Coordinates along the components, shape (n_rows, n_components).

        Parameters
        ----------
        phi : array of shape (n_rows, n_features)

        Raises
        ------
        MismatchError
            If the number of features is another.
        """
        centred = host_rows(phi, len(self.mean)) - self.mean
        return np.asarray((centred / self.scale) @ self.components.T)

    def whiten(self, phi: Array) -> np.ndarray:
        """Coordinates over their standard deviations: uncorrelated, of unit variance. See `transform`."""
        return np.asarray(self.transform(phi) / np.sqrt(self.explained_variance))

    def inverse_transform(self, z: Array) -> np.ndarray:
        """Features of shape (n_rows, n_features) that have these coordinates and are average otherwise.

        Parameters
        ----------
        z : array of shape (n_rows, n_components)
            As `transform` gives them, not whitened.

        Raises
        ------
        MismatchError
            If the number of components is another.
        """
        return np.asarray(host_rows(z, len(self.components)) @ self.components * self.scale + self.mean)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, without the directions."""
        return {
            "n_components": len(self.components),
            "rank": self.rank,
            "n_observations": self.n_observations,
            "explained_variance": self.explained_variance.tolist(),
            "explained_variance_ratio": self.explained_variance_ratio.tolist(),
            "noise_variance": self.noise_variance,
        }


def pca(
    moments: Statistic | Centered,
    n_components: int | float | None = None,
    *,
    scale: bool = False,
    n_observations: float | None = None,
) -> PCA:
    """Principal components of the features.

    Component i maximises ``sum_t w_t (v'(φ_t - mean))²`` over unit vectors v that are orthogonal to those before it:
    an eigenvector of the centred Gram matrix G (Hastie, Tibshirani and Friedman, The Elements of Statistical Learning,
    14.5.1). Variances are those of ``G n / (W (n - 1))`` with W the sum of row weights and n the number of
    observations: G / (n - 1) where all weights are 1.

    Parameters
    ----------
    moments : Moments or Centered
    n_components : int or float, optional
        How many; or, below 1, the least share of the variance that they explain together; without it, the rank.
    scale : bool
        Whether to divide each feature by its standard deviation (divisor W, as StandardScaler does): the components of
        correlations. A feature that does not vary keeps its unit.
    n_observations : float, optional
        The number of rows unless given. Give the sum of weights where weights count repetitions.

    Raises
    ------
    SolveError
        If there are not more than one observation, no feature varies, or `n_components` is neither a share nor an
        integer between 1 and the rank.

    Notes
    -----
    Variances below rounding of G do not count: a standard deviation less than about 1e-7 of the largest is lost (1e-4
    where products were taken in float32), which is why the rank may be below scikit-learn's.

    Examples
    --------
    >>> from streamfit.frame import Frame
    >>> from streamfit.moments import Moments
    >>> from streamfit.targets import Dense
    >>> x = np.array([[3.0, 1], [-3, 1], [0, 3], [0, -1]])
    >>> p = pca(Moments.from_rows(x, x[:, :1], Frame.identity(2, 1), Dense(1)))
    >>> (p.components.round(6) + 0.0).tolist(), p.explained_variance.round(6).tolist()
    ([[1.0, 0.0], [0.0, 1.0]], [6.0, 2.666667])
    >>> p.transform(np.array([[1.0, 3.0]])).round(6).tolist()
    [[1.0, 2.0]]
    """
    c = without_constants(as_centered(moments))
    n = float(c.n_rows if n_observations is None else n_observations)
    if not (n > 1 and np.isfinite(n)):
        msg = f"a variance from {n:g} observation(s)"
        raise SolveError(msg, "more than 1", "add rows, or give n_observations")
    varying = np.diag(c.gram) > 0
    units = np.where(varying, np.sqrt(np.diag(c.gram) / c.weight), 1.0) if scale else np.ones(len(varying))
    covariance = c.gram * (n / (c.weight * (n - 1.0))) / units / units[:, None]
    eigenvalues, vectors = scipy.linalg.eigh(covariance, check_finite=False)
    eigenvalues, components = np.maximum(eigenvalues[::-1], 0.0), signed(vectors.T[::-1])
    # LAPACK's rounding, and what that of the stored sums may have left along each direction.
    sums_noise = components**2 @ (c.noise / units**2) * (n / (c.weight * (n - 1.0)))
    rank = int(np.sum(eigenvalues > np.maximum(eigenvalue_noise(len(varying), float(eigenvalues[0])), sums_noise)))
    if not rank:
        msg = f"{len(varying)} features that do not vary"
        raise SolveError(msg, "at least one that does")
    ratio = eigenvalues / eigenvalues.sum()
    k = _count(n_components, rank, ratio)
    n_left_out = min(len(varying), int(n)) - k
    return PCA(
        components=components[:k],
        explained_variance=eigenvalues[:k],
        explained_variance_ratio=ratio[:k],
        mean=c.mean_x,
        scale=units,
        noise_variance=float(eigenvalues[k:].sum() / n_left_out) if n_left_out > 0 else 0.0,
        rank=rank,
        n_observations=n,
    )


def signed(directions: np.ndarray) -> np.ndarray:
    """Directions, one a row, each with the sign that makes the first of its largest entries positive."""
    size = np.abs(directions)
    # Not the largest itself: between two of equal size, rounding would choose.
    first = np.argmax(size >= (1.0 - _TIE) * size.max(axis=1, keepdims=True), axis=1)
    return np.asarray(directions * np.sign(directions[np.arange(len(directions)), first])[:, None])


def _count(n_components: int | float | None, rank: int, ratio: np.ndarray) -> int:
    if n_components is None:
        return rank
    if isinstance(n_components, float) and 0 < n_components < 1:
        return min(int(np.searchsorted(np.cumsum(ratio), n_components, side="right")) + 1, rank)
    if not float(n_components).is_integer() or not 1 <= n_components <= rank:
        msg = f"{n_components} components of features of rank {rank}"
        raise SolveError(msg, f"an integer in [1, {rank}], or a share of the variance between 0 and 1")
    return int(n_components)
