"""Names of features and of blocks of them, for people: columns of the table where they are known. Floor 6."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from streamfit.errors import ConfigError
from streamfit.features import Concat
from streamfit.store import Header, Store


def blocks_of(store: Store, given: str | Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Blocks of features by name.

    Parameters
    ----------
    store : Store
    given : 'features', or mapping of str to patterns
        The maps that the features are made of; or patterns on names of features, as in fnmatch, the first that fits.
        What none fits is a block `rest`.

    Raises
    ------
    ConfigError
        If there is one map only, or a pattern fits nothing.
    """
    features = store.header.features
    if isinstance(given, str):
        if given != "features" or not isinstance(features, Concat):
            msg = f"blocks {given!r} of features made by one map"
            raise ConfigError(
                msg, "several maps, or name = patterns", "for instance blocks = { place = ['latitude', 'longitude'] }"
            )
        return dict(features.blocks())
    found: dict[str, list[int]] = {name: [] for name in given}
    names = names_of(store.header)
    for index, feature in enumerate(names):
        for name, patterns in given.items():
            if any(feature == pattern or fnmatchcase(feature, pattern) for pattern in patterns):
                found[name].append(index)
                break
        else:
            found.setdefault("rest", []).append(index)
    if empty := [name for name, indices in found.items() if not indices]:
        msg = f"blocks without features: {', '.join(empty)}"
        raise ConfigError(msg, f"patterns on names such as {', '.join(names[:5])}")
    return found


def names_of(header: Header) -> list[str]:
    """Names of features for people: of a linear block, the columns of the table, where their widths are known."""
    columns = _columns(header.reader, header.features.n_inputs)
    if len(columns) != header.features.n_inputs:
        return header.features.names()
    return [
        f"{part}{columns[int(index)]}" if kind == "linear" else name
        for name in header.features.names()
        for part, kind, index in [_parsed(name)]
    ]


def _columns(reader: dict[str, Any], n_inputs: int) -> list[str]:
    """Columns of a table as features have them: a category is one for each of its values, a list one an element."""
    recipe, names = reader.get("recipe", {}), reader.get("features", [])
    levels: dict[str, list[str]] = dict(recipe.get("categories", ()))
    widths = {name: len(fill) for name, fill in recipe.get("fills", ())}
    open_ = [name for name in names if name not in levels and name not in widths]
    if len(open_) == 1:  # a list, where more is left than one number
        taken = sum(len(levels.get(name) or [""]) if name in levels else widths.get(name, 0) for name in names)
        widths[open_[0]] = max(1, n_inputs - taken)
    found: list[str] = []
    for name in names:
        elements = [f"{name}[{i}]" for i in range(widths.get(name, 1))] if widths.get(name, 1) > 1 else [name]
        found += [f"{name}={level}" for level in levels[name]] if levels.get(name) else elements
    return found


def _parsed(name: str) -> tuple[str, str, str]:
    """`1.linear[3]` as its part, kind and index."""
    found = re.fullmatch(r"(\d+\.)?(\w+)\[(\d+)\]", name)
    return (found[1] or "", found[2], found[3]) if found else ("", "", "0")
