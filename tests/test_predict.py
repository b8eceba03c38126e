"""Predictions of data sets and of pipes are the model's."""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from cli_runs import X, begin, ok, read, told
from distributed import Client, LocalCluster

from streamfit import LinearModel, Ridge, RidgeClassifier, posterior
from streamfit.corpus import Files
from streamfit.corpus.openings import listed, open_file, put_file
from streamfit.errors import ConfigError, CorpusError, ShardError, StoreError
from streamfit.piping import predict_lines
from streamfit.predicting import Predictor, predict_files
from streamfit.store import Store


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = begin(tmp_path_factory.mktemp("predict"))
    ok("solve", folder / "run", "--alpha", 2, "--std", "-o", folder / "model")
    return folder


@pytest.fixture(scope="module")
def rows(begun: Path) -> pa.Table:
    """Everything that was fitted, in the order in which files are found."""
    return pa.concat_tables([pq.read_table(path) for path in sorted((begun / "corpus").glob("*.parquet"))])


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def inputs(table: pa.Table) -> np.ndarray:
    return np.column_stack([table[name] for name in X])


def test_a_data_set_becomes_one_of_predictions_in_its_order(begun: Path, rows, tmp_path):
    model = LinearModel.load(begun / "model")
    said = ok("predict", begun / "model", begun / "corpus", "-o", tmp_path / "out.parquet", "--std", "--keep", "doc",
              "--machine", begun / "serial.toml")  # fmt: skip
    assert "predicted 960 rows" in said
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.column_names == ["doc", "y_predicted", "y_std"]
    assert out["doc"].to_pylist() == rows["doc"].to_pylist()
    np.testing.assert_allclose(out["y_predicted"], model.predict(inputs(rows))[:, 0], rtol=1e-12)
    found = posterior(Store(begun / "run" / "store").moments(), 2.0)
    np.testing.assert_allclose(out["y_std"], np.sqrt(found.predictive_variance(inputs(rows)))[:, 0], rtol=1e-10)
    told_of = read("predict", begun / "model", begun / "corpus", "-o", tmp_path / "again.parquet", "--machine",
                   begun / "serial.toml")  # fmt: skip
    assert (told_of["rows"], told_of["pieces"]) == (960, 16)


@pytest.mark.parametrize("name", ["out.parquet", "out.feather", "out.csv", "out.jsonl", "parts"])
def test_workers_predict_and_the_order_stays(begun: Path, rows, tmp_path, client, name):
    model = LinearModel.load(begun / "model")
    predictor = Predictor(model, ("doc", "x1"))
    assert predict_files(predictor, [str(begun / "corpus")], tmp_path / name, client) == (960, 16, 0)
    path = tmp_path / name
    readers = {".parquet": pq.read_table, ".feather": pa.feather.read_table, ".csv": pa.csv.read_csv}
    if name == "out.jsonl":
        found = pa.Table.from_pylist([json.loads(line) for line in path.read_text().splitlines()])
    elif name == "parts":
        assert len(list(path.iterdir())) == 16
        found = pq.read_table(path)
    else:
        found = readers[path.suffix](path)
    assert found["doc"].to_pylist() == rows["doc"].to_pylist()
    np.testing.assert_allclose(found["y_predicted"], model.predict(inputs(rows))[:, 0], rtol=1e-12)


