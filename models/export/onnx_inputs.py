"""Feeds the columns of a frame to a model file, without a Python object per number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.types import RESERVED, UserError, first_line, nearest

Feed = dict[str, NDArray[Any]]


class Inputs:
    """Makes the feed of an ONNX session from frames.

    Numbers cost next to nothing; text must become Python strings, about 0.1 us a value, because
    that is what ONNX Runtime takes.

    Args:
        kinds: input -> ``double``, ``string`` or ``int64``, as the model file's metadata says.
    """

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self.kinds = dict(kinds)

    def feed(self, frame: pl.DataFrame) -> Feed:
        """Return one array per column, shape (n,).

        Raises: UserError for a column that is not there, or holds no numbers.
        """
        try:
            return {
                name: _array(frame.get_column(name), input_type)
                for name, input_type in self.kinds.items()
            }
        except pl.exceptions.ColumnNotFoundError:
            missing = next(name for name in self.kinds if name not in frame.columns)
            raise UserError(
                f"The model needs column '{missing}', which is not there."
                f"{nearest(missing, set(frame.columns) - set(RESERVED))}"
            ) from None
        except pl.exceptions.PolarsError as error:
            reason = first_line(error)
            raise UserError(f"The model's columns cannot be made of these: {reason}.") from None


INPUT_TYPES = {"double": (pl.Float64, np.nan), "int64": (pl.Int64, 0), "string": (pl.String, "")}
"""Kind of input -> the column's type, and the value that stands for null."""


def _array(column: pl.Series, input_type: str) -> NDArray[Any]:
    dtype, null = INPUT_TYPES[input_type]
    if column.dtype != dtype:
        column = column.cast(dtype)
    if column.null_count():
        column = column.fill_null(null)
    return column.rechunk().to_numpy()


__all__ = ["Feed", "Inputs"]
