"""The sufficient statistics of a linear fit: sums over rows that add, subtract and scale exactly.

Floor 2: imports frame, centered, counted, exact, noise, targets, pieces, precision, arrays, errors. A
`MomentsAccumulator` adds blocks of rows and `Moments` is the frozen result.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np

from streamfit.arrays import (
    Array,
    Precision,
    class_sums,
    compute_dtype,
    in_columns,
    laid_out,
    may_overwrite,
    namespace,
    operand,
    plain_product,
    products_join,
    row_major,
    rows_like,
    to_device_of,
    to_host,
    transposed_product,
)
from streamfit.centered import Centered, unpack_tiles
from streamfit.counted import ClassCounts, CountedBlock, TargetSums
from streamfit.errors import ConfigError, MismatchError, ScaleError
from streamfit.exact import GridAccumulator, GridSum
from streamfit.frame import BLOCK_ROWS, Frame, Panel, tile_size, tiles_at_once
from streamfit.noise import diagonal_noise, hidden_features
from streamfit.pieces import ColumnSums, Pieces, cached_parts, cached_rows, column_sums
from streamfit.precision import n_limbs, parts, rounded
from streamfit.targets import Targets

_WALKED = 4
"""Arrays that lie in the cache together where products are added: the product, its digits and two limbs."""
_LATE_EXPONENT = 16
"""Units up to 2^16 are taken from products rather than from rows, where neither can leave the range of float32."""


class _Place(NamedTuple):
    """A tile of a panel: which of its sums, and of which features."""

    tile: int
    rows: slice
    columns: slice


def _corner(place: _Place) -> tuple[int, int]:
    return place.rows.start, place.columns.start


def _work(run: list[_Place]) -> float:
    """Operations of a run's product, a row: of a tile on the diagonal half as many, for syrk takes it."""
    half = 0.5 if run[0].rows == run[0].columns else 1.0
    return half * float(sum((p.rows.stop - p.rows.start) * (p.columns.stop - p.columns.start) for p in run))


