"""Numbers in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable

GROUPED_FROM = 10_000
"""The number from which on digits are grouped."""


def counted(n: int, singular: str, many: str = "") -> str:
    """Return ``1 row``, ``2,000 rows``.

    Args:
        singular: what stands behind 1: a noun, or a noun and its verb ("row is").
        many: what stands behind any other number; `singular` with an s unless given.
    """
    return f"{n:,} {singular if n == 1 else many or singular + 's'}"


def short_number(x: float, among: Iterable[float] = ()) -> str:
    """Return four significant digits; whole numbers in full: ``0.1235``, ``2019``, ``12,345``.

    Digits are grouped from 10,000 on, so that a year reads as one; and where that holds for one of
    the numbers it stands among.
    """
    grouped = any(GROUPED_FROM <= abs(value) < math.inf for value in (x, *among))
    if abs(x) >= 1e15:
        return f"{x:.4g}"
    if x == int(x):
        return _whole(int(x), grouped)
    if abs(x) >= 1e6:
        return f"{x:.4g}"
    return _whole(round(x), grouped) if abs(x) >= 1000 else f"{x:.4g}"


def percent(share: float) -> str:
    """Return a share that somebody set, with all its digits: ``10%``, ``50.001%``."""
    return f"{100 * share:.10g}%"


def _whole(x: int, grouped: bool) -> str:
    return f"{x:,}" if grouped else str(x)


__all__ = ["counted", "percent", "short_number"]
