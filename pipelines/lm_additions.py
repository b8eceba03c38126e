"""A language model that takes its text a tenth at a time, beside the same model of one pass.

    python pipelines/lm_additions.py --data DIR [--run runs/lm_additions] [--parts 10] [--rows 30000]

DIR has train.txt and valid.txt of WikiText-2 (or .txt.gz), as `compare_lm.py` takes them, which runs this as well. The
training text is cut into tenths, which are documents. One store counts all of them at once; another, with the same
frozen features, is given one after the other in a random order, and is solved after each. At the end moments, weights,
n-gram counts and the files of both models are compared, bit for bit. Seconds are CPU seconds of one process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import cast

import numpy as np
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python pipelines/...`

from pipelines.wikitext import ALPHA, EXPERTS, SETTINGS, lay_out
from streamfit.cli import exits
from streamfit.corpus import Files, TextFiles
from streamfit.engine import accumulate
from streamfit.exact import GridSum
from streamfit.merging import as_blocks
from streamfit.moments import Moments
from streamfit.solve import solve
from streamfit.store import Store
from streamfit.text import ExpertSettings, LanguageSettings, assemble, prepare, token_source


@dataclass(frozen=True)
class Additions:
    """What it took, and whether both ways end at the same bits.

    Parameters
    ----------
    parts, tokens : int
    once_seconds : float
        Counting all at once, and the solve.
    seconds : list of float
        Of each addition, its solve included.
    moments, weights, counts, model : bool
        Whether they are equal; of the model, its files.
    """

    parts: int
    tokens: int
    once_seconds: float
    seconds: list[float]
    moments: bool
    weights: bool
    counts: bool
    model: bool


def cut(text: str, folder: Path, n: int) -> list[Path]:
    """Consecutive lines of a text as so many files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines = text.splitlines(keepends=True)
    edges = np.linspace(0, len(lines), n + 1).astype(int)
    paths = [folder / f"{i:02d}.txt" for i in range(n)]
    for path, lo, hi in zip(paths, edges, edges[1:], strict=False):
        path.write_text("".join(lines[lo:hi]), encoding="utf-8")
    return paths


def additions(
    text: str, validation: Path, run: Path, settings: LanguageSettings, experts: ExpertSettings, alpha: float,
    *, n: int = 10, n_rows: int = 30_000, seed: int = 0,
) -> Additions:  # fmt: skip
    """Fit both ways and compare.

    Parameters
    ----------
    text : str
    validation : Path
        Folder of the text that mixture weights are chosen on.
    run : Path
        For the parts and both stores.
    settings, experts, alpha
        Of the model.
    n : int
        Parts.
    n_rows : int
        Validation tokens that choices are made on.
    seed : int
        Of their order.
    """
    paths = cut(text, run / "parts", n)
    every = TextFiles(Files(str(run / "parts")))
    header = prepare(every, settings)
    stores = {}
    for name in ("once", "slowly"):
        shutil.rmtree(run / name, ignore_errors=True)
        stores[name] = Store.create(run / name / "store", header)
    started, seconds = time.process_time(), []
    accumulate(stores["once"], token_source(header, every))
    one = solve(stores["once"].moments(), alpha)
    once_seconds, many = time.process_time() - started, None
    for i in np.random.default_rng(seed).permutation(n):
        started = time.process_time()
        accumulate(stores["slowly"], token_source(header, TextFiles(Files(str(paths[i])))))
        many = solve(stores["slowly"].moments(), alpha)
        seconds.append(time.process_time() - started)
    assert many is not None
    found, digests = {"once": one, "slowly": many}, []
    for name, store in stores.items():
        model = assemble(store, found[name], TextFiles(Files(str(validation))), experts=experts, n_rows=n_rows)
        model.save(run / name / "model")
        digests.append(hashlib.sha256((run / name / "model" / "model.safetensors").read_bytes()).hexdigest())
    tables = [as_blocks(store.counts()["ngram"]).whole() for store in stores.values()]
    return Additions(
        n,
        stores["once"].head().n_rows,
        once_seconds,
        seconds,
        moments=_same(*(cast(Moments, store.moments()) for store in stores.values())),
        weights=bool(np.array_equal(one.weights, many.weights) and np.array_equal(one.intercept, many.intercept)),
        counts=all(np.array_equal(a, b) for a, b in zip(*tables, strict=True)),
        model=digests[0] == digests[1],
    )


def _same(a: Moments, b: Moments) -> bool:
    """Whether all sums are equal to the last bit."""
    names = [field.name for field in fields(a) if isinstance(getattr(a, field.name), GridSum)]
    return all(np.array_equal(getattr(a, name).value(), getattr(b, name).value()) for name in names)


def lines(found: Additions) -> list[str]:
    """The result for people."""
    equal = {name: getattr(found, name) for name in ("moments", "weights", "counts", "model")}
    told = ", ".join(f"{name} {'equal' if same else 'DIFFERENT'}" for name, same in equal.items())
    return [
        f"{found.tokens:,} tokens in {found.parts} additions: {told}, bit for bit",
        f"all at once {found.once_seconds:.1f} CPU-s; an addition and its solve"
        f" {min(found.seconds):.1f} to {max(found.seconds):.1f}, {sum(found.seconds):.1f} in all",
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of train.txt and valid.txt")
    parser.add_argument("--run", type=Path, default=Path("runs/lm_additions"))
    parser.add_argument("--parts", type=int, default=10)
    parser.add_argument("--rows", type=int, default=30_000, help="validation tokens that choices are made on")
    options = parser.parse_args()
    with exits():
        folders = lay_out(options.data, options.run)
        result = additions(
            (folders["train"] / "train.txt").read_text(encoding="utf-8"), folders["valid"], options.run,
            SETTINGS, EXPERTS, ALPHA, n=options.parts, n_rows=options.rows,
        )  # fmt: skip
        (options.run / "additions.json").write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")
        for line in lines(result):
            Console().print(line)
