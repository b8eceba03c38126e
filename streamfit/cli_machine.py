"""The command that shows what a machine would ask of its cluster. Floor 7."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamfit.cli_options import JsonOption, dump
from streamfit.engine.cluster_spec import rendered, text
from streamfit.machines import load_machine

app = typer.Typer()


@app.command(epilog="Example: streamfit machine configs/machine_slurm.toml")
def machine(
    config: Annotated[Path, typer.Argument(help="TOML file of a machine, such as configs/machine_slurm.toml.")],
    as_json: JsonOption = False,
) -> None:
    """Check a machine and show what would be submitted: job script, pods, or the arguments of a cluster here.

    Nothing is started. With --json, the figures that a run is planned with as well.
    """
    where = load_machine(config)
    if as_json:
        dump(rendered(where))
    else:
        typer.echo(text(where))
