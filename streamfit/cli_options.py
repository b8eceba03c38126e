"""What commands share: arguments and options, the machine that was asked for, and how facts are shown. Floor 7."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from distributed import Client
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streamfit.config import load_machine
from streamfit.engine import Machine, RunSummary, connect
from streamfit.models import refuse_folder

INTERRUPTED = 130
StoreArgument = Annotated[str, typer.Argument(help="Folder of a store or of its run, or s3://, gs://, az://.")]
MachineOption = Annotated[
    Path | None, typer.Option("--machine", help="TOML file of a machine; this one without it.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label", help="name=value for all that comes, such as source=web or time=2026-11-23; repeatable."),
]
AtOption = Annotated[
    str | None, typer.Option("--at", help="The store as of this commit, or of this pin.", show_default=False)
]


def own_folder(folder: Path | None) -> Path | None:
    """What `--output` names, refused before any work where a model would be written over other files."""
    if folder is not None:
        refuse_folder(folder)
    return folder


class Interrupted(SystemExit):
    """An interruption, with the command that goes on from there.

    Parameters
    ----------
    onward : str
    kept : str
        What there is of the work.
    """

    def __init__(self, onward: str, kept: str = "what was committed or written whole is kept") -> None:
        super().__init__(INTERRUPTED)
        self.onward, self.kept = onward, kept


@contextmanager
def working(machine: Path | None) -> Iterator[tuple[Machine, Client | None]]:
    """The machine that was asked for, and its client."""
    where = load_machine(machine)
    with connect(where) as client:
        yield where, client


def show(facts: dict[str, Any]) -> None:
    """Print facts as a table of two columns."""
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else escape(str(value)))
    Console().print(table)


def dump(facts: Any) -> None:
    """Print facts as JSON, which has no infinite numbers: null stands for them."""
    typer.echo(json.dumps(_finite(facts), indent=1, allow_nan=False))


def summary_json(summary: RunSummary) -> dict[str, Any]:
    """What counting did, as JSON."""
    return {
        "rows_counted": summary.n_rows,
        "shards_counted": summary.n_shards,
        "shards_already_counted": len(summary.already),
        "repeats": [{"key": again.key, "first": first.key} for again, first in summary.repeats],
        "skipped": [{"key": refusal.key, "reason": refusal.reason} for refusal in summary.refused],
        "replaced": [d.key for d in summary.replaced.departures] if summary.replaced else [],
        "count_seconds": summary.seconds,
        "gflops": summary.gflops,
        "planned_worker_bytes": summary.plan.worker_bytes,
        "peak_bytes": summary.peak_bytes,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
