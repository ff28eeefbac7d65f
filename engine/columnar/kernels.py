"""Compiled loops over one float64 column, for cases where calling polars for 32 columns costs more
than the work.

A loop here runs without the GIL at the speed of memory. Columns of other types, and the rare cases,
are polars' own; both ways give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numba
import numpy as np
import polars as pl
import pyarrow as pa
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from engine.types.arrays import Floats, read_only
from engine.types.transforms import MAX_ABS

Mask = NDArray[np.uint8]
ALL: Mask = read_only(np.empty(0, np.uint8))
"""The mask of a column without nulls."""
_BYTES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
BITS = _BYTES.view(np.uint64).ravel().copy()
"""The eight bytes that a byte of Arrow's validity bitmap stands for, packed in one number."""


def buffers(column: pl.Series) -> tuple[Floats, Mask]:
    """Return a column of numbers as one piece of memory: values, shape (n,), arbitrary where null;
    and a mask, 0 where null, else 1, empty if nothing is null.

    Nothing is copied that is Float64 in one chunk already.
    """
    if not isinstance(column.dtype, pl.Float64):  # half the time of ==
        column = column.cast(pl.Float64)
    if not column.null_count():
        return read_only(column.to_numpy()), ALL
    array = column.rechunk().to_arrow()
    bitmap, values = array.buffers()
    at, n = array.offset, len(array)
    numbers = np.frombuffer(values, np.float64, n, at * 8)
    mask = bytes_of(read_only(np.frombuffer(bitmap, np.uint8)), at, n)
    return read_only(numbers), read_only(mask)


def places(frame: pl.DataFrame) -> tuple[NDArray[np.int64], object]:
    """Return where Float64 columns lie in memory, for a loop over all of them: for each the address
    of its values, the address of Arrow's bitmap (0 if nothing is null), and its first bit, shape
    (columns, 3); and the objects to keep alive meanwhile.

    Nothing is copied that is in one chunk already.
    """
    frame = frame if frame.n_chunks() == 1 else frame.rechunk()
    batch = pa.RecordBatchReader.from_stream(frame).read_next_batch()
    rows = []
    for column in batch.columns:
        bitmap, values = column.buffers()
        at = column.offset
        bitmap_at = (0, 0) if bitmap is None or not column.null_count else (bitmap.address, at)
        rows.append((values.address + at * 8, *bitmap_at))
    return np.array(rows), batch


def fill_columns(
    columns: Sequence[pl.Series], values: Sequence[float]
) -> tuple[list[pl.Series], list[int]]:
    """Return columns of numbers, of equal length, in Float64 and with a value of its own in each
    for null and NaN, and how many were replaced; those without are returned as they are, the others
    share memory."""
    out = np.empty((len(columns), len(columns[0]) if columns else 0))
    counts = [
        int(fill_into(*buffers(column), value, filled))
        for column, value, filled in zip(columns, values, out, strict=True)
    ]
    done = shared(out, [column.name for column in columns])
    pairs = zip(columns, done, counts, strict=True)
    return [filled if n else column for column, filled, n in pairs], counts


def clip(column: pl.Series, low: float, high: float) -> tuple[pl.Series, int]:
    """Clip a Float64 column to the bounds; return it and how many values lay outside. Null stays
    null, NaN NaN."""
    if column.null_count():
        out = column.clip(low, high)
        n = int((out != column).sum())
        return (out, n) if n else (column, 0)
    numbers, _ = buffers(column)
    within = np.empty(len(numbers))
    n = int(clip_into(numbers, low, high, within))
    return (pl.Series(column.name, within), n) if n else (column, 0)


def scale_columns(columns: Sequence[pl.Series], shift: Floats, scale: Floats) -> list[pl.Series]:
    """Return ``(x - shift) * scale`` of columns of numbers, in Float64; see `_transformed`, and
    `scaled_one` for a scale of 0."""
    if not any(column.null_count() for column in columns):
        return _transformed(scale_into, columns, shift, scale)
    return [
        (column.cast(pl.Float64) - a) * b
        if column.null_count() and b
        else _transformed(scale_into, [column], np.array([a]), np.array([b]))[0]
        for column, a, b in zip(columns, shift.tolist(), scale.tolist(), strict=True)
    ]


def shared(block: Floats, names: Sequence[str], rows: int | None = None) -> Iterator[pl.Series]:
    """Yield the rows of a block, shape (columns, n), as columns, each of the first `rows` values
    (all by default), that share the block's memory."""
    n = block.shape[1]
    whole, length = pl.Series(block.reshape(-1)), n if rows is None else rows
    return (whole.slice(j * n, length).alias(name) for j, name in enumerate(names))


def power_columns(columns: Sequence[pl.Series], above: Floats, below: Floats) -> list[pl.Series]:
    """Apply `engine.types.Power` to columns of numbers, in Float64; see `_transformed`."""
    return _transformed(_power, columns, above, below)


def power_transform(column: pl.Series, above: float, below: float) -> pl.Series:
    """Apply `engine.types.Power` to a column of numbers, in Float64. Null stays null, NaN NaN."""
    return power_columns([column], np.array([above]), np.array([below]))[0]


def inverse_power_transform(column: pl.Series, above: float, below: float) -> pl.Series:
    """Invert the power transform of a Float64 column; infinite outside its range."""
    return _transformed(_unpower, [column], np.array([above]), np.array([below]))[0]


