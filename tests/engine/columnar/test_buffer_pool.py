"""Memory is used again when nobody can see it any more, and not before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from engine.columnar.buffer_pool import MIN_POOLED_BYTES, BufferPool

Floats = NDArray[np.float64]
SHAPE = (4, MIN_POOLED_BYTES)


def place(array: Floats) -> int:
    return int(array.__array_interface__["data"][0])


def series(array: Floats) -> pl.Series:
    return pl.Series("x", array.reshape(-1))


HOLDERS: dict[str, Callable[[Floats], Any]] = {
    "array": lambda array: array,
    "view": lambda array: array[1:3].T,
    "tensor": torch.from_numpy,
    "part of a tensor": lambda array: torch.from_numpy(array)[1:].float,
    "series": series,
    "part of a series": lambda array: series(array).slice(9, 9).alias("y"),
    "frame": lambda array: series(array).to_frame().slice(1, 5),
    "query": lambda array: series(array).to_frame().lazy(),
    "Arrow's array": lambda array: series(array).slice(9, 9).to_arrow(),
    "array of a series": lambda array: series(array).slice(9, 9).to_numpy(),
    "bytes": lambda array: memoryview(array.data),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_what_somebody_holds_is_left_alone(name: str) -> None:
    memory = BufferPool()
    array = memory.empty(SHAPE, np.float64)
    array[:] = 7.0
    at, held = place(array), HOLDERS[name](array)
    del array
    other = memory.empty(SHAPE, np.float64)
    assert place(other) != at
    del held
    pl.Series([0])  # polars lets go of what Arrow held when it is called next
    assert place(memory.empty(SHAPE, np.float64)) == at


def test_a_block_serves_other_shapes_and_kinds_but_none_much_smaller() -> None:
    memory = BufferPool()
    at = place(memory.empty((100, 1000), np.float64))
    assert place(memory.empty((150, 1000), np.float32)) == at
    assert place(memory.empty((25, 1000), np.float64)) != at


def test_arrays_are_of_the_shape_and_kind_asked_for() -> None:
    for shape in ((0, 3), (2, 5), (300, 700)):
        made = BufferPool().empty(shape, np.float32)
        assert made.shape == shape
        assert made.dtype == np.float32
        assert made.flags.c_contiguous
        assert made.flags.writeable


def test_what_nobody_needs_is_given_back() -> None:
    memory = BufferPool(spare=1)
    held = [memory.empty(SHAPE, np.float64) for _ in range(9)]
    held.clear()
    memory.empty(SHAPE, np.float64)
    assert len(memory._blocks) == 2
