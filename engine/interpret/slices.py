"""Errors by slice: the slices of the pipeline file, and the worst values of each column.

A column's values are slices by themselves where few differ, else ranges that hold about equally
many rows; lists are sliced by their lengths. Among many slices some look bad by chance, so the
intervals of all slices of columns hold together (Bonferroni's correction).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from engine.columnar.row_expressions import Condition
from engine.interpret.figures import Slice
from engine.interpret.judging import normal
from engine.types.arrays import Bools, Floats, Ints
from engine.types.plural import short_number

MIN_ROWS = 20
"""The fewest rows of a slice of a column."""
MAX_VALUES = 20
"""The most distinct values of a column that are slices by themselves; of numbers half as many."""
RANGES = 5
CONFIDENCE = 0.95
MAX_CHARS = 40
"""The most characters of a value that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceCells:
    """A column cut into slices.

    Attributes:
        column: its name.
        codes: the slice of each row, -1 for none, shape (n,).
        names: of the slices.
    """

    column: str
    codes: Ints
    names: tuple[str, ...]


def named_slices(
    frame: pl.DataFrame, losses: Floats, conditions: Mapping[str, Condition]
) -> tuple[list[Slice], list[str]]:
    """Return the slices of the pipeline file that have rows; and the names of those that ask for
    columns the rows lack.

    Args:
        losses: of each row of the frame, shape (n,).
        conditions: name -> condition.
    """
    found, lacking = [], []
    for name, condition in conditions.items():
        if not condition.columns <= set(frame.columns):
            lacking.append(name)
            continue
        mask: Bools = condition.holds(frame)[0].to_numpy()
        if mask.any():
            found.append(_slice(name, "", losses[mask], normal(CONFIDENCE), losses))
    return found, lacking


def worst_slices(
    frame: pl.DataFrame, losses: Floats, columns: tuple[str, ...]
) -> tuple[list[Slice], list[str]]:
    """Return the worst slice of each column, the worst first; and the columns that cannot be cut.
    A column none of whose slices is as bad as all rows together has none."""
    cut = {column: cells(frame[column]) for column in columns}
    every = [each for each in cut.values() if each is not None]
    reach = normal(1 - (1 - CONFIDENCE) / max(1, sum(len(each.names) for each in every)))
    found: list[Slice] = []
    whole = float(losses.mean()) if len(losses) else 0.0
    for each in every:
        known = each.codes >= 0
        counts = np.bincount(each.codes[known], minlength=len(each.names))
        usable = np.flatnonzero((counts >= MIN_ROWS) & (counts < len(losses)))
        slices = [
            _slice(each.names[code], each.column, losses[each.codes == code], reach, losses)
            for code in usable
        ]
        bad = [one for one in slices if one.loss > whole or math.isclose(one.loss, whole)]
        if bad:
            found.append(max(bad, key=_badness))
    uncut = [column for column, each in cut.items() if each is None]
    return sorted(found, key=_badness, reverse=True), uncut


def cells(column: pl.Series) -> SliceCells | None:
    """Cut a column into slices; None for a type that has none."""
    dtype = column.dtype
    if dtype.is_float():
        column = column.fill_nan(None)
    if isinstance(dtype, pl.List):
        return _ranges(column.list.len(), f"length of {column.name}")
    if dtype.is_numeric() or dtype.is_temporal():
        if column.drop_nulls().n_unique() > MAX_VALUES // 2:
            return _ranges(column, column.name)
        return _values(column)
    if dtype in (pl.String, pl.Boolean) or isinstance(dtype, pl.Categorical | pl.Enum):
        return _values(column)
    return None


def _values(column: pl.Series) -> SliceCells:
    """Return a slice for each frequent value, and one for missing ones."""
    texts = column.cast(pl.String)
    frequent = texts.drop_nulls().value_counts(sort=True).head(MAX_VALUES).to_series(0)
    values = sorted(frequent.to_list())
    numbers = texts.cast(pl.Enum(values), strict=False).to_physical().cast(pl.Int64)
    codes = numbers.fill_null(-1).to_numpy()
    names = [f"{column.name} = {value[:MAX_CHARS]}" for value in values]
    return _with_missing(column, codes, names)


def _ranges(column: pl.Series, what: str) -> SliceCells:
    """Return a slice for each range with about a fifth of the rows, and one for missing ones."""
    numbers = (column.to_physical() if column.dtype.is_temporal() else column).cast(pl.Float64)
    known = numbers.drop_nulls().to_numpy()
    known = known[np.isfinite(known)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, RANGES + 1))) if len(known) else known
    values = numbers.fill_null(np.nan).to_numpy()
    last = max(len(edges) - 2, 0)
    codes = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, last)
    codes = np.where(np.isfinite(values) & (len(edges) > 0), codes, -1)
    shown = list(_shown(column, edges))
    ends = zip(shown, shown[1:] or shown, strict=False)
    names = [f"{what} from {low} to {high}" for low, high in ends]
    return _with_missing(column, codes, names)


def _shown(column: pl.Series, edges: Floats) -> Iterator[str]:
    """Yield the ends of ranges as people read them."""
    if column.dtype.is_temporal():
        whole = pl.Series(edges.astype(np.int64)).cast(column.to_physical().dtype)
        yield from map(str, whole.cast(column.dtype).to_list())
        return
    for edge in edges.tolist():
        yield short_number(edge, edges.tolist())


def _with_missing(column: pl.Series, codes: Ints, names: list[str]) -> SliceCells:
    missing = column.is_null().to_numpy()
    if missing.any():
        codes = np.where(missing, len(names), codes)
        names = [*names, f"{column.name} is missing"]
    return SliceCells(column=column.name, codes=codes, names=tuple(names))


def _slice(name: str, column: str, losses: Floats, reach: float, every: Floats) -> Slice:
    mean, rows = float(losses.mean()), len(losses)
    error = float(losses.std(ddof=1)) / math.sqrt(rows) if rows > 1 else math.inf
    low, high = max(0.0, mean - reach * error), mean + reach * error  # no loss is below 0
    worse = bool(low > every.mean())
    return Slice(
        name=name, column=column, rows=rows, loss=mean, low=low, high=high, worse=worse
    )  # fmt: skip


def _badness(one: Slice) -> tuple[float, float]:
    return one.low, one.loss


__all__ = ["SliceCells", "cells", "named_slices", "worst_slices"]
