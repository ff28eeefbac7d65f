"""What feeds one input of a graph that was made elsewhere: columns become an array of its type and
shape, and the rows that cannot are rejected."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from engine.types import Batch
from engine.types.arrays import Bools
from models.column_arrays import (
    POLARS_TYPES,
    Array,
    Pixels,
    arrays,
    list_lengths,
    matrix,
    numbers,
    padded,
    texts,
)
from models.serving.settings import InputSettings
from models.serving.signature import TEXT, GraphValue

EXAMPLE_LENGTH = 8
"""The length of lists in a trial."""
STAGE = "predict"


class Feeder(ABC):
    """Feeds one input of a graph.

    Attributes:
        value: the input.
        columns: that it reads.
        row: the shape of a row of its array; None where that depends on the batch.
        remarks: what a user should know of it.
    """

    remarks: tuple[str, ...] = ()

    def __init__(self, value: GraphValue, columns: Sequence[str]) -> None:
        self.value = value
        self.columns = tuple(columns)
        self.row: tuple[int | None, ...] = ()

    @property
    def name(self) -> str:
        """The input's name."""
        return self.value.name

    @abstractmethod
    def array(self, frame: pl.DataFrame, feed: Mapping[str, Array]) -> Array:
        """Return the input's array.

        Args:
            feed: the arrays of the inputs before it.
        """

    def usable(self, batch: Batch) -> Batch:
        """Return the batch without the rows that it cannot be made of."""
        return batch

    def example(self, rows: int, rng: np.random.Generator, *, zeros: bool) -> Array:
        """Return an array of made-up rows."""
        shape = (rows, *(EXAMPLE_LENGTH if size is None else size for size in self.row))
        kind = np.dtype(object if self.value.type == TEXT else self.value.type).kind
        if kind == "O":
            return np.full(shape, "a", object)
        if zeros:
            return np.zeros(shape, self.value.type)
        made = rng.uniform(size=shape) if kind == "f" else rng.integers(0, 2, shape)
        return made.astype(self.value.type)


class NumberFeeder(Feeder):
    """Columns of numbers side by side, or one alone."""

    def __init__(self, value: GraphValue, columns: Sequence[str]) -> None:
        super().__init__(value, columns)
        self.row = (len(columns),) if value.shape is not None and len(value.shape) > 1 else ()

    def usable(self, batch: Batch) -> Batch:
        return batch if self.value.is_float else _whole(batch, self.columns, self.value)

    def array(self, frame: pl.DataFrame, feed: Mapping[str, Array]) -> Array:
        if len(self.columns) == 1:
            column = numbers(frame.get_column(self.columns[0]), self.value.type)
            return column.reshape(frame.height, *map(int, filter(None, self.row)))
        return matrix([frame.get_column(c) for c in self.columns], self.value.type)


class TextFeeder(NumberFeeder):
    """Columns of text side by side, or one alone."""

    def usable(self, batch: Batch) -> Batch:
        return _present(batch, self.columns)

    def array(self, frame: pl.DataFrame, feed: Mapping[str, Array]) -> Array:
        columns = [texts(frame.get_column(c)) for c in self.columns]
        return np.stack(columns, axis=1) if self.row else columns[0]


class ListFeeder(Feeder):
    """A column of lists of numbers, or of lists of arrays.

    Args:
        length: of every row; None for that of the longest.
        exact: whether lists of another length are rejected; else they are padded and cut.
    """

    def __init__(
        self, value: GraphValue, column: str, inner: tuple[int, ...], settings: InputSettings,
        *, exact: bool,
    ) -> None:  # fmt: skip
        super().__init__(value, (column,))
        size = value.row[0]
        self.length = size if isinstance(size, int) else settings.length
        self._pad, self._exact = settings.pad, exact
        self.row = (self.length, *inner)

    def usable(self, batch: Batch) -> Batch:
        (name,) = self.columns
        batch = _present(batch, self.columns)
        if self._exact and self.length is not None:
            good = list_lengths(batch.frame.get_column(name)) == self.length
            detail = (
                f"Expected lists of {self.length} values in column '{name}', got another length: "
                f"[infer.inputs.{self.name}] length = {self.length} pads and cuts them."
            )
            batch = batch.reject(good, stage=STAGE, reason="length", detail=detail)
        if self.length is not None and not self._exact:
            lengths = list_lengths(batch.frame.get_column(name))
            beyond = int(np.maximum(lengths - self.length, 0).sum())
            batch = batch.counted(STAGE, truncated=beyond) if beyond else batch
        flat = _flat(batch.frame.get_column(name))
        if self.value.is_float and not flat.null_count():
            return batch
        return _reject_inner(batch, name, flat, self.value)

    def array(self, frame: pl.DataFrame, feed: Mapping[str, Array]) -> Array:
        column = frame.get_column(self.columns[0])
        return padded(column, self.value.type, length=self.length, pad=self._pad).values


class MaskFeeder(Feeder):
    """Where the lists of another input have a value."""

    def __init__(self, value: GraphValue, lists: ListFeeder) -> None:
        super().__init__(value, lists.columns)
        self._lists = lists
        self.row = (lists.length,)

    def array(self, frame: pl.DataFrame, feed: Mapping[str, Array]) -> Array:
        width = feed[self._lists.name].shape[1]
        lengths = list_lengths(frame.get_column(self.columns[0]))
        return (np.arange(width) < lengths[:, None]).astype(self.value.type)

    def example(self, rows: int, rng: np.random.Generator, *, zeros: bool) -> Array:
        """Return a mask of full rows: what a graph answers for empty ones is no one's business."""
        shape = (rows, self._lists.length or EXAMPLE_LENGTH)
        return np.ones(shape, self.value.type)


