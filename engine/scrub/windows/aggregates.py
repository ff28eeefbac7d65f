"""What a window keeps of its columns, and how aggregates come out of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from engine.scrub.windows import kernels as k
from engine.scrub.windows import results as r
from engine.types.arrays import Ints

Aggregate = Literal[
    "count", "sum", "mean", "min", "max", "deviation", "last", "time_since", "rate", "ratio",
    "distinct",
]  # fmt: skip
ANY_TYPE = ("count", "rate", "time_since", "distinct")
"""Aggregates of a column that need not hold numbers."""
UNCOUNTED = {"sum", "last", "time_since", "distinct"}
"""Aggregates that need no count of the values."""
NOT_FADING = ("min", "max", "distinct")
"""Aggregates that cannot lose weight."""
WIDTH = {k.MOMENTS: 3}
"""Words of what is kept, where it is not one."""
GROUPS = (k.SUM, k.START, k.LAST)
"""The last of what adds up, of maxima, and of last values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueColumn:
    """A column of values that the loops read.

    Attributes:
        column: of the rows.
        slots: whether the values are slots of a sketch, not numbers.
    """

    column: str
    slots: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything stands.

    Attributes:
        sources: what is read.
        kept: what is kept, its source and its first word, ascending; shape (kept, 3).
        ends: where the words of what adds up, of maxima, and of last values end; and of all.
        sketches: the source of each sketch, and the word of START; shape (sketches, 2).
        results: for each column and aggregate what it is, its word (or sketch), its count's word
            and its source, shape (results, 4).
    """

    sources: tuple[ValueColumn, ...]
    kept: Ints
    ends: tuple[int, int, int, int]
    sketches: Ints
    results: Ints


def layout(aggregates: Mapping[str, Sequence[Aggregate]], shape: int) -> Layout:
    """Lay out what is kept of each column for windows of a shape."""
    sources: list[ValueColumn] = []
    wanted: list[tuple[int, int, str]] = []
    numbers: dict[str, int] = {}
    for column, names in aggregates.items():
        numbers[column] = slots = len(sources)
        sources.append(ValueColumn(column=column))
        if "distinct" in names:
            slots += 1
            sources.append(ValueColumn(column=column, slots=True))
        wanted += [
            (op, slots if op == k.START else numbers[column], column) for op in _kept(names, shape)
        ]
    kept: list[tuple[int, int, int]] = []
    words: dict[str, dict[int, int]] = {column: {} for column in aggregates}
    width, ends = 0, [0, 0, 0]
    for op, source, column in sorted(wanted, key=lambda one: one[:2]):
        words[column][op] = width
        kept.append((op, source, width))
        width += WIDTH.get(op, 1)
        ends = [width if op <= last else end for last, end in zip(GROUPS, ends, strict=True)]
    sketches: list[tuple[int, int]] = []
    results: list[tuple[int, int, int, int]] = []
    for column, names in aggregates.items():
        at, source = words[column], numbers[column]
        for name in names:
            if name == "distinct":
                results.append((r.AS_DISTINCT, len(sketches), 0, source + 1))
                sketches.append((source + 1, at.get(k.START, 0)))
            else:
                results.append((*_result(name, at, shape), source))
    return Layout(
        sources=tuple(sources),
        kept=np.array(kept, np.int64).reshape(-1, 3),
        ends=(ends[0], ends[1], ends[2], width),
        sketches=np.array(sketches, np.int64).reshape(-1, 2),
        results=np.array(results, np.int64).reshape(-1, 4),
    )


def _kept(names: Sequence[Aggregate], shape: int) -> list[int]:
    """Return what is kept of a column, each once."""
    wanted = set(names)
    moments = "deviation" in wanted
    counted = not wanted <= UNCOUNTED
    kept = [k.MOMENTS if moments else k.COUNT] * counted
    if "sum" in wanted or (wanted & {"mean", "ratio"} and not moments):
        kept.append(k.SUM)
    kept += [k.MIN] * ("min" in wanted) + [k.MAX] * ("max" in wanted)
    kept += [k.LAST] * ("last" in wanted) + [k.TIME] * ("time_since" in wanted)
    kept += [k.START] * ("distinct" in wanted and shape == k.SESSION)
    return kept + [k.ROWS] * (moments and shape == k.FADING)


def _result(name: Aggregate, at: Mapping[int, int], shape: int) -> tuple[int, int, int]:
    """Return what an aggregate is, its word and its count's word."""
    moments, fading = k.MOMENTS in at, shape == k.FADING
    count = at.get(k.MOMENTS if moments else k.COUNT, 0)
    match name:
        case "count":
            return r.AS_SUM if fading else r.AS_COUNT, count, count
        case "rate":
            return r.AS_RATE, count, count
        case "deviation" if fading:
            return r.AS_FADING_DEVIATION, count, at[k.ROWS]
        case "deviation":
            return r.AS_DEVIATION, count, count
        case "mean" if k.SUM in at:
            return r.AS_MEAN, at[k.SUM], count
        case "mean":
            return r.AS_WORD, count + 1, count
        case "ratio" if k.SUM in at:
            return r.AS_RATIO, at[k.SUM], count
        case "ratio":
            return r.AS_RATIO_TO_WORD, count + 1, count
        case "sum":
            return r.AS_SUM, at[k.SUM], count
        case "last":
            return r.AS_LAST, at[k.LAST], count
        case "time_since":
            return r.AS_SINCE, at[k.TIME], count
        case "min":
            return r.AS_NEGATED, at[k.MIN], count
    return r.AS_WORD, at[k.MAX], count


def result_type(name: Aggregate, *, fading: bool) -> pl.DataType:
    """Return the type of an aggregate's column."""
    counts = name == "distinct" or (name == "count" and not fading)
    return pl.Int64() if counts else pl.Float64()


__all__ = ["ANY_TYPE", "NOT_FADING", "Aggregate", "Layout", "ValueColumn", "layout", "result_type"]
