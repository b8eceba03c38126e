"""How full a Gram matrix of sparse rows will be, and in which form it is smaller.

Floor 2: imports frame, plan, sparse_sum. Decided once, from the first sample, by the numbers that every plan prints.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.sparse

from streamfit.arrays import Precision
from streamfit.frame import n_tiles, tile_size
from streamfit.plan import size_text


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
        The same after every second row of it.
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
        (4, 4, 2.0, 4, 4)
        """
        # Of many long rows an even part will do: what is counted here is itself a Gram matrix.
        rows = rows[:: max(1, int(np.sum(np.diff(rows.indptr).astype(np.float64) ** 2) / _PRODUCTS))]
        each = np.diff(rows.indptr).astype(np.float64)
        pairs = float(np.mean(each * (each + 1) / 2)) if len(each) else 0.0
        return cls(rows.shape[1], rows.shape[0], _places(rows), _places(rows[::2]), pairs)

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
        on are of another kind. Never more than the triangle has, nor than the pairs of all rows.
        """
        if n_rows <= self.sample_rows or not self.sample_rows:
            return self.entries
        grown = self.entries * (n_rows / self.sample_rows) ** self.growth
        every = self.entries + (n_rows - self.sample_rows) * self.pairs_per_row
        return int(min(grown, every, self.n_features * (self.n_features + 1) / 2))

    def sparse_bytes(self, n_rows: int, precision: Precision) -> int:
        """Bytes of a sparse Gram matrix of so many rows: a place and its limbs for each entry."""
        return self.projected(n_rows) * (8 + 8 * limbs_of(precision))

    def dense_bytes(self, precision: Precision) -> int:
        """Bytes of a dense one: tiles of the upper triangle."""
        b = tile_size(self.n_features)
        return 8 * limbs_of(precision) * n_tiles(self.n_features) * b * b

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


_PRODUCTS = 2**25
"""Products of entries that a sample is counted with."""


def limbs_of(precision: Precision) -> int:
    """Limbs of the large sums."""
    return 1 if precision == "float32" else 2


def _places(rows: scipy.sparse.csr_array) -> int:
    """Places of the upper triangle of Φ'Φ that some row touches, whatever the signs of values are."""
    ones = scipy.sparse.csr_array((np.ones(rows.nnz), rows.indices, rows.indptr), shape=rows.shape)
    touched = np.unique(ones.indices)
    narrow = ones[:, touched]
    return int((narrow.T.tocsr() @ narrow).nnz + len(touched)) // 2
