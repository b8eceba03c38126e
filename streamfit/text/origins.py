"""Where the centers of a language model come from: real contexts, each with the file and the offset where it stands.

Floor 6: imports contexts, tokenizer, features. Centers are kept as embedded vectors; which tokens they are, the tables
of the embedding tell, and where those stand, the text they were taken from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamfit.corpus import Placed
from streamfit.features import RBF, Chain, Concat, Decayed, FeatureMap, Lookup, Nearest
from streamfit.text.contexts import context_rows
from streamfit.text.tokenizer import Tokenizer

ORIGINS = "centers.json"
"""Name among the files of a store's header."""


@dataclass(frozen=True)
class Origin:
    """A place in the corpus.

    Parameters
    ----------
    tokens : tuple of int
        The context, the nearest token last.
    file : str
        Relative path; of a member of an archive the archive's, and the member's.
    document : int, optional
        Number of the line of JSON lines, of the row of a table, from 0 in the file; None where the file is a document.
    offset : int
        Bytes of UTF-8 from the start of the document to where the context ends and the next token begins.
    """

    tokens: tuple[int, ...]
    file: str
    document: int | None
    offset: int

    @property
    def place(self) -> str:
        """The place in a line; documents that are files have no number, what was not found has no place."""
        if not self.file:
            return ""
        return f"{self.file}:{self.offset}" if self.document is None else f"{self.file} [{self.document}]:{self.offset}"


def center_block(features: FeatureMap) -> tuple[Lookup, RBF, slice] | None:
    """Embedding, radial basis functions, and their columns among the features; None where there are none."""
    if isinstance(features, Chain) and isinstance(features.inner, Nearest):
        return center_block(features.outer)
    if isinstance(features, Concat):
        return center_block(features.parts[0])  # the network's features come first, a topic's after them
    if not (isinstance(features, Chain) and isinstance(features.inner, Lookup)):
        return None
    start = 0
    for part in features.outer.parts if isinstance(features.outer, Concat) else (features.outer,):
        if isinstance(part, RBF):
            return features.inner, part, slice(start, start + part.n_features)
        start += part.n_features
    return None


def fourier_block(features: FeatureMap) -> slice:
    """Columns of the features that are made of decayed sums, which stand after those of near tokens; none of others."""
    parts = features.parts if isinstance(features, Concat) else (features,)
    sums = parts[-1].inner if isinstance(parts[-1], Chain) else None
    of_sums = all(isinstance(part, Decayed) for part in (sums.parts if isinstance(sums, Concat) else (sums,)))
    n = features.n_features
    return slice(n - parts[-1].n_features, n) if of_sums else slice(n, n)


def find_origins(features: FeatureMap, tokenizer: Tokenizer, texts: Iterable[Placed]) -> list[Origin | None]:
    """Look for the first place in some text where each center stands.

    Tokens with the same vectors, such as those that never came at some distance, stand for one another in a center;
    the first context that has its vectors is taken.

    Parameters
    ----------
    features : FeatureMap
        Of contexts. Without centers over an embedding nothing is found.
    tokenizer : Tokenizer
    texts : iterable of Placed
        Documents; read until all are found.

    Returns
    -------
    list of Origin or None
        One for each center, None where the text does not have it.
    """
    block = center_block(features)
    if block is None:
        return []
    embedding, rbf, _ = block
    classes, wanted = _classes(embedding, rbf.centers)
    found: list[Origin | None] = [None] * len(wanted)
    factors = np.random.default_rng(0).integers(1, 2**63, size=wanted.shape[1], dtype=np.uint64) | np.uint64(1)
    hashed = (wanted.astype(np.uint64) * factors).sum(axis=1, dtype=np.uint64)
    missing = np.asarray((wanted >= 0).all(axis=1))
    for file, number, text in texts:
        if not missing.any():
            break
        contexts, _ = context_rows(tokenizer.encode([text]), wanted.shape[1])
        seen = np.stack([of[contexts[:, j]] for j, of in enumerate(classes)], axis=1)
        rows = (seen.astype(np.uint64) * factors).sum(axis=1, dtype=np.uint64)
        starts: np.ndarray | None = None
        for row in np.flatnonzero(np.isin(rows, hashed[missing])):
            for center in np.flatnonzero(missing & (hashed == rows[row])):
                if not np.array_equal(seen[row], wanted[center]):
                    continue  # hashes can agree by chance
                starts = tokenizer.starts(text) if starts is None else starts
                end = int(starts[row]) if row < len(starts) else len(text)
                tokens = tuple(int(t) for t in contexts[row])
                found[center] = Origin(tokens, file, number, len(text[:end].encode()))
                missing[center] = False
    return found


def _classes(embedding: Lookup, centers: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Tokens with equal rows in a table as one class; and the class of each center's token in each table, or -1."""
    classes, wanted, start = [], [], 0
    for table in embedding.tables:
        first: dict[bytes, int] = {}
        classes.append(np.array([first.setdefault(row.tobytes(), token) for token, row in enumerate(table)]))
        own = np.ascontiguousarray(centers[:, start : start + table.shape[1]], table.dtype)
        wanted.append([first.get(row.tobytes(), -1) for row in own])
        start += table.shape[1]
    return classes, np.array(wanted, dtype=np.int64).T


def origins_bytes(origins: Sequence[Origin | None]) -> bytes:
    """JSON for the header of a store."""
    kept = [None if o is None else [list(o.tokens), o.file, o.document, o.offset] for o in origins]
    return json.dumps(kept).encode()


def origins_info(files: Mapping[str, bytes]) -> dict[str, Any]:
    """What a model keeps of its store's header; nothing of one that was made before places were kept."""
    return {"centers": json.loads(files[ORIGINS])} if ORIGINS in files else {}


def origins_of(info: Mapping[str, Any]) -> list[Origin | None]:
    """Places that a model keeps; empty where it keeps none."""
    return [None if o is None else Origin(tuple(o[0]), *o[1:]) for o in info.get("centers", [])]
