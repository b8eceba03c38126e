"""Contestants that live in one Python process and read batches, or polars' stream, themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from pipelines.peers.job import Fit, Job, Setting
from pipelines.peers.rows import batches, columns, with_ones

BATCH_ROWS = 12_500
"""50 MB of 1,000 float32 columns: large enough for matrix products, small enough for three in flight."""


@contextmanager
def ridge_in_memory(setting: Setting) -> Iterator[Fit]:
    """scikit-learn's Ridge with all rows in memory, which is the only way it takes them.

    Settings: solver='cholesky' as the user guide names for dense X, copy_X=False to spare a copy.
    """
    from sklearn.linear_model import Ridge

    def fit(job: Job) -> np.ndarray:
        x = np.empty((job.n_rows, job.n_features), setting.dtype)
        y = np.empty(job.n_rows, setting.dtype)
        done = 0
        for part, target in batches(job.files, job.n_features, BATCH_ROWS):
            x[done : done + len(part)] = part
            y[done : done + len(part)] = target
            done += len(part)
        return np.asarray(Ridge(alpha=job.alpha, solver="cholesky", copy_X=False).fit(x, y).coef_)

    yield fit


@contextmanager
def sgd(setting: Setting) -> Iterator[Fit]:
    """scikit-learn's SGDRegressor, one pass of `partial_fit`.

    Settings by the user guide's chapter on stochastic gradient descent: features are scaled and the target is centred (here by the first batch),
    average=True, and its alpha is the penalty divided by the number of rows.
    """
    from sklearn.linear_model import SGDRegressor
    from sklearn.preprocessing import StandardScaler

    def fit(job: Job) -> np.ndarray:
        model = SGDRegressor(alpha=job.alpha / job.n_rows, average=True, random_state=0)
        scaler = StandardScaler()
        done = 0
        for x, y in batches(job.files, job.n_features, BATCH_ROWS):
            wide = x.astype(np.float64)
            if not done:
                scaler.fit(wide)
                middle = y.mean()
            model.partial_fit(scaler.transform(wide).astype(setting.dtype), y - middle)
            done += len(y)
            job.seen(done)
        return np.asarray(model.coef_ / scaler.scale_)

    yield fit


@contextmanager
def intelex(setting: Setting) -> Iterator[Fit]:
    """scikit-learn-intelex's IncrementalRidge by `partial_fit`; n_jobs is the number of cores.

    Its documentation names batches of 5 features' worth of rows as the default of `fit`; larger ones measure faster.
    """
    from sklearnex.linear_model import IncrementalRidge

    def fit(job: Job) -> np.ndarray:
        model = IncrementalRidge(alpha=job.alpha, n_jobs=setting.cores)
        done = 0
        for x, y in batches(job.files, job.n_features, BATCH_ROWS):
            model.partial_fit(np.ascontiguousarray(x, setting.dtype), y.astype(setting.dtype))
            done += len(y)
            job.seen(done)
        return np.asarray(model.coef_).ravel()  # reading them finalises the fit

    yield fit


@contextmanager
def hpelm(setting: Setting) -> Iterator[Fit]:
    """HPELM with one linear neuron an input, which copies it: ridge regression.

    Settings by its documentation: `add_data` in parts, then solve; norm is the penalty; batch as large as memory likes.
    Parts are given as arrays, which spares it the HDF5 files that it would otherwise want. A column of ones is the
    intercept, penalised like the rest.
    """
    from hpelm import HPELM

    def fit(job: Job) -> np.ndarray:
        width = job.n_features + 1
        model = HPELM(width, 1, norm=job.alpha, batch=BATCH_ROWS, precision=setting.dtype)
        model.add_neurons(width, "lin")
        done = 0
        for x, y in batches(job.files, job.n_features, BATCH_ROWS):
            model.add_data(with_ones(x, setting.dtype), y[:, None])
            done += len(y)
            job.seen(done)
        model.nnet.solve()
        return np.asarray(model.nnet.get_B())[: job.n_features, 0]

    yield fit


@contextmanager
def river(setting: Setting) -> Iterator[Fit]:
    """river's BayesianLinearRegression by `learn_many`, which is exact: its prior is the penalty.

    Its alpha is the prior's variance, the inverse of the ridge's penalty. It has no intercept: a column of ones. Each call inverts the
    precision matrix, so batches are as large as row groups.
    """
    import pandas as pd
    from river.linear_model import BayesianLinearRegression

    def fit(job: Job) -> np.ndarray:
        model = BayesianLinearRegression(alpha=1.0 / job.alpha, beta=1.0)
        names = [*columns(job.n_features), "one"]
        done = 0
        for x, y in batches(job.files, job.n_features, 2 * BATCH_ROWS):
            model.learn_many(pd.DataFrame(with_ones(x, np.float64), columns=names, copy=False), pd.Series(y))
            done += len(y)
            job.seen(done)
        # The prediction for a row with a one in one place is a coefficient.
        return np.asarray(model.predict_many(pd.DataFrame(np.eye(job.n_features + 1), columns=names)))[:-1]

    yield fit


@contextmanager
def polars_online(setting: Setting) -> Iterator[Fit]:
    """polars-online's ewridge without decay over polars' stream.

    Settings by its documentation: half_life=inf never forgets; gram_block_rows=256, the block for which it states its
    gain at a thousand features, needs a schedule of solves, set to one at the end; `ModelBank.fit` keeps no
    predictions; threads= the cores. Its ridge is the penalty divided by the number of rows.
    """
    import polars as pl
    import polars_online as po

    def fit(job: Job) -> np.ndarray:
        names = columns(job.n_features)
        spec = po.spec.ewridge(
            "ridge",
            targets=["y"],
            features=names,
            half_life=float("inf"),
            ridge=job.alpha / job.n_rows,
            solve_every=float(job.n_rows),
            max_rows_between_solves=job.n_rows,
            gram_block_rows=256,
        )
        bank = po.ModelBank([spec], threads=setting.cores)
        bank.fit(pl.scan_parquet(job.files), chunk_size=BATCH_ROWS)
        # The last row need not be one at which a solve was due: the sums are solved, as `polars_online.gram` is for.
        return np.asarray(po.gram.solve(bank.gram("ridge")[0], ridge=job.alpha / job.n_rows, features=names))[
            -len(names) :
        ]

    yield fit
