"""Adaptive scores: the cache is what a loop over the past computes, nothing is scored by what holds it, and adding
what was scored equals having had it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_cli import streamfit

from streamfit.corpus import Files, TextFiles
from streamfit.engine import accumulate
from streamfit.errors import ConfigError
from streamfit.solve import solve
from streamfit.store import Store
from streamfit.text import Adaptive, ExpertSettings, LanguageModel, LanguageSettings, assemble, prepare, token_source
from streamfit.text.adapt import extended
from streamfit.text.cache import Cache, Kernel, Recent
from streamfit.text.contexts import Windows

SETTINGS = LanguageSettings(
    vocab_size=300, tokenizer="words", n_context=3, n_centers=0, linear=False, ngram_order=3, topic_dims=6,
    topic_window=24, n_folds=1,
)  # fmt: skip
EXPERTS = ExpertSettings(("ngram", "suffix_ridge", "classes"), classes=(8,), class_dims=8, cache=60)


def some_text(seed: int, n_lines: int = 400) -> str:
    """Lines of a few topics, each with words of its own, so that there is something to adapt to."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(n_lines // 20):
        topic = rng.integers(8)
        for _ in range(20):
            words = rng.zipf(1.5, 9) % 12
            lines.append(" ".join(f"w{topic if rng.random() < 0.6 else 9}_{w}" for w in words))
    return "\n".join(lines)


def fitted_to(folder: Path, texts: list[str], name: str = "store") -> tuple[Store, LanguageModel]:
    """Add texts one after another, then put a model together; the features come from the first text of the folder."""
    for part, text in {"first": some_text(0), "valid": some_text(99)}.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "text.txt").write_text(text)
    store = Store.create(folder / name, prepare(TextFiles(Files(str(folder / "first"))), SETTINGS))
    for i, text in enumerate(texts):
        part = folder / name / "text" / str(i)
        part.mkdir(parents=True)
        (part / f"{i}.txt").write_text(text)
        accumulate(store, token_source(store.header, TextFiles(Files(str(part)))))
    valid = TextFiles(Files(str(folder / "valid")))
    return store, assemble(store, solve(store.moments(), 10.0), valid, experts=EXPERTS)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LanguageModel:
    return fitted_to(tmp_path_factory.mktemp("adapt"), [some_text(0)])[1]


