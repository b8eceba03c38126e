"""Does the model know when it is making things up? Measured on text of its own kind and of others.

    python pipelines/doubt.py runs/demo/model --outside c='/usr/include/**/*.h' [--outside name=files]... [-o out.json]

Inside is the test part of the model's own corpus. Each outside is named files, .gz among them. Two tables: how well
each signal tells outside from inside (area under the ROC curve, of single tokens and of windows of them), and how often
the most probable token is wrong among those that are doubted least (selective prediction). Entropy, which every model
has, is the baseline for both. What is usual and what errors look like is learnt on the validation part; no outside
text is seen before it is measured.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from streamfit.cli import script
from streamfit.corpus import Files
from streamfit.engine import say
from streamfit.errors import ConfigError
from streamfit.model_runs import ModelRun, doubt_of
from streamfit.report import save_figure
from streamfit.text import Doubt, LanguageModel
from streamfit.text.doubt import SIGNALS, Signals, windows

WINDOWS = (1, 16, 64)
COVERAGES = (0.1, 0.25, 0.5, 0.75, 1.0)
_DOCUMENT = 20_000
"""Characters of a document that are taken, so that no single file decides."""


def main(
    model: Path,
    outside: Annotated[list[str], typer.Option(help="name=files; repeatable.")],
    run: Path | None = None,
    characters: Annotated[int, typer.Option(help="Of each kind of text.")] = 400_000,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
    plot: Annotated[Path | None, typer.Option(help="Figure of the selective prediction curves.")] = None,
) -> dict[str, Any]:
    """Measure, print, and write JSON and a figure where asked to."""
    console = Console()
    language, judge = doubt_of(model, run)
    inside = _some(ModelRun.open(model, run).test(), characters)
    texts = {"inside": inside} | {name: _some(_read(path), characters) for name, path in map(_named, outside)}
    seen = {name: judge.signals(language, documents) for name, documents in texts.items()}
    for name, s in seen.items():
        if len(s.tokens) < max(WINDOWS):
            msg = f"{name}: {len(s.tokens)} tokens"
            raise ConfigError(msg, f"{max(WINDOWS)} or more, a window of them", "name more files with --outside")
    facts = {
        "text": {name: _about(language, judge, s) for name, s in seen.items()},
        "telling apart": {name: _aucs(judge, seen["inside"], s) for name, s in seen.items() if name != "inside"},
        "selective": {name: _selective(judge, s) for name, s in seen.items()},
    }
    _show(facts, console)
    if output is not None:
        output.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        say(console, f"figures: {output}")
    if plot is not None:
        save_figure(_curves(judge, seen), plot)
        say(console, f"figure: {plot}")
    return facts


def _named(text: str) -> tuple[str, str]:
    name, sign, path = text.partition("=")
    if not (name and sign and path) or name == "inside":
        msg = f"--outside {text!r}"
        raise ConfigError(msg, "name=files, and another name than 'inside'")
    return name, path


def _read(path: str) -> list[str]:
    """Texts of files that are UTF-8, in a random order."""
    found = []
    for _, file in Files(path).find():
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        with suppress(UnicodeDecodeError):
            text = data.decode()
            # One packed file is a whole corpus; of many files, each is a document.
            step = _DOCUMENT if file.suffix == ".gz" else max(len(text), 1)
            found += [text[i : i + step] for i in range(0, len(text), step)]
    return found


def _some(texts: Iterable[str], characters: int) -> list[str]:
    every, kept = sorted(texts), []
    for index in np.random.default_rng(0).permutation(len(every)):
        if characters <= 0:
            break
        kept.append(every[index][:_DOCUMENT])
        characters -= len(kept[-1])
    return kept


def _about(model: LanguageModel, judge: Doubt, s: Signals) -> dict[str, Any]:
    return {
        "tokens": len(s.tokens),
        "perplexity": float(np.exp(s.surprise.mean())),
        "top1": float(s.right.mean()),
        "leverage": float(np.median(s.leverage)),
        "suffix_length": float(s.length.mean()),
        "entropy": float(s.entropy.mean()),
        "doubt": float(judge.score(s).mean()),
        "unlike": judge.unlike(s),
    }


def _aucs(judge: Doubt, inside: Signals, other: Signals) -> dict[str, dict[str, float]]:
    """Area under the ROC curve of each signal, and of doubt, by windows; of log p of what came too, for comparison."""
    found: dict[str, dict[str, float]] = {}
    for size in WINDOWS:
        a, b = (windows(np.column_stack([judge.score(s), s.columns(), s.surprise]), size) for s in (inside, other))
        label = np.repeat([0, 1], [len(a), len(b)])
        for j, name in enumerate(("doubt", *SIGNALS, "surprise")):
            found.setdefault(name, {})[str(size)] = float(roc_auc_score(label, np.append(a[:, j], b[:, j])))
    return found


def _selective(judge: Doubt, s: Signals) -> dict[str, dict[str, float]]:
    """Error rate among the share of tokens that are doubted least, by each way to doubt, and its mean over shares."""
    found = {}
    for name, score in _ways(judge, s).items():
        errors = _error_rates(s, score)
        found[name] = {f"{share:g}": float(errors[max(int(share * len(errors)) - 1, 0)]) for share in COVERAGES}
        found[name]["mean"] = float(errors.mean())
    return found


def _ways(judge: Doubt, s: Signals) -> dict[str, np.ndarray]:
    ways = {"chance of error": judge.error(s), "doubt": judge.score(s), "entropy": s.entropy}
    return ways | {"confidence": -s.confidence, "best possible": (~s.right).astype(float)}


def _error_rates(s: Signals, score: np.ndarray) -> np.ndarray:
    """Error rate among the 1, 2, .. tokens of the lowest score."""
    return np.asarray(np.cumsum(~s.right[np.argsort(score, kind="stable")]) / np.arange(1, len(score) + 1))


def _curves(judge: Doubt, seen: dict[str, Signals]) -> Figure:
    figure = Figure(figsize=(3.2 * len(seen), 3.4), layout="constrained")
    for axes, (name, s) in zip(np.ravel(figure.subplots(1, len(seen), sharey=True)), seen.items(), strict=True):
        for way, score in _ways(judge, s).items():
            errors = _error_rates(s, score)
            at = np.unique(np.linspace(len(errors) // 100, len(errors) - 1, 200).astype(int))
            axes.plot((at + 1) / len(errors), errors[at], label=way, linestyle=":" if way == "best possible" else "-")
        axes.set(title=name, xlabel="share of tokens answered")
    figure.axes[0].set_ylabel("error rate")
    figure.axes[0].legend(frameon=False, fontsize="small")
    return figure


def _show(facts: dict[str, Any], console: Console) -> None:
    _table(console, "the texts", facts["text"], ("text", *next(iter(facts["text"].values()))), "{:,.4g}")
    for name, rows in facts["telling apart"].items():
        title = f"telling {name} from inside: area under the ROC curve, by tokens in a window"
        _table(console, title, rows, ("by", *map(str, WINDOWS)), "{:.3f}")
    for name, rows in facts["selective"].items():
        title = f"{name}: error rate of the most probable token among the share that is doubted least"
        _table(console, title, rows, ("by", *(f"{share:.0%}" for share in COVERAGES), "mean"), "{:.1%}")


def _table(
    console: Console, title: str, rows: dict[str, dict[str, float]], columns: tuple[str, ...], form: str
) -> None:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for name, cells in rows.items():
        table.add_row(name, *(form.format(value) for value in cells.values()))
    console.print(table)


if __name__ == "__main__":
    script(main)
