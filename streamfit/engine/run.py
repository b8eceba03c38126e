"""The run loop: plan, hand groups to workers, commit each as it is finished.

Floor 5. This process is the one coordinator: workers write segments, only it appends to the log.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
from distributed import Client, as_completed, get_worker
from distributed.scheduler import KilledWorker
from rich.console import Console

from streamfit.corpus import Source
from streamfit.engine.progress import Meter, metered, say
from streamfit.engine.work import GroupResult, WorkOptions, work_group
from streamfit.errors import CorpusError, PlanError, ShardChangedError, StreamfitError
from streamfit.plan import Group, Plan, Shard, counted_twice, default_group_rows, make_groups
from streamfit.store import Refusal, Store

log = logging.getLogger("streamfit")
_TOPIC = "streamfit-blocks"
_REPORT_SECONDS = 0.5


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
    """

    plan: Plan
    n_rows: int
    n_shards: int
    already: tuple[Shard, ...]
    repeats: tuple[tuple[Shard, Shard], ...]
    refused: tuple[Refusal, ...]
    seconds: float
    gflops: float


def accumulate(
    store: Store,
    source: Source,
    *,
    client: Client | None = None,
    options: WorkOptions | None = None,
    group_rows: int | None = None,
    worker_memory: int | None = None,
    console: Console | None = None,
) -> RunSummary:
    """Count every shard of a corpus that the store has not counted yet.

    Safe to stop at any moment and to run again: what was committed is not read a second time, and what was not
    is counted as if for the first time.

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

    Returns
    -------
    RunSummary

    Raises
    ------
    CorpusError
        If the corpus is empty, or a shard cannot be counted (`ShardError`, naming it) and is not skipped.
    PlanError
        If the plan does not fit into memory.
    StoreError
        If the store is damaged or cannot be written.
    """
    options = options or WorkOptions()
    started = time.perf_counter()
    found = source.shards()
    if not found:
        msg = "a corpus without any rows"
        raise CorpusError(msg, "at least one shard with rows", "check the paths and patterns of [corpus]")
    counted = store.counted()
    head = store.head()
    _refuse_changed(found, counted)
    refused_before = {r.content_id for r in head.refused} if options.skip_bad_shards else set()
    unique, repeats = counted_twice(found)
    already = tuple(s for s in unique if s.content_id in counted)
    todo = [s for s in unique if s.content_id not in counted and s.content_id not in refused_before]
    plan = plan_for(store, todo, n_workers=_n_workers(client), group_rows=group_rows)
    free = psutil.virtual_memory().available
    if client is not None and client.cluster is not None:
        free -= plan.n_workers * plan.worker_bytes  # workers of this machine share its memory with the solve
    plan.check(worker_memory, free, store.header.n_folds)
    if console is not None:
        for line in plan.lines(store.header.n_folds):
            say(console, line, "dim")
        if already:
            say(console, f"{len(already):,} shards are counted already and will not be read", "dim")
        if client is not None and todo:
            say(console, f"Dask dashboard: {client.dashboard_link}", "dim")
    log.info(
        "event=plan shards=%d groups=%d rows=%d already=%d", plan.n_shards, len(plan.groups), plan.n_rows, len(already)
    )
    refused: list[Refusal] = []
    n_rows = n_shards = 0
    with metered(plan, console) as meter:
        for group, result in _results(store, source, plan.groups, client, options, meter):
            if result.segment is not None or result.refused:
                segments = [result.segment] if result.segment else []
                store.commit(segments, result.refused)
            refused += result.refused
            n_rows += result.n_rows
            n_shards += len(group.shards) - len(result.refused)
            meter.group(group.planned_rows, result.n_rows)
    seconds = time.perf_counter() - started
    gflops = n_rows * plan.flops_per_row / seconds / 1e9
    return RunSummary(plan, n_rows, n_shards, already, tuple(repeats), tuple(refused), seconds, gflops)


def plan_for(store: Store, shards: Sequence[Shard], *, n_workers: int, group_rows: int | None = None) -> Plan:
    """Plan the accumulation of shards into a store."""
    header = store.header
    d, k = header.features.n_features, header.targets.n_targets
    _, arrays = header.features.to_spec()
    return Plan(
        groups=tuple(make_groups(shards, header.n_folds, group_rows or default_group_rows(d, k))),
        n_features=d,
        n_targets=k,
        n_inputs=header.features.n_inputs,
        precision=header.precision,
        one_hot=header.targets.one_hot,
        n_workers=n_workers,
        feature_bytes=sum(a.nbytes for a in arrays.values()),
    )


