"""Contestants on Dask's threaded scheduler, the default of its arrays.

BLAS gets one thread, as Dask's best practices for arrays say: parallelism is Dask's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pipelines.peers.job import Fit, Job, Setting
from pipelines.peers.rows import columns


def _arrays(job: Job, dtype: type) -> tuple[Any, Any]:
    """Lazy arrays of x and y, a chunk a row group, by the documented way from Parquet to arrays of known chunks."""
    import dask.dataframe as dd
    import pyarrow.parquet as pq

    lengths = []
    for path in job.files:
        with pq.ParquetFile(path) as file:
            lengths += [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    frame = dd.read_parquet(job.files, split_row_groups=True)
    # One array cut in two: with dask 2026.8 two arrays of one frame lose a task when they are computed together.
    both = frame[[*columns(job.n_features), "y"]].to_dask_array(lengths=tuple(lengths)).astype(dtype)
    return both[:, :-1], both[:, -1]


@contextmanager
def normal_equations(setting: Setting) -> Iterator[Fit]:
    """dask.array: Gram and cross moments in one pass over the graph, centred and solved by NumPy in float64."""
    import dask

    def fit(job: Job) -> np.ndarray:
        x, y = _arrays(job, setting.dtype)
        sums = dask.compute(x.T @ x, x.T @ y, x.sum(axis=0), y.sum())
        gram, cross, sum_x, sum_y = (np.asarray(s, np.float64) for s in sums)
        gram -= np.outer(sum_x, sum_x) / job.n_rows
        cross -= sum_x * (sum_y / job.n_rows)
        gram[np.diag_indices(job.n_features)] += job.alpha
        return np.asarray(np.linalg.solve(gram, cross))

    with dask.config.set(scheduler="threads", num_workers=setting.cores):
        yield fit


@contextmanager
def dask_ml(setting: Setting) -> Iterator[Fit]:
    """dask-ml's LinearRegression.

    Settings: solver='lbfgs', the one that is both regularised and smooth; rows persisted, as its examples do, since
    each iteration reads all of them; C = 1 / (2 alpha), for dask-glm's penalty is half of 1 / C and its loss the plain
    sum of squares. It penalises the intercept.
    """
    import dask
    from dask_ml.linear_model import LinearRegression

    def fit(job: Job) -> np.ndarray:
        x, y = dask.persist(*_arrays(job, setting.dtype))
        model = LinearRegression(penalty="l2", C=0.5 / job.alpha, solver="lbfgs")
        return np.asarray(model.fit(x, y).coef_)

    with dask.config.set(scheduler="threads", num_workers=setting.cores):
        yield fit
