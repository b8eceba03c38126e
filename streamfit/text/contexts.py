"""Documents to rows: the last k tokens, and the token that follows. Floor 6."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from streamfit.corpus import Documents, Rows, Source
from streamfit.corpus.base import Tally, blocks_of
from streamfit.frame import BLOCK_ROWS
from streamfit.merging import Block, BlockTable, LargeTables, in_memory
from streamfit.plan import Shard
from streamfit.store.runs import COUNT_BYTES, CountRuns, row_bytes
from streamfit.text.ngram import NgramCounts, check_ids, check_sizes
from streamfit.text.tokenizer import Tokenizer

_WINDOW_ROWS = 16 * BLOCK_ROWS
"""Rows of windows that are made at a time: whole blocks, so that blocks do not depend on it."""


def context_rows(documents: Sequence[np.ndarray], n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Contexts and next tokens of tokenised documents, each ended by the document token, none reaching across.

    Parameters
    ----------
    documents : sequence of int32 arrays
    n_tokens : int
        Length k of a context.

    Returns
    -------
    contexts : int32 array of shape (n_rows, k)
        The nearest token last; document tokens (0) stand before a document's start.
    tokens : int64 array of shape (n_rows,)

    Examples
    --------
    >>> x, y = context_rows([np.array([5, 6], np.int32)], 2)
    >>> x.tolist(), y.tolist()
    ([[0, 0], [0, 5], [5, 6]], [5, 6, 0])
    """
    windows, tokens = [], []
    for ids in documents:
        padded = np.zeros(n_tokens + len(ids), np.int32)
        padded[n_tokens:] = ids
        windows.append(np.lib.stride_tricks.sliding_window_view(padded, n_tokens))
        tokens.append(np.append(ids, 0))
    if not windows:
        return np.empty((0, n_tokens), np.int32), np.empty(0, np.int64)
    return np.concatenate(windows), np.concatenate(tokens).astype(np.int64)


class Windows:
    """The rows of `context_rows`, made only when they are asked for: long contexts would be each token many times.

    Parameters
    ----------
    documents : sequence of int32 arrays
    n_tokens : int
        Length k of a context.

    Examples
    --------
    >>> windows = Windows([np.array([5, 6], np.int32), np.array([7], np.int32)], 2)
    >>> windows[1:4].tolist(), windows.tokens.tolist()
    ([[0, 5], [5, 6], [0, 0]], [5, 6, 0, 7, 0])
    """

    def __init__(self, documents: Sequence[np.ndarray], n_tokens: int) -> None:
        lengths = np.array([len(ids) + 1 for ids in documents], np.int64)
        ends = np.cumsum(lengths + n_tokens)
        stream = np.zeros(int(ends[-1]) if len(ends) else n_tokens, np.int32)
        for ids, end in zip(documents, ends.tolist(), strict=True):
            stream[end - 1 - len(ids) : end - 1] = ids
        self.n_tokens = n_tokens
        self._rows = np.lib.stride_tricks.sliding_window_view(stream, n_tokens)
        self._starts = np.repeat(ends - lengths - n_tokens - (np.cumsum(lengths) - lengths), lengths)
        self.tokens = np.zeros(int(lengths.sum()), np.int64)
        for ids, end in zip(documents, np.cumsum(lengths).tolist(), strict=True):
            self.tokens[end - 1 - len(ids) : end - 1] = ids

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Contexts of some rows: int32 array of shape (n, n_tokens)."""
        index = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        return np.asarray(self._rows[self._starts[index] + index])

    def batches(self, n_rows: int) -> Iterator[tuple[slice, np.ndarray]]:
        """All rows in order, so many at a time."""
        for lo in range(0, len(self), n_rows):
            rows = slice(lo, min(lo + n_rows, len(self)))
            yield rows, self[rows]


@dataclass(frozen=True)
class TokenSource(Source):
    """Documents as rows of token contexts.

    Parameters
    ----------
    documents : Documents
    tokenizer : Tokenizer
    n_context : int
        Tokens in a context.
    ngram_order : int
        Order of the n-gram counts that are tallied beside the moments, at most n_context + 1.
    tally_bytes : int
        Memory for that; what does not fit is written to the folder for temporary files, sorted, and merged.
    """

    documents: Documents
    tokenizer: Tokenizer
    n_context: int
    ngram_order: int
    tally_bytes: int = COUNT_BYTES

    def shards(self) -> list[Shard]:
        return self.documents.shards()

    def read(self, shard: Shard) -> Iterator[Rows]:
        windows = Windows(self.tokenizer.encode(self.documents.documents(shard)), self.n_context)
        for rows, contexts in windows.batches(_WINDOW_ROWS):
            yield from blocks_of(contexts, windows.tokens[rows])

    def positions(self, shard: Shard, column: str, values: frozenset[str]) -> tuple[int, ...]:
        return self.documents.positions(shard, column, values)

    def tally(self) -> NgramTally:
        return NgramTally(self.ngram_order, self.tokenizer.vocab_size, self.tally_bytes)

    def tally_room(self, n_rows: int) -> int:
        return min(self.tally_bytes, n_rows * row_bytes(self.ngram_order))


class NgramTally(Tally):
    """Counts the n-grams of a group's rows; they go into its segment and add up as the moments do."""

    def __init__(self, order: int, vocab_size: int, budget: int = COUNT_BYTES) -> None:
        check_sizes(order, vocab_size)
        self._order, self._vocab_size = order, vocab_size
        self._runs = CountRuns(order, budget)

    def add(self, rows: Rows) -> None:
        grams = np.empty((len(rows.y), self._order), np.int32)
        grams[:, :-1], grams[:, -1] = rows.x[:, rows.x.shape[1] + 1 - self._order :], rows.y
        check_ids("tokens", grams, self._vocab_size)
        self._runs.add(grams)

    def tables(self) -> dict[str, Block | BlockTable]:
        table = self._runs.table()
        return {"ngram": table if self._runs.spilled_rows else table.whole()}


def counts_of(tables: LargeTables, order: int, vocab_size: int) -> NgramCounts:
    """N-gram counts from the tables of a segment, in memory."""
    return NgramCounts(order, vocab_size, *in_memory(tables)["ngram"])
