"""Generation: the fast way equals the plain one, draws are as frequent as they should be, characters stay whole."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfit.errors import ConfigError
from streamfit.features import Chain, RandomFourier
from streamfit.models import LinearModel
from streamfit.text import Sampling, Tokenizer, generate, generate_text
from streamfit.text.contexts import context_rows
from streamfit.text.kneser_ney import KneserNey
from streamfit.text.next_token import NextToken
from streamfit.text.ngram import NgramCounts
from streamfit.text.stream import TextStream
from streamfit.text.suffixes import continuations, suffixes, uniform_share
from tests.languages import MODELS, folder, language


@pytest.mark.parametrize("which", MODELS)
def test_a_single_context_has_the_distribution_that_many_have(which):
    model = MODELS[which]()
    seen, _ = context_rows(model.tokenizer.encode(["import os\nclass A(B):\n    pass\n"]), model.n_context)
    odd = np.random.default_rng(0).integers(0, model.vocab_size, size=(10, model.n_context))
    contexts = np.concatenate([seen, odd])
    for expert, plain in model.distributions(contexts).items():
        following = NextToken(model, expert)
        for context, p in zip(contexts, plain, strict=True):
            fast = following(context)
            assert fast.sum(dtype=np.float64) == pytest.approx(1.0, abs=1e-5)
            np.testing.assert_allclose(fast, p, rtol=2e-3, atol=1e-7, err_msg=expert)


def test_features_of_any_kind_can_be_followed():
    model = language()
    fourier = Chain(model.network.features.inner, RandomFourier(len(model.network.solution.weights), 1.0, 0, 48))
    other = replace(model, network=LinearModel(fourier, model.network.solution))
    context = np.arange(model.n_context)
    np.testing.assert_allclose(
        NextToken(other, "network")(context), other.distribution(context[None], "network")[0], rtol=1e-4, atol=1e-7
    )


@given(
    st.lists(st.lists(st.integers(1, 4), max_size=8), max_size=4), st.lists(st.integers(0, 4), min_size=3, max_size=3)
)
def test_suffixes_and_their_shares_make_up_kneser_ney(docs, context):
    contexts, tokens = context_rows([np.array(d, np.int32) for d in docs], 3)
    ngram = KneserNey.fit(NgramCounts.from_rows(contexts, tokens, 5))
    at = np.array(context)
    found = suffixes(ngram, at)
    p = np.full(5, uniform_share(ngram, found) / 5)
    for suffix in found:
        after, mass = continuations(ngram, suffix)
        p[after] += suffix.weight * mass
    np.testing.assert_allclose(p, ngram.probability(np.tile(at, (5, 1)), np.arange(5)), rtol=1e-12)
    length, seen = ngram.support(at[None])
    assert (length[0], seen[0]) == ((found[0].order - 1, found[0].seen) if found else (0, 0))


def test_generation_is_a_function_of_its_seed():
    model = language()
    first = list(generate(model, "def ", Sampling(30, 0.9, 0, 0.9, seed=1)))
    assert first == list(generate(model, "def ", Sampling(30, 0.9, 0, 0.9, seed=1)))
    assert first != list(generate(model, "def ", Sampling(30, 0.9, 0, 0.9, seed=2)))
    for prompt in ("import", "import "):
        greedy = next(generate(model, prompt, Sampling(1, 0.0)))
        context = context_rows(model.tokenizer.encode(["import"]), model.n_context)[0][-1:]
        p = model.distribution(context)[0]
        assert greedy == int(
            (p * np.isin(np.arange(len(p)), model.tokenizer.spaced) if prompt[-1] == " " else p).argmax()
        )
        # With a tiny top_p, or a single token left, only the most probable can come, at any temperature.
        assert next(generate(model, prompt, Sampling(1, 1.0, 0, 1e-6, seed=9))) == greedy
        assert next(generate(model, prompt, Sampling(1, 5.0, top_k=1, seed=9))) == greedy


@pytest.mark.parametrize("which", MODELS)
def test_what_follows_a_space_continues_the_text_as_training_text_would(which):
    """The space is the first token's, so what is written after it has none; and none is lost."""
    model = MODELS[which]()
    for seed in range(20):
        sampling = Sampling(8, 1.0, seed=seed)
        tokens = list(generate(model, "import ", sampling))
        assert tokens[0] in model.tokenizer.spaced
        text = "".join(generate_text(model, "import ", sampling))
        assert " " + text == model.tokenizer.decode(tokens)
        assert "".join(generate_text(model, "import ", sampling, stop=[" "])) == text.partition(" ")[0]
    words = Tokenizer.train(["the game was lost"], 300, "words")
    game, was = words.encode(["game was"])[0].tolist()
    cut = words.prompt("the ")
    stream = TextStream(words, cut.ids.tolist(), given=cut.given)
    assert (stream.add(game), stream.add(was)) == ("game", " was")


