"""Whether to multiply equal rows once: what a sample of shards holds of them, and what finding them costs.

Floor 2: imports counted, errors, frame; decided once, when a store is made, and kept in its header.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from streamfit.counted import equal_rows
from streamfit.errors import ConfigError
from streamfit.frame import BLOCK_ROWS, tile_pairs

CountRows = Literal["auto", "always", "never"]
"""Whether equal rows are found and multiplied once: where the sample says that it pays, or in any case, or not."""
WORTH = 1.2
"""Expected speedup from which equal rows are counted."""
_FIND_FLOPS = 100_000
_FIND_FLOPS_INPUT = 4_000
"""Finding equal rows and their classes, for each row and for each of its inputs, in operations of the products:
measured 0.5 to 1.5 us and up to 50 ns, beside a core that multiplies at 70 GFLOP/s."""
_BLOCK_FLOPS = 100
"""Rounding and adding a block's product, for each entry of the Gram matrix, in the same operations."""


@dataclass(frozen=True)
class Repeats:
    """Equal rows within pieces of a sample.

    Parameters
    ----------
    pieces : tuple of (int, int, int)
        Of each piece its rows, its distinct rows, and those of them that occur once.
    n_inputs : int
    """

    pieces: tuple[tuple[int, int, int], ...]
    n_inputs: int

    @classmethod
    def of(cls, pieces: Iterable[np.ndarray]) -> Repeats:
        """Look for equal rows within each of some arrays of shape (n_rows, n_inputs)."""
        found, n_inputs = [], 0
        for x in pieces:
            if len(x):
                order, starts = equal_rows(x)
                times = np.diff(starts, append=len(order))
                found.append((len(x), len(starts), int(np.count_nonzero(times == 1))))
                n_inputs = x.shape[1]
        return cls(tuple(found), n_inputs)

    @property
    def n_rows(self) -> int:
        """Rows that were looked at."""
        return sum(n for n, _, _ in self.pieces)

    @property
    def distinct(self) -> float:
        """Share of the rows that are left when equal ones are put together."""
        return sum(d for _, d, _ in self.pieces) / max(1, self.n_rows)

    def speedup(self, n_features: int, n_targets: int, *, one_hot: bool, weighted: bool = False) -> float:
        """How many times faster the products are expected to be, computing features left out.

        Parameters
        ----------
        n_features, n_targets : int
        one_hot : bool
        weighted : bool
            Whether rows have weights, so that no product is one of a matrix with itself in any case.

        Returns
        -------
        float
            Below 1 where finding equal rows takes longer than it saves.
        """
        d = n_features
        cross = 2 * d * (1 if one_hot else n_targets)
        halved = d * (d + 1)
        full = sum(2 * (r.stop - r.start) * (c.stop - c.start) for _, r, c in tile_pairs(d))
        adding = _BLOCK_FLOPS * d * d
        find = _FIND_FLOPS + _FIND_FLOPS_INPUT * self.n_inputs
        before = after = 0
        for n, distinct, single in self.pieces:
            before += n * ((full if weighted else halved) + cross) + _blocks(n) * adding
            after += n * find + distinct * cross
            together = distinct * full + _blocks(distinct) * adding
            split = single * halved + (distinct - single) * full
            split += (_blocks(single) + _blocks(distinct - single)) * adding
            after += together if weighted else min(together, split)
        return before / after if after else 1.0


@dataclass(frozen=True)
class CountChoice:
    """A decision to count equal rows, or not to, with its numbers.

    Parameters
    ----------
    counted : bool
    asked : {'auto', 'always', 'never'}
    repeats : Repeats
    speedup : float
        Expected of the products.
    """

    counted: bool
    asked: CountRows
    repeats: Repeats
    speedup: float

    def to_json(self) -> dict[str, Any]:
        """What a header keeps of it: shares and factors in three decimals."""
        return {
            "sample_rows": self.repeats.n_rows,
            "distinct": round(self.repeats.distinct, 3),
            "speedup": round(self.speedup, 3),
        }

    def line(self, by: str = "") -> str:
        """The decision in words.

        Parameters
        ----------
        by : str
            What was compared, if not whole rows: more of them may be distinct then, and counting gain less.
        """
        what = "equal rows of a shard are multiplied once" if self.counted else "every row is multiplied"
        if self.asked == "never":
            return f"{what}, as asked (count_rows = 'never')"
        because = f", as asked (count_rows = {self.asked!r})" if self.asked != "auto" else ""
        least, most, alone = ("at least ", "at most ", f" by {by}") if by else ("", "", "")
        return (
            f"{what}{because}: {least}{self.repeats.distinct:.1%} of {self.repeats.n_rows:,} sampled rows are distinct"
            f" within their shard{alone}, and counting would make products {most}{self.speedup:.2g} times as fast"
        )


def choose_counting(
    asked: CountRows,
    pieces: Iterable[np.ndarray],
    n_features: int,
    n_targets: int,
    *,
    one_hot: bool,
    weighted: bool = False,
) -> CountChoice:
    """Decide whether to multiply equal rows once; the same for the same sample on every machine.

    Parameters
    ----------
    asked : {'auto', 'always', 'never'}
    pieces : iterable of arrays of shape (n_rows, n_inputs)
        Inputs of whole shards, or of what is looked through at once; not looked at where `asked` is 'never'.
    n_features, n_targets : int
    one_hot, weighted : bool
        Whether targets are class ids; whether rows have weights.

    Raises
    ------
    ConfigError
        If `asked` is none of the three.
    """
    if asked not in ("auto", "always", "never"):
        msg = f"count_rows = {asked!r}"
        raise ConfigError(msg, "'auto', 'always' or 'never'")
    repeats = Repeats.of(() if asked == "never" else pieces)
    speedup = repeats.speedup(n_features, n_targets, one_hot=one_hot, weighted=weighted)
    return CountChoice(asked == "always" or (asked == "auto" and speedup >= WORTH), asked, repeats, speedup)


def _blocks(n_rows: int) -> int:
    return -(-n_rows // BLOCK_ROWS)
