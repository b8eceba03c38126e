"""The command line as a user meets it: real processes, exit codes, and one line for each mistake."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import Ridge as SklearnRidge

from pipelines import batch_fit, incremental_refit, offline_corpus
from streamfit.cli import app, main
from streamfit.demo import config_path
from streamfit.errors import ConfigError
from streamfit.models import LinearModel


@dataclass
class Outcome:
    returncode: int
    stdout: str
    stderr: str


def streamfit(*arguments: object, cwd: Path | None = None, stdin: str = "") -> Outcome:
    """Run the command line in this process, which saves two seconds of imports a call."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["streamfit", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        patch.setenv("COLUMNS", "200")
        if cwd is not None:
            patch.chdir(cwd)
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture
def config(table, tmp_path: Path) -> Path:
    """A ridge problem on the small table, run in one process."""
    folder, _, _ = table
    columns = ", ".join(f'"x{j}"' for j in range(8))
    path = tmp_path / "ridge.toml"
    path.write_text(
        f'kind = "ridge"\nrun = "{tmp_path / "run"}"\nprecision = "float64"\n'
        f'[corpus]\nroot = "{folder}"\ninclude = ["part-*.parquet"]\nfeatures = [{columns}]\ntarget = ["y"]\n'
        "[solve]\nalphas = [0.1, 1, 10]\nfolds = 3\n"
    )
    (tmp_path / "serial.toml").write_text('kind = "serial"\n')
    return path


def fit(config: Path, *arguments: object) -> Outcome:
    return streamfit("fit", config, "--machine", config.parent / "serial.toml", *arguments)


def test_fit_status_solve_evaluate(config: Path, table):
    folder, x, y = table
    run = config.parent / "run"
    done = fit(config)
    assert done.returncode == 0, done.stderr
    assert "counted 12,000 rows of 12 shards" in done.stdout
    assert "memory:" in done.stdout, "the plan is printed first"
    model = LinearModel.load(run / "model")
    oracle = SklearnRidge(alpha=model.solution.alpha).fit(x, y)
    np.testing.assert_allclose(model.solution.weights[:, 0], oracle.coef_, rtol=1e-10)

    again = fit(config)
    assert "12 shards are counted already" in again.stdout
    facts = json.loads(streamfit("status", run / "store", "--json").stdout)
    assert (facts["rows"], facts["shards"]) == (12_000, 12)
    assert sum(facts["rows_by_fold"].values()) == 12_000

    solved = streamfit("solve", run / "store", "--alpha", 5, "--json", "-o", run / "five")
    facts = json.loads(solved.stdout)
    assert facts["alpha"] == 5
    assert facts["certificate"]["unique"]
    np.testing.assert_allclose(
        LinearModel.load(run / "five").solution.weights[:, 0], SklearnRidge(alpha=5).fit(x, y).coef_, rtol=1e-10
    )
    score = json.loads(streamfit("evaluate", run / "model", folder, "--json").stdout)[str(folder)]
    assert score["r2"] == pytest.approx(oracle.score(x, y), rel=1e-9)
    assert streamfit("resume", run).returncode == 0
    assert "event=model" in (run / "streamfit.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("fit", "none.toml"), "no config at none.toml"),
        (("status", "."), "is not a store"),
        (("status", "nowhere"), "no folder"),
        (("solve", "nowhere"), "is not a store"),
        (("resume", "nowhere"), "is not a run"),
        (("evaluate", "nowhere", "x"), "no model in nowhere"),
        (("generate", "nowhere"), "no model in nowhere"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path: Path, arguments, complaint):
    done = streamfit(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda d, c: c.write_text(c.read_text().replace('"x3"', '"z3"')), "no column 'z3'"),
        (lambda d, c: c.write_text(c.read_text().replace("folds", "foldz")), "did you mean 'folds'"),
        (lambda d, c: c.write_text(c.read_text().replace("part-*", "none-*")), "no file of"),
        (lambda d, c: (d / "part-1.parquet").write_bytes((d / "part-1.parquet").read_bytes()[:-900]), "part-1.parquet"),
        (lambda d, c: _column(d, "x2", pa.array(["a"] * 3000)), "column 'x2' has type string"),
        (lambda d, c: _column(d, "y", pa.array([1.0, None] * 1500)), "row 1: null in column 'y'"),
        (lambda d, c: _column(d, "x0", pa.array([1.0] * 2500 + [np.nan] * 500)), "row 500: nan in column 'x0'"),
        (lambda d, c: _column(d, "y", pa.array([np.inf] * 3000)), "row 0: inf in column 'y'"),
    ],
    ids=["column", "key", "empty", "truncated", "dtype", "null", "nan", "inf"],
)
def test_bad_input_stops_with_one_error_and_loses_nothing(config: Path, table, spoil, complaint):
    folder, _, _ = table
    spoil(folder, config)
    done = fit(config)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    store = config.parent / "run" / "store"
    if store.exists():
        assert streamfit("status", store).returncode == 0


