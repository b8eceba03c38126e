"""Groups in one process: the next one's first block is decoded while a segment is written, and nothing else changes."""

import numpy as np
import pytest

from streamfit import Dense, Frame, Header, Linear, Moments, Store
from streamfit.corpus import Rows, Source
from streamfit.engine import accumulate
from streamfit.engine.ahead import ReadAhead
from streamfit.engine.work import WorkOptions
from streamfit.errors import ShardError
from streamfit.plan import Shard


class Told(Source):
    """Shards of one row each that write down what is done with them; some cannot be read."""

    def __init__(self, n_shards, bad=()):
        self.n_shards, self.bad, self.events = n_shards, bad, []

    def shards(self):
        return [Shard(f"{i}", f"{i}", 0, 1, 8, 1, f"{i:064x}", "told") for i in range(self.n_shards)]

    def positions(self, shard, column, values):
        return ()

    def read(self, shard):
        self.events.append(f"read {shard.key}")
        if shard.key in self.bad:
            raise ShardError(f"{shard.key}: bad", "good")
        try:
            for _ in range(2):
                yield Rows(np.array([[float(shard.key), 1.0]]), np.array([[1.0]]))
        finally:
            self.events.append(f"end {shard.key}")


def settled(ahead):
    """Wait until what is begun has its first block."""
    if ahead._begun is not None:
        ahead._begun[1].result()


@pytest.fixture
def executor(monkeypatch):
    """The sources through which the serial executor reads, and stores that write down when a segment is written."""
    made = []

    class Telling(Store):
        def write_segment(self, *args):
            settled(made[-1])
            made[-1]._source.events.append("write")
            return super().write_segment(*args)

    def make(source):
        made.append(ReadAhead(source))
        return made[-1]

    monkeypatch.setattr("streamfit.engine.crew.ReadAhead", make)
    return Telling


def empty_store(path):
    return Store.create(path, Header(Linear(2), Dense(1), Frame.identity(2, 1), "float32", 1))


def test_the_next_group_is_begun_before_a_segment_is_written(tmp_path, executor):
    source, store = Told(3), empty_store(tmp_path / "s")
    assert accumulate(executor(store.url), source, group_rows=1).n_rows == 6
    assert source.events == [
        "read 0", "end 0", "read 1", "write", "end 1", "read 2", "write", "end 2", "write",
    ]  # fmt: skip
    rows = np.array([[i, 1.0] for i in range(3) for _ in range(2)])
    expected = Moments.from_rows(rows, np.ones((6, 1)), store.header.frame, Dense(1), precision="float32")
    assert store.moments() == expected


def test_what_goes_wrong_in_the_next_group_is_its_own_fault(tmp_path):
    source, store = Told(3, bad={"1"}), empty_store(tmp_path / "s")
    with pytest.raises(ShardError, match="1: bad"):
        accumulate(store, source, group_rows=1)
    assert [shard.key for shard in store.counted().values()] == ["0"]
    assert accumulate(store, source, group_rows=1, options=WorkOptions(skip_bad_shards=True)).n_rows == 2


def test_what_was_begun_in_vain_is_closed():
    source = Told(3)
    ahead = ReadAhead(source)
    first, second, third = source.shards()
    ahead.follow(first, second)
    assert len(list(ahead.read(first))) == 2
    settled(ahead)
    assert len(list(ahead.read(third))) == 2
    assert source.events == ["read 0", "end 0", "read 1", "end 1", "read 2", "end 2"]
    ahead.follow(third, second)
    list(ahead.read(third))
    settled(ahead)
    ahead.close()
    assert source.events[-2:] == ["read 1", "end 1"]
