"""What will be done, in whole numbers, before anything is done: shards into groups, bytes, flops.

Floor 2: integers only; imports frame (for tile sizes), precision, identity, arrays and errors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from streamfit.arrays import Precision
from streamfit.errors import PlanError
from streamfit.frame import BLOCK_ROWS, bands_of, n_tiles, tile_size, tiles_at_once
from streamfit.identity import content_id
from streamfit.precision import item_bytes, n_limbs

_LEAST_GROUP = 8 * BLOCK_ROWS
PROCESS_BYTES = 300 * 2**20
"""What a Python process with this package's libraries loaded takes before it has any data."""
_DEVICE_BYTES = 500 * 10**6
"""What a CUDA context and the kernels of cuBLAS take of a GPU, as NVIDIA's tools show it for others."""
BLOCKS_AHEAD = 4
"""Blocks of rows in a worker: one that is multiplied, two that wait, one that is being made.

More wait where they are parts of one piece of memory, or where equal rows among them are looked for."""


FOLD_DIGITS = 15
"""Digits of a content id that say which fold a shard is in."""


@dataclass(frozen=True)
class Shard:
    """The unit that is counted exactly once.

    Parameters
    ----------
    key : str
        Path relative to the corpus, and the part of the file where it is not whole. For people and messages.
    uri : str
        Where to read it.
    start, stop : int
        The part of the file, in the source's own unit: bytes for text, row groups for Parquet.
    size : int
        Bytes.
    planned_rows : int
        Rows, or an estimate of them.
    content_id : str
        SHA-256 of the bytes (and of `select`, where there is one), hexadecimal: its identity under any path.
    source : str
        Label of the data source.
    labels : tuple of (str, str)
        Other labels by name, sorted; `time` is an ISO 8601 date, or the year or month of one.
    select : tuple of (str, str)
        Only rows with these values in these columns, where a part of a file holds rows of several labels.
    within : str
        Content id of the bytes themselves, where `select` or `told_apart` makes another of it.
    without : tuple of int
        Rows (documents, for text) that are left out, counted from the start of the part, ascending.
    stamp : int
        Time of the file's last change (`st_ctime_ns`) when its content was hashed; 0 if that was too recent to tell
        one change from the next. A file that still has it need not be hashed again. No part of what a shard is.
    """

    key: str
    uri: str
    start: int
    stop: int
    size: int
    planned_rows: int
    content_id: str
    source: str
    labels: tuple[tuple[str, str], ...] = ()
    select: tuple[tuple[str, str], ...] = ()
    within: str = ""
    without: tuple[int, ...] = ()
    stamp: int = field(default=0, compare=False)

    @property
    def bytes_id(self) -> str:
        """SHA-256 of the bytes, whatever is selected of them."""
        return self.within or self.content_id

    def fold(self, n_folds: int) -> int:
        """Fold that the shard belongs to: a hash of its content, so it never changes."""
        return int(self.content_id[:FOLD_DIGITS], 16) % n_folds


@dataclass(frozen=True)
class Group:
    """Shards of one fold, one source and equal labels that one task sums into one segment."""

    fold: int
    source: str
    shards: tuple[Shard, ...]
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def planned_rows(self) -> int:
        """Rows, as far as they are known before reading."""
        return sum(shard.planned_rows for shard in self.shards)


def make_groups(shards: Iterable[Shard], n_folds: int, group_rows: int) -> list[Group]:
    """Cut shards into groups of one fold, source and set of labels with about `group_rows` rows each.

    The result depends on the shards alone, not on their order nor on the number of workers. A shard is never
    cut; one that is larger than `group_rows` is a group of its own.
    """
    if n_folds < 1 or group_rows < 1:
        msg = f"{n_folds} folds, {group_rows} rows a group"
        raise PlanError(msg, "both at least 1")
    bins: dict[tuple[int, str, tuple[tuple[str, str], ...]], list[Shard]] = {}
    for shard in sorted(shards, key=lambda s: (s.key, s.content_id)):
        bins.setdefault((shard.fold(n_folds), shard.source, shard.labels), []).append(shard)
    groups = []
    for (fold, source, labels), members in sorted(bins.items()):
        open_group: list[Shard] = []
        rows = 0
        for shard in members:
            if open_group and rows + shard.planned_rows > group_rows:
                groups.append(Group(fold, source, tuple(open_group), labels))
                open_group, rows = [], 0
            open_group.append(shard)
            rows += shard.planned_rows
        groups.append(Group(fold, source, tuple(open_group), labels))
    return groups


