"""What an expert sees of a context: which tokens, in which order, each by itself or as the cluster it belongs to.

Floor 6: imports ngram, errors. A view makes of the n-grams that were counted those of another alphabet; the tables of
suffixes over them are a hard radial basis function over the context, one cell a combination of clusters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from streamfit.counts import Ids, add_counts
from streamfit.errors import ConfigError
from streamfit.text.ngram import Grams, NgramCounts


class Glance(NamedTuple):
    """One column of a view.

    Parameters
    ----------
    distance : int
        1 for the nearest token.
    clusters : int
        0 for the token itself, or by how many clusters it is seen.
    """

    distance: int
    clusters: int = 0


@dataclass(frozen=True, eq=False)
class View:
    """Columns of a context, in the order in which an expert looks at them.

    Back-off goes the other way: what was looked at last is given up first.

    Parameters
    ----------
    glances : tuple of Glance
    clusters : mapping of int to int32 array of shape (vocab_size,)
        Cluster of each token, by their number.

    Raises
    ------
    ConfigError
        If it looks at nothing, or by clusters that are not given.

    Examples
    --------
    >>> near = View((Glance(1, 2), Glance(1), Glance(2, 2)), {2: np.array([0, 0, 1], np.int32)})
    >>> near(np.array([[0, 2, 1]])).tolist()  # farthest first, as contexts are
    [[1, 1, 0]]
    """

    glances: tuple[Glance, ...]
    clusters: Mapping[int, np.ndarray]

    def __post_init__(self) -> None:
        missing = {g.clusters for g in self.glances} - {0} - set(self.clusters)
        if not self.glances or missing or min(g.distance for g in self.glances) < 1:
            msg = f"a view of {len(self.glances)} columns, without the {sorted(missing)} clusters that it looks by"
            raise ConfigError(msg, "at least one column, and the clusters of each")

    @property
    def reach(self) -> int:
        """Tokens that a context must have."""
        return max(g.distance for g in self.glances)

    def __call__(self, contexts: Ids) -> Grams:
        """Look at contexts.

        Parameters
        ----------
        contexts : int array of shape (n, m)
            The nearest token last, m at least `reach`.

        Returns
        -------
        int32 array of shape (n, len(glances))
            What is looked at first stands last.
        """
        if contexts.ndim != 2 or contexts.shape[1] < self.reach:
            msg = f"contexts of shape {contexts.shape}"
            raise ConfigError(msg, f"(n, m) with m >= {self.reach}")
        out = np.empty((len(contexts), len(self.glances)), np.int32)
        for place, glance in enumerate(reversed(self.glances)):
            column = contexts[:, contexts.shape[1] - glance.distance]
            out[:, place] = self.clusters[glance.clusters][column] if glance.clusters else column
        return out

    def counts(self, counts: NgramCounts) -> NgramCounts:
        """Counts of the n-grams that it sees, from those of the tokens themselves."""
        rows = np.column_stack([self(counts.grams[:, :-1]), counts.grams[:, -1]])
        order = len(self.glances) + 1
        return NgramCounts(order, counts.vocab_size, *add_counts(rows, counts.counts))


def plain(order: int, clusters: int = 0) -> tuple[Glance, ...]:
    """The last order - 1 tokens, or their clusters."""
    return tuple(Glance(distance, clusters) for distance in range(1, order))


def refined(order: int, clusters: int) -> tuple[Glance, ...]:
    """Each token first by its cluster and then by itself: back-off from a word goes by way of words like it."""
    return tuple(glance for d in range(1, order) for glance in (Glance(d, clusters), Glance(d)))
