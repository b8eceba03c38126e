"""What a contestant is, and the list of them. Imports nothing that a contestant's interpreter may lack."""

from __future__ import annotations

import importlib
import re
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
    y_deviation : float
        Standard deviation of y.
    alpha : float
        Not divided by the number of rows.
    seen : callable
        To be told how many rows have been worked on so far, by those who know.
    """

    files: list[str]
    n_rows: int
    n_features: int
    y_deviation: float
    alpha: float
    seen: Callable[[int], None]


Fit = Callable[[Job], np.ndarray]
"""Weights, of shape (n_features,)."""
Contestant = Callable[[Setting], AbstractContextManager[Fit]]
"""Starts what it needs (a cluster, a virtual machine), gives its fit, and ends it."""


@dataclass(frozen=True)
class Peer:
    """A row of the table.

    Parameters
    ----------
    name : str
    fit : str
        Its function in ``fits``.
    precision : {'float32', 'float64'}
        Of products and sums.
    packages : tuple of str
        What pip must install for it, apart from NumPy and PyArrow.
    key : str
        Short name for `--only` and `--python`.
    blas_threads : int
        0 stands for the cores that it may use.
    penalised : bool
        Whether its penalty falls on the intercept too.
    jvm : bool
        Memory is limited by -Xmx instead of RLIMIT_DATA.
    row_limit : int
        Rows that it is given at most; 0 stands for all.
    why_limited : str
    try_all : bool
        Whether it is given all rows nonetheless, in a row of its own.
    """

    name: str
    fit: str
    precision: str
    packages: tuple[str, ...]
    key: str
    blas_threads: int = 0
    penalised: bool = False
    jvm: bool = False
    row_limit: int = 0
    why_limited: str = ""
    try_all: bool = False

    def load(self) -> Contestant:
        """Import it.

        Raises
        ------
        ImportError
            If its packages are missing.
        """
        found: Contestant = getattr(importlib.import_module("pipelines.peers.fits"), self.fit)
        return found


_ALLOCATION = re.compile(
    r"MemoryError|ArrowMemory|bad_alloc|OutOfMemory|out of memory|cannot allocate|malloc of size|memory allocation"
    r"|failed to allocate|can't start new thread",
    re.IGNORECASE,
)


def out_of_memory(text: str) -> bool:
    """Whether a message is one of an allocation that failed."""
    return bool(_ALLOCATION.search(text))


def exceeded(memory: int) -> str:
    """What a row says of a contestant that wanted more bytes than the limit."""
    return f"exceeded {memory / 1e9:g} GB"


_SLOW = "too slow for all rows"
_BOTH = ("float32", "float64")
_SPARK, _H2O = ("pyspark", "pandas"), ("h2o",)

PEERS: tuple[Peer, ...] = (
    *(Peer("streamfit", "streamfit", p, ("streamfit",), "streamfit", blas_threads=1) for p in _BOTH),
    *(
        Peer("scikit-learn-intelex IncrementalRidge", "intelex", p, ("scikit-learn-intelex",), "intelex")
        for p in _BOTH
    ),
    *(Peer("scikit-learn Ridge(cholesky)", "ridge_in_memory", p, ("scikit-learn",), "ridge",
           row_limit=100_000, why_limited="holds rows in memory", try_all=True) for p in _BOTH),
    Peer("scikit-learn SGDRegressor", "sgd", "float32", ("scikit-learn",), "sgd", row_limit=250_000, why_limited=_SLOW),
    *(
        Peer("dask.array normal equations", "normal_equations", p, ("dask[dataframe]",), "dask", blas_threads=1)
        for p in _BOTH
    ),
    Peer("dask-ml LinearRegression(lbfgs)", "dask_ml", "float64", ("dask-ml",), "dask-ml", blas_threads=1,
         penalised=True, row_limit=50_000, why_limited="each iteration reads all rows, so they stay in memory"),
    Peer("polars-online ewridge", "polars_online", "float64", ("polars-online", "numpy"), "polars-online"),
    *(Peer("hpelm HPELM", "hpelm", p, ("hpelm",), "hpelm", penalised=True, row_limit=250_000,
           why_limited=_SLOW) for p in _BOTH),
    Peer("river BayesianLinearRegression", "river", "float64", ("river", "pandas"), "river", penalised=True,
         row_limit=250_000, why_limited=_SLOW),
    Peer("Spark ML LinearRegression(normal)", "spark", "float64", _SPARK, "spark", jvm=True, row_limit=50_000,
         why_limited=_SLOW),
    Peer("H2O GLM(IRLSM)", "h2o", "float64", _H2O, "h2o", jvm=True, row_limit=50_000,
         why_limited=f"{_SLOW}, and holds them in memory"),
)  # fmt: skip
