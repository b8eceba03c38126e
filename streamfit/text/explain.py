"""What carried a prediction: centers and suffixes of the corpus, as shares that add up to the probability.

Floor 6: imports model, experts, origins, suffixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from streamfit.errors import ConfigError
from streamfit.text.contexts import context_rows
from streamfit.text.experts import seen_by
from streamfit.text.model import LanguageModel
from streamfit.text.origins import Origin, center_block, fourier_block
from streamfit.text.suffixes import continuations, suffixes, uniform_share
from streamfit.text.views import View

Kind = Literal["center", "others", "linear", "fourier", "intercept", "projection", "suffix", "uniform", "rest"]
_NOTHING = 5e-7
"""Shares below this are 0 in percent with four decimals."""


@dataclass(frozen=True)
class Share:
    """A part of a probability. It may be negative: a center can speak against a token.

    Parameters
    ----------
    expert : str
        Which expert it comes from.
    kind : str
        'center', 'others' (the centers that are not shown one by one), 'linear' (the embedded context itself),
        'fourier' (Fourier features of decayed sums), 'intercept' and 'projection' (what making the output a
        distribution added or took) of the network; 'suffix' and 'uniform' of experts that count; 'rest' is several
        shares that round to 0.
    share : float
    text : str
        The center's context, or the suffix, as the tokenizer writes it; of document tokens at its beginning the last.
    place : str
        File and offset of a center, where they are known: bytes of UTF-8 from the start of the document, which is the
        file where [n] does not stand between them, to the end of the center's context.
    activation : float
        Of a center, between 0 and 1: how near the context is.
    seen : int
        Of a suffix: how often it was a context in training.
    """

    expert: str
    kind: Kind
    share: float
    text: str = ""
    place: str = ""
    activation: float = 0.0
    seen: int = 0

    def to_json(self) -> dict[str, Any]:
        """What there is to say of its kind."""
        return {name: value for name, value in vars(self).items() if value != "" and (value or name == "share")}


@dataclass(frozen=True)
class Aboutness:
    """What the topic does to a token: it multiplies all shares alike.

    Parameters
    ----------
    factor : float
        Of the probability by the mixture alone: the ratio to its power, divided by the sum over all tokens.
    ratio : float
        How much likelier the token is in texts like this one than in others, from 0.1 up; see `Topic`.
    words : tuple of (str, float)
        Tokens of the text and what they add to the ratio or take from it, at all places together, the largest in
        magnitude first.
    """

    factor: float
    ratio: float
    words: tuple[tuple[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        words = [{"token": token, "part": part} for token, part in self.words]
        return {"factor": self.factor, "ratio": self.ratio, "words": words}


@dataclass(frozen=True)
class Explanation:
    """Why a token has its probability.

    Parameters
    ----------
    before : tuple of str
        Tokens of the context, as they read one after another; of document tokens at its beginning the last.
    token : str
        The token, as text.
    probability : float
        By the mixture.
    weights : dict of str to float
        Of each expert in this context.
    by_expert : dict of str to float
        Probability by each expert alone.
    shares : tuple of Share
        They add up to the probability. Largest in magnitude first.
    likely : tuple of (str, float)
        The most probable tokens, for comparison.
    topic : Aboutness, optional
        What the shares were multiplied by, where the model has a topic.
    """

    before: tuple[str, ...]
    token: str
    probability: float
    weights: dict[str, float]
    by_expert: dict[str, float]
    shares: tuple[Share, ...]
    likely: tuple[tuple[str, float], ...]
    topic: Aboutness | None = None

    def shown(self, top: int) -> list[Share]:
        """The largest shares; other centers together, and all that round to 0, so that the sum is the same.

        Parameters
        ----------
        top : int
            So many centers, and all of what there are few of.
        """
        centers = [s for s in self.shares if s.kind == "center"]
        kept = [s for s in self.shares if s.kind != "center"] + centers[:top]
        if rest := centers[top:]:
            kept.append(Share("network", "others", sum(s.share for s in rest), f"{len(rest):,} together"))
        small = [s for s in kept if abs(s.share) < _NOTHING]
        if len(small) > 1:
            experts = ", ".join(dict.fromkeys(s.expert for s in small))
            together = Share("", "rest", sum(s.share for s in small), f"{len(small)} shares of {experts}")
            kept = [s for s in kept if abs(s.share) >= _NOTHING] + [together]
        return sorted(kept, key=lambda s: -abs(s.share))

    def to_json(self, top: int = 20) -> dict[str, Any]:
        """Plain values, with the largest shares."""
        return {
            "before": list(self.before),
            "token": self.token,
            "probability": self.probability,
            "weights": self.weights,
            "by_expert": self.by_expert,
            "shares": [share.to_json() for share in self.shown(top)],
            "likely": [{"token": token, "probability": p} for token, p in self.likely],
            **({} if self.topic is None else {"topic": self.topic.to_json()}),
        }


def explain(
    model: LanguageModel,
    prompt: str,
    token: str | int | None = None,
    *,
    origins: Sequence[Origin | None] = (),
    n_likely: int = 5,
) -> Explanation:
    """Take a prediction apart.

    With m the weights of the mixture in this context, the probability of token w is the sum over experts of
    ``m_e p_e(w)``, times the same factor for all of them where there is a topic. The network's output is
    ``f_w = sum_j φ_j B_jw + b_w``, each center's part of it being a share, and p_w - f_w that of the projection to a
    distribution. An expert that counts is
    the sum over the suffixes s of the context that were seen, of the back-off weights of those longer than s, times the
    discounted probability of w after s; and what is left is spread evenly over the vocabulary.

    Parameters
    ----------
    model : LanguageModel
    prompt : str
        A space at its end is the beginning of the token that is explained, as in training text; see `Tokenizer.prompt`.
    token : str or int, optional
        A token's text or id; of a longer text the first token. Without it the most probable, of those that begin with
        the space where the prompt ends in one.
    origins : sequence of Origin or None
        Of each center, as `find_origins` or `origins_of` give them.
    n_likely : int
        How many of the most probable tokens are listed, again of those.

    Raises
    ------
    ConfigError
        If the token is none of the vocabulary.
    """
    cut = model.tokenizer.prompt(prompt)
    context = context_rows([cut.ids], model.n_context)[0][-1]
    experts = {name: p[0] for name, p in model.distributions(context[None]).items()}
    mixed = experts.pop("mixture")
    allowed = np.arange(model.vocab_size) if cut.first is None else cut.first
    likely = allowed[np.argsort(-mixed[allowed], kind="stable")[:n_likely]]
    if token is None:
        chosen = int(allowed[np.argmax(mixed[allowed])])
    else:
        chosen = _token_id(model, token, "" if cut.first is None else cut.given)
    weights = dict(zip(model.experts, model.bucket_weights(context[None])[0].tolist(), strict=True))
    shares: list[Share] = []
    for name, weight in weights.items():
        if name == "network":
            shares += _network_shares(model, context, chosen, float(experts[name][chosen]), weight, origins)
        else:
            shares += _counted_shares(model, name, context, chosen, weight)
    topic = None
    if model.topic is not None:
        topic = _aboutness(model, context, chosen, float(mixed[chosen]) / sum(share.share for share in shares))
        shares = [replace(share, share=share.share * topic.factor) for share in shares]
    return Explanation(
        before=tuple(model.tokenizer.pieces(_shortened(context))),
        token=_spelled(model, chosen),
        probability=float(sum(share.share for share in shares)),
        weights=weights,
        by_expert={name: float(p[chosen]) for name, p in experts.items()},
        shares=tuple(sorted(shares, key=lambda share: -abs(share.share))),
        likely=tuple((_spelled(model, int(t)), float(mixed[t])) for t in likely),
        topic=topic,
    )


_WORDS = 6


def _aboutness(model: LanguageModel, context: np.ndarray, token: int, factor: float) -> Aboutness:
    assert model.topic is not None
    ratio = float(np.exp(model.topic.log_ratio(context[None], model.unigram)[0, token]))
    parts = model.topic.parts(context, token, model.unigram)
    if parts is None:
        return Aboutness(factor, ratio, ())
    inside = context != 0  # what stands before a document is no word of it
    tokens, where = np.unique(context[inside], return_inverse=True)
    sums = np.bincount(where, weights=parts[inside], minlength=len(tokens))
    most = np.argsort(-np.abs(sums), kind="stable")[:_WORDS]
    return Aboutness(factor, ratio, tuple((_spelled(model, int(tokens[i])), float(sums[i])) for i in most))


def _token_id(model: LanguageModel, token: str | int, given: str) -> int:
    if isinstance(token, str):
        ids = model.tokenizer.encode([given + token])[0]
        if not token or not len(ids):
            msg = f"a token {token!r} without text"
            raise ConfigError(msg, "some text")
        return int(ids[0])
    if not 0 <= token < model.vocab_size:
        msg = f"token {token}"
        raise ConfigError(msg, f"0 to {model.vocab_size - 1}")
    return token


def _spelled(model: LanguageModel, token: int) -> str:
    return (model.tokenizer.decode([token]) if token else "") or model.tokenizer.token(token)


def _shortened(tokens: np.ndarray) -> np.ndarray:
    """Tokens of a context, of those before a document's start the last alone."""
    inside = np.flatnonzero(tokens)
    start = int(inside[0]) if len(inside) else len(tokens)
    return tokens[max(0, start - 1) :]


