"""Mixing: weights of segments act as weights of rows do, exactly where they can, whatever the segmentation."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_helpers import K, header_of, leave_to_the_disk, moments_of, rows_of, shard_of

from streamfit.errors import ConfigError, MismatchError
from streamfit.moments import Moments
from streamfit.store import Mix, Segment, Store, compact
from streamfit.targets import Dense

DAYS = ("2026-01-01", "2026-01-11", "2026-01-31")
SOURCES = ("web", "code", "books")


@pytest.fixture(scope="module")
def parts():
    """Moments by number."""
    return [moments_of(header_of("float32", n_folds=2), seed) for seed in range(6)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Six shards of three sources and three days, a segment each."""
    with pytest.MonkeyPatch.context() as patch:
        leave_to_the_disk(patch)
        store = Store.create(tmp_path_factory.mktemp("mix") / "s", header_of("float32", n_folds=2))
        fill(store, [[n] for n in range(6)])
    return store


def fill(store, groups):
    """One segment of the shards of each group, which are of one kind."""
    segments = []
    for group in groups:
        shards = [shard_of(n, SOURCES[n % 3], labels=(("time", DAYS[n % 3]),)) for n in group]
        total = sum((moments_of(store.header, n) for n in group), start=store.zeros())
        segments.append(store.write_segment(total, shards, [50] * len(group)))
    store.commit(segments)


def segment(source="web", **labels):
    return Segment(f"{source}{labels}", 0, source, 10, 1, "", tuple(sorted(labels.items())))


def factors(rules, segments, **how):
    return [*Mix.parse(rules, **how).factors(segments).values()]


# Laws of the sums


def total_of(store, parts, counts):
    """Each shard as often as `counts` says."""
    total = store.zeros()
    for part, n in zip(parts, counts, strict=True):
        for _ in range(n):
            total = total + part
    return total


