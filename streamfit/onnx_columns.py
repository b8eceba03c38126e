"""Columns of a table as inputs of an ONNX graph, where a recipe makes more of them than their numbers. Floor 6.

What can leave: one-hot by a dictionary of text, and means in the place of what is missing. Dates leave as numbers.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from streamfit.corpus.recipe import Recipe
from streamfit.errors import ConfigError

NUMBERS = "x"
"""Name of the input with all columns that are numbers."""
_OUTPUTS = ("predicted", "std", "class_id")
Input = tuple[str, str, list[Any]]
"""Name, type ('text' or that of numbers) and shape of an input."""


class Graph(Protocol):
    """What makes nodes of a graph; see `streamfit.onnx_model`."""

    dtype: Any

    def node(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add an operation."""

    def constant(self, value: Any, dtype: str) -> str:
        """Add numbers."""

    def cast(self, value: str, to: str, of: str) -> str:
        """As another type."""


def inputs_of(graph: Graph, recipe: Recipe | None, n_inputs: int) -> tuple[str, list[Input]]:
    """Add what makes a model's inputs of a table's columns.

    Parameters
    ----------
    graph : Graph
    recipe : Recipe or None
        Without one the numbers are all there is.
    n_inputs : int
        Of the model's features.

    Returns
    -------
    str
        Name of the inputs side by side, in the graph's type.
    list of (name, type, shape)
        Inputs of the graph: `x`, of shape (n_rows, numbers), and a vector of text for each category, by its name.

    Raises
    ------
    ConfigError
        If a category is called as something else in the graph, or it cannot be known which numbers are left of one.
    """
    named = {} if recipe is None else dict(recipe.categories)
    if taken := [name for name in named if name in (NUMBERS, *_OUTPUTS)]:
        msg = f"a category called {taken[0]!r} in ONNX"
        raise ConfigError(msg, f"names other than {', '.join((NUMBERS, *_OUTPUTS))}", "rename the column and fit again")
    n_numbers = n_inputs - sum(map(len, named.values()))
    inputs: list[Input] = [(NUMBERS, graph.dtype, ["rows", n_numbers])] if n_numbers else []
    if recipe is None:
        return NUMBERS, inputs
    fills = dict(recipe.fills)
    blocks = [_filled(graph, recipe, n_numbers)] if n_numbers else []
    for name, levels in named.items():
        inputs.append((name, "text", ["rows"]))
        blocks.append(_one_hot(graph, name, levels, fills.get(name), strict=recipe.unseen == "error"))
    joint = blocks[0] if len(blocks) == 1 else graph.node("Concat", *blocks, axis=1)
    order = _order(recipe, n_numbers)
    if order == sorted(order):
        return joint, inputs
    return graph.node("Gather", joint, graph.constant(order, "int64"), axis=1), inputs


def _filled(graph: Graph, recipe: Recipe, n_numbers: int) -> str:
    """The numbers, with what stands for those that are lacking; NaN, as they are, where nothing does."""
    fills = dict(recipe.fills)
    if not any(name in fills for name in _numbers(recipe)):
        return NUMBERS
    stands = [number for name in _numbers(recipe) for number in fills.get(name, (np.nan,))]
    if len(stands) != n_numbers:
        msg = "numbers for what is lacking, beside lists for which there are none, in ONNX"
        raise ConfigError(msg, "a number for each, or for none", "set missing = 'mean', and fit again")
    missing = graph.node("IsNaN", NUMBERS)
    return graph.node("Where", missing, graph.constant([stands], graph.dtype), NUMBERS)


def _one_hot(graph: Graph, name: str, levels: tuple[str, ...], fill: tuple[float, ...] | None, *, strict: bool) -> str:
    """A column for each value; of no text the shares of all values, where these stand for what is missing."""
    shared = fill is not None and "" not in levels
    known = [*levels, ""] if shared else [*levels]
    attributes: dict[str, Any] = {"cats_strings": known, "zeros": int(not strict), "domain": "ai.onnx.ml"}
    found = graph.cast(graph.node("OneHotEncoder", name, **attributes), graph.dtype, "float32")
    if not shared:
        return found
    shares = np.vstack([np.eye(len(levels)), np.asarray(fill, np.float32)])
    return graph.node("MatMul", found, graph.constant(shares, graph.dtype))


def _numbers(recipe: Recipe) -> list[str]:
    return [name for name in recipe.features if recipe.levels(name) is None]


def _order(recipe: Recipe, n_numbers: int) -> list[int]:
    """Where each input of the model is among the numbers and then the categories."""
    alone, fills = _numbers(recipe), dict(recipe.fills)
    widths = {name: len(fills[name]) if name in fills else 1 for name in alone}
    if sum(widths.values()) != n_numbers:  # lists of numbers, whose lengths a recipe does not say
        places = [recipe.features.index(name) for name in alone]
        if places != list(range(places[0], places[0] + len(places))):
            msg = f"lists of numbers and categories between {', '.join(map(repr, alone))} in ONNX"
            remedy = "name categories before or after all numbers in [corpus] features, and fit again"
            raise ConfigError(msg, "numbers side by side", remedy)
        widths = {name: n_numbers if i == 0 else 0 for i, name in enumerate(alone)}
    first, at = {}, 0
    for name in (*alone, *(name for name, _ in recipe.categories)):
        first[name] = at
        at += widths[name] if name in widths else len(recipe.levels(name) or ())
    ends = {name: first[name] + (widths[name] if name in widths else len(recipe.levels(name) or ())) for name in first}
    return [i for name in recipe.features for i in range(first[name], ends[name])]
