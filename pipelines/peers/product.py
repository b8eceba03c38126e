"""streamfit itself, by the path that a user takes: two TOML files, `fit`, and the model read back from the run's folder.

It is `streamfit fit` without the start of the interpreter, which no contestant is charged with: features chosen from a
sample, content ids, worker processes, sums in a store committed and synced to disk, solve, certificate, model saved.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console

from pipelines.peers.job import Fit, Job, Setting
from pipelines.peers.rows import columns
from streamfit.config import load_machine, load_problem
from streamfit.engine import connect
from streamfit.jobs import fit
from streamfit.models import LinearModel


@contextmanager
def cluster(setting: Setting) -> Iterator[Fit]:
    """A worker process a core, as configs/machine_local.toml does."""
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
            # Data and machine were described; everything else is at its default.
            fit(load_problem(config), where, client, Console(quiet=True))
            return np.asarray(LinearModel.load(runs / "model").solution.weights[:, 0])

        yield run
