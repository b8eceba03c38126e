"""Ridge regression and classification on the inputs themselves. Floor 6: imports base, features, targets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import numpy as np
from dask.base import is_dask_collection
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from streamfit.arrays import Precision
from streamfit.estimators.base import _FLOATS, MomentsEstimator, MomentsRegressor
from streamfit.estimators.rows import InputError, dask_blocks, local, pieces
from streamfit.features import FeatureMap, Linear
from streamfit.solve import Posterior
from streamfit.targets import OneHot, Targets


class Ridge(MomentsRegressor):
    """Ridge regression from exact moments: scikit-learn's `Ridge`, with `partial_fit` and uncertainty.

    Minimises ``sum_t w_t ||x_t B + b - y_t||² + alpha ||B||²``; alpha is not divided by the number of samples.

    Parameters
    ----------
    alpha : float
    fit_intercept : bool
    precision : {'float32', 'float64', 'tf32', 'bf16'}
        What products are taken in; sums are exact always.

    Attributes
    ----------
    coef_ : array of shape (n_features,) or (n_targets, n_features)
    intercept_ : float or array of shape (n_targets,)
    features_, moments_, solution_ : FeatureMap, Moments, Solution
    n_features_in_ : int
    feature_names_in_ : array of shape (n_features,)
        Where X had names.

    Examples
    --------
    >>> import numpy as np
    >>> model = Ridge(alpha=1e-9).partial_fit([[0.0], [1.0]], [1.0, 3.0]).partial_fit([[2.0]], [5.0])
    >>> float(model.coef_.round(6)[0]), round(model.intercept_, 6)
    (2.0, 1.0)
    """

    _sparse = True

    def __init__(self, alpha: float = 1.0, *, fit_intercept: bool = True, precision: Precision = "float64") -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.precision = precision

    def _choose(self, x: np.ndarray, weights: np.ndarray | None) -> FeatureMap:
        return Linear(x.shape[1])

    def _names(self, inputs: list[str]) -> list[str]:
        return inputs


class RidgeClassifier(ClassifierMixin, MomentsEstimator):  # type: ignore[misc]
    """Ridge regression on the indicators of classes: scikit-learn's `RidgeClassifier`, with `partial_fit`.

    Minimises ``sum_t w_t ||x_t B + b - onehot(y_t)||² + alpha ||B||²``; the indicators are never formed. A row is of
    the class with the largest prediction. scikit-learn fits 1 and -1 instead: as the fit is linear in its targets,
    and the indicators sum to 1, its predictions are twice these minus their sum over classes, which is what
    `decision_function` gives; for two classes the second's alone.

    There is no `predict_proba`: predictions estimate the probabilities of classes by a linear function, which leaves
    [0, 1]. `sklearn.calibration.CalibratedClassifierCV` makes probabilities of the decisions.

    Parameters
    ----------
    alpha, fit_intercept, precision
        As for `Ridge`.

    Attributes
    ----------
    classes_ : array of shape (n_classes,)
    coef_ : array of shape (n_classes, n_features), or (1, n_features) for two classes
    intercept_ : array of shape (n_classes,), or (1,) for two classes
    features_, moments_, solution_ : FeatureMap, Moments, Solution
        Of the indicators.

    Examples
    --------
    >>> model = RidgeClassifier(alpha=1e-6).fit([[0.0], [1.0], [2.0], [3.0]], ["a", "a", "b", "b"])
    >>> model.predict([[0.4], [2.6]]).tolist()
    ['a', 'b']
    """

    _sparse = True

    def __init__(self, alpha: float = 1.0, *, fit_intercept: bool = True, precision: Precision = "float64") -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.precision = precision

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to rows, forgetting earlier ones.

        Parameters
        ----------
        X : array-like, data frame, Arrow table or stream, dask array or data frame; of shape (n_samples, n_features)
        y : array-like or dask collection of shape (n_samples,)
            Labels. A dask collection is read twice, first for the classes.
        sample_weight : array-like or dask collection of shape (n_samples,), optional
        """
        if y is None:
            msg = "this estimator requires y to be passed, but the target y is None"
            raise InputError(msg)
        self.classes_ = _classes_of(y)
        return self._add(X, y, sample_weight, reset=True)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Add rows to those fitted before and solve again: bit for bit the fit of all of them in this order.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        classes : array-like of shape (n_classes,)
            Every label that will ever come; at the first call only.

        Raises
        ------
        InputError
            If the first call has no classes, a later one others, or a label is none of them.
        """
        first = not hasattr(self, "moments_")
        if first and classes is None:
            msg = "no classes at the first partial_fit"
            raise InputError(msg, "every label that will come", "pass classes=")
        if classes is not None:
            given = np.unique(classes)
            if not first and not np.array_equal(given, self.classes_):
                msg = f"classes {given[:5]}"
                raise InputError(msg, f"those of the first call: {self.classes_[:5]}")
            self.classes_ = given
        return self._add(X, y, sample_weight, reset=first)

    def _checked(self, x: Any, y: Any, *, reset: bool) -> tuple[Any, np.ndarray]:
        x, y = validate_data(self, x, y, dtype=_FLOATS, accept_sparse="csr", order="C", reset=reset)
        ids = np.minimum(np.searchsorted(self.classes_, y), len(self.classes_) - 1)
        if (unknown := self.classes_[ids] != y).any():
            msg = f"label {np.asarray(y)[unknown][0]!r}"
            raise InputError(msg, f"one of {self.classes_[:5].tolist()}")
        return x, ids

    def _kind(self, targets: np.ndarray) -> Targets:
        return OneHot(len(self.classes_))

    def _choose(self, x: np.ndarray, weights: np.ndarray | None) -> FeatureMap:
        return Linear(x.shape[1])

    def _names(self, inputs: list[str]) -> list[str]:
        return inputs

    def _publish(self) -> None:
        self._decided: Posterior | None = None
        weights, intercept = self.solution_.weights, self.solution_.intercept
        rows = slice(1, 2) if len(self.classes_) == 2 else slice(None)
        self.coef_ = (2.0 * weights - weights.sum(axis=1, keepdims=True)).T[rows]
        self.intercept_ = (2.0 * intercept - intercept.sum())[rows]

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores of shape (n_samples, n_classes); (n_samples,) for two classes, positive for the second."""
        check_is_fitted(self, "solution_")
        return np.concatenate([self._decisions(self._inputs(x)) for x, _, _ in pieces(X, None)])

    def _decisions(self, x: Any) -> np.ndarray:
        scores = self._scores(x)
        decisions = 2.0 * scores - scores.sum(axis=1, keepdims=True)
        return np.asarray(decisions[:, 1] if len(self.classes_) == 2 else decisions)

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predict labels, and how far off their decisions may be.

        Parameters
        ----------
        X : as for `fit`
        return_std : bool
            Return the standard deviation of a new row's 1 or -1 about its decision as well, as `Ridge` gives it of
            such targets: noise, and the uncertainty of weights and intercept (`streamfit.posterior`).

        Returns
        -------
        labels : array of shape (n_samples,)
        std : array of the shape of `decision_function`
            With `return_std` only.

        Raises
        ------
        SolveError
            With `return_std`, if there are no more rows than degrees of freedom, or no unique optimum.
        """
        check_is_fitted(self, "solution_")
        rows = [self._inputs(x) for x, _, _ in pieces(X, None)]
        decisions = np.concatenate([self._decisions(x) for x in rows])
        ids = (decisions > 0).astype(int) if decisions.ndim == 1 else decisions.argmax(axis=1)
        labels = np.asarray(self.classes_[ids])
        if not return_std:
            return labels
        return labels, np.concatenate([self._decision_std(x) for x in rows])

    def _decision_std(self, x: Any) -> np.ndarray:
        if self._decided is None:
            c = self.moments_.centered()  # of the indicators, whose twofold less 1 the targets of decisions are
            signs = replace(c, cross=2.0 * c.cross, mean_y=2.0 * c.mean_y - 1.0, ss_y=4.0 * c.ss_y)
            self._decided = self._posterior_of(signs)
        found = np.sqrt(self._variances(x, self._decided))
        return np.asarray(found[:, 1] if len(self.classes_) == 2 else found)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Share of rows whose label is predicted; see `fit` for what may be given."""
        return float(super().score(X, np.asarray(local(y)), local(sample_weight)))


def _classes_of(y: Any) -> np.ndarray:
    """Labels that occur, of a dask collection a block at a time."""
    found: list[np.ndarray] = []
    for block in dask_blocks(y) if is_dask_collection(y) else [y]:
        labels = np.asarray(local(block))
        if len(labels) or not found:
            labels = column_or_1d(labels)
            check_classification_targets(labels)
            found.append(np.unique(labels))
    return np.unique(np.concatenate(found))
