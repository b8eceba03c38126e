"""Small stores to test with: headers, shards and moments by number, so that tests say which data a store holds."""

from dataclasses import replace
from itertools import count

import numpy as np

from streamfit.counts import add_tables
from streamfit.features import Linear
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.plan import Shard
from streamfit.store import Header, Store
from streamfit.targets import Dense

D, K = 5, 3
NUMBERS = count()
TALLY = {"ids": (np.array([[0], [4]]), np.array([2, 7]))}


def header_of(precision="float64", targets=None, n_features=D, **changes):
    rng = np.random.default_rng(0)
    targets = targets or Dense(K)
    sample, classes = rng.normal(size=(100, n_features)) * 3.0 + 7, np.arange(100) % K
    y = classes if targets.one_hot else rng.normal(size=(100, K))
    frame = Frame.from_sample(sample, y, targets)
    return Header(Linear(n_features), targets, frame, precision, **({"n_folds": 3} | changes))


def moved(header, **changes):
    """A header with another frame, as a site that took its own sample would have."""
    return replace(header, frame=replace(header.frame, **changes))


def shard_of(number, source="s", **changes):
    content = f"{number + 1:015x}".ljust(64, "0")
    return replace(Shard(f"k{number}", f"/data/{number}", 0, 10, 10, 20, content, source), **changes)


def rows_of(header, seed=0, scale=1.0):
    """Features, targets and row weights."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(50, header.frame.n_features)) * scale
    y = rng.integers(0, K, 50) if header.targets.one_hot else rng.normal(size=(50, K))
    return x, y, rng.uniform(size=50)


def moments_of(header, seed=0, scale=1.0):
    x, y, weights = rows_of(header, seed, scale)
    return Moments.from_rows(x, y, header.frame, header.targets, weights=weights, precision=header.precision)


def write(store, shard, *, seed=0, tally=None):
    """An uncommitted segment of one shard."""
    moments = moments_of(store.header, seed)
    return store.write_segment(moments, [shard], [moments.n_rows], tally)


def add(store, *, number=None, seed=0, tally=None, **changes):
    """Write and commit a segment of one shard; gives its moments."""
    number = next(NUMBERS) if number is None else number
    store.commit([write(store, shard_of(number, **changes), seed=seed, tally=tally)])
    return moments_of(store.header, seed)


def new_store(folder, name, header=None, numbers=(), **changes):
    """A store under a name in a folder, with shards of some numbers."""
    store = Store.create(folder / name, header or header_of(n_folds=1))
    for number in numbers:
        add(store, number=number, seed=number, **changes)
    return store


def everything(store):
    """Sums, tables and shards: all that a reader can ask for, whatever segments it is spread over."""
    tables = list(store.tables())
    total = add_tables(tables, [1] * len(tables))
    counts = {name: (keys.tolist(), counts.tolist()) for name, (keys, counts) in total.items()}
    return store.moments(), counts, {c: s.planned_rows for c, s in store.counted().items()}


def folders(store):
    """Segments on disk, committed or not."""
    return {path.name for path in (store.place.local / "segments").glob("*") if path.is_dir()}


def leave_to_the_disk(monkeypatch):
    """Skip fsync, which other tests are about and which takes most of the time of small stores."""
    monkeypatch.setattr("streamfit.store.place.sync", lambda path: None)


# Damage


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-30])