def test_the_cache_is_what_a_loop_over_the_past_computes():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(7, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kernels = (Kernel(0.0, 0.9), Kernel(3.0, 1.0))
    weights = np.array([[0.5, 0.2, 0.3], [0.6, 0.3, 0.1]])
    cache = Cache(vectors, 5, 2, kernels, weights)
    stream = rng.integers(0, 7, 25)
    windows = Windows([stream.astype(np.int32)], 2)
    n, tokens = len(windows), windows.tokens
    p = rng.dirichlet(np.ones(7), n).astype(np.float32)
    length = rng.integers(0, 2, n)
    scale = np.array([1.0, 0.7]) / math.hypot(1.0, 0.7)
    keys = np.stack([np.concatenate([vectors[c[-1]] * scale[0], vectors[c[-2]] * scale[1]]) for c in windows[:]])
    expected = np.zeros((n, 7))
    likelihoods = np.zeros((n, 2))
    for t in range(n):
        expected[t] = weights[length[t], 0] * p[t] if t else p[t]
        for k, kernel in enumerate(kernels):
            past = range(max(0, t - 5), t)
            mass = {i: math.exp(kernel.sharpness * (keys[t] @ keys[i] - 1)) * kernel.decay ** (t - i) for i in past}
            for i, own in mass.items():
                expected[t, tokens[i]] += weights[length[t], 1 + k] * own / sum(mass.values())
                likelihoods[t, k] += own / sum(mass.values()) * (tokens[i] == tokens[t])
    for step in (1, 4, n):  # however rows are cut into batches
        past, found, own = Recent.nothing(cache, 2), [], []
        for rows, contexts in windows.batches(step):
            past = past.then(cache, contexts, tokens[rows])
            found.append(cache.apply(p[rows], contexts, length[rows], past))
            own.append(cache.likelihoods(contexts, tokens[rows], past))
        np.testing.assert_allclose(np.concatenate(found), expected, atol=2e-6)
        np.testing.assert_allclose(np.concatenate(own), likelihoods, atol=2e-6)
    np.testing.assert_allclose(expected.sum(axis=1), 1.0, atol=1e-6)
    # Another token in some place changes what comes after it, and nothing up to its own prediction.
    other = tokens.copy()
    other[10] = (other[10] + 1) % 7
    whole, changed = (
        cache.apply(p, windows[:], length, Recent.nothing(cache, 2).then(cache, windows[:], t)) for t in (tokens, other)
    )
    np.testing.assert_array_equal(changed[:11], whole[:11])
    assert (np.abs(changed[11:16] - whole[11:16]).max(axis=1) > 1e-3).all()


@pytest.mark.parametrize(
    "bad", [{"window": 0}, {"reach": 0}, {"kernels": (Kernel(-1.0, 0.5),)}, {"kernels": (Kernel(0.0, 1.5),)}]
)
def test_caches_that_cannot_be_are_refused(bad):
    good = {
        "vectors": np.eye(2, dtype=np.float32),
        "window": 3,
        "reach": 1,
        "kernels": (Kernel(0.0, 0.5),),
        "weights": np.ones((1, 2)),
    }
    with pytest.raises(ConfigError, match="cache"):
        Cache(**{**good, **bad})


def test_scores_are_of_models_that_have_not_seen_what_they_score(model):
    """The same figures from models fitted by hand to what stands before each token; and it pays to adapt."""
    text = some_text(5, 120)
    windows = Windows(model.tokenizer.encode([text]), model.n_context)
    every, nats = 300, 0.0
    now, start = model, 0
    for lo in range(0, len(windows), model.batch_rows):
        rows = np.arange(lo, min(lo + model.batch_rows, len(windows)))
        nats -= float(np.log(now.distribution(windows[rows])[np.arange(len(rows)), windows.tokens[rows]]).sum())
        if rows[-1] + 1 - start >= every:
            seen = np.arange(start, rows[-1] + 1)
            now, start = extended(now, windows[seen], windows.tokens[seen]), rows[-1] + 1
    reader = Adaptive(model, every)
    scores = reader.documents([text])
    assert list(scores) == ["static", "adapted", "adapted, with cache"]
    assert scores["adapted"].nats == pytest.approx(nats, rel=1e-6)
    static = Adaptive(model, 0).documents([text])
    assert list(static) == ["static", "static, with cache"]
    own = np.concatenate([model.distribution(x)[np.arange(len(x)), windows.tokens[r]] for r, x in windows.batches(64)])
    assert static["static"].nats == pytest.approx(-np.log(own.astype(np.float64)).sum(), rel=1e-6)
    assert scores["static"] == static["static"]
    assert 0 < reader.n_adapted < len(windows)
    assert scores["adapted"].perplexity < static["static"].perplexity
    assert static["static, with cache"].perplexity < static["static"].perplexity
    assert static["static"].n_bytes == len(text.encode())


def test_learning_equals_having_had_the_text(model, tmp_path):
    """Counts bit for bit, the topic's moments to rounding, against a store that was given both texts."""
    more = some_text(7, 60)
    store, both = fitted_to(tmp_path, [some_text(0), more])
    windows = Windows(model.tokenizer.encode([more]), model.n_context)
    learnt = extended(model, windows[:], windows.tokens)
    assert learnt.counts == both.counts
    assert learnt.topic is not None
    sums = store.moments().centered()
    for name in ("gram", "cross", "mean_x", "mean_y", "ss_y"):
        found, expected = getattr(learnt.topic.sums, name), getattr(sums, name)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max(), err_msg=name)
    assert learnt.topic.sums.n_rows == sums.n_rows == store.head().n_rows
    near = windows[:50]
    for name in ("ngram", "suffix_ridge"):
        np.testing.assert_array_equal(learnt.distribution(near, name), both.distribution(near, name))
    assert model.topic is not None
    assert np.array_equal(learnt.clusters[8], model.clusters[8])  # choices stay


