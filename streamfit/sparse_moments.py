"""Exact sums of sparse rows, with a Gram matrix of its nonzero entries or with a dense one.

Floor 2: imports moments, sparse_sum, density, precision, exact, frame, targets, errors. Zero entries of rows cost
nothing in either: a block is multiplied over the columns that it touches. Both take the same products, and hold the
same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import scipy.sparse

from streamfit.arrays import Array, Precision
from streamfit.centered import Centered
from streamfit.density import DENSE_FEATURES
from streamfit.errors import ConfigError, MismatchError, ScaleError
from streamfit.exact import BASE, GridAccumulator, GridSum
from streamfit.frame import BLOCK_ROWS, Frame, n_tiles, tile_size
from streamfit.moments import Moments
from streamfit.precision import n_limbs
from streamfit.sparse_sum import SparseAccumulator, SparseSum
from streamfit.targets import Targets

_ON_GRID = 2.0**8
"""Values that are multiples of 2^-8 have products that are multiples of 2^-16, the grid's step."""


@dataclass(frozen=True)
class SparseMoments:
    """Sums over weighted sparse rows of features φ and targets y, in the units of `frame`, whose origin is zero.

    As `Moments`, `+` and `-` are exact, associative and commutative; a Gram matrix of which most is zero takes memory
    for the rest only.

    Parameters
    ----------
    frame : Frame
    one_hot : bool
        Whether targets are class ids.
    n_rows : int
    n_rounded : int
        Blocks of rows whose products were rounded to the grid: none where values are whole numbers, so that the sums
        are those of the rows themselves.
    weight : GridSum of shape ()
    sum_x, sum_y, sum_yy : GridSum of shape (n_features,), (n_targets,), (n_targets,)
    gram : SparseSum
        Sum of w φφ', on and above the diagonal.
    cross : GridSum of shape (n_targets, n_features)
    """

    frame: Frame
    one_hot: bool
    n_rows: int
    n_rounded: int
    weight: GridSum
    sum_x: GridSum
    sum_y: GridSum
    sum_yy: GridSum
    gram: SparseSum
    cross: GridSum

    @classmethod
    def zeros(cls, frame: Frame, targets: Targets, precision: Precision = "float64") -> SparseMoments:
        """The identity of `+`."""
        found = SparseRowsAccumulator(frame, targets, precision, gram="sparse").moments()
        assert isinstance(found, cls)
        return found

    @classmethod
    def from_rows(
        cls,
        phi: scipy.sparse.csr_array,
        y: np.ndarray,
        frame: Frame,
        targets: Targets,
        *,
        weights: np.ndarray | None = None,
        precision: Precision = "float64",
    ) -> SparseMoments:
        """Sums of one shard's rows; see `SparseRowsAccumulator.add` for shapes and errors.

        Examples
        --------
        >>> import numpy as np
        >>> from scipy.sparse import csr_array
        >>> from streamfit.targets import Dense
        >>> phi, y = csr_array(np.array([[1.0, 0.0], [3.0, 2.0]])), np.array([[1.0], [0.0]])
        >>> m = SparseMoments.from_rows(phi, y, Frame.identity(2, 1), Dense(1))
        >>> m.n_rows, m.n_rounded, m.gram.n_entries, m.centered().gram.tolist()
        (2, 0, 3, [[2.0, 2.0], [2.0, 2.0]])
        """
        accumulator = SparseRowsAccumulator(frame, targets, precision, gram="sparse")
        accumulator.add(phi, y, weights=weights)
        found = accumulator.moments()
        assert isinstance(found, cls)
        return found

    @property
    def total_weight(self) -> float:
        """Sum of w."""
        return float(self.weight.value())

    def _sums(self) -> dict[str, Any]:
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, GridSum | SparseSum)}

    def _check(self, other: SparseMoments) -> None:
        if self.frame != other.frame or self.one_hot != other.one_hot:
            msg = "moments with different origins, units or targets"
            raise MismatchError(msg, "one frame for all", "accumulate both with the same store header")

    def __add__(self, other: SparseMoments) -> SparseMoments:
        self._check(other)
        theirs = other._sums()
        sums: dict[str, Any] = {name: mine + theirs[name] for name, mine in self._sums().items()}
        n_rows, n_rounded = self.n_rows + other.n_rows, self.n_rounded + other.n_rounded
        return replace(self, n_rows=n_rows, n_rounded=n_rounded, **sums)

    def __sub__(self, other: SparseMoments) -> SparseMoments:
        self._check(other)
        theirs = other._sums()
        sums: dict[str, Any] = {name: mine - theirs[name] for name, mine in self._sums().items()}
        n_rows, n_rounded = self.n_rows - other.n_rows, self.n_rounded - other.n_rounded
        return replace(self, n_rows=n_rows, n_rounded=n_rounded, **sums)

    def __mul__(self, factor: float) -> SparseMoments:
        """Weight every row by `factor`. A whole factor is that many repeats; another leaves `n_rows` as it is."""
        sums: dict[str, Any] = {name: mine * factor for name, mine in self._sums().items()}
        whole = float(factor).is_integer()
        rounded = int(np.ceil(self.n_rounded * abs(factor))) + (0 if whole else 1)
        return replace(self, n_rows=self.n_rows * (int(factor) if whole else 1), n_rounded=rounded, **sums)

    __rmul__ = __mul__

    def to_host(self) -> SparseMoments:
        """The same: sparse sums are always in host memory."""
        return self

    @property
    def diagonal(self) -> np.ndarray:
        """Sum of w φ∘φ in the units of the frame, shape (n_features,)."""
        found, on = np.zeros(self.frame.n_features), self.gram.rows == self.gram.columns
        found[self.gram.rows[on]] = self.gram.entries.value()[on]
        return found

    @property
    def active(self) -> np.ndarray:
        """Features that some row has: indices, ascending. The others have no sums, and weight 0 for any alpha > 0."""
        return np.flatnonzero(self.diagonal > 0)

    def narrowed(self, kept: np.ndarray) -> Moments:
        """The same sums of some features alone, exact as these are, with a dense Gram matrix.

        Parameters
        ----------
        kept : integer array of shape (n_kept,)
            Ascending.
        """
        d = len(kept)
        frame = replace(self.frame, origin=self.frame.origin[kept], exponents=self.frame.exponents[kept])
        place = np.full(self.frame.n_features, -1)
        place[kept] = np.arange(d)
        rows, columns = place[self.gram.rows], place[self.gram.columns]
        inside = (rows >= 0) & (columns >= 0)
        where = tile_places(rows[inside], columns[inside], d)
        b, limbs = tile_size(d), []
        for limb in self.gram.entries.limbs:
            tiles = np.zeros((n_tiles(d), b, b))
            for index in where:
                tiles[index.places] = limb[inside][index.which]
            limbs.append(tiles)
        gram = GridSum(tuple(limbs), self.gram.entries.top)
        return Moments(
            frame,
            self.one_hot,
            self.n_rows,
            self.weight,
            replace(self.sum_x, limbs=tuple(limb[kept] for limb in self.sum_x.limbs)),
            self.sum_y,
            self.sum_yy,
            gram,
            replace(self.cross, limbs=tuple(limb[:, kept] for limb in self.cross.limbs)),
            precision="float32" if self.gram.n_limbs == 1 else "float64",
        )

    def centered(self) -> Centered:
        """Centred float64 matrices in natural units, of all features, for everything that reads a dense Gram matrix.

        Raises
        ------
        MismatchError
            If there are more than `DENSE_FEATURES` features, or no rows.
        """
        d = self.frame.n_features
        if d > DENSE_FEATURES:
            msg = f"a dense matrix of {d:,} hashed features"
            remedy = "`solve` works on the entries that are there; else count with statistic 'gram', or fewer columns"
            raise MismatchError(msg, f"at most {DENSE_FEATURES:,}", remedy)
        return self.narrowed(np.arange(d)).centered()


