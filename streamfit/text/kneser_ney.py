"""Interpolated modified Kneser-Ney of any order: what n-gram counts become once counting is over.

Floor 6: imports ngram, errors. Frozen tables that answer p(. | context) over the whole vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from streamfit.counts import Ids, Int64, row_keys, run_firsts
from streamfit.errors import ConfigError
from streamfit.text.ngram import Bool, Float64, Grams, NgramCounts, check_ids, check_rows

_SCATTER_ENTRIES = 1 << 18  # entries added at a time: their index arrays stay in cache


@dataclass(frozen=True, eq=False)
class _Level:
    """One order k: contexts of k - 1 tokens, and the tokens seen after each, in compressed rows.

    A context's id is its rank among the level's `contexts`; its key there is
    ``id of the context without its leftmost token * vocab_size + leftmost token``. Keys therefore fit
    63 bits at any order, and a look-up walks from the nearest token outwards.
    """

    contexts: Int64  # (n_contexts,) sorted keys
    seen: Int64  # (n_contexts,) raw occurrences of the context
    starts: Int64  # (n_contexts + 1,) where each context's entries begin
    grams: Int64  # (n_entries,) sorted: context id * vocab_size + token
    mass: Float64  # (n_entries,) discounted probability (count - D(count)) / total
    gamma: Float64  # (n_contexts,) weight of the next lower order
    discounts: Float64  # (3,) D1, D2, D3+


@dataclass(frozen=True, eq=False)
class KneserNey:
    r"""Interpolated modified Kneser-Ney, any order, normalised over the whole vocabulary.

    For a context c, and c' = c without its leftmost token,

    .. math:: p_k(w|c) = \frac{a_k(cw) - D_k(a_k(cw))}{\sum_v a_k(cv)} + \gamma_k(c)\, p_{k-1}(w|c'),
              \qquad \gamma_k(c) = \frac{\sum_{v: a_k(cv)>0} D_k(a_k(cv))}{\sum_v a_k(cv)}

    with the first term only where cw was seen, p_k = p_{k-1} where c was not, and
    p_0 = 1 / vocab_size, so every token has positive probability. a_k is the raw count at the
    highest order and the continuation count N1+(. cw), the number of distinct left neighbours, below.

    **Document starts.** Left neighbours are counted as they stand in the rows, so the padding before
    a document is one neighbour like any other. KenLM keeps raw counts for n-grams that begin with
    ``<s>``, because nothing stands to their left; here the highest order holds those raw counts
    under the fully padded context, and below it a document start is one environment out of many.

    **Discounts.** Each level has its own, from its numbers n1..n4 of n-grams with a_k = 1..4:
    Y = n1 / (n1 + 2 n2), D1 = 1 - 2 Y n2/n1, D2 = 2 - 3 Y n3/n2, D3+ = 3 - 4 Y n4/n3. Where n1, n2 or n3
    is 0, or some Dj is not in (0, j] (little text, or a vocabulary without rare tokens), the whole
    level takes 0.5, 1, 1.5, the fall-back of KenLM: any Dj in (0, j] keeps p normalised and positive.

    Parameters
    ----------
    order, vocab_size : int
        As in the counts.
    levels : tuple of _Level
        Tables of order 1 .. order; made by `fit`.

    Raises
    ------
    ConfigError
        From all methods that take contexts (int arrays of shape (n, m), m >= order - 1, the nearest
        token last; only the last order - 1 columns are read), when columns are missing, shapes do not
        match, or an id is negative or not below `vocab_size`.

    References
    ----------
    S. F. Chen and J. Goodman, "An empirical study of smoothing techniques for language modeling",
    Computer Speech and Language 13 (1999) 359-394. K. Heafield et al., "Scalable modified Kneser-Ney
    language model estimation", ACL 2013 (the fall-back is in the code of KenLM).

    Examples
    --------
    >>> contexts, tokens = np.array([[0], [1], [2], [1]]), np.array([1, 2, 1, 2])
    >>> model = KneserNey.fit(NgramCounts.from_rows(contexts, tokens, vocab_size=4))
    >>> p = model.distribution(np.array([[1]]))
    >>> bool(abs(p.sum() - 1) < 1e-5), int(p.argmax())
    (True, 2)
    """

    order: int
    vocab_size: int
    levels: tuple[_Level, ...]

    @classmethod
    def fit(cls, counts: NgramCounts) -> Self:
        """Build the tables of all orders; equal counts give equal bits, none the uniform distribution."""
        order, vocab_size = counts.order, counts.vocab_size
        # Sorted from the last token leftwards, the n-grams of every lower order are runs of rows.
        by_suffix = np.argsort(row_keys(counts.grams.T[::-1], vocab_size), kind="stable")
        grams, raw = counts.grams[by_suffix], counts.counts[by_suffix]
        firsts = _suffix_firsts(grams)
        levels: list[_Level] = []
        keys = np.zeros(np.count_nonzero(firsts[0]), np.int64)  # order 1 has one context, the empty one
        for k in range(1, order + 1):
            runs = np.flatnonzero(firsts[k - 1])
            adjusted = occurrences = np.add.reduceat(raw, runs)
            if k < order:
                adjusted = np.add.reduceat(firsts[k], runs, dtype=np.int64)
            level, ids = _build_level(keys, grams[runs, -1], adjusted, occurrences, vocab_size)
            levels.append(level)
            if k < order:
                # A run holds one n-gram of the next order for each of its left neighbours.
                keys = np.repeat(ids, adjusted) * vocab_size + grams[firsts[k], order - 1 - k]
        return cls(order, vocab_size, tuple(levels))

    def distribution(self, contexts: Ids) -> npt.NDArray[np.float32]:
        """Return p(. | context) over the whole vocabulary.

        Returns
        -------
        float32 array of shape (n, vocab_size)
            Positive rows that sum to 1 within 1e-5.
        """
        found = self._walk(contexts)
        weight = np.ones(contexts.shape[0])
        pending: list[tuple[_Level, Int64, Int64, Float64]] = []
        for level, (rows, ids) in zip(self.levels[:0:-1], found[:0:-1], strict=True):
            pending.append((level, rows, ids, weight[rows]))
            weight[rows] *= level.gamma[ids]
        p = np.multiply.outer(weight.astype(np.float32), self._unigram().astype(np.float32))
        for level, rows, ids, weights in pending:
            _scatter_add(p, level, rows, ids, weights)
        return p

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

    def _unigram(self) -> Float64:
        level = self.levels[0]
        p = np.full(self.vocab_size, level.gamma.sum() if level.gamma.size else 1.0) / self.vocab_size
        p[level.grams] += level.mass
        return p


def _build_level(
    keys: Int64, tokens: Ids, adjusted: Int64, occurrences: Int64, vocab_size: int
) -> tuple[_Level, Int64]:
    """Group n-grams, given in order of token, by context key; return the level and each one's context id."""
    # Stable, so that tokens stay in order within a context and the entries come out sorted.
    by_context = np.argsort(keys, kind="stable")
    keys, adjusted = keys[by_context], adjusted[by_context]
    first = run_firsts(keys)
    starts = np.flatnonzero(first)
    ids = np.cumsum(first) - 1
    discounts = _discounts(adjusted)
    taken = discounts[np.minimum(adjusted, 3) - 1]
    total = np.add.reduceat(adjusted, starts)
    level = _Level(
        contexts=keys[starts],
        seen=np.add.reduceat(occurrences[by_context], starts),
        starts=np.append(starts, keys.size),
        grams=ids * vocab_size + tokens[by_context],
        mass=(adjusted - taken) / total[ids],
        gamma=np.add.reduceat(taken, starts) / total,
        discounts=discounts,
    )
    context_ids = np.empty_like(ids)
    context_ids[by_context] = ids
    return level, context_ids


def _discounts(adjusted: Int64) -> Float64:
    n = np.bincount(adjusted[adjusted <= 4], minlength=5).astype(np.float64)
    if np.all(n[1:4] > 0):
        y = n[1] / (n[1] + 2 * n[2])
        j = np.arange(1, 4)
        discounts = j - (j + 1) * y * n[2:5] / n[1:4]
        if np.all((discounts > 0) & (discounts <= j)):
            return np.asarray(discounts, np.float64)
    return np.array([0.5, 1.0, 1.5])


def _scatter_add(p: npt.NDArray[np.float32], level: _Level, rows: Int64, ids: Int64, weights: Float64) -> None:
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
