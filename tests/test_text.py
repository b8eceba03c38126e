"""Tokens, contexts, embeddings, mixture, evaluation and generation: laws, and naive loops as oracles."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy.optimize import minimize

from streamfit.config import LanguageProblem
from streamfit.corpus import Files, TextFiles
from streamfit.errors import ConfigError, CorpusError, SolveError, StoreError
from streamfit.held_out import evaluate_documents, fitted_among, held_out
from streamfit.jobs import fit
from streamfit.report.scores import print_scores, verdict
from streamfit.text import Evaluator, LanguageModel, Score, Tokenizer, add_scores
from streamfit.text.contexts import NgramTally, context_rows
from streamfit.text.embeddings import context_embeddings, context_features
from streamfit.text.evaluate import sampled_score
from streamfit.text.mixture import buckets, fit_buckets, fit_mixture, n_buckets
from streamfit.text.ngram import NgramCounts
from tests.test_cli import streamfit

NAMES = (
    "abc bisect colorsys contextlib copy enum fnmatch functools glob heapq keyword operator queue random reprlib"
    " sched shlex shutil socket stat string struct tempfile textwrap types typing uuid weakref"
)
STDLIB_FILES = [f"{name}.py" for name in NAMES.split()]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, quiet, serial) -> tuple[LanguageProblem, LanguageModel]:
    """A small language model of some modules of the standard library, by the same code as the demo's."""
    problem = LanguageProblem.model_validate(
        {
            "kind": "language_model",
            "run": str(tmp_path_factory.mktemp("lm") / "run"),
            "corpus": {
                "root": "python:stdlib",
                "include": STDLIB_FILES,
                "exclude": ["*/*", "site-packages"],
                "split": [0.7, 0.15, 0.15],
            },
            "features": {"vocab_size": 600, "n_context": 4, "embedding_dims": 64, "n_centers": 100},
            "solve": {"alphas": [1.0, 100.0], "folds": 2},
        }
    )
    model = fit(problem, serial, None, quiet).model
    assert isinstance(model, LanguageModel)
    return problem, model


documents = st.lists(st.lists(st.integers(1, 6), max_size=12), max_size=5)


@given(documents, st.integers(1, 5))
def test_contexts_are_what_a_loop_makes_and_never_reach_across_documents(docs, k):
    contexts, tokens = context_rows([np.array(d, np.int32) for d in docs], k)
    expected = []
    for document in docs:
        padded = [0] * k + document
        expected += [(padded[i : i + k], [*document, 0][i]) for i in range(len(document) + 1)]
    assert contexts.tolist() == [c for c, _ in expected]
    assert tokens.tolist() == [t for _, t in expected]


@given(documents, documents)
def test_tallies_of_parts_add_to_the_tally_of_the_whole(first, second):
    def tallied(docs: list[list[int]]) -> NgramCounts:
        contexts, tokens = context_rows([np.array(d, np.int32) for d in docs], 3)
        return NgramCounts.from_rows(contexts[:, -2:], tokens, 7)

    assert tallied(first) + tallied(second) == tallied(first + second)
    assert NgramTally(3, 7).tables()["ngram"][1].size == 0


