"""Tables of context suffixes: what n-gram counts become once a rule has turned them into probabilities.

Floor 6: imports ngram, errors. Kneser-Ney, suffix ridge and interpolation are rules for the numbers; the tables, and
all that is asked of them, are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streamfit.counts import Ids, Int64, row_keys, run_firsts
from streamfit.errors import ConfigError
from streamfit.text.ngram import Bool, Float64, Grams, NgramCounts, check_ids, check_rows

_SCATTER_ENTRIES = 1 << 18  # entries added at a time: their index arrays stay in cache


@dataclass(frozen=True, eq=False)
class Branch:
    """The counts of one order k: contexts of k - 1 tokens, and the tokens seen after each, in compressed rows.

    A context's id is its rank among the order's `contexts`; its key there is
    ``id of the context without its leftmost token * vocab_size + leftmost token``. Keys therefore fit
    63 bits at any order, and a look-up walks from the nearest token outwards.
    """

    contexts: Int64  # (n_contexts,) sorted keys
    seen: Int64  # (n_contexts,) raw occurrences of the context
    starts: Int64  # (n_contexts + 1,) where each context's entries begin
    grams: Int64  # (n_entries,) sorted: context id * vocab_size + token
    counts: Int64  # (n_entries,) raw occurrences
    parents: Int64  # (n_entries,) place of the same token after the shorter context, in the order below

    @property
    def ids(self) -> Int64:
        """Context id of each entry."""
        return np.repeat(np.arange(len(self.seen)), np.diff(self.starts))


@dataclass(frozen=True, eq=False)
class Level:
    """One order's probabilities: ``p(w | c) = mass(cw) + gamma(c) p(w | c without its leftmost token)``."""

    contexts: Int64
    seen: Int64
    starts: Int64
    grams: Int64
    mass: Float64  # (n_entries,)
    gamma: Float64  # (n_contexts,) weight of the next lower order

    @classmethod
    def of(cls, branch: Branch, mass: Float64, gamma: Float64) -> Level:
        """Probabilities on the places of counts."""
        return cls(branch.contexts, branch.seen, branch.starts, branch.grams, mass, gamma)


class Descent(NamedTuple):
    """Where contexts were found, and the weight that each order has there."""

    root: Float64  # (n_rows,) weight that is left for the order without context
    found: list[tuple[Level, Int64, Int64, Float64]]  # level, rows, context ids, weights


@dataclass(frozen=True, eq=False)
class SuffixTables:
    """Distributions that back off from a context to its suffixes, normalised over the whole vocabulary.

    Parameters
    ----------
    order, vocab_size : int
        As in the counts.
    levels : tuple of Level
        Tables of order 1 .. order; made by the subclasses' `fit`. Below the first is the uniform distribution.

    Raises
    ------
    ConfigError
        From all methods that take contexts (int arrays of shape (n, m), m >= order - 1, the nearest
        token last; only the last order - 1 columns are read), when columns are missing, shapes do not
        match, or an id is negative or not below `vocab_size`.
    """

    order: int
    vocab_size: int
    levels: tuple[Level, ...]

    def distribution(self, contexts: Ids) -> npt.NDArray[np.float32]:
        """Return p(. | context) over the whole vocabulary.

        Returns
        -------
        float32 array of shape (n, vocab_size)
            Positive rows that sum to 1 within 1e-5.
        """
        descent = self.descend(contexts, np.ones(contexts.shape[0]))
        p = np.multiply.outer(descent.root.astype(np.float32), self.unigram.astype(np.float32))
        add_found(p, descent)
        return p

    def descend(self, contexts: Ids, weights: Float64) -> Descent:
        """Find contexts, each with a weight by which its distribution is to be multiplied.

        ``outer(root, unigram)`` and what `add_found` adds to it are the weighted distributions: those of several
        tables can be added in one array.
        """
        found = self._walk(contexts)
        weight = np.array(weights, np.float64)
        pending: list[tuple[Level, Int64, Int64, Float64]] = []
        for level, (rows, ids) in zip(self.levels[:0:-1], found[:0:-1], strict=True):
            pending.append((level, rows, ids, weight[rows]))
            weight[rows] *= level.gamma[ids]
        return Descent(weight, pending)

    def probability(self, contexts: Ids, tokens: Ids) -> Float64:
        """Return p(token | context) of each row, for int tokens of shape (n,).

        Returns
        -------
        float64 array of shape (n,)
            Positive.
        """
        check_rows(contexts, tokens)
        check_ids("tokens", tokens, self.vocab_size)
        p = np.full(tokens.size, 1.0 / self.vocab_size)
        for level, (rows, ids) in zip(self.levels, self._walk(contexts), strict=True):
            p[rows] *= level.gamma[ids]
            at, hit = _find(level.grams, ids * self.vocab_size + tokens[rows].astype(np.int64))
            p[rows[hit]] += level.mass[at[hit]]
        return p

    def support(self, contexts: Ids) -> tuple[Int64, Int64]:
        """Say how much of each context was seen in training, and how often.

        Returns
        -------
        length : int64 array of shape (n,)
            Tokens in the longest suffix that was a context in training, 0 .. order - 1.
        total : int64 array of shape (n,)
            Raw occurrences of that suffix as a context; all training tokens where length is 0.
        """
        length = np.zeros(contexts.shape[0], np.int64)
        total = np.zeros(contexts.shape[0], np.int64)
        for k, (level, (rows, ids)) in enumerate(zip(self.levels, self._walk(contexts), strict=True)):
            length[rows], total[rows] = k, level.seen[ids]
        return length, total

    def _walk(self, contexts: Ids) -> list[tuple[Int64, Int64]]:
        """Return, for each order, the rows whose context was seen and the ids of those contexts."""
        if contexts.ndim != 2 or contexts.shape[1] < self.order - 1:
            msg = f"contexts of shape {contexts.shape}"
            raise ConfigError(msg, f"(n, m) with m >= {self.order - 1}")
        width = contexts.shape[1]
        nearest = contexts[:, width - self.order + 1 :].astype(np.int64)  # narrower would overflow in keys
        check_ids("contexts", contexts, self.vocab_size)
        rows = np.arange(contexts.shape[0], dtype=np.int64)
        keys = np.zeros(rows.size, np.int64)
        found: list[tuple[Int64, Int64]] = []
        for k, level in enumerate(self.levels, start=1):
            at, hit = _find(level.contexts, keys)
            rows, ids = rows[hit], at[hit]
            found.append((rows, ids))
            if k < self.order:
                # A context can only have been seen if its suffix was: the others drop out here.
                keys = ids * self.vocab_size + nearest[rows, self.order - 1 - k]
        return found

    @cached_property
    def unigram(self) -> Float64:
        """Distribution without any context: float64 array of shape (vocab_size,)."""
        level = self.levels[0]
        p = np.full(self.vocab_size, level.gamma.sum() if level.gamma.size else 1.0) / self.vocab_size
        p[level.grams] += level.mass
        return p