def test_a_folder_of_predictions_is_there_once_it_is_whole(begun: Path, rows, tmp_path, s3):
    predictor = Predictor(LinearModel.load(begun / "model"))
    (tmp_path / "in").mkdir()
    pq.write_table(rows, tmp_path / "in" / "0.parquet", row_group_size=300)
    broken = rows.slice(0, 9).set_column(0, "x0", pa.array([None, *[1.0] * 8]))
    pq.write_table(broken, tmp_path / "in" / "1.parquet")
    for _ in range(2):  # what a failure leaves is in nobody's way
        with pytest.raises(ShardError, match="row 0: null"):
            predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out")
        assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    (tmp_path / "in" / "1.parquet").unlink()
    predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert pq.read_table(tmp_path / "out").num_rows == 960
    there = s3()
    predict_files(predictor, [str(tmp_path / "in")], f"{there}/out")
    assert [each.name for each in listed(Files(f"{there}/out/_S*"))] == ["_SUCCESS"]


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".csv.zst", ".tsv", ".jsonl", ".jsonl.bz2", ".feather"])
def test_other_formats_are_read_as_parquet_is(begun: Path, rows, tmp_path, suffix):
    frame, path = rows.to_pandas(), tmp_path / f"rows{suffix}"
    if ".jsonl" in suffix:
        frame.to_json(path, orient="records", lines=True, double_precision=15)
    elif suffix == ".feather":
        pa.feather.write_feather(rows, path)
    else:
        data = frame.to_csv(index=False, sep="\t" if suffix == ".tsv" else ",").encode()
        how = {".csv.gz": gzip.compress, ".csv.zst": lambda text: pa.compress(text, "zstd", asbytes=True)}
        path.write_bytes(how.get(suffix, bytes)(data))
    model = LinearModel.load(begun / "model")
    assert predict_files(Predictor(model), [str(path)], tmp_path / "out.parquet")[0] == 960
    out = pq.read_table(tmp_path / "out.parquet")
    np.testing.assert_allclose(out["y_predicted"], model.predict(inputs(rows))[:, 0], rtol=1e-9)


@pytest.mark.parametrize("suffix", [".parquet", ".csv.gz", ".jsonl"])
def test_objects_are_predicted_into_objects(begun: Path, rows, tmp_path, s3, client, suffix):
    """From a bucket into a bucket: one file or a folder of parts, here or on workers."""
    there, path = s3(), tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        pq.write_table(rows, path, row_group_size=300)
    elif suffix == ".jsonl":
        rows.to_pandas().to_json(path, orient="records", lines=True, double_precision=15)
    else:
        rows.to_pandas().to_csv(path, index=False)
    put_file(f"{there}/data/rows{suffix}", path)
    predictor = Predictor(LinearModel.load(begun / "model"), ("doc",))
    n_pieces = 4 if suffix == ".parquet" else 1
    assert predict_files(predictor, [f"{there}/data"], f"{there}/out.parquet", client) == (960, n_pieces, 0)
    assert predict_files(predictor, [f"{there}/data/rows{suffix}"], f"{there}/parts", client) == (960, n_pieces, 0)
    expected = predictor.model.predict(inputs(rows))[:, 0]
    predict_files(predictor, [path.as_uri()], (tmp_path / "again.csv").as_uri())
    for made in ("out.parquet", "parts/*.parquet"):
        found = [pq.read_table(open_file(each.uri)) for each in listed(Files(f"{there}/{made}"))]
        table = pa.concat_tables(found)
        copied = [str(doc) for doc in rows["doc"].to_pylist()] if "csv" in suffix else rows["doc"].to_pylist()
        assert table["doc"].to_pylist() == copied
        np.testing.assert_allclose(table["y_predicted"], expected, rtol=1e-9)
    assert len(pd.read_csv(tmp_path / "again.csv")) == 960
    with pytest.raises(ConfigError, match="holds something already"):
        predict_files(predictor, [f"{there}/data"], f"{there}/parts")
    with pytest.raises(CorpusError, match="no object of"):
        predict_files(predictor, [f"{there}/none"], f"{there}/more")
    score = read("evaluate", begun / "model", f"{there}/data/rows{suffix}", path.as_uri())
    assert score[f"{there}/data/rows{suffix}"] == pytest.approx(score[path.as_uri()])


