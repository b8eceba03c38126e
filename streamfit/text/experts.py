"""The experts of a mixture: what each is called, what it sees, and the tables that answer for it.

Floor 6: imports views, kneser_ney, suffix_ridge, interpolate, clusters. All are functions of the n-gram counts alone,
so that they merge, extend and forget as the counts do; only their clusters are kept beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from streamfit.counts import Ids, Int64
from streamfit.errors import ConfigError
from streamfit.text.clusters import token_clusters
from streamfit.text.interpolate import Interpolation
from streamfit.text.kneser_ney import KneserNey
from streamfit.text.ngram import Float64, NgramCounts
from streamfit.text.suffix_ridge import SuffixRidge
from streamfit.text.suffix_tables import Branch, SuffixTables, add_found, suffix_tree
from streamfit.text.views import Glance, View, plain, refined

KINDS = ("network", "ngram", "suffix_ridge", "classes", "class_ridge", "refined", "skip", "exact")
"""Experts that can be asked for."""
_PENALTIES = (2.0, 1.4, 5.6, 11.2)


class Expert(Protocol):
    """What a mixture asks of an expert."""

    def distribution(self, contexts: Ids) -> npt.NDArray[np.float32]:
        """p(. | context) of each row: (n, vocab_size), rows that add up to 1."""

    def probability(self, contexts: Ids, tokens: Ids) -> Float64:
        """p(token | context) of each row: (n,)."""

    def support(self, contexts: Ids) -> tuple[Int64, Int64]:
        """How long a part of each context was seen in training, and how often."""


@dataclass(frozen=True)
class ExpertSettings:
    """Which experts are mixed; chosen after the corpus was read, from what was counted.

    Parameters
    ----------
    experts : tuple of str
        'network': the RBF network. 'ngram': modified Kneser-Ney of the tokens. 'suffix_ridge': ridge on the indicators
        of all suffixes. 'classes' and 'class_ridge': both of these with the tokens of a context replaced by clusters,
        one expert for each of `classes`. 'refined': Kneser-Ney that sees each token first as one of the smallest
        number of clusters and then as itself. 'skip': Kneser-Ney without the nearest token, and without the second.
        'exact': interpolation, a center for each distinct context and the penalty towards 0: every context that was
        always followed by the same token is answered by it.
    classes : tuple of int
        Numbers of clusters.
    class_dims : int
        Dimensions of the embedding that is clustered.
    suffix_penalties : tuple of float
        Of a suffix ridge, for suffixes of 0, 1, .. tokens; the last one holds for all longer ones.
    cache : int
        Tokens that a cache for adaptive scores holds; 0 for none.
    seed : int

    Raises
    ------
    ConfigError
        If there is no such expert, none at all, or one is named twice.
    """

    experts: tuple[str, ...] = ("network", "ngram")
    classes: tuple[int, ...] = (250, 1000, 3000)
    class_dims: int = 100
    suffix_penalties: tuple[float, ...] = _PENALTIES
    cache: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.experts if name not in KINDS]
        if unknown or not self.experts or len(set(self.experts)) < len(self.experts):
            msg = f"experts {', '.join(self.experts) or 'none'}"
            raise ConfigError(msg, f"one or more of {', '.join(KINDS)}, each once")
        if not self.classes or min(self.classes) < 1 or len(set(self.classes)) < len(self.classes):
            msg = f"classes {list(self.classes)}"
            raise ConfigError(msg, "one or more positive numbers, each once")

    def names(self, order: int) -> tuple[str, ...]:
        """Name of each expert for counts of an order: `classes` are several, and what would see nothing is left out."""
        return tuple(name for kind in self.experts for name, _ in self._views(kind, order))

    def _views(self, kind: str, order: int) -> Iterator[tuple[str, tuple[Glance, ...]]]:
        if kind in ("network", "ngram", "suffix_ridge", "exact"):
            yield kind, plain(order)
        elif kind in ("classes", "class_ridge"):
            yield from ((f"{kind}-{size}", plain(order, size)) for size in self.classes)
        elif kind == "refined":
            yield f"refined-{min(self.classes)}", refined(order, min(self.classes))
        elif order > 2:
            yield "skip-1", tuple(Glance(d) for d in range(2, min(order, 4)))
            if order > 3:
                yield "skip-2", (Glance(1), Glance(3))

    @property
    def clustered(self) -> tuple[int, ...]:
        """Numbers of clusters that some expert needs."""
        wanted = set(self.classes) if {"classes", "class_ridge"} & set(self.experts) else set()
        return tuple(sorted(wanted | ({min(self.classes)} if "refined" in self.experts else set())))

    def clusters(self, counts: NgramCounts) -> dict[int, np.ndarray]:
        """Clusters of the tokens, as far as experts need them."""
        return token_clusters(counts, self.clustered, self.class_dims, self.seed)

    def build(self, counts: NgramCounts, clusters: Mapping[int, np.ndarray]) -> dict[str, CountExpert]:
        """The experts that come of counts, by name and in order."""
        made: dict[str, CountExpert] = {}
        trees: dict[tuple[Glance, ...], tuple[NgramCounts, tuple[Branch, ...]]] = {}
        for kind in self.experts:
            if kind == "network":
                continue
            for name, glances in self._views(kind, counts.order):
                view = View(glances, clusters) if glances else None
                if glances not in trees:
                    seen = view.counts(counts) if view is not None else counts
                    trees[glances] = seen, suffix_tree(seen)
                made[name] = CountExpert(view, self._tables(kind, *trees[glances]))
        return made

    def _tables(self, kind: str, counts: NgramCounts, tree: tuple[Branch, ...]) -> SuffixTables:
        if kind == "exact":
            return Interpolation.fit(counts, tree=tree)
        if kind not in ("suffix_ridge", "class_ridge"):
            # Where tokens are seen as their classes, or not all of them, padding cannot be told from what is seen so.
            return KneserNey.fit(counts, tree, padding=0 if kind == "ngram" else None)
        last = len(self.suffix_penalties) - 1
        return SuffixRidge.fit(counts, [self.suffix_penalties[min(n, last)] for n in range(counts.order)], tree)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ExpertSettings:
        """Settings as they were saved."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return cls(**values)


