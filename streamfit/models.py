"""Linear models as they are kept and used: features, weights, certificate, where the data came from.

Floor 6: imports features, solve, card. Models are saved as safetensors + JSON, never pickle, with a card for people.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from streamfit.card import card_of
from streamfit.errors import MismatchError, StoreError
from streamfit.features import FeatureMap, from_spec
from streamfit.frame import BLOCK_ROWS
from streamfit.solve import Certificate, Posterior, Solution

FORMAT = "streamfit-model"
SCHEMA_VERSION = 2
"""Of `model.json`. Version 1 had the number in its format's name, and neither data nor posterior."""
_FIRST = "streamfit-model-1"
CARD = "README.md"
_SPREAD = ("noise_variance", "mean_x", "factor", "posterior_scale", "sampling_scale")
_COUNTS = ("n_observations", "effective_dof", "residual_dof", "weight", "fit_intercept")
_ROUNDING = 1e-4
"""Of the targets' spread: what rounding in float32 may take from a prediction before it is computed in float64."""


@dataclass(frozen=True)
class LinearModel:
    """Features and the weights of one solve.

    Parameters
    ----------
    features : FeatureMap
    solution : Solution
    info : dict
        JSON: how rows are read (`reader`), column names, alpha path, and where the rows came from (`data`, see
        `streamfit.provenance`).
    posterior : Posterior, optional
        Of this solution, for standard deviations of predictions; its factor has n_features² numbers.
    """

    features: FeatureMap
    solution: Solution
    info: dict[str, Any] = field(default_factory=dict)
    posterior: Posterior | None = None

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Predict targets.

        Parameters
        ----------
        x : array of shape (n_rows, n_inputs), or csr_array of hashed features

        Returns
        -------
        array of shape (n_rows, n_targets)
            Of float32 inputs in float32, also where `needs_float64` has them computed in float64.
        """
        blocks = [self.solution.predict(phi) for phi in self._blocks(x)]
        found = np.concatenate(blocks) if blocks else np.empty((0, len(self.solution.intercept)))
        return found.astype(x.dtype) if self._widens(x) else found

    def predict_std(self, x: np.ndarray) -> np.ndarray:
        """Standard deviation of a new target of weight 1 about its prediction; see `Posterior.predictive_variance`.

        Parameters
        ----------
        x : array of shape (n_rows, n_inputs)

        Returns
        -------
        array of shape (n_rows, n_targets)

        Raises
        ------
        MismatchError
            If the model was saved without its posterior.
        """
        if self.posterior is None:
            msg = "a model without its posterior"
            raise MismatchError(msg, "one that carries it", "save it by `streamfit solve --std`")
        blocks = [np.sqrt(self.posterior.predictive_variance(phi)) for phi in self._blocks(x)]
        return np.concatenate(blocks) if blocks else np.empty((0, len(self.solution.intercept)))

    @cached_property
    def needs_float64(self) -> bool:
        """Whether weights are so large, and cancel so much, that float32 would lose digits of predictions.

        Those that whitening gives a kernel are. Each term φ_j B_j is off by about eps |φ_j B_j|, and the largest
        eigenvalue of the system that was solved, which the certificate has, bounds the features' spread; of all targets
        together. What means far from zero take is not in it, nor what features themselves lose in float32. True where
        the eigenvalue is not known.
        """
        proof, size = self.solution.certificate, float(np.linalg.norm(self.solution.weights))
        if size == 0.0 or proof.null_loss == 0.0:
            return False
        largest = proof.condition * proof.strong_convexity
        lost = float(np.finfo(np.float32).eps) * size * np.sqrt(largest / proof.null_loss)
        return not lost <= _ROUNDING  # nor where it is NaN

    def _blocks(self, x: np.ndarray) -> Iterator[np.ndarray]:
        dtype, starts = np.float64 if self._widens(x) else x.dtype, range(0, x.shape[0], BLOCK_ROWS)
        return (self.features(x[lo : lo + BLOCK_ROWS].astype(dtype, copy=False)) for lo in starts)

    def _widens(self, x: np.ndarray) -> bool:
        return x.dtype == np.float32 and self.needs_float64

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
        described = {"features": spec, "solution": solved, "info": self.info}
        if self.posterior is not None:
            found = self.posterior
            named |= {f"posterior.{name}": np.ascontiguousarray(getattr(found, name)) for name in _SPREAD}
            described["posterior"] = {name: getattr(found, name) for name in _COUNTS}
        return described, named

    @classmethod
    def from_parts(cls, spec: dict[str, Any], arrays: dict[str, np.ndarray]) -> LinearModel:
        """Inverse of `to_parts`."""
        prefix = "features."
        features = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
        solved = {**spec["solution"], "certificate": Certificate(**spec["solution"]["certificate"])}
        weights, intercept, alphas = arrays["weights"], arrays["intercept"], arrays.get("target_alphas")
        solution = Solution(weights=weights, intercept=intercept, target_alphas=alphas, **solved)
        found = None
        if "posterior" in spec:
            kept: dict[str, Any] = {name: arrays[f"posterior.{name}"] for name in _SPREAD}
            found = Posterior(solution=solution, **kept, **spec["posterior"])
        return cls(from_spec(spec["features"], features), solution, spec["info"], found)

    def save(self, folder: str | Path) -> None:
        """Write `model.json`, `model.safetensors` and a card, `README.md`, into a folder."""
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


def refuse_folder(folder: str | Path) -> None:
    """Refuse to write a model over other files.

    Raises
    ------
    StoreError
        If the folder holds a README that is no model's.
    """
    if (Path(folder) / CARD).exists() and not (Path(folder) / "model.json").exists():
        msg = f"{folder} has a {CARD} and no model"
        raise StoreError(msg, "a folder of its own for the model, or one that has a model")


def write_model(folder: str | Path, kind: str, spec: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a model's JSON, arrays and card; each file is replaced whole or not at all.

    Raises
    ------
    StoreError
        If the folder cannot be written, or holds a README that is no model's.
    """
    refuse_folder(folder)
    release = f"streamfit {importlib.metadata.version('streamfit')}"
    whole = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "written_by": release, "kind": kind, **spec}
    # safetensors writes the bytes as they lie, which of a matrix in column order would be its transpose.
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    _write(Path(folder), {"model.safetensors": safetensors.numpy.save(arrays), **_texts(whole)})


