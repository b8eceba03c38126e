"""Scikit-learn estimators whose fits are exact sums and one solve.

Floor 6: imports features, moments, solve, models; the only file of these floors that imports scikit-learn as it loads,
so that commands and workers, which fit no estimators, start without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from streamfit.arrays import Precision
from streamfit.errors import ConfigError
from streamfit.features import RBF, Chain, FeatureMap, Linear, Standardize, choose_centers, median_gamma
from streamfit.frame import BLOCK_ROWS, Frame
from streamfit.models import LinearModel
from streamfit.moments import Moments, MomentsAccumulator
from streamfit.solve import solve
from streamfit.targets import Dense


class _MomentsRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator, ABC):  # type: ignore[misc]
    """What the estimators share: rows go into moments, and every fit ends with one solve."""

    alpha: float
    fit_intercept: bool
    precision: Precision

    @abstractmethod
    def _features(self, X: np.ndarray) -> FeatureMap:
        """Choose the features from the first batch."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to rows, forgetting earlier ones.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
        sample_weight : array-like of shape (n_samples,), optional
        """
        for name in ("moments_", "features_"):
            self.__dict__.pop(name, None)
        return self._add(X, y, sample_weight, reset=True)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Add rows to those fitted before and solve again: exactly the fit of all of them.

        Features and units are chosen from the first batch.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
        sample_weight : array-like of shape (n_samples,), optional
        """
        return self._add(X, y, sample_weight, reset=not hasattr(self, "moments_"))

    def _add(self, X: Any, y: Any, sample_weight: Any, *, reset: bool) -> Self:
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), multi_output=True, y_numeric=True, reset=reset)
        targets = np.asarray(y, dtype=np.float64).reshape(len(X), -1)
        weights = None if sample_weight is None else np.broadcast_to(np.asarray(sample_weight, float), len(X))
        if not hasattr(self, "moments_"):
            self.features_ = self._features(X)
            kind = Dense(targets.shape[1])
            phi = self.features_(X[:BLOCK_ROWS])
            first = None if weights is None else weights[:BLOCK_ROWS]
            frame = Frame.from_sample(phi, targets[:BLOCK_ROWS], kind, self.features_.bounds, first)
            self.moments_ = Moments.zeros(frame, kind, self.precision)
        frame = self.moments_.frame
        sums = MomentsAccumulator(frame, Dense(frame.n_targets), self.precision)
        for lo in range(0, len(X), BLOCK_ROWS):
            rows = slice(lo, lo + BLOCK_ROWS)
            sums.add(self.features_(X[rows]), targets[rows], weights=None if weights is None else weights[rows])
        self.moments_ = self.moments_ + sums.moments()
        self.solution_ = solve(self.moments_, self.alpha, fit_intercept=self.fit_intercept)
        flat = np.ndim(y) == 1
        self.coef_ = self.solution_.weights[:, 0] if flat else self.solution_.weights.T
        self.intercept_ = float(self.solution_.intercept[0]) if flat else self.solution_.intercept
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predict targets of shape (n_samples,) or (n_samples, n_targets)."""
        check_is_fitted(self, "solution_")
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        predictions = LinearModel(self.features_, self.solution_).predict(X)
        return predictions[:, 0] if self.coef_.ndim == 1 else predictions


class Ridge(_MomentsRegressor):
    """Ridge regression from exact moments: scikit-learn's `Ridge`, with `partial_fit`.

    Minimises ``||y - Xw - b||² + alpha ||w||²``; alpha is not divided by the number of samples.

    Parameters
    ----------
    alpha : float
    fit_intercept : bool
    precision : {'float32', 'float64'}
        Type of the products; sums are float64 always.

    Attributes
    ----------
    coef_ : array of shape (n_features,) or (n_targets, n_features)
    intercept_ : float or array of shape (n_targets,)
    moments_ : Moments
    solution_ : Solution
        With the certificate.

    Examples
    --------
    >>> import numpy as np
    >>> model = Ridge(alpha=1e-9).partial_fit([[0.0], [1.0]], [1.0, 3.0]).partial_fit([[2.0]], [5.0])
    >>> float(model.coef_.round(6)[0]), round(model.intercept_, 6)
    (2.0, 1.0)
    """

    def __init__(self, alpha: float = 1.0, *, fit_intercept: bool = True, precision: Precision = "float64") -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.precision = precision

    def _features(self, X: np.ndarray) -> FeatureMap:
        return Linear(X.shape[1])


class RBFNetwork(_MomentsRegressor):
    """Ridge regression on Gaussian bumps around rows of the (first) training batch.

    Minimises ``||y - φ(X)w - b||² + alpha ||w||²`` with ``φ_j(x) = exp(-gamma ||x - c_j||²)`` on standardised inputs.

    Parameters
    ----------
    n_centers : int
        At most so many; fewer where the first batch has fewer distinct rows.
    gamma : float, optional
        Without it 1 / median squared distance of the first batch.
    alpha : float
    fit_intercept : bool
    precision : {'float32', 'float64'}
    random_state : int

    Attributes
    ----------
    coef_, intercept_, moments_, solution_
        As for `Ridge`, over the centers.
    features_ : FeatureMap
    """

    def __init__(
        self,
        n_centers: int = 256,
        *,
        gamma: float | None = None,
        alpha: float = 1e-3,
        fit_intercept: bool = True,
        precision: Precision = "float64",
        random_state: int = 0,
    ) -> None:
        self.n_centers = n_centers
        self.gamma = gamma
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.precision = precision
        self.random_state = random_state

    def _features(self, X: np.ndarray) -> FeatureMap:
        if self.n_centers < 1:
            msg = f"n_centers {self.n_centers}"
            raise ConfigError(msg, "at least 1")
        scale = Standardize.fit(X)
        z = scale(X)
        n_centers = min(self.n_centers, len(np.unique(z, axis=0)))
        centers = choose_centers(z, n_centers, self.random_state)
        gamma = self.gamma or (median_gamma(z, self.random_state) if len(np.unique(z, axis=0)) > 1 else 1.0)
        return Chain(scale, RBF(centers, gamma))