def test_ten_additions_of_a_tenth_are_the_one_fit(tmp_path):
    tenths = [some_text(i, 60) for i in range(10)]
    _, once = fitted_to(tmp_path / "once", tenths)
    _, slowly = fitted_to(tmp_path / "slowly", tenths[::-1])
    together = tmp_path / "together"
    for i, text in enumerate(tenths):
        (together / "all").mkdir(parents=True, exist_ok=True)
        (together / "all" / f"{i}.txt").write_text(text)
    for part, text in {"first": some_text(0), "valid": some_text(99)}.items():
        (together / part).mkdir()
        (together / part / "text.txt").write_text(text)
    store = Store.create(together / "store", prepare(TextFiles(Files(str(together / "first"))), SETTINGS))
    accumulate(store, token_source(store.header, TextFiles(Files(str(together / "all")))))
    valid = TextFiles(Files(str(together / "valid")))
    one_shot = assemble(store, solve(store.moments(), 10.0), valid, experts=EXPERTS)
    contexts = np.random.default_rng(0).integers(0, once.vocab_size, (40, once.n_context)).astype(np.int32)
    for other in (slowly, one_shot):
        assert other.counts == once.counts
        assert np.array_equal(other.mixture, once.mixture)
        assert other.topic is not None
        assert once.topic is not None
        assert (other.topic.alpha, other.topic.power) == (once.topic.alpha, once.topic.power)
        assert np.array_equal(other.topic.sums.cross, once.topic.sums.cross)
        assert other.cache is not None
        assert once.cache is not None
        assert np.array_equal(other.cache.weights, once.cache.weights)
        assert np.array_equal(other.distribution(contexts), once.distribution(contexts))


def test_a_model_with_a_cache_read_back_scores_the_same(model, tmp_path):
    model.save(tmp_path)
    again = LanguageModel.load(tmp_path)
    text = some_text(3, 40)
    assert Adaptive(again, 0).documents([text]) == Adaptive(model, 0).documents([text])


def test_the_command_reports_adaptive_scores_beside_the_static_one(model, tmp_path):
    model.save(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text(some_text(3, 120))
    done = streamfit("evaluate", tmp_path / "model", text, "--adaptive", "--every", 100, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    expected = Adaptive(model, 100).documents([text.read_text()])
    assert {name: row["perplexity"] for name, row in facts.items()} == {n: e.perplexity for n, e in expected.items()}
    plain = json.loads(streamfit("evaluate", tmp_path / "model", text, "--json").stdout)
    assert facts["static"]["perplexity"] == pytest.approx(list(plain.values())[-1]["perplexity"], rel=1e-6)
    assert facts["adapted"]["perplexity"] != facts["static"]["perplexity"]
    assert "nothing was added" not in done.stderr
    shown = streamfit("evaluate", tmp_path / "model", text, "--adaptive").stdout
    assert "adapted, with cache" in shown
    assert "before the first solve (--every 50,000): nothing was added" in " ".join(shown.split())
    short = streamfit("evaluate", tmp_path / "model", text, "--adaptive", "--json")
    rows = json.loads(short.stdout)
    assert rows["adapted"] == rows["static"]
    assert "nothing was added" in short.stderr
    alone = streamfit("evaluate", tmp_path / "model", text, "--adaptive", "--every", 0)  # the cache adapts, as asked
    assert "nothing was added" not in alone.stdout + alone.stderr
    assert streamfit("evaluate", tmp_path / "model", text, "--every", 100).returncode == 2  # of adaptive scores alone


def test_a_model_that_would_not_adapt_is_refused(model):
    bare = replace(model, cache=None)
    for every in (0, -1):
        with pytest.raises(ConfigError, match="cache"):
            Adaptive(bare, every)
    assert list(Adaptive(bare, 50).documents([some_text(3, 40)])) == ["static", "adapted"]
