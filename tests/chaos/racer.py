"""One of several coordinators that race on a store: it adds and forgets numbered shards, and notes what it did.

    python racer.py STORE NOTES NUMBER N_COMMITS [LIGHT]

It may be killed at any moment and started again with the same arguments. A line of NOTES is on disk before an
operation is begun, and another once it was acknowledged, which is what the store must never lose. A share LIGHT of the
commits only records a refusal, for places where writing a segment takes long.
"""

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamfit.corpus import Rows, Source
from streamfit.engine import rewrite
from streamfit.errors import MismatchError
from streamfit.features import Linear
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.plan import Shard
from streamfit.store import CountedTwiceError, FullError, Header, Refusal, Store, collect, compact, verify
from streamfit.targets import Dense

D, ROWS = 3, 20
SHARED = 10**6
"""Numbers from here on are added by every racer: each may be counted by one of them only."""
HEADER = Header(Linear(D), Dense(1), Frame.identity(D, 1), "float64", 2)


def rows_of(number):
    rng = np.random.default_rng(number)
    return rng.normal(size=(ROWS, D)), rng.normal(size=(ROWS, 1))


def shard_of(number):
    content = hashlib.sha256(b"%d" % number).hexdigest()
    return Shard(str(number), f"memory:{number}", 0, ROWS, ROWS * D * 8, ROWS, content, "numbers")


def moments_of(number):
    return Moments.from_rows(*rows_of(number), HEADER.frame, HEADER.targets, precision=HEADER.precision)


@dataclass(frozen=True)
class Numbered(Source):
    """The shard of a number holds rows drawn from it."""

    def shards(self):
        return []

    def read(self, shard):
        yield Rows(*rows_of(int(shard.key)))

    def positions(self, shard, column, values):
        return ()


def note(path, **line):
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def notes_of(path):
    """Whole lines; a kill may have cut the last one."""
    lines = path.read_text().splitlines() if path.exists() else []
    notes = []
    for line in lines:
        try:
            notes.append(json.loads(line))
        except ValueError:
            continue
    return notes


def add(store, number, *, recount=False):
    moments, shard = moments_of(number), shard_of(number)
    segment = store.write_segment(moments, [shard], [ROWS])
    while True:
        try:
            return store.commit([segment], recount=recount)
        except FullError:
            compact(store)


def forget(store, number, *, fast):
    while True:
        try:
            return rewrite(store, Numbered(), {shard_of(number).content_id: None}, fast=fast).record
        except FullError:
            compact(store)


def race(url, notes, which, n_commits, light=0.0):
    store = Store(url)
    mine = range(SHARED // 100 * which, SHARED // 100 * (which + 1))
    before = notes_of(notes)
    rng = np.random.default_rng([which, len(before)])
    acknowledged = sum(line["what"] == "done" for line in before)
    # What a kill cut off may have happened or not: the store says, and the number after it is taken.
    tried = {line["number"] for line in before if line["operation"] != "refuse"}
    while acknowledged < n_commits:
        counted = {int(shard.key) for shard in store.counted().values()}
        own = sorted(counted.intersection(mine))
        gone = sorted(tried.intersection(mine) - counted)
        draw = rng.random()
        if rng.random() < light:
            operation, number = "refuse", len(notes_of(notes))
        elif draw < 0.15 and own:
            operation, number = "forget", own[rng.integers(len(own))]
        elif draw < 0.22 and gone:
            operation, number = "again", gone[rng.integers(len(gone))]
        elif draw < 0.4:
            operation, number = "shared", SHARED + len([n for n in tried if n >= SHARED])
        else:
            operation, number = "add", max(tried.intersection(mine), default=mine[0] - 1) + 1
        note(notes, what="begin", operation=operation, number=number)
        if operation != "refuse":
            tried.add(number)
        try:
            if operation == "refuse":
                content = hashlib.sha256(b"%d of %d" % (number, which)).hexdigest()
                record = store.commit(refused=[Refusal(str(number), content, "to be brief")])
            elif operation == "forget":
                record = forget(store, number, fast=bool(rng.integers(2)))
            else:
                record = add(store, number, recount=operation == "again")
        except CountedTwiceError:
            assert operation == "shared"
            note(notes, what="refused", operation=operation, number=number)
            continue
        except MismatchError:
            # Others compacted the segment five times while it was rewritten: nothing has happened.
            assert operation == "forget"
            note(notes, what="refused", operation=operation, number=number)
            continue
        note(notes, what="done", operation=operation, number=number, sequence=record.sequence, commit=record.commit)
        acknowledged += 1
        if rng.random() < 0.05:
            collect(store, grace=3600.0)


def assert_nothing_lost(url, notes):
    """Every acknowledged commit is in the log under its number, and the sums are those of what was acknowledged.

    Parameters
    ----------
    url : str or Path
    notes : sequence of Path

    Returns
    -------
    dict of str to int
        Figures.
    """
    store = Store(url)
    records = store.records()
    lines = [[line for line in notes_of(path) if line["operation"] != "refuse"] for path in notes]
    done = [line for path in notes for line in notes_of(path) if line["what"] == "done"]
    lost = [line for line in done if records[line["sequence"]].commit != line["commit"]]
    double = len(done) - len({line["sequence"] for line in done})
    counted = [int(shard.key) for segment in store.head().segments for shard in store.ledger(segment)]
    assert (lost, double, len(records)) == ([], 0, len({record.commit for record in records}))
    assert len(counted) == len(set(counted))
    assert all(len(record.segments) <= record.bound for record in records)
    _assert_model(set(counted), lines)
    total = sum(map(moments_of, counted), start=Moments.zeros(HEADER.frame, HEADER.targets, HEADER.precision))
    assert store.moments() == total
    assert verify(store).faults == []
    actions = [record.action.split()[0] for record in records]
    figures = {"commits": len(records) - 1, "acknowledged": len(done), "compactions": actions.count("compact")}
    return figures | {"shards": len(counted), "lost": len(lost), "double": double}


def _assert_model(counted, lines):
    """What is counted is what the last acknowledged operation on a number left, or one after it that a kill cut off."""
    shared = [line["number"] for each in lines for line in each if line["what"] == "done" and line["number"] >= SHARED]
    assert len(shared) == len(set(shared))
    there, open_ = {}, {}
    for each in lines:
        for line in each:
            number, adds = line["number"], line["operation"] != "forget"
            if line["what"] == "begin":
                open_.setdefault(number, set()).add(adds)
            elif line["what"] == "done":
                there[number] = adds
                if number < SHARED:
                    open_.pop(number)
            elif number < SHARED:
                open_.pop(number)
    for number in there.keys() | open_.keys() | counted:
        assert (number in counted) in {there.get(number, False)} | open_.get(number, set()), number


if __name__ == "__main__":
    race(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), *map(float, sys.argv[5:]))
