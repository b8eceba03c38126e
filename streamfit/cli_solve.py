"""Commands that answer from the sums of a store: solve, refine, leave-one-out, posterior, prune. Floor 7."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from dask.utils import parse_bytes
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streamfit.arrays import Backend
from streamfit.cli_options import AtOption, JsonOption, MachineOption, StoreArgument, dump, own_folder, working
from streamfit.config import LanguageProblem, SolveSection, load_problem
from streamfit.engine import say
from streamfit.errors import ConfigError
from streamfit.feature_names import blocks_of, names_of
from streamfit.jobs import build_model, licence_of, linear_model
from streamfit.models import LinearModel
from streamfit.optimum import GRID, solve_section
from streamfit.passes import leave_one_out_store, refine_store
from streamfit.preflight import refuse_other_features
from streamfit.provenance import provenance_of
from streamfit.report import plot_alphas, plot_pruning, plot_scores
from streamfit.sections import checked
from streamfit.solve import TOLERANCE, Pruned, posterior, prune
from streamfit.solving import Solved, shown_warnings, solve_out_of_core, solve_store, summed
from streamfit.store import Mix, Store
from streamfit.stores import open_any
from streamfit.text.fit import near_and_topic

app = typer.Typer()
AlphasOption = Annotated[
    list[float] | None,
    typer.Option("--alpha", help="Penalty; given several times, one is picked.", show_default=False),
]
AlphaOption = Annotated[float, typer.Option(help="Penalty.", min=0)]
NoInterceptOption = Annotated[bool, typer.Option("--no-intercept", help="Fit without an intercept.")]
ToleranceOption = Annotated[
    float, typer.Option(help="Share of the targets' sum of squares to which the optimum must be proved.", min=0)
]
OutputOption = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Folder to write the model to.", callback=own_folder, show_default=False),
]
PlotOption = Annotated[
    Path | None, typer.Option("--plot", help="File for the figure: .png, .svg or .pdf.", show_default=False)
]
CorpusOption = Annotated[
    str | None, typer.Option(help="Where the corpus lies now, if it was moved.", show_default=False)
]


@app.command("solve", epilog="Example: streamfit solve runs/flights --alpha 1 --alpha 10 --half-life 30d -o model")
def solve_command(
    store: StoreArgument,
    alpha: AlphasOption = None,
    choose_by: Annotated[str, typer.Option(help="kfold (held-out folds), gcv or evidence.")] = "kfold",
    one_standard_error: Annotated[
        bool, typer.Option("--one-standard-error", help="Largest alpha that folds cannot tell from the best.")
    ] = False,
    per_target: Annotated[bool, typer.Option("--per-target", help="An alpha for each target.")] = False,
    blocks: Annotated[
        list[str] | None,
        typer.Option(help="An alpha for each block: 'features' (each map), or name=pattern,pattern; repeatable."),
    ] = None,
    mix: Annotated[
        list[str] | None,
        typer.Option(
            "--mix", help="Weights of segments by label: source:web=0.3,source:code=2. Patterns as in fnmatch."
        ),
    ] = None,
    half_life: Annotated[
        str | None, typer.Option(help="Halve the weight of rows with this age, such as 30d.", show_default=False)
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option(help="ISO date that age is counted from; what is newer is left out.", show_default=False),
    ] = None,
    at: AtOption = None,
    no_intercept: NoInterceptOption = False,
    tolerance: ToleranceOption = TOLERANCE,
    memory: Annotated[
        str | None,
        typer.Option(help="Solve out of core, with this much memory in all, such as 2GB.", show_default=False),
    ] = None,
    scratch: Annotated[
        Path | None, typer.Option(help="Folder for what memory has no room for, with --memory.", show_default=False)
    ] = None,
    plot: PlotOption = None,
    output: OutputOption = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Of a language model whose store is no run's: [corpus] has the files to choose mixture weights on.",
            show_default=False,
        ),
    ] = None,
    std: Annotated[
        bool, typer.Option("--std", help="Keep the posterior in the model, n_features² numbers: `predict --std`.")
    ] = False,
    backend: Annotated[
        Backend, typer.Option(help="Factor on the host, or on its GPU ('cuda', never run on hardware).")
    ] = "numpy",
    as_json: JsonOption = False,
) -> None:
    """Solve from the sums that a store holds, and print the certificate. The corpus is not read.

    Without --alpha, one of 10^-3 ... 10^5 is picked. Exit code 3, and no model, where the optimum is not proved to
    the tolerance: dependent features have no unique optimum at --alpha 0, and --tolerance inf accepts that of least
    norm.
    """
    opened = open_any(store, at)
    if std and output is None:
        msg = "--std without --output"
        raise ConfigError(msg, "a folder to write the model to")
    weights = Mix.parse(mix or [], half_life, as_of)
    if blocks and alpha:
        msg = "--alpha with --blocks"
        raise ConfigError(msg, "one of them", "alphas of blocks are looked for from the sums' own scale")
    # The tolerance is asked for at the end: what was found is shown first, also as JSON.
    section = _section(alpha, no_intercept, np.inf, choose_by, one_standard_error, per_target, _blocks(blocks))
    language = None
    if output is not None and opened.header.reader.get("kind") == "tokens":
        language = _language_problem(store, config, std=std)
        refuse_other_features(language, opened)
        section = _as_configured(section, language.solve)
    elif config is not None:
        msg = "--config without --output, or for a store of a table"
        raise ConfigError(msg, "one for a language model that is to be written")
    console, mixed = Console(quiet=as_json), None if weights.plain else weights
    if memory is not None or scratch is not None:
        if plot is not None or memory is None or not alpha or backend != "numpy":
            msg = "--memory with --plot or --backend, or without --alpha" if memory else "--scratch without --memory"
            raise ConfigError(msg, "one --alpha, and both of --memory and --scratch or --memory alone")
        solved = solve_out_of_core(opened, section, _bytes(memory), scratch, console, mixed)
    else:
        solved = solve_store(opened, section, console, mixed, backend=backend)
    if as_json:
        dump({"commit": opened.head().sequence, **solved.to_json()})
    solved.solution.certificate.require(tolerance)
    if plot is not None:
        _plot_choice(solved, plot)
        say(console, f"figure: {plot}")
    if language is not None and output is not None:
        if mixed is not None and not mixed.times(opened.head().segments)[1]:
            told = "n-gram counts are whole numbers, and so must all their weights be: they are taken once, or for a"
            say(console, f"{told} weight of 0 left out; the network's sums are weighed", "yellow")
        build_model(language, opened, solved, mix=mixed).save(output)
        say(console, f"model: {output}")
    elif output is not None:
        spread = not no_intercept if std else None
        linear_model(opened, solved, spread, licence=licence_of(store)).save(output)
        say(console, f"model: {output}")


def _language_problem(store: str, config: Path | None, *, std: bool) -> LanguageProblem:
    """Which experts a language model has, and which files its mixture weights are chosen on."""
    if std:
        msg = "--std for a language model"
        raise ConfigError(msg, "a model of a table", "`streamfit doubt` says what the corpus has not seen")
    path = config or Path(store) / "problem.json"
    if (config is None and "://" in store) or not path.is_file():
        msg = f"a language model of {store}, which is no run's folder"
        raise ConfigError(msg, "--config CONFIG, whose [corpus] has files to choose mixture weights on")
    problem = load_problem(path)
    if not isinstance(problem, LanguageProblem):
        msg = f"{path} of kind {problem.kind!r} for a store that counts tokens"
        raise ConfigError(msg, "a config of kind 'language_model'")
    return problem


def _as_configured(section: SolveSection, configured: SolveSection) -> SolveSection:
    """What the command line left at its defaults, as a config has it."""
    plain, given = _section(None, no_intercept=False, tolerance=np.inf).model_dump(), section.model_dump()
    told = {name: value for name, value in given.items() if value != plain[name]}
    return checked("solve", SolveSection, {**configured.model_dump(), **told, "tolerance": np.inf})


def _section(
    alphas: list[float] | None,
    no_intercept: bool,
    tolerance: float = TOLERANCE,
    choose_by: str = "kfold",
    one_standard_error: bool = False,
    per_target: bool = False,
    blocks: Any = "",
) -> SolveSection:
    return solve_section(
        tuple(alphas) if alphas else GRID,
        fit_intercept=not no_intercept,
        choose_by=choose_by,  # type: ignore[arg-type]  # checked there
        one_standard_error=one_standard_error,
        per_target=per_target,
        blocks=blocks,
        tolerance=tolerance,
    )


def _bytes(text: str) -> int:
    try:
        return int(parse_bytes(text))
    except ValueError as error:
        msg = f"--memory {text!r}"
        raise ConfigError(msg, "a size such as 2GB or 512MiB") from error


def _blocks(given: list[str] | None) -> str | dict[str, tuple[str, ...]]:
    if not given or given == ["features"]:
        return "features" if given else ""
    found: dict[str, tuple[str, ...]] = {}
    for text in given:
        name, sign, patterns = text.partition("=")
        if not sign or not name or not patterns or name in found:
            msg = f"--blocks {text!r}"
            raise ConfigError(msg, "features, or name=pattern,pattern with each name once")
        found[name] = tuple(patterns.split(","))
    return found


def _plot_choice(solved: Solved, path: Path) -> None:
    if solved.path is not None:
        plot_alphas(solved.path).save(path)
    elif solved.scores is not None:
        plot_scores(solved.scores).save(path)
    else:
        msg = "a figure of a single alpha, or of blocks"
        raise ConfigError(msg, "several --alpha without --blocks")


@app.command(epilog="Example: streamfit refine runs/flights --alpha 1 -o model")
def refine(
    store: StoreArgument,
    alpha: AlphasOption = None,
    passes: Annotated[int, typer.Option(help="One certifies, each more follows a correction.", min=1)] = 2,
    no_intercept: NoInterceptOption = False,
    tolerance: ToleranceOption = TOLERANCE,
    corpus: CorpusOption = None,
    at: AtOption = None,
    output: OutputOption = None,
    machine: MachineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read the rows again, correct the solution by their own gradient in float64, and certify it on the data.

    In a run's folder, alphas and intercept are those of its config unless given.
    """
    opened, console = open_any(store, at), Console(quiet=as_json)
    problem_file = Path(store) / "problem.json"
    problem = load_problem(problem_file) if "://" not in store and problem_file.is_file() else None
    section = _section(alpha, no_intercept, float("inf"))
    if problem is not None and alpha is None:
        section = problem.solve.model_copy(update={"tolerance": float("inf")})
    if output is not None and isinstance(problem, LanguageProblem) and near_and_topic(opened.header.features)[1]:
        msg = "a refined language model with a topic"
        raise ConfigError(msg, "none: its network and topic are solved apart", "leave out --output: both are certified")
    solved = solve_store(opened, section, console)
    with working(machine) as (where, client):
        refined = refine_store(
            opened,
            solved,
            where,
            client,
            console,
            fit_intercept=section.fit_intercept,
            passes=passes,
            corpus=corpus,
        )
    if as_json:
        dump({"alpha": refined.solution.alpha, "passes": [c.to_json() for c in refined.certificates]})
    refined.solution.certificate.require(tolerance)
    if output is not None:
        better = Solved(refined.solution, solved.path, solved.moments, refined.seconds)
        if isinstance(problem, LanguageProblem):
            build_model(problem, opened, better).save(output)
        else:
            linear_model(opened, better, licence=licence_of(store)).save(output)
        say(console, f"model: {output}")


