"""The run loop: plan, hand groups to workers, commit each as it is finished, and keep the store small meanwhile.

Floor 5. This process coordinates: workers write segments, only it appends to the log.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
from distributed import Client, LocalCluster
from rich.console import Console

from streamfit.corpus import Source
from streamfit.corpus.text import BYTES_PER_TOKEN
from streamfit.counted import piece_rows
from streamfit.density import SparsePlan
from streamfit.engine.changes import changed_error, changed_files, narrowed, refuse_bringing_back, refuse_other_cuts
from streamfit.engine.crew import crew, n_workers, smallest_memory
from streamfit.engine.hashing import hashing_on
from streamfit.engine.progress import Meter, metered, say
from streamfit.engine.rewrite import Rewritten, rewrite
from streamfit.engine.tasks import Collect, Count, CountPanel, Merge, Stitch
from streamfit.engine.upkeep import Upkeep
from streamfit.engine.work import GroupResult, PanelResult, WorkOptions
from streamfit.errors import CorpusError, MismatchError, StreamfitError
from streamfit.features import Linear
from streamfit.frame import panels_of
from streamfit.plan import BLOCKS_AHEAD, Group, Plan, Shard, counted_twice, make_groups
from streamfit.store import FullError, Refusal, Store, discard_panels

log = logging.getLogger("streamfit")
Done = tuple[Group, GroupResult]


@dataclass(frozen=True)
class RunSummary:
    """What an accumulation did.

    Parameters
    ----------
    plan : Plan
    n_rows, n_shards : int
        Newly counted.
    already : tuple of Shard
        Found in the store before the run, under this or another path.
    repeats : tuple of (Shard, Shard)
        Shards of the corpus with the content of another, and that other; counted once.
    refused : tuple of Refusal
        Skipped by this run.
    seconds : float
    gflops : float
        Products of all workers together, GFLOP a second.
    kept_out : tuple of Shard
        Not counted, for the store was made to forget them.
    replaced : Rewritten, optional
        Files that were swapped for their new content.
    peak_bytes : int
        Largest resident size of a process that counted, over its life, where the system says (`VmHWM`); else 0.
    """

    plan: Plan
    n_rows: int
    n_shards: int
    already: tuple[Shard, ...]
    repeats: tuple[tuple[Shard, Shard], ...]
    refused: tuple[Refusal, ...]
    seconds: float
    gflops: float
    kept_out: tuple[Shard, ...] = ()
    replaced: Rewritten | None = None
    peak_bytes: int = 0


def accumulate(
    store: Store,
    source: Source,
    *,
    client: Client | None = None,
    options: WorkOptions | None = None,
    group_rows: int | None = None,
    worker_memory: int | None = None,
    console: Console | None = None,
    replace_changed: bool = False,
    recount: bool = False,
) -> RunSummary:
    """Count every shard of a corpus that the store has not counted yet.

    Safe to stop at any moment and to run again: what was committed is not read a second time, and what was not
    is counted as if for the first time. Two runs may count into one store at the same time: what one of them has
    committed, the other leaves out.

    Parameters
    ----------
    store : Store
    source : Source
    client : distributed.Client, optional
        Without one the groups are worked one after another in this process.
    options : WorkOptions, optional
    group_rows : int, optional
        Rows of a group; about a minute's work without it.
    worker_memory : int, optional
        Bytes that each worker has; the plan is refused if it needs more. Without it the workers are asked.
    console : rich Console, optional
        Shows the plan and a progress bar.
    replace_changed : bool
        Swap files whose content has changed since it was counted, old for new, in one commit.
    recount : bool
        Count shards again that were forgotten whole, and all rows of changed files; rows that were taken out of shards
        that have not changed stay out.

    Returns
    -------
    RunSummary

    Raises
    ------
    CorpusError
        If the corpus is empty, or a shard cannot be counted (`ShardError`, naming it) and is not skipped.
    ShardChangedError
        If a file has changed since it was counted, and is not to be replaced.
    MismatchError
        If rows were taken out of a file that has changed, and it is not to be counted again all the same.
    PlanError
        If the plan does not fit into memory.
    StoreError
        If the store is damaged or cannot be written.
    """
    store.refuse_past()
    options = options or WorkOptions()
    if worker_memory is None:
        worker_memory = smallest_memory(client)
    started = time.perf_counter()
    with hashing_on(client, console):
        found = source.shards()
    if not found:
        msg = "a corpus without any rows"
        raise CorpusError(msg, "at least one shard with rows", "check the paths and patterns of [corpus]")
    counted = store.counted()
    refuse_other_cuts(found, counted)
    changed = changed_files(found, counted)
    if changed and not replace_changed:
        raise changed_error(*changed[0])
    if not recount:
        refuse_bringing_back(changed)
    unique, repeats = counted_twice(narrowed(store, found))
    already = tuple(s for s in unique if s.content_id in counted)
    forgotten = {} if recount else store.forgotten_among(unique)
    kept_out = tuple(s for s in unique if s.content_id in forgotten)
    job = _Job(store, source, client, options, group_rows, recount, console, worker_memory)
    plan = job.plan(unique)
    job.options = replace(options, n_bands=plan.n_bands)
    free = psutil.virtual_memory().available
    if client is not None and isinstance(client.cluster, LocalCluster):
        free -= plan.n_workers * plan.worker_bytes  # workers of this machine share its memory with the solve
    # What was summed in panels is solved in panels, too.
    plan.check(worker_memory, free if plan.n_bands == 1 else None, store.header.n_folds)
    _announce(plan, store, client, console, already, kept_out)
    replaced = _swap(job, unique, {old.uri for _, old in changed}) if changed else None
    while job.count(unique):
        log.info("event=race another run counted shards of this one; the rest is planned anew")
    n_rows = job.n_rows + (replaced.added_rows if replaced else 0)
    n_shards = job.n_shards + (replaced.added_shards if replaced else 0)
    seconds = time.perf_counter() - started
    gflops = n_rows * plan.flops_per_row / seconds / 1e9
    return RunSummary(
        plan=plan,
        n_rows=n_rows,
        n_shards=n_shards,
        already=already,
        repeats=tuple(repeats),
        refused=tuple(job.refused),
        seconds=seconds,
        gflops=gflops,
        kept_out=kept_out,
        replaced=replaced,
        peak_bytes=job.peak_bytes,
    )


@dataclass
class _Job:
    """One accumulation: what it was given, and what has come of it so far."""

    store: Store
    source: Source
    client: Client | None
    options: WorkOptions
    group_rows: int | None
    recount: bool
    console: Console | None
    worker_memory: int | None = None
    n_rows: int = 0
    n_shards: int = 0
    peak_bytes: int = 0
    refused: list[Refusal] = field(default_factory=list)

    def plan(self, shards: Sequence[Shard]) -> Plan:
        """Groups of what is not counted, nor to be left out."""
        out = set(self.store.counted())
        if not self.recount:
            out |= set(self.store.forgotten_among(shards))
        if self.options.skip_bad_shards:
            out |= {r.content_id for r in self.store.head().refused}
        todo = [s for s in shards if s.content_id not in out]
        plan = plan_for(
            self.store, todo, n_workers=n_workers(self.client), group_rows=self.group_rows, source=self.source
        )
        plan = plan.worked_by(self.options.n_threads, on_gpu=self.options.backend == "cuda").within(self.worker_memory)
        return plan if plan.n_bands >= self.options.n_bands else replace(plan, n_bands=self.options.n_bands)

    def count(self, shards: Sequence[Shard]) -> bool:
        """Count what is not counted; whether another run was faster, so that the rest must be planned anew."""
        plan, lost = self.plan(shards), None
        with (
            metered(plan, self.console) as meter,
            crew(self.store, self.source, self.client, self.options, meter.block, self._tell) as workers,
        ):
            panels = panels_of(plan.n_features, plan.n_bands) if plan.n_bands > 1 else []
            for group in plan.groups:
                for panel in panels:
                    workers.add(CountPanel(group, panel))
                if not panels:
                    workers.add(Count(group))
            upkeep, ready = Upkeep(self.store, workers), deque[Done]()
            begun: dict[Group, list[PanelResult]] = {}
            try:
                for batch in workers.batches():
                    for task, result in batch:
                        if isinstance(task, Merge):
                            upkeep.merged(task, result)
                        elif isinstance(task, Collect):
                            log.info("event=collect segments=%d bytes=%d", result.segments, result.n_bytes)
                        elif isinstance(task, CountPanel):
                            begun.setdefault(task.group, []).append(result)
                            if len(begun[task.group]) == len(panels):
                                workers.add(Stitch(task.group, tuple(begun.pop(task.group))), first=True)
                        else:
                            if isinstance(task, Stitch):
                                discard_panels(self.store, [panel.panel for panel in task.panels])
                            ready.append((task.group, result))
                    # A wave of groups that were finished together is one commit, or some; what finds no room waits
                    # for the merge that makes some.
                    while ready and (n := upkeep.room([r.segment for _, r in ready if r.segment])):
                        lost = self._commit(upkeep, _first(ready, n), meter) or lost
            except StreamfitError:
                while ready:  # what was finished before the fault counts
                    self._commit(upkeep, _first(ready, 1), meter)
                raise
            self.peak_bytes = max(self.peak_bytes, workers.peak_bytes)
        if lost is not None and self.plan(shards).n_shards == plan.n_shards:
            raise lost  # nothing of it was counted by anyone: asking again would not end
        return lost is not None

    @property
    def _tell(self) -> Callable[[str], None] | None:
        console = self.console
        return None if console is None else lambda line: say(console, line, "yellow")

    def _commit(self, upkeep: Upkeep, done: Sequence[Done], meter: Meter) -> MismatchError | None:
        """Commit groups, in one record if that can be; the last fault of those that another run was faster with."""
        segments = [result.segment for _, result in done if result.segment is not None]
        refused = [refusal for _, result in done for refusal in result.refused]
        try:
            if segments or refused:
                upkeep.commit(segments, refused, recount=self.recount)
        except (MismatchError, FullError) as error:
            if len(done) > 1:
                faults = [self._commit(upkeep, [one], meter) for one in done]
                return next((fault for fault in reversed(faults) if fault is not None), None)
            if isinstance(error, FullError):
                raise
            for segment in segments:  # counted, or forgotten, by another run meanwhile
                self.store.discard(segment)
            return error
        self.refused += refused
        for group, result in done:
            self.n_rows += result.n_rows
            self.n_shards += len(group.shards) - len(result.refused)
            meter.group(group.planned_rows, result.n_rows)
        return None


def _first(ready: deque[Done], n_segments: int) -> list[Done]:
    """Take finished groups from the front, up to the one with the n-th segment, and those that follow without any."""
    taken: list[Done] = []
    while ready and (n_segments or ready[0][1].segment is None):
        n_segments -= ready[0][1].segment is not None
        taken.append(ready.popleft())
    return taken


def _swap(job: _Job, found: Sequence[Shard], files: set[str]) -> Rewritten:
    """Put the present content of files in the place of what was counted of them."""
    counted, present = job.store.counted(), {s.content_id for s in found}
    kept_out = {} if job.recount else job.store.forgotten_among(found)
    return rewrite(
        job.store,
        job.source,
        {s.content_id: None for s in counted.values() if s.uri in files and s.content_id not in present},
        adding=[s for s in found if s.uri in files and s.content_id not in counted and s.content_id not in kept_out],
        kind="replaced",
        why="the file has changed",
        where={s.bytes_id: s for s in found},  # what stays in a file may lie elsewhere in it now
        client=job.client,
        options=job.options,
        group_rows=job.group_rows,
    )


def _announce(
    plan: Plan,
    store: Store,
    client: Client | None,
    console: Console | None,
    already: Sequence[Shard],
    kept_out: Sequence[Shard],
) -> None:
    log.info(
        "event=plan shards=%d groups=%d rows=%d already=%d", plan.n_shards, len(plan.groups), plan.n_rows, len(already)
    )
    if console is None:
        return
    for line in plan.lines(store.header.n_folds):
        say(console, line, "dim")
    if already:
        say(console, f"{len(already):,} shards are counted already and will not be read", "dim")
    if kept_out:
        say(console, f"{len(kept_out):,} shards were forgotten and are left out, such as {kept_out[0].key}", "dim")
    if client is not None and plan.groups:
        say(console, f"Dask dashboard: {client.dashboard_link}", "dim")


def plan_for(
    store: Store,
    shards: Sequence[Shard],
    *,
    n_workers: int,
    group_rows: int | None = None,
    source: Source | None = None,
) -> Plan:
    """Plan the accumulation of shards into a store; a source tells what reading them takes."""
    header = store.header
    d, k = header.features.n_features, header.targets.n_targets
    _, arrays = header.features.to_spec()
    longest = max((shard.planned_rows for shard in shards), default=0)
    groups, per_planned = tuple(make_groups(shards, header.n_folds, group_rows or header.group_rows)), 1
    if header.reader.get("kind") == "tokens":
        per_planned = BYTES_PER_TOKEN  # an estimate, which a text of short tokens passes, up to one a byte
    longest *= per_planned
    tallied = max((group.planned_rows for group in groups), default=0) * per_planned
    item, n_values = source.row_item if source else 8, 1 if header.targets.one_hot else k
    row_bytes = item * (header.features.n_inputs + n_values)
    if header.density is not None:  # of its entries alone
        row_bytes = header.density.row_bytes + 8 * n_values
    limit = piece_rows(header.features.n_inputs, n_values)
    given: dict[str, Any] = dict(  # noqa: C408 - reads as the call that it becomes
        groups=groups,
        n_features=d,
        n_targets=k,
        n_inputs=header.features.n_inputs,
        precision=header.precision,
        one_hot=header.targets.one_hot,
        tokens=header.reader.get("kind") == "tokens",
        n_workers=n_workers,
        feature_bytes=sum(a.nbytes for a in arrays.values()),
        triangle=header.statistic == "qr",
        row_item=item,
        decode_bytes=decoding_of(source, groups, row_bytes) + source.tally_room(tallied) if source else 0,
        identity=isinstance(header.features, Linear),
        in_pieces=header.features.in_pieces and header.statistic == "gram",
        weighted=source.is_weighted if source else False,
        piece_rows=min(limit, longest) if header.counted else 0,
        distinct=header.reader.get("counting", {}).get("distinct", 1.0) if header.counted else 1.0,
    )
    if header.density is None:
        return Plan(**given)
    sparse = header.statistic == "sparse"
    return SparsePlan(**given, density=header.density, sparse=sparse, rows_before=store.head().n_rows)


def decoding_of(source: Source, groups: Sequence[Group], row_bytes: int) -> int:
    """Most that decoding a group takes, of those with the largest shards: a corpus may have too many to ask for each.

    Groups of as many shards are compared, whole ones and those that leave rows out apart: by rows, by bytes, by both.
    """
    candidates: dict[tuple[int, bool, int], tuple[int, Group]] = {}
    for group in groups:
        together = min(len(group.shards), BLOCKS_AHEAD + 1)  # more than these are never in memory at a time
        cut = any(shard.select or shard.without for shard in group.shards)
        rows, size = row_bytes * max(s.planned_rows for s in group.shards), max(s.size for s in group.shards)
        for i, value in enumerate((rows, size, rows + size)):
            if value > candidates.get((together, cut, i), (-1, group))[0]:
                candidates[together, cut, i] = value, group
    shards = {group.shards for _, group in candidates.values()} or {()}
    return max(source.decode_bytes(each, row_bytes) for each in shards)


def bands_of(store: Store, worker_memory: int | None, n_threads: int, source: Source | None = None) -> int:
    """Bands that a store's Gram matrix is summed in by workers of some memory; 1 where it fits, or nothing helps.

    Shards are those of the source, or those that are counted.
    """
    shards = list(store.counted().values()) if source is None else source.shards()
    plan = plan_for(store, shards, n_workers=1, source=source).worked_by(n_threads, on_gpu=False)
    return plan.within(worker_memory).n_bands
