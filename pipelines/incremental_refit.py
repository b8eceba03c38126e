"""Add new data to a finished run and solve again; only the new shards are read.

    python pipelines/incremental_refit.py runs/flights new/*.parquet [--check]

With --check everything is also counted from scratch into a second store, with the same frozen features, and the two
sets of weights are compared bit for bit.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from streamfit.cli import script
from streamfit.config import RidgeProblem, load_machine, load_problem
from streamfit.engine import connect, say
from streamfit.errors import ConfigError
from streamfit.jobs import accumulate_into, linear_model, logged, training_source
from streamfit.solving import solve_store
from streamfit.store import Store
from streamfit.stores import Corpus, add, open_any


def main(run: Path, new: list[str], *, check: bool = False) -> bool:
    """Refit; returns whether the weights equal those of a fit from scratch, True where that was not checked."""
    console = Console()
    problem, where = load_problem(run / "problem.json"), load_machine(run / "machine.json")
    if not isinstance(problem, RidgeProblem):
        msg = f"{run} is a run of kind {problem.kind!r}"
        raise ConfigError(msg, "'ridge'", "`streamfit demo` shows the same for a language model")
    store = open_any(run)
    corpus = Corpus.of(run)

    with logged(run), connect(where) as client:
        clock = time.perf_counter()
        add(store, new, where, client, console, corpus=corpus, group_rows=problem.group_rows)
        solved = solve_store(store, problem.solve, console)
        linear_model(store, solved).save(run / "model")
        say(console, f"refitted in {time.perf_counter() - clock:.1f} s")
        if not check:
            return True

        with tempfile.TemporaryDirectory(dir=run) as folder:
            clock = time.perf_counter()
            scratch = Store.create(Path(folder) / "store", store.header)
            source = training_source(problem, scratch)
            accumulate_into(scratch, source, where, client, console, group_rows=problem.group_rows)
            add(scratch, new, where, client, console, corpus=corpus, group_rows=problem.group_rows)
            again = solve_store(scratch, problem.solve, console)
            equal = np.array_equal(again.solution.weights, solved.solution.weights)
            say(console, f"from scratch in {time.perf_counter() - clock:.1f} s; weights equal to the last bit: {equal}")
    return bool(equal)


if __name__ == "__main__":
    script(main)
