"""N-grams of a corpus of any size at fixed memory: a learning curve, tokens a second, and peak memory.

    python pipelines/large_corpus.py FOLDER [--sizes 5,20,100] [--order 5] [--memory 0.5] [--run runs/large_corpus]
                                     [--lmplz PATH]

FOLDER is searched for text, C source if nothing else is said. The tokenizer is trained on a sample; files are shuffled,
some are held out, and the first 5, 20, 100 MB of the others are counted, each size anew in a process that may allocate
no more than `--memory` GB beside what libraries reserved when they were loaded (RLIMIT_DATA, which counts private
writable mappings, touched or not). Half of that is the budget of the counter: sorted runs go to disk and are merged by
blocks. Held-out files are then scored by modified Kneser-Ney in passes over the counts, in the same process and within
the same limit: no table is ever in memory whole. Peak memory is all that was resident, libraries included. Seconds are
CPU seconds of one process.

With `--lmplz`, the program of KenLM that estimates models, this is given the same tokens and as much memory to sort in,
and its model scores some of the held-out tokens as well. Its seconds are of reading text and writing a model.

Any folder of code will do: `.venv/lib/python3.11/site-packages --include '*.py'`. Linux source: `apt-get download
linux-source-6.1`, `dpkg -x`, and of the archive inside the members `*.c` and `*.h`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as Printed

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python pipelines/...`

from pipelines.toolkit import Toolkit, beside, refuse_none
from streamfit.cli import exits
from streamfit.store.runs import CountRuns
from streamfit.text.contexts import Windows
from streamfit.text.streamed import streamed_probability
from streamfit.text.tokenizer import Tokenizer, make_tokenizer

_BATCH_BYTES = 4 * 10**6
_CHUNK_TOKENS = 2**20
_COMPARED = 20_000
"""Held-out tokens that another toolkit's model scores."""


@dataclass(frozen=True)
class Point:
    """What one size of corpus gave."""

    megabytes: float
    files: int
    tokens: int
    ngrams: int
    tokenize_seconds: float
    count_seconds: float
    score_seconds: float
    count_tokens_per_second: float
    tokens_per_second: float
    peak_bytes: int
    library_bytes: int
    allowed_bytes: int
    spilled_rows: int
    heldout_tokens: int
    perplexity: float
    bits_per_byte: float
    toolkit: Toolkit | None = None


@dataclass(frozen=True)
class Encoded:
    """Documents as tokens in a file, each ended by the document token; and what each took.

    Parameters
    ----------
    path : Path
    n_bytes, n_files, n_tokens : int
        Up to where it is read.
    seconds : float
        CPU seconds of tokenising that much.
    """

    path: Path
    n_bytes: int
    n_files: int
    n_tokens: int
    seconds: float


def text_of(path: Path) -> str:
    """Text of a file; bytes that are no UTF-8 are replaced."""
    return path.read_bytes().decode("utf-8", "replace")


def encode_to(target: Path, files: Sequence[Path], tokenizer: Tokenizer, sizes: Sequence[int]) -> list[Encoded]:
    """Tokenise files one after the other; what stands there at each size, and at the end if there is less."""
    found: list[Encoded] = []
    n_bytes = n_files = n_tokens = 0
    seconds = 0.0
    held: list[str] = []
    held_bytes = 0
    with target.open("wb") as out:
        for i, path in enumerate(files):
            held.append(text_of(path))
            held_bytes += len(held[-1].encode())
            left = sizes[len(found)] - n_bytes
            if held_bytes < min(_BATCH_BYTES, left) and i + 1 < len(files):
                continue
            started = time.process_time()
            encoded = tokenizer.encode(held)
            seconds += time.process_time() - started
            stream = np.concatenate([np.append(ids, np.int32(0)) for ids in encoded]).astype(np.int32)
            stream.tofile(out)
            n_bytes, n_files, n_tokens = n_bytes + held_bytes, n_files + len(held), n_tokens + len(stream)
            held, held_bytes = [], 0
            if n_bytes >= sizes[len(found)] or i + 1 == len(files):
                found.append(Encoded(target, n_bytes, n_files, n_tokens, seconds))
                if len(found) == len(sizes):
                    break
    return found


