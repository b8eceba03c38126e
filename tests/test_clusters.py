"""Clusters in processes of their own: over TLS, without workers, growing and shrinking, jobs of a batch system."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from certificates import make_certificates
from cli_runs import ok, told, total

from streamfit.engine import connect, n_workers
from streamfit.engine.cluster_spec import job_script
from streamfit.machines import load_machine


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


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_tls(undisturbed):
    folder, expected = undisturbed
    files = make_certificates(folder / "tls", "node")
    foreign = make_certificates(folder / "tls", "foreign")
    address = f"tls://127.0.0.1:{free_port()}"
    options = ("--tls-ca-file", files["ca"], "--tls-cert", files["cert"], "--tls-key", files["key"])
    where = ("--host", address, "--no-dashboard")
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


def test_no_worker_comes(undisturbed, monkeypatch):
    """A run without workers ends, after ten minutes; here after one second."""
    folder, _ = undisturbed
    address = f"tcp://127.0.0.1:{free_port()}"
    machine = folder / "empty.toml"
    machine.write_text(f'kind = "address"\naddress = "{address}"\n')
    exported = "export DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT="
    assert f"{exported}'10 minutes'" in ok("machine", machine)
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT", "1s")
    with processes(folder, ("distributed.cli.dask_scheduler", "--host", address, "--no-dashboard")):
        assert "error: no worker for 1 s; expected at least one" in told(
            "fit", problem(folder, "empty"), "--machine", machine
        )


@pytest.mark.slow
def test_adaptive(undisturbed):
    folder, expected = undisturbed
    machine = folder / "adaptive.toml"
    machine.write_text("adapt = {minimum = 1, maximum = 2}\nmemory_limit = 1_000_000_000\n")
    printed = ok("fit", problem(folder, "adaptive"), "--machine", machine)
    assert "for each of 2 workers" in printed, "the plan is for the most"
    assert total(folder / "adaptive") == expected


COMMANDS = [("slurm", "sbatch", "scancel"), ("pbs", "qsub", "qdel")]


class BatchSystem:
    """Two commands on PATH: one starts each script at once in a shell of its own and keeps it, the other ends it."""

    def __init__(self, folder: Path, kind: str, submit: str, cancel: str) -> None:
        self.folder, self.submit, self.machine = folder, submit, folder / "machine.toml"
        kept = f"{folder}/$$.sh"
        self._command(submit, f'cp "$1" {kept}\nsetsid sh {kept} >{folder}/$$.txt 2>&1 &\necho "job $!"')
        self._command(cancel, "for job; do kill -- -$job; done")
        self.machine.write_text(
            f"kind = '{kind}'\nn_workers = 2\n"
            "[job]\ncores = 1\nmemory = '1GB'\nwalltime = '00:10:00'\ninterface = 'lo'\nstart_timeout = 60\n"
            f"local_directory = '{folder}'\njob_script_prologue = ['export OMP_NUM_THREADS=7']\n"
        )

    def _command(self, name: str, line: str) -> None:
        (self.folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (self.folder / name).chmod(stat.S_IRWXU)

    def refuse(self, why: str) -> None:
        self._command(self.submit, f"echo '{why}' >&2; exit 1")

    def scripts(self) -> list[str]:
        return [path.read_text() for path in self.folder.glob("*.sh")]

    def jobs(self) -> list[psutil.Process]:
        """Processes of jobs: those that scratch in this folder."""
        running = psutil.process_iter(["cmdline"])
        return [process for process in running if str(self.folder) in (process.info["cmdline"] or ())]


@pytest.fixture(params=COMMANDS, ids=[kind for kind, _, _ in COMMANDS])
def batch_system(request, tmp_path, monkeypatch) -> Iterator[BatchSystem]:
    kind, submit, cancel = request.param
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    system = BatchSystem(tmp_path, kind, submit, cancel)
    yield system
    for process in system.jobs():
        process.kill()


@pytest.mark.slow
def test_jobs_run_as_they_are_shown(undisturbed, batch_system):
    folder, expected = undisturbed
    chosen = load_machine(batch_system.machine)
    printed = ok("fit", problem(folder, chosen.kind), "--machine", batch_system.machine)
    assert "for each of 2 workers" in printed
    assert total(folder / chosen.kind) == expected
    assert len(batch_system.scripts()) == 2
    assert psutil.wait_procs(batch_system.jobs(), timeout=20)[1] == [], "jobs end with their run"
    with connect(chosen) as client:
        assert (n_workers(client), len(batch_system.jobs())) == (2, 2)
        assert client.submit(os.getenv, "OMP_NUM_THREADS").result() == "1", "not the prologue's"
        assert client.submit(dask.config.get, "distributed.worker.memory.spill").result() is False
        address = client.scheduler.address
    for script in batch_system.scripts():
        words = script.split()
        if address in words:
            assert script == job_script(chosen, address, words[words.index("--name") + 1])
    assert sum(address in script.split() for script in batch_system.scripts()) == 2


def test_jobs_that_are_refused(undisturbed, batch_system):
    folder, _ = undisturbed
    config = problem(folder, "refused")
    batch_system.refuse("invalid account")
    line = told("fit", config, "--machine", batch_system.machine)
    assert f"error: a job that {batch_system.submit} refused: invalid account" in line
    (batch_system.folder / batch_system.submit).unlink()
    line = told("fit", config, "--machine", batch_system.machine)
    assert f"error: no command '{batch_system.submit}' here" in line
    assert not (folder / "refused").exists()
