"""Experts are functions of the counts: views of contexts, clusters, their blend, the topic; and options that act."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import minimize_scalar

from streamfit.config import LanguageProblem
from streamfit.errors import ConfigError, MismatchError
from streamfit.features import Decayed, Lookup, Nearest, from_spec
from streamfit.jobs import fit
from streamfit.text import Evaluator, ExpertSettings, LanguageModel
from streamfit.text.clusters import token_clusters
from streamfit.text.contexts import Windows, context_rows
from streamfit.text.experts import blend
from streamfit.text.mixture import buckets
from streamfit.text.ngram import NgramCounts
from streamfit.text.topic import _best_power
from streamfit.text.views import Glance, View, plain, refined

ALL = ("network", "ngram", "suffix_ridge", "classes", "class_ridge", "refined", "skip", "exact")
documents = st.lists(st.lists(st.integers(1, 6), max_size=12), min_size=1, max_size=4)


def problem(run: Path, **changes: object) -> LanguageProblem:
    given = {
        "kind": "language_model",
        "run": str(run),
        "corpus": {
            "root": "python:stdlib",
            "include": ["bisect.py", "copy.py", "enum.py", "fnmatch.py", "glob.py", "heapq.py", "queue.py", "shlex.py"],
            "exclude": ["*/*", "site-packages"],
            "split": [0.6, 0.2, 0.2],
        },
        "features": {"vocab_size": 400, "n_context": 4, "embedding_dims": 40, "n_centers": 40, "ngram_order": 4,
                     "topic_dims": 12, "topic_window": 40},
        "model": {"experts": ALL, "classes": [10, 40], "class_dims": 20},
        "solve": {"alphas": [10.0], "folds": 2},
    }  # fmt: skip
    return LanguageProblem.model_validate({**given, **changes})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, quiet, serial) -> LanguageModel:
    model = fit(problem(tmp_path_factory.mktemp("experts") / "run"), serial, None, quiet).model
    assert isinstance(model, LanguageModel)
    return model


def held_out(model: LanguageModel) -> Windows:
    text = "import os\n\n\ndef find(path, names):\n    for name in names:\n        yield os.path.join(path, name)\n"
    return Windows(model.tokenizer.encode([text, "class Error(Exception):\n    pass\n"]), model.n_context)


@given(documents, st.integers(1, 5), st.data())
def test_windows_are_the_rows_of_contexts(docs, k, data):
    arrays = [np.array(d, np.int32) for d in docs]
    contexts, tokens = context_rows(arrays, k)
    windows = Windows(arrays, k)
    assert windows.tokens.tolist() == tokens.tolist()
    assert windows[:].tolist() == contexts.tolist()
    rows = np.array(data.draw(st.lists(st.integers(0, len(tokens) - 1), max_size=5)), np.int64)
    assert windows[rows].tolist() == contexts[rows].tolist()
    assert [b.tolist() for _, batch in windows.batches(3) for b in batch] == contexts.tolist()


@given(documents)
def test_a_view_counts_what_a_loop_over_seen_rows_counts(docs):
    clusters = {2: np.array([0, 1, 1, 0, 0, 1, 1], np.int32)}
    view = View((Glance(2), Glance(1, 2)), clusters)
    contexts, tokens = context_rows([np.array(d, np.int32) for d in docs], 3)
    seen = view.counts(NgramCounts.from_rows(contexts, tokens, 7))
    expected = Counter(
        (int(clusters[2][row[-1]]), int(row[-2]), int(token)) for row, token in zip(contexts, tokens, strict=True)
    )
    assert {tuple(g): c for g, c in zip(seen.grams.tolist(), seen.counts.tolist(), strict=True)} == expected


def test_a_view_of_the_tokens_themselves_changes_nothing():
    contexts, tokens = context_rows([np.array([1, 2, 1, 2, 3], np.int32)], 3)
    counts = NgramCounts.from_rows(contexts, tokens, 5)
    assert View(plain(4), {}).counts(counts) == counts
    assert View(plain(4), {})(contexts).tolist() == contexts.tolist()
    assert refined(3, 9) == (Glance(1, 9), Glance(1), Glance(2, 9), Glance(2))


@pytest.mark.parametrize("glances", [(), (Glance(0),), (Glance(1, 7),)])
def test_views_that_cannot_be_are_refused(glances):
    with pytest.raises(ConfigError):
        View(glances, {2: np.zeros(3, np.int32)})
    with pytest.raises(ConfigError, match="contexts of shape"):
        View((Glance(3),), {})(np.zeros((2, 2), np.int32))


def test_tokens_that_are_followed_alike_share_a_cluster():
    rng = np.random.default_rng(0)
    nouns, verbs = np.arange(1, 9), np.arange(9, 17)
    stream = np.empty(4000, np.int32)
    stream[::2], stream[1::2] = rng.choice(nouns, 2000), rng.choice(verbs, 2000)
    counts = NgramCounts.from_rows(stream[:-1, None], stream[1:], 17)
    found = token_clusters(counts, [2, 5], 4, seed=0)
    assert len(set(found[2][nouns])) == len(set(found[2][verbs])) == 1
    assert found[2][1] != found[2][9]
    assert found[5].max() < 5
    assert all(np.array_equal(a, b) for a, b in zip(found.values(), token_clusters(counts, [2, 5], 4, 0).values(),
                                                    strict=True))  # fmt: skip


def test_every_expert_is_a_distribution_and_the_mixture_is_their_weighted_sum(fitted):
    windows = held_out(fitted)
    contexts = windows[:]
    found = fitted.distributions(contexts)
    assert list(found) == ["mixture", *fitted.experts]
    assert {"classes-10", "classes-40", "class_ridge-10", "refined-10", "skip-1", "skip-2"} < set(fitted.experts)
    for p in found.values():
        assert p.min() > 0
        np.testing.assert_allclose(p.sum(axis=1, dtype=np.float64), 1, atol=1e-5)
    weights = fitted.mixture[buckets(*fitted.support(contexts))]
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    plain_mixture = sum(weights[:, [i]] * found[name] for i, name in enumerate(fitted.experts))
    bare = replace(fitted, topic=None)
    np.testing.assert_allclose(bare.distribution(contexts), plain_mixture, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(bare.distributions(contexts)["mixture"], plain_mixture, rtol=1e-4, atol=1e-9)
    # and the topic multiplies it by a ratio to a power, by its definition
    assert fitted.topic is not None
    weights, intercept = fitted.topic._weights
    output = fitted.topic.features(contexts) @ weights + intercept
    ratio = np.maximum(output / fitted.unigram, 0.1) ** fitted.topic.power
    expected = plain_mixture * ratio
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found["mixture"], expected, rtol=1e-3, atol=1e-9)
    for name, expert in fitted.count_experts.items():
        own = found[name][np.arange(len(windows)), windows.tokens]
        np.testing.assert_allclose(expert.probability(contexts, windows.tokens), own, rtol=1e-5)


@given(documents, st.integers(2, 4))
def test_exact_interpolation_answers_every_unambiguous_context(docs, order):
    contexts, tokens = context_rows([np.array(d, np.int32) for d in docs], order - 1)
    counts = NgramCounts.from_rows(contexts, tokens, 7)
    p = ExpertSettings(("exact",)).build(counts, {})["exact"].distribution(contexts)
    followers: dict[tuple[int, ...], Counter[int]] = {}
    for row, token in zip(contexts.tolist(), tokens.tolist(), strict=True):
        followers.setdefault(tuple(row), Counter())[token] += 1
    for row, answer in zip(contexts.tolist(), p, strict=True):
        seen = followers[tuple(row)]
        expected = np.bincount(list(seen.elements()), minlength=7) / seen.total()
        np.testing.assert_allclose(answer, expected, atol=1e-4)  # its own frequencies: right where there is one answer
    assert p.min() > 0


def test_a_blend_is_the_sum_of_its_parts(fitted):
    contexts = held_out(fitted)[:]
    experts = list(fitted.count_experts.values())
    weights = np.random.default_rng(0).random((len(contexts), len(experts)))
    expected = sum(w[:, None] * e.distribution(contexts) for w, e in zip(weights.T, experts, strict=True))
    np.testing.assert_allclose(blend(experts, weights, contexts), expected, rtol=1e-5)


def test_a_model_of_many_experts_read_back_is_the_same_function(fitted, tmp_path: Path):
    fitted.save(tmp_path)
    again = LanguageModel.load(tmp_path)
    contexts = held_out(fitted)[:]
    assert again.experts == fitted.experts
    for name, p in fitted.distributions(contexts).items():
        np.testing.assert_array_equal(again.distribution(contexts, name) if name != "mixture"
                                      else again.distributions(contexts)[name], p)  # fmt: skip


def test_more_experts_and_a_topic_do_not_hurt_where_they_were_weighed(fitted):
    text = "".join(Path(f"{np.__path__[0]}/lib/_version.py").read_text().splitlines(keepends=True)[:60])
    windows = Windows(fitted.tokenizer.encode([text]), fitted.n_context)
    tuned = fitted.calibrated(windows[:], windows.tokens)
    own = np.arange(len(windows)), windows.tokens
    loss = {name: -np.log(p[own]).mean() for name, p in tuned.distributions(windows[:]).items()}
    bare = -np.log(replace(tuned, topic=None).distribution(windows[:])[own]).mean()
    assert bare <= min(loss[name] for name in tuned.experts) + 1e-6
    assert loss["mixture"] <= bare + 1e-6
    scores = Evaluator(tuned).documents([text])
    assert scores[f"mixture of {len(tuned.experts)}, by topic"].nats == pytest.approx(loss["mixture"] * len(windows))


def test_the_topics_power_is_the_convex_minimum():
    rng = np.random.default_rng(0)
    p, g = rng.dirichlet(np.ones(20), 200).astype(np.float32), rng.normal(size=(200, 20)).astype(np.float32)
    tilted = p * np.exp(0.7 * g)
    tokens = np.array([rng.choice(20, p=row / row.sum()) for row in tilted.astype(np.float64)])

    def loss(b: float) -> float:
        q = p * np.exp(b * g)
        return float(-np.log(q[np.arange(200), tokens] / q.sum(axis=1) / p[np.arange(200), tokens]).mean())

    found, power, gap = _best_power([(p[:90], g[:90], tokens[:90]), (p[90:], g[90:], tokens[90:])], 200)
    best = minimize_scalar(loss, bounds=(0, 3), method="bounded", options={"xatol": 1e-6})
    assert power == pytest.approx(best.x, abs=1e-3)
    assert found == pytest.approx(best.fun, abs=1e-6)
    assert 0 <= gap < 1e-6
    # a ratio that tells nothing is not used
    assert _best_power([(p, -g, tokens)], 200)[1] == 0.0


@given(st.floats(0.1, 0.95), st.integers(1, 6), st.integers(0, 10))
def test_decayed_sums_are_what_a_loop_adds(decay, width, n):
    rng = np.random.default_rng(n)
    table, x = rng.normal(size=(5, 3)), rng.integers(0, 5, (n, width)).astype(np.int32)
    expected = [sum((1 - decay) * decay**j * table[row[width - 1 - j]] for j in range(width)) for row in x]
    made = Decayed(table, decay, width)
    np.testing.assert_allclose(made(x), np.reshape(expected, (n, 3)), atol=1e-12)
    again = from_spec(*made.to_spec())
    np.testing.assert_array_equal(again(x), made(x))
    assert Nearest(width, 1)(x).tolist() == x[:, -1:].tolist()


def test_windows_that_cannot_be_are_refused():
    for bad in (lambda: Decayed(np.eye(2), 1.0, 3), lambda: Decayed(np.eye(2), 0.5, 0), lambda: Nearest(3, 4)):
        with pytest.raises(MismatchError):
            bad()
    with pytest.raises(ConfigError, match="index 2"):
        Decayed(np.eye(2), 0.5, 1)(np.array([[2]]))
    assert Lookup((np.eye(2),)).n_inputs == 1


@pytest.mark.parametrize(
    ("section", "given"),
    [
        ("model", {"experts": ["network", "trigram"]}),
        ("model", {"experts": []}),
        ("model", {"experts": ["ngram", "ngram"]}),
        ("model", {"classes": [10]}),
        ("model", {"experts": ["classes"], "classes": [10, 10]}),
        ("model", {"experts": ["ngram"], "suffix_penalties": [1.0]}),
        ("features", {"n_centers": 0, "linear": False}),
        ("features", {"n_centers": 0, "gamma": 1.0}),
        ("features", {"topic_decay": 0.9}),
        ("features", {"topic_dims": 4, "topic_decay": 1.0}),
    ],
)
def test_options_without_effect_are_refused(section, given, tmp_path):
    with pytest.raises(ValidationError):
        problem(tmp_path, **{"features": {}, "model": {}, section: given})


def test_what_a_run_keeps_of_its_config_is_a_config(tmp_path):
    for made in (problem(tmp_path), problem(tmp_path, features={}, model={})):
        assert LanguageProblem.model_validate_json(made.model_dump_json()) == made


def test_a_network_needs_features_of_its_own(tmp_path):
    with pytest.raises(ValidationError, match="network"):
        problem(tmp_path, features={"n_centers": 0, "linear": False, "topic_dims": 8}, model={})


def test_a_topic_alone_needs_no_network_and_options_act(tmp_path, quiet, serial):
    chosen = problem(
        tmp_path / "run",
        features={"tokenizer": "words", "vocab_size": 500, "n_context": 3, "n_centers": 0, "linear": False,
                  "ngram_order": 3, "topic_dims": 6, "topic_window": 30, "topic_decay": 0.9},
        model={"experts": ["suffix_ridge", "class_ridge"], "classes": [8], "suffix_penalties": [1.0, 3.0]},
    )  # fmt: skip
    model = fit(chosen, serial, None, quiet).model
    assert isinstance(model, LanguageModel)
    assert model.network is None
    assert model.experts == ("suffix_ridge", "class_ridge-8")
    assert model.n_context == 30
    windows = Windows(model.tokenizer.encode(["import os\nimport sys"]), 30)
    strong = replace(model, settings=ExpertSettings(("suffix_ridge",), suffix_penalties=(1.0, 300.0)))
    weak = model.distribution(windows[:], "suffix_ridge")
    assert np.abs(strong.distribution(windows[:], "suffix_ridge") - weak).max() > 1e-3
    with pytest.raises(ConfigError, match="expert 'network'"):
        model.distribution(windows[:], "network")
    with pytest.raises(ConfigError, match="without a network"):
        model.output(windows[:])
