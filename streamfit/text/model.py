"""The language model: experts over the last tokens, their mixture, and the topic that it is multiplied by.

Floor 6. Every probability that leaves this file belongs to a distribution over the whole vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from streamfit.errors import ConfigError, StoreError
from streamfit.models import LinearModel, read_model, write_model
from streamfit.text.cache import Cache
from streamfit.text.experts import CountExpert, ExpertSettings, blend
from streamfit.text.kneser_ney import KneserNey
from streamfit.text.mixture import buckets, fit_buckets, fit_mixture, n_buckets
from streamfit.text.ngram import NgramCounts
from streamfit.text.tokenizer import Tokenizer
from streamfit.text.topic import Topic

Expert: TypeAlias = str
EXPERTS: tuple[Expert, ...] = ("mixture", "network", "ngram")
"""Names that every model with the usual experts knows; `LanguageModel.experts` has those of one model."""
BATCH_ROWS = 512
"""Contexts of one batch: the distributions over a vocabulary of 4,096 then fit the caches' outer level."""
_BATCH_ENTRIES = BATCH_ROWS * 4096
_POWERS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
_TOPIC_ENTRIES = 2**27
"""Probabilities that are held to find the topic's power."""


@dataclass(frozen=True)
class Projection:
    """How the network's output becomes a distribution.

    The solve estimates E[onehot | context]; its rows add up to one but may be negative. With unigram u the
    distribution is ``(1 - epsilon) normalise(max(f, floor u)^power) + epsilon u``.

    Parameters
    ----------
    floor, power, epsilon : float
        Power and epsilon are chosen on validation text.
    """

    floor: float = 0.1
    power: float = 1.0
    epsilon: float = 0.01

    def __call__(self, output: np.ndarray, unigram: np.ndarray) -> np.ndarray:
        """Project outputs of shape (n_rows, vocab_size) in place."""
        np.maximum(output, self.floor * unigram, out=output)
        if self.power != 1.0:
            # exp(power log x) is vectorised where x**power is not.
            np.log(output, out=output)
            output *= self.power
            output -= output.max(axis=1, keepdims=True)
            np.exp(output, out=output)
        output *= (1.0 - self.epsilon) / output.sum(axis=1, keepdims=True)
        output += self.epsilon * unigram
        return output


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A distribution over the next token, given the last `n_context` tokens.

    Parameters
    ----------
    tokenizer : Tokenizer
    n_context : int
    network : LinearModel or None
        Features of contexts, and the weights of the one solve; None if there are no features but the topic's.
    counts : NgramCounts
        Counts of the training text, from which all experts come but the network.
    projection : Projection
    mixture : array of shape (n_buckets, n_experts)
        Weights of the experts, in the order of `experts`, for each bucket of suffix support.
    settings : ExpertSettings
        Which experts there are.
    clusters : mapping of int to int32 array of shape (vocab_size,)
        Clusters of tokens that some experts see.
    topic : Topic, optional
        What the mixture is multiplied by.
    cache : Cache, optional
        Of text that was read last, for adaptive scores; `distribution` does without.
    mixture_gap : float, optional
        Certificate of the mixture: a bound on its held-out loss above the optimum, in nats per token, in any bucket.
    info : mapping, optional
        Where a model without a network comes from; one with a network says so there.
    """

    tokenizer: Tokenizer
    n_context: int
    network: LinearModel | None
    counts: NgramCounts
    projection: Projection
    mixture: np.ndarray
    settings: ExpertSettings = field(default_factory=ExpertSettings)
    clusters: Mapping[int, np.ndarray] = field(default_factory=dict)
    topic: Topic | None = None
    cache: Cache | None = None
    mixture_gap: float | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.counts.vocab_size

    @property
    def experts(self) -> tuple[Expert, ...]:
        """Names of what is mixed."""
        return self.settings.names(self.counts.order)

    @property
    def batch_rows(self) -> int:
        """Contexts whose distributions are held at a time."""
        return max(1, min(BATCH_ROWS, _BATCH_ENTRIES // self.vocab_size))

    @cached_property
    def count_experts(self) -> dict[Expert, CountExpert]:
        """The experts that come of counts, by name."""
        return self.settings.build(self.counts, self.clusters)

    @cached_property
    def ngram(self) -> KneserNey:
        """Modified Kneser-Ney of the counts, by whose support the mixture's weights are chosen."""
        found = self.count_experts.get("ngram")
        return found.tables if found is not None and isinstance(found.tables, KneserNey) else KneserNey.fit(self.counts)

    @cached_property
    def unigram(self) -> np.ndarray:
        """Token frequencies, each raised by a half so that none is zero; float32 of shape (vocab_size,)."""
        frequencies = np.bincount(self.counts.grams[:, -1], self.counts.counts, self.vocab_size) + 0.5
        return np.asarray(frequencies / frequencies.sum(), np.float32)

    @cached_property
    def _weights(self) -> tuple[LinearModel, np.ndarray, np.ndarray]:
        if self.network is None:
            msg = "a language model without a network"
            raise ConfigError(msg, "one with RBF centers or linear features")
        solution = self.network.solution
        return (
            self.network,
            np.ascontiguousarray(solution.weights, np.float32),
            solution.intercept.astype(np.float32),
        )

    def output(self, contexts: np.ndarray) -> np.ndarray:
        """The network's raw output: float32 of shape (n_rows, vocab_size), rows adding up to one."""
        network, weights, intercept = self._weights
        output = network.features(contexts) @ weights
        output += intercept
        return np.asarray(output)

    def support(self, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of the longest suffix of each context that was seen in training, and how often it was."""
        return self.ngram.support(self._near(contexts))

    def _near(self, contexts: np.ndarray) -> np.ndarray:
        """The tokens that were counted together; a window for the topic may be much longer."""
        return contexts[:, contexts.shape[1] - self.counts.order + 1 :]

    def distributions(self, contexts: np.ndarray) -> dict[Expert, np.ndarray]:
        """Distributions over the next token by the mixture, multiplied by the topic, and by each expert.

        Parameters
        ----------
        contexts : integer array of shape (n_rows, n_context)

        Returns
        -------
        dict of float32 arrays of shape (n_rows, vocab_size)
        """
        found = {name: self.distribution(contexts, name) for name in self.experts}
        weights = self.bucket_weights(contexts).astype(np.float32)
        mixture = np.zeros((len(contexts), self.vocab_size), np.float32)
        for column, p in enumerate(found.values()):
            mixture += weights[:, column, None] * p
        return {"mixture": self._about(mixture, contexts), **found}

    def bucket_weights(self, contexts: np.ndarray) -> np.ndarray:
        """Weights of the experts for each context: array of shape (n_rows, n_experts)."""
        return np.asarray(self.mixture[buckets(*self.support(contexts))])

    def distribution(self, contexts: np.ndarray, expert: Expert = "mixture") -> np.ndarray:
        """Distribution by one expert: float32 array of shape (n_rows, vocab_size).

        Raises
        ------
        ConfigError
            If there is no such expert.
        """
        if expert == "mixture":
            return self._about(self._mixed(contexts), contexts)
        if expert not in self.experts:
            msg = f"expert {expert!r}"
            raise ConfigError(msg, f"one of {', '.join(('mixture', *self.experts))}")
        if expert == "network":
            return self.projection(self.output(contexts), self.unigram)
        return self.count_experts[expert].distribution(contexts)

    def _mixed(self, contexts: np.ndarray) -> np.ndarray:
        """The mixture alone, without the topic."""
        weights = self.bucket_weights(contexts)
        counted = [column for column, name in enumerate(self.experts) if name != "network"]
        mixture = np.zeros((len(contexts), self.vocab_size), np.float32)
        if counted:
            mixture = blend([self.count_experts[self.experts[i]] for i in counted], weights[:, counted], contexts)
        if "network" in self.experts:
            network = self.distribution(contexts, "network")
            network *= weights[:, self.experts.index("network"), None].astype(np.float32)
            mixture += network
        return mixture

    def _about(self, mixture: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        if self.topic is None or self.topic.power == 0.0:
            return mixture
        return self.topic.apply(mixture, contexts, self.unigram)

    def calibrated(self, contexts: np.ndarray, tokens: np.ndarray) -> LanguageModel:
        """The same model with projection, mixture and topic chosen on held-out rows, in this order.

        Parameters
        ----------
        contexts : integer array of shape (n_rows, n_context)
        tokens : integer array of shape (n_rows,)
        """
        model = self
        likelihoods = np.empty((len(tokens), len(self.experts)))
        for column, name in enumerate(self.experts):
            if name == "network":
                projection, likelihoods[:, column] = self._projected(contexts, tokens)
                model = replace(model, projection=projection)
            else:
                likelihoods[:, column] = self.count_experts[name].probability(contexts, tokens)
        mixture = fit_buckets(likelihoods, buckets(*self.support(contexts)), n_buckets(self.counts.order))
        model = self.keeping(replace(model, mixture=mixture.weights, mixture_gap=mixture.gap, topic=None))
        return model if self.topic is None else model.about(self.topic, contexts, tokens)

    def about(self, topic: Topic, contexts: np.ndarray, tokens: np.ndarray) -> LanguageModel:
        """The same mixture multiplied by a topic, its alpha and power chosen on some of the held-out rows given.

        Parameters
        ----------
        topic : Topic
        contexts : integer array of shape (n_rows, n_context)
        tokens : integer array of shape (n_rows,)

        Raises
        ------
        SolveError
            If the loss has no minimum below a power of 8.
        """
        some = np.linspace(0, len(tokens) - 1, min(len(tokens), max(1, _TOPIC_ENTRIES // self.vocab_size))).astype(int)
        chosen = topic.calibrated(contexts[some], tokens[some], self.unigram, self._mixed, self._batches)
        return self.keeping(replace(self, topic=chosen))

    def keeping(self, other: LanguageModel) -> LanguageModel:
        """Another model of the same counts, clusters and experts, whose tables need not be made again."""
        vars(other)["count_experts"] = self.count_experts
        return other

    def _projected(self, contexts: np.ndarray, tokens: np.ndarray) -> tuple[Projection, np.ndarray]:
        """The network's projection of least loss, and the probabilities that it gives."""
        unigram = self.unigram[tokens].astype(np.float64)
        best = (np.inf, self.projection, np.empty(0))
        network = {power: np.empty(len(tokens)) for power in _POWERS}
        for rows in self._batches(len(tokens)):
            output = self.output(contexts[rows])
            for power in _POWERS:
                pure = replace(self.projection, power=power, epsilon=0.0)
                projected = pure(output.copy(), self.unigram)
                network[power][rows] = projected[np.arange(len(output)), tokens[rows]]
        for power, likelihood in network.items():
            fit = fit_mixture(np.column_stack([likelihood, unigram]))
            epsilon = float(fit.weights[1])
            if fit.loss < best[0]:
                mixed = (1.0 - epsilon) * likelihood + epsilon * unigram
                best = (fit.loss, replace(self.projection, power=power, epsilon=epsilon), mixed)
        return best[1], best[2]

    def _batches(self, n_rows: int) -> Iterator[slice]:
        for lo in range(0, n_rows, self.batch_rows):
            yield slice(lo, min(lo + self.batch_rows, n_rows))

    def save(self, folder: str | Path) -> None:
        """Write model files and `tokenizer.json` into a folder."""
        named: dict[str, np.ndarray] = {
            **self.counts.packed(),
            "mixture": self.mixture,
        }
        named |= {f"clusters.{size}": array for size, array in self.clusters.items()}
        described: dict[str, Any] = {
            "network": None,
            "topic": None,
            "cache": None,
            "n_context": self.n_context,
            "order": self.counts.order,
            "vocab_size": self.vocab_size,
            "tokenizer_sha256": self.tokenizer.digest,
            "projection": vars(self.projection),
            "mixture_gap": self.mixture_gap,
            "experts": self.settings.to_json(),
        }
        if self.info:
            described["info"] = dict(self.info)
        for name, part in (("network", self.network), ("topic", self.topic), ("cache", self.cache)):
            if part is not None:
                described[name], arrays = part.to_parts()
                named |= {f"{name}.{key}": array for key, array in arrays.items()}
        write_model(folder, "language_model", described, named)
        (Path(folder) / "tokenizer.json").write_bytes(self.tokenizer.serialized.encode())

    @classmethod
    def load(cls, folder: str | Path) -> LanguageModel:
        """Read a model back.

        Raises
        ------
        StoreError
            If the folder holds no language model, a file is damaged, or the tokenizer is another one.
        """
        spec, arrays = read_model(folder, "language_model")
        try:
            serialized = (Path(folder) / "tokenizer.json").read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            msg = f"the model in {folder} has no readable tokenizer.json"
            raise StoreError(msg, "all three files of a language model") from error
        # Models of earlier releases say nothing of their tokenizer.
        found = hashlib.sha256(serialized.encode()).hexdigest()
        if found != spec.get("tokenizer_sha256", found):
            msg = f"the tokenizer.json in {folder} is not the one that the model was fitted with"
            raise StoreError(msg, "the file that was saved with it", "copy all files of a model together")

        def under(prefix: str) -> dict[str, np.ndarray]:
            return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}

        # Models of earlier releases have neither topic nor cache, and two experts.
        network, topic, cache = (spec.get(name) for name in ("network", "topic", "cache"))
        return cls(
            tokenizer=Tokenizer(serialized),
            n_context=spec["n_context"],
            network=None if network is None else LinearModel.from_parts(network, under("network.")),
            counts=NgramCounts.unpacked(spec["order"], spec["vocab_size"], arrays["grams"], arrays["counts"]),
            projection=Projection(**spec["projection"]),
            mixture=arrays["mixture"],
            mixture_gap=spec.get("mixture_gap"),
            settings=ExpertSettings.from_json(spec["experts"]) if "experts" in spec else ExpertSettings(),
            clusters={int(size): array for size, array in under("clusters.").items()},
            topic=None if topic is None else Topic.from_parts(topic, under("topic.")),
            cache=None if cache is None else Cache.from_parts(cache, under("cache.")),
            info=spec.get("info", {}),
        )
