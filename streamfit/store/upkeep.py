"""What keeps a store small: merging segments of a kind, and deleting what no commit needs. Floor 4.

**Bounds.** After every commit there are at most `Record.bound` live segments: `max_live`, or twice the number of kinds
(fold, source, labels) where that is more; a commit that would leave more is refused. A commit of a run adds one
segment, or those that were finished meanwhile, at most an eighth of `max_live`; imports and rewrites add one a kind at
most. So the commits that one can go back to name `bound + keep * max_live / 8` segments together when runs made them.
Collection leaves those, the pinned ones, and what was never committed and is younger than its grace.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from streamfit.errors import MismatchError, StoreError
from streamfit.frame import n_tiles, tile_size
from streamfit.plan import Shard
from streamfit.store.ledger import ledger_key, removal_key
from streamfit.store.log import Record, Segment
from streamfit.store.policy import check_policy
from streamfit.store.runs import add_large
from streamfit.store.stitch import merge_tiles
from streamfit.store.store import Store

GRACE = 86_400.0
"""Seconds that an uncommitted segment is left alone: longer than a group takes from its first byte to its commit."""
_LARGE = 2**28
"""Bytes of a Gram matrix above which segments are merged tile by tile, which takes longer and little memory."""
_SKEW = timedelta(minutes=1)
"""By how much the clocks of a disk and of those who commit may differ, for telling orphans from what expired."""
_STAGED = re.compile(r"\.partial$|#\d+$")


def mergeable(head: Record) -> list[list[Segment]]:
    """Live segments by kind, those kinds that have several, the most numerous first."""
    return sorted((group for group in by_kind(head.segments) if len(group) > 1), key=len, reverse=True)


def crowding(head: Record) -> list[list[Segment]]:
    """What to merge for room in the middle of a run: of each kind the small ones, and not each time the large as well.

    Taken are, from the smallest, those with at most twice the shards of all smaller ones together, so that a shard's
    line in the ledger is written again only as often as the logarithm of their number. Where that leaves more than
    half of the bound, all that can be merged.
    """
    chosen, left = [], len(head.segments)
    for group in mergeable(head):
        parts = sorted(group, key=lambda segment: (segment.n_shards, segment.id))
        n, total = 1, parts[0].n_shards
        while n < len(parts) and parts[n].n_shards <= 2 * total:
            total += parts[n].n_shards
            n += 1
        if n > 1:
            chosen.append(parts[:n])
            left -= n - 1
    return chosen if left <= head.bound // 2 else mergeable(head)


def by_kind(segments: Iterable[Segment]) -> list[list[Segment]]:
    """Segments that may be merged with one another: of one fold, source and labels."""
    kinds: dict[object, list[Segment]] = {}
    for segment in segments:
        kinds.setdefault(segment.kind, []).append(segment)
    return [*kinds.values()]


def merge_segments(source: Store, segments: Sequence[Segment], target: Store) -> Segment:
    """Write the sum of segments of one kind as one segment, not committed.

    Two sums are in memory at a time. The bits are those that counting the same shards at once would give.

    Parameters
    ----------
    source : Store
        Holds the segments.
    segments : sequence of Segment
    target : Store
        Gets the sum; it has the same header.
    """
    return sum_segments([(source, segment) for segment in segments], target)


def sum_segments(
    parts: Sequence[tuple[Store, Segment]], target: Store, rename: Callable[[Shard], Shard] = lambda shard: shard
) -> Segment:
    """As `merge_segments`, of segments that several stores hold; `rename` gives what the new ledger calls a shard."""
    ordered = sorted(parts, key=lambda part: part[1].ledger)
    frame = target.header.frame
    if target.header.statistic == "gram" and 8 * n_tiles(frame.n_features) * tile_size(frame.n_features) ** 2 > _LARGE:
        return merge_tiles(ordered, target, rename)
    total = target.zeros()
    shards = []
    for source, segment in ordered:
        total = total + source.read(segment)
        shards += source.ledger(segment)
    tables = add_large([source.open_tables(segment) for source, segment in ordered])
    return target.write_segment(total, [*map(rename, shards)], [shard.planned_rows for shard in shards], tables)


def merge_live(store: Store, segments: Sequence[Segment]) -> Segment | None:
    """As `merge_segments` in one store; None if others were put in their place and they were collected meanwhile."""
    try:
        return merge_segments(store, segments, store)
    except StoreError:
        if {segment.id for segment in segments} <= {segment.id for segment in store.head().segments}:
            raise
        return None


def commit_merged(store: Store, old: Sequence[Segment], new: Segment) -> bool:
    """Put a merged segment in the place of its parts.

    Returns
    -------
    bool
        False if another writer changed one of the parts meanwhile; the merged segment is deleted then.
    """
    try:
        store.commit([new], action=f"compact {len(old)} segments", drop=[segment.id for segment in old], recount=True)
    except MismatchError:
        store.discard(new)
        return False
    return True


def compact(store: Store, max_live: int | None = None) -> int:
    """Merge all live segments of equal kind, one commit a kind.

    Parameters
    ----------
    store : Store
    max_live : int, optional
        A new bound for the store, kept from now on.

    Returns
    -------
    int
        By how many there are fewer segments.

    Raises
    ------
    FullError
        If another writer adds so much meanwhile that the new bound would not hold.
    """
    store.refuse_past()
    if max_live is not None:
        check_policy(max_live, 0)
    before = len(store.head().segments)
    for group in mergeable(store.head()):
        merged = merge_live(store, group)
        if merged is not None:
            commit_merged(store, group, merged)
    if max_live is not None and store.head().max_live != max_live:
        store.amend(f"max_live {max_live}", lambda _: {"max_live": max_live})
    return before - len(store.head().segments)


def make_room(store: Store, n_segments: int) -> None:
    """Compact first if so many more segments would exceed the bound."""
    head = store.head()
    if len(head.segments) + n_segments > head.bound:
        compact(store)


@dataclass(frozen=True)
class Collected:
    """What a collection deleted.

    Parameters
    ----------
    segments, orphans : int
        Segments that earlier commits named, and those that none ever did.
    n_bytes : int
    """

    segments: int
    orphans: int
    n_bytes: int


def collect(store: Store, *, keep: int | None = None, grace: float = GRACE) -> Collected:
    """Delete segments that neither a pin nor a commit that one can go back to names.

    Log records are never deleted, nor is what the newest commit needs.

    Parameters
    ----------
    store : Store
    keep : int, optional
        A new number of commits to keep before the newest, from now on. Older ones cannot be gone back to.
    grace : float
        Seconds for which something that was never committed is left: a writer may be about to commit it.
    """
    store.refuse_past()
    if keep is not None:
        check_policy(2, keep)
        if store.head().keep != keep:
            # What expired under the old number may be deleted: a larger one does not bring it back.
            store.amend(f"keep {keep}", lambda head: {"keep": keep, "horizon": head.oldest})
    # Listed before the log is read: what is found here and committed meanwhile is named by then.
    found = _listed(store)
    newest = store.head()
    kept = [store.record(n) for n in range(newest.oldest, newest.sequence)]
    kept += [newest, *(store.record(pin.sequence) for pin in newest.pins)]
    named = {segment.id for record in kept for segment in record.segments}
    since = datetime.now(UTC) - timedelta(seconds=grace)
    removals = {removal.id for removal in newest.removed}
    wanted = {f"segments/{name}" for name in named} | {ledger_key(name) for name in named}
    wanted |= {removal_key(name) for name in removals} | {newest.header_at}
    loose = {key: max(when for _, _, when in items) for key, items in found.items() if key not in wanted}
    expired = _named_before(store, newest.oldest, since, loose) - named
    segments = orphans = n_bytes = 0
    for folder, items in found.items():
        name = folder.split("/")[1].removesuffix(".parquet")
        if folder in wanted or (name not in expired and loose[folder] > since):
            continue
        if folder.endswith(".parquet"):
            store.place.delete([folder])
        else:
            store.place.delete_tree(folder)
        n_bytes += sum(size for _, size, _ in items)
        if folder.startswith("segments/"):
            segments, orphans = segments + (name in expired), orphans + (name not in expired)
    _delete_staged(store, since)
    return Collected(segments, orphans, n_bytes)


def purge(store: Store, *, keep: int | None = None, grace: float = GRACE, action: str = "purge") -> Collected:
    """Delete the segments that the newest commit no longer needs, at once; earlier commits cannot be gone back to.

    Pins still hold theirs. Segments being written by another run are left alone, for they are not committed yet.

    Parameters
    ----------
    store : Store
    keep, grace
        As in `collect`.
    action : str
        What the log is to say.
    """
    store.amend(action, lambda head: {"horizon": head.sequence})
    return collect(store, keep=keep, grace=grace)


def _listed(store: Store) -> dict[str, list[tuple[str, int, datetime]]]:
    """All objects but the log, by what they are deleted with."""
    found: dict[str, list[tuple[str, int, datetime]]] = {}
    # Ledgers first: a commit looks for one, and is refused where its segment is about to go.
    for prefix in ("ledgers/", "segments/", "removals/", "header/"):
        for item in store.place.list(prefix):
            if item[0] != f"{prefix}zarr.json":  # the group that Zarr makes of the folder
                found.setdefault("/".join(item[0].split("/")[:2]), []).append(item)
    return found


def _named_before(store: Store, oldest: int, since: datetime, loose: Mapping[str, datetime]) -> set[str]:
    """Segments of commits that expired, as far back as one that is loose may have been committed.

    A commit comes after its segments, so that the log of years is read only where something of that age is left.
    """
    left = {key.split("/")[1]: when - _SKEW for key, when in loose.items() if key.startswith("segments/")}
    found: set[str] = set()
    for sequence in range(oldest - 1, -1, -1):
        names, when = store.named(sequence)
        found |= names
        for name in names & left.keys():
            del left[name]
        # Once all that is loose has been found, what older commits name is no longer there.
        if not left or when < min([since, *left.values()]):
            break
    return found


def _delete_staged(store: Store, since: datetime) -> None:
    """Half-written files that a kill left in a local folder; nothing ever reads them."""
    if store.place.local is None:
        return
    latest = min(since.timestamp(), time.time() - 60.0)
    # os.walk passes over folders that another collection deletes meanwhile.
    for folder, _, names in os.walk(store.place.local):
        for path in (Path(folder, name) for name in names if _STAGED.search(name)):
            try:
                if path.stat().st_mtime < latest:
                    path.unlink(missing_ok=True)
            except OSError:
                continue
