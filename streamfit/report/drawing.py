"""Figures with their numbers, as files and as part of a page. Floor 7; matplotlib is loaded when something is drawn."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamfit.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, ACCENT, MUTED = "#1f2933", "#b4541a", "#8a97a5"
HUES = ("#b4541a", "#3b78a8", "#6f8f3c", "#8a5ea8", "#c2952f", "#4a9a94", "#a8506a", "#7a7f86")
"""Of categories; each is told from both a white and a dark page."""
VARIABLES = {INK: "var(--ink)", "#000000": "var(--ink)", ACCENT: "var(--best)", MUTED: "var(--muted)"}
"""What these colours are on a page, whose reader may have it dark."""


@dataclass(frozen=True)
class Drawing:
    """A figure and the numbers that it shows.

    Parameters
    ----------
    figure : Figure
    rows : sequence of mappings
        A table: what a CSV file of the figure holds.
    """

    figure: Figure
    rows: Sequence[Mapping[str, Any]]

    def save(self, path: Path) -> None:
        """Write the figure in the format of the path's suffix, or its numbers as .csv.

        Raises
        ------
        ConfigError
            If the format is unknown or the file cannot be written.
        """
        if path.suffix != ".csv":
            save_figure(self.figure, path)
            return
        with _told(path):
            path.write_text(self.csv(), encoding="utf-8")

    def csv(self) -> str:
        """The numbers as CSV."""
        text = io.StringIO()
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def svg(self, name: str, title: str) -> str:
        """The figure as an element of a page: its colours those of the page, its ids unlike those of other figures.

        Parameters
        ----------
        name : str
            What ids begin with.
        title : str
            What is read out instead of it.
        """
        import matplotlib as mpl

        buffer = io.StringIO()
        # Text stays text: it can be selected and searched, and takes the page's typeface.
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
            self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        return _inlined(buffer.getvalue(), name, title)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of its suffix, on white.

    Raises
    ------
    ConfigError
        If the format is unknown or the file cannot be written.
    """
    with _told(path):
        figure.savefig(path, dpi=150, facecolor="white")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        msg = f"cannot write the figure {path}: {error}"
        raise ConfigError(msg, "a file in a folder that is there, ending in .png, .svg, .pdf or .csv") from error


def _inlined(svg: str, name: str, title: str) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    opening = body[: body.index(">") + 1]
    view = re.search(r'viewBox="([^"]*)"', opening)
    rest = body[len(opening) :].replace("xlink:href", "href")
    rest = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", rest)
    for colour, variable in VARIABLES.items():
        rest = rest.replace(colour, variable)
    rest = re.sub(r"font:\s*([\d.]+px)[^;\"]*", r"font-size: \1", rest)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    box = view[1] if view else "0 0 500 250"
    widest = round(1.65 * float(box.split()[2]))  # so that text is as large in narrow figures as in wide ones
    return f'<svg viewBox="{box}" style="max-width: {widest}px" role="img" aria-label="{label}">{rest.strip()}'


def axes(width: float = 7.0, height: float = 3.4) -> tuple[Figure, Any]:
    """A figure and its one pair of axes."""
    # Most commands draw nothing and need not wait for matplotlib. A figure made without pyplot needs no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    pair = figure.subplots()
    pair.spines[["top", "right"]].set_visible(False)
    pair.tick_params(colors=INK)
    return figure, pair


def thousands(axis: Any) -> None:
    """Numbers of rows on an axis, as people read them."""
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def legend(pair: Any, **options: Any) -> None:
    """A legend in the colours of the page."""
    pair.legend(**{"frameon": False, "labelcolor": INK, "fontsize": 9, **options})
