"""Adaptive scores: text that was scored becomes new data, and the next text is scored by a model that has it.

Floor 6: imports model, cache, evaluate. Never a token is predicted by counts or sums that hold it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from streamfit.errors import ConfigError
from streamfit.text.cache import KERNELS, Cache, Recent
from streamfit.text.clusters import token_vectors
from streamfit.text.contexts import Windows
from streamfit.text.evaluate import Score, score, sizes
from streamfit.text.model import LanguageModel
from streamfit.text.ngram import NgramCounts

EVERY = 50_000
"""Tokens between solves."""


class Adaptive:
    """A language model that learns from what it is scored on.

    After every so many tokens the counts take up those that were scored, and the topic's moments too; experts and the
    topic's ridge are solved again. Weights of the mixture stay as they were chosen. In between, the cache, where the
    model has one, gives what was read last. The network's weights stay: its Gram matrix is in the store, not in the
    model.

    Parameters
    ----------
    model : LanguageModel
    every : int
        Tokens between solves; 0 leaves the model as it is, and the cache alone adapts.

    Attributes
    ----------
    model : LanguageModel
        As it is by now.
    n_adapted : int
        Tokens that were scored by a model that had learnt something: none of a text that is shorter than `every`.

    Raises
    ------
    ConfigError
        If `every` is negative, or 0 without a cache: nothing would adapt.
    """

    def __init__(self, model: LanguageModel, every: int = EVERY) -> None:
        if every < 0 or (every == 0 and model.cache is None):
            msg = f"a solve every {every} tokens, {'without' if model.cache is None else 'with'} a cache"
            raise ConfigError(msg, "1 or more, or a model that was fitted with a cache")
        self.model, self._static, self._every = model, model, every
        self.n_adapted = 0
        self._past = None if model.cache is None else Recent.nothing(model.cache, model.n_context)
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []

    def documents(self, texts: Iterable[str]) -> dict[str, Score]:
        """Score whole documents in order, and learn from them.

        Parameters
        ----------
        texts : iterable of str

        Returns
        -------
        dict of str to Score
            'static': the model as it was given. 'adapted': with counts and moments that take up what was scored, unless
            `every` is 0. Where the model has a cache, 'adapted, with cache' or 'static, with cache' as well.
        """
        total: dict[str, Score] = {}
        for text in texts:
            encoded = self.model.tokenizer.encode([text])
            windows, spelled = Windows(encoded, self.model.n_context), sizes(self.model.tokenizer, [text], encoded)
            for rows, contexts in windows.batches(self.model.batch_rows):
                for name, each in self._scored(contexts, windows.tokens[rows]).items():
                    total[name] = total.get(name, Score()) + each
            total = {name: each + spelled for name, each in total.items()}
        return total

    def _scored(self, contexts: np.ndarray, tokens: np.ndarray) -> dict[str, Score]:
        p = self.model.distribution(contexts)
        name = "adapted" if self._every else "static"
        own = static = score(p, tokens)
        if self.model is not self._static:
            static = score(self._static.distribution(contexts), tokens)
            self.n_adapted += len(tokens)
        found = {"static": static, name: own}
        cache = self.model.cache
        if cache is not None and self._past is not None:
            # A row sees the rows of its own batch that stand before it: they have been scored by then.
            self._past = self._past.then(cache, contexts, tokens)
            found[f"{name}, with cache"] = score(
                cache.apply(p, contexts, self.model.support(contexts)[0], self._past), tokens
            )
        if self._every:
            self._rows.append((contexts, tokens))
            if sum(len(y) for _, y in self._rows) >= self._every:
                self.learn()
        return found

    def learn(self) -> None:
        """Take up what was scored since the last time."""
        if self._rows:
            self.model = extended(self.model, *(np.concatenate(part) for part in zip(*self._rows, strict=True)))
            self._rows = []


def extended(model: LanguageModel, contexts: np.ndarray, tokens: np.ndarray) -> LanguageModel:
    """The model with new rows: counts and the topic's moments added and solved again, all choices as they were.

    Parameters
    ----------
    model : LanguageModel
    contexts : int array of shape (n_rows, n_context)
    tokens : int array of shape (n_rows,)
    """
    near = contexts[:, contexts.shape[1] - model.counts.order + 1 :]
    counts = model.counts + NgramCounts.from_rows(near, tokens, model.vocab_size)
    topic = None if model.topic is None else model.topic.extended(contexts, tokens)
    return replace(model, counts=counts, topic=topic)


def with_cache(
    model: LanguageModel, windows: Windows, *, window: int, reach: int = 3, dims: int = 100, n_rows: int = 20_000
) -> LanguageModel:
    """The model with a cache whose weights are chosen on held-out text.

    Parameters
    ----------
    model : LanguageModel
    windows : Windows
        Held-out text, in order.
    window : int
        Tokens that the cache holds.
    reach : int
        Tokens of a context that it compares.
    dims : int
        Of the embedding.
    n_rows : int
        Rows that the weights are chosen on, after as many as the window holds.
    """
    weights = np.full((model.counts.order, 1 + len(KERNELS)), 1.0 / (1 + len(KERNELS)))
    cache = Cache(token_vectors(model.counts, dims, model.settings.seed), window, reach, KERNELS, weights)
    past = Recent.nothing(cache, model.n_context)
    start = min(window, len(windows) // 2)
    own, kernels, lengths = [], [], []
    for rows, contexts in windows.batches(model.batch_rows):
        if rows.start >= start + n_rows:
            break
        tokens = windows.tokens[rows]
        past = past.then(cache, contexts, tokens)
        if rows.start >= start:
            own.append(model.distribution(contexts)[np.arange(len(tokens)), tokens])
            kernels.append(cache.likelihoods(contexts, tokens, past))
            lengths.append(model.support(contexts)[0])
    found = cache.fitted(np.concatenate(own), np.concatenate(kernels), np.concatenate(lengths), model.counts.order)
    return model.keeping(replace(model, cache=found))
