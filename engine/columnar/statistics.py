"""Mergeable statistics over many columns at once, as immutable values.

Every statistic is a frozen dataclass of numpy arrays with one entry per column. `update` and
`merge` give a new one; the statistics of two parts merged equal those of the whole, so parts can be
learned apart. What is no number (null, NaN, infinity) is ignored, and what is too large, see
`Statistic.limit`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numba
import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.columnar.kernels import MAX_ABS, buffers, numbers_into
from engine.types.arrays import Floats, read_only
from engine.types.snapshots import FieldsSnapshot

NumberBlock = pl.DataFrame | Floats
"""The rows to learn from: a frame of number columns, or an array of shape (n, columns)."""

MAX_WIDTH = 1e290
"""Where nothing is squared, numbers below it count: their sums and differences do not overflow."""


def inverse(width: Floats) -> Floats:
    """Return 1 / width of each column, to scale with; 0 for a column that varies too little: its
    scaled numbers would overflow float64."""
    return np.divide(1.0, width, where=width > 1 / MAX_ABS, out=np.zeros_like(width))


class Statistic(FieldsSnapshot):
    """The interface of every statistic.

    `empty(columns)` makes the statistic of no rows; `of(block)` that of one block.

    Attributes:
        limit: the absolute value from which a number is too large, and ignored like infinity.
    """

    __slots__ = ()

    limit: ClassVar[float] = MAX_ABS

    def may_have_ignored(self, frame: pl.DataFrame, before: Self) -> bool:
        """Return whether the update from `before` to this may have ignored a number of the frame,
        so that looking for one is worth its time."""
        raise NotImplementedError

    @classmethod
    def empty(cls, columns: int) -> Self:
        """Return the statistic of no rows."""
        raise NotImplementedError

    def update(self, block: NumberBlock) -> Self:
        """Return the statistic with the block's rows added; columns in the same order as before."""
        raise NotImplementedError

    def merge(self, other: Self) -> Self:
        """Return the statistic of both parts together."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments(Statistic):
    """Count, mean and squared deviations.

    Parts are merged by Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances" (1979), which loses no digits to large means.

    Attributes:
        count: numbers learned, shape (columns,).
        mean: their mean, 0 where none was learned.
        m2: sum of squared deviations from the mean.
    """

    count: NDArray[np.int64]
    mean: Floats
    m2: Floats

    def may_have_ignored(self, frame: pl.DataFrame, before: Self) -> bool:
        return _counts_less(frame, self.count - before.count)

    @classmethod
    def empty(cls, columns: int) -> Self:
        zeros = np.zeros(columns)
        return cls(count=np.zeros(columns, np.int64), mean=zeros, m2=zeros)

    @classmethod
    def of(cls, block: NumberBlock) -> Self:
        """Return the moments of one block."""
        return cls.from_sums(_of_columns(moments_into, block))

    @classmethod
    def from_sums(cls, sums: Floats) -> Self:
        """Return moments from the results of `moments_into` per column, shape (columns, 3)."""
        count, mean, m2 = sums.T
        return cls(count=count.astype(np.int64), mean=mean, m2=m2)

    def update(self, block: NumberBlock) -> Self:
        return self.merge(self.of(block)) if len(block) else self

    def merge(self, other: Self) -> Self:
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        delta = other.mean - self.mean
        return dataclasses.replace(
            self,
            count=count,
            mean=self.mean + delta * share,
            m2=self.m2 + other.m2 + delta * delta * self.count * share,
        )

    @property
    def variance(self) -> Floats:
        """The population variance, 0 without rows and where only rounding makes it differ from 0
        (the bound of scikit-learn's StandardScaler)."""
        return _spread(self.count, self.count, self.mean, self.m2)

    @property
    def deviation(self) -> Floats:
        """The population standard deviation."""
        return np.sqrt(self.variance)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FadingMoments(Statistic):
    """Mean and variance that follow drift: a number's weight halves with every `halflife` later
    numbers of its column.

    The exponentially weighted moments of Finch, "Incremental calculation of weighted mean and
    variance" (2009), with the weights divided by their sum, so that the first number counts no more
    than others. What is no number neither counts nor fades.

    Parts follow one another: ``a.merge(b)`` equals the whole where b's rows came after a's.

    Attributes:
        count: numbers learned, shape (columns,).
        weight: sum of their weights; the newest has weight 1.
        mean: their weighted mean, 0 where none was learned.
        m2: sum of weighted squared deviations from the mean.
        halflife: in numbers.
    """

    count: NDArray[np.int64]
    weight: Floats
    mean: Floats
    m2: Floats
    halflife: float

    def may_have_ignored(self, frame: pl.DataFrame, before: Self) -> bool:
        return _counts_less(frame, self.count - before.count)

    @classmethod
    def empty(cls, columns: int, halflife: float = 1_000.0) -> Self:
        zeros = np.zeros(columns)
        count = np.zeros(columns, np.int64)
        return cls(count=count, weight=zeros, mean=zeros, m2=zeros, halflife=halflife)

    def update(self, block: NumberBlock) -> Self:
        if not len(block):
            return self
        frame, weights = _frame(block), _weights(len(block), self.halflife)
        sums = np.empty((frame.width, 4))
        for column, out in zip(frame.get_columns(), sums, strict=True):
            _fading(*buffers(column), weights, out)
        count, weight, mean, m2 = sums.T
        newer = dataclasses.replace(
            self, count=count.astype(np.int64), weight=weight, mean=mean, m2=m2
        )
        return self.merge(newer)

    def merge(self, other: Self) -> Self:
        fade = np.exp2(-other.count / self.halflife)
        before = self.weight * fade
        weight = before + other.weight
        share = np.divide(other.weight, weight, where=weight > 0, out=np.zeros_like(weight))
        delta = other.mean - self.mean
        return dataclasses.replace(
            self,
            count=self.count + other.count,
            weight=weight,
            mean=self.mean + delta * share,
            m2=self.m2 * fade + other.m2 + delta * delta * before * share,
        )

    @property
    def variance(self) -> Floats:
        """The weighted population variance; 0 as in `Moments.variance`."""
        return _spread(self.count, self.weight, self.mean, self.m2)

    @property
    def deviation(self) -> Floats:
        """The weighted population standard deviation."""
        return np.sqrt(self.variance)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Extremes(Statistic):
    """The smallest and largest number.

    Attributes:
        count: numbers seen, shape (columns,).
        low: the smallest, infinity where none was seen.
        high: the largest, minus infinity where none was seen.
    """

    limit: ClassVar[float] = MAX_WIDTH

    count: NDArray[np.int64]
    low: Floats
    high: Floats

    def may_have_ignored(self, frame: pl.DataFrame, before: Self) -> bool:
        return _counts_less(frame, self.count - before.count)

    @classmethod
    def empty(cls, columns: int) -> Self:
        infinite = np.full(columns, np.inf)
        return cls(count=np.zeros(columns, np.int64), low=infinite, high=-infinite)

    @classmethod
    def of(cls, block: NumberBlock) -> Self:
        """Return the extremes of one block."""
        return cls.from_sums(_of_columns(extremes_into, block))

    @classmethod
    def from_sums(cls, sums: Floats) -> Self:
        """Return extremes from the results of `extremes_into` per column, shape (columns, 3)."""
        count, low, high = sums.T
        return cls(count=count.astype(np.int64), low=low, high=high)

    def update(self, block: NumberBlock) -> Self:
        return self.merge(self.of(block)) if len(block) else self

    def merge(self, other: Self) -> Self:
        return dataclasses.replace(
            self,
            count=self.count + other.count,
            low=np.minimum(self.low, other.low),
            high=np.maximum(self.high, other.high),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeyedMoments(Statistic):
    """`Moments` of the rows of each key, for the `size` most recent keys; and of all rows together.

    What it learns from has the keys' 64-bit hashes (UInt64) as its first column. Parts follow one
    another: ``a.merge(b)`` equals the whole where b's rows came after a's and no key has left. A
    key that left and comes again begins anew.

    Every update copies the table: 16 + 24 bytes a column for each key.

    Attributes:
        keys: hashes, ascending, shape (k,).
        seen: number of the row that each was last seen in, shape (k,).
        count, mean, m2: as in `Moments`, shape (k, columns).
        total: moments of all rows, whether or not their key is still there.
        age: rows seen so far.
        left: how often a key has left.
        size: keys kept.
    """

    keys: NDArray[np.uint64]
    seen: NDArray[np.int64]
    count: NDArray[np.int64]
    mean: Floats
    m2: Floats
    total: Moments
    age: int = 0
    left: int = 0
    size: int = 10_000

    def may_have_ignored(self, frame: pl.DataFrame, before: Self) -> bool:
        return self.total.may_have_ignored(frame[:, 1:], before.total)

    @classmethod
    def empty(cls, columns: int, size: int = 10_000) -> Self:
        zeros = np.zeros((0, columns))
        return cls(
            keys=np.zeros(0, np.uint64),
            seen=np.zeros(0, np.int64),
            count=zeros.astype(np.int64),
            mean=zeros,
            m2=zeros,
            total=Moments.empty(columns),
            size=size,
        )

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the index of each key in the table, -1 for unknown keys."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)

    def update(self, block: NumberBlock) -> Self:
        assert isinstance(block, pl.DataFrame)
        if not block.height:
            return self
        hashed, numbers = block.to_series(0).to_numpy(), block[:, 1:]
        keys, group = np.unique(hashed, return_inverse=True)
        rows = matrix(numbers)
        count, mean, m2, seen = _grouped(rows, group, len(keys))
        total = Moments.of(numbers)
        newer = dataclasses.replace(
            self, keys=keys, seen=seen, count=count, mean=mean, m2=m2, total=total,
            age=block.height, left=0,
        )  # fmt: skip
        return self.merge(newer)

    def merge(self, other: Self) -> Self:
        at = self.find(other.keys)
        known, new = np.flatnonzero(at >= 0), np.flatnonzero(at < 0)
        place = np.searchsorted(self.keys, other.keys[new])
        both = self.moments_into(at[known]).merge(other.moments_into(known))
        columns: dict[str, Any] = {
            "seen": _with(self.seen, at[known], other.seen[known] + self.age),
            "count": _with(self.count, at[known], both.count),
            "mean": _with(self.mean, at[known], both.mean),
            "m2": _with(self.m2, at[known], both.m2),
        }
        if len(new):
            columns = {
                name: np.insert(array, place, getattr(other, name)[new], axis=0)
                for name, array in columns.items()
            }
            columns["seen"][place + np.arange(len(new))] += self.age
        columns["keys"] = np.insert(self.keys, place, other.keys[new]) if len(new) else self.keys
        extra = len(columns["keys"]) - self.size
        if extra > 0:
            oldest = np.partition(columns["seen"], extra)[extra]  # each row has one key: no ties
            columns = {name: array[columns["seen"] >= oldest] for name, array in columns.items()}
        return dataclasses.replace(
            self,
            **columns,
            total=self.total.merge(other.total),
            age=self.age + other.age,
            left=self.left + other.left + max(extra, 0),
        )

    def moments_into(self, at: NDArray[np.int64]) -> Moments:
        return Moments(count=self.count[at], mean=self.mean[at], m2=self.m2[at])

    def snapshot(self) -> dict[str, Any]:
        # No super(): a dataclass with slots is another class than the one that is written here.
        return {**Statistic.snapshot(self), "total": self.total.snapshot()}

    @classmethod
    def restore(cls, value: Mapping[str, Any]) -> Self:
        return cls(**{**value, "total": Moments.restore(value["total"])})


def _with(array: NDArray[Any], at: NDArray[np.int64], values: NDArray[Any]) -> NDArray[Any]:
    """Return a copy of the array with other values in some rows."""
    result = array.copy()
    result[at] = values
    return result


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CoMoments(Statistic):
    """Means and products of deviations of columns, over the rows in which every column has a
    number: all that a linear regression of one column on the others needs.

    Merged as `Moments`, pair by pair.

    Attributes:
        complete: rows.
        mean: of the complete rows, shape (columns,).
        products: sums of products of two columns' deviations from their means, shape (columns,
            columns).
        single: moments of each column over all its numbers.
    """

    complete: int
    mean: Floats
    products: Floats
    single: Moments

    def may_have_ignored(self, frame: pl.DataFrame, before: Self) -> bool:
        return self.single.may_have_ignored(frame, before.single)

    @classmethod
    def empty(cls, columns: int) -> Self:
        zeros = np.zeros(columns)
        square = np.zeros((columns, columns))
        return cls(complete=0, mean=zeros, products=square, single=Moments.empty(columns))

    def update(self, block: NumberBlock) -> Self:
        if not len(block):
            return self
        rows = matrix(block)
        single = Moments.of(block)
        rows = np.ascontiguousarray(rows[:, ~np.isnan(rows).any(axis=0)])
        n = rows.shape[1]
        mean = rows.sum(axis=1) / max(n, 1)
        rows -= mean[:, None]
        other = dataclasses.replace(
            self, complete=n, mean=mean, products=rows @ rows.T, single=single
        )
        return self.merge(other)

    def merge(self, other: Self) -> Self:
        complete = self.complete + other.complete
        share = other.complete / max(complete, 1)
        delta = other.mean - self.mean
        return dataclasses.replace(
            self,
            complete=complete,
            mean=self.mean + delta * share,
            products=self.products
            + other.products
            + np.outer(delta, delta) * (self.complete * share),
            single=self.single.merge(other.single),
        )

    @property
    def deviation(self) -> Floats:
        """The square root of the sum of squared deviations, 0 as in `Moments.variance`."""
        rows = np.full(len(self.mean), self.complete)
        return np.sqrt(_spread(rows, rows, self.mean, np.diagonal(self.products)))

    def snapshot(self) -> dict[str, Any]:
        return {**Statistic.snapshot(self), "single": self.single.snapshot()}

    @classmethod
    def restore(cls, value: Mapping[str, Any]) -> Self:
        return cls(**{**value, "single": Moments.restore(value["single"])})


CENTROIDS = 256
"""The number of centroids per column in `Quantiles`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Quantiles(Statistic):
    """A t-digest per column: quantiles in bounded memory (4 kB per column).

    Dunning and Ertl, "Computing Extremely Accurate Quantiles Using t-Digests" (2019), in the
    merging form with the scale function k1; cells of the scale are fixed instead of greedy, so that
    all columns are merged by the same few array operations. Nothing in it is random.

    Error of `quantile(q)` in rank: 0.5 % or less, mostly below 0.05 %; the ends are exact. Held by
    tests for shuffled, sorted, reversed and interleaved streams of several distributions; as with
    every t-digest there is no bound for an adversary's order.

    Attributes:
        mean: of each cell's numbers, shape (CELLS, columns), ascending where weight > 0.
        weight: how many numbers each cell holds, float64.
        low: the smallest number, infinity where none was seen.
        high: the largest number, minus infinity where none was seen.
    """

    mean: Floats
    weight: Floats
    low: Floats
    high: Floats

    def may_have_ignored(self, frame: pl.DataFrame, before: Self) -> bool:
        return _counts_less(frame, self.count - before.count)

    @classmethod
    def empty(cls, columns: int) -> Self:
        zeros, infinite = np.zeros((CENTROIDS, columns)), np.full(columns, np.inf)
        return cls(mean=zeros, weight=zeros, low=infinite, high=-infinite)

    @classmethod
    def of(cls, block: NumberBlock, limit: float = MAX_ABS) -> Self:
        """Return the digest of one block.

        Args:
            limit: what is too large; `MAX_WIDTH` at most.
        """
        rows = np.sort(matrix(block, limit), axis=1)  # NaN comes last
        count = np.count_nonzero(~np.isnan(rows), axis=1)
        if not rows.size:
            return cls.empty(len(rows))
        low = np.where(count > 0, rows[:, 0], np.inf)
        high = np.where(count > 0, rows[np.arange(len(rows)), count - 1], -np.inf)
        starts = np.clip(np.ceil(_EDGES * count - 0.5), 0, count).astype(np.int64)
        starts[-1] = count
        sums = _segments(np.nan_to_num(rows, nan=0.0), starts)
        weight = np.diff(starts, axis=0).astype(np.float64)
        mean = np.where(weight > 0, sums / np.maximum(weight, 1), 0.0)
        return cls(mean=mean, weight=weight, low=low, high=high)

    def update(self, block: NumberBlock) -> Self:
        return self.merge(self.of(block)) if len(block) else self

    def merge(self, other: Self) -> Self:
        weight = np.concatenate((self.weight, other.weight))
        mean = np.concatenate((self.mean, other.mean))
        order = np.argsort(np.where(weight > 0, mean, np.inf), axis=0, kind="stable")
        weight, mean = np.take_along_axis(weight, order, 0), np.take_along_axis(mean, order, 0)
        cell = _cells(weight)
        total = _binned(cell, weight)
        return dataclasses.replace(
            self,
            mean=_binned(cell, weight * mean) / np.where(total > 0, total, 1.0),
            weight=total,
            low=np.minimum(self.low, other.low),
            high=np.maximum(self.high, other.high),
        )

    @property
    def count(self) -> NDArray[np.int64]:
        """The numbers seen, shape (columns,)."""
        count: NDArray[np.int64] = self.weight.sum(axis=0).astype(np.int64)
        return count

    def quantile(self, *q: float) -> Floats:
        """Return the quantiles q (0-1) of each column, shape (len(q), columns); NaN for a column
        without numbers."""
        columns = [self._column(j, np.asarray(q)) for j in range(len(self.low))]
        return np.stack(columns, axis=1) if columns else np.empty((len(q), 0))

    def below(self, j: int, values: Floats) -> Floats:
        """Return the share of column j's numbers up to each value, by the same interpolation."""
        ranks, known = self._points(j)
        if not len(known):
            return np.full(len(values), np.nan)
        return np.asarray(np.interp(values, known, ranks / ranks[-1], left=0.0, right=1.0))

    def _column(self, j: int, q: Floats) -> Floats:
        ranks, values = self._points(j)
        if not len(values):
            return np.full(len(q), np.nan)
        return np.asarray(np.interp(q * ranks[-1], ranks, values))

    def _points(self, j: int) -> tuple[Floats, Floats]:
        """Return ranks, and the values at them; empty for a column without numbers."""
        at = np.flatnonzero(self.weight[:, j])
        if not len(at):
            return np.empty(0), np.empty(0)
        weight = self.weight[at, j]
        after = np.cumsum(weight)
        ranks = np.concatenate(([0.0], after - weight / 2, after[-1:]))
        values = np.concatenate((self.low[j : j + 1], self.mean[at, j], self.high[j : j + 1]))
        return ranks, values


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Counts(Statistic):
    """The most frequent values of each column, of any type, in bounded memory.

    Misra and Gries, "Finding Repeated Elements" (1982), merged as in Agarwal et al., "Mergeable
    Summaries" (2012): a value's count is never too high and at most rows / (size + 1) too low; with
    no more than `size` different values it is exact. Of equal counts the one that led before stands
    first.

    Attributes:
        tables: for each column a frame of ``value`` and ``count``, most frequent first, at most
            `size` rows; empty tables have type Null until the first value.
        size: values kept per column.
    """

    limit: ClassVar[float] = math.inf

    tables: tuple[pl.DataFrame, ...]
    size: int = 1024

    def may_have_ignored(self, frame: pl.DataFrame, before: Self) -> bool:
        return False  # it has no limit

    @classmethod
    def empty(cls, columns: int, size: int = 1024) -> Self:
        table = pl.DataFrame(schema={"value": pl.Null(), "count": pl.Int64()})
        return cls(tables=(table,) * columns, size=size)

    def update(self, block: NumberBlock) -> Self:
        frame = block if isinstance(block, pl.DataFrame) else _frame(block)
        if not frame.height:
            return self
        tables = tuple(_counted(column) for column in frame.get_columns())
        return self.merge(dataclasses.replace(self, tables=tables))

    def merge(self, other: Self) -> Self:
        tables = (self._merged(a, b) for a, b in zip(self.tables, other.tables, strict=True))
        return dataclasses.replace(self, tables=tuple(tables))

    def _merged(self, a: pl.DataFrame, b: pl.DataFrame) -> pl.DataFrame:
        if a.height and b.height:
            both = pl.concat((a, b)).group_by("value", maintain_order=True).sum()
        else:
            both = a if a.height else b
        both = both.sort("count", descending=True, maintain_order=True)
        if both.height > self.size:
            cut = both.item(self.size, "count")
            both = both.with_columns(pl.col("count") - cut).filter(pl.col("count") > 0)
        return both

    @property
    def top(self) -> list[Any]:
        """The most frequent value of each column, None for a column without values."""
        return [table.item(0, "value") if table.height else None for table in self.tables]


# ------------------------------------------------------------------------------------------ helpers


def _spread(
    count: NDArray[np.int64], weight: NDArray[Any], mean: Floats, squares: Floats
) -> Floats:
    """Return ``squares / weight``, 0 if that is within the rounding error of `count` numbers."""
    variance = np.divide(squares, weight, where=weight > 0, out=np.zeros_like(squares))
    noise = count * np.finfo(np.float64).eps
    constant = variance <= noise * variance + (noise * mean) ** 2
    return np.where(constant, 0.0, variance)


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _sums(x):  # type: ignore[no-untyped-def]
    """Return mean and squared deviations of x, shape (n,), in two passes; the second removes the
    first's rounding error (Chan, Golub & LeVeque).

    Counted loops and reordered sums, so that the compiler uses the processor's lanes: iterating
    over the values takes ten times as long. The order depends on the length alone.
    """
    n = x.shape[0]
    total = 0.0
    for i in range(n):
        total += x[i]
    mean = total / max(n, 1)
    squares, rest = 0.0, 0.0
    for i in range(n):
        off = x[i] - mean
        squares += off * off
        rest += off
    return mean, max(squares - rest * rest / max(n, 1), 0.0)


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _sums_of(x, mask):  # type: ignore[no-untyped-def]
    """Return count, mean and squared deviations of the numbers `_good` would keep, like `_sums`,
    without copying them."""
    n, total = 0, 0.0
    for i in range(x.shape[0]):
        good = (mask[i] != 0) & (abs(x[i]) < MAX_ABS)
        total += x[i] if good else 0.0
        n += good
    mean = total / max(n, 1)
    squares, rest = 0.0, 0.0
    for i in range(x.shape[0]):
        good = (mask[i] != 0) & (abs(x[i]) < MAX_ABS)
        off = x[i] - mean if good else 0.0
        squares += off * off
        rest += off
    return n, mean, max(squares - rest * rest / max(n, 1), 0.0)


@numba.njit(nogil=True, cache=True)
def _good(x, mask, limit):  # type: ignore[no-untyped-def]
    """Return the numbers of x that are not null (0 in the mask, which may be empty), not NaN, and
    below the limit."""
    kept = np.empty(x.shape[0])
    n = 0
    for i in range(x.shape[0]):
        kept[n] = x[i]
        n += (mask.shape[0] == 0 or mask[i] != 0) and abs(x[i]) < limit
    return kept[:n]


@numba.njit(nogil=True, cache=True)
def moments_into(x, mask, out):  # type: ignore[no-untyped-def]
    """Write count, mean and squared deviations to `out`, shape (3,); `mask` as of `buffers`."""
    if mask.shape[0]:
        out[0], out[1], out[2] = _sums_of(x, mask)
        return
    mean, squares = _sums(x)
    if abs(mean) < MAX_ABS / 10 and squares < MAX_ABS:
        out[0], out[1], out[2] = x.shape[0], mean, squares
    else:
        out[0], out[1], out[2] = _sums_of(x, np.ones(x.shape[0], np.uint8))


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _weighted(x, w):  # type: ignore[no-untyped-def]
    """Return the sum of w, and the weighted mean and squared deviations of x, both of shape (n,),
    like `_sums`."""
    n = x.shape[0]
    weight, total = 0.0, 0.0
    for i in range(n):
        weight += w[i]
        total += w[i] * x[i]
    mean = total / weight if n else 0.0
    squares, rest = 0.0, 0.0
    for i in range(n):
        off = x[i] - mean
        squares += w[i] * off * off
        rest += w[i] * off
    return weight, mean, max(squares - rest * rest / weight, 0.0) if n else 0.0


@numba.njit(nogil=True, cache=True)
def _fading(x, mask, weights, out):  # type: ignore[no-untyped-def]
    """Write count, sum of weights, mean and squared deviations to `out`, shape (4,); `weights` of n
    numbers end with the newest."""
    n = x.shape[0]
    weight, mean, squares = 0.0, math.inf, math.inf
    if not mask.shape[0]:
        weight, mean, squares = _weighted(x, weights[weights.shape[0] - n :])
    if not (abs(mean) < MAX_ABS / 10 and squares < MAX_ABS):
        x = _good(x, mask, MAX_ABS)
        n = x.shape[0]
        weight, mean, squares = _weighted(x, weights[weights.shape[0] - n :])
    out[0], out[1], out[2], out[3] = n, weight, mean, squares


@numba.njit(nogil=True, cache=True)
def _grouped(rows, group, groups):  # type: ignore[no-untyped-def]
    """Return count, mean and squared deviations of each group, shape (groups, columns), and its
    last row.

    Args:
        rows: shape (columns, n), NaN for what is no number.
        group: of each row, from 0, shape (n,).
    """
    columns, n = rows.shape
    count = np.zeros((groups, columns), np.int64)
    mean = np.zeros((groups, columns))
    m2 = np.zeros((groups, columns))
    seen = np.zeros(groups, np.int64)
    for i in range(n):
        seen[group[i]] = i
    for j in range(columns):
        for i in range(n):
            x = rows[j, i]
            if x == x:
                g = group[i]
                count[g, j] += 1
                off = x - mean[g, j]
                mean[g, j] += off / count[g, j]
                m2[g, j] += off * (x - mean[g, j])
    return count, mean, m2, seen


@numba.njit(nogil=True, cache=True)
def extremes_into(x, mask, out):  # type: ignore[no-untyped-def]
    """Write count, smallest and largest to `out`, shape (3,)."""
    if mask.shape[0]:
        numbers = np.empty(x.shape[0])
        numbers_into(x, mask, MAX_WIDTH, numbers)
        _extremes(numbers, out)
    else:
        _extremes(x, out)


LANES = 64
"""Numbers that are compared at a time: a loop with one smallest so far is not put on the
processor's lanes."""


@numba.njit(nogil=True, cache=True)
def _extremes(x, out):  # type: ignore[no-untyped-def]
    count = np.zeros(LANES, np.int64)
    low, high = np.full(LANES, np.inf), np.full(LANES, -np.inf)
    whole = x.shape[0] - x.shape[0] % LANES
    for start in range(0, whole, LANES):
        for k in range(LANES):
            number = x[start + k]
            good = abs(number) < MAX_WIDTH
            least, most = number if good else np.inf, number if good else -np.inf
            count[k] += good
            low[k] = least if least < low[k] else low[k]
            high[k] = most if most > high[k] else high[k]
    for i in range(whole, x.shape[0]):
        if abs(x[i]) < MAX_WIDTH:
            count[0], low[0], high[0] = count[0] + 1, min(low[0], x[i]), max(high[0], x[i])
    out[0], out[1], out[2] = count.sum(), low.min(), high.max()


def _of_columns(kernel: Callable[..., None], block: NumberBlock) -> Floats:
    """Return the kernel's result per column, shape (columns, 3)."""
    frame = _frame(block)
    sums = np.empty((frame.width, 3))
    for column, out in zip(frame.get_columns(), sums, strict=True):
        kernel(*buffers(column), out)
    return sums


def _counts_less(frame: pl.DataFrame, counts: NDArray[np.int64]) -> bool:
    """Return whether some columns were counted to less than their values, NaN among them."""
    if (counts == frame.height).all():  # as nearly always, and cheaper than asking each column
        return False
    nulls = [column.null_count() for column in frame.get_columns()]
    return bool((counts < frame.height - np.array(nulls)).any())


@functools.lru_cache(maxsize=4)
def _weights(n: int, halflife: float) -> Floats:
    """Return the weights of n numbers, the newest last; batches are mostly of one size."""
    return read_only(np.exp2(-np.arange(n - 1, -1, -1) / halflife))


def _frame(block: NumberBlock) -> pl.DataFrame:
    if isinstance(block, pl.DataFrame):
        return block
    return pl.DataFrame({str(j): column for j, column in enumerate(np.asarray(block).T)})


def matrix(block: NumberBlock, limit: float = MAX_ABS) -> Floats:
    """Return shape (columns, n), C-contiguous; NaN for what is not a number below the limit."""
    frame = _frame(block)
    out = np.empty((frame.width, frame.height))
    for column, numbers in zip(frame.get_columns(), out, strict=True):
        numbers_into(*buffers(column), limit, numbers)
    return out


_EDGES = (np.sin(np.pi * (np.arange(CENTROIDS + 1)[:, None] / CENTROIDS - 0.5)) + 1) / 2
"""The quantile at which each cell of the scale function k1 starts, shape (CELLS + 1, 1)."""


def _segments(rows: Floats, starts: NDArray[np.int64]) -> Floats:
    """Return the sums of ``rows[j, starts[i, j]:starts[i + 1, j]]``, shape (CELLS, columns);
    arbitrary for empty slices."""
    flat = np.append(rows.ravel(), 0.0)
    at = starts[:-1] + np.arange(len(rows)) * rows.shape[1]
    sums: Floats = np.add.reduceat(flat, at.T.ravel())
    return sums.reshape(len(rows), -1).T


def _cells(weight: Floats) -> NDArray[np.int64]:
    """Return the cell of the middle of each centroid; `weight` is in order of the means."""
    after = np.cumsum(weight, axis=0)
    middle = (after - weight / 2) / np.maximum(after[-1], 1)
    k = CENTROIDS * (np.arcsin(np.clip(2 * middle - 1, -1, 1)) / np.pi + 0.5)
    cells: NDArray[np.int64] = np.minimum(k, CENTROIDS - 1).astype(np.int64)
    return cells


def _binned(cell: NDArray[np.int64], values: Floats) -> Floats:
    """Return the sums of the values of each cell, column by column, shape (CELLS, columns)."""
    columns = cell.shape[1]
    at = cell * columns + np.arange(columns)
    sums = np.bincount(at.ravel(), values.ravel(), CENTROIDS * columns).astype(np.float64)
    return sums.reshape(CENTROIDS, columns)


def _counted(column: pl.Series) -> pl.DataFrame:
    if column.dtype.is_float():
        column = column.fill_nan(None)
    table = column.alias("value").drop_nulls().to_frame()
    counted = table.group_by("value", maintain_order=True).len("count")
    return counted.with_columns(pl.col("count").cast(pl.Int64))


__all__ = [
    "MAX_WIDTH",
    "CoMoments",
    "Counts",
    "Extremes",
    "FadingMoments",
    "KeyedMoments",
    "Moments",
    "NumberBlock",
    "Quantiles",
    "Statistic",
    "extremes_into",
    "inverse",
    "matrix",
    "moments_into",
]
