"""A language model of a folder of text: fit, evaluate on held-out files, sample, report.

python pipelines/offline_corpus.py configs/lm_stdlib.toml [configs/machine_local.toml]
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from streamfit.cli import script
from streamfit.config import LanguageProblem, load_machine, load_problem
from streamfit.engine import connect, say
from streamfit.errors import ConfigError
from streamfit.held_out import evaluate_documents, held_out
from streamfit.jobs import fit
from streamfit.report import Report, print_scores, sections
from streamfit.text import LanguageModel, Sampling, generate_text


def main(config: Path, machine: Path | None = None) -> Path:
    """Run the job; returns the path of its report."""
    console = Console()
    where, problem = load_machine(machine), load_problem(config)
    if not isinstance(problem, LanguageProblem):
        msg = f"{config}: kind = {problem.kind!r}"
        raise ConfigError(msg, "'language_model'", "for a table use pipelines/batch_fit.py")
    with connect(where) as client:
        fitted = fit(problem, where, client, console)
        model = fitted.model
        assert isinstance(model, LanguageModel)
        scores = evaluate_documents(model, held_out(fitted.store, problem.corpus.documents("test")), client)
    print_scores(scores, console, "held-out")

    report = Report(f"streamfit: a language model of {problem.corpus.root}")
    sections.add_data(report, fitted.store)
    sections.add_scores(report, scores)
    sample = "".join(generate_text(model, "", Sampling(100, temperature=0.8, top_p=0.9)))
    sections.add_samples(report, {"": sample})
    sections.add_alpha(report, fitted.solved)
    sections.add_certificate(report, fitted.solved)
    sections.add_learning_curve(report, fitted.store, fitted.solved)
    sections.add_segments(report, fitted.store)
    target = report.write(Path(problem.run))
    say(console, f"report: {target}")
    return target


if __name__ == "__main__":
    script(main)
