"""The fits of all contestants, each with its own imports: an interpreter has the packages of some of them only.

Docstrings say which settings come from the documentation of a package, and which from trying.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.peers.contestants import Fit, Job, Setting
from pipelines.peers.rows import batches, columns

BATCH_ROWS = 12_500
"""50 MB of 1,000 float32 columns: large enough for matrix products, small enough for three in flight."""


def _with_ones(x: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """Rows with a column of ones, for contestants that know no intercept."""
    wide = np.empty((len(x), x.shape[1] + 1), dtype)
    wide[:, :-1] = x
    wide[:, -1] = 1.0
    return wide


@contextmanager
def streamfit(setting: Setting) -> Iterator[Fit]:
    """The product by the path that a user takes: two TOML files, `fit`, and the model read back from the run's folder.

    It is `streamfit fit` without the start of the interpreter, which no contestant is charged with: features chosen
    from a sample, content ids, sums in a store committed and synced to disk, solve, certificate, model saved. A worker
    process a core, as configs/machine_local.toml has it; only data, machine and precision are described.
    """
    from rich.console import Console

    from streamfit.config import load_machine, load_problem
    from streamfit.engine import connect
    from streamfit.jobs import fit
    from streamfit.models import LinearModel

    machine = setting.scratch / "machine.toml"
    # The coordinator takes a share of the memory too.
    share = setting.memory // (setting.cores + 1)
    machine.write_text(f'kind = "local"\nn_workers = {setting.cores}\nmemory_limit = {share}\n')
    where = load_machine(machine)

    with connect(where) as client:

        def run(job: Job) -> np.ndarray:
            folder = Path(job.files[0]).parent
            runs = setting.scratch / f"run-{folder.name}"
            config = setting.scratch / f"{folder.name}.toml"
            include = [Path(path).name for path in job.files]
            config.write_text(
                f'kind = "ridge"\nrun = {json.dumps(str(runs))}\nprecision = "{setting.precision}"\n'
                f"[corpus]\nroot = {json.dumps(str(folder))}\ninclude = {json.dumps(include)}\n"
                f'features = {json.dumps(columns(job.n_features))}\ntarget = ["y"]\n'
                f"[solve]\nalphas = [{job.alpha!r}]\n"
            )
            fit(load_problem(config), where, client, Console(quiet=True))
            return np.asarray(LinearModel.load(runs / "model").solution.weights[:, 0])

        yield run


@contextmanager
def ridge_in_memory(setting: Setting) -> Iterator[Fit]:
    """scikit-learn's Ridge with all rows in memory, which is the only way it takes them.

    Settings: solver='cholesky', the closed form; copy_X=False spares a copy of X.
    """
    from sklearn.linear_model import Ridge

    def fit(job: Job) -> np.ndarray:
        x: np.ndarray = np.empty((job.n_rows, job.n_features), setting.dtype)
        y: np.ndarray = np.empty(job.n_rows, setting.dtype)
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

    Settings: features are scaled and the target is centred, both by the first batch; average=True; its alpha is the
    penalty divided by the number of rows.
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

    `fit` would cut rows in memory into batches of 5 n_features by default; `partial_fit` takes each batch as one.
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

    Settings by its docstrings: `add_data` in parts, then solve; norm is the L2 penalty. Parts are arrays, which spares
    it the HDF5 files that it would otherwise want. A column of ones is the intercept, penalised like the rest.
    """
    from hpelm import HPELM

    def fit(job: Job) -> np.ndarray:
        width = job.n_features + 1
        model = HPELM(width, 1, norm=job.alpha, batch=BATCH_ROWS, precision=setting.dtype)
        model.add_neurons(width, "lin")
        done = 0
        for x, y in batches(job.files, job.n_features, BATCH_ROWS):
            model.add_data(_with_ones(x, setting.dtype), y[:, None])
            done += len(y)
            job.seen(done)
        model.nnet.solve()
        return np.asarray(model.nnet.get_B())[: job.n_features, 0]

    yield fit


@contextmanager
def river(setting: Setting) -> Iterator[Fit]:
    """BayesianLinearRegression of river by `learn_many`, which is exact: its prior is the penalty.

    `learn_many` starts the precision matrix at 1 / alpha, and inverts it in each call, so batches are large. It has no
    intercept: a column of ones.
    """
    import pandas as pd
    from river.linear_model import BayesianLinearRegression

    def fit(job: Job) -> np.ndarray:
        model = BayesianLinearRegression(alpha=1.0 / job.alpha, beta=1.0)
        names = [*columns(job.n_features), "one"]
        done = 0
        for x, y in batches(job.files, job.n_features, 2 * BATCH_ROWS):
            model.learn_many(pd.DataFrame(_with_ones(x, np.float64), columns=names, copy=False), pd.Series(y))
            done += len(y)
            job.seen(done)
        # The prediction for a row with a one in one place is a coefficient.
        return np.asarray(model.predict_many(pd.DataFrame(np.eye(job.n_features + 1), columns=names)))[:-1]

    yield fit


