"""The nightly job of a store: count what is new, tidy up, check, pin, solve.

    python pipelines/keep_store.py runs/flights data/incoming [--label source=eu] [--corpus data] [-o models/flights]

    # crontab: at 02:30, and mail if it fails (exit codes other than 0)
    30 2 * * *  cd /srv/flights && .venv/bin/python pipelines/keep_store.py runs/flights data --corpus data

    # SLURM, as a script for sbatch: the next night's job is queued by this one
    #!/bin/bash
    #SBATCH --job-name=keep-store --time=01:00:00 --cpus-per-task=8 --mem=16G --mail-type=FAIL
    sbatch --begin="$(date -d 'tomorrow 02:30' +%Y-%m-%dT%H:%M)" "$0"
    .venv/bin/python pipelines/keep_store.py runs/flights data --corpus data

Files that were counted before are not read, so the folder of new data may be the whole corpus as it grows. With
--corpus, the place where all of it lies, a random sample of what was ever counted is read again and compared; each
night draws another. The pin named after this month, such as 2026-11, is moved to the newest commit, and so ends on the
month's last: `streamfit solve runs/flights --at 2026-11`. Nothing is pinned while `verify` finds a fault.
"""

from __future__ import annotations

import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from streamfit.cli import script
from streamfit.config import SolveSection, load_machine, load_problem
from streamfit.drift import drift
from streamfit.engine import connect, say
from streamfit.errors import MismatchError
from streamfit.jobs import licence_of, linear_model
from streamfit.solve import IllConditionedWarning
from streamfit.solving import Solved, solve_store
from streamfit.store import Pin, Store, collect, compact
from streamfit.stores import Corpus, add, labels_of, open_any, verify_store


def main(
    store: str,
    new: list[str],
    *,
    label: list[str] | None = None,
    alpha: float | None = None,
    corpus: str | None = None,
    sample: float = 0.02,
    machine: Path | None = None,
    output: Annotated[Path | None, typer.Option("-o", "--output")] = None,
) -> dict[str, Any]:
    """Do the night's work; returns what changed, and fails if the store has faults.

    A run is solved as its config says; a bare store, or with --alpha, by one alpha, which is 1 if none is given.
    """
    console, opened, where = Console(), open_any(store), load_machine(machine)
    before = opened.head()
    section = asked_of(store, alpha)
    old = solved(opened, section, Console(quiet=True))
    corpus_of_run = Corpus.of(store).labelled(labels_of(label or []))
    with connect(where) as client:
        add(opened, new, where, client, console, corpus=corpus_of_run)
        now = solved(opened, section, console)
        fewer = compact(opened)
        collected = collect(opened)
        checked = opened.head().sequence
        share = None if corpus is None else sample
        found = verify_store(opened, where, client, against=corpus, sample=share, seed=checked)
    for fault in found.faults:
        say(console, f"fault: {fault}", "red")
    if found.faults:
        msg = f"{opened.place} has {len(found.faults)} fault(s)"
        raise MismatchError(msg, "none", "see the lines above; the month's pin stays on the last sound commit")
    month = datetime.now(UTC).strftime("%Y-%m")
    move_pin(opened, month, checked)
    if output is not None and now is not None:
        linear_model(opened, now, licence=licence_of(store)).save(output)

    after = opened.head()
    pinned = next(pin.sequence for pin in after.pins if pin.name == month)
    moved = None
    if old is not None and now is not None:
        moved = float(np.abs(now.solution.weights - old.solution.weights).max())
    changed = {
        "commits": f"{before.sequence} to {after.sequence}",
        "rows": f"{before.n_rows:,} to {after.n_rows:,}",
        "segments": f"{len(before.segments)} to {len(after.segments)}, {fewer} merged away",
        "deleted": f"{collected.segments} segments and {collected.orphans} orphans, {collected.n_bytes:,} bytes",
        "read again": f"{found.checked.get('rows read again', 0):,} rows",
        "weights": "nothing to compare with" if moved is None else f"moved by up to {moved:.3g}",
        "pin": f"{month} on commit {pinned}",
        "digest of the sums": found.digest,
    }
    if now is not None and (told := drifted(opened, now.solution.alpha)):
        changed["drift"] = told
    for name, text in changed.items():
        say(console, f"{name}: {text}")
    return changed


def drifted(store: Store, alpha: float) -> str:
    """How the newest period differs from all before it, where rows are labelled by time; see `streamfit drift`."""
    times = {value for segment in store.head().segments if segment.n_rows and (value := segment.label("time"))}
    if len(times) < 2 or store.header.statistic == "sparse":
        return ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)
        newest = drift(store, alpha=alpha, last=1)[0]
    return (
        f"{newest.period}: R² {newest.r2:.4f} of the fit before it (there {newest.r2_before:.4f}, refitted"
        f" {newest.r2_refit:.4f}); {newest.feature} moved by {newest.shift:.2f} standard deviations"
    )


def asked_of(store: str, alpha: float | None) -> SolveSection:
    """How to solve: as the run's config says, or by one alpha."""
    config = Path(store) / "problem.json"
    if alpha is None and "://" not in store and config.is_file():
        return load_problem(config).solve
    return SolveSection.model_construct(alphas=(1.0 if alpha is None else alpha,), folds=2, fit_intercept=True)


def solved(store: Store, section: SolveSection, console: Console) -> Solved | None:
    """Solve everything that a store holds, if it holds anything."""
    return solve_store(store, section, console) if store.head().n_rows else None


def move_pin(store: Store, name: str, sequence: int) -> None:
    """Move a pin to a commit, unless it is on one with the same segments."""

    def state(number: int) -> set[str]:
        return {segment.id for segment in store.record(number).segments}

    there = next((pin for pin in store.head().pins if pin.name == name), None)
    if there is None or state(there.sequence) != state(sequence):
        store.amend(
            f"pin {name}",
            lambda head: {"pins": (*(pin for pin in head.pins if pin.name != name), Pin(name, sequence))},
        )


if __name__ == "__main__":
    script(main)