def _column(folder: Path, name: str, values: pa.Array) -> None:
    path = folder / "part-2.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(name), name, values), path, row_group_size=1000)


def test_bad_shards_can_be_skipped_and_are_recorded(config: Path, table):
    folder, _, _ = table
    _column(folder, "x0", pa.array([1.0] * 2999 + [np.nan]))
    (folder / "part-0.parquet").write_bytes(b"PAR1 not at all")
    done = fit(config, "--skip-bad-shards")
    assert done.returncode == 0, done.stderr
    assert "skipped part-2.parquet#2" in done.stdout
    facts = json.loads(streamfit("status", config.parent / "run" / "store", "--json").stdout)
    assert facts["rows"] == 8_000
    assert {r["key"] for r in facts["skipped"]} == {"part-2.parquet#2", "part-0.parquet"}


def test_a_store_of_other_features_is_refused(config: Path):
    assert fit(config).returncode == 0
    config.write_text(config.read_text() + '[[features]]\nkind = "rbf"\nn = 10\n')
    done = fit(config)
    assert done.returncode == 2
    assert "was made with blocks" in done.stderr


def test_a_singular_gram_needs_a_positive_alpha(config: Path, table):
    for path in table[0].glob("*.parquet"):
        rows = pq.read_table(path)
        pq.write_table(rows.append_column("copy", rows["x7"]), path, row_group_size=1000)
    config.write_text(config.read_text().replace('"x7"', '"x7", "copy"'))
    assert fit(config).returncode == 0
    store = config.parent / "run" / "store"
    done = streamfit("solve", store, "--alpha", 0)
    assert done.returncode == 3, "the solution of least norm is not unique, and nothing proves it"
    assert "rank 8 of 9" in done.stdout
    assert streamfit("solve", store, "--alpha", 0, "--tolerance", "inf").returncode == 0
    assert streamfit("solve", store, "--alpha", -1).returncode == 2
    assert streamfit("solve", store, "--alpha", 1).returncode == 0


