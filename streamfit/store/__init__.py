"""Sums at rest: a plain Zarr store with a commit log."""

from streamfit.store.header import Header
from streamfit.store.log import Record, Refusal, Segment
from streamfit.store.store import Store

__all__ = ["Header", "Record", "Refusal", "Segment", "Store"]