def _transformed(
    kernel: Callable[..., None], columns: Sequence[pl.Series], *parameters: Floats
) -> list[pl.Series]:
    """Return the kernel's results for columns of equal length, each with parameters of its own,
    shape (columns,). They share one piece of memory, at half the cost of one piece each. Null stays
    null, NaN NaN."""
    out = np.empty((len(columns), len(columns[0]) if columns else 0))
    own = zip(*(values.tolist() for values in parameters), strict=True)
    for column, numbers, result in zip(columns, own, out, strict=True):
        kernel(buffers(column)[0], *numbers, result)
    results = shared(out, [column.name for column in columns])
    return [
        done.to_frame().select(pl.when(column.is_not_null()).then(done)).to_series()
        if column.null_count()
        else done
        for column, done in zip(columns, results, strict=True)
    ]


def any_infinite(column: pl.Series) -> bool:
    """Return whether a Float64 column has an infinity."""
    return bool(_any_infinite(buffers(column)[0]))


_intrinsic: Any = intrinsic  # whose types are those of the code, not of the call


@_intrinsic  # type: ignore[untyped-decorator]
def pointer(typing: Any, address: Any) -> Any:
    """Return an address in memory as `numba.carray` takes it."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), code


# Counted loops: the compiler puts them on the processor's lanes, loops over values it does not.


@numba.njit(nogil=True, cache=True)
def bytes_of(bitmap, at, n):  # type: ignore[no-untyped-def]
    """Return bits `at` ... `at` + `n` of Arrow's bitmap, one per byte, shape (n,)."""
    first, last = at >> 3, (at + n + 7) >> 3
    out = np.empty(last - first, np.uint64)
    for k in range(last - first):
        out[k] = BITS[bitmap[first + k]]
    return out.view(np.uint8)[at & 7 : (at & 7) + n]


@numba.njit(nogil=True, cache=True)
def fill_into(x, mask, value, out):  # type: ignore[no-untyped-def]
    """Write `out` with `value` for null and NaN; return how many were replaced."""
    n = 0
    if mask.shape[0]:
        for i in range(x.shape[0]):
            lost = (mask[i] == 0) | (x[i] != x[i])
            out[i] = value if lost else x[i]
            n += lost
    else:
        for i in range(x.shape[0]):
            lost = x[i] != x[i]
            out[i] = value if lost else x[i]
            n += lost
    return n


@numba.njit(nogil=True, cache=True)
def clip_into(x, low, high, out):  # type: ignore[no-untyped-def]
    """Clip into `out`; return how many values lay outside."""
    n = 0
    for i in range(x.shape[0]):
        below, above = x[i] < low, x[i] > high
        out[i] = low if below else high if above else x[i]
        n += below | above
    return n


@numba.njit(nogil=True, cache=True)
def scale_into(x, shift, scale, out):  # type: ignore[no-untyped-def]
    """Write ``(x - shift) * scale`` to `out`; see `scaled_one`."""
    if scale == 0:
        for i in range(x.shape[0]):
            out[i] = scaled_one(x[i], shift, scale)
    else:
        for i in range(x.shape[0]):
            out[i] = (x[i] - shift) * scale


@numba.njit(nogil=True, cache=True)
def scaled_one(x, shift, scale):  # type: ignore[no-untyped-def]
    """Return ``(x - shift) * scale``. With a scale of 0, what is infinite or too large to have been
    learned from stays as large as it is: it must look neither missing nor like the mean."""
    moved = x - shift
    return moved if scale == 0 and abs(moved) >= MAX_ABS else moved * scale


@numba.njit(nogil=True, cache=True)
def numbers_into(x, mask, limit, out):  # type: ignore[no-untyped-def]
    """Write the numbers below the limit to `out`, NaN for what is none, or null."""
    if mask.shape[0]:
        for i in range(x.shape[0]):
            out[i] = x[i] if (mask[i] != 0) & (abs(x[i]) < limit) else math.nan
    else:
        for i in range(x.shape[0]):
            out[i] = x[i] if abs(x[i]) < limit else math.nan


@numba.njit(nogil=True, cache=True)
def _any_infinite(x):  # type: ignore[no-untyped-def]
    n = 0
    for i in range(x.shape[0]):
        n += abs(x[i]) == math.inf
    return n > 0


@numba.njit(nogil=True, cache=True)
def rows_into(columns, out):  # type: ignore[no-untyped-def]
    """Transpose columns, shape (columns, n), into float32 `out`, shape (n, columns); values that
    are too large become infinite. Eight rows at a time: that much of a column is one cache line."""
    n = len(out)
    for start in range(0, n - 7, 8):
        for j in range(len(columns)):
            for i in range(8):
                out[start + i, j] = columns[j, start + i]
    for i in range(n & ~7, n):
        for j in range(len(columns)):
            out[i, j] = columns[j, i]


@numba.njit(nogil=True, cache=True)
def _power(x, above, below, out):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        down = x[i] < 0
        p = below if down else above
        y = abs(x[i])
        if p != 1:  # which changes nothing, not even the last digit
            y = math.log1p(y)
            if p != 0:
                y = math.expm1(p * y) / p
        out[i] = -y if down else y


@numba.njit(nogil=True, cache=True)
def _unpower(y, above, below, out):  # type: ignore[no-untyped-def]
    for i in range(y.shape[0]):
        down = y[i] < 0
        p = below if down else above
        x = abs(y[i])
        if p != 1:
            if p != 0:
                x = math.log1p(max(p * x, -1.0)) / p
            x = math.expm1(x)
        out[i] = -x if down else x


__all__ = [
    "ALL",
    "MAX_ABS",
    "Mask",
    "any_infinite",
    "buffers",
    "bytes_of",
    "clip",
    "clip_into",
    "fill_columns",
    "fill_into",
    "inverse_power_transform",
    "numbers_into",
    "places",
    "pointer",
    "power_columns",
    "power_transform",
    "rows_into",
    "scale_columns",
    "scale_into",
    "scaled_one",
    "shared",
]
