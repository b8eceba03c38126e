"""KenLM's `lmplz` on tokens that n-grams were counted of here: its time and memory, and its probabilities.

A helper of `large_corpus.py`. The program is the user's own (https://github.com/kpu/kenlm); a document is a line of
token numbers to it, and what it has not seen is one `<unk>` out of so many as fill the vocabulary.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamfit.errors import ConfigError

_MEASURED = """
import json, os, subprocess, sys
child = subprocess.Popen(sys.argv[2:])
_, status, used = os.wait4(child.pid, 0)
with open(sys.argv[1], "w") as out:
    json.dump([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss], out)
"""
"""A small process that starts another: a child's largest size begins with that of what it was forked from."""


@dataclass(frozen=True)
class Toolkit:
    """What `lmplz` took, and how its probabilities differ.

    Parameters
    ----------
    seconds : float
        CPU seconds, of reading text to writing a model.
    peak_bytes : int
        Largest resident size.
    tokens : int
        Held-out ones that were compared.
    perplexity, own_perplexity : float
        Of these tokens, by it and by what was counted here.
    difference : float
        Largest between two probabilities.
    """

    seconds: float
    peak_bytes: int
    tokens: int
    perplexity: float
    own_perplexity: float
    difference: float


def refuse_none(lmplz: Path) -> None:
    """Refuse what cannot be run, before anything is counted.

    Raises
    ------
    ConfigError
        If there is no such program.
    """
    if shutil.which(lmplz) is None:
        msg = f"{lmplz}: no program"
        raise ConfigError(msg, "KenLM's lmplz")


def beside(
    lmplz: Path,
    documents: Iterable[np.ndarray],
    order: int,
    vocab_size: int,
    memory_bytes: int,
    folder: Path,
    asked: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> Toolkit:
    """Estimate a model of documents and compare it.

    Parameters
    ----------
    lmplz : Path
    documents : iterable of int arrays
    order, vocab_size : int
    memory_bytes : int
        What it is told to sort in.
    folder : Path
        For its text, its runs and its model.
    asked : tuple of arrays
        Contexts of shape (n, m), m at least order - 1, tokens, and their probabilities.

    Raises
    ------
    ConfigError
        If it says that it failed.
    """
    text, model = folder / "lmplz.txt", folder / "lmplz.arpa"
    with text.open("w", encoding="ascii") as out:
        out.writelines(" ".join(map(str, ids.tolist())) + "\n" for ids in documents)
    seconds, peak = _estimate(lmplz, text, model, order, vocab_size, memory_bytes)
    contexts, tokens, own = asked
    theirs = 10.0 ** log10_probabilities(model, contexts[:, contexts.shape[1] + 1 - order :], tokens)
    text.unlink()
    model.unlink()
    return Toolkit(
        seconds,
        peak,
        len(tokens),
        float(np.exp(-np.log(theirs).mean())),
        float(np.exp(-np.log(own).mean())),
        float(np.abs(theirs - own).max()),
    )


def _estimate(lmplz: Path, text: Path, model: Path, order: int, vocab_size: int, memory: int) -> tuple[float, int]:
    arguments = ["-o", order, "-S", f"{memory}b", "-T", f"{text.parent}/", "--vocab_pad", vocab_size]
    command = [str(lmplz), *map(str, arguments), "--discount_fallback"]
    said, took = text.with_suffix(".log"), text.with_suffix(".json")
    with text.open("rb") as given, model.open("wb") as out, said.open("wb") as log:
        measured = [sys.executable, "-c", _MEASURED, str(took), *command]
        subprocess.run(measured, stdin=given, stdout=out, stderr=log, check=True)
    code, seconds, peak = json.loads(took.read_text(encoding="ascii"))
    if code:
        last = (said.read_text("utf-8", "replace").strip() or "nothing").splitlines()[-1]
        msg = f"{lmplz} ended with {code}: {last}"
        raise ConfigError(msg, "a model of the tokens")
    return seconds, peak


def log10_probabilities(model: Path, contexts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """log10 p(token | context) by an ARPA file, of which what is asked alone is kept.

    Parameters
    ----------
    model : Path
    contexts : int array of shape (n, order - 1)
        Padded with 0 before a document's start, which is one `<s>`.
    tokens : int array of shape (n,)

    Returns
    -------
    array of shape (n,)
    """
    asked = [_words(*row) for row in zip(contexts.tolist(), tokens.tolist(), strict=True)]
    wanted = {" ".join(words[i:j]) for words in asked for i in range(len(words)) for j in (len(words), len(words) - 1)}
    wanted |= {"<unk>"}
    found: dict[str, tuple[float, float]] = {}
    with model.open(encoding="ascii") as lines:
        for line in lines:
            parts = line.rstrip("\n").split("\t")
            if len(parts) > 1 and parts[1] in wanted:
                found[parts[1]] = float(parts[0]), float(parts[2]) if len(parts) > 2 else 0.0
    return np.array([_scored(words, found) for words in asked])


def _words(context: list[int], token: int) -> list[str]:
    inside = [str(t) for t in context if t]
    start = ["<s>"] if len(inside) < len(context) else []
    return [*start, *inside, str(token) if token else "</s>"]


def _scored(words: list[str], found: dict[str, tuple[float, float]]) -> float:
    """By back-off: from the longest n-gram that is there, times the weights of the contexts that are longer."""
    weight = 0.0
    for i in range(len(words)):
        if (gram := " ".join(words[i:])) in found:
            return weight + found[gram][0]
        weight += found.get(" ".join(words[i:-1]), (0.0, 0.0))[1]
    return weight + found["<unk>"][0]
