"""Columns of a frame as arrays for ONNX Runtime."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.types import UserError
from models.export.onnx_inputs import OnnxInputs
from tests.size import examples


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([1.5, None, -2.0], pl.Float64, [1.5, np.nan, -2.0]),
        ([1.5, None, float("nan")], pl.Float32, [1.5, np.nan, np.nan]),
        ([1, None, -(2**40)], pl.Int64, [1.0, np.nan, -(2.0**40)]),
        ([3, None, 255], pl.UInt8, [3.0, np.nan, 255.0]),
        ([True, None, False], pl.Boolean, [1.0, np.nan, 0.0]),
        ([None, None], pl.Float64, [np.nan, np.nan]),
        ([None, None], pl.Null, [np.nan, np.nan]),
        ([float("inf"), -float("inf")], pl.Float64, [np.inf, -np.inf]),
        (["12", None, "-1.5"], pl.String, [12.0, np.nan, -1.5]),
        ([], pl.Int64, []),
    ],
    ids=str,
)
def test_numbers(values: list[Any], kind: Any, expected: list[float]) -> None:
    frame = pl.DataFrame({"x": pl.Series(values, dtype=kind)})
    array = OnnxInputs({"x": "double"}).feed(frame)["x"]
    assert array.dtype == np.float64
    assert array.shape == (len(values),)
    assert array.flags.c_contiguous
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["a", None, "", "ç\n"], pl.String, ["a", "", "", "ç\n"]),
        ([7, None, -1], pl.Int64, ["7", "", "-1"]),
        ([True, None, False], pl.Boolean, ["true", "", "false"]),
        ([date(2024, 2, 29), None], pl.Date, ["2024-02-29", ""]),
        (["b", None, "a"], pl.Categorical, ["b", "", "a"]),
        ([None, None], pl.Null, ["", ""]),
        ([], pl.String, []),
    ],
    ids=str,
)
def test_texts(values: list[Any], kind: Any, expected: list[str]) -> None:
    frame = pl.DataFrame({"key": pl.Series(values, dtype=kind)})
    array = OnnxInputs({"key": "string"}).feed(frame)["key"]
    assert array.dtype == object
    assert array.shape == (len(values),)
    assert array.tolist() == expected
    assert {type(text) for text in array} <= {str}


def test_codes() -> None:
    frame = pl.DataFrame({"code": pl.Series([2, None, 0], dtype=pl.UInt16)})
    array = OnnxInputs({"code": "int64"}).feed(frame)["code"]
    assert array.dtype == np.int64
    assert array.tolist() == [2, 0, 0]


def test_an_array_a_column_in_the_files_order_and_no_others() -> None:
    frame = pl.DataFrame({"other": [object()], "b": [1], "a": ["x"], "_position": [4]})
    feed = OnnxInputs({"a": "string", "b": "double"}).feed(frame)
    assert list(feed) == ["a", "b"]


def test_no_rows() -> None:
    frame = pl.DataFrame(schema={"a": pl.String, "b": pl.Int64, "c": pl.Int64})
    feed = OnnxInputs({"a": "string", "b": "double", "c": "int64"}).feed(frame)
    assert {name: (array.shape, array.dtype.kind) for name, array in feed.items()} == {
        "a": ((0,), "O"),
        "b": ((0,), "f"),
        "c": ((0,), "i"),
    }


@given(
    st.lists(
        st.tuples(
            st.none() | st.floats(), st.none() | st.text(st.characters(exclude_categories=["Cs"]))
        ),
        max_size=20,
    )
)
@settings(max_examples=examples(50), deadline=None)
def test_whatever_the_rows_hold(rows: list[tuple[float | None, str | None]]) -> None:
    frame = pl.DataFrame(rows, schema={"x": pl.Float64, "key": pl.String}, orient="row")
    chunked = pl.concat([frame.head(3), frame.slice(3)], rechunk=False)
    feed = OnnxInputs({"x": "double", "key": "string"}).feed(chunked)
    np.testing.assert_array_equal(feed["x"], [np.nan if x is None else x for x, _ in rows])
    assert feed["key"].tolist() == [key or "" for _, key in rows]


def test_the_frame_is_left_alone() -> None:
    frame = pl.DataFrame({"x": [1.0, 2.0]})
    array = OnnxInputs({"x": "double"}).feed(frame)["x"]
    if array.flags.writeable:
        array[0] = 9.0
    assert frame.get_column("x").to_list() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("columns", "rest"),
    [
        (["levle", "key"], "Did you mean 'levle'?"),
        (["a", "key"], "Known: a, key."),
    ],
)
def test_a_column_that_is_not_there(columns: list[str], rest: str) -> None:
    frame = pl.DataFrame({column: [1.0] for column in columns})
    with pytest.raises(UserError) as error:
        OnnxInputs({"key": "string", "level": "double"}).feed(frame)
    assert str(error.value) == f"The model needs column 'level', which is not there. {rest}"


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pl.Series("x", ["1.5", "high"]), "double"),
        (pl.Series("x", [[1.0], [2.0]]), "double"),
        (pl.Series("x", [0.0, float("nan")]), "int64"),
    ],
    ids=["text", "list", "nan"],
)
def test_what_is_no_number(column: pl.Series, kind: str) -> None:
    with pytest.raises(
        UserError, match=r"^The model's columns cannot be made of these: .+\.$"
    ) as e:
        OnnxInputs({"x": kind}).feed(column.to_frame())
    assert "\n" not in str(e.value)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("values", "dtype", "kind", "expected"),
    [
        (
            [[1, 2], [], None, [3, None, -1], [1, 2, 3, 4, 5, 6]],
            pl.List(pl.Int32),
            "ids",
            [
                [1, 2, -1, -1, -1],
                [-1] * 5,
                [-2, -1, -1, -1, -1],
                [3, -2, -2, -1, -1],
                [1, 2, 3, 4, 5],
            ],
        ),
        ([[7]], pl.List(pl.UInt64), "ids", [[7]]),
        ([[], []], pl.List(pl.Int64), "ids", [[-1], [-1]]),
        ([], pl.List(pl.Int64), "ids", np.empty((0, 1))),
        (
            [[0.5, NAN, None], None, [1.0]],
            pl.List(pl.Float64),
            "floats",
            [[0.5, INF, INF, NAN], [INF, NAN, NAN, NAN], [1.0, NAN, NAN, NAN]],
        ),
        (
            [[0.5], []],
            pl.List(pl.Float32),
            "array",
            [[[0.5], [NAN], [NAN], [NAN], [NAN]], [[NAN]] * 5],
        ),
        ([[1.0, None], None], pl.Array(pl.Float64, 2), "array", [[[1.0], [NAN]], [[INF], [INF]]]),
        (
            [[[1.0, 2.0], None], [[1.0, None], [INF, 0.0]], None],
            pl.Array(pl.Array(pl.Float32, 2), 2),
            "array",
            [[[1.0, 2.0], [NAN, NAN]], [[1.0, INF], [INF, 0.0]], [[INF, INF], [INF, INF]]],
        ),
        (
            [[[[1, 2, 3]]], None],
            pl.Array(pl.UInt8, (1, 1, 3)),
            "image",
            [[[[1]], [[2]], [[3]]], [[[0]]] * 3],
        ),
        ([[[[0.5]]], None], pl.Array(pl.Float64, (1, 1, 1)), "image", [[[[0.5]]], [[[NAN]]]]),
    ],
    ids=str,
)
def test_lists_images_and_arrays(values: list[Any], dtype: Any, kind: str, expected: Any) -> None:
    """At most five values of a list; what training would reject has a mark of its own."""
    frame = pl.DataFrame({"x": pl.Series(values, dtype=dtype)})
    inputs = OnnxInputs({"x": kind}, lengths={"x": 5} if kind != "image" else {})
    array = inputs.feed(frame)["x"]
    assert array.flags.c_contiguous
    assert array.shape == np.array(expected).shape
    np.testing.assert_array_equal(array, expected)
    assert inputs.imageless(frame).tolist() == [kind == "image" and v is None for v in values]
