"""What a long run shows: a bar with rows/s, GFLOP/s and time left, and log lines to grep. Floor 5."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from streamfit.plan import Plan

log = logging.getLogger("streamfit")


def say(console: Console, line: str, style: str = "") -> None:
    """Print one line as it is: not wrapped, and without reading markup into file names."""
    console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


class Meter:
    """Counts rows of one accumulation, and draws them where there is a terminal.

    Parameters
    ----------
    plan : Plan
    bar : Progress, optional
    """

    def __init__(self, plan: Plan, bar: Progress | None) -> None:
        self._plan, self._bar = plan, bar
        self._started = time.perf_counter()
        self._live = 0
        self._finished = 0
        self._planned_done = 0
        self._task = bar.add_task("rows", total=plan.n_rows, rate="") if bar else None

    def block(self, n_rows: int) -> None:
        """Rows that some worker has just multiplied."""
        self._live += n_rows
        self._draw(self._planned_done + min(self._live - self._finished, self._plan.n_rows - self._planned_done))

    def group(self, planned_rows: int, n_rows: int) -> None:
        """A group that was committed: its rows replace the estimate."""
        self._planned_done += planned_rows
        self._finished += n_rows
        self._live = max(self._live, self._finished)
        self._draw(self._planned_done)
        log.info("event=commit rows=%d rows_per_s=%.0f gflop_per_s=%.1f", self._finished, *self.rates())

    def rates(self) -> tuple[float, float]:
        """Rows a second and GFLOP/s since the start."""
        rows = self._live / max(time.perf_counter() - self._started, 1e-9)
        return rows, rows * self._plan.flops_per_row / 1e9

    def _draw(self, done: int) -> None:
        if self._bar is not None and self._task is not None:
            rows, gflops = self.rates()
            self._bar.update(self._task, completed=done, rate=f"{rows:,.0f} rows/s  {gflops:,.0f} GFLOP/s")


@contextmanager
def progressing(console: Console, what: str, n_rows: int) -> Iterator[Callable[[int], None]]:
    """A bar of rows for a pass that stores nothing; what it gives is called with numbers of rows."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    clocks = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *clocks, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=n_rows)
        yield lambda n: bar.update(task, advance=n)


@contextmanager
def metered(plan: Plan, console: Console | None) -> Iterator[Meter]:
    """A meter with a progress bar on the console; without a console it only counts."""
    if console is None or not plan.groups:
        yield Meter(plan, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    clocks = (TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *clocks, console=console, transient=not console.is_terminal) as bar:
        yield Meter(plan, bar)
