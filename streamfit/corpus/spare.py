"""Memory of blocks, used again: the system clears fresh pages, which can cost as much as decoding. Floor 4."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from streamfit.plan import BLOCKS_AHEAD

_LARGER = 4
"""Times its bytes that an array may be given of a buffer: the last row group of a file is smaller than the others."""


class Spares:
    """Hands out arrays, and takes their memory back once neither an array nor a view of it is left.

    Memory is kept while somebody is within `reused`, and freed when the last has left.

    Parameters
    ----------
    limit : int
        Buffers that are kept; what comes back beyond it is freed.
    least : int
        Bytes of an array from which on its memory is kept: small ones would drive out large ones.
    """

    def __init__(self, limit: int, least: int = 0) -> None:
        self._limit, self._least = limit, least
        self._free: deque[np.ndarray] = deque(maxlen=0)
        self._users = 0
        self._lock = threading.Lock()

    @contextmanager
    def reused(self) -> Iterator[None]:
        """Keep memory that comes back, for arrays of that size, or down to a quarter of it."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._free = deque(maxlen=self._limit)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._free = deque(maxlen=0)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array of undefined content."""
        free = self._free
        count = int(np.prod(shape))
        n_bytes = count * np.dtype(dtype).itemsize
        if not free.maxlen or n_bytes < self._least:
            return np.empty(shape, dtype)
        buffer = _taken(free, n_bytes)
        if buffer is None:
            buffer = np.empty(n_bytes, np.uint8)
        # Views of views refer to this array, and not to the buffer, since there is a memoryview between the two.
        array = np.frombuffer(buffer.data, dtype, count)
        weakref.finalize(array, free.append, buffer).atexit = False
        return array.reshape(shape)


def _taken(free: deque[np.ndarray], n_bytes: int) -> np.ndarray | None:
    """The smallest buffer that holds so many bytes, and not many more. Where none does, one too small is given up."""
    found: list[np.ndarray] = []
    try:
        while True:
            found.append(free.pop())  # atomic, as append is: readers of several groups share the spares
    except IndexError:
        found.sort(key=lambda buffer: buffer.nbytes)
    fits = [n_bytes <= buffer.nbytes <= _LARGER * n_bytes for buffer in found]
    taken = found.pop(fits.index(True)) if any(fits) else None
    if taken is None and found and found[0].nbytes < n_bytes:
        del found[0]
    free.extend(found)
    return taken


BLOCKS = Spares(BLOCKS_AHEAD, least=2**20)
"""Memory of the blocks of this process."""
