"""Hashes of the parts of a corpus: each once a process, by whoever is there to do it. Floor 4: imports nothing of ours.

A corpus is listed several times in a run; its bytes are hashed again only where a file has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

Part = tuple[str, int, int]
"""Path or address of a file, and the first and the last but one of its bytes."""
Hash = Callable[[str, int, int], str]
"""Hash of a part, hexadecimal: a function of a module, which can travel."""
Way = Callable[[Hash, Sequence[Part]], Iterable[str]]
"""How the hashes of many parts are taken, in their order."""
THREADS = 8
"""Parts that this process hashes at a time: storage that answers slowly is asked for several."""

KNOWN: dict[Hashable, str] = {}
"""Hashes by function, part and what the file's stamp was."""


def here(function: Hash, parts: Sequence[Part]) -> Iterator[str]:
    """In threads of this process."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(lambda part: function(*part), parts)


_WAY: ContextVar[Way] = ContextVar("way")


@contextmanager
def hashed_by(way: Way) -> Iterator[None]:
    """Take hashes in another way for a while."""
    token = _WAY.set(way)
    try:
        yield
    finally:
        _WAY.reset(token)


def hashes_of(function: Hash, parts: Sequence[Part], stamps: Sequence[Hashable]) -> list[str]:
    """Hashes of parts, of which those are taken that are not known.

    Parameters
    ----------
    function : callable
    parts : sequence of (uri, start, stop)
    stamps : sequence
        Of the file of each part: another stamp, other content.
    """
    keys = [(function, part, stamp) for part, stamp in zip(parts, stamps, strict=True)]
    new = [key for key in dict.fromkeys(keys) if key not in KNOWN]
    if new:
        way = _WAY.get(here)
        KNOWN.update(zip(new, way(function, [part for _, part, _ in new]), strict=True))
    return [KNOWN[key] for key in keys]
