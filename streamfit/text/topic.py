"""What a text is about: a ridge on decayed sums of embeddings, by which a mixture's distribution is multiplied.

Floor 6: imports features, centered, solve, errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.optimize
import scipy.sparse
from threadpoolctl import threadpool_limits

from streamfit.centered import Centered
from streamfit.errors import SolveError
from streamfit.features import Chain, Concat, Decayed, FeatureMap, RandomFourier, from_spec
from streamfit.solve.ridge import weights_for
from streamfit.text.clusters import pair_embeddings

_NEAR, _FAR = 3, 60
"""Distances at which two tokens count as of one topic; nearer, it is syntax that holds them together."""
_COMMON = 1e-3
"""Share of the text from which a token says little of its topic."""
_FLOOR = 0.1
_SHARES = (1e-2, 1e-1, 1.0, 10.0)
"""Penalties that are tried, for each row of the corpus: neighbouring rows have nearly the same topic."""
_MOST_EXPONENT = 8.0
_CACHED_ROWS = 4
"""Distributions that are worked on while they lie in the processor's cache."""
DECAYS = (0.8, 0.94, 0.985, 0.997)
"""Of embeddings: half-lives of 3, 11, 46 and 231 tokens."""
FOURIER_ROWS = 1200
"""Windows between which distances are measured, a sixth of them to the others."""
_SUMS = ("mean_x", "mean_y", "gram", "cross", "ss_y", "noise")


def topic_map(stream: np.ndarray, vocab_size: int, dims: int, decay: float, width: int, seed: int) -> Decayed:
    """Features of what was written lately, frozen before the pass.

    Tokens are embedded by the tokens 3 to 59 places before and after them (see `pair_embeddings`; counts are scaled by
    both sums here), and made small where they are common: a token of frequency f counts 1 / (1 + 1000 f).

    Parameters
    ----------
    stream : int array of shape (n_tokens,)
        Sampled text.
    vocab_size, dims : int
    decay : float
    width : int
        Tokens of a window.
    seed : int
    """
    # All near distances, and every fourth of the far ones: neighbours tell nearly the same.
    distances = [*range(_NEAR, 16), *range(17, _FAR, 4)]
    pairs = sum(
        scipy.sparse.coo_matrix(
            (np.ones(max(len(stream) - d, 0), np.float32), (stream[:-d], stream[d:])), shape=(vocab_size, vocab_size)
        ).tocsr()
        for d in distances
    )
    pairs = (pairs + pairs.T).tocsr()
    sums = np.asarray(pairs.sum(axis=1)).ravel() + 1.0
    # `pair_embeddings` takes roots and scales rows; the columns' sums go in squared, so that the root leaves them.
    balanced = (pairs @ scipy.sparse.diags(sums**-0.5)).tocsr()
    vectors = pair_embeddings(balanced, min(dims, vocab_size - 1), seed)
    frequency = np.bincount(stream, minlength=vocab_size) / max(len(stream), 1)
    table = vectors / (1.0 + frequency / _COMMON)[:, None]
    # Alike in scale, so that one penalty is fair to all: the spread of a decayed sum over the sampled text.
    spread = (table[stream] if len(stream) else table).std(axis=0) * np.sqrt((1.0 - decay) / (1.0 + decay))
    return Decayed((table / np.maximum(spread, 1e-9)).astype(np.float32), decay, width)


