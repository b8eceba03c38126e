"""A corpus as a user names it: files, arrays, data frames or streams, and which columns are what. Floor 7."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from streamfit.config_corpus import TableSection
from streamfit.corpus import Files, Labels, ParquetTable, Rows, Source
from streamfit.corpus.base import SPLITS
from streamfit.corpus.dataset import FORMATS
from streamfit.corpus.kinds import told_options
from streamfit.corpus.labels import NO_LABELS
from streamfit.corpus.memory import ArrayRows, ArrowRows
from streamfit.corpus.recipe import Missing, Unseen
from streamfit.corpus.stream import batches_from, spool
from streamfit.corpus.table import Table
from streamfit.errors import ConfigError, CorpusError
from streamfit.features import Hashed
from streamfit.plan import Shard
from streamfit.sections import checked


@dataclass(frozen=True)
class Several(Source):
    """Several sources as one; each reads the shards that it lists.

    Parameters
    ----------
    sources : tuple of Source
    """

    sources: tuple[Source, ...]

    def shards(self) -> list[Shard]:
        return sorted((shard for source in self.sources for shard in source.shards()), key=lambda shard: shard.key)

    @cached_property
    def _by_uri(self) -> dict[str, Source]:
        return {shard.uri: source for source in self.sources for shard in source.shards()}

    def _of(self, shard: Shard) -> Source:
        return self._by_uri.get(shard.uri, self.sources[0])

    def read(self, shard: Shard) -> Iterator[Rows]:
        return self._of(shard).read(shard)

    def positions(self, shard: Shard, column: str, values: frozenset[str]) -> tuple[int, ...]:
        return self._of(shard).positions(shard, column, values)

    @property
    def is_weighted(self) -> bool:
        return any(source.is_weighted for source in self.sources)

    @property
    def row_item(self) -> int:
        return max(source.row_item for source in self.sources)

    def decode_bytes(self, shards: Sequence[Shard], row_bytes: int) -> int:
        if not shards:
            return self.sources[0].decode_bytes(shards, row_bytes)
        parts: dict[Source, list[Shard]] = {}
        for shard in shards:
            parts.setdefault(self._of(shard), []).append(shard)
        return max(source.decode_bytes(some, row_bytes) for source, some in parts.items())

    def blocks_held(self, shard: Shard) -> int:
        return self._of(shard).blocks_held(shard)


_LOOKED_AT = 10_000
"""Files of a folder that are looked at to see of which kind they are."""


@dataclass(frozen=True)
class Corpus:
    """Rows, wherever they lie, and which of their columns are features, targets and weights.

    Parameters
    ----------
    rows : str, Path, mapping of arrays, or object
        A file, folder, pattern or address (``s3://``) of Parquet, Arrow, CSV, JSON lines, .npy or Zarr; arrays by
        name (NumPy, memory-mapped, dask, SciPy sparse); or what gives Arrow data: polars, pandas, duckdb, a Hugging
        Face data set, a dask data frame.
    features, target : sequence of str
        Columns; see `streamfit.corpus.recipe.Recipe` for what they may be.
    weight : str, optional
        Column of row weights.
    n_classes : int, optional
        Makes whole numbers in the one target column one-hot.
    classes : sequence of str
        Values of the target, where they are names and not whole numbers from 0: class by class.
    categories : mapping of str to values, or sequence of str
        Features that are one-hot; without values these are found when the store is made, and frozen.
    unseen : {'error', 'zero'}
        What becomes of other values of a category.
    missing : {'error', 'drop', 'mean'}
        What becomes of rows that lack a feature.
    missing_target : {'error', 'drop'}
    fill : mapping of str to number
        What stands for features of numbers that are lacking, whatever `missing` says of others.
    filters : sequence of (column, operator, value)
        Rows that meet all of them count.
    split_column : str
        Column that says whether a row is for training, validation or test.
    split_values : (str, str, str)
        Its values for the three.
    partitions : '', 'hive' or sequence of str
        Columns that are in the path.
    kind : str
        Format of files, where their names do not tell.
    include, exclude : sequence of str
        Patterns of names of files in a folder; see `streamfit.corpus.Files`.
    delimiter : str
        Between the values of CSV; a tab for files that end in .tsv, a comma otherwise.
    spool : str or Path
        Folder that a stream is written to, so that it can be read again; without it rows are held in memory.
    label : str
        Source label of its shards, and what rows in memory are known by.
    labels : Labels
        Other labels.

    Raises
    ------
    ConfigError
        If columns and policies contradict one another.

    Examples
    --------
    >>> import numpy as np
    >>> corpus = Corpus({"x": np.ones((100, 3)), "y": np.ones(100)}, ["x"], ["y"])
    >>> corpus.source().shards()[0].planned_rows
    100
    """

    rows: Any
    features: Sequence[str]
    target: Sequence[str]
    weight: str | None = None
    n_classes: int | None = None
    classes: Sequence[str] = ()
    categories: Mapping[str, Sequence[str]] | Sequence[str] = ()
    unseen: Unseen = "error"
    missing: Missing = "error"
    missing_target: str = "error"
    fill: Mapping[str, float] = field(default_factory=dict)
    filters: Sequence[tuple[str, str, Any]] = ()
    split_column: str = ""
    split_values: tuple[str, str, str] = SPLITS
    partitions: str | Sequence[str] = ""
    kind: str = ""
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    delimiter: str = ""
    spool: str | Path = ""
    label: str = "corpus"
    labels: Labels = field(default=NO_LABELS)

    def __post_init__(self) -> None:
        self._section()

    def source(self, hashed: Hashed | None = None) -> ParquetTable | Table:
        """The rows as the engine reads them; what the recipe leaves open is not found yet.

        Raises
        ------
        CorpusError
            If there is nothing there, or it gives no rows.
        """
        if hashed is not None and (self.categories or self.missing != "error"):
            msg = "categories or missing for hashed features"
            raise ConfigError(msg, "neither: what is hashed names its own categories; filter rows that lack a value")
        if isinstance(self.rows, str | Path):
            kind = self.kind or kind_of(str(self.rows))
            if self.delimiter and kind != "csv":
                msg = f"delimiter {self.delimiter!r} for files of kind {kind}"
                raise ConfigError(msg, "one for CSV alone")
            return replace(self._section(kind).table(hashed), labels=self.labels)
        given: dict[str, Any] = {
            "recipe": self._section().recipe(),
            "label": self.label,
            "labels": self.labels,
            "hashed": hashed,
        }
        if isinstance(self.rows, Mapping):
            arrays = {name: _array(name, each) for name, each in self.rows.items()}
            return ArrayRows(arrays, self.label, **given)
        if self.spool:
            return spool(self.rows, self.spool, **given)
        batches = list(batches_from(self.rows))
        if not batches:
            msg = f"a {type(self.rows).__name__} without rows"
            raise CorpusError(msg, "at least one")
        return ArrowRows(pa.Table.from_batches(batches), self.label, **given)

    def _section(self, kind: str = "parquet") -> TableSection:
        categories: Any = self.categories
        if isinstance(categories, Mapping):
            categories = {name: tuple(values) for name, values in categories.items()}
        given = {
            "root": str(self.rows) if isinstance(self.rows, str | Path) else "memory",
            "kind": kind,
            "include": _columns(self.include),
            "exclude": _columns(self.exclude),
            "features": _columns(self.features),
            "target": _columns(self.target),
            "weight": self.weight,
            "n_classes": self.n_classes,
            "classes": _columns(self.classes),
            "categories": categories if isinstance(categories, dict) else _columns(categories),
            "unseen": self.unseen,
            "missing": self.missing,
            "missing_target": self.missing_target,
            "fill": dict(self.fill),
            "filters": tuple(tuple(each) for each in self.filters),
            "split_column": self.split_column,
            "split_values": tuple(self.split_values),
            "partitions": self.partitions if isinstance(self.partitions, str) else tuple(self.partitions),
            "label": self.label,
        }
        if kind == "csv":
            told = told_options(kind, Files(str(given["root"])))
            given["delimiter"] = self.delimiter or told.get("delimiter", ",")
        return checked("Corpus", TableSection, given)


def _columns(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        msg = f"columns given as the text {names!r}"
        raise ConfigError(msg, f"a list, such as [{names!r}]")
    return tuple(names)


def _array(name: str, values: Any) -> Any:
    """An array as it is, a list as one."""
    whole = type(values).__module__.startswith("datasets.")
    if hasattr(values, "shape") and not whole:
        return values
    if whole or not isinstance(values, Sequence) or isinstance(values, str):
        msg = f"rows given as a mapping whose {name!r} is a {type(values).__name__}"
        raise CorpusError(msg, "arrays by name", "of a dictionary of data sets, give the one that is meant")
    return np.asarray(values)


def kind_told(root: str) -> str | None:
    """As `kind_of`; None where no name tells."""
    try:
        return kind_of(root)
    except ConfigError:
        return None


def kind_of(root: str) -> str:
    """Format of files, by their names.

    Parameters
    ----------
    root : str
        A file, a folder (whose first files are looked at) or a pattern.

    Raises
    ------
    ConfigError
        If no name tells.

    Examples
    --------
    >>> kind_of("rows/part-0.csv.gz"), kind_of("s3://bucket/rows.zarr"), kind_of("*.feather")
    ('csv', 'zarr', 'arrow')
    """
    path = Path(root).expanduser()
    names = [root.rstrip("/")]
    if "://" not in root and path.is_dir():
        if (path / "zarr.json").is_file() or (path / ".zgroup").is_file():
            return "zarr"
        if (path / "dataset_info.json").is_file():
            return "dataset"
        if (path / "dataset_dict.json").is_file():
            parts = sorted(each.parent.name for each in path.glob("*/dataset_info.json"))
            msg = f"{root} holds the data sets {', '.join(parts)}"
            raise ConfigError(msg, "one data set", f"give the folder of one, such as {path / (parts or ['train'])[0]}")
        names = sorted(each.name for each in islice(path.rglob("*"), _LOOKED_AT) if each.is_file())
    told = {kind: FORMATS[kind]().endings for kind in ("parquet", "arrow", "csv", "jsonl")}
    for kind, found in {"npy": (".npy",), "zarr": (".zarr",), **told}.items():  # a README beside Parquet is no CSV
        if any(name.lower().endswith(found) for name in names):
            return kind
    few = ", ".join(names[:3]) or "nothing"
    msg = f"{root} holds {few}, which says of no kind of table what it is"
    raise ConfigError(msg, f"files of kind {', '.join(FORMATS)}, npy or zarr", "say of which with `kind`")


def of_other_kinds(names: Iterable[str], kind: str) -> dict[str, int]:
    """Files of rows among some that are not of a kind: how many have which ending.

    What ends in .txt or .json may be anything, such as a description of the rest.

    Parameters
    ----------
    names : iterable of str
    kind : str

    Examples
    --------
    >>> of_other_kinds(["a.parquet", "b.csv.gz", "c.csv", "README.md", "about.json"], "parquet")
    {'.csv': 1, '.csv.gz': 1}
    """
    if kind not in FORMATS:
        return {}
    own = FORMATS[kind]().endings
    all_kinds = sorted({ending for each in FORMATS.values() for ending in each().endings}, key=len, reverse=True)
    found: dict[str, int] = {}
    for name in names:
        ending = next((ending for ending in all_kinds if name.lower().endswith(ending)), None)
        vague = ending is None or ending.split(".")[1] in ("txt", "json")
        if ending is not None and ending not in own and not vague:
            found[ending] = found.get(ending, 0) + 1
    return dict(sorted(found.items()))
