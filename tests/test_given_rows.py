"""Rows as other programs hand them over: masks, categories, decimals, instants, folders with things beside the rows."""

import datetime
import decimal
import itertools
import json
import re
import tarfile
from contextlib import nullcontext

import datasets
import numpy as np
import onnxruntime
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from streamfit import Block, Corpus, Dense, Frame, Moments, accumulate, add, forget, model_of, posterior, solve
from streamfit.config import load_problem
from streamfit.corpus import Files
from streamfit.corpus.freezing import frozen
from streamfit.errors import ConfigError, CorpusError, MismatchError, ShardChangedError, ShardError
from streamfit.feature_names import names_of
from streamfit.look import look
from streamfit.onnx_model import export_onnx
from streamfit.predicting import Predictor, predict_files
from streamfit.readers import held_out_table
from streamfit.solve import IllConditionedWarning
from streamfit.starter import starter
from streamfit.tables import score_table
from streamfit.verbs import SkippedShardWarning


def fit(rows, folder, **given):
    """The store and weights of y = 2 x, or of what `features` says."""
    features = given.pop("features", ["x"])
    store = accumulate(Corpus(rows, features, ["y"], **given), folder, precision="float64", n_folds=1)
    return store, store.moments().centered()


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("policy", ["filters", "split", "missing", "target"])
def test_only_rows_that_count_are_forgotten(tmp_path, policy, fast):
    """As many rows of user 1 are left out as rows of user 2 count: nobody else's may leave in their place."""
    counts = np.array([0, 0, 0, 1, 1, 1, 0, 1, 0, 0])
    x, y = np.arange(10.0), np.arange(10.0)
    holes = np.where(counts, x, np.nan)
    given = {
        "filters": {"filters": [("keep", "==", 1)]},
        "split": {"split_column": "part"},
        "missing": {"missing": "drop"},
        "target": {"missing_target": "drop"},
    }[policy]
    (tmp_path / "in").mkdir()
    columns = {"user": [1, 1, 1, 2, 2, 2, 3, 1, 3, 3], "keep": counts, "part": np.where(counts, "train", "test")}
    columns |= {"x": holes if policy == "missing" else x, "y": holes if policy == "target" else y}
    pq.write_table(pa.table(columns), tmp_path / "in" / "a.parquet")
    store, _ = fit(str(tmp_path / "in"), tmp_path / "s", **given)
    with pytest.raises(MismatchError, match="no counted row"):
        forget(store, where={"user": 3}, why="asked", fast=fast)
    forget(store, where={"user": 1}, why="asked", fast=fast)
    left = store.moments()
    assert left.n_rows == 3
    np.testing.assert_allclose(left.centered().mean_x, [4.0])


def test_what_a_mask_hides_is_missing(tmp_path):
    x = np.ma.MaskedArray(np.where(np.arange(10) == 5, 1e6, np.arange(10.0)), mask=np.arange(10) == 5)
    _, sums = fit({"x": x, "y": np.arange(10.0)}, tmp_path / "s", missing="drop")
    assert sums.n_rows == 9
    assert sums.mean_x[0] == pytest.approx(np.arange(10.0)[np.arange(10) != 5].mean())
    wide = np.ma.MaskedArray(np.ones((4, 2)), mask=[[0, 0], [0, 1], [0, 0], [0, 0]])
    assert fit({"x": wide, "y": np.ones(4)}, tmp_path / "w", missing="drop")[1].n_rows == 3


def test_lists_are_rows_and_other_things_are_not(tmp_path):
    assert fit({"x": [1.0, 2.0, 4.0], "y": [1, 2, 4]}, tmp_path / "s")[1].mean_x[0] == pytest.approx(7 / 3)
    with pytest.raises(CorpusError, match="'train' is a Dataset"):
        fit(datasets.DatasetDict({"train": datasets.Dataset.from_dict({"x": [1.0]})}), tmp_path / "t")


