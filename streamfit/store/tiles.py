"""The Gram matrix of a store tile by tile, and a place outside memory for the tiles of its factor.

Floor 4: imports moments, exact, solve's tiles, and this folder. No segment is ever read whole: what is summed at a time
is one tile of each.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import zarr
from obstore.store import ObjectStore
from zarr.codecs import Crc32cCodec

from streamfit.errors import MismatchError, PlanError, StoreError
from streamfit.exact import BASE, COARSE, GridSum, canonical
from streamfit.frame import tile_size
from streamfit.noise import diagonal_noise
from streamfit.plan import size_text
from streamfit.solve.tiles import TiledPlan, TiledSums, tile_edges
from streamfit.store.arrays_io import check_again, open_group, reading
from streamfit.store.log import Record, Segment
from streamfit.store.mix import Mix
from streamfit.store.place import first_line
from streamfit.store.store import Store
from streamfit.store.sums import is_count, limb_names, sum_of


class StoredPart(NamedTuple):
    """A live segment, opened but not read."""

    objects: ObjectStore
    where: str
    n_rows: int
    arrays: dict[str, Any]


class StoreTiles:
    """Tiles of a store's centred Gram matrix, in natural units: a `TileSource`.

    Each tile has the bits of `store.moments(mix=mix).centered().gram`, or of `about` zero without an intercept, but for
    the rows and columns of features that do not vary, which are zero as `solve` clears them. Segments are those that
    are live when it is made; pin the commit, where others may compact the store meanwhile.

    Parameters
    ----------
    store : Store
    mix : Mix, optional
        Weights of segments.
    fit_intercept : bool

    Raises
    ------
    StoreError
        If an array or a chunk is missing.
    MismatchError
        If no rows count, or the store has no sums of products.
    """

    def __init__(self, store: Store, mix: Mix | None = None, *, fit_intercept: bool = True) -> None:
        self._frame, self._fit_intercept = store.header.frame, fit_intercept
        self._precision = store.header.precision
        head = store.head()
        self._groups = [
            (factor, [_opened(store, head, segment) for segment in segments])
            for factor, segments in (mix or Mix()).spread(head.segments)
        ]
        if not any(part.n_rows for _, parts in self._groups for part in parts):
            msg = f"{store.place} without rows that count"
            raise MismatchError(msg, "a positive total weight", "add rows before solving")

    @property
    def n_features(self) -> int:
        """Number of features D."""
        return self._frame.n_features

    @property
    def edge(self) -> int:
        """Edge of the tiles, as they are stored."""
        return tile_size(self.n_features)

    @property
    def stored_tiles(self) -> int:
        """Tiles at rest that one tile is the sum of."""
        return sum(len(part.arrays.keys() & {*limb_names("gram")}) for _, parts in self._groups for part in parts)

    @property
    def work_tiles(self) -> int:
        """Two sums and the next, with what carrying between limbs takes, and one read and decompressed beside them."""
        limbs = max(len(part.arrays.keys() & {*limb_names("gram")}) for _, parts in self._groups for part in parts)
        return 4 * limbs + 4

    def read(self, i: int, j: int) -> np.ndarray:
        """Tile (i, j), i <= j, summed over segments.

        Raises
        ------
        StoreError
            If a chunk is damaged, or was deleted meanwhile.
        """
        m, (r, c) = self._margins, (self._edges[i], self._edges[j])
        total, _ = self._sum(lambda part: self._tile(part, i, j), m.tops)
        tile: np.ndarray = total.value()[: r.stop - r.start, : c.stop - c.start]
        if i == j:
            # As in `unpack_tiles`: with row weights the halves may differ by rounding; the upper one counts.
            tile = np.triu(tile) + np.triu(tile, 1).T
        # The same operations in the same order as `Moments.centered`, and so the same bits.
        shift = np.outer(m.sum_x[r], m.sum_x[c])
        shift /= m.weight
        tile = np.subtract(tile, shift, out=shift)
        tile *= m.units[c]
        tile *= m.units[r, None]
        if not self._fit_intercept:
            tile += m.weight * np.outer(m.mean_x[r], m.mean_x[c])
        tile[m.constant[r], :] = 0.0
        tile[:, m.constant[c]] = 0.0
        return tile

    def sums(self) -> TiledSums:
        """What a solve needs beside the tiles; reads all arrays but the off-diagonal tiles and the cross products."""
        m = self._margins
        zero = np.zeros_like(m.mean_x), np.zeros_like(m.mean_y)
        mean_x, mean_y = (m.mean_x, m.mean_y) if self._fit_intercept else zero
        return TiledSums(self, self._cross, m.diagonal, m.noise, mean_x, mean_y, m.ss_y)

    @cached_property
    def _edges(self) -> list[slice]:
        return tile_edges(self.n_features, self.edge)

    def _tile(self, part: StoredPart, i: int, j: int) -> GridSum:
        t = len(self._edges)
        chunk = i * t - i * (i - 1) // 2 + j - i  # tiles of the upper triangle, row by row
        return read_sum(part, "gram", (self.edge, self.edge), chunk)

    def _sum(
        self, read: Callable[[StoredPart], GridSum], tops: tuple[int, ...] = ()
    ) -> tuple[GridSum, tuple[int, ...]]:
        """The exact sum, over segments, of what `read` makes of one, weighted as `Store.moments` does it.

        A sum of three limbs is not rounded as one of two is, and how many there are is decided for a matrix as a whole:
        `tops` tells it to a part. Those found come back too, of each group of equal weight and of the total.
        """
        total: GridSum | None = None
        found = []
        for g, (factor, parts) in enumerate(self._groups):
            group = read(parts[0])
            for part in parts[1:]:
                group = group + read(part)
            group = with_top(group, tops[g] if tops else BASE)
            found.append(group.top)
            group = group if factor == 1.0 else group * factor
            total = group if total is None else total + group
        assert total is not None  # some rows count
        total = with_top(total, tops[-1] if tops else BASE)
        return total, (*found, total.top)

    @cached_property
    def _margins(self) -> _Margins:
        """All that is no larger than a row of the matrix, from diagonal tiles and the small arrays."""
        d, k, frame = self.n_features, self._frame.n_targets, self._frame

        def value(name: str, n: int) -> np.ndarray:
            return np.asarray(self._sum(lambda part: read_sum(part, name, (n,), ...))[0].value())

        weight = float(value("weight", 1)[0])
        if not weight > 0:
            msg = f"a total weight of {weight:g}"
            raise MismatchError(msg, "a positive one", "add rows before solving")
        units, y_units = np.ldexp(1.0, frame.exponents), np.ldexp(1.0, frame.y_exponents)
        sum_x, sum_y, sum_yy = value("sum_x", d), value("sum_y", k), value("sum_yy", k)
        # The largest entries of a matrix of this kind are on its diagonal, which so has as many limbs as the whole.
        total, tops = self._sum(self._diagonal)
        raw = total.value()
        mean_x, mean_y = frame.origin + units * (sum_x / weight), frame.y_origin + y_units * (sum_y / weight)
        n_rows = sum(part.n_rows for _, parts in self._groups for part in parts)
        noise = diagonal_noise(raw, total.bottom, n_rows, weight, units, mean_x, self._precision)
        diagonal = (raw - sum_x * sum_x / weight) * units * units
        ss_y = np.maximum((sum_yy - sum_y * sum_y / weight) * y_units**2, 0.0)
        constant = np.zeros(d, dtype=bool)
        if self._fit_intercept:
            constant = diagonal <= noise
            diagonal = np.where(constant, 0.0, diagonal)
        else:
            diagonal, ss_y = diagonal + weight * (mean_x * mean_x), ss_y + weight * mean_y * mean_y
        return _Margins(weight, sum_x, sum_y, units, y_units, mean_x, mean_y, diagonal, noise, ss_y, constant, tops)

    def _diagonal(self, part: StoredPart) -> GridSum:
        """Diagonal of one segment's matrix, in as many limbs as that has."""
        limbs: list[list[np.ndarray]] = []
        for i in range(len(self._edges)):
            tile = self._tile(part, i, i)
            limbs.append([np.diag(limb).copy() for limb in tile.limbs])
        columns = (np.concatenate(each)[: self.n_features] for each in zip(*limbs, strict=True))
        return GridSum(tuple(columns), tile.top)

    def _cross(self, targets: slice) -> np.ndarray:
        """Centred cross products of some targets, shape (n_features, n_block)."""
        m = self._margins
        shape = (targets.stop - targets.start, self.n_features)
        raw = self._sum(lambda part: read_sum(part, "cross", shape, targets))[0].value()
        cross = (raw.T - np.outer(m.sum_x, m.sum_y[targets] / m.weight)) * m.y_units[targets] * m.units[:, None]
        if not self._fit_intercept:
            cross += m.weight * np.outer(m.mean_x, m.mean_y[targets])
        cross[m.constant] = 0.0
        return np.ascontiguousarray(cross)


