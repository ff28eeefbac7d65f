"""Columns as arrays: every value in its place, whatever the type."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.column_arrays import POLARS_TYPES, Pixels, arrays, matrix, numbers, padded, texts
from models.serving.signature import NUMBERS


def test_every_type_of_a_graph_has_a_column() -> None:
    assert set(POLARS_TYPES) == NUMBERS


@pytest.mark.parametrize("dtype", sorted(POLARS_TYPES))
def test_numbers_of_every_type(dtype: str) -> None:
    column = pl.Series([0, 1, 1]) if dtype != "bool" else pl.Series([False, True, True])
    array = numbers(column, dtype)
    assert array.dtype == np.dtype(dtype)
    assert array.astype(int).tolist() == [0, 1, 1]


def test_a_null_is_nan_or_what_is_asked() -> None:
    column = pl.Series([1, None])
    assert np.isnan(numbers(column, np.float32)[1])
    assert numbers(column, np.int64, null=-1).tolist() == [1, -1]
    assert np.isnan(numbers(pl.Series([None, None]), np.float64)).all()


def test_a_number_beyond_the_type_is_no_other_number() -> None:
    with pytest.raises(pl.exceptions.PolarsError):
        numbers(pl.Series([300]), np.uint8)


def test_columns_side_by_side() -> None:
    block = matrix([pl.Series([1, 2]), pl.Series([0.5, None]), pl.Series([True, False])], "float32")
    assert block.flags.c_contiguous
    np.testing.assert_array_equal(block, np.array([[1, 0.5, 1], [2, np.nan, 0]], np.float32))


def test_texts() -> None:
    array = texts(pl.Series(["a", None, "ä"]))
    assert array.tolist() == ["a", "", "ä"]
    assert texts(pl.Series(["a", "b"], dtype=pl.Categorical)).tolist() == ["a", "b"]


LISTS = st.lists(st.lists(st.integers(-5, 5), max_size=6), min_size=1, max_size=8)


@given(rows=LISTS, length=st.one_of(st.none(), st.integers(1, 4)), start=st.integers(0, 3))
def test_padded_lists_are_the_lists(rows: list[list[int]], length: int | None, start: int) -> None:
    column = pl.Series(rows, dtype=pl.List(pl.Int64))[min(start, len(rows) - 1) :]
    rows = column.to_list()
    made = padded(column, np.int64, length=length, pad=9)
    width = length or max(1, *map(len, rows), 1)
    assert made.values.shape == made.mask.shape == (len(rows), width)
    for row, values, mask in zip(rows, made.values, made.mask, strict=True):
        kept = row[:width]
        assert values[mask].tolist() == kept
        assert mask[: len(kept)].all()
        assert (values[~mask] == 9).all()
    assert made.cut == sum(max(0, len(row) - width) for row in rows)


def test_lists_of_arrays() -> None:
    rows: list[list[list[float]]] = [[[1, 2]], [], [[3, 4], [5, 6], [7, 8]]]
    column = pl.Series(rows, dtype=pl.List(pl.Array(pl.Float64(), 2)))
    made = padded(column, np.float32, length=2)
    assert made.values.tolist() == [[[1, 2], [0, 0]], [[0, 0], [0, 0]], [[3, 4], [5, 6]]]
    assert made.mask.tolist() == [[True, False], [False, False], [True, True]]
    assert made.cut == 1


def image(rows: int = 2) -> tuple[Any, pl.Series]:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (rows, 2, 4, 3), dtype=np.uint8)
    return pixels, pl.Series(pixels.reshape(-1)).reshape((rows, 2, 4, 3))


def test_arrays_are_not_copied_without_need() -> None:
    pixels, column = image()
    np.testing.assert_array_equal(arrays(column, np.uint8), pixels)
    assert arrays(column, np.float32).dtype == np.float32


def test_pixels_as_bytes_and_as_floats() -> None:
    pixels, column = image()
    np.testing.assert_array_equal(Pixels().array(column, np.uint8), pixels.transpose(0, 3, 1, 2))
    last = Pixels(channels_first=False, high=255.0).array(column)
    np.testing.assert_allclose(last, pixels, atol=1e-4)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    made = Pixels(mean=mean, std=std, reverse=True).array(column)
    wanted = (pixels[..., ::-1] / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(made, wanted.transpose(0, 3, 1, 2), atol=1e-5)
    assert made.flags.c_contiguous
