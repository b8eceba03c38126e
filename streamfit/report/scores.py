"""The evaluation table of language models on a console, and in words. Floor 7."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from streamfit.engine import say
from streamfit.text import Score
from streamfit.text.evaluate import NETWORK

_LONG = 1e6
"""Perplexities per word that are shown with three digits alone, as of code."""
_SAME = 5e-4
"""Changes that are 0 with one decimal of a percent."""


def print_scores(scores: Mapping[str, Score], console: Console, kind: str = "") -> None:
    """Print the evaluation table; `kind` says what sort of tokens these are."""
    any_score = next(iter(scores.values()))
    table = Table(title=f"{any_score.n_tokens:,} {kind} tokens, {any_score.n_bytes:,} bytes".replace("  ", " "))
    table.add_column("model")
    baseline = baseline_of(scores)
    closed = list(scores)[list(scores).index(baseline) + 1 :]
    for name in ("perplexity", "bits per byte", "top-1", "top-5", f"against {baseline}"):
        table.add_column(name, justify="right")
    best = min(score.nats for score in scores.values())
    for name, score in scores.items():
        row = score.to_json()
        change = score.perplexity / scores[baseline].perplexity - 1.0
        # What stands below the baseline is the closed form: say plainly whether it wins.
        outcome = "" if name not in closed or abs(change) < _SAME else " loses" if change > 0 else " wins"
        result = "" if name == baseline else f"{change:+.1%}{outcome}"
        shares = (f"{row[share]:.2%}" for share in ("top1", "top5"))
        cells = (f"{row['perplexity']:,.2f}", _bits(row), *shares, result)
        table.add_row(name, *cells, style="bold" if score.nats == best else "")
    console.print(table)
    _say_per_word(scores, console)
    say(console, verdict(scores))


def print_adaptive(scores: Mapping[str, Score], console: Console) -> None:
    """Print scores of a model that learnt from what it was scored on, beside those of the model as it was."""
    any_score = next(iter(scores.values()))
    table = Table(title=f"{any_score.n_tokens:,} tokens, each then new data for the next")
    for name in ("model", "perplexity", "bits per byte", "top-1", "top-5"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for name, score in scores.items():
        row = score.to_json()
        shares = (f"{row[share]:.2%}" for share in ("top1", "top5"))
        table.add_row(name, f"{row['perplexity']:,.2f}", _bits(row), *shares)
    console.print(table)
    _say_per_word(scores, console)


def _say_per_word(scores: Mapping[str, Score], console: Console) -> None:
    """What compares across tokenizers, of the best model, or why nothing does."""
    best = min(scores, key=lambda name: scores[name].nats)
    row = scores[best].to_json()
    if (per_word := row.get("word_perplexity")) is not None:
        told = f"{per_word:,.1f}" if per_word < _LONG else f"{per_word:.3g}"
        say(console, f"perplexity per word, whatever the tokens: {told} ({best})")
    if "bits_per_byte" not in row:
        say(console, "no bits per byte: the tokenizer does not keep all of the text")


def _bits(row: Mapping[str, float]) -> str:
    """Bits per byte, where tokens keep all bytes."""
    return f"{row['bits_per_byte']:.3f}" if "bits_per_byte" in row else "–"


def verdict(scores: Mapping[str, Score]) -> str:
    """Say in words where the closed form stands, also where it loses."""
    baseline = baseline_of(scores)

    def against(score: Score) -> str:
        change = score.perplexity / scores[baseline].perplexity - 1.0
        if abs(change) < _SAME:
            return "that is the same"
        return f"{abs(change):.1%} higher: it loses" if change > 0 else f"{abs(change):.1%} lower: it wins"

    *_, mixture = scores
    whole = f"Mixed with the {baseline}" if mixture == f"{NETWORK} + {baseline}" else f"The {mixture}"
    if NETWORK not in scores:
        return f"Against the {baseline}, the {mixture} has a perplexity {against(scores[mixture])}."
    return (
        f"Against the {baseline}, the {NETWORK} alone has a perplexity {against(scores[NETWORK])}."
        f" {whole}, {against(scores[mixture])}."
    )


def baseline_of(scores: Mapping[str, Score]) -> str:
    """The longest n-gram model of a table, which comes last of them."""
    return [name for name in scores if name.endswith("gram") and "+" not in name][-1]
