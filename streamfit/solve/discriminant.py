"""Linear discriminant analysis from the moments of one-hot targets: class means and what varies about them.

Floor 3: imports moments, centered, certificate, inverse, pca, ridge, rows, arrays, errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.special

from streamfit.arrays import Array
from streamfit.centered import Centered, Statistic, as_centered
from streamfit.errors import SolveError
from streamfit.solve.certificate import eigenvalue_noise
from streamfit.solve.inverse import inverse_factor
from streamfit.solve.pca import signed
from streamfit.solve.ridge import without_constants
from streamfit.solve.rows import host_rows

_ONE_HOT = 1e-9
"""How far shares of classes and their squares may be from those of one-hot targets, by rounding."""


@dataclass(frozen=True)
class Discriminant:
    """Gaussian classes of one covariance: their linear scores, and the directions that tell them apart.

    Parameters
    ----------
    weights : array of shape (n_features, n_classes)
        S^-1 (m_k - mean).
    intercept : array of shape (n_classes,)
    scalings : array of shape (n_features, n_components)
        Discriminant directions by descending ratio of variance between classes to variance within, each of unit
        variance within classes; signs as in `PCA`.
    ratios : array of shape (n_components,)
        These ratios.
    ratio_shares : array of shape (n_components,)
        Shares of the sum of all of them.
    mean : array of shape (n_features,)
    class_weights : array of shape (n_classes,)
        Sum of row weights of each class.
    class_means : array of shape (n_classes, n_features)
    priors : array of shape (n_classes,)
    shrinkage : float
    """

    weights: np.ndarray
    intercept: np.ndarray
    scalings: np.ndarray
    ratios: np.ndarray
    ratio_shares: np.ndarray
    mean: np.ndarray
    class_weights: np.ndarray
    class_means: np.ndarray
    priors: np.ndarray
    shrinkage: float

    def decision_function(self, phi: Array) -> np.ndarray:
        """Log posterior of each class but for a constant of each row, shape (n_rows, n_classes), of two classes too.

        Parameters
        ----------
        phi : array of shape (n_rows, n_features)

        Raises
        ------
        MismatchError
            If the number of features is another.
        """
        return np.asarray((host_rows(phi, len(self.mean)) - self.mean) @ self.weights + self.intercept)

    def predict(self, phi: Array) -> np.ndarray:
        """Most probable class ids, shape (n_rows,). See `decision_function`."""
        return np.asarray(np.argmax(self.decision_function(phi), axis=1))

    def predict_proba(self, phi: Array) -> np.ndarray:
        """Posterior probabilities of classes, shape (n_rows, n_classes). See `decision_function`."""
        return np.asarray(scipy.special.softmax(self.decision_function(phi), axis=1))

    def transform(self, phi: Array) -> np.ndarray:
        """Coordinates along the discriminant directions about the mean, shape (n_rows, n_components).

        Parameters
        ----------
        phi : array of shape (n_rows, n_features)

        Raises
        ------
        MismatchError
            If the number of features is another.
        """
        return np.asarray((host_rows(phi, len(self.mean)) - self.mean) @ self.scalings)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, without the arrays of features."""
        return {
            "n_features": len(self.mean),
            "shrinkage": self.shrinkage,
            "class_weights": self.class_weights.tolist(),
            "priors": self.priors.tolist(),
            "ratios": self.ratios.tolist(),
            "ratio_shares": self.ratio_shares.tolist(),
        }


