"""The sections that reports are made of: each adds its text, tables and figures. Floor 7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from streamfit.feature_names import names_of
from streamfit.history import PassNote
from streamfit.plan import size_text
from streamfit.provenance import provenance_of
from streamfit.report.data_plots import (
    plot_calibration,
    plot_deviates,
    plot_growth,
    plot_residuals,
    plot_segments,
    plot_times_of_rows,
)
from streamfit.report.from_sums import feature_shares, learning_curve, rows_by_commit, segment_spans
from streamfit.report.held_out import HeldOut, expected_error, reliability
from streamfit.report.page import Report
from streamfit.report.plots import plot_alphas, plot_curve, plot_models, plot_scores, plot_shares
from streamfit.report.scores import verdict
from streamfit.solving import Solved
from streamfit.store import Store
from streamfit.text import Explanation, Score
from streamfit.text.explain_page import lines

_MOST = 30


def add_data(report: Report, store: Store, licence: str = "") -> None:
    """What was read: rows and shards by source, what was skipped and what left."""
    head, facts = store.head(), provenance_of(store, licence)
    report.heading("Data")
    report.data["data"] = facts
    report.text(
        f"{facts['n_rows']:,} rows of {facts['n_shards']:,} shards, each counted exactly once, in"
        f" {len(head.segments):,} segments; {store.header.features.n_features:,} features,"
        f" {store.header.targets.n_targets:,} targets, products in {store.header.precision}."
    )
    largest = sorted(facts["sources"], key=lambda source: -source["n_rows"])
    rows = [{"source": s["source"], "rows": s["n_rows"], "shards": s["n_shards"]} for s in largest[:_MOST]]
    if rest := largest[_MOST:]:
        counts = {"rows": sum(s["n_rows"] for s in rest), "shards": sum(s["n_shards"] for s in rest)}
        rows.append({"source": f"{len(rest):,} others", **counts})
    if rows:
        report.table("sources", rows)
    if head.refused:
        report.text(f"{len(head.refused):,} shards were skipped:")
        report.table("skipped", [{"shard": r.key, "reason": r.reason} for r in head.refused[:_MOST]])
    if facts["removed_rows"]:
        report.text(f"{facts['removed_rows']:,} rows were forgotten or replaced, and are in no sum.")
    report.verbatim(f"ledger   {facts['ledger']}\ncommit   {facts['commit']}\nlicence  {licence or 'not stated'}")


def add_passes(report: Report, passes: Sequence[PassNote], seconds: Mapping[str, float] | None = None) -> None:
    """Plan against actual, of the newest pass in full."""
    if not passes and not seconds:
        return
    report.heading("Plan and actual")
    report.data["passes"] = [asdict(each) for each in passes]
    if passes:
        last = passes[-1]
        report.verbatim("\n".join(last.lines))
        report.table("plan", last.compared())
        skipped = f" {last.refused:,} shards were skipped." if last.refused else ""
        report.text(
            f"{size_text(last.planned_bytes)} in {last.groups:,} groups on {last.workers:,} worker(s), ended"
            f" {last.when}.{skipped}"
        )
    if len(passes) > 1:
        report.text(f"Earlier passes: {len(passes) - 1:,}.")
        names = ("when", "rows", "shards", "seconds", "gflops")
        report.table("earlier_passes", [{name: vars(each)[name] for name in names} for each in passes[:-1]][-_MOST:])
    if seconds:
        report.data["seconds"] = dict(seconds)
        report.text("Seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()) + ".")


def add_alpha(report: Report, solved: Solved) -> None:
    """How alpha was chosen."""
    solution = solved.solution
    report.heading("How alpha was chosen")
    report.data["alpha"] = solution.alpha
    if solved.path is not None:
        report.data |= solved.path.to_json()
        what = f"Variance explained on each of {len(solved.path.losses)} held-out folds, and in the mean, from the sums"
        report.figure("alpha", plot_alphas(solved.path), f"{what}; alpha {solution.alpha:g} was taken.")
        if solved.path.at_edge:
            report.text("The best alpha is at the edge of the grid: a wider one may be better.")
    elif solved.scores is not None:
        what = "Generalised cross-validation and evidence along the grid, from the training sums alone"
        report.figure("alpha", plot_scores(solved.scores), f"{what}; alpha {solution.alpha:g} was taken.")
    elif solved.banded is not None:
        report.verbatim("\n".join(solved.banded.lines()))
    else:
        report.text(f"Alpha {solution.alpha:g} was given.")


def add_certificate(report: Report, solved: Solved) -> None:
    """How near the optimum is, shown by numbers."""
    solution = solved.solution
    report.heading("Certificate")
    report.data["certificate"] = solution.certificate.to_json()
    first = f"alpha {solution.alpha:g}, {solution.method}, rank {solution.rank:,}, {solution.effective_dof:.1f} degrees"
    report.verbatim("\n".join([f"{first} of freedom", *solution.certificate.lines()]))


def add_learning_curve(report: Report, store: Store, solved: Solved, *, fit_intercept: bool = True) -> None:
    """What more rows bring."""
    points = learning_curve(store, solved.solution.alpha, fit_intercept=fit_intercept, total=solved.moments)
    if not points:
        return
    report.heading("Learning curve")
    report.data["learning_curve"] = points
    n_folds = len({point["fold"] for point in points})
    folds = f"each of {n_folds} folds in turn and in the mean" if n_folds > 1 else "one fold"
    how = f"with alpha {solved.solution.alpha:g}, from segments: nothing was read again"
    caption = f"Variance explained on {folds}, against rows of the others, {how}."
    report.figure("learning", plot_curve(points), caption)


def add_features(report: Report, store: Store, solved: Solved, *, fit_intercept: bool = True) -> None:
    """What each block of features contributes."""
    if solved.moments is None:
        return
    names, weights = names_of(store.header), solved.solution.weights
    rows = feature_shares(store, solved.moments, weights, names, fit_intercept=fit_intercept)
    if not rows:
        return
    report.heading("What features contribute")
    if solved.parts is not None:
        report.verbatim("\n".join(solved.parts.lines()))
        report.data["contributions"] = solved.parts.to_json()
    report.data["feature_shares"] = rows
    total = sum(row["r2"] for row in rows)
    measure = "product measure; negative ones correct others"
    caption = f"Parts of R² on the training rows, {total:.4f} in all ({measure})."
    report.figure("features", plot_shares(rows), caption)


def add_residuals(report: Report, held: HeldOut, alpha: float) -> None:
    """Residuals on rows that a fit has not seen, and whether its uncertainty is what they show."""
    n_rows = len(held.predicted)
    report.heading("Residuals and calibration")
    report.text(
        f"{n_rows:,} rows of fold {held.fold} were read, and predicted by a fit of the other folds' sums with alpha"
        f" {alpha:g}."
    )
    classes = held.std is None and held.predicted.shape[1] > 1 and bool(np.isin(held.observed, (0.0, 1.0)).all())
    if classes:
        ids = held.predicted.argmax(axis=1)
        confidence = held.predicted[np.arange(n_rows), ids]
        hits = held.observed[np.arange(n_rows), ids] > 0
        report.text(f"Accuracy {hits.mean():.2%}.")
        bins = reliability(confidence, hits)
        report.data["reliability"] = bins
        drawn = plot_calibration(bins, "confidence", "accuracy", "largest prediction")
        caption = f"Score of the predicted class, in ten bins of equal size; mean distance {expected_error(bins):.4f}."
        report.figure("calibration", drawn, caption)
        return
    variance = np.var(held.observed, axis=0).sum()
    error = np.mean(held.residuals**2, axis=0).sum()
    r2 = f"R² {1 - error / variance:.6f}, " if variance > 0 else ""
    report.text(f"{r2}root mean squared error {np.sqrt(error / held.predicted.shape[1]):.6g}.")
    bins = held.by_prediction()
    report.data["residuals"] = bins
    report.figure("residuals", plot_residuals(bins), "Median and middle 80% of the residuals, by prediction.")
    if held.std is not None:
        deviates = held.residuals / np.maximum(held.std, np.finfo(float).tiny)
        report.figure("deviates", plot_deviates(deviates.ravel()), "Bars should follow the line, the normal density.")
        rows = held.coverage()
        report.data["coverage"] = rows
        drawn = plot_calibration(rows, "nominal", "actual", "probability that the interval should hold")
        report.figure("calibration", drawn, "How often targets lie in their predicted intervals.")


def add_segments(report: Report, store: Store) -> None:
    """What counts since when."""
    spans = segment_spans(store)
    if not spans:
        return
    last = store.head().sequence
    report.heading("Segments over time")
    report.data["segments"] = spans
    live = sum(span["until"] is None for span in spans)
    report.text(f"{len(spans):,} segments in {last:,} commits, of which {live:,} count now.")
    report.figure("segments", plot_segments(spans, last), "From the commit since which a segment counts, to its last.")
    report.figure("growth", plot_growth(rows_by_commit(store)), "Rows of each source after each commit.")
    if any(span["time"] and span["until"] is None for span in spans):
        report.figure("times", plot_times_of_rows(spans), "Rows that count now, by the time they are labelled with.")


def add_scores(report: Report, scores: Mapping[str, Score]) -> None:
    """How well a language model predicts, beside its baselines."""
    rows: list[dict[str, Any]] = [{"model": name, **score.to_json()} for name, score in scores.items()]
    report.heading("How well it predicts")
    better = {"perplexity": "min", "bits_per_byte": "min", "top1": "max", "top5": "max"}
    report.table("models", rows, {name: way for name, way in better.items() if name in rows[0]})
    report.text(verdict(scores))
    unit = "byte" if "bits_per_byte" in rows[0] else "token"
    report.figure("models", plot_models(rows), f"Bits per {unit} on held-out text.")


def add_samples(report: Report, samples: Mapping[str, str]) -> None:
    """What a language model writes."""
    report.heading("What it writes")
    report.data["samples"] = dict(samples)
    for prompt, sample in samples.items():
        report.verbatim(prompt + sample)


def add_explanations(report: Report, explanations: Sequence[Explanation], top: int = 8) -> None:
    """What carried some predictions: shares of centers and suffixes that add up to the probability."""
    if not explanations:
        return
    report.heading("Why a token is predicted")
    report.data["explanations"] = [found.to_json(top) for found in explanations]
    for found in explanations:
        report.verbatim("\n".join(lines(found, top)))


def add_reliability(report: Report, confidence: np.ndarray, hits: np.ndarray) -> None:
    """Whether a language model's most probable token comes as often as it says."""
    bins = reliability(confidence, hits)
    report.heading("Calibration")
    report.data["reliability"] = bins
    drawn = plot_calibration(bins, "confidence", "accuracy", "probability of the most probable token")
    caption = f"{len(hits):,} held-out tokens in ten bins of equal size; mean distance {expected_error(bins):.4f}."
    report.figure("calibration", drawn, caption)
