"""What each source of rows is worth: leave it out, solve again, and look at rows that were held out.

    python pipelines/source_influence.py [configs/flights_delay.toml] [--by time] [--alpha 10] [--machine FILE]

Counts the corpus of a config, if it is not counted yet, and then asks the sums alone: with S sources, S + 1 solves
instead of S + 1 passes. By default it is flights, whose sources are months; without the data it is fetched first (npm,
13 MB). `streamfit influence RUN --by LABEL` does the same for a store that is there, and `pipelines/mix_sources.py`
solves with the best weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python pipelines/...`

from pipelines.fetch import flights
from pipelines.flights_decay import CONFIG
from streamfit.cli import script
from streamfit.config import RidgeProblem, load_machine, load_problem
from streamfit.engine import connect
from streamfit.errors import ConfigError
from streamfit.jobs import accumulate_into, logged, open_store, remember, training_source
from streamfit.worth import Worth, worth


def main(config: Path = CONFIG, *, by: str = "time", alpha: float = 10.0, machine: Path | None = None) -> Worth:
    """Count what is not counted, and weigh; returns what was found."""
    console, problem, where = Console(), load_problem(config), load_machine(machine)
    if not isinstance(problem, RidgeProblem):
        msg = f"{config}: kind = {problem.kind!r}"
        raise ConfigError(msg, "'ridge'")
    root = Path(problem.corpus.root)
    if not root.exists() and root.name == "flights-3m.parquet":
        flights(root.parent)
    with logged(Path(problem.run)), connect(where) as client:
        store = open_store(problem, console)
        remember(problem, where)
        source = training_source(problem, store)
        accumulate_into(store, source, where, client, console, group_rows=problem.group_rows)
    found = worth(store, by, alpha=alpha)
    table = Table(title=f"held-out loss of fold {found.target_fold}, alpha {found.alpha:g}")
    for column in (by, "rows", "loss without it", "change"):
        table.add_column(column, justify="left" if column == by else "right")
    for each in sorted(found.influence, key=lambda each: -each.relative):
        table.add_row(escape(each.source), f"{each.n_rows:,}", f"{each.loss_without:.6g}", f"{each.relative:+.3%}")
    console.print(table)
    return found


if __name__ == "__main__":
    script(main)
