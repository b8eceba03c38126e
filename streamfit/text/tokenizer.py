"""Text to token ids and back: byte-level BPE or unigram pieces, or any tokenizer of the `tokenizers` library.

Floor 6.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from streamfit.errors import ConfigError

DOCUMENT = "<|document|>"
"""The one special token: pads contexts before a document's start and is predicted as its end."""
TRAINED = ("bpe", "unigram", "words")
"""Kinds that can be trained."""
UNKNOWN = "<unk>"
"""Stands for words that are not in the vocabulary, as in the classic word-level benchmarks."""
_UNSEEN_SPAN = 256 * 1e-4
"""Range of scores that the library gives to bytes that no text had."""


class Prompt(NamedTuple):
    """A text that is to be continued, cut as it would be cut with what follows.

    Parameters
    ----------
    ids : int32 array of shape (n,)
        Tokens that stand before the continuation.
    given : str
        End of the text that is the beginning of the continuation: a space, or nothing.
    first : int64 array of shape (m,), optional
        Tokens that the continuation may begin with, where not all may.
    """

    ids: np.ndarray
    given: str = ""
    first: np.ndarray | None = None


class Tokenizer:
    """A tokenizer whose id 0 is the document token.

    Any tokenizer of the `tokenizers` library will do. One that has another token at id 0, because it was not made here,
    has its ids moved up by one, so that the document token has a place. Its own special tokens are tokens like any
    other, and never made from text that spells them; what it adds around a text, cuts off or pads, it does not here.

    Parameters
    ----------
    serialized : str
        The tokenizer as the JSON of the `tokenizers` library.

    Raises
    ------
    ConfigError
        If it is not such a JSON, or has no tokens.
    """

    def __init__(self, serialized: str) -> None:
        self.serialized = serialized
        if not self._tokenizer.get_vocab_size():
            msg = "a tokenizer without tokens"
            raise ConfigError(msg, "one that was trained")
        self._shift = int(self._tokenizer.id_to_token(0) != DOCUMENT)

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[str]]:
        return Tokenizer, (self.serialized,)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, kind: str = "bpe") -> Tokenizer:
        """Train byte-level pieces, so that any text has tokens.

        Parameters
        ----------
        texts : iterable of str
        vocab_size : int
            At least 257: every byte and the document token. Fewer may come of a small text.
        kind : {'bpe', 'unigram', 'words'}
            Byte pairs that are merged (Sennrich et al. 2016), pieces that are pruned from many by their likelihood
            (Kudo 2018), or whole words, see `_words`.

        Raises
        ------
        ConfigError
            If `vocab_size` is too small, or there is no such kind.
        """
        if vocab_size < 257:
            msg = f"vocab_size {vocab_size}"
            raise ConfigError(msg, "at least 257, every byte and the document token")
        if kind not in TRAINED:
            msg = f"tokenizer {kind!r}"
            raise ConfigError(msg, f"{' or '.join(TRAINED)}, or the path of a tokenizer's .json")
        if kind == "words":
            return cls(_words(texts, vocab_size))
        settings: dict[str, Any] = {
            "vocab_size": vocab_size,
            "special_tokens": [DOCUMENT],
            "initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet()),
            "show_progress": False,
        }
        pieces = tokenizers.Tokenizer(models.BPE() if kind == "bpe" else models.Unigram())
        pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        pieces.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(**settings) if kind == "bpe" else trainers.UnigramTrainer(**settings)
        pieces.train_from_iterator(texts, trainer)
        return cls(pieces.to_str() if kind == "bpe" else _settled(pieces.to_str()))

    @classmethod
    def read(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer's JSON file, such as the `tokenizer.json` of a published model.

        Raises
        ------
        ConfigError
            If it cannot be read, or is no tokenizer.
        """
        try:
            return cls(Path(path).expanduser().read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            msg = f"no tokenizer at {path}: {error}"
            raise ConfigError(msg, "a JSON file of the `tokenizers` library") from error

    @property
    def digest(self) -> str:
        """SHA-256 of the JSON."""
        return hashlib.sha256(self.serialized.encode()).hexdigest()

    @cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        try:
            loaded = tokenizers.Tokenizer.from_str(self.serialized)
        except Exception as error:  # the library raises bare Exception
            msg = f"a tokenizer that cannot be read: {error}"
            raise ConfigError(msg, "JSON of the `tokenizers` library") from error
        # Text that happens to spell the document token is text; only the reader puts the token itself.
        loaded.encode_special_tokens = True
        loaded.no_truncation()
        loaded.no_padding()
        return loaded

    @cached_property
    def vocab_size(self) -> int:
        """Number of token ids."""
        # Ids of a tokenizer made elsewhere may have gaps.
        return int(max(self._tokenizer.get_vocab().values())) + 1 + self._shift

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...] | None:
        """Bytes of UTF-8 that each token spells, or None where tokens are not bytes."""
        if not isinstance(self._tokenizer.decoder, decoders.ByteLevel):
            return None
        byte_of = {character: byte for byte, character in _byte_characters().items()}
        spelled = [b""] * self.vocab_size
        for token, token_id in self._tokenizer.get_vocab(with_added_tokens=True).items():
            known = all(character in byte_of for character in token)
            spelled[token_id + self._shift] = bytes(byte_of[c] for c in token) if known else token.encode()
        if not self._shift:
            spelled[0] = b""
        return tuple(spelled)

    @cached_property
    def unknown(self) -> int | None:
        """Id of the token that stands for text without tokens of its own, where there is one."""
        name = getattr(self._tokenizer.model, "unk_token", None)
        found = None if name is None else self._tokenizer.token_to_id(str(name))
        return None if found is None else int(found) + self._shift

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, int32, without the document token."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(e.ids, dtype=np.int32) + np.int32(self._shift) for e in encodings]

    def prompt(self, text: str) -> Prompt:
        """Cut a text that is to be continued.

        Where a space before a word is a part of the word's token, no training text has a token that ends in a space
        before a word. So the last space of a text is left to the continuation, whose first token must begin with it.
        Of several spaces it is the last alone, since the others are cut from the word in training text as well.
        """
        ids = self.encode([text])[0]
        if not text.endswith(" "):
            return Prompt(ids)
        cut = self.encode([text[:-1]])[0]
        if np.array_equal(cut, ids):  # of a tokenizer of words, to which spaces are nothing
            return Prompt(ids, " ")
        return Prompt(cut, " ", self.spaced) if len(self.spaced) else Prompt(ids)

    @cached_property
    def spaced(self) -> np.ndarray:
        """Tokens whose text begins with a space after other text, ascending, int64."""
        ids = range(1, self.vocab_size)
        if self.token_bytes is not None:
            return np.array([i for i in ids if self.token_bytes[i].startswith(b" ")], np.int64)
        before = next((int(i) for i in self.encode(["a"])[0]), 1) - self._shift
        start = len(self._tokenizer.decode([before], skip_special_tokens=False))
        texts = self._tokenizer.decode_batch([[before, i - self._shift] for i in ids], skip_special_tokens=False)
        return np.array([i for i, text in zip(ids, texts, strict=True) if text[start:].startswith(" ")], np.int64)

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """What each token adds to the text of those before it; together they read as text, with document tokens."""
        gap = " " if self._tokenizer.decoder is None else ""  # words are decoded with spaces between them
        found: list[str] = []
        run: list[int] = []
        for token in map(int, ids):
            before = self.decode(run) if self.token_bytes is None and run else ""
            # Of bytes each token is decoded alone: those that end within a character would change what came before.
            run = [] if token == 0 else [token] if self.token_bytes is not None else [*run, token]
            piece = self.decode(run)[len(before) :] if run else DOCUMENT
            found.append(gap + piece if found and not (token and before) else piece)
        return found

    def starts(self, text: str) -> np.ndarray:
        """Where each token of a text begins, int64: characters from its start."""
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return np.array([begin for begin, _ in offsets], dtype=np.int64)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of token ids; document tokens are left out."""
        kept = [int(i) - self._shift for i in ids if i != 0]
        return str(self._tokenizer.decode(kept, skip_special_tokens=False))

    def token(self, token_id: int) -> str:
        """Spelling of one token, for tables."""
        if token_id == 0:
            return DOCUMENT
        return str(self._tokenizer.id_to_token(int(token_id) - self._shift))


def _words(texts: Iterable[str], vocab_size: int) -> str:
    """Words between white space; the end of a line is the document token, the rare are one unknown word.

    The convention of the word-level benchmarks (Penn Treebank, WikiText): lines end in `<eos>`, empty ones are skipped.
    The document token stands for it, so that a text whose last line ends with the document has no token twice.
    """
    seen = Counter(word for text in texts for word in text.split())
    del seen[UNKNOWN], seen[DOCUMENT]
    common = sorted(seen, key=lambda word: (-seen[word], word))[: vocab_size - 2]
    vocabulary = {word: i for i, word in enumerate([DOCUMENT, UNKNOWN, *common])}
    level = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    level.add_special_tokens([DOCUMENT])
    level.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(DOCUMENT, UNKNOWN),  # text that happens to spell it
            normalizers.Strip(),
            normalizers.Replace(tokenizers.Regex(r"\s*\n\s*"), f" {DOCUMENT} "),
        ]
    )
    level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return str(level.to_str())


