"""Sums at rest: a plain Zarr store with a commit log."""

from streamfit.store.dense import export_dense, import_dense
from streamfit.store.exchange import absorb, export_segments, import_segments, merge
from streamfit.store.header import Header, StatisticKind
from streamfit.store.ledger import CountedTwiceError, Departure
from streamfit.store.log import KEEP, MAX_LIVE, Pin, Record, Refusal, Removal, Segment
from streamfit.store.mix import Mix
from streamfit.store.out_of_core import plan_tiled, solve_tiled
from streamfit.store.place import Place
from streamfit.store.policy import FullError, fitting
from streamfit.store.stitch import WrittenPanel, discard_panels, stitch, write_panel
from streamfit.store.store import Store
from streamfit.store.upkeep import (
    GRACE,
    Collected,
    by_kind,
    collect,
    commit_merged,
    compact,
    crowding,
    make_room,
    merge_live,
    merge_segments,
    mergeable,
    purge,
)
from streamfit.store.verify import Verification, digest_of, verify

__all__ = [
    "GRACE",
    "KEEP",
    "MAX_LIVE",
    "Collected",
    "CountedTwiceError",
    "Departure",
    "FullError",
    "Header",
    "Mix",
    "Pin",
    "Place",
    "Record",
    "Refusal",
    "Removal",
    "Segment",
    "StatisticKind",
    "Store",
    "Verification",
    "WrittenPanel",
    "absorb",
    "by_kind",
    "collect",
    "commit_merged",
    "compact",
    "crowding",
    "digest_of",
    "discard_panels",
    "export_dense",
    "export_segments",
    "fitting",
    "import_dense",
    "import_segments",
    "make_room",
    "merge",
    "merge_live",
    "merge_segments",
    "mergeable",
    "plan_tiled",
    "purge",
    "solve_tiled",
    "stitch",
    "verify",
    "write_panel",
]
