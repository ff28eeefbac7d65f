"""Fits columns to the inputs of a graph that was made elsewhere: their feeders, or a reason."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

import polars as pl

from engine.types import Schema, UserError, element_type, require, type_name
from models.column_arrays import POLARS_TYPES, Pixels
from models.serving.feeders import (
    ArrayFeeder,
    Constant,
    Feeder,
    ImageFeeder,
    ListFeeder,
    MaskFeeder,
    NumberFeeder,
    TextFeeder,
)
from models.serving.settings import InputSettings
from models.serving.signature import TEXT, GraphValue, fits


class Fitting:
    """Makes the feeders of a graph's inputs.

    Args:
        values: the graph's inputs.
        schema: the columns that there are.
        where: the file, for sentences.

    Each method raises UserError where the columns do not fit the input.
    """

    def __init__(self, values: Sequence[GraphValue], schema: Schema, where: str) -> None:
        self._values, self._schema, self._where = values, schema, where

    def constant(self, value: GraphValue, number: float) -> Constant:
        """Return what fills an input with a number."""
        if value.type == TEXT:
            raise self._refuse(value, "text", "a constant number")
        named = {size for other in self._values if other != value for size in other.shape or ()}
        unknown = [size for size in value.row if not isinstance(size, int) and size not in named]
        if value.shape is None or unknown:
            raise self._refuse(value, "sizes that are known", "a constant of unknown size")
        if not value.is_float and number != int(number):
            raise self._refuse(value, "whole numbers", f"{number}")
        return Constant(value, number)

    def mask(self, value: GraphValue, column: str, feeders: Iterable[Feeder]) -> Feeder:
        """Return the mask of the lists of a column."""
        lists = [f for f in feeders if isinstance(f, ListFeeder) and column in f.columns]
        if not lists:
            raise UserError(
                f"[infer.inputs.{value.name}] mask expects a column of lists that another input "
                f"reads, got '{column}'."
            )
        if value.type not in POLARS_TYPES or len(value.row) != 1:
            raise self._refuse(value, "numbers of shape n x length", "a mask")
        return MaskFeeder(value, lists[0])

    def feeder(self, value: GraphValue, settings: InputSettings, *, masked: bool) -> Feeder:
        """Return what feeds an input.

        Args:
            masked: whether another input is the mask of the lists that it reads.
        """
        if value.type not in POLARS_TYPES and value.type != TEXT:
            raise UserError(f"{self._where} reads {value}, which no column can be.")
        columns = self._columns(value, settings)
        dtypes = [self._schema[c] for c in columns]
        if len(columns) > 1 or not isinstance(dtypes[0], pl.List | pl.Array):
            return self._scalars(value, columns, dtypes)
        if isinstance(dtypes[0], pl.List):
            exact = not masked and settings.length is None
            return self._lists(value, columns[0], dtypes[0], settings, exact=exact)
        return self._arrays(value, columns[0], dtypes[0], settings)

    def _columns(self, value: GraphValue, settings: InputSettings) -> tuple[str, ...]:
        columns: dict[str, None] = {}
        for pattern in settings.columns:
            matches = [c for c in self._schema if fnmatch.fnmatchcase(c, pattern)]
            if pattern in self._schema or not matches:
                require(self._schema, [pattern], where=f"[infer.inputs] {value.name}")
                matches = [pattern]
            columns |= dict.fromkeys(matches)
        return tuple(columns)

    def _scalars(
        self, value: GraphValue, columns: tuple[str, ...], dtypes: Sequence[pl.DataType]
    ) -> Feeder:
        if value.shape == ():
            expected = f"the same number for all rows, by [infer.inputs.{value.name}] constant"
            raise self._refuse(value, expected, _typed(columns, dtypes))
        if value.shape is None or len(value.shape) > 2:
            raise self._refuse(value, "a row of that shape", _typed(columns, dtypes))
        width = value.row[0] if value.row else 1
        if not fits(width, len(columns)):
            raise self._refuse(value, f"{width} columns", f"{len(columns)}: {', '.join(columns)}")
        for column, dtype in zip(columns, dtypes, strict=True):
            if not _suits(dtype, value.type):
                raise self._refuse(value, _wanted(value.type), _typed([column], [dtype]))
        return TextFeeder(value, columns) if value.type == TEXT else NumberFeeder(value, columns)

    def _lists(
        self,
        value: GraphValue,
        column: str,
        dtype: pl.List,
        settings: InputSettings,
        *,
        exact: bool,
    ) -> Feeder:
        inner = element_type(dtype)
        shape = tuple(inner.shape) if isinstance(inner, pl.Array) else ()
        got = _typed([column], [dtype])
        if len(value.row) != 1 + len(shape) or not all(map(fits, value.row[1:], shape)):
            raise self._refuse(value, "lists of that shape", got)
        if not _suits(_innermost(inner), value.type) or value.type == TEXT:
            raise self._refuse(value, f"lists of {_wanted(value.type)}", got)
        size = value.row[0]
        if isinstance(size, int) and settings.length not in (None, size):
            raise self._refuse(value, f"length = {size}", settings.length)
        return ListFeeder(value, column, shape, settings, exact=exact)

    def _arrays(
        self, value: GraphValue, column: str, dtype: pl.Array, settings: InputSettings
    ) -> Feeder:
        shape, inner = tuple(dtype.shape), _innermost(dtype)
        got = _typed([column], [dtype])
        if not _suits(inner, value.type) or value.type == TEXT:
            raise self._refuse(value, f"arrays of {_wanted(value.type)}", got)
        if inner == pl.UInt8 and len(shape) == 3:
            return self._images(value, column, shape, settings)
        if settings.scales_pixels:
            raise self._refuse(value, "an image of bytes for range, mean and std", got)
        if len(value.row) != len(shape) or not all(map(fits, value.row, shape)):
            raise self._refuse(value, "arrays of that shape", got)
        return ArrayFeeder(value, column, shape)

    def _images(
        self, value: GraphValue, column: str, shape: tuple[int, ...], settings: InputSettings
    ) -> Feeder:
        height, width, channels = shape
        layouts = {"channels_first": (channels, height, width), "channels_last": shape}
        fitting = [
            layout
            for layout, row in layouts.items()
            if settings.layout in (None, layout)
            and len(value.row) == 3
            and all(map(fits, value.row, row))
        ]
        if not fitting:
            got = f"images of {height} x {width} x {channels} in column '{column}'"
            raise self._refuse(value, "images of that shape", got)
        if settings.scales_pixels and not value.is_float:
            raise self._refuse(value, "floats for range, mean and std", value.type)
        given = {"mean": _each(settings.mean), "std": _each(settings.std)}
        for name, each in given.items():
            if len(each) not in (0, 1, channels):
                raise self._refuse(value, f"{name} of {channels} channels", f"{len(each)}")
        low, high = settings.range or (0.0, 1.0)
        pixels = Pixels(
            channels_first=fitting[0] == "channels_first",
            low=low,
            high=high,
            mean=given["mean"] or (0.0,),
            std=given["std"] or (1.0,),
            reverse=settings.channels == "BGR",
        )
        remarks = []
        if value.is_float and not settings.scales_pixels:
            remarks.append(
                f"{self._where}: bytes of '{column}' go to '{value.name}' as 0 ... 1; "
                f"[infer.inputs.{value.name}] range, mean and std say otherwise"
            )
        if len(fitting) > 1:
            remarks.append(
                f"{self._where}: images of '{column}' go to '{value.name}' with channels first; "
                f"[infer.inputs.{value.name}] layout says otherwise"
            )
        return ImageFeeder(value, column, shape, pixels, remarks)

    def _refuse(self, value: GraphValue, expected: str, got: object) -> UserError:
        return UserError(f"{self._where} reads {value}: expected {expected}, got {got}.")


def _each(given: float | tuple[float, ...] | None) -> tuple[float, ...]:
    if given is None:
        return ()
    return given if isinstance(given, tuple) else (given,)


def _suits(dtype: pl.DataType, wanted: str) -> bool:
    """Return whether values of a column can be of an input's type without loss of meaning."""
    if wanted == TEXT:
        return isinstance(dtype, pl.String | pl.Categorical | pl.Enum)
    if wanted == "bool":
        return dtype == pl.Boolean
    if wanted.startswith("float"):
        return dtype.is_numeric() or dtype == pl.Boolean
    return dtype.is_integer() or dtype == pl.Boolean


def _wanted(kind: str) -> str:
    if kind == TEXT:
        return "text"
    if kind == "bool":
        return "bools"
    return "numbers" if kind.startswith("float") else "whole numbers"


def _innermost(dtype: pl.DataType) -> pl.DataType:
    while isinstance(dtype, pl.Array):
        inner = dtype.inner
        dtype = inner if isinstance(inner, pl.DataType) else inner()
    return dtype


def _typed(columns: Sequence[str], dtypes: Sequence[pl.DataType]) -> str:
    return ", ".join(
        f"{type_name(dtype)} in column '{column}'"
        for column, dtype in zip(columns, dtypes, strict=True)
    )


__all__ = ["Fitting"]
