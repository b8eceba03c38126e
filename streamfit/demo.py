"""The demonstration: a language model of Python's standard library, then a refit with a package that was held back.

Floor 7. `make demo` and `streamfit demo` run it; everything is written below the run's folder.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from distributed import Client
from rich.console import Console

from streamfit import report as rp
from streamfit.config import LanguageProblem, load_problem
from streamfit.engine import Machine, WorkOptions, connect, rewrite, say
from streamfit.errors import ConfigError
from streamfit.held_out import evaluate_documents, held_out
from streamfit.history import PassNote
from streamfit.jobs import (
    Fitted,
    accumulate_into,
    build_model,
    fit,
    logged,
    training_source,
)
from streamfit.report import sections
from streamfit.solving import Solved, solve_store
from streamfit.store import Store
from streamfit.text import LanguageModel, Sampling, Score, generate_text

HELD_BACK = "asyncio"
PROMPTS = ("def ", '    """Return ', "import ")


@dataclass(frozen=True)
class Refit:
    """An incremental refit beside one from scratch.

    Parameters
    ----------
    added_rows : int
    added_seconds, scratch_seconds : float
        Counting the new rows, or all of them; and the solve, in each.
    equal : bool
        Whether the two sets of weights are the same to the last bit.
    forget_seconds : float
        Taking the new rows out of the fit from scratch again, and the solve.
    forgotten_equal : bool
        Whether that gives the weights of the first fit, which never saw them, to the last bit.
    before, after : dict of str to Score
        On the held-back package's own test files.
    """

    added_rows: int
    added_seconds: float
    scratch_seconds: float
    equal: bool
    forget_seconds: float
    forgotten_equal: bool
    before: dict[str, Score]
    after: dict[str, Score]


def config_path(name: str) -> Path:
    """Path of a packaged configuration, in an installed package or a checkout.

    Raises
    ------
    ConfigError
        If there is none of this name.
    """
    package = Path(str(files("streamfit")))
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / name).is_file():
            return folder / name
    msg = f"no packaged config {name!r}"
    raise ConfigError(msg, "lm_stdlib.toml or another file of configs/")


def run_demo(run: Path, machine: Machine, console: Console) -> Path:
    """Run the demonstration; returns the path of its report.

    A folder left by an earlier demo is begun anew: its times would otherwise be those of a resumed run.
    """
    started = time.perf_counter()
    whole = load_problem(config_path("lm_stdlib.toml"))
    assert isinstance(whole, LanguageProblem)
    _clear(run)
    whole = whole.model_copy(update={"run": str(run)})
    without = _select(whole, exclude=(*whole.corpus.exclude, f"{HELD_BACK}/*"))
    with logged(run), connect(machine) as client:
        console.rule("fit: the standard library without " + HELD_BACK)
        fitted = fit(without, machine, client, console)
        model = fitted.model
        assert isinstance(model, LanguageModel)
        console.rule("evaluate on held-out files")
        clock = time.perf_counter()
        scores = evaluate_documents(model, held_out(fitted.store, without.corpus.documents("test")), client)
        seconds = time.perf_counter() - clock
        rp.print_scores(scores, console, "held-out")
        how = Sampling(60, temperature=0.8, top_p=0.9)
        samples = {prompt: "".join(generate_text(model, prompt, how)) for prompt in PROMPTS}
        say(console, f"\n{PROMPTS[0]}{samples[PROMPTS[0]]}\n", "dim")
        console.rule(f"refit: add {HELD_BACK}, compare with a fit from scratch, and forget it again")
        refit = _refit(whole, fitted, machine, client, console)
        target = _report(fitted, scores, samples, refit, {"evaluation": seconds}, run, started)
    say(console, f"\nreport: {target}   ({time.perf_counter() - started:.0f} s in all)")
    return target


def _clear(run: Path) -> None:
    for name in ("store", "store_scratch", "model", "figures"):
        if (run / name).is_dir():
            shutil.rmtree(run / name)


def _select(problem: LanguageProblem, **changes: tuple[str, ...]) -> LanguageProblem:
    return problem.model_copy(update={"corpus": problem.corpus.model_copy(update=changes)})


