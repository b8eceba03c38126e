"""Data sets that the library `datasets` streams, by their name or folder: spooled once, then read as files. Floor 4.

No code of a data set is run: what `datasets` reads are files of rows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from streamfit.corpus.base import Files
from streamfit.corpus.dataset import DatasetFiles
from streamfit.corpus.formats import ArrowFile
from streamfit.corpus.stream import spool
from streamfit.errors import CorpusError, MismatchError

_WHOLE = "whole.json"
"""Names what a folder is the spool of; it is written once that is whole."""


def streamed(name: str, subset: str, part: str, folder: str, **given: Any) -> DatasetFiles:
    """The rows of a data set, from a folder that they are written to the first time.

    Parameters
    ----------
    name : str
        As `datasets.load_dataset` takes it: of a data set on the Hub, or a local folder of its files.
    subset : str
        One of its configurations; empty where it has one alone.
    part : str
        Its split, such as 'train'.
    folder : str
        Where the rows are kept. What a stopped process left there is written over, not read.
    **given
        As in `DatasetFiles`, above all `recipe`.

    Raises
    ------
    CorpusError
        If there is no such data set, it cannot be reached, or it has no rows.
    MismatchError
        If the folder keeps another one.
    """
    there, wanted = Path(folder).expanduser().absolute(), {"name": name, "subset": subset, "split": part}
    if (there / _WHOLE).is_file():
        kept = json.loads((there / _WHOLE).read_text(encoding="utf-8"))
        if kept != wanted:
            msg = f"{there} keeps {' '.join(filter(None, kept.values()))}"
            expected = f"{' '.join(filter(None, wanted.values()))}, or an empty folder"
            raise MismatchError(msg, expected, "set another `spool` in [corpus]")
        return DatasetFiles(Files(str(there), include=("*.arrow",)), "arrow", ArrowFile(), **given)
    for left in there.glob("*.arrow"):
        left.unlink()
    source = spool(_opened(name, subset, part), there, **given)
    partial = there / f"{_WHOLE}.partial"
    partial.write_text(json.dumps(wanted), encoding="utf-8")
    partial.replace(there / _WHOLE)
    return source


def _opened(name: str, subset: str, part: str) -> Any:
    import datasets  # takes a second, which every command and worker would pay

    try:
        return datasets.load_dataset(name, subset or None, split=part, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:  # its own kinds are among them
        msg = f"data set {name}, {subset + ', ' if subset else ''}{part}: {str(error).splitlines()[0]}"
        expected = "a data set on the Hub, or a folder of Parquet, CSV or JSON lines"
        raise CorpusError(msg, expected, "check root, subset and part in [corpus], and the network") from error
