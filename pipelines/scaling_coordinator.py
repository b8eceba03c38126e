"""Whether one coordinator keeps up with thousands of groups: the package's own run loop on groups that cost nothing.

Every group is one shard of one row, so that what is left is what a group costs besides its rows: a Dask task, a segment,
a ledger, a record of the log, merges and collections. Part of `bench_scaling.py`.
"""

from __future__ import annotations

import cProfile
import hashlib
import pstats
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from distributed import Client
from rich.console import Console

from streamfit import Dense, Frame, Header, Linear, Store
from streamfit.corpus import Rows, Source
from streamfit.engine import accumulate
from streamfit.errors import StreamfitError
from streamfit.plan import Shard


@dataclass(frozen=True)
class OneRow(Source):
    """Shards of one row each, which are made and not read; row t is (t, 1) with target t + 1."""

    n_shards: int

    def shards(self) -> list[Shard]:
        names = (f"{i:08d}" for i in range(self.n_shards))
        return [Shard(n, n, 0, 1, 8, 1, hashlib.sha256(n.encode()).hexdigest(), "one-row") for n in names]

    def read(self, shard: Shard) -> Iterator[Rows]:
        value = float(int(shard.key) % 1024)
        yield Rows(np.array([[value, 1.0]]), np.array([[value + 1]]))

    def positions(self, shard: Shard, column: str, values: frozenset[str]) -> tuple[int, ...]:
        raise NotImplementedError


def empty_store(where: Path) -> Store:
    """A store for `OneRow`: two features, one target, one fold."""
    return Store.create(where, Header(Linear(2), Dense(1), Frame.identity(2, 1), "float32", 1))


@dataclass(frozen=True)
class Coordination:
    """What one simulation took.

    Parameters
    ----------
    n_groups, n_records : int
        Groups that were counted, and records of the log that it took.
    seconds : float
    coordinator_seconds : float
        Processor seconds of this process: coordinator, Dask client, and the scheduler where it runs here too.
    worker_seconds : float
        Processor seconds of the workers.
    fsync_ms : float
        Milliseconds of one fsync of a small new file, measured before and after.
    latency_ms : float
        Longest time between two signs of life of the run loop, as a progress bar would show them.
    rss, rss_grown : int
        Bytes of this process at its peak, and by how much they grew during the run.
    """

    n_groups: int
    n_records: int
    seconds: float
    coordinator_seconds: float
    worker_seconds: float
    fsync_ms: float
    latency_ms: float
    rss: int
    rss_grown: int

    @property
    def groups_per_s(self) -> float:
        """Groups that were computed, written and committed in a second."""
        return self.n_groups / self.seconds

    @property
    def commits_per_s(self) -> float:
        """Records of the log in a second."""
        return self.n_records / self.seconds


def fsync_ms(folder: Path, n: int = 50) -> float:
    """Median milliseconds of writing and flushing a file of 4 kB."""
    import os

    found = []
    for i in range(n):
        started = time.perf_counter()
        with (folder / f"fsync-{i}").open("xb") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        found.append(time.perf_counter() - started)
        (folder / f"fsync-{i}").unlink()
    return float(np.median(found)) * 1e3
