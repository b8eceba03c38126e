"""The commands of a store's keeper: what they print, their exit codes, and one line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_runs import FILES, GROUPS, ROWS, N, begin, copy_of, fitted, ok, read, rows_of, told, total, weights_of, write
from corpora import unsynced, write_groups  # noqa: F401
from test_cli import streamfit

from streamfit.cli import app
from streamfit.store import Store


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A run that nobody changes."""
    return begin(tmp_path_factory.mktemp("cli"))


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed; its corpus beside it."""
    return copy_of(begun, tmp_path)


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


# Weighing and keeping


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
    keeping = app.registered_groups[1].typer_instance
    groups = [keeping, *(group.typer_instance for group in keeping.registered_groups)]
    names = {command.name or command.callback.__name__ for group in groups for command in group.registered_commands}
    assert names == {
        "add", "merge", "forget", "certificate-of-removal", "influence", "log", "pin", "unpin", "compact", "collect",
        "verify", "export", "import", "drift",
    }  # fmt: skip
    for name in names:
        assert "Usage" in ok(name, "--help")