def test_what_a_fit_reads_a_prediction_reads(tmp_path):
    """Semicolons, columns in paths that are no features, folders of arrays; ids are copied as they are written."""
    rng = np.random.default_rng(5)
    frame = pd.DataFrame(rng.normal(size=(60, 2)), columns=["a", "b"])
    frame["y"] = frame["a"] - 2 * frame["b"]
    frame["id"] = [f"{i:04d}" for i in range(60)]
    data = tmp_path / "data"
    for part, rows in (("train", frame[:40]), ("test", frame[40:])):
        folder = data / f"split={part}" / "year=2026"
        folder.mkdir(parents=True)
        rows.to_csv(folder / "rows.csv", sep=";", index=False)
    (data / "notes.md").write_text("no rows")
    (tmp_path / "serial.toml").write_text('kind = "serial"\n')
    (tmp_path / "fit.toml").write_text(
        f'kind = "ridge"\nprecision = "float64"\nrun = "{tmp_path / "run"}"\n[corpus]\nroot = "{data}"\nkind = "csv"\n'
        'delimiter = ";"\npartitions = "hive"\nfeatures = ["a", "b", "year"]\ntarget = ["y"]\nsplit_column = "split"\n'
        "[solve]\nalphas = [1e-9]\nfolds = 2\n"
    )
    ok("fit", tmp_path / "fit.toml", "--machine", tmp_path / "serial.toml")
    model, out = tmp_path / "run" / "model", tmp_path / "out.parquet"
    kept = [word for name in ("id", "split", "year") for word in ("--keep", name)]
    assert read("predict", model, data, *kept, "-o", out)["rows"] == 60
    found = pq.read_table(out).to_pandas().sort_values("id")
    assert found["id"].tolist() == frame["id"].tolist()
    assert found["split"].tolist() == ["train"] * 40 + ["test"] * 20
    assert set(found["year"]) == {2026.0}
    np.testing.assert_allclose(found["y_predicted"], frame["y"], atol=1e-8)
    frame.to_parquet(data / "more.parquet")
    assert "files of kind 'parquet', and 2 .csv" in told("predict", model, data, "-o", out)
    (data / "more.parquet").unlink()
    ok("predict", model, data / "*" / "year=2026" / "r*s.*", "-o", tmp_path / "by_pattern.parquet")
    assert pq.read_table(tmp_path / "by_pattern.parquet").num_rows == 60
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    for name in ("a", "b"):
        np.save(arrays / f"{name}.npy", frame[name].to_numpy())
    np.save(arrays / "year.npy", np.full(60, 2026.0))
    assert read("predict", model, arrays, "-o", tmp_path / "of_arrays.parquet")["rows"] == 60
    made = pq.read_table(tmp_path / "of_arrays.parquet").to_pandas()
    np.testing.assert_array_equal(made["y_predicted"], found["y_predicted"])
    for name in ("out.csv.gz", "out.csv.xz", "out.txt"):
        assert "a file that ends with .parquet" in told("predict", model, arrays, "-o", tmp_path / name)
    ok("predict", model, data, *kept, "-o", tmp_path / "OUT.CSV")
    copied = pd.read_csv(tmp_path / "OUT.CSV", dtype=str)
    assert list(copied) == ["id", "split", "year", "y_predicted"]
    assert {*copied["id"]} == {*frame["id"]}


def test_several_targets_of_an_estimator_are_predicted_from_any_format(tmp_path):
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(rng.normal(size=(50, 2)), columns=["a", "b"])
    fitted = Ridge().fit(frame, np.column_stack([frame["a"], frame["b"] - frame["a"]]))
    fitted.to_model(("p", "q")).save(tmp_path / "model")
    (tmp_path / "rows.csv").write_bytes(frame.to_csv(index=False).encode())
    frame.to_parquet(tmp_path / "rows.parquet")
    for name in ("rows.csv", "rows.parquet"):
        ok("predict", tmp_path / "model", tmp_path / name, "-o", tmp_path / "out.parquet")
        found = pq.read_table(tmp_path / "out.parquet").to_pandas()
        np.testing.assert_allclose(found[["p_predicted", "q_predicted"]], fitted.predict(frame), rtol=1e-12)


