"""What a contestant is given and what it gives back. Imports NumPy alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Setting:
    """What holds for a whole process.

    Parameters
    ----------
    precision : {'float32', 'float64'}
    cores : int
    memory : int
        Bytes that it may use.
    scratch : Path
        An empty folder.
    """

    precision: str
    cores: int
    memory: int
    scratch: Path

    @property
    def dtype(self) -> type:
        """Of the precision."""
        return np.float32 if self.precision == "float32" else np.float64


@dataclass(frozen=True)
class Job:
    """One fit: minimise ``sum (y - x'w - b)² + alpha w'w``.

    Parameters
    ----------
    files : list of str
    n_rows, n_features : int
    alpha : float
        Not divided by the number of rows.
    seen : callable
        To be told how many rows have been worked on so far, by those who know.
    """

    files: list[str]
    n_rows: int
    n_features: int
    alpha: float
    seen: Callable[[int], None]


Fit = Callable[[Job], np.ndarray]
"""Weights, of shape (n_features,)."""
Contestant = Callable[[Setting], AbstractContextManager[Fit]]
"""Starts what it needs (a cluster, a virtual machine), gives its fit, and ends it."""
