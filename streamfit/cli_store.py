"""Commands that keep a store: weigh its sources, go back, compact, verify; `cli_data` has those for data. Floor 7."""

from __future__ import annotations

import warnings
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streamfit import cli_data
from streamfit import store as st
from streamfit.cli_options import JsonOption, MachineOption, StoreArgument, dump, show, working
from streamfit.drift import drift as periods_of
from streamfit.engine import Machine, say
from streamfit.errors import MismatchError
from streamfit.solve import IllConditionedWarning
from streamfit.stores import SAMPLE, open_any, verify_store
from streamfit.worth import worth

app = typer.Typer()
app.add_typer(cli_data.app)


@app.command(epilog="Example: streamfit influence runs/flights --by time")
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


@app.command(epilog="Example: streamfit drift runs/flights --last 3")
def drift(
    store: StoreArgument,
    by: Annotated[str, typer.Option(help="Label whose values are periods, in the order of their text.")] = "time",
    alpha: Annotated[float, typer.Option(help="Penalty.", min=0)] = 1.0,
    last: Annotated[int | None, typer.Option(help="The newest periods alone.", min=1, show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """How rows change with time: each period against the fit of all before it. The corpus is not read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)  # an early period need not tell all features apart
        found = periods_of(open_any(store), by=by, alpha=alpha, last=last)
    if as_json:
        dump([period.to_json() for period in found])
        return
    console, table = Console(), Table(title=f"each {by} against all before it, alpha {alpha:g}")
    for column in (by, "rows", "R² before", "R² then", "refitted", "bias", "largest shift", "weights moved"):
        table.add_column(column, justify="left" if column == by else "right")
    for each in found:
        table.add_row(
            escape(each.period),
            f"{each.n_rows:,}",
            f"{each.r2_before:.5f}",
            f"{each.r2:.5f}",
            f"{each.r2_refit:.5f}",
            " ".join(f"{value:.3g}" for value in each.bias[:3]) + (" ..." if len(each.bias) > 3 else ""),
            escape(f"{each.shift:.3g} sd of {each.feature}"),
            f"{each.weights_moved:.2%}",
        )
    console.print(table)


@app.command(epilog="Example: streamfit log runs/flights")
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


@app.command(epilog="Example: streamfit pin runs/flights 2026-11")
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


@app.command(epilog="Example: streamfit unpin runs/flights 2026-11")
def unpin(store: StoreArgument, name: Annotated[str, typer.Argument(help="Name of the pin.")]) -> None:
    """Let collection take a commit's segments again."""
    open_any(store).unpin(name)


@app.command(epilog="Example: streamfit compact runs/flights")
def compact(
    store: StoreArgument,
    max_live: Annotated[
        int | None, typer.Option(help="New bound on live segments, from now on.", min=2, show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Merge segments of equal fold, source and labels; runs do so by themselves when there are many."""
    opened = open_any(store)
    fewer = st.compact(opened, max_live)
    head = opened.head()
    if as_json:
        dump({"segments": len(head.segments), "fewer": fewer, "at_most": head.bound})
        return
    say(Console(), f"{len(head.segments)} live segments, {fewer} fewer than before, of at most {head.bound}")


@app.command(epilog="Example: streamfit collect runs/flights --keep 4")
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
    as_json: JsonOption = False,
) -> None:
    """Delete what neither a pin nor a kept commit needs, and what killed runs left."""
    opened = open_any(store)
    if expire:
        done = st.purge(opened, keep=keep, grace=grace, action="expire")
    else:
        done = st.collect(opened, keep=keep, grace=grace)
    if as_json:
        dump({"segments": done.segments, "orphans": done.orphans, "bytes": done.n_bytes})
        return
    say(Console(), f"deleted {done.segments} expired segments and {done.orphans} orphans, {done.n_bytes:,} bytes")


@app.command(epilog="Example: streamfit verify runs/flights --against data --sample 0.02")
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
        remedy = "restore what is damaged from a backup, or forget and add those shards again"
        if any("should be kept" in fault for fault in found.faults):
            remedy += "; `streamfit collect --expire` gives up earlier commits"
        raise MismatchError(msg, "none", remedy)
