"""Linear models as they are kept and used: features, weights, certificate.

Floor 6: imports features, solve. Models are saved as safetensors + JSON, never pickle.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from streamfit.errors import StoreError
from streamfit.features import FeatureMap, from_spec
from streamfit.frame import BLOCK_ROWS
from streamfit.solve import Certificate, Solution

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
    # safetensors writes the bytes as they lie, which of a matrix in column order would be its transpose.
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
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
