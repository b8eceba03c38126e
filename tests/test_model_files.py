"""Models leave with what they are and where they came from; others can read them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from cli_runs import begin, ok, told

from streamfit import RBF, Linear, LinearModel, Nystroem, RandomFourier, Standardize, posterior
from streamfit.errors import StoreError
from streamfit.features import Chain, Concat
from streamfit.frame import Frame
from streamfit.models import read_model
from streamfit.moments import Moments
from streamfit.provenance import ledger_digest
from streamfit.store import Store
from streamfit.targets import Dense


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = begin(tmp_path_factory.mktemp("predict"))
    ok("solve", folder / "run", "--alpha", 2, "--std", "-o", folder / "model")
    return folder


def test_a_model_says_where_it_came_from(begun: Path):
    spec, arrays = read_model(begun / "model")
    data, store = spec["info"]["data"], Store(begun / "run" / "store")
    assert (spec["format"], spec["schema_version"]) == ("streamfit-model", 2)
    assert (data["n_rows"], data["n_shards"]) == (960, 16)
    assert data["ledger"] == ledger_digest(store)
    assert [(s["source"], s["n_rows"]) for s in data["sources"]] == [("code", 480), ("web", 480)]
    assert arrays["posterior.factor"].shape == (3, 3)
    shown = ok("card", begun / "model")
    assert shown == (begun / "model" / "README.md").read_text()
    for fact in (data["ledger"], data["commit"], "| web | 480 | 8 |", "alpha 2,", "Predicts `y` from `x0`, `x1`, `x2`"):
        assert fact in shown
    assert "Licence: not stated" in shown


def test_licence_and_title_are_set_without_touching_the_weights(begun: Path, tmp_path):
    shutil.copytree(begun / "model", tmp_path / "model")
    before = LinearModel.load(tmp_path / "model").solution.weights
    shown = ok("card", tmp_path / "model", "--licence", "CC-BY-4.0", "--title", "Signs")
    assert 'license: "CC-BY-4.0"' in shown
    assert "# Signs" in shown
    assert "Licence: CC-BY-4.0" in shown
    again = LinearModel.load(tmp_path / "model")
    assert again.info["data"]["licence"] == "CC-BY-4.0"
    assert np.array_equal(again.solution.weights, before)
    assert again.posterior is not None


def test_ledger_digests_tell_rows_apart_and_not_their_grouping(begun: Path, tmp_path):
    """Compaction changes segments, not rows; forgetting changes rows."""
    shutil.copytree(begun / "run", tmp_path / "run")
    shutil.copytree(begun / "corpus", tmp_path / "corpus")
    first = ledger_digest(Store(tmp_path / "run" / "store"))
    ok("compact", tmp_path / "run", "--max-live", 12)
    assert ledger_digest(Store(tmp_path / "run" / "store")) == first
    moved = ("--corpus", tmp_path / "corpus", "--machine", begun / "serial.toml")
    ok("forget", tmp_path / "run", "--shard", "web-2026-01.parquet", *moved)
    assert ledger_digest(Store(tmp_path / "run" / "store")) != first


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"schema_version": 3, "written_by": "streamfit 9.9"},
            "schema version 3, written by streamfit 9.9",
        ),
        ({"schema_version": "2"}, "schema version '2'"),
        ({"schema_version": None}, "schema version None"),
    ],
)
def test_another_schema_is_refused_by_number(begun: Path, tmp_path, change, complaint):
    shutil.copytree(begun / "model", tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StoreError, match=complaint):
        LinearModel.load(tmp_path / "model")


def test_models_of_the_first_schema_are_read(begun: Path, tmp_path):
    shutil.copytree(begun / "model", tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    old = json.loads(path.read_text())
    del old["schema_version"], old["written_by"], old["posterior"]
    path.write_text(json.dumps(old | {"format": "streamfit-model-1"}))
    assert LinearModel.load(tmp_path / "model").posterior is None


def read_by_the_page(folder: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and deviations from the files alone, by docs/models.md."""
    spec = json.loads((folder / "model.json").read_text())
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")

    def features(part: dict, x: np.ndarray) -> np.ndarray:
        of = {
            n: arrays[f"features.{v['array']}"] if isinstance(v, dict) and "array" in v else v for n, v in part.items()
        }
        kind = part["kind"]
        if kind == "Standardize":
            return (x - of["mean"]) / of["scale"]
        if kind in ("RBF", "Nystroem"):
            bumps = np.exp(-of["gamma"] * ((x[:, None, :] - of["centers"]) ** 2).sum(axis=2))
            return bumps if kind == "RBF" else bumps @ of["whitening"]
        if kind == "RandomFourier":
            return np.sqrt(2 / of["n"]) * np.cos(x @ of["frequencies"] + of["phases"])
        if kind == "Chain":
            return features(part["outer"], features(part["inner"], x))
        if kind == "Concat":
            return np.concatenate([features(each, x) for each in part["parts"]], axis=1)
        if kind == "Pick":
            return features(part["inner"], x)[:, of["indices"]]
        assert kind == "Linear"
        return x

    phi, known = features(spec["features"], x), spec["posterior"]
    away = (phi - arrays["posterior.mean_x"]) @ arrays["posterior.factor"].T
    level = 1 + (1 / known["weight"] if known["fit_intercept"] else 0) + (away**2).sum(axis=1)
    std = np.sqrt(arrays["posterior.noise_variance"] * level[:, None])
    return phi @ arrays["weights"] + arrays["intercept"], std


def test_the_page_on_models_is_enough_to_read_one(tmp_path):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(300, 3)) * [1.0, 20.0, 0.1]
    y = np.column_stack([np.sin(x[:, 0]), x[:, 1] / 20]) + 0.1 * rng.normal(size=(300, 2))
    scale = Standardize.fit(x)
    z = scale(x)
    maps = (Linear(3), Chain(scale, RBF(z[:20], 0.3)), Chain(scale, RandomFourier(25, 0.3, 2, 3)))
    maps += (Chain(scale, Nystroem(z[:15], 0.3)),)
    features = Concat(maps).keep([0, 2, 3, 8, 22, 30, 47, 50, 61])
    moments = Moments.from_rows(features(x), y, Frame.identity(9, 2), Dense(2))
    found = posterior(moments, 0.1)
    model = LinearModel(features, found.solution, {"reader": {"kind": "table"}}, found)
    model.save(tmp_path)
    predicted, std = read_by_the_page(tmp_path, x)
    np.testing.assert_allclose(predicted, model.predict(x), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(std, model.predict_std(x), rtol=1e-9)


def test_a_model_becomes_onnx_by_a_command(begun: Path, tmp_path):
    import onnxruntime

    assert "m.onnx" in ok("export-model", begun / "model", "--onnx", tmp_path / "m.onnx", "--std")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x = np.random.default_rng(2).normal(size=(20, 3)).astype(np.float32)
    found = session.run(["predicted"], {"x": x})[0]
    np.testing.assert_allclose(found, LinearModel.load(begun / "model").predict(x), rtol=1e-5)
    assert "dtype 'int8'" in told("export-model", begun / "model", "--onnx", tmp_path / "m.onnx", "--dtype", "int8")


def test_a_model_is_not_written_over_other_files(begun: Path, tmp_path):
    """A README that is no model's card stays as it is, and is found before anything is solved."""
    (tmp_path / "README.md").write_text("mine")
    for command in ("solve", "refine", "prune", "distill"):
        assert "has a README.md and no model" in told(command, begun / "run", "-o", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "mine"
