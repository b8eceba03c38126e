"""Labels of shards: from a file's path, from columns, by hand; a part of a file with several labels becomes several.

`Shard.select` says all that a source needs to read such a part again, whatever labels the source itself was built
with: it pairs keys with values, where a key is a column's name or, for times, a column and a period (`stamp|day`); see
`values`. Names of label columns cannot hold a bar, so a key is never ambiguous. Floor 4.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pyarrow as pa

from streamfit.corpus.values import Period, Select, column_of, period_of, time_key
from streamfit.errors import ConfigError, CorpusError
from streamfit.identity import content_id
from streamfit.plan import Shard

MAX_COMBINATIONS = 64
"""Sets of labels that one part of a file may hold."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_NOT_IN_VALUES = {"Cc", "Cs", "Zl", "Zp"}


@dataclass(frozen=True)
class Labels:
    r"""Where the labels of shards come from. A label named `source` is the shard's source, all others its labels.

    Parameters
    ----------
    path : str
        A regular expression that is searched in each file's relative path; its named groups are labels.
    columns : tuple of str
        Columns of a table, or fields of JSON lines, whose values label rows.
    time : str
        A column of dates, timestamps or ISO 8601 strings; gives the label `time`. An instant with a time zone
        falls on its day in UTC.
    period : {'day', 'month', 'year'}
        What the label `time` is cut to, wherever it comes from.
    fixed : tuple of (str, str)
        Labels given by hand to every shard.
    unused : tuple of str
        Groups of `path` that give no label.

    Examples
    --------
    >>> Labels(path=r"(?P<source>[^/]+)/(?P<time>\d{4}-\d{2})").of_file("web/2026-11/part-3.parquet")
    {'source': 'web', 'time': '2026-11'}
    """

    path: str = ""
    columns: tuple[str, ...] = ()
    time: str = ""
    period: Period = "day"
    fixed: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.period not in get_args(Period):
            msg = f"labels by the period {self.period!r}"
            raise ConfigError(msg, f"one of {', '.join(get_args(Period))}")
        names = [*self._groups(), *self.columns, *(["time"] if self.time else []), *(name for name, _ in self.fixed)]
        for name, times in Counter(names).items():
            if not _NAME.fullmatch(name):
                msg = f"a label named {name!r}"
                raise ConfigError(msg, "letters, digits and _, no digit first")
            if times > 1:
                msg = f"the label {name!r} from {times} places among path, columns, time and fixed"
                raise ConfigError(msg, "one place for each label")
        for name, value in self.fixed:
            self._checked(name, value, f"the fixed label {name!r}", ConfigError)

    def _groups(self) -> list[str]:
        if not self.path:
            return []
        try:
            groups = list(re.compile(self.path).groupindex)
        except (re.error, OverflowError, RecursionError) as error:
            msg = f"labels by the pattern {self.path!r}: {error}"
            raise ConfigError(msg, "a regular expression") from error
        if not groups:
            msg = f"labels by the pattern {self.path!r}, which has no named group"
            raise ConfigError(msg, "one group (?P<name>...) for each label")
        return [group for group in groups if group not in self.unused]

    def without(self, names: Collection[str]) -> Labels:
        r"""The same but for the labels of some names, wherever they come from.

        A pattern that gives no other label is not searched any more, so that paths need not match it.

        Examples
        --------
        >>> labels = Labels(path=r"(?P<source>[^/]+)/(?P<time>\d{4}-\d{2})", columns=("region",))
        >>> labels.without(["time", "region"]).of_file("web/2026-11/part-3.parquet")
        {'source': 'web'}
        """
        groups = self._groups()
        left = set(groups) - set(names)
        return replace(
            self,
            path=self.path if left else "",
            columns=tuple(name for name in self.columns if name not in names),
            time="" if "time" in names else self.time,
            fixed=tuple((name, value) for name, value in self.fixed if name not in names),
            unused=(*self.unused, *(group for group in groups if group not in left)) if left else (),
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys that tell rows of one part of a file apart, sorted; empty if all labels are known without reading."""
        return tuple(sorted(self._names()))

    def _names(self) -> dict[str, str]:
        """Label that each key gives."""
        # A column that is itself named `time` gives the label `time`, and so has a period as well.
        plain = {time_key(c, self.period) if c == "time" else c: c for c in self.columns}
        return plain | ({time_key(self.time, self.period): "time"} if self.time else {})

    def of_file(self, name: str) -> dict[str, str]:
        """Labels that a file's relative path and the fixed ones give.

        Raises
        ------
        CorpusError
            If the pattern does not match, or a group is empty or is no label.
        """
        labels = dict(self.fixed)
        if self.path:
            found = re.search(self.path, name)
            if found is None:
                msg = f"{name}: not matched by the pattern {self.path!r} of [corpus.labels]"
                raise CorpusError(msg, "a path that gives labels", "change the pattern, or leave the file out")
            labels |= {group: found[group] or "" for group in self._groups()}
        where = f"by the pattern {self.path!r}"
        return {
            label: self._checked(label, value, f"{name}: the label {label!r} {where}", CorpusError)
            for label, value in labels.items()
        }

    def label(self, shard: Shard, name: str, select: Select = ()) -> Shard:
        """A shard with its labels.

        Parameters
        ----------
        shard : Shard
        name : str
            Relative path of its file.
        select : tuple of (key, value)
            The values that all its rows have.

        Raises
        ------
        CorpusError
            If the path gives no labels.
        """
        names = self._names()
        labels = self.of_file(name) | {names[key]: value for key, value in select}
        source = labels.pop("source", shard.source)
        return replace(shard, source=source, labels=tuple(sorted(labels.items())))

    def cut(self, whole: Shard, name: str, found: tuple[tuple[Select, int], ...]) -> list[Shard]:
        """Shards of one part of a file, one for each set of values.

        Parameters
        ----------
        whole : Shard
            The part.
        name : str
            Relative path of its file.
        found : tuple of (select, rows)
            From `combinations`. One set alone leaves the part whole; no set is a part without rows, and no shard.
        """
        if len(found) == 1:
            return [self.label(whole, name, found[0][0])]
        total = sum(rows for _, rows in found)
        return [
            replace(
                self.label(whole, name, select),
                key=f"{whole.key}{told(select)}",
                planned_rows=max(1, whole.planned_rows * rows // total),
                content_id=selected_id(whole.content_id, select),
                select=select,
                within=whole.content_id,
            )
            for select, rows in found
        ]

    def _checked(self, label: str, value: str, where: str, kind: type[ConfigError | CorpusError]) -> str:
        _check_value(value, where, kind)
        if label != "time":
            return value
        cut = period_of(value, self.period)
        if cut is None:
            msg = f"{where} is {value!r}"
            raise kind(msg, "an ISO 8601 date, month or year, such as 2026-11-23")
        return cut


NO_LABELS = Labels()


def told(select: Select) -> str:
    """What a shard's key says of the rows that it selects, last."""
    return f"[{','.join(f'{column_of(key)[0]}={value}' for key, value in select)}]" if select else ""


def _check_value(value: str, where: str, kind: type[ConfigError | CorpusError] = CorpusError) -> None:
    if not value or any(unicodedata.category(character) in _NOT_IN_VALUES for character in value):
        msg = f"{where} is {value!r}"
        raise kind(msg, "some text without control characters")


def selected_id(within: str, select: Select) -> str:
    """Content id of the rows of a part that have some values."""
    return content_id(f"{within}\n{json.dumps(select)}")


def combinations(where: str, columns: Mapping[str, pa.Array]) -> tuple[tuple[Select, int], ...]:
    """Sets of values that occur together in the rows of a part, and how often.

    Parameters
    ----------
    where : str
        Key of the part, for messages.
    columns : mapping of key to array of strings
        All of one length.

    Returns
    -------
    found : tuple of (select, rows)
        Sorted.

    Raises
    ------
    CorpusError
        If a row has no value or one that cannot be a label, or if there are more than `MAX_COMBINATIONS`.

    Examples
    --------
    >>> combinations("a", {"region": pa.array(["EU", "US", "EU"])})
    (((('region', 'EU'),), 2), ((('region', 'US'),), 1))
    """
    sets: list[Select] = [()]
    codes = np.zeros(0, np.int64)
    for key, column in sorted(columns.items()):
        name, period = column_of(key)
        if column.null_count:
            row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
            msg = f"{where}, row {row}: no value that can be a label in column {name!r}"
            kind = "a string, number, boolean or date" if period is None else "a date, or an ISO 8601 time"
            raise CorpusError(msg, f"{kind} in every row", "fill the column, or leave the row out of the file")
        encoded = column.dictionary_encode()
        values = encoded.dictionary.to_pylist()
        own = encoded.indices.to_numpy().astype(np.int64)
        _check_number(where, name, len(values))
        for i, value in enumerate(values):
            _check_value(value, f"{where}, row {int(np.argmax(own == i))}: the label in column {name!r}")
        joint = own if not codes.size else codes * len(values) + own
        there, codes = np.unique(joint, return_inverse=True)
        _check_number(where, ", ".join(column_of(k)[0] for k in sorted(columns)), len(there))
        sets = [(*sets[int(code) // len(values)], (key, values[int(code) % len(values)])) for code in there]
    counts = np.bincount(codes, minlength=len(sets))
    return tuple(sorted((select, int(rows)) for select, rows in zip(sets, counts, strict=True) if rows))


def _check_number(where: str, columns: str, number: int) -> None:
    if number > MAX_COMBINATIONS:
        msg = f"{where}: more than {MAX_COMBINATIONS} sets of labels, from {columns}"
        raise CorpusError(msg, "few in each part of a file", "sort or partition the data by its labels")
