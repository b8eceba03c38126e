"""What a model remembers of its training text and foresees of other text, token by token; for `special_corpus`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamfit.text import LanguageModel, Score
from streamfit.text.contexts import Windows
from streamfit.text.evaluate import score
from streamfit.text.interpolate import Interpolation
from streamfit.text.suffix_tables import Branch, suffix_tree

CLAIM = 0.96
"""The accuracy that was announced of one firm's documents."""
LENGTHS = 8
"""Tokens of the longest contexts."""
NAMES = {
    "exact": "exact interpolation",
    "network": "RBF network",
    "suffix_ridge": "suffix ridge",
    "ngram": "Kneser-Ney",
    "mixture": "their mixture",
}


@dataclass(frozen=True)
class Rows:
    """Contexts that are asked, and the tokens that followed."""

    contexts: np.ndarray
    tokens: np.ndarray


def measure(
    model: LanguageModel, training: Sequence[str], held_out: Sequence[str], copied: Sequence[bool], n_tokens: int
) -> dict[str, Any]:
    """Every figure of one split of a corpus.

    Parameters
    ----------
    model : LanguageModel
        Of the training texts, with the experts of `NAMES`.
    training, held_out : sequence of str
    copied : sequence of bool
        Of which held-out texts figures are given apart.
    n_tokens : int
        Tokens that are asked for each figure, a random sample.
    """
    tree = suffix_tree(model.counts)
    train = Windows(model.tokenizer.encode(training), model.n_context)
    encoded = model.tokenizer.encode(held_out)
    test = Windows(encoded, model.n_context)
    apart = np.repeat(np.asarray(copied, np.bool_), [len(ids) + 1 for ids in encoded])
    everywhere, seen = _some(train, np.arange(len(train)), n_tokens), _some(test, np.arange(len(test)), n_tokens)
    alone = Interpolation.fit(model.counts, tree=tree).followers(everywhere.contexts) == 1
    asked = {
        "training": everywhere,
        "training, one answer": Rows(everywhere.contexts[alone], everywhere.tokens[alone]),
        "held out": seen,
    }
    if apart.any():
        asked["held out, copied"] = _some(test, np.flatnonzero(apart), n_tokens)
        asked["held out, others"] = _some(test, np.flatnonzero(~apart), n_tokens)
    scored = {name: _scores(model, rows) for name, rows in asked.items() if len(rows.tokens)}
    _, confidence, right = scored["held out"]
    answered = np.cumsum(right[np.argsort(-confidence, kind="stable")]) / np.arange(1, len(right) + 1)
    return {
        "training_tokens": len(train),
        "test_tokens": len(test),
        "test_texts": len(held_out),
        "test_texts_copied": sum(copied),
        "test_tokens_copied": int(apart.sum()),
        "scores": {name: {kind: _figures(s) for kind, s in found.items()} for name, (found, *_) in scored.items()},
        "by_length": [
            by_length(Interpolation.fit(model.counts, tree=tree[: k + 1]), tree[: k + 1], seen)
            for k in range(1, LENGTHS + 1)
        ],
        "selective": [float(answered[max(len(answered) * share // 100 - 1, 0)]) for share in range(1, 101)],
        "share_at_claim": float(np.max(np.flatnonzero(answered >= CLAIM), initial=-1) + 1) / len(answered),
    }


def by_length(model: Interpolation, tree: tuple[Branch, ...], held_out: Rows) -> dict[str, float]:
    """Interpolation of contexts of one length: what it remembers, counted over all contexts, and what it foresees."""
    branch, level = tree[-1], model.levels[-1]
    starts, followers = branch.starts[:-1], np.diff(branch.starts)
    alone = followers == 1
    # Among the tokens that followed a context the interpolant's most probable one is the most frequent.
    most = np.maximum.reduceat(branch.counts, starts)
    found = model.followers(held_out.contexts)
    right = np.concatenate([
        model.distribution(held_out.contexts[lo : lo + 512]).argmax(axis=1) == held_out.tokens[lo : lo + 512]
        for lo in range(0, len(held_out.tokens), 512)
    ])  # fmt: skip
    return {
        "length": len(tree) - 1,
        "contexts": len(starts),
        "contexts_with_one_answer": int(alone.sum()),
        "least_probability_of_the_one_answer": float(level.mass[starts[alone]].min(initial=1.0)),
        "training_share_with_one_answer": float(branch.seen[alone].sum() / branch.seen.sum()),
        "training_top1": float(most.sum() / branch.counts.sum()),
        "held_out_top1": float(right.mean()),
        "held_out_share_seen": float((found > 0).mean()),
        "held_out_share_with_one_answer": float((found == 1).mean()),
        "held_out_top1_with_one_answer": float(right[found == 1].mean()) if (found == 1).any() else 0.0,
    }


def _some(windows: Windows, places: np.ndarray, n: int) -> Rows:
    rows = np.sort(np.random.default_rng(0).choice(places, min(n, len(places)), replace=False))
    return Rows(windows[rows], windows.tokens[rows])


def _scores(model: LanguageModel, rows: Rows) -> tuple[dict[str, Score], np.ndarray, np.ndarray]:
    """Scores of the mixture and each expert; the mixture's confidence in its answers, and whether they are right."""
    total: dict[str, Score] = dict.fromkeys(NAMES, Score())
    confidence, right = np.empty(len(rows.tokens)), np.empty(len(rows.tokens), np.bool_)
    for lo in range(0, len(rows.tokens), model.batch_rows):
        at = slice(lo, lo + model.batch_rows)
        found = model.distributions(rows.contexts[at])
        total = {name: total[name] + score(found[name], rows.tokens[at]) for name in NAMES}
        confidence[at], right[at] = found["mixture"].max(axis=1), found["mixture"].argmax(axis=1) == rows.tokens[at]
    return total, confidence, right


def _figures(s: Score) -> dict[str, float]:
    return {"tokens": s.n_tokens, "top1": s.top1 / s.n_tokens, "perplexity": s.perplexity}


def what_it_takes(facts: dict[str, Any]) -> dict[str, float]:
    """Of a test set's tokens, the share that must be copies of training text for the claim; above 1 none is enough."""
    held_out = facts["scores"]["held out"]
    best = max(held_out, key=lambda name: held_out[name]["top1"])
    new, copy = held_out[best]["top1"], facts["by_length"][-1]["training_top1"]
    return {"new": new, "copy": copy, "share_of_copies": max(0.0, CLAIM - new) / max(copy - new, 1e-9)}
