"""Columns of arrays and lists to tensors: images, ragged, padded and sparse rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.config import ModelSettings
from engine.scrub.columns import expand_columns
from engine.types import Features, Padded, Ragged, Schema, Sparse, UserError, tensor
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
    kinds = ("images", "ragged", "padded", "sparse")
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
        "images": {column: _shape(column, schema[column]) for column in names["images"]},
        **{name: {c: sizes.get(c, 0) for c in names[name]} for name in kinds[1:]},
        "max_length": model.max_length,
        "buckets": tuple(sorted(model.buckets)),
    }


def check(features: Features, schema: Schema) -> None:
    """Raises: UserError for a column that is no array or list of numbers."""
    for column in features.images:
        _shape(column, schema[column])
    for column in (*features.ragged, *features.padded, *features.sparse):
        dtype = schema[column]
        inner = dtype.inner if isinstance(dtype, pl.List) else None
        ids = column in features.sparse
        if inner is None or not (inner.is_integer() or (inner.is_float() and not ids)):
            raise UserError(
                f"[model] expects lists of {'ids' if ids else 'numbers'} in column '{column}', got "
                f"{dtype}: make them with a 'tokens' stage."
            )


def array_bytes(schema: Schema) -> int:
    """Return the bytes of the arrays of one row."""
    total = 0
    for dtype in schema.values():
        if isinstance(dtype, pl.Array):
            flat: pl.DataType = dtype
            while isinstance(flat, pl.Array):
                flat = flat.inner  # type: ignore[assignment]
            total += math.prod(dtype.shape) * pl.Series(dtype=flat).to_numpy().itemsize
    return total


def _shape(column: str, dtype: pl.DataType) -> tuple[int, int, int]:
    """Return channels, height, width."""
    flat = dtype.inner if isinstance(dtype, pl.Array) else None
    while isinstance(flat, pl.Array):
        flat = flat.inner
    good = flat == pl.UInt8 or (flat is not None and flat.is_float())
    if not isinstance(dtype, pl.Array) or len(dtype.shape) != 3 or not good:
        raise UserError(
            f"[model] images expects arrays of UInt8 or floats of shape (height, width, channels) "
            f"in column '{column}', got {dtype}: make them with an 'image' stage."
        )
    height, width, channels = dtype.shape
    return channels, height, width


# ------------------------------------------------------------------------------------- what is bad


def bad_rows(frame: pl.DataFrame, features: Features) -> Iterable[Bad]:
    """Return the rows that cannot become tensors, by column and reason; nothing if all can."""
    for column in features.images:
        yield from _bad(_flat(frame.get_column(column)), column, frame, 0)
    for column, size in {**features.ragged, **features.padded, **features.sparse}.items():
        yield from _bad(_values(frame.get_column(column)), column, frame, size)


def _bad(values: pl.Series, name: str, frame: pl.DataFrame, size: int) -> Iterable[Bad]:
    column = frame.get_column(name)
    absent = column.is_null().to_numpy()
    if values.null_count() or (values.dtype.is_float() and _least(values.is_not_nan())):
        missing = values.is_null()
        if values.dtype.is_float():
            missing = missing | values.is_nan().fill_null(False)
        absent = absent | _rows(missing.to_numpy(), column)
    if absent.any():
        sentence = f"Expected numbers in feature '{name}', got null or NaN."
        yield "missing", absent, sentence
    if values.dtype.is_float() and _least(values.cast(pl.Float32).is_infinite().not_()):
        infinite = values.cast(pl.Float32).is_infinite().fill_null(False).to_numpy()
        sentence = f"Expected float32 in feature '{name}', got a larger number."
        yield "not_finite", _rows(infinite, column) & ~absent, sentence
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
    lengths = np.diff(bounds)
    width = bucket(int(lengths.max(initial=0)), most, buckets)
    mask = np.arange(width) < lengths[:, None]
    filled = np.zeros(mask.shape, values.dtype)
    filled[mask] = values
    return Padded(values=tensor(filled), mask=tensor(mask)), cut


def bucket(longest: int, most: int, buckets: tuple[int, ...] = ()) -> int:
    """Return the padded length for rows of up to `longest` values: the next bucket or power of
    two, never above `most`."""
    fits = (size for size in buckets if size >= longest)
    return min(next(fits, most) if buckets else 1 << max(0, longest - 1).bit_length(), most)


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
    "array_bytes",
    "bad_rows",
    "bucket",
    "check",
    "image",
    "nested_features",
    "padded",
    "ragged",
    "sparse",
]
