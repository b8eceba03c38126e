"""The kinds of work that a worker is given, as small frozen descriptions that travel. Floor 5: no Dask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from streamfit.centered import Statistic
from streamfit.corpus import Source
from streamfit.engine.work import (
    GroupResult,
    PanelResult,
    WorkOptions,
    stitch_group,
    sum_shards,
    work_group,
    work_panel,
)
from streamfit.errors import PlanError, StoreError
from streamfit.frame import Panel
from streamfit.merging import BlockTable, LargeTables, as_blocks
from streamfit.plan import Group, Shard
from streamfit.store import Collected, Segment, Store, collect, merge_live
from streamfit.store.runs import add_large
from streamfit.triangle import Triangle

Report = Callable[[int], None]
_COMPARED_ROWS = 2**16


class Task(Protocol):
    """Something that a worker does with a store and a source, writing at most an uncommitted segment."""

    def run(self, store: Store, source: Source, options: WorkOptions, report: Report) -> Any:
        """Do it; the result travels back."""


@dataclass(frozen=True)
class Count:
    """Sum a group of shards into a segment."""

    group: Group

    def run(self, store: Store, source: Source, options: WorkOptions, report: Report) -> GroupResult:
        return work_group(store, source, self.group, options, report)


@dataclass(frozen=True)
class CountPanel:
    """Sum one panel of a group's Gram matrix, which is too large for a worker."""

    group: Group
    panel: Panel

    def run(self, store: Store, source: Source, options: WorkOptions, report: Report) -> PanelResult:
        # A group is read once for each panel; its rows are done when the last of them is.
        last = self.panel.row == self.panel.column == options.n_bands - 1
        return work_panel(store, source, self.group, self.panel, options, report if last else lambda _: None)


@dataclass(frozen=True)
class Stitch:
    """Make a group's segment of its panels."""

    group: Group
    panels: tuple[PanelResult, ...]

    def run(self, store: Store, source: Source, options: WorkOptions, report: Report) -> GroupResult:
        return stitch_group(store, self.panels)


@dataclass(frozen=True)
class Merge:
    """Sum segments of one kind into one; None where another run put others in their place meanwhile."""

    segments: tuple[Segment, ...]

    def run(self, store: Store, source: Source, options: WorkOptions, report: Report) -> Segment | None:
        return merge_live(store, self.segments)


@dataclass(frozen=True)
class Collect:
    """Delete what no commit needs any more: thousands of files, for which no commit is to wait."""

    def run(self, store: Store, source: Source, options: WorkOptions, report: Report) -> Collected:
        return collect(store)


@dataclass(frozen=True)
class Subtract:
    """A segment without some of its shards, or without rows of them, by reading those shards alone.

    Exact, and the same bits as counting the rest anew: sums on a grid have one form for each total.

    Parameters
    ----------
    segment : Segment
    changing : tuple of Shard
        Its shards that leave, or that rows leave, as they were counted.
    rest : tuple of Shard
        What is to remain; empty to write no segment.
    """

    segment: Segment
    changing: tuple[Shard, ...]
    rest: tuple[Shard, ...]

    def run(self, store: Store, source: Source, options: WorkOptions, report: Report) -> GroupResult:
        if not self.rest:
            return GroupResult(None, (), 0, 0.0)
        _refuse_panels(options, "subtracted from", "count the rest anew, without --fast")
        moments = store.read(self.segment)
        before = sum_shards(store, source, self.changing, options, report)
        if any(before.n_rows[shard] != shard.planned_rows for shard in self.changing):
            msg = f"shards of segment {self.segment.id} that give another number of rows than were counted"
            raise StoreError(msg, "the rows that were counted", "count the rest anew, without --fast")
        moments = moments - before.moments
        tables = add_large([store.open_tables(self.segment), before.tables], [1, -1])
        read = sum(before.n_rows.values())
        del before
        leaving = {shard.content_id for shard in self.changing}
        after = sum_shards(store, source, [s for s in self.rest if s.content_id in leaving], options, report)
        n_rows = {shard: shard.planned_rows for shard in self.rest} | after.n_rows
        segment = store.write_segment(
            moments + after.moments,
            self.rest,
            [n_rows[shard] for shard in self.rest],
            add_large([tables, after.tables]),
        )
        return GroupResult(segment, (), read + sum(after.n_rows.values()), 0.0)


@dataclass(frozen=True)
class Find:
    """Positions of rows whose column has one of some values, in each of some shards that have any."""

    shards: tuple[Shard, ...]
    column: str
    values: frozenset[str]

    def run(self, store: Store, source: Source, options: WorkOptions, report: Report) -> dict[str, tuple[int, ...]]:
        found = {s.content_id: source.positions(s, self.column, self.values) for s in self.shards}
        return {content: positions for content, positions in found.items() if positions}


def _refuse_panels(options: WorkOptions, verb: str, remedy: str) -> None:
    if options.n_bands > 1:
        msg = f"sums that no worker can hold whole, to be {verb}"
        raise PlanError(msg, "a Gram matrix that fits into a worker", remedy)


def _equal(first: LargeTables, second: LargeTables) -> bool:
    """Whether sorted tables hold the same counts; one without counts is as good as none."""
    one, other = (
        {name: blocks for name, table in tables.items() if (blocks := as_blocks(table)).n_rows}
        for tables in (first, second)
    )
    return one.keys() == other.keys() and all(_same_table(one[name], other[name]) for name in one)


def _same_table(one: BlockTable, other: BlockTable) -> bool:
    if (one.n_rows, one.width) != (other.n_rows, other.width):
        return False
    pairs = zip(one.blocks(_COMPARED_ROWS), other.blocks(_COMPARED_ROWS), strict=True)
    return all(np.array_equal(a, b) for block, theirs in pairs for a, b in zip(block, theirs, strict=True))


def _same(one: Statistic, other: Statistic) -> bool:
    """Equal bits; of triangles, which round where segments were merged, equal digits."""
    return one.agrees(other) if isinstance(one, Triangle) and isinstance(other, Triangle) else one == other


@dataclass(frozen=True)
class Recount:
    """Whether a segment is, bit for bit, what its shards sum to when they are read again.

    Parameters
    ----------
    segment : Segment
    shards : tuple of Shard
        Where to read them now.
    """

    segment: Segment
    shards: tuple[Shard, ...]

    def run(self, store: Store, source: Source, options: WorkOptions, report: Report) -> bool:
        _refuse_panels(options, "compared", "verify without --against, or give workers more memory")
        moments, tables = store.read(self.segment), store.open_tables(self.segment)
        again = sum_shards(store, source, self.shards, replace(options, skip_bad_shards=False), report)
        return _same(moments, again.moments) and _equal(tables, again.tables)
