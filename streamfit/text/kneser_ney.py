"""Interpolated modified Kneser-Ney of any order: what n-gram counts become once counting is over.

Floor 6: imports suffix_tables, ngram. Frozen tables that answer p(. | context) over the whole vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from streamfit.counts import Int64
from streamfit.text.ngram import Bool, Float64, NgramCounts
from streamfit.text.suffix_tables import Branch, Level, SuffixTables, suffix_tree


@dataclass(frozen=True, eq=False)
class KneserNey(SuffixTables):
    r"""Interpolated modified Kneser-Ney, any order, normalised over the whole vocabulary.

    For a context c, and c' = c without its leftmost token,

    .. math:: p_k(w|c) = \frac{a_k(cw) - D_k(a_k(cw))}{\sum_v a_k(cv)} + \gamma_k(c)\, p_{k-1}(w|c'),
              \qquad \gamma_k(c) = \frac{\sum_{v: a_k(cv)>0} D_k(a_k(cv))}{\sum_v a_k(cv)}

    with the first term only where cw was seen, p_k = p_{k-1} where c was not, and
    p_0 = 1 / vocab_size, so every token has positive probability. a_k is the raw count at the
    highest order and the continuation count N1+(. cw), the number of distinct left neighbours, below.

    **Document starts** are KenLM's ``<s>``: an n-gram that begins with one padding token keeps its raw
    count at every order, because nothing stands to its left; those that begin with more are none, so
    that the first token after the start is predicted from ``<s>`` alone.

    **Discounts.** Each level has its own, from its numbers n1..n4 of n-grams with a_k = 1..4:
    Y = n1 / (n1 + 2 n2), D1 = 1 - 2 Y n2/n1, D2 = 2 - 3 Y n3/n2, D3+ = 3 - 4 Y n4/n3. Where n1, n2 or n3
    is 0, or some Dj is not in (0, j] (little text, or a vocabulary without rare tokens), the whole
    level takes 0.5, 1, 1.5, the fall-back of KenLM: any Dj in (0, j] keeps p normalised and positive.

    Parameters
    ----------
    order, vocab_size : int
        As in the counts.
    levels : tuple of Level
        Tables of order 1 .. order; made by `fit`.
    discounts : tuple of arrays of shape (3,)
        D1, D2, D3+ of each level.

    Raises
    ------
    ConfigError
        From all methods that take contexts (int arrays of shape (n, m), m >= order - 1, the nearest
        token last; only the last order - 1 columns are read), when columns are missing, shapes do not
        match, or an id is negative or not below `vocab_size`.

    References
    ----------
    S. F. Chen and J. Goodman, "An empirical study of smoothing techniques for language modeling",
    Computer Speech and Language 13 (1999) 359-394. K. Heafield et al., "Scalable modified Kneser-Ney
    language model estimation", ACL 2013 (the fall-back is in the code of KenLM).

    Examples
    --------
    >>> contexts, tokens = np.array([[0], [1], [2], [1]]), np.array([1, 2, 1, 2])
    >>> model = KneserNey.fit(NgramCounts.from_rows(contexts, tokens, vocab_size=4))
    >>> p = model.distribution(np.array([[1]]))
    >>> bool(abs(p.sum() - 1) < 1e-5), int(p.argmax())
    (True, 2)
    """

    discounts: tuple[Float64, ...] = ()

    @classmethod
    def fit(cls, counts: NgramCounts, tree: tuple[Branch, ...] | None = None, *, padding: int | None = 0) -> Self:
        """Build the tables of all orders; equal counts give equal bits, none the uniform distribution.

        Parameters
        ----------
        counts : NgramCounts
        tree : tuple of Branch, optional
            ``suffix_tree(counts)``, where it is there already.
        padding : int, optional
            Token before the start of a document; None where it can be any other as well, as its class can, and is a
            left neighbour like any.
        """
        tree = suffix_tree(counts) if tree is None else tree
        levels, discounts = [], []
        padded = np.zeros(1, np.bool_)  # whether each context of the order begins with padding
        for k, branch in enumerate(tree, start=1):
            adjusted = branch.counts
            if k < counts.order:  # distinct left neighbours
                adjusted = np.bincount(tree[k].parents, minlength=len(branch.counts))
            above = np.zeros(len(branch.contexts), np.bool_)
            if k > 1 and padding is not None:
                shorter, leftmost = np.divmod(branch.contexts, counts.vocab_size)
                above, padded = (leftmost == padding) & padded[shorter], leftmost == padding
                adjusted = np.where((padded & ~above)[branch.ids], branch.counts, adjusted)
            level, used = _level(branch, adjusted, above)
            levels.append(level)
            discounts.append(used)
        return cls(counts.order, counts.vocab_size, tuple(levels), tuple(discounts))


def _level(branch: Branch, adjusted: Int64, unused: Bool) -> tuple[Level, Float64]:
    """Probabilities of an order, which leaves some contexts to the order below."""
    ids = branch.ids
    left_out = unused[ids]
    discounts = discounts_of(np.bincount(adjusted[(adjusted <= 4) & ~left_out], minlength=5))
    if not adjusted.size:
        return Level.of(branch, np.zeros(0), np.zeros(0)), discounts
    taken = discounts[np.minimum(adjusted, 3) - 1]
    total = np.add.reduceat(adjusted, branch.starts[:-1])
    mass = np.where(left_out, 0.0, (adjusted - taken) / total[ids])
    gamma = np.where(unused, 1.0, np.add.reduceat(taken, branch.starts[:-1]) / total)
    return Level.of(branch, mass, gamma), discounts


def discounts_of(numbers: Int64) -> Float64:
    """D1, D2, D3+ of a level from its numbers of n-grams that occur 0, 1, .. 4 times."""
    n = numbers.astype(np.float64)
    if np.all(n[1:4] > 0):
        y = n[1] / (n[1] + 2 * n[2])
        j = np.arange(1, 4)
        discounts = j - (j + 1) * y * n[2:5] / n[1:4]
        if np.all((discounts > 0) & (discounts <= j)):
            return np.asarray(discounts, np.float64)
    return np.array([0.5, 1.0, 1.5])
