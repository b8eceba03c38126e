"""The jobs that a store's keeper does: open, add, forget, purge, verify. Floor 7.

Each is a few calls of the floors below, and is what a command of the same name prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from glob import escape, has_magic
from itertools import takewhile
from pathlib import Path

from distributed import Client
from rich.console import Console

from streamfit.config import LabelsSection, TextSection, load_problem
from streamfit.corpus import Files, Labels, Rows, Source, Tally
from streamfit.corpus.labels import NO_LABELS
from streamfit.corpus.values import column_of
from streamfit.engine import Machine, Rewritten, RunSummary, WorkOptions, find_rows, recount, rewrite
from streamfit.errors import ConfigError, CorpusError, MismatchError, ShardError
from streamfit.jobs import accumulate_into
from streamfit.plan import Shard
from streamfit.store import Collected, Header, Store, Verification, collect, verify
from streamfit.tables import table_source
from streamfit.text import token_source


def open_any(where: str | Path, at: str | int | None = None) -> Store:
    """Open a store by its own place, or by the folder of the run that made it.

    Raises
    ------
    StoreError
        If there is none, or the commit cannot be gone back to.
    """
    if "://" in str(where):
        return Store(where, at)
    run = Path(where)
    if (run / "problem.json").is_file():
        # Of the run itself only what lies elsewhere: a run that was copied or moved has its own store.
        return Store(load_problem(run / "problem.json").store.at or run / "store", at)
    return Store(run / "store" if Store.exists(run / "store") else run, at)


def source_of(
    header: Header,
    root: str,
    *,
    label: str = "",
    labels: Labels | None = None,
    split: bool = True,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
) -> Source:
    """Files read the way a store's header says: the part for training, where a corpus is split.

    Parameters
    ----------
    header : Header
    root : str
        A directory, a glob or a file.
    label : str
        Source label; without it the name of the file or directory, that above a pattern for a glob.
    labels : Labels, optional
    split : bool
        Whether to leave out validation and test files.
    include, exclude : tuple of str
        Patterns on the path relative to `root`; all files without any.
    """
    plain = Path(root) if Path(root).exists() else Path(*takewhile(lambda part: not has_magic(part), Path(root).parts))
    label, labels = label or plain.stem or "corpus", labels or Labels()
    if header.reader.get("kind") != "tokens":
        return replace(table_source(header.reader, Files(root, include, exclude), label), labels=labels)
    settings = header.reader.get("settings", {})
    kept = {name: settings[name] for name in ("encoding", "field", "split", "shard_bytes") if name in settings}
    given = LabelsSection(**{**asdict(labels), "fixed": dict(labels.fixed)})
    section = TextSection(
        root=root,
        include=include,
        exclude=exclude,
        label=label,
        labels=given,
        kind=settings.get("files", "text"),
        **kept,
    )
    documents = section.documents("train")
    if not split and section.kind == "text":
        documents = replace(documents, files=replace(documents.files, split=None))
    return token_source(header, documents)


@dataclass(frozen=True)
class Corpus:
    """How the files of a run are found and labelled, so that more of them are taken alike.

    Parameters
    ----------
    root : str
        Files below it keep the names that they have in it, by which labels are found and text is split.
    include, exclude : tuple of str
    label : str
        Source label; without it that of the files' folder or pattern.
    labels : Labels
    """

    root: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    label: str = ""
    labels: Labels = NO_LABELS

    @classmethod
    def of(cls, where: str | Path) -> Corpus:
        """The corpus of a run's folder; of a bare store nothing is known."""
        path = Path(where) / "problem.json"
        if "://" in str(where) or not path.is_file():
            return cls()
        given = load_problem(path).corpus
        return cls(given.root, given.include, given.exclude, given.label, given.labels.settings())

    def labelled(self, given: dict[str, str]) -> Corpus:
        """The same with labels given by hand, which go before those that a path or a column would give."""
        labels, path = self.labels, self.labels.path
        for name in given:
            path = path.replace(f"(?P<{name}>", "(")
        columns = tuple(name for name in labels.columns if name not in given)
        fixed = tuple(sorted({**dict(self.labels.fixed), **given}.items()))
        time = "" if "time" in given else labels.time
        path = path if "(?P<" in path else ""
        return replace(self, labels=replace(labels, path=path, columns=columns, time=time, fixed=fixed))


