"""Suffix ridge is the ridge of a dense solver on indicator features, and a distribution all the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfit.errors import ConfigError
from streamfit.text.contexts import context_rows
from streamfit.text.kneser_ney import KneserNey
from streamfit.text.ngram import NgramCounts
from streamfit.text.suffix_ridge import SuffixRidge
from streamfit.text.suffix_tables import suffix_tree

VOCAB = 5

corpora = st.lists(st.lists(st.integers(1, VOCAB - 1), max_size=15), min_size=1, max_size=4)


def rows_of(docs: list[list[int]], order: int) -> tuple[np.ndarray, np.ndarray]:
    return context_rows([np.array(d, np.int32) for d in docs], order - 1)


def dense_ridge(contexts: np.ndarray, tokens: np.ndarray, asked: np.ndarray, kappa: list[float]) -> np.ndarray:
    """The same objective by NumPy: a column an indicator, normal equations, targets less the uniform distribution."""
    rows = [tuple(row) for row in contexts.tolist()]
    width = contexts.shape[1]
    suffixes = sorted({row[width - n :] for row in rows for n in range(width + 1)}, key=lambda s: (len(s), s))
    followers = {s: {t for row, t in zip(rows, tokens.tolist(), strict=True) if row[width - len(s) :] == s}
                 for s in suffixes}  # fmt: skip

    def features(table: list[tuple[int, ...]]) -> np.ndarray:
        return np.array([[float(row[width - len(s) :] == s) for s in suffixes] for row in table])

    phi, y = features(rows), np.eye(VOCAB)[tokens] - 1.0 / VOCAB
    penalty = np.diag([kappa[len(s)] * len(followers[s]) for s in suffixes])
    b = np.linalg.solve(phi.T @ phi + penalty, phi.T @ y)
    return features([tuple(row) for row in asked.tolist()]) @ b + 1.0 / VOCAB


@given(corpora, st.integers(1, 4), st.data())
def test_the_tree_solve_is_the_dense_solve(docs, order, data):
    kappa = data.draw(st.lists(st.floats(0.05, 20.0), min_size=order, max_size=order))
    contexts, tokens = rows_of(docs, order)
    unseen = st.lists(st.integers(0, VOCAB - 1), min_size=order - 1, max_size=order - 1)
    asked = np.vstack([contexts[:4], np.array([data.draw(unseen) for _ in range(4)], np.int32).reshape(4, order - 1)])
    model = SuffixRidge.fit(NgramCounts.from_rows(contexts, tokens, VOCAB), kappa)
    expected = dense_ridge(contexts, tokens, asked, kappa)
    found = [model.probability(asked, np.full(len(asked), token)) for token in range(VOCAB)]
    np.testing.assert_allclose(np.transpose(found), expected, rtol=0, atol=1e-10)
    assert expected.min() > 0  # the dense solution stays in the simplex too: nothing was clipped


@given(corpora, st.integers(1, 4))
def test_rows_are_distributions(docs, order):
    contexts, tokens = rows_of(docs, order)
    model = SuffixRidge.fit(NgramCounts.from_rows(contexts, tokens, VOCAB), 1.5)
    p = model.distribution(np.vstack([contexts, np.full((1, order - 1), VOCAB - 1)]))
    assert p.min() > 0
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)


def test_penalties_run_from_the_contexts_own_frequencies_to_the_uniform_distribution():
    contexts, tokens = rows_of([[1, 2, 1, 2, 1, 3]], 2)
    counts = NgramCounts.from_rows(contexts, tokens, VOCAB)
    after_1 = np.array([[1]])
    np.testing.assert_allclose(
        SuffixRidge.fit(counts, 1e-9).distribution(after_1)[0], [0, 0, 2 / 3, 1 / 3, 0], atol=1e-6
    )
    np.testing.assert_allclose(SuffixRidge.fit(counts, 1e9).distribution(after_1)[0], 1 / VOCAB, atol=1e-6)


def test_two_rules_share_one_tree():
    contexts, tokens = rows_of([[1, 2, 1, 2, 1, 3], [2, 2]], 3)
    counts = NgramCounts.from_rows(contexts, tokens, VOCAB)
    tree = suffix_tree(counts)
    for fresh, shared in (
        (KneserNey.fit(counts), KneserNey.fit(counts, tree)),
        (SuffixRidge.fit(counts, 1.0), SuffixRidge.fit(counts, 1.0, tree)),
    ):
        np.testing.assert_array_equal(fresh.distribution(contexts), shared.distribution(contexts))


@pytest.mark.parametrize("penalties", [0.0, -1.0, np.inf, [1.0, 1.0], [1.0, 0.0, 1.0]])
def test_penalties_that_cannot_be_are_refused(penalties):
    with pytest.raises(ConfigError, match="penalties"):
        SuffixRidge.fit(NgramCounts.zeros(3, VOCAB), penalties)
