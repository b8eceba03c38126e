"""The comparisons of language models: their own arithmetic, and one run of each on small text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines import compare_lm
from streamfit.text.contexts import Windows
from streamfit.text.mixture import n_buckets
from tests.languages import benchmark_text


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


class Halved:
    """A model of two tokens, as probable as they were among the rows that it was chosen on."""

    batch_rows = 7

    def __init__(self, chosen_on: float = 0.0) -> None:
        self.chosen_on = chosen_on

    def calibrated(self, contexts: np.ndarray, tokens: np.ndarray) -> Halved:
        return Halved(float(tokens.mean()))

    def distribution(self, contexts: np.ndarray) -> np.ndarray:
        return np.tile([1.0 - self.chosen_on, self.chosen_on], (len(contexts), 1))


def test_rows_are_scored_by_choices_on_the_other_half_alone():
    tokens = np.r_[np.arange(50) % 2, np.arange(49) % 5 == 0]  # a half of the first are 1, a fifth of the others
    windows = Windows([tokens.astype(np.int32)], 2)
    first, second = windows.tokens[:50], windows.tokens[50:]
    right = [np.where(half, other.mean(), 1 - other.mean()) for half, other in ((first, second), (second, first))]
    assert compare_lm.crossed(Halved(), windows) == pytest.approx(compare_lm.perplexity(np.concatenate(right)))


@pytest.mark.slow
def test_the_comparison_runs_from_text_to_tables(tmp_path: Path):
    data = benchmark_text(tmp_path / "data")
    folders = ["--data", str(data), "--run", str(tmp_path / "run")]
    options = ["--peers-times", "", "--fractions", "0.5", "--every", "1500"]
    report = compare_lm.main(compare_lm.parsed([*folders, *options]))
    table = report["test"]
    assert {"unigram", "ngram", "static", "static, with cache", "adapted, with cache"} < set(table)
    assert table["static"]["perplexity"] < 400 + 2  # no worse than uniform over the words
    experts = [name for name in table if f"without {name}" in report["ablation"]]
    assert {"all experts", *(f"without {name}" for name in experts)} == set(report["ablation"])
    assert {"ngram", "suffix_ridge", "refined-250", "skip-1"} < set(experts)
    assert [report["additions"][name] for name in ("moments", "weights", "counts", "model")] == [True] * 4
    # A part of the text takes the vocabulary of all of it, in the same order.
    whole = json.loads((tmp_path / "run" / "model" / "tokenizer.json").read_text())["model"]["vocab"]
    assert whole == json.loads((tmp_path / "run" / "tokenizer.json").read_text())["model"]["vocab"]
    assert [c["share"] for c in report["closed_form_curve"]] == [0.5, 1.0]
    assert json.loads((tmp_path / "run" / "compare_lm.json").read_text()) == report
    assert (tmp_path / "run" / "compare_lm.svg").read_text().count("<svg") == 1
