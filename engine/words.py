"""Numbers in sentences."""

from __future__ import annotations


def counted(n: int, noun: str, plural: str = "") -> str:
    """``1 row``, ``2,000 rows``.

    Args:
        plural: where it is not the noun with an s.
    """
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


__all__ = ["counted"]
