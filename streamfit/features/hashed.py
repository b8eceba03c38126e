"""Hashed features: names and values of any vocabulary in a fixed number of columns, as sparse rows. Floor 2.

The hashing trick (Weinberger, Dasgupta, Langford, Smola and Attenberg, Feature hashing for large scale multitask
learning, ICML 2009) by scikit-learn's `FeatureHasher` itself, with its conventions: text in a column is the token
"column=value" with value 1, a number is the token "column" with its value, and a signed 32-bit MurmurHash3 of the token
gives column and sign.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse

from streamfit.arrays import Array
from streamfit.errors import ConfigError, MismatchError
from streamfit.features.base import FeatureMap, register

if TYPE_CHECKING:
    from sklearn.feature_extraction import FeatureHasher

LARGEST = 2**30
"""Columns that a signed 32-bit hash can tell apart, as a power of two."""


@register
@dataclass(frozen=True, eq=False)
class Hashed(FeatureMap):
    """Sparse rows of hashed tokens: φ(x) = x for rows that were hashed so.

    Parameters
    ----------
    n : int
        Columns: a power of two, from 2 to 2^30.
    columns : tuple of str
        Columns of the table that are hashed.
    categories : tuple of str
        Those of them whose numbers, booleans or dates are names, and hashed as text is; booleans as `true` and `false`.
    alternate_sign : bool
        Whether tokens take the sign of their hash, so that those that share a column cancel on average.

    Raises
    ------
    ConfigError
        If `n` is no such power of two, or a category is no column.

    Examples
    --------
    >>> hashed = Hashed(8, ("origin", "distance"))
    >>> hashed.of_records([{"origin": "ORD", "distance": 3.5}]).toarray().tolist()
    [[0.0, 0.0, -1.0, 0.0, 0.0, 0.0, -3.5, 0.0]]
    """

    n: int
    columns: tuple[str, ...]
    categories: tuple[str, ...] = ()
    alternate_sign: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.n <= LARGEST or self.n & (self.n - 1):
            msg = f"{self.n} columns of hashed features"
            raise ConfigError(msg, "a power of two from 2 to 2^30", "for instance n = 262144")
        if unknown := [name for name in self.categories if name not in self.columns]:
            msg = f"categories {', '.join(unknown)}"
            raise ConfigError(msg, f"some of the columns {', '.join(self.columns)}")

    @property
    def n_inputs(self) -> int:
        return self.n

    @property
    def n_features(self) -> int:
        return self.n

    def apply(self, x: Array) -> Array:
        if not scipy.sparse.issparse(x):
            msg = f"hashed features of a {type(x).__name__}"
            raise MismatchError(msg, "a scipy.sparse.csr_array", "hash rows first, for instance by Hashed.of_records")
        return x

    def keep(self, indices: Sequence[int]) -> FeatureMap:
        msg = f"a model of {len(indices)} of {self.n} hashed columns"
        raise ConfigError(msg, "all of them", "hash fewer columns of the table instead")

    def tokens(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Column and sign of each of some tokens: a loop in C, best given distinct ones.

        Returns
        -------
        indices : int32 array of shape (n_tokens,)
        signs : float64 array of shape (n_tokens,)
        """
        if not len(names):
            return np.zeros(0, np.int32), np.zeros(0)
        found = self._hasher("string").transform([name] for name in names)
        return np.asarray(found.indices), np.asarray(found.data)

    def _hasher(self, kind: Literal["string", "pair"]) -> FeatureHasher:
        from sklearn.feature_extraction import FeatureHasher  # takes long, and most features are not hashed

        return FeatureHasher(self.n, input_type=kind, alternate_sign=self.alternate_sign)

    def of_records(self, records: Iterable[Mapping[str, Any]]) -> scipy.sparse.csr_array:
        """Hash rows that are given as mappings; what is no column of this map is passed over.

        Parameters
        ----------
        records : iterable of mapping
            From column to text, number, boolean, or a list of text (a bag: each word counts).

        Returns
        -------
        csr_array of shape (n_rows, n), float64
        """
        hasher = self._hasher("pair")
        found = scipy.sparse.csr_array(hasher.transform(self._pairs(record) for record in records))
        found.sum_duplicates()
        found.eliminate_zeros()
        return found

    def _pairs(self, record: Mapping[str, Any]) -> list[tuple[str, Any]]:
        pairs: list[tuple[str, Any]] = []
        for name in self.columns:
            value = record[name]
            if name in self.categories and not isinstance(value, str | list | tuple | np.ndarray):
                value = str(value).lower() if isinstance(value, bool | np.bool_) else str(value)
            many = isinstance(value, list | tuple | np.ndarray)
            pairs += [(name, word) for word in value] if many else [(name, value)]
        return pairs
