"""Handing tasks to workers, or doing them here: the one place that speaks to a Dask client. Floor 5."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from distributed import CancelledError, Client, as_completed, get_worker
from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from streamfit.corpus import Source
from streamfit.engine.cluster import planned_workers
from streamfit.engine.tasks import Task
from streamfit.engine.work import WorkOptions
from streamfit.errors import PlanError, StreamfitError
from streamfit.store import Store

_TOPIC = "streamfit-blocks"
_REPORT_SECONDS = 0.5


class Crew:
    """Tasks in, results out, as they are finished; more may be added while results are taken.

    This one does them itself, one after another.
    """

    def __init__(self, store: Store, source: Source, options: WorkOptions, report: Callable[[int], None]) -> None:
        self._store, self._source, self._options, self._report = store, source, options, report
        self._waiting: deque[Task] = deque()

    def add(self, task: Task, *, first: bool = False) -> None:
        """Take on a task; `first` puts it before those that wait."""
        if first:
            self._waiting.appendleft(task)
        else:
            self._waiting.append(task)

    def results(self) -> Iterator[tuple[Any, Any]]:
        """Each task with its result.

        Raises
        ------
        StreamfitError
            The first that a task met; what was finished before it was given out.
        """
        while self._waiting:
            task = self._waiting.popleft()
            yield task, task.run(self._store, self._source, self._options, self._report)


class _Dask(Crew):
    def __init__(self, client: Client, *rest: Any) -> None:
        super().__init__(*rest)
        self._client, self._run = client, time.time_ns()
        self._tasks: dict[Any, Task] = {}
        self._done = as_completed(loop=client.loop)
        self._header = self._store.head().header
        # A task, not scattered data: if the one worker that holds it dies, the scheduler can make it again.
        self._remote = client.submit(_same, self._source, key=f"source-{self._run}", pure=False)

    def add(self, task: Task, *, first: bool = False) -> None:
        # A task is retried by Dask when its worker dies; it then writes a second segment, and the log names
        # whichever is finished first. `pure=False`: two runs must never share a result.
        future = self._client.submit(
            _remote,
            self._store.url,
            self._header,
            self._remote,
            task,
            self._options,
            key=f"{type(task).__name__.lower()}-{self._run}-{len(self._tasks)}",
            pure=False,
            priority=int(first),
        )
        self._tasks[future] = task
        self._done.add(future)

    def results(self) -> Iterator[tuple[Any, Any]]:
        for future in self._done:
            yield self._tasks[future], _outcome(future)
            future.release()

    def stop(self) -> None:
        self._client.cancel(list(self._tasks), force=True)


@contextmanager
def crew(
    store: Store,
    source: Source,
    client: Client | None,
    options: WorkOptions,
    report: Callable[[int], None] = lambda _: None,
) -> Iterator[Crew]:
    """Those who do the work: the workers of a client, or this process without one."""
    if client is None:
        yield Crew(store, source, options, report)
        return
    with _scheduler_lives(client), _live_blocks(client, report):
        there = _Dask(client, store, source, options, report)
        try:
            yield there
        finally:
            there.stop()


def n_workers(client: Client | None) -> int:
    """Workers of a client, those that may still come included; this process is one."""
    if client is None:
        return 1
    with _scheduler_lives(client):
        return max(1, planned_workers(client), len(client.scheduler_info(n_workers=-1)["workers"]))


def smallest_memory(client: Client | None) -> int | None:
    """Bytes that a task can count on, on the smallest of the workers there are; None if none has a limit."""
    if client is None:
        return None
    with _scheduler_lives(client):
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return min((w["memory_limit"] // w["nthreads"] for w in workers if w["memory_limit"]), default=None)


@contextmanager
def _scheduler_lives(client: Client) -> Iterator[None]:
    try:
        yield
    except (CancelledError, ClosedClientError, CommClosedError) as error:
        address = client.scheduler.address if client.scheduler else "its address"
        msg = f"the Dask scheduler at {address} was lost"
        raise PlanError(msg, "one that lives", "what was committed is kept; run again to go on") from error


def _same(source: Source) -> Source:
    return source


def _outcome(future: Any) -> Any:
    try:
        result = future.result()
    except KilledWorker as error:
        raise PlanError(
            "workers that kept dying while they worked on one group: " + str(error).splitlines()[0],
            "workers that live",
            "look for the system's out-of-memory killer; use fewer workers or features; then run again",
        ) from error
    if isinstance(result, StreamfitError):
        raise result
    return result


def _remote(url: str, header: str, source: Source, task: Task, options: WorkOptions) -> Any:
    pending, last = 0, 0.0
    worker = get_worker()

    def report(n_rows: int) -> None:
        nonlocal pending, last
        pending += n_rows
        if time.monotonic() - last > _REPORT_SECONDS:
            worker.log_event(_TOPIC, pending)
            pending, last = 0, time.monotonic()

    try:
        return task.run(_open(url, header), source, options, report)
    except StreamfitError as error:
        # A result, not a failure of the task: the fault is in the data, and Dask need not print its traceback.
        return error


_STORES: dict[tuple[str, str], Store] = {}


def _open(url: str, header: str) -> Store:
    # One header read a worker, not one a group: it may hold millions of centers. A worker may outlive the store
    # that it knew at this path, so the header's hash is part of the key.
    if (url, header) not in _STORES:
        _STORES[url, header] = Store(url)
    return _STORES[url, header]


@contextmanager
def _live_blocks(client: Client, report: Callable[[int], None]) -> Iterator[None]:
    def handle(event: tuple[float, int]) -> None:
        report(event[1])

    client.subscribe_topic(_TOPIC, handle)
    try:
        yield
    finally:
        client.unsubscribe_topic(_TOPIC)
