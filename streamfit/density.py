"""How full a Gram matrix of sparse rows will be, and in which form it is smaller.

Floor 2: imports frame, plan, precision, arrays. Decided once, from the first sample, by the numbers that every plan
prints.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import scipy.sparse

from streamfit.arrays import Precision
from streamfit.frame import BLOCK_ROWS, n_tiles, tile_size
from streamfit.plan import BLOCKS_AHEAD, PROCESS_BYTES, Plan, size_text
from streamfit.precision import n_limbs

DENSE_FEATURES = 2048
"""Features up to which a sparse Gram matrix is laid out densely to be solved: 34 MB a copy, seconds a decomposition."""


@dataclass(frozen=True)
class Density:
    """Places of the upper triangle that a sample of rows touches.

    Parameters
    ----------
    n_features : int
    sample_rows : int
    entries : int
        Places that are not zero after all rows of the sample.
    half_entries : int
        The same after the first half of it.
    pairs_per_row : float
        Mean over rows of r (r + 1) / 2, with r entries in a row: what products cost.
    """

    n_features: int
    sample_rows: int
    entries: int
    half_entries: int
    pairs_per_row: float

    @classmethod
    def of(cls, rows: scipy.sparse.csr_array) -> Density:
        """Measure a sample.

        Parameters
        ----------
        rows : csr_array of shape (n_rows, n_features)

        Examples
        --------
        >>> import scipy.sparse
        >>> d = Density.of(scipy.sparse.csr_array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]))
        >>> d.entries, d.half_entries, d.pairs_per_row, d.projected(4), d.projected(10**9)
        (4, 3, 2.0, 4, 6)
        """
        # Of many long rows an even part will do: what is counted here is itself a Gram matrix.
        rows = rows[:: max(1, int(np.sum(np.diff(rows.indptr).astype(np.float64) ** 2) / _PRODUCTS))]
        each = np.diff(rows.indptr).astype(np.float64)
        pairs = float(np.mean(each * (each + 1) / 2)) if len(each) else 0.0
        return cls(rows.shape[1], rows.shape[0], _places(rows), _places(rows[: -(-rows.shape[0] // 2)]), pairs)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's entries: r (r + 1) / 2 pairs are of r entries, each a place and a value."""
        return int(16 * np.sqrt(2.0 * self.pairs_per_row))

    @property
    def growth(self) -> float:
        """Exponent β of entries ~ rows^β between half of the sample and all of it, in [0, 1]."""
        if self.sample_rows < 2 or not self.half_entries:
            return 1.0
        rows = self.sample_rows / -(-self.sample_rows // 2)
        return float(np.clip(np.log(self.entries / self.half_entries) / np.log(rows), 0.0, 1.0))

    def projected(self, n_rows: int) -> int:
        """Entries of the sum of so many rows.

        Distinct places are to rows what distinct words are to a text, K n^β (Heaps, Information retrieval, 1978, 7.5).
        The exponent falls as rows go on, so that of the sample gives too many rather than too few, unless rows later
        on are of another kind: the sample has to be of all parts of the corpus, for files may be sorted, by date for
        one. Never more than the triangle has, nor than the pairs of all rows.
        """
        if n_rows <= self.sample_rows or not self.sample_rows:
            return self.entries
        grown = self.entries * (n_rows / self.sample_rows) ** self.growth
        every = self.entries + (n_rows - self.sample_rows) * self.pairs_per_row
        return int(min(grown, every, self.n_features * (self.n_features + 1) / 2))

    def sparse_bytes(self, n_rows: int, precision: Precision) -> int:
        """Bytes of a sparse Gram matrix of so many rows: a place and its limbs for each entry."""
        return self.projected(n_rows) * (8 + 8 * n_limbs(precision))

    def dense_bytes(self, precision: Precision) -> int:
        """Bytes of a dense one: tiles of the upper triangle."""
        b = tile_size(self.n_features)
        return 8 * n_limbs(precision) * n_tiles(self.n_features) * b * b

    def sparse_is_smaller(self, n_rows: int, precision: Precision) -> bool:
        """Which of the two to keep."""
        return self.sparse_bytes(n_rows, precision) < self.dense_bytes(precision)

    def line(self, n_rows: int, precision: Precision, sparse: bool) -> str:
        """The choice as text, with both numbers."""
        kept = "sparse" if sparse else "dense"
        return (
            f"Gram matrix kept {kept}: {size_text(self.sparse_bytes(n_rows, precision))} sparse"
            f" ({self.projected(n_rows):,} entries; {self.entries:,} of {self.sample_rows:,} sampled rows,"
            f" growing as rows^{self.growth:.2f}), {size_text(self.dense_bytes(precision))} dense"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, as a store's header keeps them."""
        return asdict(self)


@dataclass(frozen=True)
class SparsePlan(Plan):
    """Projection of one accumulation of sparse rows.

    Parameters
    ----------
    density : Density
        Of the sample that the store's features were chosen from.
    sparse : bool
        Whether the Gram matrix is kept sparse.
    rows_before : int
        Rows that the store holds already.
    """

    density: Density = field(kw_only=True)
    sparse: bool = field(kw_only=True)
    rows_before: int = field(kw_only=True)

    @property
    def flops_per_row(self) -> int:
        each = int(4 * self.density.pairs_per_row)  # both triangles, of which one is kept
        return each + 2 * int(2 * self.density.pairs_per_row) * (1 if self.one_hot else self.n_targets)

    @property
    def _total_rows(self) -> int:
        return self.rows_before + self.n_rows

    @property
    def sum_bytes(self) -> int:
        if not self.sparse:
            return super().sum_bytes
        margins = 8 * (2 * self.n_features + n_limbs(self.precision) * self.n_features * self.n_targets)
        return self.density.sparse_bytes(self._total_rows, self.precision) + margins

    @property
    def worker_bytes(self) -> int:
        # A block's products, both triangles and their places; and what a merge of sparse sums sorts.
        block = BLOCK_ROWS * (int(self.density.pairs_per_row) * 64 + (2 + BLOCKS_AHEAD) * self.density.row_bytes)
        targets = BLOCKS_AHEAD * BLOCK_ROWS * (16 if self.one_hot else 4 * 8 * self.n_targets)
        return PROCESS_BYTES + (5 if self.sparse else 3) * self.sum_bytes + block + targets + self.decode_bytes

    def within(self, limit: int | None) -> SparsePlan:
        """The same plan, whatever the limit: sparse rows are multiplied whole, never a panel at a time."""
        return self

    def solve_bytes(self, n_folds: int) -> int:
        if not self.sparse:
            return super().solve_bytes(n_folds)
        entries = self.density.projected(self._total_rows)
        dense = 80 * min(self.n_features, DENSE_FEATURES) ** 2
        arrays = 8 * 9 * self.n_features * self.n_targets
        return PROCESS_BYTES + (n_folds + 4) * self.sum_bytes + 2 * 36 * entries + dense + arrays

    def lines(self, n_folds: int) -> list[str]:
        return [*super().lines(n_folds), self.density.line(self._total_rows, self.precision, self.sparse)]


def sparse_group_rows(pairs_per_row: float) -> int:
    """Rows whose products take about a minute at 20 million pairs a second."""
    return max(BLOCK_ROWS, int(1.2e9 / max(pairs_per_row, 50.0)))


_PRODUCTS = 2**25
"""Products of entries that a sample is counted with."""


def _places(rows: scipy.sparse.csr_array) -> int:
    """Places of the upper triangle of Φ'Φ that some row touches, whatever the signs of values are."""
    ones = scipy.sparse.csr_array((np.ones(rows.nnz), rows.indices, rows.indptr), shape=rows.shape)
    touched = np.unique(ones.indices)
    narrow = ones[:, touched]
    return int((narrow.T.tocsr() @ narrow).nnz + len(touched)) // 2