def _refuse_changed(found: Sequence[Shard], counted: dict[str, Shard]) -> None:
    by_file: dict[str, list[Shard]] = {}
    for shard in sorted(counted.values(), key=lambda s: s.start):
        by_file.setdefault(shard.uri, []).append(shard)
    for shard in found:
        # A file that grew or shrank is cut elsewhere: any overlap with what was counted of it would count rows twice.
        there = by_file.get(shard.uri, [])
        place = bisect_left(there, shard.stop, key=lambda s: s.start)
        before = there[place - 1] if place else None
        if before is not None and before.stop > shard.start and before.content_id != shard.content_id:
            msg = f"{shard.key} has changed since it was counted: now {shard.content_id[:12]}"
            remedy = "restore the file, or fit into a new store; nothing was counted by this run"
            raise ShardChangedError(msg, f"content {before.content_id[:12]}", remedy)


def _n_workers(client: Client | None) -> int:
    return 1 if client is None else max(1, len(client.scheduler_info(n_workers=-1)["workers"]))


def _results(
    store: Store,
    source: Source,
    groups: Sequence[Group],
    client: Client | None,
    options: WorkOptions,
    meter: Meter,
) -> Iterator[tuple[Group, GroupResult]]:
    if client is None:
        for group in groups:
            yield group, work_group(store, source, group, options, meter.block)
        return
    with _live_blocks(client, meter):
        path, header = str(store.path.resolve()), store.head().header
        # A group is retried by Dask when its worker dies; it then writes a second segment, and the log names
        # whichever is finished first. `pure=False`: two runs must never share a result.
        run = time.time_ns()
        # A task, not scattered data: if the one worker that holds it dies, the scheduler can make it again.
        remote_source = client.submit(_same, source, key=f"source-{run}", pure=False) if groups else None
        futures = {}
        for i, group in enumerate(groups):
            arguments = (path, header, remote_source, group, options)
            futures[client.submit(_remote, *arguments, key=f"group-{run}-{i}", pure=False)] = group
        try:
            for future in as_completed(futures):
                yield futures[future], _outcome(future)
        finally:
            client.cancel(list(futures), force=True)


def _same(source: Source) -> Source:
    return source


def _outcome(future: Any) -> GroupResult:
    try:
        result: GroupResult | StreamfitError = future.result()
    except KilledWorker as error:
        raise PlanError(
            "workers that kept dying while they worked on one group: " + str(error).splitlines()[0],
            "workers that live",
            "look for the system's out-of-memory killer; use fewer workers or features; then run again",
        ) from error
    if isinstance(result, StreamfitError):
        raise result
    return result


def _remote(path: str, header: str, source: Source, group: Group, options: WorkOptions) -> GroupResult | StreamfitError:
    pending, last = 0, 0.0
    worker = get_worker()

    def report(n_rows: int) -> None:
        nonlocal pending, last
        pending += n_rows
        if time.monotonic() - last > _REPORT_SECONDS:
            worker.log_event(_TOPIC, pending)
            pending, last = 0, time.monotonic()

    try:
        return work_group(_open(path, header), source, group, options, report)
    except StreamfitError as error:
        # A result, not a failure of the task: the fault is in the data, and Dask need not print its traceback.
        return error


_STORES: dict[tuple[str, str], Store] = {}


def _open(path: str, header: str) -> Store:
    # One header read a worker, not one a group: it may hold millions of centers. A worker may outlive the store
    # that it knew at this path, so the header's hash is part of the key.
    if (path, header) not in _STORES:
        _STORES[path, header] = Store(path)
    return _STORES[path, header]


@contextmanager
def _live_blocks(client: Client, meter: Meter) -> Iterator[None]:
    def handle(event: tuple[float, int]) -> None:
        meter.block(event[1])

    client.subscribe_topic(_TOPIC, handle)
    try:
        yield
    finally:
        client.unsubscribe_topic(_TOPIC)
