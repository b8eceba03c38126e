"""A run on files with labels, made by commands, and commands on copies of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
from corpora import write_groups
from sklearn.linear_model import Ridge
from test_cli import Outcome, streamfit

from streamfit.models import LinearModel
from streamfit.store import Store, digest_of

X = ("x0", "x1", "x2")
FILES = {"web-2026-01": 1.0, "web-2026-03": 1.0, "code-2026-01": 1.0, "code-2026-02": -1.0}
"""Files by source and month, and the sign of their targets."""
GROUPS, ROWS = 4, 60
N = 4 * GROUPS  # one commit a row group


def rows_of(name: str) -> pa.Table:
    rng = np.random.default_rng([*name.encode()])
    x = rng.normal(size=(GROUPS * ROWS, 3)) + 1.0
    y = FILES.get(name, 1.0) * (x @ [1.0, -2.0, 0.5]) + rng.normal(size=len(x))
    return pa.table({f"x{j}": x[:, j] for j in range(3)} | {"y": y, "doc": np.arange(len(x)) // 10})


def write(folder: Path, *names: str) -> None:
    for name in names:
        rows = rows_of(name)
        write_groups(folder / f"{name}.parquet", [rows.slice(ROWS * i, ROWS) for i in range(GROUPS)])


def fitted(*names: str, weights: dict[str, float] | None = None, alpha: float = 1.0) -> np.ndarray:
    """Weights of scikit-learn for some files."""
    rows = [rows_of(name) for name in names]
    x = np.concatenate([np.column_stack([t[c] for c in X]) for t in rows])
    w = np.repeat([(weights or {}).get(name, 1.0) for name in names], GROUPS * ROWS)
    return Ridge(alpha=alpha).fit(x, np.concatenate([t["y"] for t in rows]), sample_weight=w).coef_


def begin(folder: Path) -> Path:
    """A run on four files with labels by their path, a segment a row group, of three folds."""
    write(folder / "corpus", *FILES)
    columns = ", ".join(f'"{name}"' for name in X)
    (folder / "ridge.toml").write_text(
        f'kind = "ridge"\nrun = "{folder / "run"}"\nprecision = "float64"\ngroup_rows = {ROWS}\n'
        f'[corpus]\nroot = "{folder / "corpus"}"\nfeatures = [{columns}]\ntarget = ["y"]\n'
        "[corpus.labels]\npath = '(?P<source>[a-z]+)-(?P<time>[0-9]{4}-[0-9]{2})'\nperiod = \"month\"\n"
        "[solve]\nalphas = [1]\nfolds = 3\n[store]\nkeep = 8\n"
    )
    (folder / "serial.toml").write_text('kind = "serial"\n')
    done = streamfit("fit", folder / "ridge.toml", "--machine", folder / "serial.toml")
    assert done.returncode == 0, done.stderr
    return folder


def copy_of(begun: Path, folder: Path) -> Path:
    """A copy of that run in a folder, to be changed; its corpus beside it."""
    shutil.copytree(begun / "corpus", folder / "corpus")
    shutil.copytree(begun / "run", folder / "run")
    shutil.copy(begun / "serial.toml", folder)
    return folder / "run"


def ok(*arguments: object, **more) -> str:
    """What a command prints that must end well."""
    done: Outcome = streamfit(*arguments, **more)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Traceback" not in done.stdout
    return done.stdout


def told(*arguments: object, **more) -> str:
    """The one line of a command that must be refused."""
    done: Outcome = streamfit(*arguments, **more)
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def read(*arguments: object):
    return json.loads(ok(*arguments, "--json"))


def weights_of(run: Path, *arguments: object) -> np.ndarray:
    """Weights of a solve that is saved."""
    ok("solve", run, *arguments, "-o", run / "out")
    return LinearModel.load(run / "out").solution.weights[:, 0]


def total(run: Path) -> str:
    return digest_of(Store(run / "store").moments())
