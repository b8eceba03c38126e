"""A commented first config from a look at data. Floor 7."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from glob import has_magic
from itertools import islice
from pathlib import Path

import pyarrow as pa

from streamfit.corpus.base import SPLITS, Files, split_of
from streamfit.corpus.tar import endings_within
from streamfit.corpus.text_formats import COMPRESSIONS
from streamfit.errors import ConfigError, CorpusError
from streamfit.look import Column, Look, look
from streamfit.rows import of_other_kinds

_CLASSES = 20
_TARGETS = ("target", "label", "y", "class", "outcome", "response", "price", "rating", "delay", "score", "value")
_CLASS_TARGETS = ("target", "label", "class", "outcome", "y")
_NAMED = 64
_WEIGHTS = ("weight", "weights", "sample_weight", "w")
_SPLITS = ("split", "part", "fold")
_TEXTS = (".txt", ".md", ".rst", ".py", ".c", ".h", ".tex", ".html", ".log")
_SHARES = ((0.8, 0.1, 0.1), (0.7, 0.15, 0.15), (0.6, 0.2, 0.2), (0.5, 0.25, 0.25))
_TEXT_FIELDS = ("text", "content", "body", "document")


def starter(root: str, target: Sequence[str] = (), run: str = "") -> str:
    """A commented config for data.

    Parameters
    ----------
    root : str
        A file, a folder or a pattern.
    target : sequence of str
        Target columns, where they are known.
    run : str
        Folder of the run.

    Returns
    -------
    str
        TOML that `streamfit fit` takes.

    Raises
    ------
    CorpusError
        If there is nothing to look at.
    ConfigError
        If a target is not there, or nothing could be a feature.
    """
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(root.rstrip("/*")).stem).strip("-") or "fit"
    run = run or f"runs/{name}"
    path = Path(root).expanduser()
    files = [p for p in islice(path.rglob("*"), 10_000) if p.is_file()] if path.is_dir() else [path]
    if "://" not in root and has_magic(root):
        files = [p for _, p in Files(root).find()]
    if "://" not in root and not has_magic(root) and not path.exists():
        msg = f"no file or directory at {root}"
        raise CorpusError(msg, "data to look at")
    plain = {f".{p.name.lower().removesuffix(_compression(p)).rpartition('.')[2]}" for p in files}
    first = next((p for p in files if ".txt" in p.suffixes), None)
    if files and plain <= {*_TEXTS} and not (first is not None and _is_table(first)):
        endings = sorted({"".join(p.suffixes[-2:]) if _compression(p) else p.suffix for p in files})
        return _text_starter(root, run, "text", endings, len(files))
    archives = [p for p in files if _is_archive(p)]
    if archives and len(archives) == len(files):
        return _text_starter(root, run, "tar", [], len(files), _ending_within(archives[0]))
    try:
        found = look(root)
    except ConfigError:
        endings = sorted({p.suffix for p in files if p.suffix in _TEXTS})
        if not endings:
            raise
        return _text_starter(root, run, "text", endings, len(files))
    texts = [c.name for c in found.columns if c.role == "text" and c.name in _TEXT_FIELDS]
    if found.kind in ("jsonl", "dataset", "parquet", "arrow") and texts and not target:
        return _text_starter(root, run, found.kind, [], found.n_rows, texts[0], alone=found.n_parts < 2)
    return _table_starter(found, tuple(target), run, _left_behind(files, found.kind))


def _left_behind(files: Sequence[Path], kind: str) -> list[str]:
    """A line on files of rows that the config will not read, if there are any."""
    told = ", ".join(f"{n:,} {ending}" for ending, n in of_other_kinds([p.name for p in files], kind).items())
    return [f"# Not read are files of other kinds ({told}): give each kind a config of its own."] if told else []


def _is_archive(path: Path) -> bool:
    return ".tar" in path.suffixes or path.suffix == ".tgz"


def _ending_within(archive: Path) -> str:
    """The ending of most members of an archive that could be texts, without its dot."""
    counts = endings_within(archive)
    texts = [ending for ending in counts if f".{ending.rpartition('.')[2]}" in _TEXTS]
    if not texts:
        msg = f"{archive} holds members that end in {', '.join(map(repr, list(counts)[:5])) or 'nothing'}"
        raise CorpusError(msg, f"texts among the first: {', '.join(_TEXTS)}", "write a config with their `field`")
    return max(texts, key=lambda ending: counts[ending])


def _compression(path: Path) -> str:
    """The ending that says how a file is compressed; empty for others."""
    return path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""


def _is_table(path: Path) -> bool:
    """Whether the first lines of a .txt have as many values each, more than one."""
    try:
        with io.TextIOWrapper(pa.input_stream(str(path), compression="detect"), encoding="utf-8") as file:
            lines = [line for line in islice(file, 20) if line.strip()]
    except (OSError, UnicodeDecodeError, pa.ArrowException):
        return False
    return any(len({line.count(sign) for line in lines}) == 1 and sign in lines[0] for sign in ",;\t|" if lines)


def _text_starter(
    root: str, run: str, kind: str, endings: list[str], n: int, field: str = "text", *, alone: bool = False
) -> str:
    include = f"include = {json.dumps([f'*{e}' for e in endings])}\n" if endings else ""
    shares = _shares(root, tuple(f"*{e}" for e in endings)) if kind == "text" else _SHARES[0]
    told = f"field = {json.dumps(field)}\n" if field != ("txt" if kind == "tar" else "text") else ""
    grid = "alphas = [0.1, 1, 10, 100, 1000, 10000]"
    if alone:
        grid = f"alphas = [100]\n# {grid}  # with two files or row groups at least, some to be held out"
    what = {"text": f"{n:,} files", "tar": f"{n:,} archive(s)"}.get(kind, f"about {n:,} documents")
    return f"""# A language model of {what} under {root}.
