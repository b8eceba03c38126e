"""Networks over contexts beside counts: sums of other decays are of one spread, and the pipeline runs on small text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines import compare_lm, network_lm
from streamfit.features.windows import Decayed
from streamfit.text import ExpertSettings
from streamfit.text.topic import with_decay
from tests.languages import benchmark_text


@pytest.mark.parametrize("decay", network_lm.DECAYS)
def test_sums_of_another_decay_have_the_spread_of_the_first(decay: float):
    rng = np.random.default_rng(0)
    own = Decayed(rng.normal(size=(50, 3)).astype(np.float32), 0.9, 2000)
    stream = rng.integers(0, 50, 60_000)
    rows = np.lib.stride_tricks.sliding_window_view(stream, 2000)[::20]
    spread = own(rows).std(axis=0)
    other = with_decay(own, decay)(rows).std(axis=0)
    np.testing.assert_allclose(other, spread, rtol=0.3 if decay > 0.99 else 0.1)  # few independent rows of long sums


@pytest.mark.slow
def test_the_pipeline_runs_from_a_model_to_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = benchmark_text(tmp_path / "data")
    small = replace(compare_lm.SETTINGS, vocab_size=300, topic_dims=8, topic_window=32)
    monkeypatch.setattr(compare_lm, "SETTINGS", small)
    few = ExpertSettings(("ngram", "refined"), classes=(20,), class_dims=16, cache=500)
    monkeypatch.setattr(compare_lm, "EXPERTS", few)
    run = ["--data", str(data), "--run", str(tmp_path / "run")]
    compare_lm.main(compare_lm.parsed([*run, "--peers-times", "", "--fractions", ""]))
    options = ["--model", str(tmp_path / "run/model"), "--features", "20", "--centers", "10", "--rows", "400"]
    report = network_lm.main(network_lm.parsed(["--data", str(data), "--run", str(tmp_path / "nets"), *options]))
    by_name = {one["name"]: one for one in report["validation"]}
    assert by_name["near, alone"]["n_features"] > 10
    assert all(1 < one["perplexity"] < 400 for one in by_name.values())
    # Another expert does not make a mixture of weights chosen on as many rows much worse.
    assert by_name["counts and near as an expert"]["perplexity"] < 1.1 * by_name["counts"]["perplexity"]
    assert set(report["test"]) >= {"counts, topic linear"}
    assert json.loads((tmp_path / "nets/network_lm.json").read_text())["validation"] == report["validation"]
