"""Feeds the columns of a frame to a model file, without a Python object per number.

| kind   | column             | array                                                           |
|--------|--------------------|-----------------------------------------------------------------|
| double | numbers            | (n,) float64, NaN for null                                      |
| int64  | codes              | (n,) int64, 0 for null                                          |
| string | any                | (n,) text, "" for null                                          |
| ids    | lists of integers  | (n, length) int64, `PADDING` behind a list's end, `NO_ID` for a |
|        |                    | null or negative one                                            |
| floats | lists of floats    | (n, length) float32, NaN behind a list's end                    |
| image  | decoded images     | (n, channels, height, width), uint8 or float32 as the column    |
| array  | arrays or lists of | (n, length, width) float32, NaN for an absent row; a length and |
|        | floats             | a width for all                                                 |

The graph gives no score to a row with a `NO_ID`, or with an infinite number: training rejects it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.types import RESERVED, Schema, UserError, bucket, first_line, nearest, type_name
from models.column_arrays import list_lengths, side_by_side
from models.export.properties import Properties

Feed = dict[str, NDArray[Any]]
PADDING, NO_ID = -1, -2
UNLIMITED = 1 << 62
VALUES: Mapping[str, tuple[pl.DataType, float | str]] = {
    "double": (pl.Float64(), np.nan),
    "int64": (pl.Int64(), 0),
    "string": (pl.String(), ""),
}
"""Kind of single values -> the column's type, and the value that stands for null."""
EXPECTED = {
    "ids": "lists of whole numbers, as a 'tokens' stage makes them,",
    "image": "decoded images, as an 'image' stage makes them,",
    "floats": "lists of floats",
    "array": "arrays or lists of floats",
}
"""Kind -> the columns that it takes; the others take numbers, or anything."""


class OnnxInputs:
    """Makes the feed of an ONNX session from frames.

    Numbers cost next to nothing; text must become Python strings, about 0.1 us a value, because
    that is what ONNX Runtime takes.

    Args:
        kinds: input -> its kind, as the model file's metadata says.
        lengths: input -> the most values of a list that are kept; None keeps all.
        buckets: the lengths to which lists are padded, as in [model].
        columns: input -> name of the type in which it was learned, where that is known.
    """

    def __init__(
        self,
        kinds: Mapping[str, str],
        *,
        lengths: Mapping[str, int | None] | None = None,
        buckets: tuple[int, ...] = (),
        columns: Mapping[str, str] | None = None,
    ) -> None:
        self.kinds = dict(kinds)
        self._most = {name: UNLIMITED if n is None else n for name, n in (lengths or {}).items()}
        self._buckets = buckets
        self._columns = columns or {}

    @classmethod
    def of(cls, properties: Properties) -> Self:
        """Return the inputs of a model file."""
        return cls(
            properties.inputs,
            lengths=properties.lengths,
            buckets=properties.buckets,
            columns=properties.columns,
        )

    def bind(self, schema: Schema) -> None:
        """Raises: UserError naming a column that is not there, or is of another type."""
        for name, kind in self.kinds.items():
            if name not in schema:
                raise _missing(name, schema)
            if not self._fits(name, kind, schema[name]):
                raise UserError(
                    f"The model needs {EXPECTED.get(kind, 'numbers')} in column '{name}', got "
                    f"{type_name(schema[name])}."
                )

    def feed(self, frame: pl.DataFrame) -> Feed:
        """Return one array per column, shape (n, ...).

        Raises: UserError for a column that is not there, or cannot become what the model reads.
        """
        try:
            return {
                name: self._array(frame.get_column(name), kind) for name, kind in self.kinds.items()
            }
        except pl.exceptions.ColumnNotFoundError:
            name = next(name for name in self.kinds if name not in frame.columns)
            raise _missing(name, frame.schema) from None
        except pl.exceptions.PolarsError as error:
            reason = first_line(error)
            raise UserError(f"The model's columns cannot be made of these: {reason}.") from None

    def imageless(self, frame: pl.DataFrame) -> NDArray[np.bool_]:
        """Return which rows lack an image, shape (n,): no graph can tell, since bytes have no
        NaN."""
        lacking = np.zeros(frame.height, np.bool_)
        for name, kind in self.kinds.items():
            if kind == "image" and (column := frame.get_column(name)).null_count():
                lacking |= column.is_null().to_numpy()
        return lacking

    def truncated(self, frame: pl.DataFrame) -> int:
        """Return how many values of lists stand behind the most that are kept."""
        beyond = 0
        for name, most in self._most.items():
            if most < UNLIMITED and isinstance(frame.schema[name], pl.List):
                lengths = list_lengths(frame.get_column(name))
                beyond += int(np.maximum(lengths - most, 0).sum())
        return beyond

    def _fits(self, name: str, kind: str, dtype: pl.DataType) -> bool:
        if kind == "string":
            return True
        if kind not in EXPECTED:
            return dtype.is_numeric() or dtype == pl.Boolean
        inner = innermost(dtype)
        if kind == "ids":
            return isinstance(dtype, pl.List) and dtype.inner == inner and inner.is_integer()
        if kind == "floats" or (kind == "array" and isinstance(dtype, pl.List)):
            return isinstance(dtype, pl.List) and dtype.inner == inner and inner.is_float()
        # A fixed shape is part of the graph.
        return isinstance(dtype, pl.Array) and type_name(dtype) == self._columns.get(
            name, type_name(dtype)
        )

    def _array(self, column: pl.Series, kind: str) -> NDArray[Any]:
        if column.name in self._most and isinstance(column.dtype, pl.List):
            return self._lists(column, kind)
        if kind == "array":
            return _rows(column)
        if kind == "image":
            return _image(column)
        return _values(column, *VALUES[kind])

    def _lists(self, column: pl.Series, kind: str) -> NDArray[Any]:
        """Return lists one below the other, padded at their ends."""
        flat = column.explode(keep_nulls=False, empty_as_null=False)
        values = _ids(flat) if kind == "ids" else _floats(flat)
        padding, bad = (PADDING, NO_ID) if kind == "ids" else (np.nan, np.inf)
        lengths, most = list_lengths(column), self._most[column.name]
        length = most
        if kind != "array":
            length = bucket(int(lengths.max(initial=0)), most, self._buckets)
        block = side_by_side(values, lengths, length, padding).values
        if column.null_count():
            block[column.is_null().to_numpy(), 0] = bad
        return block[..., None] if kind == "array" else block