def test_hashed_names_that_look_like_numbers_are_names_in_every_format(tmp_path):
    """Text has no types: what a column was when the store was made says what it is. Other types are refused."""
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"zip": rng.choice(["0001", "0017", "9021"], 200), "rooms": rng.integers(1, 6, 200)})
    frame["y"] = (frame["zip"] == "0017") * 3.0 + frame["rooms"]
    frame.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_bytes(frame.to_csv(index=False).encode())
    frame.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    numbers = frame.assign(zip=frame["zip"].astype(int))
    numbers.to_parquet(tmp_path / "numbers.parquet")
    (tmp_path / "serial.toml").write_text('kind = "serial"\n')
    for kind in ("parquet", "csv"):
        (tmp_path / f"{kind}.toml").write_text(
            f'kind = "ridge"\nrun = "{tmp_path / f"of_{kind}"}"\n[corpus]\nkind = "{kind}"\ntarget = ["y"]\n'
            f'root = "{tmp_path / f"rows.{kind}"}"\nfeatures = ["zip", "rooms"]\n'
            '[[features]]\nkind = "hashed"\nn = 512\n[solve]\nalphas = [1e-6]\n'
        )
        ok("fit", tmp_path / f"{kind}.toml", "--machine", tmp_path / "serial.toml")
    model = tmp_path / "of_parquet" / "model"
    for name in ("rows.parquet", "rows.csv", "rows.jsonl"):
        ok("predict", model, tmp_path / name, "-o", tmp_path / "out.parquet")
        found = pq.read_table(tmp_path / "out.parquet")["y_predicted"].to_numpy()
        np.testing.assert_allclose(found, frame["y"], atol=1e-4)
        assert read("evaluate", model, tmp_path / name)[str(tmp_path / name)]["r2"] > 0.999999
    refused = told("predict", model, tmp_path / "numbers.parquet", "-o", tmp_path / "out.parquet")
    assert "column 'zip' of type int64, which is hashed as double; expected string" in refused
    # Of CSV it was a number, and stays one.
    of_csv = tmp_path / "of_csv" / "model"
    ok("predict", of_csv, tmp_path / "numbers.parquet", "-o", tmp_path / "out.parquet")
    assert "hashed as string; expected double" in told("evaluate", of_csv, tmp_path / "rows.parquet")


def test_classes_come_by_name_with_scores(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(300, 2)), columns=["a", "b"])
    fitted = RidgeClassifier().fit(frame, np.where(frame["a"] > frame["b"], "up", "down"))
    fitted.to_model("way").save(tmp_path / "model")
    frame.to_parquet(tmp_path / "rows.parquet")
    serial = tmp_path / "serial.toml"
    serial.write_text('kind = "serial"\n')
    run = ("predict", tmp_path / "model", tmp_path / "rows.parquet", "--machine", serial)
    ok(*run, "--scores", "-o", tmp_path / "out.parquet")
    out = pq.read_table(tmp_path / "out.parquet").to_pandas()
    assert list(out) == ["way_predicted", "way_score_down", "way_score_up"]
    assert (out["way_predicted"] == fitted.predict(frame)).all()
    np.testing.assert_allclose(out["way_score_down"] + out["way_score_up"], 1.0)
    assert "without its posterior" in told(*run, "--std", "-o", tmp_path / "out.parquet")
    fitted.to_model("way", std=True).save(tmp_path / "model")
    ok(*run, "--std", "-o", tmp_path / "out.parquet")
    out = pq.read_table(tmp_path / "out.parquet").to_pandas()
    assert list(out) == ["way_predicted", "way_std_down", "way_std_up"]
    _, spread = fitted.predict(frame, return_std=True)  # of 1 and -1
    np.testing.assert_allclose(out["way_std_up"], spread / 2, rtol=1e-6)


def test_what_cannot_be_predicted_is_told_and_leaves_nothing(begun: Path, rows, tmp_path):
    predictor = Predictor(LinearModel.load(begun / "model"))
    where = tmp_path / "out.parquet"

    def refused(name: str, table: pa.Table, match: str) -> None:
        pq.write_table(table, tmp_path / name)
        with pytest.raises(CorpusError, match=match):
            predict_files(predictor, [str(tmp_path / name)], where)
        assert not [path for path in tmp_path.iterdir() if "out" in path.name]

    refused("no.parquet", rows.drop(["x1"]), "no column 'x1' among x0, x2")
    refused(
        "null.parquet", rows.set_column(0, "x0", pa.array([None, *[1.0] * 959])), "row 0: null or NaN in column 'x0'"
    )
    refused("text.parquet", rows.set_column(0, "x0", pa.array(["a"] * 960)), "column 'x0' has type string")
    refused(
        "nan.parquet", rows.set_column(1, "x1", pa.array([*[1.0] * 959, np.nan])), "row 959: null or NaN in column 'x1'"
    )
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "no.parquet").read_bytes()[:-100])
    with pytest.raises(CorpusError, match=r"cut\.parquet"):
        predict_files(predictor, [str(tmp_path / "cut.parquet")], where)
    (tmp_path / "rows.xlsx").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"rows\.xlsx"):
        predict_files(predictor, [str(tmp_path / "rows.xlsx")], where)
    with pytest.raises(StoreError, match="cannot write"):
        predict_files(predictor, [str(begun / "corpus")], tmp_path / "none" / "out.parquet")
    model, corpus = begun / "model", begun / "corpus"
    assert "holds something already" in told("predict", model, corpus, "-o", corpus, "--machine", begun / "serial.toml")
    assert "files without --output" in told("predict", model, corpus)
    assert "scores of a model that has no classes" in told("predict", model, corpus, "--scores", "-o", where)
    assert "standard input with" in told("predict", model, "-", "-o", where)