class _Margins(NamedTuple):
    """Sums of one index, in the units of the frame, and what follows from them in natural units."""

    weight: float
    sum_x: np.ndarray
    sum_y: np.ndarray
    units: np.ndarray
    y_units: np.ndarray
    mean_x: np.ndarray
    mean_y: np.ndarray
    diagonal: np.ndarray
    noise: np.ndarray
    ss_y: np.ndarray
    constant: np.ndarray
    tops: tuple[int, ...]


def _opened(store: Store, head: Record, segment: Segment) -> StoredPart:
    path = f"segments/{segment.id}"
    attributes, arrays = open_group(store.place.objects, path, lambda name: not is_count(name))
    if attributes.get("header") != head.header or attributes.get("n_rows") != segment.n_rows:
        msg = f"segment {segment.id} does not belong to this store's log"
        raise StoreError(msg, f"{segment.n_rows} rows under this header", "restore it from a backup")
    if not arrays.keys() & {*limb_names("gram")}:
        msg = f"{store.place} with triangular factors in place of sums of products"
        raise MismatchError(msg, "a store with statistic 'gram'", "solve it in memory, or count anew")
    return StoredPart(store.place.objects, path, segment.n_rows, arrays)


def read_sum(part: StoredPart, name: str, shape: tuple[int, ...], where: Any) -> GridSum:
    """One sum of a segment, or the part of it at an index."""
    with reading(part.where):
        arrays = {key: np.asarray(part.arrays[key][where]) for key in limb_names(name) if key in part.arrays}
    for key, array in arrays.items():
        # A chunk that was deleted since reads as zeros; a tile is one chunk, other parts may be of several.
        if not (array.any() if name == "gram" else array.all()):
            check_again(part.objects, f"{part.where}/{key}", part.arrays[key])
    return sum_of(arrays, name, shape, part.where)