def _network_shares(
    model: LanguageModel,
    context: np.ndarray,
    token: int,
    probability: float,
    weight: float,
    origins: Sequence[Origin | None],
) -> list[Share]:
    assert model.network is not None
    solution = model.network.solution
    phi = model.network.features(context[None])[0].astype(np.float64)
    parts = weight * phi * solution.weights[:, token]
    block = center_block(model.network.features)
    columns = block[2] if block else slice(0, 0)
    shares = []
    for j in range(columns.start, columns.stop):
        center = j - columns.start
        origin = origins[center] if center < len(origins) else None
        text = "" if origin is None else "".join(model.tokenizer.pieces(_shortened(np.array(origin.tokens))))
        place = "" if origin is None else origin.place
        shares.append(Share("network", "center", float(parts[j]), text, place, float(phi[j])))
    fourier = fourier_block(model.network.features)
    n_linear = len(parts) - sum(block.stop - block.start for block in (columns, fourier))
    if n_linear:
        linear = float(parts.sum() - parts[columns].sum() - parts[fourier].sum())
        shares.append(Share("network", "linear", linear))
    if fourier.stop > fourier.start:
        shares.append(Share("network", "fourier", float(parts[fourier].sum())))
    shares.append(Share("network", "intercept", weight * float(solution.intercept[token])))
    rest = weight * probability - sum(share.share for share in shares)
    return [*shares, Share("network", "projection", rest)]


