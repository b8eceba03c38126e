"""What rows become by a recipe: categories, dates, missing values, filters, parts; and that it never changes later."""

import datetime
import io
import json
from dataclasses import replace

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import zarr
from obstore.store import from_url
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder
from test_cli import streamfit

from streamfit.corpus import Files, ParquetTable
from streamfit.corpus.dataset import DatasetFiles
from streamfit.corpus.freezing import frozen
from streamfit.corpus.memory import ArrowRows
from streamfit.corpus.openings import found
from streamfit.corpus.recipe import Filter, Recipe
from streamfit.errors import ConfigError, CorpusError, MismatchError, ShardError
from streamfit.features import Hashed
from streamfit.models import LinearModel
from streamfit.piping import predict_lines
from streamfit.predicting import Predictor
from streamfit.readers import table_source
from streamfit.store import Store
from streamfit.tables import Block, prepare_table

NAN = float("nan")
DAYS = [datetime.datetime(2026, 1, 5, 6) + datetime.timedelta(days=i) for i in range(6)]
TABLE = pa.table(
    {
        "a": pa.array([1.0, None, 3.0, NAN, 5.0, 6.0]),
        "c": ["x", "y", None, "x", "z", "y"],
        "t": DAYS,
        "part": ["train", "train", "test", "train", "validation", "train"],
        "y": pa.array([1.0, 2.0, 3.0, 4.0, None, 6.0]),
    }
)


def rows(recipe, table=TABLE, split=None):
    source = frozen(ArrowRows(table, recipe=recipe, split=split))
    parts = [part for shard in source.shards() for part in source.read(shard)]
    if not parts:
        return source.recipe, np.zeros((0, 0)), np.zeros((0, 0))
    return source.recipe, np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts])


def test_categories_are_those_of_scikit_learn():
    """One column a value, in sorted order."""
    table = TABLE.filter(pa.array([True, True, False, True, False, True]))
    recipe, x, _ = rows(Recipe(("c",), ("y",), categories=(("c", ()),)), table)
    values = np.array(table["c"].to_pylist())[:, None]
    np.testing.assert_array_equal(x, OneHotEncoder(sparse_output=False).fit_transform(values))
    assert recipe.categories == (("c", ("x", "y")),)


def test_a_value_that_was_not_there_is_an_error_or_nothing():
    """Zero in all columns only where that was asked for."""
    known = Recipe(("c",), ("y",), categories=(("c", ("x",)),), missing="drop", missing_target="drop")
    with pytest.raises(ShardError, match=r"row 1: 'y' in column 'c'"):
        rows(known)
    _, x, _ = rows(replace(known, unseen="zero"))
    assert x.tolist() == [[1.0], [0.0], [1.0], [0.0]]


def test_dates_are_days_or_parts_of_them():
    """Whole days and their fractions since 1970; the number of a weekday counts from Monday."""
    recipe = Recipe(("t", "weekday(t)", "hour(t)", "month(t)", "days(t)"), ("y",), missing_target="drop")
    _, x, _ = rows(recipe)
    epoch = datetime.datetime(1970, 1, 1)
    days = [(d - epoch).total_seconds() / 86400 for d in DAYS if d != DAYS[4]]
    assert x[:, 0].tolist() == days == x[:, 4].tolist()
    assert x[:, 1].tolist() == [0, 1, 2, 3, 5]
    assert set(x[:, 2]) == {6}
    assert set(x[:, 3]) == {1}
    texts = TABLE.set_column(2, "t", pa.array([d.isoformat() for d in DAYS]))
    _, same, _ = rows(replace(recipe, features=("days(t)", "weekday(t)")), texts)
    assert same[:, 0].tolist() == days
    zoned = TABLE.set_column(2, "t", pa.array(DAYS, pa.timestamp("ms", "America/New_York")))
    _, same, _ = rows(recipe, zoned)  # an instant counts by UTC, wherever it is read
    np.testing.assert_array_equal(same, x)


