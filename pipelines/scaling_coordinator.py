"""Whether one coordinator keeps up with thousands of groups: the package's own run loop on groups that cost nothing.

Every group is one shard of one row, so that what is left is what a group costs besides its rows: a Dask task, a
segment, a ledger, a record of the log, merges and collections. Part of `bench_scaling.py`.
"""

from __future__ import annotations

import cProfile
import hashlib
import os
import pstats
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from distributed import Client

from streamfit import Dense, Frame, Header, Linear, Moments, Store
from streamfit.corpus import Rows, Source
from streamfit.engine import accumulate
from streamfit.errors import MismatchError, ShardError
from streamfit.plan import Shard


@dataclass(frozen=True)
class OneRow(Source):
    """Shards of one row each, which are made and not read; row t is (t mod 32, 1) with a target one above.

    Small whole numbers: float32 sums of their products over a block are exact, whatever rows a group has.
    """

    n_shards: int

    def shards(self) -> list[Shard]:
        names = (f"{i:08d}" for i in range(self.n_shards))
        return [Shard(n, n, 0, 1, 8, 1, hashlib.sha256(n.encode()).hexdigest(), "one-row") for n in names]

    def read(self, shard: Shard) -> Iterator[Rows]:
        value = float(int(shard.key) % 32)
        yield Rows(np.array([[value, 1.0]]), np.array([[value + 1]]))

    def positions(self, shard: Shard, column: str, values: frozenset[str]) -> tuple[int, ...]:
        msg = f"{shard.key}: no column {column!r}"
        raise ShardError(msg, "rows without names")


def empty_store(where: Path) -> Store:
    """A store for `OneRow`: two features, one target, one fold."""
    return Store.create(where, Header(Linear(2), Dense(1), Frame.identity(2, 1), "float32", 1))


@dataclass(frozen=True)
class Coordination:
    """What one simulation took.

    Parameters
    ----------
    n_groups, n_records : int
        Groups that were counted, and records of the log that it took, merges included.
    seconds : float
        From the plan to the last commit.
    coordinator_cpu, worker_cpu : float
        Processor seconds of this process (run loop, Dask client and, for a local cluster, the scheduler), and of its
        child processes.
    fsync_ms : float
        Milliseconds to write and flush a file of 4 kB on that disk, in the same run.
    rss, grown : int
        Bytes of this process at the end, and how much more than at the start.
    profile : tuple of (str, float)
        Functions of the run loop's thread with the most seconds of their own, if it was profiled.
    """

    n_groups: int
    n_records: int
    seconds: float
    coordinator_cpu: float
    worker_cpu: float
    fsync_ms: float
    rss: int
    grown: int
    profile: tuple[tuple[str, float], ...] = ()

    @property
    def groups_per_s(self) -> float:
        """Groups scheduled, summed, written and committed in a second; each is a Dask task, merges are more."""
        return self.n_groups / self.seconds

    @property
    def records_per_s(self) -> float:
        """Records of the log in a second."""
        return self.n_records / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Processor milliseconds of the coordinator for each group: what bounds it where workers are many."""
        return 1e3 * self.coordinator_cpu / self.n_groups


def simulate(n_groups: int, folder: Path, client: Client | None, *, profile: bool = False) -> Coordination:
    """Count groups of one row each into a new store below a folder, and check the sums.

    Raises
    ------
    MismatchError
        If the sums are not those of the rows.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        store, source = empty_store(Path(name) / "store"), OneRow(n_groups)
        flushing, process, profiler = fsync_ms(Path(name)), psutil.Process(), cProfile.Profile()
        children = process.children(recursive=True)
        before, rss, started = _cpu([process], children), process.memory_info().rss, time.perf_counter()
        if profile:
            profiler.enable()
        accumulate(store, source, client=client, group_rows=1)
        if profile:
            profiler.disable()
        seconds, after = time.perf_counter() - started, _cpu([process], children)
        rows = [next(source.read(shard)) for shard in source.shards()]
        x, y = np.concatenate([r.x for r in rows]), np.concatenate([r.y for r in rows])
        header = store.header
        if store.moments() != Moments.from_rows(x, y, header.frame, header.targets, precision=header.precision):
            msg = f"sums of {n_groups} groups that are not those of their rows"
            raise MismatchError(msg, "each group once")
        now = process.memory_info().rss
        return Coordination(
            n_groups,
            store.head().sequence,
            seconds,
            after[0] - before[0],
            after[1] - before[1],
            flushing,
            now,
            now - rss,
            _heaviest(profiler) if profile else (),
        )


def _cpu(*sides: list[psutil.Process]) -> list[float]:
    return [sum(sum(process.cpu_times()[:2]) for process in side) for side in sides]


def _heaviest(profiler: cProfile.Profile, n: int = 12) -> tuple[tuple[str, float], ...]:
    found = pstats.Stats(profiler).get_stats_profile().func_profiles
    own = sorted(((name, stats.tottime) for name, stats in found.items()), key=lambda item: -item[1])
    return tuple(own[:n])


def growth(found: list[Coordination]) -> float:
    """Exponent p of processor seconds of the coordinator ~ groups^p, by least squares on logarithms; 1 is linear."""
    groups, cpu = np.log([c.n_groups for c in found]), np.log([c.coordinator_cpu for c in found])
    return float(np.polyfit(groups, cpu, 1)[0])


def fsync_ms(folder: Path, n: int = 50) -> float:
    """Median milliseconds of writing and flushing a file of 4 kB."""
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
