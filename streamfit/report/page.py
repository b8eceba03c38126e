"""A report: text, tables and figures in one HTML file that loads nothing, and its numbers beside it. Floor 7."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamfit.errors import ConfigError
from streamfit.report.drawing import Drawing

_LIGHT = (
    "--ink: #1f2933; --paper: #fdfdfb; --rule: #d5dae0; --soft: #f2f3f0; --best: #b4541a; --muted: #8a97a5;"
    " color-scheme: light;"
)
_STYLE = f"""
:root {{ {_LIGHT} }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #dfe5ea; --paper: #15181c; --rule: #363d45; --soft: #1d2228; --best: #f0a36c; --muted: #7d8995;
    color-scheme: dark; }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 54rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }}
nav ul {{ columns: 2; padding-left: 1.2rem; }} a {{ color: inherit; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--rule); }}
th:first-child, td:first-child {{ text-align: left; }}
td.best {{ color: var(--best); font-weight: 600; }}
pre {{ background: var(--soft); padding: .8rem; overflow-x: auto; font-size: .85rem; white-space: pre-wrap; }}
figure {{ margin: 1.2rem 0; }} figcaption {{ font-size: .9rem; }}
svg {{ width: 100%; height: auto; font-family: system-ui, sans-serif; stroke-linejoin: round; }}
svg text {{ fill: var(--ink); }}
.wide {{ overflow-x: auto; }}
@media print {{
  :root {{ {_LIGHT} }}
  body {{ max-width: none; margin: 0; font-size: 11pt; }} nav {{ display: none; }}
  h2 {{ break-after: avoid; }} figure, tr, pre {{ break-inside: avoid; }} thead {{ display: table-header-group; }} }}
"""


@dataclass
class Report:
    """Sections in the order in which they were added; `write` makes the files.

    Parameters
    ----------
    title : str
    data : dict
        Everything shown, as JSON beside the HTML.
    """

    title: str
    data: dict[str, Any] = field(default_factory=dict)
    _body: list[str] = field(default_factory=list)
    _figures: dict[str, Drawing] = field(default_factory=dict)
    _sections: dict[str, str] = field(default_factory=dict)

    def heading(self, text: str) -> None:
        """Begin a section."""
        name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
        while name in self._sections:
            name += "-more"
        self._sections[name] = text
        self._body.append(f'<h2 id="{name}">{html.escape(text)}</h2>')

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._body.append(f"<p>{html.escape(text)}</p>")

    def verbatim(self, text: str) -> None:
        """Add text as it is, in a fixed-width face."""
        self._body.append(f"<pre>{html.escape(text)}</pre>")

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], best: Mapping[str, str] | None = None) -> None:
        """Add a table; `best` says for a column whether its 'min' or 'max' is marked."""
        self.data[name] = [dict(row) for row in rows]
        columns = list(rows[0])
        marks = {c: {"min": min, "max": max}[how](row[c] for row in rows) for c, how in (best or {}).items()}
        head = "".join(f"<th>{html.escape(c.replace('_', ' '))}</th>" for c in columns)
        lines = []
        for row in rows:
            cells = (
                f"<td{' class=best' if c in marks and row[c] == marks[c] else ''}>{html.escape(shown(c, row[c]))}</td>"
                for c in columns
            )
            lines.append(f"<tr>{''.join(cells)}</tr>")
        body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
        self._body.append(f"<div class=wide><table>{body}</table></div>")

    def figure(self, name: str, drawing: Drawing, caption: str) -> None:
        """Add a figure. Among the files it is NAME.png, NAME.svg, and its numbers NAME.csv."""
        if name in self._figures or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            msg = f"a figure named {name!r}"
            raise ConfigError(msg, "a new name of small letters, digits and underscores")
        self._figures[name] = drawing
        image = drawing.svg(name, caption)
        self._body.append(f'<figure id="figure-{name}">{image}<figcaption>{html.escape(caption)}</figcaption></figure>')

    def page(self) -> str:
        """The HTML."""
        title = html.escape(self.title)
        links = "".join(f'<li><a href="#{name}">{html.escape(text)}</a></li>' for name, text in self._sections.items())
        contents = f"<nav><ul>{links}</ul></nav>" if len(self._sections) > 3 else ""
        body = "\n".join(self._body)
        return (
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
            f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>\n{contents}\n{body}\n</html>\n"
        )

    def write(self, folder: Path) -> Path:
        """Write `report.html`, `report.json`, and the figures into `figures/`; returns the HTML's path."""
        self.write_page(folder / "report.html", folder / "figures")
        (folder / "report.json").write_text(json.dumps(self.data, indent=1), encoding="utf-8")
        return folder / "report.html"

    def write_page(self, path: Path, figures: Path | None = None) -> None:
        """Write the HTML, and each figure as PNG, SVG and CSV into a folder where one is given.

        Raises
        ------
        ConfigError
            If a file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.page(), encoding="utf-8")
            if figures is not None:
                figures.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"cannot write {error.filename or path}: {error.strerror}"
            raise ConfigError(msg, "a folder that can be written") from error
        for name, drawing in self._figures.items() if figures is not None else ():
            for suffix in ("png", "svg", "csv"):
                drawing.save(figures / f"{name}.{suffix}")  # type: ignore[operator]


def shown(column: str, value: Any) -> str:
    """A table cell: shares as percentages, numbers to a useful number of digits."""
    if value is None:
        return ""
    if isinstance(value, float) and column in ("top1", "top5"):
        return f"{100 * value:.2f}%"
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) >= 10 else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