def test_embeddings_are_the_singular_vectors_of_scaled_counts():
    rng = np.random.default_rng(0)
    contexts = rng.integers(0, 30, size=(5000, 2)).astype(np.int32)
    tokens = (contexts[:, 1] // 3 + rng.integers(0, 2, 5000)) % 30
    lookup = context_embeddings(contexts, tokens, 30, dims=24, seed=0)
    assert lookup.n_features == 24
    counts = np.zeros((30, 30))
    np.add.at(counts, (contexts[:, 1], tokens), 1.0)
    u, s, _ = np.linalg.svd(np.sqrt(counts) / (counts.sum(axis=1, keepdims=True) + 1) ** 0.25)
    rank = lookup.tables[1].shape[1]
    naive = u[:, :rank] * np.sqrt(s[:rank])
    naive /= np.linalg.norm(naive, axis=1, keepdims=True)
    # Singular vectors are unique up to sign (and rotation where values are equal); inner products are not affected.
    gram = lookup.tables[1] @ lookup.tables[1].T
    np.testing.assert_allclose(np.diag(gram), 1.0, rtol=1e-5)
    assert np.corrcoef(gram.ravel(), (naive @ naive.T).ravel())[0, 1] > 0.99


def test_centers_are_distinct_real_contexts():
    rng = np.random.default_rng(0)
    contexts = rng.integers(0, 20, size=(800, 3)).astype(np.int32)
    lookup = context_embeddings(contexts, contexts[:, 0], 20, dims=24, seed=0)
    features = context_features(lookup, contexts, 40, linear=True, gamma=None, seed=0)
    centers = features.outer.parts[0].centers
    real = {tuple(row) for row in lookup(contexts).tolist()}
    assert all(tuple(row) in real for row in centers.tolist())
    assert len(np.unique(centers, axis=0)) == 40
    with pytest.raises(ConfigError, match="distinct contexts"):
        context_features(lookup, contexts[:10], 40, linear=False, gamma=None, seed=0)


def test_mixture_weights_are_the_convex_optimum():
    rng = np.random.default_rng(1)
    p = rng.uniform(1e-4, 1.0, size=(2000, 3)) * np.array([0.2, 1.0, 0.6])
    mine = fit_mixture(p)

    def loss(z: np.ndarray) -> float:
        w = np.exp(z) / np.exp(z).sum()
        return float(-np.log(p @ w).mean())

    best = minimize(loss, np.zeros(3)).fun
    assert mine.loss - best <= mine.gap + 1e-9
    assert mine.gap <= 1e-6
    assert math.isclose(mine.weights.sum(), 1.0)
    with pytest.raises(SolveError, match="all zero"):
        fit_mixture(np.zeros((5, 2)))


def test_buckets_cover_every_support_and_thin_ones_share_weights():
    lengths, counts = np.meshgrid(np.arange(3), np.array([0, 1, 2, 3, 5, 40, 10**6]))
    index = buckets(lengths.ravel(), counts.ravel())
    assert index.min() == 0
    assert index.max() == n_buckets(3) - 1
    rng = np.random.default_rng(0)
    p = rng.uniform(0.01, 1, size=(500, 2))
    bucket = np.repeat([0, 1], [450, 50])
    weights, gap = fit_buckets(p, bucket, 3)
    assert 0 <= gap <= 1e-6
    np.testing.assert_allclose(weights[1], fit_mixture(p).weights)
    np.testing.assert_allclose(weights[0], fit_mixture(p[:450]).weights)


def test_every_expert_is_a_distribution_over_the_whole_vocabulary(fitted):
    _, model = fitted
    contexts, _ = context_rows(model.tokenizer.encode(["import os\nclass A:\n    pass\n"]), model.n_context)
    unseen = np.full((1, model.n_context), model.vocab_size - 1, np.int32)
    for name, p in model.distributions(np.concatenate([contexts, unseen])).items():
        assert p.shape[1] == model.vocab_size
        assert (p > 0).all(), name
        np.testing.assert_allclose(p.sum(axis=1, dtype=np.float64), 1.0, rtol=1e-5)


def test_the_networks_raw_output_adds_up_to_one_as_the_intercept_is_not_penalised(fitted):
    _, model = fitted
    contexts = np.random.default_rng(0).integers(0, model.vocab_size, size=(50, model.n_context))
    np.testing.assert_allclose(model.output(contexts).sum(axis=1), 1.0, atol=1e-3)


def test_scores_equal_a_loop_over_tokens(fitted):
    _, model = fitted
    texts = ["def f(a, b):\n    return a + b\n", "", "import sys\n"]
    contexts, tokens = context_rows(model.tokenizer.encode(texts), model.n_context)
    scores = Evaluator(model).documents(texts)
    for name, p in (
        ("RBF network", model.distribution(contexts, "network")),
        ("trigram", model.distribution(contexts, "ngram")),
    ):
        nats, top1, top5 = 0.0, 0, 0
        for row, token in zip(p, tokens, strict=True):
            order = sorted(range(len(row)), key=lambda i: (-row[i], i))
            nats -= math.log(row[token])
            top1 += order.index(token) < 1
            top5 += order.index(token) < 5
        score = scores[name]
        assert math.isclose(score.nats, nats, rel_tol=1e-6)
        assert (score.top1, score.top5, score.n_tokens) == (top1, top5, len(tokens))
    assert scores["uniform"].perplexity == pytest.approx(model.vocab_size)
    total = scores["RBF network"]
    assert total.n_bytes == sum(len(t) for t in texts)
    assert total.bits_per_byte == pytest.approx(total.nats / math.log(2) / total.n_bytes)


def test_models_rank_as_they_should_on_held_out_files(fitted):
    problem, model = fitted
    scores = evaluate_documents(model, problem.corpus.documents("test"), None)
    order = ["uniform", "unigram", "bigram", "trigram"]
    perplexities = [scores[name].perplexity for name in order]
    assert perplexities == sorted(perplexities, reverse=True)
    assert scores["RBF network"].perplexity < scores["unigram"].perplexity
    assert scores["RBF network + trigram"].perplexity < scores["trigram"].perplexity


def test_scores_add_over_documents():
    a, b = {"m": Score(2, 5, 1.0, 1, 2, 4)}, {"m": Score(3, 7, 2.0, 0, 1, 2)}
    assert add_scores([a, b]) == {"m": Score(5, 12, 3.0, 1, 3, 6)}
    assert add_scores([a, b])["m"].word_perplexity == pytest.approx(math.exp(0.5))
    with pytest.raises(CorpusError, match="no text"):
        add_scores([])


def test_a_language_model_read_back_is_the_same_function(fitted, tmp_path: Path):
    _, model = fitted
    model.save(tmp_path)
    back = LanguageModel.load(tmp_path)
    contexts = np.random.default_rng(0).integers(0, model.vocab_size, size=(40, model.n_context)).astype(np.int32)
    for name, p in model.distributions(contexts).items():
        assert np.array_equal(back.distributions(contexts)[name], p), name
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(StoreError, match=r"tokenizer\.json"):
        LanguageModel.load(tmp_path)


def test_a_model_takes_no_other_tokenizer_than_its_own(fitted, tmp_path: Path):
    _, model = fitted
    model.save(tmp_path)
    described = json.loads((tmp_path / "model.json").read_text())
    assert described["tokenizer_sha256"] == model.tokenizer.digest
    other = Tokenizer.train(["words of another corpus"], 300)
    (tmp_path / "tokenizer.json").write_text(other.serialized)
    with pytest.raises(StoreError, match="not the one that the model was fitted with"):
        LanguageModel.load(tmp_path)
    refused = streamfit("generate", tmp_path, "import ")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    model.save(tmp_path)
    del described["tokenizer_sha256"]  # as earlier releases wrote it
    (tmp_path / "model.json").write_text(json.dumps(described))
    assert LanguageModel.load(tmp_path).tokenizer.serialized == model.tokenizer.serialized


def test_running_a_finished_fit_again_reads_nothing_and_gives_the_same_model(fitted, quiet, serial):
    problem, model = fitted
    again = fit(problem, serial, None, quiet)
    assert again.summary.n_rows == 0
    assert np.array_equal(again.model.network.solution.weights, model.network.solution.weights)


def test_a_fit_ends_with_scores_of_test_text_and_the_certificate_of_the_mixture(fitted, quiet, serial):
    problem, model = fitted
    found = fit(problem, serial, None, quiet).held_out
    documents = problem.corpus.documents("test")
    shards = documents.shards()
    texts = [text for shard in shards for text in documents.documents(shard)]
    *_, whole = Evaluator(model).documents(texts).values()
    assert (found.part, found.n_shards, found.gap) == ("test", len(shards), model.mixture_gap)
    assert found.score.n_tokens == 10_000 < whole.n_tokens
    assert found.score.perplexity == pytest.approx(whole.perplexity, rel=0.1)
    assert found.score.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=0.05)
    everything = sampled_score(model, texts, whole.n_tokens)  # of all tokens it is no estimate
    assert everything.nats == pytest.approx(whole.nats, rel=1e-6)
    assert replace(everything, nats=whole.nats) == whole
    first, second = found.lines()
    assert f"10,000 tokens of {len(shards)} test shards" in first
    assert f"at most {model.mixture_gap:.1e} nats a token above the optimum" in second


