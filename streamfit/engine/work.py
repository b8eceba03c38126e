"""One group's work: read, map, multiply, write a segment. Runs inside a worker.

Floor 5: imports corpus, store, moments; no Dask, so that the serial executor runs the same code.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from streamfit.arrays import Array, Backend, column_major, device_array, row_major
from streamfit.centered import Statistic
from streamfit.corpus import Rows, Source
from streamfit.corpus.spare import BLOCKS
from streamfit.counted import count_rows, piece_rows
from streamfit.engine.feed import fed, transport_to
from streamfit.errors import ConfigError, MismatchError, ScaleError, ShardChangedError, ShardError, StoreError
from streamfit.features import Linear
from streamfit.frame import BLOCK_ROWS, Panel, panels_of
from streamfit.merging import LargeTables
from streamfit.moments import Moments, MomentsAccumulator
from streamfit.plan import BLOCKS_AHEAD, Group, Shard
from streamfit.store import Header, Refusal, Segment, Store, WrittenPanel, discard_panels, stitch, write_panel

PREFETCH = BLOCKS_AHEAD - 2
"""Blocks that may wait between the reader, which makes one, and the sums, which take one."""


@dataclass(frozen=True)
class WorkOptions:
    """How groups are worked.

    Parameters
    ----------
    skip_bad_shards : bool
        Record shards that cannot be read and go on, instead of stopping. Each shard is then decoded twice,
        once to check it whole, since nothing of a bad one may be added.
    n_threads : int
        Tiles, or runs of neighbouring ones, multiplied at the same time on the host; a GPU has threads of its own.
    backend : {'numpy', 'cuda'}
        Array library of the products. `cuda` has not been run on hardware.
    n_bands : int
        The least bands that rows and columns of the Gram matrix are cut into, to sum a panel at a time; see `Panel`.
    """

    skip_bad_shards: bool = False
    n_threads: int = 1
    backend: Backend = "numpy"
    n_bands: int = 1


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
    tables : mapping of str to tables of counts, in memory or on disk
    n_rows : dict of Shard to int
        Rows of each shard, in the order in which they were read.
    refused : tuple of Refusal
    """

    moments: Statistic
    tables: LargeTables
    n_rows: dict[Shard, int]
    refused: tuple[Refusal, ...] = ()


def placed(shard: Shard, where: Mapping[str, Shard]) -> Shard:
    """A counted shard where its bytes lie now, by their hash; where it was counted, if they are not listed."""
    there = where.get(shard.bytes_id)
    return (
        shard if there is None else replace(shard, uri=there.uri, start=there.start, stop=there.stop, stamp=there.stamp)
    )


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
    if options.n_bands > 1:
        panels = panels_of(store.header.frame.n_features, options.n_bands)
        first = work_panel(store, source, group, panels[0], options, report)
        rest = [work_panel(store, source, group, panel, options) for panel in panels[1:]]
        result = stitch_group(store, [first, *rest])
        discard_panels(store, [panel.panel for panel in (first, *rest)])
        return result
    sums = sum_shards(store, source, group.shards, options, report)
    segment = None
    if sums.n_rows:
        segment = store.write_segment(sums.moments, list(sums.n_rows), list(sums.n_rows.values()), sums.tables)
    return GroupResult(segment, sums.refused, sum(sums.n_rows.values()), time.perf_counter() - started)


@dataclass(frozen=True)
class PanelResult:
    """What came of one panel of a group: not yet a segment.

    Parameters
    ----------
    panel : WrittenPanel
    n_rows : tuple of (Shard, int)
        Rows of each shard that was read.
    refused : tuple of Refusal
    seconds : float
    """

    panel: WrittenPanel
    n_rows: tuple[tuple[Shard, int], ...]
    refused: tuple[Refusal, ...]
    seconds: float


def work_panel(
    store: Store,
    source: Source,
    group: Group,
    panel: Panel,
    options: WorkOptions,
    report: Callable[[int], None] = lambda _: None,
) -> PanelResult:
    """Sum one panel of a group; raises as `work_group`."""
    started = time.perf_counter()
    sums = sum_shards(store, source, group.shards, options, report, panel)
    assert isinstance(sums.moments, Moments)  # a triangle has no panels
    written = write_panel(store, sums.moments, panel, sums.tables)
    return PanelResult(written, tuple(sums.n_rows.items()), sums.refused, time.perf_counter() - started)


