"""What the estimators share: rows go into moments, and every fit ends with one solve.

Floor 6: imports stream, rows, features, moments, solve, models.
"""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Self, get_args

import numpy as np
import scipy.sparse
from dask.base import is_dask_collection
from dask.delayed import delayed
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from streamfit.arrays import Precision
from streamfit.centered import Centered
from streamfit.estimators.rows import InputError, dask_blocks, local, pieces
from streamfit.estimators.stream import RowStream, whole_blocks
from streamfit.features import FeatureMap
from streamfit.frame import BLOCK_ROWS
from streamfit.models import LinearModel
from streamfit.moments import Moments
from streamfit.solve import Posterior, Solution, posterior, solve
from streamfit.targets import Dense, Targets

_FLOATS = (np.float64, np.float32)
AT_LEAST_ONE = [Interval(numbers.Integral, 1, None, closed="left")]
"""Rule for counts."""


class MomentsEstimator(BaseEstimator, ABC):  # type: ignore[misc]
    """Rows in any portions into exact sums, and one solve of them.

    Attributes
    ----------
    features_ : FeatureMap
    moments_ : Moments
    solution_ : Solution
        With the certificate.
    """

    alpha: float
    fit_intercept: bool
    precision: Precision
    features_: FeatureMap
    moments_: Moments
    solution_: Solution
    _stream: RowStream
    _posterior: Posterior | None
    _sparse: ClassVar[bool] = False
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "alpha": [Interval(numbers.Real, 0, None, closed="left")],
        "fit_intercept": ["boolean"],
        "precision": [StrOptions(set(get_args(Precision)))],
    }

    @abstractmethod
    def _choose(self, x: np.ndarray, weights: np.ndarray | None) -> FeatureMap:
        """Choose the features from the first rows."""

    @abstractmethod
    def _checked(self, x: Any, y: Any, *, reset: bool) -> tuple[Any, np.ndarray]:
        """Validate a piece: inputs, dense or csr, and targets as the moments take them."""

    @abstractmethod
    def _kind(self, targets: np.ndarray) -> Targets:
        """What is predicted, by the first piece."""

    @abstractmethod
    def _publish(self) -> None:
        """Set `coef_` and `intercept_` from the solution."""

    def _lead(self) -> int:
        """Rows that features and units are chosen from."""
        return BLOCK_ROWS

    def _seeded(self, random_state: Any) -> int:
        if isinstance(random_state, numbers.Integral):
            return int(random_state)
        return int(check_random_state(random_state).randint(2**31 - 1))

    def _check_parameters(self) -> None:
        try:
            validate_parameter_constraints(
                self._parameter_constraints, self.get_params(deep=False), type(self).__name__
            )
        except InvalidParameterError as error:
            raise InputError(str(error)) from error

    def _add(self, X: Any, y: Any, sample_weight: Any, *, reset: bool) -> Self:
        self._check_parameters()
        stream: RowStream | None = None if reset else self._stream.copy()
        seen = False
        if reset:
            self._seed = self._seeded(getattr(self, "random_state", 0))
        for rows, values, heavy in pieces(X, y, sample_weight):
            x, targets = self._checked(rows, values, reset=reset and not seen)
            seen = True
            weights = None if heavy is None else _checked_weights(heavy, x)
            if weights is not None and not weights.all():
                # A row of weight 0 is no row: not for blocks, nor for the choice of features.
                x, targets, weights = x[weights > 0], targets[weights > 0], weights[weights > 0]
            if stream is None:
                stream = RowStream(self._kind(targets), self.precision, whole_blocks(self._lead()))
            for of in _blocks(x) if scipy.sparse.issparse(x) else [slice(None)]:
                stream.add(_dense(x[of]), targets[of], None if weights is None else weights[of], self._choose)
        if stream is None or not stream.n_rows:
            msg = "only sample weights of zero" if seen else "no rows"
            raise InputError(msg, "at least one row of a weight that is not zero")
        features, moments = stream.total(self._choose)
        solution = solve(moments, self.alpha, fit_intercept=self.fit_intercept)
        self._stream, self._posterior = stream, None
        self.features_, self.moments_, self.solution_ = features, moments, solution
        self._publish()
        return self

    def to_model(self, target: str | tuple[str, ...] = "y", *, std: bool = False) -> LinearModel:
        """The fit as a model that can be saved, and that `streamfit predict` and `export-model` read.

        Parameters
        ----------
        target : str or tuple of str
            Names of the targets' columns.
        std : bool
            Whether it carries its posterior, n_features² numbers, for standard deviations of predictions.
        """
        check_is_fitted(self, "solution_")
        named = getattr(self, "feature_names_in_", None)
        names = [f"x{j}" for j in range(self.n_features_in_)] if named is None else [str(name) for name in named]
        targets = [target] if isinstance(target, str) else list(target)
        reader: dict[str, Any] = {"kind": "table", "features": names, "target": targets}
        reader |= {"weight": None, "n_classes": len(self.classes_) if hasattr(self, "classes_") else 0}
        if hasattr(self, "classes_"):
            reader["classes"] = np.asarray(self.classes_).tolist()
        found = self._uncertainty() if std else None
        return LinearModel(self.features_, self.solution_, {"reader": reader, "n_rows": self.moments_.n_rows}, found)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the features that weights belong to, in the order of `coef_`.

        Parameters
        ----------
        input_features : array-like of str, optional
            Names of the inputs; those seen in fit without it.

        Raises
        ------
        InputError
            If they are not those of the fit.
        """
        check_is_fitted(self, "solution_")
        seen = getattr(self, "feature_names_in_", None)
        if input_features is None:
            names = [f"x{j}" for j in range(self.n_features_in_)] if seen is None else list(seen)
        else:
            names = list(input_features)
            if len(names) != self.n_features_in_ or (seen is not None and names != list(seen)):
                msg = f"input_features {names[:5]}"
                raise InputError(msg, f"the {self.n_features_in_} names of the fit")
        return np.asarray(self._names(names), dtype=object)

    def _names(self, inputs: list[str]) -> list[str]:
        return self.features_.names()

    def _scores(self, x: Any) -> np.ndarray:
        """Predictions of the indicators or targets, shape (n_rows, n_targets), of checked inputs."""
        model = LinearModel(self.features_, self.solution_)
        return np.concatenate([model.predict(_dense(x[of])) for of in _blocks(x)])

    def _uncertainty(self) -> Posterior:
        if self._posterior is None:
            self._posterior = self._posterior_of(self.moments_)
        return self._posterior

    def _posterior_of(self, sums: Moments | Centered) -> Posterior:
        weight = self.moments_.total_weight
        return posterior(sums, self.alpha, fit_intercept=self.fit_intercept, n_observations=weight)

    def _variances(self, x: Any, found: Posterior) -> np.ndarray:
        """Predictive variances of checked inputs, shape (n_rows, n_targets)."""
        return np.concatenate([found.predictive_variance(self.features_(_dense(x[of]))) for of in _blocks(x)])

    def _inputs(self, X: Any) -> Any:
        accepted = "csr" if self._sparse else False
        return validate_data(self, X, dtype=_FLOATS, accept_sparse=accepted, order="C", reset=False)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self._sparse
        return tags


class MomentsRegressor(MultiOutputMixin, RegressorMixin, MomentsEstimator):  # type: ignore[misc]
    """Estimators of numbers."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to rows, forgetting earlier ones.

        Parameters
        ----------
        X : array-like, data frame, Arrow table or stream, dask array or data frame; of shape (n_samples, n_features)
            A dask collection is read a block at a time, an Arrow stream by batches.
        y : array-like or dask collection of shape (n_samples,) or (n_samples, n_targets)
        sample_weight : array-like or dask collection of shape (n_samples,), optional
            A row of weight 2 counts as two, one of weight 0 as none: in the sums. Which rows are the first
            `sample_rows`, from which kernels are chosen, is by rows and not by their weights.
        """
        return self._add(X, y, sample_weight, reset=True)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Add rows to those fitted before and solve again: bit for bit the fit of all of them in this order.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        """
        return self._add(X, y, sample_weight, reset=not hasattr(self, "moments_"))

    def _checked(self, x: Any, y: Any, *, reset: bool) -> tuple[Any, np.ndarray]:
        sparse = "csr" if self._sparse else False
        how = {"dtype": _FLOATS, "accept_sparse": sparse, "order": "C", "multi_output": True, "y_numeric": True}
        x, y = validate_data(self, x, y, **how, reset=reset)
        shape = np.shape(y)[1:]
        if reset:
            self._target_shape = shape
        elif shape != self._target_shape:
            msg = f"y of shape {np.shape(y)}"
            raise InputError(msg, f"(n_samples{''.join(f', {n}' for n in self._target_shape)}) as before")
        return x, np.asarray(y, dtype=np.float64).reshape(x.shape[0], -1)

    def _kind(self, targets: np.ndarray) -> Targets:
        return Dense(targets.shape[1])

    def _publish(self) -> None:
        weights, intercept = self.solution_.weights, self.solution_.intercept
        self.coef_ = weights[:, 0] if not self._target_shape else weights.T
        self.intercept_ = float(intercept[0]) if not self._target_shape else intercept

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predict targets, and how far off a new one may be.

        Parameters
        ----------
        X : as for `fit`
            Predictions of a dask collection are a dask array, computed when it is.
        return_std : bool
            Return the standard deviation of a new target of weight 1 about its prediction as well: noise, and the
            uncertainty of weights and intercept (`streamfit.posterior`). The noise is estimated from the residuals,
            each row counting as often as its weight says.

        Returns
        -------
        y : array of shape (n_samples,) or (n_samples, n_targets)
        std : array of the shape of y
            With `return_std` only.

        Raises
        ------
        SolveError
            With `return_std`, if there are no more rows than degrees of freedom, or no unique optimum.
        """
        check_is_fitted(self, "solution_")
        if return_std:
            self._uncertainty()  # once, and not in each block
        both = self._lazily(X, return_std) if is_dask_collection(X) else self._predicted(X, return_std)
        n = self.moments_.frame.n_targets
        found = [both[:, :n], both[:, n:]] if return_std else [both]
        shown = [part[:, 0] if not self._target_shape else part for part in found]
        return tuple(shown) if return_std else shown[0]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Share of the variance explained, R², the mean over targets; see `fit` for what may be given."""
        return float(r2_score(local(y), local(self.predict(X)), sample_weight=local(sample_weight)))

    def _predicted(self, X: Any, return_std: bool) -> np.ndarray:
        rows = [self._inputs(local_rows) for local_rows in _row_pieces(X)]
        parts = [self._scores(x) for x in rows]
        predictions = np.concatenate(parts) if len(parts) > 1 else parts[0]
        if not return_std:
            return predictions
        spread = np.sqrt(np.concatenate([self._variances(x, self._uncertainty()) for x in rows]))
        return np.concatenate([predictions, spread], axis=1)

    def _lazily(self, X: Any, return_std: bool) -> Any:
        import dask.array as da  # takes long, and few tables are dask's

        n = self.moments_.frame.n_targets * (2 if return_std else 1)
        known = list(X.chunks[0]) if hasattr(X, "chunks") else [np.nan] * X.npartitions
        me = delayed(self, traverse=False)
        kind = np.result_type(np.float32, getattr(X, "dtype", np.float64))
        parts = [
            da.from_delayed(_predict_block(me, block, return_std), (rows, n), dtype=kind)
            for block, rows in zip(dask_blocks(X), known, strict=True)
        ]
        return da.concatenate(parts, axis=0, allow_unknown_chunksizes=True)


def _row_pieces(X: Any) -> Iterator[Any]:
    return (x for x, _, _ in pieces(X, None))


@delayed  # type: ignore[untyped-decorator]
def _predict_block(me: MomentsRegressor, block: Any, return_std: bool) -> np.ndarray:
    if not len(block):
        return np.empty((0, me.moments_.frame.n_targets * (2 if return_std else 1)))
    return me._predicted(block, return_std)


def _blocks(x: Any) -> Iterator[slice]:
    return (slice(lo, min(lo + BLOCK_ROWS, x.shape[0])) for lo in range(0, x.shape[0], BLOCK_ROWS))


def _dense(x: Any) -> np.ndarray:
    return np.asarray(x.toarray() if scipy.sparse.issparse(x) else x)


def _checked_weights(weights: Any, x: Any) -> np.ndarray:
    checked = _check_sample_weight(local(weights), x, dtype=np.float64)
    if (checked < 0).any():
        msg = f"a sample weight of {checked.min():g}"
        raise InputError(msg, "weights >= 0")
    return np.asarray(checked)