def fourier_map(topic: Decayed, decays: Sequence[float], n: int, sample: np.ndarray, seed: int) -> FeatureMap:
    """Random Fourier features of decayed sums of a topic's embeddings, frozen before the pass.

    Parameters
    ----------
    topic : Decayed
        Its embeddings, and its window.
    decays : sequence of float
        Of the sums, which stand side by side, alike in spread.
    n : int
        Features.
    sample : int array of shape (n_rows, width)
        Windows; gamma is the inverse of the median squared distance between some of them.
    seed : int

    References
    ----------
    A. Rahimi and B. Recht, "Random features for large-scale kernel machines", NIPS 2007.
    """
    sums = tuple(with_decay(topic, decay) for decay in decays)
    inner = sums[0] if len(sums) == 1 else Concat(sums)
    z = inner(sample)
    few = max(1, len(z) // 6)
    distances = ((z[:-few, None] - z[None, -few:]) ** 2).sum(axis=-1) if len(z) > 1 else np.ones(1)
    gamma = 1.0 / max(float(np.median(distances)), 1e-12)
    return Chain(inner, RandomFourier(n, gamma, seed, inner.n_features))


def with_decay(topic: Decayed, decay: float) -> Decayed:
    """The sum of another decay, of the same spread over text: neighbours are taken as independent."""
    scale = np.sqrt((1.0 - topic.decay) / (1.0 + topic.decay) / ((1.0 - decay) / (1.0 + decay)))
    return Decayed((topic.table * scale).astype(np.float32), decay, topic.width)


@dataclass(frozen=True, eq=False)
class Topic:
    """A factor on the probability of each token: how much likelier it is in texts like this one.

    With z the decayed sum of embeddings, ridge regression estimates f(w | z) = E[token is w | z]. With unigram u,
    a distribution p becomes ``p(w) (max(f(w | z), u(w) / 10) / u(w))^power``, divided by its sum. Adapting to a
    topic by such ratios is unigram rescaling (Gildea and Hofmann, Topic-based language models using EM, 1999).

    Parameters
    ----------
    features : FeatureMap
    sums : Centered
        Moments of these features and the one-hot tokens.
    alpha : float
        Of the ridge, chosen on held-out text.
    power : float
        Chosen on held-out text, a convex problem.
    gap : float
        What the mean log-likelihood may still gain by another power: half the squared slope over the curvature.
    """

    features: FeatureMap
    sums: Centered
    alpha: float
    power: float = 0.0
    gap: float = 0.0

    @cached_property
    def _weights(self) -> tuple[np.ndarray, np.ndarray]:
        weights = weights_for(self.sums, self.alpha)
        intercept = self.sums.mean_y - self.sums.mean_x @ weights
        return np.ascontiguousarray(weights, np.float32), intercept.astype(np.float32)

    def log_ratio(self, contexts: np.ndarray, unigram: np.ndarray) -> np.ndarray:
        """Log of the ratio, before it is raised to the power: float32 of shape (n_rows, vocab_size)."""
        weights, intercept = self._weights
        return _log_ratio(self.features(contexts) @ weights, intercept, unigram)

    def parts(self, context: np.ndarray, token: int, unigram: np.ndarray) -> np.ndarray | None:
        """What each place of a window adds to a token's ratio, before it is bounded and raised to the power.

        With the intercept's part, 1 - E[z] B_w / u(w) for embeddings z, they add up to f(w | z) / u(w).

        Parameters
        ----------
        context : int array of shape (width,)
        token : int
        unigram : array of shape (vocab_size,)

        Returns
        -------
        float64 array of shape (width,), or None of features that are no sum over places
        """
        found = self.features
        if not isinstance(found, Decayed):
            return None
        column = self._weights[0][:, token].astype(np.float64)
        decayed = (1.0 - found.decay) * found.decay ** np.arange(found.width - 1, -1, -1, dtype=np.float64)
        return np.asarray(decayed * (np.asarray(found.table)[context] @ column) / float(unigram[token]))

    def apply(self, p: np.ndarray, contexts: np.ndarray, unigram: np.ndarray) -> np.ndarray:
        """Multiply distributions, in place, and divide by their sums."""
        weights, intercept = self._weights
        ratio, power = self.features(contexts) @ weights, np.float32(self.power)
        for lo in range(0, len(p), _CACHED_ROWS):
            some = slice(lo, lo + _CACHED_ROWS)
            factor = _log_ratio(ratio[some], intercept, unigram)
            factor *= power
            p[some] *= np.exp(factor, out=factor)
            p[some] /= p[some].sum(axis=1, keepdims=True)
        return p

    def calibrated(
        self,
        contexts: np.ndarray,
        tokens: np.ndarray,
        unigram: np.ndarray,
        mixture: Callable[[np.ndarray], np.ndarray],
        batches: Callable[[int], Iterator[slice]],
    ) -> Topic:
        """The same with alpha and power of least held-out loss.

        Parameters
        ----------
        contexts, tokens : integer arrays of shape (n_rows, width) and (n_rows,)
            Held-out rows.
        unigram : array of shape (vocab_size,)
        mixture : callable
            Distributions that are to be multiplied.
        batches : callable
            Cuts a number of rows into batches that memory has room for.

        Raises
        ------
        SolveError
            If the loss has no minimum below a power of 8.
        """
        tried = [replace(self, alpha=share * self.sums.weight) for share in _SHARES]
        plain = [mixture(contexts[rows]) for rows in batches(len(tokens))]
        best: tuple[float, Topic] | None = None
        for topic in tried:
            ratios = [topic.log_ratio(contexts[rows], unigram) for rows in batches(len(tokens))]
            parts = [(p, g, tokens[rows]) for p, g, rows in zip(plain, ratios, batches(len(tokens)), strict=True)]
            found = _best_power(parts, len(tokens))
            if best is None or found[0] < best[0]:
                best = (found[0], replace(topic, power=found[1], gap=found[2]))
        assert best is not None
        return best[1]

    def extended(self, contexts: np.ndarray, tokens: np.ndarray) -> Topic:
        """The same with the moments of new rows added."""
        n, n_targets = len(tokens), len(self.sums.mean_y)
        phi = np.asarray(self.features(contexts), np.float64)
        one_hot = scipy.sparse.csr_array((np.ones(n), tokens, np.arange(n + 1)), shape=(n, n_targets))
        mean_x, mean_y = phi.mean(axis=0), np.bincount(tokens, minlength=n_targets) / n
        phi -= mean_x
        new = Centered(
            n, float(n), mean_x, mean_y, phi.T @ phi, (one_hot.T @ phi).T, n * mean_y * (1.0 - mean_y), self.sums.noise
        )
        weight = self.sums.weight + n
        middle = (
            (self.sums.weight * self.sums.mean_x + n * mean_x) / weight,
            (self.sums.weight * self.sums.mean_y + n * mean_y) / weight,
        )
        old, new = self.sums.about(*middle), new.about(*middle)
        sums = Centered(
            old.n_rows + n, weight, *middle, old.gram + new.gram, old.cross + new.cross, old.ss_y + new.ss_y, old.noise
        )
        return replace(self, sums=sums)

    def to_parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Description as JSON and named arrays."""
        spec, arrays = self.features.to_spec()
        named = {f"features.{name}": np.ascontiguousarray(array) for name, array in arrays.items()}
        c = self.sums
        # Parts of larger matrices have gaps between their rows, which would be written as they lie.
        named |= {name: np.ascontiguousarray(getattr(c, name)) for name in _SUMS}
        numbers = {"alpha": self.alpha, "power": self.power, "gap": self.gap}
        return {"features": spec, "n_rows": c.n_rows, "weight": c.weight, **numbers}, named

    @classmethod
    def from_parts(cls, spec: dict[str, Any], arrays: dict[str, np.ndarray]) -> Topic:
        """Inverse of `to_parts`."""
        prefix = "features."
        features = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
        sums = Centered(spec["n_rows"], spec["weight"], *(arrays[name] for name in _SUMS))
        return cls(from_spec(spec["features"], features), sums, spec["alpha"], spec["power"], spec["gap"])


def _log_ratio(output: np.ndarray, intercept: np.ndarray, unigram: np.ndarray) -> np.ndarray:
    """Log of the bounded ratio of a ridge's output to the unigram, in place."""
    output += intercept
    output /= unigram
    np.maximum(output, _FLOOR, out=output)
    return np.asarray(np.log(output, out=output))


def _best_power(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], n_rows: int) -> tuple[float, float, float]:
    """Minimise ``mean_t [log sum_w p_w exp(b g_w) - b g_t]`` over b >= 0: convex, as a log-sum-exp less a line.

    Returns the loss against the plain mixture's, the power, and what may be left to gain.
    """

    def slope(b: float) -> tuple[float, float, float]:
        loss = first = second = 0.0
        for p, g, tokens in parts:
            q = p * np.exp(np.float32(b) * g)
            total = q.sum(axis=1)
            mean = np.einsum("ij,ij->i", q, g) / total
            square = np.einsum("ij,ij,ij->i", q, g, g) / total
            own = g[np.arange(len(tokens)), tokens]
            loss += float((np.log(total) - b * own).sum(dtype=np.float64))
            first += float((mean - own).sum(dtype=np.float64))
            second += float((square - mean * mean).sum(dtype=np.float64))
        return loss / n_rows, first / n_rows, second / n_rows

    if slope(0.0)[1] >= 0.0:
        return 0.0, 0.0, 0.0
    high = 1.0
    while slope(high)[1] < 0.0:
        high *= 2.0
        if high > _MOST_EXPONENT:
            msg = f"a topic whose loss still falls at a power of {_MOST_EXPONENT:g}"
            raise SolveError(msg, "a minimum", "give held-out text that differs from the training text")
    with threadpool_limits(1):
        power = float(scipy.optimize.brentq(lambda b: slope(b)[1], 0.0, high, xtol=1e-4))
    loss, first, second = slope(power)
    return loss, power, 0.5 * first * first / max(second, 1e-12)
