"""Text that a language model writes: the same seed gives the same text, and it comes as it is made.

Floor 6: imports model, next_token, stream, contexts, tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from streamfit.errors import ConfigError
from streamfit.text.contexts import context_rows
from streamfit.text.model import Expert, LanguageModel
from streamfit.text.next_token import NextToken
from streamfit.text.stream import TextStream
from streamfit.text.tokenizer import Prompt


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Parameters
    ----------
    n_tokens : int
        At most so many.
    temperature : float
        Probabilities are raised to the power 1 / temperature; 0 takes the most probable token each time.
    top_k : int
        Draw from so many of the most probable tokens (Fan, Lewis and Dauphin 2018); 0 leaves all.
    top_p : float
        Of these, draw from the smallest set that holds this much probability (Holtzman et al. 2020).
    seed : int

    Raises
    ------
    ConfigError
        If one of them is out of range.
    """

    n_tokens: int = 100
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        fine = 0 < self.top_p <= 1 and 0 <= self.temperature < np.inf
        if not (fine and min(self.n_tokens, self.top_k, self.seed) >= 0):
            expected = "temperature >= 0, 0 < top_p <= 1; n_tokens, top_k and seed >= 0"
            raise ConfigError(", ".join(f"{name} {value}" for name, value in vars(self).items()), expected)

    def draw(self, p: np.ndarray, rng: np.random.Generator) -> int:
        """Draw a token.

        Parameters
        ----------
        p : array of shape (vocab_size,)
            Positive.
        rng : numpy Generator
        """
        if self.temperature == 0:
            return int(np.argmax(p))
        kept = np.arange(len(p))
        if 0 < self.top_k < len(p):
            # Among equals the smaller id stays, as everywhere else.
            least = np.partition(p, len(p) - self.top_k)[len(p) - self.top_k]
            above, equal = np.flatnonzero(p > least), np.flatnonzero(p == least)
            kept = np.concatenate([above, equal[: self.top_k - len(above)]])
            kept.sort()
        logits = np.log(p[kept].astype(np.float64))
        with np.errstate(over="ignore"):  # a temperature near 0 is the most probable token again
            q = np.exp((logits - logits.max()) / self.temperature)
        if self.top_p < 1:
            order = np.argsort(-q, kind="stable")
            share = np.cumsum(q[order])
            few = order[: int(np.searchsorted(share, self.top_p * share[-1])) + 1]
            kept, q = kept[few], q[few]
        total = np.cumsum(q)
        at = np.searchsorted(total, rng.random() * total[-1], side="right")
        return int(kept[min(int(at), len(kept) - 1)])


def generate(
    model: LanguageModel, prompt: str, sampling: Sampling | None = None, *, expert: Expert = "mixture"
) -> Iterator[int]:
    """Draw tokens that continue a prompt, until the end of the document.

    Parameters
    ----------
    model : LanguageModel
    prompt : str
        A space at its end is the beginning of the first token, as in training text; see `Tokenizer.prompt`.
    sampling : Sampling, optional
    expert : {'mixture', 'network', 'ngram'}

    Yields
    ------
    int
        Token ids.

    Raises
    ------
    ConfigError
        If there is no such expert.
    """
    before = model.tokenizer.prompt(prompt)
    return _tokens(model, before, sampling or Sampling(), NextToken(model, expert))


def _tokens(model: LanguageModel, before: Prompt, sampling: Sampling, following: NextToken) -> Iterator[int]:
    rng = np.random.default_rng(sampling.seed)
    context = context_rows([before.ids], model.n_context)[0][-1].copy()
    for n in range(sampling.n_tokens):
        p = following(context)
        token = sampling.draw(p, rng) if n or before.first is None else _among(before.first, p, sampling, rng)
        if token == 0:
            return
        yield token
        context[:-1] = context[1:]
        context[-1] = token


def _among(allowed: np.ndarray, p: np.ndarray, sampling: Sampling, rng: np.random.Generator) -> int:
    return int(allowed[sampling.draw(p[allowed], rng)])


def generate_text(
    model: LanguageModel,
    prompt: str,
    sampling: Sampling | None = None,
    *,
    stop: Sequence[str] = (),
    expert: Expert = "mixture",
) -> Iterator[str]:
    """Continue a prompt in pieces of text, as they are made.

    Parameters
    ----------
    model : LanguageModel
    prompt : str
        Not given again. A space at its end is the beginning of the first token, as in training text.
    sampling : Sampling, optional
    stop : sequence of str
        The text ends before the first of them.
    expert : {'mixture', 'network', 'ngram'}

    Yields
    ------
    str
        Never empty, and only whole characters.

    Raises
    ------
    ConfigError
        If there is no such expert, or a stop string is empty.
    """
    before, following = model.tokenizer.prompt(prompt), NextToken(model, expert)
    stream = TextStream(model.tokenizer, before.ids.tolist(), stop, before.given)
    return _pieces(stream, _tokens(model, before, sampling or Sampling(), following))


def _pieces(stream: TextStream, tokens: Iterator[int]) -> Iterator[str]:
    for token in tokens:
        if piece := stream.add(token):
            yield piece
        if stream.stopped:
            return
    if piece := stream.end():
        yield piece
