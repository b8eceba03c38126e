"""Solve for more features than memory holds the Gram matrix of, in a process that the system limits.

    python pipelines/bench_out_of_core.py [--features 24000] [--memory 2] [--groups 3] [--folder /tmp]

One process counts random Fourier features into a store. Another may allocate no more than `--memory` GB: RLIMIT_DATA,
which counts every private writable mapping of a process, touched or not, so that resident memory of its own stays below
it too (the kernel's cache of files is not in it). The solver is told of 100 MB less, for what threads reserve for
their stacks counts as well. It prints its plan and solves. The parent measures BLAS before and
after, for the machine may be shared, and takes a sample of the equations from the stored arrays with Zarr and NumPy.

With 24,000 features the matrix takes 4.6 GB and its upper triangle 2.6 GB: in 2 GB neither fits, in 4 GB the triangle
does, and nothing is written to scratch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import zarr
from rich.console import Console
from threadpoolctl import threadpool_limits

from streamfit import Dense, Frame, Header, RandomFourier, Solution, Store
from streamfit.cli import exits
from streamfit.frame import BLOCK_ROWS, tile_pairs
from streamfit.moments import MomentsAccumulator
from streamfit.plan import Shard
from streamfit.store.out_of_core import plan_tiled, solve_tiled

N_INPUTS, N_TARGETS = 16, 4
RESERVED = 100 * 10**6
"""Bytes that threads reserve for stacks, and BLAS for buffers, mostly without touching them."""


def build(where: Path, n_features: int, n_groups: int, group_rows: int) -> float:
    """Count groups of rows into a store of float32 products, a segment each; seconds."""
    started = time.perf_counter()
    features = RandomFourier(n_features, gamma=1.0 / (4 * N_INPUTS), seed=0, dim=N_INPUTS)
    targets, rng = Dense(N_TARGETS), np.random.default_rng(0)
    directions = rng.normal(size=(N_INPUTS, N_TARGETS)) / np.sqrt(N_INPUTS)

    def rows(n: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.normal(size=(n, N_INPUTS)).astype(np.float32)
        return features(x), np.sin(2.0 * x @ directions) + 0.1 * rng.normal(size=(n, N_TARGETS))

    phi, y = rows(min(group_rows, 1024))
    frame = Frame.from_sample(phi, y, targets, bounds=features.bounds)
    store = Store.create(where, Header(features, targets, frame, "float32", n_folds=1))
    n_threads = len(os.sched_getaffinity(0))
    with threadpool_limits(1):
        for group in range(n_groups):
            sums = MomentsAccumulator(frame, targets, "float32", n_threads=n_threads)
            for lo in range(0, group_rows, BLOCK_ROWS):
                sums.add(*rows(min(BLOCK_ROWS, group_rows - lo)))
            shard = Shard(f"group {group}", "synthetic", 0, 1, 1, group_rows, f"{group:064x}", "synthetic")
            store.commit([store.write_segment(sums.moments(), [shard], [group_rows])])
    return time.perf_counter() - started


def limited_solve(where: Path, alpha: float, memory_bytes: int, scratch: Path) -> tuple[dict[str, Any], Solution]:
    """Solve within a limit that the system keeps; figures, and the solution."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    store, budget = Store(where), memory_bytes - RESERVED
    plan = plan_tiled(store, memory_bytes=budget)
    print("\n".join(plan.lines()), flush=True)
    marks = [time.perf_counter()]

    def note(done: float, whole: float) -> None:
        if done >= whole * (1.0 - 1e-9):
            marks.append(time.perf_counter())

    solution = solve_tiled(store, alpha, memory_bytes=budget, scratch=scratch, progress=note)
    seconds = time.perf_counter() - marks[0]
    figures = {
        "matrix_bytes": 8 * plan.n_features**2,
        "limit_bytes": memory_bytes,
        "planned_bytes": plan.memory_bytes,
        "peak_bytes": _status("VmHWM"),
        "allocated_bytes": _status("VmData"),
        "scratch_bytes": plan.scratch_bytes,
        "seconds": seconds,
        "factor_seconds": marks[-1] - marks[0],
        "factor_gflops": plan.flops / (marks[-1] - marks[0]) / 1e9,
        "effective_dof": solution.effective_dof,
        "certificate": solution.certificate.to_json(),
    }
    return figures, solution


