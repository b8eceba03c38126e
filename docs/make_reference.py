"""Write docs/reference.md: what `streamfit` exports, by its docstrings.

python docs/make_reference.py
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import streamfit

GROUPS = {
    "The five verbs": ("accumulate", "add", "merge", "forget", "solve", "model_of"),
    "Rows": ("Corpus", "Block", "ParquetTable", "JsonLines", "TextFiles", "Files"),
    "Stores": ("Store", "Header"),
    "Solutions and models": ("Solution", "Certificate", "Posterior", "LinearModel", "LanguageModel"),
}


def reference() -> str:
    """The page as Markdown."""
    grouped = {name for names in GROUPS.values() for name in names}
    rest = [name for name in streamfit.__all__ if name not in grouped and name != "Model"]
    lines = [
        "# Reference",
        "",
        "What `from streamfit import ...` gives, made from docstrings by `python docs/make_reference.py`. `Model` is"
        " `LinearModel`. Examples are in the docstrings themselves (`help(streamfit.solve)`); the tests run them.",
    ]
    for title, names in {**GROUPS, "Everything else": tuple(rest)}.items():
        lines += ["", f"## {title}"]
        for name in names:
            lines += ["", *_entry(name, getattr(streamfit, name))]
    return "\n".join(lines) + "\n"


def _entry(name: str, thing: Any) -> list[str]:
    sections = _sections(inspect.getdoc(thing) or "")
    lines = [f"### {name}", "", f"`{_signature(name, thing)}`", "", *_paragraphs(sections[""])]
    for title in ("Parameters", "Attributes", "Returns", "Raises"):
        if title in sections:
            lines += ["", f"*{title}*", "", *_items(sections[title])]
    lines += ["", *_paragraphs(sections["Notes"])] if "Notes" in sections else []
    if inspect.isclass(thing):
        methods = [
            (each, method)
            for each, method in inspect.getmembers(thing, inspect.isroutine)
            if not each.startswith("_") and each in _own(thing) and inspect.getdoc(method)
        ]
        if methods:
            lines += ["", "*Methods*", ""]
            lines += [f"- `{_signature(each, method)}`: {_first(method)}" for each, method in methods]
    return lines


def _own(thing: type) -> set[str]:
    """Names that a class of this package or one of its bases here defines."""
    return {name for base in thing.__mro__ if base.__module__.startswith("streamfit") for name in vars(base)}


def _signature(name: str, thing: Any) -> str:
    try:
        parameters = [p for p in inspect.signature(thing).parameters.values() if p.name not in ("self", "cls")]
    except (TypeError, ValueError):
        return name
    shown: list[str] = []
    for p in parameters:
        star = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        if p.kind == p.KEYWORD_ONLY and "*" not in shown and not any(s.startswith("*") for s in shown):
            shown.append("*")
        has_value = p.default is not p.empty
        plain = isinstance(p.default, str | int | float | bool | tuple | type(None)) and len(repr(p.default)) < 30
        shown.append(f"{star}{p.name}" + (f"={p.default!r}" if has_value and plain else "=..." if has_value else ""))
    return f"{name}({', '.join(shown)})"


def _first(thing: Any) -> str:
    return _paragraphs(_sections(inspect.getdoc(thing) or "")[""])[0]


def _sections(doc: str) -> dict[str, str]:
    """A numpy docstring by its headings; what is before them under the empty one."""
    parts = re.split(r"^([A-Z][A-Za-z ]+)\n-{3,}\n", doc, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def _paragraphs(text: str) -> list[str]:
    joined = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]
    return [line for part in joined for line in (part, "")][:-1] or [""]


def _items(text: str) -> list[str]:
    """Names and what is said of each as a list."""
    items: list[list[str]] = []
    for line in text.strip().splitlines():
        if line and not line.startswith(" "):
            items.append([line.strip(), ""])
        elif line.strip() and items:
            items[-1][1] += f" {line.strip()}"
    return [f"- `{name}`{':' if told else ''}{told}" for name, told in items]


if __name__ == "__main__":
    page = Path(__file__).parent / "reference.md"
    page.write_text(reference(), encoding="utf-8")
    print(page)