@dataclass(frozen=True)
class CountExpert:
    """Tables of suffixes over a view of the context.

    Parameters
    ----------
    view : View or None
        None sees nothing, and so gives one distribution to all.
    tables : SuffixTables
    """

    view: View | None
    tables: SuffixTables = field(repr=False)

    def _see(self, contexts: Ids) -> Ids:
        return contexts[:, :0] if self.view is None else self.view(contexts)

    def distribution(self, contexts: Ids) -> npt.NDArray[np.float32]:
        return self.tables.distribution(self._see(contexts))

    def probability(self, contexts: Ids, tokens: Ids) -> Float64:
        return self.tables.probability(self._see(contexts), tokens)

    def support(self, contexts: Ids) -> tuple[Int64, Int64]:
        return self.tables.support(self._see(contexts))


def seen_by(expert: CountExpert, context: np.ndarray) -> np.ndarray:
    """What an expert sees of one context: int array, the nearest last."""
    return np.asarray(expert._see(context[None])[0])


def blend(experts: Sequence[CountExpert], weights: np.ndarray, contexts: Ids) -> npt.NDArray[np.float32]:
    """Weighted sum of several experts' distributions, in one array.

    Parameters
    ----------
    experts : sequence of CountExpert
        At least one.
    weights : array of shape (n_rows, n_experts)
    contexts : int array of shape (n_rows, m)

    Returns
    -------
    float32 array of shape (n_rows, vocab_size)
    """
    found = [e.tables.descend(e._see(contexts), w) for e, w in zip(experts, weights.T, strict=True)]
    roots = np.column_stack([descent.root for descent in found]).astype(np.float32)
    p = roots @ np.stack([e.tables.unigram for e in experts]).astype(np.float32)
    for descent in found:
        add_found(p, descent)
    return np.asarray(p)
