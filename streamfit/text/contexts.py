"""Documents to rows: the last k tokens, and the token that follows. Floor 6."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from streamfit.corpus import Documents, Rows, Source
from streamfit.corpus.base import Tally, blocks_of
from streamfit.counts import Tables
from streamfit.plan import Shard
from streamfit.text.ngram import NgramCounts
from streamfit.text.tokenizer import Tokenizer

_COUNT_ROWS = 1_000_000


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
    """

    documents: Documents
    tokenizer: Tokenizer
    n_context: int
    ngram_order: int

    def shards(self) -> list[Shard]:
        return self.documents.shards()

    def read(self, shard: Shard) -> Iterator[Rows]:
        ids = self.tokenizer.encode(self.documents.documents(shard))
        yield from blocks_of(*context_rows(ids, self.n_context))

    def positions(self, shard: Shard, column: str, values: frozenset[str]) -> tuple[int, ...]:
        return self.documents.positions(shard, column, values)

    def tally(self) -> NgramTally:
        return NgramTally(self.ngram_order, self.tokenizer.vocab_size)


class NgramTally(Tally):
    """Counts the n-grams of a group's rows; they go into its segment and add up as the moments do."""

    def __init__(self, order: int, vocab_size: int) -> None:
        self._counts = NgramCounts.zeros(order, vocab_size)
        self._contexts: list[np.ndarray] = []
        self._tokens: list[np.ndarray] = []

    def add(self, rows: Rows) -> None:
        self._contexts.append(rows.x[:, rows.x.shape[1] + 1 - self._counts.order :])
        self._tokens.append(rows.y)
        if sum(map(len, self._tokens)) > _COUNT_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._tokens:
            contexts, tokens = np.concatenate(self._contexts), np.concatenate(self._tokens)
            self._counts = self._counts + NgramCounts.from_rows(contexts, tokens, self._counts.vocab_size)
            self._contexts, self._tokens = [], []

    def tables(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        self._flush()
        return {"ngram": (self._counts.grams, self._counts.counts)}


def counts_of(tables: Tables, order: int, vocab_size: int) -> NgramCounts:
    """N-gram counts from the tables of a segment."""
    return NgramCounts(order, vocab_size, *tables["ngram"])