@pytest.fixture(scope="module")
def flights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit on categories, parts of dates, and numbers some of which are missing."""
    folder = tmp_path_factory.mktemp("flights")
    rng = np.random.default_rng(8)
    day = pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 300, 400), unit="D")
    frame = pd.DataFrame({"carrier": rng.choice(["AA", "BB", "CC"], 400), "day": day, "miles": rng.uniform(1, 9, 400)})
    frame.loc[::17, "miles"] = np.nan
    frame["late"] = (frame["carrier"] == "BB") * 2.0 + frame["day"].dt.day_of_week + frame["miles"].fillna(0)
    frame.to_parquet(folder / "rows.parquet", row_group_size=100)
    (folder / "serial.toml").write_text('kind = "serial"\n')
    (folder / "fit.toml").write_text(
        f'kind = "ridge"\nrun = "{folder / "run"}"\n[corpus]\nroot = "{folder / "rows.parquet"}"\ntarget = ["late"]\n'
        'licence = "CC0-1.0"\n'
        'features = ["carrier", "weekday(day)", "miles"]\nmissing = "mean"\n[corpus.categories]\ncarrier = []\n'
        "[solve]\nalphas = [0.001]\nfolds = 2\n"
    )
    ok("fit", folder / "fit.toml", "--machine", folder / "serial.toml")
    return folder


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_rows_are_read_by_the_recipe_of_the_fit(flights: Path, tmp_path, form):
    frame = pd.read_parquet(flights / "rows.parquet")
    predictor = Predictor(LinearModel.load(flights / "run" / "model"), ("carrier",))
    if form == "parquet":
        predict_files(predictor, [str(flights / "rows.parquet")], tmp_path / "out.parquet")
        found = pd.read_parquet(tmp_path / "out.parquet")
    else:
        ask, answer = os.pipe()
        asked = frame.assign(day=frame["day"].dt.strftime("%Y-%m-%d")).drop(columns="late").dropna()
        text = asked.to_csv(index=False) if form == "csv" else asked.to_json(orient="records", lines=True)
        os.write(answer, text.encode())
        os.close(answer)
        with (tmp_path / "out").open("w") as out:
            predict_lines(predictor, ask, out)
        os.close(ask)
        found = pd.read_csv(tmp_path / "out") if form == "csv" else pd.read_json(tmp_path / "out", lines=True)
        frame = frame.dropna()
    filled = frame["miles"].fillna(pd.read_parquet(flights / "rows.parquet")["miles"].mean())
    oracle = np.column_stack(
        [frame["carrier"] == c for c in ("AA", "BB", "CC")] + [frame["day"].dt.day_of_week, filled]
    )
    solution = predictor.model.solution
    expected = oracle.astype(float) @ solution.weights[:, 0] + solution.intercept[0]
    np.testing.assert_allclose(found["late_predicted"], expected, rtol=1e-5, atol=1e-5)
    assert found["carrier"].tolist() == frame["carrier"].tolist()


@pytest.fixture(scope="module")
def dated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain fit on days, instants and truth values of Parquet, which says what they are; text does not."""
    folder = tmp_path_factory.mktemp("dated")
    rng = np.random.default_rng(9)
    at = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(rng.integers(0, 300 * 86400, 400), unit="s")
    frame = pd.DataFrame({"at": at, "day": at.date, "new": rng.random(400) < 0.5, "miles": rng.uniform(1, 9, 400)})
    frame["late"] = at.day_of_year + 3.0 * frame["new"] + frame["miles"] + rng.normal(size=400)
    frame.to_parquet(folder / "rows.parquet", row_group_size=100)
    (folder / "serial.toml").write_text('kind = "serial"\n')
    (folder / "fit.toml").write_text(
        f'kind = "ridge"\nrun = "{folder / "run"}"\n[corpus]\nroot = "{folder / "rows.parquet"}"\ntarget = ["late"]\n'
        'features = ["at", "day", "new", "miles"]\n[solve]\nalphas = [0.001]\nfolds = 2\n'
    )
    ok("fit", folder / "fit.toml", "--machine", folder / "serial.toml")
    return folder


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("piped_in", [True, False])
def test_dates_of_text_are_those_that_were_fitted(dated: Path, tmp_path, form, piped_in):
    predictor = Predictor(LinearModel.load(dated / "run" / "model"))
    predict_files(predictor, [str(dated / "rows.parquet")], tmp_path / "expected.parquet")
    frame = pd.read_parquet(dated / "rows.parquet").drop(columns="late")
    frame = frame.assign(at=frame["at"].dt.strftime("%Y-%m-%dT%H:%M:%SZ"), day=frame["day"].astype(str))
    path = tmp_path / f"rows.{form}"
    path.write_text(frame.to_csv(index=False) if form == "csv" else frame.to_json(orient="records", lines=True))
    if piped_in:
        with path.open() as asked, (tmp_path / "out").open("w") as out:
            predict_lines(predictor, asked.fileno(), out)
        found = pd.read_csv(tmp_path / "out") if form == "csv" else pd.read_json(tmp_path / "out", lines=True)
    else:
        predict_files(predictor, [str(path)], tmp_path / "out.parquet")
        found = pd.read_parquet(tmp_path / "out.parquet")
    expected = pd.read_parquet(tmp_path / "expected.parquet")
    np.testing.assert_allclose(found["late_predicted"], expected["late_predicted"], rtol=1e-9)


