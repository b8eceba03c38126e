"""What each pass of a run was planned to do and what it did, kept in the run's folder. Floor 7."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streamfit.engine import RunSummary

_FILE = "passes.jsonl"


@dataclass(frozen=True)
class PassNote:
    """One pass over data.

    Parameters
    ----------
    when : str
        When it ended, ISO 8601 in UTC.
    lines : tuple of str
        The plan as it was printed.
    workers, groups : int
    planned_shards, planned_rows, planned_bytes : int
    planned_gflop : float
        Products, in 10^9 operations, of the rows that were planned.
    shards, rows : int
        Newly counted.
    refused, repeats : int
        Shards that were skipped, and those with the content of another.
    seconds : float
    gflops : float
        Products of all workers together, 10^9 operations a second.
    worker_bytes, peak_bytes : int
        Of memory that a worker was planned to take, and the most that one took, with the process itself; 0 where it is
        not known, as of passes before it was noted.
    """

    when: str
    lines: tuple[str, ...]
    workers: int
    groups: int
    planned_shards: int
    planned_rows: int
    planned_bytes: int
    planned_gflop: float
    shards: int
    rows: int
    refused: int
    repeats: int
    seconds: float
    gflops: float
    worker_bytes: int = 0
    peak_bytes: int = 0

    @classmethod
    def of(cls, summary: RunSummary, n_folds: int) -> PassNote:
        """What a summary says."""
        plan = summary.plan
        return cls(
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            lines=tuple(plan.lines(n_folds)),
            workers=plan.n_workers,
            groups=len(plan.groups),
            planned_shards=plan.n_shards,
            planned_rows=plan.n_rows,
            planned_bytes=plan.read_bytes,
            planned_gflop=plan.flops_per_row * plan.n_rows / 1e9,
            shards=summary.n_shards,
            rows=summary.n_rows,
            refused=len(summary.refused),
            repeats=len(summary.repeats),
            seconds=summary.seconds,
            gflops=summary.gflops,
            worker_bytes=plan.worker_bytes,
            peak_bytes=summary.peak_bytes,
        )

    def compared(self) -> list[dict[str, Any]]:
        """Plan against actual, a row a quantity."""
        rows: list[dict[str, Any]] = [
            {"quantity": "shards", "planned": self.planned_shards, "actual": self.shards},
            {"quantity": "rows", "planned": self.planned_rows, "actual": self.rows},
        ]
        done = self.planned_gflop * (self.rows / self.planned_rows) if self.planned_rows else 0.0
        return [
            *rows,
            {"quantity": "GFLOP of products", "planned": self.planned_gflop, "actual": done},
            {"quantity": "GFLOP/s", "planned": None, "actual": self.gflops},
            {"quantity": "seconds", "planned": None, "actual": self.seconds},
            *self._memory(),
        ]

    def _memory(self) -> list[dict[str, Any]]:
        if not self.worker_bytes:
            return []
        peak = self.peak_bytes / 1e6 if self.peak_bytes else None
        return [{"quantity": "MB of a worker, at its peak", "planned": self.worker_bytes / 1e6, "actual": peak}]


def note_pass(run: Path, summary: RunSummary, n_folds: int) -> None:
    """Add a pass to the run's history; one that counted nothing leaves none."""
    if summary.n_shards or summary.refused:
        with (run / _FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(vars(PassNote.of(summary, n_folds))) + "\n")


def passes_of(run: Path) -> list[PassNote]:
    """Passes of a run, oldest first; none where the folder keeps no history."""
    if not (run / _FILE).is_file():
        return []
    names = {f.name for f in fields(PassNote)}
    needed = {f.name for f in fields(PassNote) if f.default is MISSING}
    found = []
    for line in (run / _FILE).read_text(encoding="utf-8").splitlines():
        try:
            facts = json.loads(line)
        except ValueError:
            continue  # a line that a killed process did not end
        if needed <= facts.keys():
            known = {name: facts[name] for name in names & facts.keys()}
            found.append(PassNote(**known | {"lines": tuple(facts["lines"])}))
    return found
