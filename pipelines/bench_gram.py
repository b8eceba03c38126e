"""How near counting comes to this machine's matrix product, end to end from Parquet and stage by stage.

    python pipelines/bench_gram.py [--cases linear:2048 linear:4096 rbf:4096 fourier:4096] [--gflop 600]
                                   [--repeats 5] [--json FILE] [--markdown FILE] [--figure FILE]

For each case and precision one process, with the settings of memory that workers get, lists, decodes, maps,
multiplies, adds in float64 and commits rows of float32 Parquet, in units that a sample gives, as a fit does. As many
rows of that width are multiplied by BLAS alone (`ssyrk`, `dsyrk`, into one triangle that is there, of rows that lie by
rows or by columns, whichever is faster) on as many threads: given is the share of the two, each the best of some runs
in turn. Beside it stands the most that could be: the share if nothing but hashing, decoding and BLAS's products took
time. Stages are timed alone as well; listing and decoding compete for the cores with products: their seconds add.
Then the cross-moments of 32,000 classes, beside copying memory. On a machine that others use only the shares mean
something.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.linalg.blas
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from streamfit import RBF, Dense, Files, Frame, Linear, OneHot, ParquetTable, RandomFourier, Store, WorkOptions
from streamfit.arrays import Precision, column_major
from streamfit.cli import exits
from streamfit.corpus.hashing import KNOWN
from streamfit.corpus.spare import BLOCKS
from streamfit.engine import accumulate
from streamfit.engine.cluster_spec import environment
from streamfit.engine.machine import cores
from streamfit.errors import ConfigError
from streamfit.features import FeatureMap
from streamfit.frame import BLOCK_ROWS
from streamfit.moments import MomentsAccumulator
from streamfit.store import Header

N_INPUTS = 32
"""Columns that kernels are computed of."""
N_CLASSES = 32_000


@dataclass(frozen=True)
class Case:
    """One kind of features at one width."""

    kind: str
    n_features: int

    @classmethod
    def of(cls, text: str) -> Case:
        """From `kind:width`."""
        kind, _, width = text.partition(":")
        if kind not in ("linear", "rbf", "fourier") or not width.isdigit() or int(width) < 1:
            msg = f"case {text!r}"
            raise ConfigError(msg, "linear:D, rbf:D or fourier:D")
        return cls(kind, int(width))

    @property
    def n_inputs(self) -> int:
        """Columns of its table."""
        return self.n_features if self.kind == "linear" else N_INPUTS

    def features(self) -> FeatureMap:
        """The map, drawn with a fixed seed."""
        if self.kind == "linear":
            return Linear(self.n_features)
        if self.kind == "rbf":
            centers = np.random.default_rng(1).normal(size=(self.n_features, N_INPUTS))
            return RBF(centers, 0.5 / N_INPUTS)
        return RandomFourier(self.n_features, 0.5 / N_INPUTS, 1, N_INPUTS)


@dataclass(frozen=True)
class Measured:
    """Seconds of one case: of stages alone, end to end, and of BLAS on as many rows."""

    case: str
    precision: str
    n_rows: int
    seconds: dict[str, float]
    gflop: float
    read_gb: float

    @property
    def share(self) -> float:
        """Of BLAS's speed that the whole way reaches."""
        return self.seconds["BLAS alone"] / self.seconds["end to end"]

    @property
    def reading(self) -> float:
        """Seconds of hashing and decoding on all cores; decoding is timed on one, and taken to be as fast on each."""
        return self.seconds["list and hash"] + self.seconds["decode"] / cores()

    @property
    def bound(self) -> float:
        """The share that would be reached if nothing but reading and BLAS's products took time."""
        return self.seconds["BLAS alone"] / (self.seconds["BLAS alone"] + self.reading)