def _refit(whole: LanguageProblem, fitted: Fitted, machine: Machine, client: Client | None, console: Console) -> Refit:
    package = _select(whole, include=(f"{HELD_BACK}/*.py",))
    assert isinstance(fitted.model, LanguageModel)
    before = evaluate_documents(fitted.model, package.corpus.documents("test"), client)

    clock = time.perf_counter()
    source = training_source(package, fitted.store)
    added = accumulate_into(fitted.store, source, machine, client, console, group_rows=whole.group_rows)
    refitted = solve_store(fitted.store, whole.solve, console)
    added_seconds = time.perf_counter() - clock

    scratch = Store.create(Path(whole.run) / "store_scratch", fitted.store.header)
    clock = time.perf_counter()
    source = training_source(whole, scratch)
    accumulate_into(scratch, source, machine, client, console, group_rows=whole.group_rows)
    from_scratch = solve_store(scratch, whole.solve, console)
    scratch_seconds = time.perf_counter() - clock

    equal = _same_weights(refitted, from_scratch)
    clock = time.perf_counter()
    rows = rewrite(
        scratch,
        source,
        dict.fromkeys(shard.content_id for shard in package.corpus.documents("train").shards()),
        why=f"the demonstration forgets {HELD_BACK}",
        fast=True,
        client=client,
        options=WorkOptions(n_threads=machine.threads, backend=machine.backend),
    )
    say(console, f"forgot {sum(d.n_rows for d in rows.departures):,} rows of {len(rows.departures):,} shards")
    without = solve_store(scratch, whole.solve, console)
    forget_seconds = time.perf_counter() - clock
    forgotten_equal = _same_weights(without, fitted.solved)

    model = build_model(whole, fitted.store, refitted)
    assert isinstance(model, LanguageModel)
    model.save(Path(whole.run) / "model")
    after = evaluate_documents(model, package.corpus.documents("test"), client)
    say(
        console,
        f"weights of the refit and of the fit from scratch are {'equal to the last bit' if equal else 'NOT EQUAL'};"
        f" adding took {added_seconds:.1f} s, from scratch {scratch_seconds:.1f} s",
        "bold",
    )
    say(
        console,
        f"with {HELD_BACK} forgotten again ({forget_seconds:.1f} s) the weights are"
        f" {'those of the first fit, to the last bit' if forgotten_equal else 'NOT those of the first fit'}",
        "bold",
    )
    return Refit(added.n_rows, added_seconds, scratch_seconds, equal, forget_seconds, forgotten_equal, before, after)


def _same_weights(a: Solved, b: Solved) -> bool:
    return a.solution.alpha == b.solution.alpha and all(
        np.array_equal(x, y)
        for x, y in ((a.solution.weights, b.solution.weights), (a.solution.intercept, b.solution.intercept))
    )


def _report(
    fitted: Fitted,
    scores: dict[str, Score],
    samples: dict[str, str],
    refit: Refit,
    seconds: dict[str, float],
    run: Path,
    started: float,
) -> Path:
    out = rp.Report("streamfit: a language model of Python's standard library")
    plan, summary = fitted.summary.plan, fitted.summary
    out.text(
        f"{summary.n_rows:,} training tokens of {summary.n_shards:,} files were read once by {plan.n_workers} workers."
        f" {plan.n_features:,} features and {plan.n_targets:,} next-token targets; one solve gives the weights."
        " Files belong to train, validation or test by a hash of their path; the tables of models are on test files."
    )
    sections.add_data(out, fitted.store)
    sections.add_scores(out, scores)
    sections.add_samples(out, samples)
    sections.add_alpha(out, fitted.solved)
    sections.add_certificate(out, fitted.solved)
    sections.add_learning_curve(out, fitted.store, fitted.solved)
    sections.add_features(out, fitted.store, fitted.solved)
    out.heading(f"Refit with {HELD_BACK}")
    equal = "equal to the last bit" if refit.equal else "NOT equal"
    out.text(
        f"{refit.added_rows:,} tokens of {HELD_BACK}, held back before, were added and the sums solved again. The"
        f" weights are {equal} to those of a fit from scratch on everything with the same features."
    )
    again = "equal to the last bit" if refit.forgotten_equal else "NOT equal"
    out.text(
        f"Forgotten again, by reading and subtracting {HELD_BACK} alone, the fit from scratch has weights {again} to"
        " those of the first fit, which never saw it."
    )
    times = {"add and solve": refit.added_seconds, "from scratch": refit.scratch_seconds}
    times |= {"forget and solve": refit.forget_seconds}
    equals = {"equal": refit.equal, "forgotten_equal": refit.forgotten_equal}
    out.data["refit"] = {"added_rows": refit.added_rows, **equals, **times}
    out.figure("refit", rp.plot_times(times), "Seconds to the same weights.")
    better = {"perplexity": "min", "bits_per_byte": "min", "top1": "max", "top5": "max"}
    held_back = []
    for when, part in (("before", refit.before), ("after", refit.after)):
        name = list(part)[-1]
        held_back.append({"model": f"{name}, {when}", **part[name].to_json()})
    out.table("held_back", held_back, better)
    out.text(f"The mixture on {HELD_BACK}'s own test files, before and after the refit.")
    sections.add_segments(out, fitted.store)
    actual = {
        "counting": summary.seconds,
        "solve": fitted.solved.seconds,
        **seconds,
        "all": time.perf_counter() - started,
    }
    out.data["gflop_per_second"] = summary.gflops
    sections.add_passes(out, [PassNote.of(summary, fitted.store.header.n_folds)], actual)
    return out.write(run)
