"""Content ids are taken by whoever is there to do it: the same ones, each once, and one clear error."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from distributed import Client, LocalCluster
from rich.console import Console
from test_wide import NAMES, WIDTH, rows_of, write

from streamfit import engine
from streamfit.corpus import Files, ParquetTable, TextFiles, hashing
from streamfit.corpus.base import _hash_file
from streamfit.engine.hashing import _batches
from streamfit.errors import CorpusError
from streamfit.features import Linear
from streamfit.frame import Frame
from streamfit.store import Header, Store
from streamfit.targets import Dense


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Of a scheduler that is known by its address, as on a cluster."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:  # noqa: SIM117
        with Client(cluster.scheduler_address) as client:
            yield client


@pytest.fixture(autouse=True)
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "KNOWN", {})


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every corpus is large, and this process cannot hash."""

    def never(*_: object) -> Iterator[str]:
        pytest.fail("hashed here")
        yield ""

    monkeypatch.setattr("streamfit.engine.hashing.LARGE", 0)
    monkeypatch.setattr("streamfit.engine.hashing.here", never)


def texts(folder: Path, n: int) -> TextFiles:
    for i in range(n):
        (folder / f"{i:04d}.txt").write_text(f"text {i}")
    return TextFiles(Files(str(folder)))


def test_workers_take_the_hashes_of_a_large_corpus_in_its_order(client: Client, far: None, tmp_path: Path) -> None:
    source = texts(tmp_path, 1100)  # more than one batch
    shown = Console(file=io.StringIO(), force_terminal=True)
    with engine.hashing_on(client, shown):
        found = [shard.content_id for shard in source.shards()]
    assert found == [blake3(f"text {i}".encode()).hexdigest() for i in range(1100)]


def test_a_run_on_a_cluster_has_the_bits_of_one_here(client: Client, far: None, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    write(tmp_path / "rows" / "t.parquet", rows_of(500, np.float32), group=200)
    source = ParquetTable(Files(str(tmp_path / "rows")), NAMES, ("y",))
    header = Header(Linear(WIDTH), Dense(1), Frame.identity(WIDTH, 1), "float32", 2)
    one, two = (Store.create(tmp_path / name, header) for name in ("one", "two"))
    engine.accumulate(one, source, client=client)
    assert len(hashing.KNOWN) == 3
    engine.accumulate(two, source)  # whose hashes are known by now
    assert one.moments() == two.moments()
    assert one.counted().keys() == two.counted().keys()


def test_what_a_worker_cannot_read_is_one_error(client: Client, far: None, tmp_path: Path) -> None:
    texts(tmp_path, 2)
    with engine.hashing_on(client), pytest.raises(CorpusError, match=r"gone\.txt: No such file"):
        hashing.hashes_of(_hash_file, [(str(tmp_path / "gone.txt"), 0, 5)], [0])
    assert not hashing.KNOWN


def test_bytes_are_hashed_again_only_where_their_file_has_changed(tmp_path: Path) -> None:
    source, asked = texts(tmp_path, 3), []

    def way(function: hashing.Hash, parts: list[hashing.Part]) -> Iterator[str]:
        asked.append(len(parts))
        return hashing.here(function, parts)

    with hashing.hashed_by(way):
        before = source.shards()
        assert source.shards() == before
        (tmp_path / "0001.txt").write_text("another text")
        now = source.shards()
    assert asked == [3, 1]
    assert [a.content_id == b.content_id for a, b in zip(before, now, strict=True)] == [True, False, True]


def test_batches_hold_every_part_once_and_end_at_a_size() -> None:
    parts = [(str(i), 0, size) for i, size in enumerate([2**27, 2**27, 1, 2**30, *[1] * 2000])]
    batches = list(_batches(parts))
    assert [part for batch in batches for part in batch] == parts
    assert [len(batch) for batch in batches] == [2, 2, 1024, 976]
