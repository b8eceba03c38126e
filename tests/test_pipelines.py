"""The pipelines that keep a store, run as their docstrings say, on small files; what they claim is checked by others.

`batch_fit`, `incremental_refit` and `offline_corpus` are tested with the command line that shares their jobs.
"""

import json
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from sklearn.linear_model import Ridge
from store_helpers import leave_to_the_disk

from pipelines import bench_kernel, federate, forget, keep_store, kernel_ways, mix_sources
from streamfit.cli import script
from streamfit.config_corpus import TextSection
from streamfit.corpus import Files, Labels, ParquetTable
from streamfit.engine import accumulate
from streamfit.errors import ConfigError, MismatchError, StoreError
from streamfit.models import LinearModel
from streamfit.store import Store, digest_of, verify
from streamfit.tables import Block, prepare_table
from streamfit.text import LanguageSettings, prepare, token_source
from streamfit.worth import worth

TRUTH = {"web": [1.0, -2.0, 0.5], "co[d]e": [1.1, -2.0, 0.4], "junk": [-3.0, 3.0, 3.0]}
DAYS = ("2026-01-01", "2026-01-31")
SOURCE = r"^(?P<source>[^/]+)/"
GROUP = 50


def write_rows(folder, source, seed, *, without=(), n_rows=8 * GROUP):
    """One file a source, in small row groups; `without` some ids, all else cut as before."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_rows, 3))
    y = x @ TRUTH[source] + rng.normal(size=n_rows)
    ids = 1000 * seed + np.arange(n_rows)
    days = [DAYS[i // GROUP % len(DAYS)] for i in range(n_rows)]
    path = folder / source / f"{seed}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({f"x{j}": x[:, j] for j in range(3)} | {"y": y, "id": ids, "time": days})
    with pq.ParquetWriter(path, table.schema) as writer:
        for lo in range(0, n_rows, GROUP):
            rows = np.flatnonzero(~np.isin(ids[lo : lo + GROUP], without))
            writer.write_table(table.slice(lo, GROUP).take(pa.array(rows)))


def table_of(folder, **labels):
    return ParquetTable(Files(str(folder)), ("x0", "x1", "x2"), ("y",), labels=Labels(SOURCE, **labels))


def new_store(where, folder, *, n_folds=2, keep=16):
    blocks = [Block("linear"), Block("rbf", 4)]
    header = prepare_table(table_of(folder), blocks, precision="float64", n_folds=n_folds, seed=0, sample_rows=500)
    return Store.create(where, header, keep=keep)


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch):
    leave_to_the_disk(monkeypatch)


@pytest.fixture
def machine(tmp_path):
    (tmp_path / "serial.toml").write_text('kind = "serial"\n')
    return tmp_path / "serial.toml"


@pytest.fixture
def folder(tmp_path):
    for seed, source in enumerate(TRUTH, start=1):
        write_rows(tmp_path / "data", source, seed)
    return tmp_path / "data"


@pytest.fixture
def store(tmp_path, folder):
    """Three sources, one of which is junk."""
    store = new_store(tmp_path / "store", folder)
    accumulate(store, table_of(folder))
    return store


def run_script(monkeypatch, module, *arguments):
    """Run a pipeline as from the command line; its exit code."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        script(module.main)
    return int(stop.value.code or 0)


# Forget


