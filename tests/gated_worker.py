"""Preloaded by `dask worker`: a host's worker reads a shard, and notes what it reads, once a file lets it go on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streamfit.corpus import ParquetTable
from streamfit.store import Store

FOLDER, HOST = Path(os.environ.get("GATE_FOLDER", ".")), os.environ.get("GATE_HOST", "")


class Gate:
    """Let a host's worker read some shards, and see which it has begun to read, and which segments it has written."""

    def __init__(self, folder: Path, host: str) -> None:
        self._folder, self._host = folder, host

    def let(self, n_shards: int) -> None:
        """Let it read shards up to the n-th."""
        (self._folder / f"{self._host}.new").write_text(str(n_shards))
        (self._folder / f"{self._host}.new").replace(self._folder / f"{self._host}.let")

    def let_through(self, n_shard: int) -> bool:
        return int((self._folder / f"{self._host}.let").read_text()) >= n_shard

    def note(self, what: str, name: object) -> None:
        (self._folder / f"{self._host}-{what}-{name}").touch()

    def noted(self, what: str) -> list[str]:
        """Names, in the order of their time."""
        found = sorted(self._folder.glob(f"{self._host}-{what}-*"), key=lambda path: path.stat().st_mtime_ns)
        return [path.name.removeprefix(f"{self._host}-{what}-") for path in found]


def dask_setup(worker: Any) -> None:
    gate, read, write = Gate(FOLDER, HOST), ParquetTable.read, Store.write_segment

    def gated(self: ParquetTable, shard: Any) -> Iterator[Any]:
        gate.note("began", shard.content_id)
        while not gate.let_through(len(gate.noted("began"))):
            time.sleep(0.02)
        yield from read(self, shard)

    def noted(self: Store, *arguments: Any, **more: Any) -> Any:
        segment = write(self, *arguments, **more)
        gate.note("wrote", segment.id)
        return segment

    ParquetTable.read, Store.write_segment = gated, noted