def test_categories_and_words_of_polars(tmp_path):
    frame = pl.DataFrame({"c": ["p", "q", "p", "p"], "words": [["a"], [], ["b", "c"], ["a"]], "y": [1.0, 2, 3, 4]})
    kinds = [pl.Categorical, pl.Enum(["p", "q"]), pl.String]
    sums = [fit(frame.with_columns(pl.col("c").cast(kind)), tmp_path / str(i), features=["c"], categories=["c"])[1]
            for i, kind in enumerate(kinds)]  # fmt: skip
    assert [s.mean_x.tolist() for s in sums] == [[0.75, 0.25]] * 3
    store = accumulate(Corpus(frame, ["words"], ["y"]), tmp_path / "h", features=[Block("hashed", 64)])
    assert store.head().n_rows == 4
    with pytest.raises(CorpusError, match=r"collect it first"):
        fit(frame.lazy(), tmp_path / "l")


@pytest.mark.parametrize("by_recipe", [False, True])
def test_decimals_are_numbers(tmp_path, by_recipe):
    prices = [decimal.Decimal("1.25"), decimal.Decimal("2.50"), decimal.Decimal("-4.00")]
    pq.write_table(pa.table({"x": pa.array(prices, pa.decimal128(9, 2)), "y": [1.0, 2, 3]}), tmp_path / "p.parquet")
    given = {"filters": [("y", ">", 0)]} if by_recipe else {}
    assert fit(str(tmp_path / "p.parquet"), tmp_path / "s", **given)[1].mean_x[0] == pytest.approx(-0.25 / 3)


def test_instants_in_text_are_times(tmp_path):
    rows = pa.table({"at": ["2026-01-01T05:00:00Z", "2026-01-01T05:00:00+02:00"], "y": [1.0, 2.0]})
    assert fit(rows, tmp_path / "s", features=["hour(at)"])[1].mean_x[0] == 4.0


@pytest.mark.parametrize(
    ("kind", "condition", "n"),
    [("f2", ("x", ">", 3), 6), ("u1", ("x", "<", 300), 10), ("i8", ("x", ">", 2.5), 7), ("i8", ("x", "in", [1, 2]), 2)],
)
def test_filters_compare_numbers_of_any_type(tmp_path, kind, condition, n):
    rows = pa.table({"x": np.arange(10).astype(kind), "y": np.arange(10.0)})
    assert fit(rows, tmp_path / "s", filters=[condition])[1].n_rows == n


def test_tabs_and_other_signs_between_values(tmp_path):
    (tmp_path / "t.tsv").write_text("x\ty\n1\t2\n3\t6\n")
    (tmp_path / "t.csv").write_text("x;y\n1;2\n3;6\n")
    assert fit(str(tmp_path / "t.tsv"), tmp_path / "s")[1].mean_x[0] == 2.0
    assert fit(str(tmp_path / "t.csv"), tmp_path / "c", delimiter=";")[1].mean_x[0] == 2.0


def test_a_folder_as_other_writers_leave_it(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(2):
        pq.write_table(pa.table({"x": [1.0, 2.0], "y": [float(i), 2.0]}), folder / f"part-{i}.parquet")
    for name in ("_SUCCESS", ".part-0.parquet.crc", "README.txt"):
        (folder / name).write_text("x, y")
    with pytest.raises(CorpusError, match=r"README\.txt"):
        fit(str(folder), tmp_path / "s")
    assert fit(str(folder), tmp_path / "t", exclude=["README.txt"])[1].n_rows == 4


def test_of_several_saved_data_sets_one_is_asked_for(tmp_path):
    part = datasets.Dataset.from_dict({"x": [1.0, 2.0], "y": [1.0, 2.0]})
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "in")
    with pytest.raises(ConfigError, match=r"data sets test, train; .*one data set"):
        fit(str(tmp_path / "in"), tmp_path / "s")
    assert fit(str(tmp_path / "in" / "train"), tmp_path / "t")[1].n_rows == 2


def test_a_stream_that_has_grown_is_not_counted_twice(tmp_path):
    def rows(n):
        return pa.table({"x": np.arange(float(n)), "y": np.ones(n)})

    store, _ = fit(rows(10), tmp_path / "s", spool=tmp_path / "spool")
    longer = Corpus(rows(20), ["x"], ["y"], spool=tmp_path / "spool")
    with pytest.raises(ShardChangedError, match="replace_changed"):
        add(store, longer)
    assert add(store, longer, replace_changed=True).head().n_rows == 20


