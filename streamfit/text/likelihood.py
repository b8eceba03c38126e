"""How likely a text is after another, and whether a model would have written it: what evaluation harnesses ask.

Floor 6: imports model, contexts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from streamfit.text.contexts import Windows
from streamfit.text.model import Expert, LanguageModel

_REQUESTS = 64
"""Texts whose windows are laid out at a time."""


@dataclass(frozen=True)
class Likelihood:
    """Of a continuation.

    Parameters
    ----------
    log_probability : float
        Sum over its tokens, nats.
    greedy : bool
        Whether each of its tokens was the most probable one.
    n_tokens : int
    """

    log_probability: float
    greedy: bool
    n_tokens: int


def continuation_likelihoods(
    model: LanguageModel, pairs: Sequence[tuple[str, str]], *, expert: Expert = "mixture"
) -> list[Likelihood]:
    """Likelihood of each continuation after its context; a document's end is not part of it.

    Both are spelled together, since a tokenizer may join them. Spaces that end a context are taken for the beginning
    of the continuation, and of the tokens of both those count that come after as many as the context alone has, as in
    the lm-evaluation-harness, whose figures these are to be compared with.

    Parameters
    ----------
    model : LanguageModel
    pairs : sequence of (str, str)
        Context, which may be empty, and continuation.
    expert : str
        'mixture', or one of the model's experts.

    Raises
    ------
    ConfigError
        If there is no such expert.
    """
    moved = [(c.rstrip(" "), c[len(c.rstrip(" ")) :] + t) for c, t in pairs]
    found: list[Likelihood] = []
    for lo in range(0, len(moved), _REQUESTS):
        part = moved[lo : lo + _REQUESTS]
        whole = model.tokenizer.encode([context + text for context, text in part])
        before = [len(ids) for ids in model.tokenizer.encode([context for context, _ in part])]
        found += _judged(model, whole, [min(n, len(ids)) for n, ids in zip(before, whole, strict=True)], expert)
    return found


def _judged(
    model: LanguageModel, documents: Sequence[np.ndarray], starts: Sequence[int], expert: Expert
) -> Iterator[Likelihood]:
    windows = Windows(documents, model.n_context)
    first = np.cumsum([0, *(len(ids) + 1 for ids in documents)])
    spans = [np.arange(at + start, end - 1) for at, end, start in zip(first[:-1], first[1:], starts, strict=True)]
    rows = np.concatenate([np.empty(0, np.int64), *spans]).astype(np.int64)
    logs, likeliest = np.empty(len(rows)), np.empty(len(rows), np.bool_)
    for lo in range(0, len(rows), model.batch_rows):
        part = rows[lo : lo + model.batch_rows]
        p, tokens = model.distribution(windows[part], expert), windows.tokens[part]
        logs[lo : lo + len(part)] = np.log(p[np.arange(len(part)), tokens].astype(np.float64))
        likeliest[lo : lo + len(part)] = p.argmax(axis=1) == tokens
    ends = np.cumsum([len(span) for span in spans])
    for end, span in zip(ends, spans, strict=True):
        own = slice(int(end) - len(span), int(end))
        yield Likelihood(float(logs[own].sum()), bool(likeliest[own].all()), len(span))
