"""What a store keeps: its bounds, and the commits that one can go back to. Floor 4: imports errors, log; no reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from streamfit.errors import ConfigError, StoreError
from streamfit.store.log import Pin, Record, Segment


class FullError(StoreError):
    """A commit that would leave more live segments than the store's bound; compact first."""


def check_policy(max_live: int, keep: int) -> None:
    """Refuse bounds that no store can hold.

    Raises
    ------
    ConfigError
        If `max_live` is below 2, or `keep` is negative.
    """
    if max_live < 2 or keep < 0:
        msg = f"max_live {max_live}, keep {keep}"
        raise ConfigError(msg, "max_live of at least 2 and keep of at least 0")


def check_bound(record: Record) -> None:
    """Refuse a commit that would hold more segments than it may.

    Raises
    ------
    FullError
        Naming both numbers.
    """
    if len(record.segments) > record.bound:
        msg = f"{len(record.segments)} live segments"
        raise FullError(msg, f"at most {record.bound}", "run `streamfit compact`")


def fitting(head: Record, segments: Sequence[Segment]) -> int:
    """How many of some segments, from the first, may be committed within the bound."""
    live, kinds, n = len(head.segments), {segment.kind for segment in head.segments}, 0
    for i, segment in enumerate(segments, start=1):
        kinds.add(segment.kind)
        if live + i <= max(head.max_live, 2 * len(kinds)):
            n = i
    return n


def sequence_of(newest: Record, at: int | str) -> int:
    """The commit that is meant by a number or the name of a pin, where its segments are kept.

    Raises
    ------
    StoreError
        If it is none, or cannot be gone back to any more.
    """
    pins = {pin.name: pin.sequence for pin in newest.pins}
    text = str(at)
    if text in pins:
        return pins[text]
    if not text.isdecimal() or int(text) > newest.sequence:
        names = f", or a pin ({', '.join(pins)})" if pins else ""
        msg = f"commit {at!r}"
        raise StoreError(msg, f"one of {newest.oldest} to {newest.sequence}{names}", "`streamfit log` lists them")
    if not newest.readable(int(text)):
        msg = f"commit {text}, whose segments are no longer kept"
        raise StoreError(msg, f"{newest.oldest} to {newest.sequence}, or a pin", "pin commits to go back to them")
    return int(text)


def with_pin(head: Record, name: str, sequence: int | None = None) -> Record:
    """A record that keeps a commit, the newest without a number, under a name.

    Raises
    ------
    StoreError
        If the commit cannot be gone back to any more, or the name is taken or a number.
    """
    if any(pin.name == name for pin in head.pins) or name.isdigit() or not name:
        msg = f"pin {name!r}"
        raise StoreError(msg, "a new name that is not a number", "unpin the old one, or choose another")
    target = head.sequence if sequence is None else sequence_of(head, sequence)
    return replace(head, pins=(*head.pins, Pin(name, target)))


def without_pin(head: Record, name: str) -> Record:
    """A record without a pin.

    Raises
    ------
    StoreError
        If there is no such pin.
    """
    left = tuple(pin for pin in head.pins if pin.name != name)
    if len(left) == len(head.pins):
        msg = f"no pin {name!r}"
        raise StoreError(msg, f"one of {', '.join(p.name for p in head.pins) or 'none, for there are none'}")
    return replace(head, pins=left)
