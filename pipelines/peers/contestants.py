"""The list of contestants. Imports nothing that a contestant's interpreter may lack."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from pipelines.peers.job import Contestant


@dataclass(frozen=True)
class Peer:
    """A row of the table.

    Parameters
    ----------
    name : str
    where : str
        ``module:function`` in this folder.
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
    where: str
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
        module, function = self.where.split(":")
        found: Contestant = getattr(importlib.import_module(f"pipelines.peers.{module}"), function)
        return found


_SLOW = "too slow for all rows"
_BOTH = ("float32", "float64")
_SPARK, _H2O = ("pyspark", "pandas"), ("h2o",)

PEERS: tuple[Peer, ...] = (
    *(Peer("streamfit", "product:cluster", p, ("streamfit",), "streamfit", blas_threads=1) for p in _BOTH),
    *(
        Peer("scikit-learn-intelex IncrementalRidge", "in_process:intelex", p, ("scikit-learn-intelex",), "intelex")
        for p in _BOTH
    ),
    *(Peer("scikit-learn Ridge(cholesky)", "in_process:ridge_in_memory", p, ("scikit-learn",), "ridge",
           row_limit=100_000, why_limited="rows must be in memory", try_all=True) for p in _BOTH),
    Peer("scikit-learn SGDRegressor", "in_process:sgd", "float32", ("scikit-learn",), "sgd"),
    *(
        Peer("dask.array normal equations", "graphs:normal_equations", p, ("dask[dataframe]",), "dask", blas_threads=1)
        for p in _BOTH
    ),
    Peer("dask-ml LinearRegression(lbfgs)", "graphs:dask_ml", "float64", ("dask-ml",), "dask-ml", blas_threads=1,
         penalised=True, row_limit=50_000, why_limited="each iteration reads all rows, so they must stay in memory"),
    Peer("polars-online ewridge", "in_process:polars_online", "float64", ("polars-online", "numpy"), "polars-online"),
    *(Peer("hpelm HPELM", "in_process:hpelm", p, ("hpelm",), "hpelm", penalised=True) for p in _BOTH),
    Peer("river BayesianLinearRegression", "in_process:river", "float64", ("river", "pandas"), "river", penalised=True),
    Peer("Spark ML LinearRegression(normal)", "jvm:spark", "float64", _SPARK, "spark", jvm=True, row_limit=100_000,
         why_limited=_SLOW),
    Peer("H2O GLM(IRLSM)", "jvm:h2o", "float64", _H2O, "h2o", jvm=True, row_limit=100_000,
         why_limited=f"{_SLOW}, and it holds them in memory"),
)  # fmt: skip
