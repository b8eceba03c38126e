"""Scores on held-out text, as sums that add over documents: divide last. Floor 6."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property

import numpy as np

from streamfit.errors import CorpusError
from streamfit.text.contexts import Windows
from streamfit.text.embeddings import sample_rows
from streamfit.text.kneser_ney import KneserNey
from streamfit.text.model import LanguageModel
from streamfit.text.tokenizer import Tokenizer

NETWORK = "RBF network"
ORDER_NAMES = {1: "unigram", 2: "bigram", 3: "trigram"}


@dataclass(frozen=True)
class Score:
    """Sums over predicted tokens, the end of each document among them.

    Parameters
    ----------
    n_tokens, n_bytes : int
        Tokens predicted, and bytes of UTF-8 that they spell.
    nats : float
        Sum of -log p.
    top1, top5 : int
        Tokens that were the most probable, or among the five most probable.
    n_words : int
        Words between white space, and one for the end of each document, which is predicted too.
    n_lossy, n_unknown : int
        Texts that cannot be told from their tokens to the byte, and those of them with words that are not in the
        vocabulary: what a tokenizer does not keep costs a model nothing.
    """

    n_tokens: int = 0
    n_bytes: int = 0
    nats: float = 0.0
    top1: int = 0
    top5: int = 0
    n_words: int = 0
    n_lossy: int = 0
    n_unknown: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def perplexity(self) -> float:
        """Exp of the mean of -log p per token."""
        return float(np.exp(self.nats / self.n_tokens))

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for a byte of text: comparable across tokenizers, and NaN where one loses bytes."""
        return float("nan") if self.n_lossy else float(self.nats / np.log(2.0) / max(self.n_bytes, 1))

    @property
    def word_perplexity(self) -> float:
        """Perplexity per word, whatever the tokens: comparable across tokenizers, and NaN where one loses words."""
        if self.n_unknown:
            return float("nan")
        with np.errstate(over="ignore"):  # a file without white space is one long word
            return float(np.exp(self.nats / max(self.n_words, 1)))

    def to_json(self) -> dict[str, float]:
        """Figures of a table row; without those per byte or word of a tokenizer that loses some."""
        found = {
            "tokens": self.n_tokens,
            "bytes": self.n_bytes,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "word_perplexity": self.word_perplexity,
            "top1": self.top1 / self.n_tokens,
            "top5": self.top5 / self.n_tokens,
        }
        return {name: value for name, value in found.items() if value == value}


