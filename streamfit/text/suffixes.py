"""One context's way through tables of suffixes: which of its suffixes were seen, and what each one weighs.

Floor 6: imports suffix_tables. What generation and explanation share; it works a context at a time, where
`SuffixTables.distribution` works on many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamfit.text.suffix_tables import SuffixTables


@dataclass(frozen=True)
class Suffix:
    """A suffix of a context that was a context in training.

    Parameters
    ----------
    order : int
        Of the n-grams that continue it: the suffix has order - 1 tokens.
    index : int
        Its number among the contexts of that order.
    seen : int
        Raw occurrences as a context; all training tokens where it is empty.
    weight : float
        What is left for this order, the product of the back-off weights of the longer suffixes that were seen.
    """

    order: int
    index: int
    seen: int
    weight: float


def suffixes(tables: SuffixTables, context: np.ndarray) -> list[Suffix]:
    """Suffixes of one context that were seen, the longest first; none at all if nothing was counted.

    Parameters
    ----------
    tables : SuffixTables
    context : int array of shape (m,), m >= order - 1
        The nearest token last; of a view, what it sees.
    """
    found: list[tuple[int, int, int]] = []
    key = 0
    for order, level in enumerate(tables.levels, start=1):
        at = int(np.searchsorted(level.contexts, key))
        if at == len(level.contexts) or level.contexts[at] != key:
            break
        found.append((order, at, int(level.seen[at])))
        if order < tables.order:
            key = at * tables.vocab_size + int(context[-order])
    weight, kept = 1.0, []
    for order, at, seen in reversed(found):
        kept.append(Suffix(order, at, seen, weight))
        weight *= float(tables.levels[order - 1].gamma[at])
    return kept


def continuations(tables: SuffixTables, suffix: Suffix) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Tokens seen after a suffix, and the discounted probability of each among them.

    Returns
    -------
    tokens : int64 array of shape (n,)
        Ascending.
    mass : float64 array of shape (n,)
    """
    level = tables.levels[suffix.order - 1]
    span = slice(int(level.starts[suffix.index]), int(level.starts[suffix.index + 1]))
    return level.grams[span] - suffix.index * tables.vocab_size, level.mass[span]


def uniform_share(tables: SuffixTables, found: list[Suffix]) -> float:
    """What is left below the shortest suffix, spread evenly over the vocabulary."""
    if not found:
        return 1.0
    last = found[-1]
    return last.weight * float(tables.levels[last.order - 1].gamma[last.index])
