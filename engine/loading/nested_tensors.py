"""Columns of arrays and lists to tensors: images, ragged, padded and sparse rows, arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.config import ModelSettings
from engine.scrub.columns import expand_columns
from engine.types import (
    Features,
    Padded,
    Ragged,
    Schema,
    Sparse,
    UserError,
    bucket,
    tensor,
    type_name,
)
from engine.types.arrays import Bools

if TYPE_CHECKING:
    import torch

Bad = tuple[str, Bools, str]
"""A reason, a mask of its rows, and a sentence."""


def nested_features(
    model: ModelSettings, schema: Schema, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Return the `Features` that are arrays and lists.

    Args:
        sizes: column -> number of its ids, 0 included, where a stage says so.

    Raises: UserError for a column that is not there, or cannot be that.
    """
    kinds = ("images", "ragged", "padded", "sparse", "arrays")
    names = {
        name: expand_columns(asked, schema, where=f"[model] {name}") if asked else ()
        for name in kinds
        for asked in [getattr(model, name)]
    }
    for column in names["sparse"]:
        if column not in sizes:
            raise UserError(
                f"[model] sparse needs to know how many ids column '{column}' can hold, and no "
                "stage says so: make them with a 'tokens' stage."
            )
    if names["padded"] and not (model.max_length or model.buckets):
        raise UserError(
            "[model] padded needs the key 'max_length' or 'buckets': one long row would make a "
            "whole batch as long."
        )
    return {
        "images": {column: image_shape(column, schema[column]) for column in names["images"]},
        "float_images": float_images(names["images"], schema),
        **{name: {c: sizes.get(c, 0) for c in names[name]} for name in kinds[1:4]},
        "arrays": {
            column: array_shape(column, schema[column], model.max_length)
            for column in names["arrays"]
        },
        "max_length": model.max_length,
        "buckets": tuple(sorted(model.buckets)),
    }


def check(features: Features, schema: Schema) -> None:
    """Raises: UserError for a column that is no array or list of numbers."""
    for column in features.images:
        image_shape(column, schema[column])
    for column, (length, _) in features.arrays.items():
        array_shape(column, schema[column], length)
    for column in (*features.ragged, *features.padded, *features.sparse):
        dtype = schema[column]
        inner = dtype.inner if isinstance(dtype, pl.List) else None
        ids = column in features.sparse
        if inner is None or not (inner.is_integer() or (inner.is_float() and not ids)):
            raise UserError(
                f"[model] expects lists of {'ids' if ids else 'numbers'} in column '{column}', got "
                f"{type_name(dtype)}: make them with a 'tokens' stage."
            )


def array_bytes(schema: Schema) -> int:
    """Return the bytes of the arrays of one row."""
    total = 0
    for dtype in schema.values():
        if isinstance(dtype, pl.Array):
            total += math.prod(dtype.shape) * pl.Series(dtype=_innermost(dtype)).to_numpy().itemsize
    return total


def image_shape(column: str, dtype: pl.DataType) -> tuple[int, int, int]:
    """Return channels, height, width."""
    flat = _innermost(dtype)
    good = flat == pl.UInt8 or flat.is_float()
    if not isinstance(dtype, pl.Array) or len(dtype.shape) != 3 or not good:
        raise UserError(
            f"[model] images expects arrays of uint8 or floats of shape (height, width, channels) "
            f"in column '{column}', got {type_name(dtype)}: make them with an 'image' stage."
        )
    height, width, channels = dtype.shape
    return channels, height, width


def array_shape(column: str, dtype: pl.DataType, max_length: int | None) -> tuple[int, int]:
    """Return length and width: `max_length` and 1 of lists of numbers."""
    if isinstance(dtype, pl.List) and dtype.inner.is_float() and max_length:
        return max_length, 1
    flat = _innermost(dtype)
    if not isinstance(dtype, pl.Array) or len(dtype.shape) > 2 or not flat.is_float():
        raise UserError(
            f"[model] expects arrays of floats of shape (length, width) in column '{column}', got "
            f"{type_name(dtype)}: make them with a 'history' stage."
        )
    return dtype.shape[0], math.prod(dtype.shape[1:])


def float_images(columns: Iterable[str], schema: Schema) -> tuple[str, ...]:
    """Return those of the columns of images that hold no bytes."""
    return tuple(column for column in columns if _innermost(schema[column]) != pl.UInt8)


