"""The errors a user can meet: each says what was got, what was expected, and what to do.

Floor 1: imports nothing of the package. The CLI turns any of these into one line and exit code 2,
a `CertificateError` into exit code 3.
"""

from __future__ import annotations


class StreamfitError(Exception):
    """Root of every error that a user's input, data or environment can cause.

    Parameters
    ----------
    got : str
        What was found, with the place (path, shard, row) where it was found.
    expected : str, optional
        What would have been right.
    remedy : str, optional
        What to do about it.
    """

    def __init__(self, got: str, expected: str = "", remedy: str = "") -> None:
        self.got, self.expected, self.remedy = got, expected, remedy
        parts = [got]
        if expected:
            parts.append(f"expected {expected}")
        if remedy:
            parts.append(remedy)
        super().__init__("; ".join(parts))

    def __reduce__(self) -> tuple[type[StreamfitError], tuple[str, str, str]]:
        # Errors cross process borders; the default would pass the joined text as `got`.
        return type(self), (self.got, self.expected, self.remedy)


class ConfigError(StreamfitError):
    """A configuration, option or argument that cannot be used."""


class CorpusError(StreamfitError):
    """A corpus that cannot be read at all: nothing found, no permission, wrong kind."""


class ShardError(CorpusError):
    """One shard that cannot be counted: undecodable, truncated, NaN, wrong columns or type."""


class ShardChangedError(ShardError):
    """A shard whose bytes are no longer those that were planned or already counted."""


class StoreError(StreamfitError):
    """A store that is damaged, foreign, read-only, or not a store."""


class MismatchError(StreamfitError):
    """Sums, features or stores that do not belong together."""


class ScaleError(StreamfitError):
    """Values too large for the exact sums (NaN and infinity included)."""


class PlanError(StreamfitError):
    """Work that was refused before it ran, because it would not fit."""


class SolveError(StreamfitError):
    """A linear system without one trustworthy solution."""


class CertificateError(SolveError):
    """A solution whose certificate does not reach the tolerance that was asked for."""
