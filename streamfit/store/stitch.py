"""Segments of a Gram matrix that no worker can hold: written in panels, then stitched tile by tile into one.

Floor 4: imports exact, frame, moments and this folder. What is in memory at a time is a tile of each part and the tile
that they make, or a strip of the cross-moments; what is written has the bits, the arrays and the digest of a segment
that was summed at once.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from streamfit.errors import StoreError
from streamfit.exact import BASE, COARSE, DIGIT_BITS, GridSum
from streamfit.frame import Frame, Panel, n_tiles, tile_pairs, tile_size
from streamfit.merging import LargeTables
from streamfit.moments import Moments
from streamfit.plan import Shard
from streamfit.store.arrays_io import Tiles, open_group, write_group
from streamfit.store.log import Segment
from streamfit.store.runs import add_large, stored_tables
from streamfit.store.store import Store
from streamfit.store.sums import SUMS, arrays_of, is_count, limb_names, table_arrays
from streamfit.store.tiles import StoredPart, read_sum, with_top

_STRIP_BYTES = 2**25


@dataclass(frozen=True)
class WrittenPanel:
    """A panel of a group's sums as it lies in a store, uncommitted.

    Parameters
    ----------
    id : str
        Name of its folder among the segments.
    panel : Panel
    """

    id: str
    panel: Panel


def write_panel(store: Store, sums: Moments, panel: Panel, tables: LargeTables) -> WrittenPanel:
    """Write the sums of one panel; the first carries what belongs to no panel, vectors and tables of counts.

    Nothing is flushed to disk: until they are stitched, panels are worth no more than the run that writes them.
    """
    first = panel.row == panel.column == 0
    diagonal = panel.row == panel.column
    kept = {*limb_names("gram"), *(limb_names("cross") if diagonal else ())}
    arrays = {
        name: array for name, array in arrays_of(sums, tables if first else None).items() if first or name in kept
    }
    name = uuid.uuid4().hex
    attributes = {"header": store.record(0).header, "n_rows": sums.n_rows, "panel": asdict(panel)}
    write_group(store.place.objects, f"segments/{name}", attributes, arrays)
    return WrittenPanel(name, panel)


def stitch(store: Store, panels: Sequence[WrittenPanel], shards: Sequence[Shard], n_rows: Sequence[int]) -> Segment:
    """Make one segment of all panels of a group, which stay: Dask may run a task again after it is done.

    Parameters
    ----------
    store : Store
    panels : sequence of WrittenPanel
        One for each panel of the matrix.
    shards, n_rows
        As for `Store.write_segment`.

    Raises
    ------
    StoreError
        If a panel is missing, damaged, or of other rows than the others.
    """
    parts = [_opened(store, written.id, written.panel) for written in panels]
    if len({part.n_rows for part, _ in parts}) > 1 or sum(n_rows) != parts[0][0].n_rows:
        msg = f"panels of {sorted({part.n_rows for part, _ in parts})} rows, for shards of {sum(n_rows)}"
        raise StoreError(msg, "panels of the same rows", "the corpus changed while it was read; run again")
    first = next(part for part, panel in parts if panel.row == panel.column == 0)
    return _written(store, parts, [first], shards, n_rows)


def discard_panels(store: Store, panels: Sequence[WrittenPanel]) -> None:
    """Delete panels of which a segment was made, and delivered."""
    for written in panels:
        store.place.delete_tree(f"segments/{written.id}")


def merge_tiles(
    parts: Sequence[tuple[Store, Segment]], target: Store, rename: Callable[[Shard], Shard] = lambda shard: shard
) -> Segment:
    """Sum whole segments tile by tile into a segment of `target`, not committed: `sum_segments` in little memory."""
    whole = Panel(target.header.frame.n_features)
    opened = [(_opened(store, segment.id, whole), store, segment) for store, segment in parts]
    shards = [shard for _, store, segment in opened for shard in store.ledger(segment)]
    return _written(
        target,
        [part for part, _, _ in opened],
        [part for (part, _), _, _ in opened],
        [*map(rename, shards)],
        [shard.planned_rows for shard in shards],
    )


def _opened(store: Store, name: str, panel: Panel) -> tuple[StoredPart, Panel]:
    where = f"segments/{name}"
    attributes, arrays = open_group(store.place.objects, where)
    if attributes.get("header") != store.record(0).header:
        msg = f"{where} does not belong to this store's log"
        raise StoreError(msg, "sums under this header", "run again")
    return StoredPart(store.place.objects, where, attributes["n_rows"], arrays), panel


def _written(
    store: Store,
    parts: Sequence[tuple[StoredPart, Panel]],
    whole: Sequence[StoredPart],
    shards: Sequence[Shard],
    n_rows: Sequence[int],
) -> Segment:
    """Write the sum of parts; vectors and tables are taken from those that are `whole`."""
    frame = store.header.frame
    k = frame.n_targets
    lengths = {"weight": 1, "sum_x": frame.n_features, "sum_y": k, "sum_yy": k}
    arrays: dict[str, Any] = {}
    for name in SUMS:
        if name in lengths:
            total = _added([read_sum(part, name, (lengths[name],), ...) for part in whole])
            arrays |= dict(zip(_names(name, total.top, total.bottom), _limbs(total), strict=True))
    arrays |= _gram(parts, frame) | _cross(parts, frame)
    counts = [stored_tables({n: a for n, a in part.arrays.items() if is_count(n)}, part.where) for part in whole]
    arrays |= table_arrays(add_large(counts))
    return store.write_arrays(arrays, sum(part.n_rows for part in whole), shards, n_rows)


def _gram(parts: Sequence[tuple[StoredPart, Panel]], frame: Frame) -> dict[str, Tiles]:
    d, b = frame.n_features, tile_size(frame.n_features)
    holders: list[list[tuple[StoredPart, int]]] = [[] for _ in range(n_tiles(d))]
    for part, panel in parts:
        for local, (index, _, _) in enumerate(panel.tiles()):
            holders[index].append((part, local))
    if not all(holders):
        msg = f"panels without tile {holders.index([])} of the Gram matrix"
        raise StoreError(msg, "a panel for every tile", "run again")

    def tile(index: int) -> GridSum:
        return _added([read_sum(part, "gram", (b, b), local) for part, local in holders[index]])

    # The largest entries of a matrix of this kind are on its diagonal, which so has as many limbs as the whole.
    ends = [(total.top, total.bottom) for total in (tile(index) for index, r, c in tile_pairs(d) if r == c)]
    top, bottom = max(t for t, _ in ends), ends[0][1]

    def limb(i: int) -> Callable[[int], np.ndarray]:
        return lambda index: _limbs(with_top(tile(index), top))[i][None]

    shape = (n_tiles(d), b, b)
    return {name: Tiles(shape, (1, b, b), limb(i)) for i, name in enumerate(_names("gram", top, bottom))}


def _cross(parts: Sequence[tuple[StoredPart, Panel]], frame: Frame) -> dict[str, Tiles]:
    d, k = frame.n_features, frame.n_targets
    step = max(1, min(k, _STRIP_BYTES // (8 * d)))
    bands: dict[int, list[tuple[StoredPart, slice]]] = {}
    for part, panel in parts:
        columns = panel.features()
        if columns.stop > columns.start:
            bands.setdefault(columns.start, []).append((part, columns))

    def pieces(strip: int) -> Iterator[GridSum]:
        rows = slice(strip * step, min((strip + 1) * step, k))
        for start in sorted(bands):
            columns = bands[start][0][1]
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            yield _added([read_sum(part, "cross", shape, rows) for part, _ in bands[start]])

    n_strips = -(-k // step)
    ends = [(total.top, total.bottom) for strip in range(n_strips) for total in pieces(strip)]
    top, bottom = max(t for t, _ in ends), ends[0][1]

    def limb(i: int) -> Callable[[int], np.ndarray]:
        return lambda strip: np.concatenate([_limbs(with_top(total, top))[i] for total in pieces(strip)], axis=1)

    return {name: Tiles((k, d), (step, d), limb(i)) for i, name in enumerate(_names("cross", top, bottom))}


def _added(sums: list[GridSum]) -> GridSum:
    total = sums[0]
    for other in sums[1:]:
        total = total + other
    return total


def _names(name: str, top: int, bottom: int) -> list[str]:
    """Names of the limbs of a sum, from the coarsest."""
    exponents = [COARSE, BASE, BASE - DIGIT_BITS]
    return [n for n, e in zip(limb_names(name), exponents, strict=True) if bottom <= e <= top]


def _limbs(total: GridSum) -> list[np.ndarray]:
    return [limb * 2.0 ** (total.top - DIGIT_BITS * i) for i, limb in enumerate(total.limbs)]
