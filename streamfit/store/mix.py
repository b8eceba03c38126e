"""Weights for segments by their labels and their age, so that a solve can re-mix what was counted. Floor 4."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from itertools import groupby

from streamfit.errors import ConfigError, MismatchError
from streamfit.store.log import Segment

_DAYS = {"h": 1 / 24, "d": 1.0, "w": 7.0, "y": 365.25}


@dataclass(frozen=True)
class Rule:
    """Weight of the segments whose label `name` matches `pattern` (as in fnmatch)."""

    name: str
    pattern: str
    factor: float


@dataclass(frozen=True)
class Mix:
    """A weighting of the segments of a store: rules that multiply, and exponential decay with age.

    A segment of time t weighs ``prod(matching factors) * 2**(-(as_of - t) / half_life)``; one of a day, month or year
    that had not ended with `as_of` weighs nothing. Times are the ends of what labels and `as_of` name. Weights act as
    row weights do: alpha keeps its meaning beside them.

    Parameters
    ----------
    rules : tuple of Rule
    half_life : float, optional
        Days. Without it age does not matter.
    as_of : datetime, optional
        In UTC if it has no zone. Without it the newest time label.

    Examples
    --------
    >>> mix = Mix.parse(["source:web=0.5"])
    >>> mix.factors([Segment("a", 0, "web", 9, 1, ""), Segment("b", 0, "code", 9, 1, "")])
    {'a': 0.5, 'b': 1.0}
    """

    rules: tuple[Rule, ...] = ()
    half_life: float | None = None
    as_of: datetime | None = None

    def __post_init__(self) -> None:
        if self.as_of is not None and self.as_of.tzinfo is None:
            object.__setattr__(self, "as_of", self.as_of.replace(tzinfo=UTC))

    @classmethod
    def parse(cls, rules: Iterable[str] = (), half_life: str | None = None, as_of: str | None = None) -> Mix:
        """From text: `name:pattern=factor` (several in one text are separated by commas), `30d`, an ISO date.

        Raises
        ------
        ConfigError
            If a text is of another form, or a factor is negative or not finite.
        """
        parsed = tuple(_rule(each.strip()) for text in rules for each in text.split(","))
        return cls(parsed, _days(half_life) if half_life else None, end_of(as_of) if as_of else None)

    @property
    def plain(self) -> bool:
        """Whether it leaves everything as it is."""
        return not self.rules and self.half_life is None and self.as_of is None

    def factors(self, segments: Sequence[Segment]) -> dict[str, float]:
        """Weight of each segment by id.

        Raises
        ------
        MismatchError
            If a rule matches no segment, or a segment has no time where age matters.
        """
        for rule in self.rules:
            values = sorted({v for s in segments if (v := s.label(rule.name)) is not None})
            if not any(fnmatchcase(value, rule.pattern) for value in values):
                names = sorted({"source", *(name for s in segments for name, _ in s.labels)})
                known = f"one of {', '.join(values[:20])}" if values else f"a label among {', '.join(names)}"
                msg = f"no segment whose {rule.name} is {rule.pattern}"
                raise MismatchError(msg, known, "`streamfit status` lists labels")
        times = self._times(segments)
        newest = self.as_of or max(times.values(), default=None)
        return {s.id: self._rules(s) * self._age(times.get(s.id), newest) for s in segments}

    def _rules(self, segment: Segment) -> float:
        factor = 1.0
        for rule in self.rules:
            value = segment.label(rule.name)
            if value is not None and fnmatchcase(value, rule.pattern):
                factor *= rule.factor
        return factor

    def _times(self, segments: Sequence[Segment]) -> dict[str, datetime]:
        if self.half_life is None and self.as_of is None:
            return {}
        times = {}
        for segment in segments:
            time = segment.label("time")
            if time is None:
                msg = f"{segment.n_shards} shard(s) of source {segment.source} without a label `time`"
                raise MismatchError(msg, "a time for each", "label them when they are added: `add --label time=DATE`")
            times[segment.id] = end_of(time)
        return times

    def _age(self, time: datetime | None, newest: datetime | None) -> float:
        if time is None or newest is None:
            return 1.0
        days = (newest - time).total_seconds() / 86400.0
        if days < 0:
            return 0.0
        return 1.0 if self.half_life is None else float(2.0 ** (-days / self.half_life))

    def times(self, segments: Sequence[Segment]) -> tuple[dict[str, int], bool]:
        """How often each segment's counts are taken, by id, without those of weight 0; and whether that is the weight.

        Counts are whole numbers. So are their weights, then, or each is taken once.
        """
        factors = {name: factor for name, factor in self.factors(segments).items() if factor > 0}
        whole = all(factor.is_integer() for factor in factors.values())
        return {name: int(factor) if whole else 1 for name, factor in factors.items()}, whole

    def spread(self, segments: Sequence[Segment]) -> list[tuple[float, list[Segment]]]:
        """Segments by weight, in order of weight, without those of weight 0: equal weights are summed exactly first."""
        factors = self.factors(segments)
        ordered = sorted((s for s in segments if factors[s.id] > 0), key=lambda s: factors[s.id])
        return [(factor, list(group)) for factor, group in groupby(ordered, key=lambda s: factors[s.id])]


def _rule(text: str) -> Rule:
    found = re.fullmatch(r"(\w+):([^=]+)=(.+)", text)
    try:
        factor = float(found[3]) if found else -1.0
    except ValueError:
        factor = -1.0
    if found is None or not 0 <= factor < float("inf"):
        msg = f"mix {text!r}"
        raise ConfigError(msg, "label:value=factor with a factor >= 0", "for instance source:web=0.3")
    return Rule(found[1], found[2], factor)


def _days(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdwy])", text.strip())
    if found is None or float(found[1]) <= 0:
        msg = f"half-life {text!r}"
        raise ConfigError(msg, "a number and h, d, w or y", "for instance 30d")
    return float(found[1]) * _DAYS[found[2]]


def end_of(text: str) -> datetime:
    """When an ISO 8601 day, month or year has ended, or the time that is named; in UTC where it names no zone.

    Rows of a period count only once it is over, so that nothing is known before its time.

    Raises
    ------
    ConfigError
        If it is none of these.

    Examples
    --------
    >>> end_of("2026-02").isoformat(), end_of("2026-12-31").isoformat()
    ('2026-03-01T00:00:00+00:00', '2027-01-01T00:00:00+00:00')
    """
    padded = text + {4: "-01-01", 7: "-01"}.get(len(text), "")
    try:
        time = datetime.fromisoformat(padded)
        if len(text) == 4:
            time = time.replace(year=time.year + 1)
        elif len(text) == 7:
            time = (time + timedelta(days=31)).replace(day=1)
        elif re.fullmatch(r"\d{4}-?\d\d-?\d\d", text):
            time += timedelta(days=1)
    except (ValueError, OverflowError) as error:
        msg = f"time {text!r}"
        raise ConfigError(msg, "an ISO 8601 date, such as 2026-03-31, 2026-03 or 2026") from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)
