"""Kernel regression at equal centers: test error against time, memory and the choice of alpha. Two cores.

    npm pack vega-datasets@3.2.1 && tar xzf vega-datasets-3.2.1.tgz package/data
    python -m pipelines.bench_kernel package/data/flights-3m.parquet --airports package/data/airports.csv
    apt-get download ferret-datasets && dpkg -x ferret-datasets_*.deb ferret
    python -m pipelines.bench_kernel ferret/usr/share/ferret-vis/data/etopo5.cdf --figure relief.png

Flights: delay in minutes from time of day, day of the week, day of the year, distance and the positions of both
airports. Relief: height in metres from the place on the unit sphere, points drawn evenly over the area. A seeded
permutation of the rows gives 80% to training, 10% to validation and 10% to the test. Everyone gets the same inputs,
the same centers (rows of the training part) and the same grids: gamma is chosen by validation error on 20,000 training
rows with at most 1,024 centers (more keep the gamma of 1,024), alpha on all of them. With k(x) the kernel's values at
the centers, K the centers' own kernel matrix and b an intercept, the objectives are

    streamfit RBF          ||y - k(X) w - b||² + alpha ||w||², float32 products
    streamfit Nystroem     ||y - Φ w - b||² + alpha ||w||² with Φ = k(X) V Λ^(-1/2), K = V Λ V', float32 products
    streamfit whitened     ||y - k(X) β - b||² + alpha β'Kβ: the same, from float64 sums of k, turned before the solve
    streamfit Fourier      ||y - Φ w - b||² + alpha ||w||², Φ as many random cosines as there are centers, float32
    scikit-learn           Nystroem + Ridge(cholesky) in float64: the same as `streamfit Nystroem`; all features in RAM,
                           so on as many training rows as fit into --memory, each alpha a fit of its own
    scikit-learn float32   the same with features and solve in float32, the map made in float64
    Falkon's algorithm     (Rudi, Carratino and Rosasco 2017, algorithm 1), our NumPy transcription, not the library:
                           ||y - mean - k(X) β||² + alpha β'Kβ, lambda = alpha / n, by at most 20 preconditioned
                           conjugate gradients that recompute the kernel, float64; each alpha a fit of its own

Seconds of a fit hold the pass over the training rows and one solve; with the choice of alpha, all solves and the
validation errors too. Each contender runs in a process of its own; memory is its largest resident size.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.io import netcdf_file

from pipelines.kernel_ways import WAYS, Predict
from streamfit.cli import exits
from streamfit.errors import ConfigError
from streamfit.features import choose_centers, median_gamma
from streamfit.solve import IllConditionedWarning

GAMMAS = (0.25, 1.0, 4.0, 16.0, 64.0)
"""In units of the median heuristic's."""
ALPHAS = (1e-3, 1e-1, 10.0)
TUNE_ROWS, TUNE_CENTERS = 20_000, 1024
LIBRARY = "PyPI has no distribution named falkon (pip: 'from versions: none'), neither wheel nor source, for any torch"


# Data


