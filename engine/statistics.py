"""What stages learn of columns: small immutable values that batches update and that merge.

Each holds one entry a column. `update` and `merge` give a new value and leave the old as it was, so
a snapshot is a
reference. Null, NaN and infinity are not learned from. ``a.update(x).merge(b.update(y))`` equals
``a.update(x + y)``:
exactly in counts, to rounding in moments (1e-9 relative), within the stated error in quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def finite(column: str) -> pl.Expr:
    """The column as float64 with null for everything that is no finite number."""
    value = pl.col(column).cast(pl.Float64)
    return pl.when(value.is_finite()).then(value)


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and sum of squared deviations of each of d columns.

    Batches are merged as in Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for
    Computing Sample
    Variances" (1979), which loses nothing to cancellation where a sum of squares would.

    Attributes:
        count, mean, m2: shape (d,).
    """

    count: Ints
    mean: Floats
    m2: Floats

    @classmethod
    def empty(cls, d: int) -> Self:
        """Nothing learned yet."""
        return cls(np.zeros(d, np.int64), np.zeros(d), np.zeros(d))

    @property
    def variance(self) -> Floats:
        """Population variance (divided by n); 0 where nothing was learned."""
        return self.m2 / np.maximum(self.count, 1)

    def update(self, frame: pl.DataFrame, columns: Sequence[str]) -> Self:
        """With the rows of these d columns."""
        exprs = [finite(c) for c in columns]
        row = frame.select(
            *(e.count().alias(f"n{i}") for i, e in enumerate(exprs)),
            *(e.mean().alias(f"m{i}") for i, e in enumerate(exprs)),
            *(e.var(ddof=0).alias(f"v{i}") for i, e in enumerate(exprs)),
        ).row(0)
        d = len(columns)
        count = np.array(row[:d], np.int64)
        mean = np.array([m or 0.0 for m in row[d : 2 * d]])
        variance = np.array([v or 0.0 for v in row[2 * d :]])
        return self.merge(type(self)(count, mean, variance * count))

    def merge(self, other: Self) -> Self:
        """As if the rows of both had been learned by one."""
        count = self.count + other.count
        n = np.maximum(count, 1)
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / n)
        m2 = self.m2 + other.m2 + delta**2 * (self.count * (other.count / n))
        return type(self)(count, mean, m2)

    def snapshot(self) -> dict[str, Any]:
        """As a plain value."""
        return {"count": self.count, "mean": self.mean, "m2": self.m2}

    @classmethod
    def restore(cls, value: Mapping[str, Any]) -> Self:
        """From what `snapshot` gave."""
        return cls(**value)


