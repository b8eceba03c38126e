"""A model leaves as ONNX: what onnxruntime computes of it is what the model predicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.stats

from streamfit import RBF, Hashed, Linear, LinearModel, Nystroem, RandomFourier, RidgeClassifier, Standardize
from streamfit.errors import ConfigError, MismatchError
from streamfit.features import Chain, FeatureMap
from streamfit.features.nystroem import computed_wide as nystroem_wide
from streamfit.features.rbf import computed_wide as rbf_wide
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.onnx_model import export_onnx, onnx_model
from streamfit.solve import posterior
from streamfit.targets import Dense

RNG = np.random.default_rng(5)
X = RNG.normal(size=(1500, 4)) * [1.0, 50.0, 0.01, 1.0] + [0.0, 4000.0, 2.0, -1.0]
Z = (X - X.mean(axis=0)) / X.std(axis=0)
Y = np.column_stack([np.sin(Z[:, 0]) + Z[:, 1], Z[:, 2] * Z[:, 3]]) + 0.1 * RNG.normal(size=(1500, 2))
SCALE = Standardize.fit(X)
FEATURES: dict[str, FeatureMap] = {
    "linear": Linear(4),
    "standardize": SCALE,
    "rbf": Chain(SCALE, RBF(Z[:60], 0.2)),
    "fourier": Chain(SCALE, RandomFourier(80, 0.2, 3, 4)),
    "nystroem": Chain(SCALE, Nystroem(Z[:40], 0.02)),
    "sum": Linear(4) + Chain(SCALE, RBF(Z[:30], 0.3)) + Chain(SCALE, RandomFourier(30, 0.1, 1, 4)),
    "picked": (SCALE + Chain(SCALE, RandomFourier(30, 0.1, 1, 4))).keep([0, 2, 7, 9, 30]),
    "picked once": Chain(SCALE, RandomFourier(30, 0.1, 1, 4).keep([3, 4, 8])),
    "narrow rbf": RBF(X[:50], 0.5),
    "narrow nystroem": Chain(SCALE, Nystroem(Z[:60], 3e-3)),
}


def model_of(features: FeatureMap) -> LinearModel:
    phi = features(X)
    frame = Frame.from_sample(phi, Y, Dense(2), features.bounds)
    found = posterior(Moments.from_rows(phi, Y, frame, Dense(2)), 1e-2)
    reader = {"kind": "table", "features": list("abcd"), "target": ["u", "v"], "n_classes": None}
    return LinearModel(features, found.solution, {"reader": reader, "data": {"licence": "CC0-1.0"}}, found)


def run(made: onnx.ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": x}), strict=True))


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 3e-5), ("float64", 1e-9)])
def test_onnxruntime_predicts_what_the_model_does(name, dtype, rtol):
    model, x = model_of(FEATURES[name]), X.astype(dtype)
    found = run(onnx_model(model, dtype=dtype, std=True), x)
    assert set(found) == {"predicted", "std"}
    assert found["predicted"].dtype == np.dtype(dtype)
    # Relative to what a prediction is summed from: weights may be large and cancel.
    size = np.abs(model.features(x)) @ np.abs(model.solution.weights) + np.abs(model.solution.intercept)
    assert np.max(np.abs(found["predicted"] - model.predict(x)) / size) < rtol
    np.testing.assert_allclose(found["std"], model.predict_std(x), rtol=100 * rtol)
    assert onnx_names(model) == {"predicted"}


def onnx_names(model: LinearModel) -> set[str]:
    return {output.name for output in onnx_model(model).graph.output}


def test_narrow_kernels_are_computed_in_float64_there_as_here():
    """The two ways of `RBF` and `Nystroem`; else the cases above would show one of them only."""
    assert rbf_wide(FEATURES["narrow rbf"])
    assert not rbf_wide(FEATURES["rbf"].outer)
    assert nystroem_wide(FEATURES["narrow nystroem"].outer)
    assert not nystroem_wide(Nystroem(Z[:4], 0.5))


def test_classes_have_an_id_and_names(tmp_path: Path):
    labels = np.array(["low", "mid", "high"])[np.digitize(Y[:, 0], [-0.5, 0.5])]
    fitted = RidgeClassifier().fit(X, labels)
    export_onnx(fitted.to_model("size"), tmp_path / "m.onnx", dtype="float64")
    made = onnx.load(tmp_path / "m.onnx")
    found = run(made, X)
    assert np.array_equal(fitted.classes_[found["class_id"]], fitted.predict(X))
    facts = {p.key: p.value for p in made.metadata_props}
    assert facts["classes"] == '["high", "low", "mid"]'
    assert facts["targets"] == '["size"]'
    assert {"certificate", "inputs", "alpha"} <= facts.keys()


def test_deviations_cover_what_they_say():
    model = model_of(FEATURES["rbf"])
    x = RNG.normal(size=(4000, 4)) * X.std(axis=0) + X.mean(axis=0)
    z = (x - X.mean(axis=0)) / X.std(axis=0)
    y = np.sin(z[:, 0]) + z[:, 1] + 0.1 * RNG.normal(size=4000)
    found = run(onnx_model(model, std=True), x.astype(np.float32))
    away = (y - found["predicted"][:, 0]) / found["std"][:, 0]
    assert abs(np.mean(np.abs(away) < scipy.stats.norm.ppf(0.95)) - 0.9) < 0.05


def test_what_cannot_leave_is_refused(tmp_path: Path):
    model = model_of(Linear(4))
    with pytest.raises(ConfigError, match="features of kind Hashed in ONNX"):
        onnx_model(LinearModel(Hashed(16, ("a",)), model.solution))
    with pytest.raises(MismatchError, match="without its posterior"):
        onnx_model(LinearModel(model.features, model.solution), std=True)
    with pytest.raises(ConfigError, match="dtype 'float16'"):
        onnx_model(model, dtype="float16")
    with pytest.raises(ConfigError, match="cannot write"):
        export_onnx(model, tmp_path / "none" / "m.onnx")
