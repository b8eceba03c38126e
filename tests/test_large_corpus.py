"""The learning curve at fixed memory scores as Kneser-Ney in memory does, on the tokens that it says it counted."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines import large_corpus
from streamfit.errors import ConfigError
from streamfit.text.contexts import context_rows
from streamfit.text.kneser_ney import KneserNey
from streamfit.text.ngram import NgramCounts
from streamfit.text.tokenizer import make_tokenizer


def test_a_curve_is_that_of_counts_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(large_corpus, "_BATCH_BYTES", 3000)
    for i in range(20):
        words = np.random.default_rng(i).integers(0, 20, 300) ** 2 // 20
        (tmp_path / f"{i}.c").write_text(" ".join(f"word{w}" for w in words), encoding="utf-8")
    files = sorted(tmp_path.glob("*.c"))
    sizes = [10_000, 20_000]
    points = large_corpus.main(
        files, sizes, order=3, vocab_size=270, memory_bytes=2 * 10**8, held_out_bytes=5000, folder=tmp_path
    )
    shuffled = [files[i] for i in np.random.default_rng(0).permutation(len(files))]
    n_test = int(np.searchsorted(np.cumsum([p.stat().st_size for p in shuffled]), 5000, "right"))
    test, train = ([p.read_text() for p in part] for part in (shuffled[:n_test], shuffled[n_test:]))
    tokenizer = make_tokenizer("bpe", train, 270)
    x, y = context_rows(tokenizer.encode(test), 2)
    for point, size in zip(points, sizes, strict=True):
        assert size <= 1e6 * point.megabytes < size + 3000
        counts = NgramCounts.from_rows(*context_rows(tokenizer.encode(train[: point.files]), 2), tokenizer.vocab_size)
        assert (point.ngrams, point.tokens) == (len(counts.counts), counts.counts.sum())
        nats = -np.log(KneserNey.fit(counts).probability(x, y))
        np.testing.assert_allclose(point.perplexity, np.exp(nats.mean()), rtol=1e-9)
        np.testing.assert_allclose(point.bits_per_byte, nats.sum() / np.log(2) / sum(map(len, test)), rtol=1e-9)
        assert point.library_bytes <= point.peak_bytes < point.library_bytes + point.allowed_bytes
    large_corpus.write(points, tmp_path, 3)
    assert json.loads((tmp_path / "large_corpus.json").read_text())["points"][1]["tokens"] == points[1].tokens
    assert (tmp_path / "large_corpus.svg").stat().st_size > 1000


def test_the_toolkit_beside_it_has_the_same_probabilities(tmp_path, monkeypatch):
    """Of the same tokens, and of the same held-out ones, by a stand-in that writes the file that KenLM writes."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]))
    lmplz = tmp_path / "lmplz"
    lmplz.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).parent / "naive_lmplz.py"} "$@"\n')
    lmplz.chmod(0o755)
    for i in range(12):
        words = np.random.default_rng(i).integers(0, 12, 40) ** 2 // 12
        (tmp_path / f"{i}.c").write_text(" ".join(f"w{w}" for w in words), encoding="utf-8")
    given = {"order": 3, "tokenizer": "words", "vocab_size": 300, "memory_bytes": 2 * 10**8, "held_out_bytes": 500}
    files = sorted(tmp_path.glob("*.c"))
    (point,) = large_corpus.main(files, [10_000], **given, folder=tmp_path, lmplz=lmplz)
    assert point.toolkit.tokens == point.heldout_tokens > 100
    assert point.toolkit.difference < 1e-12
    np.testing.assert_allclose(point.toolkit.perplexity, point.perplexity, rtol=1e-12)
    assert point.toolkit.peak_bytes > 10**6
    assert point.toolkit.seconds > 0
    for bad, complaint in ((tmp_path / "none", "no program"), (Path("/bin/false"), "ended with 1: nothing")):
        with pytest.raises(ConfigError, match=complaint):
            large_corpus.main(files, [10_000], **given, folder=tmp_path, lmplz=bad)
