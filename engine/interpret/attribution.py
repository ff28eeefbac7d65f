"""How far each feature moves the score, by integrated gradients."""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from engine.interpret.figures import Attribution
from engine.interpret.subject import Subject
from engine.types import UNEXPLAINED
from engine.types.arrays import Floats

ATTRIBUTED_ROWS, ATTRIBUTED_VALUES = 256, 4_000_000
"""The most rows of integrated gradients, and the most pixels: they need memory for a gradient."""


def attributions(
    subject: Subject, frame: pl.DataFrame, seed: int
) -> tuple[tuple[Attribution, ...], float]:
    """Return the features by how far they move the score, and the share that none explains."""
    pixels = sum(math.prod(shape) for shape in subject.features.images.values())
    most = min(ATTRIBUTED_ROWS, max(8, ATTRIBUTED_VALUES // max(1, pixels)), frame.height)
    chosen = np.sort(np.random.default_rng(seed).choice(frame.height, most, replace=False))
    moved = dict(subject.attributions(frame[chosen]))
    rest = moved.pop(UNEXPLAINED, np.zeros(1))
    found = [Attribution(feature=name, moves=_size(each)) for name, each in moved.items()]
    found.sort(key=lambda each: -each.moves)
    whole = sum(moved.values(), start=np.zeros(1)) + rest
    return tuple(found), _size(rest) / (_size(whole) or 1.0)


def _size(values: Floats) -> float:
    return float(np.abs(values).mean())


__all__ = ["attributions"]