@dataclass(frozen=True, slots=True)
class Extremes:
    """Smallest and largest value of each of d columns; inf and -inf where nothing was learned.

    Attributes:
        low, high: shape (d,).
    """

    low: Floats
    high: Floats

    @classmethod
    def empty(cls, d: int) -> Self:
        """Nothing learned yet."""
        return cls(np.full(d, np.inf), np.full(d, -np.inf))

    def update(self, frame: pl.DataFrame, columns: Sequence[str]) -> Self:
        """With the rows of these d columns."""
        exprs = [finite(c) for c in columns]
        row = frame.select(
            *(e.min().alias(f"a{i}") for i, e in enumerate(exprs)),
            *(e.max().alias(f"b{i}") for i, e in enumerate(exprs)),
        ).row(0)
        d = len(columns)
        low = np.array([math.inf if x is None else x for x in row[:d]])
        high = np.array([-math.inf if x is None else x for x in row[d:]])
        return self.merge(type(self)(low, high))

    def merge(self, other: Self) -> Self:
        """As if the rows of both had been learned by one."""
        return type(self)(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    def snapshot(self) -> dict[str, Any]:
        """As a plain value."""
        return {"low": self.low, "high": self.high}

    @classmethod
    def restore(cls, value: Mapping[str, Any]) -> Self:
        """From what `snapshot` gave."""
        return cls(**value)


ERROR = 0.01
"""Relative error of a quantile: the answer is within 1 % of a value that has that rank."""
_GAMMA = (1 + ERROR) / (1 - ERROR)
_SMALLEST = 1e-9
_HALF = math.ceil(math.log(1e12 / _SMALLEST) / math.log(_GAMMA)) + 1
"""Buckets for each sign: magnitudes from 1e-9 (less counts as 0) to 1e12 (more counts as 1e12)."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A sketch of each column's distribution: counts in buckets whose bounds grow geometrically.

    The DDSketch of Masson, Rim & Lee, "DDSketch: A Fast and Fully-Mergeable Quantile Sketch with
    Relative-Error
    Guarantees" (VLDB 2019), with a fixed range, so that it is deterministic and merging is adding.

    Attributes:
        counts: shape (d, 2 * half + 1), int64: negative magnitudes, largest first; zero; positive,
        smallest first.
    """

    counts: Ints

    @classmethod
    def empty(cls, d: int) -> Self:
        """Nothing learned yet."""
        return cls(np.zeros((d, 2 * _HALF + 1), np.int64))

    @property
    def count(self) -> Ints:
        """Values learned of each column, shape (d,)."""
        return np.asarray(self.counts.sum(axis=1), np.int64)

    def update(self, frame: pl.DataFrame, columns: Sequence[str]) -> Self:
        """With the rows of these d columns."""
        new = np.stack([self._bins(frame.get_column(c)) for c in columns])
        return type(self)(self.counts + new)

    @staticmethod
    def _bins(column: pl.Series) -> Ints:
        values = column.cast(pl.Float64).drop_nulls().to_numpy()
        values = values[np.isfinite(values)]
        size = np.abs(values)
        small = size < _SMALLEST
        index = np.ceil(np.log(np.where(small, 1.0, size) / _SMALLEST) / math.log(_GAMMA))
        index = np.clip(index, 0, _HALF - 1).astype(np.int64) + 1
        at = np.where(small, _HALF, _HALF + np.sign(values).astype(np.int64) * index)
        return np.bincount(at, minlength=2 * _HALF + 1).astype(np.int64)

    def merge(self, other: Self) -> Self:
        """As if the rows of both had been learned by one."""
        return type(self)(self.counts + other.counts)

    def quantile(self, q: float) -> Floats:
        """The value of rank q (0-1) of each column, shape (d,), within `ERROR`; NaN where nothing
        was learned."""
        total = self.count
        rank = np.ceil(q * np.maximum(total - 1, 0)).astype(np.int64) + 1
        at = (np.cumsum(self.counts, axis=1) < rank[:, None]).sum(axis=1) - _HALF
        middle = _SMALLEST * _GAMMA ** (np.abs(at) - 1.0) * (2 / (1 + _GAMMA))
        value = np.where(at == 0, 0.0, np.sign(at) * middle)
        return np.where(total > 0, value, np.nan)

    def snapshot(self) -> dict[str, Any]:
        """As a plain value: the buckets that are not empty."""
        at = np.flatnonzero(self.counts)
        return {"shape": list(self.counts.shape), "at": at, "n": self.counts.reshape(-1)[at]}

    @classmethod
    def restore(cls, value: Mapping[str, Any]) -> Self:
        """From what `snapshot` gave."""
        counts = np.zeros(value["shape"], np.int64)
        counts.reshape(-1)[value["at"]] = value["n"]
        return cls(counts)


CAPACITY = 1_000
"""Different values a `Counts` remembers."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How often a column's values occur, the most frequent of them in bounded memory.

    The Misra-Gries summary, merged as in Agarwal et al., "Mergeable Summaries" (PODS 2012): beyond
    `CAPACITY`
    different values, counts are too low by at most n / CAPACITY; below, they are exact.

    Attributes:
        table: columns ``value`` and ``n`` (Int64), in order of first appearance.
    """

    table: pl.DataFrame

    @classmethod
    def empty(cls, kind: pl.DataType) -> Self:
        """Nothing learned yet of a column of this type."""
        return cls(pl.DataFrame(schema={"value": kind, "n": pl.Int64()}))

    def update(self, column: pl.Series) -> Self:
        """With the values of a column of the same type."""
        values = column.drop_nulls().alias("value").to_frame()
        if column.dtype.is_float():
            values = values.filter(pl.col("value").is_finite())
        counted = values.group_by("value", maintain_order=True).agg(
            pl.len().cast(pl.Int64).alias("n")
        )
        return self.merge(type(self)(counted))

    def merge(self, other: Self) -> Self:
        """As if the values of both had been learned by one."""
        both = pl.concat([self.table, other.table])
        table = both.group_by("value", maintain_order=True).agg(pl.col("n").sum())
        if table.height > CAPACITY:
            spill = table["n"].top_k(CAPACITY + 1).min()
            table = table.with_columns(pl.col("n") - spill).filter(pl.col("n") > 0)
        return type(self)(table)

    def most_frequent(self) -> Any:
        """The value with the largest count, the first seen among equals; None where nothing was
        learned."""
        best = self.table["n"].arg_max()
        return None if best is None else self.table["value"][best]

    def snapshot(self) -> Any:
        """As a plain value."""
        return self.table

    @classmethod
    def restore(cls, value: Any) -> Self:
        """From what `snapshot` gave."""
        return cls(value)


__all__ = ["ERROR", "Counts", "Extremes", "Moments", "Quantiles", "finite"]
