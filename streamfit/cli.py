"""The command line. Floor 7.

Exit codes: 0 done, 1 a fault of streamfit itself, 2 a mistake in input, data or environment, 3 an optimum that is not
proved to the tolerance, 130 interrupted.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console

from streamfit.cli_config import app as config_app
from streamfit.cli_machine import app as machine_app
from streamfit.cli_model import app as model_app
from streamfit.cli_options import (
    INTERRUPTED,
    AtOption,
    Interrupted,
    JsonOption,
    MachineOption,
    StoreArgument,
    dump,
    show,
    summary_json,
)
from streamfit.cli_solve import app as solve_app
from streamfit.cli_store import app as store_app
from streamfit.cli_text import app as text_app
from streamfit.cli_text import documents_of, texts_of
from streamfit.config import Problem, load_machine, load_problem
from streamfit.corpus import Files
from streamfit.corpus.openings import local_path
from streamfit.demo import run_demo
from streamfit.doctor import examine
from streamfit.doctor_gpu import examine_backend
from streamfit.engine import Machine, connect, say
from streamfit.errors import CertificateError, ConfigError, SolveError, StreamfitError
from streamfit.forecast import forecast
from streamfit.held_out import evaluate_documents, fitted_among
from streamfit.jobs import fit as fit_problem
from streamfit.models import LinearModel, read_model
from streamfit.readers import held_out_table
from streamfit.report import print_adaptive, print_scores
from streamfit.rows import kind_told
from streamfit.stores import open_any
from streamfit.tables import score_table
from streamfit.text import Adaptive, LanguageModel, add_scores
from streamfit.text.adapt import EVERY

_NOT_CERTIFIED = 3

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Exact one-pass fits of models that are linear in their parameters.",
    epilog="Exit codes: 0 done; 1 a fault of streamfit itself; 2 a mistake in input, data or environment; 3 an optimum"
    " that is not proved to the tolerance; 130 interrupted. `streamfit --install-completion` completes commands in your"
    " shell.",
)
app.add_typer(solve_app)
app.add_typer(store_app)
app.add_typer(machine_app)
app.add_typer(text_app)
app.add_typer(model_app)
app.add_typer(config_app)


def main() -> None:
    """Run the command line; a user's mistake becomes one line and exit code 2."""
    with exits():
        app()


def script(function: Callable[..., object]) -> None:
    """Run a pipeline's function with its arguments from the command line, and the same errors and exit codes."""
    with exits():
        typer.run(function)


@contextmanager
def exits() -> Iterator[None]:
    """End the process as the commands do: an error of ours as one line with exit code 2 or 3, an interrupt with 130."""
    try:
        yield
    except StreamfitError as error:
        say(Console(stderr=True), f"error: {error}", "red")
        sys.exit(_NOT_CERTIFIED if isinstance(error, CertificateError) else 2)
    except (KeyboardInterrupt, SystemExit) as stop:
        # typer makes an exit of an interrupt before it comes here.
        code = INTERRUPTED if isinstance(stop, KeyboardInterrupt) else stop.code
        if code == INTERRUPTED:
            told = stop if isinstance(stop, Interrupted) else Interrupted("the same command again")
            say(Console(stderr=True), f"interrupted: {told.kept}; to go on, run: {told.onward}")
        sys.exit(code)


