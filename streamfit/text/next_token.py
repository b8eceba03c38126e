"""The next token of a single context, fast: what does not change from step to step is made ready once.

Floor 6: imports model, mixture, kneser_ney, suffixes. `LanguageModel.distribution` is made for many rows; of one row,
most of its time would go into shifting centers and into arrays of length one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from streamfit.errors import ConfigError
from streamfit.features import RBF, Chain, Concat, FeatureMap, Linear, Lookup
from streamfit.text.kneser_ney import KneserNey
from streamfit.text.mixture import buckets
from streamfit.text.model import EXPERTS, Expert, LanguageModel
from streamfit.text.suffixes import Suffix, continuations, suffixes

Float32 = npt.NDArray[np.float32]
_SHARP = 1e3
"""Largest gamma ||c||² of centers whose distances float32 tells apart; above, features are left to the map itself."""


class NextToken:
    """Distributions over the next token by one expert, a context at a time.

    Equal to `LanguageModel.distribution` but for rounding in float32. BLAS runs in one thread, so that the same
    context gives the same bits on machines with other numbers of cores.

    Parameters
    ----------
    model : LanguageModel
    expert : {'mixture', 'network', 'ngram'}

    Raises
    ------
    ConfigError
        If there is no such expert.
    """

    def __init__(self, model: LanguageModel, expert: Expert = "mixture") -> None:
        if expert not in EXPERTS:
            msg = f"expert {expert!r}"
            raise ConfigError(msg, f"one of {', '.join(EXPERTS)}")
        self._model, self._expert = model, expert
        self._threads = ThreadpoolController()
        if expert != "ngram":
            self._features = _row_features(model.network.features)
            self._weights = np.ascontiguousarray(model.network.solution.weights, np.float32)
            self._intercept = model.network.solution.intercept.astype(np.float32)
        if expert != "network":
            self._unigram = _unigram(model.ngram)

    def __call__(self, context: np.ndarray) -> Float32:
        """Distribution after a context.

        Parameters
        ----------
        context : int array of shape (n_context,)
            The nearest token last.

        Returns
        -------
        float32 array of shape (vocab_size,)
        """
        if self._expert == "network":
            return self._network(context)
        found = suffixes(self._model.ngram, context)
        p = self._ngram(found)
        if self._expert == "mixture":
            length, seen = (found[0].order - 1, found[0].seen) if found else (0, 0)
            network, ngram = self._model.mixture[buckets(np.array([length]), np.array([seen]))[0]]
            p *= np.float32(ngram)
            p += np.float32(network) * self._network(context)
        return p

    def _network(self, context: np.ndarray) -> Float32:
        with self._threads.limit(limits=1, user_api="blas"):
            output = self._features(context) @ self._weights
        output += self._intercept
        return np.asarray(self._model.projection(output[None], self._model.unigram)[0])

    def _ngram(self, found: list[Suffix]) -> Float32:
        ngram = self._model.ngram
        longer = [s for s in found if s.order > 1]
        below = found[-1].weight if found else 1.0
        p = self._unigram * np.float32(below)
        for suffix in longer:
            tokens, mass = continuations(ngram, suffix)
            p[tokens] += (mass * suffix.weight).astype(np.float32)
        return p


def _unigram(ngram: KneserNey) -> Float32:
    """The lowest order of Kneser-Ney, its share of the uniform distribution included."""
    level = ngram.levels[0]
    p = np.full(ngram.vocab_size, (level.gamma[0] if level.gamma.size else 1.0) / ngram.vocab_size)
    p[level.grams] += level.mass
    return p.astype(np.float32)


def _row_features(features: FeatureMap) -> Callable[[np.ndarray], Float32]:
    """A function from one context to its float32 features."""

    def plain(context: np.ndarray) -> Float32:
        return np.asarray(features(context[None])[0], np.float32)

    if not (isinstance(features, Chain) and isinstance(features.inner, Lookup)):
        return plain
    outer = features.outer
    parts = [_row_part(part) for part in (outer.parts if isinstance(outer, Concat) else (outer,))]
    if any(part is None for part in parts):
        return plain
    tables = features.inner.tables
    ready = [part for part in parts if part is not None]

    def quick(context: np.ndarray) -> Float32:
        x = np.concatenate([table[token] for table, token in zip(tables, context, strict=True)])
        return np.concatenate([part(x) for part in ready])

    return quick


def _row_part(part: FeatureMap) -> Callable[[Float32], Float32] | None:
    if isinstance(part, Linear):
        return lambda x: x
    if not isinstance(part, RBF):
        return None
    # As RBF.apply does for many rows: distances about the centers' mean, by one product.
    exact = part.centers.astype(np.float64)
    middle = exact.mean(axis=0).astype(np.float32)
    exact -= middle
    norms = (exact * exact).sum(axis=1)
    if part.gamma * norms.max() > _SHARP:
        return None
    slopes = (exact * (2.0 * part.gamma)).astype(np.float32)
    offsets = (-part.gamma * norms).astype(np.float32)

    def phi(x: Float32) -> Float32:
        near = x - middle
        exponent = slopes @ near
        exponent += offsets - np.float32(part.gamma) * (near @ near)
        return np.asarray(np.exp(np.minimum(exponent, 0.0, out=exponent), out=exponent))

    return phi
