"""One set of rows, larger than the memory that each process may use, through streamfit and everything like it.

    python pipelines/bench_peers.py [--rows 1000000] [--features 1000] [--memory 3] [--folder /tmp]
        [--only streamfit ridge ...] [--python spark=/path/to/python ...] [--json FILE] [--markdown FILE]

Every contestant (pipelines/peers/contestants.py) runs in a process of its own on the same cores, under a limit of
memory that the system keeps: RLIMIT_DATA for each process, and an end for the whole tree once its resident memory is
above it; virtual machines have -Xmx. Its settings are the best that its documentation names; where they are set, a
comment says so. Rows are float32 Parquet with a column a feature, y = x'w + noise, made from a seed.

Seconds run from the first byte read to the weights, with interpreter, cluster or virtual machine up (`start` says what
that took); processor seconds are those of the whole tree of processes, peak memory the largest sum of their resident
sizes. The error is that of the weights, against normal equations in float64 about an origin, solved for the very
objective of the contestant. Before the timed fit each has fitted four small sets whose features lie ever farther from
zero: the second table. Slow contestants get fewer rows: rates are compared. Whatever is missing or fails is a row.

Packages: `pip install -e '.[bench]'`, `.[bench-jvm]` for the last two, which need Java 17. polars-online needs Python
3.12: make an environment with it, numpy and pyarrow, and name its interpreter, `--python polars-online=...`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from scipy.linalg import blas

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines.peers.contestants import PEERS, Peer
from pipelines.peers.rows import N_FILES, Sums, files, make
from pipelines.peers.supervise import supervised
from pipelines.peers.verdict import (
    Row,
    accuracy_markdown,
    accuracy_table,
    ahead,
    read_course,
    speed_markdown,
    speed_table,
)

MEANS = (0.0, 100.0, 1_000.0, 10_000.0)
ACCURACY_FEATURES, ACCURACY_ALPHA = 50, 2.0
_HANDICAPS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Variables that hold OpenBLAS back; unset for everyone."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")


def blas_speeds(n_rows: int = 8192, n_features: int = 1000) -> dict[str, float]:
    """GFLOP/s of this machine's own products, a symmetric one counted as a full one; the best of three.

    Returns
    -------
    dict of str to float
    """
    x = np.random.default_rng(0).normal(size=(n_rows, n_features))
    narrow = x.astype(np.float32)
    ways: dict[str, Callable[[], object]] = {
        "sgemm": lambda: blas.sgemm(1.0, narrow.T, narrow.T, trans_b=1),
        "ssyrk": lambda: blas.ssyrk(1.0, narrow.T),
        "dgemm": lambda: blas.dgemm(1.0, x.T, x.T, trans_b=1),
        "dsyrk": lambda: blas.dsyrk(1.0, x.T),
    }
    speeds = dict.fromkeys(ways, 0.0)
    for _ in range(3):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            speeds[name] = max(speeds[name], 2.0 * n_rows * n_features**2 / (time.perf_counter() - started) / 1e9)
    return speeds


def files_for(peer: Peer, n_rows: int) -> int:
    """How many of the files a contestant gets."""
    return N_FILES if not peer.row_limit else min(N_FILES, max(1, peer.row_limit * N_FILES // n_rows))


def compete(peer: Peer, order: dict[str, Any], *, python: str, timeout: float, scratch: Path) -> list[dict[str, Any]]:
    """Run one contestant; what became of each of its jobs."""
    environ = {name: value for name, value in os.environ.items() if name not in _HANDICAPS}
    environ |= dict.fromkeys(_THREADS, str(peer.blas_threads or len(order["cores"])))
    if peer.blas_threads:  # parallel by processes or tasks; only the products inside them are single-threaded
        environ["POLARS_MAX_THREADS"] = str(len(order["cores"]))
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), environ.get("PYTHONPATH")]))
    # Spark starts its workers with the interpreter that it finds here.
    environ |= {"PYSPARK_PYTHON": python, "PYTHONWARNINGS": "ignore"}
    course = supervised(
        [python, "-m", "pipelines.peers", json.dumps(order)],
        environ=environ,
        mark="@peers ",
        timeout=timeout,
        memory=0 if peer.jvm else order["memory"],
        scratch=scratch,
    )
    return read_course(peer, course, order, timeout)


def main(
    *,
    n_rows: int,
    n_features: int,
    memory: int,
    folder: Path,
    only: Sequence[str] = (),
    precision: str = "",
    pythons: dict[str, str] | None = None,
    timeout: float = 300.0,
    alpha: float = 1.0,
    seed: int = 0,
    means: Sequence[float] = MEANS,
    accuracy_rows: int = 20_000,
    n_cores: int = 2,
    console: Console | None = None,
) -> dict[str, Any]:
    """Make the rows, run every contestant, and compare.

    Parameters
    ----------
    n_rows, n_features : int
    memory : int
        Bytes for each contestant.
    folder : Path
        Where rows are kept; those of an earlier run are used again.
    only : sequence of str
        Keys of contestants; none for all.
    precision : {'', 'float32', 'float64'}
    pythons : dict of str to str
        Other interpreters, by key.
    timeout : float
        Seconds for each contestant, with its start.
    alpha : float
    seed : int
    means : sequence of float
        Distances of the features from zero, in standard deviations, of the table of accuracy.
    accuracy_rows : int
    n_cores : int
    console : rich Console, optional
        Is told of each contestant as it ends.

    Returns
    -------
    dict
        `machine`, `rows` and `accuracy` among others, as JSON.
    """
    console = console or Console(quiet=True)
    places = [i for i, p in enumerate(PEERS) if (not only or p.key in only) and precision in ("", p.precision)]
    unknown = {*only, *(pythons or {})} - {peer.key for peer in PEERS}
    if unknown or not places:
        valid = ", ".join(dict.fromkeys(peer.key for peer in PEERS))
        msg = f"no contestant {', '.join(sorted(unknown)) or 'of that precision'}; expected some of {valid}"
        raise SystemExit(msg)
    n_rows = max(n_rows // N_FILES, 1) * N_FILES
    cores = sorted(os.sched_getaffinity(0))[:n_cores]
    counts = {files_for(PEERS[i], n_rows) for i in places}
    console.print(f"writing {n_rows:,} x {n_features:,} float32 to {folder}", style="dim")
    sums = make(folder / "rows", n_rows, n_features, seed=seed, keep=counts)
    small = {
        mean: make(folder / f"mean-{mean:g}", accuracy_rows, ACCURACY_FEATURES, seed=seed, mean=mean)[N_FILES]
        for mean in means
    }

    rows: list[Row] = []
    accuracy: dict[str, dict[str, Any]] = {}
    for place in places:
        peer = PEERS[place]
        given = [files_for(peer, n_rows)]
        if peer.try_all and given[0] < N_FILES:
            given.append(N_FILES)
        tests: list[tuple[Path, int, Sums, float]] = [
            *((folder / f"mean-{mean:g}", N_FILES, small[mean], ACCURACY_ALPHA) for mean in means),
            *((folder / "rows", k, sums[k], alpha) for k in given),
        ]
        jobs = [
            {
                "files": files(f, k),
                "n_rows": s.n_rows,
                "n_features": len(s.origin),
                "y_deviation": s.y_deviation,
                "alpha": a,
            }
            for f, k, s, a in tests
        ]
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            order = {"peer": place, "cores": cores, "memory": memory, "scratch": scratch, "jobs": jobs}
            python = (pythons or {}).get(peer.key, sys.executable)
            outcomes = compete(peer, order, python=python, timeout=timeout, scratch=Path(scratch))
        for (_, _, reference, penalty), outcome in zip(tests, outcomes, strict=True):
            if "weights" in outcome:
                best = reference.ridge(penalty, penalise_intercept=peer.penalised)
                found = np.asarray(outcome.pop("weights"))
                outcome["error"] = float(np.linalg.norm(found - best) / np.linalg.norm(best))
        accuracy[f"{peer.name}, {peer.precision}"] = {
            f"{mean:g}": outcome.get("error", outcome.get("reason"))
            for mean, outcome in zip(means, outcomes, strict=False)
        }
        for outcome in outcomes[len(means) :]:
            rows.append(Row.of(peer, outcome, whole=n_rows))
            console.print(rows[-1].line(), style="dim")
    return {
        "machine": {"processor": _processor(), "cores": len(cores), "python": platform.python_version()},
        "limit_bytes": memory,
        "data_bytes": sum(Path(path).stat().st_size for path in files(folder / "rows")),
        "n_rows": n_rows,
        "n_features": n_features,
        "rows": [asdict(row) for row in rows],
        "accuracy": accuracy,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _interpreter(text: str) -> tuple[str, str]:
    key, _, path = text.partition("=")
    if not path or subprocess.run([path, "-c", ""], check=False).returncode:
        msg = f"{text!r}: expected KEY=PATH of a Python interpreter"
        raise argparse.ArgumentTypeError(msg)
    return key, path


def report(found: dict[str, Any], console: Console) -> None:
    """Print both tables and who is ahead."""
    machine, speeds = found["machine"], found["blas"]
    console.print(f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}; each contestant may "
                  f"use {found['limit_bytes'] / 1e9:.1f} GB; data {found['data_bytes'] / 1e9:.2f} GB")  # fmt: skip
    console.print("GFLOP/s counted as a full product: " + ", ".join(f"{k} {v:.0f}" for k, v in speeds.items()))
    rows = [Row(**row) for row in found["rows"]]
    console.print(speed_table(rows, found["n_rows"], found["n_features"]))
    console.print(accuracy_table(found["accuracy"]))
    for line in ahead(rows):
        console.print(line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=1_000)
    parser.add_argument("--memory", type=float, default=3.0, help="GB that a contestant may use")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep the rows here for the next run")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for a contestant")
    parser.add_argument("--only", nargs="+", default=[], metavar="KEY")
    parser.add_argument("--precision", choices=["float32", "float64"], default="")
    parser.add_argument("--python", nargs="+", type=_interpreter, default=[], metavar="KEY=PATH")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    for variable in _HANDICAPS:
        os.environ.pop(variable, None)
    screen = Console(width=190)
    with tempfile.TemporaryDirectory() as made:
        figures = main(
            n_rows=options.rows,
            n_features=options.features,
            memory=int(options.memory * 1e9),
            folder=options.folder or Path(made),
            only=options.only,
            precision=options.precision,
            pythons=dict(options.python),
            timeout=options.timeout,
            n_cores=options.cores,
            console=screen,
        )
        with ProcessPoolExecutor(
            1, get_context("spawn")
        ) as child:  # its threads set by an environment without handicaps
            figures["blas"] = child.submit(blas_speeds).result()
    report(figures, screen)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    if options.markdown:
        results = [Row(**row) for row in figures["rows"]]
        options.markdown.write_text(f"{speed_markdown(results)}\n\n{accuracy_markdown(figures['accuracy'])}\n")
