"""Explanations: shares add up to the probability, and centers stand in the corpus where they are said to stand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamfit.corpus import Files, Placed, TextFiles
from streamfit.engine import accumulate
from streamfit.errors import ConfigError
from streamfit.features import RBF, Chain, Linear, Lookup
from streamfit.solve import solve
from streamfit.solve.ridge import weights_for
from streamfit.store import Store
from streamfit.text import (
    ExpertSettings,
    LanguageModel,
    LanguageSettings,
    Tokenizer,
    assemble,
    explain,
    explain_page,
    find_origins,
    origins_of,
    prepare,
    token_source,
)
from streamfit.text.contexts import context_rows
from streamfit.text.origins import center_block
from tests.languages import MODELS, fitted, folder, language, many_experts
from tests.test_adapt import some_text
from tests.test_cli import streamfit

PROMPTS = ("", "import ", "def __init__(self", "    return ", "\x00☃")
WORDS = LanguageSettings(
    vocab_size=300, tokenizer="words", n_context=3, embedding_dims=24, n_centers=6, ngram_order=3, topic_dims=6,
    topic_window=24, n_folds=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> LanguageModel:
    """Words as tokens, a long window, and an expert that is worth nothing beside the others."""
    folder, parts = tmp_path_factory.mktemp("words"), []
    for seed, name in enumerate(("train", "valid")):
        (folder / name).mkdir()
        (folder / name / "text.txt").write_text(some_text(seed))
        parts.append(TextFiles(Files(str(folder / name))))
    store = Store.create(folder / "store", prepare(parts[0], WORDS))
    accumulate(store, token_source(store.header, parts[0]))
    experts = ExpertSettings(("network", "ngram", "skip", "classes"), classes=(4,), class_dims=4)
    model = assemble(store, solve(store.moments(), 10.0), parts[1], experts=experts)
    weights = model.mixture.copy()
    weights[:, model.experts.index("classes-4")] = 0.0
    return replace(model, mixture=weights / weights.sum(axis=1, keepdims=True))


def test_words_are_shown_with_spaces_and_a_long_window_has_one_mark_of_its_start(words):
    prompt = " ".join(some_text(0).split()[:3])
    found = explain(words, f"{prompt} ", origins=origins_of(words.network.info))
    assert "".join(found.before) == f"<|document|> {prompt}"
    seen = {s.text for s in found.shares if s.expert == "ngram"}
    assert {"", prompt.split()[-1], " ".join(prompt.split()[1:])} <= seen
    centers = [s.text for s in found.shares if s.kind == "center"]
    assert any(len(text.split()) == WORDS.n_context for text in centers)
    assert not any("<|document|> <|document|>" in text for text in centers)
    clustered = {s.text for s in found.shares if s.expert == "classes-4"}
    assert " ".join(f"[~{word}]" for word in prompt.split()[1:]) in clustered
    first = explain(words, prompt.split()[0])
    after = [s.text for s in first.shares if s.expert == "ngram" and s.kind == "suffix"]
    assert len(after) == len(set(after)), "however many marks an order sees, they are one"
    start = explain(words, "")
    assert start.before == ("<|document|>",)
    assert all(s.text.count("<|document|>") < 2 for s in start.shares)


def test_what_rounds_to_0_is_one_line(words):
    found = explain(words, some_text(0)[:30], origins=origins_of(words.network.info))
    text = list(explain_page.lines(found, 3))
    assert "  weight 0.000: classes-4" in text
    assert not any(line.lstrip().startswith(("+0.0000%", "-0.0000%")) and "round to 0" not in line for line in text)
    (rest,) = [share for share in found.shown(3) if share.kind == "rest"]
    assert "classes-4" in rest.text
    assert any("all that round to 0" in line for line in text)
    assert "all that round to 0" in explain_page.page([found], 3)
    assert sum(share.share for share in found.shown(3)) == pytest.approx(found.probability, rel=1e-12)


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_shares_add_up_to_the_probability_and_each_is_what_its_formula_says(prompt, which):
    model = MODELS[which]()
    context = context_rows([model.tokenizer.prompt(prompt).ids], model.n_context)[0][-1:]
    experts = model.distributions(context)
    for token in (int(experts["mixture"][0].argmax()), 0, 17):
        found = explain(model, prompt, token)
        assert sum(s.share for s in found.shares) == pytest.approx(found.probability, rel=1e-12)
        assert found.probability == pytest.approx(float(experts["mixture"][0, token]), rel=1e-4)
        by = {name: sum(s.share for s in found.shares if s.expert == name) for name in found.weights}
        factor = 1.0 if found.topic is None else found.topic.factor
        assert (found.topic is None) == (model.topic is None)
        for name, weight in found.weights.items():
            assert by[name] == pytest.approx(factor * weight * float(experts[name][0, token]), rel=1e-4, abs=1e-12)
        network = [s for s in found.shares if s.expert == "network" and s.kind != "projection"]
        raw = float(model.output(context)[0, token])
        assert sum(s.share for s in network) == pytest.approx(
            factor * found.weights["network"] * raw, rel=1e-3, abs=1e-7
        )
        assert sum(s.kind == "center" for s in found.shares) == len(origins_of(model.network.info))
        fourier = [s.share for s in network if s.kind == "fourier"]
        if which == "many experts":  # whose last 24 features are those
            phi, solution = model.network.features(context)[0, -24:], model.network.solution
            part = float(phi.astype(np.float64) @ solution.weights[-24:, token])
            assert fourier == pytest.approx([factor * found.weights["network"] * part], rel=1e-6)
        else:
            assert not fourier
        for top in (0, 3, 100):
            assert sum(s.share for s in found.shown(top)) == pytest.approx(found.probability, rel=1e-12)


def test_a_topic_multiplies_and_words_of_the_text_say_why(words):
    """By its formula: the ratio is the ridge's output over the unigram, a sum over the places of the text."""
    prompt = " ".join(some_text(0).split()[:40])
    context = context_rows([words.tokenizer.prompt(prompt).ids], words.n_context)[0][-1]
    topic = words.topic
    assert topic is not None
    for token in (5, 17, 80):
        found = explain(words, prompt, token)
        assert found.topic is not None
        ratio = np.exp(topic.log_ratio(context[None], words.unigram))[0]
        assert found.topic.ratio == pytest.approx(float(ratio[token]), rel=1e-6)
        alone = sum(w * found.by_expert[name] for name, w in found.weights.items())
        assert found.topic.factor == pytest.approx(found.probability / alone, rel=1e-4)
        parts = topic.parts(context, token, words.unigram)
        weights = weights_for(topic.sums, topic.alpha)[:, token]
        intercept = topic.sums.mean_y[token] - topic.sums.mean_x @ weights
        whole = parts.sum() + intercept / words.unigram[token]
        assert max(whole, 0.1) == pytest.approx(found.topic.ratio, rel=1e-3)
        word, part = found.topic.words[0]
        spoken = words.tokenizer.encode([word])[0][0]
        assert part == pytest.approx(parts[context == spoken].sum(), rel=1e-9)
    text = "\n".join(explain_page.lines(found, 3))
    assert f"all of it times {found.topic.factor:.3f}" in text
    assert repr(word) in text
    assert "topic: all of it times" in explain_page.page([found], 3)
    assert found.to_json()["topic"]["words"][0] == {"token": word, "part": part}