def _status(name: str) -> int:
    """Bytes of an entry of this process's status, such as VmHWM: its largest resident size."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def blas_speeds(n: int) -> tuple[float, float]:
    """GFLOP/s of this machine's matrix product and Cholesky factor of order n in float64, the better of two."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(n, n))
    system = a + a.T
    system[np.diag_indices(n)] += 4.0 * n
    out = np.empty((n, n))

    def seconds(work: Callable[[], object]) -> float:
        took = []
        for _ in range(2):
            started = time.perf_counter()
            work()
            took.append(time.perf_counter() - started)
        return min(took)

    product = seconds(lambda: np.matmul(a, a, out=out))
    factor = seconds(lambda: scipy.linalg.cholesky(system, lower=True, check_finite=False))
    return 2.0 * n**3 / product / 1e9, n**3 / 3.0 / factor / 1e9


def sample_of_equations(where: Path, solution: Solution, n_rows: int = 16) -> float:
    """Largest residual of some equations ``(G + alpha I) B = C``, over the largest entry of C among them.

    Read from the arrays of the segments by Zarr alone: what a store's format promises, not what its reader does.
    """
    store = Store(where)
    frame, root = store.header.frame, zarr.open_group(str(where), mode="r")
    groups: list[Any] = [root[f"segments/{segment.id}"] for segment in store.head().segments]
    d, (u, v) = frame.n_features, (np.ldexp(1.0, frame.exponents), np.ldexp(1.0, frame.y_exponents))

    def total(name: str, index: Any = ...) -> np.ndarray:
        """A sum is one array for each of its limbs."""
        names = {name, f"{name}_fine", f"{name}_coarse"}
        limbs: list[Any] = [group[key] for group in groups for key in names & set(group.array_keys())]
        return np.asarray(sum(np.asarray(limb[index]) for limb in limbs))

    rng = np.random.default_rng(1)
    place = int(rng.integers(d))
    rows = next(r for _, r, c in tile_pairs(d) if r == c and r.start <= place < r.stop)
    n_rows = min(n_rows, rows.stop - rows.start)
    chosen = np.sort(rng.choice(np.arange(rows.start, rows.stop), size=n_rows, replace=False))
    raw = np.empty((len(chosen), d))
    for index, r, c in tile_pairs(d):
        if rows in (r, c):
            tile = total("gram", index)[: r.stop - r.start, : c.stop - c.start]
            if c == rows:
                raw[:, r] = tile[:, chosen - c.start].T
            if r == rows:
                raw[:, c] = tile[chosen - r.start]
    weight, sum_x, sum_y = float(total("weight")[0]), total("sum_x"), total("sum_y")
    gram = (raw - np.outer(sum_x[chosen], sum_x) / weight) * u * u[chosen, None]
    cross = (total("cross").T[chosen] - np.outer(sum_x[chosen], sum_y) / weight) * v * u[chosen, None]
    residual = gram @ solution.weights + solution.alpha * solution.weights[chosen] - cross
    return float(np.abs(residual).max() / np.abs(cross).max())


def main(
    n_features: int, memory_bytes: int, *, n_groups: int = 3, group_rows: int = 4096, alpha: float = 1.0, folder: Path
) -> dict[str, Any]:
    """Build, solve and check, the first two in processes of their own; all figures."""
    where, scratch = folder / "store", folder / "scratch"
    with ProcessPoolExecutor(1, get_context("spawn")) as child:
        built = child.submit(build, where, n_features, n_groups, group_rows).result()
    speeds = [blas_speeds(min(4096, n_features))]
    with ProcessPoolExecutor(1, get_context("spawn")) as child:
        figures, solution = child.submit(limited_solve, where, alpha, memory_bytes, scratch).result()
    speeds.append(blas_speeds(min(4096, n_features)))
    gemm, potrf = (float(speed) for speed in np.mean(speeds, axis=0))
    return {
        "features": n_features,
        "rows": n_groups * group_rows,
        "build_seconds": built,
        **figures,
        "dgemm_gflops": gemm,
        "dpotrf_gflops": potrf,
        "share_of_dgemm": figures["factor_gflops"] / gemm,
        "share_of_dpotrf": figures["factor_gflops"] / potrf,
        "residual_of_sampled_equations": sample_of_equations(where, solution),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=24_000)
    parser.add_argument("--memory", type=float, default=2.0, help="GB that the solving process may allocate")
    parser.add_argument("--groups", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4096, help="rows of a group")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, help="where to put store and scratch; not a file system in memory")
    options = parser.parse_args()
    with exits():
        with tempfile.TemporaryDirectory(dir=options.folder) as made:
            found = main(
                options.features,
                int(options.memory * 1e9),
                n_groups=options.groups,
                group_rows=options.rows,
                alpha=options.alpha,
                folder=Path(made),
            )
        Console().print_json(json.dumps(found))
