"""From data to a config and a plan: init, schema, --dry-run; and what every command prints as JSON."""

import bz2
import gzip
import io
import json
import re
import shlex
import shutil
import tarfile
import tomllib

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import typer.main
from test_cli import streamfit

from streamfit.cli import app
from streamfit.config import LanguageProblem, RidgeProblem, load_problem
from streamfit.demo import config_path
from streamfit.engine import Machine
from streamfit.errors import CorpusError
from streamfit.forecast import forecast
from streamfit.look import look
from streamfit.schemas import schema
from streamfit.starter import starter
from streamfit.store import Store

RNG = np.random.default_rng(8)
N = 600


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """Without waiting for the disk; no test here pulls the plug."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def houses():
    """One column of each role."""
    size = RNG.uniform(20, 200, N)
    return pa.table(
        {
            "id": np.arange(N),
            "size": pa.array(np.where(RNG.random(N) < 0.1, np.nan, size), from_pandas=True),
            "city": RNG.choice(["Rome", "Oslo", "Lima"], N),
            "note": [f"a note {i} of some words" for i in range(N)],
            "sold": np.datetime64("2026-01-01") + RNG.integers(0, 300, N).astype("timedelta64[D]"),
            "country": ["earth"] * N,
            "split": RNG.choice(["train", "validation", "test"], N),
            "price": 3 * size + RNG.normal(size=N),
        }
    )


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "arrow"])
def test_a_starter_fits_what_it_was_made_for(kind, tmp_path):
    """From nothing to a model in two commands, for each format; every column is used or said to be left out."""
    table, folder = houses(), tmp_path / "houses"
    folder.mkdir()
    for i in range(2):
        part, path = table.slice(i * N // 2, N // 2), folder / f"{i}.{kind}"
        if kind == "parquet":
            pq.write_table(part, path)
        elif kind == "csv":
            pa.csv.write_csv(part, path, pa.csv.WriteOptions(delimiter=";"))
        elif kind == "arrow":
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, part.schema) as writer:
                writer.write_table(part)
        else:
            path.write_text("".join(json.dumps(row, default=str) + "\n" for row in part.to_pylist()))
    config = tmp_path / "c.toml"
    made = streamfit("init", folder, "-o", config, "--run", tmp_path / "run")
    assert made.returncode == 0, made.stderr
    text = config.read_text()
    problem = load_problem(config)
    assert isinstance(problem, RidgeProblem)
    corpus = problem.corpus
    assert corpus.kind == kind
    assert corpus.target == ("price",)
    assert corpus.features == ("size", "city", "sold")
    assert (corpus.categories, corpus.missing, corpus.split_column) == (("city",), "mean", "split")
    for name in ("id", "note", "country"):
        assert f'left out: "{name}"' in text
    (tmp_path / "serial.toml").write_text('kind = "serial"')
    fitted = streamfit("fit", config, "--machine", tmp_path / "serial.toml", "--json")
    assert fitted.returncode == 0, fitted.stderr
    facts = json.loads(fitted.stdout)
    assert facts["rows_counted"] == table["split"].to_pylist().count("train")
    scored = json.loads(streamfit("evaluate", tmp_path / "run" / "model", folder, "--json").stdout)
    assert next(iter(scored.values()))["r2"] > 0.8
    again = streamfit("init", folder, "-o", config)
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_a_look_guesses_classes_arrays_and_text(tmp_path):
    """Whole numbers from 0 are classes; a folder of texts is a language model's; what cannot be read is named."""
    pq.write_table(pa.table({"x": RNG.normal(size=N), "label": RNG.integers(0, 3, N)}), tmp_path / "c.parquet")
    found = tomllib.loads(starter(str(tmp_path / "c.parquet")))
    assert found["corpus"]["n_classes"] == 3
    assert look(str(tmp_path / "c.parquet")).n_rows == N
    asked = tomllib.loads(starter(str(tmp_path / "c.parquet"), ("x",)))
    assert asked["corpus"]["target"] == ["x"]
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "embedding.npy", RNG.normal(size=(N, 4)).astype(np.float16))
    np.save(tmp_path / "arrays" / "score.npy", RNG.normal(size=N))
    arrays = tomllib.loads(starter(str(tmp_path / "arrays")))["corpus"]
    assert (arrays["kind"], arrays["features"], arrays["target"]) == ("npy", ["embedding"], ["score"])
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.md").write_text("# text")
    (tmp_path / "texts" / "b.txt").write_text("a text, with commas\nand another line\n")
    (tmp_path / "t.toml").write_text(starter(str(tmp_path / "texts")))
    texts = load_problem(tmp_path / "t.toml")
    assert isinstance(texts, LanguageProblem)
    assert texts.corpus.include == ("*.md", "*.txt")
    assert "2 files under" in starter(str(tmp_path / "texts" / "*"))
    hive = tmp_path / "hive" / "year=2026"
    hive.mkdir(parents=True)
    pq.write_table(pa.table({"x": [1.0, 2.0], "y": [1.0, 3.0]}), hive / "p.parquet")
    assert tomllib.loads(starter(str(tmp_path / "hive")))["corpus"]["partitions"] == "hive"
    for part in ("train", "test"):
        (hive / f"split={part}").mkdir()
        shutil.copy(hive / "p.parquet", hive / f"split={part}")
    (hive / "p.parquet").unlink()
    (hive / "split=test" / "rows.csv").write_text("x,y\n1,2\n")
    text = starter(str(tmp_path / "hive"))
    assert tomllib.loads(text)["corpus"]["split_column"] == "split"  # columns in paths have names as others have
    assert "Not read are files of other kinds (1 .csv)" in text
    (tmp_path / "picture.png").write_bytes(b"x")
    for data, match in ((tmp_path / "picture.png", "kind"), (tmp_path / "none.csv", "none.csv")):
        refused = streamfit("init", data)
        assert refused.returncode == 2
        assert match in refused.stderr
    refused = streamfit("init", tmp_path / "c.parquet", "--target", "z")
    assert (refused.returncode, "some of x, label" in refused.stderr) == (2, True)


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.zst"])
def test_a_starter_for_archives_knows_which_members_are_texts(ending, tmp_path):
    """A folder of them, or one: most members that could be texts say so."""
    folder = tmp_path / "texts"
    folder.mkdir()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in (("a/1.py", b"x = 1\n"), ("a/1.json", b"{}"), ("a/2.py", b"y = 2\n"), ("README.md", b"#")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    data = packed.getvalue()
    how = {".tar.gz": gzip.compress, ".tar.zst": lambda data: pa.compress(data, "zstd", asbytes=True)}
    (folder / f"0{ending}").write_bytes(how.get(ending, bytes)(data))
    for root in (folder, folder / f"0{ending}"):
        (tmp_path / "c.toml").write_text(starter(str(root)))
        problem = load_problem(tmp_path / "c.toml")
        assert isinstance(problem, LanguageProblem)
        assert (problem.corpus.kind, problem.corpus.field) == ("tar", "py")
    (folder / f"0{ending}").write_bytes(how.get(ending, bytes)(data[:700]))
    with pytest.raises(CorpusError, match=f"0{ending}"):
        starter(str(folder))
    (folder / f"0{ending}").write_bytes(b"")
    with pytest.raises(CorpusError, match="a whole tar file"):
        starter(str(folder))


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".zst"])
def test_a_starter_knows_compressed_texts_from_compressed_tables(ending, tmp_path):
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": lambda data: pa.compress(data, "zstd", asbytes=True)}[
        ending
    ]
    for kind, data in {"prose": b"one, two\nthree words here\n", "rows": b"a,b,y\n" + b"1,2,3\n4,5,7\n" * 9}.items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"0.txt{ending}").write_bytes(pack(data))
        (tmp_path / f"{kind}.toml").write_text(starter(str(tmp_path / kind)))
    prose, rows = (load_problem(tmp_path / f"{kind}.toml") for kind in ("prose", "rows"))
    assert isinstance(prose, LanguageProblem)
    assert prose.corpus.include == (f"*.txt{ending}",)
    assert [name for name, _ in prose.corpus.files(None, (1.0, 0.0, 0.0)).find()] == [f"0.txt{ending}"]
    assert isinstance(rows, RidgeProblem)
    assert rows.corpus.features == ("a", "b")


