"""WikiText-2, and the model of it that pipelines compare: settings that were chosen on its validation text."""

from __future__ import annotations

import gzip
from pathlib import Path

from streamfit.errors import CorpusError
from streamfit.text import ExpertSettings, LanguageSettings

PARTS = ("train", "valid", "test")
ALPHA = 1e5
EXPERTS = ExpertSettings(("ngram", "suffix_ridge", "classes", "refined", "skip"), cache=4000)
SETTINGS = LanguageSettings(
    vocab_size=33_278, tokenizer="words", n_context=4, n_centers=0, linear=False, ngram_order=5,
    topic_dims=100, topic_window=256, n_folds=1,
)  # fmt: skip


def lay_out(data: Path, run: Path) -> dict[str, Path]:
    """Folders with one text file each."""
    folders = {}
    for part in PARTS:
        folders[part] = run / "text" / part
        folders[part].mkdir(parents=True, exist_ok=True)
        plain, packed = data / f"{part}.txt", data / f"{part}.txt.gz"
        if not (plain.is_file() or packed.is_file()):
            msg = f"no {part}.txt and no {part}.txt.gz in {data}"
            raise CorpusError(msg, "train, valid and test of WikiText-2", "give their folder as --data")
        content = plain.read_bytes() if plain.is_file() else gzip.decompress(packed.read_bytes())
        (folders[part] / f"{part}.txt").write_bytes(content)
    return folders