def test_a_real_process_ends_with_the_same_exit_code_and_line(tmp_path: Path):
    command = [sys.executable, "-m", "streamfit", "status", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: nowhere is not a store")


def test_rows_that_could_not_be_cross_validated_are_refused_before_the_pass(config: Path, table):
    folder, _, _ = table
    pq.write_table(pq.read_table(folder / "part-0.parquet"), folder / "one.parquet")
    config.write_text(config.read_text().replace("part-*", "one"))
    planned = fit(config, "--dry-run")
    done = fit(config)
    assert done.returncode == planned.returncode == 2
    assert done.stderr == planned.stderr, "the forecast of a run asks what the run asks"
    assert "a grid of alphas, but 1 shard(s)" in done.stderr
    assert "counted" not in done.stdout
    config.write_text(config.read_text().replace("[0.1, 1, 10]", "[1]"))
    assert fit(config).returncode == 0


@pytest.mark.parametrize("fitted", ["parquet", "csv"])
def test_tables_of_any_kind_are_evaluated(tmp_path: Path, fitted: str):
    """A model of one kind of file is scored on others, as their names say; categories, classes and dates alike."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"a": rng.normal(size=900), "kind": rng.choice(["p", "q"], 900), "flag": rng.random(900) < 0.5}
    )
    frame["day"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 99, 900), unit="D")
    frame["k"] = ((frame["kind"] == "p") ^ (frame["a"] > 1)).astype(int)
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=100)
    frame.to_feather(tmp_path / "t.feather")
    text = frame.assign(day=frame["day"].dt.strftime("%Y-%m-%d"))
    text.to_csv(tmp_path / "t.csv", index=False)
    text.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    text.to_json(tmp_path / "t.jsonl", orient="records", lines=True, double_precision=15)
    config = tmp_path / "fit.toml"
    config.write_text(
        f'kind = "ridge"\nrun = "{tmp_path / "run"}"\n[corpus]\nkind = "{fitted}"\n'
        f'root = "{tmp_path / f"t.{fitted}"}"\n'
        'features = ["a", "kind", "flag", "day", "month(day)"]\ncategories = ["kind"]\n'
        'target = ["k"]\nn_classes = 2\n'
        "[solve]\nalphas = [1]\nfolds = 2\n"
    )
    (tmp_path / "serial.toml").write_text('kind = "serial"\n')
    assert fit(config).returncode == 0
    kinds = ("parquet", "feather", "csv", "tsv", "jsonl")
    done = streamfit("evaluate", tmp_path / "run" / "model", *(tmp_path / f"t.{kind}" for kind in kinds), "--json")
    assert done.returncode == 0, done.stderr
    scores = list(json.loads(done.stdout).values())
    assert len(scores) == 5
    for score in scores:
        assert score == pytest.approx(scores[0], rel=1e-9)


def test_scores_of_targets_with_a_large_mean_and_of_many_classes(tmp_path: Path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=3000)
    columns = {"x": x, "far": 3 * x + rng.normal(size=3000) + 1e9, "k": (x > 0).astype(np.int64) * 49_999}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=500)
    (tmp_path / "serial.toml").write_text('kind = "serial"\n')
    for target, classes in (("far", ""), ("k", "n_classes = 50_000\n")):
        config = tmp_path / f"{target}.toml"
        config.write_text(
            f'kind = "ridge"\nrun = "{tmp_path / target}"\n[corpus]\nroot = "{tmp_path / "t.parquet"}"\n'
            f'features = ["x"]\ntarget = ["{target}"]\n{classes}[solve]\nalphas = [1]\nfolds = 2\n'
        )
        assert fit(config).returncode == 0
    path = str(tmp_path / "t.parquet")
    far = json.loads(streamfit("evaluate", tmp_path / "far" / "model", path, "--json").stdout)[path]
    assert far["r2"] == pytest.approx(np.corrcoef(x, columns["far"])[0, 1] ** 2, abs=1e-3)
    classes = json.loads(streamfit("evaluate", tmp_path / "k" / "model", path, path, "--json").stdout)[path]
    assert classes["accuracy"] > 0.95
    y = np.column_stack([x <= 0, x > 0]).astype(float)
    oracle = SklearnRidge(alpha=1).fit(x[:, None], y)
    assert classes["r2"] == pytest.approx(oracle.score(x[:, None], y), rel=1e-6)


def test_every_command_explains_itself():
    for command in ("demo", "fit", "resume", "status", "evaluate", "doctor"):
        done = streamfit(command, "--help")
        assert done.returncode == 0
        assert "Usage" in done.stdout
    assert {c.callback.__name__ for c in app.registered_commands} == {
        "demo", "fit", "resume", "status", "evaluate", "doctor"
    }  # fmt: skip


def test_doctor_measures_this_machine():
    facts = json.loads(streamfit("doctor", "--json").stdout)
    assert facts["sums_repeat"] is True
    assert facts["gram_share_of_peak_float32"] > 0  # how large is the machine's affair


def test_packaged_configs_are_found():
    assert config_path("lm_stdlib.toml").is_file()
    with pytest.raises(ConfigError, match="no packaged config"):
        config_path("none.toml")


def test_pipelines_fit_and_refit_a_table(config: Path, table):
    _, x, y = table
    machine = config.parent / "serial.toml"
    model = batch_fit.main(config, machine)
    assert model.solution.weights.shape == (8, 1)
    new = config.parent / "new"
    new.mkdir()
    rng = np.random.default_rng(1)
    columns = {f"x{j}": rng.normal(size=500) for j in range(8)}
    pq.write_table(pa.table(columns | {"y": rng.normal(size=500)}), new / "more.parquet")
    assert incremental_refit.main(config.parent / "run", [str(new)], check=True)
    refitted = LinearModel.load(config.parent / "run" / "model")
    everything = np.vstack([x, np.column_stack(list(columns.values()))])
    targets = np.concatenate([y, pq.read_table(new / "more.parquet")["y"].to_numpy()])
    oracle = SklearnRidge(alpha=refitted.solution.alpha).fit(everything, targets)
    np.testing.assert_allclose(refitted.solution.weights[:, 0], oracle.coef_, rtol=1e-9)
    with pytest.raises(ConfigError, match="language_model"):
        offline_corpus.main(config, machine)


def test_the_offline_corpus_pipeline_writes_its_report_and_the_model_speaks(tmp_path: Path):
    docs = tmp_path / "docs"
    docs.mkdir()
    rng = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", "sum", "solve", "once", "at", "the", "end", "[bold]"]
    for i in range(40):
        (docs / f"{i}.txt").write_text(" ".join(rng.choice(words, size=200)) + f" document {i}\n")
    config = tmp_path / "lm.toml"
    config.write_text(
        f'kind = "language_model"\nrun = "{tmp_path / "run"}"\n[corpus]\nroot = "{docs}"\n'
        "[features]\nvocab_size = 300\nn_context = 3\nembedding_dims = 32\nn_centers = 20\n"
        "[solve]\nalphas = [1, 10]\nfolds = 2\n"
    )
    (tmp_path / "serial.toml").write_text('kind = "serial"\n')
    report = offline_corpus.main(config, tmp_path / "serial.toml")
    page = report.read_text()
    assert "http" not in page.replace("http-equiv", ""), "the report is self-contained"
    assert page.count("<svg") == 5
    assert "figure:" not in page
    rows = json.loads((tmp_path / "run" / "report.json").read_text())["models"]
    assert rows[0]["model"] == "uniform"
    assert (tmp_path / "run" / "figures" / "models.png").stat().st_size > 5000

    model = tmp_path / "run" / "model"
    first = streamfit("generate", model, "sum ", "--tokens", 20, "--seed", 4)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("sum ")
    assert first.stdout == streamfit("generate", model, "--tokens", 20, "--seed", 4, stdin="sum ").stdout
    refused = streamfit("generate", model, "sum ", "--expert", "oracle")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert streamfit("generate", model, "--seed", -1).returncode == 2
    greedy = streamfit("generate", model, "sum ", "--tokens", 5, "--temperature", 0).stdout
    assert streamfit("generate", model, "sum ", "--tokens", 5, "--temperature", 1e-310).stdout == greedy
    config.write_text(config.read_text().replace("[features]", "split = [0.1, 0.1, 0.8]\n[features]"))
    done = streamfit("fit", config, "--machine", tmp_path / "serial.toml")
    assert done.returncode == 2, "what was counted under one split must not be called held out under another"
    assert "split = [0.8, 0.1, 0.1]" in done.stderr
    table = json.loads(streamfit("evaluate", model, docs / "0.txt", docs / "1.txt", "--json").stdout)
    assert table["trigram"]["perplexity"] < table["uniform"]["perplexity"]
    (docs / "bad.txt").write_bytes(b"\xff\xfe")
    done = streamfit("evaluate", model, docs / "bad.txt")
    assert done.returncode == 2
    assert "not utf-8" in done.stderr


def test_a_run_that_was_stopped_while_features_were_chosen_is_resumed(config: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing is counted yet, but the run's folder says what was begun."""

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("streamfit.jobs.open_store", stopped)
        assert fit(config).returncode == 130
    run = config.parent / "run"
    assert not (run / "store").exists()
    done = streamfit("resume", run)
    assert done.returncode == 0, done.stderr
    assert (run / "model" / "model.json").is_file()
