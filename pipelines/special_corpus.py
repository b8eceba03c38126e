"""What a next-token accuracy on one specialised corpus means, measured on Python's own library and documentation.

    apt-get download python3.11-doc && dpkg -x python3.11-doc_*.deb doc     # Debian's package; dpkg -x needs no root
    python pipelines/special_corpus.py --also doc/usr/share/doc/python3.11/html/_sources [-o o.json] [--plot o.svg]

Exact interpolation, an RBF network, suffix ridge, modified Kneser-Ney and their mixture are fitted under three
protocols, and asked for the next token of text that they were fitted to and of text that they were not:

- apart: a hash of a file's path holds it out; near-duplicates of held-out files are left out of training.
- files: the same held-out files, and all others in training, near-duplicates among them.
- paragraphs: a hash of (path, number) holds out single paragraphs, whose neighbours are trained on.

Near-duplicates share more than half of the runs of eight words of the shorter file. Mixture weights and the network's
projection come from validation text of the same protocol.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.sparse import csr_array

from streamfit.cli import script
from streamfit.config_corpus import FilesSection
from streamfit.corpus import Files, JsonLines, split_of
from streamfit.corpus.base import SPLITS
from streamfit.engine import accumulate, say
from streamfit.errors import CorpusError
from streamfit.report import save_figure
from streamfit.solve import cross_validate, solve
from streamfit.store import Store
from streamfit.text import (
    ExpertSettings,
    LanguageModel,
    LanguageSettings,
    Score,
    Tokenizer,
    assemble,
    prepare,
    token_source,
)
from streamfit.text.contexts import Windows
from streamfit.text.duplicates import kept_apart, near_duplicates, sample_with_duplicates
from streamfit.text.evaluate import score
from streamfit.text.interpolate import Interpolation
from streamfit.text.suffix_tables import Branch, suffix_tree

CLAIM = 0.96
NAMES = {
    "exact": "exact interpolation",
    "network": "RBF network",
    "suffix_ridge": "suffix ridge",
    "ngram": "Kneser-Ney",
    "mixture": "their mixture",
}
COLUMNS = {
    "length": "k",
    "contexts": "contexts",
    "contexts_with_one_answer": "of one answer",
    "training_share_with_one_answer": "training, one answer",
    "training_top1": "training right",
    "held_out_share_seen": "held out, seen",
    "held_out_share_with_one_answer": "seen, one answer",
    "held_out_top1_with_one_answer": "of these right",
    "held_out_top1": "held out right",
}
"""Of the table by length of context."""
EXPERTS = ("network", "ngram", "suffix_ridge", "exact")
LENGTHS = 8
FRACTIONS = (0.8, 0.1, 0.1)
ALPHAS = np.geomspace(0.1, 1e4, 6)
_EXCLUDE = ("test", "tests", "idle_test", "site-packages", "__pycache__")


@dataclass(frozen=True)
class Parts:
    """Texts of one protocol, each a document; `copied` says which test texts have near-duplicates in training."""

    train: list[str]
    validation: list[str]
    test: list[str]
    copied: list[bool]


@dataclass(frozen=True)
class Rows:
    """Contexts that are asked, and the tokens that followed."""

    contexts: np.ndarray
    tokens: np.ndarray


def main(
    root: str = "python:stdlib",
    also: Annotated[list[str] | None, typer.Option(help="More folders of text, .txt and .rst; repeatable.")] = None,
    run: Annotated[Path, typer.Option(help="Folder of stores; begun anew.")] = Path("runs/special_corpus"),
    characters: Annotated[int, typer.Option(help="About how much is used, a random sample; 0 for all.")] = 8_000_000,
    vocab: int = 4096,
    centers: int = 256,
    dims: int = 128,
    tokens: Annotated[int, typer.Option(help="Contexts that are asked for each figure, a random sample.")] = 10_000,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
    plot: Path | None = None,
) -> dict[str, Any]:
    """Measure, print, and write JSON and a figure where asked to."""
    console = Console()
    texts, alike = sampled(dict(sorted(_read(root, also or []))), characters)
    protocols = {
        "apart": by_file(texts, alike, apart=True),
        "files": by_file(texts, alike, apart=False),
        "paragraphs": by_paragraph(texts),
    }
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    tokenizer = Tokenizer.train(protocols["apart"].train, vocab)
    (run / "tokenizer.json").write_text(tokenizer.serialized, encoding="utf-8")
    settings = LanguageSettings(
        tokenizer=str(run / "tokenizer.json"), n_context=LENGTHS, ngram_order=LENGTHS + 1, n_centers=centers,
        embedding_dims=dims, sample_bytes=4_000_000,
    )  # fmt: skip
    facts: dict[str, Any] = {
        "files": len(texts), "characters": sum(map(len, texts.values())), "vocab_size": tokenizer.vocab_size,
        "files_with_near_duplicates": len(np.unique(alike.nonzero()[0])),
        "protocols": {},
    }  # fmt: skip
    for name, parts in protocols.items():
        say(console, f"{name}: {len(parts.train):,} training texts, {len(parts.test):,} held out")
        model = fit(parts, settings, run / name)
        facts["protocols"][name] = measure(model, parts, tokens)
    facts["cpu_seconds"] = time.process_time()
    facts["claim"] = {name: what_it_takes(p) for name, p in facts["protocols"].items()}
    _show(facts, console)
    if output is not None:
        output.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        say(console, f"figures: {output}")
    if plot is not None:
        save_figure(_figure(facts), plot)
        say(console, f"figure: {plot}")
    return facts


# The corpus and its splits


def _read(root: str, also: list[str]) -> Iterator[tuple[str, str]]:
    """Names and texts of files that are UTF-8."""
    folders = [FilesSection(root=root, include=("*.py",), exclude=_EXCLUDE).files(None, FRACTIONS)]
    folders += [Files(folder, ("*.txt", "*.rst")) for folder in also]
    for number, files in enumerate(folders):
        for name, path in files.find():
            with suppress(UnicodeDecodeError):
                if text := path.read_text(encoding="utf-8").strip():
                    yield f"{number}/{name}", text


def sampled(texts: dict[str, str], characters: int) -> tuple[dict[str, str], csr_array]:
    """A random sample of files, or all; and which of them are near-duplicates."""
    names, alike, sizes = list(texts), near_duplicates(list(texts.values())), list(map(len, texts.values()))
    kept = sample_with_duplicates(sizes, alike, characters or sum(sizes) + 1)
    return {names[i]: texts[names[i]] for i in kept}, alike[kept][:, kept]


def by_file(texts: dict[str, str], alike: csr_array, *, apart: bool) -> Parts:
    """Whole files by a hash of their names; `apart` leaves near-duplicates of held-out files out of training."""
    part = np.array([split_of(name, FRACTIONS) for name in texts])
    kept = kept_apart(part, alike, SPLITS) if apart else np.ones(len(part), np.bool_)
    near = alike @ (kept & (part == "train")).astype(np.int32) > 0
    every, rows = list(texts.values()), {name: np.flatnonzero(kept & (part == name)) for name in SPLITS}
    train, validation, test = ([every[i] for i in rows[name]] for name in SPLITS)
    if not (train and validation and test):
        msg = f"a split with {len(train)} files to train on, {len(validation)} to validate and {len(test)} to test"
        raise CorpusError(msg, "some of each", "read more files")
    return Parts(train, validation, test, near[rows["test"]].tolist())


def by_paragraph(texts: dict[str, str]) -> Parts:
    """Paragraphs, which end with a blank line, by a hash of file and number."""
    found: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for name, text in texts.items():
        for number, paragraph in enumerate(re.split(r"(?<=\n)\s*\n", text)):
            if paragraph.strip():
                found[split_of(f"{name}#{number}", FRACTIONS)].append(paragraph)
    return Parts(**found, copied=[False] * len(found["test"]))


# Fit and measure


def fit(parts: Parts, settings: LanguageSettings, folder: Path) -> LanguageModel:
    """All experts, and their mixture, as the package fits any corpus of documents."""
    folder.mkdir()
    documents = {}
    for name in ("train", "validation"):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in getattr(parts, name))
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        documents[name] = JsonLines(Files(str(folder / f"{name}.jsonl")), shard_bytes=len(lines) // 20 + 1)
    store = Store.create(folder / "store", prepare(documents["train"], settings, count_rows="auto"))
    accumulate(store, token_source(store.header, documents["train"]), group_rows=500_000)
    alpha = cross_validate(store.fold_moments(), ALPHAS).best
    experts = ExpertSettings(EXPERTS)
    return assemble(store, solve(store.moments(), alpha), documents["validation"], experts=experts, n_rows=20_000)


def measure(model: LanguageModel, parts: Parts, n_tokens: int) -> dict[str, Any]:
    """Every figure of one protocol."""
    tree = suffix_tree(model.counts)
    train = Windows(model.tokenizer.encode(parts.train), model.n_context)
    encoded = model.tokenizer.encode(parts.test)
    test = Windows(encoded, model.n_context)
    copied = np.repeat(parts.copied, [len(ids) + 1 for ids in encoded])
    everywhere, seen = _some(train, np.arange(len(train)), n_tokens), _some(test, np.arange(len(test)), n_tokens)
    alone = Interpolation.fit(model.counts, tree=tree).followers(everywhere.contexts) == 1
    asked = {
        "training": everywhere,
        "training, one answer": Rows(everywhere.contexts[alone], everywhere.tokens[alone]),
        "held out": seen,
    }
    if copied.any():
        asked["held out, near-duplicates"] = _some(test, np.flatnonzero(copied), n_tokens)
        asked["held out, others"] = _some(test, np.flatnonzero(~copied), n_tokens)
    scored = {name: _scores(model, rows) for name, rows in asked.items() if len(rows.tokens)}
    _, confidence, right = scored["held out"]
    answered = np.cumsum(right[np.argsort(-confidence, kind="stable")]) / np.arange(1, len(right) + 1)
    return {
        "training_tokens": len(train),
        "test_tokens": len(test),
        "test_texts": len(parts.test),
        "test_texts_with_near_duplicates": sum(parts.copied),
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


# Showing


def _show(facts: dict[str, Any], console: Console) -> None:
    for name, found in facts["protocols"].items():
        table = Table(title=f"{name}: top-1 accuracy, and perplexity, of the next token")
        table.add_column("")
        for kind in NAMES.values():
            table.add_column(kind, justify="right")
        for asked, scores in found["scores"].items():
            cells = (f"{scores[k]['top1']:.1%}  {scores[k]['perplexity']:,.4g}" for k in NAMES)
            table.add_row(f"{asked} ({scores['exact']['tokens']:,})", *cells)
        console.print(table)
        table = Table(title=f"{name}: exact interpolation by tokens of context")
        for heading in COLUMNS.values():
            table.add_column(heading, justify="right")
        for row in found["by_length"]:
            table.add_row(*(f"{row[c]:,}" if isinstance(row[c], int) else f"{row[c]:.1%}" for c in COLUMNS))
        console.print(table)
    for name, found in facts["protocols"].items():
        claim, last = facts["claim"][name], found["by_length"][-1]
        say(
            console,
            f"{name}: {claim['new']:.1%} of held-out tokens are right at best, {claim['copy']:.1%} of training tokens;"
            f" for {CLAIM:.0%}, {_share(claim['share_of_copies'])} copies of training text."
            f" The mixture is right {CLAIM:.0%} of the time on the {found['share_at_claim']:.1%} of held-out tokens"
            f" that it is surest of. {last['held_out_share_with_one_answer']:.1%} of held-out tokens follow {LENGTHS}"
            f" tokens that had one answer in training, which is right {last['held_out_top1_with_one_answer']:.1%} of"
            " the time.",
        )


def _share(copies: float) -> str:
    return (
        f"{copies:.0%} of the tested tokens must be" if copies <= 1 else "it is not enough that all tested tokens are"
    )


def _figure(facts: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True)
    lengths = range(1, LENGTHS + 1)
    apart = facts["protocols"]["apart"]
    left.plot(lengths, [1.0] * LENGTHS, label="training contexts with one answer", color="0.6")
    left.plot(lengths, [row["training_top1"] for row in apart["by_length"]], label="all training tokens", color="0.3")
    for index, (name, found) in enumerate(facts["protocols"].items()):
        left.plot(lengths, [row["held_out_top1"] for row in found["by_length"]], f"C{index}o-", ms=3, label=name)
        top1 = [found["scores"]["held out"][kind]["top1"] for kind in NAMES]
        middle.bar(np.arange(len(NAMES)) + 0.27 * (index - 1), top1, 0.25, color=f"C{index}")
        right.plot(np.arange(1, 101) / 100, found["selective"], f"C{index}", label=name)
    for axes in (left, middle, right):
        axes.axhline(CLAIM, color="k", linestyle=":", linewidth=1)
    left.set(title="exact interpolation", xlabel="tokens of context", ylabel="next-token accuracy", ylim=(0, 1.02))
    middle.set(title="held-out text")
    middle.set_xticks(range(len(NAMES)), [name.replace(" ", "\n") for name in NAMES.values()], fontsize="small")
    right.set(title="mixture, where it is surest", xlabel="share of held-out tokens answered")
    left.legend(frameon=False, fontsize="small", loc="center right")
    return figure


if __name__ == "__main__":
    script(main)
