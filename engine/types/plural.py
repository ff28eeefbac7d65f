"""Numbers in sentences."""

from __future__ import annotations


def counted(n: int, one: str, many: str = "") -> str:
    """``1 row``, ``2,000 rows``.

    Args:
        one: what stands behind 1: a noun, or a noun and its verb ("row is").
        many: what stands behind any other number; `one` with an s unless given.
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


__all__ = ["counted"]
