"""The jobs that a store's keeper does: open, add, verify; `forgetting` has one of its own. Floor 7.

Each is a few calls of the floors below, and is what a command of the same name prints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from glob import escape, has_magic
from itertools import takewhile
from pathlib import Path

from distributed import Client
from rich.console import Console

from streamfit.config import LanguageProblem, load_problem
from streamfit.config_corpus import TextSection
from streamfit.corpus import Files, Labels, Rows, Source, Tally
from streamfit.corpus.base import Split
from streamfit.corpus.labels import NO_LABELS
from streamfit.engine import Machine, RunSummary, WorkOptions, bands_of, recount, say
from streamfit.errors import ConfigError, CorpusError, ShardError
from streamfit.jobs import accumulate_into
from streamfit.plan import Shard
from streamfit.readers import table_source
from streamfit.store import Header, Store, Verification, verify
from streamfit.text import token_source
from streamfit.text.contexts import TokenSource

SAMPLE = 0.05
"""Share of shards that are read again where none is given."""


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
    leave_out: frozenset[str] = frozenset(),
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
    leave_out : frozenset of str
        Content ids of documents' files that are not listed.
    """
    plain = (
        Path(root)
        if "://" in root or Path(root).exists()
        else Path(*takewhile(lambda part: not has_magic(part), Path(root).parts))
    )
    label, labels = label or plain.stem or "corpus", labels or Labels()
    if header.reader.get("kind") != "tokens":
        return replace(table_source(header.reader, Files(root, include, exclude), label), labels=labels)
    settings = header.reader.get("settings", {})
    kept = {name: settings[name] for name in ("encoding", "field", "split", "shard_bytes") if name in settings}
    section = TextSection(
        root=root,
        include=include,
        exclude=exclude,
        label=label,
        kind=settings.get("files", "text"),
        **kept,
    )
    documents = replace(section.documents("train"), labels=labels)  # type: ignore[call-arg]  # every kind has them
    if not split and section.kind == "text":
        documents = replace(documents, files=replace(documents.files, split=None))
    documents = replace(documents, leave_out=leave_out)
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
    held_out : frozenset of str
        Content ids of its validation and test files, which are not for training under any other path either.
    """

    root: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    label: str = ""
    labels: Labels = NO_LABELS
    held_out: frozenset[str] = frozenset()

    @classmethod
    def of(cls, where: str | Path) -> Corpus:
        """The corpus of a run's folder; of a bare store nothing is known."""
        path = Path(where) / "problem.json"
        if "://" in str(where) or not path.is_file():
            return cls()
        problem = load_problem(path)
        given, held_out = problem.corpus, set[str]()
        # Where files hold many texts, a hash of each text keeps copies apart wherever they are.
        if isinstance(problem, LanguageProblem) and problem.corpus.kind != "text":
            with suppress(CorpusError):
                held_out |= problem.corpus.ids_of_named()
        elif isinstance(problem, LanguageProblem):
            parts: tuple[Split, ...] = ("validation", "test")
            for part in parts:
                with suppress(CorpusError):  # none, or moved away
                    held_out |= {shard.content_id for shard in problem.corpus.documents(part).shards()}
        return cls(given.root, given.include, given.exclude, given.label, given.labels.settings(), frozenset(held_out))

    def labelled(self, given: dict[str, str]) -> Corpus:
        """The same with labels given by hand, which go before those that a path or a column would give."""
        others = self.labels.without(given)
        return replace(self, labels=replace(others, fixed=tuple(sorted({**dict(others.fixed), **given}.items()))))


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

    @property
    def is_weighted(self) -> bool:
        return self.sources[0].is_weighted

    @property
    def row_item(self) -> int:
        return self.sources[0].row_item

    def decode_bytes(self, shards: Sequence[Shard], row_bytes: int) -> int:
        return self.sources[0].decode_bytes(shards, row_bytes)

    def blocks_held(self, shard: Shard) -> int:
        return self.sources[0].blocks_held(shard)

    def tally(self) -> Tally | None:
        return self.sources[0].tally()

    def tally_room(self, n_rows: int) -> int:
        return self.sources[0].tally_room(n_rows)


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
    return accumulate_into(
        store,
        addition(store, roots, console, corpus),
        machine,
        client,
        console,
        group_rows=group_rows,
        skip_bad_shards=skip_bad_shards,
        replace_changed=replace_changed,
        recount=recount_forgotten,
    )


