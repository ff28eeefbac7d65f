"""Columns as the arrays that a graph or a network reads: n rows each, without a Python object per
number. Text alone becomes Python strings, because that is what ONNX Runtime takes.

Every function expects rows that have a value; whoever calls it rejects the others first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import DTypeLike, NDArray

from engine.types.arrays import Bools, Ints
from engine.types.schema import TYPES

Array = NDArray[Any]

DARKEST, BRIGHTEST = 0, 255
POLARS_TYPES: dict[str, pl.DataType] = {
    **{name: dtype for name, dtype in TYPES.items() if dtype.is_numeric() or name == "bool"},
    "float16": pl.Float32(),  # made of float32 by numpy
}
"""Name of a numpy type -> the polars type that a column is cast to before it."""


def numbers(column: pl.Series, dtype: DTypeLike, *, null: float | None = None) -> Array:
    """Return a column of numbers or bools, shape (n,).

    Args:
        null: what stands for a null; NaN for floats unless given.

    Raises: polars.exceptions.PolarsError for a value that the type cannot hold.
    """
    wanted = POLARS_TYPES[np.dtype(dtype).name]
    if column.dtype != wanted:
        column = column.cast(wanted)
    if column.null_count():
        column = column.fill_null(np.nan if null is None and wanted.is_float() else null)
    return column.rechunk().to_numpy().astype(dtype, copy=False)


def matrix(columns: Sequence[pl.Series], dtype: DTypeLike) -> Array:
    """Return columns of numbers side by side, shape (n, columns); NaN for null."""
    wanted = POLARS_TYPES[np.dtype(dtype).name]
    frame = pl.DataFrame([column.cast(wanted) for column in columns])
    return frame.to_numpy(order="c").astype(dtype, copy=False)


def texts(column: pl.Series, *, null: str = "") -> Array:
    """Return a column of text as Python strings, shape (n,)."""
    column = column.cast(pl.String)
    if column.null_count():
        column = column.fill_null(null)
    return column.rechunk().to_numpy()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PaddedLists:
    """Lists as one block.

    Attributes:
        values: shape (n, length) or, for lists of arrays, (n, length, ...).
        mask: true where a row has a value, shape (n, length).
        cut: how many values stood beyond the length.
    """

    values: Array
    mask: Bools
    cut: int


def padded(
    column: pl.Series, dtype: DTypeLike, *, length: int | None = None, pad: float = 0
) -> PaddedLists:
    """Return lists of numbers, or of arrays of one shape, filled up at their ends.

    Args:
        length: of every row; that of the longest list, and at least 1, unless given.
    """
    flat = column.explode(keep_nulls=False, empty_as_null=False)
    values = arrays(flat, dtype) if isinstance(flat.dtype, pl.Array) else numbers(flat, dtype)
    lengths = list_lengths(column)
    width = max(1, int(lengths.max(initial=0))) if length is None else length
    return side_by_side(values, lengths, width, pad)


def side_by_side(values: Array, lengths: Ints, width: int, pad: float) -> PaddedLists:
    """Return lists, given all their values in sequence, cut and filled up to `width`."""
    mask = np.arange(width) < lengths[:, None]
    kept = values
    if (lengths > width).any():
        starts = np.cumsum(lengths) - lengths
        kept = values[np.arange(len(values)) - np.repeat(starts, lengths) < width]
    filled = np.full((len(lengths), width, *values.shape[1:]), pad, values.dtype)
    filled[mask] = kept
    return PaddedLists(values=filled, mask=mask, cut=len(values) - len(kept))


def list_lengths(column: pl.Series) -> Ints:
    """Return the number of values of each list, shape (n,); 0 for null."""
    return column.list.len().fill_null(0).cast(pl.Int64).to_numpy()


def arrays(column: pl.Series, dtype: DTypeLike) -> Array:
    """Return arrays of one shape as a block, shape (n, ...), in the column's own memory where the
    type is the same."""
    return column.rechunk().to_numpy().astype(dtype, copy=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """How decoded images, arrays of bytes of shape (height, width, channels), become an input.

    Attributes:
        channels_first: (n, channels, height, width); else (n, height, width, channels).
        low, high: what bytes of 0 and 255 become, if the input is of floats.
        mean, std: subtracted, and divided by, after that; one number, or one for each channel.
        reverse: give the channels in the other order (BGR).
    """

    channels_first: bool = True
    low: float = 0.0
    high: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    reverse: bool = False

    def array(self, column: pl.Series, dtype: DTypeLike = np.float32) -> Array:
        """Return the images as bytes, or as floats that are scaled as the attributes say."""
        block = arrays(column, np.uint8)
        block = block[..., ::-1] if self.reverse else block
        block = block.transpose(0, 3, 1, 2) if self.channels_first else block
        if np.dtype(dtype) == np.uint8:
            return np.ascontiguousarray(block)
        factor, shift = self._line()
        out = np.empty(block.shape, np.float32)
        np.multiply(block, factor, out=out)
        out += shift
        return out.astype(dtype, copy=False)

    def _line(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return factor and shift of each channel, shaped to be broadcast."""
        mean, std = np.array(self.mean), np.array(self.std)
        factor = (self.high - self.low) / (BRIGHTEST - DARKEST) / std
        shift = (self.low - mean) / std
        shape = (-1, 1, 1) if self.channels_first else (-1,)
        return (
            factor.astype(np.float32).reshape(shape),
            shift.astype(np.float32).reshape(shape),
        )


__all__ = [
    "POLARS_TYPES",
    "Array",
    "PaddedLists",
    "Pixels",
    "arrays",
    "list_lengths",
    "matrix",
    "numbers",
    "padded",
    "side_by_side",
    "texts",
]