def test_the_most_probable_token_is_explained_unless_another_is_asked_for():
    model = language()
    found = explain(model, "import ")
    assert found.token == found.likely[0][0]
    assert found.probability == pytest.approx(found.likely[0][1], rel=1e-5)
    assert explain(model, "import", "(").token == "("
    followed = explain(model, "import ", "os")
    assert "".join(followed.before).endswith("import"), "the space is the next token's, as in training text"
    assert followed.token[0] == " "
    assert all(token.startswith(" ") for token, _ in followed.likely)
    assert followed.probability == pytest.approx(explain(model, "import", " os").probability)
    with pytest.raises(ConfigError, match="token 9999"):
        explain(model, "", 9999)
    with pytest.raises(ConfigError, match="without text"):
        explain(model, "", "")


def test_every_center_stands_where_it_is_said_to_stand():
    problem, run = fitted()
    model = language()
    documents = problem.corpus.documents("train")
    texts = {shard.key: documents.documents(shard)[0].encode() for shard in documents.shards()}
    kept = origins_of(model.network.info)
    block = center_block(model.network.features)
    assert block is not None
    embedding, rbf, _ = block
    assert len(kept) == len(rbf.centers)
    for origin, center in zip(kept, rbf.centers, strict=True):
        assert origin is not None
        np.testing.assert_array_equal(embedding(np.array([origin.tokens]))[0], center)
        before = model.tokenizer.decode([t for t in origin.tokens if t])
        assert texts[origin.file][: origin.offset].decode().endswith(before)
    # Looked for again in the whole of the training text, each is found, at the same place or before it.
    placed = [each for shard in documents.shards() for each in documents.placed(shard)]
    again = find_origins(model.network.features, model.tokenizer, placed)
    assert all(o is not None for o in again)
    assert run.store.header.files["centers.json"]
    assert None not in origins_of(many_experts().network.info), "found beside a topic's features too"


