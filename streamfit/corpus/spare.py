"""Memory of blocks, used again: the system clears fresh pages, which can cost as much as decoding. Floor 4."""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import numpy as np

from streamfit.plan import BLOCKS_AHEAD


class Spares:
    """Hands out arrays, and takes their memory back once neither an array nor a view of it is left.

    Parameters
    ----------
    limit : int
        Buffers that are kept; what comes back beyond it is freed.
    """

    def __init__(self, limit: int) -> None:
        self._free: deque[np.ndarray] = deque(maxlen=limit)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array of undefined content."""
        count = int(np.prod(shape))
        n_bytes = count * np.dtype(dtype).itemsize
        try:
            buffer = self._free.pop()  # atomic, as append is: readers of several groups share the spares
        except IndexError:
            buffer = None
        if buffer is None or buffer.nbytes != n_bytes:
            buffer = np.empty(n_bytes, np.uint8)
        # Views of views refer to this array, and not to the buffer, since there is a memoryview between the two.
        array = np.frombuffer(buffer.data, dtype, count)
        weakref.finalize(array, self._free.append, buffer).atexit = False
        return array.reshape(shape)

    def release(self) -> None:
        """Free what is kept."""
        self._free.clear()


BLOCKS = Spares(BLOCKS_AHEAD)
"""Memory of the blocks of this process."""
