"""Dates and times beyond the calendar, which only columnar files can hold, reject their rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.formats.values.calendar import MOST, impossible
from tests.pipelines.conftest import Headrace

MILLISECONDS, MICROSECONDS = pl.Datetime("ms"), pl.Datetime("us")


def series(dtype: pl.DataType, *values: int | None) -> pl.Series:
    return pl.Series("t", values, dtype=pl.Int32 if dtype == pl.Date else pl.Int64).cast(dtype)


@given(days=st.integers(-(2**31), 2**31 - 1), number=st.integers(-(2**63), 2**63 - 1))
def test_what_is_possible_can_be_written(days: int, number: int) -> None:
    times = [series(pl.Datetime(unit), number) for unit in ("ms", "us", "ns")]
    for column in (series(pl.Date(), days), *times):
        if impossible(column) is None:
            assert column.cast(pl.String).item()


@pytest.mark.parametrize("dtype", MOST)
def test_the_last_day_is_possible_and_the_next_is_not(dtype: pl.DataType) -> None:
    most = MOST[dtype]
    column = series(dtype, -most - 1, -most, None, 0, most, most + 1)
    mask = impossible(column)
    assert mask is not None
    assert mask.to_list() == [True, False, False, False, False, True]
    nested = pl.DataFrame({"t": column, "n": range(6)}).select(pl.struct("t", "n")).to_series()
    assert impossible(nested).to_list() == mask.to_list()  # type: ignore[union-attr]
    lists = pl.Series([[0], [most], [most + 1, 0], [], None]).cast(
        pl.List(pl.Int32 if dtype == pl.Date else pl.Int64)
    )
    mask = impossible(lists.cast(pl.List(dtype)))
    assert mask is not None
    assert mask.to_list() == [False, False, True, False, False]


@pytest.mark.parametrize("format", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("dtype", "shown"),
    [
        (pl.Date(), "Column 't' holds 2000000000, a time beyond the calendar."),
        (MILLISECONDS, "Column 't' holds 8300000000000000, a time beyond the calendar."),
        (pl.List(MILLISECONDS), "Column 't' holds a time beyond the calendar."),
        (MICROSECONDS, "Column 't' holds 8300000000000000000, a time beyond the calendar."),
        (pl.List(MICROSECONDS), "Column 't' holds a time beyond the calendar."),
        (
            pl.Datetime("us", "Asia/Tokyo"),
            "Column 't' holds 8300000000000000000, a time beyond the calendar.",
        ),
    ],
)
def test_a_file_with_such_a_time_loses_its_row_alone(
    tmp_path: Path, headrace: Headrace, format: str, dtype: Any, shown: str
) -> None:
    inner = dtype.inner if dtype.is_nested() else dtype
    beyond = 83 * 10 ** (14 if inner == MILLISECONDS else 17)
    values: list[Any] = [0, 2_000_000_000 if dtype == pl.Date else beyond, 1]
    if dtype.is_nested():
        values = [[value] for value in values]
    raw = pl.Int32 if dtype == pl.Date else pl.Int64
    column = pl.Series("t", values, dtype=pl.List(raw) if dtype.is_nested() else raw).cast(dtype)
    frame = pl.DataFrame([column, pl.Series("n", [1, 2, 3])])
    path = tmp_path / f"rows.{format}"
    frame.write_parquet(path) if format == "parquet" else frame.write_ipc(path)
    file = tmp_path / "times.toml"
    file.write_text(
        f'name = "times"\nfolder = "{tmp_path}/run"\n'
        f'[source]\nkind = "files"\npath = "{path}"\n'
        f'[sink]\nkind = "files"\npath = "{tmp_path}/out"\nformat = "ndjson"\n'
        f'[dead_letters]\nlimit = 1.0\nkind = "files"\npath = "{tmp_path}/dead"\n'
    )
    assert headrace("run", file)[0] == 0
    assert read(tmp_path / "out").get_column("n").to_list() == [1, 3]
    letter = read(tmp_path / "dead").row(0, named=True)
    assert shown in letter["detail"]
    assert letter["_position"] == 1


def read(folder: Path) -> pl.DataFrame:
    return pl.concat(pl.read_ndjson(part) for part in sorted(folder.rglob("*.ndjson")))
