"""Commands for models that are there: predict, export-model, card; `cli_report` has that for reports. Floor 7."""

from __future__ import annotations

import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from streamfit import cli_report
from streamfit.cli_options import Interrupted, JsonOption, MachineOption, dump, working
from streamfit.corpus import Files
from streamfit.corpus.openings import listed, size_of
from streamfit.engine import say
from streamfit.errors import ConfigError
from streamfit.models import LinearModel, describe_model
from streamfit.onnx_model import export_onnx

app = typer.Typer()
app.add_typer(cli_report.app)
_LITTLE = 2**25
"""Bytes of data up to which no workers are started for predictions."""
ModelArgument = Annotated[Path, typer.Argument(help="Folder of a model.")]


@app.command(epilog="Example: streamfit predict runs/flights/model data/june.parquet -o june.parquet")
def predict(
    model: ModelArgument,
    data: Annotated[
        list[str], typer.Argument(help="Files, directories, patterns or addresses (s3://); '-' reads standard input.")
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="A file (.parquet, .feather, .csv, .jsonl) or a new folder of Parquet; or an address, as s3://.",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Column that is copied beside the predictions; repeatable.")
    ] = None,
    std: Annotated[
        bool, typer.Option("--std", help="Standard deviations as well, of a model that `solve --std` wrote.")
    ] = False,
    scores: Annotated[bool, typer.Option("--scores", help="The prediction for each class as well.")] = False,
    form: Annotated[
        str | None, typer.Option("--format", help="Of standard input and output: csv or jsonl.", show_default=False)
    ] = None,
    machine: MachineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict every row of a data set: Parquet, Feather, CSV or JSON lines, in order, on the machine's workers.

    With '-', rows come as CSV with a header or as JSON lines, and their predictions go to standard output in the same
    form, as they come:  echo '{"x0": 1.5, "x1": 2}' | streamfit predict MODEL -
    """
    from streamfit.piping import predict_lines
    from streamfit.predicting import Predictor, predict_files

    predictor = Predictor(LinearModel.load(model), tuple(keep or ()), std, scores)
    if data == ["-"]:
        if output is not None or machine is not None or as_json:
            msg = "standard input with --output, --machine or --json"
            raise ConfigError(msg, "predictions on standard output")
        if form not in (None, "csv", "jsonl"):
            msg = f"--format {form}"
            raise ConfigError(msg, "csv or jsonl")
        try:
            predict_lines(predictor, sys.stdin.fileno(), sys.stdout, form)  # type: ignore[arg-type]
        except BrokenPipeError:
            # Who reads has seen enough. What is left in the buffer must not be tried again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if output is None or form is not None:
        msg = "files without --output" if output is None else "--format with files"
        raise ConfigError(msg, "-o FILE, whose name says the format", "or '-' for standard input")
    started = time.perf_counter()
    here = machine is None and _is_little(data)
    try:
        with nullcontext((None, None)) if here else working(machine) as (_, client):
            n_rows, n_pieces, n_empty = predict_files(predictor, data, output, client)
    except KeyboardInterrupt as stop:
        kept = f"{output} is not whole" if "://" in output else "nothing was written"
        again = "the same command again"
        raise Interrupted(again, kept) from stop
    seconds = time.perf_counter() - started
    if as_json:
        dump({"rows": n_rows, "empty": n_empty, "pieces": n_pieces, "seconds": seconds, "output": output})
        return
    told = f", {n_empty:,} of which lack a feature and are empty," if n_empty else ""
    say(Console(), f"predicted {n_rows:,} rows{told} in {seconds:.1f} s: {output}")


def _is_little(data: list[str]) -> bool:
    """Whether data are predicted sooner than workers have started."""
    if any("://" in given for given in data):
        return False
    return sum(size_of(each.uri) for given in data for each in listed(Files(given))) < _LITTLE


@app.command("export-model", epilog="Example: streamfit export-model runs/flights/model --onnx flights.onnx")
def export_model(
    model: ModelArgument,
    onnx: Annotated[Path, typer.Option("--onnx", help="File to write.")],
    dtype: Annotated[str, typer.Option(help="Of inputs, weights and outputs: float32 or float64.")] = "float32",
    std: Annotated[bool, typer.Option("--std", help="Standard deviations as an output.")] = False,
) -> None:
    """Write a model's predictions as an ONNX graph: input `x`, output `predicted`, `class_id` where it has classes."""
    export_onnx(LinearModel.load(model), onnx, dtype=dtype, std=std)  # type: ignore[arg-type]
    say(Console(), f"model: {onnx}, {onnx.stat().st_size:,} bytes")


@app.command(epilog="Example: streamfit card runs/flights/model --title 'Flight delays'")
def card(
    model: ModelArgument,
    title: Annotated[str | None, typer.Option(help="Title that the card takes.", show_default=False)] = None,
    licence: Annotated[
        str | None, typer.Option(help="Of data and model, such as CC-BY-4.0.", show_default=False)
    ] = None,
) -> None:
    """Print a model's card, its README.md; with options, set what it says first."""
    changes = {name: value for name, value in (("title", title), ("licence", licence)) if value is not None}
    typer.echo(describe_model(model, changes), nl=False)