def make_tokenizer(chosen: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of a kind that is trained on texts, or one that is read from a JSON file.

    Raises
    ------
    ConfigError
        If there is no such kind or file.
    """
    return Tokenizer.read(chosen) if chosen.endswith(".json") else Tokenizer.train(texts, vocab_size, chosen)


def tokenizer_id(chosen: str) -> str:
    """What must agree between a config and a store: the kind, or the digest of a file, wherever it lies.

    Raises
    ------
    ConfigError
        If there is no such file.
    """
    if not chosen.endswith(".json"):
        return chosen
    return f"sha256:{Tokenizer.read(chosen).digest}"


def _settled(serialized: str) -> str:
    """Unigram pieces in one order: as trained, last digits and the scores of unseen bytes change from run to run."""
    described = json.loads(serialized)
    document, *pieces = described["model"]["vocab"]
    # Bytes that no text had are given the least score and some ten-thousandths, in the order of a hash table.
    least = min(score for _, score in pieces)
    lowest = round(least, 4)
    unseen = {piece for piece, score in pieces if len(piece) == 1 and score < least + _UNSEEN_SPAN}
    scored = [[piece, lowest if piece in unseen else round(score, 6)] for piece, score in pieces]
    described["model"]["vocab"] = [document, *sorted(scored, key=lambda each: (-each[1], each[0]))]
    return json.dumps(described, ensure_ascii=False)


def _byte_characters() -> dict[int, str]:
    """The character that byte-level tokenizers write for each byte (Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
