"""How near accumulation comes to this machine's matrix product, and to its peers. Prints ratios of one run.

    python pipelines/bench_gram.py [--features 1024 2048] [--rows 65536]

Everything runs on one core: the share of the peak is what matters, workers multiply it. Peers: scikit-learn's Ridge
(Cholesky, all rows in memory) and, with the extra `bench`, scikit-learn-intelex's IncrementalRidge.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_limits

from streamfit import Dense, Frame, Moments, solve
from streamfit.arrays import Precision
from streamfit.frame import BLOCK_ROWS


def main(n_features: int, n_rows: int, precision: Precision, repeats: int = 3) -> dict[str, float]:
    """Seconds of each way to the same weights; the least of several, taken in turn so that noise hits all alike."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n_rows, n_features)).astype(precision)
    y = (x @ rng.normal(size=n_features) + rng.normal(size=n_rows)).astype(np.float64)
    frame = Frame.from_sample(x[:BLOCK_ROWS], y[:BLOCK_ROWS, None], Dense(1))

    def products() -> None:
        for lo in range(0, n_rows, BLOCK_ROWS):
            block = x[lo : lo + BLOCK_ROWS]
            _ = block.T @ block

    def moments() -> Moments:
        return Moments.from_rows(x, y[:, None], frame, Dense(1), precision=precision)

    ways: dict[str, Callable[[], object]] = {
        "matrix products alone": products,
        "streamfit: exact sums": moments,
        "streamfit: sums and solve": lambda: solve(moments(), 1.0),
        "scikit-learn Ridge(cholesky)": lambda: Ridge(alpha=1.0, solver="cholesky").fit(x, y.astype(precision)),
    }
    if importlib.util.find_spec("sklearnex") is not None:
        from sklearnex.linear_model import IncrementalRidge

        ways["scikit-learn-intelex IncrementalRidge"] = lambda: IncrementalRidge(alpha=1.0, batch_size=BLOCK_ROWS).fit(
            x, y.astype(precision)
        )
    seconds = dict.fromkeys(ways, np.inf)
    with threadpool_limits(1):
        for _ in range(repeats):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                seconds[name] = min(seconds[name], time.perf_counter() - started)
    return seconds


def report(console: Console, n_features: int, n_rows: int, precision: Precision) -> None:
    """Print one table."""
    seconds = main(n_features, n_rows, precision)
    flops = n_rows * n_features * (n_features + 1)
    table = Table(title=f"{n_rows:,} x {n_features:,} {precision}, one core")
    for column in ("", "seconds", "GFLOP/s", "rows/s", "share of the products' speed"):
        table.add_column(column, justify="right" if column else "left")
    peak = seconds["matrix products alone"]
    for name, s in seconds.items():
        table.add_row(name, f"{s:.3f}", f"{flops / s / 1e9:.1f}", f"{n_rows / s:,.0f}", f"{peak / s:.0%}")
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--rows", type=int, default=65_536)
    options = parser.parse_args()
    if len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for width in options.features:
        for kind in ("float32", "float64"):
            report(Console(), width, options.rows, kind)
