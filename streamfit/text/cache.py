"""A continuous cache: radial basis functions whose centers are the contexts that were read last.

Floor 6: imports clusters, mixture, errors. What follows a context like this one a page ago is likelier to follow again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from streamfit.errors import ConfigError
from streamfit.text.mixture import fit_buckets

_FADE = 0.7
"""Weight of a token in a comparison of contexts, against that of the token after it."""


class Kernel(NamedTuple):
    """How much a past token counts: ``exp(sharpness (cosine - 1)) decay^age``.

    Parameters
    ----------
    sharpness : float
        0 counts every context alike. Keys have one length, so that this is a Gaussian of their distance.
    decay : float
        In (0, 1]; 1 forgets nothing within the window.
    """

    sharpness: float
    decay: float


KERNELS = (Kernel(0.0, 0.99), Kernel(0.0, 0.999), Kernel(6.0, 0.9998), Kernel(14.0, 1.0))


@dataclass(frozen=True, eq=False)
class Cache:
    """Distributions over the tokens of a window, by what their contexts have in common with this one.

    A generalisation of the cache of Kuhn and De Mori (1990) and of the continuous one of Grave, Joulin and Usunier
    (Improving neural language models with a continuous cache, 2017) to embeddings in closed form and several kernels
    at once, whose weights beside the model are a convex problem on held-out text.

    Parameters
    ----------
    vectors : float32 array of shape (vocab_size, n_dims)
        Embedding of each token, of length one.
    window : int
        Past tokens that are looked at.
    reach : int
        Tokens of a context that are compared.
    kernels : tuple of Kernel
    weights : array of shape (n_buckets, 1 + n_kernels)
        Of the model and of each kernel, by the length of the suffix that the model has seen.

    Raises
    ------
    ConfigError
        If a kernel's decay or sharpness, the window or the reach is out of range.
    """

    vectors: np.ndarray
    window: int
    reach: int
    kernels: tuple[Kernel, ...]
    weights: np.ndarray

    def __post_init__(self) -> None:
        if self.window < 1 or self.reach < 1 or not all(k.sharpness >= 0 and 0 < k.decay <= 1 for k in self.kernels):
            msg = f"a cache of {self.window} tokens, {self.reach} to compare, kernels {self.kernels}"
            raise ConfigError(msg, "a window and reach of at least 1, sharpness >= 0, decay in (0, 1]")

    def keys(self, contexts: np.ndarray) -> np.ndarray:
        """What of contexts is compared: float32 of shape (n_rows, reach * n_dims), of length one or less."""
        width = contexts.shape[1]
        scale = _FADE ** np.arange(self.reach)
        scale /= np.linalg.norm(scale)
        near = [self.vectors[contexts[:, width - d - 1]] * np.float32(scale[d]) for d in range(min(self.reach, width))]
        return np.concatenate(near, axis=1)

    def shares(self, contexts: np.ndarray, past: Recent) -> Iterator[np.ndarray]:
        """For each kernel, the share of each past token in each row's distribution: (n_rows, n_past).

        Rows follow one another, and the last rows of the past are themselves: a row sees what was before it. Where
        there is nothing before, a row is all zero.

        Parameters
        ----------
        contexts : int array of shape (n_rows, m)
        past : Recent
            These rows the last of it.
        """
        n, n_past = len(contexts), len(past.tokens)
        age = (n_past - n + np.arange(n))[:, None] - np.arange(n_past)
        seen = (age > 0) & (age <= self.window)
        cosine = self.keys(contexts) @ past.keys.T
        for kernel in self.kernels:
            weight = np.exp(np.float32(kernel.sharpness) * (cosine - np.float32(1.0))) * seen
            if kernel.decay < 1.0:
                # In float32 an old token may come to nothing, which it is.
                weight *= np.exp(np.float32(np.log(kernel.decay)) * np.maximum(age, 0).astype(np.float32))
            total = weight.sum(axis=1, keepdims=True)
            yield weight / np.where(total > 0, total, 1.0)

    def likelihoods(self, contexts: np.ndarray, tokens: np.ndarray, past: Recent) -> np.ndarray:
        """Probability of each row's own token by each kernel: float64 of shape (n_rows, n_kernels)."""
        same = tokens[:, None] == past.tokens
        return np.column_stack([(share * same).sum(axis=1, dtype=np.float64) for share in self.shares(contexts, past)])

    def apply(self, p: np.ndarray, contexts: np.ndarray, length: np.ndarray, past: Recent) -> np.ndarray:
        """Mix distributions with those of the window: float32 array like `p`.

        Parameters
        ----------
        p : float32 array of shape (n_rows, vocab_size)
        contexts : int array of shape (n_rows, m)
        length : int array of shape (n_rows,)
            Of the suffix that the model has seen.
        past : Recent
        """
        n, n_past = len(p), len(past.tokens)
        weights = self.weights[length].astype(np.float32)
        left, mixed = weights[:, 0].copy(), np.zeros((n, n_past), np.float32)
        for column, share in enumerate(self.shares(contexts, past), start=1):
            mixed += weights[:, column, None] * share
            left += weights[:, column] * (share.sum(axis=1) == 0)  # nothing was read yet: the model has it all
        to_token = scipy.sparse.csr_array(
            (np.ones(n_past, np.float32), past.tokens, np.arange(n_past + 1)), shape=(n_past, p.shape[1])
        )
        added = mixed @ to_token
        return np.asarray(left[:, None] * p + added)

    def fitted(self, own: np.ndarray, kernels: np.ndarray, length: np.ndarray, n_lengths: int) -> Cache:
        """The same with weights of least held-out loss.

        Parameters
        ----------
        own : array of shape (n_rows,)
            Probability of each token by the model.
        kernels : array of shape (n_rows, n_kernels)
            The same by each kernel.
        length : int array of shape (n_rows,)
        n_lengths : int
        """
        weights = fit_buckets(np.column_stack([own, kernels]), length, n_lengths).weights
        return Cache(self.vectors, self.window, self.reach, self.kernels, weights)

    def to_parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Description as JSON and named arrays."""
        kernels = [list(kernel) for kernel in self.kernels]
        spec = {"window": self.window, "reach": self.reach, "kernels": kernels}
        return spec, {"vectors": self.vectors, "weights": self.weights}

    @classmethod
    def from_parts(cls, spec: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Cache:
        """Inverse of `to_parts`."""
        kernels = tuple(Kernel(*kernel) for kernel in spec["kernels"])
        return cls(arrays["vectors"], spec["window"], spec["reach"], kernels, arrays["weights"])


@dataclass(frozen=True, eq=False)
class Recent:
    """What was read last, the newest row last.

    Parameters
    ----------
    keys : float32 array of shape (n, width)
        Of the contexts.
    tokens : int array of shape (n,)
        The token that followed each.
    """

    keys: np.ndarray
    tokens: np.ndarray

    @classmethod
    def nothing(cls, cache: Cache, n_context: int) -> Recent:
        """Before anything was read."""
        return cls(cache.keys(np.zeros((0, n_context), np.int32)), np.zeros(0, np.int64))

    def then(self, cache: Cache, contexts: np.ndarray, tokens: np.ndarray) -> Recent:
        """After reading some more rows: what the window of any of them can see is kept."""
        kept = cache.window
        return Recent(
            np.concatenate([self.keys[-kept:], cache.keys(contexts)]), np.concatenate([self.tokens[-kept:], tokens])
        )