def test_without_test_text_the_scores_are_said_to_be_of_what_weights_were_chosen_on(tmp_path, quiet, serial):
    docs = tmp_path / "docs"
    docs.mkdir()
    for i in range(60):
        (docs / f"{i}.txt").write_text(f"some words of document {i} " * 30)
    problem = small_problem(docs, tmp_path / "run")
    problem = problem.model_copy(update={"corpus": problem.corpus.model_copy(update={"split": (0.7, 0.3, 0.0)})})
    found = fit(problem, serial, None, quiet).held_out
    n_shards = len(problem.corpus.documents("validation").shards())
    assert (found.part, found.n_shards, found.n_validation) == ("validation", n_shards, n_shards)
    assert "those that its weights were chosen on" in next(found.lines())


def test_text_that_is_not_utf8_is_named(tmp_path: Path):
    (tmp_path / "bad.txt").write_bytes(b"ok\xff")
    source = TextFiles(Files(str(tmp_path)))
    with pytest.raises(CorpusError, match=r"bad\.txt: byte 0xff at offset 2"):
        source.documents(source.shards()[0])


def small_problem(root: Path, run: Path) -> LanguageProblem:
    return LanguageProblem.model_validate(
        {
            "kind": "language_model",
            "run": str(run),
            "corpus": {"root": str(root)},
            "features": {"vocab_size": 300, "n_context": 3, "embedding_dims": 24, "n_centers": 10},
            "solve": {"folds": 2},
        }
    )