def stitch_group(store: Store, panels: Sequence[PanelResult]) -> GroupResult:
    """Make the segment of a group of all its panels.

    Raises
    ------
    StoreError
        If they were made of different rows, or one is lost.
    """
    started, first = time.perf_counter(), panels[0]
    if any(panel.n_rows != first.n_rows for panel in panels):
        msg = f"panels of different rows in the group of {first.n_rows[0][0].key if first.n_rows else 'no shard'}"
        raise StoreError(msg, "the same rows each time", "the corpus changed while it was read; run again")
    shards, n_rows = [shard for shard, _ in first.n_rows], [n for _, n in first.n_rows]
    segment = stitch(store, [panel.panel for panel in panels], shards, n_rows) if shards else None
    seconds = time.perf_counter() - started + sum(panel.seconds for panel in panels)
    return GroupResult(segment, first.refused, sum(n_rows), seconds)


def sum_shards(
    store: Store,
    source: Source,
    shards: Sequence[Shard],
    options: WorkOptions,
    report: Callable[[int], None] = lambda _: None,
    panel: Panel | None = None,
) -> Sums:
    """Read shards and sum their rows, in memory; with a panel, that part of the Gram matrix alone."""
    refused: list[Refusal] = []
    left = list(shards)
    while True:
        try:
            sums = _summed(store, source, left, options, report, panel)
        except _UnsummableError as found:
            # Only the products tell that a finite number is too large, and only the features that a list has another
            # width; the group is begun again without the shard, once nothing is left of its sums.
            refused.append(Refusal(found.shard.key, found.shard.content_id, str(found.fault)))
            left = [shard for shard in left if shard != found.shard]
        else:
            return replace(sums, refused=(*refused, *sums.refused))


class _UnsummableError(Exception):
    """A shard whose rows cannot be added, although they could be read."""

    def __init__(self, shard: Shard, fault: ShardError) -> None:
        super().__init__(str(fault))
        self.shard, self.fault = shard, fault


def _summed(
    store: Store,
    source: Source,
    shards: Sequence[Shard],
    options: WorkOptions,
    report: Callable[[int], None],
    panel: Panel | None,
) -> Sums:
    header = store.header
    like = device_array(header.frame.origin, options.backend)
    features = header.features.like(like)
    refused: list[Refusal] = []
    n_rows: dict[Shard, int] = {}
    tally = source.tally()
    with threadpool_limits(1):
        sums = header.accumulator(like, options.n_threads if options.backend == "numpy" else 1, panel)
        read = _pieces(header, source, shards, options.skip_bad_shards)
        # Counted rows are looked for on the host, and travel when they are found.
        moving = ((tag, None if header.counted else _arrays_of(tag[1])) for tag in read)
        for (shard, item), there in fed(moving, transport_to(options.backend)):
            if isinstance(item, ShardError):
                refused.append(Refusal(shard.key, shard.content_id, str(item)))
                continue
            n_rows.setdefault(shard, 0)
            if item is None:
                continue
            if tally is not None:
                tally.add(item)  # first, for the sums may overwrite what they are given
            try:
                if header.counted and isinstance(sums, MomentsAccumulator):
                    for block in count_rows(item.x, item.y, item.weights, header.frame, header.targets):
                        moved = block.moved(lambda array: device_array(array, options.backend))
                        sums.add_counted(features.pieces(moved.x), moved)
                elif there is not None:
                    x, y, weights = there
                    x = _as_taken(x, header)
                    if isinstance(sums, MomentsAccumulator):
                        sums.add(features.pieces(x), y, weights=weights)
                    else:
                        sums.add(features(x), y, weights=weights)
            except (ScaleError, MismatchError, ConfigError) as error:
                msg = f"{shard.key}, rows {n_rows[shard]} to {n_rows[shard] + len(item.y) - 1}: {error.got}"
                bad = ShardError(msg, error.expected, error.remedy)
                read.close()  # and with it the reader, and the rows that it has ready
                if options.skip_bad_shards:
                    raise _UnsummableError(shard, bad) from None
                raise bad from error
            n_rows[shard] += len(item.y)
            report(len(item.y))
        moments = sums.moments()
    return Sums(moments, tally.tables() if tally is not None else {}, n_rows, tuple(refused))


