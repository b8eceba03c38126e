"""Commands that help to write configs: init, schema. Floor 7."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from streamfit.engine import say
from streamfit.errors import ConfigError
from streamfit.schemas import SCHEMAS, schema
from streamfit.starter import starter

app = typer.Typer()


@app.command(epilog="Example: streamfit init rows.parquet --target price -o price.toml")
def init(
    data: Annotated[str, typer.Argument(help="A file, folder, pattern or address of data.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write; standard output without it.", show_default=False),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Target column; guessed without it. Repeatable.", show_default=False)
    ] = None,
    run: Annotated[str, typer.Option(help="Folder of the run.", show_default="runs/ and the data's name")] = "",
) -> None:
    """Write a commented starter config from a look at data: its kind, schema, rows, and a guess at the target."""
    text = starter(data, target or (), run)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        msg = f"{output} is there already"
        raise ConfigError(msg, "a new file", "name another with -o") from error
    except OSError as error:
        msg = f"cannot write {output}: {error.strerror}"
        raise ConfigError(msg, "a file that can be written", "name another with -o") from error
    say(Console(), f"{output}: look through it, then streamfit fit {output} --dry-run")


@app.command("schema", epilog="Example: streamfit schema problem -o streamfit-problem.json")
def schema_command(
    which: Annotated[str, typer.Argument(help=f"One of {', '.join(SCHEMAS)}.")] = "problem",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write; standard output without it.", show_default=False),
    ] = None,
) -> None:
    """Print the JSON schema of configs, by which editors complete and check them.

    A TOML file that begins with the line `#:schema ./streamfit-problem.json` is checked by editors that know Taplo.
    """
    text = json.dumps(schema(which), indent=1)
    if output is None:
        typer.echo(text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        msg = f"cannot write {output}: {error.strerror}"
        raise ConfigError(msg, "a file that can be written", "name another with -o") from error
