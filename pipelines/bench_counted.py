"""Equal rows multiplied once: token contexts of Python's standard library, counted and row by row.

    python pipelines/bench_counted.py [--root DIR] [--shard-mb 1] [--rows 400000] [--contexts 1 2 3 6]

Contexts of each length get the features of a language model (embedding, RBF centers, linear), with next tokens as
classes. Files are put together into shards of about `--shard-mb`; equal rows are looked for within a shard, so short
shards repeat less. Each length has the share of distinct rows, what the choice from a sample expects and decides,
seconds from rows to sums both ways (features and finding equal rows included), and how far the two Gram matrices in
float32 are from one with float64 products. Features that are small integers must have equal sums with `==`.
"""

from __future__ import annotations

import argparse
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from threadpoolctl import threadpool_limits

from streamfit.arrays import Precision
from streamfit.cli import exits
from streamfit.corpus import Files, TextFiles
from streamfit.counted import count_rows
from streamfit.features import FeatureMap, Lookup
from streamfit.frame import BLOCK_ROWS, Frame
from streamfit.moments import Moments, MomentsAccumulator
from streamfit.repeats import choose_counting
from streamfit.targets import OneHot, Targets
from streamfit.text.contexts import context_rows
from streamfit.text.embeddings import context_embeddings, context_features, sample_rows
from streamfit.text.tokenizer import Tokenizer

EXCLUDE = ("test", "tests", "idle_test", "site-packages", "__pycache__")
Shards = list[tuple[np.ndarray, np.ndarray]]


def texts_of(root: str) -> list[str]:
    """Files of the standard library, or of another folder."""
    documents = TextFiles(Files(root, include=("*.py",), exclude=EXCLUDE), encoding="latin-1")
    return [text for shard in documents.shards() for text in documents.documents(shard)]


def shards_of(encoded: list[np.ndarray], texts: list[str], n_context: int, n_bytes: int, n_rows: int) -> Shards:
    """Contexts and next tokens of each shard: files one after another, up to a number of bytes."""
    shards: Shards = []
    held: list[np.ndarray] = []
    size, left = 0, n_rows
    for ids, text in zip(encoded, texts, strict=True):
        held.append(ids)
        size += len(text)
        if size >= n_bytes:
            x, y = context_rows(held, n_context)
            shards.append((x[:left], y[:left]))
            left -= len(x)
            held, size = [], 0
            if left <= 0:
                break
    if held and left > 0:
        x, y = context_rows(held, n_context)
        shards.append((x[:left], y[:left]))
    return shards


def row_by_row(shards: Shards, features: FeatureMap, frame: Frame, targets: Targets, precision: Precision) -> Moments:
    """Sums of every row."""
    sums = MomentsAccumulator(frame, targets, precision)
    for x, y in shards:
        for lo in range(0, len(x), BLOCK_ROWS):
            sums.add(features(x[lo : lo + BLOCK_ROWS]), y[lo : lo + BLOCK_ROWS])
    return sums.moments()


def once(shards: Shards, features: FeatureMap, frame: Frame, targets: Targets, precision: Precision) -> Moments:
    """The same sums, each distinct row of a shard multiplied once."""
    sums = MomentsAccumulator(frame, targets, precision)
    for x, y in shards:
        for block in count_rows(x, y, None, frame, targets):
            sums.add_counted(features(block.x), block)
    return sums.moments()


def difference(a: Moments, b: Moments) -> float:
    """Largest difference of two Gram matrices, relative to the geometric mean of the two diagonal entries."""
    one, other = a.centered().gram, b.centered().gram
    scale = np.sqrt(np.outer(np.diag(other), np.diag(other)))
    return float(np.max(np.abs(one - other) / np.where(scale > 0, scale, 1.0)))


def integer_features(vocab_size: int, n_context: int) -> Lookup:
    """Eight small integers for each token of a context."""
    rng = np.random.default_rng(1)
    return Lookup(tuple(rng.integers(-2, 3, (vocab_size, 8)).astype(np.float32) for _ in range(n_context)))


def timed(take: Callable[..., Moments], *arguments: object) -> tuple[Moments, float]:
    """Sums, and the best of two times."""
    best = float("inf")
    for _ in range(2):
        started = time.perf_counter()
        sums = take(*arguments)
        best = min(best, time.perf_counter() - started)
    return sums, best


def report(root: str, contexts: list[int], shard_bytes: int, n_rows: int, vocab_size: int) -> Iterator[str]:
    """Time both ways for each length of context, one line at a time."""
    texts = texts_of(root)
    tokenizer = Tokenizer.train(texts, vocab_size)
    encoded = tokenizer.encode(texts)
    vocab = tokenizer.vocab_size
    targets = OneHot(vocab)
    yield f"{sum(map(len, texts)) / 1e6:.1f} MB of text, {vocab:,} tokens; shards of {shard_bytes / 2**20:g} MiB"
    for n_context in contexts:
        shards = shards_of(encoded, texts, n_context, shard_bytes, n_rows)
        x, y = (np.concatenate(part) for part in zip(*shards, strict=True))
        embedding = context_embeddings(x, y, vocab, 256, 0)
        some = x[sample_rows(len(x), 10_000, 0)]
        n_centers = min(512, len(np.unique(some, axis=0)) // 2)
        features = context_features(embedding, some, n_centers, linear=True, gamma=None, seed=0)
        frame = Frame.from_sample(features(some), y[: len(some)], targets, features.bounds)
        choice = choose_counting("auto", [x for x, _ in shards], features.n_features, vocab, one_hot=True)
        every, slow = timed(row_by_row, shards, features, frame, targets, "float32")
        counted, fast = timed(once, shards, features, frame, targets, "float32")
        exact = once(shards, features, frame, targets, "float64")
        small = integer_features(vocab, n_context)
        plain = Frame.identity(small.n_features, vocab)
        equal = row_by_row(shards, small, plain, targets, "float32") == once(shards, small, plain, targets, "float32")
        yield (
            f"context {n_context}: {len(x):,} rows in {len(shards)} shards, {choice.repeats.distinct:.1%} distinct,"
            f" {features.n_features} features\n"
            f"  decision: {'count' if choice.counted else 'row by row'} (products expected {choice.speedup:.2f} x)\n"
            f"  row by row {slow:.2f} s ({len(x) / slow:,.0f} rows/s),"
            f" counted {fast:.2f} s ({len(x) / fast:,.0f} rows/s): {slow / fast:.2f} x\n"
            f"  error of the Gram against float64 products: row by row {difference(every, exact):.1e}, counted"
            f" {difference(counted, exact):.1e} of the diagonal;"
            f" with integer features all sums are {'equal (==)' if equal else 'NOT EQUAL'}"
        )


def main(root: str, contexts: list[int], shard_bytes: int, n_rows: int, vocab_size: int, console: Console) -> None:
    with threadpool_limits(1):
        for line in report(root, contexts, shard_bytes, n_rows, vocab_size):
            console.print(line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=sysconfig.get_path("stdlib"))
    parser.add_argument("--contexts", type=int, nargs="+", default=[1, 2, 3, 6])
    parser.add_argument("--shard-mb", type=float, default=1.0)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--vocab", type=int, default=4096)
    given = parser.parse_args()
    with exits():
        if not Path(given.root).is_dir():
            parser.error(f"no folder at {given.root}")
        wide = Console(width=140, highlight=False)
        main(given.root, given.contexts, int(given.shard_mb * 2**20), given.rows, given.vocab, wide)
