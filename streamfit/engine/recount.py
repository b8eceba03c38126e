"""Reading a sample of shards again, and comparing their sums with what a store holds. Floor 5."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from distributed import Client

from streamfit.corpus import Source
from streamfit.engine.crew import crew
from streamfit.engine.tasks import Recount
from streamfit.engine.work import WorkOptions, placed
from streamfit.errors import StreamfitError
from streamfit.plan import Shard
from streamfit.store import Store, Verification


def recount(
    store: Store,
    source: Source,
    found: Mapping[str, Shard],
    share: float,
    seed: int,
    verification: Verification,
    *,
    client: Client | None = None,
    options: WorkOptions | None = None,
) -> None:
    """Sum whole segments again until they hold a share of all shards, and compare bit for bit.

    Sums are kept a segment, not a shard, so what is drawn at random is segments.

    Parameters
    ----------
    store : Store
    source : Source
    found : mapping of str to Shard
        Where bytes lie now, by their hash.
    share : float
        Of all shards, in (0, 1]; at least one segment is read.
    seed : int
    verification : Verification
        Gets what was looked at, and the faults.
    client, options
        As in `accumulate`.
    """
    segments = store.head().segments
    wanted = share * sum(segment.n_shards for segment in segments)
    chosen, n_shards = [], 0
    for index in np.random.default_rng(seed).permutation(len(segments)):
        if n_shards >= wanted:
            break
        chosen.append(segments[index])
        n_shards += segments[index].n_shards
    with crew(store, source, client, options or WorkOptions()) as workers:
        n_rows = {}
        for segment in chosen:
            shards = store.ledger(segment)
            if segment.label("imported") is not None:
                verification.count("segments that were imported as sums, not read")
                continue
            gone = [s for s in shards if s.bytes_id not in found]
            if gone:
                verification.faults.append(
                    f"{len(gone)} counted shards are not in the corpus, such as {gone[0].key}"
                    f" (content {gone[0].bytes_id[:12]})"
                )
                continue
            now = tuple(placed(shard, found) for shard in shards)
            workers.add(Recount(segment, now))
            n_rows[segment.id] = (len(now), segment.n_rows)
        results = workers.results()
        while True:
            try:
                task, same = next(results)
            except StopIteration:
                break
            except StreamfitError as error:
                verification.faults.append(str(error))
                break
            verification.count("shards read again", n_rows[task.segment.id][0])
            verification.count("rows read again", n_rows[task.segment.id][1])
            if not same:
                verification.faults.append(
                    f"segment {task.segment.id} is not what its {task.segment.n_shards} shards sum to"
                )
