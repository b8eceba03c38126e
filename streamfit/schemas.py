"""JSON schemas of the configs, by which editors complete and check them. Floor 7."""

from __future__ import annotations

from typing import Any

from streamfit.config import LanguageProblem, RidgeProblem
from streamfit.errors import ConfigError
from streamfit.machines import MACHINES

SCHEMAS = ("problem", "machine")


def schema(which: str) -> dict[str, Any]:
    """The JSON schema of a kind of config.

    Parameters
    ----------
    which : {'problem', 'machine'}

    Returns
    -------
    dict
        JSON Schema, draft 2020-12. What depends on several keys at once is checked when a config is read.

    Raises
    ------
    ConfigError
        If there is no such kind.

    Examples
    --------
    >>> schema("problem")["properties"]["kind"]["enum"]
    ['ridge', 'language_model']
    """
    if which not in SCHEMAS:
        msg = f"a schema of {which!r}"
        raise ConfigError(msg, f"one of {', '.join(SCHEMAS)}")
    kinds: dict[str, Any] = {"ridge": RidgeProblem, "language_model": LanguageProblem}
    if which == "machine":
        kinds = dict(MACHINES)
    found = _union(kinds)
    title = f"streamfit {which}"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **found}


def _union(kinds: dict[str, Any]) -> dict[str, Any]:
    """One schema of several sections that `kind` tells apart.

    A mistake is one of the key where it stands, and not of the whole, as it would be under `oneOf`.
    """
    definitions: dict[str, Any] = {}
    cases, refs = [], []
    for kind, section in kinds.items():
        made = section.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= made.pop("$defs", {})
        definitions[section.__name__] = made
        ref = {"$ref": f"#/$defs/{section.__name__}"}
        cases.append({"if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]}, "then": ref})
        refs.append(ref)
    return {
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"enum": list(kinds)}},
        "allOf": cases,
        "anyOf": [*refs, True],  # always met: editors that follow no `if` find here what they complete
        "$defs": definitions,
    }
