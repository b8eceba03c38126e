"""The run loop: plan, hand groups to workers, commit each as it is finished, and keep the store small meanwhile.

Floor 5. This process coordinates: workers write segments, only it appends to the log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
from distributed import Client
from rich.console import Console

from streamfit.corpus import Source
from streamfit.density import SparsePlan
from streamfit.engine.crew import crew, n_workers
from streamfit.engine.progress import metered, say
from streamfit.engine.rewrite import Rewritten, rewrite
from streamfit.engine.tasks import Count, Merge
from streamfit.engine.upkeep import Upkeep
from streamfit.engine.work import WorkOptions
from streamfit.errors import CorpusError, MismatchError, ShardChangedError
from streamfit.plan import Plan, Shard, counted_twice, make_groups
from streamfit.store import Refusal, Store

log = logging.getLogger("streamfit")


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
        Bytes that each worker has; the plan is refused if it needs more.
    console : rich Console, optional
        Shows the plan and a progress bar.
    replace_changed : bool
        Swap files whose content has changed since it was counted, old for new, in one commit.
    recount : bool
        Count shards again that were forgotten whole; rows that were taken out of shards stay out.

    Returns
    -------
    RunSummary

    Raises
    ------
    CorpusError
        If the corpus is empty, or a shard cannot be counted (`ShardError`, naming it) and is not skipped.
    ShardChangedError
        If a file has changed since it was counted, and is not to be replaced.
    PlanError
        If the plan does not fit into memory.
    StoreError
        If the store is damaged or cannot be written.
    """
    store.refuse_past()
    options = options or WorkOptions()
    started = time.perf_counter()
    found = source.shards()
    if not found:
        msg = "a corpus without any rows"
        raise CorpusError(msg, "at least one shard with rows", "check the paths and patterns of [corpus]")
    counted = store.counted()
    _refuse_other_cuts(found, counted)
    changed = changed_files(found, counted)
    if changed and not replace_changed:
        raise _changed_error(*changed[0])
    unique, repeats = counted_twice(_narrowed(store, found))
    already = tuple(s for s in unique if s.content_id in counted)
    forgotten = {} if recount else store.forgotten_among(unique)
    kept_out = tuple(s for s in unique if s.content_id in forgotten)
    job = _Job(store, source, client, options, group_rows, recount, console)
    plan = job.plan(unique)
    free = psutil.virtual_memory().available
    if client is not None and client.cluster is not None:
        free -= plan.n_workers * plan.worker_bytes  # workers of this machine share its memory with the solve
    plan.check(worker_memory, free, store.header.n_folds)
    _announce(plan, store, client, console, already, kept_out)
    replaced = _swap(job, unique, {old.uri for _, old in changed}) if changed else None
    while job.count(unique):
        log.info("event=race another run counted shards of this one; the rest is planned anew")
    n_rows = job.n_rows + (replaced.added_rows if replaced else 0)
    n_shards = job.n_shards + (replaced.added_shards if replaced else 0)
    seconds = time.perf_counter() - started
    gflops = n_rows * plan.flops_per_row / seconds / 1e9
    refused = tuple(job.refused)
    return RunSummary(plan, n_rows, n_shards, already, tuple(repeats), refused, seconds, gflops, kept_out, replaced)


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
    n_rows: int = 0
    n_shards: int = 0
    refused: list[Refusal] = field(default_factory=list)

    def plan(self, shards: Sequence[Shard]) -> Plan:
        """Groups of what is not counted, nor to be left out."""
        out = set(self.store.counted())
        if not self.recount:
            out |= set(self.store.forgotten_among(shards))
        if self.options.skip_bad_shards:
            out |= {r.content_id for r in self.store.head().refused}
        todo = [s for s in shards if s.content_id not in out]
        return plan_for(self.store, todo, n_workers=n_workers(self.client), group_rows=self.group_rows)

    def count(self, shards: Sequence[Shard]) -> bool:
        """Count what is not counted; whether another run was faster, so that the rest must be planned anew."""
        plan, lost = self.plan(shards), None
        with (
            metered(plan, self.console) as meter,
            crew(self.store, self.source, self.client, self.options, meter.block) as workers,
        ):
            for group in plan.groups:
                workers.add(Count(group))
            upkeep = Upkeep(self.store, workers)
            for task, result in workers.results():
                if isinstance(task, Merge):
                    upkeep.merged(task, result)
                    continue
                try:
                    if result.segment is not None or result.refused:
                        segments = [result.segment] if result.segment else []
                        upkeep.commit(segments, result.refused, recount=self.recount)
                except MismatchError as error:  # counted, or forgotten, by another run meanwhile
                    lost = error
                    if result.segment is not None:
                        self.store.discard(result.segment)
                    continue
                self.refused += result.refused
                self.n_rows += result.n_rows
                self.n_shards += len(task.group.shards) - len(result.refused)
                meter.group(task.group.planned_rows, result.n_rows)
        if lost is not None and self.plan(shards).n_shards == plan.n_shards:
            raise lost  # nothing of it was counted by anyone: asking again would not end
        return lost is not None


