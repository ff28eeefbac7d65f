"""The numpy arrays that code names often: their types, once; and arrays that are only read."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Array = TypeVar("Array", bound=NDArray[Any])


def read_only(array: Array) -> Array:
    """Return the array, as a view where it could be written to.

    For what compiled loops only read. Whether an array can be written to is part of its type for
    numba, which compiles a loop for each type, 0.3 to 5 s: without this, once more in mid-stream,
    when polars for the first time copies a column in place of sharing it.
    """
    if array.flags.writeable:
        array = array.view()
        array.flags.writeable = False
    return array


__all__ = ["Bools", "Floats", "Ints", "read_only"]
