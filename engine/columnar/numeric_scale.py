"""The scale of numbers that are kept, in memory or as what was learned of them: the stages' scale
moves with the stream, and what is kept does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.types import GraphBuilder, Scales
from engine.types.arrays import Bools, Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NumericScale:
    """The scale of numeric features over all stages: ``(x - shift) * factor``.

    Attributes:
        shift, factor: of each feature, shape (d,), or (n, d) of rows with a scale of their own. A
            shift of NaN: nothing was known of it, so that all its numbers are 0. A factor of 0: it
            had not varied, so they are 0 too.
        named: whether a stage said what it did to the feature, shape (d,); the others are as they
            came.
    """

    shift: Floats
    factor: Floats
    named: Bools

    @classmethod
    def of(cls, columns: Sequence[str], scales: Scales) -> NumericScale:
        """Return what stages did to these columns, of rows that have one scale."""
        places = {name: i for i, name in enumerate(columns)}
        shift, factor = np.zeros(len(places)), np.ones(len(places))
        named = np.zeros(len(places), np.bool_)
        for scale in scales:
            scale = scale.last
            pairs = [(places[c], j) for j, c in enumerate(scale.columns) if c in places]
            if not pairs:
                continue
            at, of = (np.array(side) for side in zip(*pairs, strict=True))
            shift[at] += _over(scale.shift[of], factor[at])
            factor[at] *= scale.factor[of]
            named[at] = True
        return cls(shift=shift, factor=factor, named=named)

    @classmethod
    def unknown(cls, size: int) -> NumericScale:
        """Return the scale of no rows."""
        none = np.zeros(size, np.bool_)
        return cls(shift=np.full(size, np.nan), factor=np.zeros(size), named=none)

    def undo(self, x: Floats) -> Floats:
        """Return numbers, (..., d), as they were before; NaN for what was lost."""
        # What did not vary was all the same: the shift.
        return x / np.where(self.factor == 0, np.inf, self.factor) + self.shift

    def apply(self, raw: Floats) -> Floats:
        """Return numbers, (..., d), in this scale; 0 for what was lost."""
        return np.nan_to_num((raw - self.shift) * self.factor, nan=0.0, posinf=0.0, neginf=0.0)

    def to(self, other: NumericScale) -> tuple[Floats, Floats]:
        """Return a, b, (d,) or (n, d) each: ``a * x + b`` is in the other scale what x is in this
        one. What either knows nothing of, or does not name, stays as it is."""
        known = ~np.isnan(self.shift) & ~np.isnan(other.shift) & self.named & other.named
        a = _over(other.factor, self.factor)
        b = (self.shift - other.shift) * other.factor
        return np.where(known, a, 1.0), np.where(known, b, 0.0)

    def followed(self, newest: NumericScale) -> NumericScale:
        """Return the newest scale, but for features that have not varied in it: what is kept of
        them would become 0."""
        newer = (newest.factor != 0) & ~np.isnan(newest.shift) | np.isnan(self.shift)
        return NumericScale(
            shift=np.where(newer, newest.shift, self.shift),
            factor=np.where(newer, newest.factor, self.factor),
            named=np.where(newer, newest.named, self.named),
        )

    def build(self, graph: GraphBuilder, numeric: str, columns: Sequence[str]) -> str:
        """Write into a graph what brings its numbers, (n, d) float32, into this scale."""
        a, b = NumericScale.of(columns, graph.scales).to(self)
        if (a == 1).all() and not b.any():
            return numeric
        numeric = graph.op("Mul", numeric, graph.constant(a.astype(np.float32), "rescale"))
        return graph.op("Add", numeric, graph.constant(b.astype(np.float32), "shift"))

    def snapshot(self) -> dict[str, Any]:
        """Return a plain value."""
        return {"shift": self.shift, "factor": self.factor, "named": self.named}

    @classmethod
    def restored(cls, value: Mapping[str, Any]) -> NumericScale:
        """Return the scale of a `snapshot`."""
        return cls(**{name: np.array(array) for name, array in value.items()})


def _over(numbers: Floats, factor: Floats) -> Floats:
    """Return numbers / factor; 0 where the factor is."""
    out = np.zeros(np.broadcast_shapes(numbers.shape, factor.shape))
    return np.divide(numbers, factor, where=factor != 0, out=out)


__all__ = ["NumericScale"]
