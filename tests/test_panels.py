"""A Gram matrix that no worker can hold is summed in panels, with the bits of a fit that holds it whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamfit import Ridge
from streamfit.corpus import Files
from streamfit.corpus.parquet import ParquetTable
from streamfit.engine import Machine, WorkOptions, accumulate, connect, plan_for
from streamfit.engine.rewrite import rewrite
from streamfit.errors import PlanError, StoreError
from streamfit.features import Linear
from streamfit.frame import Frame, Panel, n_tiles, panels_of, tile_pairs, tile_size
from streamfit.plan import Plan
from streamfit.store import Header, Store, compact, solve_tiled, verify
from streamfit.store.arrays_io import read_group
from streamfit.targets import Dense, OneHot, Targets

D = 1100


def made(folder: Path, targets: Targets, precision: str, factor: float = 1.0) -> tuple[ParquetTable, Header]:
    """Rows of 1,100 features, three tiles of the Gram matrix an edge, in four files, and a header for them."""
    rng = np.random.default_rng(3)
    folder.mkdir()
    for i in range(4):
        x = (rng.normal(size=(600, D)) * factor).astype(np.float32)
        y = rng.integers(0, 5, 600) if targets.one_hot else x[:, 0] + rng.normal(size=600)
        columns = {"x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), D), "y": y}
        pq.write_table(pa.table(columns), folder / f"{i}.parquet", row_group_size=300)
    table = ParquetTable(Files(str(folder)), ("x",), ("y",), n_classes=5 if targets.one_hot else None)
    header = Header(Linear(D), targets, Frame.identity(D, targets.n_targets), precision, n_folds=2)
    return table, header


def digests(store: Store) -> list[str]:
    """Of the arrays of each live segment, as they were written with."""
    found = [read_group(store.place.objects, f"segments/{s.id}")[0]["sums"] for s in store.head().segments]
    return sorted(found)


@pytest.mark.parametrize("d", [1, 511, 513, 1100, 5000])
def test_every_tile_is_in_one_panel_and_every_cross_column_in_one_on_the_diagonal(d: int):
    edges = -(-d // tile_size(d))
    for n_bands in range(1, edges + 1):
        panels = panels_of(d, n_bands)
        assert len(panels) == n_bands * (n_bands + 1) // 2
        tiles = [tile for panel in panels for tile in panel.tiles()]
        assert sorted(tiles, key=lambda t: t[0]) == list(tile_pairs(d))
        columns = [panel.features() for panel in panels if panel.row == panel.column]
        assert [j for s in columns for j in range(s.start, s.stop)] == list(range(d))
        assert all(panel.features() == slice(0, 0) for panel in panels if panel.row < panel.column)
    assert len(Panel(d).tiles()) == n_tiles(d)


@pytest.mark.parametrize("n_bands", [2, 3])
@pytest.mark.parametrize(
    ("targets", "precision", "factor"),
    [(Dense(1), "float32", 1.0), (OneHot(5), "float64", 1.0), (Dense(1), "float32", 2.0**15)],
    ids=["dense", "classes", "coarse"],
)
def test_panels_give_the_bits_and_digests_of_a_fit_that_holds_all(
    tmp_path: Path, targets: Targets, precision: str, factor: float, n_bands: int
):
    table, header = made(tmp_path / "rows", targets, precision, factor)
    whole, cut = (Store.create(tmp_path / name, header) for name in ("whole", "cut"))
    accumulate(whole, table)
    summary = accumulate(cut, table, options=WorkOptions(n_bands=n_bands))
    assert summary.plan.n_bands == n_bands
    assert any("panels" in line for line in summary.plan.lines(2))
    assert summary.n_rows == whole.head().n_rows == 2400
    assert cut.moments() == whole.moments()
    assert digests(whole) == digests(cut)
    assert not verify(cut).faults
    folders = {p.name for p in (tmp_path / "cut" / "segments").iterdir() if p.is_dir()}
    assert folders == {s.id for s in cut.head().segments}  # panels are gone once they are stitched


def test_panels_on_workers_forget_and_compact_to_the_same_bits(tmp_path: Path):
    table, header = made(tmp_path / "rows", Dense(1), "float32")
    whole, cut = (Store.create(tmp_path / name, header) for name in ("whole", "cut"))
    options = WorkOptions(n_bands=3)
    with connect(Machine(n_workers=2)) as client:
        accumulate(cut, table, client=client, options=options, group_rows=600)
    accumulate(whole, table, group_rows=600)
    gone = dict.fromkeys(s.content_id for s in table.shards()[:2])
    for store, chosen in ((cut, options), (whole, WorkOptions())):
        rewrite(store, table, gone, options=chosen)
    assert cut.moments() == whole.moments()
    compact(cut)
    assert cut.moments() == whole.moments()
    with pytest.raises(PlanError, match="no worker can hold whole"):
        rewrite(cut, table, dict.fromkeys(s.content_id for s in table.shards()[2:4]), options=options, fast=True)
    solution = solve_tiled(cut, 1.0, memory_bytes=2 * 2**30, scratch=tmp_path / "scratch")
    kept = [rows for shard in table.shards()[2:] for rows in table.read(shard)]
    X, y = np.concatenate([r.x for r in kept]), np.concatenate([r.y for r in kept])[:, 0]
    reference = Ridge(alpha=1.0, precision="float64").fit(X.astype(np.float64), y)
    np.testing.assert_allclose(solution.weights[:, 0], reference.coef_, rtol=0, atol=1e-5)


def test_segments_merge_tile_by_tile_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table, header = made(tmp_path / "rows", OneHot(5), "float64")
    stores = [Store.create(tmp_path / name, header) for name in ("one", "other")]
    for store in stores:
        accumulate(store, table, group_rows=300)
    before = stores[0].moments()
    compact(stores[0])
    monkeypatch.setattr("streamfit.store.upkeep._LARGE", 0)
    compact(stores[1])
    for store in stores:
        assert store.moments() == before
        assert not verify(store).faults
    assert digests(stores[0]) == digests(stores[1])


def test_workers_with_less_memory_get_more_bands_or_a_refusal(tmp_path: Path):
    table, header = made(tmp_path / "rows", Dense(1), "float32")
    store = Store.create(tmp_path / "store", header)
    plan = replace(plan_for(store, [], n_workers=1), n_features=20_000)
    least = [replace(plan, n_bands=n).worker_bytes for n in range(1, 11)]
    assert [plan.within(n).n_bands for n in least[:4]] == [1, 2, 3, 4]
    with pytest.raises(PlanError, match="for a worker"):
        plan.within(min(least) - 1).check(min(least) - 1, None, 2)
    with pytest.raises(PlanError, match="for a worker"):
        accumulate(store, table, worker_memory=10**8)
    assert store.head().n_rows == 0


def test_a_lost_panel_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table, header = made(tmp_path / "rows", Dense(1), "float32")
    store = Store.create(tmp_path / "store", header)
    monkeypatch.setattr("streamfit.engine.work.panels_of", lambda d, n: panels_of(d, n)[:-1])
    with pytest.raises(StoreError, match="panels without tile"):
        rewrite(store, table, {}, adding=table.shards(), options=WorkOptions(n_bands=2))
    assert store.head().n_rows == 0


def test_bands_are_integers_that_shrink_what_a_worker_holds():
    plan = Plan((), 20_000, 1, 10, "float32", one_hot=False, n_workers=1, feature_bytes=0)
    sizes = [replace(plan, n_bands=n).panel_bytes for n in (1, 2, 3, 5, 10)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == plan.sum_bytes
    assert all(type(size) is int for size in sizes)
