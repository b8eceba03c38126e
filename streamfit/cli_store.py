"""Commands that keep a store: add, merge, forget, mix and weigh, go back, compact, verify, exchange. Floor 7."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from distributed import Client
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streamfit import store as st
from streamfit.config import load_machine
from streamfit.corpus import Labels
from streamfit.corpus.values import Period
from streamfit.engine import Machine, connect, say
from streamfit.errors import ConfigError, MismatchError
from streamfit.forgetting import forget as forget_rows
from streamfit.removals import certificates
from streamfit.solve import IllConditionedWarning
from streamfit.stores import SAMPLE, Corpus, labels_of, open_any, verify_store
from streamfit.stores import add as add_data
from streamfit.worth import worth

app = typer.Typer()
StoreArgument = Annotated[str, typer.Argument(help="Folder of a store or of its run, or s3://, gs://, az://.")]
MachineOption = Annotated[
    Path | None, typer.Option("--machine", help="TOML file of a machine; this one without it.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label", help="name=value for all that comes, such as source=web or time=2026-11-23; repeatable."),
]
AtOption = Annotated[
    str | None, typer.Option("--at", help="The store as of this commit, or of this pin.", show_default=False)
]


@contextmanager
def working(machine: Path | None) -> Iterator[tuple[Machine, Client | None]]:
    """The machine that was asked for, and its client."""
    where = load_machine(machine)
    with connect(where) as client:
        yield where, client


def show(facts: dict[str, Any]) -> None:
    """Print facts as a table of two columns."""
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else escape(str(value)))
    Console().print(table)


def dump(facts: Any) -> None:
    """Print facts as JSON."""
    typer.echo(json.dumps(facts, indent=1))


@app.command()
def add(
    store: StoreArgument,
    data: Annotated[list[str], typer.Argument(help="Files, directories or glob patterns.")],
    label: LabelOption = None,
    label_path: Annotated[
        str, typer.Option(help="Regular expression on relative paths whose named groups are labels.")
    ] = "",
    label_column: Annotated[
        list[str] | None, typer.Option(help="Column or field whose values label rows; repeatable.")
    ] = None,
    time_column: Annotated[str, typer.Option(help="Column or field of dates for the label `time`.")] = "",
    period: Annotated[str, typer.Option(help="Cut of those dates: day, month or year.")] = "day",
    replace: Annotated[
        bool, typer.Option("--replace", help="Swap files that changed since they were counted, in one commit.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Count shards again that were forgotten whole.")] = False,
    skip_bad_shards: Annotated[
        bool, typer.Option("--skip-bad-shards", help="Record shards that cannot be counted and go on.")
    ] = False,
    group_rows: Annotated[
        int | None, typer.Option(help="Rows of one task and one commit.", min=1, show_default=False)
    ] = None,
    machine: MachineOption = None,
) -> None:
    """Count more data; only what is not counted yet is read. Then `streamfit solve`.

    In a run's folder, files are labelled and left out as its config says, unless labels are given here.
    """
    corpus, opened = Corpus.of(store), open_any(store)
    if label_path or label_column or time_column:
        labels = Labels(label_path, tuple(label_column or ()), time_column, cast(Period, period))
        corpus = dataclasses.replace(corpus, labels=labels)
    corpus = corpus.labelled(labels_of(label or []))
    with working(machine) as (where, client):
        add_data(
            opened,
            data,
            where,
            client,
            Console(),
            corpus=corpus,
            replace_changed=replace,
            recount_forgotten=again,
            group_rows=group_rows,
            skip_bad_shards=skip_bad_shards,
        )


@app.command()
def merge(
    stores: Annotated[list[str], typer.Argument(help="Stores with the same header.")],
    output: Annotated[str, typer.Option("-o", "--output", help="Where to make the new store.")],
) -> None:
    """Make one store of several; refuses other features, and content that two of them counted."""
    merged = st.merge([open_any(each) for each in stores], output)
    say(Console(), f"{merged.place} holds {merged.head().n_rows:,} rows of {len(stores)} stores")


@app.command()
def forget(
    store: StoreArgument,
    shard: Annotated[
        list[str] | None, typer.Option("--shard", help="Key, file, or beginning of a content id; repeatable.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", help="column=value or column=@file; for text files doc_id=path. Repeatable."),
    ] = None,
    why: Annotated[str, typer.Option(help="Reason, kept in the record.")] = "",
    fast: Annotated[
        bool, typer.Option("--fast", help="Read only the shards that rows leave, and subtract. The same bits.")
    ] = False,
    purge_now: Annotated[
        bool, typer.Option("--purge", help="Delete the old segments at once; commits before this one are lost.")
    ] = False,
    corpus: Annotated[
        str | None, typer.Option(help="Where the corpus lies now, if it was moved.", show_default=False)
    ] = None,
    machine: MachineOption = None,
) -> None:
    """Take shards or rows out, as if they had never been read. Then `streamfit solve`."""
    console, opened = Console(), open_any(store)
    with working(machine) as (which, client):
        done = forget_rows(
            opened, which, client, shards=shard or [], where=where or [], why=why, fast=fast, corpus=corpus
        )
    rows = sum(d.n_rows for d in done.departures)
    say(
        console,
        f"commit {done.record.sequence}: {rows:,} rows of {len(done.departures):,} shards are forgotten;"
        f" {done.read_rows:,} rows were read for it, the store holds {done.record.n_rows:,}",
    )
    if purge_now:
        collected = st.purge(opened)
        say(console, f"{collected.segments} old segments deleted ({collected.n_bytes:,} bytes)")
    say(console, f"certificate: streamfit certificate-of-removal {store} --commit {done.record.sequence}", "dim")


@app.command("certificate-of-removal")
def certificate_of_removal(
    store: StoreArgument,
    commit: Annotated[
        int | None, typer.Option(help="That removal; all of them without it.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print what was removed, when, by whom and why, and what is left of it."""
    found = certificates(open_any(store), commit)
    if as_json:
        dump([certificate.to_json() for certificate in found])
        return
    for certificate in found:
        for line in certificate.lines():
            say(Console(), line)


