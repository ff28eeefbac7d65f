"""Numbers in sentences."""

from __future__ import annotations


def counted(n: int, singular: str, many: str = "") -> str:
    """``1 row``, ``2,000 rows``.

    Args:
        singular: what stands behind 1: a noun, or a noun and its verb ("row is").
        many: what stands behind any other number; `singular` with an s unless given.
    """
    return f"{n:,} {singular if n == 1 else many or singular + 's'}"


__all__ = ["counted"]