def flights(path: Path, airports: Path | None, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of shape (n, 10) and delays, in a random order; flights of airports without a position are left out."""
    if airports is None:
        msg = f"{path} without the positions of its airports"
        raise ConfigError(msg, "--airports airports.csv", "it is in the same package, data/airports.csv")
    with airports.open(encoding="utf-8", newline="") as file:
        places = {row["iata"]: (float(row["latitude"]), float(row["longitude"])) for row in csv.DictReader(file)}
    table = pq.read_table(path, columns=["date", "delay", "distance", "origin", "destination"])
    table = table.take(np.random.default_rng(0).permutation(len(table))[: 2 * n_rows])
    ends = []
    for name in ("origin", "destination"):
        codes = table.column(name).combine_chunks().dictionary_encode()
        known = np.array([places.get(code, (np.nan, np.nan)) for code in codes.dictionary.to_pylist()])
        ends.append(known[codes.indices.to_numpy()])
    minutes = table.column("date").to_numpy().astype("datetime64[m]").astype(np.int64)
    day, hour, week = minutes / 1440.0, 2.0 * np.pi * (minutes % 1440) / 1440.0, 2.0 * np.pi * (minutes / 10080.0 % 1.0)
    clock = [np.sin(hour), np.cos(hour), np.sin(week), np.cos(week), day]
    x = np.column_stack([*clock, table.column("distance").to_numpy(), *ends])
    there = np.isfinite(x).all(axis=1)
    return x[there][:n_rows], table.column("delay").to_numpy().astype(np.float64)[there][:n_rows]


def relief(path: Path, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Places on the unit sphere, shape (n, 3), and heights in metres, in a random order, evenly over the area."""
    with netcdf_file(path, mmap=False) as file:
        lon, lat = (np.deg2rad(file.variables[f"ETOPO05_{axis}"].data.astype(float)) for axis in "XY")
        height = file.variables["ROSE"].data
    rng, n_lon = np.random.default_rng(0), len(lon)
    picks = rng.choice(height.size, size=min(3 * n_rows, height.size), replace=False)
    picks = picks[rng.random(len(picks)) < np.cos(lat[picks // n_lon])][:n_rows]
    a, b = lat[picks // n_lon], lon[picks % n_lon]
    x = np.column_stack([np.cos(a) * np.cos(b), np.cos(a) * np.sin(b), np.sin(a)])
    return x, height.reshape(-1)[picks].astype(np.float64)


def lay_out(path: Path, airports: Path | None, n_rows: int, folder: Path) -> dict[str, int]:
    """Write inputs, standardised by the training part, and targets where the processes find them; rows of each part."""
    if not path.is_file():
        msg = f"no file at {path}"
        raise ConfigError(msg, "flights-3m.parquet or etopo5.cdf", "the head of this script says how to get them")
    x, y = flights(path, airports, n_rows) if path.suffix == ".parquet" else relief(path, n_rows)
    edges = (0, int(0.8 * len(x)), int(0.9 * len(x)), len(x))
    parts = {name: slice(*edges[i : i + 2]) for i, name in enumerate(("train", "validation", "test"))}
    scale = x[parts["train"]].std(axis=0)
    x = ((x - x[parts["train"]].mean(axis=0)) / np.where(scale > 0, scale, 1.0)).astype(np.float32)
    for name, rows in parts.items():
        np.save(folder / f"{name}_x.npy", x[rows])
        np.save(folder / f"{name}_y.npy", y[rows, None])
    return {name: rows.stop - rows.start for name, rows in parts.items()}


# Measuring


def rmse(predict: Predict, x: np.ndarray, y: np.ndarray) -> float:
    return float(np.sqrt(np.mean((predict(x) - y) ** 2)))


def chosen_gamma(name: str, folder: Path, n_centers: int, n_threads: int, memory: float) -> float:
    """Gamma of least validation error, over all alphas, on some of the training rows."""
    x, y, vx, vy = (np.load(folder / f"{part}.npy") for part in ("train_x", "train_y", "validation_x", "validation_y"))
    x, y, vx, vy = x[:TUNE_ROWS], y[:TUNE_ROWS], vx[: TUNE_ROWS // 4], vy[: TUNE_ROWS // 4]
    centers, unit = choose_centers(x, min(n_centers, TUNE_CENTERS), 0), median_gamma(x, 0)
    errors: dict[float, float] = {}
    for factor in GAMMAS:
        way = WAYS[name](centers, factor * unit, n_threads, memory)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IllConditionedWarning)
            way.count(x, y)
            errors[factor * unit] = min(rmse(way.fit(alpha), vx, vy) for alpha in ALPHAS)
    return min(errors, key=errors.__getitem__)


def measure(
    name: str, folder: Path, n_centers: int, gamma: float | None, n_threads: int, memory: float
) -> dict[str, Any]:
    """Choose alpha on all training rows, and gamma before it where none is given; test error, and what it took."""
    gamma = gamma or chosen_gamma(name, folder, n_centers, n_threads, memory)
    data = {p: np.load(folder / f"{p}.npy") for p in ("train_x", "train_y", "validation_x", "validation_y")}
    x, y, vx, vy = data.values()
    way = WAYS[name](choose_centers(x[: max(TUNE_ROWS, 4 * n_centers)], n_centers, 0), gamma, n_threads, memory)
    clocks = [(time.perf_counter(), time.process_time())]

    def lap() -> tuple[float, float]:
        clocks.append((time.perf_counter(), time.process_time()))
        return clocks[-1][0] - clocks[-2][0], clocks[-1][1] - clocks[-2][1]

    fits = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)
        way.count(x, y)
        counted = lap()
        for alpha in ALPHAS:
            predict = way.fit(alpha)
            took = lap()
            fits.append((rmse(predict, vx, vy), alpha, took, predict, lap()))
    _, alpha, solved, predict, _ = min(fits, key=lambda fit: fit[0])
    tx, ty = np.load(folder / "test_x.npy"), np.load(folder / "test_y.npy")
    clocks.append((time.perf_counter(), time.process_time()))
    error = rmse(predict, tx, ty)
    tested = lap()
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    choosing = [sum(fit[2][i] + fit[4][i] for fit in fits) for i in range(2)]
    return {
        "way": name,
        "centers": n_centers,
        "gamma": gamma,
        "alpha": alpha,
        "train_rows": way.n_rows,
        "test_rmse": error,
        "test_r2": 1.0 - error**2 / float(np.mean((ty - y.mean()) ** 2)),
        "fit_seconds": counted[0] + solved[0],
        "fit_cpu_seconds": counted[1] + solved[1],
        "with_choice_seconds": counted[0] + choosing[0],
        "with_choice_cpu_seconds": counted[1] + choosing[1],
        "predict_rows_per_second": len(tx) / tested[0],
        "peak_bytes": 1024 * int(found[1]) if found else None,
    }


def main(
    path: Path,
    console: Console,
    *,
    airports: Path | None = None,
    n_rows: int,
    centers: Sequence[int],
    ways: Sequence[str] = tuple(WAYS),
    n_threads: int = 2,
    memory: float = 4e9,
) -> dict[str, Any]:
    """Run every contender at every number of centers, each in a process of its own; all figures."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        rows = lay_out(path, airports, n_rows, folder)
        if max(centers) > min(rows["train"], max(TUNE_ROWS, 4 * max(centers))):
            msg = f"{max(centers)} centers from {rows['train']} training rows"
            raise ConfigError(msg, "no more centers than rows", "give more --rows or fewer --centers")
        found: list[dict[str, Any]] = []
        for m in centers:
            for name in ways:
                known = [f["gamma"] for f in found if f["way"] == name and f["centers"] >= TUNE_CENTERS]
                gamma = known[0] if known else None
                with ProcessPoolExecutor(1, get_context("spawn")) as child:
                    found.append(child.submit(measure, name, folder, m, gamma, n_threads, memory).result())
                last = found[-1]
                console.print(f"{name}, {m:,} centers: RMSE {last['test_rmse']:.4g} in {last['fit_seconds']:.1f} s")
    return {"data": path.name, "rows": rows, "threads": n_threads, "runs": found, "left_out": {"Falkon": LIBRARY}}


# Telling


COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("contender", lambda f: f["way"]),
    ("centers", lambda f: f"{f['centers']:,}"),
    ("training rows", lambda f: f"{f['train_rows']:,}"),
    ("test RMSE", lambda f: f"{f['test_rmse']:.5g}"),
    ("test R²", lambda f: f"{f['test_r2']:.4f}"),
    ("fit, s", lambda f: f"{f['fit_seconds']:.1f}"),
    ("CPU, s", lambda f: f"{f['fit_cpu_seconds']:.1f}"),
    (f"with choice of {len(ALPHAS)} alphas, s", lambda f: f"{f['with_choice_seconds']:.1f}"),
    ("CPU, s", lambda f: f"{f['with_choice_cpu_seconds']:.1f}"),
    ("peak, GB", lambda f: f"{(f['peak_bytes'] or 0) / 1e9:.2f}"),
    ("gamma", lambda f: f"{f['gamma']:.3g}"),
    ("alpha", lambda f: f"{f['alpha']:g}"),
)


def markdown(results: dict[str, Any]) -> str:
    """The table as a page keeps it."""
    lines = [[name for name, _ in COLUMNS], ["---"] * len(COLUMNS)]
    lines += [[show(f) for _, show in COLUMNS] for f in results["runs"]]
    lines += [[name, f"not run: {why}"] + [""] * (len(COLUMNS) - 2) for name, why in results["left_out"].items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw(results: dict[str, Any], path: Path) -> None:
    """Error against seconds: of one fit, and with the choice of alpha."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = {"fit_seconds": "one fit", "with_choice_seconds": f"with the choice of {len(ALPHAS)} alphas"}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for name in dict.fromkeys(f["way"] for f in results["runs"]):
            mine = [f for f in results["runs"] if f["way"] == name]
            axis.plot([f[key] for f in mine], [f["test_rmse"] for f in mine], "o-", label=name)
        axis.set(xscale="log", xlabel=f"wall seconds, {title}", title=title)
        axis.grid(visible=True, which="both", alpha=0.3)
    axes[0].set_ylabel("test RMSE")
    axes[1].legend()
    numbers = ", ".join(str(m) for m in dict.fromkeys(f["centers"] for f in results["runs"]))
    figure.suptitle(f"{results['data']}: {results['rows']['train']:,} training rows; {numbers} centers")
    figure.savefig(path, dpi=120)


def show(results: dict[str, Any], console: Console) -> None:
    """Print the table."""
    table = Table(title=f"{results['data']}, {results['rows']}, {results['threads']} threads")
    for i, (name, _) in enumerate(COLUMNS):
        table.add_column(name, justify="right" if i else "left")
    for f in results["runs"]:
        table.add_row(*(text(f) for _, text in COLUMNS))
    console.print(table)
    for name, why in results["left_out"].items():
        console.print(f"{name} was not run: {why}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="flights-3m.parquet or etopo5.cdf")
    parser.add_argument("--airports", type=Path, help="airports.csv, for flights")
    parser.add_argument("--rows", type=int, default=100_000, help="training, validation and test rows together")
    parser.add_argument("--centers", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", type=float, default=4.0, help="GB that scikit-learn's features may take")
    for kind in ("figure", "json", "markdown"):
        parser.add_argument(f"--{kind}", type=Path)
    given = parser.parse_args()
    with exits():
        for variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # where they are set, they cost up to half
            os.environ.pop(variable, None)
        os.environ["OPENBLAS_NUM_THREADS"] = str(given.threads)
        out = Console(highlight=False)
        told = main(given.data, out, airports=given.airports, n_rows=given.rows, centers=sorted(given.centers),
                    ways=given.ways, n_threads=given.threads, memory=given.memory * 1e9)  # fmt: skip
        show(told, out)
        if given.json:
            given.json.write_text(json.dumps(told, indent=1))
        if given.markdown:
            given.markdown.write_text(markdown(told) + "\n")
        if given.figure:
            draw(told, given.figure)
