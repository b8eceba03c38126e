"""Counting on disk gives the tables that counting in memory gives, for any budget, and takes no more than that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamfit.corpus import Files
from streamfit.corpus.text import TextFiles
from streamfit.counts import add_counts
from streamfit.engine import accumulate, plan_for
from streamfit.engine.rewrite import rewrite
from streamfit.errors import ConfigError, MismatchError, StoreError
from streamfit.merging import BlockTable, in_memory, merge_blocks
from streamfit.store import Store, compact
from streamfit.store import runs as runs_module
from streamfit.store.arrays_io import open_group, write_group
from streamfit.store.place import Place
from streamfit.store.runs import CountRuns, add_large, stored_tables
from streamfit.store.sums import table_arrays
from streamfit.text.fit import LanguageSettings, prepare, token_source
from streamfit.text.kneser_ney import KneserNey
from streamfit.text.ngram import NgramCounts
from streamfit.text.streamed import streamed_probability


def table_of(seed: int, n_rows: int, width: int, n_values: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, n_values, (n_rows, width)).astype(np.int32), rng.integers(1, 9, n_rows)


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


sizes = {"seed": st.integers(0, 99), "width": st.integers(1, 5), "n_values": st.sampled_from([2, 9, 2**31 - 1])}


@given(**sizes, n_rows=st.integers(0, 3000), budget=st.sampled_from([1, 10_000, 50_000, 10**8]))
@settings(max_examples=40)
def test_any_budget_gives_the_table_that_memory_gives(seed, width, n_values, n_rows, budget):
    keys, counts = table_of(seed, n_rows, width, n_values)
    runs = CountRuns(width, budget)
    for lo in range(0, n_rows, 500):
        runs.add(keys[lo : lo + 500], counts[lo : lo + 500])
    assert same(runs.table().whole(), add_counts(keys, counts))


@given(**sizes, n_rows=st.lists(st.integers(0, 200), min_size=1, max_size=5), step=st.integers(1, 50))
@settings(max_examples=40)
def test_blocks_of_any_size_merge_to_the_sum(seed, width, n_values, n_rows, step):
    """And taking all but the first away again leaves the first."""
    parts = [add_counts(*table_of(seed + i, n, width, n_values)) for i, n in enumerate(n_rows)]
    total = add_counts(np.concatenate([k for k, _ in parts]), np.concatenate([c for _, c in parts]))
    empty = total[0][:0], total[1][:0]

    def merged(tables, signs):
        blocks = [empty, *merge_blocks([BlockTable.of(*table).blocks(step) for table in tables], signs)]
        return tuple(np.concatenate(side) for side in zip(*blocks, strict=True))

    assert same(merged(parts, None), total)
    assert same(merged([total, *parts[1:]], [1] + [-1] * (len(parts) - 1)), parts[0])


def test_what_was_never_added_cannot_be_taken_away():
    one = {"ngram": (np.array([[1]], np.int32), np.array([2]))}
    other = {"ngram": (np.array([[1]], np.int32), np.array([3]))}
    for budget in (1, 10**6):
        with pytest.raises(MismatchError, match="a count of -1"):
            add_large([one, other], [1, -1], budget=budget)


def test_many_runs_are_merged_in_turns(monkeypatch):
    monkeypatch.setattr(runs_module, "_FAN_IN", 3)
    keys, counts = table_of(0, 4000, 2, 10**6)
    runs = CountRuns(2, 1)
    for lo in range(0, 4000, 50):
        runs.add(keys[lo : lo + 50], counts[lo : lo + 50])
    assert runs.spilled_rows > 3000
    assert same(runs.table().whole(), add_counts(keys, counts))


def test_tables_go_into_a_segment_and_out_by_blocks(tmp_path: Path, monkeypatch):
    """A table on disk is written as one in memory is; segments are summed without reading one whole."""
    for module in ("arrays_io", "sums"):
        monkeypatch.setattr(f"streamfit.store.{module}.COUNT_ROWS", 64)
    parts = [add_counts(*table_of(seed, 1000, 3, 12)) for seed in range(3)]
    objects, opened = Place(tmp_path).objects, []
    for i, part in enumerate(parts):
        large = add_large([{"ngram": part}], budget=1)
        assert isinstance(large["ngram"], BlockTable)
        for name, table in (("large", large), ("small", {"ngram": part})):
            write_group(objects, f"{name}{i}", {}, table_arrays(table))
        files = [sorted(p for p in (tmp_path / f"{name}{i}").rglob("*") if p.is_file()) for name in ("large", "small")]
        assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]
        opened.append(stored_tables(open_group(objects, f"large{i}")[1], f"large{i}"))
    total = add_counts(np.concatenate([k for k, _ in parts]), np.concatenate([c for _, c in parts]))
    for budget in (1, 10**7):
        assert same(in_memory(add_large(opened, budget=budget))["ngram"], total)
    assert same(in_memory(add_large([*opened, {"ngram": parts[1]}], [1, 0, 1, 1], budget=1))["ngram"], total)
    next((tmp_path / "large1").glob("tally_ngram_counts/c/3")).write_bytes(b"damage")
    with pytest.raises(StoreError, match="large1"):
        add_large(opened, budget=1)


def test_budgets_and_folders_that_cannot_be(tmp_path: Path):
    with pytest.raises(ConfigError, match="a budget of 0 bytes"):
        CountRuns(3, 0)
    runs = CountRuns(1, 1, tmp_path / "not there")
    with pytest.raises(StoreError, match="cannot write a run"):
        runs.add(np.arange(1000, dtype=np.int32)[:, None])


@given(st.integers(0, 99), st.integers(1, 5), st.integers(1, 6))
@settings(max_examples=25)
def test_kneser_ney_in_passes_is_kneser_ney(seed, order, n_values):
    rng = np.random.default_rng(seed)
    lines = [rng.integers(0, n_values, n) ** 2 // n_values + 1 for n in rng.integers(0, 12, 40)]
    padded = [np.concatenate([np.zeros(order - 1, int), line, [0]]).astype(np.int32) for line in lines]
    rows = np.concatenate([np.lib.stride_tricks.sliding_window_view(line, order) for line in padded])
    n_values += 1
    asked = np.concatenate([rows[::5], rng.integers(0, n_values, (60, order)).astype(np.int32)])
    counts = NgramCounts.from_rows(rows[:, :-1], rows[:, -1], n_values)
    expected = KneserNey.fit(counts).probability(asked[:, :-1], asked[:, -1])
    got = streamed_probability(BlockTable.of(*counts.table), asked[:, :-1], asked[:, -1], n_values, budget=1)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def _documents(folder: Path) -> TextFiles:
    (folder / "text").mkdir()
    for i in range(12):
        words = np.random.default_rng(i).integers(0, 30, 400)
        (folder / f"text/{i}.txt").write_text(" ".join(f"w{w * w // 30}" for w in words), encoding="utf-8")
    return TextFiles(Files(str(folder / "text")))


def test_a_fit_that_counts_on_disk_is_that_which_counts_in_memory(tmp_path: Path):
    """And compaction and forgetting of its segments too."""
    documents = _documents(tmp_path)
    header = prepare(
        documents, LanguageSettings(vocab_size=300, n_context=2, embedding_dims=16, n_centers=0, n_folds=2)
    )
    found = []
    for budget in (1, 2**28):
        store, source = Store.create(tmp_path / f"{budget}", header), token_source(header, documents)
        accumulate(store, replace(source, tally_bytes=budget))
        rewrite(store, replace(source, tally_bytes=budget), {source.shards()[3].content_id: None}, fast=budget == 1)
        before = in_memory(store.counts(budget=budget))["ngram"]
        compact(store)
        assert same(in_memory(store.counts())["ngram"], before)
        found.append(before)
    assert same(*found)
    assert found[0][1].sum() == sum(shard.planned_rows for shard in store.counted().values())


CHILD = """
import json, re, resource, sys
import numpy as np
from pathlib import Path
from streamfit.store.runs import CountRuns
def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
budget, n_rows = int(sys.argv[1]), int(sys.argv[2])
warm = CountRuns(5, 10_000, Path(sys.argv[3]))  # libraries take what they take at their first use
warm.add(np.random.default_rng(0).integers(0, 9999, (1000, 5)).astype(np.int32))
warm.table()
before = status("VmHWM")
limit = status("VmData") + 2 * budget
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
rng, runs = np.random.default_rng(1), CountRuns(5, budget, Path(sys.argv[3]))
for _ in range(n_rows // 10_000):
    runs.add(rng.integers(0, 2**14, (10_000, 5)).astype(np.int32))
    print(runs.spilled_rows, flush=True)
table = runs.table()
n, total = 0, 0
for keys, counts in table.blocks(10_000):
    n, total = n + len(keys), total + int(counts.sum())
print(json.dumps({"rows": n, "total": total, "grown": status("VmHWM") - before}))
"""


def child(folder: Path, budget: int, n_rows: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", CHILD, str(budget), str(n_rows), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
def test_memory_keeps_to_the_budget(tmp_path: Path):
    """A table five times the budget, in a process that may allocate no more than twice that beside its libraries."""
    budget, n_rows = 2**22, 800_000
    with child(tmp_path, budget, n_rows) as process:
        out, _ = process.communicate(timeout=300)
    found = json.loads(out.splitlines()[-1])
    assert found["total"] == n_rows
    assert found["rows"] * 28 > 5 * budget
    assert found["grown"] < budget + 2**22  # what Arrow keeps for itself


def test_a_counter_that_is_killed_leaves_no_file(tmp_path: Path):
    with child(tmp_path, 2**20, 2_000_000) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) > 50_000:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not list(tmp_path.iterdir())


def test_the_plan_counts_the_memory_of_tallies(tmp_path):
    """A group's grams while they are few, and never more than the budget."""
    documents = _documents(tmp_path)
    header = prepare(documents, LanguageSettings(vocab_size=300, n_context=2, embedding_dims=16, n_centers=0))
    store, source = Store.create(tmp_path / "store", header), token_source(header, documents)
    plans = [
        plan_for(store, source.shards(), n_workers=1, source=replace(source, tally_bytes=b)) for b in (1, 2**10, 2**40)
    ]
    least, some, most = (plan.worker_bytes for plan in plans)
    assert some - least == 2**10 - 1
    rows = max(group.planned_rows for group in plans[0].groups)
    assert rows * (8 * source.ngram_order + 96) <= most - least + 1 <= 8 * rows * (8 * source.ngram_order + 96)