def table_of(folder: Path, n_inputs: int, n_rows: int) -> ParquetTable:
    """Float32 columns and a target, two row groups a file of up to 128 MB, the size that writers of Parquet aim at."""
    rng = np.random.default_rng(0)
    group = max(1, 2**27 // (4 * n_inputs) // BLOCK_ROWS) * BLOCK_ROWS
    for i, lo in enumerate(range(0, n_rows, 2 * group)):
        x = rng.standard_normal(size=(min(2 * group, n_rows - lo), n_inputs), dtype=np.float32)
        columns = {f"x{j}": x[:, j] for j in range(n_inputs)} | {"y": x[:, 0] + rng.normal(size=len(x))}
        pq.write_table(pa.table(columns), folder / f"{i:04d}.parquet", row_group_size=group, use_dictionary=False)
    time.sleep(2.5)  # so that files are old enough for their time to tell that they have not changed
    return ParquetTable(Files(str(folder)), tuple(f"x{j}" for j in range(n_inputs)), ("y",))


def measure(
    case: Case, precision: Precision, table: ParquetTable, n_rows: int, scratch: Path, repeats: int
) -> Measured:
    """Time one case: the whole and BLAS alone as often as `repeats` says, and the best of each."""
    d, features, n_threads = case.n_features, case.features(), cores()
    first = next(iter(table.read(table.shards()[0])))
    x = column_major(first.x)
    frame = Frame.from_sample(features(x), first.y, Dense(1), features.bounds)
    header = Header(features, Dense(1), frame, precision, n_folds=2)
    n_blocks = -(-n_rows // BLOCK_ROWS)
    rows = np.random.default_rng(0).standard_normal(size=(BLOCK_ROWS, d), dtype=np.float32).astype(precision)
    laid = [(rows.T, 0), (np.asfortranarray(rows), 1)]
    syrk = scipy.linalg.blas.ssyrk if precision == "float32" else scipy.linalg.blas.dsyrk
    triangle = np.zeros((d, d), precision, order="F")  # clearing a fresh one for each block would hold BLAS back
    seconds = {"end to end": np.inf, "BLAS alone": np.inf}
    for i in range(repeats):  # in turn, so that what else the machine does meets both
        store = Store.create(scratch / f"{case.kind}-{d}-{precision}-{i}", header)
        KNOWN.clear()
        whole = timed(partial(accumulate, store, table, options=WorkOptions(n_threads=n_threads)))
        with threadpool_limits(n_threads):
            ways = [partial(syrk, 1.0, a, trans=t, beta=1.0, c=triangle, overwrite_c=1) for a, t in laid]
            alone = min(timed(lambda way=way: [way() for _ in range(n_blocks)]) for way in ways)  # type: ignore[misc]
        seconds = {"end to end": min(seconds["end to end"], whole), "BLAS alone": min(seconds["BLAS alone"], alone)}
    KNOWN.clear()
    seconds["list and hash"] = timed(table.shards)
    shards = table.shards()
    with BLOCKS.reused():
        seconds["decode"] = timed(lambda: [None for shard in shards for _ in table.read(shard)])
    phi = features(x)
    with threadpool_limits(1):
        seconds["features"] = 0.0 if case.kind == "linear" else n_blocks * best(lambda: features(x)) / n_threads
        sums = MomentsAccumulator(frame, Dense(1), precision, n_threads=n_threads)  # which waits for each block
        y = np.zeros((len(x), 1))
        seconds["products and sums"] = n_blocks * best(lambda: sums.add(phi, y))
    segment = store.head().segments[0]
    moments = store.read(segment)
    shard = store.ledger(segment)[:1]
    other = Store.create(scratch / f"{case.kind}-{d}-{precision}-w", header)
    written = len(store.head().segments) * timed(lambda: other.commit([other.write_segment(moments, shard, [1])]))
    seconds["write and commit"] = written
    read_gb = sum(shard.size for shard in shards) / 1e9
    return Measured(f"{case.kind} {d:,}", precision, n_rows, seconds, n_rows * d * (d + 1) / 1e9, read_gb)


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def best(work: Callable[[], object], n: int = 5) -> float:
    """The least seconds of several calls."""
    return min(timed(work) for _ in range(n))


def classes(n_features: int, n_classes: int = N_CLASSES) -> dict[str, float]:
    """GB/s of the cross-moments of one-hot targets, by the bytes that must move, beside a copy of memory."""
    rng = np.random.default_rng(0)
    phi = rng.standard_normal(size=(BLOCK_ROWS, n_features), dtype=np.float32)
    ids = rng.integers(0, n_classes, BLOCK_ROWS)
    sums = MomentsAccumulator(Frame.identity(n_features, n_classes), OneHot(n_classes), "float32")
    present = len(np.unique(ids))
    # Rows are read, their sums written and read, and the float64 sums of the classes read and written.
    moved = 4 * n_features * (BLOCK_ROWS + 2 * present) + 16 * n_features * present

    def cross() -> None:
        _, add = sums._class_block(phi, ids, None)  # the cross-moments alone, without the Gram matrix
        sums._sums["cross"].reserve(1.0)
        add()

    with threadpool_limits(1):
        seconds = best(cross)
    large, target = np.ones(2**24, np.float32), np.zeros(2**24, np.float32)
    copy = best(lambda: np.copyto(target, large))
    return {
        "classes": n_classes,
        "features": n_features,
        "ms a block": 1e3 * seconds,
        "GB/s": moved / seconds / 1e9,
        "copy GB/s": 2 * large.nbytes / copy / 1e9,
    }


def table_text(found: list[Measured]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the report."""
    stages = [
        "list and hash",
        "decode",
        "features",
        "products and sums",
        "write and commit",
        "end to end",
        "BLAS alone",
    ]
    header = [
        "features",
        "precision",
        "rows",
        *(f"{stage}, s" for stage in stages),
        "GFLOP/s",
        "share of BLAS",
        "most, with decoding",
    ]
    rows = []
    for m in found:
        cells = [f"{m.seconds[stage]:.2f}" for stage in stages]
        rate = f"{m.gflop / m.seconds['end to end']:.0f}"
        rows.append([m.case, m.precision, f"{m.n_rows:,}", *cells, rate, f"{m.share:.0%}", f"{m.bound:.0%}"])
    return header, rows


def roofline(found: list[Measured], path: Path) -> None:
    """Speed against operations for each byte of Parquet, below the roofs of BLAS and of decoding."""
    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    markers = dict(zip(dict.fromkeys(m.case for m in found), "os^Dvp*", strict=False))
    reach = np.geomspace(30, 3e5, 100)
    for precision, color in (("float32", "tab:blue"), ("float64", "tab:orange")):
        of_kind = [m for m in found if m.precision == precision]
        if not of_kind:
            continue
        peak = max(m.gflop / m.seconds["BLAS alone"] for m in of_kind)
        rate = max(m.read_gb / m.reading for m in of_kind)
        axis.plot(reach, np.minimum(peak, rate * reach), color=color, lw=1, label=f"roof, {precision}")
        for m in of_kind:
            at = m.gflop / m.read_gb, m.gflop / m.seconds["end to end"]
            axis.plot(*at, markers.get(m.case, "."), color=color, label=f"{m.case}, {precision}", ls="", alpha=0.8)
    axis.set(xscale="log", yscale="log", xlabel="operations a byte of Parquet", ylabel="GFLOP/s")
    axis.legend(fontsize=8, loc="lower right")
    figure.savefig(path)
    plt.close(figure)


def main(cases: list[Case], gflop: float, repeats: int, console: Console) -> tuple[list[Measured], dict[str, float]]:
    """Measure and print everything."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            n_rows = max(2, round(gflop * 1e9 / case.n_features**2 / BLOCK_ROWS)) * BLOCK_ROWS
            rows = Path(folder) / f"{case.kind}-{case.n_features}"
            rows.mkdir()
            table = table_of(rows, case.n_inputs, n_rows)
            precisions: tuple[Precision, ...] = ("float32", "float64")
            for precision in precisions:
                found.append(measure(case, precision, table, n_rows, Path(folder), repeats))
                console.print(f"{found[-1].case} {precision}: {found[-1].share:.0%} of BLAS", style="dim")
            for file in rows.iterdir():
                file.unlink()
    header, cells = table_text(found)
    shown = Table(title=f"{cores()} threads")
    for name in header:
        shown.add_column(name, justify="right")
    for row in cells:
        shown.add_row(*row)
    console.print(shown)
    crossed = classes(2048)
    console.print(
        f"cross-moments of {crossed['classes']:,} classes, {crossed['features']:,} features, one core:"
        f" {crossed['GB/s']:.1f} GB/s,"
        f" {crossed['GB/s'] / crossed['copy GB/s']:.0%} of a copy's {crossed['copy GB/s']:.1f} GB/s"
    )
    return found, crossed


def markdown(found: list[Measured]) -> str:
    """The table as Markdown."""
    header, rows = table_text(found)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def as_a_worker() -> None:
    """Start again with what workers have in their environment for memory: an allocator reads it once, at the start."""
    kept = {name: value for name, value in environment().items() if "MALLOC" in name}
    if any(os.environ.get(name) != value for name, value in kept.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | kept)


if __name__ == "__main__":
    as_a_worker()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["linear:2048", "linear:4096", "rbf:4096", "fourier:4096"])
    parser.add_argument("--gflop", type=float, default=600.0, help="work of each case")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the best counts")
    for name in ("json", "markdown", "figure"):
        parser.add_argument(f"--{name}", type=Path)
    options = parser.parse_args()
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        if name in os.environ:
            Console().print(f"{name} is set, and slows current BLAS down: unset it")
    with exits():
        asked = [Case.of(text) for text in options.cases]
        measured, crossed = main(asked, options.gflop, options.repeats, Console(width=200))
    if options.json:
        options.json.write_text(json.dumps({"cases": [asdict(m) for m in measured], "classes": crossed}, indent=1))
    if options.markdown:
        options.markdown.write_text(markdown(measured))
    if options.figure:
        roofline(measured, options.figure)
