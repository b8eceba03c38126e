"""Showing results: the evaluation table, and a report in one HTML file with its figures as PNG. Floor 7."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from streamfit.engine import say
from streamfit.errors import ConfigError
from streamfit.solve import AlphaPath, AlphaScores, Pruned
from streamfit.text import Score
from streamfit.text.evaluate import NETWORK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK, _ACCENT, _MUTED = "#1f2933", "#b4541a", "#8a97a5"
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --paper: #fdfdfb; --rule: #d5dae0; --soft: #f2f3f0; --best: #b4541a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dfe5ea; --paper: #15181c; --rule: #363d45; --soft: #1d2228; --best: #f0a36c; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 54rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; }
td.best { color: var(--best); font-weight: 600; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; font-size: .85rem; white-space: pre-wrap; }
img { max-width: 100%; background: white; } .wide { overflow-x: auto; }
@media print { body { max-width: none; } h2 { break-after: avoid; } img, table, pre { break-inside: avoid; } }
"""


@dataclass
class Report:
    """Sections in the order in which they were added; `write` makes the files.

    Parameters
    ----------
    title : str
    data : dict
        Everything shown, as JSON beside the HTML.
    """

    title: str
    data: dict[str, Any] = field(default_factory=dict)
    _body: list[str] = field(default_factory=list)
    _figures: dict[str, Figure] = field(default_factory=dict)

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._body.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._body.append(f"<p>{html.escape(text)}</p>")

    def verbatim(self, text: str) -> None:
        """Add text as it is, in a fixed-width face."""
        self._body.append(f"<pre>{html.escape(text)}</pre>")

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], best: Mapping[str, str] | None = None) -> None:
        """Add a table; `best` says for a column whether its 'min' or 'max' is marked."""
        self.data[name] = [dict(row) for row in rows]
        columns = list(rows[0])
        marks = {c: {"min": min, "max": max}[how](row[c] for row in rows) for c, how in (best or {}).items()}
        head = "".join(f"<th>{html.escape(c.replace('_', ' '))}</th>" for c in columns)
        lines = []
        for row in rows:
            cells = (
                f"<td{' class=best' if c in marks and row[c] == marks[c] else ''}>{html.escape(shown(c, row[c]))}</td>"
                for c in columns
            )
            lines.append(f"<tr>{''.join(cells)}</tr>")
        self._body.append(f"<div class=wide><table><tr>{head}</tr>{''.join(lines)}</table></div>")

    def figure(self, name: str, figure: Figure, caption: str) -> None:
        """Add a figure; it is also written as `figures/NAME.png`."""
        self._figures[name] = figure
        self._body.append(f"<p><img alt='{html.escape(caption, quote=True)}' src='figure:{name}'></p>")
        self.text(caption)

    def write(self, folder: Path) -> Path:
        """Write `report.html`, `report.json` and the figures; returns the HTML's path."""
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        body = "\n".join(self._body)
        for name, figure in self._figures.items():
            path = folder / "figures" / f"{name}.png"
            figure.savefig(path, dpi=150)
            inline = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
            body = body.replace(f"figure:{name}", inline)
        title = html.escape(self.title)
        page = (
            f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
            f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>\n{body}\n</html>\n"
        )
        (folder / "report.json").write_text(json.dumps(self.data, indent=1), encoding="utf-8")
        target = folder / "report.html"
        target.write_text(page, encoding="utf-8")
        return target


def shown(column: str, value: Any) -> str:
    """A table cell: shares as percentages, numbers to a useful number of digits."""
    if isinstance(value, float) and column in ("top1", "top5"):
        return f"{100 * value:.2f}%"
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) >= 10 else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _axes(width: float = 7.0, height: float = 3.4) -> tuple[Figure, Any]:
    # Most commands draw nothing and need not wait for matplotlib. A figure made without pyplot needs no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)
    return figure, axes


