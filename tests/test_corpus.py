"""Sources: which files are found, how they are cut, what is read, and that every bad input is one named error."""

import itertools
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamfit.corpus import Files, JsonLines, ParquetTable, TextFiles, split_of
from streamfit.errors import ConfigError, CorpusError, ShardChangedError, ShardError
from streamfit.features import Linear
from streamfit.frame import BLOCK_ROWS, Frame
from streamfit.store import Header, Store
from streamfit.targets import Dense

TREE = ("a.py", "b.txt", "sub/c.py", "sub/deep/d.py", "test/e.py", "sub/test/f.py")
RNG = np.random.default_rng(3)


@pytest.fixture
def tree(tmp_path):
    for name in TREE:
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "tree"


def names(files):
    return [name for name, _ in files.find()]


@pytest.mark.parametrize(
    ("root", "include", "exclude", "expected"),
    [
        ("", (), (), sorted(TREE)),
        ("", ("*.py",), (), ["a.py", "sub/c.py", "sub/deep/d.py", "sub/test/f.py", "test/e.py"]),
        ("", ("*.py",), ("test",), ["a.py", "sub/c.py", "sub/deep/d.py"]),
        ("", ("sub",), (), ["sub/c.py", "sub/deep/d.py", "sub/test/f.py"]),
        ("", (), ("sub/*",), ["a.py", "b.txt", "test/e.py"]),
        ("", ("a.py", "*.txt"), (), ["a.py", "b.txt"]),
        ("*.py", (), (), ["a.py"]),
        ("**/*.py", (), ("test",), ["a.py", "sub/c.py", "sub/deep/d.py"]),
        ("s?b/*.py", (), (), ["sub/c.py"]),
        ("sub/c.py", (), (), ["c.py"]),
    ],
)
def test_files_of_a_directory_a_glob_or_one_file_pass_the_patterns(tree, root, include, exclude, expected):
    """A pattern with a slash is tried on the relative path, one without on each of its components."""
    files = Files(str(tree / root), include, exclude)
    assert names(files) == expected
    assert all(path.is_file() and path.is_absolute() for _, path in files.find())