@pytest.mark.parametrize(("text", "complaint"), [
    (b"at,day,new,miles\n2026-01-01T00:00:00Z,soon,true,1\n", "soon"),
    (b'{"at": "2026-01-01T00:00:00Z", "day": null, "new": true, "miles": 1}\n', "row 0: null or NaN in column 'day'"),
])  # fmt: skip
def test_what_is_no_date_is_told(dated: Path, tmp_path, text, complaint):
    (tmp_path / "asked").write_bytes(text)
    predictor = Predictor(LinearModel.load(dated / "run" / "model"))
    with (
        (tmp_path / "asked").open() as asked,
        (tmp_path / "out").open("w") as out,
        pytest.raises(ShardError, match=complaint),
    ):
        predict_lines(predictor, asked.fileno(), out)


def test_the_licence_of_a_config_goes_with_every_model(flights: Path, tmp_path):
    ok("solve", flights / "run", "--alpha", 1, "-o", tmp_path / "model")
    for folder in (flights / "run" / "model", tmp_path / "model"):
        assert "Licence: CC0-1.0" in ok("card", folder)


def piped(model: Path, text: bytes, *options: str) -> subprocess.CompletedProcess[bytes]:
    run = [sys.executable, "-m", "streamfit", "predict", str(model), "-", *options]
    return subprocess.run(run, input=text, capture_output=True, check=False)


def test_pipes_of_csv_and_of_json(begun: Path, rows):
    model = LinearModel.load(begun / "model")
    expected = model.predict(inputs(rows))[:, 0]
    text = "\ufeff" + rows.to_pandas().to_csv(index=False)  # marked as some programs mark UTF-8
    done = piped(begun / "model", text.encode(), "--keep", "doc", "--std")
    assert done.returncode == 0, done.stderr
    table = list(csv.DictReader(done.stdout.decode().splitlines()))
    assert list(table[0]) == ["doc", "y_predicted", "y_std"]
    np.testing.assert_allclose([float(row["y_predicted"]) for row in table], expected, rtol=1e-12)


