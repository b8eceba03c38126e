"""Whether a store is whole, from its own bytes: log, ledgers, chunks, checksums, and what sums of rows must obey.

Floor 4. Reading rows again, to compare them with the sums, is the engine's part.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg

from streamfit.centered import Statistic, unpack_tiles
from streamfit.errors import StreamfitError
from streamfit.frame import BLOCK_ROWS
from streamfit.moments import Moments
from streamfit.precision import product_error
from streamfit.store.log import Segment
from streamfit.store.store import Store
from streamfit.store.sums import SUMS
from streamfit.triangle import Triangle

_DRIFT = 20


@dataclass
class Verification:
    """What was looked at, and what was wrong with it.

    Parameters
    ----------
    checked : dict of str to int
        Things looked at, by kind.
    faults : list of str
        Empty for a whole store.
    warnings : list of str
        Nothing is wrong, but should be known.
    digest : str
        SHA-256 of the moments of all segments: equal for equal data, however it came there. Tables of counts are not in
        it.
    """

    checked: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    digest: str = ""

    def count(self, what: str, n: int = 1) -> None:
        """Note that something was looked at."""
        self.checked[what] = self.checked.get(what, 0) + n


def digest_of(moments: Statistic) -> str:
    """SHA-256 of exact sums: equal for equal totals, for their form is canonical.

    Triangles are equal but for rounding, so theirs depends on how rows were grouped and merged as well.
    """
    digest = hashlib.sha256(f"{moments.n_rows}".encode())
    host = moments.to_host()
    if isinstance(host, Triangle):
        digest.update(np.ascontiguousarray(host.factor, dtype="<f8").tobytes())
        return digest.hexdigest()
    for name in SUMS:
        total = getattr(host, name)
        digest.update(f"{name} {total.top}".encode())
        for limb in total.limbs:
            digest.update(np.ascontiguousarray(np.asarray(limb) + 0.0, dtype="<f8").tobytes())
    return digest.hexdigest()


def verify(store: Store) -> Verification:
    """Check every record, ledger and array of a store, and the sums themselves.

    Returns
    -------
    Verification
        Faults are listed, not raised, so that one does not hide the others.
    """
    found = Verification()
    head = store.head()
    kept: dict[str, tuple[Segment, int]] = {}
    for sequence in range(head.sequence + 1):
        try:
            record = store.record(sequence)
        except StreamfitError as error:
            found.faults.append(str(error))
            continue
        found.count("log records")
        if (record.header, record.header_at) != (head.header, head.header_at):
            found.faults.append(f"commit {sequence} names another header")
        if head.readable(sequence) and sequence < head.sequence:
            found.count("commits to go back to")
            kept |= {segment.id: (segment, sequence) for segment in record.segments}
    try:
        total = store.zeros()
    except StreamfitError as error:
        found.faults.append(str(error))
        return found
    _check_ledgers(store, head.segments, found)
    whole = True
    for segment in sorted(head.segments, key=lambda segment: segment.ledger):
        try:
            moments, tables = store.read_all(segment, check=True)
            found.count("segments")
            found.faults += _impossible(moments, f"segment {segment.id}")
            total = total + moments
            for name, (keys, counts) in tables.items():
                if len(keys) != len(counts) or (len(counts) and counts.min() < 1):
                    found.faults.append(f"counts {name} of segment {segment.id} are not a table of positive counts")
        except StreamfitError as error:
            found.faults.append(str(error))
            whole = False
    _check_kept(store, {segment.id for segment in head.segments}, kept, found)
    for removal in head.removed:
        try:
            store.departures(removal)
            found.count("removals")
        except StreamfitError as error:
            found.faults.append(str(error))
    if whole:
        found.digest = digest_of(total)
        if total.n_rows:
            _check_total(total, any(s.label("imported") for s in head.segments), found)
    return found


def _check_kept(store: Store, live: set[str], kept: dict[str, tuple[Segment, int]], found: Verification) -> None:
    for segment, sequence in kept.values():
        try:
            if segment.id not in live:
                store.ledger(segment)
                store.read_all(segment, check=True)
                found.count("segments of commits to go back to")
        except StreamfitError as error:
            found.faults.append(f"commit {sequence} should be kept: {error}")


def _check_ledgers(store: Store, segments: tuple[Segment, ...], found: Verification) -> None:
    contents: Counter[str] = Counter()
    cuts: dict[str, set[tuple[str, ...]]] = {}
    for segment in segments:
        try:
            shards = store.ledger(segment)
        except StreamfitError as error:
            found.faults.append(str(error))
            continue
        found.count("shards", len(shards))
        contents.update(shard.content_id for shard in shards)
        for shard in shards:
            cuts.setdefault(shard.bytes_id, set()).add(tuple(name for name, _ in shard.select))
        if len(shards) != segment.n_shards or sum(s.planned_rows for s in shards) != segment.n_rows:
            found.faults.append(f"the ledger of segment {segment.id} has other shards or rows than the log says")
        kinds = {(s.fold(store.header.n_folds), s.source, s.labels) for s in shards}
        if kinds != {segment.kind}:
            found.faults.append(f"segment {segment.id} holds shards of other folds or labels than the log says")
    found.faults += [f"content {content[:12]} is counted {n} times" for content, n in contents.items() if n > 1]
    found.faults += [f"bytes {b[:12]} are counted under several divisions" for b, c in cuts.items() if len(c) > 1]


def _impossible(moments: Statistic, where: str) -> list[str]:
    """What no sum over weighted rows can be."""
    faults = []
    if isinstance(moments, Triangle):
        factor = moments.factor
        whole = np.isfinite(factor).all() and (np.diag(factor) >= 0).all() and not np.tril(factor, -1).any()
        return [] if whole else [f"the factor of {where} is no triangle with a diagonal from zero up"]
    assert isinstance(moments, Moments)
    for name in SUMS:
        for limb in getattr(moments, name).limbs:
            if not np.array_equal(limb, np.rint(limb)):
                faults.append(f"{name} of {where} is off its grid")
                break
    diagonal = np.diag(unpack_tiles(moments.gram.value(), moments.frame.n_features))
    if not (diagonal >= 0).all() or not (np.asarray(moments.sum_yy.value()) >= 0).all() or moments.weight.value() < 0:
        faults.append(f"{where} has a negative sum of squares")
    return faults


def _rounding(total: Moments, gram: np.ndarray) -> float:
    """What rounding may take from the least eigenvalue, also where features are multiples of one another.

    Products over a block err as a random walk of roundings does, relative to the norms of both columns; the grid by
    half a step a block; the eigenvalues themselves by a few roundings of float64.
    """
    n_rows, d, trace = abs(total.n_rows) + 1.0, len(gram), float(np.trace(gram))
    # Features are rounded before they are multiplied, so theirs is no error here but where weights are split in two.
    product_eps = 2.0**-53 if total.precision == "float64" else 2.0**-24
    products = 4.0 * np.sqrt(min(n_rows, BLOCK_ROWS)) * product_eps * trace
    products += (product_error(total.precision) if total.precision in ("tf32", "bf16") else 0.0) * trace
    return float(products + 2.0**total.gram.bottom * d * np.sqrt(n_rows) + 2.0**-50 * trace)


def _check_total(total: Statistic, imported: bool, found: Verification) -> None:
    if not isinstance(total, Moments):
        return  # whatever a triangle holds, its Gram matrix is one of rows
    gram = unpack_tiles(total.gram.value(), total.frame.n_features)
    eigenvalues = scipy.linalg.eigvalsh(gram)
    rounding = _rounding(total, gram)
    if eigenvalues[0] < -rounding:
        text = (
            f"the Gram matrix is not positive semidefinite: an eigenvalue of {eigenvalues[0]:.3g},"
            f" where rounding leaves {rounding:.3g}"
        )
        if imported:  # sums that were rounded elsewhere may be so
            found.warnings.append(f"{text}, not counting that of dense sums that were imported")
        else:
            found.faults.append(text)
    found.count("eigenvalues", len(eigenvalues))
    # In the units of the frame a feature's mean square was near 1 in the sample.
    drifted = np.flatnonzero(np.diag(gram) > float(total.weight.value()) * 2.0 ** (2 * _DRIFT))
    if len(drifted):
        found.warnings.append(
            f"{len(drifted)} features have grown by more than 2^{_DRIFT} since the sample that their units come from"
            f" (feature {drifted[0]}): digits are spent on room"
        )
