"""Exact interpolation is the kernel machine of all distinct contexts as alpha goes to 0, and remembers all it read."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfit.errors import ConfigError
from streamfit.text import ExpertSettings
from streamfit.text.contexts import context_rows
from streamfit.text.interpolate import ALPHA, Interpolation
from streamfit.text.ngram import NgramCounts
from streamfit.text.suffix_tables import suffix_tree

VOCAB = 6
corpora = st.lists(st.lists(st.integers(1, VOCAB - 1), max_size=14), min_size=1, max_size=4)


def rows_of(docs: list[list[int]], k: int) -> tuple[np.ndarray, np.ndarray]:
    return context_rows([np.array(d, np.int32) for d in docs], k)


def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 + how many of their last tokens two contexts share."""
    same = a[:, None, ::-1] == b[None, :, ::-1]
    return 1.0 + np.cumprod(same, axis=2).sum(axis=2)


def dense(contexts: np.ndarray, tokens: np.ndarray, asked: np.ndarray, alpha: float) -> np.ndarray:
    """The same machine by NumPy: a center a distinct context, the mean of what followed as its target."""
    centers, which, n = np.unique(contexts, axis=0, return_inverse=True, return_counts=True)
    mean = np.zeros((len(centers), VOCAB))
    np.add.at(mean, (which.ravel(), tokens), 1.0)
    mean /= n[:, None]
    beta = np.linalg.solve(kernel(centers, centers) + alpha * np.diag(1.0 / n), mean - 1.0 / VOCAB)
    return 1.0 / VOCAB + kernel(asked, centers) @ beta


def tree(contexts: np.ndarray, tokens: np.ndarray, asked: np.ndarray, alpha: float) -> np.ndarray:
    model = Interpolation.fit(NgramCounts.from_rows(contexts, tokens, VOCAB), alpha)
    return np.transpose([model.probability(asked, np.full(len(asked), token)) for token in range(VOCAB)])


def old_and_new(contexts: np.ndarray, seed: int) -> np.ndarray:
    """Contexts of the corpus, others of its tokens, and others that begin otherwise."""
    rng = np.random.default_rng(seed)
    longer = contexts[rng.integers(0, len(contexts), 6)].copy()
    longer[:, 0] = rng.integers(0, VOCAB, 6)
    return np.vstack([contexts, rng.integers(0, VOCAB, (6, contexts.shape[1]), dtype=np.int32), longer])


@given(corpora, st.integers(1, 5), st.sampled_from([3.0, 1e-2, 1e-5]), st.integers(0, 99))
def test_the_tree_solve_is_the_dense_kernel_solve(docs, k, alpha, seed):
    contexts, tokens = rows_of(docs, k)
    asked = old_and_new(contexts, seed)
    found = tree(contexts, tokens, asked, alpha)
    np.testing.assert_allclose(found, dense(contexts, tokens, asked, alpha), rtol=0, atol=1e-9)


@given(corpora, st.integers(1, 5), st.integers(0, 99))
def test_the_limit_is_the_interpolant_of_least_norm(docs, k, seed):
    contexts, tokens = rows_of(docs, k)
    asked = old_and_new(contexts, seed)
    limit = dense(contexts, tokens, asked, 0.0)
    for alpha in (1e-2, 1e-4, 1e-6, 1e-8):
        # Every suffix moves by at most alpha times the eliminations on the way down to it.
        assert np.abs(tree(contexts, tokens, asked, alpha) - limit).max() <= (k + 2) * alpha + 1e-10


@given(corpora, st.integers(1, 5))
def test_every_context_is_remembered_and_every_unambiguous_one_answered_right(docs, k):
    contexts, tokens = rows_of(docs, k)
    followers: dict[tuple[int, ...], Counter[int]] = {}
    for row, token in zip(contexts.tolist(), tokens.tolist(), strict=True):
        followers.setdefault(tuple(row), Counter())[token] += 1
    centers = np.array(list(followers), np.int32)
    model = Interpolation.fit(NgramCounts.from_rows(contexts, tokens, VOCAB + 1))
    assert model.followers(centers).tolist() == [len(seen) for seen in followers.values()]
    assert model.followers(np.full((1, k), VOCAB)).tolist() == [0]
    for alpha in (1e-3, ALPHA):
        for seen, p in zip(followers.values(), tree(contexts, tokens, centers, alpha), strict=True):
            frequencies = np.bincount(list(seen.elements()), minlength=VOCAB) / seen.total()
            assert np.abs(p - frequencies).max() <= alpha / seen.total() + 1e-12
            if len(seen) == 1:
                assert p.argmax() == next(iter(seen))
                assert p.max() > 1 - alpha


def test_a_context_that_was_not_seen_is_answered_by_its_longest_suffix_that_was():
    """By hand: after 1 came 2 and 3, in two contexts that weigh the same although one came three times."""
    docs = [[4, 1, 2], [4, 1, 2], [4, 1, 2], [5, 1, 3]]
    contexts, tokens = rows_of(docs, 2)
    counts = NgramCounts.from_rows(contexts, tokens, 7)
    model = Interpolation.fit(counts, 1e-9)
    p = model.distribution(np.array([[3, 1], [2, 1], [4, 1], [5, 1]]))
    np.testing.assert_array_equal(p[0], p[1])
    assert p[0, 2] == pytest.approx(p[0, 3], abs=1e-6)
    np.testing.assert_allclose(p[2:, 2], [1, 0], atol=1e-6)
    # The suffix (1) stands between the contexts (4, 1), (5, 1) and the empty suffix: the mean of the three.
    root = model.distribution(np.array([[3, 6]]))[0]  # 6 never came
    np.testing.assert_allclose(p[0], (np.eye(7)[2] + np.eye(7)[3] + root) / 3, atol=1e-6)


@given(corpora, st.integers(1, 4))
def test_the_first_orders_of_a_tree_are_shorter_contexts(docs, k):
    contexts, tokens = rows_of(docs, k)
    counts = NgramCounts.from_rows(contexts, tokens, VOCAB)
    for shorter in range(k):
        cut = Interpolation.fit(counts, tree=suffix_tree(counts)[: shorter + 1])
        own = Interpolation.fit(counts.lower(shorter + 1))
        np.testing.assert_array_equal(cut.distribution(contexts), own.distribution(contexts))


def test_its_name_is_an_expert_of_its_own():
    contexts, tokens = rows_of([[1, 2, 1, 3, 1, 2, 4], [2, 5]], 3)
    counts = NgramCounts.from_rows(contexts, tokens, VOCAB)
    made = ExpertSettings(("exact", "suffix_ridge")).build(counts, {})
    assert isinstance(made["exact"].tables, Interpolation)
    expected = dense(contexts, tokens, contexts, 0.0)
    np.testing.assert_allclose(made["exact"].distribution(contexts), expected, atol=1e-5)
    assert np.abs(made["suffix_ridge"].distribution(contexts) - expected).max() > 0.1
    nothing = Interpolation.fit(NgramCounts.zeros(3, VOCAB)).distribution(contexts)
    np.testing.assert_allclose(nothing, 1 / VOCAB)


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.inf, np.nan])
def test_penalties_that_cannot_be_are_refused(alpha):
    with pytest.raises(ConfigError, match="alpha"):
        Interpolation.fit(NgramCounts.zeros(3, VOCAB), alpha)