def describe_model(folder: str | Path, changes: dict[str, str]) -> str:
    """Change what a model says of its data, such as title and licence, and write its card again; returns the card.

    Raises
    ------
    StoreError
        As `read_model`, and if the folder cannot be written.
    """
    spec, _ = read_model(folder)
    info = (spec.get("network") or spec).setdefault("info", {})
    info["data"] = {**info.get("data", {}), **changes}
    texts = _texts(spec)
    if changes:
        _write(Path(folder), texts)
    return texts[CARD].decode()


def _texts(spec: dict[str, Any]) -> dict[str, bytes]:
    return {"model.json": json.dumps(spec, indent=1).encode(), CARD: card_of(spec).encode()}


def _write(folder: Path, files: dict[str, bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
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
        If it is missing, damaged, of another format or a newer version of it, or of another kind than asked for.
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
    if not isinstance(spec, dict) or spec.get("format") not in (FORMAT, _FIRST):
        msg = f"the model in {folder} has format {spec.get('format') if isinstance(spec, dict) else spec!r}"
        raise StoreError(msg, FORMAT, "use the release that wrote it")
    version = spec.get("schema_version", 1 if spec["format"] == _FIRST else None)
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        msg = f"the model in {folder} has schema version {version!r}, written by {spec.get('written_by', 'an unknown')}"
        raise StoreError(msg, f"1 to {SCHEMA_VERSION}", "read it with the release that wrote it, or a newer one")
    if kind is not None and spec["kind"] != kind:
        msg = f"the model in {folder} is of kind {spec['kind']!r}"
        raise StoreError(msg, f"kind {kind!r}")
    return spec, arrays