def discriminant(
    moments: Statistic | Centered,
    *,
    shrinkage: float = 0.0,
    priors: Sequence[float] | np.ndarray | None = None,
    n_components: int | None = None,
) -> Discriminant:
    """Fit linear discriminant analysis.

    Class k has mean m_k, prior π_k and the covariance S of all classes; its score of a row is ``(φ - mean)' S^-1 (m_k -
    mean) - (m_k - mean)' S^-1 (m_k - mean) / 2 + log π_k``, which is the log posterior but for a constant of the row
    (Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, 4.3). With W_k the weight of class k,
    ``m_k = mean + cross_k / W_k``; the scatter between classes is ``sum_k W_k (m_k - mean)(m_k - mean)'``, and what is
    left of the centred Gram matrix is the scatter within, maximum likelihood's S when divided by W. Directions maximise
    variance between classes over variance within, S (Fisher's criterion, 4.3.3).

    Parameters
    ----------
    moments : Moments or Centered
        Of one-hot targets.
    shrinkage : float
        Between 0 and 1: s in ``(1 - s) S + s (trace(S) / n_features) I``, which is used in place of S.
    priors : array of shape (n_classes,), optional
        Positive, with sum 1. Shares of the row weights without it. They change the intercept and nothing else:
        scikit-learn's 'lsqr' and 'eigen' also weight the covariances of classes by given priors, which are not stored.
    n_components : int, optional
        At most so many directions; all that stand above rounding without it, at most n_classes - 1.

    Raises
    ------
    SolveError
        If targets are not one-hot, there are fewer than two classes or one without rows, options are out of range, or
        the covariance within classes is singular.

    Notes
    -----
    O(D³ + D² K) work. With shrinkage, directions are those of the scatter between classes as it is; scikit-learn's
    'eigen' shrinks that too, so that its directions no longer span the class means. Scores are the same.

    Examples
    --------
    >>> from streamfit.frame import Frame
    >>> from streamfit.moments import Moments
    >>> from streamfit.targets import OneHot
    >>> x, ids = np.array([[0.0], [2.0], [5.0], [7.0]]), np.array([0, 0, 1, 1])
    >>> d = discriminant(Moments.from_rows(x, ids, Frame.identity(1, 2), OneHot(2)))
    >>> d.class_means.tolist(), d.ratios.round(6).tolist()
    ([[1.0], [6.0]], [6.25])
    >>> d.predict(np.array([[3.0], [4.0]])).tolist(), d.predict_proba(np.array([[3.5]])).round(6).tolist()
    ([0, 1], [[0.5, 0.5]])
    """
    if not 0.0 <= shrinkage <= 1.0:
        msg = f"shrinkage {shrinkage}"
        raise SolveError(msg, "a number between 0 and 1")
    c = without_constants(as_centered(moments))
    class_weights = _class_weights(c)
    given = class_weights / c.weight if priors is None else _priors(priors, len(class_weights))
    shifts = c.cross / class_weights  # class means about the mean of all, one a column
    between = shifts * np.sqrt(class_weights / c.weight)
    factor = _whitening(c, between, shrinkage)
    whitened = factor @ shifts
    weights = factor.T @ whitened
    directions, singular, _ = np.linalg.svd(factor @ between, full_matrices=False)
    # What each direction's ratio may carry by rounding: with K classes, one ratio at least is nothing else.
    ratios = singular[: len(class_weights) - 1] ** 2
    rank = int(np.sum(ratios > max(eigenvalue_noise(len(factor), float(ratios[0])), _shift_noise(c))))
    if n_components is not None and n_components < 1:
        msg = f"{n_components} discriminant directions"
        raise SolveError(msg, "at least 1")
    kept = rank if n_components is None else min(n_components, rank)
    return Discriminant(
        weights=weights,
        intercept=np.log(given) - 0.5 * np.einsum("dk,dk->k", whitened, whitened),
        scalings=signed(directions[:, :kept].T @ factor).T,
        ratios=ratios[:kept],
        ratio_shares=ratios[:kept] / ratios.sum() if kept else ratios[:kept],
        mean=c.mean_x,
        class_weights=class_weights,
        class_means=c.mean_x + shifts.T,
        priors=given,
        shrinkage=float(shrinkage),
    )


def _shift_noise(c: Centered) -> float:
    """A ratio that equal class means may have by rounding: the square of what sums of a feature err by, relatively."""
    spread = np.diag(c.gram)
    return float((50 * np.finfo(float).eps + np.max(c.noise[spread > 0] / spread[spread > 0], initial=0.0)) ** 2)


def _class_weights(c: Centered) -> np.ndarray:
    """Weight of each class, once targets were found to be one-hot with rows of every class."""
    shares = c.mean_y
    squares = c.ss_y / c.weight + shares**2
    one_hot = abs(shares.sum() - 1.0) <= _ONE_HOT and (np.abs(squares - shares) <= _ONE_HOT).all()
    if not one_hot:
        msg = f"{len(shares)} target(s) that are not one-hot: their means add up to {shares.sum():.6g}"
        raise SolveError(msg, "one target a class, 1 in its rows and 0 in others", "count class ids as one-hot targets")
    if len(shares) < 2:
        msg = "1 class"
        raise SolveError(msg, "at least 2")
    empty = np.flatnonzero(shares <= 1e-15)
    if len(empty):
        msg = f"no rows of {len(empty)} class(es), the first of id {int(empty[0])}"
        raise SolveError(msg, "rows of every class", "number the classes that there are, and count again")
    return np.asarray(c.weight * shares)


def _priors(priors: Sequence[float] | np.ndarray, n_classes: int) -> np.ndarray:
    given = np.asarray(priors, dtype=np.float64)
    if given.shape != (n_classes,) or not (given > 0).all() or not abs(given.sum() - 1.0) <= 1e-8:
        msg = f"priors of shape {given.shape} with sum {given.sum():g}"
        raise SolveError(msg, f"{n_classes} positive numbers with sum 1")
    return given


def _whitening(c: Centered, between: np.ndarray, shrinkage: float) -> np.ndarray:
    """Lower triangular T with T'T the inverse of the covariance within classes."""
    # A feature with less left than rounding is constant within classes, and its covariances are rounding too.
    scatter = without_constants(replace(c, gram=c.gram - c.weight * (between @ between.T))).gram
    within = scatter * ((1.0 - shrinkage) / c.weight)
    within[np.diag_indices(len(within))] += shrinkage * np.trace(scatter) / (c.weight * len(within))
    try:
        return inverse_factor(within, 0.0)
    except SolveError as error:
        why = error.got.partition(": ")[2]
        msg = f"a singular covariance within classes with shrinkage {shrinkage:g}: {why}"
        remedy = "raise shrinkage, or drop that feature"
        raise SolveError(msg, "features that vary independently within classes", remedy) from None
