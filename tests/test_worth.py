"""What sources are worth to held-out rows, from the sums of a store alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from corpora import unsynced, write_groups  # noqa: F401

from streamfit.corpus import Files, Labels, ParquetTable
from streamfit.engine import accumulate
from streamfit.errors import ConfigError, MismatchError, SolveError
from streamfit.solve import cross_validate
from streamfit.store import Store
from streamfit.tables import Block, prepare_table
from streamfit.worth import worth

X = ("x0", "x1", "x2")
BETA = np.array([1.0, -2.0, 0.5])


def source_of(folder, name, time):
    labels = Labels(fixed=(("time", time),))
    return ParquetTable(Files(str(folder / name)), X, ("y",), label=name, labels=labels)


@pytest.fixture(scope="module")
def weighed(tmp_path_factory):
    """A store of two good sources and one whose targets have the wrong sign; its corpus is gone."""
    folder, rng = tmp_path_factory.mktemp("worth"), np.random.default_rng(5)
    for name, sign in (("clean", 1), ("other", 1), ("spoilt", -1)):
        x = rng.normal(size=(800, 3))
        rows = {f"x{j}": x[:, j] for j in range(3)} | {"y": sign * x @ BETA + 0.1 * rng.normal(size=800)}
        write_groups(folder / name / "a.parquet", [pa.table(rows).slice(50 * i, 50) for i in range(16)])
    sources = [
        source_of(folder, name, time)
        for name, time in (("clean", "2026-01"), ("other", "2026-01"), ("spoilt", "2026-02"))
    ]
    header = prepare_table(sources[0], [Block("linear")], precision="float64", n_folds=4, seed=0, sample_rows=500)
    store = Store.create(folder / "store", header)
    for source in sources:
        accumulate(store, source, group_rows=100)
    assert {(s.source, s.fold) for s in store.head().segments} == {(s.label, f) for s in sources for f in range(4)}
    for source in sources:
        shutil.rmtree(folder / source.label)
    return store


def test_a_spoilt_source_does_harm_and_gets_no_weight(weighed):
    """Predicting a clean one: the loss falls without it, and the mixture that was found nearly leaves it out."""
    found = worth(weighed, like="source:clean", alpha=1.0)
    by = {each.source: each for each in found.influence}
    assert by["spoilt"].value < 0
    assert by["clean"].value > 0
    assert by["spoilt"].relative == pytest.approx(by["spoilt"].value / by["spoilt"].loss)
    assert found.mixture.shares["spoilt"] < 0.01
    assert found.mixture.loss < 0.2 * found.mixture.plain_loss
    assert found.check_mixed < 0.2 * found.check_plain, "on rows that had no say"
    assert found.stack.shares["spoilt"] < 0.01
    assert (found.target_fold, found.check_fold, found.alpha) == (0, 1, 1.0)


def test_another_fold_and_another_label(weighed):
    """Any label is weighed; the last fold is checked on the first."""
    found = worth(weighed, "time", alpha=1.0, target_fold=3, like="source:other")
    assert {each.source for each in found.influence} == {"2026-01", "2026-02"}
    assert (found.target_fold, found.check_fold) == (3, 0)
    assert found.mixture.shares["2026-02"] < 0.01
    n_rows = {each.source: each.n_rows for each in found.influence}
    folds = [s for s in weighed.head().segments if s.fold in (1, 2)]
    assert n_rows["2026-02"] == sum(s.n_rows for s in folds if s.source == "spoilt")


def test_alpha_is_chosen_without_the_fold_that_checks(weighed, monkeypatch):
    """It has no say in anything."""
    heard = []
    monkeypatch.setattr(
        "streamfit.worth.cross_validate",
        lambda folds, *rest, **more: heard.append({*folds}) or cross_validate(folds, *rest, **more),
    )
    found = worth(weighed, target_fold=1)
    assert heard == [{0, 1, 3}]
    assert found.check_fold == 2


def test_what_was_found_is_plain_numbers(weighed):
    found = worth(weighed, alpha=1.0).to_json()
    assert json.loads(json.dumps(found)) == found
    assert {"influence", "mixture", "stack", "check_plain", "check_mixed"} <= found.keys()


@pytest.mark.parametrize(
    ("asked", "error", "complaint"),
    [
        ({"by": "region"}, MismatchError, "0 value.s. of the label 'region'; .* labels source, time"),
        ({"target_fold": 4}, MismatchError, "fold 4; expected one of 0, 1, 2, 3"),
        ({"like": "clean"}, ConfigError, "--like 'clean'; expected label:value"),
        ({"like": "source:none"}, MismatchError, "no rows in fold 0 with source 'none'"),
    ],
)
def test_what_cannot_be_weighed(weighed, asked, error, complaint):
    with pytest.raises(error, match=complaint):
        worth(weighed, alpha=1.0, **asked)


def test_too_few_folds_or_sources(tmp_path, weighed):
    """Three folds: to train, to choose and to check; and two sources that have rows to train on."""
    few = Store.create(tmp_path / "few", weighed.header)
    for fold in (0, 1):
        copy(weighed, few, lambda s, fold=fold: s.fold == fold)
    with pytest.raises(MismatchError, match=r"in 2 of 4 folds.*add data.*smaller shard_bytes"):
        worth(few)
    two = Store.create(tmp_path / "two", replace(weighed.header, n_folds=2))
    with pytest.raises(MismatchError, match=r"in 0 of 2 folds.*folds = 3 or more"):
        worth(two)
    alone = Store.create(tmp_path / "alone", weighed.header)
    copy(weighed, alone, lambda s: s.source == "clean")
    with pytest.raises(MismatchError, match=r"1 value\(s\) of the label 'source'"):
        worth(alone)
    copy(weighed, alone, lambda s: s.source == "other" and s.fold == 0)
    with pytest.raises(SolveError, match=r"1 source\(s\): clean"):
        worth(alone, alpha=1.0)


def copy(source: Store, target: Store, keep) -> None:
    """Commit the segments that `keep` accepts to another store."""
    for segment in filter(keep, source.head().segments):
        shards = source.ledger(segment)
        target.commit([target.write_segment(source.read(segment), shards, [s.planned_rows for s in shards])])