FEW = settings(max_examples=max(8, settings().max_examples // 3))


@FEW
@given(st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_whole_factors_repeat_rows(store, parts, counts):
    """Factor 1 changes nothing, 0 leaves out, 2 counts twice, bit for bit; rows are those that were read."""
    rules = [f"source:{source}={n}" for source, n in zip(SOURCES, counts, strict=True)]
    mixed, expected = store.moments(mix=Mix.parse(rules)), total_of(store, parts, counts * 2)
    assert replace(mixed, n_rows=expected.n_rows) == expected
    assert mixed.n_rows == sum(part.n_rows for part, n in zip(parts, counts * 2, strict=True) if n)
    assert Mix.parse(rules) == Mix.parse([",".join(rules)])


@FEW
@given(st.lists(st.floats(0, 8, width=16), min_size=3, max_size=3))
def test_factors_weigh_rows(store, factors):
    """Any factors give the sums of rows whose weights are multiplied by them, to the precision of the grid."""
    rules = [f"source:{source}={factor!r}" for source, factor in zip(SOURCES, factors, strict=True)]
    mixed = store.moments(mix=Mix.parse(rules))
    rows = [rows_of(store.header, n) for n in range(6)]
    x, y = (np.concatenate([row[i] for row in rows]) for i in range(2))
    w = np.concatenate([row[2] * factors[n % 3] for n, row in enumerate(rows)])
    expected = Moments.from_rows(x, y, store.header.frame, Dense(K), weights=w)
    for name in ("weight", "sum_x", "sum_y", "sum_yy", "gram", "cross"):
        a, b = getattr(mixed, name).value(), getattr(expected, name).value()
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-3, err_msg=name)


@pytest.mark.parametrize(
    "mix",
    [
        Mix.parse(["source:web=0.3", "source:*o*=1.7"]),
        Mix.parse(half_life="10d"),
        Mix.parse(["time:2026-01-1*=0.1"], half_life="1w", as_of="2026-03"),
        Mix.parse(["source:code=0"]),
    ],
    ids=["factors", "half-life", "both", "left out"],
)
def test_mixture_does_not_depend_on_the_segmentation(tmp_path, monkeypatch, store, mix):
    """One segment a shard, one a kind from the start, or merged later: equal bits, in sum and fold by fold."""
    leave_to_the_disk(monkeypatch)
    folds = [shard_of(n).fold(2) for n in range(6)]
    few = Store.create(tmp_path / "few", store.header)
    kinds = {(folds[n], n % 3): [] for n in range(6)}
    for n in range(6):
        kinds[folds[n], n % 3].append(n)
    fill(few, kinds.values())
    late = Store.create(tmp_path / "late", store.header)
    fill(late, [[n] for n in reversed(range(6))])
    compact(late)
    expected, by_fold = store.moments(mix=mix), store.fold_moments(mix)
    for other in (few, late):
        assert other.moments(mix=mix) == expected
        assert other.fold_moments(mix) == by_fold
    assert expected != store.moments()


def test_equal_weights_are_summed_before_they_are_weighted(store, parts):
    """One rounding for all segments of a weight, so that it does not matter how many they are."""
    mixed = store.moments(mix=Mix.parse(["source:*=0.3"]))
    assert mixed == total_of(store, parts, [1] * 6) * 0.3


def test_mix_and_selection_of_segments_go_together(store, parts):
    """`keep` chooses among the segments, a mix weighs them; an empty choice is no rows."""
    mix = Mix.parse(["source:web=2"])
    chosen = store.moments(lambda s: s.source == "web", mix)
    assert replace(chosen, n_rows=2 * chosen.n_rows) == (parts[0] + parts[3]) * 2
    assert store.moments(lambda _: False, mix) == store.zeros()
    assert sum(store.fold_moments(mix).values(), start=store.zeros()) == store.moments(mix=mix)


def test_plain_mix_changes_nothing(store):
    """No rules, no half-life and no date leave the sums as they are, also in a store without times."""
    assert Mix().plain
    assert Mix.parse() == Mix()
    assert store.moments(mix=Mix()) == store.moments()
    assert not Mix.parse(as_of="2026").plain
    assert Mix().factors([segment()]) == {segment().id: 1.0}


def test_segments_later_than_the_date_are_left_out(store, parts):
    """`as_of` gives the sums that the store would have had then, bit for bit."""
    for as_of, counts in (("2025", [0] * 3), ("2026-01-01", [1, 0, 0]), ("2026-01-30", [1, 1, 0]), ("2027", [1] * 3)):
        assert store.moments(mix=Mix.parse(as_of=as_of)) == total_of(store, parts, counts * 2)


# Weights


@given(st.integers(0, 400), st.integers(1, 90))
def test_weight_halves_with_each_half_life(days, half_life):
    """2**(-age / half-life), with ages from the newest label, or from the date that is given."""
    new = datetime(2026, 6, 1, tzinfo=UTC)
    segments = [segment(time=(new - timedelta(days=n)).date().isoformat()) for n in (days, 0)]
    newest = [2.0 ** (-days / half_life), 1.0] if days else [1.0]
    assert factors([], segments, half_life=f"{half_life}d") == newest
    old = Mix.parse(half_life=f"{half_life}d", as_of="2026-06-11").factors(segments[1:])
    assert [*old.values()] == [2.0 ** (-10 / half_life)]


@pytest.mark.parametrize(("text", "days"), [("36h", 1.5), ("30d", 30), ("2w", 14), ("0.5y", 182.625), (" 7d ", 7)])
def test_units_of_half_lives(text, days):
    """Hours, days, weeks and years of 365.25 days."""
    assert Mix.parse(half_life=text).half_life == days


def test_times_of_any_precision_and_zone():
    """Years, months and days count from their end; an hour with a zone is that instant; days are in UTC."""
    times = ("2025", "2025-12", "2025-12-31", "2025-12-31T22:00:00-02:00", "2026-01-01T12:00", "2026-01")
    segments = [segment(time=t) for t in times]
    assert factors([], segments[:5], half_life="12h") == [0.5, 0.5, 0.5, 0.5, 1.0]
    mix = Mix(as_of=datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))))
    assert [*mix.factors(segments).values()] == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    without = Mix(as_of=datetime(2026, 1, 1))  # UTC, as in text
    assert without == Mix(as_of=datetime(2026, 1, 1, tzinfo=UTC))
    assert [*without.factors(segments).values()] == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]


