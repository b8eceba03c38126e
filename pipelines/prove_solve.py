"""What each solve is worth on problems that are hard for it, against optima in 60 digits: one table.

    python pipelines/prove_solve.py [--rows 300] [--features 8] [--json out.json]

Each row fits one problem by one method. Beside the relative error of the weights stands the certificate: the bound on
L(B) - L*, and that gap itself, in 60 digits, of the same objective (of the stored sums, of the stored triangle, or,
after refining, of the data). The exit code is 1 where a bound does not hold. Peers: NumPy's `lstsq` on the rows, with
all of them in memory, and centred normal equations in float64. Takes mpmath, which the extra `test` brings.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mpmath import mp, mpf
from rich.console import Console
from rich.table import Table

from streamfit import Dense, Frame, Moments, Solution, Triangle
from streamfit.arrays import Precision
from streamfit.centered import Centered
from streamfit.cli import exits
from streamfit.solve import Refinement, solve, solve_triangle
from streamfit.solve.ridge import without_constants

mp.dps = 60
Matrix = Any


@dataclass(frozen=True)
class Exact:
    """A quadratic objective in 60 digits, about the means: ss_y - 2<B, C> + <B, G B> + alpha ||B||²."""

    gram: Matrix
    cross: Matrix
    ss_y: Matrix
    alpha: float
    rows: tuple[Matrix, Matrix] | None = None

    @classmethod
    def of_rows(cls, phi: np.ndarray, y: np.ndarray, alpha: float) -> Exact:
        z, t = _centred(phi), _centred(y)
        return cls(z.T * z, z.T * t, sum(v * v for v in t), alpha, (_matrix(phi), _matrix(y)))

    @classmethod
    def of_sums(cls, c: Centered, alpha: float) -> Exact:
        return cls(_matrix(c.gram), _matrix(c.cross), sum(mpf(float(v)) for v in c.ss_y), alpha)

    @classmethod
    def of_triangle(cls, triangle: Triangle, alpha: float) -> Exact:
        x, xy, y = (_matrix(a) for a in triangle.centered_factor())
        return cls(x.T * x, x.T * xy, sum(v * v for v in xy) + sum(v * v for v in y), alpha)

    def optimum(self) -> Matrix:
        """The solution of least norm."""
        values, vectors = mp.eigsy(self.gram)
        least = mpf(10) ** -40 * max(values)
        inverse = mp.diag([1 / (v + self.alpha) if abs(v + self.alpha) > least else mpf(0) for v in values])
        return vectors * inverse * vectors.T * self.cross

    def gap(self, weights: np.ndarray, intercept: np.ndarray) -> float:
        """L(B) - L*: the quadratic form of the error, which cannot cancel; of the data, with the intercept's part."""
        mine = _matrix(weights)
        off, level = mine - self.optimum(), mpf(0)
        if self.rows is not None:
            x, y = self.rows
            for k in range(y.cols):
                missed = sum(y[i, k] - sum(x[i, j] * mine[j, k] for j in range(x.cols)) for i in range(x.rows))
                level += x.rows * (missed / x.rows - mpf(float(intercept[k]))) ** 2
        form = sum((off.T * (self.gram * off))[k, k] for k in range(off.cols))
        return float(form + self.alpha * mp.norm(off) ** 2 + level)


def _matrix(a: np.ndarray) -> Matrix:
    return mp.matrix([[mpf(float(v)) for v in row] for row in a])


def _centred(a: np.ndarray) -> Matrix:
    m = _matrix(a)
    for j in range(m.cols):
        mean = sum(m[i, j] for i in range(m.rows)) / m.rows
        for i in range(m.rows):
            m[i, j] -= mean
    return m