def test_missing_values_are_an_error_no_row_or_the_mean():
    """The mean of the rows that count, of numbers as scikit-learn's imputer has it, of categories their shares."""
    base = Recipe(("a",), ("y",), missing_target="drop")
    with pytest.raises(ShardError, match=r"row 1: null or NaN in column 'a'"):
        rows(base)
    _, x, y = rows(replace(base, missing="drop"))
    assert (x.tolist(), y.tolist()) == ([[1.0], [3.0], [6.0]], [[1.0], [3.0], [6.0]])
    recipe, x, y = rows(replace(base, missing="mean"))
    a = np.array([1, NAN, 3, NAN, 5, 6])[:, None]
    np.testing.assert_array_equal(x[:, 0], np.delete(SimpleImputer().fit_transform(a), 4, axis=0)[:, 0])
    assert recipe.fills == (("a", (3.75,)),)
    _, x, _ = rows(Recipe(("c",), ("y",), categories=(("c", ()),), missing="mean", missing_target="drop"))
    assert x[2].tolist() == pytest.approx([0.4, 0.4, 0.2])
    with pytest.raises(ShardError, match="column 'y'"):
        rows(replace(base, missing="drop", missing_target="error"))


def test_what_leaves_no_rows_is_named():
    for recipe, match in (
        (
            Recipe(("y",), ("y",), split_column="part", split_values=("fit", "choose", "judge")),
            "rows whose 'part' is 'fit'",
        ),
        (Recipe(("y",), ("y",), filters=(Filter("a", ">", 99),)), "look at `filters`"),
    ):
        with pytest.raises(CorpusError, match=match):
            prepare_table(
                ArrowRows(TABLE, recipe=recipe),
                [Block("linear")],
                precision="float64",
                n_folds=2,
                seed=0,
                sample_rows=9,
            )


def test_a_mean_is_not_rounded_to_the_type_of_its_column():
    """Nor is a share: the columns of a category that is missing add up to one as closely as float64 can."""
    table = pa.table(
        {
            "half": pa.array([0.1, 0.2, 0.4, None], pa.float16()),
            "single": pa.array([0.1, 0.2, 0.4, None], pa.float32()),
            "c": ["x", "y", "y", None],
            "y": [1.0, 2.0, 3.0, 4.0],
        }
    )
    recipe, x, _ = rows(Recipe(("half", "single", "c"), ("y",), missing="mean", categories=(("c", ()),)), table)
    expected = [float(np.asarray(table[name][:3]).astype(np.float64).mean()) for name in ("half", "single")]
    np.testing.assert_allclose(x[3], [*expected, 1 / 3, 2 / 3], rtol=1e-15)
    _, filled, _ = rows(Recipe(("half",), ("y",), fills=(("half", (1e5,)),)), table)  # more than float16 holds
    assert filled[3].tolist() == [1e5]
    fills = dict(recipe.fills)
    assert [*fills["half"], *fills["single"], *fills["c"]] == x[3].tolist()


def test_a_list_that_lacks_an_element_keeps_the_others():
    """Means are by element."""
    table = pa.table({"v": pa.array([[1.0, 2.0], [3.0, None], None], pa.list_(pa.float32(), 2)), "y": [1.0, 2.0, 3.0]})
    _, x, _ = rows(Recipe(("v",), ("y",), missing="mean"), table)
    assert x.dtype == np.float32
    assert x.tolist() == [[1, 2], [3, 2], [2, 2]]
    _, x, _ = rows(Recipe(("v",), ("y",), missing="drop"), table)
    assert x.tolist() == [[1, 2]]
    uneven = pa.table({"v": [[1.0], [1.0, 2.0]], "y": [1.0, 2.0]})
    with pytest.raises(ShardError, match="lists of 1 and of 2"):
        rows(Recipe(("v",), ("y",)), uneven)


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ([("a", ">", 1)], [2, 4, 5]),
        ([("a", ">=", 3), ("a", "<", 6)], [2, 4]),
        ([("a", "!=", 3)], [0, 4, 5]),
        ([("c", "in", ("x", "z"))], [0, 3, 4]),
        ([("c", "not in", ("x",))], [1, 4, 5]),
        ([("c", "==", "y"), ("a", "<=", 9)], [5]),
        ([("t", ">", "2026-01-08")], [3, 4, 5]),
    ],
)
def test_filters_keep_the_rows_that_meet_all_of_them(filters, left):
    """A row without a value, or with NaN, meets none."""
    table = TABLE.append_column("row", pa.array(np.arange(6.0)))
    _, x, _ = rows(Recipe(("row",), ("row",), filters=tuple(Filter(*f) for f in filters)), table)
    assert x[:, 0].tolist() == left


