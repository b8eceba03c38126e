"""Handing tasks to workers, or doing them here: the one place that speaks to a Dask client. Floor 5."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import dask
from distributed import CancelledError, Client, as_completed, get_worker
from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker, NoValidWorkerError, NoWorkerError

from streamfit.corpus import Source
from streamfit.corpus.spare import BLOCKS
from streamfit.engine.ahead import ReadAhead
from streamfit.engine.cluster import planned_workers
from streamfit.engine.deaths import REMEDY, Deaths, peak_bytes, watched
from streamfit.engine.tasks import Count, Task
from streamfit.engine.work import WorkOptions
from streamfit.errors import PlanError, StreamfitError
from streamfit.store import Store

_TOPIC = "streamfit-blocks"
_REPORT_SECONDS = 0.5
_AHEAD = 256
"""Tasks that a scheduler knows of, or four a worker where that is more."""
_RECOUNT_SECONDS = 10.0


class Crew:
    """Tasks in, results out, as they are finished; more may be added while results are taken.

    This one does them itself, one after another.

    Attributes
    ----------
    peak_bytes : int
        Largest resident size of a process that did some of them, as it was after its last; 0 where it is not known.
    """

    peak_bytes = 0

    def __init__(self, store: Store, source: Source, options: WorkOptions, report: Callable[[int], None]) -> None:
        self._store, self._source, self._options, self._report = store, source, options, report
        self._waiting: deque[Task] = deque()

    def add(self, task: Task, *, first: bool = False) -> None:
        """Take on a task; `first` puts it before those that wait."""
        if first:
            self._waiting.appendleft(task)
        else:
            self._waiting.append(task)

    def hold(self, held: bool) -> None:
        """Give out no more of those that wait, or again, while others are at work; `first` ones go before."""

    def batches(self) -> Iterator[list[tuple[Any, Any]]]:
        """Tasks with their results, as many as were finished since the last time.

        Raises
        ------
        StreamfitError
            The first that a task met; what was finished before it was given out.
        """
        ahead = ReadAhead(self._source)
        with BLOCKS.reused(), closing(ahead):
            while self._waiting:
                task = self._waiting.popleft()
                following = next((later for later in self._waiting if isinstance(later, Count)), None)
                # Where bad shards are skipped, or panels summed, a group is read more than once.
                if isinstance(task, Count) and following and not self._options.skip_bad_shards:
                    ahead.follow(task.group.shards[-1], following.group.shards[0])
                result = task.run(self._store, ahead, self._options, self._report)
                self.peak_bytes = peak_bytes()
                yield [(task, result)]

    def results(self) -> Iterator[tuple[Any, Any]]:
        """As `batches`, one by one."""
        for batch in self.batches():
            yield from batch


class _Dask(Crew):
    """Hands tasks to a client's workers, some hundreds ahead, many in one message.

    A scheduler that is given a hundred thousand tasks at once does nothing else for a while, and has to hold them all.
    """

    def __init__(self, client: Client, deaths: Deaths, *rest: Any) -> None:
        super().__init__(*rest)
        self._deaths = deaths
        self._client, self._run = client, time.time_ns()
        self._held, self._n_given, self._ahead, self._counted = False, 0, _AHEAD, 0.0
        self._tasks: dict[Any, Task] = {}
        self._done = as_completed(loop=client.loop)
        site = _Site(self._store.url, self._store.head().header, self._source, self._options)
        # A task, not scattered data: if the one worker that holds it dies, the scheduler can make it again.
        self._site = client.submit(_same, site, key=f"source-{self._run}", pure=False)

    def add(self, task: Task, *, first: bool = False) -> None:
        if first:
            self._give([task], 1)
        else:
            self._waiting.append(task)

    def hold(self, held: bool) -> None:
        self._held = held

    def _give(self, tasks: Sequence[Task], priority: int = 0) -> None:
        # A task is retried by Dask when its worker dies; it then writes a second segment, and the log names
        # whichever is finished first. `pure=False`: two runs must never share a result.
        keys = [f"{type(task).__name__.lower()}-{self._run}-{self._n_given + i}" for i, task in enumerate(tasks)]
        sites = [self._site] * len(tasks)
        futures = self._client.map(_remote, sites, tasks, key=keys, pure=False, priority=priority)
        self._n_given += len(tasks)
        self._tasks |= zip(futures, tasks, strict=True)
        self._done.update(futures)

    def _fill(self) -> None:
        if not self._waiting or (self._tasks and (self._held or len(self._tasks) > self._ahead // 2)):
            return
        if time.monotonic() - self._counted > _RECOUNT_SECONDS:  # workers may come while a run goes on
            self._ahead, self._counted = max(_AHEAD, 4 * n_workers(self._client)), time.monotonic()
        room = min(self._ahead - len(self._tasks), len(self._waiting))
        self._give([self._waiting.popleft() for _ in range(room)])

    def batches(self) -> Iterator[list[tuple[Any, Any]]]:
        while True:
            self._fill()
            try:
                done = self._done.next_batch()
            except StopIteration:
                return
            whole = [future for future in done if future.status == "finished"]
            gathered = self._gather(whole)
            outcomes = {future: outcome for future, (outcome, _) in zip(whole, gathered, strict=True)}
            self.peak_bytes = max([self.peak_bytes, *(peak for _, peak in gathered)])
            faults = [future for future in done if future not in outcomes]
            faults += [future for future in whole if isinstance(outcomes[future], StreamfitError)]
            good = [(self._tasks[future], outcomes[future]) for future in whole if future not in faults]
            for future in outcomes:
                del self._tasks[future]
                future.release()
            if good:
                yield good
            for future in faults:
                raise outcomes[future] if future in outcomes else fault_of(future, self._deaths)

    def _gather(self, finished: Sequence[Any]) -> Sequence[Any]:
        """Results, by one question to the scheduler for all of them."""
        try:
            return self._client.gather(finished)  # type: ignore[no-any-return]
        except OSError as error:
            if any(future.status == "error" for future in finished):  # of one whose result was lost, when done again
                raise
            raise CommClosedError(str(error)) from error

    def stop(self) -> None:
        if self._tasks:
            self._client.cancel(list(self._tasks), force=True)


@contextmanager
def crew(
    store: Store,
    source: Source,
    client: Client | None,
    options: WorkOptions,
    report: Callable[[int], None] = lambda _: None,
    tell: Callable[[str], None] | None = None,
) -> Iterator[Crew]:
    """Those who do the work: the workers of a client, or this process without one.

    Parameters
    ----------
    store, source, client, options
        As in `accumulate`.
    report : callable
        Called with numbers of rows, as they are done.
    tell : callable, optional
        Called with a line when a worker dies; without it the log is given a warning.
    """
    if client is None:
        yield Crew(store, source, options, report)
        return
    with scheduler_lives(client), _live_blocks(client, report), watched(client, tell) as deaths:
        there = _Dask(client, deaths, store, source, options, report)
        try:
            yield there
        finally:
            there.stop()


def n_workers(client: Client | None) -> int:
    """Workers of a client, those that may still come included; this process is one."""
    if client is None:
        return 1
    with scheduler_lives(client):
        return max(1, planned_workers(client), len(client.scheduler_info(n_workers=-1)["workers"]))


def smallest_memory(client: Client | None) -> int | None:
    """Bytes that a task can count on, on the smallest of the workers there are; None if none has a limit.

    A nanny ends its worker somewhat below the limit: at the share of it that Dask's configuration says.
    """
    if client is None:
        return None
    with scheduler_lives(client):
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
    share = dask.config.get("distributed.worker.memory.terminate") or 1.0
    limits = [int(share * w["memory_limit"]) // w["nthreads"] for w in workers if w["memory_limit"]]
    return min(limits, default=None)


@contextmanager
def scheduler_lives(client: Client) -> Iterator[None]:
    """One error of ours where the scheduler is lost meanwhile."""
    try:
        yield
    except (CancelledError, ClosedClientError, CommClosedError) as error:
        address = client.scheduler.address if client.scheduler else "its address"
        msg = f"the Dask scheduler at {address} was lost"
        raise PlanError(msg, "one that lives", "what was committed is kept; run again to go on") from error


@dataclass(frozen=True)
class _Site:
    """What all tasks of a crew have in common; it travels once a worker."""

    url: str
    header: str
    source: Source
    options: WorkOptions


def _same(site: _Site) -> _Site:
    return site


def fault_of(future: Any, deaths: Deaths | None = None) -> BaseException:
    """Why a task failed: what it raised, or one error of ours where its workers died."""
    try:
        future.result()
    except KilledWorker as error:
        fault = PlanError(
            "workers that kept dying while they worked on one group: " + str(error).splitlines()[0],
            "workers that live",
            "look for the system's out-of-memory killer; use fewer workers or features; then run again",
        )
        if deaths is not None and deaths.over_memory:
            n, last = len(deaths.over_memory), deaths.over_memory[-1]
            msg = f"workers that were ended for their memory, {n} in all, at last {last}"
            fault = PlanError(msg, "groups that fit", f"{REMEDY}; or use fewer features; then run again to go on")
        fault.__cause__ = error
        return fault
    except (NoWorkerError, NoValidWorkerError) as error:
        fault = PlanError(
            f"no worker for {error.timeout:.0f} s",
            "at least one that lives",
            "what was committed is kept; start workers and run again to go on",
        )
        fault.__cause__ = error
        return fault
    except (Exception, CancelledError) as error:
        return error
    msg = f"a task that is {future.status} and has a result"
    return RuntimeError(msg)


def _remote(site: _Site, task: Task) -> tuple[Any, int]:
    """A task's result, or its fault; and the most memory that this process ever had."""
    pending, last = 0, 0.0
    worker = get_worker()

    def report(n_rows: int) -> None:
        nonlocal pending, last
        pending += n_rows
        if time.monotonic() - last > _REPORT_SECONDS:
            worker.log_event(_TOPIC, pending)
            pending, last = 0, time.monotonic()

    try:
        result = task.run(_open(site.url, site.header), site.source, site.options, report)
    except StreamfitError as error:
        # A result, not a failure of the task: the fault is in the data, and Dask need not print its traceback.
        result = error
    return result, peak_bytes()


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
