"""The commands of a store's keeper: what they print, their exit codes, and one line for each mistake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from corpora import unsynced, write_groups  # noqa: F401
from sklearn.linear_model import Ridge
from test_cli import Outcome, streamfit

from streamfit.cli import app
from streamfit.models import LinearModel
from streamfit.store import Store, digest_of

X = ("x0", "x1", "x2")
FILES = {"web-2026-01": 1.0, "web-2026-03": 1.0, "code-2026-01": 1.0, "code-2026-02": -1.0}
"""Files by source and month, and the sign of their targets."""
GROUPS, ROWS = 4, 60
N = 4 * GROUPS  # one commit a row group


def rows_of(name: str) -> pa.Table:
    rng = np.random.default_rng([*name.encode()])
    x = rng.normal(size=(GROUPS * ROWS, 3)) + 1.0
    y = FILES.get(name, 1.0) * (x @ [1.0, -2.0, 0.5]) + rng.normal(size=len(x))
    return pa.table({f"x{j}": x[:, j] for j in range(3)} | {"y": y, "doc": np.arange(len(x)) // 10})


def write(folder: Path, *names: str) -> None:
    for name in names:
        rows = rows_of(name)
        write_groups(folder / f"{name}.parquet", [rows.slice(ROWS * i, ROWS) for i in range(GROUPS)])


def fitted(*names: str, weights: dict[str, float] | None = None, alpha: float = 1.0) -> np.ndarray:
    """Weights of scikit-learn for some files."""
    rows = [rows_of(name) for name in names]
    x = np.concatenate([np.column_stack([t[c] for c in X]) for t in rows])
    w = np.repeat([(weights or {}).get(name, 1.0) for name in names], GROUPS * ROWS)
    return Ridge(alpha=alpha).fit(x, np.concatenate([t["y"] for t in rows]), sample_weight=w).coef_


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A run on four files with labels by their path, a segment a row group, of three folds."""
    folder = tmp_path_factory.mktemp("cli")
    write(folder / "corpus", *FILES)
    columns = ", ".join(f'"{name}"' for name in X)
    (folder / "ridge.toml").write_text(
        f'kind = "ridge"\nrun = "{folder / "run"}"\nprecision = "float64"\ngroup_rows = {ROWS}\n'
        f'[corpus]\nroot = "{folder / "corpus"}"\nfeatures = [{columns}]\ntarget = ["y"]\n'
        "[corpus.labels]\npath = '(?P<source>[a-z]+)-(?P<time>[0-9]{4}-[0-9]{2})'\nperiod = \"month\"\n"
        "[solve]\nalphas = [1]\nfolds = 3\n[store]\nkeep = 8\n"
    )
    (folder / "serial.toml").write_text('kind = "serial"\n')
    done = streamfit("fit", folder / "ridge.toml", "--machine", folder / "serial.toml")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be changed; its corpus beside it."""
    shutil.copytree(begun / "corpus", tmp_path / "corpus")
    shutil.copytree(begun / "run", tmp_path / "run")
    shutil.copy(begun / "serial.toml", tmp_path)
    return tmp_path / "run"


def ok(*arguments: object, **more) -> str:
    """What a command prints that must end well."""
    done: Outcome = streamfit(*arguments, **more)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Traceback" not in done.stdout
    return done.stdout


def told(*arguments: object, **more) -> str:
    """The one line of a command that must be refused."""
    done: Outcome = streamfit(*arguments, **more)
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def read(*arguments: object):
    return json.loads(ok(*arguments, "--json"))


def weights_of(run: Path, *arguments: object) -> np.ndarray:
    """Weights of a solve that is saved."""
    ok("solve", run, *arguments, "-o", run / "out")
    return LinearModel.load(run / "out").solution.weights[:, 0]


def total(run: Path) -> str:
    return digest_of(Store(run / "store").moments())


# Looking


def test_status_lists_labels_and_shards(run: Path):
    """As a table or as JSON, of the run or of its store, now or as it was."""
    facts = read("status", run)
    assert facts == read("status", run / "store")
    assert facts["rows_by_label"] == {
        "source:code": 480, "source:web": 480, "time:2026-01": 480, "time:2026-02": 240, "time:2026-03": 240
    }  # fmt: skip
    assert (facts["rows"], facts["shards"], facts["commits"], facts["removed_rows"]) == (960, N, N, 0)
    assert facts["segments"] <= facts["segments_at_most"]
    listed = read("status", run, "--shards")["shards_listed"]
    assert {(s["key"], s["source"]) for s in listed} >= {("web-2026-01.parquet#0", "web")}
    text = ok("status", run, "--shards")
    assert "web-2026-01.parquet#3  source:web time:2026-01" in text
    assert read("status", run, "--at", 10)["rows"] == 600
    assert "source:code" in ok("status", run, "--at", 10)


def test_log_tells_who_did_what(run: Path):
    """A line a commit: rows added and taken out, and what can still be gone back to."""
    ok("forget", run, "--shard", "web-2026-03.parquet", "--machine", run.parent / "serial.toml")
    ok("pin", run, "kept", "--at", N)
    rows = read("log", run)
    assert [row["commit"] for row in rows] == [*range(N + 3)]
    assert [row["rows"] for row in rows[: N + 1]] == [ROWS * n for n in range(N + 1)]
    forgot = rows[N + 1]
    assert (forgot["action"], forgot["rows_before"], forgot["rows"]) == ("forget 4 shards", 960, 720)
    assert (forgot["segments_added"], forgot["segments_dropped"]) == (0, GROUPS)
    assert rows[N]["pins"] == ["kept"]
    assert [row["readable"] for row in rows] == [False] * (N - 6) + [True] * 9
    text = ok("log", run)
    for part in ("forget 4 shards", "-240", "kept", forgot["who"]):
        assert part in text


# Solving otherwise


def test_solve_mixes_by_label(run: Path):
    """Weights of segments are weights of rows; alpha keeps its meaning beside them."""
    mixed = weights_of(run, "--alpha", 1, "--mix", "source:web=0.5,time:2026-02=0", "--mix", "time:*-01=3")
    names = [name for name in FILES if name != "code-2026-02"]
    factors = {"web-2026-01": 1.5, "web-2026-03": 0.5, "code-2026-01": 3.0}
    np.testing.assert_allclose(mixed, fitted(*names, weights=factors), rtol=1e-8)
    plain = weights_of(run, "--alpha", 1)
    np.testing.assert_allclose(plain, fitted(*FILES), rtol=1e-8)
    assert np.array_equal(weights_of(run, "--alpha", 1, "--mix", "source:*=1"), plain)


def test_solve_forgets_with_age(run: Path):
    """A half-life, counted from the newest month or from a given day; what came later is left out."""
    ages = {"web-2026-01": 59, "web-2026-03": 0, "code-2026-01": 59, "code-2026-02": 31}
    halved = {name: 2.0 ** (-days / 30) for name, days in ages.items()}
    np.testing.assert_allclose(
        weights_of(run, "--alpha", 1, "--half-life", "30d"), fitted(*FILES, weights=halved), rtol=1e-8
    )
    early = [name for name in FILES if "2026-01" in name]
    np.testing.assert_allclose(weights_of(run, "--alpha", 1, "--as-of", "2026-01-31"), fitted(*early), rtol=1e-8)
    facts = read("solve", run, "--alpha", 2, "--as-of", "2026-01-31", "--half-life", "2w")
    assert (facts["alpha"], facts["rows"], facts["commit"]) == (2, 480, N)


def test_solve_goes_back(run: Path):
    """To a commit or a pin: the sums are what they were, though rows left since."""
    before = weights_of(run, "--alpha", 1)
    ok("pin", run, "whole")
    ok("forget", run, "--shard", "code-2026-02.parquet", "--machine", run.parent / "serial.toml")
    left = [name for name in FILES if name != "code-2026-02"]
    np.testing.assert_allclose(weights_of(run, "--alpha", 1), fitted(*left), rtol=1e-8)
    for at in (N, "whole"):
        assert np.array_equal(weights_of(run, "--alpha", 1, "--at", at), before)
    assert read("solve", run, "--alpha", 1, "--at", "whole")["rows"] == 960
    ok("collect", run, "--expire")
    assert np.array_equal(weights_of(run, "--alpha", 1, "--at", "whole"), before)
    assert "no longer kept" in told("solve", run, "--at", N - 1)
    ok("unpin", run, "whole")
    assert "expected one of" in told("solve", run, "--at", "whole")


# Putting in and taking out


def test_add_reads_what_is_new(run: Path):
    """Labels by hand; a second time nothing; a changed file only with --replace."""
    serial = ("--machine", run.parent / "serial.toml")
    write(run.parent / "new", "mail-2026-04")
    label = ("--label", "source=mail", "--label", "time=2026-04")
    assert "counted 240 rows of 4 shards" in ok("add", run, run.parent / "new", *label, *serial)
    assert "4 shards are counted already" in ok("add", run, run.parent / "new" / "*.parquet", *serial)
    assert read("status", run)["rows_by_label"]["source:mail"] == 240
    np.testing.assert_allclose(weights_of(run, "--alpha", 1), fitted(*FILES, "mail-2026-04"), rtol=1e-8)
    write_groups(run.parent / "new" / "mail-2026-04.parquet", [rows_of("other").slice(0, 40)])
    assert "has changed since it was counted" in told("add", run, run.parent / "new", *label, *serial)
    text = ok("add", run, run.parent / "new", "--replace", *label, *serial)
    assert "replaced mail-2026-04.parquet#0: content" in text
    assert read("status", run)["rows"] == 1000


def test_forget_and_its_certificate(run: Path):
    """Rows by a column, slowly or fast; what is printed is what the record says."""
    serial = ("--machine", run.parent / "serial.toml")
    corpus = ("--corpus", run.parent / "corpus")
    shutil.copytree(run, run.parent / "fast")
    text = ok("forget", run, "--where", "doc=3", "--where", "doc=7", "--why", "asked", *serial, *corpus)
    assert f"commit {N + 1}: 80 rows of 8 shards are forgotten; 400 rows were read for it, the store holds 880" in text
    ok("forget", run.parent / "fast", "--where", "doc=3", "--where", "doc=7", "--fast", *serial, *corpus)
    assert total(run) == total(run.parent / "fast")
    (certificate,) = read("certificate-of-removal", run)
    assert (certificate["removal"]["why"], certificate["removal"]["n_rows"]) == ("asked", 80)
    assert certificate["digest"] == total(run)
    assert len(certificate["still_held"]) == 8
    text = ok("certificate-of-removal", run, "--commit", N + 1)
    assert "8 old segments with these rows are still on disk: run `streamfit collect STORE --expire --grace 0`" in text
    ok("collect", run, "--expire")
    assert "no segment with these rows is left on disk" in ok("certificate-of-removal", run)
    text = ok("forget", run, "--shard", "web-2026-01.parquet", "--purge", *serial, *corpus)
    assert "old segments deleted" in text
    assert [c["still_held"] for c in read("certificate-of-removal", run)] == [[], []]
    assert "4 shards were forgotten and are left out" in ok("add", run, run.parent / "corpus", *serial)
    ok("add", run, run.parent / "corpus", "--again", *serial)
    assert "counted again since" in ok("certificate-of-removal", run, "--commit", N + 3)
    assert read("status", run)["rows"] == 880, "whole shards are back, rows of others are not"


def test_influence_weighs_sources_and_says_how_to_solve(run: Path):
    """As JSON, or as a table with the command that solves with the weights that were found."""
    there = {(s.fold, s.source) for s in Store(run / "store").head().segments}
    trained = next(fold for fold in range(3) if {(fold, "web"), (fold, "code")} <= there)
    target, check = (trained + 1) % 3, (trained + 2) % 3
    facts = read("influence", run, "--alpha", 1, "--target-fold", target)
    assert [each["source"] for each in facts["influence"]] == ["code", "web"]
    assert (facts["target_fold"], facts["check_fold"], facts["alpha"]) == (target, check, 1)
    text = ok("influence", run, "--alpha", 1, "--target-fold", target)
    assert f"held-out loss of fold {target}, alpha 1" in text
    (command,) = [line for line in text.splitlines() if line.startswith("streamfit solve")]
    found = dict(rule.split("=") for rule in command.split("--mix ")[1].strip("'").split(","))
    assert found.keys() == {"source:code", "source:web"}
    for name, factor in facts["mixture"]["factors"].items():
        assert float(found[f"source:{name}"]) == pytest.approx(factor, rel=1e-5)
    ok(*command.replace("'", "").split()[1:])


# Keeping


def test_compact_and_collect_keep_a_store_small(run: Path):
    """Fewer segments, then fewer on disk; the sums are what they were."""
    before = total(run)
    kinds = len({(s.fold, s.source, s.labels) for s in Store(run / "store").head().segments})
    assert f"{kinds} live segments" in ok("compact", run, "--max-live", 12)
    assert read("status", run)["segments_at_most"] == max(12, 2 * kinds)
    assert "deleted 0 expired segments" in ok("collect", run)
    text = ok("collect", run, "--keep", 0)
    assert f"deleted {N - sum_alone(run)} expired segments and 0 orphans" in text
    assert len([*(run / "store" / "segments").glob("*/zarr.json")]) == kinds
    assert total(run) == before


def sum_alone(run: Path) -> int:
    """Segments that were alone in their kind, so that they were not merged."""
    return sum(segment.n_shards == 1 for segment in Store(run / "store").head().segments)


def test_verify_says_what_is_wrong(run: Path):
    """A whole store, also against its corpus; a flipped byte, and a corpus that is another."""
    serial = ("--machine", run.parent / "serial.toml")
    facts = read("verify", run)
    assert (facts["faults"], facts["digest"], facts["checked"]["segments"]) == ([], total(run), N)
    text = ok("verify", run, "--against", run.parent / "corpus", "--sample", 1, *serial)
    assert "960" in text
    write_groups(run.parent / "corpus" / "web-2026-01.parquet", [rows_of("other")])
    done = streamfit("verify", run, "--against", run.parent / "corpus", "--sample", 1, *serial)
    assert done.returncode == 2
    assert "fault: 1 counted shards are not in the corpus, such as web-2026-01.parquet#" in done.stdout
    chunk = next(path for path in (run / "store" / "segments").rglob("c/0/*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-1] + bytes([chunk.read_bytes()[-1] ^ 1]))
    done = streamfit("verify", run, "--json")
    assert done.returncode == 2
    assert len(json.loads(done.stdout)["faults"]) == 1
    assert "has 1 fault(s)" in done.stderr


def test_merge_and_exchange(run: Path):
    """Two sites that count under one header: merged, or exchanged as files, their sums are those of one store."""
    serial, here = ("--machine", run.parent / "serial.toml"), run.parent
    assert "segments of 0 rows" in ok("export", run, here / "header.zip", "--empty")
    for i, site in enumerate(("a", "b")):
        ok("import", here / "header.zip", here / site)
        for name in [*FILES][2 * i : 2 * i + 2]:
            ok("add", here / site, here / "corpus" / f"{name}.parquet", *serial)
    assert "holds 960 rows of 2 stores" in ok("merge", here / "a", here / "b", "-o", here / "merged")
    assert total_of(here / "merged") == total(run)
    assert "segments of 480 rows" in ok("export", here / "b", here / "b.zip", "--anonymous")
    assert "holds 960 rows" in ok("import", here / "b.zip", here / "a")
    assert total_of(here / "a") == total(run)
    assert {s["uri"] for s in read("status", here / "a", "--shards")["shards_listed"]} == {
        "", *(str(here / "corpus" / f"{name}.parquet") for name in FILES if "web" in name)
    }  # fmt: skip


def total_of(store: Path) -> str:
    return digest_of(Store(store).moments())


@pytest.mark.parametrize("suffix", [".npz", ".zarr"])
def test_dense_sums_out_and_in(run: Path, suffix: str):
    """For other tools, mixed if so asked; what was summed elsewhere is a source of its own."""
    here, file = run.parent, run.parent / f"sums{suffix}"
    assert "dense sums of 960 rows" in ok("export", run, file)
    assert "dense sums" in ok("export", run, here / f"web{suffix}", "--mix", "source:code=0", "--at", N)
    ok("export", run, here / "header.zip", "--empty")
    ok("import", here / "header.zip", here / "site")
    text = ok("import", file, here / "site", "--label", "source=elsewhere", "--label", "time=2026")
    assert "960 rows as source elsewhere" in text
    assert read("status", here / "site")["rows_by_label"] == {
        "source:elsewhere": 960, "time:2026": 960, f"imported:sums{suffix}": 960
    }  # fmt: skip
    ok("solve", here / "site", "--alpha", 1, "-o", here / "m")
    np.testing.assert_allclose(LinearModel.load(here / "m").solution.weights[:, 0], fitted(*FILES), rtol=1e-8)
    ok("import", here / f"web{suffix}", here / "site")
    assert "source:web" in ok("status", here / "site")


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("add nowhere x", "no folder"),
        ("add run nowhere --machine serial.toml", "no file or directory at nowhere"),
        ("add run corpus --label web", "--label 'web'; expected name=value"),
        ("add run corpus --machine none.toml", "no config at none.toml"),
        ("merge run run -o merged", "both counted"),
        ("merge run nowhere -o merged", "no folder"),
        ("merge run -o run/store", "a store at run/store"),
        ("forget run --machine serial.toml", "neither --shard nor --where"),
        ("forget run --where doc --machine serial.toml", "expected column=value"),
        ("forget run --where doc=99 --machine serial.toml", "no counted row with doc=99"),
        ("forget run --where name=1 --machine serial.toml", "no column 'name' among x0, x1, x2, y, doc"),
        ("forget run --shard none --machine serial.toml", "no counted shard 'none'"),
        ("certificate-of-removal run", "no removal"),
        ("certificate-of-removal run --commit 3", "no removal by commit 3"),
        ("influence run --by none", "0 value(s) of the label 'none'"),
        ("influence run --like web --alpha 1", "expected label:value"),
        ("influence run --target-fold 9", "fold 9; expected one of 0, 1, 2"),
        ("influence run --alpha 0", "alpha"),
        ("log nowhere", "no folder"),
        ("pin run 7", "a new name that is not a number"),
        ("pin run a --at 99", "commit 99"),
        ("pin run a --at 2", "no longer kept"),
        ("unpin run a", "no pin 'a'"),
        ("status run --at 99", "commit '99'; expected one of"),
        ("status run --at soon", "commit 'soon'; expected one of"),
        ("solve run --mix web=2", "mix 'web=2'; expected label:value=factor"),
        ("solve run --mix source:none=2", "no segment whose source is none; expected one of code, web"),
        ("solve run --mix source:web=-1", "a factor >= 0"),
        ("solve run --half-life soon", "half-life 'soon'"),
        ("solve run --as-of soon", "time 'soon'"),
        ("solve run --as-of 2025-01-01 --alpha 1", "row"),
        ("solve run --mix source:*=0 --alpha 1", "row"),
        ("verify run --against corpus --sample 2 --machine serial.toml", "expected a share in (0, 1]"),
        ("verify run --sample 0.5", "sample 0.5 of no corpus"),
        ("verify run --against nowhere --machine serial.toml", "no file or directory at nowhere"),
        ("export run out.csv", "out.csv"),
        ("export run out.npz --empty", "--empty or --anonymous with .npz"),
        ("export run out.zip --mix source:web=2", "--mix with whole segments"),
        ("export run corpus/web-2026-01.parquet", "is there already"),
        ("import serial.toml run", "serial.toml"),
        ("import none.zip run", "none.zip"),
        ("import none.zip run --label a=b", "--label with whole segments"),
        ("import none.npz run", "none.npz"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(begun: Path, arguments: str, complaint: str):
    """Whatever is asked for, the log is as it was."""
    head = Store(begun / "run" / "store").head()
    assert complaint in told(*arguments.split(), cwd=begun)
    assert Store(begun / "run" / "store").head() == head
    assert not (begun / "merged").exists()


@pytest.mark.parametrize(
    "arguments", ["compact run --max-live 1", "collect run --keep -1", "collect run --grace -1", "add run", "merge run"]
)
def test_a_call_of_another_form_is_refused(begun: Path, arguments: str):
    done = streamfit(*arguments.split(), cwd=begun)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_names_with_brackets_are_printed_as_they_are(run: Path):
    """They are no markup, in any table."""
    write(run.parent / "new", "mail-2026-04", "post-2026-04")
    serial = ("--machine", run.parent / "serial.toml")
    for i, name in enumerate(("[/b]", "[red]x")):
        file = [*sorted((run.parent / "new").iterdir())][i]
        ok("add", run, file, "--label", f"source={name}", "--label", "time=2026-04", *serial)
    ok("pin", run, "[/i]")
    for text in (ok("status", run, "--shards"), ok("influence", run, "--alpha", 1)):
        assert "[/b]" in text
        assert "[red]x" in text
    assert "pin [/i]" in ok("log", run)


def test_every_command_of_a_keeper_explains_itself():
    names = {
        command.name or command.callback.__name__
        for command in app.registered_groups[0].typer_instance.registered_commands
    }
    assert names == {
        "add", "merge", "forget", "certificate-of-removal", "influence", "log", "pin", "unpin", "compact", "collect",
        "verify", "export", "import",
    }  # fmt: skip
    for name in names:
        assert "Usage" in ok(name, "--help")
