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

from pipelines.special_measures import CLAIM, LENGTHS, NAMES, measure, what_it_takes
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
    Tokenizer,
    assemble,
    prepare,
    token_source,
)
from streamfit.text.duplicates import kept_apart, near_duplicates, sample_with_duplicates

COLUMNS = {
    "length": "k",
    "contexts": "contexts",
    "training_share_with_one_answer": "trained: 1 answer",
    "training_top1": "trained: right",
    "held_out_share_seen": "new: k seen",
    "held_out_share_with_one_answer": "new: 1 answer",
    "held_out_top1_with_one_answer": "of these right",
    "held_out_top1": "new: right",
}
"""Of the table by length of context."""
EXPERTS = ("network", "ngram", "suffix_ridge", "exact")
FRACTIONS = (0.8, 0.1, 0.1)
ALPHAS = np.geomspace(0.1, 1e4, 6)
_EXCLUDE = ("test", "tests", "idle_test", "site-packages", "__pycache__")


@dataclass(frozen=True)
class Parts:
    """Texts of one protocol, each a document; `copied` says which test texts have near-duplicates to train on.

    These are in `train` only where near-duplicates are allowed there: the same test texts are told apart either way.
    """

    train: list[str]
    validation: list[str]
    test: list[str]
    copied: list[bool]


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
        facts["protocols"][name] = measure(model, parts.train, parts.test, parts.copied, tokens)
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
    near = alike @ (part == "train").astype(np.int32) > 0
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


# The fit


def fit(parts: Parts, settings: LanguageSettings, folder: Path) -> LanguageModel:
    """All experts, and their mixture, as the package fits any corpus of documents."""
    folder.mkdir()
    documents = {}
    for name in ("train", "validation"):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in getattr(parts, name))
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        documents[name] = JsonLines(Files(str(folder / f"{name}.jsonl")), shard_bytes=min(2**17, len(lines) // 20 + 1))
    store = Store.create(folder / "store", prepare(documents["train"], settings, count_rows="auto"))
    accumulate(store, token_source(store.header, documents["train"]), group_rows=500_000)
    alpha = cross_validate(store.fold_moments(), ALPHAS).best
    experts = ExpertSettings(EXPERTS)
    return assemble(store, solve(store.moments(), alpha), documents["validation"], experts=experts, n_rows=20_000)


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
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True)
    lengths = range(1, LENGTHS + 1)
    apart = facts["protocols"]["apart"]
    left.plot(lengths, [1.0] * LENGTHS, label="training contexts with one answer", color="0.6")
    left.plot(lengths, [row["training_top1"] for row in apart["by_length"]], label="all training tokens", color="0.3")
    for index, (name, found) in enumerate(facts["protocols"].items()):
        left.plot(
            lengths,
            [row["held_out_top1"] for row in found["by_length"]],
            f"C{index}o-",
            ms=3,
            label=f"held out: {name}",
        )
        top1 = [found["scores"]["held out"][kind]["top1"] for kind in NAMES]
        middle.bar(np.arange(len(NAMES)) + 0.27 * (index - 1), top1, 0.25, color=f"C{index}")
        right.plot(np.arange(1, 101) / 100, found["selective"], f"C{index}")
    for axes in (left, middle, right):
        axes.axhline(CLAIM, color="k", linestyle=":", linewidth=1)
    left.set(title="exact interpolation", xlabel="tokens of context", ylabel="next-token accuracy", ylim=(0, 1.02))
    middle.set(title="held-out text")
    middle.set_xticks(range(len(NAMES)), [name.replace(" ", "\n") for name in NAMES.values()], fontsize="small")
    right.set(title="mixture, where it is surest", xlabel="share of held-out tokens answered")
    left.text(1, CLAIM - 0.045, f"{CLAIM:.0%}", fontsize="small")
    figure.legend(frameon=False, fontsize="small", loc="outside lower center", ncols=5)
    return figure


if __name__ == "__main__":
    script(main)