def suffix_tree(counts: NgramCounts) -> tuple[Branch, ...]:
    """Lay out the n-grams of all orders up to that of the counts; equal counts give equal bits."""
    order, vocab_size = counts.order, counts.vocab_size
    # Sorted from the last token leftwards, the n-grams of every lower order are runs of rows.
    by_suffix = np.argsort(row_keys(counts.grams.T[::-1], vocab_size), kind="stable")
    grams, raw = counts.grams[by_suffix], counts.counts[by_suffix]
    firsts = _suffix_firsts(grams)
    branches: list[Branch] = []
    keys = np.zeros(np.count_nonzero(firsts[0]), np.int64)  # order 1 has one context, the empty one
    parents = np.zeros(keys.size, np.int64)
    for k in range(1, order + 1):
        runs = np.flatnonzero(firsts[k - 1])
        branch, ids, places = _branch(keys, grams[runs, -1], np.add.reduceat(raw, runs), parents, vocab_size)
        branches.append(branch)
        if k < order:
            # A run holds one n-gram of the next order for each of its left neighbours.
            neighbours = np.add.reduceat(firsts[k], runs, dtype=np.int64)
            keys = np.repeat(ids, neighbours) * vocab_size + grams[firsts[k], order - 1 - k]
            parents = np.repeat(places, neighbours)
    return tuple(branches)


def _branch(keys: Int64, tokens: Ids, counts: Int64, parents: Int64, vocab_size: int) -> tuple[Branch, Int64, Int64]:
    """Group n-grams, given in order of token, by context key; return each one's context id and new place as well."""
    # Stable, so that tokens stay in order within a context and the entries come out sorted.
    by_context = np.argsort(keys, kind="stable")
    keys, counts = keys[by_context], counts[by_context]
    first = run_firsts(keys)
    starts = np.flatnonzero(first)
    ids = np.cumsum(first) - 1
    branch = Branch(
        contexts=keys[starts],
        seen=np.add.reduceat(counts, starts) if counts.size else counts,
        starts=np.append(starts, keys.size),
        grams=ids * vocab_size + tokens[by_context],
        counts=counts,
        parents=parents[by_context],
    )
    context_ids, places = np.empty_like(ids), np.empty_like(ids)
    context_ids[by_context] = ids
    places[by_context] = np.arange(ids.size)
    return branch, context_ids, places


def add_found(p: npt.NDArray[np.float32], descent: Descent) -> None:
    """Add the weighted masses of all found contexts to distributions, in place."""
    for level, rows, ids, weights in descent.found:
        _scatter_add(p, level, rows, ids, weights)


def _scatter_add(p: npt.NDArray[np.float32], level: Level, rows: Int64, ids: Int64, weights: Float64) -> None:
    """Add weight * mass of every token seen after context ids[i] to row rows[i] of p, in place."""
    flat, vocab_size = p.reshape(-1), p.shape[1]
    begin, lengths = level.starts[ids], level.starts[ids + 1] - level.starts[ids]
    ends = np.cumsum(lengths)
    cuts = np.searchsorted(ends, np.arange(_SCATTER_ENTRIES, ends[-1] if ends.size else 0, _SCATTER_ENTRIES))
    for part in np.split(np.arange(rows.size), cuts):
        n = lengths[part]
        entry = np.arange(n.sum()) + np.repeat(begin[part] - (np.cumsum(n) - n), n)
        # An entry is stored as context id * vocab + token; it belongs at row * vocab + token.
        to = level.grams[entry] + np.repeat((rows[part] - ids[part]) * vocab_size, n)
        # Indices within a level are distinct, so that += meets each only once.
        flat[to] += (level.mass[entry] * np.repeat(weights[part], n)).astype(np.float32)


def _find(table: Int64, keys: Int64) -> tuple[Int64, Bool]:
    """Return each key's place in the sorted table, and whether it is there at all."""
    if table.size == 0:
        return np.zeros(keys.size, np.int64), np.zeros(keys.size, np.bool_)
    at = np.minimum(np.searchsorted(table, keys), table.size - 1)
    return at, table[at] == keys


def _suffix_firsts(grams: Grams) -> list[Bool]:
    """Mark, for suffixes of 1, 2, .. tokens, the rows where a new suffix begins."""
    firsts: list[Bool] = []
    for column in grams.T[::-1]:
        new = run_firsts(column)
        firsts.append(new | firsts[-1] if firsts else new)
    return firsts
