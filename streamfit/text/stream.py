"""Tokens to text as they come: no half characters, and nothing shown that a stop string could still take back.

Floor 6: imports tokenizer.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from streamfit.errors import ConfigError
from streamfit.text.tokenizer import Tokenizer

_BROKEN = "\ufffd"


class TextStream:
    """Text of tokens that come one by one.

    A token may end in the middle of a character, and may be spelled otherwise at the start of a text than within it.
    Text is therefore held back until its last character is whole; all pieces together are what the tokenizer makes of
    all tokens. With stop strings, what could be the beginning of one is held back too, and the text ends before it.

    Parameters
    ----------
    tokenizer : Tokenizer
    before : sequence of int
        Tokens that stand before the first, those of a prompt; their text is not given again.
    stop : sequence of str
    given : str
        A character that the text may begin with and that was shown before: it is not given again, nor searched.

    Raises
    ------
    ConfigError
        If a stop string is empty.

    Examples
    --------
    >>> stream = TextStream(Tokenizer.train(["ab"], 257), stop=["b!"])
    >>> ids = Tokenizer.train(["ab"], 257).encode(["ab€b!a"])[0]
    >>> [stream.add(int(i)) for i in ids], stream.end(), stream.stopped
    (['a', '', '', '', 'b€', '', '', ''], '', True)
    """

    def __init__(
        self, tokenizer: Tokenizer, before: Sequence[int] = (), stop: Sequence[str] = (), given: str = ""
    ) -> None:
        if not all(stop):
            msg = "an empty stop string"
            raise ConfigError(msg, "one character or more")
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._bytes = tokenizer.token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        # Where tokens are no bytes, the last of those that came before show how the first is spelled within a text.
        self._ids = [int(i) for i in before][-8:]
        self._from, self._read = 0, len(self._ids)
        self._held, self._given = "", given
        self.stopped = False

    def add(self, token: int) -> str:
        """Text that may be shown now, after one more token; empty once a stop string has come."""
        if self.stopped or token == 0:
            return ""
        return self._release(self._decoded(token), final=False)

    def end(self) -> str:
        """What was held back, when no more tokens come."""
        if self.stopped:
            return ""
        rest = self._utf8.decode(b"", True) if self._bytes is not None else self._pending(final=True)
        return self._release(rest, final=True)

    def _decoded(self, token: int) -> str:
        if self._bytes is not None:
            return self._utf8.decode(self._bytes[token])
        self._ids.append(int(token))
        return self._pending(final=False)

    def _pending(self, *, final: bool) -> str:
        """What the tokens since the last whole character add to the text of those before."""
        before = self._tokenizer.decode(self._ids[self._from : self._read])
        text = self._tokenizer.decode(self._ids[self._from :])
        if len(text) <= len(before) or (text.endswith(_BROKEN) and not final):
            return ""
        self._from, self._read = self._read, len(self._ids)
        return text[len(before) :]

    def _release(self, text: str, *, final: bool) -> str:
        if text:  # which need not begin so: a tokenizer of words writes no space at the start of a text
            text, self._given = text.removeprefix(self._given), ""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = 0 if final else max((_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that a stop string could begin with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
