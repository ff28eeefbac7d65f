"""Numbers in sentences."""

from __future__ import annotations


def counted(n: int, singular: str, many: str = "") -> str:
    """Return ``1 row``, ``2,000 rows``.

    Args:
        singular: what stands behind 1: a noun, or a noun and its verb ("row is").
        many: what stands behind any other number; `singular` with an s unless given.
    """
    return f"{n:,} {singular if n == 1 else many or singular + 's'}"


def short_number(x: float) -> str:
    """Return four significant digits; whole numbers in full: ``0.1235``, ``2019``, ``12,345``.

    Digits are grouped from 10,000 on, so that a year reads as one.
    """
    if abs(x) >= 1e15:
        return f"{x:.4g}"
    if x == int(x):
        return _grouped(int(x))
    if abs(x) >= 1e6:
        return f"{x:.4g}"
    return _grouped(round(x)) if abs(x) >= 1000 else f"{x:.4g}"


def _grouped(x: int) -> str:
    return f"{x:,}" if abs(x) >= 10_000 else str(x)


__all__ = ["counted", "short_number"]
