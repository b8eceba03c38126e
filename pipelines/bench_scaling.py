"""How accumulation scales: over workers, over bytes, and over the number of groups. Prints one run's figures.

    python -m pipelines.bench_scaling [--quick] [--json FILE] [--markdown FILE] [--figure FILE]

1. Strong and weak scaling of `accumulate` on a Parquet corpus that it makes, over 1 to N worker processes, commits
   included, beside the machine's own matrix products in as many processes in the same run.
2. A model of time and bytes (`scaling_model`), fitted on small runs, checked on a larger one that it has not seen, and
   carried to 1 TB and 1 PB. What is assumed and not measured is said.
3. Thousands of groups of one row each through the run loop and a Dask scheduler (`scaling_coordinator`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.linalg
from distributed import Client
from rich.console import Console
from threadpoolctl import threadpool_limits

from pipelines.scaling_coordinator import Coordination, growth, simulate
from pipelines.scaling_model import OVERLAPPING, TERMS, Costs, Point, Projection, Site, project
from streamfit import Store
from streamfit.cli import exits
from streamfit.corpus import Files, ParquetTable
from streamfit.corpus.base import hash_range
from streamfit.engine import Machine, accumulate, connect
from streamfit.engine.machine import cores
from streamfit.errors import ConfigError
from streamfit.frame import BLOCK_ROWS
from streamfit.tables import Block, prepare_table

SHARD_ROWS = 4 * BLOCK_ROWS


@dataclass(frozen=True)
class Sizes:
    """How much is run: features, shards a group's worker reads, and groups of the simulation."""

    n_features: tuple[int, ...]
    n_shards: int
    shard_rows: int
    groups: tuple[int, ...]


FULL = Sizes((256, 512, 1024), 16, SHARD_ROWS, (1000, 3000, 10_000))
QUICK = Sizes((8, 32), 4, 500, (3, 6))


def write_corpus(folder: Path, n_features: int, n_shards: int, shard_rows: int) -> ParquetTable:
    """Random float32 rows, a row group a shard."""
    rng = np.random.default_rng(n_features)
    names = tuple(f"x{j}" for j in range(n_features))
    folder.mkdir(parents=True)
    for i in range(n_shards):
        x = rng.normal(size=(n_features, shard_rows)).astype(np.float32)
        table = pa.table(dict(zip(names, x, strict=True)) | {"y": x.sum(axis=0)})
        pq.write_table(table, folder / f"{i:05d}.parquet", compression="none", use_dictionary=False)
    return ParquetTable(Files(str(folder)), names, ("y",))


def count(source: ParquetTable, folder: Path, client: Client | None, group_rows: int) -> Point:
    """Count a corpus into a new store; what the run took."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        header = prepare_table(source, [Block("linear")], precision="float32", n_folds=1, seed=0, sample_rows=2000)
        store = Store.create(Path(name) / "store", header)
        started = time.perf_counter()
        done = accumulate(store, source, client=client, group_rows=group_rows)
        seconds = time.perf_counter() - started
    plan = done.plan
    flops, n_groups = float(plan.flops_per_row * done.n_rows), len(plan.groups)
    return Point(plan.n_features, done.n_rows, n_groups, plan.read_bytes, n_groups * plan.sum_bytes, flops, seconds)


def product_rate(n_features: int, repeats: int = 3) -> float:
    """Flops a second of one process's `ssyrk` on one thread, counted as accumulation counts them: one triangle."""
    x = np.random.default_rng(0).normal(size=(BLOCK_ROWS, n_features)).astype(np.float32)
    best = np.inf
    with threadpool_limits(1):
        for _ in range(repeats):
            started = time.perf_counter()
            scipy.linalg.blas.ssyrk(1.0, x.T)
            best = min(best, time.perf_counter() - started)
    return BLOCK_ROWS * n_features * (n_features + 1) / best


