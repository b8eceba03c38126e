"""The comparisons of language models: their own arithmetic, and one run of each on small text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines import compare_lm, specialised_lm
from streamfit.text.mixture import n_buckets


def test_near_duplicates_are_found():
    rng = np.random.default_rng(0)
    files = [rng.integers(1, 500, 400).astype(np.int32) for _ in range(6)]
    edited = files[2].copy()
    edited[200:206] = 1  # a small change
    files += [edited, np.concatenate([edited, files[5][:20]]), np.array([1, 2], np.int32)]
    group = specialised_lm.near_duplicates(files)
    assert group[2] == group[6] == group[7]
    assert len(set(group.tolist())) == len(files) - 2
    assert specialised_lm.held_out(40, 0.2).sum() == 8


def test_interpolation_remembers_all_that_has_one_answer():
    rng = np.random.default_rng(0)
    files = [(rng.zipf(1.4, 300) % 50).astype(np.int32) for _ in range(8)]
    found = specialised_lm.accuracies(files[2:], {"held out": files[:2], "a copy": files[2:3]}, 6, 50, 5000)
    assert found["exact, training contexts with one answer"] == 1.0
    assert found["training tokens"] == 6 * 301
    share = found["share of training tokens after contexts with one answer"]
    assert 0 < share < 1
    assert share <= found["exact, all training tokens"] < 1.0
    # What was in training is remembered, and there is nothing to be learnt for other files.
    assert found["exact, a copy"] > 0.8 > 0.6 > found["exact, held out"]


def test_weights_come_of_the_other_half():
    n, order = 4000, 2
    bucket = np.zeros(n, np.int64)
    tenth = np.arange(n) * 10 // n
    # One expert is right in even tenths and wrong in odd ones: what one half teaches misleads in the other.
    p = np.where(tenth % 2 == 0, 0.9, 0.1)
    crossed = compare_lm.halves(np.column_stack([p, 1.0 - p]), bucket, order)
    assert crossed > 5.0
    assert n_buckets(order) > 1
    same = compare_lm.halves(np.full((n, 2), 0.5), bucket, order)
    assert same == pytest.approx(2.0)


@pytest.mark.slow
def test_the_comparison_runs_from_text_to_tables(tmp_path: Path):
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    data.mkdir()
    for part, n_lines in (("train", 1500), ("valid", 250), ("test", 250)):
        lines = [" ".join(f"w{w}" for w in rng.zipf(1.3, 12) % 400) for _ in range(n_lines)]
        (data / f"{part}.txt").write_text("\n".join(lines))
    folders = ["--data", str(data), "--run", str(tmp_path / "run")]
    options = ["--peers-times", "", "--fractions", "0.5", "--every", "1500"]
    report = compare_lm.main(compare_lm.parsed([*folders, *options]))
    table = report["test"]
    assert {"unigram", "ngram", "static", "static, with cache", "adapted, with cache"} < set(table)
    assert table["static"]["perplexity"] < 400 + 2  # no worse than uniform over the words
    experts = [name for name in table if f"without {name}" in report["ablation"]]
    assert {"all experts", *(f"without {name}" for name in experts)} == set(report["ablation"])
    assert {"ngram", "suffix_ridge", "refined-250", "skip-1"} < set(experts)
    # A part of the text takes the vocabulary of all of it, in the same order.
    whole = json.loads((tmp_path / "run" / "model" / "tokenizer.json").read_text())["model"]["vocab"]
    assert whole == json.loads((tmp_path / "run" / "tokenizer.json").read_text())["model"]["vocab"]
    assert [c["share"] for c in report["closed_form_curve"]] == [0.5, 1.0]
    assert json.loads((tmp_path / "run" / "compare_lm.json").read_text()) == report
    assert (tmp_path / "run" / "compare_lm.svg").read_text().count("<svg") == 1
