"""Kneser-Ney of n-gram counts that memory does not hold: probabilities of given tokens, in passes over sorted tables.

Floor 6: imports kneser_ney, merging, store's runs. What is in memory is what is asked, and the blocks that go by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streamfit.counts import Ids, Int64
from streamfit.merging import Block, BlockTable
from streamfit.store.runs import COUNT_BYTES, CountRuns, block_rows
from streamfit.text.kneser_ney import discounts_of
from streamfit.text.ngram import Float64, check_ids, check_rows


def adjusted_levels(
    counts: BlockTable, *, budget: int = COUNT_BYTES, folder: Path | None = None
) -> Iterator[BlockTable]:
    """Counts of each order as Kneser-Ney takes them, the highest first: raw ones, then distinct left neighbours.

    Each table is made of the one before, whose n-grams lose their leftmost token and count once each; they are sorted
    anew, within the budget. N-grams that begin with padding keep their raw counts; those that begin with more than one
    token of it are in the tables for the sake of shorter ones.

    Parameters
    ----------
    counts : BlockTable
        N-grams of the highest order.
    budget : int
        Bytes that sorting takes at most.
    folder : Path, optional
        For what memory does not hold; the system's folder for temporary files without it.
    """
    yield counts
    for width in range(counts.width - 1, 0, -1):
        runs = CountRuns(width, budget, folder)
        for keys, found in counts.blocks(block_rows(width, budget, 1)):
            runs.add(keys[:, 1:], np.where(_padded_twice(keys), found, 1))
        counts = runs.table()
        del runs  # what it holds besides the table
        yield counts


def streamed_probability(
    counts: BlockTable,
    contexts: Ids,
    tokens: Ids,
    vocab_size: int,
    *,
    budget: int = COUNT_BYTES,
    folder: Path | None = None,
) -> Float64:
    """p(token | context) of interpolated modified Kneser-Ney, without its tables: those of `KneserNey.probability`.

    Parameters
    ----------
    counts : BlockTable
        N-grams of the highest order, with int32 ids below `vocab_size`.
    contexts : int array of shape (n, m), m >= order - 1
        The nearest token last.
    tokens : int array of shape (n,)
    vocab_size : int
    budget : int
        Bytes that sorting takes at most, beside some 300 a row that is asked and an order.
    folder : Path, optional
        For what memory does not hold; the system's folder for temporary files without it.

    Returns
    -------
    float64 array of shape (n,)
        Positive.

    Raises
    ------
    ConfigError
        If shapes do not match, or an id is not below `vocab_size`.
    """
    check_rows(contexts, tokens)
    check_ids("contexts", contexts, vocab_size)
    check_ids("tokens", tokens, vocab_size)
    terms: list[tuple[Float64, Float64]] = []
    for level in adjusted_levels(counts, budget=budget, folder=folder):
        near = contexts[:, contexts.shape[1] + 1 - level.width :]
        found = _Asked.of(near, tokens, vocab_size)
        for block in level.blocks(block_rows(level.width, budget, 1)):
            found.see(_ngrams(block))
        terms.append(found.terms())
    p = np.full(len(tokens), 1.0 / vocab_size)
    for gamma, mass in reversed(terms):
        p = gamma * p + mass
    return p


def _padded_twice(keys: Ids) -> npt.NDArray[np.bool_]:
    """Which n-grams begin with more than one token of padding: in KenLM's convention these are none."""
    return (keys[:, :2] == 0).all(axis=1) if keys.shape[1] > 2 else np.zeros(len(keys), np.bool_)


def _ngrams(block: Block) -> Block:
    keep = ~_padded_twice(block[0])
    return block if keep.all() else (block[0][keep], block[1][keep])


@dataclass(frozen=True)
class _Asked:
    """What is asked of one order: contexts as a tree, n-grams by context and token, and what was seen of them."""

    vocab_size: int
    tree: tuple[Int64, ...]  # for each column of contexts, sorted: id of the columns before * vocab_size + token
    contexts: Int64  # (n_rows,) id of each row's context
    grams: Int64  # (n_grams,) sorted: id of context * vocab_size + token
    rows: Int64  # (n_rows,) which of them each row asks for
    adjusted: Int64  # (n_grams,)
    total: Int64  # (n_contexts,)
    kinds: Int64  # (n_contexts, 3) n-grams with a count of 1, 2, 3 and more
    numbers: Int64  # (5,) n-grams of the whole level with a count of 0 .. 4

    @classmethod
    def of(cls, contexts: Ids, tokens: Ids, vocab_size: int) -> _Asked:
        tree, ids = [], np.zeros(len(tokens), np.int64)
        for column in contexts.T:
            keys, ids = np.unique(ids * vocab_size + column, return_inverse=True)
            tree.append(keys)
        grams, rows = np.unique(ids * vocab_size + tokens, return_inverse=True)
        n = len(tree[-1]) if tree else 1
        empty = np.zeros(len(grams), np.int64), np.zeros(n, np.int64), np.zeros((n, 3), np.int64)
        return cls(vocab_size, tuple(tree), ids, grams, rows, *empty, np.zeros(5, np.int64))

    def see(self, block: Block) -> None:
        """Take what was asked from a block of the level's counts."""
        keys, counts = block
        self.numbers[:] += np.bincount(counts[counts <= 4], minlength=5)
        at, ids = np.arange(len(counts)), np.zeros(len(counts), np.int64)
        for column, known in enumerate(self.tree):
            at, ids = _kept(known, ids * self.vocab_size + keys[at, column], at)
        taken = counts[at]
        np.add.at(self.total, ids, taken)
        np.add.at(self.kinds, (ids, np.minimum(taken, 3) - 1), 1)
        at, grams = _kept(self.grams, ids * self.vocab_size + keys[at, -1], at)
        self.adjusted[grams] = counts[at]

    def terms(self) -> tuple[Float64, Float64]:
        """Weight of the next lower order in each row's probability, and what this order adds to it."""
        discounts = discounts_of(self.numbers)
        seen = np.flatnonzero(self.total[self.contexts])
        ids, adjusted = self.contexts[seen], self.adjusted[self.rows[seen]]
        total = self.total[ids]
        gamma, mass = np.ones(len(self.rows)), np.zeros(len(self.rows))
        gamma[seen] = sum(self.kinds[ids, j] * discounts[j] for j in range(3)) / total
        mass[seen] = np.where(adjusted > 0, adjusted - discounts[np.minimum(adjusted, 3) - 1], 0.0) / total
        return gamma, mass


def _kept(known: Int64, keys: Int64, at: Int64) -> tuple[Int64, Int64]:
    """Those of the rows `at` whose key is known, and its place."""
    if not len(known):
        return at[:0], at[:0]
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    hit = known[place] == keys
    return at[hit], place[hit]