def _narrowed(store: Store, found: Sequence[Shard]) -> list[Shard]:
    """Shards without the rows that were ever taken out of them: they may have left, and come back with their file."""
    gone = store.withdrawn()
    return [replace(s, without=tuple(sorted(gone[s.bytes_id]))) if gone.get(s.bytes_id) else s for s in found]


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


def plan_for(store: Store, shards: Sequence[Shard], *, n_workers: int, group_rows: int | None = None) -> Plan:
    """Plan the accumulation of shards into a store."""
    header = store.header
    d, k = header.features.n_features, header.targets.n_targets
    _, arrays = header.features.to_spec()
    given: dict[str, Any] = dict(  # noqa: C408 - reads as the call that it becomes
        groups=tuple(make_groups(shards, header.n_folds, group_rows or header.group_rows)),
        n_features=d,
        n_targets=k,
        n_inputs=header.features.n_inputs,
        precision=header.precision,
        one_hot=header.targets.one_hot,
        n_workers=n_workers,
        feature_bytes=sum(a.nbytes for a in arrays.values()),
        triangle=header.statistic == "qr",
    )
    if header.density is None:
        return Plan(**given)
    sparse = header.statistic == "sparse"
    return SparsePlan(**given, density=header.density, sparse=sparse, rows_before=store.head().n_rows)


def changed_files(found: Sequence[Shard], counted: Mapping[str, Shard]) -> list[tuple[Shard, Shard]]:
    """Counted shards whose file is there, but their content is nowhere: each after one that its file has now.

    Content that lies in another file by now is not lost, and a file that is gone altogether is not asked for.
    """
    by_file: dict[str, list[Shard]] = {}
    for shard in found:
        by_file.setdefault(shard.uri, []).append(shard)
    present = {shard.content_id for shard in found}
    changed = []
    for before in sorted(counted.values(), key=lambda s: (s.uri, s.start, s.key)):
        there = by_file.get(before.uri, [])
        if there and before.content_id not in present:
            overlapping = (s for s in there if s.start < before.stop and before.start < s.stop)
            changed.append((next(overlapping, there[-1]), before))
    return changed


def _refuse_other_cuts(found: Sequence[Shard], counted: Mapping[str, Shard]) -> None:
    cuts = {s.bytes_id: s for s in counted.values()}
    for shard in found:
        before = cuts.get(shard.bytes_id)
        if before is not None and [n for n, _ in before.select] != [n for n, _ in shard.select]:
            was, now = (", ".join(n for n, _ in s.select) or "none" for s in (before, shard))
            msg = f"{shard.key} is counted already, as {before.key}, cut by other label columns ({was}, now {now})"
            raise MismatchError(
                msg, "each row once", "use the label columns that it was counted with, or forget it first"
            )


def _changed_error(now: Shard, before: Shard) -> ShardChangedError:
    msg = f"{now.key} has changed since it was counted: now {now.content_id[:12]}"
    remedy = "restore the file, or swap it by `streamfit add STORE PATH --replace`; nothing was counted"
    return ShardChangedError(msg, f"content {before.content_id[:12]} ({before.key})", remedy)