def test_json_lines_are_answered_by_json_lines(begun: Path, rows, tmp_path):
    model = LinearModel.load(begun / "model")
    ask, answer = os.pipe()
    asked = [*rows.to_pylist()[:5], {"x2": 3, "x1": 2, "x0": 1}]
    os.write(answer, "".join(json.dumps(row) + "\n" for row in asked).encode())
    os.close(answer)
    with (tmp_path / "out").open("w") as out:
        predict_lines(Predictor(model), ask, out)
    os.close(ask)
    found = [json.loads(line)["y_predicted"] for line in (tmp_path / "out").read_text().splitlines()]
    expected = model.predict(np.vstack([inputs(rows)[:5], [1.0, 2.0, 3.0]]))[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_row_is_answered_before_the_next_is_waited_for(begun: Path, tmp_path):
    """A program that asks row by row must not wait for a block to fill."""
    predictor = Predictor(LinearModel.load(begun / "model"))
    (ask, answer), (heard, said) = os.pipe(), os.pipe()
    # `ask` is read by the predictor; answers are read from `heard`.
    with os.fdopen(said, "w") as out, os.fdopen(heard) as replies:
        thread = threading.Thread(target=lambda: (predict_lines(predictor, ask, out), out.close()))
        thread.start()
        os.write(answer, b"x0,x1,x2\n1,2,")
        os.write(answer, b"3\n")
        assert replies.readline() == "y_predicted\n"
        first = float(replies.readline())
        os.write(answer, b"4,5,6\n7,8,9")
        second = float(replies.readline())
        os.close(answer)
        third = float(replies.readline())
        thread.join()
        os.close(ask)
    expected = predictor.model.predict(np.arange(1.0, 10).reshape(3, 3))[:, 0]
    np.testing.assert_allclose([first, second, third], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b'{"x0": 1}\n', "no 'x1', 'x2' among x0"),
        (b'{"x0": 1, "x1": 2, "x2": 3}\n[1]\n', "line 2: list"),
        (b'{"x0": 1, "x1": 2, "x2": 3}\n{"x0"\n', "line 2: "),
        (b'{"x0": 1, "x1": 2, "x2": 3}\n{"x0": 1, "x1": null, "x2": 3}\n', "row 1: null or NaN in column 'x1'"),
        (b"x0,x1,x2\n1,2\n", "line 2: 2 values; expected 3"),
        (b"x0,x1,x2\n1,2,three\n", "rows 0 to 0: "),
        (b"x0,x1,x2\n1,2,\xff\n", "UTF-8"),
    ],
)
def test_lines_that_are_no_rows_are_told(begun: Path, text, complaint):
    ask, answer = os.pipe()
    os.write(answer, text)
    os.close(answer)
    with open(os.devnull, "w") as out, pytest.raises(ShardError, match=complaint):  # noqa: PTH123
        predict_lines(Predictor(LinearModel.load(begun / "model")), ask, out)
    os.close(ask)


def test_lists_of_numbers_are_inputs_in_pipes_too(tmp_path):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, 3))
    fitted = Ridge().fit(x, x @ [1.0, 2.0, 3.0])
    model = fitted.to_model()
    model.info["reader"]["features"] = ["embedding"]
    ask, answer = os.pipe()
    os.write(answer, "".join(json.dumps({"embedding": row.tolist()}) + "\n" for row in x).encode())
    os.close(answer)
    with (tmp_path / "out").open("w") as out:
        assert predict_lines(Predictor(model), ask, out) == 50
    os.close(ask)
    found = [json.loads(line)["y_predicted"] for line in (tmp_path / "out").read_text().splitlines()]
    np.testing.assert_allclose(found, fitted.predict(x), rtol=1e-12)


def test_an_interrupt_while_workers_start_ends_in_one_line(begun: Path, tmp_path):
    """A terminal sends it to the processes that start as well."""
    (tmp_path / "local.toml").write_text('kind = "local"\nn_workers = 2\n')
    run = [sys.executable, "-m", "streamfit", "predict", str(begun / "model"), str(begun / "corpus")]
    process = subprocess.Popen(
        [*run, "-o", str(tmp_path / "out"), "--machine", str(tmp_path / "local.toml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    found = psutil.Process(process.pid)
    while not any("spawn_main" in " ".join(child.cmdline()) for child in children_of(found)):
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)  # they load what they need
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.strip() == "interrupted: nothing was written; to go on, run: the same command again"


def children_of(process: psutil.Process) -> list[psutil.Process]:
    """Processes that it has begun and that are still there."""
    with suppress(psutil.NoSuchProcess):
        return [child for child in process.children() if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    return []