class ArrayFeeder(Feeder):
    """A column of arrays of one shape."""

    def __init__(self, value: GraphValue, column: str, shape: tuple[int, ...]) -> None:
        super().__init__(value, (column,))
        self.row = shape

    def usable(self, batch: Batch) -> Batch:
        batch = _present(batch, self.columns)
        flat = batch.frame.get_column(self.columns[0]).reshape((-1,))
        if self.value.is_float and not flat.null_count():
            return batch
        return _reject_inner(batch, self.columns[0], flat, self.value)

    def array(self, frame: pl.DataFrame, feed: Mapping[str, Array]) -> Array:
        block = arrays(frame.get_column(self.columns[0]), self.value.type)
        return block.reshape(frame.height, *map(int, filter(None, self.row)))


class ImageFeeder(ArrayFeeder):
    """A column of decoded images."""

    def __init__(
        self,
        value: GraphValue,
        column: str,
        shape: tuple[int, ...],
        pixels: Pixels,
        remarks: Sequence[str],
    ) -> None:
        height, width, channels = shape
        row = (channels, height, width) if pixels.channels_first else shape
        super().__init__(value, column, row)
        self._pixels = pixels
        self.remarks = tuple(remarks)

    def usable(self, batch: Batch) -> Batch:
        return _present(batch, self.columns)

    def array(self, frame: pl.DataFrame, feed: Mapping[str, Array]) -> Array:
        return self._pixels.array(frame.get_column(self.columns[0]), self.value.type)


class Constant:
    """A number that fills an input.

    Attributes:
        has_rows: whether its array has a row for each row of the batch.
    """

    def __init__(self, value: GraphValue, number: float) -> None:
        self.value = value
        self.has_rows = bool(value.shape) and not isinstance((value.shape or (1,))[0], int)
        self._number = number

    def array(self, rows: int, sizes: Mapping[str, int]) -> Array:
        """Return the array.

        Args:
            sizes: the free sizes of the graph, by name.
        """
        first, *rest = self.value.shape or (None,)
        shape = [size if isinstance(size, int) else sizes[str(size)] for size in rest]
        if self.value.shape:
            shape.insert(0, rows if self.has_rows else int(str(first)))
        return np.full(shape, self._number, self.value.type)


# ------------------------------------------------------------------------------------ rows that go


def _present(batch: Batch, columns: Sequence[str]) -> Batch:
    """Return the batch without the rows where a column is null."""
    for name in columns:
        column = batch.frame.get_column(name)
        if column.null_count():
            detail = f"Expected a value in column '{name}', which the model reads, got null."
            batch = batch.reject(column.is_not_null(), stage=STAGE, reason="missing", detail=detail)
    return batch


def _whole(batch: Batch, columns: Sequence[str], value: GraphValue) -> Batch:
    """Return the batch without the rows where a column has no number of the input's type."""
    batch, wanted = _present(batch, columns), POLARS_TYPES[value.type]
    for name in columns:
        column = batch.frame.get_column(name)
        if column.dtype != wanted and (fitting := column.cast(wanted, strict=False)).null_count():
            good = fitting.is_not_null()
            detail = f"Expected {value.type} in column '{name}', got a number beyond it."
            batch = batch.reject(good, stage=STAGE, reason="out_of_range", detail=detail)
    return batch


def _flat(column: pl.Series) -> pl.Series:
    """Return the numbers of lists, or of lists of arrays, in sequence."""
    flat = column.explode(keep_nulls=False, empty_as_null=False)
    return flat.reshape((-1,)) if isinstance(flat.dtype, pl.Array) else flat


def _reject_inner(batch: Batch, name: str, flat: pl.Series, value: GraphValue) -> Batch:
    """Return the batch without the rows whose lists or arrays hold a null, or a number that the
    input's type cannot hold."""
    fitting = flat.cast(POLARS_TYPES[value.type], strict=False)
    if not fitting.null_count():
        return batch
    column = batch.frame.get_column(name)
    good = ~_rows(fitting.is_null().to_numpy(), column)
    detail = f"Expected {value.type} numbers in column '{name}', got null or a number beyond them."
    return batch.reject(good, stage=STAGE, reason="out_of_range", detail=detail)


def _rows(bad: Bools, column: pl.Series) -> Bools:
    """Return which rows hold a bad number, shape (n,)."""
    lengths = (
        list_lengths(column)
        if isinstance(column.dtype, pl.List)
        else np.full(len(column), len(bad) // max(1, len(column)))
    )
    per_value = len(bad) // max(1, int(lengths.sum()))
    sums = np.concatenate(([0], np.cumsum(bad)))
    ends = np.concatenate(([0], np.cumsum(lengths))) * per_value
    return np.asarray(sums[ends[1:]] > sums[ends[:-1]])


__all__ = [
    "EXAMPLE_LENGTH",
    "ArrayFeeder",
    "Constant",
    "Feeder",
    "ImageFeeder",
    "ListFeeder",
    "MaskFeeder",
    "NumberFeeder",
    "TextFeeder",
]
