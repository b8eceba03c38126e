"""Figures of rows: residuals, calibration, segments over time. Floor 7: imports drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamfit.report.drawing import ACCENT, HUES, INK, MUTED, Drawing, axes, legend, thousands

_MOST_SEGMENTS = 250
_MOST_SOURCES = len(HUES)


def plot_segments(spans: Sequence[Mapping[str, Any]], last: int) -> Drawing:
    """A map of segments: a line each, from the commit that it counts since to the one that ended it.

    Parameters
    ----------
    spans : sequence of mappings
        Of `segment_spans`; of very many the largest are drawn.
    last : int
        The newest commit.
    """
    largest = sorted(spans, key=lambda s: -s["rows"])[:_MOST_SEGMENTS]
    drawn = sorted(largest, key=lambda s: (s["since"], s["source"], s["fold"]))
    figure, pair = axes(height=min(7.0, 1.2 + 0.16 * len(drawn)))
    hues = _hues([span["source"] for span in spans])
    for i, span in enumerate(drawn):
        end = last + 1 if span["until"] is None else span["until"]
        pair.barh(
            i,
            end - span["since"],
            left=span["since"],
            height=0.8,
            color=hues[span["source"]],
            alpha=1.0 if span["until"] is None else 0.35,
        )
    _name_hues(pair, hues)
    pair.set_yticks([])
    pair.set_ylabel(f"{len(drawn):,} segments" if len(drawn) == len(spans) else f"largest of {len(spans):,} segments")
    pair.set_xlabel("commits during which a segment counts; pale ones were merged, replaced or forgotten")
    pair.set_xlim(0, last + 1)
    pair.invert_yaxis()
    return Drawing(figure, spans)


def plot_growth(rows: Sequence[Mapping[str, Any]]) -> Drawing:
    """Rows of each source, commit by commit."""
    figure, pair = axes()
    commits = sorted({row["commit"] for row in rows})
    hues = _hues([row["source"] for row in rows])
    counts = {hue: np.zeros(len(commits)) for hue in hues.values()}
    for row in rows:
        counts[hues[row["source"]]][commits.index(row["commit"])] += row["rows"]
    bottom = np.zeros(len(commits))
    for hue, each in counts.items():
        pair.bar(commits, each, bottom=bottom, width=1.0, color=hue, edgecolor=hue, linewidth=0.5)
        bottom += each
    _name_hues(pair, hues)
    pair.set_xlabel("commit")
    pair.set_ylabel("rows counted")
    thousands(pair.yaxis)
    return Drawing(figure, rows)


def plot_times_of_rows(spans: Sequence[Mapping[str, Any]]) -> Drawing:
    """Live rows by the time that they are labelled with."""
    figure, pair = axes()
    live = [span for span in spans if span["until"] is None and span["time"]]
    times = sorted({span["time"] for span in live})
    hues = _hues([span["source"] for span in live])
    bottom = np.zeros(len(times))
    rows = []
    for source in dict.fromkeys(sorted(span["source"] for span in live)):
        each = np.array([sum(s["rows"] for s in live if (s["time"], s["source"]) == (t, source)) for t in times])
        pair.bar(range(len(times)), each, bottom=bottom, color=hues[source])
        rows += [{"time": t, "source": source, "rows": int(n)} for t, n in zip(times, each, strict=True)]
        bottom += each
    step = max(1, len(times) // 12)
    pair.set_xticks(range(0, len(times), step), times[::step], rotation=30, ha="right")
    _name_hues(pair, hues)
    pair.set_ylabel("rows")
    thousands(pair.yaxis)
    return Drawing(figure, rows)


def plot_residuals(bins: Sequence[Mapping[str, float]]) -> Drawing:
    """Residuals against predictions: median and the middle 80% of each bin."""
    figure, pair = axes()
    x = [each["predicted"] for each in bins]
    pair.fill_between(x, [b["low"] for b in bins], [b["high"] for b in bins], color=MUTED, alpha=0.35, linewidth=0)
    pair.plot(x, [each["median"] for each in bins], color=ACCENT, linewidth=2, marker="o")
    pair.axhline(0.0, color=INK, linewidth=0.8)
    pair.set_xlabel("predicted")
    pair.set_ylabel("observed less predicted")
    return Drawing(figure, bins)


def plot_deviates(standardised: np.ndarray) -> Drawing:
    """Residuals over their predicted standard deviation, beside the normal density that they should have."""
    figure, pair = axes()
    edges = np.linspace(-5.0, 5.0, 51)
    counts, _ = np.histogram(np.clip(standardised, -5.0, 5.0), edges)
    middle, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    density = counts / (counts.sum() * width)
    pair.bar(middle, density, width=width, color=MUTED)
    normal = np.exp(-(middle**2) / 2) / np.sqrt(2 * np.pi)
    pair.plot(middle, normal, color=ACCENT, linewidth=2)
    pair.set_xlabel("residual / predicted standard deviation")
    pair.set_ylabel("density")
    every = zip(middle.tolist(), counts.tolist(), density.tolist(), normal.tolist(), strict=True)
    return Drawing(figure, [{"deviate": m, "rows": n, "density": d, "normal": p} for m, n, d, p in every])


def plot_calibration(rows: Sequence[Mapping[str, float]], said: str, found: str, label: str) -> Drawing:
    """What was said against what was found; on the diagonal where they agree.

    Parameters
    ----------
    rows : sequence of mappings
    said, found : str
        Names of their columns.
    label : str
        Of the horizontal axis.
    """
    figure, pair = axes(width=4.6, height=3.8)
    pair.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1)
    pair.plot([row[said] for row in rows], [row[found] for row in rows], color=ACCENT, linewidth=2, marker="o")
    pair.set_xlabel(label)
    pair.set_ylabel("share that came true")
    return Drawing(figure, rows)


def _hues(sources: Sequence[str]) -> dict[str, str]:
    """A colour for each source; of many the last colour is shared by all but the first."""
    names = sorted(set(sources))
    return {name: HUES[min(i, _MOST_SOURCES - 1)] for i, name in enumerate(names)}


def _name_hues(pair: Any, hues: Mapping[str, str]) -> None:
    from matplotlib.patches import Patch

    names: dict[str, list[str]] = {}
    for name, hue in hues.items():
        names.setdefault(hue, []).append(name)
    patches = [Patch(color=h, label=n[0] if len(n) == 1 else f"{len(n)} others") for h, n in names.items()]
    if len(patches) > 1:
        legend(pair, handles=patches, ncols=min(4, len(patches)), loc="lower left", bbox_to_anchor=(0, 1.0))
