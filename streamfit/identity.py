"""Content ids: what rows are known by, whatever their file is called. Floor 1.

BLAKE3 (O'Connor, Aumasson, Neves and Wilcox-O'Hearn, 2020): every byte of a corpus is hashed before it is planned, and
SHA-256 takes as long for it as all that decoding does.
"""

from __future__ import annotations

from blake3 import blake3 as hasher

__all__ = ["content_id", "hasher", "rows_id"]


def content_id(data: str | bytes) -> str:
    """BLAKE3 of some bytes, or of text in UTF-8: 64 hexadecimal digits.

    Examples
    --------
    >>> content_id("some text")[:16]
    'a0a1c159952a5c5f'
    """
    return hasher(data.encode() if isinstance(data, str) else data).hexdigest()


def rows_id(described: str, digest: str) -> str:
    """Content id of bytes that are rows only together with a description of them: a column's name is not in its pages.

    Parameters
    ----------
    described : str
        What the rows are read by, such as a schema.
    digest : str
        Content id of the bytes.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    return content_id(f"{described}\n{digest}")