@dataclass(frozen=True)
class Together(Source):
    """Several roots as one corpus, so that what moved from one to another is seen.

    Parameters
    ----------
    sources : tuple of Source
        Alike but for their files: a shard says everything that reading it takes.
    """

    sources: tuple[Source, ...]

    def shards(self) -> list[Shard]:
        found, empty = [], None
        for source in self.sources:
            try:
                found += source.shards()
            except CorpusError as error:
                if isinstance(error, ShardError):
                    raise
                empty = error  # for instance a single document that belongs to the test part
        if empty is not None and not found:
            raise empty
        return sorted(found, key=lambda shard: shard.key)

    def read(self, shard: Shard) -> Iterator[Rows]:
        return self.sources[0].read(shard)

    def positions(self, shard: Shard, column: str, values: frozenset[str]) -> tuple[int, ...]:
        return self.sources[0].positions(shard, column, values)

    def tally(self) -> Tally | None:
        return self.sources[0].tally()


def add(
    store: Store,
    roots: Sequence[str],
    machine: Machine,
    client: Client | None,
    console: Console,
    *,
    corpus: Corpus | None = None,
    replace_changed: bool = False,
    recount_forgotten: bool = False,
    group_rows: int | None = None,
    skip_bad_shards: bool = False,
) -> RunSummary:
    """Count more data into a store: only what it has not counted yet is read.

    Parameters
    ----------
    store : Store
    roots : sequence of str
        Files, directories or patterns; together they are one corpus.
    machine, client, console
        Where to work, and what to show it on.
    corpus : Corpus, optional
        How files are named, labelled and left out.
    replace_changed, recount_forgotten, group_rows, skip_bad_shards
        As in `accumulate`.

    Raises
    ------
    ShardChangedError
        If a file has changed since it was counted, and is not to be replaced; nothing is counted then.
    StreamfitError
        Any other of its kinds; what was committed stays.
    """
    for root in roots:
        if not has_magic(root) and not Path(root).expanduser().exists():
            msg = f"no file or directory at {root}"
            raise CorpusError(msg, "a directory, a file or a glob pattern", "check the path")
    sources = tuple(_below(store, root, corpus or Corpus()) for root in roots)
    return accumulate_into(
        store,
        sources[0] if len(sources) == 1 else Together(sources),
        machine,
        client,
        console,
        group_rows=group_rows,
        skip_bad_shards=skip_bad_shards,
        replace_changed=replace_changed,
        recount=recount_forgotten,
    )


def _below(store: Store, root: str, corpus: Corpus) -> Source:
    path, above = Path(root).expanduser().absolute(), Path(corpus.root).expanduser().absolute()
    include: tuple[str, ...] = ()
    if corpus.root and not has_magic(root) and above.is_dir() and path.is_relative_to(above):
        name = escape(path.relative_to(above).as_posix())
        include = corpus.include if path == above else (f"{name}/*",) if path.is_dir() else (name,)
        root = corpus.root
    return source_of(
        store.header, root, label=corpus.label, labels=corpus.labels, include=include, exclude=corpus.exclude
    )


# Forgetting


def forget(
    store: Store,
    machine: Machine,
    client: Client | None,
    *,
    shards: Sequence[str] = (),
    where: Sequence[str] = (),
    why: str = "",
    fast: bool = False,
    corpus: str | None = None,
    group_rows: int | None = None,
) -> Rewritten:
    """Take shards, or rows by the value of a column, out of a store, in one commit.

    Parameters
    ----------
    store : Store
    machine, client
        Where to work.
    shards : sequence of str
        Keys, files (all their shards), or beginnings of content ids of eight digits or more.
    where : sequence of str
        `column=value`, or `column=@file` with a value a line; for text files the column is `doc_id`, the path. Rows
        that match any of them leave.
    why : str
        The reason, for the record.
    fast : bool
        Read only the shards that rows leave, and subtract; see `rewrite`.
    corpus : str, optional
        Where the corpus lies now, if it was moved.
    group_rows : int, optional

    Raises
    ------
    ConfigError
        If neither is given, or a condition has another form.
    MismatchError
        If a shard is not counted, or nothing matches.
    """
    if not shards and not where:
        msg = "neither --shard nor --where"
        raise ConfigError(msg, "what to forget", "for instance --where doc_id=17")
    options = WorkOptions(n_threads=machine.threads, backend=machine.backend)
    source = _reader(store, corpus)
    there = locate(store, corpus) if corpus else {}
    counted = store.counted()
    placed = [replace(s, uri=there[s.bytes_id].uri) if s.bytes_id in there else s for s in counted.values()]
    leaving: dict[str, tuple[int, ...] | None] = {}
    for name in shards:
        leaving |= dict.fromkeys(_named(name, placed))
    for column, values in _conditions(where).items():
        found = find_rows(store, source, column, values, where=there, client=client, options=options)
        for content, positions in found.items():
            whole = content in leaving and leaving[content] is None
            leaving[content] = None if whole else tuple(sorted({*(leaving.get(content) or ()), *positions}))
    if not leaving:
        msg = f"no counted row with {' or '.join(where)}"
        raise MismatchError(msg, "at least one", "values are compared as text; nothing was changed")
    for content, gone in leaving.items():
        if gone is not None and _is_all(store, counted[content], gone):
            leaving[content] = None
    return rewrite(
        store,
        source,
        leaving,
        why=why,
        fast=fast,
        where=there,
        client=client,
        options=options,
        group_rows=group_rows,
    )


