"""Text to token ids and back: byte-level BPE of the `tokenizers` library. Floor 6."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from streamfit.errors import ConfigError

DOCUMENT = "<|document|>"
"""The one special token: pads contexts before a document's start and is predicted as its end."""


class Tokenizer:
    """A tokenizer whose id 0 is the document token.

    Parameters
    ----------
    serialized : str
        The tokenizer as the JSON of the `tokenizers` library.

    Raises
    ------
    ConfigError
        If it is not such a JSON, or its id 0 is not the document token.
    """

    def __init__(self, serialized: str) -> None:
        self.serialized = serialized
        if self._tokenizer.id_to_token(0) != DOCUMENT:
            msg = f"a tokenizer whose id 0 is {self._tokenizer.id_to_token(0)!r}"
            raise ConfigError(msg, f"{DOCUMENT!r}", "train it with streamfit")

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[str]]:
        return Tokenizer, (self.serialized,)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train byte-level BPE (Sennrich et al. 2016), so that any text has tokens.

        Parameters
        ----------
        texts : iterable of str
        vocab_size : int
            At least 257: every byte and the document token. Fewer may come of a small text.

        Raises
        ------
        ConfigError
            If `vocab_size` is too small.
        """
        if vocab_size < 257:
            msg = f"vocab_size {vocab_size}"
            raise ConfigError(msg, "at least 257, every byte and the document token")
        bpe = tokenizers.Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[DOCUMENT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        bpe.train_from_iterator(texts, trainer)
        return cls(bpe.to_str())

    @cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        try:
            loaded = tokenizers.Tokenizer.from_str(self.serialized)
        except Exception as error:  # the library raises bare Exception
            msg = f"a tokenizer that cannot be read: {error}"
            raise ConfigError(msg, "JSON of the `tokenizers` library") from error
        # Text that happens to spell the document token is text; only the reader puts the token itself.
        loaded.encode_special_tokens = True
        return loaded

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, int32, without the document token."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(e.ids, dtype=np.int32) for e in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of token ids; document tokens are left out."""
        return str(self._tokenizer.decode([int(i) for i in ids if i != 0]))

    def token(self, token_id: int) -> str:
        """Spelling of one token, for tables."""
        return str(self._tokenizer.id_to_token(int(token_id)))
