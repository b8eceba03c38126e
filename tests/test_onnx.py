"""A model leaves as ONNX: what onnxruntime computes of it is what the model predicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import scipy.stats

from streamfit import RBF, Hashed, Linear, LinearModel, Nystroem, RandomFourier, RidgeClassifier, Standardize
from streamfit.corpus.encode import features_of
from streamfit.corpus.parquet_rows import Batch
from streamfit.corpus.recipe import Recipe
from streamfit.errors import ConfigError, MismatchError
from streamfit.features import Chain, FeatureMap
from streamfit.features.lookup import Lookup
from streamfit.features.nystroem import computed_wide as nystroem_wide
from streamfit.features.rbf import computed_wide as rbf_wide
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.onnx_model import export_onnx, onnx_model
from streamfit.solve import posterior, whitened
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


@pytest.mark.filterwarnings("ignore:alpha 0.001 is below")
def test_weights_that_cancel_are_added_in_float64_there_as_here():
    kernel = RBF(Z[:60], 5e-3)
    features = Chain(SCALE, kernel)
    phi, reader = features(X), {"kind": "table", "features": list("abcd"), "target": ["u", "v"], "n_classes": None}
    frame = Frame.from_sample(phi, Y, Dense(2), features.bounds)
    found = whitened(Moments.from_rows(phi, Y, frame, Dense(2)), features).solve(1e-3)
    model, x = LinearModel(features, found, {"reader": reader}), X.astype(np.float32)
    made, exact = run(onnx_model(model), x)["predicted"], model.predict(x.astype(np.float64))
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, model.predict(x), rtol=1e-5, atol=1e-6)
    assert np.abs(made - exact).max() < 1e-5 < np.abs(found.predict(features(x)) - exact).max()


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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_look_up_tables_are_gathered(dtype):
    """As an embedding layer: a row of each table, and an index out of range is an error."""
    features = Lookup((RNG.normal(size=(9, 3)), RNG.normal(size=(9, 2))))
    x = RNG.integers(0, 9, (200, 2))
    phi = features(x)
    y = phi @ RNG.normal(size=(5, 1))
    found = posterior(Moments.from_rows(phi, y, Frame.identity(5, 1), Dense(1)), 1e-3)
    model = LinearModel(features, found.solution)
    made = onnx_model(model, dtype=dtype)
    np.testing.assert_allclose(run(made, x.astype(dtype))["predicted"], model.predict(x), rtol=1e-4, atol=1e-5)
    for bad in (-1, 9):
        with pytest.raises(Exception, match="out of data bounds"):
            run(made, np.full((1, 2), bad, dtype))


@pytest.mark.parametrize("missing", ["error", "mean"])
@pytest.mark.parametrize("unseen", ["error", "zero"])
@pytest.mark.parametrize("order", [("way", "a", "b", "kind"), ("a", "way", "b", "kind"), ("a", "b", "way", "kind")])
def test_categories_are_text_and_become_one_hot_as_in_the_fit(missing, unseen, order):
    recipe = Recipe(order, ("u",), categories=(("way", ("N", "S")), ("kind", ("p", "q", "r"))), unseen=unseen,
                    missing=missing, fills=(("a", (2.0,)), ("b", (-1.0,)), ("kind", (0.5, 0.25, 0.25)),
                                            ("way", (0.75, 0.25))) if missing == "mean" else ())  # fmt: skip
    table = pa.table({
        "way": RNG.choice(["N", "S"], 300), "kind": RNG.choice(["p", "q", "r"], 300),
        "a": RNG.normal(size=300), "b": RNG.normal(size=300),
    })  # fmt: skip
    if missing == "mean":
        holes = pa.array(RNG.random(300) < 0.2)
        table = pa.table(
            {n: pc.if_else(holes, pa.scalar(None, c.type), c) for n, c in zip(table.column_names, table, strict=True)}
        )
    rows = features_of("", Batch(table.combine_chunks().to_batches()[0], np.arange(300)), recipe)
    solution = posterior(
        Moments.from_rows(rows, RNG.normal(size=(300, 1)), Frame.identity(7, 1), Dense(1)), 1.0
    ).solution
    model = LinearModel(Linear(7), solution, {"reader": {"kind": "table", "recipe": recipe.to_json()}})
    made = onnx_model(model, dtype="float64")
    given = {"x": np.column_stack([table[n].to_numpy() for n in order if n in "ab"])}
    given |= {n: np.array([v or "" for v in table[n].to_pylist()], object) for n in ("way", "kind")}
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    assert {i.name for i in session.get_inputs()} == {"x", "way", "kind"}
    np.testing.assert_allclose(session.run(["predicted"], given)[0], model.predict(rows), rtol=1e-6, atol=1e-7)
    strange = {n: v[:1] for n, v in given.items()} | {"way": np.array(["W"], object)}
    if unseen == "error":
        with pytest.raises(Exception, match="Unknown Category"):
            session.run(None, strange)
    else:
        session.run(None, strange)


def test_means_stand_for_what_is_missing_without_categories_too():
    recipe = Recipe(("a", "b"), ("u",), missing="mean", fills=(("a", (2.0,)), ("b", (-1.0,))))
    x = RNG.normal(size=(50, 2))
    solution = posterior(Moments.from_rows(x, x[:, :1], Frame.identity(2, 1), Dense(1)), 1.0).solution
    model = LinearModel(Linear(2), solution, {"reader": {"kind": "table", "recipe": recipe.to_json()}})
    made = onnx_model(model, dtype="float64").SerializeToString()
    session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
    found = session.run(["predicted"], {"x": np.array([[1.0, np.nan], [np.nan, np.nan]])})[0]
    np.testing.assert_allclose(found, model.predict(np.array([[1.0, -1.0], [2.0, -1.0]])), rtol=1e-12)


def test_categories_that_cannot_leave_are_named():
    def model(order: tuple[str, ...], n: int, name: str) -> LinearModel:
        recipe = Recipe(order, ("u",), categories=((name, ("N", "S")),))
        solution = posterior(
            Moments.from_rows(X[:, :1] @ np.ones((1, n)), Y[:, :1], Frame.identity(n, 1), Dense(1)), 1.0
        )
        return LinearModel(Linear(n), solution.solution, {"reader": {"recipe": recipe.to_json()}})

    with pytest.raises(ConfigError, match=r"categories between 'list', 'b' in ONNX"):
        onnx_model(model(("list", "way", "b"), 7, "way"))
    onnx_model(model(("list", "b", "way"), 7, "way"))
    with pytest.raises(ConfigError, match="category called 'x'"):
        onnx_model(model(("x", "b"), 3, "x"))


def test_what_cannot_leave_is_refused(tmp_path: Path):
    model = model_of(Linear(4))
    with pytest.raises(ConfigError, match=r"hashed features of 'a' in ONNX.*categories"):
        onnx_model(LinearModel(Hashed(16, ("a",)), model.solution))
    with pytest.raises(MismatchError, match="without its posterior"):
        onnx_model(LinearModel(model.features, model.solution), std=True)
    with pytest.raises(ConfigError, match="dtype 'float16'"):
        onnx_model(model, dtype="float16")
    with pytest.raises(ConfigError, match="cannot write"):
        export_onnx(model, tmp_path / "none" / "m.onnx")
