"""Clusters in processes of their own: over TLS, growing and shrinking, and jobs of a batch system of two commands."""

from __future__ import annotations

import os
import socket
import stat
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


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "submit", "cancel"), [("slurm", "sbatch", "scancel"), ("pbs", "qsub", "qdel")])
def test_jobs_run_as_they_are_shown(undisturbed, monkeypatch, kind, submit, cancel):
    """The batch system is a shell that starts each script at once and notes what it was given."""
    folder, expected = undisturbed
    commands = folder / f"{kind}-commands"
    commands.mkdir()
    for name, lines in (
        (submit, f'cp "$1" {commands}/$$.sh\nsetsid bash {commands}/$$.sh >{commands}/$$.txt 2>&1 &\necho $!'),
        (cancel, "for job; do kill -- -$job; done"),
    ):
        (commands / name).write_text(f"#!/usr/bin/env bash\n{lines}\n")
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    machine = folder / f"{kind}.toml"
    machine.write_text(
        f"kind = '{kind}'\nadapt = {{minimum = 1, maximum = 2}}\n"
        "[job]\ncores = 1\nmemory = '1GB'\nwalltime = '00:10:00'\ninterface = 'lo'\nstart_timeout = 60\n"
        f"local_directory = '{folder}'\njob_script_prologue = ['export OMP_NUM_THREADS=7']\n"
    )
    chosen = load_machine(machine)
    with connect(chosen) as client:
        assert n_workers(client) == 2
        (submitted,) = commands.glob("*.sh")
        threads = client.submit(os.environ.get, "OMP_NUM_THREADS").result()
        memory = client.submit(_spills).result()
        address = client.scheduler.address
    assert (threads, memory) == ("1", False)
    script = submitted.read_text()
    (name,) = [word for before, word in zip(script.split(), script.split()[1:], strict=False) if before == "--name"]
    assert script == job_script(chosen, address, name)
    printed = ok("fit", problem(folder, kind), "--machine", machine)
    assert "for each of 2 workers" in printed
    assert total(folder / kind) == expected
    (commands / submit).write_text("#!/usr/bin/env bash\necho 'invalid account' >&2\nexit 1\n")
    assert f"a job that {submit} refused: invalid account" in told(
        "fit", problem(folder, f"{kind}-refused"), "--machine", machine
    )
    (commands / submit).unlink()
    assert f"no command '{submit}' here" in told("fit", problem(folder, f"{kind}-none"), "--machine", machine)


def _spills() -> object:
    import dask

    return dask.config.get("distributed.worker.memory.spill")
