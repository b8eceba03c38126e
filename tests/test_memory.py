"""What a worker takes at its peak, by the system's own figure, is what the plan projects."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamfit.corpus import Files
from streamfit.corpus.parquet import ParquetTable
from streamfit.engine import Machine, WorkOptions, accumulate, connect, plan_for
from streamfit.features import RBF, Chain, FeatureMap, Linear, Standardize
from streamfit.frame import Frame
from streamfit.plan import PROCESS_BYTES
from streamfit.store import Header, Store
from streamfit.targets import Dense, OneHot, Targets

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
TOLERANCE = 0.15


def peak_bytes(process: int) -> int:
    """Largest resident size that a process ever had (`VmHWM`)."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.M)
    assert found is not None
    return 1024 * int(found[1])


def table_of(
    folder: Path, n_inputs: int, n_rows: int, n_classes: int | None = None, group: int | None = None
) -> ParquetTable:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(2):
        x = rng.normal(size=(n_rows, n_inputs)).astype(np.float32)
        y = rng.normal(size=n_rows) if n_classes is None else rng.integers(0, n_classes, n_rows)
        columns = {f"x{j}": x[:, j] for j in range(n_inputs)} | {"y": y, "w": rng.uniform(0.5, 2.0, n_rows)}
        pq.write_table(pa.table(columns), folder / f"{i}.parquet", row_group_size=group or n_rows)
    return ParquetTable(Files(str(folder)), tuple(f"x{j}" for j in range(n_inputs)), ("y",), n_classes=n_classes)


def rbf(n: int, n_inputs: int) -> RBF:
    return RBF(np.random.default_rng(1).normal(size=(n, n_inputs)), 0.05)


def standardized(n: int, n_inputs: int) -> Chain:
    rng = np.random.default_rng(1)
    return Chain(Standardize.fit(rng.normal(size=(50, n_inputs))), RBF(rng.normal(size=(n, n_inputs)), 1e-4))


@pytest.mark.parametrize(
    ("features", "targets", "precision", "n_rows", "group", "n_bands", "n_threads", "weighted"),
    [
        pytest.param(Linear(600), Dense(1), "float32", 32_768, None, 1, 1, False, marks=pytest.mark.slow),
        pytest.param(Linear(4096), Dense(1), "float32", 32_768, 8192, 1, 2, False, marks=pytest.mark.slow),
        pytest.param(Linear(4096), Dense(1), "float64", 32_768, 8192, 1, 2, False, marks=pytest.mark.slow),
        pytest.param(Linear(4096), Dense(1), "float32", 32_768, 8192, 1, 2, True, marks=pytest.mark.slow),
        pytest.param(rbf(3000, 8), Dense(1), "float64", 9000, None, 1, 1, False, marks=pytest.mark.slow),
        pytest.param(rbf(1024, 8), OneHot(8000), "float32", 9000, None, 1, 1, False, marks=pytest.mark.slow),
        pytest.param(rbf(2048, 8), Dense(1), "float64", 40_000, None, 1, 2, False, marks=pytest.mark.slow),
        pytest.param(standardized(256, 4000), Dense(1), "float32", 32_768, 8192, 1, 2, False, marks=pytest.mark.slow),
        (rbf(3000, 8), Dense(1), "float64", 5000, None, 2, 1, False),
    ],
    ids=["one-group", "wide", "wide-float64", "weighted", "rbf", "classes", "rbf-threads", "many-inputs", "panels"],
)
def test_a_worker_takes_what_the_plan_says(
    tmp_path: Path,
    features: FeatureMap,
    targets: Targets,
    precision: str,
    n_rows: int,
    group: int | None,
    n_bands: int,
    n_threads: int,
    weighted: bool,
):
    n_classes = targets.n_targets if targets.one_hot else None
    table = table_of(tmp_path / "rows", features.n_inputs, n_rows, n_classes, group)
    table = replace(table, weight="w") if weighted else table
    header = Header(features, targets, Frame.identity(features.n_features, targets.n_targets), precision, n_folds=2)
    store = Store.create(tmp_path / "store", header)
    plan = replace(plan_for(store, table.shards(), n_workers=1, source=table), n_bands=n_bands)
    plan = plan.worked_by(n_threads, on_gpu=False)
    with connect(Machine(n_workers=1, threads_per_worker=n_threads)) as client:
        options = WorkOptions(n_bands=n_bands, n_threads=n_threads)
        summary = accumulate(store, table, client=client, options=options)
        (process,) = client.run(os.getpid).values()
        peak = peak_bytes(process)
    assert summary.plan.n_bands == n_bands
    assert abs(peak - plan.worker_bytes) <= TOLERANCE * plan.worker_bytes, (
        f"{peak / 1e6:.0f} MB for a plan of {plan.worker_bytes / 1e6:.0f}"
    )


@pytest.mark.slow
def test_columns_of_few_values_take_their_decoded_size(tmp_path: Path):
    """A dictionary's indices take three bits of a number that takes 32 in memory; other columns are not read at all."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 8, size=(150_000, 700)).astype(np.float32)
    columns = {f"x{j}": x[:, j] for j in range(700)} | {"y": x[:, 0]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet", row_group_size=len(x))
    for n_features in (600, 2):
        table = ParquetTable(Files(str(tmp_path / "rows.parquet")), tuple(f"x{j}" for j in range(n_features)), ("y",))
        frame = Frame.from_sample(x[:4096, :n_features], x[:4096, :1], Dense(1))
        header = Header(Linear(n_features), Dense(1), frame, "float32", n_folds=2)
        store = Store.create(tmp_path / str(n_features), header)
        plan = plan_for(store, table.shards(), n_workers=1, source=table)
        with connect(Machine(n_workers=1, threads_per_worker=1)) as client:
            accumulate(store, table, client=client)
            (process,) = client.run(os.getpid).values()
            peak = peak_bytes(process)
        said = f"{peak / 1e6:.0f} MB for a plan of {plan.worker_bytes / 1e6:.0f}"
        assert peak <= (1 + TOLERANCE) * plan.worker_bytes, said
        # Of two columns hardly more is planned than a process takes by itself, with room for what differs there.
        assert peak >= (1 - TOLERANCE) * plan.worker_bytes or plan.worker_bytes < 1.1 * PROCESS_BYTES, said
