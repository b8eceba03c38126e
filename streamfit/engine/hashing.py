"""Hashing a large corpus by the workers that will read it: one machine would not keep up with them. Floor 5."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from distributed import Client, LocalCluster, as_completed
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from streamfit.corpus.hashing import Hash, Part, hashed_by, here
from streamfit.engine.crew import fault_of, scheduler_lives
from streamfit.errors import StreamfitError

log = logging.getLogger("streamfit")
LARGE = 2**30
"""Bytes from which workers are asked, and a bar is shown."""
_BATCH_BYTES = 2**28
_BATCH_PARTS = 1024


@contextmanager
def hashing_on(client: Client | None, console: Console | None = None) -> Iterator[None]:
    """While it lasts, large corpora are hashed by a client's workers; those of this machine are no faster than it.

    Parameters
    ----------
    client : distributed.Client or None
    console : rich Console, optional
        Shows a bar.
    """
    remote = client if client is not None and not isinstance(client.cluster, LocalCluster) else None

    def way(function: Hash, parts: Sequence[Part]) -> Iterable[str]:
        total = sum(stop - start for _, start, stop in parts)
        if total < LARGE:
            yield from here(function, parts)
            return
        started = time.perf_counter()
        found = here(function, parts) if remote is None else _there(remote, function, parts)
        with _bar(total, console) as bar:
            task = bar.add_task("hashing", total=total)
            for (_, start, stop), digest in zip(parts, found, strict=True):
                bar.advance(task, stop - start)
                yield digest
        seconds = time.perf_counter() - started
        where = "workers" if remote else "here"
        log.info("event=hash parts=%d bytes=%d seconds=%.1f where=%s", len(parts), total, seconds, where)

    with hashed_by(way):
        yield


def _bar(total: int, console: Console | None) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=console is None, transient=True)


def _there(client: Client, function: Hash, parts: Sequence[Part]) -> Iterator[str]:
    """Hashes by workers, in the order of the parts.

    Raises
    ------
    StreamfitError
        What reading met on a worker; or that workers died, or the scheduler was lost.
    """
    batches = list(_batches(parts))
    with scheduler_lives(client):
        futures = client.map(_hash_all, [function] * len(batches), batches, key="hash", pure=False)
        place = {future: i for i, future in enumerate(futures)}
        done: dict[int, list[str]] = {}
        following = 0
        try:
            for future in as_completed(futures):
                if future.status != "finished":
                    raise fault_of(future)
                found = future.result()
                if isinstance(found, StreamfitError):
                    raise found
                done[place[future]] = found
                while following in done:
                    yield from done.pop(following)
                    following += 1
        finally:
            client.cancel(futures, force=True)


def _batches(parts: Sequence[Part]) -> Iterator[list[Part]]:
    batch: list[Part] = []
    size = 0
    for part in parts:
        batch.append(part)
        size += part[2] - part[1]
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_PARTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _hash_all(function: Hash, parts: Sequence[Part]) -> list[str] | StreamfitError:
    try:
        return list(here(function, parts))
    except StreamfitError as error:  # a result: the fault is in the data, and Dask need not print its traceback
        return error
