"""One more pass over rows that were counted: what a description computes of each block, summed. Floor 5.

Nothing is stored. The sum does not depend on the number of workers: groups are cut as for counting, each is summed in
the order of its rows, and the groups' sums in the order of the groups.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from distributed import Client
from threadpoolctl import threadpool_limits

from streamfit.arrays import Array, device_array
from streamfit.corpus import Source
from streamfit.density import DENSE_FEATURES
from streamfit.engine.crew import crew
from streamfit.engine.work import WorkOptions, changed_since, placed, prefetched
from streamfit.errors import ConfigError, MismatchError, ShardChangedError, ShardError
from streamfit.plan import Group, Shard, make_groups
from streamfit.store import Store


class Visitor(Protocol):
    """A description that travels to workers, such as `GradientPass`."""

    def block(self, phi: Array, y: Array, weights: Array | None = None) -> Any:
        """What some rows give, such as a `Gradient`: parts of disjoint rows add up with `+`."""


@dataclass(frozen=True)
class Visit:
    """Read a group of counted shards, and show their features to a visitor, in float64."""

    group: Group
    visitor: Visitor

    def run(self, store: Store, source: Source, options: WorkOptions, report: Callable[[int], None]) -> Any:
        like = device_array(store.header.frame.origin, options.backend)
        features, total = store.header.features.like(like), None
        n_rows: dict[Shard, int] = dict.fromkeys(self.group.shards, 0)
        with threadpool_limits(1):
            for shard, item in prefetched(source, self.group.shards, skip=False):
                if isinstance(item, ShardError):
                    raise item
                if item is None:
                    continue
                # In float64 also where the sums were taken in float32: the pass is to see the data themselves.
                x = item.x.astype(np.float64) if item.x.dtype.kind == "f" else item.x
                weights = None if item.weights is None else device_array(item.weights, options.backend)
                phi = features(device_array(x, options.backend))
                if store.header.sparse_rows:
                    phi = phi.toarray()
                found = self.visitor.block(phi, device_array(item.y, options.backend), weights)
                total = found if total is None else total + found
                n_rows[shard] += len(item.y)
                report(len(item.y))
        for shard, n in n_rows.items():
            if n != shard.planned_rows:
                msg = f"{shard.key}: {n:,} rows"
                raise ShardChangedError(msg, f"{shard.planned_rows:,}, as were counted", "restore the file")
        return total


def visit(
    store: Store,
    source: Source,
    visitor: Visitor,
    *,
    where: Mapping[str, Shard] | None = None,
    client: Client | None = None,
    options: WorkOptions | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> tuple[Any, float]:
    """Show every counted row to a visitor once more.

    Parameters
    ----------
    store : Store
    source : Source
        Reads shards by what the ledger says of them.
    visitor : Visitor
    where : mapping of str to Shard, optional
        Where to read shards now, by the SHA-256 of their bytes, if not where the ledger says.
    client, options
        As in `accumulate`.
    report : callable
        Called with numbers of rows, as they are read.

    Returns
    -------
    part, float
        The sum, and seconds.

    Raises
    ------
    MismatchError
        If there are no rows, or the store holds sums that were imported without rows.
    ShardError
        If a shard cannot be read or has changed since it was counted.
    """
    header, started = store.header, time.perf_counter()
    head = store.head()
    if header.sparse_rows and header.frame.n_features > DENSE_FEATURES:
        msg = f"another pass over rows of {header.frame.n_features:,} hashed features"
        raise ConfigError(msg, f"at most {DENSE_FEATURES:,}", "rows of so many are only counted")
    imported = [segment.label("imported") for segment in head.segments if segment.label("imported") is not None]
    if imported or not head.n_rows:
        msg = f"sums without rows, imported from {imported[0]}" if imported else f"{store.place} without rows"
        raise MismatchError(msg, "a store whose rows can be read again")
    counted = store.counted().values()
    if where and (absent := [shard.key for shard in counted if shard.bytes_id not in where]):
        msg = f"{len(absent)} counted shards that are not in that corpus, such as {absent[0]}"
        raise MismatchError(msg, "all that was counted", "give the corpus that holds it, or leave --corpus out")
    shards = [placed(shard, where or {}) for shard in counted]
    if lost := [shard.key for shard in shards if not shard.uri]:
        msg = f"{len(lost)} counted shards whose place is not known, such as {lost[0]}"
        raise MismatchError(msg, "a place to read each", "say with --corpus where the data lie")
    groups = make_groups(shards, header.n_folds, header.group_rows)
    found: dict[Group, Any] = {}
    chosen = replace(options or WorkOptions(), skip_bad_shards=False)
    remedy = "restore the file, or say with --corpus where its content lies now"
    with crew(store, source, client, chosen, report) as workers, changed_since("the content that was counted", remedy):
        for group in groups:
            workers.add(Visit(group, visitor))
        for task, part in workers.results():
            found[task.group] = part
    parts = [found[group] for group in groups if found[group] is not None]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total, time.perf_counter() - started