def plot_models(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Bits per byte of each model, the best accented."""
    figure, axes = _axes()
    names = [row["model"] for row in rows][::-1]
    bits = [row["bits_per_byte"] for row in rows][::-1]
    bars = axes.barh(names, bits, color=[_ACCENT if b == min(bits) else _MUTED for b in bits])
    labels = [f"{row['bits_per_byte']:.3f}   (perplexity {row['perplexity']:,.1f})" for row in rows][::-1]
    axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.set_xlim(0, 1.35 * max(bits))
    axes.set_xlabel("bits per byte of held-out text; less is better")
    return figure


def plot_alphas(path: AlphaPath) -> Figure:
    """Held-out variance explained along the grid of alphas, a line a fold."""
    figure, axes = _axes()
    folds = 1.0 - path.losses / path.baseline[:, None]
    axes.semilogx(path.alphas, folds.T, color=_MUTED, linewidth=0.8)
    axes.semilogx(path.alphas, path.r2, color=_ACCENT, linewidth=2, marker="o")
    axes.axvline(path.best, color=_INK, linestyle=":", linewidth=1)
    axes.set_xlabel("alpha")
    axes.set_ylabel("held-out R²")
    return figure


def plot_scores(scores: AlphaScores) -> Figure:
    """Generalised cross-validation and log evidence along the grid of alphas, from the training sums alone."""
    figure, axes = _axes()
    gcv, evidence = scores.total("gcv"), scores.total("evidence")
    axes.loglog(scores.alphas, gcv, color=_ACCENT, linewidth=2, marker="o")
    axes.set_xlabel("alpha")
    axes.set_ylabel("generalised cross-validation", color=_ACCENT)
    axes.axvline(scores.best("gcv"), color=_ACCENT, linestyle=":", linewidth=1)
    other = axes.twinx()
    other.semilogx(scores.alphas, evidence, color=_MUTED, linewidth=2, marker="s")
    other.axvline(scores.best("evidence"), color=_MUTED, linestyle=":", linewidth=1)
    other.set_ylabel("log evidence", color=_MUTED)
    other.spines["top"].set_visible(False)
    return figure


def plot_pruning(pruned: Pruned) -> Figure:
    """Loss, and held-out error where there is one, against the number of features left."""
    figure, axes = _axes()
    axes.plot(pruned.n_left, pruned.losses / pruned.losses[0], color=_MUTED, linewidth=2, label="loss")
    if pruned.held_out is not None:
        axes.plot(pruned.n_left, pruned.held_out / pruned.held_out[0], color=_ACCENT, linewidth=2, label="held out")
    axes.set_xlabel("features left")
    axes.set_ylabel("relative to all features")
    axes.legend(frameon=False)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of its suffix.

    Raises
    ------
    ConfigError
        If the format is unknown or the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=150)
    except (ValueError, OSError) as error:
        msg = f"cannot write the figure {path}: {error}"
        raise ConfigError(msg, "a file in a folder that is there, ending in .png, .svg or .pdf") from error


def plot_curve(rows: Sequence[int], r2: Sequence[float]) -> Figure:
    """Held-out variance explained against rows of training data."""
    figure, axes = _axes()
    axes.plot(rows, r2, color=_ACCENT, marker="o")
    axes.set_xlabel("rows counted")
    axes.set_ylabel("held-out R²")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure


def plot_times(seconds: Mapping[str, float]) -> Figure:
    """Durations side by side."""
    figure, axes = _axes(height=0.7 + 0.45 * len(seconds))
    names = list(seconds)[::-1]
    bars = axes.barh(names, [seconds[n] for n in names], color=_MUTED)
    axes.bar_label(bars, [f"{seconds[n]:.1f} s" for n in names], padding=4, fontsize=9)
    axes.set_xlim(0, 1.2 * max(seconds.values()))
    axes.set_xlabel("seconds")
    return figure


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
        outcome = (" loses" if change > 0 else " wins") if name in closed else ""
        result = "" if name == baseline else f"{change:+.1%}{outcome}"
        shares = (f"{row[share]:.2%}" for share in ("top1", "top5"))
        cells = (f"{row['perplexity']:,.2f}", f"{row['bits_per_byte']:.3f}", *shares, result)
        table.add_row(name, *cells, style="bold" if score.nats == best else "")
    console.print(table)
    say(console, verdict(scores))


def print_adaptive(scores: Mapping[str, Score], console: Console) -> None:
    """Print scores of a model that learnt from what it was scored on; they stand beside no static ones."""
    any_score = next(iter(scores.values()))
    table = Table(title=f"{any_score.n_tokens:,} tokens, each then new data for the next")
    for name in ("model", "perplexity", "bits per byte", "top-1", "top-5"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for name, score in scores.items():
        row = score.to_json()
        shares = (f"{row[share]:.2%}" for share in ("top1", "top5"))
        table.add_row(name, f"{row['perplexity']:,.2f}", f"{row['bits_per_byte']:.3f}", *shares)
    console.print(table)


def verdict(scores: Mapping[str, Score]) -> str:
    """Say in words where the closed form stands, also where it loses."""
    baseline = baseline_of(scores)

    def against(score: Score) -> str:
        change = score.perplexity / scores[baseline].perplexity - 1.0
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
