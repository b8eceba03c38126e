"""Delays of flights: regression on Parquet with one-hot airports, hours and weekdays, whose rows lose weight with age.

    python pipelines/flights_decay.py [configs/flights_delay.toml] [--half-life 30d --half-life 90d] [--machine FILE]

January to May are counted once, with the month as a label; each half-life is one more solve of the same sums, and June,
which was held out, says which was best. Without the data it is fetched first (npm, 13 MB).
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python pipelines/...`

from pipelines.fetch import flights
from streamfit.cli import script
from streamfit.config import RidgeProblem, load_machine, load_problem
from streamfit.corpus.recipe import Filter
from streamfit.corpus.table import Table as Rows
from streamfit.engine import connect, say
from streamfit.errors import ConfigError
from streamfit.jobs import accumulate_into, linear_model, logged, open_store, remember, training_source
from streamfit.solving import solve_store
from streamfit.store import Mix
from streamfit.tables import score_table

CONFIG = Path("configs/flights_delay.toml")
HELD_OUT = "2001-06-01"


def main(
    config: Path = CONFIG,
    *,
    half_life: list[str] = typer.Option(["7d", "30d", "90d", "365d"]),  # noqa: B008 - typer's way
    machine: Path | None = None,
) -> dict[str, tuple[float, float]]:
    """Fit; returns held-out R² and RMSE of each weighting."""
    console, problem, where = Console(), load_problem(config), load_machine(machine)
    if not isinstance(problem, RidgeProblem):
        msg = f"{config}: kind = {problem.kind!r}"
        raise ConfigError(msg, "'ridge'")
    root = Path(problem.corpus.root)
    if not root.exists():
        flights(root.parent)
    with logged(Path(problem.run)), connect(where) as client:
        store = open_store(problem, console)
        remember(problem, where)
        source = training_source(problem, store)
        accumulate_into(store, source, where, client, console, group_rows=problem.group_rows)
    assert isinstance(source, Rows)
    # The same columns, encoded by the same dictionaries, of the rows that were not counted.
    later = dataclasses.replace(source.recipe, filters=(Filter("date", ">=", HELD_OUT),))
    june = dataclasses.replace(source, recipe=later, labels=type(source.labels)())
    found, best = {}, (float("-inf"), "")
    for weighting in ("none", *half_life):
        mix = None if weighting == "none" else Mix.parse((), weighting, HELD_OUT)
        solved = solve_store(store, problem.solve, Console(quiet=True), mix)
        model = linear_model(store, solved)
        score = score_table(model, june)
        found[weighting] = (score.r2, score.rmse)
        if score.r2 > best[0]:
            best = (score.r2, weighting)
            model.save(Path(problem.run) / "model")
    table = Table(title=f"{score.n_rows:,} flights from {HELD_OUT} on, {store.head().n_rows:,} before")
    for column in ("half-life", "held-out R²", "RMSE, minutes"):
        table.add_column(column, justify="left" if column == "half-life" else "right")
    for weighting, (r2, rmse) in found.items():
        table.add_row(weighting, f"{r2:.5f}", f"{rmse:.3f}")
    console.print(table)
    say(console, f"model: {Path(problem.run) / 'model'}, of half-life {best[1]}")
    return found


if __name__ == "__main__":
    script(main)