@pytest.mark.parametrize("fast", [False, True])
def test_forget_ends_where_files_without_the_rows_begin(tmp_path, store, folder, machine, fast, capsys):
    """Sums of files that never had the rows, certificate, old segments gone; the pipeline's own check agrees."""
    gone = [1003, 1004, 1070, 3333]
    (tmp_path / "ids.txt").write_text("\n".join(map(str, gone)))
    found = forget.main(
        str(store.place), where=[f"id=@{tmp_path / 'ids.txt'}"], why="asked", fast=fast, machine=machine, check=True
    )
    for seed, source in enumerate(TRUTH, start=1):
        write_rows(tmp_path / "innocent" / "data", source, seed, without=gone)
    innocent = Store.create(tmp_path / "innocent" / "store", store.header)
    accumulate(innocent, table_of(tmp_path / "innocent" / "data"))
    assert found.digest == digest_of(innocent.moments()) == verify(store).digest
    assert (found.removal.n_rows, found.removal.n_shards, found.removal.why) == (4, 3, "asked")
    assert found.still_held == ()
    assert {p.name for p in (tmp_path / "store" / "segments").iterdir() if p.is_dir()} == {
        s.id for s in store.head().segments
    }
    printed = " ".join(capsys.readouterr().out.split())
    assert "no segment with these rows is left on disk" in printed
    assert "checked: sums and weights equal, to the last bit" in printed
    with pytest.raises(StoreError, match="no longer kept"):
        Store(store.url, at=1)


def test_forget_of_a_document_checks_its_ngrams_too(tmp_path, machine, monkeypatch):
    """A store of tokens: counts are part of the check, which fails where they are another store's."""
    (tmp_path / "docs").mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        words = rng.choice(["sum", "solve", "once", "gram", "the", "end"], size=80)
        (tmp_path / "docs" / f"{i}.txt").write_text(" ".join(words))
    documents = TextSection(root=str(tmp_path / "docs")).documents("train")
    settings = LanguageSettings(vocab_size=270, n_context=3, embedding_dims=24, n_centers=5)
    header = prepare(documents, settings, reading={"files": "text", "split": [0.8, 0.1, 0.1]})
    store = Store.create(tmp_path / "store", header)
    accumulate(store, token_source(header, documents))
    first, second = sorted(shard.key for shard in store.counted().values())[:2]
    found = forget.main(store.url, where=[f"doc_id={first}"], machine=machine, check=True)
    assert [(s["key"], s["whole"]) for s in found.shards] == [(first, True)]
    honest = forget.counts
    monkeypatch.setattr(forget, "counts", lambda s: [a + (s.url == store.url) for a in honest(s)])
    with pytest.raises(MismatchError, match="other sums than a store that never saw the rows"):
        forget.main(store.url, shard=[second], machine=machine, check=True)


def test_forget_from_a_corpus_that_was_moved(tmp_path, store, folder, machine, monkeypatch, capsys):
    """By the command line; a value that no row has is one line and exit code 2, and changes nothing."""
    folder.rename(tmp_path / "moved")
    arguments = ["--machine", machine, "--corpus", tmp_path / "moved"]
    assert run_script(monkeypatch, forget, store.url, "--where", "id=99", *arguments) == 2
    assert "no counted row with id=99" in capsys.readouterr().err
    assert store.head().sequence == 1 + len(store.head().segments) - 1
    assert run_script(monkeypatch, forget, store.url, "--where", "id=1000", "--check", *arguments) == 0
    assert store.head().n_rows == 3 * 8 * GROUP - 1


# Mix


def oracle_losses(store, folder, found, factors, half_life, as_of):
    """Held-out losses of scikit-learn's weighted ridge on the rows themselves."""
    table, features = table_of(folder, columns=("time",)), store.header.features
    parts = {"train": [], found.target_fold: [], found.check_fold: []}
    for shard in table.shards():
        rows = next(table.read(shard))
        days = (datetime.fromisoformat(as_of) - datetime.fromisoformat(dict(shard.labels)["time"])).days
        weight = factors.get(shard.source, 1.0) * (0.0 if days < 0 else 2.0 ** (-days / half_life))
        fold = shard.fold(store.header.n_folds)
        parts[fold if fold in parts else "train"].append((features(rows.x), rows.y, np.full(len(rows.x), weight)))
    joined = {name: [np.concatenate(column) for column in zip(*part, strict=True)] for name, part in parts.items()}
    x, y, w = joined["train"]
    model = Ridge(alpha=found.alpha, solver="cholesky").fit(x[w > 0], y[w > 0], sample_weight=w[w > 0])
    tests = (joined[fold] for fold in (found.target_fold, found.check_fold))
    return [float(np.mean((model.predict(x).reshape(len(y), -1) - y) ** 2)) for x, y, _ in tests]


