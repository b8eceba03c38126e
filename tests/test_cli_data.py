"""The commands that put data into a store and take data out: what they print, and that the sums are right."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_runs import FILES, N, begin, copy_of, fitted, ok, read, rows_of, told, total, weights_of, write
from corpora import unsynced, write_groups  # noqa: F401
from test_cli import streamfit

from streamfit.models import LinearModel
from streamfit.store import Store, digest_of


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A run that nobody changes."""
    return begin(tmp_path_factory.mktemp("cli"))


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed; its corpus beside it."""
    return copy_of(begun, tmp_path)


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


def test_a_dry_run_of_add_says_what_adding_then_does(run: Path):
    """What is counted, or was forgotten, is not among it; changed files are named; the store stays as it is."""
    serial = ("--machine", run.parent / "serial.toml")
    write(run.parent / "new", "mail-2026-04")
    before = Store(run / "store").head().sequence
    dry = read("add", run, run.parent / "new", run.parent / "corpus", "--dry-run", *serial)
    assert (dry["shards"], dry["rows"], dry["files_changed"]) == (4, 240, 0)
    assert dry["shards_already_counted"] == 16
    assert dry["expected_seconds"] > 0
    assert Store(run / "store").head().sequence == before
    done = read("add", run, run.parent / "new", run.parent / "corpus", *serial)
    assert (done["shards_counted"], done["rows_counted"]) == (4, 240)
    ok("forget", run, "--shard", "mail-2026-04.parquet#0", *serial)
    assert "nothing is left to read" in ok("add", run, run.parent / "new", "--dry-run", *serial)
    assert read("add", run, run.parent / "new", "--dry-run", "--again", *serial)["shards"] == 1
    write_groups(run.parent / "new" / "mail-2026-04.parquet", [rows_of("other").slice(0, 40)])
    assert "1 files have changed" in ok("add", run, run.parent / "new", "--dry-run", *serial)


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
    assert "8 old segments with these rows are still on disk: run `streamfit collect STORE --expire`" in text
    ok("collect", run, "--expire")
    assert "no segment with these rows is left on disk" in ok("certificate-of-removal", run)
    text = ok("forget", run, "--shard", "web-2026-01.parquet", "--purge", *serial, *corpus)
    assert "old segments deleted" in text
    assert [c["still_held"] for c in read("certificate-of-removal", run)] == [[], []]
    assert "4 shards were forgotten and are left out" in ok("add", run, run.parent / "corpus", *serial)
    ok("add", run, run.parent / "corpus", "--again", *serial)
    assert "counted again since" in ok("certificate-of-removal", run, "--commit", N + 3)
    assert read("status", run)["rows"] == 880, "whole shards are back, rows of others are not"


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


def test_a_copied_run_is_resumed_where_it_is(run: Path):
    """Its sums are its own: what it forgot stays forgotten, and the run that it was copied from is not touched."""
    copy = run.parent / "copied"
    shutil.copytree(run, copy)
    serial = ("--machine", run.parent / "serial.toml")
    ok("forget", copy, "--where", "doc=3", *serial)
    shutil.rmtree(copy / "model")
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    assert f"model: {copy}" in ok("resume", copy)
    assert Store(copy / "store").head().n_rows < Store(run / "store").head().n_rows
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before
    run.rename(run.parent / "gone")
    ok("resume", copy)
    assert not run.exists()


def test_a_file_of_segments_goes_into_a_run(run: Path):
    ok("export", run, run.parent / "empty.zip", "--empty")
    assert "rows" in ok("import", run.parent / "empty.zip", run)
    twice = streamfit("import", run.parent / "empty.zip", run)
    assert twice.returncode == 0
    ok("export", run, run.parent / "all.zip")
    refused = streamfit("import", run.parent / "all.zip", run)
    assert refused.returncode == 2
    assert "is not a store" not in refused.stderr


def test_what_replaces_counted_content_must_be_whole(run: Path):
    refused = streamfit("add", run, run.parent / "corpus", "--replace", "--skip-bad-shards")
    assert refused.returncode == 2
    assert "must be whole" in refused.stderr