def _as_taken(inputs: Array, header: Header) -> Array:
    """Inputs in the layout that features are made in: one for a store, for their products may round with it.

    The inputs themselves, where they are the features, lie as they were read.
    """
    if isinstance(header.features, Linear):
        return inputs
    by_columns = header.features.by_columns and not header.targets.one_hot
    return column_major(inputs) if by_columns else row_major(inputs)


def _arrays_of(item: Rows | ShardError | None) -> tuple[np.ndarray | None, ...] | None:
    return (item.x, item.y, item.weights) if isinstance(item, Rows) else None


def _pieces(
    header: Header, source: Source, shards: Sequence[Shard], skip: bool
) -> Generator[tuple[Shard, Rows | ShardError | None], None, None]:
    """Blocks of each shard; where equal rows are counted, the pieces of it among which they are looked for.

    A piece is cut at a number of rows from the shard's first, so that sums are a function of each shard alone.
    """
    if not header.counted:
        yield from prefetched(source, shards, skip)
        return
    n_values = 1 if header.targets.one_hot else header.targets.n_targets
    limit = piece_rows(header.features.n_inputs, n_values)
    held: list[Rows] = []
    last: Shard | None = None
    for shard, item in prefetched(source, shards, skip, ahead=max(PREFETCH, limit // BLOCK_ROWS)):
        if last is not None and held and not (isinstance(item, Rows) and sum(len(r.x) for r in held) < limit):
            whole, held = _joined(held), []
            yield last, whole
            del whole
        last = shard
        if isinstance(item, Rows):
            held.append(item)
        else:
            yield shard, item
    if last is not None and held:
        yield last, _joined(held)


def _joined(parts: Sequence[Rows]) -> Rows:
    given = [part.weights for part in parts if part.weights is not None]
    return Rows(
        np.concatenate([row_major(part.x) for part in parts]),
        np.concatenate([part.y for part in parts]),
        np.concatenate(given) if given else None,
    )


def prefetched(
    source: Source, shards: Sequence[Shard], skip: bool, *, ahead: int = PREFETCH
) -> Iterator[tuple[Shard, Rows | ShardError | None]]:
    """Blocks of each shard, decoded by a thread while others are multiplied.

    A shard begins with (shard, None); with `skip`, a bad one gives its error instead of any rows.

    Parameters
    ----------
    source : Source
    shards : sequence of Shard
    skip : bool
    ahead : int
        Blocks that may wait; or as many of a shard as lie in one piece of memory, where those are more.
    """
    ready: queue.SimpleQueue[tuple[Shard, Rows | ShardError | None] | BaseException | None] = queue.SimpleQueue()
    taken = threading.Condition()
    waiting, stopped = 0, False

    def put_block(shard: Shard, rows: Rows, most: int) -> bool:
        """Wait for room; whether the block is still wanted."""
        nonlocal waiting
        with taken:
            taken.wait_for(lambda: stopped or waiting < most)
            waiting += 1
        ready.put((shard, rows))
        return not stopped

    def read() -> None:
        try:
            for shard in shards:
                if stopped:
                    return
                if skip and (error := _fault(source, shard)):
                    ready.put((shard, error))
                    continue
                ready.put((shard, None))
                most = max(ahead, source.blocks_held(shard))
                for rows in source.read(shard):
                    if not put_block(shard, rows, most):
                        return
                    del rows  # and with it the memory that it is a part of, once nobody else has it
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    reader = threading.Thread(target=read, name="streamfit-reader", daemon=True)
    with BLOCKS.reused():
        reader.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item[1], Rows):
                    with taken:
                        waiting -= 1
                        taken.notify()
                yield item
        finally:
            with taken:
                stopped = True
                taken.notify()
            reader.join()


def _fault(source: Source, shard: Shard) -> ShardError | None:
    try:
        for _ in source.read(shard):
            pass
    except ShardError as error:
        # Tracebacks hold what was decoded, and faults wait for as long as the blocks before them.
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    return None