def test_mix_sources_gives_junk_no_weight_and_says_true_losses(tmp_path, folder, monkeypatch):
    """Losses are those of weighted fits of the rows; the mixture helps on the fold that had no say; the model is it."""
    store = new_store(tmp_path / "store", folder, n_folds=3)
    accumulate(store, table_of(folder, columns=("time",)))
    losses = mix_sources.main(store.url, like="source:web", alpha=2.0, output=tmp_path / "model")
    found = worth(store, alpha=2.0, like="source:web")
    assert found.mixture.shares["junk"] < 0.1
    assert losses["best mixture"][1] < losses["as counted"][1]
    np.testing.assert_allclose(losses["as counted"], (found.mixture.plain_loss, found.check_plain), rtol=1e-9)
    np.testing.assert_allclose(losses["best mixture"], (found.mixture.loss, found.check_mixed), rtol=1e-6)
    model = LinearModel.load(tmp_path / "model")
    assert np.abs(model.solution.weights).sum() > 1

    losses = mix_sources.main(store.url, half_life="30d", as_of="2026-01-20", alpha=2.0)
    found = worth(store, alpha=2.0)
    for name, factors in (("by age alone", {}), ("best mixture, by age", found.mixture.factors)):
        expected = oracle_losses(store, folder, found, factors, 30.0, "2026-01-20")
        np.testing.assert_allclose(losses[name], expected, rtol=1e-7)
    assert run_script(monkeypatch, mix_sources, store.url, "--by", "planet") == 2


# Federate


def test_federate_adds_up_made_up_sites(tmp_path, capsys):
    """The hub's model is scikit-learn's on all rows; its files name no file of a site; a stranger is refused."""
    model = federate.main(tmp_path / "run", alpha=3.0)
    rows = [pq.read_table(path) for path in sorted((tmp_path / "run").glob("*/rows/*.parquet"))]
    x = np.concatenate([np.column_stack([t[f"x{j}"] for j in range(3)]) for t in rows])
    y = np.concatenate([t["y"].to_numpy() for t in rows])
    oracle = Ridge(alpha=3.0, solver="cholesky").fit(model.features(x), y)
    assert len(x) == 18_000
    np.testing.assert_allclose(model.solution.weights[:, 0], oracle.coef_, rtol=1e-8)
    hub = Store(tmp_path / "run" / "hub" / "store")
    assert {s.source for s in hub.head().segments} == {"site_a", "site_b", "site_c"}
    for site in "abc":
        with zipfile.ZipFile(tmp_path / "run" / f"{site}.zip") as file:
            assert all(b".parquet" not in file.read(name) for name in file.namelist() if name.startswith("_log"))
            assert all(str(tmp_path).encode() not in file.read(name) for name in file.namelist())
    assert all(s.uri == "" and s.key == s.content_id[:16] for s in hub.counted().values())
    printed = " ".join(capsys.readouterr().out.split())
    assert "weights equal, to the last bit, those of one store" in printed
    assert "refused:" in printed
    assert "was made with other features" in printed


def test_federate_shares_a_folder_out_and_knows_when_a_proof_fails(tmp_path, folder, monkeypatch):
    """Files of a corpus go to three sites; what would make the example a lie is an error."""
    monkeypatch.setattr(federate, "N_FOLDS", 1)
    columns = ["x0", "x2"]
    model = federate.main(tmp_path / "run", corpus=folder, features=columns, target="y")
    assert model.features.n_inputs == 2
    assert Store(tmp_path / "run" / "hub" / "store").head().n_rows == 3 * 8 * GROUP
    with pytest.raises(ConfigError, match="is there already"):
        federate.main(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"1 Parquet files in .*; expected at least 3"):
        federate.main(tmp_path / "few", corpus=folder / "web")

    honest = federate.new_store
    headers = []

    def copycat(where, table):
        headers.append(honest(where.parent / "draft", table).header)
        return Store.create(where, headers[0])

    monkeypatch.setattr(federate, "new_store", copycat)
    with pytest.raises(MismatchError, match="a hub that took sums of other features"):
        federate.main(tmp_path / "third", corpus=folder, features=columns)


