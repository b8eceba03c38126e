"""Sums of rows that come in any portions, equal bit for bit to those of all the rows at once.

Floor 6: imports moments, frame, features, targets. Products round by the block, so portions are cut at the same rows
however they come: what does not fill a block waits. So does the choice of features and units, for which the first rows
are looked at; until there are enough of them, it is made anew from all that came.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from streamfit.arrays import Precision
from streamfit.features import FeatureMap
from streamfit.frame import BLOCK_ROWS, Frame
from streamfit.moments import Moments, MomentsAccumulator
from streamfit.targets import Targets

Choice = Callable[[np.ndarray, np.ndarray | None], FeatureMap]
"""Chooses features from rows of shape (n_rows, n_inputs), and their weights where these are not all 1."""
Piece = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def whole_blocks(n_rows: int) -> int:
    """So many rows, rounded up to blocks of products."""
    return -(-n_rows // BLOCK_ROWS) * BLOCK_ROWS


@dataclass
class RowStream:
    """Rows as they come, summed by whole blocks.

    Parameters
    ----------
    targets : Targets
    precision : Precision
    lead : int
        Rows that features and units are chosen from; whole blocks.
    features : FeatureMap or None
        Frozen once `lead` rows have come.
    done : Moments or None
        Sums of whole blocks.
    waiting : list of (x, y, weights)
        Rows that do not fill a block, at most `lead`; owned.
    """

    targets: Targets
    precision: Precision
    lead: int = BLOCK_ROWS
    features: FeatureMap | None = None
    done: Moments | None = None
    waiting: list[Piece] = field(default_factory=list)

    @property
    def n_rows(self) -> int:
        """Rows that have come."""
        return (self.done.n_rows if self.done is not None else 0) + self._n_waiting

    @property
    def _n_waiting(self) -> int:
        return sum(len(y) for _, y, _ in self.waiting)

    def copy(self) -> RowStream:
        """A stream that goes on from here and leaves this one as it is."""
        return RowStream(self.targets, self.precision, self.lead, self.features, self.done, list(self.waiting))

    def add(self, x: np.ndarray, y: np.ndarray, weights: np.ndarray | None, choose: Choice) -> None:
        """Add rows.

        Parameters
        ----------
        x : floating array of shape (n_rows, n_inputs)
        y : array of shape (n_rows, n_targets), or integer (n_rows,) for one-hot targets
        weights : array of shape (n_rows,), optional
        choose : callable
            Called at most once, when there are enough rows.
        """
        lo, sums = 0, None
        while lo < len(y):
            missing = (self.lead if self.features is None else BLOCK_ROWS) - self._n_waiting
            rows = slice(lo, min(lo + missing, len(y)))
            self.waiting.append((x[rows], y[rows], None if weights is None else weights[rows]))
            lo = rows.stop
            if rows.stop - rows.start < missing:
                continue
            if self.features is None or self.done is None:
                self.features, self.done = self._with_waiting(choose)
            else:
                if sums is None:
                    sums = MomentsAccumulator(self.done.frame, self.targets, self.precision)
                block, targets, heavy = _together(self.waiting)
                sums.add(self.features(block), targets, weights=heavy)
            self.waiting = []
        if sums is not None and self.done is not None:
            self.done = self.done + sums.moments()
        # The caller's arrays are the caller's, who may write into them.
        self.waiting = [(x.copy(), y.copy(), None if w is None else w.copy()) for x, y, w in self.waiting]

    def total(self, choose: Choice) -> tuple[FeatureMap, Moments]:
        """Features and sums of all rows that have come, at least one."""
        if self.features is not None and self.done is not None and not self.waiting:
            return self.features, self.done
        return self._with_waiting(choose)

    def _with_waiting(self, choose: Choice) -> tuple[FeatureMap, Moments]:
        x, y, weights = _together(self.waiting)
        features = choose(x, weights) if self.features is None else self.features
        phi = features(x)
        if self.done is None:
            first = slice(0, BLOCK_ROWS)
            some = None if weights is None else weights[first]
            frame = Frame.from_sample(phi[first], y[first], self.targets, features.bounds, some)
        else:
            frame = self.done.frame
        more = Moments.from_rows(phi, y, frame, self.targets, weights=weights, precision=self.precision)
        return features, more if self.done is None else self.done + more


def _together(pieces: list[Piece]) -> Piece:
    """Pieces as one; without weights where all are 1, so that it does not matter who gave them."""
    if len(pieces) == 1:
        x, y, weights = pieces[0]
    else:
        x, y = np.concatenate([piece[0] for piece in pieces]), np.concatenate([piece[1] for piece in pieces])
        weights = np.concatenate([np.ones(len(y)) if w is None else w for _, y, w in pieces])
    return x, y, None if weights is None or (weights == 1.0).all() else weights
