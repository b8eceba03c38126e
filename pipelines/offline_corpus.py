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
from streamfit.jobs import evaluate_documents, fit, held_out
from streamfit.report import Report, plot_alphas, plot_models, print_scores, verdict
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
    rows = [{"model": name, **score.to_json()} for name, score in scores.items()]
    report.table("models", rows, {"perplexity": "min", "bits_per_byte": "min", "top1": "max", "top5": "max"})
    report.text(verdict(scores))
    report.figure("models", plot_models(rows), "Bits per byte on held-out files.")
    if fitted.solved.path is not None:
        report.figure("alpha", plot_alphas(fitted.solved.path), "Held-out R² along the grid of alphas.")
    report.verbatim("\n".join(fitted.solved.solution.certificate.lines()))
    report.verbatim("".join(generate_text(model, "", Sampling(100, temperature=0.8, top_p=0.9))))
    target = report.write(Path(problem.run))
    say(console, f"report: {target}")
    return target


if __name__ == "__main__":
    script(main)