def test_schemas_take_the_configs_that_are_shipped_and_no_misspelt_key(tmp_path):
    """As editors would check them."""
    problem, machine = schema("problem"), schema("machine")
    for each in (problem, machine):
        jsonschema.Draft202012Validator.check_schema(each)
    folder = config_path("lm_stdlib.toml").parent
    for path in sorted(folder.glob("*.toml")):
        which = machine if path.name.startswith("machine") else problem
        jsonschema.validate(tomllib.loads(path.read_text()), which)
    good = tomllib.loads((folder / "ridge_parquet.toml").read_text())
    for wrong, path, said in (
        ({**good, "precison": "float64"}, [], "precison"),
        ({**good, "precision": "float16"}, ["precision"], "float16"),
        ({**good, "corpus": good["corpus"] | {"missing": "mode"}}, ["corpus", "missing"], "mode"),
        ({**good, "kind": "rigde"}, ["kind"], "rigde"),
        ({name: value for name, value in good.items() if name != "kind"}, [], "kind"),
    ):  # each is found where it stands
        faults = list(jsonschema.Draft202012Validator(problem).iter_errors(wrong))
        assert path in [list(fault.absolute_path) for fault in faults]
        assert all(said in fault.message for fault in faults if list(fault.absolute_path) == path)
    assert streamfit("schema", "machine", "-o", tmp_path / "m.json").returncode == 0
    assert json.loads((tmp_path / "m.json").read_text()) == machine
    assert json.loads(streamfit("schema").stdout) == problem
    assert streamfit("schema", "other").returncode == 2