@dataclass(frozen=True)
class Moments:
    """Sums over weighted rows of features φ and targets y, in the units of `frame` (φ, y shifted and scaled).

    `+` and `-` are exact, associative and commutative, `Moments.zeros` is their identity, and the moments of
    two whole shards together are the sum of theirs, bit for bit. `*` scales by a number: exactly for
    integers, else rounded to the grid.

    Parameters
    ----------
    frame : Frame
    one_hot : bool
        Whether targets are class ids.
    n_rows : int
    weight : GridSum of shape ()
        Sum of w.
    sum_x, sum_y, sum_yy : GridSum of shape (n_features,), (n_targets,), (n_targets,)
        Sums of w φ, w y and w y∘y.
    gram : GridSum of shape (n_tiles, b, b)
        Sum of w φφ': tiles of the upper triangle, row by row; what lies outside the matrix is zero. Below the
        diagonal of a diagonal tile stands the mirror image, equal but for rounding where rows have weights.
    cross : GridSum of shape (n_targets, n_features)
        Sum of w y φ': one row a target, so that a block of class ids touches only the classes it holds.
    precision : {'float32', 'float64', 'tf32', 'bf16'}
        What products were taken in. Sums of different precisions do not add.
    """

    frame: Frame
    one_hot: bool
    n_rows: int
    weight: GridSum
    sum_x: GridSum
    sum_y: GridSum
    sum_yy: GridSum
    gram: GridSum
    cross: GridSum
    precision: Precision = "float64"

    @classmethod
    def zeros(cls, frame: Frame, targets: Targets, precision: Precision = "float64") -> Moments:
        """The identity of `+`."""
        return MomentsAccumulator(frame, targets, precision).moments()

    @classmethod
    def from_rows(
        cls,
        phi: Array,
        y: Array,
        frame: Frame,
        targets: Targets,
        *,
        weights: Array | None = None,
        precision: Precision = "float64",
    ) -> Moments:
        """Moments of one shard's rows; see `MomentsAccumulator.add` for shapes and errors.

        Examples
        --------
        >>> import numpy as np
        >>> from streamfit.targets import Dense
        >>> phi, y = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0], [0.0]])
        >>> m = Moments.from_rows(phi, y, Frame.identity(2, 1), Dense(1))
        >>> m.n_rows, m.centered().gram.tolist()
        (2, [[2.0, 2.0], [2.0, 2.0]])
        """
        accumulator = MomentsAccumulator(frame, targets, precision, like=phi)
        accumulator.add(phi, y, weights=weights)
        return accumulator.moments()

    @property
    def total_weight(self) -> float:
        """Sum of w."""
        return float(to_host(self.weight.value()))

    def _sums(self) -> dict[str, GridSum]:
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), GridSum)}

    def _check(self, other: Moments) -> None:
        if self.frame != other.frame or self.one_hot != other.one_hot:
            msg = "moments with different origins, units or targets"
            raise MismatchError(msg, "one frame for all", "accumulate both with the same store header")
        if self.precision != other.precision:
            msg = f"sums in {self.precision} and {other.precision}"
            raise MismatchError(msg, "equal precision", "fit both with the same precision")

    def __add__(self, other: Moments) -> Moments:
        self._check(other)
        theirs = other._sums()
        sums: dict[str, Any] = {name: mine + theirs[name] for name, mine in self._sums().items()}
        return replace(self, n_rows=self.n_rows + other.n_rows, **sums)

    def __sub__(self, other: Moments) -> Moments:
        self._check(other)
        theirs = other._sums()
        sums: dict[str, Any] = {name: mine - theirs[name] for name, mine in self._sums().items()}
        return replace(self, n_rows=self.n_rows - other.n_rows, **sums)

    def __mul__(self, factor: float) -> Moments:
        """Weight every row by `factor`. A whole factor is that many repeats; another leaves `n_rows` as it is."""
        sums: dict[str, Any] = {name: mine * factor for name, mine in self._sums().items()}
        repeats = int(factor) if float(factor).is_integer() else 1
        return replace(self, n_rows=self.n_rows * repeats, **sums)

    __rmul__ = __mul__

    def to_host(self) -> Moments:
        """The same moments in host memory."""
        sums: dict[str, Any] = {name: mine.to_host() for name, mine in self._sums().items()}
        return replace(self, **sums)

    def centered(self) -> Centered:
        """Centred float64 matrices in natural units.

        Raises
        ------
        MismatchError
            If there are no rows: nothing can be divided by their weight.
        """
        weight = self.total_weight
        if not weight > 0:
            msg = f"moments of {self.n_rows} rows with total weight {weight:g}"
            raise MismatchError(msg, "a positive total weight", "add rows before solving")
        units = np.ldexp(1.0, self.frame.exponents)
        y_units = np.ldexp(1.0, self.frame.y_exponents)
        sum_x, sum_y = to_host(self.sum_x.value()), to_host(self.sum_y.value())
        gram = unpack_tiles(to_host(self.gram.value()), self.frame.n_features)
        mean_x = self.frame.origin + units * (sum_x / weight)
        raw = np.diag(gram).copy()
        noise = diagonal_noise(raw, self.gram.bottom, self.n_rows, weight, units, mean_x, self.precision)
        cross = to_host(self.cross.value())
        # The shift cancels in centred moments; the division by the weight comes last.
        gram = (gram - np.outer(sum_x, sum_x) / weight) * units * units[:, None]
        cross = (cross.T - np.outer(sum_x, sum_y / weight)) * y_units * units[:, None]
        ss_y = (to_host(self.sum_yy.value()) - sum_y * sum_y / weight) * y_units**2
        return Centered(
            n_rows=self.n_rows,
            weight=weight,
            mean_x=mean_x,
            mean_y=self.frame.y_origin + y_units * (sum_y / weight),
            gram=gram,
            cross=cross,
            ss_y=np.maximum(ss_y, 0.0),
            noise=noise,
            hidden=hidden_features(
                raw,
                np.diag(gram),
                noise,
                self.gram.bottom,
                self.n_rows,
                weight,
                units,
                self.frame.origin,
                sum_x,
                self.precision,
            ),
        )


