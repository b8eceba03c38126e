"""The next token of a single context, fast: what does not change from step to step is made ready once.

Floor 6: imports model, mixture, experts, suffixes. `LanguageModel.distribution` is made for many rows; of one row,
most of its time would go into shifting centers and into arrays of length one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from streamfit.errors import ConfigError
from streamfit.features import RBF, Chain, Concat, FeatureMap, Linear, Lookup, Nearest, Pick
from streamfit.text.experts import seen_by
from streamfit.text.mixture import buckets
from streamfit.text.model import Expert, LanguageModel
from streamfit.text.suffixes import continuations, suffixes

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
    expert : str
        'mixture', or one of the model's experts.

    Raises
    ------
    ConfigError
        If there is no such expert.
    """

    def __init__(self, model: LanguageModel, expert: Expert = "mixture") -> None:
        if expert not in ("mixture", *model.experts):
            msg = f"expert {expert!r}"
            raise ConfigError(msg, f"one of {', '.join(('mixture', *model.experts))}")
        self._model = model
        self._mixed = expert == "mixture"
        self._names = model.experts if self._mixed else (expert,)
        self._threads = ThreadpoolController()
        if "network" in self._names and model.network is not None:
            self._features = _row_features(model.network.features)
            self._weights = np.ascontiguousarray(model.network.solution.weights, np.float32)
            self._intercept = model.network.solution.intercept.astype(np.float32)
        counted = [name for name in self._names if name != "network"]
        self._unigrams = {name: model.count_experts[name].tables.unigram.astype(np.float32) for name in counted}

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
        if not self._mixed:
            return self._expert(self._names[0], context)
        model = self._model
        p = np.zeros(model.vocab_size, np.float32)
        for name, weight in zip(self._names, self._bucket(context).tolist(), strict=True):
            if weight:
                part = self._expert(name, context)
                part *= np.float32(weight)
                p += part
        if model.topic is None or model.topic.power == 0.0:
            return p
        with self._threads.limit(limits=1, user_api="blas"):
            return np.asarray(model.topic.apply(p[None], context[None], model.unigram)[0])

    def _bucket(self, context: np.ndarray) -> np.ndarray:
        found = suffixes(self._model.ngram, context)
        length, seen = (found[0].order - 1, found[0].seen) if found else (0, 0)
        return np.asarray(self._model.mixture[buckets(np.array([length]), np.array([seen]))[0]])

    def _expert(self, name: Expert, context: np.ndarray) -> Float32:
        return self._network(context) if name == "network" else self._counted(name, context)

    def _network(self, context: np.ndarray) -> Float32:
        with self._threads.limit(limits=1, user_api="blas"):
            output = self._features(context) @ self._weights
        output += self._intercept
        return np.asarray(self._model.projection(output[None], self._model.unigram)[0])

    def _counted(self, name: Expert, context: np.ndarray) -> Float32:
        expert = self._model.count_experts[name]
        found = suffixes(expert.tables, seen_by(expert, context))
        p = self._unigrams[name] * np.float32(found[-1].weight if found else 1.0)
        for suffix in found:
            if suffix.order > 1:
                tokens, mass = continuations(expert.tables, suffix)
                p[tokens] += (mass * suffix.weight).astype(np.float32)
        return p


def _row_features(features: FeatureMap) -> Callable[[np.ndarray], Float32]:
    """A function from one context to its float32 features."""

    def plain(context: np.ndarray) -> Float32:
        return np.asarray(features(context[None])[0], np.float32)

    if isinstance(features, Chain) and isinstance(features.inner, Nearest):
        near, n_kept = _row_features(features.outer), features.inner.n_kept
        return lambda context: near(context[len(context) - n_kept :])
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
    if isinstance(part, Pick) and isinstance(part.inner, Linear):
        return lambda x: x[part.indices]
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
