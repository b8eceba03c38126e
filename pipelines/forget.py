"""Take rows or shards out of a store, delete what held them, and solve again; nothing else is read twice.

    python pipelines/forget.py runs/flights --where origin=ORD --why 'the airport asked' [--fast] [--check]
    python pipelines/forget.py runs/flights --shard 2026/part-3.parquet

The certificate of removal is printed, and what the removal did to the weights. With --check everything that the
ledger still names is counted anew into a temporary store with the same frozen features, which so never saw the rows;
its sums and weights must be those of this store, bit for bit.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from streamfit.cli import script
from streamfit.config import SolveSection, load_machine
from streamfit.counts import add_tables
from streamfit.engine import WorkOptions, connect, say, work_group
from streamfit.errors import MismatchError
from streamfit.forgetting import forget
from streamfit.plan import default_group_rows, make_groups
from streamfit.removals import RemovalCertificate, certificates
from streamfit.solving import solve_store
from streamfit.store import Store, digest_of, purge
from streamfit.stores import locate, open_any, source_of
from streamfit.triangle import Triangle


def main(
    store: str,
    where: list[str] | None = None,
    shard: list[str] | None = None,
    *,
    why: str = "",
    fast: bool = False,
    alpha: float = 1.0,
    corpus: str | None = None,
    machine: Path | None = None,
    check: bool = False,
) -> RemovalCertificate:
    """Forget; returns the certificate of removal, and fails if what should be equal is not."""
    console, opened, which = Console(), open_any(store), load_machine(machine)
    section = SolveSection.model_construct(alphas=(alpha,), folds=2, fit_intercept=True)
    before = solve_store(opened, section, Console(quiet=True)).solution
    with connect(which) as client:
        done = forget(opened, which, client, where=where or [], shards=shard or [], why=why, fast=fast, corpus=corpus)
    say(console, f"commit {done.record.sequence}: {done.read_rows:,} rows were read for it")
    deleted = purge(opened)
    say(console, f"{deleted.segments} old segments deleted ({deleted.n_bytes:,} bytes)")
    certificate = certificates(opened, done.record.sequence)[0]
    for line in certificate.lines():
        say(console, "  " + line)

    after = solve_store(opened, section, console).solution
    size = max(float(np.abs(before.weights).max()), np.finfo(float).tiny)
    moved = float(np.abs(after.weights - before.weights).max()) / size
    say(console, f"weights changed by up to {moved:.3g} of the largest")
    if check:
        with tempfile.TemporaryDirectory() as folder:
            innocent = never_saw(opened, Path(folder) / "store", corpus)
            weights = solve_store(innocent, section, Console(quiet=True)).solution.weights
            sums, theirs = opened.moments(), innocent.moments()
            if isinstance(sums, Triangle) and isinstance(theirs, Triangle):
                same, equal = sums.agrees(theirs), "but for rounding"
            else:
                pairs = [(weights, after.weights), *zip(counts(innocent), counts(opened), strict=True)]
                same, equal = all(np.array_equal(a, b) for a, b in pairs), "to the last bit"
                same = same and digest_of(theirs) == certificate.digest
            if not same:
                msg = f"{opened.place} has other sums than a store that never saw the rows"
                raise MismatchError(msg, "the same bits", "report this, with what `streamfit verify` says")
        say(console, f"checked: sums and weights equal, {equal}, those of a store that never saw the rows")
    return certificate


def never_saw(store: Store, folder: Path, corpus: str | None) -> Store:
    """Make a store with the same header that counts, from nothing, what the ledger of another still names."""
    header, there = store.header, locate(store, corpus) if corpus else {}
    shards = [
        replace(s, uri=now.uri, start=now.start, stop=now.stop) if (now := there.get(s.bytes_id)) else s
        for s in store.counted().values()
    ]
    rows = default_group_rows(header.frame.n_features, header.frame.n_targets)
    groups = make_groups(shards, header.n_folds, rows)
    innocent = Store.create(folder, header, max_live=len(groups) + 2)
    source = source_of(header, corpus or ".", split=False)
    for group in groups:
        counted = work_group(innocent, source, group, WorkOptions())
        innocent.commit([counted.segment] if counted.segment else [])
    return innocent


def counts(store: Store) -> list[np.ndarray]:
    """Tables of counts of a whole store, n-grams for one."""
    tables = list(store.tables())
    return [array for pair in add_tables(tables, [1] * len(tables)).values() for array in pair]


if __name__ == "__main__":
    script(main)