def addition(store: Store, roots: Sequence[str], console: Console, corpus: Corpus | None = None) -> Source:
    """What `add` reads: the files of all roots together, without copies of held-out text.

    Raises
    ------
    CorpusError
        If one is not there.
    """
    for root in roots:
        if "://" not in root and not has_magic(root) and not Path(root).expanduser().exists():
            msg = f"no file or directory at {root}"
            raise CorpusError(msg, "a directory, a file or a glob pattern", "check the path")
    corpus = corpus or Corpus()
    held_out = corpus.held_out - store.counted().keys()  # a copy that was there from the start is for training
    sources = tuple(_below(store, root, replace(corpus, held_out=held_out)) for root in roots)
    texts = [source.documents for source in sources if isinstance(source, TokenSource)] if held_out else []
    if left := {part.uri for text in texts for _, part in text.wholes() if part.content_id in held_out}:
        say(console, f"left out {len(left):,} files that are copies of the run's validation or test text", "yellow")
    return sources[0] if len(sources) == 1 else Together(sources)


def _below(store: Store, root: str, corpus: Corpus) -> Source:
    include: tuple[str, ...] = ()
    if "://" in root:
        include = corpus.include if root.rstrip("/") == corpus.root.rstrip("/") else ()
    else:
        path, above = Path(root).expanduser().absolute(), Path(corpus.root).expanduser().absolute()
        if corpus.root and not has_magic(root) and above.is_dir() and path.is_relative_to(above):
            name = escape(path.relative_to(above).as_posix())
            include = corpus.include if path == above else (f"{name}/*",) if path.is_dir() else (name,)
            root = corpus.root
    return source_of(
        store.header,
        root,
        label=corpus.label,
        labels=corpus.labels,
        include=include,
        exclude=corpus.exclude,
        leave_out=corpus.held_out,
    )


# Reading again what was counted


def reader_of(store: Store, corpus: str | None) -> Source:
    """Reads shards where their ledger says that they lie."""
    uris = sorted({shard.uri for shard in store.counted().values()})
    return source_of(store.header, corpus or (uris[0] if uris else "."), split=False)


def locate(store: Store, corpus: str) -> dict[str, Shard]:
    """Where bytes lie in a corpus now, by their hash.

    Raises
    ------
    CorpusError
        If there is nothing to read.
    """
    return {shard.bytes_id: shard for shard in source_of(store.header, corpus, split=False).shards()}


def verify_store(
    store: Store,
    machine: Machine,
    client: Client | None,
    *,
    against: str | None = None,
    sample: float | None = None,
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
    sample : float, optional
        Share of shards to read again; `SAMPLE` without it.
    seed : int
        Of the draw.

    Raises
    ------
    ConfigError
        If the share is not in (0, 1], or there is no corpus to draw it from.
    """
    if sample is not None and against is None:
        msg = f"sample {sample:g} of no corpus"
        raise ConfigError(msg, "a corpus to read again", "say with --against where it lies")
    share = SAMPLE if sample is None else sample
    if not 0 < share <= 1:
        msg = f"sample {share:g}"
        raise ConfigError(msg, "a share in (0, 1]")
    found = verify(store)
    if against is not None and not found.faults:
        bands = bands_of(store, machine.worker_memory, machine.threads)
        options = WorkOptions(n_threads=machine.threads, backend=machine.backend, n_bands=bands)
        source, found_at = reader_of(store, against), locate(store, against)
        recount(store, source, found_at, share, seed, found, client=client, options=options)
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
