"""Many targets, many alphas: one decomposition against one solve an alpha, and the memory that it takes.

    python pipelines/bench_targets.py [--features 4096] [--targets 32000] [--alphas 20]

Scores every alpha for every target by generalised cross-validation, gives each target its own, and certifies all
weights. Beside it stands what one Cholesky solve of a single alpha takes in the same run: a grid search would repeat it
for every alpha, and know nothing of the error of rows that were not counted.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import numpy as np
import scipy.linalg
from rich.console import Console

from streamfit.centered import Centered
from streamfit.cli import exits
from streamfit.solve import decompose, score_alphas, solve_targets


def sums(n_features: int, n_targets: int, n_rows: int) -> Centered:
    """Centred sums of rows whose targets are predicted by some features each, well or badly."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n_rows, n_features)) * np.geomspace(1.0, 0.03, n_features)
    x -= x.mean(axis=0)
    cross, ss_y = np.empty((n_features, n_targets)), np.empty(n_targets)
    for lo in range(0, n_targets, 1024):
        part = slice(lo, min(lo + 1024, n_targets))
        weights = rng.normal(size=(n_features, part.stop - lo)) * (rng.random((n_features, part.stop - lo)) < 0.02)
        y = x @ weights + rng.normal(size=(n_rows, part.stop - lo)) * np.logspace(-1, 1, part.stop - lo)
        y -= y.mean(axis=0)
        cross[:, part], ss_y[part] = x.T @ y, np.sum(y * y, axis=0)
    gram = x.T @ x
    zeros = np.zeros(n_features)
    noise = np.finfo(float).eps * np.diag(gram)
    return Centered(n_rows, float(n_rows), zeros, np.zeros(n_targets), gram, cross, ss_y, noise)


def peak_gb() -> float:
    """Most memory that this process ever held, by the system's own figure."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1e6 if found else float("nan")


def main(n_features: int, n_targets: int, n_alphas: int, console: Console) -> None:
    """Time the steps, and print what they took."""
    c = sums(n_features, n_targets, 2 * n_features)
    before = peak_gb()
    alphas = np.logspace(-2, 4, n_alphas)

    def timed(what: str, started: float) -> float:
        seconds = time.perf_counter() - started
        console.print(f"{what:<52} {seconds:8.1f} s   peak {peak_gb():.1f} GB")
        return seconds

    started = time.perf_counter()
    factor = scipy.linalg.cho_factor(c.gram + np.eye(n_features), overwrite_a=True)
    scipy.linalg.cho_solve(factor, c.cross)
    one = timed("one alpha by Cholesky", started)
    started = time.perf_counter()
    spectrum = decompose(c, smallest_alpha=float(alphas[0]))
    total = timed(f"decomposition ({spectrum.method}, rank {spectrum.rank:,})", started)
    started = time.perf_counter()
    scores = score_alphas(spectrum, alphas)
    total += timed(f"GCV of {n_alphas} alphas for {n_targets:,} targets", started)
    started = time.perf_counter()
    found = solve_targets(c, scores.best_per_target("gcv"), spectrum=spectrum)
    total += timed("weights of each target at its own alpha, certified", started)
    chosen, counts = np.unique(found.alphas, return_counts=True)
    console.print(f"alphas chosen: {', '.join(f'{a:.3g} ({n:,})' for a, n in zip(chosen, counts, strict=True))}")
    console.print(f"loss - optimum <= {found.certificate.suboptimality:.2e} of {found.certificate.null_loss:.4g}")
    console.print(
        f"all of it: {total:.1f} s, {total / one:.1f} times one Cholesky solve, where a grid takes {n_alphas};"
        f" {peak_gb():.1f} GB at the peak, {before:.1f} GB of them for making the sums"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--targets", type=int, default=32_000)
    parser.add_argument("--alphas", type=int, default=20)
    given = parser.parse_args()
    with exits():
        main(given.features, given.targets, given.alphas, Console(width=140, highlight=False))
