"""Exact interpolation: a center for every distinct context, and the penalty towards 0.

Floor 6: imports suffix_ridge, suffix_tables, ngram, errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from streamfit.counts import Ids, Int64
from streamfit.errors import ConfigError
from streamfit.text.ngram import NgramCounts
from streamfit.text.suffix_ridge import solve_tree
from streamfit.text.suffix_tables import Branch, SuffixTables, suffix_tree

ALPHA = 1e-6
"""Far below one occurrence, so that one is enough, and far above the rounding of float64."""


@dataclass(frozen=True, eq=False)
class Interpolation(SuffixTables):
    r"""Kernel ridge regression with all distinct contexts of the corpus as centers, in the limit alpha -> 0.

    The kernel counts the suffixes that two contexts of k tokens have in common, the empty one included:

    .. math:: K(x, x') = \sum_{n=0}^{k} \big[\text{the last } n \text{ tokens are equal}\big]
              = 1 + \ell(x, x'),

    with l the number of last tokens that agree. With y the one-hot next token it minimises

    .. math:: \sum_t \Big\| \tfrac1V + f(x_t) - y_t \Big\|^2 + \alpha \|f\|_K^2, \qquad
              f(x) = \sum_i K(x, x_i) \beta_i, \quad
              \beta = (K + \alpha N^{-1})^{-1} \big(\bar y - \tfrac1V\big)

    over the distinct contexts x_i, N their counts and :math:`\bar y` the mean of what followed each. K is positive
    definite, since every context has a term of its own (n = k). So as alpha -> 0 the fit goes to :math:`\bar y` at
    every context of the corpus, with an error below alpha / N: where only one token ever followed, that token has a
    probability that goes to 1. This is interpolation, of however many contexts, and says nothing of other text.

    A context that was never seen is answered by its longest suffix that was: no center has more in common with it.
    That suffix answers, as alpha -> 0, by an average over the distinct longer contexts that end in it, each weighing
    the same however often it came, and over its own shorter suffix; the average over types is what Kneser-Ney calls
    continuation counts.

    The norm of f is that of coefficients on the indicators of all suffixes, one a suffix, so the solution is that of a
    suffix ridge with every lambda equal to alpha, and takes one sweep up and one down the tree of suffixes instead of
    a system of as many equations as there are contexts.

    Parameters
    ----------
    order, vocab_size : int
    levels : tuple of Level

    Examples
    --------
    >>> contexts, tokens = np.array([[0, 1], [2, 1], [1, 3]]), np.array([2, 3, 1])
    >>> model = Interpolation.fit(NgramCounts.from_rows(contexts, tokens, vocab_size=4))
    >>> model.distribution(contexts).round(3).tolist()
    [[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]]
    """

    @classmethod
    def fit(cls, counts: NgramCounts, alpha: float = ALPHA, tree: tuple[Branch, ...] | None = None) -> Self:
        """Solve.

        Parameters
        ----------
        counts : NgramCounts
            Of order k + 1.
        alpha : float
            Positive. At 0 itself what never followed a context would have probability 0, and no new text a perplexity;
            for small alpha the perplexity of new text grows as a power of 1 / alpha, and the most probable token stays.
        tree : tuple of Branch, optional
            ``suffix_tree(counts)``, where it is there already; its first n orders alone make contexts of n - 1 tokens.

        Raises
        ------
        ConfigError
            If alpha is not positive.
        """
        if not (np.isfinite(alpha) and alpha > 0):
            msg = f"alpha {alpha} of an interpolation"
            raise ConfigError(msg, "a small positive number, such as 1e-6")
        tree = suffix_tree(counts) if tree is None else tree
        penalties = [np.full(len(branch.seen), float(alpha)) for branch in tree]
        return cls(len(tree), counts.vocab_size, solve_tree(tree, penalties))

    def followers(self, contexts: Ids) -> Int64:
        """How many different tokens followed each context in training; 0 where it was never seen in its whole length.

        Parameters
        ----------
        contexts : int array of shape (n, m), m >= order - 1

        Returns
        -------
        int64 array of shape (n,)
            At 1 the context is unambiguous.
        """
        rows, ids = self._walk(contexts)[-1]
        found = np.zeros(len(contexts), np.int64)
        found[rows] = np.diff(self.levels[-1].starts)[ids]
        return found
