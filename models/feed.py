"""Raw columns as an exported model takes them, columnar: no Python loop over rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.types import Schema, UserError, nearest

NUMBER, TEXT, CODE = "double", "string", "int64"
"""Types of a model's inputs: numbers (null is NaN), text (null is `Inputs.null_text`) and category
codes that were made before the model (null is 0)."""

WANTS: Mapping[str, tuple[pl.DataType, str]] = {
    NUMBER: (pl.Float64(), "numbers"),
    TEXT: (pl.String(), "text or whole numbers"),
    CODE: (pl.Int64(), "whole numbers"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a model file wants to be fed.

    Attributes:
        kinds: name of the raw column -> `NUMBER`, `TEXT` or `CODE`, in the model's order.
        null_text: the text that stands for null: "" unless "" is itself a category.
    """

    kinds: Mapping[str, str]
    null_text: str = ""

    @property
    def schema(self) -> Schema:
        """The columns as polars types."""
        return {name: WANTS[kind][0] for name, kind in self.kinds.items()}

    def check(self, schema: Mapping[str, pl.DataType], *, where: str) -> None:
        """Raises: UserError when a column is missing or of a type the model cannot take."""
        for name, kind in self.kinds.items():
            if name not in schema:
                raise _missing(name, schema, where)
            if not _fits(schema[name], kind):
                raise _misfit(name, kind, schema[name], where)


def raw_inputs(metadata: Mapping[str, str]) -> Inputs:
    """What the model with these metadata properties wants to be fed."""
    return Inputs(kinds=json.loads(metadata["inputs"]), null_text=metadata["null_text"])


def feed(frame: pl.DataFrame, inputs: Inputs, *, where: str = "The model") -> dict[str, Any]:
    """The frame's columns as the arrays an onnxruntime session takes, each of shape (n,).

    A Float64 column in one piece without nulls is handed over without a copy; other numbers are
    cast (1 ns a value). Text becomes an array of Python strings, one object for each different
    value: 20-30 ns a value here, and about 30 more inside onnxruntime, which copies each string.
    ``to_numpy()`` of polars takes 42 and makes onnxruntime slower (44); fixed-width ``U`` arrays
    would save 5 of its 30, but one long text makes all of them wide.

    Raises: UserError when a column is missing or of a type the model cannot take.
    """
    columns = {}
    for name, kind in inputs.kinds.items():
        try:
            column = frame.get_column(name)
        except pl.exceptions.ColumnNotFoundError:
            raise _missing(name, frame.schema, where) from None
        if not _fits(column.dtype, kind):
            raise _misfit(name, kind, column.dtype, where)
        columns[name] = _array(column, kind, inputs.null_text)
    return columns


def _array(column: pl.Series, kind: str, null_text: str) -> NDArray[Any]:
    if kind == NUMBER:
        if column.dtype != pl.Float64:
            column = column.cast(pl.Float64)
        return column.to_numpy()  # null becomes NaN
    if kind == CODE:
        return column.cast(pl.Int64).fill_null(0).to_numpy()
    return _texts(column.cast(pl.String), null_text)


def _texts(column: pl.Series, null_text: str) -> NDArray[np.object_]:
    coded = column.to_arrow().dictionary_encode()
    if hasattr(coded, "combine_chunks"):
        coded = coded.combine_chunks()
    words = np.array([*coded.dictionary.to_pylist(), null_text], dtype=object)
    codes = coded.indices.fill_null(len(words) - 1).to_numpy()
    texts: NDArray[np.object_] = words[codes]
    return texts


def _fits(dtype: pl.DataType, kind: str) -> bool:
    if dtype == pl.Null:
        return True
    if kind == NUMBER:
        return dtype.is_numeric() or dtype == pl.Boolean
    if kind == CODE:
        return dtype.is_integer()
    return not (dtype.is_float() or dtype.is_nested() or dtype == pl.Binary)


def _missing(name: str, known: Mapping[str, Any], where: str) -> UserError:
    return UserError(f"{where} needs column '{name}', which is not there.{nearest(name, known)}")


def _misfit(name: str, kind: str, dtype: pl.DataType, where: str) -> UserError:
    return UserError(
        f"{where} expects {WANTS[kind][1]} in column '{name}', got {dtype}: "
        "declare the type it had in training in [source.schema]."
    )


__all__ = ["CODE", "NUMBER", "TEXT", "Inputs", "feed", "raw_inputs"]
