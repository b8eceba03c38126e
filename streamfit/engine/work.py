"""One group's work: read, map, multiply, write a segment. Runs inside a worker.

Floor 5: imports corpus, store, moments; no Dask, so that the serial executor runs the same code.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from threadpoolctl import threadpool_limits

from streamfit.arrays import Backend, device_array
from streamfit.centered import Statistic
from streamfit.corpus import Rows, Source
from streamfit.counts import Tables
from streamfit.errors import ConfigError, MismatchError, ScaleError, ShardChangedError, ShardError
from streamfit.plan import Group, Shard
from streamfit.store import Refusal, Segment, Store

PREFETCH = 2
"""Blocks that the reader may be ahead."""


@dataclass(frozen=True)
class WorkOptions:
    """How groups are worked.

    Parameters
    ----------
    skip_bad_shards : bool
        Record shards that cannot be read and go on, instead of stopping. Each shard is then decoded twice,
        once to check it whole, since nothing of a bad one may be added.
    n_threads : int
        Tiles multiplied at the same time.
    backend : {'numpy', 'cuda'}
        Array library of the products. `cuda` has not been run on hardware.
    """

    skip_bad_shards: bool = False
    n_threads: int = 1
    backend: Backend = "numpy"


@dataclass(frozen=True)
class GroupResult:
    """What came of a group.

    Parameters
    ----------
    segment : Segment or None
        None if every shard was refused.
    refused : tuple of Refusal
    n_rows : int
    seconds : float
        From the first read to the last fsync.
    """

    segment: Segment | None
    refused: tuple[Refusal, ...]
    n_rows: int
    seconds: float


@dataclass(frozen=True)
class Sums:
    """What was summed over some shards.

    Parameters
    ----------
    moments : Moments or Triangle
    tables : mapping of str to (keys, counts)
    n_rows : dict of Shard to int
        Rows of each shard, in the order in which they were read.
    refused : tuple of Refusal
    """

    moments: Statistic
    tables: Tables
    n_rows: dict[Shard, int]
    refused: tuple[Refusal, ...] = ()


def placed(shard: Shard, where: Mapping[str, Shard]) -> Shard:
    """A counted shard where its bytes lie now, by their SHA-256; where it was counted, if they are not listed."""
    there = where.get(shard.bytes_id)
    return shard if there is None else replace(shard, uri=there.uri, start=there.start, stop=there.stop)


@contextmanager
def changed_since(expected: str, remedy: str) -> Iterator[None]:
    """Say of a shard that is gone or has changed what should be there, and what to do about it."""
    try:
        yield
    except ShardChangedError as error:
        raise ShardChangedError(error.got, expected, remedy) from error


def work_group(
    store: Store,
    source: Source,
    group: Group,
    options: WorkOptions,
    report: Callable[[int], None] = lambda _: None,
) -> GroupResult:
    """Sum a group of shards into one segment of the store. Nothing is committed here.

    Parameters
    ----------
    store : Store
    source : Source
    group : Group
    options : WorkOptions
    report : callable
        Called with the number of rows of each block done.

    Raises
    ------
    ShardError
        Naming the shard, if one cannot be counted and bad shards are not skipped.
    StoreError
        If the segment cannot be written.
    """
    started = time.perf_counter()
    sums = sum_shards(store, source, group.shards, options, report)
    segment = None
    if sums.n_rows:
        segment = store.write_segment(sums.moments, list(sums.n_rows), list(sums.n_rows.values()), sums.tables)
    return GroupResult(segment, sums.refused, sum(sums.n_rows.values()), time.perf_counter() - started)


def sum_shards(
    store: Store,
    source: Source,
    shards: Sequence[Shard],
    options: WorkOptions,
    report: Callable[[int], None] = lambda _: None,
) -> Sums:
    """Read shards and sum their rows, in memory."""
    header = store.header
    like = device_array(header.frame.origin, options.backend)
    features = header.features.like(like)
    refused: list[Refusal] = []
    n_rows: dict[Shard, int] = {}
    tally = source.tally()
    with threadpool_limits(1):
        sums = header.accumulator(like, options.n_threads)
        for shard, item in prefetched(source, shards, options.skip_bad_shards):
            if isinstance(item, ShardError):
                refused.append(Refusal(shard.key, shard.content_id, str(item)))
                continue
            n_rows.setdefault(shard, 0)
            if item is None:
                continue
            x = device_array(item.x, options.backend)
            y = device_array(item.y, options.backend)
            weights = None if item.weights is None else device_array(item.weights, options.backend)
            try:
                sums.add(features(x), y, weights=weights)
            except (ScaleError, MismatchError, ConfigError) as error:
                msg = f"{shard.key}, rows {n_rows[shard]} to {n_rows[shard] + len(item.y) - 1}: {error.got}"
                bad = ShardError(msg, error.expected, error.remedy)
                if not options.skip_bad_shards:
                    raise bad from error
                # Only the products tell that a finite number is too large, and only the features that a list has
                # another width; the group is begun again without the shard.
                refusal = Refusal(shard.key, shard.content_id, str(bad))
                rest = sum_shards(store, source, [s for s in shards if s != shard], options, report)
                return replace(rest, refused=(refusal, *rest.refused))
            if tally is not None:
                tally.add(item)
            n_rows[shard] += len(item.y)
            report(len(item.y))
        moments = sums.moments()
    return Sums(moments, tally.tables() if tally is not None else {}, n_rows, tuple(refused))


def prefetched(source: Source, shards: Sequence[Shard], skip: bool) -> Iterator[tuple[Shard, Rows | ShardError | None]]:
    """Blocks of each shard, decoded by a thread ahead of the products.

    A shard begins with (shard, None); with `skip`, a bad one gives its error instead of any rows.
    """
    ready: queue.Queue[tuple[Shard, Rows | ShardError | None] | BaseException | None] = queue.Queue(PREFETCH)
    stop = threading.Event()

    def put(item: tuple[Shard, Rows | ShardError | None] | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def read() -> None:
        try:
            for shard in shards:
                if skip and (error := _fault(source, shard)):
                    put((shard, error))
                    continue
                put((shard, None))
                for rows in source.read(shard):
                    if stop.is_set():
                        return
                    put((shard, rows))
            put(None)
        except BaseException as error:
            put(error)

    reader = threading.Thread(target=read, name="streamfit-reader", daemon=True)
    reader.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        reader.join()


def _fault(source: Source, shard: Shard) -> ShardError | None:
    try:
        for _ in source.read(shard):
            pass
    except ShardError as error:
        return error
    return None