def test_a_dry_run_says_what_a_run_then_does(tmp_path, table, quiet, serial):
    """Shards, groups, rows, bytes and flops are the plan's; nothing is written, and what is counted is left out."""
    folder, _, _ = table
    columns = ", ".join(f'"x{j}"' for j in range(8))
    config = tmp_path / "p.toml"
    config.write_text(
        f'kind = "ridge"\nrun = "{tmp_path}/run"\ngroup_rows = 2500\n[corpus]\nroot = "{folder}"\n'
        f'features = [{columns}]\ntarget = ["y"]\n'
    )
    (tmp_path / "serial.toml").write_text('kind = "serial"')
    here = ("--machine", tmp_path / "serial.toml")
    dry = streamfit("fit", config, "--dry-run", *here, "--json")
    assert dry.returncode == 0, dry.stderr
    facts = json.loads(dry.stdout)
    assert not (tmp_path / "run").exists()
    assert (facts["shards"], facts["rows"]) == (12, 12_000)
    assert facts["flops"] == 12_000 * (8 * 9 + 2 * 8)
    assert facts["read_bytes"] > 12_000 * 9 * 4
    assert facts["expected_seconds"] == pytest.approx(12_000 / facts["rows_per_second_of_a_worker"])
    done = json.loads(streamfit("fit", config, *here, "--json").stdout)
    assert (done["rows_counted"], done["shards_counted"]) == (12_000, 12)
    assert len(Store(tmp_path / "run" / "store").head().segments) == facts["groups"]
    again = streamfit("fit", config, "--dry-run", *here)
    assert "12 shards are counted already" in again.stdout
    assert "nothing is left to read" in again.stdout
    problem = load_problem(config)
    many = forecast(problem.model_copy(update={"run": str(tmp_path / "other")}), Machine("local", n_workers=4), quiet)
    assert many.plan.n_workers == 4
    assert any("expected: about" in line for line in many.lines())


def test_commands_that_report_do_so_as_json(tmp_path, table):
    """One object each, and nothing else on standard output."""
    folder, _, _ = table
    (tmp_path / "serial.toml").write_text('kind = "serial"')
    config, here = tmp_path / "p.toml", ("--machine", tmp_path / "serial.toml")
    config.write_text(
        f'kind = "ridge"\nrun = "{tmp_path}/run"\n[corpus]\nroot = "{folder}"\ninclude = ["part-0.parquet"]\n'
        'features = ["x0", "x1"]\ntarget = ["y"]\n'
    )

    def facts(*arguments):
        done = streamfit(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    run = tmp_path / "run"
    assert facts("fit", config, *here)["rows_counted"] == 3000
    assert facts("add", run, folder / "part-1.parquet", *here)["rows"] == 6000
    assert facts("resume", run)["rows_counted"] == 0
    shards = facts("status", run, "--shards")["shards_listed"]
    assert facts("forget", run, "--shard", shards[0]["content_id"], *here)["rows_forgotten"] == 1000
    assert facts("merge", run, "-o", tmp_path / "merged")["rows"] == 5000
    assert facts("compact", run)["segments"] >= 1
    assert facts("collect", run)["bytes"] >= 0
    assert facts("verify", run)["faults"] == []
    assert facts("log", run)[-1]["rows"] == 5000


COMMANDS = typer.main.get_command(app).commands


def test_help_says_exit_codes_and_completion():
    """What a user looks for there."""
    text = " ".join(streamfit("--help").stdout.replace("│", " ").split())
    assert "Exit codes: 0 done" in text
    assert "--install-completion" in text


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_an_example_that_it_takes(name):
    """The example is shown, and its options are those of the command."""
    command = COMMANDS[name]
    example = next(re.finditer(r"streamfit (.+)", command.epilog or "")).group(1)
    first, *arguments = shlex.split(example.partition(" < ")[0])
    assert first == name
    command.make_context(name, arguments)  # parses, and refuses what it does not know
    assert "Example: streamfit" in streamfit(name, "--help").stdout


def test_an_interruption_says_how_to_go_on(tmp_path, table, monkeypatch):
    """With the command itself."""
    folder, _, _ = table
    (tmp_path / "p.toml").write_text(
        f'kind = "ridge"\nrun = "{tmp_path}/run"\n[corpus]\nroot = "{folder}"\nfeatures = ["x0"]\ntarget = ["y"]\n'
    )
    (tmp_path / "serial.toml").write_text('kind = "serial"')

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("streamfit.jobs.accumulate_into", stop)
    stopped = streamfit("fit", tmp_path / "p.toml", "--machine", tmp_path / "serial.toml")
    assert stopped.returncode == 130
    assert f"to go on, run: streamfit resume {tmp_path}/run" in stopped.stderr
    monkeypatch.undo()
    monkeypatch.setattr("os.fsync", lambda _: None)
    assert streamfit("resume", tmp_path / "run").returncode == 0