def hash_rate(n_bytes: int = 2**28) -> float:
    """Bytes a second that one thread hashes, of a file in the page cache."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(np.random.default_rng(0).bytes(n_bytes))
        file.flush()
        started = time.perf_counter()
        hash_range(Path(file.name), 0, n_bytes)
        return n_bytes / (time.perf_counter() - started)


def product_rates(n_features: int, n_workers: int) -> float:
    """The same of several processes at once, together: what cores share is seen here as it is in the runs."""
    with ProcessPoolExecutor(n_workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(abs, range(n_workers)))  # they are there before the clock runs
        return sum(pool.map(product_rate, [n_features] * n_workers))


@dataclass(frozen=True)
class Scaled:
    """Runs of one number of workers: strong, the same corpus for any number; weak, as much for each worker."""

    n_workers: int
    strong: Point
    weak: Point
    products: float


def scale(sizes: Sizes, folder: Path, n_workers: list[int]) -> list[Scaled]:
    """Measure strong and weak scaling at the largest number of features."""
    d, found = max(sizes.n_features), []
    sources = {n: write_corpus(folder / f"scale-{n}", d, n * sizes.n_shards, sizes.shard_rows) for n in n_workers}
    for n in n_workers:
        with connect(Machine(n_workers=n, threads_per_worker=1)) as client:
            count(sources[min(n_workers)], folder, client, sizes.shard_rows)  # workers import what they need
            strong = count(sources[max(n_workers)], folder, client, 2 * sizes.shard_rows)
            weak = count(sources[n], folder, client, 2 * sizes.shard_rows)
        found.append(Scaled(n, strong, weak, product_rates(d, n)))
    return found


def measure(sizes: Sizes, folder: Path) -> tuple[list[Point], Point]:
    """Runs of one worker, this process, to fit the model on; and a larger one to check it with."""
    points = []
    sources = {d: write_corpus(folder / f"fit-{d}", d, sizes.n_shards, sizes.shard_rows) for d in sizes.n_features}
    count(sources[min(sources)], folder, None, sizes.shard_rows)  # what is imported once is in no run
    for source in sources.values():
        points += [count(source, folder, None, k * sizes.shard_rows) for k in (1, 2, sizes.n_shards)]
    held_out = write_corpus(folder / "held-out", max(sizes.n_features), 3 * sizes.n_shards, sizes.shard_rows)
    return points, count(held_out, folder, None, 3 * sizes.shard_rows)


def solve_rate(n: int) -> float:
    """Flops a second of a float64 Cholesky factorisation with all threads."""
    a = np.eye(n) * n + 1.0
    started = time.perf_counter()
    scipy.linalg.cho_factor(a)
    return n**3 / 3 / (time.perf_counter() - started)


@dataclass(frozen=True)
class Found:
    """All that one run measured and projected."""

    scaled: list[Scaled]
    points: list[Point]
    held_out: Point
    costs: Costs
    solve_rate: float
    coordination: list[Coordination]
    projections: dict[str, Projection]
    assumptions: tuple[str, ...]

    @property
    def held_out_error(self) -> float:
        """Predicted seconds of the larger run, relative to what it took, less one."""
        return self.costs.predict(self.held_out) / self.held_out.seconds - 1.0


def main(
    sizes: Sizes = FULL,
    *,
    folder: Path | None = None,
    n_workers: int | None = None,
    n_features: int = 4096,
    gpus: int = 200,
    gpu_tflops: float = 20.0,
    storage_gb_s: float = 10.0,
    parallel: bool = True,
    profile: bool = False,
) -> Found:
    """Measure, fit and project; without `parallel` in this process alone, and no scaling over workers.

    Raises
    ------
    ConfigError
        If a number is not positive.
    """
    workers = n_workers or cores()
    if min(workers, n_features, gpus, gpu_tflops, storage_gb_s) <= 0:
        msg = f"{workers} workers, {n_features} features, {gpus} GPUs of {gpu_tflops} TFLOP/s, {storage_gb_s} GB/s"
        raise ConfigError(msg, "numbers above 0")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        here = Path(name)
        points, held_out = measure(sizes, here)
        costs, scaled, coordination = Costs.fit(points), [], []
        if parallel:
            scaled = scale(sizes, here, list(range(1, workers + 1)))
            with connect(Machine(n_workers=workers, threads_per_worker=1)) as client:
                simulate(min(100, *sizes.groups), here, client)
                coordination = [simulate(n, here, client, profile=profile) for n in sizes.groups]
        else:
            coordination = [simulate(n, here, None, profile=profile) for n in sizes.groups]
    # Where workers are many, the coordinator's own processor time bounds what it commits, not the two cores here.
    committed = 1e3 / coordination[-1].cpu_ms
    flops = 1.0 / costs.seconds[1] if costs.seconds[1] else product_rate(max(sizes.n_features))
    storage = storage_gb_s * 1e9
    seen = coordination[-1].n_groups, max(1.0, growth(coordination)) if len(coordination) > 1 else 1.0
    sites = (
        Site("this machine", workers, flops, storage, committed, committed, ("storage",), *seen),
        Site(f"{gpus} GPUs", gpus, gpu_tflops * 1e12, storage, committed, committed, ("storage", "flops"), *seen),
    )
    hashed = hash_rate()
    factor = solve_rate(min(2048, 16 * max(sizes.n_features)))
    projections = {
        f"{label} on {site.name}": project(
            n_bytes, n_features, 4.0 * n_features, site, costs, hash_rate=hashed, solve_rate=factor
        )
        for label, n_bytes in (("1 TB", 1e12), ("1 PB", 1e15))
        for site in sites
    }
    assumptions = (
        f"ASSUMED, not measured: {storage_gb_s:g} GB/s of storage for all workers together",
        f"ASSUMED, not measured: {gpu_tflops:g} TFLOP/s of products a GPU; decoding at a core of this machine for each",
        f"measured: {committed:,.0f} groups/s, what the coordinator's processor time allows, scheduler in it, in a run"
        f" of {seen[0]:,}; its time grows on as groups^{seen[1]:.2f}",
        f"measured: a worker hashes {hashed / 1e9:.1f} GB/s; storage gives the corpus twice, to hash and to count",
        f"rows of {n_features:,} float32 columns; groups by `default_group_rows`; one solve, on this machine",
        "workers, storage, commits and scheduler overlap; hashing comes before, by the workers, and the solve after",
    )
    return Found(scaled, points, held_out, costs, factor, coordination, projections, assumptions)


def tables(found: Found) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and rows of each table."""
    made = []
    if found.scaled:
        one = found.scaled[0]
        rows = []
        for s in found.scaled:
            speed = one.strong.seconds / s.strong.seconds
            weak = one.weak.seconds / s.weak.seconds
            cells = [f"{s.strong.seconds:.2f}", f"{speed / s.n_workers:.0%}", f"{s.weak.seconds:.2f}", f"{weak:.0%}"]
            blas = s.products / one.products / s.n_workers
            share = s.strong.flops / s.strong.seconds / s.products
            rows.append([str(s.n_workers), *cells, f"{s.products / 1e9:.1f}", f"{blas:.0%}", f"{share:.0%}"])
        columns = ["workers", "strong s", "efficiency", "weak s", "efficiency", "ssyrk GFLOP/s", "efficiency", "share"]
        made.append(("Scaling over workers, beside matrix products alone", columns, rows))
    named = zip(TERMS, found.costs.seconds, strict=True)
    made.append(
        ("Costs of one worker", ["term", "seconds each", "each second"],
         [[n, f"{s:.3g}", f"{1 / s:.3g}" if s else "not seen"] for n, s in named])
    )  # fmt: skip
    fits = zip(found.points, found.costs.residuals, strict=True)
    rows = [[f"{p.n_features}", f"{p.n_rows:,}", f"{p.n_groups}", f"{p.seconds:.3f}", f"{e:+.0%}"] for p, e in fits]
    h = found.held_out
    cells = [f"{h.n_features} held out", f"{h.n_rows:,}", str(h.n_groups), f"{h.seconds:.3f}"]
    rows.append([*cells, f"{found.held_out_error:+.0%}"])
    made.append(("Fit and held-out run", ["features", "rows", "groups", "measured s", "predicted"], rows))
    rows = [
        [f"{c.n_groups:,}", f"{c.groups_per_s:.1f}", f"{c.records_per_s:.1f}", f"{c.cpu_ms:.1f}",
         f"{1e3 * c.worker_cpu / c.n_groups:.1f}", f"{c.fsync_ms:.1f}", f"{c.rss / 1e6:.0f}", f"{c.grown / 1e6:.0f}"]
        for c in found.coordination
    ]  # fmt: skip
    columns = ["groups", "groups/s", "records/s", "coordinator CPU ms a group", "workers CPU ms a group"]
    made.append(("Groups of one row", [*columns, "fsync ms", "RSS MB", "grown MB"], rows))
    rows = [
        [name, f"{p.n_groups:,}", f"{p.reduce_bytes / 1e12:.2f}",
         f"{p.hashing:,.0f}", *(f"{p.overlapping[each]:,.0f}" for each in OVERLAPPING),
         f"{p.solve:,.1f}", f"{p.seconds / 3600:,.2f}", p.bottleneck]
        for name, p in found.projections.items()
    ]  # fmt: skip
    columns = ["run", "groups", "reduce TB", "hashing s", *(f"{each} s" for each in OVERLAPPING), "solve s", "hours"]
    made.append(("Projection", [*columns, "bottleneck"], rows))
    return made


