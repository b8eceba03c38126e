"""Ridge regression on the indicators of all context suffixes, solved exactly by one sweep up and one down their tree.

Floor 6: imports suffix_tables, ngram, errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from streamfit.errors import ConfigError
from streamfit.text.ngram import Float64, NgramCounts
from streamfit.text.suffix_tables import Branch, Level, SuffixTables, suffix_tree


@dataclass(frozen=True, eq=False)
class SuffixRidge(SuffixTables):
    r"""Closed-form ridge over millions of n-gram features; its predictions are distributions.

    With an indicator for every suffix s (up to order - 1 tokens, the empty one included) of a context x and y the
    one-hot next token, it minimises

    .. math:: \sum_t \Big\| \tfrac1V + \sum_{s \text{ ends } x_t} b_s - y_t \Big\|^2
              + \sum_s \lambda_s \|b_s\|^2, \qquad \lambda_s = \kappa_{|s|}\, d_s,

    where d_s is the number of distinct tokens seen after s. The Gram matrix is a tree: two suffixes meet only where
    one ends the other. So the solution is Gaussian elimination from the longest suffixes up and substitution down:

    .. math:: P_s = \sum_c P_c \frac{\lambda_c}{P_c + \lambda_c}, \quad
              E_s = \sum_c E_c \frac{\lambda_c}{P_c + \lambda_c}, \quad
              p_s = \frac{E_s + \lambda_s\, p_{parent}}{P_s + \lambda_s}

    over the children c of s, those one token longer; at the longest, P and E are counts. p_s is nonnegative and adds up
    to 1 although nothing demands it.

    Parameters
    ----------
    order, vocab_size : int
    levels : tuple of Level

    Examples
    --------
    >>> contexts, tokens = np.array([[0], [1], [1], [1]]), np.array([1, 2, 2, 0])
    >>> model = SuffixRidge.fit(NgramCounts.from_rows(contexts, tokens, vocab_size=4), 1.0)
    >>> p = model.distribution(np.array([[1], [3]]))
    >>> p.argmax(axis=1).tolist(), bool(abs(p.sum(axis=1) - 1).max() < 1e-6)
    ([2, 2], True)
    """

    @classmethod
    def fit(
        cls, counts: NgramCounts, penalties: float | Sequence[float], tree: tuple[Branch, ...] | None = None
    ) -> Self:
        """Solve.

        Parameters
        ----------
        counts : NgramCounts
        penalties : float or sequence of float
            kappa: one for all, or one for each length of suffix from 0 to order - 1. Towards 0 every context that was
            seen is answered by its own frequencies, towards infinity all by the uniform distribution.
        tree : tuple of Branch, optional
            ``suffix_tree(counts)``, where it is there already.

        Raises
        ------
        ConfigError
            If a penalty is not positive, or their number is not that of lengths.
        """
        kappa = np.asarray(penalties, np.float64)
        if kappa.ndim == 0:
            kappa = np.full(counts.order, float(kappa))
        if kappa.shape != (counts.order,) or not (np.isfinite(kappa) & (kappa > 0)).all():
            msg = f"penalties {kappa.tolist()} of a suffix ridge"
            raise ConfigError(msg, f"one positive number, or {counts.order}, one a length of suffix")
        tree = suffix_tree(counts) if tree is None else tree
        penalty = [kappa[k] * np.diff(branch.starts) for k, branch in enumerate(tree)]
        return cls(counts.order, counts.vocab_size, solve_tree(tree, penalty))


def solve_tree(tree: tuple[Branch, ...], penalties: Sequence[Float64]) -> tuple[Level, ...]:
    """Minimise the objective of `SuffixRidge` for any positive penalty of each suffix.

    Parameters
    ----------
    tree : tuple of Branch
        As `suffix_tree` makes it.
    penalties : sequence of float64 arrays of shape (n_contexts,)
        lambda_s of the contexts of each order, in the order of `Branch.contexts`.

    Returns
    -------
    tuple of Level
        Of order 1 and up, as many as the tree has.
    """
    levels: list[Level] = []
    evidence = tree[-1].counts.astype(np.float64)
    for k in range(len(tree) - 1, -1, -1):
        branch, penalty = tree[k], penalties[k]
        ids = branch.ids
        total = np.bincount(ids, evidence, len(branch.seen)) + penalty
        levels.append(Level.of(branch, evidence / total[ids], penalty / total))
        if k:
            passed = evidence * (penalty / total)[ids]
            evidence = np.asarray(np.bincount(branch.parents, passed, len(tree[k - 1].counts)), np.float64)
    return tuple(levels[::-1])