def _innermost(dtype: Any) -> Any:
    """Return the type of the numbers of arrays."""
    while isinstance(dtype, pl.Array):
        dtype = dtype.inner
    return dtype


# ------------------------------------------------------------------------------------- what is bad


def bad_rows(frame: pl.DataFrame, features: Features) -> Iterable[Bad]:
    """Return the rows that cannot become tensors, by column and reason; nothing if all can."""
    for column in features.images:
        yield from _bad(_flat(frame.get_column(column)), column, frame, 0)
    for column in features.arrays:
        yield from _bad(_array_numbers(frame.get_column(column)), column, frame, 0)
    for column, size in {**features.ragged, **features.padded, **features.sparse}.items():
        yield from _bad(_values(frame.get_column(column)), column, frame, size)


def _bad(values: pl.Series, name: str, frame: pl.DataFrame, size: int) -> Iterable[Bad]:
    column = frame.get_column(name)
    sentence = f"Expected a value in feature '{name}', got null."
    absent = column.is_null().to_numpy()
    if values.null_count() or (values.dtype.is_float() and _least(values.is_not_nan())):
        missing = values.is_null()
        if values.dtype.is_float():
            missing = missing | values.is_nan().fill_null(False)
        partly = _rows(missing.to_numpy(), column)
        if (partly & ~absent).any():
            sentence = f"Expected numbers in feature '{name}', got null or NaN."
        absent = absent | partly
    if absent.any():
        yield "missing", absent, sentence
    if values.dtype.is_float() and _least(values.cast(pl.Float32).is_infinite().not_()):
        infinite = values.cast(pl.Float32).is_infinite().fill_null(False).to_numpy()
        sentence = f"Expected finite float32 in feature '{name}', got an infinite or larger number."
        yield "non_finite", _rows(infinite, column) & ~absent, sentence
    size = size or (1 << 63 if values.dtype == pl.UInt64 else 0)
    if size and len(values) and not (values.min() >= 0 and values.max() < size):  # type: ignore[operator]
        outside = ((values < 0) | (values >= size)).fill_null(False).to_numpy()
        sentence = f"Expected ids from 0 to {size - 1} in feature '{name}', got another."
        yield "out_of_range", _rows(outside, column) & ~absent, sentence


def _least(good: pl.Series) -> bool:
    """Return whether any value is false."""
    return not good.all(ignore_nulls=True)


def _rows(bad: Bools, column: pl.Series) -> Bools:
    """Return a mask of the rows that contain a bad value, shape (n,)."""
    if isinstance(column.dtype, pl.Array):
        return np.asarray(bad.reshape(len(column), -1).any(axis=1))
    sums = np.concatenate(([0], np.cumsum(bad)))
    bounds = _bounds(column)
    some: Bools = np.greater(sums[bounds[1:]], sums[bounds[:-1]])
    return some


# -------------------------------------------------------------------------------- what they become


def image(column: pl.Series) -> torch.Tensor:
    """Return arrays without nulls, shape (n, channels, height, width), as described in
    `Tensors`: bytes and float32 are not copied."""
    if _flat(column).dtype != pl.UInt8:
        column = column.cast(pl.Array(pl.Float32(), column.dtype.shape))  # type: ignore[attr-defined]
    return tensor(np.asarray(_Writable(column.to_numpy()))).permute(0, 3, 1, 2)


def ragged(column: pl.Series, max_length: int | None) -> tuple[Ragged, int]:
    """Return lists without nulls, and how many of their values were truncated."""
    values, bounds, cut = _cut(column, max_length)
    rows = Ragged(values=tensor(values), offsets=tensor(bounds))
    return rows, cut


def padded(
    column: pl.Series, max_length: int | None, buckets: tuple[int, ...]
) -> tuple[Padded, int]:
    """Return lists without nulls, padded to the length of a bucket, and how many values were
    truncated."""
    most = buckets[-1] if buckets else max_length
    assert most is not None
    most = min(most, max_length or most)
    values, bounds, cut = _cut(column, most)
    return _filled(values, bounds, most, buckets), cut