def documents(path: Path, n_tokens: int) -> Iterator[list[np.ndarray]]:
    """Documents of a file of tokens, some at a time."""
    rest = np.empty(0, np.int32)
    with path.open("rb") as file:
        left = n_tokens
        while left:
            read = np.fromfile(file, np.int32, min(left, _CHUNK_TOKENS))
            left -= len(read)
            stream = np.concatenate([rest, read])
            ends = np.flatnonzero(stream == 0)
            rest = stream[ends[-1] + 1 :] if len(ends) else stream
            starts = [0, *(ends[:-1] + 1).tolist()]
            yield [stream[a:b] for a, b in zip(starts, ends.tolist(), strict=False)]


def count_and_score(
    train: Encoded, held_out: Encoded, order: int, vocab_size: int, memory_bytes: int, folder: Path
) -> dict[str, Any]:
    """Count n-grams of so many tokens and score held-out ones, within a limit that the system keeps."""
    limit = _status("VmData") + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    budget, libraries = memory_bytes // 2, _status("VmHWM")
    started = time.process_time()
    runs = CountRuns(order, budget, folder)
    for some in documents(train.path, train.n_tokens):
        windows = Windows(some, order - 1)
        for rows, contexts in windows.batches(_CHUNK_TOKENS // 4):
            runs.add(np.column_stack([contexts, windows.tokens[rows].astype(np.int32)]))
    table, spilled = runs.table(), runs.spilled_rows
    del runs
    counted = time.process_time()
    asked = Windows([ids for some in documents(held_out.path, held_out.n_tokens) for ids in some], order - 1)
    p = streamed_probability(table, asked[:], asked.tokens, vocab_size, budget=budget, folder=folder)
    nats = -float(np.log(p).mean())
    few = np.random.default_rng(0).permutation(len(asked))[:_COMPARED]
    return {
        "asked": (asked[few], asked.tokens[few], p[few]),
        "ngrams": table.n_rows,
        "count_seconds": counted - started,
        "score_seconds": time.process_time() - counted,
        "peak_bytes": _status("VmHWM"),
        "library_bytes": libraries,
        "allowed_bytes": memory_bytes,
        "spilled_rows": spilled,
        "heldout_tokens": len(asked),
        "perplexity": float(np.exp(nats)),
        "bits_per_byte": nats * len(asked) / np.log(2.0) / held_out.n_bytes,
    }


def _status(name: str) -> int:
    """Bytes of an entry of this process's status, such as VmHWM: its largest resident size."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.M)
    return 1024 * int(found[1]) if found else 0


def main(
    files: Sequence[Path],
    sizes: Sequence[int],
    *,
    order: int = 5,
    vocab_size: int = 8192,
    tokenizer: str = "bpe",
    memory_bytes: int = 5 * 10**8,
    held_out_bytes: int = 2 * 10**6,
    sample_bytes: int = 10**7,
    folder: Path,
    seed: int = 0,
    lmplz: Path | None = None,
    report: Callable[[Sequence[Point]], None] = lambda _: None,
) -> list[Point]:
    """Split, tokenise, count and score; a point for each size that there is text for. `report` is told after each."""
    if lmplz is not None:
        refuse_none(lmplz)
    shuffled = [files[i] for i in np.random.default_rng(seed).permutation(len(files))]
    n_test = n_sample = 0
    while n_test < len(shuffled) // 2 and sum(p.stat().st_size for p in shuffled[: n_test + 1]) <= held_out_bytes:
        n_test += 1
    test, train = shuffled[:n_test], shuffled[n_test:]
    total = 0
    while n_sample < len(train) and total < sample_bytes:
        total += train[n_sample].stat().st_size
        n_sample += 1
    made = make_tokenizer(tokenizer, [text_of(path) for path in train[:n_sample]], vocab_size)
    (held_out,) = encode_to(folder / "heldout.tokens", test, made, [2**62])
    points = []
    for encoded in encode_to(folder / "train.tokens", train, made, sorted(sizes)):
        with ProcessPoolExecutor(1, get_context("spawn")) as child:
            arguments = encoded, held_out, order, made.vocab_size, memory_bytes, folder
            found = child.submit(count_and_score, *arguments).result()
        asked, toolkit = found.pop("asked"), None
        if lmplz is not None:
            lines = (ids for some in documents(encoded.path, encoded.n_tokens) for ids in some)
            toolkit = beside(lmplz, lines, order, made.vocab_size, memory_bytes, folder, asked)
        points.append(
            Point(
                encoded.n_bytes / 1e6,
                encoded.n_files,
                encoded.n_tokens,
                tokenize_seconds=encoded.seconds,
                count_tokens_per_second=encoded.n_tokens / found["count_seconds"],
                tokens_per_second=encoded.n_tokens / (encoded.seconds + found["count_seconds"]),
                toolkit=toolkit,
                **found,
            )
        )
        report(points)
    return points


def plot(points: Sequence[Point], target: Path) -> None:
    """Bits per byte, and peak memory, against the size of the corpus."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = [point.megabytes for point in points]
    left.semilogx(x, [point.bits_per_byte for point in points], "o-")
    left.set(xlabel="MB of text", ylabel="bits per byte, held out")
    right.loglog(x, [point.peak_bytes / 1e6 for point in points], "o-", label="peak memory")
    right.loglog(x, [28 * point.ngrams / 1e6 for point in points], "s--", label="the counts themselves")
    allowed = points[0].library_bytes + points[0].allowed_bytes
    right.axhline(allowed / 1e6, color="0.5", label="libraries and what is allowed beside them")
    right.set(xlabel="MB of text", ylabel="MB")
    right.legend()
    figure.savefig(target)


def show(points: Sequence[Point]) -> Printed:
    """The points as a table."""
    table = Printed(title="n-grams at fixed memory")
    for name in ("MB", "tokens", "n-grams", "tokenise s", "count s", "tokens/s", "peak MB", "perplexity", "bits/byte"):
        table.add_column(name, justify="right")
    for p in points:
        seconds = f"{p.tokenize_seconds:.0f}", f"{p.count_seconds:.0f}", f"{p.tokens_per_second:,.0f}"
        sizes = f"{p.megabytes:.0f}", f"{p.tokens:,}", f"{p.ngrams:,}"
        table.add_row(*sizes, *seconds, f"{p.peak_bytes / 1e6:.0f}", f"{p.perplexity:.2f}", f"{p.bits_per_byte:.3f}")
    return table


def show_toolkit(points: Sequence[Point]) -> Printed:
    """What KenLM took for the same, and how its probabilities differ."""
    table = Printed(title="KenLM's lmplz on the same tokens")
    for name in ("MB", "s", "tokens/s", "peak MB", "held out", "perplexity", "ours", "largest difference"):
        table.add_column(name, justify="right")
    for p in points:
        if (peer := p.toolkit) is not None:
            table.add_row(
                f"{p.megabytes:.0f}", f"{peer.seconds:.1f}", f"{p.tokens / peer.seconds:,.0f}",
                f"{peer.peak_bytes / 1e6:.0f}", f"{peer.tokens:,}", f"{peer.perplexity:.4f}",
                f"{peer.own_perplexity:.4f}", f"{peer.difference:.1e}",
            )  # fmt: skip
    return table


def write(points: Sequence[Point], run: Path, order: int) -> None:
    """Print the points so far, and write them with the figure."""
    Console(width=110).print(show(points))
    if points[-1].toolkit is not None:
        Console(width=110).print(show_toolkit(points))
    machine = {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0)), "order": order}
    found = {**machine, "points": [asdict(point) for point in points]}
    (run / "large_corpus.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    plot(points, run / "large_corpus.svg")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--include", default="*.[ch]", help="pattern of file names")
    parser.add_argument("--sizes", default="5,20,100", help="MB of text, joined by commas")
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--tokenizer", default="bpe", help="bpe, unigram, words, or a tokenizer's .json")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--memory", type=float, default=0.5, help="GB that counting and scoring may allocate")
    parser.add_argument("--held-out", type=float, default=2.0, help="MB of files that are held out")
    parser.add_argument("--lmplz", type=Path, help="KenLM's program, to be run beside")
    parser.add_argument("--run", type=Path, default=Path("runs/large_corpus"))
    parser.add_argument("--folder", type=Path, help="where tokens and runs are put; not a file system in memory")
    options = parser.parse_args()
    with exits():
        options.run.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
            main(
                sorted(path for path in options.corpus.rglob(options.include) if path.is_file()),
                [int(1e6 * float(size)) for size in options.sizes.split(",")],
                order=options.order,
                vocab_size=options.vocab,
                tokenizer=options.tokenizer,
                memory_bytes=int(options.memory * 1e9),
                held_out_bytes=int(options.held_out * 1e6),
                folder=Path(scratch),
                lmplz=options.lmplz,
                report=lambda points: write(points, options.run, options.order),
            )
