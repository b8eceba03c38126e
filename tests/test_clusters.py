"""Clusters in processes of their own: over TLS, growing and shrinking."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from certificates import make_certificates
from cli_runs import ok, told, total


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, str]:
    """A folder with a corpus, and the digest of its sums in one process."""
    folder = tmp_path_factory.mktemp("clusters")
    (folder / "corpus").mkdir()
    x, z, y = np.random.default_rng(3).normal(size=(3, 600))
    pq.write_table(pa.table({"x": x, "z": z, "y": y}), folder / "corpus" / "0.parquet", row_group_size=60)
    problem(folder, "serial")
    (folder / "serial.toml").write_text('kind = "serial"\n')
    ok("fit", folder / "serial-problem.toml", "--machine", folder / "serial.toml")
    return folder, total(folder / "serial")


def problem(folder: Path, name: str) -> Path:
    path = folder / f"{name}-problem.toml"
    path.write_text(
        f'kind = "ridge"\nrun = "{folder / name}"\ngroup_rows = 60\n'
        f'[corpus]\nroot = "{folder / "corpus"}"\nfeatures = ["x", "z"]\ntarget = ["y"]\n[solve]\nfolds = 2\n'
    )
    return path


@contextmanager
def processes(folder: Path, *commands: tuple[object, ...]) -> Iterator[None]:
    """Dask's own commands, until the block ends."""
    with (folder / "dask.txt").open("w") as log:
        started = [
            subprocess.Popen([sys.executable, "-m", *map(str, c)], stdout=log, stderr=log, cwd=folder) for c in commands
        ]
        try:
            yield
        finally:
            for process in started:
                process.kill()
                process.wait()


def test_tls(undisturbed):
    folder, expected = undisturbed
    files = make_certificates(folder / "tls", "node")
    foreign = make_certificates(folder / "tls", "foreign")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tls://127.0.0.1:{port}"
    options = ("--tls-ca-file", files["ca"], "--tls-cert", files["cert"], "--tls-key", files["key"])
    where = ("--host", f"tls://127.0.0.1:{port}", "--no-dashboard")
    scheduler = ("distributed.cli.dask_scheduler", *where, *options)
    worker = ("distributed.cli.dask_worker", address, "--no-nanny", "--no-dashboard", "--nthreads", 1, *options)
    machine, config = folder / "tls.toml", problem(folder, "tls-run")

    def secured(chosen: dict[str, Path]) -> str:
        return "[tls]\n" + "".join(f'{part} = "{path}"\n' for part, path in chosen.items())

    with processes(folder, scheduler, worker):
        machine.write_text(f'kind = "address"\naddress = "{address}"\n{secured(files)}')
        ok("fit", config, "--machine", machine)
        assert total(folder / "tls-run") == expected
        machine.write_text(f'kind = "address"\naddress = "{address}"\n')
        assert f"error: '{address}' without certificates; expected ca, cert and key" in told(
            "fit", config, "--machine", machine
        )
        machine.write_text(f'kind = "address"\naddress = "{address}"\n{secured(foreign)}')
        assert f"error: no Dask scheduler at '{address}'" in told("fit", config, "--machine", machine)
    machine.write_text(f'kind = "address"\naddress = "{address}"\n{secured(files | {"cert": folder / "none"})}')
    assert "tls.cert: no file at" in told("fit", config, "--machine", machine)
    machine.write_text(f'kind = "address"\naddress = "{address}"\n{secured(files | {"key": foreign["key"]})}')
    assert "certificates that cannot be used" in told("fit", config, "--machine", machine)


@pytest.mark.slow
def test_adaptive(undisturbed):
    folder, expected = undisturbed
    machine = folder / "adaptive.toml"
    machine.write_text("adapt = {minimum = 1, maximum = 2}\nmemory_limit = 1_000_000_000\n")
    printed = ok("fit", problem(folder, "adaptive"), "--machine", machine)
    assert "for each of 2 workers" in printed, "the plan is for the most"
    assert total(folder / "adaptive") == expected
