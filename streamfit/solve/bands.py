"""A partition of the features into named blocks, each with an alpha of its own, and the plain ridge it comes to.

Floor 3: imports moments, centered, errors and solve siblings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from streamfit.centered import Centered, Statistic, as_centered
from streamfit.errors import SolveError
from streamfit.solve.ridge import without_constants

Blocks = Mapping[str, Sequence[int] | slice]
"""Names of blocks, and the indices of their features."""
_MOST_NAMED = 5


@dataclass(frozen=True)
class Bands:
    """Which block each feature is in.

    Parameters
    ----------
    names : tuple of str
    member : integer array of shape (n_features,)
        Number of each feature's block.
    """

    names: tuple[str, ...]
    member: np.ndarray

    @classmethod
    def of(cls, blocks: Blocks, n_features: int) -> Bands:
        """Read blocks and see that they partition the features.

        Raises
        ------
        SolveError
            If a block is empty or names a feature that does not exist, or a feature is in no block or in several.
        """
        member = np.full(n_features, -1)
        for g, (name, block) in enumerate(blocks.items()):
            at = _indices(name, block, n_features)
            taken = at[member[at] >= 0]
            if len(np.unique(at)) < len(at) or len(taken):
                twice = int(taken[0]) if len(taken) else int(np.argmax(np.bincount(at) > 1))
                first = tuple(blocks)[member[twice]] if len(taken) else name
                msg = f"feature {twice} twice, in block {first!r} and in block {name!r}"
                raise SolveError(msg, "each feature in one block, once")
            member[at] = g
        if (lost := np.flatnonzero(member < 0)).size:
            some = ", ".join(map(str, lost[:_MOST_NAMED])) + (", ..." if len(lost) > _MOST_NAMED else "")
            msg = f"{len(lost)} of {n_features} features in no block: {some}"
            raise SolveError(msg, "blocks that cover all features", "add a block for the rest")
        return cls(tuple(blocks), member)

    @property
    def sizes(self) -> np.ndarray:
        """Number of features of each block."""
        return np.bincount(self.member, minlength=len(self.names))

    @property
    def indices(self) -> dict[str, np.ndarray]:
        """Features of each block, ascending."""
        return {name: np.flatnonzero(self.member == g) for g, name in enumerate(self.names)}

    def sums(self, each: np.ndarray) -> np.ndarray:
        """Sums over blocks of an array of shape (n_features,) or (n_features, n_targets)."""
        if each.ndim == 1:
            return np.bincount(self.member, weights=each, minlength=len(self.names))
        found = np.zeros((len(self.names), each.shape[1]))
        np.add.at(found, self.member, each)
        return found

    def read(self, alphas: Mapping[str, float]) -> np.ndarray:
        """Alphas in the order of the blocks.

        Raises
        ------
        SolveError
            If one is missing, of no block, or not positive.
        """
        if set(alphas) != set(self.names):
            msg = f"alphas for {_listed(alphas)}"
            raise SolveError(msg, f"one for each block: {_listed(self.names)}")
        found = np.array([alphas[name] for name in self.names], dtype=np.float64)
        if not (found > 0).all():
            msg = f"alphas {found.tolist()}"
            raise SolveError(
                msg, "positive numbers, or infinity to leave a block out", "1e-12 of its Gram is no penalty"
            )
        return found

    def named(self, values: np.ndarray) -> dict[str, float]:
        """One number a block, by its name."""
        return dict(zip(self.names, values.tolist(), strict=True))

    def scaled(self, c: Centered, alphas: np.ndarray) -> tuple[Centered, np.ndarray, float]:
        """Sums of the features times s, and s and alpha of the plain ridge that is the same problem.

        With ``s_j = sqrt(alpha / alpha_g(j))`` and ``B = S B~``, ``sum_g alpha_g ||B_g||² = alpha ||B~||²`` whatever
        alpha is. Taken as the least of them, s is at most 1, exactly 1 where all are equal, and 0 for a block that is
        left out.
        """
        finite = np.isfinite(alphas)
        alpha = float(alphas[finite].min()) if finite.any() else 1.0
        s = np.sqrt(alpha / alphas)[self.member]
        scaled = replace(
            c, mean_x=c.mean_x * s, gram=c.gram * s * s[:, None], cross=c.cross * s[:, None], noise=c.noise * s * s
        )
        return scaled, s, alpha


def as_solved(moments: Statistic | Centered, fit_intercept: bool) -> Centered:
    """Sums as `solve` reads them: about their means and without constants, or about zero."""
    c = as_centered(moments)
    return without_constants(c) if fit_intercept else c.about(np.zeros_like(c.mean_x), np.zeros_like(c.mean_y))


def _indices(name: str, block: Sequence[int] | slice, n_features: int) -> np.ndarray:
    if isinstance(block, slice):
        if max(block.start or 0, block.stop or 0) > n_features:
            msg = f"block {name!r} with features {block.start}:{block.stop}"
            raise SolveError(msg, f"a slice within 0:{n_features}")
        found = np.arange(n_features)[block]
    else:
        found = np.asarray(block).reshape(-1)
    if not len(found) or found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= n_features:
        msg = f"block {name!r} with features {found[:_MOST_NAMED].tolist()}"
        raise SolveError(msg, f"one or more indices in [0, {n_features})")
    return found.astype(np.int64)


def _listed(names: Mapping[str, float] | Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