# Keep


class Clock(datetime):
    """A clock that a test sets."""

    month = 11

    @classmethod
    def now(cls, tz=None):
        return datetime(2026, cls.month, 5, tzinfo=tz or UTC)


def test_keep_store_night_after_night(tmp_path, folder, machine, monkeypatch):
    """New files alone are counted, the month's pin ends on its last commit, and old months stay readable."""
    monkeypatch.setattr(keep_store, "datetime", Clock)
    store = new_store(tmp_path / "store", folder, keep=1)
    options = {"machine": machine, "corpus": str(folder), "sample": 1.0, "output": tmp_path / "model"}

    def night(month):
        monkeypatch.setattr(Clock, "month", month)
        return keep_store.main(store.url, [str(folder)], label=["source=mixed"], **options)

    changed = night(10)
    rows = 3 * 8 * GROUP
    assert (changed["rows"], changed["weights"]) == (f"0 to {rows:,}", "nothing to compare with")
    assert changed["read again"] == f"{rows:,} rows"
    quiet = store.head()
    assert night(10)["commits"] == f"{quiet.sequence} to {quiet.sequence}", "a quiet night leaves no trace"
    october = [store.moments()]
    write_rows(folder, "web", 7)
    assert night(10)["rows"] == f"{rows:,} to {rows + 8 * GROUP:,}"
    october.append(store.moments())
    write_rows(folder, "web", 8)
    changed = night(11)
    assert changed["weights"].startswith("moved by up to ")
    assert {pin.name for pin in store.head().pins} == {"2026-10", "2026-11"}
    assert Store(store.url, at="2026-10").moments() == october[1] != october[0]
    assert Store(store.url, at="2026-11").moments() == store.moments()
    assert len(store.head().segments) == len({s.kind for s in store.head().segments})
    assert LinearModel.load(tmp_path / "model").info["n_rows"] == rows + 16 * GROUP


def test_keep_store_pins_nothing_that_is_at_fault(tmp_path, store, folder, machine, monkeypatch, capsys):
    """A counted file that is gone is a fault: exit code 2, a line that says so, and the pin stays where it was."""
    monkeypatch.setattr(keep_store, "datetime", Clock)
    arguments = [store.url, folder, "--corpus", folder, "--sample", "1", "--machine", machine]
    assert run_script(monkeypatch, keep_store, *arguments) == 0
    pins = store.head().pins
    (folder / "junk" / "3.parquet").unlink()
    write_rows(folder, "web", 9)
    assert run_script(monkeypatch, keep_store, *arguments, "--label", "source=late") == 2
    told = capsys.readouterr()
    assert "counted shards are not in the corpus" in told.out
    assert "fault(s)" in told.err
    assert store.head().pins == pins
    assert Path(folder / "web" / "9.parquet").exists()


# Kernels at equal centers