@dataclass(frozen=True)
class _Places:
    places: tuple[np.ndarray, np.ndarray, np.ndarray]
    which: np.ndarray


def tile_places(rows: np.ndarray, columns: np.ndarray, n_features: int) -> tuple[_Places, _Places]:
    """Where entries of the upper triangle stand among tiles: they themselves, and their mirror images.

    Only diagonal tiles have mirror images, below their own diagonals.
    """
    b, t = tile_size(n_features), -(-n_features // tile_size(n_features))
    i, j = rows // b, columns // b
    index, every = i * t - i * (i - 1) // 2 + j - i, np.arange(len(rows))
    mirrored = np.flatnonzero((i == j) & (rows != columns))
    return (
        _Places((index, rows % b, columns % b), every),
        _Places((index[mirrored], columns[mirrored] % b, rows[mirrored] % b), mirrored),
    )


class SparseRowsAccumulator:
    """Adds blocks of sparse rows: the mutable builder of `SparseMoments`, or of `Moments`.

    Parameters
    ----------
    frame : Frame
        Its origin must be zero: a shift would fill the rows.
    targets : Targets
    precision : {'float32', 'float64'}
        One limb or two for Gram and cross moments; products are taken in float64 either way.
    gram : {'dense', 'sparse'}
        What is built: `Moments` or `SparseMoments`.

    Raises
    ------
    ConfigError
        If the precision is another.
    MismatchError
        If the origin is not zero, or the frame has another number of targets.
    """

    def __init__(
        self, frame: Frame, targets: Targets, precision: Precision, *, gram: Literal["dense", "sparse"]
    ) -> None:
        if precision not in ("float32", "float64"):
            msg = f"sparse rows with precision {precision!r}"
            raise ConfigError(msg, "'float64' or 'float32'", "products of sparse rows are taken in float64")
        if frame.origin.any() or frame.n_targets != targets.n_targets:
            msg = f"a frame with {np.count_nonzero(frame.origin)} shifted features for {frame.n_targets} targets"
            raise MismatchError(msg, f"features about zero, and {targets.n_targets} targets")
        self._frame, self._targets, self._precision, self._limbs = frame, targets, precision, n_limbs(precision)
        self._scale = np.ldexp(1.0, -frame.exponents)
        d, k, like = frame.n_features, frame.n_targets, np.empty(0)
        shapes: dict[str, tuple[tuple[int, ...], int]] = {
            "weight": ((), 2),
            "sum_x": ((d,), 2),
            "sum_y": ((k,), 2),
            "sum_yy": ((k,), 2),
            "cross": ((k, d), self._limbs),
        }
        b = tile_size(d)
        self._sparse = SparseAccumulator(d, self._limbs) if gram == "sparse" else None
        if gram == "dense":
            shapes["gram"] = ((n_tiles(d), b, b), self._limbs)
        self._sums = {name: GridAccumulator(shape, limbs, like) for name, (shape, limbs) in shapes.items()}
        self._n_rows = self._n_rounded = 0

    def add(self, phi: Any, y: Array, *, weights: Array | None = None) -> None:
        """Add a shard's rows, in blocks of `BLOCK_ROWS` counted from the first row given.

        Parameters
        ----------
        phi : scipy.sparse.csr_array of shape (n_rows, n_features)
        y : floating array of shape (n_rows, n_targets), or integer (n_rows,) for one-hot targets
        weights : floating array of shape (n_rows,), optional
            Nonnegative and finite; 1 for every row without it.

        Raises
        ------
        MismatchError
            If rows are not sparse, shapes do not fit the frame, or class ids are not integers.
        ConfigError
            If a class id or a row weight is out of range.
        ScaleError
            If a value is NaN, infinite, or too large for the exact sums. Nothing of its block is added then.
        """
        d, one_hot, k = self._frame.n_features, self._targets.one_hot, self._targets.n_targets
        if not scipy.sparse.issparse(phi) or phi.ndim != 2:
            msg = f"rows of type {type(phi).__name__}"
            raise MismatchError(msg, "a scipy.sparse.csr_array of shape (n_rows, n_features)")
        n_rows = phi.shape[0]
        wanted = (n_rows,) if one_hot else (n_rows, k)
        if phi.shape[1] != d or tuple(y.shape) != wanted:
            msg = f"features of shape {tuple(phi.shape)} with targets of shape {tuple(y.shape)}"
            raise MismatchError(msg, f"(n_rows, {d}) and {wanted}")
        if one_hot and y.dtype.kind not in "iu":
            msg = f"class ids of type {y.dtype}"
            raise MismatchError(msg, "integers of shape (n_rows,)")
        if weights is not None and tuple(weights.shape) != (n_rows,):
            msg = f"row weights of shape {tuple(weights.shape)}"
            raise MismatchError(msg, f"({n_rows},)")
        rows = phi.tocsr()
        if not rows.has_canonical_format:
            rows = rows.copy()
            rows.sum_duplicates()
        for lo in range(0, n_rows, BLOCK_ROWS):
            part = slice(lo, min(lo + BLOCK_ROWS, n_rows))
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
                self._add_block(rows[part], y[part], None if weights is None else weights[part].astype(np.float64))
        self._n_rows += n_rows

    def _add_block(self, phi: Any, y: np.ndarray, weights: np.ndarray | None) -> None:
        frame, sums, n = self._frame, self._sums, phi.shape[0]
        columns, places = np.unique(phi.indices, return_inverse=True)
        # Columns that no row of the block has are left out of its products, and of the memory that they take.
        shape, values = (n, len(columns)), phi.data.astype(np.float64) * self._scale[phi.indices]
        z = scipy.sparse.csr_array((values, places.astype(np.int32), phi.indptr), shape=shape)
        w = np.ones(n) if weights is None else weights
        if not (np.isfinite(w).all() and (w >= 0).all()):
            msg = "a row weight that is negative, NaN or infinite"
            raise ConfigError(msg, "finite weights >= 0")
        wz = z
        if weights is not None:
            weighted = values * np.repeat(w, np.diff(phi.indptr))
            wz = scipy.sparse.csr_array((weighted, z.indices, z.indptr), shape=shape)
        transposed = z.T.tocsr()
        products = (transposed @ wz).tocsr()
        products.sort_indices()
        rows = np.repeat(np.arange(len(columns)), np.diff(products.indptr))
        upper = rows <= products.indices
        rows, across, gram = columns[rows[upper]], columns[products.indices[upper]], products.data[upper]
        peak = float(np.max(np.abs(gram), initial=0.0))
        sum_x = np.asarray(wz.sum(axis=0)).ravel()
        if not np.isfinite(peak) or not np.isfinite(sum_x).all():
            msg = "a NaN, infinite or overflowing feature value"
            raise ScaleError(msg, "finite features", "look at the rows of this shard")
        # Everything is checked and has its room reserved before anything is added: a refused block leaves no trace.
        block = None
        if self._sparse is not None:
            keys = rows.astype(np.int64) * frame.n_features + across
            block = SparseSum.of_block(frame.n_features, keys, gram, self._limbs)
        else:
            sums["gram"].reserve(peak)
        add_targets = (self._class_block if self._targets.one_hot else self._dense_block)(wz, columns, y, w)
        sums["weight"].reserve(float(w.sum()))
        sums["sum_x"].reserve(float(np.max(np.abs(sum_x), initial=0.0)))
        add_targets()
        sums["weight"].add_reserved(np.asarray(w.sum()))
        sums["sum_x"].add_reserved(sum_x, columns)
        if self._sparse is not None and block is not None:
            self._sparse.add(block)
        else:
            for where in tile_places(rows, across, frame.n_features):
                sums["gram"].add_reserved(gram[where.which], where.places)
        self._n_rounded += int(not _on_grid(values, w, peak))

    def _class_block(self, wz: Any, columns: np.ndarray, y: np.ndarray, w: np.ndarray) -> Callable[[], None]:
        sums, k = self._sums, self._targets.n_targets
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= k:
            msg = f"class id {low if low < 0 else high}"
            raise ConfigError(msg, f"ids in [0, {k})")
        indicators = scipy.sparse.csr_array((np.ones(len(y)), (y, np.arange(len(y)))), shape=(k, len(y)))
        products, counts = (indicators @ wz).tocoo(), np.bincount(y, w, k)
        sums["cross"].reserve(float(np.max(np.abs(products.data), initial=0.0)))
        for name in ("sum_y", "sum_yy"):
            sums[name].reserve(float(counts.max()))

        def add() -> None:
            sums["cross"].add_reserved(products.data, (products.row, columns[products.col]))
            for name in ("sum_y", "sum_yy"):
                sums[name].add_reserved(counts)

        return add

    def _dense_block(self, wz: Any, columns: np.ndarray, y: np.ndarray, w: np.ndarray) -> Callable[[], None]:
        sums, frame = self._sums, self._frame
        v = (y.astype(np.float64) - frame.y_origin) * np.ldexp(1.0, -frame.y_exponents)
        wv = v * w[:, None]
        sum_y, sum_yy, products = wv.sum(axis=0), (wv * v).sum(axis=0), np.asarray((wz.T @ v).T)
        peak = float(sum_yy.max())
        if not np.isfinite(peak) or not np.isfinite(products).all():
            msg = "a NaN, infinite or overflowing target value"
            raise ScaleError(msg, "finite targets", "look at the rows of this shard")
        sums["cross"].reserve(float(np.max(np.abs(products), initial=0.0)))
        sums["sum_y"].reserve(float(np.max(np.abs(sum_y))))
        sums["sum_yy"].reserve(peak)

        def add() -> None:
            sums["cross"].add_reserved(products, (slice(None), columns))
            sums["sum_y"].add_reserved(sum_y)
            sums["sum_yy"].add_reserved(sum_yy)

        return add

    def moments(self) -> SparseMoments | Moments:
        """The sums so far. The accumulator must not be used afterwards."""
        sums: dict[str, Any] = {name: accumulator.total() for name, accumulator in self._sums.items()}
        one_hot = self._targets.one_hot
        if self._sparse is None:
            return Moments(self._frame, one_hot, self._n_rows, **sums, precision=self._precision)
        gram = self._sparse.total()
        return SparseMoments(self._frame, one_hot, self._n_rows, self._n_rounded, gram=gram, **sums)


def _on_grid(values: np.ndarray, weights: np.ndarray, peak: float) -> bool:
    """Whether a block's products are on the grid of 2^-16, and exact in float64, so that nothing is rounded."""
    whole = np.array_equal(values * _ON_GRID, np.rint(values * _ON_GRID)) and np.array_equal(weights, np.rint(weights))
    return bool(whole and peak * 2.0**-BASE < 2.0**52)


def sparse_frame(
    phi: scipy.sparse.csr_array, y: np.ndarray, targets: Targets, weights: np.ndarray | None = None
) -> Frame:
    """The frame of sparse rows: no shift, and for each feature the power of two below its size where it is not zero.

    Parameters
    ----------
    phi : csr_array of shape (n_rows, n_features)
    y : array of shape (n_rows, n_targets), or integer (n_rows,) for one-hot targets
    targets : Targets
    weights : array of shape (n_rows,), optional
        Units are those of a weighted row.

    Raises
    ------
    ScaleError
        If the sample is not finite.
    """
    of_targets = Frame.from_sample(np.zeros((phi.shape[0], 0)), y, targets, None, weights)
    typical = 1.0 if weights is None or not weights.any() else float(np.sqrt(np.mean(weights)))
    if not np.isfinite(phi.data).all():
        msg = "a sample with NaN or infinite values"
        raise ScaleError(msg, "finite features and targets")
    counts = np.bincount(phi.indices, minlength=phi.shape[1])
    squares = np.bincount(phi.indices, phi.data.astype(np.float64) ** 2, phi.shape[1])
    sizes = np.sqrt(np.where(squares > 0, squares / np.maximum(counts, 1), 1.0)) * typical
    _, exponents = np.frexp(sizes)
    return replace(of_targets, origin=np.zeros(phi.shape[1]), exponents=(exponents - 1).astype(np.int32))