@app.command("leave-one-out", epilog="Example: streamfit leave-one-out runs/flights --alpha 1")
def leave_one_out(
    store: StoreArgument,
    alpha: AlphasOption = None,
    no_intercept: NoInterceptOption = False,
    corpus: CorpusOption = None,
    at: AtOption = None,
    machine: MachineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Exact leave-one-out errors of each alpha, from leverages, by one pass over the rows."""
    opened, console = open_any(store, at), Console(quiet=as_json)
    grid = _section(alpha, no_intercept).alphas
    with working(machine) as (where, client):
        press = leave_one_out_store(opened, grid, where, client, console, fit_intercept=not no_intercept, corpus=corpus)
    if as_json:
        dump({"best": press.best, **press.to_json()})
        return
    spread = opened.moments().centered()
    variance = float(spread.ss_y.sum()) / spread.weight
    table = Table(title=f"leave-one-out over {press.n_rows:,} rows")
    for column in ("alpha", "mean squared error", "R²", "largest leverage", ""):
        table.add_column(column, justify="right")
    for each, loss, peak, trusted in zip(
        press.alphas, press.mean_losses, press.peak_leverages, press.trusted, strict=True
    ):
        mark = "best" if each == press.best else "" if trusted else "rounding decides"
        table.add_row(f"{each:g}", f"{loss:.8g}", f"{1 - loss / variance:.6f}", f"{peak:.4f}", mark)
    console.print(table)


@app.command("posterior", epilog="Example: streamfit posterior runs/flights --alpha 1")
def posterior_command(
    store: StoreArgument,
    alpha: AlphaOption,
    target: Annotated[int, typer.Option(help="Which target's weights are shown.", min=0)] = 0,
    top: Annotated[int, typer.Option(help="At most so many features, the surest first.", min=1)] = 20,
    at: AtOption = None,
    no_intercept: NoInterceptOption = False,
    as_json: JsonOption = False,
) -> None:
    """Noise variance, and weights with their standard errors; with --alpha 0 t statistics and p values as well."""
    opened, console = open_any(store, at), Console(quiet=as_json)
    names = names_of(opened.header)
    if target >= opened.header.targets.n_targets:
        msg = f"--target {target}"
        raise ConfigError(msg, f"one of 0 to {opened.header.targets.n_targets - 1}")
    with shown_warnings(console):
        found = posterior(opened.moments(), alpha, fit_intercept=not no_intercept)
    weights, errors = found.solution.weights[:, target], found.standard_errors()[:, target]
    tests = found.t_statistics() if alpha == 0 else None
    if as_json:
        facts = {**found.to_json(), "target": target, "features": names}
        facts |= {"weights": weights.tolist(), "standard_errors": errors.tolist()}
        if tests is not None:
            facts |= {"t": tests.t[:, target].tolist(), "p": tests.p[:, target].tolist()}
        dump(facts)
        return
    say(console, f"noise variance {found.noise_variance[target]:.6g}, {found.effective_dof:.1f} degrees of freedom"
                 f" of {found.n_observations:,.0f} observations")  # fmt: skip
    table = Table(title=f"target {target}, alpha {alpha:g}")
    for column in ("feature", "weight", "standard error", "ratio", *(["p"] if tests else [])):
        table.add_column(column, justify="left" if column == "feature" else "right")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = weights / errors
    for j in np.argsort(-np.abs(np.nan_to_num(ratio)), kind="stable")[:top]:
        extra = [f"{tests.p[j, target]:.2g}"] if tests else []
        table.add_row(escape(names[j]), f"{weights[j]:.6g}", f"{errors[j]:.3g}", f"{ratio[j]:.3g}", *extra)
    console.print(table)


@app.command("prune", epilog="Example: streamfit prune runs/flights --alpha 1")
def prune_command(
    store: StoreArgument,
    alpha: AlphaOption,
    keep: Annotated[int | None, typer.Option(help="Number of features to keep.", min=1, show_default=False)] = None,
    budget: Annotated[
        float | None, typer.Option(help="Relative increase of the loss that is allowed.", min=0, show_default=False)
    ] = None,
    fold: Annotated[
        int | None, typer.Option(help="Hold this fold out, and report its error as well.", show_default=False)
    ] = None,
    blocks: Annotated[
        list[str] | None, typer.Option(help="Features that leave together: name=pattern,pattern; repeatable.")
    ] = None,
    at_once: Annotated[int, typer.Option(help="Features or blocks that leave at a step.", min=1)] = 1,
    at: AtOption = None,
    no_intercept: NoInterceptOption = False,
    tolerance: ToleranceOption = TOLERANCE,
    plot: PlotOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Leave out features, those first whose removal raises the loss least, and solve what stays from the sums.

    With --output, the model computes the features that stay and no others.
    """
    opened, console = open_any(store, at), Console(quiet=as_json)
    folds = opened.fold_moments()
    if fold is not None and (fold not in folds or len(folds) < 2):
        msg = f"--fold {fold}"
        raise ConfigError(msg, f"one of {', '.join(map(str, sorted(folds)))}, and another to fit")
    test = folds.pop(fold) if fold is not None else None
    train = summed(folds)
    groups = _groups(opened, blocks) if blocks else None
    with shown_warnings(console):
        found = prune(
            train,
            alpha,
            n_features=keep,
            budget=budget,
            groups=groups,
            held_out=test,
            at_once=at_once,
            fit_intercept=not no_intercept,
        )
    if as_json:
        dump(found.to_json())
    table = Table(title=f"{found.n_left[0]:,} to {found.n_left[-1]:,} features, alpha {alpha:g}")
    columns = ("features", "loss", "increase", *(["held-out mean squared error"] if test is not None else []))
    for column in columns:
        table.add_column(column, justify="right")
    for i in sorted({*np.linspace(0, len(found.n_left) - 1, 12).round().astype(int).tolist()}):
        rise = found.losses[i] / found.losses[0] - 1 if found.losses[0] > 0 else 0.0
        extra = [f"{found.held_out[i]:.8g}"] if found.held_out is not None else []
        table.add_row(f"{found.n_left[i]:,}", f"{found.losses[i]:.8g}", f"{rise:+.3%}", *extra)
    console.print(table)
    for line in found.solution.certificate.lines():
        say(console, "  " + line, "dim")
    found.solution.certificate.require(tolerance)
    if plot is not None:
        plot_pruning(found).save(plot)
        say(console, f"figure: {plot}")
    if output is not None:
        _pruned_model(opened, found, licence_of(store)).save(output)
        say(console, f"model: {output}")


def _groups(store: Store, given: list[str]) -> list[list[int]]:
    blocks = _blocks(given)
    found = blocks_of(store, blocks)
    if isinstance(blocks, dict) and "rest" not in blocks:
        found.pop("rest", None)  # what no pattern fits leaves one by one
    every = np.arange(store.header.features.n_features)
    return [every[part].tolist() for part in found.values()]


def _pruned_model(store: Store, found: Pruned, licence: str) -> LinearModel:
    if store.header.reader.get("kind") == "tokens":
        msg = "a language model of pruned features"
        raise ConfigError(msg, "a linear model's store", "leave out --output")
    head = store.head()
    info = {"reader": store.header.reader, "n_rows": head.n_rows, "commit": head.commit, "kept": found.kept.tolist()}
    info["data"] = provenance_of(store, licence)
    return LinearModel(store.header.features.keep(found.kept.tolist()), found.solution, info)
