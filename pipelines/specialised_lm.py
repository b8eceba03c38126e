"""Next-token accuracy on a small specialised corpus: what interpolation remembers, and what it can tell of new files.

    python pipelines/specialised_lm.py [--root DIR] [--vocab 4096] [--order 8] [--rows 20000] [--json FILE]

The corpus is the source of Python's own standard library, or the .py files of another folder, split by document. Three
closed forms over the same suffixes: exact interpolation (a center for each distinct context, penalty to 0), suffix
ridge, and modified Kneser-Ney. Training accuracy on the contexts that have one answer in the training text is what
interpolation has by construction; beside it stands the accuracy on all training tokens. Accuracy on the same held-out
files is measured twice: with all other files in training, and without those that are near-duplicates of a held-out
one; and once more on those held-out files alone that have near-duplicates. Two files are near-duplicates where more
than half of their runs of eight tokens are the same, by 64 minimal hashes (Broder 1997).
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

from streamfit.corpus import Files, TextFiles
from streamfit.text import ExpertSettings, Tokenizer
from streamfit.text.contexts import Windows, context_rows
from streamfit.text.ngram import NgramCounts

EXCLUDE = ("test", "tests", "idle_test", "site-packages", "__pycache__")
KINDS = ("exact", "suffix_ridge", "ngram")
RUN, HASHES, ALIKE = 8, 64, 0.5


def texts_of(root: str) -> list[str]:
    """Files of the corpus."""
    documents = TextFiles(Files(root, include=("*.py",), exclude=EXCLUDE), encoding="latin-1")
    return [text for shard in documents.shards() for text in documents.documents(shard)]


def near_duplicates(encoded: list[np.ndarray]) -> np.ndarray:
    """Group of each file: files that are alike, or alike to one in between, are of one group."""
    rng = np.random.default_rng(0)
    factors = rng.integers(1, 2**63, size=RUN, dtype=np.uint64) | np.uint64(1)
    mixers = rng.integers(1, 2**63, size=(HASHES, 1), dtype=np.uint64) | np.uint64(1)
    sketches = np.zeros((len(encoded), HASHES), np.uint64)
    for i, ids in enumerate(encoded):
        padded = np.pad(ids, (0, max(0, RUN - len(ids))))
        runs = np.lib.stride_tricks.sliding_window_view(padded, RUN).astype(np.uint64)
        mixed = (runs * factors).sum(axis=1, dtype=np.uint64)
        mixed ^= mixed >> np.uint64(29)
        sketches[i] = (mixed * mixers).min(axis=1)
    group = np.arange(len(encoded))
    for i in range(len(encoded)):
        alike = np.flatnonzero((sketches[i] == sketches[: i + 1]).mean(axis=1) > ALIKE)
        group[np.isin(group, group[alike])] = group[alike].min()
    return group


def held_out(n_files: int, share: float = 0.1) -> np.ndarray:
    """Files that are held out, drawn at random: a boolean array."""
    chosen = np.random.default_rng(1).permutation(n_files)[: max(1, int(share * n_files))]
    return np.isin(np.arange(n_files), chosen)


def accuracies(
    train: list[np.ndarray], test: dict[str, list[np.ndarray]], order: int, vocab_size: int, n_rows: int
) -> dict[str, Any]:
    """Accuracy of each closed form on its training text and on several sets of files."""
    contexts, tokens = context_rows(train, order - 1)
    counts = NgramCounts.from_rows(contexts, tokens, vocab_size)
    rng = np.random.default_rng(0)
    # Rows of the table are sorted: a context with one answer stands alone between two others.
    rows = counts.grams[:, :-1]
    new = np.append(True, (rows[1:] != rows[:-1]).any(axis=1))
    alone = np.flatnonzero(new & np.append(new[1:], True))
    some = rng.choice(alone, min(n_rows, len(alone)), replace=False)
    asked = {"training contexts with one answer": (rows[some], counts.grams[some, -1])}
    every = rng.choice(len(tokens), min(n_rows, len(tokens)), replace=False)
    asked["all training tokens"] = contexts[every], tokens[every]
    for name, files in test.items():
        windows = Windows(files, order - 1)
        spread = np.linspace(0, len(windows) - 1, min(n_rows, len(windows))).astype(int)
        asked[name] = windows[spread], windows.tokens[spread]
    found: dict[str, Any] = {"training tokens": len(tokens)}
    found["share of training tokens after contexts with one answer"] = float(
        counts.counts[alone].sum() / counts.counts.sum()
    )
    for kind in KINDS:
        expert = ExpertSettings((kind,)).build(counts, {})[kind]
        for name, (x, y) in asked.items():
            parts = np.array_split(np.arange(len(y)), -(-len(y) // 512))
            right = [expert.distribution(x[part]).argmax(axis=1) == y[part] for part in parts]
            found[f"{kind}, {name}"] = float(np.mean(np.concatenate(right)))
    return found


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both splits."""
    texts = texts_of(arguments.root)
    tokenizer = Tokenizer.train(texts, arguments.vocab)
    encoded = tokenizer.encode(texts)
    group = near_duplicates(encoded)
    held = held_out(len(texts))
    copied = ~held & np.isin(group, group[held])
    alike = held & np.isin(group, group[~held])
    report: dict[str, Any] = {"files": len(texts), "held-out files": int(held.sum())}
    report |= {
        "held-out files with near-duplicates in training": int(alike.sum()),
        "training files that are their near-duplicates": int(copied.sum()),
    }

    def those(mask: np.ndarray) -> list[np.ndarray]:
        return [ids for ids, kept in zip(encoded, mask, strict=True) if kept]

    test = {"held out": those(held)}
    if alike.any():
        test["held-out files with near-duplicates"] = those(alike)
    for name, train in (("near-duplicates in training", ~held), ("without near-duplicates", ~held & ~copied)):
        report[name] = accuracies(those(train), test, arguments.order, tokenizer.vocab_size, arguments.rows)
    print(json.dumps(report, indent=1))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=sysconfig.get_path("stdlib"))
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--order", type=int, default=8)
    parser.add_argument("--rows", type=int, default=20_000, help="contexts that are asked for each figure")
    parser.add_argument("--json", default="")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(parsed())
