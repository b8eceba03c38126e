"""Workers that die in the middle of work: told as it happens, and what it was that killed them. Floor 5."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distributed import Client

from streamfit.plan import size_text

log = logging.getLogger("streamfit")
_MEMORY, _ALL = "worker-restart-memory", "all"
"""Dask's topics: of nannies that end a worker at its limit, and of whatever happens to the cluster."""
REMEDY = "give each worker more memory (memory_limit, or fewer workers), or write files of fewer rows a row group"


def peak_bytes() -> int:
    """Largest resident size that this process ever had (`VmHWM`); 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(found[0]) if found else 0


class Deaths:
    """What became of workers, by the events of their scheduler.

    Parameters
    ----------
    limits : dict of str to int
        Bytes that each worker may have, by its address; 0 where it has no limit.
    tell : callable, optional
        Is given a line at each death; without it the log is, as a warning.

    Attributes
    ----------
    over_memory : list of str
        Workers that were ended at their limit, and at what size.
    """

    def __init__(self, limits: dict[str, int], tell: Callable[[str], None] | None) -> None:
        self._limits, self._tell = limits, tell
        self._told: set[str] = set()
        self.over_memory: list[str] = []

    def ended(self, event: tuple[float, Any]) -> None:
        """A nanny ended its worker, which had come to the limit."""
        facts = event[1]
        worker = str(facts["worker"])
        # A worker that was started again has another address, and the limit of the one that it stands for.
        limit = self._limits.get(worker) or min(filter(None, self._limits.values()), default=0)
        allowed = f" of {size_text(limit)} allowed" if limit else ""
        self.over_memory.append(f"{worker} at {size_text(facts['rss'])}{allowed}")
        self._told.add(worker)
        log.info("event=worker_over_memory worker=%s bytes=%d limit=%d", worker, facts["rss"], limit)
        self._say(f"worker {self.over_memory[-1]} was ended for its memory; its group is counted again: {REMEDY}")

    def removed(self, event: tuple[float, Any]) -> None:
        """Something happened to the cluster; a worker that is lost in the middle of work is told."""
        facts = event[1]
        if not isinstance(facts, dict) or facts.get("action") != "remove-worker" or facts.get("expected", True):
            return
        worker = str(facts["worker"])
        if worker in self._told or not facts.get("processing-tasks"):
            return
        log.info("event=worker_lost worker=%s", worker)
        self._say(
            f"worker {worker} was lost at work; its group is counted again. If the system ended it for its memory (see"
            f" dmesg), {REMEDY}"
        )

    def _say(self, line: str) -> None:
        if self._tell is None:
            log.warning(line)
        else:
            self._tell(line)


@contextmanager
def watched(client: Client, tell: Callable[[str], None] | None) -> Iterator[Deaths]:
    """Deaths of a client's workers, while it is at work."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    deaths = Deaths({address: int(facts["memory_limit"] or 0) for address, facts in workers.items()}, tell)
    client.subscribe_topic(_MEMORY, deaths.ended)
    client.subscribe_topic(_ALL, deaths.removed)
    try:
        yield deaths
    finally:
        client.unsubscribe_topic(_MEMORY)
        client.unsubscribe_topic(_ALL)
