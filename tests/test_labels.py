"""Labels of shards; in tables, rows that are selected or left out, and the positions that a deletion needs."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import asdict, replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from streamfit.corpus import Files, JsonLines, Labels, ParquetTable, TextFiles
from streamfit.corpus.labels import MAX_COMBINATIONS
from streamfit.corpus.saved import SavedDataset
from streamfit.errors import ConfigError, CorpusError, ShardChangedError, ShardError
from streamfit.frame import BLOCK_ROWS

REGION = Labels(columns=("region",))
NONE = Labels()


def write(path: Path, columns: dict, row_group_size: int = 10**6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def table(path: Path, labels: Labels = NONE, **options) -> ParquetTable:
    return ParquetTable(Files(str(path)), ("x",), ("y",), labels=labels, **options)


def ids(rows) -> list[int]:
    return [int(v) for block in rows for v in block.x[:, 0]]


def same_blocks(a, b) -> None:
    """Equal to the last bit, cut at the same places, laid out alike: products of them have equal bits."""
    a, b = list(a), list(b)
    assert [len(block.x) for block in a] == [len(block.x) for block in b]
    for one, other in zip(a, b, strict=True):
        for name in ("x", "y", "weights"):
            mine, theirs = getattr(one, name), getattr(other, name)
            assert (mine is None) == (theirs is None)
            if mine is not None:
                assert (mine.dtype, mine.strides, mine.tobytes()) == (theirs.dtype, theirs.strides, theirs.tobytes())


# Where labels come from


def test_labels_by_path(tmp_path):
    """Named groups are labels, in the order of their names; `source` is the source."""
    for name in ("web/2026-11-23/a.parquet", "books/2026-11/b.parquet"):
        write(tmp_path / name, {"x": [1.0 + len(name)], "y": [1.0]})
    labels = Labels(path=r"^(?P<source>\w+)/(?P<time>[\d-]+)/(?P<part>\w+)", fixed=(("licence", "CC0"),))
    found = {s.source: s for s in table(tmp_path, labels).shards()}
    assert found["web"].labels == (("licence", "CC0"), ("part", "a"), ("time", "2026-11-23"))
    assert found["books"].labels == (("licence", "CC0"), ("part", "b"), ("time", "2026-11"))
    assert all(s.select == () and s.within == "" for s in found.values())
    plain = table(tmp_path).shards()
    assert {s.source for s in plain} == {"table"}
    assert {s.content_id for s in plain} == {s.content_id for s in found.values()}


def test_every_kind_of_source_takes_labels_by_path(tmp_path):
    (tmp_path / "EU").mkdir()
    (tmp_path / "EU" / "a.txt").write_text("text")
    labels = Labels(path="(?P<region>EU|US)")
    assert TextFiles(Files(str(tmp_path)), labels=labels).shards()[0].labels == (("region", "EU"),)
    (tmp_path / "US.jsonl").write_text('{"text": "a"}')
    assert JsonLines(Files(str(tmp_path / "US.jsonl")), labels=labels).shards()[0].labels == (("region", "US"),)
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "d-EU")
    assert SavedDataset(Files(str(tmp_path / "d-EU")), labels=labels).shards()[0].labels == (("region", "EU"),)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"path": "(?P<a"}, r"pattern '\(\?P<a'.*expected a regular expression"),
        ({"path": "a(b)"}, r"pattern 'a\(b\)', which has no named group"),
        ({"path": "(?P<a>.)", "columns": ("a",)}, "label 'a' from 2 places"),
        ({"path": "(?P<time>.)", "time": "stamp"}, "label 'time' from 2 places"),
        ({"columns": ("time",), "time": "stamp"}, "label 'time' from 2 places"),
        ({"columns": ("a", "a")}, "label 'a' from 2 places"),
        ({"columns": ("a",), "fixed": (("a", "b"),)}, "label 'a' from 2 places"),
        ({"columns": ("a|day",)}, r"label named 'a\|day'"),
        ({"path": "(?P<ä>.)"}, "label named 'ä'"),
        ({"fixed": (("1a", "b"),)}, "label named '1a'"),
        ({"fixed": (("a", ""),)}, "fixed label 'a' is ''"),
        ({"fixed": (("a", "b\n"),)}, "without control characters"),
        ({"fixed": (("time", "soon"),)}, "fixed label 'time' is 'soon'; expected an ISO 8601"),
        ({"period": "week"}, "period 'week'; expected one of day, month, year"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Labels(**settings)


def test_labels_are_json_and_can_be_hashed():
    labels = Labels("(?P<a>.)", ("b",), "c", "year", (("d", "e"),))
    assert json.loads(json.dumps(asdict(labels)))["fixed"] == [["d", "e"]]
    assert len({labels, replace(labels), Labels()}) == 2
    assert labels.keys == ("b", "c|year")
    assert Labels(columns=("time", "a")).keys == ("a", "time|day")


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("(?P<region>US)", r"a\.parquet: not matched by the pattern '\(\?P<region>US\)'"),
        ("a(?P<region>US)?", r"a\.parquet: the label 'region' by the pattern .* is ''"),
        ("(?P<time>a)", r"a\.parquet: the label 'time' by the pattern .* is 'a'; expected an ISO 8601"),
    ],
)
def test_path_without_labels_names_file_and_pattern(tmp_path, pattern, complaint):
    write(tmp_path / "a.parquet", {"x": [1.0], "y": [1.0]})
    with pytest.raises(CorpusError, match=complaint):
        table(tmp_path, Labels(path=pattern)).shards()


def test_text_files_have_only_paths(tmp_path):
    with pytest.raises(ConfigError, match="have only paths"):
        TextFiles(Files(str(tmp_path)), labels=REGION)


# Parts of a file


def test_uniform_row_groups_stay_whole_and_others_are_cut(tmp_path):
    regions = ["EU", "EU", "US", "EU", "US", "US"]
    path = write(tmp_path / "t.parquet", {"x": np.arange(6.0), "y": np.ones(6), "region": regions}, 2)
    first, eu, us, last = table(path, REGION).shards()
    plain = table(path).shards()
    assert (first.key, first.labels, first.select, first.within) == ("t.parquet#0", (("region", "EU"),), (), "")
    assert (last.key, last.labels, last.select) == ("t.parquet#2", (("region", "US"),), ())
    assert (eu.key, us.key) == ("t.parquet#1[region=EU]", "t.parquet#1[region=US]")
    assert (first.content_id, last.content_id) == (plain[0].content_id, plain[2].content_id)
    for shard, value in ((eu, "EU"), (us, "US")):
        assert shard.labels == shard.select == (("region", value),)
        assert shard.within == shard.bytes_id == plain[1].content_id
        expected = blake3(f"{shard.within}\n{json.dumps(shard.select)}".encode()).hexdigest()
        assert (shard.content_id, shard.planned_rows) == (expected, 1)
    # The shard says everything: a source without labels reads it.
    assert [ids(table(path).read(s)) for s in (first, eu, us, last)] == [[0, 1], [3], [2], [4, 5]]


@given(
    regions=st.lists(st.sampled_from(["EU", "US", "ASIEN 亚洲"]), min_size=1, max_size=40),
    flags=st.lists(st.booleans(), min_size=40, max_size=40),
    size=st.integers(1, 50),
    gone=st.sets(st.integers(0, 49)),
)
def test_parts_hold_each_row_once_and_are_those_of_rewritten_files(tmp_path_factory, regions, flags, size, gone):
    """Rows of the parts are a permutation of all rows, and each part reads as a file without the other rows."""
    folder, n = tmp_path_factory.mktemp("rows"), len(regions)
    x, w = np.arange(n, dtype=np.float32), np.arange(n) % 3
    columns = {"x": x, "y": x / 7, "w": w, "region": regions, "ok": flags[:n]}
    path = write(folder / "t", columns, size)
    labels = Labels(columns=("region", "ok"))
    shards = table(path, labels, weight="w").shards()
    plain = table(path, weight="w")
    assert sorted(i for s in shards for i in ids(plain.read(s))) == list(range(n))
    assert len({s.content_id for s in shards}) == len(shards)
    assert shards == table(path, labels, weight="w").shards()
    for i, shard in enumerate(shards):
        named, lo = dict(shard.labels), shard.start * size
        rows = [
            row
            for row in range(lo, min(lo + size, n))
            if (regions[row], "true" if flags[row] else "false") == (named["region"], named["ok"])
        ]
        assert shard.planned_rows == len(rows)
        left = [row for row in rows if row - lo not in gone]
        if left:
            alone = table(write(folder / f"{i}", {k: pa.array(v).take(left) for k, v in columns.items()}), weight="w")
            (whole,) = alone.shards()
            same_blocks(plain.read(replace(shard, without=tuple(sorted(gone)))), alone.read(whole))


def test_blocks_of_a_part_are_full_but_the_last(tmp_path):
    """Rows are filtered before they are cut into blocks, over many blocks, for lists and halves too."""
    n = 3 * BLOCK_ROWS + 11
    rng = np.random.default_rng(0)
    keep, gone = rng.random(n) < 0.7, np.flatnonzero(rng.random(n) < 0.2)
    v, half = rng.normal(size=(n, 2)), rng.normal(size=n).astype(np.float16)
    left = np.flatnonzero(keep & ~np.isin(np.arange(n), gone))

    def of(rows):
        lists = pa.FixedSizeListArray.from_arrays(pa.array(v[rows].reshape(-1)), 2)
        return {"x": half[rows], "v": lists, "y": v[rows, 0], "k": np.where(keep[rows], 1, 2)}

    def source(path, labels=NONE):
        return ParquetTable(Files(str(path)), ("x", "v"), ("y",), labels=labels)

    path = write(tmp_path / "t", of(np.arange(n)))
    shard = source(path, Labels(columns=("k",))).shards()[0]
    assert shard.select == (("k", "1"),)
    alone = source(write(tmp_path / "alone", of(left)))
    same_blocks(source(path).read(replace(shard, without=tuple(gone.tolist()))), alone.read(alone.shards()[0]))


def test_row_that_is_left_out_cannot_raise(tmp_path):
    """NaN, null, a negative weight or a bad class id in a row that does not count is nobody's error."""
    nan = float("nan")
    path = write(
        tmp_path / "t",
        {
            "x": [0.0, nan, 2.0, None, nan],
            "y": [0, 1, -1, 1, 1],
            "w": [1, -1, 1, 1, 1],
            "region": ["EU", "US", "EU", "US", "US"],
        },
    )
    source = table(path, REGION, weight="w", n_classes=2)
    eu, us = source.shards()
    (rows,) = source.read(replace(eu, without=(2,)))
    assert (rows.x.tolist(), rows.y.tolist()) == ([[0.0]], [0])
    assert list(source.read(replace(us, without=(1, 3, 4)))) == []
    for shard, complaint in (
        (eu, r"t#0\[region=EU\], row 2: class id -1"),
        (us, "row 3: null in column 'x'"),
        (replace(us, without=(3,)), "row 1: nan in column 'x'"),
        (replace(us, without=(1, 3)), "row 4: nan in column 'x'"),
    ):
        with pytest.raises(ShardError, match=complaint):
            list(source.read(shard))