def test_unknown_blocks_of_features_are_refused(tmp_path):
    for wrong in ("poly", "RBF"):
        with pytest.raises(ConfigError, match=f"kind '{wrong}'; expected one of linear"):
            accumulate(Corpus({"x": np.ones(3), "y": np.ones(3)}, ["x"], ["y"]), tmp_path / "s", features=[wrong])
    with pytest.raises(ConfigError, match="n at least 1"):
        Block("rbf", 0)


def test_predictions_of_partitions_of_tabs_and_of_files_that_differ(tmp_path):
    """What a fit reads of a data set, a prediction of it reads alike."""
    for place, year in itertools.product("ns", (1, 2, 3)):
        folder = tmp_path / "in" / f"place={place}" / f"year={year}"
        folder.mkdir(parents=True)
        x = np.arange(4.0) + year
        pq.write_table(pa.table({"x": x, "y": x + 10 * year + 100 * (place == "s")}), folder / "p.parquet")
    corpus = Corpus(str(tmp_path / "in"), ["x", "year", "place"], ["y"], categories=["place"], partitions="hive")
    store = accumulate(corpus, tmp_path / "s", precision="float64")
    predictor = Predictor(model_of(store, solve(store, alpha=1e-9, tolerance=float("inf"))))
    assert predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out.tsv") == (24, 6, 0)
    told = pa.csv.read_csv(tmp_path / "out.tsv", parse_options=pa.csv.ParseOptions(delimiter="\t"))
    rows = Corpus(str(tmp_path / "in"), ["x"], ["y"]).source()
    expected = np.concatenate([each.y[:, 0] for shard in rows.shards() for each in rows.read(shard)])
    np.testing.assert_allclose(told["y_predicted"], expected, atol=1e-5)

    plain = accumulate(Corpus(str(tmp_path / "in"), ["x"], ["y"]), tmp_path / "p", precision="float64")
    predictor = Predictor(model_of(plain, solve(plain, alpha=1.0)), keep=("id",))
    for i, name in enumerate([[1, 2], ["a", "b"]]):
        pq.write_table(pa.table({"x": [1.0, 2.0], "id": name}), tmp_path / f"{i}.parquet")
    with pytest.raises(CorpusError, match="those of the first"):
        predict_files(predictor, [str(tmp_path / "0.parquet"), str(tmp_path / "1.parquet")], tmp_path / "o.parquet")
    assert not (tmp_path / "o.parquet").exists()


