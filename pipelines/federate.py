"""Three sites fit one model together: they exchange sums, not rows.

    python pipelines/federate.py runs/federation
    python pipelines/federate.py runs/federation --corpus data/flights --features distance --target delay

Site A chooses the features from a sample of its own rows and sends the empty header. B and C count their own files
with it. All three send a .zip of sums, without names of files, to the hub, which merges and solves. The weights are
then compared with those of one store that counted all files: they must be equal to the last bit. Last, a site that
chose features of its own is refused, for its sums do not add up with the others'.

Without --corpus some rows are made up. What the hub learns: the sums of each site; content ids (BLAKE3), sizes and
labels of its shards; and whatever the header holds (centers of an RBF network are rows).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from streamfit.cli import script
from streamfit.config import SolveSection
from streamfit.corpus import Files, ParquetTable
from streamfit.engine import Machine, say
from streamfit.errors import ConfigError, MismatchError
from streamfit.jobs import accumulate_into, linear_model
from streamfit.models import LinearModel
from streamfit.solving import solve_store
from streamfit.store import Store, export_segments, import_segments
from streamfit.tables import Block, prepare_table

SITES = ("a", "b", "c")
MACHINE, N_FOLDS = Machine("serial"), 2


def main(
    run: Path,
    *,
    corpus: Path | None = None,
    features: list[str] | None = None,
    target: str = "y",
    alpha: float = 1.0,
) -> LinearModel:
    """Run the example below a new folder; returns the hub's model, and fails if what should be equal is not."""
    console = Console()
    if run.exists():
        msg = f"{run} is there already"
        raise ConfigError(msg, "a new folder")
    columns = tuple(features or ["x0", "x1", "x2"])
    for site in SITES:
        (run / site / "rows").mkdir(parents=True)
    share_out(corpus, run) if corpus else make_up(run)
    tables = {s: ParquetTable(Files(str(run / s / "rows")), columns, (target,), label=f"site_{s}") for s in SITES}

    console.rule("site a chooses the features and sends the header")
    store = new_store(run / "a" / "store", tables["a"])
    export_segments(store, run / "header.zip", empty=True)

    for site in SITES:
        console.rule(f"site {site} counts its own rows and sends the sums")
        store, _ = import_segments(run / "header.zip", run / site / "store")
        accumulate_into(store, tables[site], MACHINE, None, console)
        n_rows = export_segments(store, run / f"{site}.zip", anonymous=True)
        say(console, f"{site}.zip: sums of {n_rows:,} rows, {(run / f'{site}.zip').stat().st_size:,} bytes")

    console.rule("the hub adds them up and solves")
    for site in SITES:
        hub, record = import_segments(run / f"{site}.zip", run / "hub" / "store")
        say(console, f"{site}.zip: the hub holds {record.n_rows:,} rows")
    section = SolveSection.model_construct(alphas=(alpha,), folds=N_FOLDS, fit_intercept=True)
    solved = solve_store(hub, section, console)
    model = linear_model(hub, solved)
    model.save(run / "hub" / "model")

    whole, _ = import_segments(run / "header.zip", run / "whole" / "store")
    for table in tables.values():
        accumulate_into(whole, table, MACHINE, None, Console(quiet=True))
    again = solve_store(whole, section, Console(quiet=True)).solution
    if not np.array_equal(again.weights, solved.solution.weights):
        msg = "weights of the hub that differ from those of one store of all rows"
        raise MismatchError(msg, "the same bits", "report this, with the machine's BLAS")
    say(console, "weights equal, to the last bit, those of one store that counted all rows")

    console.rule("a site that chose its own features is refused")
    stranger = new_store(run / "stranger" / "store", tables["c"])
    export_segments(stranger, run / "stranger.zip")
    try:
        import_segments(run / "stranger.zip", run / "hub" / "store")
    except MismatchError as error:
        say(console, f"refused: {error}")
    else:
        msg = "a hub that took sums of other features"
        raise MismatchError(msg, "a refusal")
    return model


def new_store(folder: Path, table: ParquetTable) -> Store:
    """Make a store whose features and units come from a sample of these rows."""
    blocks = [Block("linear"), Block("fourier", 16)]
    header = prepare_table(table, blocks, precision="float64", n_folds=N_FOLDS, seed=0, sample_rows=20_000)
    return Store.create(folder, header)


def share_out(corpus: Path, run: Path) -> None:
    """Link the Parquet files of a folder to the three sites in turn."""
    found = Files(str(corpus), include=("*.parquet",)).find()
    if len(found) < len(SITES):
        msg = f"{len(found)} Parquet files in {corpus}"
        raise ConfigError(msg, f"at least {len(SITES)}, for each site has files of its own")
    for i, (_, path) in enumerate(found):
        (run / SITES[i % len(SITES)] / "rows" / f"{i}-{path.name}").symlink_to(path)


def make_up(run: Path) -> None:
    """Make up rows of one law whose inputs lie elsewhere at each site."""
    rng = np.random.default_rng(0)
    for number, site in enumerate(SITES):
        for part in range(3):
            x = rng.normal(size=(2000, 3)) + number
            y = x @ [1.0, -2.0, 0.5] + np.sin(x[:, 0]) + rng.normal(size=2000) / 10
            columns = {f"x{j}": x[:, j] for j in range(3)} | {"y": y}
            pq.write_table(pa.table(columns), run / site / "rows" / f"{part}.parquet", row_group_size=500)


if __name__ == "__main__":
    script(main)