@pytest.fixture
def flights(tmp_path):
    """Flights between five airports, one of which nobody knows the place of; delays by the clock and the place."""
    rng, n = np.random.default_rng(0), 1500
    codes = np.array(["AAA", "BBB", "CCC", "DDD", "???"])
    minutes = np.sort(rng.integers(0, 60 * 24 * 90, size=n))
    origin, destination = rng.integers(5, size=(2, n))
    delay = 20.0 * np.sin(2.0 * np.pi * (minutes % 1440) / 1440.0) + 5.0 * origin + rng.normal(size=n)
    columns = {"date": np.datetime64("2001-01-01T00:00") + minutes.astype("timedelta64[m]").astype("timedelta64[us]")}
    columns |= {"delay": np.round(delay).astype(int), "distance": 100 * np.abs(origin - destination)}
    columns |= {"origin": codes[origin], "destination": codes[destination]}
    pq.write_table(pa.table(columns), tmp_path / "flights.parquet")
    lines = [f"{code},somewhere,{40 + i},{-100 + 3 * i}" for i, code in enumerate(codes[:4])]
    (tmp_path / "airports.csv").write_text("\n".join(["iata,name,latitude,longitude", *lines]))
    return tmp_path / "flights.parquet", tmp_path / "airports.csv"


def test_bench_kernel_gives_each_contender_the_same_chance(flights, monkeypatch, tmp_path):
    """Two implementations of one objective err alike, to the digits that tell them apart from the others."""
    monkeypatch.setattr(bench_kernel, "ProcessPoolExecutor", lambda n, _: ThreadPoolExecutor(n))
    monkeypatch.setattr(bench_kernel, "GAMMAS", (1.0,))
    monkeypatch.setattr(kernel_ways.FalkonTranscribed, "iterations", 60)
    told = bench_kernel.main(flights[0], Console(quiet=True), airports=flights[1], n_rows=900, centers=[24])
    assert told["rows"] == {"train": 720, "validation": 90, "test": 90}
    runs = {run["way"]: run for run in told["runs"]}
    assert list(runs) == list(bench_kernel.WAYS)
    error = {way: run["test_rmse"] for way, run in runs.items()}
    for way in ("streamfit Nystroem", "streamfit whitened", "scikit-learn float32"):
        assert error[way] == pytest.approx(error["scikit-learn"], rel=1e-4)
    assert error["Falkon's algorithm"] == pytest.approx(error["scikit-learn"], rel=0.05)  # it has no intercept
    assert error["streamfit RBF"] != pytest.approx(error["scikit-learn"], rel=2e-4)
    assert all(0.5 < run["test_r2"] < 1.0 and run["train_rows"] == 720 for run in runs.values())
    assert all(run["with_choice_seconds"] >= run["fit_seconds"] > 0 for run in runs.values())
    page = bench_kernel.markdown(told).splitlines()
    assert len(page) == 2 + len(runs) + 1
    assert "not run: PyPI has no distribution" in page[-1]
    bench_kernel.draw(told, tmp_path / "errors.png")
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(json.dumps(told)) == told


def test_falkons_algorithm_ends_at_the_optimum_of_its_objective():
    """With conjugate gradients enough, and an alpha that its jitter does not matter to."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1.0, 1.0, size=(700, 2))
    y = np.sin(3.0 * x[:, :1]) + x[:, 1:] + 7.0
    way = kernel_ways.FalkonTranscribed(x[:30], 2.0, 2, 1e9)
    way.iterations = 300
    way.count(x, y)
    k, between = way.kernel(x), way.kernel(x[:30])
    exact = np.linalg.lstsq(k.T @ k + 0.1 * between, k.T @ (y - y.mean()), rcond=None)[0]
    np.testing.assert_allclose(way.fit(0.1)(x), k @ exact + y.mean(), atol=1e-5)


@pytest.mark.parametrize(
    ("path", "airports", "centers", "complaint"),
    [
        ("nothing.parquet", True, 8, "no file at"),
        ("flights.parquet", False, 8, "--airports"),
        ("flights.parquet", True, 800, "800 centers from 720 training rows"),
    ],
)
def test_bench_kernel_refuses_what_it_cannot_run(flights, path, airports, centers, complaint):
    where = flights[0].with_name(path)
    with pytest.raises(ConfigError, match=complaint):
        bench_kernel.main(
            where, Console(quiet=True), airports=flights[1] if airports else None, n_rows=900, centers=[centers]
        )