def some_documents(folder: Path) -> Path:
    """Sixty short texts, a file each."""
    (folder / "in").mkdir()
    for i in range(60):
        (folder / "in" / f"{i}.txt").write_text(f"some words of document {i} " * 30)
    return folder / "in"


def test_copies_of_training_files_are_not_held_out(tmp_path: Path, quiet, serial):
    docs = tmp_path / "docs"
    (docs / "copy").mkdir(parents=True)
    for i in range(100):
        for folder in (docs, docs / "copy"):
            (folder / f"{i}.txt").write_text(f"some words of document {i} " * 30)
    problem = small_problem(docs, tmp_path / "run")
    store = fit(problem, serial, None, quiet).store
    test = problem.corpus.documents("test")
    left = held_out(store, test)
    assert {s.content_id for s in left.shards()} == {s.content_id for s in test.shards()} - set(store.counted())
    assert len(left.shards()) < len(test.shards())


def test_a_validation_file_that_cannot_be_read_is_skipped_like_any_other(tmp_path: Path, quiet, serial):
    """It is found before anything is counted; where such files are skipped, a model must come of the others."""
    documents = some_documents(tmp_path)
    problem = small_problem(documents, tmp_path / "run")
    bad = Path(problem.corpus.documents("validation").shards()[0].uri)
    bad.write_bytes(b"ok\xff")
    with pytest.raises(CorpusError, match="byte 0xff"):
        fit(problem, serial, None, quiet)
    assert not (tmp_path / "run" / "store").exists()
    done = fit(problem, serial, None, quiet, skip_bad_shards=True)
    assert isinstance(done.model, LanguageModel)
    assert next(done.held_out.lines()) == f"validation text left out, which cannot be read: {bad.name}"
    assert done.held_out.to_json()["skipped"] == [bad.name]


