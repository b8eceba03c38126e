"""Keeping a store small while a run goes on: merges run on the workers beside the groups. Floor 5."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from streamfit.engine.crew import Crew
from streamfit.engine.tasks import Merge
from streamfit.store import FullError, Record, Refusal, Segment, Store, collect, commit_merged, compact, mergeable

log = logging.getLogger("streamfit")
_CROWDED = 0.75


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

    def commit(self, segments: Sequence[Segment], refused: Sequence[Refusal], *, recount: bool = False) -> Record:
        """Commit, after compacting here and now if the store is full."""
        while True:
            try:
                record = self._store.commit(segments, refused, recount=recount)
            except FullError:
                # Merges on the workers were too slow for the commits, or another run fills the store as well.
                compact(self._store)
                continue
            if not self._merging and len(record.segments) > _CROWDED * record.bound:
                for group in mergeable(record):
                    self._merging += 1
                    self._workers.add(Merge(tuple(group)), first=True)
            return record

    def merged(self, task: Merge, segment: Segment | None) -> None:
        """Put a merged segment in the place of its parts, and collect once all are."""
        done = segment is not None and commit_merged(self._store, task.segments, segment)
        log.info("event=compact segments=%d committed=%s", len(task.segments), done)
        self._merging -= 1
        if not self._merging:
            collected = collect(self._store)
            log.info("event=collect segments=%d bytes=%d", collected.segments, collected.n_bytes)