def _is_all(store: Store, shard: Shard, positions: tuple[int, ...]) -> bool:
    if store.header.reader.get("kind") != "tokens":
        return len(positions) == shard.planned_rows
    return bool(store.header.reader.get("settings", {}).get("files", "text") == "text")  # a file is one document


def _named(name: str, counted: Sequence[Shard]) -> list[str]:
    hexadecimal = len(name) >= 8 and set(name) <= set("0123456789abcdef")
    found = [s for s in counted if hexadecimal and s.content_id.startswith(name)]
    found = found or [s for s in counted if s.key == name]
    found = found or [s for s in counted if name in _wider_names(s)]
    files = sorted({s.uri for s in found})
    if not found:
        msg = f"no counted shard {name!r}"
        raise MismatchError(msg, "a key, a file or the beginning of a content id", "`streamfit status --shards`")
    if len(files) > 1:
        msg = f"{name!r} is the name of shards of {len(files)} files: {', '.join(files[:3])}"
        raise MismatchError(msg, "one of them", "give the full path, or content ids")
    return [s.content_id for s in found]


def _wider_names(shard: Shard) -> set[str]:
    """Names of what a shard is a part of: of the part of a file that it selects rows of, and of the file."""
    chosen = ",".join(f"{column_of(key)[0]}={value}" for key, value in shard.select)
    part = shard.key.removesuffix(f"[{chosen}]") if shard.select else shard.key
    return {part, re.sub(r"#\d+(-\d+)?$", "", part), shard.uri} - {""}  # no path: it came without names


def _conditions(where: Sequence[str]) -> dict[str, set[str]]:
    wanted: dict[str, set[str]] = {}
    for condition in where:
        column, sign, value = condition.partition("=")
        if not sign or not column or not value:
            msg = f"--where {condition!r}"
            raise ConfigError(msg, "column=value, or column=@file with a value a line")
        values = {value}
        if value.startswith("@"):
            try:
                values = set(Path(value[1:]).read_text(encoding="utf-8").split("\n")) - {""}
            except (OSError, UnicodeDecodeError) as error:
                msg = f"{value[1:]}: {error.strerror if isinstance(error, OSError) else 'not utf-8'}"
                raise ConfigError(msg, "a readable file with a value a line") from error
        wanted.setdefault(column, set()).update(values)
    return wanted


def _reader(store: Store, corpus: str | None) -> Source:
    """Reads shards where their ledger says that they lie."""
    uris = sorted({shard.uri for shard in store.counted().values()})
    return source_of(store.header, corpus or (uris[0] if uris else "."), split=False)


def locate(store: Store, corpus: str) -> dict[str, Shard]:
    """Where bytes lie in a corpus now, by their SHA-256.

    Raises
    ------
    CorpusError
        If there is nothing to read.
    """
    return {shard.bytes_id: shard for shard in source_of(store.header, corpus, split=False).shards()}


def purge(store: Store) -> Collected:
    """Delete the segments that the newest commit no longer needs, at once; earlier commits cannot be gone back to.

    Pins still hold theirs. Segments being written by another run are left alone, for they are not committed yet.
    """
    store.amend("purge", lambda head: {"horizon": head.sequence})
    return collect(store)


# Verifying


def verify_store(
    store: Store,
    machine: Machine,
    client: Client | None,
    *,
    against: str | None = None,
    sample: float = 0.05,
    seed: int = 0,
) -> Verification:
    """Check a store's own bytes, and, against a corpus, that its sums are those of the rows that lie there.

    Parameters
    ----------
    store : Store
    machine, client
        Where to work.
    against : str, optional
        A directory, a glob or a file: where the corpus lies now.
    sample : float
        Share of shards to read again.
    seed : int
        Of the draw.

    Raises
    ------
    ConfigError
        If the share is not in (0, 1].
    """
    if not 0 < sample <= 1:
        msg = f"sample {sample:g}"
        raise ConfigError(msg, "a share in (0, 1]")
    found = verify(store)
    if against is not None and not found.faults:
        options = WorkOptions(n_threads=machine.threads, backend=machine.backend)
        recount(
            store, _reader(store, against), locate(store, against), sample, seed, found, client=client, options=options
        )
    return found


def labels_of(texts: Sequence[str]) -> dict[str, str]:
    """Labels given by hand as `name=value`.

    Raises
    ------
    ConfigError
        If a text is of another form.
    """
    given: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not value or name in given:
            msg = f"--label {text!r}"
            raise ConfigError(msg, "name=value, each name once", "for instance --label source=web")
        given[name] = value
    return given