def with_top(total: GridSum, top: int) -> GridSum:
    """The canonical form of a total by itself, or with the coarse limb that the array it is a part of has."""
    total = canonical(total.limbs, total.top)
    if top == COARSE and total.top != COARSE:
        return canonical((np.zeros_like(total.limbs[0]), *total.limbs), COARSE, fold=False)
    return total


class Scratch:
    """Tiles of a factor in a Zarr array of a temporary folder, which goes when the context is left.

    Nothing is flushed to disk: it is worth no more than the process that writes it. Chunks carry a checksum.

    Parameters
    ----------
    plan : TiledPlan
    folder : Path, optional
        Where to make the temporary folder; the system's place for such without it. In some systems that is memory.

    Raises
    ------
    PlanError
        If there is not room for what the plan says.
    StoreError
        If the folder cannot be written.
    """

    def __init__(self, plan: TiledPlan, folder: Path | None = None) -> None:
        base = Path(tempfile.gettempdir()) if folder is None else folder
        self._edges = tile_edges(plan.n_features, plan.edge)
        self._where = str(base)
        with self._at_work():
            base.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(base).free
            if free < plan.scratch_bytes:
                msg = (
                    f"a factor of {size_text(plan.scratch_bytes)} outside memory, with {size_text(free)} free at {base}"
                )
                raise PlanError(msg, "room for it", "name another scratch folder, or allow more memory")
            self._folder = tempfile.TemporaryDirectory(dir=base, prefix="streamfit-factor-")
            self._array = zarr.create_array(
                f"{self._folder.name}/factor.zarr",
                shape=(plan.n_features, plan.n_features),
                chunks=(plan.edge, plan.edge),
                dtype=np.float64,
                compressors=[Crc32cCodec()],
                fill_value=np.nan,  # so that a chunk that went missing is no zero
                config={"write_empty_chunks": True},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        try:
            yield
        except PlanError:
            raise
        except Exception as error:  # codecs raise whatever their C library made of damage
            msg = f"scratch tiles in {self._where}: {first_line(error)}"
            raise StoreError(
                msg, "a folder that stays writable and whole", "check disk space and permissions"
            ) from error

    def read(self, i: int, j: int) -> np.ndarray:
        """Tile (i, j).

        Raises
        ------
        StoreError
            If it is damaged or missing.
        """
        with self._at_work():
            tile = np.asarray(self._array[self._edges[i], self._edges[j]])
        if np.isnan(tile[0, 0]):
            msg = f"scratch tile ({i}, {j}) in {self._where} is missing"
            raise StoreError(msg, "a folder that nobody else touches", "run again with another scratch folder")
        return tile

    def write(self, i: int, j: int, tile: np.ndarray) -> None:
        """Keep a tile.

        Raises
        ------
        StoreError
            If there is no room left.
        """
        with self._at_work():
            self._array[self._edges[i], self._edges[j]] = tile
