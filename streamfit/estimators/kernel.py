"""Ridge regression on features of a Gaussian kernel. Floor 6: imports base, features."""

from __future__ import annotations

import numbers
from typing import Any, ClassVar

import numpy as np
from sklearn.utils._param_validation import Interval

from streamfit.arrays import Precision
from streamfit.estimators.base import AT_LEAST_ONE, MomentsRegressor
from streamfit.features import (
    RBF,
    Chain,
    FeatureMap,
    RandomFourier,
    Standardize,
    choose_centers,
    median_gamma,
)


class _KernelRegressor(MomentsRegressor):
    """Inputs are standardised by the first rows, and the kernel's width is theirs unless given."""

    gamma: float | None
    sample_rows: int
    random_state: Any
    _parameter_constraints: ClassVar[dict[str, Any]] = MomentsRegressor._parameter_constraints | {
        "gamma": [Interval(numbers.Real, 0, None, closed="neither"), None],
        "sample_rows": AT_LEAST_ONE,
        "random_state": ["random_state"],
    }

    def _lead(self) -> int:
        return self.sample_rows

    def _scaled(self, x: np.ndarray, weights: np.ndarray | None) -> tuple[Standardize, np.ndarray, float]:
        """How inputs are scaled, the distinct rows so scaled, and gamma.

        Distinct rows in the order of their values: neither repeats nor the order of rows have a say.
        """
        scale = _standardized(x, weights)
        distinct = scale(np.unique(x, axis=0))
        gamma = self.gamma or (median_gamma(distinct, self._seed) if len(distinct) > 1 else 1.0)
        return scale, distinct, gamma


class RBFNetwork(_KernelRegressor):
    """Ridge regression on Gaussian bumps around rows of the first training data.

    Minimises ``sum_t w_t ||φ(x_t) B + b - y_t||² + alpha ||B||²`` with ``φ_j(x) = exp(-gamma ||x - c_j||²)`` on
    standardised inputs.

    Parameters
    ----------
    n_centers : int
        At most so many; fewer where the first rows have fewer distinct ones.
    gamma : float, optional
        Without it 1 / median squared distance of distinct rows.
    alpha : float
    fit_intercept : bool
    precision : {'float32', 'float64', 'tf32', 'bf16'}
    sample_rows : int
        Centers, scales and gamma are chosen from so many first rows, rounded up to blocks of 4096, in `fit` as in
        `partial_fit`: where rows are sorted, shuffle them. Rows in excess of these are not kept.
    random_state : int, RandomState or None

    Attributes
    ----------
    coef_, intercept_, moments_, solution_
        As for `Ridge`, over the centers.
    features_ : FeatureMap

    Examples
    --------
    >>> import numpy as np
    >>> x = np.linspace(0, 6, 200)[:, None]
    >>> bool(RBFNetwork(30).fit(x, np.sin(x[:, 0])).score(x, np.sin(x[:, 0])) > 0.999)
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = _KernelRegressor._parameter_constraints | {
        "n_centers": AT_LEAST_ONE
    }

    def __init__(
        self,
        n_centers: int = 256,
        *,
        gamma: float | None = None,
        alpha: float = 1e-3,
        fit_intercept: bool = True,
        precision: Precision = "float64",
        sample_rows: int = 16384,
        random_state: Any = 0,
    ) -> None:
        self.n_centers = n_centers
        self.gamma = gamma
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.precision = precision
        self.sample_rows = sample_rows
        self.random_state = random_state

    def _choose(self, x: np.ndarray, weights: np.ndarray | None) -> FeatureMap:
        scale, distinct, gamma = self._scaled(x, weights)
        return Chain(scale, RBF(choose_centers(distinct, min(self.n_centers, len(distinct)), self._seed), gamma))


class FourierRidge(_KernelRegressor):
    """Ridge regression on random Fourier features of a Gaussian kernel.

    Minimises ``sum_t w_t ||φ(x_t) B + b - y_t||² + alpha ||B||²`` with ``φ(x) = sqrt(2/n) cos(x W + c)`` on
    standardised inputs, W normal and c uniform: kernel ridge regression with ``exp(-gamma ||x - z||²)``, the nearer
    the more components (Rahimi and Recht, Random features for large-scale kernel machines, NIPS 2007).

    Parameters
    ----------
    n_components : int
    gamma, alpha, fit_intercept, precision, sample_rows, random_state
        As for `RBFNetwork`; scales and gamma alone are chosen from the first rows.

    Attributes
    ----------
    coef_, intercept_, moments_, solution_
        As for `Ridge`, over the components.
    features_ : FeatureMap
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = _KernelRegressor._parameter_constraints | {
        "n_components": AT_LEAST_ONE
    }

    def __init__(
        self,
        n_components: int = 256,
        *,
        gamma: float | None = None,
        alpha: float = 1e-3,
        fit_intercept: bool = True,
        precision: Precision = "float64",
        sample_rows: int = 16384,
        random_state: Any = 0,
    ) -> None:
        self.n_components = n_components
        self.gamma = gamma
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.precision = precision
        self.sample_rows = sample_rows
        self.random_state = random_state

    def _choose(self, x: np.ndarray, weights: np.ndarray | None) -> FeatureMap:
        scale, _, gamma = self._scaled(x, weights)
        return Chain(scale, RandomFourier(self.n_components, gamma, self._seed, x.shape[1]))


def _standardized(x: np.ndarray, weights: np.ndarray | None) -> Standardize:
    if weights is None:
        return Standardize.fit(x)
    x = np.asarray(x, dtype=np.float64)
    mean = np.average(x, axis=0, weights=weights)
    spread = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights))
    return Standardize(mean, np.where(spread > 0, spread, 1.0))
