"""Weigh the sources of a store by what they are worth to rows that were held out, and solve with these weights.

    python pipelines/mix_sources.py runs/flights [--by source] [--like source:web] [--half-life 30d] [-o model]

Everything comes from the stored sums; the corpus is not read. The store needs three folds with rows: the mixture is
fitted on the first of them and trained on the others but the second, which has no say and checks the result. With
--half-life the rows also lose half their weight with this age, by their label `time`. With --output the last of these
solves, of all folds, is written as a model.
"""

from __future__ import annotations

import glob
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streamfit.cli import script
from streamfit.config import SolveSection
from streamfit.engine import say
from streamfit.jobs import linear_model
from streamfit.solve import solve
from streamfit.solving import solve_store
from streamfit.store import Mix, Store
from streamfit.store.mix import Rule
from streamfit.stores import open_any
from streamfit.worth import Worth, worth


def main(
    store: str,
    *,
    by: str = "source",
    like: str | None = None,
    half_life: str | None = None,
    as_of: str | None = None,
    alpha: float | None = None,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
) -> dict[str, tuple[float, float]]:
    """Mix; returns the held-out losses of each weighting, on the fold it was chosen on and on the one that checks."""
    console, opened = Console(), open_any(store)
    found = worth(opened, by, alpha=alpha, like=like)
    table = Table(title=f"alpha {found.alpha:g}")
    for column in (by, "rows", "change of loss without it", "best weight", "share"):
        table.add_column(column, justify="left" if column == by else "right")
    for each in found.influence:
        factor, share = found.mixture.factors[each.source], found.mixture.shares[each.source]
        table.add_row(escape(each.source), f"{each.n_rows:,}", f"{each.relative:+.3%}", f"{factor:.4g}", f"{share:.1%}")
    console.print(table)

    # Names may hold what is a wildcard in a pattern.
    rules = tuple(Rule(by, glob.escape(name), factor) for name, factor in found.mixture.factors.items())
    weightings = {"as counted": Mix(), "best mixture": Mix(rules)}
    if half_life or as_of:
        aged = Mix.parse([], half_life, as_of)
        weightings |= {"by age alone": aged, "best mixture, by age": replace(aged, rules=rules)}
    section = SolveSection.model_construct(alphas=(found.alpha,), folds=2, fit_intercept=True)
    losses = {}
    for name, mix in weightings.items():
        console.rule(name)
        solved = solve_store(opened, section, console, mix)
        losses[name] = held_out_losses(opened, found, mix, like)
        say(console, "held-out loss {:.6g} where the mixture was chosen, {:.6g} elsewhere".format(*losses[name]))
    if output is not None:
        linear_model(opened, solved).save(output)
        say(console, f"model: {output} ({name})")
    return losses


def held_out_losses(store: Store, found: Worth, mix: Mix, like: str | None) -> tuple[float, float]:
    """Squared error on the fold that a mixture was chosen on and on the check fold, of a fit that saw neither."""
    folds = (found.target_fold, found.check_fold)
    fitted = store.moments(lambda s: s.fold not in folds, mix).centered()
    weights = solve(fitted, found.alpha).weights
    label, _, value = (like or "").partition(":")

    def loss(fold: int) -> float:
        test = store.moments(lambda s: s.fold == fold and (not like or s.label(label) == value)).centered()
        test = test.about(fitted.mean_x, fitted.mean_y)
        explained = 2.0 * np.vdot(weights, test.cross) - np.vdot(weights, test.gram @ weights)
        return float((test.ss_y.sum() - explained) / test.weight)

    return loss(found.target_fold), loss(found.check_fold)


if __name__ == "__main__":
    script(main)