def default_group_rows(n_features: int, n_targets: int) -> int:
    """Rows whose products take half a minute at 70 GFLOP/s, so that writing the sums costs a few percent.

    Sums and products both grow with the square of the features, so that below some number of rows writing costs more.
    """
    per_row = 2 * n_features * (n_features + min(n_targets, n_features))
    return max(_LEAST_GROUP, 4 * 10**12 // per_row)


@dataclass(frozen=True)
class Plan:
    """Projection of one accumulation.

    Parameters
    ----------
    groups : tuple of Group
    n_features, n_targets, n_inputs : int
    precision : {'float32', 'float64', 'tf32', 'bf16'}
    one_hot : bool
    n_workers : int
    feature_bytes : int
        Bytes of the feature map's own arrays.
    triangle : bool
        Whether a triangular factor is kept instead of sums of products.
    piece_rows : int
        Rows of a shard among which equal ones are looked for; 0 where every row is multiplied.
    distinct : float
        Share of the rows that are distinct, in the sample that it was estimated from; 1 where every row is multiplied.
    tokens : bool
        Whether rows are contexts of tokens, whose n-grams are counted beside the sums.
    row_item : int
        Bytes of a number of the rows as they are read.
    decode_bytes : int
        What decoding takes beside the blocks that it gives.
    identity : bool
        Whether features are the rows as they are read.
    in_pieces : bool
        Whether features are made where they are multiplied, a piece at a time.
    weighted : bool
        Whether rows have weights.
    n_bands : int
        Bands that the rows and the columns of the Gram matrix are cut into, where it is summed a panel at a time.
    on_gpu : bool
        Whether products are taken on a GPU, which then holds the sums.
    n_threads : int
        Of a worker. Several prepare a block while the last one is still multiplied.
    """

    groups: tuple[Group, ...]
    n_features: int
    n_targets: int
    n_inputs: int
    precision: Precision
    one_hot: bool
    n_workers: int
    feature_bytes: int
    triangle: bool = False
    piece_rows: int = 0
    distinct: float = 1.0
    tokens: bool = False
    row_item: int = 8
    decode_bytes: int = 0
    identity: bool = False
    in_pieces: bool = False
    n_bands: int = 1
    on_gpu: bool = False
    n_threads: int = 1
    weighted: bool = False

    @property
    def n_shards(self) -> int:
        """Shards to read."""
        return sum(len(group.shards) for group in self.groups)

    @property
    def n_rows(self) -> int:
        """Rows to read, as far as known before."""
        return sum(group.planned_rows for group in self.groups)

    @property
    def read_bytes(self) -> int:
        """Bytes of the shards."""
        return sum(shard.size for group in self.groups for shard in group.shards)

    @property
    def flops_per_row(self) -> int:
        """Multiply-adds of products, or of a decomposition, counted as two operations each.

        Where equal rows are multiplied once, those that are expected to be done, for each row that is read.
        """
        d = self.n_features
        if self.triangle:  # Householder: of the rows, and of the triangle that each two blocks of rows are put below
            return 3 * (1 + d + self.n_targets) ** 2
        return round(self.distinct * (d * (d + 1) + 2 * d * (1 if self.one_hot else self.n_targets)))

    @property
    def sum_bytes(self) -> int:
        """Bytes of one set of sums: the size of a segment before compression."""
        if self.triangle:
            return 8 * (1 + self.n_features + self.n_targets) ** 2
        b, limbs = tile_size(self.n_features), n_limbs(self.precision)
        return 8 * limbs * (n_tiles(self.n_features) * b * b + self.n_features * self.n_targets)

    @property
    def n_panels(self) -> int:
        """Panels of the upper triangle, each a task of its own for each group."""
        return self.n_bands * (self.n_bands + 1) // 2

    @property
    def panel_bytes(self) -> int:
        """Bytes of the sums of the largest panel: what one task holds at a time."""
        if self.triangle or self.n_bands == 1:
            return self.sum_bytes
        b, limbs = tile_size(self.n_features), n_limbs(self.precision)
        # On the diagonal a triangle of tiles, with the cross-moments of its features; beside it a rectangle.
        widths: list[int] = [band.stop - band.start for band in bands_of(self.n_features, self.n_bands)]
        sizes = [-(-width // b) for width in widths]
        triangles = [n * (n + 1) // 2 * b * b + width * self.n_targets for n, width in zip(sizes, widths, strict=True)]
        first, second = sorted(sizes, reverse=True)[:2]
        return 8 * limbs * max(*triangles, first * second * b * b)

    def within(self, limit: int | None) -> Plan:
        """The same plan with as few bands as let a worker's share fit, if any number does.

        Parameters
        ----------
        limit : int, optional
            Bytes that a worker has.
        """
        return next((plan for plan in self._banded() if limit is None or plan.worker_bytes <= limit), self)

    def worked_by(self, n_threads: int, *, on_gpu: bool) -> Plan:
        """The same plan for workers of so many threads, or of a GPU each."""
        return replace(self, on_gpu=on_gpu, n_threads=1 if on_gpu else n_threads)

    def _banded(self) -> Iterator[Plan]:
        """The same plan in one band, in two, and so on, until a band is one tile wide."""
        most = 1 if self.triangle else -(-self.n_features // tile_size(self.n_features))
        return (replace(self, n_bands=n) for n in range(1, most + 1))

    @property
    def worker_bytes(self) -> int:
        """Peak memory of one worker: its sums, blocks of rows and of features, and what decoding takes."""
        item, k = item_bytes(self.precision), self.n_targets
        rows = BLOCKS_AHEAD * BLOCK_ROWS * (self.n_inputs * self.row_item + (8 if self.one_hot else 8 * k))
        # Features where they are not the rows themselves; and centred ones, where they cannot be put in their place.
        at_once = 0 if self.identity or self.in_pieces else self.row_item
        copies = at_once + (item if self.in_pieces or item != self.row_item else 0)
        if self.precision not in ("float32", "float64"):
            copies += 3 * item  # bits while they are rounded, and parts of weighted features
        rows += BLOCK_ROWS * (copies * self.n_features + (16 if self.one_hot else 4 * 8 * k))
        if not self.identity:  # inputs in another layout, less their mean, and in float64 where they are standardised
            rows += BLOCK_ROWS * (2 * self.row_item + 16) * self.n_inputs
        if self.n_threads > 1:  # the last one, as it was read and as features
            rows += BLOCK_ROWS * (self.row_item * self.n_inputs + at_once * self.n_features)
            rows += BLOCK_ROWS * (item if self.in_pieces or item != self.row_item else 0) * self.n_features
        if self.weighted:  # features times weights, under 'tf32' and 'bf16' in two parts; the last block's as well
            parts = 1 if self.precision in ("float32", "float64") else 3
            rows += BLOCK_ROWS * item * self.n_features * parts * (2 if self.n_threads > 1 else 1)
        if self.one_hot:  # products of the classes that a block holds
            rows += item * min(BLOCK_ROWS, k) * self.n_features
        # A piece that is looked through, another that is read ahead, and one of them as blocks; keys, order, groups.
        rows += self.piece_rows * 8 * (3 * self.n_inputs + 10)
        rows += self.piece_rows * 8 * (3 if self.one_hot else 3 * k)
        sums = self.panel_bytes
        if self.triangle:  # rows that wait until there are enough, stacked on the triangle, and LAPACK's copy
            columns = 1 + self.n_features + k
            rows += 8 * 4 * columns * (BLOCK_ROWS + 3 * columns)
            sums *= 3
        else:  # cross-moments are written from a copy; products of neighbouring tiles are taken at once
            sums += 8 * n_limbs(self.precision) * self.n_features * k // self.n_bands
            rows += 0 if self.on_gpu else self.n_threads * self._product_bytes
        return PROCESS_BYTES + sums + rows + self.decode_bytes + 2 * self.feature_bytes

    @property
    def _product_bytes(self) -> int:
        """Bytes of the product that a thread holds; under 'tf32' and 'bf16' of weighted rows those of two parts."""
        b, n = tile_size(self.n_features), n_tiles(self.n_features)
        # Two tiles of a column, and as many side by side as the panel has beside its diagonal.
        across = -(-self.n_features // b)
        if self.n_bands == 1:
            across -= 2
        else:
            across = -(-across // self.n_bands)
            n = across * across
        several = 1 if self.precision in ("float32", "float64") else 3
        tiles = max(1, min(tiles_at_once(n, b, self.n_threads), 2 * across))
        return several * item_bytes(self.precision) * b * b * tiles

    @property
    def device_bytes(self) -> int:
        """Memory of a worker's GPU, by the shapes that are there at a time; never compared with a GPU's own figure.

        Sums; two buffers of rows as they are read; features, centred ones and products of a block; feature maps.
        """
        item, k = item_bytes(self.precision), self.n_targets
        read = 2 * BLOCK_ROWS * (self.n_inputs * self.row_item + 8 * (1 if self.one_hot else k))
        made = BLOCK_ROWS * self.n_features * ((0 if self.identity or self.in_pieces else self.row_item) + 3 * item)
        made += 0 if self.identity else BLOCK_ROWS * (2 * self.row_item + 16) * self.n_inputs
        products = item * (min(BLOCK_ROWS, k) if self.one_hot else k) * self.n_features
        products += (item + 16) * tile_size(self.n_features) ** 2
        return _DEVICE_BYTES + self.panel_bytes + read + made + products + self.feature_bytes

    def solve_bytes(self, n_folds: int) -> int:
        """Peak memory of the coordinator: a fold's sums each, and the matrices of one cross-validated solve.

        What comes before and after is not in it: the sample that features are chosen from, the n-gram counts of the
        whole corpus, evaluation.
        """
        d, k = self.n_features, self.n_targets + self.n_targets**2 // max(1, self.n_features) * self.triangle
        return PROCESS_BYTES + (n_folds + 2) * self.sum_bytes + 8 * (10 * d * d + 9 * d * k)

    def lines(self, n_folds: int) -> list[str]:
        """The plan as text."""
        return [
            f"{self.n_shards:,} shards, {size_text(self.read_bytes)}, about {self.n_rows:,} rows"
            f" in {len(self.groups):,} groups",
            f"{self.n_features:,} features x {self.n_targets:,} targets in {self.precision}:"
            f" {size_text(self.sum_bytes)} of sums, {self.flops_per_row * self.n_rows / 1e9:,.0f} GFLOP"
            + (f" if {self.distinct:.1%} of a shard's rows are distinct, as in the sample" if self.piece_rows else ""),
            *self._panel_lines(),
            *([f"GPU memory: about {size_text(self.device_bytes)} for each worker's"] if self.on_gpu else []),
            f"memory: {size_text(self.worker_bytes)} for each of {self.n_workers} workers,"
            + (f" {size_text(self.solve_bytes(n_folds))} for the solve" if self.n_bands == 1 else " the solve on disk")
            + (" (a language model's counts and evaluation not included)" if self.tokens else ""),
        ]

    def _panel_lines(self) -> list[str]:
        if self.n_bands == 1:
            return []
        whole = replace(self, n_bands=1).worker_bytes
        return [
            f"panels: a worker would need {size_text(whole)} for all sums at once, so a group is {self.n_panels} tasks"
            f" of {size_text(self.panel_bytes)} each, and is read {self.n_panels} times"
        ]

    def check(self, worker_limit: int | None, coordinator_limit: int | None, n_folds: int) -> None:
        """Refuse a plan that does not fit.

        Raises
        ------
        PlanError
            With both numbers, before anything was read.
        """
        needs = (
            ("a worker", self.worker_bytes, worker_limit),
            ("the solve", self.solve_bytes(n_folds), coordinator_limit),
        )
        for who, need, limit in needs:
            if limit is not None and need > limit:
                least = min(self._banded(), key=lambda plan: plan.worker_bytes)
                in_panels = ""
                if who == "a worker" and least.n_bands > 1:
                    in_panels = f" ({size_text(least.worker_bytes)} in {least.n_panels} panels)"
                msg = f"a plan that needs {size_text(need)} for {who}{in_panels}, with {size_text(limit)} there"
                raise PlanError(msg, "a plan that fits", "use fewer features or workers, or a larger machine")


def size_text(n_bytes: int) -> str:
    """Bytes as people read them."""
    size = float(n_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def told_apart(shards: Iterable[Shard]) -> list[Shard]:
    """Parts of one file with an identity each, where their content is equal: rows of a file are rows, however often.

    The second of equal parts, in the order of the list, has the same identity in every copy of the file, so that a
    copy counts once. It stays in the first one's fold: rows that are equal are not held out from one another.
    """
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for shard in shards:
        before = seen[shard.uri, shard.content_id]
        seen[shard.uri, shard.content_id] += 1
        if before:
            again = content_id(f"{shard.content_id}\n{before}")
            again = shard.content_id[:FOLD_DIGITS] + again[FOLD_DIGITS:]
            shard = replace(shard, content_id=again, within=shard.bytes_id)
        found.append(shard)
    return found


def counted_twice(shards: Sequence[Shard]) -> tuple[list[Shard], list[tuple[Shard, Shard]]]:
    """Separate shards whose content occurs earlier in the list.

    Returns
    -------
    unique : list of Shard
    repeats : list of (repeat, first)
    """
    first: dict[str, Shard] = {}
    repeats = []
    for shard in shards:
        if shard.content_id in first:
            repeats.append((shard, first[shard.content_id]))
        else:
            first[shard.content_id] = shard
    return list(first.values()), repeats