def test_a_filter_that_cannot_be_compared_is_named():
    """With the column's type."""
    with pytest.raises(ShardError, match="filter a == 'x' on a column of type double"):
        rows(Recipe(("a",), ("y",), filters=(Filter("a", "==", "x"),)))


def test_a_column_says_what_rows_are_for():
    """Training rows alone give dictionaries and means."""
    recipe = Recipe(("c",), ("y",), categories=(("c", ()),), split_column="part")
    settled, x, _ = rows(recipe, split="train")
    assert settled.levels("c") == ("x", "y")
    assert len(x) == 4
    with pytest.raises(ShardError, match="'z' in column 'c'"):
        rows(replace(settled, target=("days(t)",)), split="validation")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Recipe(("a",), ("y",), categories=(("b", ()),)), "'b'"),
        (lambda: Recipe((), ("y",)), "0 features"),
        (lambda: Recipe(("a",), ("y", "z"), n_classes=2), "2 target"),
        (lambda: Filter("a", "~", 1), "'~'"),
        (lambda: Filter("a", "in", 1), "list of values"),
        (lambda: Filter("a", "<", (1, 2)), "list of values"),
        (lambda: Recipe(("a",), ("y",), split_values=("a", "a", "b")), "three values"),
        (lambda: Recipe(("a",), ("y",), categories=(("a", ("x", "x")),)), "each once"),
        (lambda: Recipe(("a",), ("y",), categories=(("a", tuple(map(str, range(5000)))),)), "hash"),
    ],
)
def test_contradictions_are_refused(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


def test_nothing_to_find_is_named():
    """A mean of nothing, and a category without values."""
    empty = pa.table(
        {"a": pa.array([None, None], pa.float64()), "c": pa.array([None, None], pa.string()), "y": [1.0, 2.0]}
    )
    with pytest.raises(CorpusError, match="no number at all in column 'a'"):
        rows(Recipe(("a",), ("y",), missing="mean"), empty)
    with pytest.raises(CorpusError, match="no value in the category 'c'"):
        rows(Recipe(("c",), ("y",), categories=(("c", ()),)), empty)


def test_a_recipe_survives_json():
    """As a header keeps it."""
    recipe = Recipe(
        ("a", "c", "weekday(t)"),
        ("y",),
        categories=(("c", ("x", "y")),),
        missing="mean",
        fills=(("a", (1.5,)), ("c", (0.5, 0.5)), ("weekday(t)", (3.0,))),
        filters=(Filter("a", "in", (1, 2.5)), Filter("c", "==", "x")),
        split_column="part",
    )
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert recipe.is_frozen
    assert not recipe.is_plain


CSV = """day,carrier,distance,delay,part
2026-01-01,AA,100,5,train
2026-01-02,UA,,7,train
2026-01-03,AA,300,9,train
2026-01-04,UA,250,,train
2026-01-05,AA,900,4,test
"""


@pytest.fixture
def problem(tmp_path):
    (tmp_path / "data").mkdir()
    for month in range(3):
        rows = CSV.replace("2026-01", f"2026-0{month + 1}").replace("300", f"30{month}")
        (tmp_path / "data" / f"{month}.csv").write_text(rows)
    (tmp_path / "serial.toml").write_text('kind = "serial"')
    (tmp_path / "p.toml").write_text(f"""
kind = "ridge"
run = "{tmp_path}/run"
precision = "float64"
[corpus]
kind = "csv"
root = "{tmp_path}/data"
features = ["distance", "carrier", "weekday(day)"]
target = ["delay"]
categories = ["carrier"]
missing = "mean"
missing_target = "drop"
filters = [["distance", "<", 800]]
split_column = "part"
[corpus.labels]
time = "day"
period = "month"
[solve]
folds = 2
""")
    return tmp_path


def test_from_config_to_model_and_on(problem):
    """Fit, add, forget, verify and evaluate a CSV, with categories, dates, means, a split and labels."""
    run = problem / "run"
    text = (problem / "p.toml").read_text().replace('filters = [["distance", "<", 800]]\n', "")
    (problem / "p.toml").write_text(text)
    assert streamfit("fit", problem / "p.toml", "--machine", problem / "serial.toml").returncode == 0
    store = Store(run / "store")
    reader = store.header.reader
    assert reader["recipe"]["categories"] == [["carrier", ["AA", "UA"]]]
    assert dict(map(tuple, reader["origin"]["options"]["types"]))["distance"] == "double"
    assert store.head().n_rows == 9
    assert sorted(dict(s.labels)["time"] for s in store.head().segments) == ["2026-01", "2026-02", "2026-03"]
    # What comes later has whole numbers where a mean was, another order of columns, and a carrier that is known.
    (problem / "data" / "3.csv").write_text("carrier,part,delay,distance,day\nUA,train,3,,2026-04-01\n")
    here = ("--machine", problem / "serial.toml")
    assert streamfit("add", run, problem / "data", *here).returncode == 0
    assert store.head().n_rows == 10
    verified = streamfit("verify", run, "--against", problem / "data", "--sample", 1, *here)
    assert verified.returncode == 0, verified.stderr
    assert streamfit("forget", run, "--where", "day=2026-02-03", *here).returncode == 0
    assert store.head().n_rows == 9
    # Solved again, and scored on the test rows alone.
    assert streamfit("solve", run, "--alpha", 1).returncode == 0  # of rows that may be in one fold
    scored = json.loads(streamfit("evaluate", run / "model", problem / "data", "--json").stdout)
    assert next(iter(scored.values()))["n_rows"] == 3
    part = json.loads(streamfit("evaluate", run / "model", problem / "data", "--split", "train", "--json").stdout)
    assert next(iter(part.values()))["n_rows"] == 10
    assert streamfit("fit", problem / "p.toml", *here).returncode == 0  # the config is still the store's
    changed = problem / "changed.toml"
    changed.write_text(text.replace('missing = "mean"', 'missing = "drop"'))
    refused = streamfit("fit", changed, "--machine", problem / "serial.toml")
    assert refused.returncode == 2
    assert "recipe" in refused.stderr
    assert LinearModel.load(run / "model").features.n_inputs == 4


def test_files_and_pipes_are_predicted_by_the_same_recipe(problem):
    """Categories, parts of dates and means, of CSV, of Parquet and of lines; rows of another kind are named."""
    text = (problem / "p.toml").read_text().replace('filters = [["distance", "<", 800]]\n', "")
    (problem / "p.toml").write_text(text)
    here = ("--machine", problem / "serial.toml")
    assert streamfit("fit", problem / "p.toml", *here).returncode == 0
    model, data = problem / "run" / "model", problem / "data" / "0.csv"
    done = streamfit("predict", model, data, "-o", problem / "out.csv", *here)
    assert done.returncode == 0, done.stderr
    found = pa.csv.read_csv(problem / "out.csv")["delay_predicted"].to_pylist()
    assert len(found) == 5
    table = pa.csv.read_csv(data)
    pq.write_table(table, problem / "t.parquet")
    assert streamfit("predict", model, problem / "t.parquet", "-o", problem / "p.csv", *here).returncode == 0
    assert pa.csv.read_csv(problem / "p.csv")["delay_predicted"].to_pylist() == found
    linear = LinearModel.load(model)
    recipe = Recipe.from_json(linear.info["reader"]["recipe"])
    _, x, _ = rows(replace(recipe, target=("distance",), split_column="", missing_target="drop"), table.slice(0, 1))
    assert linear.predict(x)[0, 0] == pytest.approx(found[0])
    for name, form in (("0.csv", "csv"), ("0.jsonl", "jsonl")):
        piped = problem / "data" / "0.csv" if form == "csv" else problem / name
        if form == "jsonl":
            piped.write_text("".join(json.dumps(row, default=str) + "\n" for row in table.to_pylist()))
        out = io.StringIO()
        with piped.open() as file:
            assert predict_lines(Predictor(linear), file.fileno(), out, form) == 5
        told = (
            [line.split(",")[-1] for line in out.getvalue().splitlines()[1:]]
            if form == "csv"
            else [json.loads(line)["delay_predicted"] for line in out.getvalue().splitlines()]
        )
        assert [float(value) for value in told] == pytest.approx(found)
    strange = problem / "strange.csv"
    strange.write_text(CSV.replace("UA", "ZZ"))
    refused = streamfit("predict", model, strange, "-o", problem / "q.csv", *here)
    assert (refused.returncode, "'ZZ' in column 'carrier'" in refused.stderr) == (2, True)


@pytest.mark.parametrize("kind", ["npy", "zarr"])
def test_arrays_are_kept_as_tables_are(kind, tmp_path):
    """Fit, add, forget by an array of ids, verify; a folder that is added is the only one that is read."""

    def write(name, seed):
        rng = np.random.default_rng(seed)
        arrays = {"x": rng.normal(size=(500, 3)).astype(np.float16), "user": np.arange(500) % 10}
        arrays["y"] = arrays["x"].astype(np.float64) @ [1.0, 2.0, 3.0]
        where = tmp_path / "data" / (name if kind == "npy" else f"{name}.zarr")
        where.mkdir(parents=True)
        group = zarr.open_group(where, mode="w") if kind == "zarr" else None
        for column, values in arrays.items():
            if group is None:
                np.save(where / f"{column}.npy", values)
            else:
                group.create_array(column, data=values)
        return where

    first = write("one", 1)
    root = tmp_path / "data" if kind == "npy" else first
    config, here = tmp_path / "p.toml", ("--machine", tmp_path / "serial.toml")
    (tmp_path / "serial.toml").write_text('kind = "serial"')
    config.write_text(
        f'kind = "ridge"\nrun = "{tmp_path}/run"\n[corpus]\nkind = "{kind}"\nroot = "{root}"\nfeatures = ["x"]\n'
        'target = ["y"]\n'
    )
    run = tmp_path / "run"
    fitted = streamfit("fit", config, *here)
    assert fitted.returncode == 0, fitted.stderr
    second, _ = write("two", 2), write("three", 3)
    added = streamfit("add", run, second, *here)
    assert added.returncode == 0, added.stderr
    assert Store(run / "store").head().n_rows == 1000
    forgotten = streamfit("forget", run, "--where", "user=7", *here)
    assert forgotten.returncode == 0, forgotten.stderr
    assert Store(run / "store").head().n_rows == 900
    checked = streamfit("verify", run, "--against", root, "--sample", 1, *here)
    if kind == "npy":
        assert checked.returncode == 0, checked.stderr
    else:  # a group is one set of arrays: the other one does not lie there
        assert (checked.returncode, "two.zarr" in checked.stdout + checked.stderr) == (2, True)


def test_later_rows_are_refused_where_the_recipe_does_not_know_them(problem):
    """A carrier that was not there when the store was made."""
    text = (problem / "p.toml").read_text().replace('filters = [["distance", "<", 800]]\n', "")
    (problem / "p.toml").write_text(text)
    streamfit("fit", problem / "p.toml", "--machine", problem / "serial.toml")
    (problem / "data" / "4.csv").write_text(CSV.replace("UA", "ZZ"))
    refused = streamfit("add", problem / "run", problem / "data", "--machine", problem / "serial.toml")
    assert refused.returncode == 2
    assert "'ZZ' in column 'carrier'" in refused.stderr


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('filters = [["delay", "about", 1]]', "about"),
        ('categories = ["nothing"]', "nothing"),
        ('delimiter = ";;"', "delimiter"),
        ('partitions = ["a"]\nkind = "npy"', "partitions is for kind"),
        ('unseen = "zero"', "unseen is for categories"),
        ('kinds = "csv"', "did you mean 'kind'"),
    ],
)
def test_a_config_names_its_mistakes(line, match, tmp_path):
    """One line, exit code 2."""
    kind = "" if "kind" in line else 'kind = "csv"\n'
    (tmp_path / "p.toml").write_text(
        f'kind = "ridge"\nrun = "r"\n[corpus]\n{kind}root = "d"\nfeatures = ["a"]\ntarget = ["delay"]\n{line}\n'
    )
    refused = streamfit("fit", tmp_path / "p.toml")
    assert refused.returncode == 2
    assert match in refused.stderr