def test_centers_that_are_not_in_the_text_have_no_place():
    tokenizer = Tokenizer.train(["ab"], 257)
    rng = np.random.default_rng(0)
    embedding = Lookup(tuple(rng.normal(size=(257, 3)).astype(np.float32) for _ in range(2)))
    there = np.array([tokenizer.encode(["€b"])[0][-2:], [5, 5]], np.int32)
    features = Chain(embedding, RBF(embedding(there), 1.0) + Linear(6))
    texts = [Placed("a.jsonl", 0, "a"), Placed("a.jsonl", 1, "xy€bz"), Placed("b.txt", None, "€b")]
    first, second = find_origins(features, tokenizer, texts)
    assert first is not None
    assert (first.file, first.document, first.offset, first.place) == ("a.jsonl", 1, 6, "a.jsonl [1]:6")
    assert second is None
    assert find_origins(features, tokenizer, texts[2:])[0].place == "b.txt:4"
    assert find_origins(Chain(embedding, Linear(6)), tokenizer, texts) == []


def test_text_and_page_show_the_same_and_escape_what_is_no_html():
    model = language()
    found = explain(model, "if a <b>", origins=origins_of(model.network.info))
    text = "\n".join(explain_page.lines(found, 5))
    page = explain_page.page([found], 5)
    assert f"{found.probability:+.4%}" in text
    assert f"{found.probability:+.4%}" in page
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert "http" not in page
    assert ".py:" in text


def test_the_command_explains(tmp_path: Path):
    page = tmp_path / "why.html"
    done = streamfit("explain", folder(), "import ", "--token", "os", "--html", page, "--top", 3)
    assert done.returncode == 0, done.stderr
    assert "in all" in done.stdout
    assert page.read_text().startswith("<!doctype html>")
    facts = json.loads(streamfit("explain", folder(), "--json", stdin="import ").stdout)
    assert sum(share["share"] for share in facts["shares"]) == pytest.approx(facts["probability"])
    binary = tmp_path / "a.bin"
    binary.write_bytes(b"\xff")
    looked = streamfit("explain", folder(), "x", "--corpus", binary)
    assert looked.returncode == 0
    assert ".py:" not in looked.stdout
    assert streamfit("explain", folder(), "x", "--corpus", folder().parent).stdout.count(".py:") >= 1
    assert streamfit("explain", folder(), "x", "--html", tmp_path / "no" / "x.html").returncode == 2