def problems(n: int, d: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, features and targets."""
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(n, d)))
    v, _ = np.linalg.qr(rng.normal(size=(d, d)))
    plain = rng.normal(size=(n, d))
    signal = rng.normal(size=(d, 2))

    def targets(phi: np.ndarray) -> np.ndarray:
        units = phi.std(axis=0)
        found: np.ndarray = (phi - phi.mean(axis=0)) / np.where(units > 0, units, 1.0) @ signal
        found += rng.normal(size=(n, 2)) + np.array([100.0, -3.0])
        return found

    yield "well posed", plain, targets(plain)
    yield "mean 1e6 times the spread", plain + 1e6, targets(plain)
    scaled = plain * np.logspace(-9, 9, d)
    yield "units from 1e-9 to 1e9", scaled, targets(scaled)
    yield "a column twice", np.hstack([plain, plain[:, :1]]), targets(plain)
    yield "a constant column", np.hstack([plain, np.full((n, 1), 0.1)]), targets(plain)
    powers = np.vander(np.linspace(0.0, 1.0, n), d + 1)[:, :-1]
    yield f"powers 1 to {d} (Hilbert)", powers, targets(powers)
    for log_condition in (4, 6, 8, 10, 12, 13):
        bad = np.sqrt(n) * u * np.logspace(0, -log_condition, d) @ v.T
        yield f"condition 1e{log_condition}", bad, bad @ signal + 1e-3 * rng.normal(size=(n, 2))


def methods(phi: np.ndarray, y: np.ndarray, alpha: float) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name, and what gives weights, bound (None for peers) and the objective that it speaks of."""
    kind, frame = Dense(y.shape[1]), Frame.from_sample(phi[:100], y[:100], Dense(y.shape[1]))

    def sums(precision: Precision) -> Centered:
        return Moments.from_rows(phi, y, frame, kind, precision=precision).centered()

    def gram(precision: Precision) -> tuple[Solution, float, Exact]:
        c = sums(precision)
        found = solve(c, alpha)
        # As they are solved: what rounding leaves of a constant is cleared.
        return found, found.certificate.suboptimality, Exact.of_sums(without_constants(c), alpha)

    def refined(precision: Precision, corrections: int) -> tuple[Solution, float, Exact]:
        c = sums(precision)
        refinement = Refinement(c, alpha, solve(c, alpha))
        bound = refinement.measure(refinement.walk.block(phi, y)).suboptimality
        for _ in range(corrections):
            refinement.correct()
            bound = refinement.measure(refinement.walk.block(phi, y)).suboptimality
        return refinement.solution, bound, Exact.of_rows(phi, y, alpha)

    def triangle() -> tuple[Solution, float, Exact]:
        t = Triangle.from_rows(phi, y, frame, kind)
        found = solve_triangle(t, alpha)
        return found, found.certificate.suboptimality, Exact.of_triangle(t, alpha)

    def lstsq() -> tuple[np.ndarray, None, None]:
        x, t = phi - phi.mean(axis=0), y - y.mean(axis=0)
        rows = np.vstack([x, np.sqrt(alpha) * np.eye(len(x.T))])
        return np.linalg.lstsq(rows, np.vstack([t, np.zeros((len(x.T), 2))]), rcond=None)[0], None, None

    def normal() -> tuple[np.ndarray, None, None]:
        x, t = phi - phi.mean(axis=0), y - y.mean(axis=0)
        try:
            return np.linalg.solve(x.T @ x + alpha * np.eye(len(x.T)), x.T @ t), None, None
        except np.linalg.LinAlgError:
            return np.full((len(x.T), 2), np.nan), None, None

    yield "numpy lstsq", lstsq
    yield "normal equations", normal
    yield "sums float64", lambda: gram("float64")
    yield "sums float32", lambda: gram("float32")
    yield "float32, refined once", lambda: refined("float32", 1)
    yield "float32, refined 10 times", lambda: refined("float32", 10)
    yield "triangle", triangle


def main(n_rows: int, n_features: int, alpha: float, console: Console) -> list[dict[str, Any]]:
    """Fit all problems by all methods, and print the table."""
    rows = []
    for name, phi, y in problems(n_rows, n_features):
        best = Exact.of_rows(phi, y, alpha).optimum()
        spectrum = np.linalg.svd(phi - phi.mean(axis=0), compute_uv=False)
        condition = np.sqrt((spectrum[0] ** 2 + alpha) / (spectrum[-1] ** 2 + alpha)) if spectrum[-1] else np.inf
        for method, fit in methods(phi, y, alpha):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                started = time.perf_counter()
                found, bound, exact = fit()
                seconds = time.perf_counter() - started
            weights = found.weights if isinstance(found, Solution) else found
            finite = np.isfinite(weights).all()
            error = float(mp.norm(_matrix(weights) - best) / mp.norm(best)) if finite else float("nan")
            gap = exact.gap(weights, found.intercept) if exact is not None else None
            rows.append(
                {
                    "problem": name,
                    "alpha": alpha,
                    "condition": float(condition),
                    "method": method,
                    "error": error,
                    "bound": bound,
                    "gap": gap,
                    # An infinite bound claims nothing.
                    "holds": None if gap is None or bound is None or np.isinf(bound) else bool(gap <= bound),
                    "rank": found.rank if isinstance(found, Solution) else None,
                    "milliseconds": 1e3 * seconds,
                }
            )
    _print(rows, console)
    return rows


def _print(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=f"against optima in {mp.dps} digits, alpha {rows[0]['alpha']:g}")
    for column in ("problem", "condition", "method", "error of weights", "gap", "bound", "", "rank", "ms"):
        table.add_column(column, justify="left" if column in ("problem", "method") else "right", no_wrap=True)
    last = ""
    for row in rows:
        new = row["problem"] != last
        last = row["problem"]
        certified = row["bound"] is not None
        table.add_row(
            row["problem"] if new else "",
            f"{row['condition']:.1e}" if new else "",
            row["method"],
            f"{row['error']:.1e}",
            f"{row['gap']:.1e}" if row["holds"] is not None else "",
            f"{row['bound']:.1e}" if certified else "",
            {True: "holds", False: "FAILS", None: "no claim" if certified else ""}[row["holds"]],
            "" if row["rank"] is None else str(row["rank"]),
            f"{row['milliseconds']:.1f}",
            end_section=row["method"] == "triangle",
        )
    console.print(table)
    claims = [row["holds"] for row in rows if row["holds"] is not None]
    console.print(f"{claims.count(True)} of {len(claims)} finite bounds hold")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--features", type=int, default=8)
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.0, 1e-6])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with exits():
        found = [row for alpha in given.alpha for row in main(given.rows, given.features, alpha, Console(width=140))]
        if given.json:
            given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
        sys.exit(any(row["holds"] is False for row in found))
