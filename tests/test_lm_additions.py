"""A language model that takes its text in parts ends at the bits of one pass; the pipeline would see if it did not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import lm_additions
from streamfit.text import ExpertSettings, LanguageSettings
from tests.languages import benchmark_text

SETTINGS = LanguageSettings(
    vocab_size=300, tokenizer="words", n_context=3, n_centers=0, linear=False, ngram_order=3, topic_dims=8,
    topic_window=16, n_folds=1,
)  # fmt: skip
EXPERTS = ExpertSettings(("ngram", "refined"), classes=(20,))


def test_parts_in_any_order_are_one_pass(tmp_path: Path):
    data = benchmark_text(tmp_path / "data")
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "valid.txt").write_text((data / "valid.txt").read_text())
    text = (data / "train.txt").read_text()
    given = text, tmp_path / "valid", tmp_path / "run", SETTINGS, EXPERTS, 10.0
    found = lm_additions.additions(*given, n=5, n_rows=500)
    assert (found.moments, found.weights, found.counts, found.model) == (True,) * 4
    assert (found.parts, len(found.seconds)) == (5, 5)
    assert found.tokens == len(text.split()) + len(text.splitlines())  # line ends are tokens
    first, second = lm_additions.lines(found)
    assert "5 additions: moments equal, weights equal, counts equal, model equal" in first
    assert "all at once" in second
    assert "weights DIFFERENT" in lm_additions.lines(replace(found, weights=False))[0]


def test_what_is_not_equal_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One part is counted in the second store with a word changed."""
    data = benchmark_text(tmp_path / "data")
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "valid.txt").write_text((data / "valid.txt").read_text())
    accumulate, done = lm_additions.accumulate, []

    def tampered(store, source):
        done.append(store)
        if len(done) == 2:  # before the first addition
            path = Path(source.shards()[0].uri)
            path.write_text(" ".join(path.read_text().split(" ")[:-5]))
        accumulate(store, source)

    monkeypatch.setattr(lm_additions, "accumulate", tampered)
    text = (data / "train.txt").read_text()
    given = text, tmp_path / "valid", tmp_path / "run", SETTINGS, EXPERTS, 10.0
    found = lm_additions.additions(*given, n=3, n_rows=500)
    assert (found.moments, found.weights, found.counts, found.model) == (False,) * 4
