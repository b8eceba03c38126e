"""Commands that put data into a store and take data out: add, merge, forget, export, import. Floor 7."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from streamfit import store as st
from streamfit.cli_options import (
    AtOption,
    JsonOption,
    LabelOption,
    MachineOption,
    StoreArgument,
    dump,
    summary_json,
    working,
)
from streamfit.config import load_machine, load_problem
from streamfit.corpus import Labels
from streamfit.corpus.values import Period
from streamfit.engine import say
from streamfit.errors import ConfigError
from streamfit.forecast import forecast_of_addition
from streamfit.forgetting import forget as forget_rows
from streamfit.removals import certificates
from streamfit.stores import Corpus, addition, labels_of, open_any
from streamfit.stores import add as add_data

app = typer.Typer()


@app.command(epilog="Example: streamfit add runs/flights new/2026-11.parquet --label source=web")
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
    again: Annotated[
        bool, typer.Option("--again", help="Count again what was forgotten: shards, and all of changed files.")
    ] = False,
    skip_bad_shards: Annotated[
        bool, typer.Option("--skip-bad-shards", help="Record shards that cannot be counted and go on.")
    ] = False,
    group_rows: Annotated[
        int | None, typer.Option(help="Rows of one task and one commit.", min=1, show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be read, and for how long, and count nothing.")
    ] = False,
    machine: MachineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count more data; only what is not counted yet is read. Then `streamfit solve`.

    In a run's folder, files are labelled and left out as its config says, unless labels are given here.
    """
    if replace and skip_bad_shards:
        msg = "--replace with --skip-bad-shards"
        raise ConfigError(msg, "one of them", "what takes the place of counted content must be whole")
    corpus, opened = Corpus.of(store), open_any(store)
    if label_path or label_column or time_column:
        labels = Labels(label_path, tuple(label_column or ()), time_column, cast(Period, period))
        corpus = dataclasses.replace(corpus, labels=labels)
    corpus = corpus.labelled(labels_of(label or []))
    if dry_run:
        planned = forecast_of_addition(
            opened,
            addition(opened, data, Console(quiet=as_json), corpus),
            load_machine(machine),
            recount=again,
            group_rows=group_rows,
            skip_bad_shards=skip_bad_shards,
        )
        if as_json:
            dump(planned.to_json())
        for line in () if as_json else planned.lines():
            say(Console(), line)
        return
    with working(machine) as (where, client):
        summary = add_data(
            opened,
            data,
            where,
            client,
            Console(quiet=as_json),
            corpus=corpus,
            replace_changed=replace,
            recount_forgotten=again,
            group_rows=group_rows,
            skip_bad_shards=skip_bad_shards,
        )
    if as_json:
        head = opened.head()
        dump({"commit": head.sequence, "rows": head.n_rows, **summary_json(summary)})


@app.command(epilog="Example: streamfit merge site-a site-b -o all")
def merge(
    stores: Annotated[list[str], typer.Argument(help="Stores with the same header.")],
    output: Annotated[str, typer.Option("-o", "--output", help="Where to make the new store.")],
    as_json: JsonOption = False,
) -> None:
    """Make one store of several; refuses other features, and content that two of them counted."""
    merged = st.merge([open_any(each) for each in stores], output)
    if as_json:
        dump({"store": str(merged.place), "rows": merged.head().n_rows, "stores": len(stores)})
        return
    say(Console(), f"{merged.place} holds {merged.head().n_rows:,} rows of {len(stores)} stores")


@app.command(epilog="Example: streamfit forget runs/flights --where user=17 --why 'asked for'")
def forget(
    store: StoreArgument,
    shard: Annotated[
        list[str] | None, typer.Option("--shard", help="Key, file, or beginning of a content id; repeatable.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            help="column=value or column=@file; for text files doc_id=path. Repeatable: values of a column add up,"
            " several columns must all match.",
        ),
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
    as_json: JsonOption = False,
) -> None:
    """Take shards or rows out, as if they had never been read. Then `streamfit solve`."""
    console, opened = Console(quiet=as_json), open_any(store)
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
    if as_json:
        facts = {"commit": done.record.sequence, "rows_forgotten": rows, "shards": len(done.departures)}
        dump({**facts, "rows_read": done.read_rows, "rows": done.record.n_rows, "purged": purge_now})
    say(console, f"certificate: streamfit certificate-of-removal {store} --commit {done.record.sequence}", "dim")


@app.command("certificate-of-removal", epilog="Example: streamfit certificate-of-removal runs/flights")
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


@app.command(epilog="Example: streamfit export runs/flights sums.npz")
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


@app.command("import", epilog="Example: streamfit import site-b.zip runs/all")
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
        where, begun = store, Path(store) / "problem.json"
        if "://" not in store and begun.is_file():
            where = load_problem(begun).store.at or str(Path(store) / "store")
        target, record = st.import_segments(file, where)
        say(console, f"{target.place} holds {record.n_rows:,} rows")
        return
    given = labels_of(label or [])
    opened = open_any(store)
    source = given.pop("source", file.stem)
    segment = st.import_dense(opened, file, source, tuple(sorted(given.items())))
    record = opened.commit([segment], action=f"import {file.name}")
    say(console, f"{segment.n_rows:,} rows as source {segment.source}; {opened.place} holds {record.n_rows:,} rows")
