"""What a fit would do, and how long it would take at the rate of this moment; nothing is written. Floor 7."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from streamfit.config import Problem
from streamfit.corpus import Rows, Source, Tally
from streamfit.engine import Machine, WorkOptions, plan_for, say
from streamfit.engine.changes import changed_files
from streamfit.engine.work import sum_shards
from streamfit.frame import panels_of
from streamfit.jobs import new_header, training_source
from streamfit.plan import Plan, Shard, counted_twice
from streamfit.preflight import refuse_hopeless, refuse_other_settings, store_of
from streamfit.solving import refuse_choice
from streamfit.store import Store

_SECONDS = 2.0
"""How long the rate is measured, about."""
_BLOCKS = 8
"""Blocks that are taken of each shard for it."""


@dataclass(frozen=True)
class Forecast:
    """A plan, and what it was measured to take.

    Parameters
    ----------
    plan : Plan
    n_folds : int
    already : int
        Shards that are counted, and would not be read.
    rows_per_second : float
        Of one worker, reading, making features and multiplying; measured on the first rows of some shards.
    seconds : float
        Of the pass, if all workers are as fast as this process and none waits for another.
    changed : int
        Files among them that have changed since they were counted: these take the place of what they were.
    """

    plan: Plan
    n_folds: int
    already: int
    rows_per_second: float
    seconds: float
    changed: int = 0

    def to_json(self) -> dict[str, Any]:
        """All figures by name."""
        plan = self.plan
        return {
            "shards": plan.n_shards,
            "shards_already_counted": self.already,
            "files_changed": self.changed,
            "groups": len(plan.groups),
            "rows": plan.n_rows,
            "read_bytes": plan.read_bytes * plan.n_panels,
            "features": plan.n_features,
            "targets": plan.n_targets,
            "precision": plan.precision,
            "panels": plan.n_panels,
            "flops": plan.flops_per_row * plan.n_rows,
            "sum_bytes": plan.sum_bytes,
            "worker_bytes": plan.worker_bytes,
            "device_bytes": plan.device_bytes if plan.on_gpu else 0,
            "solve_bytes": plan.solve_bytes(self.n_folds),
            "workers": plan.n_workers,
            "rows_per_second_of_a_worker": self.rows_per_second,
            "expected_seconds": self.seconds,
        }

    def lines(self) -> list[str]:
        """The forecast as text."""
        plan = self.plan
        lines = plan.lines(self.n_folds)
        if self.already:
            lines.append(f"{self.already:,} shards are counted already and would not be read")
        if self.changed:
            lines.append(f"{self.changed:,} files have changed since they were counted: `add --replace` swaps them")
        if not plan.n_rows:
            return [*lines, "nothing is left to read"]
        rate = self.rows_per_second * plan.flops_per_row / 1e9
        return [
            *lines,
            f"measured now: {self.rows_per_second:,.0f} rows/s on one worker ({rate:,.1f} GFLOP/s)",
            f"expected: about {duration_text(self.seconds)} for the pass on {plan.n_workers} workers",
        ]


def duration_text(seconds: float) -> str:
    """Seconds as people read them.

    Examples
    --------
    >>> [duration_text(s) for s in (0.4, 75, 5400, 200_000)]
    ['1 s', '75 s', '1 h 30 min', '2 d 7 h']
    """
    whole = max(1, round(seconds))
    if whole < 120:
        return f"{whole} s"
    for unit, size, part, smaller in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {part}"
    return f"{whole // 60} min {whole % 60} s"


def forecast(problem: Problem, machine: Machine, console: Console, *, skip_bad_shards: bool = False) -> Forecast:
    """Plan a fit and measure its rate, in this process; features are chosen from the sample, and thrown away again.

    Parameters
    ----------
    problem : Problem
    machine : Machine
        Its number of workers and their memory; none is started.
    console : rich Console
    skip_bad_shards : bool

    Raises
    ------
    PlanError
        If it does not fit into a worker's memory.
    StreamfitError
        What `fit` would raise before its pass.
    """
    refuse_hopeless(problem, machine.worker_memory)
    with tempfile.TemporaryDirectory() as scratch:
        path, counted = store_of(problem), set[str]()
        if Store.exists(path):
            there = Store(path)
            refuse_other_settings(problem, there)
            header, counted = there.header, {*there.counted()}
        else:
            say(console, "choosing features from a sample", "dim")
            header = new_header(problem, skip_bad_shards, lambda line: say(console, line, "dim"))
        trial = Store.create(Path(scratch) / "store", header)
        source = training_source(problem, trial)
        found = _measured(trial, source, counted, machine, problem.group_rows, skip_bad_shards)
    if found.plan.n_bands > 1:
        refuse_choice(problem.solve)
    return found


def forecast_of_addition(
    store: Store,
    source: Source,
    machine: Machine,
    *,
    recount: bool = False,
    group_rows: int | None = None,
    skip_bad_shards: bool = False,
) -> Forecast:
    """Plan what adding to a store would read, and measure its rate, in this process; the store stays as it is.

    Parameters
    ----------
    store : Store
    source : Source
        As `streamfit.stores.addition` makes it.
    machine : Machine
    recount : bool
        Whether what was forgotten is counted again.
    group_rows : int, optional
    skip_bad_shards : bool

    Raises
    ------
    PlanError
        If it does not fit into a worker's memory.
    """
    counted = {*store.counted(), *(() if recount else store.forgotten_among(source.shards()))}
    with tempfile.TemporaryDirectory() as scratch:
        trial = Store.create(Path(scratch) / "store", store.header)
        found = _measured(trial, source, counted, machine, group_rows, skip_bad_shards)
    changed = changed_files(source.shards(), store.counted())
    return replace(found, changed=len({now.uri for now, _ in changed}))


def _measured(
    trial: Store, source: Source, counted: set[str], machine: Machine, group_rows: int | None, skip_bad_shards: bool
) -> Forecast:
    """The forecast of what is not counted, by an empty store of the same header."""
    unique, _ = counted_twice(source.shards())
    todo = [shard for shard in unique if shard.content_id not in counted]
    memory, n_folds = machine.worker_memory, trial.header.n_folds
    made = plan_for(trial, todo, n_workers=machine.workers, group_rows=group_rows, source=source)
    plan = made.worked_by(machine.threads, on_gpu=machine.backend == "cuda").within(memory)
    plan.check(memory, None, n_folds)
    rate = _rate(trial, source, todo, WorkOptions(skip_bad_shards, machine.threads, machine.backend, plan.n_bands))
    seconds = plan.n_rows * plan.n_panels / (rate * plan.n_workers) if rate else 0.0
    return Forecast(plan, n_folds, len(unique) - len(todo), rate, seconds)


@dataclass(frozen=True)
class _Beginning(Source):
    """The first blocks of each shard of another source."""

    whole: Source

    def shards(self) -> list[Shard]:
        return self.whole.shards()

    def read(self, shard: Shard) -> Iterator[Rows]:
        return islice(self.whole.read(shard), _BLOCKS)

    def positions(self, shard: Shard, column: str, values: frozenset[str]) -> tuple[int, ...]:
        return self.whole.positions(shard, column, values)

    def tally(self) -> Tally | None:
        return self.whole.tally()


def _rate(store: Store, source: Source, shards: list[Shard], options: WorkOptions) -> float:
    """Rows a second of one worker, from shards spread over the corpus."""
    beginning = _Beginning(source)
    panel = panels_of(store.header.frame.n_features, options.n_bands)[0] if options.n_bands > 1 else None
    n_rows, seconds = 0, 0.0
    spread = shards[:: max(1, len(shards) // 16)]
    for i, shard in enumerate([*spread[:1], *spread]):
        started = time.perf_counter()
        sums = sum_shards(store, beginning, (shard,), options, panel=panel)
        took, rows = time.perf_counter() - started, sum(sums.n_rows.values())
        if i == 0:  # loads libraries and starts threads
            continue
        n_rows, seconds = n_rows + rows, seconds + took
        if seconds > _SECONDS:
            break
    return n_rows / seconds if n_rows else 0.0