def test_nothing_of_a_period_is_known_before_its_end():
    """Rows of a month that has not ended weigh nothing, nor those of a day before it is over."""
    segments = [segment(time=t) for t in ("2026-10", "2026-11", "2026-11-01", "2026-11-02", "2026")]
    assert factors([], segments, as_of="2026-11-01") == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert factors([], segments, as_of="2026-11") == [1.0, 1.0, 1.0, 1.0, 0.0]


def test_very_old_rows_weigh_nothing():
    """Weights too small for a float are 0, not an error."""
    assert factors([], [segment(time="1900"), segment(time="2026")], half_life="1h") == [0.0, 1.0]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["source:web=3"], [3, 1, 1]),
        (["source:w*=3"], [3, 3, 1]),
        (["source:*=2", "source:web=3"], [6, 2, 2]),
        (["source:web=0.5, lang:de=4"], [2, 4, 1]),
        (["lang:??=5"], [5, 5, 1]),
        (["source:[cw]*=0"], [0, 0, 0]),
        (["source:web2=1e-3"], [1, 1e-3, 1]),
    ],
    ids=str,
)
def test_rules_multiply_where_their_pattern_matches(rules, expected):
    """Patterns are those of fnmatch, case and all; a segment without the label is left as it is."""
    segments = [segment("web", lang="de"), segment("web2", lang="de"), segment("code")]
    assert factors(rules, segments) == expected


@pytest.mark.parametrize(
    ("rules", "got", "expected"),
    [
        (["source:Web=2"], "no segment whose source is Web", "one of code, web"),
        (["source:web=2", "source:wiki*=1"], r"no segment whose source is wiki\*", "one of code, web"),
        (["lang:de=2"], "no segment whose lang is de", "a label among source, time"),
    ],
)
def test_rules_that_match_nothing_are_refused(rules, got, expected):
    """A misspelt label or value is an error that lists what there is, not a mixture without effect."""
    segments = [segment("web", time="2026"), segment("code", time="2026")]
    with pytest.raises(MismatchError, match=f"{got}; expected {expected}; `streamfit status` lists labels"):
        factors(rules, segments)


@pytest.mark.parametrize("how", [{"half_life": "1d"}, {"as_of": "2026"}])
def test_ages_need_times(how):
    """Where age matters, a segment without a time is refused, and named by its source."""
    with pytest.raises(MismatchError, match=r"1 shard\(s\) of source web without a label `time`"):
        factors([], [segment("code", time="2026"), segment("web")], **how)


@pytest.mark.parametrize(
    "text",
    ["", "web=2", "source:web", "source:web=", "source:web=-1", "source:web=nan", "source:web=inf", "source:=2", ":a=1",
     "source:web=two", "a b:c=1", "source:web=1,", "source:a=b=1,,lang:x=2"],
)  # fmt: skip
def test_rules_of_another_form_are_refused(text):
    """One error that shows the form."""
    with pytest.raises(
        ConfigError, match=r"expected label:value=factor with a factor >= 0; for instance source:web=0\.3"
    ):
        Mix.parse([text])


@pytest.mark.parametrize("text", ["30", "d", "-3d", "0d", "3 d", "1e3d", "30m", "nand"])
def test_half_lives_of_another_form_are_refused(text):
    """A number without a unit is ambiguous, and nothing decays in no time."""
    with pytest.raises(ConfigError, match=r"half-life '.*'; expected a number and h, d, w or y; for instance 30d"):
        Mix.parse(half_life=text)


@pytest.mark.parametrize("text", ["yesterday", "2026-13", "2026-02-30", "26", "2026-01-01T25:00"])
def test_dates_of_another_form_are_refused(text):
    """ISO 8601 or nothing."""
    with pytest.raises(ConfigError, match=f"time '{text}'; expected an ISO 8601 date"):
        Mix.parse(as_of=text)
