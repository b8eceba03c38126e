"""Time and bytes of an accumulation as a sum of few terms, fitted on measured runs. Part of `bench_scaling.py`.

One worker takes, for B bytes of corpus, F flops and G groups whose sums have S bytes each,

    T = B / read + F / flops + G * group + G * S / write

with the four constants not negative, by least squares on relative errors (Lawson & Hanson's NNLS). What happens
besides, on other machines or disks at the same time, does not add to it: a whole run takes the longest of these, before
it the hashing of every byte, by the workers, and after it the solve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from streamfit.errors import ConfigError
from streamfit.plan import Plan, default_group_rows

MERGED = 32
"""Segments that a merge puts into one, about: `Upkeep` merges when three quarters of 64 are there."""
TERMS = ("read bytes", "flops", "groups", "segment bytes")
OVERLAPPING = ("workers", "storage", "commits", "scheduler")
"""What goes on at the same time."""


@dataclass(frozen=True)
class Point:
    """A measured run of one worker.

    Parameters
    ----------
    n_features, n_rows, n_groups : int
    read_bytes, segment_bytes : int
        Of the corpus's files, and of all segments that groups wrote.
    flops : float
    seconds : float
    """

    n_features: int
    n_rows: int
    n_groups: int
    read_bytes: int
    segment_bytes: int
    flops: float
    seconds: float

    @property
    def terms(self) -> np.ndarray:
        """What the constants multiply."""
        return np.array([self.read_bytes, self.flops, self.n_groups, self.segment_bytes], float)


@dataclass(frozen=True)
class Costs:
    """Seconds of one worker for each of `TERMS`, and the relative residuals of the fit."""

    seconds: tuple[float, ...]
    residuals: tuple[float, ...] = ()

    @classmethod
    def fit(cls, points: Sequence[Point]) -> Costs:
        """Fit measured runs.

        Raises
        ------
        ConfigError
            If there are fewer runs than constants.
        """
        if len(points) < len(TERMS):
            msg = f"{len(points)} measured runs"
            raise ConfigError(msg, f"at least {len(TERMS)}, for as many constants")
        a = np.array([point.terms / point.seconds for point in points])
        scale = np.linalg.norm(a, axis=0)
        found, _ = nnls(a / scale, np.ones(len(points)))
        seconds = found / scale
        return cls(tuple(map(float, seconds)), tuple(map(float, a @ seconds - 1.0)))

    def predict(self, point: Point) -> float:
        """Seconds of a run of one worker."""
        return float(point.terms @ self.seconds)


@dataclass(frozen=True)
class Site:
    """Where a run is projected to: what was measured here, and what is assumed of another place.

    Parameters
    ----------
    name : str
    n_workers : int
    flops : float
        Of one worker, a second.
    storage : float
        Bytes a second that all workers together read and write; an assumption.
    groups_per_s : float
        What the coordinator commits, in a run of `groups_seen` groups.
    tasks_per_s : float
        What the scheduler hands out.
    assumed : tuple of str
        Which of these were not measured.
    groups_seen : int
    growth : float
        The coordinator's time grows as this power of the groups; 1 is linear.
    """

    name: str
    n_workers: int
    flops: float
    storage: float
    groups_per_s: float
    tasks_per_s: float
    assumed: tuple[str, ...] = ()
    groups_seen: int = 1
    growth: float = 1.0


@dataclass(frozen=True)
class Projection:
    """Seconds of each part of a run, and bytes.

    Parameters
    ----------
    n_rows, n_groups, sum_bytes : int
        Rows, groups, and bytes of one group's sums.
    overlapping : dict of str to float
        Seconds of what goes on at the same time; the longest is the bottleneck.
    hashing : float
        Seconds in which workers hash the corpus, before any of that.
    solve : float
        Seconds of the one solve after it.
    reduce_bytes : int
        Written as segments, read and written again by merges.
    """

    n_rows: int
    n_groups: int
    sum_bytes: int
    overlapping: dict[str, float]
    hashing: float
    solve: float
    reduce_bytes: int

    @property
    def bottleneck(self) -> str:
        """What the run waits for."""
        parts = {**self.overlapping, "hashing": self.hashing, "solve": self.solve}
        return max(parts, key=parts.__getitem__)

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.hashing + max(self.overlapping.values()) + self.solve


def project(
    corpus_bytes: float,
    n_features: int,
    row_bytes: float,
    site: Site,
    costs: Costs,
    *,
    hash_rate: float,
    solve_rate: float,
    n_targets: int = 1,
) -> Projection:
    """Time and bytes of a corpus at another place.

    Parameters
    ----------
    corpus_bytes, row_bytes : float
        Bytes of all files, and of one row in them.
    n_features, n_targets : int
    site : Site
    costs : Costs
        Of reading and of groups, as measured; the rate of products is the site's.
    hash_rate : float
        Bytes a second that one worker hashes; the measured runs hash as well, so what they take a byte holds it.
    solve_rate : float
        Flops a second of the Cholesky factorisation, D³/3 of them.
    """
    n_rows = int(corpus_bytes / row_bytes)
    n_groups = -(-n_rows // default_group_rows(n_features, n_targets))
    plan = Plan((), n_features, n_targets, n_features, "float32", False, site.n_workers, 0)
    read, _, group, write = costs.seconds
    # A worker decodes and writes on its own cores: measured beside the products, so it adds to them.
    alone = {
        "decoding": corpus_bytes * max(0.0, read - 1.0 / hash_rate),
        "products": n_rows * plan.flops_per_row / site.flops,
        "segments": n_groups * (group + plan.sum_bytes * write),
    }
    busy = min(site.n_workers, n_groups)  # a group is one worker's
    # Each segment is written once, read by a merge, and one in `MERGED` sums is written by it.
    reduce_bytes = int(n_groups * plan.sum_bytes * (2 + 1 / MERGED))
    overlapping = {
        "workers": sum(alone.values()) / busy,
        "storage": (corpus_bytes + reduce_bytes) / site.storage,
        "commits": n_groups / site.groups_per_s * max(1.0, n_groups / site.groups_seen) ** (site.growth - 1.0),
        "scheduler": n_groups / site.tasks_per_s,
    }
    hashing = max(corpus_bytes / site.storage, corpus_bytes / hash_rate / site.n_workers)
    solve = n_features**3 / 3 / solve_rate
    return Projection(n_rows, n_groups, plan.sum_bytes, overlapping, hashing, solve, reduce_bytes)
