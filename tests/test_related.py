"""Related tokens: what stands in the same places is near, whatever it is; and texts are near that share such words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamfit.errors import ConfigError
from streamfit.text import LanguageModel, Tokenizer
from streamfit.text.contexts import context_rows
from streamfit.text.ngram import NgramCounts
from streamfit.text.related import Related
from tests.languages import folder, language
from tests.test_cli import streamfit

ANIMALS, TOOLS = ("cat", "dog", "owl"), ("saw", "axe", "drill")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """A model that has counted sentences in which animals eat and tools cut."""
    rng = np.random.default_rng(0)
    texts = [
        f"the {rng.choice(ANIMALS)} eats the {rng.choice(['fish', 'bread'])} and "
        f"the {rng.choice(TOOLS)} cuts the {rng.choice(['wood', 'rope'])}"
        for _ in range(300)
    ]
    tokenizer = Tokenizer.train(texts, 330)
    contexts, tokens = context_rows(tokenizer.encode(texts), 2)
    counts = NgramCounts.from_rows(contexts, tokens, tokenizer.vocab_size)
    return replace(language(), tokenizer=tokenizer, counts=counts)


@pytest.mark.parametrize("group", [ANIMALS, TOOLS])
def test_words_that_stand_in_the_same_places_are_nearest(model, group):
    found = Related.of(model, dims=8)
    for word in group:
        nearest = found.tokens(word, 2)
        assert {each.text.strip() for each in nearest} == {*group} - {word}
        assert nearest[0].similarity > 0.9
        assert all(each.count > 50 for each in nearest)


def test_texts_are_near_that_have_related_words(model):
    among = ["owl fish", "drill rope", "axe wood", "cat bread", "dog fish", "☃", ""]
    found = Related.of(model, dims=8).texts("dog fish", among, 3)
    assert [each.text for each in found[:2]] in (["owl fish", "cat bread"], ["cat bread", "owl fish"])
    assert found[0].similarity > found[2].similarity + 0.2


def test_similarities_are_cosines_and_the_same_each_time(model):
    first, second = Related.of(model), Related.of(model)
    np.testing.assert_array_equal(first.vectors, second.vectors)
    for each in first.tokens("cat", 50, least=1):
        assert -1.0 - 1e-6 <= each.similarity <= 1.0 + 1e-6
        assert each.text.strip() != "cat"
    with pytest.raises(ConfigError, match="no token was seen"):
        first.tokens("☃")
    with pytest.raises(ConfigError, match="single tokens"):
        Related.of(replace(model, counts=model.counts.lower(1)))


def test_the_command_shows_related_words(tmp_path: Path):
    (tmp_path / "q.txt").write_text("return a string\nraise an error\n")
    facts = json.loads(streamfit("related", folder(), "self", "--json", "--among", tmp_path / "q.txt").stdout)
    assert len(facts["tokens"]) == 10
    assert {each["text"] for each in facts["texts"]} == {"return a string", "raise an error"}
    shown = streamfit("related", folder(), "self", "--top", 3)
    assert shown.returncode == 0, shown.stderr
    assert "like 'self'" in shown.stdout
    assert streamfit("related", folder(), "self", "--among", tmp_path).returncode == 2


def test_unknown_words_count_nothing_and_are_told():
    texts = ["the cat eats fish", "the dog eats bread", "the <unk> eats bread"] * 40
    tokenizer = Tokenizer.train(texts, 257, "words")
    contexts, tokens = context_rows(tokenizer.encode(texts), 2)
    counts = NgramCounts.from_rows(contexts, tokens, tokenizer.vocab_size)
    found = Related.of(replace(language(), tokenizer=tokenizer, counts=counts), dims=4)
    assert counts.lower(1).counts[counts.lower(1).grams[:, 0] == tokenizer.unknown].sum() == 40, "seen, and yet unknown"
    assert found.unknown("cat zebra") == 1
    assert found.unknown("cat") == 0
    both = [[each.text for each in found.tokens(query, 3, least=1)] for query in ("cat zebra", "cat")]
    assert both[0] == both[1]
    assert "<unk>" not in both[0]
    with pytest.raises(ConfigError, match="no token was seen"):
        found.tokens("zebra")
    assert [each.text for each in found.texts("cat", ["zebra", "dog"])] == ["dog"]