def test_hashed_rows_of_csv_are_those_of_parquet(tmp_path):
    """Names hashed from text of another format give the same entries."""
    table = pa.table({"c": ["x", "y", "x"], "n": [1.0, 2.0, 3.0], "y": [1.0, 2.0, 3.0]})
    pq.write_table(table, tmp_path / "t.parquet")
    pa.csv.write_csv(table, tmp_path / "t.csv")
    hashed = Hashed(16, ("c", "n"))
    one = ParquetTable(Files(str(tmp_path / "t.parquet")), ("c", "n"), ("y",), hashed=hashed)
    recipe = Recipe(("c", "n"), ("y",))
    two = DatasetFiles.of("csv", Files(str(tmp_path / "t.csv")), recipe=recipe, hashed=hashed).settled()
    entries = [next(source.read(source.shards()[0])).x.toarray() for source in (one, two)]
    np.testing.assert_array_equal(*entries)
    header = prepare_table(two, [Block("hashed", 16)], precision="float64", n_folds=2, seed=0, sample_rows=10)
    again = table_source(header.reader, Files(str(tmp_path / "t.csv")))
    assert again.shards()[0].content_id == two.shards()[0].content_id


def test_rows_in_memory_cannot_be_found_again_by_a_header():
    """The error says what to do."""
    source = ArrowRows(TABLE, recipe=Recipe(("days(t)",), ("y",), missing_target="drop"))
    header = prepare_table(source, [Block("linear")], precision="float64", n_folds=2, seed=0, sample_rows=10)
    with pytest.raises(MismatchError, match="memory"):
        table_source(header.reader, Files("nowhere"))