def _missing(name: str, schema: Mapping[str, pl.DataType]) -> UserError:
    return UserError(
        f"The model needs column '{name}', which is not there."
        f"{nearest(name, set(schema) - set(RESERVED))}"
    )


def innermost(dtype: pl.DataType) -> pl.DataType:
    """Return the type of the numbers in lists and arrays."""
    while isinstance(dtype, pl.List | pl.Array):
        inner = dtype.inner
        dtype = inner if isinstance(inner, pl.DataType) else inner()
    return dtype


def _values(column: pl.Series, dtype: pl.DataType, null: float | str) -> NDArray[Any]:
    """Return a column of single values, shape (n,)."""
    if column.dtype != dtype:
        column = column.cast(dtype)
    if column.null_count():
        column = column.fill_null(null)
    return column.rechunk().to_numpy()


def _ids(flat: pl.Series) -> NDArray[np.int64]:
    ids = flat.cast(pl.Int64, strict=False).fill_null(NO_ID).to_numpy(writable=True)
    ids[ids < 0] = NO_ID
    return ids


def _floats(flat: pl.Series) -> NDArray[np.float32]:
    """Return numbers: infinity for what is none."""
    numbers = flat.cast(pl.Float32, strict=False).to_numpy(writable=True)
    numbers[~np.isfinite(numbers)] = np.inf
    return numbers


def _image(column: pl.Series) -> NDArray[Any]:
    """Return images, shape (n, channels, height, width); zeros, or NaN, for null."""
    present = column.is_not_null()
    block = column.filter(present).rechunk().to_numpy()
    block = np.moveaxis(block if block.dtype == np.uint8 else block.astype(np.float32), -1, 1)
    if present.all():
        return np.ascontiguousarray(block)
    nothing = 0 if block.dtype == np.uint8 else np.nan
    images = np.full((len(column), *block.shape[1:]), nothing, block.dtype)
    images[present.to_numpy()] = block
    return images


def _rows(column: pl.Series) -> NDArray[np.float32]:
    """Return arrays, shape (n, length, width): NaN for null rows of an array, infinity where the
    whole array or a single number is missing."""
    flat = column.reshape((-1,)).cast(pl.Float32)
    length, *width = column.dtype.shape  # type: ignore[attr-defined]
    values = flat.to_numpy(writable=True).reshape(-1, length, *(width or [1]))
    numbers = flat.is_not_null().to_numpy().reshape(values.shape)
    present = np.asarray(numbers.any(axis=2))[..., None]
    values[~np.isfinite(values) & present] = np.inf
    if column.null_count():
        values[column.is_null().to_numpy()] = np.inf
    return values


__all__ = ["NO_ID", "PADDING", "Feed", "OnnxInputs", "innermost"]
