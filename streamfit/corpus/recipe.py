"""How columns become rows of numbers: everything that must be the same for all data that a store will ever count.

A recipe is frozen in the store's header with its dictionaries of categories and its means, so that data that is added
later is read alike: the same row gives the same numbers, or is refused. Floor 4.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from streamfit.corpus.base import SPLITS, Split
from streamfit.errors import ConfigError

Missing = Literal["error", "drop", "mean"]
Unseen = Literal["error", "zero"]
DatePart = Literal["days", "year", "month", "yearday", "weekday", "hour", "minute"]
Operator = Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in"]
OPERATORS = get_args(Operator)
MAX_LEVELS = 4096
"""Values of a category that get a column each; more are for hashing."""

_PART = re.compile(rf"({'|'.join(get_args(DatePart))})\((.+)\)")
_ORDERED = ("<", "<=", ">", ">=")


def date_part(key: str) -> tuple[str, DatePart | None]:
    """Column that a feature speaks of, and the number that is taken of its dates.

    Examples
    --------
    >>> date_part("weekday(date)"), date_part("distance")
    (('date', 'weekday'), ('distance', None))
    """
    found = _PART.fullmatch(key)
    return (found[2], found[1]) if found else (key, None)  # type: ignore[return-value]


@dataclass(frozen=True)
class Filter:
    """A condition on a column; rows where it has no value do not meet it.

    Parameters
    ----------
    column : str
    operator : str
        One of ``== != < <= > >=``, or ``in`` and ``not in`` with several values; as in the filters of pyarrow.parquet.
    value : str, number, boolean, or tuple of them
        Compared as the column's own type.
    """

    column: str
    operator: str
    value: Any

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            msg = f"a filter by {self.operator!r} on {self.column!r}"
            raise ConfigError(msg, f"one of {', '.join(OPERATORS)}")
        many = isinstance(self.value, tuple)
        if many != (self.operator in ("in", "not in")):
            msg = f"the filter {self.column} {self.operator} {self.value!r}"
            raise ConfigError(msg, "a list of values after in and not in, one value after the others")
        if self.operator in _ORDERED and isinstance(self.value, bool):
            msg = f"the filter {self.column} {self.operator} {self.value!r}"
            raise ConfigError(msg, "a number, a date or a string, which have an order")


@dataclass(frozen=True)
class Recipe:
    """How columns become rows.

    Parameters
    ----------
    features : tuple of str
        Columns in order, or parts of dates such as ``weekday(date)``. Numbers and booleans are one feature, lists of
        numbers one an element, dates and times days since 1970, categories one for each of their values.
    target : tuple of str
        Likewise, without categories; with `n_classes` a single integer column of class ids.
    weight : str, optional
        Column of row weights.
    n_classes : int, optional
    classes : tuple of str
        Values of the target column, class by class, where these are names and not whole numbers from 0.
    categories : tuple of (str, tuple of str)
        Features that are one-hot, and the values that get a column; no values: found once, then frozen.
    unseen : {'error', 'zero'}
        What becomes of a category's value that is not in its dictionary: an error, or zero in all its columns.
    missing : {'error', 'drop', 'mean'}
        What becomes of a null or NaN in a feature: an error, no row, or the mean, which is found once, then frozen.
    missing_target : {'error', 'drop'}
        Of a null or NaN in a target or weight.
    fills : tuple of (str, tuple of float)
        What stands for a feature that is lacking, one number for each of its columns: means, or what was given. A row
        lacks no feature that has one.
    filters : tuple of Filter
        Rows that meet all of them count.
    split_column : str
        Column that says whether a row is for training, validation or test.
    split_values : tuple of (str, str, str)
        Its values for the three.

    Raises
    ------
    ConfigError
        If parts contradict one another.
    """

    features: tuple[str, ...]
    target: tuple[str, ...]
    weight: str | None = None
    n_classes: int | None = None
    categories: tuple[tuple[str, tuple[str, ...]], ...] = ()
    unseen: Unseen = "error"
    missing: Missing = "error"
    missing_target: Literal["error", "drop"] = "error"
    fills: tuple[tuple[str, tuple[float, ...]], ...] = ()
    filters: tuple[Filter, ...] = ()
    split_column: str = ""
    split_values: tuple[str, str, str] = SPLITS
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.features or not self.target:
            msg = f"{len(self.features)} features and {len(self.target)} targets"
            raise ConfigError(msg, "at least one column of each")
        if self.n_classes is not None and len(self.target) != 1:
            msg = f"n_classes with {len(self.target)} target columns"
            raise ConfigError(msg, "exactly one")
        if self.classes and (len(set(self.classes)) < len(self.classes) or self.n_classes != len(self.classes)):
            msg = f"classes {', '.join(map(repr, self.classes))} with n_classes {self.n_classes}"
            raise ConfigError(msg, "each name once, and as many as n_classes")
        if unknown := [name for name, _ in self.categories if name not in self.features]:
            msg = f"categories {', '.join(map(repr, unknown))}"
            raise ConfigError(msg, f"some of the features {', '.join(self.features)}")
        if unknown := [name for name, _ in self.fills if name not in self.features]:
            msg = f"a number for {', '.join(map(repr, unknown))} where it is lacking"
            raise ConfigError(msg, f"some of the features {', '.join(self.features)}")
        for name, levels in self.categories:
            if len(set(levels)) < len(levels) or len(levels) > MAX_LEVELS:
                msg = f"{len(levels)} values of the category {name!r}"
                raise ConfigError(msg, f"at most {MAX_LEVELS}, each once", "hash a column of more: kind = 'hashed'")
        if len(set(self.split_values)) < len(self.split_values):
            msg = f"split_values {', '.join(self.split_values)}"
            raise ConfigError(msg, "three values: for training, validation and test")

    @property
    def is_plain(self) -> bool:
        """Whether rows are the columns' numbers and nothing else."""
        bare = Recipe(self.features, self.target, self.weight, self.n_classes)
        return self == bare and not any(date_part(name)[1] for name in self.features)

    @property
    def chooses(self) -> bool:
        """Whether some rows may not count, by what they say or lack."""
        return bool(self.filters or self.split_column) or "drop" in (self.missing, self.missing_target)

    @property
    def is_frozen(self) -> bool:
        """Whether nothing is left to be found in the data."""
        filled = {name for name, _ in self.fills}
        return all(levels for _, levels in self.categories) and (self.missing != "mean" or filled >= {*self.features})

    @property
    def columns(self) -> list[str]:
        """Columns that are read, each once."""
        asked = [date_part(name)[0] for name in (*self.features, *self.target)]
        asked += [*([self.weight] if self.weight else []), *(f.column for f in self.filters)]
        return list(dict.fromkeys([*asked, *([self.split_column] if self.split_column else [])]))

    @property
    def needed(self) -> tuple[str, ...]:
        """Features without which a row does not count, where `missing` drops rows."""
        filled = {name for name, _ in self.fills}
        return tuple(name for name in self.features if name not in filled) if self.missing == "drop" else ()

    def levels(self, feature: str) -> tuple[str, ...] | None:
        """Dictionary of a category; None of what is no category."""
        return dict(self.categories).get(feature)

    def split_value(self, split: Split) -> str:
        """Value of the split's column for one part."""
        return self.split_values[SPLITS.index(split)]

    def frozen(self, levels: Mapping[str, tuple[str, ...]], means: Mapping[str, tuple[float, ...]]) -> Recipe:
        """The recipe with what was found in the data."""
        found = tuple((name, given or levels[name]) for name, given in self.categories)
        return replace(self, categories=found, fills=tuple(sorted({**means, **dict(self.fills)}.items())))

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON; `from_json` is its inverse."""
        made: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        if not self.classes:  # as recipes were before they could have any
            del made["classes"]
        return made

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Recipe:
        """The recipe that a header keeps."""
        made = {name: _tuples(value) for name, value in given.items()}
        return cls(**{**made, "filters": tuple(Filter(**dict(f)) for f in map(_tuples_in, given.get("filters", ())))})


def _tuples_in(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _tuples(value) for name, value in given.items()}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