def _version(show: bool) -> None:
    if show:
        typer.echo(importlib.metadata.version("streamfit"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: streamfit demo --run runs/demo")
def demo(
    run: Annotated[Path, typer.Option(help="Folder of the run; begun anew if it is there.")] = Path("runs/demo"),
    machine: MachineOption = None,
) -> None:
    """Fit a language model to Python's standard library, evaluate it, and refit it with more data."""
    run_demo(run, load_machine(machine), Console())


@app.command(epilog="Example: streamfit fit configs/ridge_parquet.toml --dry-run")
def fit(
    config: Annotated[Path, typer.Argument(help="TOML file of a problem, such as configs/lm_stdlib.toml.")],
    machine: MachineOption = None,
    skip_bad_shards: Annotated[
        bool, typer.Option("--skip-bad-shards", help="Record shards that cannot be counted and go on.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the plan and the time it would take at a rate measured now; write nothing."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fit a problem: count its corpus into a store, solve, and save the model.

    Run the same command again after an interruption, and it goes on where it stopped.
    """
    problem, where = load_problem(config), load_machine(machine)
    if not dry_run:
        _fit(problem, where, skip_bad_shards, as_json)
        return
    found = forecast(problem, where, Console(quiet=as_json), skip_bad_shards=skip_bad_shards)
    if as_json:
        dump(found.to_json())
        return
    for line in found.lines():
        say(Console(), line)


def _fit(problem: Problem, machine: Machine, skip_bad_shards: bool, as_json: bool = False) -> None:
    console = Console(quiet=as_json)
    try:
        with connect(machine) as client:
            done = fit_problem(problem, machine, client, console, skip_bad_shards=skip_bad_shards)
    except KeyboardInterrupt as stop:
        begun = (Path(problem.run) / "problem.json").is_file()
        raise Interrupted(f"streamfit resume {problem.run}" if begun else "the same command again") from stop
    model = Path(problem.run) / "model"
    if as_json:
        dump(
            {
                "model": str(model),
                "commit": done.store.head().sequence,
                **summary_json(done.summary),
                **done.solved.to_json(),
                **({} if done.held_out is None else {"held_out": done.held_out.to_json()}),
            }
        )
    say(console, f"model: {model}")


@app.command(epilog="Example: streamfit resume runs/flights")
def resume(
    run: Annotated[Path, typer.Argument(help="Folder of a run that `fit` began.")],
    skip_bad_shards: Annotated[
        bool, typer.Option("--skip-bad-shards", help="Record shards that cannot be counted and go on.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Go on with a run that was stopped, with the configuration that it was begun with."""
    if not (run / "problem.json").is_file():
        msg = f"{run} is not a run: it has no problem.json"
        raise ConfigError(msg, "a folder that `streamfit fit` began", "run `streamfit fit CONFIG` again")
    # This folder, wherever it was when it was begun: a copy has sums of its own.
    problem = load_problem(run / "problem.json").model_copy(update={"run": str(run.absolute())})
    _fit(problem, load_machine(run / "machine.json"), skip_bad_shards, as_json)


@app.command(epilog="Example: streamfit status runs/flights --shards")
def status(
    store: StoreArgument,
    at: AtOption = None,
    shards: Annotated[bool, typer.Option("--shards", help="List every shard as well.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a store holds: rows, shards, folds, labels, segments, and shards that were skipped or removed."""
    opened = open_any(store, at)
    head, header = opened.head(), opened.header
    folds: dict[int, int] = {}
    labels: dict[str, int] = {}
    for segment in head.segments:
        folds[segment.fold] = folds.get(segment.fold, 0) + segment.n_rows
        for name, value in (("source", segment.source), *segment.labels):
            labels[f"{name}:{value}"] = labels.get(f"{name}:{value}", 0) + segment.n_rows
    facts = {
        "rows": head.n_rows,
        "shards": sum(s.n_shards for s in head.segments),
        "segments": len(head.segments),
        "segments_at_most": head.bound,
        "commits": head.sequence,
        "commits_kept_from": head.oldest,
        "pins": {pin.name: pin.sequence for pin in head.pins},
        "last_commit": head.when,
        "features": header.features.n_features,
        "targets": header.targets.n_targets,
        "precision": header.precision,
        "statistic": header.statistic,
        "counted": header.counted,
        "rows_by_fold": {str(k): folds[k] for k in sorted(folds)},
        "rows_by_label": dict(sorted(labels.items())),
        "skipped": [{"key": r.key, "reason": r.reason} for r in head.refused],
        "removed_rows": sum(r.n_rows for r in head.removed),
        "header": head.header,
    }
    listed = sorted(opened.counted().values(), key=lambda s: s.key) if shards else []
    if as_json:
        dump(facts | ({"shards_listed": [asdict(s) for s in listed]} if shards else {}))
        return
    show({name: value for name, value in facts.items() if name != "skipped"})
    console = Console()
    for refusal in head.refused:
        say(console, f"skipped {refusal.key}: {refusal.reason}", "yellow")
    for shard in listed:
        tags = " ".join(f"{name}:{value}" for name, value in (("source", shard.source), *shard.labels))
        gone = f", {len(shard.without)} positions left out" if shard.without else ""
        say(console, f"{shard.content_id[:16]}  {shard.planned_rows:>10,} rows  {shard.key}  {tags}{gone}")


@app.command(epilog="Example: streamfit evaluate runs/flights/model data/june.parquet")
def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of a model.")],
    files: Annotated[list[str], typer.Argument(help="Files, directories or glob patterns.")],
    machine: MachineOption = None,
    field: Annotated[
        str, typer.Option(help="Field of the text in .jsonl files, or ending of texts in .tar files.")
    ] = "text",
    split: Annotated[
        str | None,
        typer.Option(help="Part by the model's split column: train, validation or test (which is the default)."),
    ] = None,
    adaptive: Annotated[bool, typer.Option("--adaptive", help="What was scored becomes new data.")] = False,
    every: Annotated[
        int | None,
        typer.Option(help=f"Tokens between solves of adaptive scores; {EVERY} without.", min=0, show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model on files: text or .jsonl for a language model, tables with the same columns for a linear one.

    Of which kind a table is, its name says: Parquet, Feather, CSV, JSON lines; else it is of the kind that was fitted.
    Files are scored whole, those included that were fitted; `streamfit report` scores what a run held out.
    """
    console = Console()
    kind = read_model(model)[0]["kind"]
    if (adaptive and kind != "language_model") or (every is not None and not adaptive):
        msg = f"--adaptive {adaptive}, --every {every} for a model of kind {kind!r}"
        raise ConfigError(msg, "--adaptive for a language model, and --every with it")
    if kind == "language_model":
        language = LanguageModel.load(model)
        if told := fitted_among(model, [documents_of(each, field) for each in files]):
            say(Console(stderr=as_json), told, "yellow")
        if adaptive:
            pace = EVERY if every is None else every
            reader = Adaptive(language, pace)
            found = add_scores(reader.documents(texts_of(each, field)) for each in files)
            if as_json:
                dump({name: score.to_json() for name, score in found.items()})
            else:
                print_adaptive(found, console)
            if pace and not reader.n_adapted:
                told = f"the text ends before the first solve (--every {pace:,}): nothing was added, adapted is static"
                say(Console(stderr=as_json), told, "yellow")
            return
        where = load_machine(machine) if machine else Machine("serial")
        with connect(where) as client:
            parts = [evaluate_documents(language, documents_of(each, field), client) for each in files]
        total = parts[0]
        for part in parts[1:]:
            total = {name: score + part[name] for name, score in total.items()}
        if as_json:
            typer.echo(json.dumps({name: score.to_json() for name, score in total.items()}, indent=1))
        else:
            print_scores(total, console)
        return
    linear = LinearModel.load(model)
    reader = linear.info["reader"]
    places = {each: local_path(each) for each in files}
    tables = {each: held_out_table(reader, Files(at), split, kind_told(at)) for each, at in places.items()}
    scores = {each: score_table(linear, table) for each, table in tables.items()}
    if as_json:
        typer.echo(json.dumps({each: vars(score) for each, score in scores.items()}, indent=1))
    else:
        for each, score in scores.items():
            accuracy = "" if score.accuracy is None else f", accuracy {score.accuracy:.2%}"
            say(console, f"{each}: {score.n_rows:,} rows, R² {score.r2:.6f}, RMSE {score.rmse:.6g}{accuracy}")


@app.command(epilog="Example: streamfit doctor --json")
def doctor(
    as_json: JsonOption = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Check the GPU against NumPy, and measure its speed.")] = False,
    backend: Annotated[str, typer.Option(help="With --gpu: 'numpy' runs the same checks on the host.")] = "cuda",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="With --gpu: write the JSON there.")] = None,
    size: Annotated[
        list[int] | None, typer.Option(help="With --gpu: features that speeds are measured at; repeatable.", min=1)
    ] = None,
) -> None:
    """Show versions, cores, memory, and the speed of this machine's matrix product."""
    if gpu:
        _doctor_gpu(backend, output, as_json, tuple(size or (2048, 4096, 8192)))
        return
    if output is not None or size or backend != "cuda":
        msg = "-o, --backend or --size without --gpu"
        raise ConfigError(msg, "streamfit doctor --gpu with them")
    facts = {
        "streamfit": importlib.metadata.version("streamfit"),
        "python": platform.python_version(),
        "memory_free_gb": round(psutil.virtual_memory().available / 1e9, 1),
        **examine(),
    }
    if as_json:
        dump(facts)
        return
    show(facts)


def _doctor_gpu(backend: str, output: Path | None, as_json: bool, sizes: tuple[int, ...]) -> None:
    if output is not None:
        try:
            output.touch()  # now, and not when a borrowed GPU has been measured
        except OSError as error:
            msg = f"cannot write {output}: {error.strerror}"
            raise ConfigError(msg, "a file that can be written", "name another with -o") from error
    found = examine_backend(backend, sizes)  # type: ignore[arg-type]
    if output is not None:
        output.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if as_json:
        dump(found)
    else:
        show(found["device"])
        show(
            {
                c["name"]: ("passed" if c["passed"] else "FAILED")
                + f", measured {c['measured']:.3g}, expected {c['expected']}"
                for c in found["checks"]
            }
        )
        show(
            {
                f"{s['precision']} {s['n_features']}": f"{s['fraction_of_peak']:.0%} of {s['peak_gflops']:,.0f} GFLOP/s"
                for s in found["throughput"]["accumulate"]
            }
        )
        if found["throughput"]["copies"]:
            show(found["throughput"]["copies"])
    if not found["passed"]:
        failed = ", ".join(c["name"] for c in found["checks"] if not c["passed"])
        msg = f"checks that failed: {failed}"
        raise SolveError(msg, "what NumPy computes", "keep to backend 'numpy' here")
