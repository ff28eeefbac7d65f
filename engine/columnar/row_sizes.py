"""The size of rows in bytes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.types import Records, Values

PACKED: dict[pl.DataType | type[pl.DataType], int] = {
    pl.Boolean: 1,
    pl.Int8: 1,
    pl.UInt8: 1,
    pl.Int16: 2,
    pl.UInt16: 2,
    pl.Int32: 4,
    pl.UInt32: 4,
    pl.Float32: 4,
}
"""Bytes per value in an array: 1 for pixels, which are many; 8 for the others."""
NUMBERS = frozenset({pl.Float64, pl.Int64, pl.Float32, pl.Int32, pl.Boolean})
"""The types of most columns, told by a look at the class: comparing types costs more than the
rest."""


def ends_of(records: Records) -> NDArray[np.int64]:
    """Return the cumulative bytes of the first 1, 2, ... n records, shape (n,).

    They depend on the values and not on how they were read (as `Records.nbytes` may, which tells
    what memory is held), so that a batch which is cut by them is cut the same way again.
    """
    values = records.values
    if isinstance(values, Values):
        ends: NDArray[np.int64] = values.bounds[1:] - values.bounds[0]
        return ends
    widths = list(map(_width, values.dtypes))
    sizes = np.full(len(records), sum(widths), np.int64)
    for i, width in enumerate(widths):
        if not width:
            sizes += _sizes(values.to_series(i))
    return np.cumsum(sizes)


def _width(dtype: pl.DataType) -> int:
    """Return the bytes of each value; 0 if they vary."""
    if type(dtype) in NUMBERS:
        return 8
    if isinstance(dtype, pl.Array):
        leaf: Any = dtype
        while isinstance(leaf, pl.Array):
            leaf = leaf.inner
        return math.prod(dtype.shape) * (PACKED.get(leaf, 8) if _width(leaf) else 0)
    return 0 if dtype.is_nested() or dtype in (pl.String, pl.Binary, pl.Object) else 8


def _sizes(column: pl.Series) -> NDArray[np.int64]:
    """Return the bytes of each value, shape (n,)."""
    dtype = column.dtype
    if dtype == pl.String:
        return _numbers(column.str.len_bytes())
    if dtype == pl.Binary:
        return _numbers(column.bin.size())
    if isinstance(dtype, pl.Array):
        return _sizes(column.arr.to_list())
    if isinstance(dtype, pl.List):
        counts = _numbers(column.list.len())
        if width := _width(dtype.inner):  # type: ignore[arg-type]
            return counts * width
        inner = column.list.explode(keep_nulls=False, empty_as_null=False)
        ends = np.concatenate([[0], np.cumsum(_sizes(inner))])
        at = np.concatenate([[0], np.cumsum(counts)])
        sizes: NDArray[np.int64] = np.diff(ends[at])
        return sizes
    if isinstance(dtype, pl.Struct):
        sizes = np.zeros(len(column), np.int64)
        for part in column.struct.unnest():
            sizes += _width(part.dtype) or _sizes(part)
        return sizes
    return np.full(len(column), 8, np.int64)


def _numbers(column: pl.Series) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = column.cast(pl.Int64).fill_null(0).to_numpy()
    return numbers


__all__ = ["ends_of"]