def test_test_text_that_cannot_be_read_is_named(tmp_path: Path, quiet, serial):
    """What is scored is what can be read; where nothing can, that weights were chosen on, and both are said."""
    documents = some_documents(tmp_path)
    problem = small_problem(documents, tmp_path / "run")
    held = [Path(shard.uri) for shard in problem.corpus.documents("test").shards()]
    assert len(held) > 1
    held[0].write_bytes(b"ok\xff")
    found = fit(problem, serial, None, quiet).held_out
    assert (found.part, found.n_shards) == ("test", len(held) - 1)
    first = next(found.lines())
    assert first.startswith(f"test text left out: {held[0].name}: byte 0xff at offset 2")
    assert found.to_json()["unread"] == [first.removeprefix("test text left out: ")]
    for path in held[1:]:
        path.write_bytes(b"ok\xff")
    found = fit(problem, serial, None, quiet).held_out
    assert (found.part, len(found.unread)) == ("validation", len(held))
    told = list(found.lines())
    assert told[0].startswith("test text left out")
    assert any("those that its weights were chosen on" in line for line in told)


def test_evaluating_what_was_fitted_is_said(tmp_path: Path, quiet, serial):
    documents = some_documents(tmp_path)
    problem = small_problem(documents, tmp_path / "run")
    store = fit(problem, serial, None, quiet).store
    counted = len(store.counted())
    told = fitted_among(tmp_path / "run" / "model", [TextFiles(Files(str(documents)))])
    assert told == f"{counted} of 60 files or parts of them were fitted: their text is not held out"
    (tmp_path / "new.txt").write_text("words that are new")
    assert not fitted_among(tmp_path / "run" / "model", [TextFiles(Files(str(tmp_path / "new.txt")))])
    assert not fitted_among(tmp_path / "elsewhere" / "model", [TextFiles(Files(str(documents)))])


class Lossy:
    """A tokenizer that keeps neither case nor more than one space, as those of words forget what they do not know."""

    def __init__(self, whole):
        self.whole = whole

    def encode(self, texts):
        return self.whole.encode([" ".join(text.lower().split()) for text in texts])

    def decode(self, ids):
        return self.whole.decode(ids)


def test_what_a_tokenizer_loses_is_not_compared_by_byte_or_word(fitted):
    """What is lost costs a model nothing, so its bits per byte would be a lie."""
    _, model = fitted
    lossy = Evaluator(replace(model, tokenizer=Lossy(model.tokenizer)))
    for text, left in [("import os", {"bits_per_byte", "word_perplexity"}), ("import  os", {"word_perplexity"})]:
        *_, found = lossy.documents([text]).values()
        assert {"bits_per_byte", "word_perplexity"} & found.to_json().keys() == left
    *_, found = lossy.documents(["import os", "class A"]).values()
    assert np.isnan([found.bits_per_byte, found.word_perplexity]).all()
    *_, spelled = lossy.documents(["import os", "class a"]).values()
    assert found.perplexity == spelled.perplexity


def test_a_mixture_that_is_the_baseline_neither_wins_nor_loses():
    score = Score(nats=400.0, n_tokens=100, n_bytes=300, n_words=50, top1=10, top5=20)
    told = verdict({"bigram": score, "trigram": score, "mixture of 1": score})
    assert told == "Against the trigram, the mixture of 1 has a perplexity that is the same."
    console = Console(record=True, width=120, file=io.StringIO())
    print_scores({"bigram": score, "trigram": score, "mixture of 1": score}, console)
    shown = console.export_text()
    assert "wins" not in shown
    assert "loses" not in shown
    assert f"perplexity per word, whatever the tokens: {math.exp(8):,.1f}" in shown
