"""Every type that Arrow has, in Parquet and in Arrow files: rows, or one sentence that names it."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.files.readers.table import open_table
from engine.types import UserError

ONE = Decimal("1.5")
INDEX = pa.array([0, None], pa.int8())
ODD: dict[str, pa.Array] = {
    "decimal256": pa.array([ONE, None], pa.decimal256(60, 2)),
    "list<": pa.array([[ONE], None], pa.list_(pa.decimal256(60, 2))),
    "struct<x: ": pa.array([{"x": ONE}, None], pa.struct([("x", pa.decimal256(60, 2))])),
    "month_day_nano_interval": pa.array([(1, 2, 3), None], pa.month_day_nano_interval()),
    "dense_union": pa.UnionArray.from_dense(
        pa.array([0, 1], pa.int8()), pa.array([0, 0], pa.int32()), [pa.array([1]), pa.array(["x"])]
    ),
    "sparse_union": pa.UnionArray.from_sparse(
        pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["x", "y"])]
    ),
    "run_end_encoded": pa.RunEndEncodedArray.from_arrays(pa.array([1, 2], pa.int32()), [5, 6]),
    "list_view": pa.array([[1, 2], None], pa.list_view(pa.int64())),
    "large_list_view": pa.array([[1, 2], None], pa.large_list_view(pa.int64())),
    "tz=+05:30": pa.array([1, None], pa.timestamp("us", "+05:30")),
    "tz=Mars/City": pa.array([1, None], pa.timestamp("us", "Mars/City")),
}
"""What no column can be, by what its sentence says of it."""
GOOD: list[pa.Array] = [
    *(pa.array([1, None], kind) for kind in (
        pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(),
        pa.uint64(), pa.float32(), pa.float64(), pa.date32(), pa.time32("s"), pa.time32("ms"),
        pa.time64("us"), pa.time64("ns"), *map(pa.duration, ("s", "ms", "us", "ns")),
        *map(pa.timestamp, ("s", "ms", "us", "ns")), pa.timestamp("us", "Asia/Kolkata"),
    )),
    pa.array([np.float16(1.5), None], pa.float16()), pa.array([True, None]), pa.nulls(2),
    pa.array([86_400_000, None], pa.date64()), pa.array([ONE, None], pa.decimal32(5, 2)),
    pa.array([ONE, None], pa.decimal64(15, 2)), pa.array([ONE, None], pa.decimal128(38, 2)),
    *(pa.array(["a", None], kind) for kind in (pa.string(), pa.large_string(), pa.string_view())),
    *(pa.array([b"a", None], kind) for kind in (
        pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(1)
    )),
    *(pa.DictionaryArray.from_arrays(INDEX, pa.array([value])) for value in (
        "u", 10, 1.5, b"a", dt.date(2020, 1, 1)
    )),
    *(pa.array([[1, 2], None], kind) for kind in (
        pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_(pa.int64(), 2)
    )),
    pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())), pa.array([{"x": 1}, None]),
    pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16, None], pa.binary(16))),
    pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array(["{}", None])),
    pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None], pa.int8())),
    pa.ExtensionArray.from_storage(pa.opaque(pa.string(), "a", "b"), pa.array(["x", None])),
]  # fmt: skip
NOT_PARQUET = ("month_day_nano_interval", "dense_union", "sparse_union", "run_end_encoded")


def written(values: pa.Array, format: str, folder: Path) -> Path:
    table, path = pa.table({"n": [1, 2], "v": values}), folder / f"a.{format}"
    if format == "parquet":
        pq.write_table(table, path)
        return path
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
        out.write_table(table)
    return path


@pytest.mark.parametrize("format", ["parquet", "arrow"])
@pytest.mark.parametrize("values", GOOD, ids=lambda values: str(values.type))
def test_a_type_that_a_column_has_is_read(values: pa.Array, format: str, tmp_path: Path) -> None:
    file = open_table(format, written(values, format, tmp_path), "p")
    (column,) = file.whole().select("v").get_columns()
    assert (len(column), column.null_count()) == (2, values.null_count)
    assert dict(file.schema)["v"] == column.dtype


@pytest.mark.parametrize("format", ["parquet", "arrow"])
@pytest.mark.parametrize("odd", ODD)
def test_a_type_that_no_column_has_is_a_sentence(odd: str, format: str, tmp_path: Path) -> None:
    if format == "parquet" and odd in NOT_PARQUET:
        return
    path = written(ODD[odd], format, tmp_path)
    with pytest.raises(UserError, match="p has column 'v' of type ") as caught:
        open_table(format, path, "p")
    assert odd in str(caught.value)
    assert "cannot be read: write it as another type" in str(caught.value)