def markdown(found: Found) -> str:
    """All tables and assumptions."""
    lines = []
    for title, columns, rows in tables(found):
        lines += [f"**{title}**", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    p = growth(found.coordination)
    lines += [f"- coordinator's processor time grows as groups^{p:.2f} (1 is linear)"]
    for c in found.coordination:
        lines += [f"- profile, {c.n_groups:,} groups: {name} {s:.2f} s" for name, s in c.profile]
    return "\n".join([*lines, *(f"- {line}" for line in found.assumptions)]) + "\n"


def draw(found: Found, path: Path) -> None:
    """Efficiency over workers, fit against measurement, and the coordinator's time over groups."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(12, 3.6), layout="constrained")).subplots(1, 3)
    if found.scaled:
        n, one = [s.n_workers for s in found.scaled], found.scaled[0]
        axes[0].plot(
            n, [one.strong.seconds / s.strong.seconds / s.n_workers for s in found.scaled], "o-", label="strong"
        )
        axes[0].plot(n, [one.weak.seconds / s.weak.seconds for s in found.scaled], "s-", label="weak")
        axes[0].plot(n, [s.products / one.products / s.n_workers for s in found.scaled], "k--", label="products alone")
        axes[0].legend()
    axes[0].set(xlabel="workers", ylabel="efficiency", ylim=(0, 1.2))
    points = [*found.points, found.held_out]
    axes[1].loglog([p.seconds for p in points], [found.costs.predict(p) for p in points], "o")
    ends = [f(p.seconds for p in points) for f in (min, max)]
    axes[1].plot(ends, ends, "k-", linewidth=0.8)
    axes[1].set(xlabel="measured s", ylabel="predicted s")
    axes[2].loglog([c.n_groups for c in found.coordination], [c.coordinator_cpu for c in found.coordination], "o-")
    axes[2].set(xlabel="groups", ylabel="coordinator CPU s")
    figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes in this process: a check that it runs")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--groups", type=int, nargs="+", help="groups of the simulations")
    parser.add_argument("--features", type=int, default=4096, help="of the projection")
    parser.add_argument("--gpus", type=int, default=200)
    parser.add_argument("--gpu-tflops", type=float, default=20.0, help="assumed rate of products of a GPU")
    parser.add_argument("--storage-gb-s", type=float, default=10.0, help="assumed rate of the storage")
    parser.add_argument("--profile", action="store_true", help="profile the run loop (it then takes longer)")
    parser.add_argument("--folder", type=Path, help="where corpora and stores are made for the time being")
    for kind in ("json", "markdown", "figure"):
        parser.add_argument(f"--{kind}", type=Path)
    given = parser.parse_args()
    chosen = QUICK if given.quick else FULL
    if given.groups:
        chosen = Sizes(chosen.n_features, chosen.n_shards, chosen.shard_rows, tuple(given.groups))
    with exits():
        result = main(
            chosen,
            folder=given.folder,
            n_workers=given.workers,
            n_features=given.features,
            gpus=given.gpus,
            gpu_tflops=given.gpu_tflops,
            storage_gb_s=given.storage_gb_s,
            parallel=not given.quick,
            profile=given.profile,
        )
    text = markdown(result)
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
    if given.json:
        given.json.write_text(json.dumps(asdict(result), indent=1) + "\n")
    if given.markdown:
        given.markdown.write_text(text)
    if given.figure:
        draw(result, given.figure)