class MomentsAccumulator:
    """Adds rows into exact sums: the mutable builder of `Moments`.

    Parameters
    ----------
    frame : Frame
    targets : Targets
    precision : {'float32', 'float64', 'tf32', 'bf16'}
        What features are rounded to and products are taken in. Sums are exact float64 in any case.
    like : array, optional
        Gives the array library and device; NumPy without it.
    n_threads : int
        Tiles of the Gram matrix, or runs of neighbouring ones, that are multiplied at the same time. Each product must
        itself run on one BLAS thread: OpenBLAS rounds differently with other thread counts, tile by tile it does not.
    overwrite : bool
        Rows of features are not needed once they are added: they may be centred where they lie, which saves a copy, and
        with several threads a block may still be multiplied while the next one is made, which must lie elsewhere.
    panel : Panel, optional
        The part of the Gram matrix to sum, and so of the cross-moments; all of it without one.
    """

    def __init__(
        self,
        frame: Frame,
        targets: Targets,
        precision: Precision,
        *,
        like: Array | None = None,
        n_threads: int = 1,
        overwrite: bool = False,
        panel: Panel | None = None,
    ) -> None:
        self._overwrite = overwrite
        self._like = np.empty(0) if like is None else like
        xp = self._xp = namespace(self._like)
        self._dtype, self._precision = compute_dtype(xp, precision), precision
        self._frame, self._targets = frame, targets
        d, k, b = frame.n_features, frame.n_targets, tile_size(frame.n_features)
        if k != targets.n_targets:
            msg = f"a frame for {k} targets"
            raise MismatchError(msg, f"{targets.n_targets} targets")
        self._shift = self._on_device(frame.origin)
        self._scale = self._on_device(np.ldexp(1.0, -frame.exponents))
        self._y_shift = self._on_device(frame.y_origin)
        self._y_scale = self._on_device(np.ldexp(1.0, -frame.y_exponents))
        # A product with a power of two is exact, so rows that need no shift can be multiplied where they lie, and their
        # units be taken from the products: the same bits without a copy of the rows.
        self._late = not frame.origin.any() and bool((np.abs(frame.exponents) <= _LATE_EXPONENT).all())
        self._has_units = bool(frame.exponents.any())
        self._rooms: list[Array | None] = [None, None]
        panel = panel or Panel(d)
        self._tiles = [_Place(i, r, c) for i, (_, r, c) in enumerate(panel.tiles())]
        self._columns, self._edge, self._n_threads = panel.features(), b, n_threads
        big = n_limbs(precision)
        shapes: dict[str, tuple[tuple[int, ...], int]] = {
            "weight": ((), 2),
            "sum_x": ((d,), 2),
            "sum_y": ((k,), 2),
            "sum_yy": ((k,), 2),
            "gram": ((len(self._tiles), b, b), big),
            "cross": ((k, self._columns.stop - self._columns.start), big),
        }
        self._sums = {name: GridAccumulator(s, limbs, self._like) for name, (s, limbs) in shapes.items()}
        self._n_rows = 0
        self._pool = ThreadPoolExecutor(n_threads) if n_threads > 1 else None
        self._multiplied: list[Future[None]] = []

    def _on_device(self, host: np.ndarray) -> Array:
        return to_device_of(host, self._like)

    def add(self, phi: Array | Pieces, y: Array, *, weights: Array | None = None) -> None:
        """Add a shard's rows, in blocks of `BLOCK_ROWS` counted from the first row given.

        Parameters
        ----------
        phi : floating array, or pieces of one, of shape (n_rows, n_features)
        y : floating array of shape (n_rows, n_targets), or integer (n_rows,) for one-hot targets
        weights : floating array of shape (n_rows,), optional
            Nonnegative and finite; 1 for every row without it.

        Raises
        ------
        MismatchError
            If shapes do not fit the frame, or class ids are not integers.
        ConfigError
            If a class id or a row weight is out of range.
        ScaleError
            If a value is NaN, infinite, or too large for the exact sums. Nothing of its block is added then.
        """
        n_rows, n_features = phi.shape
        if n_features != self._frame.n_features or y.shape[0] != n_rows:
            msg = f"features of shape {tuple(phi.shape)} with targets of shape {tuple(y.shape)}"
            raise MismatchError(msg, f"(n_rows, {self._frame.n_features}) and as many targets as rows")
        if weights is not None and tuple(weights.shape) != (n_rows,):
            msg = f"row weights of shape {tuple(weights.shape)}"
            raise MismatchError(msg, f"({n_rows},)")
        if isinstance(phi, Pieces) and n_rows > BLOCK_ROWS:
            phi = phi.whole()
        for lo in range(0, n_rows, BLOCK_ROWS):
            rows = slice(lo, min(lo + BLOCK_ROWS, n_rows))
            block = phi if isinstance(phi, Pieces) else phi[rows, :]
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
                self._add_block(block, y[rows, ...], None if weights is None else weights[rows])
        self._n_rows += n_rows

    def add_counted(self, phi: Array | Pieces, block: CountedBlock) -> None:
        """Add distinct rows with their counts: the sums that all the rows they stand for have.

        Equal to them where no product rounds: in float32, for integer features in units of the frame, as long as no
        sum of a block passes 2^24.

        Parameters
        ----------
        phi : floating array, or pieces of one, of shape (n_distinct, n_features)
            Features of `block.x`.
        block : CountedBlock
            From `count_rows`, its arrays on the accumulator's device.

        Raises
        ------
        MismatchError
            If shapes do not fit the frame.
        ScaleError
            As `add`.
        """
        n_features = self._frame.n_features
        if tuple(phi.shape) != (block.x.shape[0], n_features):
            msg = f"features of shape {tuple(phi.shape)} of {block.x.shape[0]} distinct rows"
            raise MismatchError(msg, f"({block.x.shape[0]}, {n_features})")
        with np.errstate(over="ignore", invalid="ignore"):
            self._add_block(phi, block.targets, block.weights)
        self._n_rows += block.n_rows

    def _add_block(self, phi: Array | Pieces, y: Array | ClassCounts | TargetSums, weights: Array | None) -> None:
        xp, sums, f64 = self._xp, self._sums, self._xp.float64
        weight = float(phi.shape[0]) if weights is None else self._checked_weight(weights)
        z, wz, weighted, sum_x, peak = self._prepared(phi, weights)
        if not np.isfinite(peak):
            msg = "a NaN, infinite or overflowing feature value"
            raise ScaleError(msg, "finite features", "look at the rows of this shard")
        # Everything is checked and has its room reserved before anything is added: a refused block leaves no trace.
        if isinstance(y, ClassCounts | TargetSums):
            y_peak, add_targets = self._counted_block(z, y)
        elif self._targets.one_hot:
            y_peak, add_targets = self._class_block(wz, y, weights)
        else:
            y_peak, add_targets = self._dense_block(wz, y, weights)
        self._finish()
        sums["gram"].reserve(1.01 * peak)
        sums["cross"].reserve(1.01 * float(np.sqrt(peak * y_peak)))
        sums["weight"].reserve(weight)
        sums["sum_x"].reserve(float(xp.max(xp.abs(sum_x))))
        add_targets()
        sums["weight"].add_reserved(xp.asarray(weight, dtype=f64, device=sum_x.device))
        sums["sum_x"].add_reserved(sum_x)
        units = xp.astype(self._scale, self._dtype) if self._late and self._has_units else None

        left = operand(z, self._precision)
        # The same memory on both sides is multiplied by syrk, which does half the work.
        right = [left] if weights is None else [operand(piece, self._precision) for piece in weighted]

        def multiply(run: list[_Place]) -> None:
            top, first, bottom, last = *_corner(run[0]), run[-1].rows.stop, run[-1].columns.stop
            taken = [piece[:, first:last] for piece in right]
            product = transposed_product(left[:, top:bottom], taken, self._precision)
            for tile, r, c in run:
                part, width = product[r.start - top : r.stop - top, c.start - first : c.stop - first], c.stop - c.start
                for strip in cached_rows(r.stop - r.start, _WALKED * width, product):
                    block = part[strip, :]
                    if units is not None:
                        block *= units[r][strip][:, None]
                        block *= units[c]
                    sums["gram"].add_reserved(block, (tile, strip, slice(0, width)))

        runs = self._runs(left)
        if self._pool is None:
            for run in runs:
                multiply(run)
        else:
            self._multiplied = [self._pool.submit(multiply, run) for run in runs]
            if self._overwrite:
                self._rooms.reverse()  # the next block is centred elsewhere, while this one is multiplied
            else:  # what the caller does with its rows is not known
                self._finish()

    def _runs(self, rows: Array) -> list[list[_Place]]:
        """The panel's tiles, neighbours together: as many as leave work for every thread; the most work first."""
        edge, most = self._edge, tiles_at_once(len(self._tiles), self._edge, self._n_threads)
        if most == 1 or not products_join(rows, edge):
            return [[place] for place in self._tiles]
        # Whole tiles beside the diagonal: two of a column, where there are, and as many of those side by side.
        left = {_corner(p): p for p in self._tiles if p.rows != p.columns and p.columns.stop - p.columns.start == edge}
        runs = [[place] for place in self._tiles if _corner(place) not in left]
        while left:
            row, column = next(iter(left))
            pair = (row + edge, column) in left
            taken = (row, row + edge) if pair else (row,)
            width = 1
            while (width + 1) * len(taken) <= most:
                here = column + width * edge
                if (row, here) not in left or ((row + edge, here) in left) != pair:
                    break
                width += 1
            runs.append([left.pop((r, column + i * edge)) for r in taken for i in range(width)])
        return sorted(runs, key=_work, reverse=True)

    def _finish(self) -> None:
        """Wait for the tiles of the last block: one thread prepares a block, and the others need not wait for it."""
        for tile in self._multiplied:
            tile.result()
        self._multiplied = []

    def _prepared(
        self, phi: Array | Pieces, weights: Array | None
    ) -> tuple[Array, Array, tuple[Array, ...], Array, float]:
        """Rows to multiply, the same times their weights, whole and in parts that products take as they are.

        One walk through the rows, a cache-sized piece at a time. Beside them, in units: sums of columns, and the
        largest sum of squares.
        """
        xp, dtype, precision = self._xp, self._dtype, self._precision
        exact = precision in ("float32", "float64")
        made = phi if isinstance(phi, Pieces) else None
        if made is not None:
            z = self._buffer(made.inputs)
        elif self._late and exact and phi.dtype == dtype:
            z = laid_out(phi)
        else:
            z = phi if self._overwrite and may_overwrite(phi, dtype) else self._buffer(phi)
        n_parts = 0 if weights is None else 1 if exact else 2
        weighted = tuple(xp.empty_like(z) for _ in range(n_parts))
        wz = weighted[0] if n_parts == 1 else z if not n_parts else xp.empty_like(z)
        # Rows of float32 lose digits where an origin is taken from them, unless it is done in float64.
        work = xp.result_type(phi.dtype, dtype)
        shift, scale = xp.astype(self._shift, work), xp.astype(self._scale, work)
        squares = xp.zeros(z.shape[1], dtype=dtype, device=z.device)
        # Where a piece has all rows of some columns, their sums are taken while the cache holds it.
        sums = ColumnSums(z) if in_columns(z) else None
        for rows, columns in cached_parts(z):
            place = z[rows, columns]
            piece = made.part(rows, columns, place) if made is not None else phi[rows, columns]  # type: ignore[index]
            if not self._late and piece is place:
                piece -= shift[columns]
                piece *= scale[columns]
            elif not self._late:
                piece = (xp.astype(piece, work, copy=False) - shift[columns]) * scale[columns]
            piece = xp.astype(piece, dtype, copy=False)
            if not exact:
                piece = rounded(piece, precision)
            if piece is not place and not (z is phi and self._late and exact):
                place[...] = piece
            piece = heavy = place
            if weights is not None:
                pieces = parts(piece * xp.astype(weights[rows], dtype)[:, None], precision)
                heavy = sum(pieces[1:], start=pieces[0])
                wz[rows, columns] = heavy
                for array, part in zip(weighted, pieces, strict=True) if n_parts == 2 else ():
                    array[rows, columns] = part
            # One column after another is read fastest where they lie so; where rows do, all at a time.
            if sums is not None:
                squares[columns] = xp.vecdot(heavy, piece, axis=0)
                sums.fold(heavy, columns)
            else:
                squares[columns] += xp.sum(heavy * piece, axis=0)
        sum_x = column_sums(wz) if sums is None else sums.total()
        if self._late:
            sum_x, squares = sum_x * self._scale, xp.astype(squares, xp.float64) * self._scale**2
        return z, wz, weighted, sum_x, float(xp.max(squares))

    def _buffer(self, like: Array) -> Array:
        """Where a block is centred, laid out as another: memory that no block is multiplied in."""
        room, n_rows = self._rooms[0], like.shape[0]
        if room is None or room.shape[0] < n_rows or in_columns(room) != in_columns(like):
            room = self._rooms[0] = rows_like(like, self._frame.n_features, self._dtype)
        return room[:n_rows, :]

    def _checked_weight(self, weights: Array) -> float:
        xp = self._xp
        if not bool(xp.all(xp.isfinite(weights) & (weights >= 0))):
            msg = "a row weight that is negative, NaN or infinite"
            raise ConfigError(msg, "finite weights >= 0")
        return float(xp.sum(weights, dtype=xp.float64))

    def _class_block(self, wz: Array, y: Array, weights: Array | None) -> tuple[float, Callable[[], None]]:
        xp, sums, k = self._xp, self._sums, self._targets.n_targets
        if y.ndim != 1 or not xp.isdtype(y.dtype, "integral"):
            msg = f"class ids of shape {tuple(y.shape)} and type {y.dtype}"
            raise MismatchError(msg, "integers of shape (n_rows,)")
        low, high = int(xp.min(y)), int(xp.max(y))
        if low < 0 or high >= k:
            msg = f"class id {low if low < 0 else high}"
            raise ConfigError(msg, f"ids in [0, {k})")
        ones = xp.ones(y.shape, dtype=xp.float64, device=y.device)
        row_weights = ones if weights is None else xp.astype(weights, xp.float64)
        present, counts = class_sums(row_weights[:, None], y, k)
        _, products = class_sums(row_major(wz[:, self._columns]), y, k)
        peak = float(xp.max(counts))
        where = ... if present is None else present
        sums["sum_y"].reserve(peak)
        sums["sum_yy"].reserve(peak)

        def add() -> None:
            sums["sum_y"].add_reserved(counts[:, 0], where)
            sums["sum_yy"].add_reserved(counts[:, 0], where)
            self._add_cross(products, present)

        return peak, add

    def _dense_block(self, wz: Array, y: Array, weights: Array | None) -> tuple[float, Callable[[], None]]:
        xp, sums = self._xp, self._sums
        if y.ndim != 2 or y.shape[1] != self._targets.n_targets:
            msg = f"targets of shape {tuple(y.shape)}"
            raise MismatchError(msg, f"(n_rows, {self._targets.n_targets})")
        v = (xp.astype(y, xp.float64) - self._y_shift) * self._y_scale
        wv = v if weights is None else v * xp.astype(weights, xp.float64)[:, None]
        sum_y, sum_yy = xp.sum(wv, axis=0), xp.sum(wv * v, axis=0)
        peak = float(xp.max(sum_yy))
        if not np.isfinite(peak):
            msg = "a NaN, infinite or overflowing target value"
            raise ScaleError(msg, "finite targets", "look at the rows of this shard")
        products = self._by_tiles(xp.matrix_transpose(xp.astype(v, self._dtype)), wz)
        sums["sum_y"].reserve(float(xp.max(xp.abs(sum_y))))
        sums["sum_yy"].reserve(peak)

        def add() -> None:
            sums["sum_y"].add_reserved(sum_y)
            sums["sum_yy"].add_reserved(sum_yy)
            self._add_cross(products, None)

        return peak, add

    def _by_tiles(self, targets: Array, wz: Array) -> Array:
        """Product of targets with the panel's columns, tile by tile: it rounds alike whatever else is multiplied."""
        xp, first = self._xp, self._columns.start
        products = xp.empty((targets.shape[0], self._columns.stop - first), dtype=wz.dtype, device=wz.device)
        for lo in range(first, self._columns.stop, self._edge):
            hi = min(lo + self._edge, self._columns.stop)
            products[:, lo - first : hi - first] = plain_product(targets, wz[:, lo:hi])
        return products

    def _add_cross(self, products: Array, targets: Array | None) -> None:
        units = None
        if self._late and self._has_units:
            units = self._xp.astype(self._scale[self._columns], products.dtype)
        for strip in cached_rows(products.shape[0], products.shape[1], products):
            block = products[strip, :] if units is None else products[strip, :] * units
            where = (strip, slice(None)) if targets is None else targets[strip]
            self._sums["cross"].add_reserved(block, where)

    def _counted_block(self, z: Array, y: ClassCounts | TargetSums) -> tuple[float, Callable[[], None]]:
        xp, sums, k = self._xp, self._sums, self._targets.n_targets
        present: Array | None = None
        where: Any = ...
        if isinstance(y, ClassCounts):
            present, counts = class_sums(y.weights[:, None], y.ids, k)
            _, products = class_sums(row_major(z[:, self._columns]), y.ids, k, of=y.rows, weights=y.weights)
            where = ... if present is None else present
            sum_y = sum_yy = counts[:, 0]
        else:
            sum_y, sum_yy = xp.sum(y.sums, axis=0), xp.sum(y.squares, axis=0)
            products = self._by_tiles(xp.matrix_transpose(xp.astype(y.sums, self._dtype)), z)
        peak = float(xp.max(sum_yy))
        if not np.isfinite(peak):
            msg = "a NaN, infinite or overflowing target value"
            raise ScaleError(msg, "finite targets", "look at the rows of this shard")
        sums["sum_y"].reserve(float(xp.max(xp.abs(sum_y))))
        sums["sum_yy"].reserve(peak)

        def add() -> None:
            sums["sum_y"].add_reserved(sum_y, where)
            sums["sum_yy"].add_reserved(sum_yy, where)
            self._add_cross(products, present)

        return peak, add

    def moments(self) -> Moments:
        """The sums so far. The accumulator must not be used afterwards.

        With a panel, `gram` has its tiles alone, and `cross` its columns.
        """
        self._finish()
        if self._pool is not None:
            self._pool.shutdown()
        sums: dict[str, Any] = {name: accumulator.total() for name, accumulator in self._sums.items()}
        return Moments(self._frame, self._targets.one_hot, self._n_rows, **sums, precision=self._precision)