def _counted_shares(model: LanguageModel, name: str, context: np.ndarray, token: int, weight: float) -> list[Share]:
    expert = model.count_experts[name]
    found = suffixes(expert.tables, seen_by(expert, context))
    shares: list[Share] = []
    for suffix in found:
        tokens, mass = continuations(expert.tables, suffix)
        at = int(np.searchsorted(tokens, token))
        part = float(mass[at]) if at < len(tokens) and tokens[at] == token else 0.0
        text = "" if expert.view is None else _glimpse(model, expert.view, context, suffix.order - 1)
        share = Share(name, "suffix", weight * suffix.weight * part, text, seen=suffix.seen)
        if shares and (shares[-1].text, shares[-1].seen) == (text, suffix.seen):
            # More and more marks before a document's start, which are one in the text.
            share = replace(share, share=share.share + shares.pop().share)
        elif expert.view is not None and any(each.text == text for each in shares):
            # As classes they are seen elsewhere as well, and so tell contexts apart.
            share = replace(share, text=_glimpse(model, expert.view, context, suffix.order - 1, marks=True))
        shares.append(share)
    return [*shares, Share(name, "uniform", weight * uniform_share(expert.tables, found) / model.vocab_size)]


def _glimpse(model: LanguageModel, view: View, context: np.ndarray, n_columns: int, *, marks: bool = False) -> str:
    """What a view has looked at first, as text: tokens, those seen as one of a cluster in brackets, gaps as dots.

    Of the marks before a document's start one stands for all, with their number if that is asked for.
    """
    glances = {g.distance: g.clusters for g in view.glances[:n_columns]}  # a token seen twice is seen by itself at last
    farthest = max(glances, default=0)
    tokens = context[len(context) - farthest :]
    spelled = [
        "..." if distance not in glances else _clustered(piece) if glances[distance] else piece
        for distance, piece in zip(range(farthest, 0, -1), model.tokenizer.pieces(tokens), strict=True)
    ]
    n_inside, n_marks = len(_shortened(tokens)), 1
    while len(spelled) > n_inside and spelled[1].replace(" ", "") == spelled[0]:
        spelled, n_marks = spelled[:1] + spelled[2:], n_marks + 1
    if marks and n_marks > 1:
        spelled[0] += f"\N{MULTIPLICATION SIGN}{n_marks}"
    return "".join(spelled)


def _clustered(piece: str) -> str:
    """In brackets, with the space before a word outside of them."""
    word = piece.removeprefix(" ") or piece
    return f"{piece[: len(piece) - len(word)]}[~{word}]"