#   streamfit fit THIS_FILE --dry-run    what it would do, and for how long
#   streamfit fit THIS_FILE
kind = "language_model"
run = {json.dumps(run)}          # store/, model/ and streamfit.log go here

[corpus]
kind = {json.dumps(kind)}
root = {json.dumps(root)}
{include}{told}split = {json.dumps(shares)}         # train, validation, test: by a hash, so that it never changes

[features]
vocab_size = 4096
n_context = 6                   # tokens that a prediction sees
embedding_dims = 128
n_centers = 256                 # real contexts of the corpus; more fit better, the work grows with their square
ngram_order = 3

[solve]
{grid}
folds = 5                       # one alpha is picked from held-out folds, without reading again
"""


def _shares(root: str, include: tuple[str, ...]) -> tuple[float, float, float]:
    """Shares of train, validation and test that leave none of them empty: few files fall unevenly."""
    names = [name for name, _ in Files(root, include).find()]
    for shares in _SHARES:
        if {split_of(name, shares) for name in names} == {*SPLITS}:
            return shares
    return _SHARES[0]


def _table_starter(found: Look, target: tuple[str, ...], run: str, others: list[str]) -> str:
    columns = {c.name: c for c in found.columns}
    if unknown := [name for name in target if name not in columns]:
        msg = f"target {', '.join(unknown)}"
        raise ConfigError(msg, f"some of {', '.join(columns)}")
    target = target or _guess(found)
    split = next(
        (c for c in found.columns if c.role == "category" and c.name.lower() in ("split", "part", "fold")), None
    )
    weight = next((c for c in found.columns if c.name.lower() in _WEIGHTS and c.name not in target), None)
    taken = {*target, *([split.name] if split else []), *([weight.name] if weight else [])}
    used = [c for c in found.columns if c.name not in taken and c.role in ("number", "list", "category", "date")]
    if not used:
        msg = f"{found.root}: no column that could be a feature of {', '.join(target)}"
        raise ConfigError(msg, "numbers, lists, dates or names beside the target")
    goal = columns[target[0]]
    alone = len(target) == 1
    named = ("false", "true") if goal.kind == "bool" else goal.values[: _NAMED + 1]
    named = named if alone and len(named) <= _NAMED else ()
    classes = alone and not named and goal.whole and 2 <= goal.n_values <= _CLASSES and goal.top == goal.n_values - 1
    lines = [
        f"# {found.n_files:,} file(s) of kind {found.kind!r}, {'' if found.exact else 'about '}{found.n_rows:,} rows;"
        f" {len(found.columns)} columns, of which the first {found.n_looked:,} rows were looked at.",
        *others,
        "#   streamfit fit THIS_FILE --dry-run    what it would do, and for how long",
        "#   streamfit fit THIS_FILE",
        'kind = "ridge"',
        f"run = {json.dumps(run)}          # store/, model/ and streamfit.log go here",
        'precision = "float32"         # of products, "float64" for columns that are nearly dependent; sums are exact',
        "",
        "[corpus]",
        f"kind = {json.dumps(found.kind)}",
        f"root = {json.dumps(found.root)}",
        *(f"{name} = {json.dumps(value)}" for name, value in found.options.items()),
        *(['partitions = "hive"            # columns in the path, such as year=2026'] if found.hive else []),
        "features = [",
        *(f"    {json.dumps(c.name)},{_remark(c)}" for c in used),
        "]",
        *_left_out(found, taken, used),
        f"target = {json.dumps(list(target))}" + ("" if goal.role != "number" else f"  # {goal.kind}"),
    ]
    if classes:
        lines.append(
            f"n_classes = {goal.n_values}                 # its whole numbers are classes; leave out to regress on"
        )
    if named:
        lines.append(f"classes = {json.dumps(list(named))}  # the target's values")
    if weight:
        lines.append(f"weight = {json.dumps(weight.name)}")
    if names := [c.name for c in used if c.role == "category"]:
        lines += [
            f"categories = {json.dumps(names)}",
            'unseen = "error"              # or "zero": of values that come later',
        ]
    if any(c.missing for c in used):
        lines.append('missing = "mean"               # or "drop", "error": rows that lack a feature')
    if any(columns[name].missing for name in target):
        lines.append('missing_target = "drop"')
    if split:
        lines += [f"split_column = {json.dumps(split.name)}", *_split_values(split)]
    lines += _time_labels(found)
    lines += [
        "",
        "[[features]]                   # blocks are put side by side",
        'kind = "linear"',
        "",
        "# [[features]]                 # smooth functions of all columns: 'fourier', 'rbf' or 'nystroem'",
        '# kind = "fourier"',
        "# n = 256",
        "",
        "[solve]",
        *_alphas(found),
        "folds = 5                       # of shards; one alpha is picked from held-out folds, without reading again",
    ]
    return "\n".join(lines) + "\n"


def _alphas(found: Look) -> list[str]:
    """A grid where there are shards to hold out; a single file may be a single one."""
    grid = "[0.01, 0.1, 1, 10, 100, 1000]"
    if found.n_files > 1:
        return [f"alphas = {grid}"]
    return ["alphas = [1.0]", f"# alphas = {grid}  # with two files or row groups at least, some to be held out"]


def _guess(found: Look) -> tuple[str, ...]:
    candidates = [c for c in found.columns if c.role == "number" and c.name.lower() not in _WEIGHTS]
    named = [c for c in found.columns if c.role == "category" and c.name.lower() in _CLASS_TARGETS]
    if named:
        return (named[0].name,)
    if not candidates:
        msg = f"{found.root}: no column of numbers that could be the target"
        raise ConfigError(msg, "one", "name it with --target")
    for wanted in _TARGETS:
        for c in candidates:
            if wanted in re.split(r"[^a-z0-9]+", c.name.lower()):
                return (c.name,)
    return (candidates[-1].name,)


def _remark(column: Column) -> str:
    told = {"category": f"{column.n_values} names", "list": column.kind, "date": "as days since 1970"}.get(
        column.role, ""
    )
    missing = f"{column.missing:,} missing" if column.missing else ""
    both = ", ".join(part for part in (told, missing) if part)
    return f"  # {both}" if both else ""


def _left_out(found: Look, taken: set[str], used: list[Column]) -> list[str]:
    why = {
        "id": "a number or name of each row",
        "text": "too many names for a column each: hash them, [[features]] kind = 'hashed'",
        "constant": "the same in all rows",
    }
    out = [c for c in found.columns if c.name not in taken and c not in used]
    lines = [f"# left out: {json.dumps(c.name)}, {why.get(c.role, c.kind)}" for c in out[:20]]
    dates = [
        f'# parts of dates are features as well: "weekday({c.name})", month, hour' for c in used if c.role == "date"
    ]
    return lines + dates[:1]


def _split_values(split: Column) -> list[str]:
    return [f"# split_values = {json.dumps(list(SPLITS))}   # its values for the three, if they are others"]


def _time_labels(found: Look) -> list[str]:
    dates = [c for c in found.columns if c.role == "date"]
    if not dates:
        return []
    return [
        "",
        "# [corpus.labels]              # kept with the sums, for --half-life and --mix; few in each part of a file",
        f"# time = {json.dumps(dates[0].name)}",
        '# period = "month"',
    ]