@contextmanager
def polars_online(setting: Setting) -> Iterator[Fit]:
    """polars-online's ewridge without decay over polars' stream.

    Settings by the docstring of `spec.ewridge`: half_life=inf never forgets; gram_block_rows=256, the block for which
    it states its gain at a thousand features, needs a schedule of solves, set to one at the end; threads are the cores.
    Its ridge is the penalty divided by the number of rows.
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


def _arrays(job: Job, dtype: type) -> tuple[Any, Any]:
    """Lazy arrays of x and y, a chunk a row group, on the threaded scheduler, the default of arrays.

    BLAS has one thread, for parallelism is Dask's.
    """
    import dask.dataframe as dd
    import pyarrow.parquet as pq

    lengths = []
    for path in job.files:
        with pq.ParquetFile(path) as file:
            lengths += [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    frame = dd.read_parquet(job.files, split_row_groups=True)
    # One array cut in two: two arrays of one frame lose a task when they are computed together (seen with 2026.8).
    both = frame[[*columns(job.n_features), "y"]].to_dask_array(lengths=tuple(lengths)).astype(dtype)
    return both[:, :-1], both[:, -1]


@contextmanager
def normal_equations(setting: Setting) -> Iterator[Fit]:
    """dask.array: Gram and cross moments in one pass over the graph, centred and solved by NumPy in float64."""
    import dask.base

    def fit(job: Job) -> np.ndarray:
        x, y = _arrays(job, setting.dtype)
        sums = dask.base.compute(x.T @ x, x.T @ y, x.sum(axis=0), y.sum())
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

    Settings: solver='lbfgs', regularised and smooth; rows persisted, since each iteration reads all of them;
    C = 1 / (2 alpha), for dask-glm's penalty is w'w / (2 C) and its loss the plain sum of squares. It penalises the
    intercept, and stops at its default tolerance.
    """
    import dask.base
    from dask_ml.linear_model import LinearRegression

    def fit(job: Job) -> np.ndarray:
        x, y = dask.base.persist(*_arrays(job, setting.dtype))
        model = LinearRegression(penalty="l2", C=0.5 / job.alpha, solver="lbfgs")
        return np.asarray(model.fit(x, y).coef_)

    with dask.config.set(scheduler="threads", num_workers=setting.cores):
        yield fit


@contextmanager
def spark(setting: Setting) -> Iterator[Fit]:
    """Spark ML's LinearRegression, solver='normal', in local mode.

    Settings: its loss is half the mean square, and it scales the target to a deviation of one while it solves, as R's
    glmnet does, so that regParam is the penalty divided by the number of rows, times that deviation.
    standardization=False penalises the columns as they are. spark.driver.memory is -Xmx in local mode.
    """
    from pyspark.ml.feature import VectorAssembler
    from pyspark.ml.regression import LinearRegression
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master(f"local[{setting.cores}]")
        .config("spark.driver.memory", f"{setting.memory // 10**6}m")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.local.dir", str(setting.scratch))
        .config("spark.sql.warehouse.dir", str(setting.scratch / "warehouse"))
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")

    def fit(job: Job) -> np.ndarray:
        names = columns(job.n_features)
        frame = VectorAssembler(inputCols=names, outputCol="x").transform(session.read.parquet(*job.files))
        model = LinearRegression(
            featuresCol="x",
            labelCol="y",
            solver="normal",
            regParam=job.alpha / job.n_rows * job.y_deviation,
            elasticNetParam=0.0,
            standardization=False,
        )
        return np.asarray(model.fit(frame.select("x", "y")).coefficients.toArray())

    try:
        yield fit
    finally:
        session.stop()


@contextmanager
def h2o(setting: Setting) -> Iterator[Fit]:
    """H2O's GLM: family gaussian, solver IRLSM, which solver=AUTO takes below 5,000 predictors by its documentation.

    Settings: lambda is the penalty divided by the number of rows (its loss is half the mean square), alpha=0 makes it
    ridge, standardize=False penalises the columns as they are; the frame is imported, as H2O holds rows in memory,
    compressed.
    """
    import h2o as client
    from h2o.estimators import H2OGeneralizedLinearEstimator

    client.init(
        nthreads=setting.cores,
        max_mem_size=f"{setting.memory // 10**6}M",
        ice_root=str(setting.scratch),
        verbose=False,
        start_h2o=True,
    )
    client.no_progress()

    def fit(job: Job) -> np.ndarray:
        names = columns(job.n_features)
        frame = client.import_file(job.files)
        model = H2OGeneralizedLinearEstimator(
            family="gaussian", solver="IRLSM", alpha=0.0, lambda_=job.alpha / job.n_rows, standardize=False
        )
        model.train(x=names, y="y", training_frame=frame)
        found = model.coef()
        client.remove(frame)
        return np.array([found[name] for name in names])

    try:
        yield fit
    finally:
        client.cluster().shutdown()