@dataclass(frozen=True, eq=False)
class Evaluator:
    """A language model beside the baselines that its own counts give.

    Uniform, and interpolated modified Kneser-Ney of each order up to the model's: the unigram, the bigram, and the
    n-gram expert by itself.

    Parameters
    ----------
    model : LanguageModel
    """

    model: LanguageModel

    @cached_property
    def _lower(self) -> list[KneserNey]:
        counts = self.model.counts
        return [KneserNey.fit(counts.lower(order)) for order in range(1, counts.order)]

    def documents(self, texts: Iterable[str]) -> dict[str, Score]:
        """Score whole documents.

        Parameters
        ----------
        texts : iterable of str

        Returns
        -------
        dict of str to Score
            In the order of a table: baselines first, the mixture last.
        """
        texts = list(texts)
        encoded = self.model.tokenizer.encode(texts)
        spelled = sizes(self.model.tokenizer, texts, encoded)
        windows = Windows(encoded, self.model.n_context)
        tokens = windows.tokens
        total = {
            "uniform": _score_fixed(np.full(self.model.vocab_size, 1.0 / self.model.vocab_size), tokens),
            "unigram": _score_fixed(self._lower[0].distribution(np.empty((1, 0), np.int32))[0], tokens),
        }
        for rows, contexts in windows.batches(self.model.batch_rows):
            for name, p in self._models(contexts):
                total[name] = total.get(name, Score()) + score(p, tokens[rows])
        return {name: each + spelled for name, each in total.items()}

    def _models(self, contexts: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        near = contexts[:, contexts.shape[1] - self.model.counts.order + 1 :]
        for ngram in self._lower[1:]:
            yield ngram_name(ngram.order), ngram.distribution(near)
        found = self.model.distributions(contexts)
        for name, p in found.items():
            if name not in ("mixture", "network", "ngram"):
                yield name, p
        yield (
            ngram_name(self.model.counts.order),
            found["ngram"] if "ngram" in found else self.model.ngram.distribution(near),
        )
        if "network" in found:
            yield NETWORK, found["network"]
        yield mixture_name(self.model), found["mixture"]


def sampled_score(model: LanguageModel, texts: Sequence[str], n_tokens: int) -> Score:
    """Score the mixture on a random sample of the tokens of some texts, each with all that stands before it.

    Parameters
    ----------
    model : LanguageModel
    texts : sequence of str
    n_tokens : int
        At most so many.

    Returns
    -------
    Score
        Bytes and words are the sample's share of those of the texts.
    """
    encoded = model.tokenizer.encode(texts)
    windows = Windows(encoded, model.n_context)
    rows = sample_rows(len(windows), n_tokens, seed=0)
    total = Score()
    for lo in range(0, len(rows), model.batch_rows):
        part = rows[lo : lo + model.batch_rows]
        total += score(model.distribution(windows[part]), windows.tokens[part])
    whole, share = sizes(model.tokenizer, texts, encoded), len(rows) / max(len(windows), 1)
    return total + replace(whole, n_bytes=round(share * whole.n_bytes), n_words=round(share * whole.n_words))


def sizes(tokenizer: Tokenizer, texts: Sequence[str], encoded: Sequence[np.ndarray]) -> Score:
    """Bytes and words of texts, and how many of them their tokens lose; nothing else of a score."""
    told = [tokenizer.decode(ids) for ids in encoded]
    return Score(
        n_bytes=sum(len(text.encode()) for text in texts),
        n_words=sum(len(text.split()) + 1 for text in texts),
        n_lossy=sum(text != own for text, own in zip(texts, told, strict=True)),
        n_unknown=sum(text.split() != own.split() for text, own in zip(texts, told, strict=True)),
    )


def mixture_name(model: LanguageModel) -> str:
    """Name of the whole model in tables."""
    if model.experts == ("network", "ngram") and model.topic is None:
        return f"{NETWORK} + {ngram_name(model.counts.order)}"
    return f"mixture of {len(model.experts)}" + ("" if model.topic is None else ", by topic")


def ngram_name(order: int) -> str:
    """Name of an n-gram model in tables."""
    return ORDER_NAMES.get(order, f"{order}-gram")


def score(p: np.ndarray, tokens: np.ndarray) -> Score:
    """Score distributions, a row a token."""
    own = p[np.arange(len(tokens)), tokens][:, None]
    rank = np.count_nonzero(p > own, axis=1)
    # Equal probabilities are ranked by token id, so that a model that cannot tell tokens apart gains nothing.
    tied = p == own
    several = np.flatnonzero(np.count_nonzero(tied, axis=1) > 1)
    before = np.arange(p.shape[1]) < tokens[several, None]
    rank[several] += np.count_nonzero(tied[several] & before, axis=1)
    return _summed(own[:, 0], rank)


def _score_fixed(p: np.ndarray, tokens: np.ndarray) -> Score:
    """Score one distribution that no context changes."""
    rank = np.empty(len(p), np.int64)
    rank[np.argsort(-p, kind="stable")] = np.arange(len(p))
    return _summed(p[tokens], rank[tokens])


def _summed(own: np.ndarray, rank: np.ndarray) -> Score:
    nats = float(-np.log(own.astype(np.float64)).sum())
    return Score(n_tokens=len(own), nats=nats, top1=int((rank < 1).sum()), top5=int((rank < 5).sum()))


def add_scores(parts: Iterable[Mapping[str, Score]]) -> dict[str, Score]:
    """Add scores of several parts of a corpus, model by model.

    Raises
    ------
    CorpusError
        If there is nothing to add.
    """
    total: dict[str, Score] = {}
    for part in parts:
        for name, score in part.items():
            total[name] = total.get(name, Score()) + score
    if not total:
        msg = "no text to evaluate on"
        raise CorpusError(msg, "at least one document", "check the paths")
    return total
