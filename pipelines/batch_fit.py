"""Ridge regression on Parquet, step by step: freeze features, count, solve, score.

python pipelines/batch_fit.py configs/ridge_parquet.toml [configs/machine_local.toml]
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from streamfit.cli import script
from streamfit.config import RidgeProblem, load_machine, load_problem
from streamfit.engine import connect, say
from streamfit.errors import ConfigError
from streamfit.jobs import accumulate_into, linear_model, logged, open_store, remember
from streamfit.models import LinearModel
from streamfit.solving import solve_store
from streamfit.tables import score_table


def main(config: Path, machine: Path | None = None) -> LinearModel:
    """Run the job; returns the model, which is also saved below the run's folder."""
    console = Console()
    where, problem = load_machine(machine), load_problem(config)
    if not isinstance(problem, RidgeProblem):
        msg = f"{config}: kind = {problem.kind!r}"
        raise ConfigError(msg, "'ridge'", "for text use pipelines/offline_corpus.py")
    source = problem.table()

    with logged(Path(problem.run)), connect(where) as client:
        # Features are chosen from a sample and frozen in the store's header: all sums are taken with them.
        store = open_store(problem, console)
        remember(problem, where)
        # Each shard is counted exactly once, however often this is stopped and run again.
        accumulate_into(store, source, where, client, console, group_rows=problem.group_rows)
        # The corpus is not read again: alpha is cross-validated and the weights are solved from the sums.
        solved = solve_store(store, problem.solve, console)

    model = linear_model(store, solved)
    model.save(Path(problem.run) / "model")
    score = score_table(model, source)
    say(console, f"training rows: {score.n_rows:,}, R² {score.r2:.6f}, RMSE {score.rmse:.6g}")
    if solved.path is not None:
        say(console, f"held-out R², {len(solved.path.losses)} folds: {solved.path.r2.max():.6f}")
    return model


if __name__ == "__main__":
    script(main)