def test_a_bucket_is_a_folder(s3, tmp_path):
    """Files in an object store are found, cut, hashed and read as those on disk; a change is seen."""
    where = s3()
    bucket = from_url(where)
    table = pa.table({"a": np.arange(9000.0), "y": np.arange(9000.0)})
    folder = tmp_path / "d"
    (folder / "year=2026").mkdir(parents=True)
    pq.write_table(table, folder / "year=2026" / "t.parquet", row_group_size=4000)
    pa.csv.write_csv(table, folder / "t.csv")
    for name in ("year=2026/t.parquet", "t.csv"):
        obstore.put(bucket, name, (folder / name).read_bytes())
    for kind, features in (("parquet", ("a", "year")), ("csv", ("a",))):
        recipe, options = Recipe(features, ("y",)), {"shard_bytes": 2**16} if kind == "csv" else {}
        given = {"options": options, "recipe": recipe, "partitions": "hive"}
        both = [DatasetFiles.of(kind, Files(root), **given) for root in (str(folder), where)]
        here, there = (source.settled() for source in both)
        assert [(s.key, s.content_id) for s in here.shards()] == [(s.key, s.content_id) for s in there.shards()]
        for one, two in zip(here.shards(), there.shards(), strict=True):
            for a, b in zip(here.read(one), there.read(two), strict=True):
                np.testing.assert_array_equal(a.x, b.x)
                np.testing.assert_array_equal(a.y, b.y)
    assert [f.name for f in found(Files(f"{where}/*/*.parquet"), ())] == ["year=2026/t.parquet"]
    assert [f.name for f in found(Files(f"{where}/t.csv"), ())] == ["t.csv"]
    shards = there.shards()
    obstore.put(bucket, "t.csv", (folder / "t.csv").read_bytes().replace(b"\n5,", b"\n6,"))
    with pytest.raises(ShardError, match="changed"):
        list(there.read(shards[0]))
    with pytest.raises(CorpusError, match="nothing-here"):
        DatasetFiles.of("csv", Files(f"{where}/nothing-here"), recipe=recipe).shards()