@pytest.mark.parametrize(
    "value",
    [
        "2026-01-02T06:00:00",
        "2026-01-02T07:00:00+01:00",
        "2026-01-02T06:00:00Z",
        datetime.datetime(2026, 1, 2, 6),
        datetime.datetime(2026, 1, 2, 6, tzinfo=datetime.UTC),
        np.datetime64("2026-01-02T06:00"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin", "day"])
def test_filters_compare_days_times_and_instants(value, zone):
    days = [datetime.datetime(2026, 1, day, 5, 59, tzinfo=datetime.UTC) for day in (1, 2, 3, 4)]
    seen = pa.array(days)
    seen = seen.cast(pa.timestamp("ms", zone)) if zone != "day" else seen.cast(pa.date32())

    def kept(operator, given):
        rows = pa.table({"seen": seen, "x": [1.0, 2, 3, 4], "y": [0.0] * 4})
        source = Corpus(rows, ["x"], ["y"], filters=[("seen", operator, given)]).source()
        return [each.x[:, 0].tolist() for shard in source.shards() for each in source.read(shard)]

    assert kept(">", value) == [[3, 4]]
    assert kept("<=", value) == [[1, 2]]
    assert kept("not in", [value]) == [[1, 2, 3, 4]]
    day = datetime.date(2026, 1, 2)
    assert kept(">=", day) == kept(">=", "2026-01-02") == [[2, 3, 4]]
    with pytest.raises(ShardError, match="a value of the column's type"):
        kept(">", "January 2")


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_views_and_lists_of_any_length_are_read_with_every_policy_and_with_none(tmp_path, form):
    """As polars writes text and embeddings, in files whose columns may be without a value throughout."""
    rng = np.random.default_rng(0)
    x, names = rng.normal(size=(60, 3)), np.array(["u", "v", "w"])[rng.integers(0, 3, 60)]
    y = x @ [1.0, 2.0, 3.0] + (names == "v")
    (tmp_path / "in").mkdir()
    kinds = {"x": pa.list_(pa.float64()), "c": pa.string_view(), "y": pa.float64()}
    for i, part in enumerate([slice(0, 30), slice(30, 60)]):
        rows = pa.table(
            {"x": pa.array(list(x[part]), kinds["x"]), "c": pa.array(names[part], kinds["c"]), "y": y[part]}
        )
        write = pq.write_table if form == "parquet" else pa.feather.write_feather
        write(rows, tmp_path / "in" / f"{i}.{form}")

    def sums(name, **given):
        found = fit(str(tmp_path / "in"), tmp_path / name, **given)[1]
        return found.n_rows, found.cross[:, 0]

    n_rows, cross = sums("x", features=["x"])
    oracle = (x - x.mean(axis=0)).T @ (y - y.mean())
    np.testing.assert_allclose(cross, oracle, atol=1e-6)
    np.testing.assert_array_equal(sums("d", features=["x"], missing="drop")[1], cross)
    n_rows, cross = sums("c", features=["x", "c"], categories=["c"])
    assert (n_rows, len(cross)) == (60, 6)
    np.testing.assert_allclose(cross[4], ((names == "v") - (names == "v").mean()) @ (y - y.mean()), atol=1e-6)
    assert sums("f", features=["x"], filters=[("c", "==", "v")])[0] == (names == "v").sum()
    assert sums("s", features=["x"], split_column="c", split_values=("v", "u", "w"))[0] == (names == "v").sum()
    nothing = pa.table({"x": pa.nulls(4), "c": pa.nulls(4), "y": np.ones(4)})
    write(nothing, tmp_path / "in" / f"2.{form}")
    assert sums("n", features=["x", "c"], categories=["c"], missing="drop")[0] == 60
    assert sums("g", features=["x"], filters=[("c", "!=", "v")])[0] == (names != "v").sum()


def test_filters_take_infinity_for_a_number_and_decimals_as_they_are_written():
    def kept(column, *condition):
        rows = pa.table({"f": column, "x": np.arange(float(len(column))), "y": np.ones(len(column))})
        source = Corpus(rows, ["x"], ["y"], filters=[("f", *condition)]).source()
        return [int(v) for shard in source.shards() for each in source.read(shard) for v in each.x[:, 0]]

    floats = pa.array([1.0, np.inf, -np.inf, np.nan, None])
    assert kept(floats, ">", 0) == [0, 1]
    assert kept(floats, "!=", 1) == [1, 2]
    money = pa.array([decimal.Decimal(v) for v in ("5.05", "6.00", "-1.10")])
    assert kept(money, "==", 5.05) == kept(money, "in", [5.05, 7]) == [0]
    assert kept(money, ">", 5.051) == kept(money, ">=", 6) == [1]
    with pytest.raises(ShardError, match="a value of the column's type"):
        kept(money, "==", "5.05")


def test_rows_that_cannot_be_taken_as_they_are_are_refused(tmp_path):
    rows = datasets.Dataset.from_dict({"x": [1.0, 2.0, 3.0], "y": [1.0, 2.0, 3.0]})
    with pytest.raises(CorpusError, match="a transform"):
        fit(rows.with_transform(lambda batch: {**batch, "x": [10 * v for v in batch["x"]]}), tmp_path / "t")
    with pytest.raises(CorpusError, match="types of Arrow"):
        fit(pl.DataFrame({"x": pl.Series([1, 2], dtype=pl.Int128), "y": [1.0, 2.0]}), tmp_path / "p")
    with pytest.raises(ConfigError, match="features name 'x' more than once"):
        fit(rows, tmp_path / "n", features=["x", "x"])
    with pytest.raises(ConfigError, match="for hashed features"):
        accumulate(Corpus(rows, ["x"], ["y"], missing="drop"), tmp_path / "h", features=[Block("hashed", 8)])


@pytest.mark.parametrize("name", ["0.csv", "2.csv", "0.jsonl", "2.jsonl"])
@pytest.mark.parametrize("text", ["", "\n", "x,y\n"])
def test_files_without_rows_stand_beside_others(tmp_path, name, text):
    (tmp_path / "in").mkdir()
    ending = name[1:]
    rows = "x,y\n1,2\n2,3\n" if ending == ".csv" else '{"x": 1, "y": 2}\n{"x": 2, "y": 3}\n'
    (tmp_path / "in" / name).write_text(text if ending == ".csv" else text.replace("x,y", " "))
    with pytest.raises(CorpusError):
        fit(str(tmp_path / "in"), tmp_path / "none")
    (tmp_path / "in" / f"1{ending}").write_text(rows)
    assert fit(str(tmp_path / "in"), tmp_path / "s")[1].n_rows == 2


def test_times_of_json_may_have_parts_of_seconds(tmp_path):
    """As pandas and JavaScript write them."""
    at = pd.date_range("2026-01-01", periods=40, freq="7h", tz="UTC") + pd.Timedelta("125ms")
    rows = pd.DataFrame({"at": at, "y": np.sin(np.arange(40.0))})
    (tmp_path / "in").mkdir()
    rows.to_json(tmp_path / "in" / "0.jsonl", orient="records", lines=True, date_format="iso", double_precision=15)
    rows.to_parquet(tmp_path / "rows.parquet")
    features = ["at", "hour(at)"]
    store, sums = fit(str(tmp_path / "in"), tmp_path / "s", features=features)
    np.testing.assert_allclose(
        sums.cross, fit(str(tmp_path / "rows.parquet"), tmp_path / "p", features=features)[1].cross
    )
    found = look(str(tmp_path / "in"))
    assert (found.n_rows, found.exact, found.columns[0].role) == (40, True, "date")
    predictor = Predictor(model_of(store, solve(store, alpha=1.0, tolerance=float("inf"))))
    told = []
    for path in ("in", "rows.parquet"):
        predict_files(predictor, [str(tmp_path / path)], tmp_path / "out.parquet")
        told.append(pq.read_table(tmp_path / "out.parquet")["y_predicted"].to_numpy())
    np.testing.assert_allclose(told[0], told[1], rtol=1e-9)


@pytest.mark.parametrize("missing", ["error", "drop", "mean"])
def test_single_features_are_filled_with_what_was_given(tmp_path, missing):
    """Whatever becomes of rows that lack others; the ONNX graph fills them alike."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=50) + 3, rng.normal(size=50)
    a[::7] = np.nan
    if missing != "error":
        b[::10] = np.nan
    y = np.nan_to_num(a) + rng.normal(size=50)
    rows = pa.table({"b": b, "a": pa.array(a, from_pandas=True), "y": y})
    store, sums = fit(rows, tmp_path / "s", features=["b", "a"], missing=missing, fill={"a": -1.0})
    filled = np.column_stack(
        [np.where(np.isnan(b), np.nanmean(b), b) if missing == "mean" else b, np.nan_to_num(a, nan=-1)]
    )
    kept = ~np.isnan(filled).any(axis=1)
    assert sums.n_rows == kept.sum()
    np.testing.assert_allclose(sums.mean_x, filled[kept].mean(axis=0), rtol=1e-12)
    model = model_of(store, solve(store, alpha=1e-3, tolerance=float("inf")))
    pq.write_table(rows, tmp_path / "rows.parquet")
    predict_files(Predictor(model), [str(tmp_path / "rows.parquet")], tmp_path / "out.parquet")
    told = pq.read_table(tmp_path / "out.parquet")["y_predicted"].to_pandas().to_numpy()
    np.testing.assert_array_equal(np.isnan(told), ~kept)
    np.testing.assert_allclose(told[kept], model.predict(filled[kept])[:, 0], rtol=1e-12)
    export_onnx(model, tmp_path / "m.onnx", dtype="float64")
    graph = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    found = graph.run(["predicted"], {"x": np.column_stack([b, a])})[0][:, 0]
    np.testing.assert_allclose(found, told, rtol=1e-9)
    with pytest.raises(ConfigError, match="a number for 'z'"):
        fit(rows, tmp_path / "z", features=["a", "b"], fill={"z": 0.0})


@pytest.mark.parametrize("lacking", ["null", "absent", "empty"])
def test_a_column_may_have_its_first_value_in_a_later_file(tmp_path, lacking):
    """Types of text are those of the first file that has values; one that cannot be read is passed over for that."""
    (tmp_path / "in").mkdir()
    first = {"null": '{"x": 1, "c": null, "d": null, "y": 1}', "absent": '{"x": 1, "y": 1}', "empty": "x,c,d,y\n1,,,1"}
    later = '{"x": 2, "c": "u", "d": "2026-01-02", "y": 2}\n{"x": 2, "c": "v", "d": "2026-01-03", "y": 3}\n'
    ending, later = (
        (".csv", "x,c,d,y\n2,u,2026-01-02,2\n2,v,2026-01-03,3\n") if lacking == "empty" else (".jsonl", later)
    )
    (tmp_path / "in" / f"0{ending}").write_text(first[lacking] + "\n")
    (tmp_path / "in" / f"1{ending}").write_bytes(b'"\xff{' if lacking == "null" else first[lacking].encode())
    (tmp_path / "in" / f"2{ending}").write_text(later)
    corpus = Corpus(str(tmp_path / "in"), ["x", "c", "weekday(d)"], ["y"], categories=["c"], missing="drop")
    with pytest.warns(SkippedShardWarning) if lacking == "null" else nullcontext():
        store = accumulate(corpus, tmp_path / "s", n_folds=1, skip_bad_shards=True)
    assert store.moments().n_rows == 2
    assert dict(store.header.reader["recipe"]["categories"]) == {"c": ["u", "v"]}


@pytest.mark.parametrize("name", ["out.parquet", "parts"])
def test_rows_that_lack_a_feature_have_empty_predictions(tmp_path, name):
    """Where such rows were dropped in the fit; their places stay, whatever a piece has of them."""
    x = np.array([0.0, np.nan, 2.0, 3.0, np.nan, np.nan])
    place = ["a", "b", None, "b", "a", None]
    given = {"features": ["x", "place"], "categories": ["place"]}
    fitted = pa.table({"x": [0.0, 1, 2, 3], "place": ["a", "b", "a", "b"], "y": [0.0, 12, 4, 16]})
    store, _ = fit(fitted, tmp_path / "s", missing="drop", **given)
    model = model_of(store, solve(store, alpha=1e-9, tolerance=float("inf")))
    (tmp_path / "in").mkdir()
    for i, part in enumerate([slice(0, 4), slice(4, 6)]):
        rows = pa.table({"x": x[part], "place": pa.array(place[part], pa.string()), "id": np.arange(6)[part]})
        pq.write_table(rows, tmp_path / "in" / f"{i}.parquet")
    predictor = Predictor(model, keep=("id",))
    assert predict_files(predictor, [str(tmp_path / "in")], tmp_path / name) == (6, 2, 4)
    told = pq.read_table(tmp_path / name).to_pydict()
    assert told["id"] == [*range(6)]
    assert told["y_predicted"] == [pytest.approx(0, abs=1e-6), None, None, pytest.approx(16), None, None]
    strict, _ = fit(fitted, tmp_path / "strict", **given)
    with pytest.raises(ShardError, match="row 1: null or NaN in column 'x'"):
        predict_files(
            Predictor(model_of(strict, solve(strict, alpha=1.0))), [str(tmp_path / "in")], tmp_path / "o.parquet"
        )


def test_a_look_at_what_is_no_plain_table(tmp_path):
    """Hashes as numbers, prose, tar files, and nothing at all."""
    pq.write_table(pa.table({"x": [1.0, 2.0, 4.0], "h": [2**62 + i for i in (1, 5, 3)]}), tmp_path / "h.parquet")
    assert '"h"' in starter(str(tmp_path / "h.parquet"), ["x"])
    (tmp_path / "prose").mkdir()
    (tmp_path / "prose" / "a.txt").write_text("One line, with a comma.\nAnother, with two, of them.\nNone.\n")
    assert 'kind = "language_model"' in starter(str(tmp_path / "prose"))
    (tmp_path / "t.txt").write_text("x;y\n1;2\n2;3\n")
    assert 'kind = "ridge"' in starter(str(tmp_path / "t.txt"))
    with tarfile.open(tmp_path / "texts.tar.gz", "w:gz") as made:
        made.add(tmp_path / "prose" / "a.txt", "a.txt")
    assert 'kind = "tar"' in starter(str(tmp_path / "texts.tar.gz"))
    with pytest.raises(CorpusError, match="no file or directory"):
        starter(str(tmp_path / "nothing"))


@pytest.mark.parametrize(("missing", "n"), [("drop", 30), ("mean", 40)])
def test_nan_in_a_category_of_numbers_is_missing(tmp_path, missing, n):
    rows = pa.table({"c": [1.5, 0.1, 2.0, float("nan")] * 10, "y": np.arange(40.0)})
    _, sums = fit(rows, tmp_path / "s", features=["c"], categories=["c"], missing=missing)
    assert (sums.n_rows, sums.mean_x.tolist()) == (n, pytest.approx([1 / 3] * 3))


def test_categories_that_only_look_alike_are_not_the_same(tmp_path):
    rows = {"c": ["us", "501", "2"], "y": [1.0, 2.0, 3.0]}
    store, _ = fit(pa.table(rows), tmp_path / "s", features=["c"], categories=["c"])
    for other in ("US", "00501", "+2"):
        with pytest.raises(ShardError, match=f"'?{re.escape(other)}'? "):
            add(store, Corpus(pa.table({"c": [other], "y": [1.0]}), ["c"], ["y"], categories=["c"], label="more"))


def test_values_to_forget_are_those_of_the_column(tmp_path):
    at = [datetime.datetime(2026, 1, day) for day in (1, 2, 3, 4)]
    rows = {"u": [1.0, 2.0, 2.0, 3.0], "at": pa.array(at, pa.timestamp("s")), "x": [1.0, 2, 3, 4], "y": [1.0, 2, 3, 4]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    store, _ = fit(str(tmp_path / "t.parquet"), tmp_path / "s")
    assert forget(store, where={"u": 2.0}, why="asked").head().n_rows == 2
    assert forget(store, where={"at": at[0]}, why="asked").head().n_rows == 1


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("unseen", ["error", "zero"])
def test_categories_are_the_same_in_every_format(tmp_path, kind, unseen):
    """Codes with leading zeros, truth values, days and numbers as names: fitted on Parquet, predicted from anything."""
    rng = np.random.default_rng(0)
    columns = {
        "zip": rng.choice(["01234", "00501", "90210"], 300),
        "flag": rng.choice(["True", "False"], 300),
        "day": rng.choice(["2026-01-01", "2026-02-01"], 300),
        "size": rng.choice([1.0, 2.0, 3.5], 300),
    }
    table = pa.table(columns)
    effects = [pd.factorize(values)[0] * 10.0**i for i, values in enumerate(columns.values())]
    pq.write_table(table.append_column("y", pa.array(sum(effects))), tmp_path / "rows.parquet")
    corpus = Corpus(str(tmp_path / "rows.parquet"), [*columns], ["y"], categories=[*columns], unseen=unseen)
    store = accumulate(corpus, tmp_path / "s", precision="float64")
    predictor = Predictor(model_of(store, solve(store, alpha=1e-6, tolerance=float("inf"))))
    path = tmp_path / f"new.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        pa.csv.write_csv(table, path, pa.csv.WriteOptions(delimiter="\t" if kind == "tsv" else ","))
    predict_files(predictor, [str(path)], tmp_path / "out.parquet")
    np.testing.assert_allclose(pq.read_table(tmp_path / "out.parquet")["y_predicted"], sum(effects), atol=1e-3)
    with pytest.raises(ConfigError, match="predictions of itself"):
        predict_files(predictor, [str(tmp_path)], tmp_path / "rows.parquet")


def test_noise_that_float32_sums_cannot_show_is_said():
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 100, (1000, 1))
    for sigma, precision, seen in [(3.0, "float32", True), (0.003, "float32", False), (0.003, "float64", True)]:
        frame = Frame.from_sample(x, 2 * x, Dense(1))
        sums = Moments.from_rows(x, 2 * x + sigma * rng.normal(size=x.shape), frame, Dense(1), precision=precision)
        with nullcontext() if seen else pytest.warns(IllConditionedWarning, match="count in float64"):
            found = posterior(sums, 1e-9)
        if seen:
            assert found.noise_variance[0] == pytest.approx(sigma**2, rel=0.1)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_classes_may_have_names(tmp_path, kind):
    """Texts and truth values are classes in the order that is given; predictions bear their names."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2))
    label = np.where(x[:, 0] > 0.3, "yes", np.where(x[:, 1] > 0, "maybe", "no"))
    table = pa.table({"a": x[:, 0], "b": x[:, 1], "label": label, "big": x[:, 0] > 0})
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / f"rows.{kind}"
    pq.write_table(table, path) if kind == "parquet" else pa.csv.write_csv(table, path)
    given = {"classes": ["no", "maybe", "yes"]}
    named = Corpus(str(tmp_path / "in"), ["a", "b"], ["label"], **given)
    store = accumulate(named, tmp_path / "s", precision="float64")
    numbers = {"a": x[:, 0], "b": x[:, 1], "y": np.array([given["classes"].index(name) for name in label])}
    plain = accumulate(Corpus(numbers, ["a", "b"], ["y"], n_classes=3), tmp_path / "n", precision="float64", n_folds=5)
    np.testing.assert_allclose(solve(store, alpha=1.0).weights, solve(plain, alpha=1.0).weights, rtol=1e-10)
    model = model_of(store, solve(store, alpha=1.0))
    predict_files(Predictor(model, scores=True), [str(path)], tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.column_names == ["label_predicted", "label_score_no", "label_score_maybe", "label_score_yes"]
    predicted = model.predict(x).argmax(axis=1)
    assert found["label_predicted"].to_pylist() == [given["classes"][k] for k in predicted]
    assert score_table(model, held_out_table(model.info["reader"], Files(str(path)))).accuracy == pytest.approx(
        (predicted == numbers["y"]).mean()
    )
    for target, wanted in [((), 'classes = ["maybe", "no", "yes"]'), (["big"], 'classes = ["false", "true"]')]:
        text = starter(str(path), target, str(tmp_path / "run"))
        assert wanted in text
        (tmp_path / "c.toml").write_text(text)
        rows = frozen(load_problem(tmp_path / "c.toml").corpus.table())
        assert sum(len(each.y) for shard in rows.shards() for each in rows.read(shard)) == 300
    wrong = Corpus(str(tmp_path / "in"), ["a", "b"], ["label"], classes=["no", "yes"])
    with pytest.raises(ShardError, match="'maybe' in the target 'label'; expected one of the classes 'no', 'yes'"):
        accumulate(wrong, tmp_path / "w")
    with pytest.raises(ConfigError, match="each name once"):
        Corpus(str(tmp_path / "in"), ["a"], ["label"], classes=["no", "no"])


def test_features_are_named_as_people_know_them(tmp_path):
    rows = {"emb": np.ones((4, 2)), "c": np.array(["u", "v", "u", "v"]), "x": np.array([1.0, np.nan, 2.0, 3.0])}
    for given in ({"missing": "drop"}, {"missing": "mean"}):
        features = [name for name in rows if name != "x" or given["missing"] == "mean"]
        store, _ = fit(
            rows | {"y": np.ones(4)}, tmp_path / given["missing"], features=features, categories=["c"], **given
        )
        assert names_of(store.header)[:4] == ["emb[0]", "emb[1]", "c=u", "c=v"]
