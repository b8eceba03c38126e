"""The language model: an RBF network over contexts, an n-gram model, and their mixture.

Floor 6. Every probability that leaves this file belongs to a distribution over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from streamfit.errors import ConfigError, StoreError
from streamfit.models import LinearModel, read_model, write_model
from streamfit.text.kneser_ney import KneserNey
from streamfit.text.mixture import buckets, fit_buckets, fit_mixture, n_buckets
from streamfit.text.ngram import NgramCounts
from streamfit.text.tokenizer import Tokenizer

Expert = Literal["mixture", "network", "ngram"]
EXPERTS: tuple[Expert, ...] = ("mixture", "network", "ngram")
BATCH_ROWS = 512
"""Contexts of one batch: the distributions over a vocabulary of 4,096 then fit the caches' outer level."""
_POWERS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)


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
    network : LinearModel
        Features of contexts, and the weights of the one solve.
    counts : NgramCounts
        Counts of the training text; modified Kneser-Ney of their order is the second expert.
    projection : Projection
    mixture : array of shape (n_buckets, 2)
        Weights of network and n-gram model for each bucket of suffix support.
    """

    tokenizer: Tokenizer
    n_context: int
    network: LinearModel
    counts: NgramCounts
    projection: Projection
    mixture: np.ndarray

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.counts.vocab_size

    @cached_property
    def ngram(self) -> KneserNey:
        """Modified Kneser-Ney of the counts."""
        return KneserNey.fit(self.counts)

    @cached_property
    def unigram(self) -> np.ndarray:
        """Token frequencies, each raised by a half so that none is zero; float32 of shape (vocab_size,)."""
        frequencies = np.bincount(self.counts.grams[:, -1], self.counts.counts, self.vocab_size) + 0.5
        return np.asarray(frequencies / frequencies.sum(), np.float32)

    @cached_property
    def _weights(self) -> tuple[np.ndarray, np.ndarray]:
        solution = self.network.solution
        return np.ascontiguousarray(solution.weights, np.float32), solution.intercept.astype(np.float32)

    def output(self, contexts: np.ndarray) -> np.ndarray:
        """The network's raw output: float32 of shape (n_rows, vocab_size), rows adding up to one."""
        weights, intercept = self._weights
        output = self.network.features(contexts) @ weights
        output += intercept
        return np.asarray(output)

    def distributions(self, contexts: np.ndarray) -> dict[Expert, np.ndarray]:
        """Distributions over the next token by each expert and their mixture.

        Parameters
        ----------
        contexts : integer array of shape (n_rows, n_context)

        Returns
        -------
        dict of float32 arrays of shape (n_rows, vocab_size)
        """
        network = self.projection(self.output(contexts), self.unigram)
        ngram = self.ngram.distribution(contexts)
        weights = self.mixture[buckets(*self.ngram.support(contexts))].astype(np.float32)
        mixture = weights[:, :1] * network
        mixture += weights[:, 1:] * ngram
        return {"mixture": mixture, "network": network, "ngram": ngram}

    def distribution(self, contexts: np.ndarray, expert: Expert = "mixture") -> np.ndarray:
        """Distribution by one expert: float32 array of shape (n_rows, vocab_size).

        Raises
        ------
        ConfigError
            If there is no such expert.
        """
        if expert == "network":
            return self.projection(self.output(contexts), self.unigram)
        if expert == "ngram":
            return np.asarray(self.ngram.distribution(contexts))
        if expert != "mixture":
            msg = f"expert {expert!r}"
            raise ConfigError(msg, f"one of {', '.join(EXPERTS)}")
        return self.distributions(contexts)["mixture"]

    def calibrated(self, contexts: np.ndarray, tokens: np.ndarray) -> LanguageModel:
        """The same model with projection and mixture chosen on held-out rows.

        Parameters
        ----------
        contexts : integer array of shape (n_rows, n_context)
        tokens : integer array of shape (n_rows,)
        """
        unigram = self.unigram[tokens].astype(np.float64)
        best = (np.inf, self.projection, np.empty(0))
        network = {power: np.empty(len(tokens)) for power in _POWERS}
        for rows, batch in _batches(contexts):
            output = self.output(batch)
            for power in _POWERS:
                pure = replace(self.projection, power=power, epsilon=0.0)
                projected = pure(output.copy(), self.unigram)
                network[power][rows] = projected[np.arange(len(batch)), tokens[rows]]
        for power, likelihood in network.items():
            fit = fit_mixture(np.column_stack([likelihood, unigram]))
            epsilon = float(fit.weights[1])
            if fit.loss < best[0]:
                mixed = (1.0 - epsilon) * likelihood + epsilon * unigram
                best = (fit.loss, replace(self.projection, power=power, epsilon=epsilon), mixed)
        likelihoods = np.column_stack([best[2], self.ngram.probability(contexts, tokens)])
        bucket = buckets(*self.ngram.support(contexts))
        mixture = fit_buckets(likelihoods, bucket, n_buckets(self.counts.order))
        return replace(self, projection=best[1], mixture=mixture)

    def save(self, folder: str | Path) -> None:
        """Write model files and `tokenizer.json` into a folder."""
        spec, arrays = self.network.to_parts()
        named = {f"network.{name}": array for name, array in arrays.items()}
        named |= {"grams": self.counts.grams, "counts": self.counts.counts, "mixture": self.mixture}
        described = {
            "network": spec,
            "n_context": self.n_context,
            "order": self.counts.order,
            "vocab_size": self.vocab_size,
            "projection": vars(self.projection),
        }
        write_model(folder, "language_model", described, named)
        (Path(folder) / "tokenizer.json").write_text(self.tokenizer.serialized, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> LanguageModel:
        """Read a model back.

        Raises
        ------
        StoreError
            If the folder holds no language model or a file is damaged.
        """
        spec, arrays = read_model(folder, "language_model")
        try:
            serialized = (Path(folder) / "tokenizer.json").read_text(encoding="utf-8")
        except OSError as error:
            msg = f"the model in {folder} has no readable tokenizer.json"
            raise StoreError(msg, "all three files of a language model") from error
        prefix = "network."
        network = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
        return cls(
            tokenizer=Tokenizer(serialized),
            n_context=spec["n_context"],
            network=LinearModel.from_parts(spec["network"], network),
            counts=NgramCounts(spec["order"], spec["vocab_size"], arrays["grams"], arrays["counts"]),
            projection=Projection(**spec["projection"]),
            mixture=arrays["mixture"],
        )


def _batches(contexts: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    for lo in range(0, len(contexts), BATCH_ROWS):
        rows = slice(lo, min(lo + BATCH_ROWS, len(contexts)))
        yield rows, contexts[rows]
