"""Times in Parquet and Arrow files that polars would wrap or take for nulls reject their rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.files.readers import table as readers
from connectors.files.readers.arrow_times import RANGES, as_numbers, flag_out_of_range
from connectors.files.readers.table import open_table
from connectors.formats.values.calendar import BEYOND
from connectors.formats.values.columns import PROBLEM

FORMATS = ["parquet", "arrow"]
CLOCK = "a time of day outside 24 hours"
LONG = "a duration too long for milliseconds"
ZONED = pa.timestamp("s", "Asia/Tokyo")
ODD: list[tuple[pa.DataType, list[int], str]] = [
    (pa.timestamp("s"), [2**62, -(2**63), 1_663_696_168_732_145_433], BEYOND),
    (ZONED, [2**62, 95_000_000 * 86_400 + 1], BEYOND),
    (pa.duration("s"), [2**62, -(2**62), 2**63 // 1000 + 1], LONG),
    (pa.time32("s"), [-1, 86_400, 2**31 - 1], CLOCK),
    (pa.time32("ms"), [-1, 86_400_000], CLOCK),
    (pa.time64("us"), [-1, 86_400_000_000, 2**63 - 1], CLOCK),
    (pa.time64("ns"), [-1, 86_400_000_000_000, -(2**63)], CLOCK),
]
"""A type, numbers that are no value of it, and what the sentence says of them."""
COUNTED = dict.fromkeys([pa.timestamp("s"), ZONED, pa.duration("s")], 10**3) | {
    pa.time32("s"): 10**9, pa.time32("ms"): 10**6, pa.time64("us"): 10**3, pa.time64("ns"): 1,
}  # fmt: skip
"""How many of polars' units a type's unit has."""


def array(numbers: Sequence[int | None], dtype: pa.DataType) -> pa.Array:
    raw = pa.array(numbers, pa.int32() if dtype.bit_width == 32 else pa.int64())
    return raw.view(dtype)


def nested(values: pa.Array) -> dict[str, pa.Array]:
    """Each value in a list, an object, a map, ... of its own."""
    n = len(values)
    ends, texts = range(n + 1), pa.array(["a"] * n)
    return {
        "list": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values),
        "large_list": pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), values),
        "array": pa.FixedSizeListArray.from_arrays(values, 1),
        "struct": pa.StructArray.from_arrays([texts, values], ["s", "t"]),
        "map": pa.MapArray.from_arrays(pa.array(ends, pa.int32()), texts, values),
        "deep": pa.StructArray.from_arrays([
            pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values)
        ], ["l"]),
    }  # fmt: skip


def read(table: pa.Table, format: str, folder: Path, **how: Any) -> pl.DataFrame:
    path = folder / f"a.{format}"
    if format == "parquet":
        pq.write_table(table, path, **how)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
            out.write_table(table)
    file = open_table(format, path, "p")
    frame = file.whole()
    assert {c: t for c, t in frame.schema.items() if c != PROBLEM} == dict(file.schema)
    return frame


def can_hold(dtype: pa.DataType, format: str) -> bool:
    """Parquet has no times in seconds: writers make milliseconds of them."""
    return format == "arrow" or dtype not in (pa.timestamp("s"), ZONED, pa.time32("s"))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("dtype", "odd", "what"), ODD, ids=lambda value: str(value)[:20])
def test_each_row_out_of_range_is_a_reject(
    format: str, dtype: pa.DataType, odd: list[int], what: str, tmp_path: Path
) -> None:
    if not can_hold(dtype, format):
        return
    values = array([0, *odd, None, 5], dtype)
    frame = read(pa.table({"t": values, "n": range(len(values))}), format, tmp_path)
    column = frame.get_column("t")
    assert column.null_count() == len(odd) + 1
    assert (column.is_null() == frame.get_column(PROBLEM).is_not_null())[:-2].all()
    assert frame.get_column(PROBLEM).to_list() == [
        None, *(f"out_of_range: Column 't' holds {number}, {what}." for number in odd), None, None,
    ]  # fmt: skip
    assert frame.get_column("n").to_list() == list(range(len(values)))
    for kind, column in nested(values).items():
        frame = read(pa.table({"t": column}), format, tmp_path)
        detail = f"out_of_range: Column 't' holds {what}."
        assert frame.get_column(PROBLEM).to_list() == [None, *[detail] * len(odd), None, None], kind


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", COUNTED, ids=str)
def test_the_first_and_last_in_range_are_read(
    format: str, dtype: pa.DataType, tmp_path: Path
) -> None:
    first, last, _ = RANGES[dtype if dtype in RANGES else pa.timestamp("s")]
    if not can_hold(dtype, format):
        return
    frame = read(pa.table({"t": array([first, None, last], dtype)}), format, tmp_path)
    assert frame.columns == ["t"]
    a, b = first * COUNTED[dtype], last * COUNTED[dtype]
    assert frame.get_column("t").to_physical().to_list() == [a, None, b]


def test_a_null_list_hides_its_elements() -> None:
    """Memory behind a null is no value."""
    ends = pa.py_buffer(b"".join(end.to_bytes(4, "little") for end in (0, 2, 3)))
    valid = pa.py_buffer(bytes([0b10]))
    values = array([-1, -1, 2], pa.time64("us"))
    lists = pa.Array.from_buffers(pa.list_(values.type), 2, [valid, ends], children=[values])
    batch = pa.record_batch({"t": lists})
    frame = pl.DataFrame({"t": [None, [2]]})
    assert flag_out_of_range(frame, batch.schema, as_numbers(batch)).columns == ["t"]


def test_dictionaries_and_days_in_milliseconds(tmp_path: Path) -> None:
    index = pa.array([1, 0, None], pa.int8())
    numbers = array([2**62, 3], pa.timestamp("s"))
    clocks = array([86_400, 3], pa.time32("s"))
    table = pa.table({
        "t": pa.DictionaryArray.from_arrays(index, numbers),
        "c": pa.DictionaryArray.from_arrays(index, clocks),
        "d": array([1, 86_400_000, None], pa.date64()),
    })  # fmt: skip
    frame = read(table, "arrow", tmp_path)
    assert frame.get_column("t").to_physical().to_list() == [3000, None, None]
    assert frame.get_column("d").to_physical().to_list() == [1, 86_400_000, None]
    assert frame.get_column(PROBLEM).null_count() == 2


def test_times_of_many_row_groups_and_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also read from the middle, where the columns are in another order, and of times alone."""
    monkeypatch.setattr(readers, "CHUNK_ROWS", 3)
    numbers = [(-1 if n % 5 == 0 else n) for n in range(23)]
    table = pa.table({"n": range(23), "t.u": array(numbers, pa.time64("us")), "t": range(23)})
    frame = read(table, "parquet", tmp_path, row_group_size=7)
    expected = [None if n < 0 else n * 1000 for n in numbers]
    assert frame.get_column("t.u").to_physical().to_list() == expected
    assert frame.get_column("n").to_list() == frame.get_column("t").to_list() == list(range(23))
    assert frame.get_column(PROBLEM).is_not_null().to_list() == [n < 0 for n in numbers]
    for columns in (["t.u"], ["t", "t.u"]):
        file = open_table("parquet", tmp_path / "a.parquet", "p", columns)
        file.skip_to(11)
        pieces = []
        while (piece := file.read(2, 1 << 20)) is not None:
            assert isinstance(piece.values, pl.DataFrame)
            pieces.append(piece.values.get_column("t.u"))
        assert pl.concat(pieces).to_physical().to_list() == expected[11:]


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.none(), min_size=1), st.sampled_from([*COUNTED])
)
def test_no_number_becomes_another_time(numbers: list[int | None], dtype: pa.DataType) -> None:
    if dtype.bit_width == 32:
        numbers = [None if number is None else number >> 32 for number in numbers]
    batch = pa.record_batch({"t": array(numbers, dtype)})
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    frame = flag_out_of_range(frame, batch.schema, as_numbers(batch))
    read = frame.get_column("t").to_physical().to_list()
    why = frame.get_column(PROBLEM).to_list() if PROBLEM in frame else [None] * len(numbers)
    for number, value, problem in zip(numbers, read, why, strict=True):
        if number is None or problem is not None:
            assert value is None
        else:
            assert value == number * COUNTED[dtype]
