"""Linear models as they are kept and used: features, weights, certificate; and scikit-learn estimators.

Floor 6: imports features, moments, solve. Models are saved as safetensors + JSON, never pickle.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors
import safetensors.numpy
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from streamfit.arrays import Precision
from streamfit.errors import ConfigError, StoreError
from streamfit.features import RBF, Chain, FeatureMap, Linear, Standardize, choose_centers, from_spec, median_gamma
from streamfit.frame import BLOCK_ROWS, Frame
from streamfit.moments import Moments, MomentsAccumulator
from streamfit.solve import Certificate, Solution, solve
from streamfit.targets import Dense

FORMAT = "streamfit-model-1"


@dataclass(frozen=True)
class LinearModel:
    """Features and the weights of one solve.

    Parameters
    ----------
    features : FeatureMap
    solution : Solution
    info : dict
        JSON: what it was fitted on, column names, alpha path.
    """

    features: FeatureMap
    solution: Solution
    info: dict[str, Any] = field(default_factory=dict)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Predict targets.

        Parameters
        ----------
        x : array of shape (n_rows, n_inputs), or csr_array of hashed features

        Returns
        -------
        array of shape (n_rows, n_targets)
        """
        blocks = [
            self.solution.predict(self.features(x[lo : lo + BLOCK_ROWS])) for lo in range(0, x.shape[0], BLOCK_ROWS)
        ]
        return np.concatenate(blocks) if blocks else np.empty((0, len(self.solution.intercept)))

    def to_parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Description as JSON and named arrays."""
        spec, arrays = self.features.to_spec()
        named = {f"features.{name}": np.ascontiguousarray(a) for name, a in arrays.items()}
        named |= {"weights": np.ascontiguousarray(self.solution.weights), "intercept": self.solution.intercept}
        if self.solution.target_alphas is not None:
            named["target_alphas"] = self.solution.target_alphas
        kept = ("alpha", "method", "rank", "effective_dof", "block_alphas")
        solved = {name: getattr(self.solution, name) for name in kept}
        solved["certificate"] = asdict(self.solution.certificate)
        return {"features": spec, "solution": solved, "info": self.info}, named

    @classmethod
    def from_parts(cls, spec: dict[str, Any], arrays: dict[str, np.ndarray]) -> LinearModel:
        """Inverse of `to_parts`."""
        prefix = "features."
        features = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
        solved = {**spec["solution"], "certificate": Certificate(**spec["solution"]["certificate"])}
        weights, intercept, alphas = arrays["weights"], arrays["intercept"], arrays.get("target_alphas")
        solution = Solution(weights=weights, intercept=intercept, target_alphas=alphas, **solved)
        return cls(from_spec(spec["features"], features), solution, spec["info"])

    def save(self, folder: str | Path) -> None:
        """Write `model.json` and `model.safetensors` into a folder."""
        write_model(folder, "linear", *self.to_parts())

    @classmethod
    def load(cls, folder: str | Path) -> LinearModel:
        """Read a model back.

        Raises
        ------
        StoreError
            If the folder holds no such model or a file is damaged.
        """
        return cls.from_parts(*read_model(folder, "linear"))


def write_model(folder: str | Path, kind: str, spec: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a model's JSON and arrays; each file is replaced whole or not at all.

    Raises
    ------
    StoreError
        If the folder cannot be written.
    """
    folder = Path(folder)
    text = json.dumps({"format": FORMAT, "kind": kind, **spec}, indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in (("model.safetensors", safetensors.numpy.save(arrays)), ("model.json", text.encode())):
            partial = folder / f"{name}.partial"
            partial.write_bytes(data)
            partial.replace(folder / name)
    except OSError as error:
        msg = f"cannot write the model to {folder}: {error.strerror}"
        raise StoreError(msg, "a writable folder", "check disk space and permissions") from error


def read_model(folder: str | Path, kind: str | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read what `write_model` wrote.

    Raises
    ------
    StoreError
        If it is missing, damaged, of another format, or of another kind than asked for.
    """
    folder = Path(folder)
    try:
        spec = json.loads((folder / "model.json").read_bytes())
        arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    except FileNotFoundError as error:
        missing = next(n for n in ("model.json", "model.safetensors") if not (folder / n).is_file())
        msg = f"no model in {folder}: {missing} is missing"
        raise StoreError(msg, "a folder that `streamfit fit` or `solve` wrote", "check the path") from error
    except (ValueError, OSError, safetensors.SafetensorError) as error:
        msg = f"the model in {folder} cannot be read: {error}"
        raise StoreError(msg, "whole model files", "solve again; the store is not affected") from error
    if not isinstance(spec, dict) or spec.get("format") != FORMAT:
        msg = f"the model in {folder} has format {spec.get('format') if isinstance(spec, dict) else spec!r}"
        raise StoreError(msg, FORMAT, "use the release that wrote it")
    if kind is not None and spec["kind"] != kind:
        msg = f"the model in {folder} is of kind {spec['kind']!r}"
        raise StoreError(msg, f"kind {kind!r}")
    return spec, arrays


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