def test_split_parts_a_corpus_by_name_alone(tmp_path):
    """The three parts are disjoint, cover everything, have about their shares, and are the same elsewhere."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for i in range(500):
            (tmp_path / folder / f"{i}.txt").write_text("x")
    fractions = (0.6, 0.3, 0.1)
    parts = [names(Files(str(tmp_path / "one"), (), (), part, fractions)) for part in ("train", "validation", "test")]
    assert sorted(itertools.chain(*parts)) == sorted(f"{i}.txt" for i in range(500))
    assert sum(map(len, parts)) == 500
    np.testing.assert_allclose([len(p) / 500 for p in parts], fractions, atol=0.06)
    assert names(Files(str(tmp_path / "two"), (), (), "train", fractions)) == parts[0]


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.2, -0.2, 0.0)])
def test_split_refuses_what_is_no_share(fractions):
    """Shares are nonnegative and add up to 1."""
    with pytest.raises(ConfigError, match="add up to 1"):
        split_of("a", fractions)


@pytest.mark.parametrize("root", ["", "**/*"])
def test_store_inside_the_corpus_is_not_read(tree, root):
    """A store beside the data is no data, whether it is met by walking or by a glob pattern."""
    header = Header(Linear(1), Dense(1), Frame.identity(1, 1), "float64", 2)
    Store.create(tree / "sub" / "store", header)
    assert names(Files(str(tree / root))) == sorted(TREE)


@pytest.mark.parametrize(
    ("root", "include", "message"),
    [
        ("nowhere", (), "no file or directory"),
        ("*.none", (), "no file of 0"),
        ("", ("*.none",), "no file of 6"),
    ],
)
def test_nothing_found_is_an_error(tree, root, include, message):
    """An empty corpus is refused, with the number of files that patterns left out."""
    with pytest.raises(CorpusError, match=message):
        Files(str(tree / root), include).find()


@pytest.mark.parametrize("target", ["gone", "dangling"], ids=["nothing", "itself"])
def test_link_to_nothing_is_named(tree, target):
    """A dangling or circular link is an error that names it, unless patterns leave it out."""
    (tree / "dangling").symlink_to(tree / target)
    with pytest.raises(CorpusError, match="dangling: a link to nothing"):
        Files(str(tree)).find()
    assert names(Files(str(tree), (), ("dangling",))) == sorted(TREE)


def test_equal_content_has_an_equal_id_under_any_name(tmp_path):
    """A content id is the BLAKE3 of the bytes: neither name nor folder nor corpus matters."""
    for name in ("a.txt", "b/c.md", "d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("other" if name == "d.txt" else "same")
    ids = {s.key: s.content_id for s in TextFiles(Files(str(tmp_path))).shards()}
    assert ids["a.txt"] == ids["b/c.md"] != ids["d.txt"]


# Documents


def test_text_files_are_documents(tree):
    """A file is a shard and a document; an empty one is neither."""
    (tree / "empty.txt").touch()
    source = TextFiles(Files(str(tree)))
    shards = source.shards()
    assert [s.key for s in shards] == sorted(TREE)
    assert [text for s in shards for text in source.documents(s)] == sorted(TREE)


@pytest.mark.parametrize("shard_bytes", [1, 7, 50, 64, 10**6])
@pytest.mark.parametrize("last", ["", "\n", "\r\n\n \n"])
def test_json_lines_are_cut_at_line_ends(tmp_path, shard_bytes, last):
    """However a file is cut, its parts touch and the documents are the same; blank lines are none."""
    texts = ["a", "zwei\nZeilen", "", "über 三 \u2028", "x" * 100, "end"]
    lines = [json.dumps({"text": t}, ensure_ascii=i % 2 == 0) for i, t in enumerate(texts)]
    (tmp_path / "a.jsonl").write_bytes(("\n\n".join(lines) + last).encode())
    source = JsonLines(Files(str(tmp_path)), shard_bytes=shard_bytes)
    shards = source.shards()
    cuts = [(s.start, s.stop) for s in shards]
    assert [stop for _, stop in cuts[:-1]] == [start for start, _ in cuts[1:]]
    assert cuts[0][0] == 0
    assert cuts[-1][1] == (tmp_path / "a.jsonl").stat().st_size
    assert [text for s in shards for text in source.documents(s)] == texts


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{'text': 1}", "line 2 of the shard: not JSON"),
        (b"[" * 100_000, "line 2 of the shard: not JSON"),
        (b'{"body": "x"}', r"line 2 of the shard: fields \['body'\]; expected a string under 'text'"),
        (b'{"text": 5}', "expected a string under 'text'"),
        (b"[1]", "a list"),
        (b'{"text": "\\ud800"}', "half a surrogate pair"),
    ],
)
def test_bad_json_line_is_one_shard_error(tmp_path, line, message):
    """What is not an object with text is refused with its line."""
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + line + b"\n")
    source = JsonLines(Files(str(tmp_path)))
    with pytest.raises(ShardError, match=message):
        source.documents(source.shards()[0])


def test_bad_bytes_are_named_by_their_offset_in_the_file(tmp_path):
    """The offset counts from the start of the file, in whatever shard the byte stands; encodings are a choice."""
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "1"}\n{"text": "\xe9"}\n')
    source = JsonLines(Files(str(tmp_path)), shard_bytes=5)
    with pytest.raises(ShardError, match=r"a.jsonl#14-28: byte 0xe9 at offset 24 is not utf-8"):
        source.documents(source.shards()[1])
    text = TextFiles(Files(str(tmp_path)), encoding="latin-1")
    assert "é" in text.documents(text.shards()[0])[0]
    with pytest.raises(ConfigError, match="encoding 'latin-5000'"):
        TextFiles(Files(str(tmp_path)), encoding="latin-5000")


@pytest.mark.parametrize("kind", ["text", "table", "unfinished table"])
def test_file_that_changes_between_listing_and_reading_is_refused(tmp_path, kind):
    """Only bytes that were listed are counted: anything else is a ShardChangedError with the planned id."""
    path, other = tmp_path / "a", tmp_path / "b"
    if kind == "text":
        path.write_text("old")
        other.write_text("new")
        source = TextFiles(Files(str(path)))
        read = source.documents
    else:
        write(path, x=[1.0, 2.0], y=[1.0, 2.0])
        write(other, x=[1.0, 3.0], y=[1.0, 2.0])
        if kind == "unfinished table":
            path.write_bytes(path.read_bytes()[:-9])
        source = ParquetTable(Files(str(path)), ("x",), ("y",))
        read = rows_of(source)
    shard = source.shards()[0]
    shutil.copy(other, path)
    with pytest.raises(ShardChangedError, match=f"changed while the corpus was read.*{shard.content_id[:12]}"):
        read(shard)


# Tables


def write(path: Path, row_group_size: int = 10**6, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)


def rows_of(source):
    return lambda shard: list(source.read(shard))


def table_of(path, *features, target=("y",), **options):
    return ParquetTable(Files(str(path)), features, target, **options)


def fixed(values, width):
    return pa.FixedSizeListArray.from_arrays(pa.array(values), width)


@pytest.mark.parametrize(
    ("column", "dtype", "width"),
    [
        (np.arange(6, dtype=np.int8), np.float64, 1),
        (np.arange(6, dtype=np.uint64) << 40, np.float64, 1),
        (np.arange(6) % 2 == 0, np.float64, 1),
        (RNG.normal(size=6).astype(np.float16), np.float32, 1),
        (RNG.normal(size=6).astype(np.float32), np.float32, 1),
        (RNG.normal(size=6), np.float64, 1),
        (RNG.normal(size=(6, 3)).astype(np.float32), np.float32, 3),
        (np.arange(12).reshape(6, 2), np.float64, 2),
    ],
    ids=lambda p: f"{p.dtype}-{p.ndim}d" if isinstance(p, np.ndarray) else None,
)
def test_columns_of_any_number_type_become_features(tmp_path, column, dtype, width):
    """Integers, booleans, floats and fixed-size lists; float32 where all columns fit in it, else float64."""
    array = fixed(column.reshape(-1), width) if column.ndim == 2 else pa.array(column)
    half, double = RNG.normal(size=6).astype(np.float16), RNG.normal(size=6)
    write(tmp_path / "t", x=array, half=half, double=double, y=column.reshape(6, -1)[:, 0])
    for extra, expected in (("half", dtype), ("double", np.float64)):
        source = table_of(tmp_path / "t", extra, "x")
        (rows,) = source.read(source.shards()[0])
        assert rows.x.dtype == expected
        assert rows.x.shape == (6, 1 + width)
        np.testing.assert_array_equal(rows.x[:, 1:], column.reshape(6, -1).astype(expected))
        assert rows.y.shape == (6, 1)


@pytest.mark.parametrize("row_group", [1000, BLOCK_ROWS, BLOCK_ROWS + 1, 2 * BLOCK_ROWS + 17, 70_001])
def test_row_groups_are_shards_and_blocks_are_full_but_the_last(tmp_path, row_group):
    """Where a block ends depends on the shard alone; blocks put together are the table that was written."""
    n = 70_001 if row_group == 70_001 else 10_007
    x, v, y = np.arange(n), RNG.normal(size=(n, 2)), RNG.normal(size=n)
    write(tmp_path / "t", row_group, x=x, v=fixed(v.reshape(-1), 2), y=y, w=np.arange(n) % 3)
    source = table_of(tmp_path / "t", "v", "x", weight="w")
    shards = source.shards()
    assert [s.planned_rows for s in shards] == [min(row_group, n - lo) for lo in range(0, n, row_group)]
    assert [s.key for s in shards] == [f"t#{i}" for i in range(len(shards))]
    blocks = [list(source.read(s)) for s in shards]
    for shard, parts in zip(shards, blocks, strict=True):
        assert [len(b.x) for b in parts[:-1]] == [BLOCK_ROWS] * (len(parts) - 1)
        assert sum(len(b.x) for b in parts) == shard.planned_rows
    rows = list(itertools.chain(*blocks))
    np.testing.assert_array_equal(np.concatenate([b.x for b in rows]), np.column_stack([v, x]))
    np.testing.assert_array_equal(np.concatenate([b.y for b in rows])[:, 0], y)
    np.testing.assert_array_equal(np.concatenate([b.weights for b in rows]), np.arange(n) % 3)


def test_class_ids_are_integers_of_one_axis(tmp_path):
    """With `n_classes` the target is one column of ids."""
    write(tmp_path / "t", x=[1.0, 2.0, 3.0], y=pa.array([2, 0, 1], pa.uint8()))
    source = table_of(tmp_path / "t", "x", n_classes=3)
    (rows,) = source.read(source.shards()[0])
    assert (rows.y.dtype, rows.y.tolist(), rows.weights) == (np.int64, [2, 0, 1], None)


def test_table_without_rows_has_no_shards(tmp_path):
    """An empty row group is nothing to count."""
    write(tmp_path / "t", x=pa.array([], pa.float64()), y=pa.array([], pa.float64()))
    assert table_of(tmp_path / "t", "x").shards() == []


N = BLOCK_ROWS + 1000
BAD = N - 500  # a row of the second block of the second row group
WHOLE = np.ones(N)


def with_bad(value, dtype=None):
    values = WHOLE.tolist()
    values[BAD] = value
    return pa.array(values, dtype)


BAD_COLUMNS = {
    "missing": ({"z": WHOLE}, {}, r"no column 'x' among z, y, w, c; expected every configured column"),
    "string": ({"x": ["a"] * N}, {}, r"column 'x' has type string; expected numbers"),
    "list": ({"x": [[1.0]] * N}, {}, r"column 'x' has type list"),
    "null": ({"x": with_bad(None)}, {}, rf"row {BAD}: null in column 'x'"),
    "null list": ({"x": pa.array([None if i == BAD else [1.0, 1.0] for i in range(N)], pa.list_(pa.float64(), 2))}, {},
                  rf"row {BAD}: null in column 'x'"),
    "null in list": ({"x": pa.array([[1.0, None if i == BAD else 1.0] for i in range(N)], pa.list_(pa.float64(), 2))},
                     {}, rf"row {BAD}: null inside the list in column 'x'"),
    "nan": ({"x": with_bad(float("nan"))}, {}, rf"row {BAD}: nan in column 'x'"),
    "inf target": ({"y": with_bad(float("-inf"))}, {}, rf"row {BAD}: -inf in column 'y'"),
    "float16 inf": ({"x": with_bad(float("inf"), pa.float32()).cast(pa.float16())}, {}, rf"row {BAD}: inf in"),
    "negative weight": ({"w": with_bad(-1.0)}, {"weight": "w"}, rf"row {BAD}: negative weight; expected 'w' >= 0"),
    "class too large": ({"c": with_bad(5, pa.int64())}, {"target": ("c",), "n_classes": 5}, rf"row {BAD}: class id 5"),
    "negative class": ({"c": with_bad(-1, pa.int8())}, {"target": ("c",), "n_classes": 5}, rf"row {BAD}: class id -1"),
    "float class": ({"c": WHOLE}, {"target": ("c",), "n_classes": 5}, r"column 'c' has type double; expected integer"),
    "string class": ({"c": ["a"] * N}, {"target": ("c",), "n_classes": 5}, r"column 'c' has type string"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_COLUMNS)
def test_bad_column_is_one_shard_error(tmp_path, name):
    """What cannot be counted is named by shard, row of the shard, and column."""
    bad, options, message = BAD_COLUMNS[name]
    columns = dict.fromkeys("xyw", WHOLE) | {"c": WHOLE.astype(int)} | bad
    if "z" in bad:
        del columns["x"]
        columns = {name: columns[name] for name in "zywc"}
    table = pa.table(columns)
    with pq.ParquetWriter(tmp_path / "t", table.schema) as writer:
        writer.write_table(table.slice(0, 100))
        writer.write_table(table)
    source = table_of(tmp_path / "t", "x", **options)
    with pytest.raises(ShardError, match=rf"^t#1\b.*{message}"):
        list(source.read(source.shards()[1]))


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "flipped"])
def test_file_that_is_no_whole_parquet_is_one_shard_error(tmp_path, damage):
    """A file that cannot be decoded is listed as a shard, so that it can be skipped, and refused when read."""
    write(tmp_path / "t", x=RNG.normal(size=1000), y=WHOLE[:1000])
    data = (tmp_path / "t").read_bytes()
    page = bytearray(data)
    page[4:40] = b"\xff" * 36
    (tmp_path / "t").write_bytes(
        {"truncated": data[:-100], "empty": b"", "text": b"x,y\n1,2\n", "flipped": bytes(page)}[damage]
    )
    source = table_of(tmp_path / "t", "x")
    (shard,) = source.shards()
    with pytest.raises(ShardError, match=r"^t(#0)?: .*a whole Parquet file") as caught:
        list(source.read(shard))
    assert not isinstance(caught.value, ShardChangedError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["gone", "truncated"])
def test_file_that_was_whole_when_it_was_listed_has_changed(tmp_path, fault):
    """It is told from one that never could be read."""
    write(tmp_path / "t", x=RNG.normal(size=1000), y=WHOLE[:1000])
    source = table_of(tmp_path / "t", "x")
    (shard,) = source.shards()
    if fault == "gone":
        (tmp_path / "t").unlink()
    else:
        (tmp_path / "t").write_bytes((tmp_path / "t").read_bytes()[:-100])
    for read in (source.read, lambda s: source.positions(s, "x", frozenset("1"))):
        with pytest.raises(ShardChangedError, match=r"^t#0: .*expected the file that was found"):
            list(read(shard))


def test_equal_pages_under_other_column_names_are_other_rows(tmp_path):
    """A row group's bytes hold values alone; names and types belong to its identity."""
    values = np.arange(100.0)
    pq.write_table(pa.table({"x": values, "y": values[::-1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"y": values, "x": values[::-1]}), tmp_path / "2.parquet")
    pq.write_table(pa.table({"x": values, "y": values[::-1]}), tmp_path / "3.parquet")
    ids = [s.content_id for s in ParquetTable(Files(str(tmp_path)), ("x",), ("y",)).shards()]
    assert ids[0] != ids[1]
    assert ids[0] == ids[2]


def test_a_file_that_changed_is_not_read_under_its_old_content_though_its_time_was_set_back(tmp_path):
    """Listed, written anew with the same size and modification time, listed again, each long enough apart."""

    def write(value):
        columns = {"x": np.full(100, value), "y": np.zeros(100)}
        options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        pq.write_table(pa.table(columns), path, **options)

    path = tmp_path / "rows.parquet"
    source = ParquetTable(Files(str(path)), ("x",), ("y",))
    write(1.0)
    before = path.stat()
    (first,) = source.shards()
    assert first.stamp == 0  # too young to trust its time
    time.sleep(2.1)
    (settled,) = source.shards()
    assert settled.stamp == before.st_ctime_ns
    assert settled == first
    write(2.0)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    with pytest.raises(ShardChangedError):
        list(source.read(settled))
    (again,) = source.shards()
    assert again.content_id != first.content_id
    assert next(iter(source.read(again))).x[0, 0] == 2.0
