"""What the lines of a contestant's process amount to, and the tables of all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from pipelines.peers.contestants import Peer, exceeded, out_of_memory
from pipelines.peers.supervise import Course


def read_course(peer: Peer, course: Course, order: dict[str, Any], timeout: float) -> list[dict[str, Any]]:
    """What became of each job of a contestant.

    Returns
    -------
    list of dict
        `weights`, `seconds`, `cpu_seconds` for one that ended well, `reason` for one that did not; with it, where a
        contestant told how far it was, `seen` and the seconds it took for so many rows.
    """
    outcomes: list[dict[str, Any]] = [
        {"n_rows": job["n_rows"], "peak_bytes": course.peak_bytes} for job in order["jobs"]
    ]
    began: dict[int, tuple[float, float]] = {}
    start, general = None, ""
    for wall, cpu, line in course.lines:
        event = json.loads(line)
        kind, job = event["event"], event.get("job")
        if kind == "ready":
            start = wall
        elif kind == "missing":
            general = f"not installed ({event['reason']}): pip install {' '.join(peer.packages)}"
        elif kind == "fault" and job is None:
            general = event["reason"]
        elif kind == "start":
            began[job] = (wall, cpu)
        else:
            took = {"seconds": wall - began[job][0], "cpu_seconds": cpu - began[job][1]}
            if kind == "rows":
                outcomes[job] |= {"seen": event["n"], **took}
            elif kind == "done":
                outcomes[job] |= {"weights": event["weights"], "seen": outcomes[job]["n_rows"], **took}
            else:
                outcomes[job]["reason"] = event["reason"]
    for outcome in outcomes:
        outcome["start_seconds"] = start
        if "weights" not in outcome and "reason" not in outcome:
            outcome["reason"] = general or _end_of(course, timeout, order["memory"])
    return outcomes


def _end_of(course: Course, timeout: float, memory: int) -> str:
    if course.ended == "time":
        return f"did not finish in {timeout:g} s"
    if course.ended == "memory" or out_of_memory(course.tail):
        return exceeded(memory)
    lines = [line.strip() for line in course.tail.splitlines() if line.strip()]
    return f"exit code {course.exit_code}: {lines[-1][:160] if lines else 'no message'}"


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Parameters
    ----------
    name, precision : str
    n_rows : int
        Given to it.
    rows_per_second, rows_per_cpu_second : float or None
        Up to where it came, if it did not finish but told.
    peak_bytes : int
    error : float or None
        Of the weights, relative to the reference.
    start_seconds : float or None
    note : str
        Why it failed, or why it was given fewer rows.
    """

    name: str
    precision: str
    n_rows: int
    rows_per_second: float | None
    rows_per_cpu_second: float | None
    peak_bytes: int
    error: float | None
    start_seconds: float | None
    note: str

    @classmethod
    def of(cls, peer: Peer, outcome: dict[str, Any], *, whole: int) -> Row:
        """From the outcome of a job; `whole` rows are all of them."""
        seen = outcome.get("seen")
        return cls(
            name=peer.name,
            precision=peer.precision,
            n_rows=outcome["n_rows"],
            rows_per_second=seen / outcome["seconds"] if seen else None,
            rows_per_cpu_second=seen / outcome["cpu_seconds"] if seen and outcome["cpu_seconds"] > 0 else None,
            peak_bytes=outcome["peak_bytes"],
            error=outcome.get("error"),
            start_seconds=outcome["start_seconds"],
            note=outcome.get("reason", peer.why_limited if outcome["n_rows"] < whole else ""),
        )

    def cells(self) -> list[str]:
        """As text."""
        return [
            self.name,
            self.precision,
            f"{self.n_rows:,}",
            "" if self.rows_per_second is None else f"{self.rows_per_second:,.0f}",
            "" if self.rows_per_cpu_second is None else f"{self.rows_per_cpu_second:,.0f}",
            f"{self.peak_bytes / 1e9:.2f}",
            "" if self.error is None else f"{self.error:.1e}",
            "" if self.start_seconds is None else f"{self.start_seconds:.1f}",
            self.note,
        ]

    def line(self) -> str:
        """For the screen while the others still run."""
        return "  ".join(cell for cell in self.cells() if cell)


_COLUMNS = ("", "precision", "rows used", "rows/s", "rows/CPU-s", "peak GB", "error of weights", "start s", "note")


def speed_table(rows: Sequence[Row], n_rows: int, n_features: int) -> Table:
    """Everyone's speed, memory and error."""
    table = Table(title=f"{n_rows:,} rows x {n_features:,} features")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("", "precision", "note") else "right")
    for row in rows:
        table.add_row(*row.cells())
    return table


def accuracy_table(accuracy: dict[str, dict[str, Any]]) -> Table:
    """Everyone's error of the weights with features far from zero."""
    means = list(next(iter(accuracy.values())))
    table = Table(title="relative error of the weights, by mean / standard deviation of the features")
    for column in ("", *means):
        table.add_column(column, justify="right" if column else "left")
    for name, found in accuracy.items():
        table.add_row(name, *(_figure(found[mean]) for mean in means))
    return table


def speed_markdown(rows: Sequence[Row]) -> str:
    """The first table, for a page."""
    return _markdown(_COLUMNS, [row.cells() for row in rows])


def accuracy_markdown(accuracy: dict[str, dict[str, Any]]) -> str:
    """The second table, for a page."""
    means = list(next(iter(accuracy.values())))
    return _markdown(
        ("mean / standard deviation", *means),
        [[name, *(_figure(found[mean]) for mean in means)] for name, found in accuracy.items()],
    )


def _figure(found: float | str) -> str:
    return found if isinstance(found, str) else f"{found:.1e}"


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    cells = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def ahead(rows: Sequence[Row]) -> list[str]:
    """A line for each finished contestant that is ahead of streamfit in rows per processor second, by precision."""
    ours = {row.precision: row.rows_per_cpu_second for row in rows if row.name == "streamfit" and row.error is not None}
    lines = []
    for row in rows:
        own, other = ours.get(row.precision), row.rows_per_cpu_second
        if row.name != "streamfit" and row.error is not None and own and other and other > own:
            lines.append(
                f"ahead of streamfit in {row.precision}: {row.name}, {other / own:.2f} times the rows per CPU-s"
            )
    return lines