@given(st.integers(0, 6), st.floats(0.05, 1.0), st.sampled_from([0.5, 1.0, 2.0]))
def test_draws_have_the_frequencies_that_the_formula_says(top_k, top_p, temperature):
    p = np.array([0.3, 0.05, 0.25, 0.15, 0.25])
    q = p ** (1 / temperature)
    order = sorted(range(5), key=lambda i: (-q[i], i))[: top_k or None]
    kept, total = [], 0.0
    for i in order:
        if total > top_p * sum(q[j] for j in order) - 1e-12 and kept:
            break
        kept.append(i)
        total += q[i]
    expected = np.array([q[i] / total if i in kept else 0.0 for i in range(5)])
    rng = np.random.default_rng(0)
    sampling = Sampling(1, temperature, top_k, top_p)
    drawn = np.bincount([sampling.draw(p, rng) for _ in range(2000)], minlength=5) / 2000
    np.testing.assert_allclose(drawn, expected, atol=0.05)
    assert set(np.flatnonzero(drawn)) <= set(kept)


@pytest.mark.parametrize(
    "bad", [{"top_p": 0.0}, {"top_p": 1.5}, {"temperature": -1.0}, {"n_tokens": -1}, {"top_k": -1}, {"seed": -1}]
)
def test_impossible_sampling_is_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Sampling(**bad)


def test_an_unknown_expert_and_an_empty_stop_string_are_refused():
    with pytest.raises(ConfigError, match="expert 'x'"):
        generate(language(), "a", expert="x")
    with pytest.raises(ConfigError, match="expert 'x'"):
        generate_text(language(), "a", expert="x")  # before anything is written, and not with the first token
    with pytest.raises(ConfigError, match="empty stop"):
        generate_text(language(), "a", stop=["b", ""])


BYTES = Tokenizer.train(["ab"], 257)
"""One token a byte, so that every character beyond ASCII is cut."""


@given(st.text(max_size=12), st.text(alphabet="ab€", min_size=1, max_size=3))
def test_streamed_text_is_whole_and_ends_before_the_stop_string(text, stop):
    ids = BYTES.encode([text])[0].tolist()
    whole = TextStream(BYTES)
    assert "".join([*(whole.add(i) for i in ids), whole.end()]) == text
    stream = TextStream(BYTES, stop=[stop])
    pieces = [*(stream.add(i) for i in ids), stream.end()]
    assert "".join(pieces) == text.partition(stop)[0]
    assert stream.stopped == (stop in text)


@given(st.lists(st.integers(1, 256), max_size=12))
def test_bytes_that_are_no_text_stream_as_they_are_decoded(ids):
    stream = TextStream(BYTES)
    assert "".join([*(stream.add(i) for i in ids), stream.end()]) == BYTES.decode(ids)


def test_the_pieces_of_a_generated_text_are_its_tokens_text():
    model = language()
    sampling = Sampling(60, 1.2, seed=5)
    text = model.tokenizer.decode(list(generate(model, "x = ", sampling)))
    pieces = list(generate_text(model, "x = ", sampling))
    assert "".join(pieces) == text[1:], "the prompt's space is in the first token"
    assert all(pieces)
    text = text[1:]
    stop = text[20:23]
    assert "".join(generate_text(model, "x = ", sampling, stop=[stop])) == text.partition(stop)[0]


def test_output_may_be_cut_off_by_its_reader():
    """Real processes, since only they have a pipe that breaks."""
    command = [sys.executable, "-m", "streamfit", "generate", str(folder()), "--tokens", "3000", "--no-echo"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"def ")
        process.stdin.close()
        assert process.stdout.read(5)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0
