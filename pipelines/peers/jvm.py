"""Contestants in a Java virtual machine, whose memory -Xmx limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from pipelines.peers.job import Fit, Job, Setting
from pipelines.peers.rows import columns


@contextmanager
def spark(setting: Setting) -> Iterator[Fit]:
    """Spark ML's LinearRegression, solver='normal', in local mode.

    Settings: regParam is the penalty divided by the number of rows, its loss being half the mean square;
    standardization=False penalises the columns as they are. spark.driver.memory is -Xmx in local mode. One task a core
    reads a file each.
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
            regParam=job.alpha / job.n_rows,
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
    """H2O's GLM: family gaussian, solver IRLSM, the documented choice for up to some thousand columns.

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
