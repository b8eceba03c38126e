"""Workers that are ended for their memory are told of as it happens, and in the error if that does not end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client
from rich.console import Console

from streamfit.corpus import Files, ParquetTable, Rows
from streamfit.engine import Machine, accumulate, connect
from streamfit.engine.deaths import Deaths
from streamfit.errors import PlanError
from streamfit.features import Linear
from streamfit.frame import Frame
from streamfit.plan import Shard
from streamfit.store import Header, Store
from streamfit.targets import Dense

LIMIT = 700 * 2**20
HEADER = Header(Linear(1), Dense(1), Frame.identity(1, 1), "float64", n_folds=2)

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident sizes are read from /proc")


@dataclass(frozen=True)
class Hungry(ParquetTable):
    """The first reader, or every one, comes to its limit of memory, or is killed by the system."""

    marker: str = ""
    always: bool = False
    killed: bool = False

    def read(self, shard: Shard) -> Iterator[Rows]:
        if self.always or not Path(self.marker).exists():
            Path(self.marker).touch()
            if self.killed:
                os.kill(os.getpid(), signal.SIGKILL)
            held = []
            for _ in range(200):  # slowly enough that the nanny sees it before the machine is full
                held.append(np.ones(2**22))
                time.sleep(0.05 if len(held) > 20 else 0.01)
        yield from super().read(shard)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with connect(Machine(n_workers=1, threads_per_worker=1, memory_limit=LIMIT)) as client:
        yield client


def hungry(folder: Path, **how: bool) -> Hungry:
    x = np.arange(10.0)
    pq.write_table(pa.table({"x": x, "y": 2 * x}), folder / "rows.parquet")
    return Hungry(Files(str(folder / "rows.parquet")), ("x",), ("y",), marker=str(folder / "begun"), **how)


def test_a_worker_at_its_limit_is_told_and_its_group_counted_again(tmp_path: Path, client: Client):
    console, store = Console(file=StringIO(), width=200), Store.create(tmp_path / "store", HEADER)
    (worker,) = client.scheduler_info()["workers"]
    summary = accumulate(store, hungry(tmp_path), client=client, console=console)
    assert summary.n_rows == 10
    said = [line for line in console.file.getvalue().splitlines() if "was ended for its memory" in line]
    assert len(said) == 1
    assert said[0].startswith(f"worker {worker} at ")
    assert "of 734 MB allowed" in said[0]
    assert "give each worker more memory (memory_limit" in said[0]
    assert 100e6 < summary.peak_bytes < LIMIT


def test_a_worker_that_the_system_kills_is_told(tmp_path: Path, client: Client):
    console, store = Console(file=StringIO(), width=200), Store.create(tmp_path / "store", HEADER)
    (worker,) = client.scheduler_info()["workers"]
    assert accumulate(store, hungry(tmp_path, killed=True), client=client, console=console).n_rows == 10
    said = [line for line in console.file.getvalue().splitlines() if line.startswith("worker ")]
    assert len(said) == 1
    assert f"worker {worker} was lost at work" in said[0]
    assert "dmesg" in said[0]


def test_a_group_that_never_fits_is_given_up_with_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Without a console the log has the lines."""
    store = Store.create(tmp_path / "store", HEADER)
    machine = Machine(n_workers=1, threads_per_worker=1, memory_limit=LIMIT)
    with connect(machine) as client:
        caplog.set_level("WARNING", "streamfit")  # Dask silences handlers that are there when a cluster starts
        client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
        with pytest.raises(PlanError, match=r"ended for their memory, 1 in all, at last tcp://.* of 734 MB.*_limit"):
            accumulate(store, hungry(tmp_path, always=True), client=client)
    assert [record.levelname for record in caplog.records if "was ended for its memory" in record.getMessage()] == [
        "WARNING"
    ]
    assert store.head().n_rows == 0


def test_only_what_was_lost_at_work_is_told():
    told: list[str] = []
    deaths = Deaths({"tcp://a": 0}, told.append)
    lost = {"action": "remove-worker", "worker": "tcp://a", "expected": False, "processing-tasks": ["count-1"]}
    for event in (lost | {"expected": True}, lost | {"processing-tasks": []}, {"action": "add-worker"}, "gone"):
        deaths.removed((0.0, event))
    assert told == []
    deaths.ended((0.0, {"worker": "tcp://a", "pid": 1, "rss": 10**9}))
    deaths.removed((0.0, lost))
    assert len(told) == 1, "once: that it is gone follows from its end"
    assert deaths.over_memory == ["tcp://a at 1 GB"]


def test_without_a_console_the_log_is_told(caplog: pytest.LogCaptureFixture):
    caplog.set_level("WARNING", "streamfit")
    Deaths({"tcp://a": 2 * 10**9}, None).ended((0.0, {"worker": "tcp://a", "pid": 1, "rss": 1.9e9}))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("worker tcp://a at 1.9 GB of 2 GB allowed was ended for its memory")
