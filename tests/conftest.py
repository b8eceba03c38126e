"""Shared fixtures: array backends that catch hidden transfers and mutation, and small corpora on disk."""

from __future__ import annotations

import logging
import os
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

# Tests run several processes on few cores, and products are summed on one BLAS thread anyway.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import array_api_strict
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from rich.console import Console

from streamfit.engine import Machine

settings.register_profile("fast", max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("ci", max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def _numpy(array: np.ndarray) -> np.ndarray:
    return np.array(array)


def _numpy_readonly(array: np.ndarray) -> np.ndarray:
    copy = np.array(array)
    copy.flags.writeable = False
    return copy


def _strict_device(array: np.ndarray) -> Any:
    return array_api_strict.asarray(array, device=array_api_strict.Device("device1"))


@pytest.fixture(params=[_numpy, _numpy_readonly, _strict_device], ids=["numpy", "readonly", "strict-device1"])
def on(request: pytest.FixtureRequest) -> Callable[[np.ndarray], Any]:
    """Put a host array on a backend: NumPy, NumPy that refuses mutation, or a device that refuses host access."""
    return request.param


@pytest.fixture(scope="session")
def quiet() -> Console:
    """A console that shows nothing."""
    return Console(quiet=True)


@pytest.fixture(scope="session")
def serial() -> Machine:
    """This process alone."""
    return Machine("serial")


@pytest.fixture
def table(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """Four Parquet files of three row groups each, and the same rows in memory."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(12_000, 8)) * 2.0 ** np.arange(-4, 4) + np.arange(8)
    y = x @ rng.normal(size=8) + rng.normal(size=12_000)
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(4):
        part = slice(3000 * i, 3000 * (i + 1))
        columns = {f"x{j}": x[part, j] for j in range(8)} | {"y": y[part]}
        pq.write_table(pa.table(columns), folder / f"part-{i}.parquet", row_group_size=1000)
    return folder, x, y


@pytest.fixture(scope="session")
def s3() -> Iterator[Callable[[], str]]:
    """Gives fresh addresses in a bucket of an S3 server on this machine, which the environment points to.

    moto looks whether there is an object and then puts it, in two steps that threads can come between (of 150 rounds
    of four racing conditional creates, three had two winners when Python switched threads often). S3 itself is atomic,
    so requests are served one at a time.
    """
    from moto.server import ThreadedMotoServer  # takes half a second, which few sessions need

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    assert server._server is not None
    application: Any = server._server.app
    alone = threading.Lock()

    def one_at_a_time(environ: Any, start_response: Any) -> Iterable[bytes]:
        with alone:
            return application(environ, start_response)

    server._server.app = one_at_a_time
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    numbers = count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ALLOW_HTTP", "true")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).close()
        yield lambda: f"s3://bucket/stores/{next(numbers)}"
    server.stop()
