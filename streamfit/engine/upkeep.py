"""Keeping a store small while a run goes on: merges run on the workers beside the groups. Floor 5."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from streamfit.engine.crew import Crew
from streamfit.engine.tasks import Collect, Merge
from streamfit.store import (
    FullError,
    Record,
    Refusal,
    Segment,
    Store,
    commit_merged,
    compact,
    crowding,
    fitting,
)

log = logging.getLogger("streamfit")
_CROWDED = 0.75
_BATCHES = 8


class Upkeep:
    """Commits segments, and has them merged before their number reaches the store's bound.

    Parameters
    ----------
    store : Store
    workers : Crew
        Gets the merges, ahead of the groups that wait.
    """

    def __init__(self, store: Store, workers: Crew) -> None:
        self._store, self._workers = store, workers
        self._merging = 0

    def room(self, segments: Sequence[Segment]) -> int:
        """How many of some segments may be committed at once; 0 if they have to wait for a merge, which was begun.

        Several at once are one record of the log instead of one each, but not so many that the commits one can go back
        to would name much more than the bound.
        """
        if not segments:
            return 1
        head = self._store.head()
        n = min(fitting(head, segments), max(1, head.max_live // _BATCHES))
        if n == 0 and not self._merge(head):
            return 1  # nothing can be merged by the workers: `commit` makes room, or says why there is none
        self._workers.hold(n == 0 and len(segments) >= head.bound)
        return n

    def commit(self, segments: Sequence[Segment], refused: Sequence[Refusal], *, recount: bool = False) -> Record:
        """Commit, after compacting here and now if the store is full.

        Raises
        ------
        FullError
            If there is no room for several segments: they are to be committed one by one.
        """
        while True:
            try:
                record = self._store.commit(segments, refused, recount=recount)
            except FullError:
                if len(segments) > 1:
                    raise
                compact(self._store)  # another run fills the store as well
                continue
            if len(record.segments) > _CROWDED * record.bound:
                self._merge(record)
            return record

    def _merge(self, head: Record) -> bool:
        """Have the workers make room, unless they are at it; whether they are."""
        if not self._merging:
            for group in crowding(head):
                self._merging += 1
                self._workers.add(Merge(tuple(group)), first=True)
        return self._merging > 0

    def merged(self, task: Merge, segment: Segment | None) -> None:
        """Put a merged segment in the place of its parts, and collect once all are."""
        done = segment is not None and commit_merged(self._store, task.segments, segment)
        log.info("event=compact segments=%d committed=%s", len(task.segments), done)
        self._merging -= 1
        if not self._merging:
            self._workers.add(Collect(), first=True)
