"""Tokens and short texts that are used alike: nearest neighbours among closed-form embeddings of a model's own counts.

Floor 6: imports model, clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from streamfit.counts import Int64
from streamfit.errors import ConfigError
from streamfit.text.clusters import pair_embeddings
from streamfit.text.model import LanguageModel
from streamfit.text.tokenizer import Tokenizer

_COMMON = 1e-3
"""Frequency of a token that counts half in a text of several: common ones say little of what it is about."""


@dataclass(frozen=True)
class Neighbour:
    """A token or text, and how near it is.

    Parameters
    ----------
    text : str
    similarity : float
        Cosine, at most 1.
    count : int
        Of a token, in training; 0 for texts.
    """

    text: str
    similarity: float
    count: int = 0


@dataclass(frozen=True, eq=False)
class Related:
    """Embeddings of tokens by their neighbours, and of texts by their tokens.

    A token's row counts the tokens that come one and two places before and after it; see `pair_embeddings` for what
    becomes of the counts. A text is the sum of its tokens' vectors, one of frequency f counting 1 / (1 + 1000 f).

    Parameters
    ----------
    tokenizer : Tokenizer
    vectors : float32 array of shape (vocab_size, dims)
        Of length one.
    counts : int64 array of shape (vocab_size,)
        Of each token, in training.
    """

    tokenizer: Tokenizer
    vectors: np.ndarray
    counts: Int64

    @classmethod
    def of(cls, model: LanguageModel, dims: int = 100, seed: int = 0) -> Related:
        """From a model's counts: the same model gives the same embeddings.

        Parameters
        ----------
        model : LanguageModel
            Whose counts are of order 2 or more; of order 2 only direct neighbours are seen.
        dims : int
        seed : int

        Raises
        ------
        ConfigError
            If the counts are of order 1.
        """
        order, n = model.counts.order, model.vocab_size
        if order < 2:
            msg = "relations in a model of single tokens"
            raise ConfigError(msg, "counts of order 2 or more")
        grams, counts = model.counts.grams, model.counts.counts.astype(np.float64)
        sides = []
        for distance in range(1, min(order, 3)):
            places = (grams[:, -1 - distance], grams[:, -1])
            pairs = scipy.sparse.coo_matrix((counts, places), shape=(n, n)).tocsr()
            sides += [pairs, pairs.T.tocsr()]
        vectors = pair_embeddings(scipy.sparse.hstack(sides).tocsr(), max(1, min(dims, n - 1)), seed)
        return cls(model.tokenizer, vectors, np.bincount(grams[:, -1], counts, n).astype(np.int64))

    def tokens(self, query: str, n: int = 10, *, least: int = 10) -> list[Neighbour]:
        """Tokens that are used like a word or a short text.

        Parameters
        ----------
        query : str
        n : int
            At most so many, the nearest first.
        least : int
            Occurrences that a token needs to be shown.

        Raises
        ------
        ConfigError
            If the query has no token that was seen in training.
        """
        ids = self._ids(query)
        near = self.vectors @ self._vector(query, ids)
        own = {query.strip()} | {self.tokenizer.decode([int(i)]).strip() for i in ids}
        found: list[Neighbour] = []
        for token in np.argsort(-near, kind="stable"):
            text = self.tokenizer.decode([int(token)]) if token else ""
            # The same word with a space before it is another token, and no news.
            if token == self.tokenizer.unknown or self.counts[token] < least:
                continue
            if text.strip() and text.strip() not in own:
                own.add(text.strip())
                found.append(Neighbour(text, float(near[token]), int(self.counts[token])))
            if len(found) == n:
                break
        return found

    def texts(self, query: str, among: Sequence[str], n: int = 10) -> list[Neighbour]:
        """Texts that are about the same as a query; those without a token that was seen are left out.

        Parameters
        ----------
        query : str
        among : sequence of str
        n : int

        Raises
        ------
        ConfigError
            If the query has no token that was seen in training.
        """
        mine = self._vector(query, self._ids(query))
        found = []
        for text in among:
            ids = self._ids(text)
            if text.strip() != query.strip() and len(self._known(ids)):
                found.append(Neighbour(text, float(self._vector(text, ids) @ mine)))
        return sorted(found, key=lambda each: -each.similarity)[:n]

    def _ids(self, text: str) -> np.ndarray:
        """Tokens as they are within a line, where that is how the text is known best."""
        ways = [self.tokenizer.encode([each])[0] for each in (text, f" {text}")]
        return min(ways, key=lambda ids: (len(ids), -int(self.counts[ids].sum())))

    def unknown(self, query: str) -> int:
        """Tokens of a query that say nothing, as they were not seen in training or stand for any unknown word."""
        ids = self._ids(query)
        return len(ids) - len(self._known(ids))

    def _known(self, ids: np.ndarray) -> np.ndarray:
        seen = self.counts[ids] > 0
        return np.asarray(ids[seen if self.tokenizer.unknown is None else seen & (ids != self.tokenizer.unknown)])

    def _vector(self, text: str, ids: np.ndarray) -> np.ndarray:
        known = self._known(ids)
        if not len(known):
            msg = f"{text!r}, of which no token was seen in training"
            raise ConfigError(msg, "words of the model's corpus")
        weights = 1.0 / (1.0 + self.counts[known] / max(int(self.counts.sum()), 1) / _COMMON)
        vector = weights @ self.vectors[known]
        return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9))