@app.command()
def influence(
    store: StoreArgument,
    by: Annotated[str, typer.Option(help="Label whose values are weighed.")] = "source",
    alpha: Annotated[
        float | None, typer.Option(help="Penalty; cross-validated without it.", show_default=False)
    ] = None,
    target_fold: Annotated[
        int | None, typer.Option(help="Fold that is predicted; the next one checks.", show_default=False)
    ] = None,
    like: Annotated[
        str | None, typer.Option(help="label:value of the held-out rows to predict.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What each source is worth to held-out rows, and the mixture that serves them best. The corpus is not read."""
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", IllConditionedWarning)
        found = worth(open_any(store), by, alpha=alpha, target_fold=target_fold, like=like)
    if as_json:
        dump(found.to_json())
        return
    console = Console()
    for message in sorted({str(warning.message) for warning in raised}):
        say(console, message, "yellow")
    table = Table(title=f"held-out loss of fold {found.target_fold}, alpha {found.alpha:g}")
    for column in (by, "rows", "loss without it", "change", "best weight", "share", "model alone", "stacked share"):
        table.add_column(column, justify="left" if column == by else "right")
    for each in found.influence:
        name = each.source
        table.add_row(
            escape(name),
            f"{each.n_rows:,}",
            f"{each.loss_without:.6g}",
            f"{each.relative:+.3%}",
            f"{found.mixture.factors[name]:.4g}",
            f"{found.mixture.shares[name]:.1%}",
            f"{found.stack.losses[name]:.6g}",
            f"{found.stack.shares[name]:.1%}",
        )
    console.print(table)
    mixture = found.mixture
    say(
        console,
        f"loss {mixture.plain_loss:.6g} as counted, {mixture.loss:.6g} with the best weights found"
        f" (gap {mixture.gap:.2g}, {mixture.n_minima} stationary point(s) from {mixture.n_starts} starts),"
        f" {found.stack.loss:.6g} stacked (optimum within {found.stack.gap:.2g})",
    )
    say(console, f"on fold {found.check_fold}, which had no say: {found.check_plain:.6g} and {found.check_mixed:.6g}")
    rules = ",".join(f"{by}:{name}={factor:.6g}" for name, factor in mixture.factors.items())
    say(console, f"streamfit solve {store} --mix '{rules}'", "dim")


@app.command()
def log(store: StoreArgument, as_json: JsonOption = False) -> None:
    """List commits: who, when, and what they added and took out."""
    opened = open_any(store)
    head = opened.head()
    rows: list[dict[str, Any]] = []
    before: dict[str, st.Segment] = {}
    for record in opened.records():
        live = {s.id: s for s in record.segments}
        pins = [pin.name for pin in head.pins if pin.sequence == record.sequence]
        rows.append(
            {
                "commit": record.sequence,
                "when": record.when,
                "who": record.who,
                "action": record.action,
                "segments_added": len(live.keys() - before.keys()),
                "segments_dropped": len(before.keys() - live.keys()),
                "rows_before": sum(s.n_rows for s in before.values()),
                "rows": record.n_rows,
                "readable": head.readable(record.sequence),
                "pins": pins,
            }
        )
        before = live
    if as_json:
        dump(rows)
        return
    table = Table()
    for column in ("commit", "when", "who", "what", "segments", "rows", "change", "kept"):
        table.add_column(column, justify="right" if column in ("commit", "segments", "rows", "change") else "left")
    for row in rows:
        change = row["rows"] - row["rows_before"]
        kept = ", ".join(row["pins"]) or ("yes" if row["readable"] else "no")
        segments = f"+{row['segments_added']} -{row['segments_dropped']}"
        cells = (str(row["commit"]), row["when"], row["who"], row["action"], segments, f"{row['rows']:,}")
        table.add_row(*map(escape, cells), f"{change:+,}", escape(kept))
    Console().print(table)


@app.command()
def pin(
    store: StoreArgument,
    name: Annotated[str, typer.Argument(help="Name of the pin.")],
    at: Annotated[int | None, typer.Option("--at", help="Commit; the newest without it.", show_default=False)] = None,
) -> None:
    """Keep a commit readable, whatever is collected."""
    opened = open_any(store)
    opened.pin(name, at)
    found = next(p for p in opened.head().pins if p.name == name)
    say(Console(), f"commit {found.sequence} is kept as {name}")


@app.command()
def unpin(store: StoreArgument, name: Annotated[str, typer.Argument(help="Name of the pin.")]) -> None:
    """Let collection take a commit's segments again."""
    open_any(store).unpin(name)


@app.command()
def compact(
    store: StoreArgument,
    max_live: Annotated[
        int | None, typer.Option(help="New bound on live segments, from now on.", min=2, show_default=False)
    ] = None,
) -> None:
    """Merge segments of equal fold, source and labels; runs do so by themselves when there are many."""
    opened = open_any(store)
    fewer = st.compact(opened, max_live)
    head = opened.head()
    say(Console(), f"{len(head.segments)} live segments, {fewer} fewer than before, of at most {head.bound}")


@app.command()
def collect(
    store: StoreArgument,
    expire: Annotated[
        bool, typer.Option("--expire", help="First give up all earlier commits, but for pins, this once.")
    ] = False,
    keep: Annotated[
        int | None,
        typer.Option(help="New number of commits that can be gone back to, from now on.", min=0, show_default=False),
    ] = None,
    grace: Annotated[
        float, typer.Option(help="Seconds that uncommitted segments are left: a run may be writing them.", min=0)
    ] = st.GRACE,
) -> None:
    """Delete what neither a pin nor a kept commit needs, and what killed runs left."""
    opened = open_any(store)
    if expire:
        done = st.purge(opened, keep=keep, grace=grace, action="expire")
    else:
        done = st.collect(opened, keep=keep, grace=grace)
    say(Console(), f"deleted {done.segments} expired segments and {done.orphans} orphans, {done.n_bytes:,} bytes")


@app.command()
def verify(
    store: StoreArgument,
    against: Annotated[
        str | None, typer.Option(help="Corpus to read again and compare with.", show_default=False)
    ] = None,
    sample: Annotated[
        float | None, typer.Option(help=f"Share of shards to read again, {SAMPLE:g} without it.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draw of that share.", min=0)] = 0,
    machine: MachineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check log, ledgers, checksums, chunks and sums; against a corpus, that the sums are those of its rows."""
    opened = open_any(store)
    if against is None:
        found = verify_store(opened, Machine("serial"), None, sample=sample)
    else:
        with working(machine) as (where, client):
            found = verify_store(opened, where, client, against=against, sample=sample, seed=seed)
    if as_json:
        dump(vars(found))
    else:
        console = Console()
        show({**found.checked, "digest": found.digest or "none, for there are faults"})
        for line in found.warnings:
            say(console, f"warning: {line}", "yellow")
        for line in found.faults:
            say(console, f"fault: {line}", "red")
    if found.faults:
        msg = f"{opened.place} has {len(found.faults)} fault(s)"
        raise MismatchError(msg, "none", "restore what is damaged from a backup, or forget and add those shards again")


@app.command()
def export(
    store: StoreArgument,
    output: Annotated[Path, typer.Argument(help="New file: .npz or .zarr for dense sums, .zip for whole segments.")],
    mix: Annotated[
        list[str] | None, typer.Option("--mix", help="Weights by label, as in solve; for dense sums only.")
    ] = None,
    empty: Annotated[bool, typer.Option("--empty", help="Only the header: what another site needs.")] = False,
    anonymous: Annotated[bool, typer.Option("--anonymous", help="Without names of files; content ids stay.")] = False,
    at: AtOption = None,
) -> None:
    """Write the sums for other tools, or the segments for another store."""
    opened = open_any(store, at)
    if output.suffix == ".zip":
        if mix:
            msg = "--mix with whole segments"
            raise ConfigError(msg, "a .npz or .zarr file", "weights are for a solve; segments keep their labels")
        n_rows = st.export_segments(opened, output, empty=empty, anonymous=anonymous)
        say(Console(), f"{output}: segments of {n_rows:,} rows")
        return
    if empty or anonymous:
        msg = f"--empty or --anonymous with {output.suffix or 'no suffix'}"
        raise ConfigError(msg, "a .zip file of segments")
    st.export_dense(opened, output, st.Mix.parse(mix or []))
    say(Console(), f"{output}: dense sums of {opened.head().n_rows:,} rows")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A .zip of segments, or .npz or .zarr with sums.")],
    store: StoreArgument,
    label: LabelOption = None,
) -> None:
    """Count what was summed elsewhere: segments of another store (made if there is none), or dense sums."""
    console = Console()
    if file.suffix == ".zip":
        if label:
            msg = "--label with whole segments"
            raise ConfigError(msg, "none", "segments carry their labels")
        target, record = st.import_segments(file, store)
        say(console, f"{target.place} holds {record.n_rows:,} rows")
        return
    given = labels_of(label or [])
    opened = open_any(store)
    source = given.pop("source", file.stem)
    segment = st.import_dense(opened, file, source, tuple(sorted(given.items())))
    record = opened.commit([segment], action=f"import {file.name}")
    say(console, f"{segment.n_rows:,} rows as source {segment.source}; {opened.place} holds {record.n_rows:,} rows")
