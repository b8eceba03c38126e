"""What a model says of the rows that it was fitted to. Floor 6: imports store."""

from __future__ import annotations

import hashlib
from typing import Any

from streamfit.store import Store


def ledger_digest(store: Store) -> str:
    """SHA-256 over content ids of all counted shards and the positions of rows left out, in the order of the ids.

    Equal exactly where the same rows are counted, under whatever names, in whatever order and grouping.

    Parameters
    ----------
    store : Store
    """
    digest = hashlib.sha256()
    for content_id, shard in sorted(store.counted().items()):
        without = ",".join(map(str, shard.without))
        digest.update(f"{content_id} {without}\n".encode())
    return digest.hexdigest()


def provenance_of(store: Store, licence: str = "") -> dict[str, Any]:
    """Which rows a store holds, as JSON: ledger digest, sources, commit, header, licence.

    Parameters
    ----------
    store : Store
    licence : str
        Of the rows, as an SPDX expression or in words; empty where nobody said.
    """
    head = store.head()
    sources: dict[str, list[int]] = {}
    for segment in head.segments:
        found = sources.setdefault(segment.source, [0, 0])
        found[0] += segment.n_rows
        found[1] += segment.n_shards
    return {
        "ledger": ledger_digest(store),
        "n_rows": head.n_rows,
        "n_shards": sum(n for _, n in sources.values()),
        "sources": [{"source": name, "n_rows": r, "n_shards": n} for name, (r, n) in sorted(sources.items())],
        "removed_rows": sum(removal.n_rows for removal in head.removed),
        "commit": head.commit,
        "sequence": head.sequence,
        "header": head.header,
        "licence": licence,
    }
