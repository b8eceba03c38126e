"""What a corpus has become since it was counted: files that changed, rows that left, other cuts. Floor 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from streamfit.errors import MismatchError, ShardChangedError
from streamfit.plan import Shard
from streamfit.store import Store


def narrowed(store: Store, found: Sequence[Shard]) -> list[Shard]:
    """Shards without the rows that were ever taken out of them: they may have left, and come back with their file."""
    gone = store.withdrawn()
    return [replace(s, without=tuple(sorted(gone[s.bytes_id]))) if gone.get(s.bytes_id) else s for s in found]


def changed_files(found: Sequence[Shard], counted: Mapping[str, Shard]) -> list[tuple[Shard, Shard]]:
    """Counted shards whose file is there, but their content is nowhere: each after one that its file has now.

    Content that lies in another file by now is not lost, and a file that is gone altogether is not asked for.
    """
    by_file: dict[str, list[Shard]] = {}
    for shard in found:
        by_file.setdefault(shard.uri, []).append(shard)
    present = {shard.content_id for shard in found}
    changed = []
    for before in sorted(counted.values(), key=lambda s: (s.uri, s.start, s.key)):
        there = by_file.get(before.uri, [])
        if there and before.content_id not in present:
            overlapping = (s for s in there if s.start < before.stop and before.start < s.stop)
            changed.append((next(overlapping, there[-1]), before))
    return changed


def refuse_other_cuts(found: Sequence[Shard], counted: Mapping[str, Shard]) -> None:
    """A part that is counted must be divided by the same columns again, or its rows would count twice."""
    cuts = {s.bytes_id: s for s in counted.values()}
    for shard in found:
        before = cuts.get(shard.bytes_id)
        if before is not None and [n for n, _ in before.select] != [n for n, _ in shard.select]:
            was, now = (", ".join(n for n, _ in s.select) or "none" for s in (before, shard))
            msg = f"{shard.key} is counted already, as {before.key}, cut by other label columns ({was}, now {now})"
            raise MismatchError(
                msg, "each row once", "use the label columns that it was counted with, or forget it first"
            )


def refuse_bringing_back(changed: Sequence[tuple[Shard, Shard]]) -> None:
    """Rows that were taken out of a file are known by their place in it, which new content does not keep."""
    for now, before in changed:
        if before.without:
            msg = f"{now.key} has changed, and {len(before.without):,} rows had been taken out of what it was"
            remedy = (
                "take them out of the file; then swap it by `streamfit add STORE PATH --replace --again` (recount),"
                " which counts all that it has, or forget the file"
            )
            raise MismatchError(msg, "content that does not bring them back, which cannot be told", remedy)


def changed_error(now: Shard, before: Shard) -> ShardChangedError:
    """That a file has changed since it was counted, and what to do about it."""
    msg = f"{now.key} has changed since it was counted: now {now.content_id[:12]}"
    remedy = (
        "restore the file, or swap it by `streamfit add STORE PATH --replace` (replace_changed); nothing was counted"
    )
    if now.uri.startswith("memory:"):
        remedy = "give other rows another label, or swap them with replace_changed; nothing was counted"
    return ShardChangedError(msg, f"content {before.content_id[:12]} ({before.key})", remedy)
