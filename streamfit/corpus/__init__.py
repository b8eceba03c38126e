"""Where rows come from: files cut into shards with content ids."""

from streamfit.corpus.base import Files, Rows, Source, Split, Tally, split_of
from streamfit.corpus.labels import Labels
from streamfit.corpus.parquet import ParquetTable
from streamfit.corpus.text import Documents, JsonLines, Placed, TextFiles

__all__ = [
    "Documents",
    "Files",
    "JsonLines",
    "Labels",
    "ParquetTable",
    "Placed",
    "Rows",
    "Source",
    "Split",
    "Tally",
    "TextFiles",
    "split_of",
]