def test_rows_without_a_label_and_too_many_labels_are_refused(tmp_path):
    n = MAX_COMBINATIONS + 1
    numbers = {"x": np.ones(n), "y": np.ones(n)}
    null = write(tmp_path / "null", numbers | {"region": ["EU"] * 40 + [None] * (n - 40)})
    with pytest.raises(CorpusError, match="null#0, row 40: no value that can be a label in column 'region'"):
        table(null, REGION).shards()
    many = write(tmp_path / "many", numbers | {"region": np.arange(n), "a": np.arange(n) // 33, "b": np.arange(n) % 33})
    with pytest.raises(CorpusError, match=r"many#0: more than 64 sets of labels, from region.*sort or partition"):
        table(many, REGION).shards()
    with pytest.raises(CorpusError, match="many#0: more than 64 sets of labels, from a, b"):
        table(many, Labels(columns=("a", "b"))).shards()
    assert len(table(write(tmp_path / "few", pa.table(numbers | {"region": np.arange(n)})[1:]), REGION).shards()) == 64
    bad = write(tmp_path / "bad", numbers | {"region": ["EU", "U\tS"] + ["EU"] * (n - 2)})
    with pytest.raises(CorpusError, match=r"bad#0, row 1: the label in column 'region' is 'U\\tS'"):
        table(bad, REGION).shards()
    with pytest.raises(CorpusError, match="no label column 'colour' among x, y, region"):
        table(bad, Labels(columns=("colour",))).shards()


def test_file_that_is_no_parquet_is_still_a_shard_to_refuse(tmp_path):
    (tmp_path / "t").write_text("x,y\n")
    (shard,) = table(tmp_path / "t", replace(REGION, fixed=(("a", "b"),))).shards()
    assert shard.labels == (("a", "b"),)
    with pytest.raises(ShardError, match="a whole Parquet file"):
        list(table(tmp_path / "t").read(shard))


# Times

DAY = dt.date(2026, 11, 23)
NOON = dt.datetime(2026, 11, 23, 12)
COLUMNS = {
    "date32": pa.array([DAY, dt.date(1969, 2, 3)]),
    "timestamp": pa.array([NOON, dt.datetime(1969, 2, 3, 4)], pa.timestamp("us")),
    "UTC": pa.array([NOON, dt.datetime(1969, 2, 3, 4)], pa.timestamp("us", "UTC")),
    # The same instants; noon in UTC is the next day there, which does not matter.
    "zone": pa.array([NOON, dt.datetime(1969, 2, 3, 4)], pa.timestamp("ns", "Pacific/Kiritimati")),
    "string": pa.array(["2026-11-23T23:59:59.9", "1969-02-03"]),
    "offset": pa.array(["2026-11-24T01:00:00+02:00", "1969-02-03 04:00:00Z"]),
    "integer": pa.array([20261123, 19690203]),
    "dictionary": pa.array(["2026-11-23", "1969-02-03"]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize(("period", "length"), [("day", 10), ("month", 7), ("year", 4)])
def test_times_are_cut_to_their_period(tmp_path, kind, period, length):
    path = write(tmp_path / "t", {"x": [0.0, 1.0], "y": [1.0, 1.0], "stamp": COLUMNS[kind]})
    shards = table(path, Labels(time="stamp", period=period)).shards()
    values = ["1969-02-03"[:length], "2026-11-23"[:length]]
    assert [s.labels for s in shards] == [(("time", v),) for v in values]
    assert [s.select for s in shards] == [((f"stamp|{period}", v),) for v in values]
    assert [ids(table(path).read(s)) for s in shards] == [[1], [0]]


def test_time_is_a_label_like_others_but_checked(tmp_path):
    numbers = {"x": [0.0, 1.0], "y": [1.0, 1.0]}
    path = write(tmp_path / "t", numbers | {"time": ["2026-11", "2026"], "bad": ["2026", "23.11.2026"]})
    shards = table(path, Labels(columns=("time",), period="month")).shards()
    assert [s.select for s in shards] == [(("time|month", "2026"),), (("time|month", "2026-11"),)]
    assert [s.key for s in shards] == ["t#0[time=2026]", "t#0[time=2026-11]"]
    with pytest.raises(
        CorpusError, match=r"t#0, row 1: no value .* column 'bad'; expected a date, or an ISO 8601 time"
    ):
        table(path, Labels(time="bad")).shards()


@pytest.mark.parametrize(
    "text", ["2026-13", "2026-02-30", "0000", "2026-11-23T25:00", "202611", "２０２６", "now", " 2026"]
)
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ConfigError, match="ISO 8601"):
        Labels(fixed=(("time", text),))


# Positions


def test_positions_in_a_table(tmp_path):
    """They count in the row group, of rows that the shard selects and has not left out."""
    path = write(
        tmp_path / "t",
        {
            "x": np.arange(8.0),
            "y": np.ones(8),
            "user": [1, 2, None, 1, 2, 1, 1, 2],
            "day": [DAY] * 4 + [dt.date(2026, 1, 2)] * 4,
            "region": ["EU", "US"] * 4,
            "tags": [["a"]] * 8,
        },
        6,
    )
    plain = table(path)
    first, second = plain.shards()
    assert plain.positions(first, "user", frozenset(["1"])) == (0, 3, 5)
    assert plain.positions(second, "user", frozenset(["1", "2", "3"])) == (0, 1)
    assert plain.positions(first, "user", frozenset()) == ()
    assert plain.positions(first, "day", frozenset(["2026-01-02"])) == (4, 5)
    us = table(path, REGION).shards()[1]
    assert plain.positions(us, "user", frozenset(["1"])) == (3, 5)
    assert plain.positions(us, "region", frozenset(["EU", "US"])) == (1, 3, 5)
    assert plain.positions(replace(us, without=(2, 3)), "user", frozenset(["1", "2"])) == (1, 5)
    with pytest.raises(ShardError, match="no column 'name' among x, y, user, day, region, tags"):
        plain.positions(first, "name", frozenset(["1"]))
    with pytest.raises(ShardError, match="column 'tags' has type list"):
        plain.positions(first, "tags", frozenset(["a"]))


def test_changed_rows_have_no_positions(tmp_path):
    columns = {"x": [1.0, 2.0], "y": [1.0, 2.0], "region": ["EU", "US"]}
    source = table(write(tmp_path / "t", columns), REGION)
    shard = source.shards()[0]
    write(tmp_path / "t", columns | {"region": ["US", "EU"]})
    for read in (lambda s: list(source.read(s)), lambda s: source.positions(s, "none", frozenset(["EU"]))):
        with pytest.raises(ShardChangedError, match=f"expected content {shard.within[:12]}"):
            read(shard)


def test_bytes_that_are_no_text_are_no_label(tmp_path):
    path = write(tmp_path / "t", {"x": [0.0, 1.0], "y": [1.0, 1.0], "region": pa.array([b"\xff", b"a"])})
    with pytest.raises(CorpusError, match="t#0, row 0: no value that can be a label"):
        table(path, REGION).shards()
