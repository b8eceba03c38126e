"""Rows for all contestants: made from a seed, summed in float64 on the way to disk, read in batches.

Imports NumPy and PyArrow alone: every contestant's interpreter has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

N_FILES = 20
"""Files of a data set: a contestant that is too slow for all rows takes the first few."""
GROUP_ROWS = 25_000
"""Largest row group: 100 MB at 1,000 float32 columns, between the 1 MB and 1 GB that writers' documentation names."""


@dataclass(frozen=True)
class Sums:
    """Sums over rows in float64, about an origin near their mean, so that centring costs no digits.

    Parameters
    ----------
    n_rows : int
    origin : float64 array of shape (d,)
    y_origin : float
    sum_z, cross : float64 arrays of shape (d,)
        Of z = x - origin, and of z (y - y_origin).
    sum_v, sum_vv : float
        Of y - y_origin, and of its square.
    gram : float64 array of shape (d, d)
    """

    n_rows: int
    origin: np.ndarray
    y_origin: float
    sum_z: np.ndarray
    sum_v: float
    sum_vv: float
    gram: np.ndarray
    cross: np.ndarray

    @property
    def y_deviation(self) -> float:
        """Standard deviation of y."""
        return float(np.sqrt(self.sum_vv / self.n_rows - (self.sum_v / self.n_rows) ** 2))

    def ridge(self, alpha: float, *, penalise_intercept: bool) -> np.ndarray:
        """Weights that minimise ``sum (y - x'w - b)² + alpha w'w``, plus ``alpha b²`` where that is penalised.

        In z the intercept is ``c = b + origin'w - y_origin``; with c in place of b no large mean is left in the system.

        Returns
        -------
        float64 array of shape (d,)
        """
        d = len(self.origin)
        gram, cross, n = self.gram, self.cross, float(self.n_rows)
        system = np.zeros((d + 1, d + 1))
        system[:d, :d] = gram
        system[:d, d] = system[d, :d] = self.sum_z
        system[d, d] = n
        right = np.append(cross, self.sum_v)
        system[np.arange(d), np.arange(d)] += alpha
        if penalise_intercept:  # alpha (c + y_origin - origin'w)²
            row = np.append(-self.origin, 1.0)
            system += alpha * np.outer(row, row)
            right -= alpha * self.y_origin * row
        return np.asarray(np.linalg.solve(system, right)[:d])


def columns(n_features: int) -> list[str]:
    """Names of the feature columns; the target is `y`."""
    return [f"x{j}" for j in range(n_features)]


def make(
    folder: Path, n_rows: int, n_features: int, *, seed: int, keep: Iterable[int] = (), mean: float = 0.0
) -> dict[int, Sums]:
    """Write ``y = x'w + noise`` as Parquet, all columns float32, features normal with standard deviation 1.

    Parameters
    ----------
    folder : Path
        Gets ``part-00.parquet`` and so on. Files that are there already, of the same recipe, are used again.
    n_rows : int
        Rounded to a multiple of the number of files.
    n_features : int
    seed : int
    keep : iterable of int
        Numbers of files for which to keep sums; all files always are.
    mean : float
        Of each feature; the target has no offset of its own.

    Returns
    -------
    dict of int to Sums
        Sums over the first so many files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = sorted({*keep, N_FILES})
    recipe = {
        "rows": n_rows,
        "features": n_features,
        "seed": seed,
        "mean": mean,
        "files": N_FILES,
        "sums": kept,
        "format": 2,
    }
    note = folder / "recipe.json"
    if note.is_file() and json.loads(note.read_text()) == recipe:
        return {k: _load(folder / f"sums-{k:02d}.npz") for k in kept}
    note.unlink(missing_ok=True)
    weights = np.random.default_rng(seed).normal(size=n_features) / np.sqrt(n_features)
    names = columns(n_features)
    total: Sums | None = None
    found = {}
    for k in range(N_FILES):
        left = n_rows // N_FILES
        with pq.ParquetWriter(
            folder / f"part-{k:02d}.parquet",
            pa.schema([(name, pa.float32()) for name in [*names, "y"]]),
            compression="snappy",  # the writers' default; such numbers do not compress
            use_dictionary=False,  # a dictionary of distinct numbers only makes a file larger
        ) as writer:
            for group in range(-(-left // GROUP_ROWS)):
                rng = np.random.default_rng([seed, k, group])
                n = min(GROUP_ROWS, left - group * GROUP_ROWS)
                x = rng.standard_normal((n_features, n), dtype=np.float32)
                x += np.float32(mean)
                y = (weights @ x.astype(np.float64) + rng.normal(size=n)).astype(np.float32)
                writer.write_table(pa.table([*map(pa.array, x), pa.array(y)], names=[*names, "y"]))
                total = _add(total, x, y)
        if total is not None and k + 1 in kept:
            found[k + 1] = total
            np.savez(folder / f"sums-{k + 1:02d}.npz", **vars(total))
    note.write_text(json.dumps(recipe))
    return found


def _add(total: Sums | None, x: np.ndarray, y: np.ndarray) -> Sums:
    """Add rows, given as columns."""
    wide = x.astype(np.float64)
    v = y.astype(np.float64)
    origin = wide.mean(axis=1) if total is None else total.origin
    y_origin = float(v.mean()) if total is None else total.y_origin
    wide -= origin[:, None]
    v -= y_origin
    new = Sums(len(y), origin, y_origin, wide.sum(axis=1), float(v.sum()), float(v @ v), wide @ wide.T, wide @ v)
    if total is None:
        return new
    parts: dict[str, Any] = {
        k: getattr(total, k) + getattr(new, k) for k in ("n_rows", "sum_z", "sum_v", "sum_vv", "gram", "cross")
    }
    return Sums(origin=origin, y_origin=y_origin, **parts)


def _load(path: Path) -> Sums:
    with np.load(path, allow_pickle=False) as stored:
        held = {name: stored[name] for name in stored.files}
    return Sums(
        n_rows=int(held.pop("n_rows")),
        y_origin=float(held.pop("y_origin")),
        sum_v=float(held.pop("sum_v")),
        sum_vv=float(held.pop("sum_vv")),
        **held,
    )


def files(folder: Path, n_files: int = N_FILES) -> list[str]:
    """The first so many files of a data set."""
    return [str(folder / f"part-{k:02d}.parquet") for k in range(n_files)]


def batches(paths: Iterable[str], n_features: int, batch_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of rows as PyArrow reads them: x, column-major of shape (n, n_features), and y of shape (n,), float32.

    `iter_batches` is PyArrow's documented way to read what does not fit in memory; with `pre_buffer=False` it holds a
    row group at a time.
    """
    for path in paths:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_rows):
                x = np.empty((batch.num_rows, n_features), np.float32, order="F")
                for j in range(n_features):
                    x[:, j] = batch.column(j)
                yield x, batch.column(n_features).to_numpy()
