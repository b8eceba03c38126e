"""Figures of solves and of models. Floor 7: imports drawing, solve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamfit.report.drawing import ACCENT, INK, MUTED, Drawing, axes, legend, thousands
from streamfit.solve import AlphaPath, AlphaScores, Pruned


def plot_models(rows: Sequence[Mapping[str, Any]]) -> Drawing:
    """Bits per byte of each model, or per token where bytes are lost; the best accented."""
    figure, pair = axes()
    names = [row["model"] for row in rows][::-1]
    unit = "byte" if "bits_per_byte" in rows[0] else "token"
    bits = [row.get("bits_per_byte", float(np.log2(row["perplexity"]))) for row in rows][::-1]
    bars = pair.barh(names, bits, color=[ACCENT if b == min(bits) else MUTED for b in bits])
    labels = [f"{b:.3f}   (perplexity {row['perplexity']:,.1f})" for b, row in zip(bits, rows[::-1], strict=True)]
    pair.bar_label(bars, labels, padding=4, fontsize=9, color=INK)
    pair.set_xlim(0, 1.35 * max(bits))
    pair.set_xlabel(f"bits per {unit} of held-out text; less is better")
    return Drawing(figure, rows)


def plot_alphas(path: AlphaPath) -> Drawing:
    """Held-out variance explained along the grid of alphas, a line a fold."""
    figure, pair = axes()
    folds = 1.0 - path.losses / path.baseline[:, None]
    pair.semilogx(path.alphas, folds.T, color=MUTED, linewidth=0.8)
    pair.semilogx(path.alphas, path.r2, color=ACCENT, linewidth=2, marker="o")
    pair.axvline(path.best, color=INK, linestyle=":", linewidth=1)
    pair.set_xlabel("alpha")
    pair.set_ylabel("held-out R²")
    rows = [
        {"alpha": alpha, "r2": mean, **{f"r2_fold_{f}": value for f, value in enumerate(each)}}
        for alpha, mean, each in zip(path.alphas.tolist(), path.r2.tolist(), folds.T.tolist(), strict=True)
    ]
    return Drawing(figure, rows)


def plot_scores(scores: AlphaScores) -> Drawing:
    """Generalised cross-validation and log evidence along the grid of alphas, from the training sums alone."""
    figure, pair = axes()
    gcv, evidence = scores.total("gcv"), scores.total("evidence")
    pair.loglog(scores.alphas, gcv, color=ACCENT, linewidth=2, marker="o")
    pair.set_xlabel("alpha")
    pair.set_ylabel("generalised cross-validation", color=ACCENT)
    pair.axvline(scores.best("gcv"), color=ACCENT, linestyle=":", linewidth=1)
    other = pair.twinx()
    other.semilogx(scores.alphas, evidence, color=MUTED, linewidth=2, marker="s")
    other.axvline(scores.best("evidence"), color=MUTED, linestyle=":", linewidth=1)
    other.set_ylabel("log evidence", color=MUTED)
    other.spines["top"].set_visible(False)
    every = zip(scores.alphas.tolist(), gcv.tolist(), evidence.tolist(), strict=True)
    return Drawing(figure, [{"alpha": a, "gcv": g, "log_evidence": e} for a, g, e in every])


def plot_pruning(pruned: Pruned) -> Drawing:
    """Loss, and held-out error where there is one, against the number of features left."""
    figure, pair = axes()
    rows = [{"features": n, "loss": loss} for n, loss in zip(pruned.n_left, pruned.losses.tolist(), strict=True)]
    pair.plot(pruned.n_left, pruned.losses / pruned.losses[0], color=MUTED, linewidth=2, label="loss")
    if pruned.held_out is not None:
        pair.plot(pruned.n_left, pruned.held_out / pruned.held_out[0], color=ACCENT, linewidth=2, label="held out")
        rows = [{**row, "held_out": value} for row, value in zip(rows, pruned.held_out.tolist(), strict=True)]
    pair.set_xlabel("features left")
    pair.set_ylabel("relative to all features")
    legend(pair)
    return Drawing(figure, rows)


def plot_sizes(tried: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any], keep: float) -> Drawing:
    """Held-out perplexity of smaller language models against their size; the chosen one accented.

    A line joins those that no smaller one was better than; its data have all that were tried.

    Parameters
    ----------
    tried : sequence of mapping
        With `n_bytes`, `n_features`, `perplexity` and `kept`; see `streamfit.text.distill.Candidate`.
    chosen : mapping
        One of them.
    keep : float
        Share of the whole model's perplexity that was to be kept.
    """
    figure, pair = axes()
    rows = sorted(tried, key=lambda each: (each["n_bytes"], each["perplexity"]))
    best = np.minimum.accumulate([each["perplexity"] for each in rows])
    worth = [each for each, least in zip(rows, best, strict=True) if each["perplexity"] <= least]
    sizes, perplexities = [each["n_bytes"] / 1e6 for each in worth], [each["perplexity"] for each in worth]
    pair.plot(sizes, perplexities, color=MUTED, linewidth=1.5, marker="o", markersize=4)
    pair.plot(chosen["n_bytes"] / 1e6, chosen["perplexity"], color=ACCENT, marker="o", markersize=9, label="chosen")
    whole = chosen["perplexity"] * chosen["kept"]
    pair.axhline(whole / keep, color=INK, linestyle=":", linewidth=1, label=f"{keep:.4g} kept")
    pair.set_xlabel("megabytes")
    pair.set_ylabel("held-out perplexity")
    legend(pair)
    return Drawing(figure, [{**each, "chosen": each == chosen} for each in rows])


def plot_curve(points: Sequence[Mapping[str, Any]]) -> Drawing:
    """Held-out variance explained against rows of training data, a line a fold and their mean; see `learning_curve`."""
    figure, pair = axes()
    folds = sorted({point["fold"] for point in points})
    lines = [[(p["rows"], p["r2"]) for p in points if p["fold"] == fold] for fold in folds]
    for line in lines if len(lines) > 1 else ():
        pair.plot(*zip(*line, strict=True), color=MUTED, linewidth=0.8)
    mean = np.array([line for line in lines if len(line) == len(lines[0])]).mean(axis=0)
    pair.plot(mean[:, 0], mean[:, 1], color=ACCENT, linewidth=2, marker="o")
    pair.set_xlabel("rows counted")
    pair.set_ylabel("held-out R²")
    pair.set_xlim(left=0)
    thousands(pair.xaxis)
    return Drawing(figure, points)


def plot_times(seconds: Mapping[str, float]) -> Drawing:
    """Durations side by side."""
    figure, pair = axes(height=0.7 + 0.45 * len(seconds))
    names = list(seconds)[::-1]
    bars = pair.barh(names, [seconds[n] for n in names], color=MUTED)
    pair.bar_label(bars, [f"{seconds[n]:.1f} s" for n in names], padding=4, fontsize=9, color=INK)
    pair.set_xlim(0, 1.2 * max(seconds.values()))
    pair.set_xlabel("seconds")
    return Drawing(figure, [{"what": name, "seconds": value} for name, value in seconds.items()])


def plot_shares(rows: Sequence[Mapping[str, Any]]) -> Drawing:
    """What each block of features contributes to R²; see `feature_shares`."""
    figure, pair = axes(height=0.9 + 0.3 * len(rows))
    names = [row["block"] for row in rows][::-1]
    values = [row["r2"] for row in rows][::-1]
    pair.barh(names, values, color=[ACCENT if value >= 0 else MUTED for value in values])
    pair.axvline(0.0, color=INK, linewidth=0.8)
    pair.set_xlabel("part of R²; parts add up to it")
    return Drawing(figure, rows)
