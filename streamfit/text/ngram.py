"""N-gram counts: state that merges, subtracts and compares exactly, like every other sum of the package.

Floor 6: imports numpy and errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from streamfit.counts import Ids, Int64, add_counts
from streamfit.errors import ConfigError, MismatchError

Grams = npt.NDArray[np.int32]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

_VOCAB_LIMIT = 2**31  # ids are int32; a dense row number times the vocabulary then fits a key


@dataclass(frozen=True, eq=False)
class NgramCounts:
    """Raw counts of all n-grams of one order; a state that adds.

    ``counts(A ++ B) == counts(A) + counts(B)`` for whole documents A and B, exactly; `zeros` is the
    identity and ``-`` undoes ``+``.

    Parameters
    ----------
    order : int
        Tokens in an n-gram, at least 1.
    vocab_size : int
        Token ids are 0 .. vocab_size - 1.
    grams : int32 array of shape (n_types, order)
        Distinct n-grams in lexicographic order; the predicted token is the last column.
    counts : int64 array of shape (n_types,)
        Occurrences of each, all positive.

    Raises
    ------
    ConfigError
        When the arrays do not have these shapes, types or row order, or an id is negative or not below
        `vocab_size`; all methods check what they are given in the same way.
    MismatchError
        From ``+`` and ``-``, when order or vocabulary differ or a count would go negative.

    Examples
    --------
    >>> a = NgramCounts.from_rows(np.array([[0], [1]]), np.array([1, 2]), vocab_size=3)
    >>> b = NgramCounts.from_rows(np.array([[0]]), np.array([1]), vocab_size=3)
    >>> (a + b).grams.tolist(), (a + b).counts.tolist()
    ([[0, 1], [1, 2]], [2, 1])
    >>> (a + b) - b == a
    True
    """

    order: int
    vocab_size: int
    grams: Grams
    counts: Int64

    def __post_init__(self) -> None:
        check_sizes(self.order, self.vocab_size)
        shapes = (self.grams.shape, self.counts.shape)
        if shapes != ((self.counts.size, self.order), (self.counts.size,)):
            msg = f"grams and counts of shapes {shapes}"
            raise ConfigError(msg, f"(n, {self.order}) and (n,)")
        if self.grams.dtype != np.int32 or self.counts.dtype != np.int64:
            msg = f"grams {self.grams.dtype} and counts {self.counts.dtype}"
            raise ConfigError(msg, "int32 and int64")
        check_ids("grams", self.grams, self.vocab_size)
        if not (np.all(self.counts > 0) and _strictly_increasing(self.grams)):
            msg = "n-grams that repeat, are unsorted or have a count below 1"
            raise ConfigError(msg, "a sorted table",
                              "make counts with NgramCounts.from_rows")  # fmt: skip

    @classmethod
    def zeros(cls, order: int, vocab_size: int) -> Self:
        """Return the counts of no text: the identity of ``+``."""
        check_sizes(order, vocab_size)
        return cls(order, vocab_size, np.empty((0, order), np.int32), np.empty(0, np.int64))

    @classmethod
    def from_rows(cls, contexts: Ids, tokens: Ids, vocab_size: int) -> Self:
        """Count rows of context and next token.

        Parameters
        ----------
        contexts : int array of shape (n, order - 1)
            The tokens before each token, the nearest last, padded on the left with the document token
            at a document's start and never reaching into another document.
        tokens : int array of shape (n,)
            The token that follows each context.
        vocab_size : int
            Token ids are 0 .. vocab_size - 1.

        Returns
        -------
        NgramCounts
            Of order ``contexts.shape[1] + 1``.
        """
        check_rows(contexts, tokens)
        order = contexts.shape[1] + 1
        check_sizes(order, vocab_size)
        check_ids("contexts", contexts, vocab_size)
        check_ids("tokens", tokens, vocab_size)
        rows = np.empty((tokens.size, order), np.int32)
        rows[:, :-1], rows[:, -1] = contexts, tokens
        return cls(order, vocab_size, *add_counts(rows, np.ones(tokens.size, np.int64)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NgramCounts):
            return NotImplemented
        same = (self.order, self.vocab_size) == (other.order, other.vocab_size)
        same = same and np.array_equal(self.grams, other.grams)
        return same and np.array_equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: NgramCounts) -> NgramCounts:
        return self._combine(other, other.counts)

    def __sub__(self, other: NgramCounts) -> NgramCounts:
        return self._combine(other, -other.counts)

    @property
    def table(self) -> tuple[Grams, Int64]:
        """Grams and counts as a table of a segment."""
        return self.grams, self.counts

    def packed(self) -> dict[str, np.ndarray]:
        """Grams and counts in the smallest integers that hold them, to be kept; `unpacked` is the inverse."""
        most = int(self.counts.max()) if self.counts.size else 0
        return {
            "grams": self.grams.astype(np.min_scalar_type(self.vocab_size - 1)),
            "counts": self.counts.astype(np.min_scalar_type(most)),
        }

    @classmethod
    def unpacked(cls, order: int, vocab_size: int, grams: np.ndarray, counts: np.ndarray) -> Self:
        """Counts from integers of any size."""
        return cls(order, vocab_size, grams.astype(np.int32), counts.astype(np.int64))

    def lower(self, order: int) -> NgramCounts:
        """Return raw (not continuation) counts of order 1 .. self.order: leftmost tokens are summed out."""
        if not 1 <= order <= self.order:
            msg = f"n-gram order {order}"
            raise ConfigError(msg, f"1 to {self.order}, the order that was counted")
        rows = self.grams[:, self.order - order :]
        return NgramCounts(order, self.vocab_size, *add_counts(rows, self.counts))

    def _combine(self, other: NgramCounts, weights: Int64) -> NgramCounts:
        mine, theirs = (self.order, self.vocab_size), (other.order, other.vocab_size)
        if mine != theirs:
            msg = f"n-gram counts of (order, vocabulary) {theirs}"
            raise MismatchError(msg, str(mine),
                                "count both with the same configuration")  # fmt: skip
        rows = np.concatenate([self.grams, other.grams])
        return NgramCounts(self.order, self.vocab_size, *add_counts(rows, np.concatenate([self.counts, weights])))


def _strictly_increasing(rows: Ids) -> bool:
    """Say whether rows are distinct and in lexicographic order."""
    before = np.zeros(max(len(rows) - 1, 0), np.bool_)
    for column in rows.T[::-1]:
        before = (column[:-1] < column[1:]) | ((column[:-1] == column[1:]) & before)
    return bool(before.all())


def check_sizes(order: int, vocab_size: int) -> None:
    """Raise ConfigError for an order or vocabulary that cannot be counted."""
    if order < 1 or not 1 <= vocab_size <= _VOCAB_LIMIT:
        msg = f"order {order}, vocab_size {vocab_size}"
        raise ConfigError(msg, f"at least 1, and 1 to {_VOCAB_LIMIT}")


def check_rows(contexts: Ids, tokens: Ids) -> None:
    """Raise ConfigError unless there is one context for each token."""
    if contexts.ndim != 2 or tokens.shape != contexts.shape[:1]:
        msg = f"contexts of shape {contexts.shape} and tokens of shape {tokens.shape}"
        raise ConfigError(msg,
                          "(n, order - 1) and (n,)")  # fmt: skip


def check_ids(name: str, ids: Ids, vocab_size: int) -> None:
    """Raise ConfigError unless ids are integers in [0, vocab_size)."""
    if not np.issubdtype(ids.dtype, np.integer):
        msg = f"{name} of type {ids.dtype}"
        raise ConfigError(msg, "integer token ids")
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        msg = f"{name} with ids {ids.min()} to {ids.max()}"
        raise ConfigError(msg, f"0 to {vocab_size - 1}",
                          "use the vocabulary that the tokens were made with")  # fmt: skip
