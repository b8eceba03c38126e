"""Blocks to the device, one ahead of the products: the next is copied while the present one is multiplied. Floor 5.

Which buffer may be written when is decided here, for any transport; what a transport does on a GPU is in `arrays`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from streamfit.arrays import Array, Backend, PinnedTransport

SLOTS = 2
"""Buffers of a transport: one that is multiplied, one that is filled."""
_Tag = TypeVar("_Tag")


class Transport(Protocol):
    """Copies arrays to a device through numbered slots, each with a host and a device buffer."""

    def wait_for_copy(self, slot: int) -> None:
        """Hold the host until the slot's host buffer has been read."""

    def stage(self, slot: int, arrays: Sequence[np.ndarray | None]) -> None:
        """Write the slot's host buffer."""

    def wait_for_use(self, slot: int) -> None:
        """Hold the copies that follow until the slot's device buffer has been used."""

    def copy(self, slot: int) -> None:
        """Begin to copy the slot's host buffer to its device buffer."""

    def arrays(self, slot: int) -> list[Array | None]:
        """The slot's arrays, for computations that wait for the copy."""

    def used(self, slot: int) -> None:
        """Mark that all computations on the slot's device buffer have been begun."""


def transport_to(backend: Backend) -> Transport | None:
    """What takes blocks to a backend's device; None where they are there already."""
    return None if backend == "numpy" else PinnedTransport(SLOTS)


def fed(
    blocks: Iterable[tuple[_Tag, Sequence[np.ndarray | None] | None]], transport: Transport | None, n_slots: int = SLOTS
) -> Iterator[tuple[_Tag, list[Any] | None]]:
    """Blocks on the device, in order.

    Parameters
    ----------
    blocks : iterable of (tag, arrays)
        Arrays may be missing (None) one by one; where all are, the block is a message that keeps its place.
    transport : Transport or None
        None passes the host's own arrays on, without a copy and without reading ahead.
    n_slots : int
        At least 2.

    Yields
    ------
    tag, arrays
        Those of a block may be used until the next one is asked for: computations that were begun by then are waited
        for before their memory is written again.
    """
    if transport is None:
        for tag, arrays in blocks:
            yield tag, None if arrays is None else list(arrays)
        return
    # A slot's use, n_slots blocks before, was marked when the block after it was asked for: before `stage` comes.
    held: list[tuple[_Tag, int | None]] = []
    n = 0
    for tag, arrays in blocks:
        slot = None
        if arrays is not None:
            slot, n = n % n_slots, n + 1
            if n > n_slots:
                transport.wait_for_copy(slot)
            transport.stage(slot, arrays)
            if n > n_slots:
                transport.wait_for_use(slot)
            transport.copy(slot)
        yield from _given(held, transport)
        held = [(tag, slot)]
    yield from _given(held, transport)


def _given(held: list[tuple[_Tag, int | None]], transport: Transport) -> Iterator[tuple[_Tag, list[Any] | None]]:
    for tag, slot in held:
        if slot is None:
            yield tag, None
            continue
        yield tag, transport.arrays(slot)
        transport.used(slot)
