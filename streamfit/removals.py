"""Certificates of removal: what left a store, when and why, and what proves that it did. Floor 7."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from streamfit.errors import MismatchError
from streamfit.plan import Shard
from streamfit.store import Departure, Removal, Store, digest_of


@dataclass(frozen=True)
class RemovalCertificate:
    """What left a store, and that it did.

    Parameters
    ----------
    store : str
    removal : Removal
    who, when, commit : str
    shards : tuple of dict
        Content id, key, rows that left, whether whole, and positions.
    still_counted : tuple of str
        Content ids that are counted now with rows that left: rows of theirs were added again since.
    renewed : tuple of str
        Keys of shards that left under which other content is counted now: it may hold the rows again.
    still_held : tuple of str
        Segments with the rows in them whose bytes are still there.
    without_ledger : int
        Segments that killed runs left before they had said what is in them.
    held_by : tuple of str
        Pins that keep them.
    digest : str
        SHA-256 of the store's sums now: a store that never saw the rows has the same, if `exact`.
    exact : bool
        Whether sums are exact; a triangular factor is so but for rounding.
    """

    store: str
    removal: Removal
    who: str
    when: str
    commit: str
    shards: tuple[dict[str, Any], ...]
    still_counted: tuple[str, ...]
    renewed: tuple[str, ...]
    still_held: tuple[str, ...]
    without_ledger: int
    held_by: tuple[str, ...]
    digest: str
    exact: bool

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    def lines(self) -> list[str]:
        """As text."""
        r = self.removal
        lines = [
            f"commit {r.sequence} of {self.store}, {self.when}, by {self.who} ({self.commit})",
            f"{r.kind}: {r.n_rows:,} rows of {r.n_shards:,} shards" + (f"; reason: {r.why}" if r.why else ""),
        ]
        for shard in self.shards:
            part = "whole" if shard["whole"] else f"positions {_few(shard['positions'])}"
            by = f", replaced by {shard['replaced_by'][:12]}" if shard["replaced_by"] else ""
            lines.append(f"  {shard['content_id'][:16]}  {shard['key']}: {shard['n_rows']:,} rows, {part}{by}")
        if self.still_counted:
            lines.append(f"counted again since: {', '.join(c[:16] for c in self.still_counted)}")
        if self.still_held:
            why = f"pinned by {', '.join(self.held_by)}" if self.held_by else "run `streamfit collect STORE --expire`"
            lines.append(f"{len(self.still_held)} old segments with these rows are still on disk: {why}")
        else:
            lines.append("no segment with these rows is left on disk")
        if self.without_ledger:
            lines.append(
                f"{self.without_ledger} segments that killed runs left may hold them: once no run is writing, run"
                " `streamfit collect STORE --grace 0`"
            )
        lines.append(f"sums of the store now: SHA-256 {self.digest}")
        if self.renewed:
            lines.append(
                f"other content is counted now under the names of {', '.join(self.renewed[:8])}: whether these rows are"
                " in it again, their keeper must say"
            )
        elif not self.still_counted:
            equal = "" if self.exact else ", but for rounding: a triangular factor is kept"
            lines.append(f"the sums are those of a store that never saw the rows, cut into the same shards{equal}")
        lines.append(
            "features that were chosen from a sample before (centers, in a language model with their text and place;"
            " tokenizer, units) are not changed by a removal"
        )
        return lines


def _few(positions: Sequence[int]) -> str:
    shown = ", ".join(map(str, positions[:8]))
    return shown + (f" and {len(positions) - 8} more" if len(positions) > 8 else "")


def certificates(store: Store, sequence: int | None = None) -> list[RemovalCertificate]:
    """Certificates of all removals, or of one commit.

    Raises
    ------
    MismatchError
        If nothing was ever removed, or not by that commit.
    """
    head = store.head()
    removals = [r for r in head.removed if sequence is None or r.sequence == sequence]
    if not removals:
        known = ", ".join(str(r.sequence) for r in head.removed)
        msg = "no removal" if sequence is None else f"no removal by commit {sequence}"
        raise MismatchError(msg, f"one of commits {known}" if known else "a store that has forgotten something")
    counted, digest = store.counted(), digest_of(store.moments())
    return [_certificate(store, removal, counted, digest) for removal in removals]


def _certificate(store: Store, removal: Removal, counted: Mapping[str, Shard], digest: str) -> RemovalCertificate:
    left = store.departures(removal)
    held, unknown = _holding(store, left)
    names = {shard.key: shard.content_id for shard in counted.values()} if removal.kind == "forgotten" else {}
    pins = [pin.name for pin in store.head().pins if {s.id for s in store.record(pin.sequence).segments} & {*held}]
    return RemovalCertificate(
        store.url,
        removal,
        removal.who,
        removal.when,
        store.record(removal.sequence).commit,
        tuple({**asdict(d), "positions": list(d.positions)} for d in left),
        tuple(d.content_id for d in left if d.content_id in counted and _is_in(d, counted[d.content_id])),
        tuple(sorted({d.key for d in left if names.get(d.key, d.content_id) != d.content_id})),
        held,
        unknown,
        tuple(pins),
        digest,
        store.header.statistic == "gram",
    )


def _is_in(departure: Departure, shard: Shard) -> bool:
    """Whether a shard holds rows that left."""
    return departure.whole or not set(departure.positions) <= set(shard.without)


def _holding(store: Store, left: Sequence[Departure]) -> tuple[tuple[str, ...], int]:
    """Segments that are not live but lie there with the rows in them, and the number of those without a ledger."""
    live = {segment.id for segment in store.head().segments}
    there = {name.split("/")[1] for name, _, _ in store.place.list("segments/") if name.count("/") > 1} - live
    gone = {d.content_id: d for d in left}
    held, unknown = [], 0
    for segment_id in sorted(there):
        shards = store.ledger_at(segment_id)
        if shards is None:
            unknown += 1
        elif any(s.content_id in gone and _is_in(gone[s.content_id], s) for s in shards):
            held.append(segment_id)
    return tuple(held), unknown