def array(column: pl.Series, length: int) -> tuple[Padded, int]:
    """Return arrays without nulls but whole rows; or lists of numbers, as arrays of this length and
    of width 1, and how many of their values were truncated."""
    if isinstance(column.dtype, pl.List):
        values, bounds, cut = _cut(column, length)
        return _filled(values[:, None].astype(np.float32), bounds, length, (length,)), cut
    numbers, present = _array_rows(column)
    return Padded(values=tensor(numbers), mask=tensor(present)), 0


def sparse(column: pl.Series, width: int, max_length: int | None) -> tuple[Sparse, int]:
    """Return how often each id is in each row, and how many ids were truncated."""
    values, bounds, cut = _cut(column, max_length)
    rows = np.repeat(np.arange(len(column)), np.diff(bounds))
    cells, counts = np.unique(rows * width + values, return_counts=True)
    ends = np.searchsorted(cells, np.arange(len(column) + 1) * width)
    rows_out = Sparse(
        indices=tensor(cells % width),
        offsets=tensor(ends.astype(np.int64)),
        weights=tensor(counts.astype(np.float32)),
        width=width,
    )
    return rows_out, cut


class _Writable:
    """An array that claims to be writable for numpy: torch warns about others, though it never
    writes."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array  # keeps the memory
        place, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (place, False)}


def _filled(
    values: NDArray[Any], bounds: NDArray[np.int64], most: int, buckets: tuple[int, ...]
) -> Padded:
    """Return values of lists, (total,) or (total, width), padded to the length of a bucket."""
    lengths = np.diff(bounds)
    width = bucket(int(lengths.max(initial=0)), most, buckets)
    mask = np.arange(width) < lengths[:, None]
    filled = np.zeros((*mask.shape, *values.shape[1:]), values.dtype)
    filled[mask] = values
    return Padded(values=tensor(filled), mask=tensor(mask))


def _array_rows(column: pl.Series) -> tuple[NDArray[np.float32], Bools]:
    """Return the numbers of arrays, shape (n, length, width), 0 where a row is null, NaN where only
    a number is; and which rows are not null, shape (n, length)."""
    flat = _flat(column).cast(pl.Float32)
    length, *width = column.dtype.shape  # type: ignore[attr-defined]
    numbers = flat.to_numpy(writable=True).reshape(-1, length, *(width or [1]))
    present: Bools = np.any(flat.is_not_null().to_numpy().reshape(numbers.shape), axis=2)
    numbers[~present] = 0
    return numbers, present


def _array_numbers(column: pl.Series) -> pl.Series:
    """Return the numbers of arrays or lists in sequence; 0 where a row of an array is null."""
    if isinstance(column.dtype, pl.List):
        return _values(column)
    numbers, _ = _array_rows(column)
    return pl.Series(numbers.reshape(-1))


def _flat(column: pl.Series) -> pl.Series:
    """Return the numbers of the arrays in sequence; those of a null are null."""
    return column.reshape((-1,))


def _values(column: pl.Series) -> pl.Series:
    """Return the numbers of the lists in sequence."""
    return column.explode(keep_nulls=False, empty_as_null=False)


def _bounds(column: pl.Series) -> NDArray[np.int64]:
    """Return where the values of each list begin and end, shape (n + 1,)."""
    lengths = column.list.len().fill_null(0).to_numpy()
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def _cut(column: pl.Series, max_length: int | None) -> tuple[NDArray[Any], NDArray[np.int64], int]:
    """Return the first values of each list, where they begin, and how many more there were."""
    dtype = pl.Float32 if column.dtype.inner.is_float() else pl.Int64  # type: ignore[attr-defined]
    values: NDArray[Any] = _values(column).cast(dtype).to_numpy(writable=True)
    bounds = _bounds(column)
    lengths = np.diff(bounds)
    if max_length is None or (lengths <= max_length).all():
        return values, bounds, 0
    place = np.arange(len(values)) - np.repeat(bounds[:-1], lengths)
    kept = values[place < max_length]
    ends = np.concatenate(([0], np.cumsum(np.minimum(lengths, max_length))))
    return kept, ends, len(values) - len(kept)


__all__ = [
    "array",
    "array_bytes",
    "array_shape",
    "bad_rows",
    "bucket",
    "check",
    "float_images",
    "image",
    "image_shape",
    "nested_features",
    "padded",
    "ragged",
    "sparse",
]
