"""The effect of a fitted stage on a column, as plain values that a model file can hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
)  # fmt: skip

if TYPE_CHECKING:
    pass


# What a stage does to single values, with the numbers it has learned, in words that can be written
# into a model file.
# Applied in the listed order to raw columns they give exactly what the stage's `apply` gives with
# the same snapshot.

MAX_ABS = 1e140
"""From this absolute value on, a number is too large to learn from: sums of squares of smaller ones
do not overflow float64, however many there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """Replaces null by `value`; with `indicator`, adds a column of that name: 1.0 for null, else
    0.0."""

    column: str
    value: float | str
    indicator: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Replaces values below `low` by `low`, above `high` by `high` (either may be infinite);
    null stays null."""

    column: str
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """``(x - shift) * scale`` in float64; null stays null. If the scale is 0, ``x - shift`` where
    that is 1e140 or more in absolute value: infinite and too large numbers stay so."""

    column: str
    shift: float
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """For x >= 0 ``((1 + x)**above - 1) / above``, else ``-((1 - x)**below - 1) / below``, in
    float64; for an exponent of 0 its limit, the logarithm: ``log(1 + |x|)`` with the sign of x.
    An exponent of 1 changes nothing. Null stays null.

    Yeo-Johnson's transform of parameter l has the exponents l and 2 - l.
    """

    column: str
    above: float
    below: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """Replaces text by codes: value i of `values` becomes i + 1, of one that stands there twice the
    last; anything else, and null, becomes 0."""

    column: str
    values: tuple[str, ...]


Transform = Fill | Clip | Affine | Power | Codes
