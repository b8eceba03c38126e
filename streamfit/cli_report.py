"""The command that makes a report. Floor 7."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from streamfit.cli_options import MachineOption, StoreArgument, dump, working
from streamfit.cli_solve import AlphasOption, NoInterceptOption
from streamfit.config import load_problem
from streamfit.engine import say
from streamfit.optimum import GRID, solve_section

app = typer.Typer()


@app.command(epilog="Example: streamfit report runs/flights -o report.html --figures figures")
def report(
    store: StoreArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file.")] = Path("report.html"),
    figures: Annotated[
        Path | None,
        typer.Option(help="Folder for every figure as PNG, SVG and CSV.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="JSON file for all that is shown; '-' prints it.", show_default=False)
    ] = None,
    alpha: AlphasOption = None,
    no_intercept: NoInterceptOption = False,
    rows: Annotated[
        int, typer.Option(help="Rows to read for residuals and calibration; with 0 nothing is read.", min=0)
    ] = 20_000,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text that a language model continues; repeatable.", show_default=False)
    ] = None,
    machine: MachineOption = None,
) -> None:
    """Make one HTML file of a run or a store that shows what was read, how it was solved, and how good it is.

    It loads nothing from anywhere. In a run's folder, alphas and intercept are those of its config unless given.
    """
    from streamfit.reporting import PROMPTS, report_of

    accepted = float("inf")  # a report says how far from its optimum a fit is, and does not refuse
    section = solve_section(tuple(alpha) if alpha else GRID, fit_intercept=not no_intercept, tolerance=accepted)
    problem_file = Path(store) / "problem.json"
    if "://" not in store and problem_file.is_file() and alpha is None and not no_intercept:
        section = load_problem(problem_file).solve.model_copy(update={"tolerance": accepted})
    to_stdout = data is not None and str(data) == "-"
    console = Console(quiet=to_stdout)
    with working(machine) as (_, client):
        made = report_of(store, section, client, console, rows=rows, prompts=tuple(prompt or PROMPTS))
    made.write_page(output, figures)
    if to_stdout:
        dump(made.data)
    elif data is not None:
        data.write_text(json.dumps(made.data, indent=1), encoding="utf-8")
    say(console, f"report: {output}")
