"""Every type of a column in every format of a sink: refused when it is bound, or had back."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_series_equal

from connectors.files.sink import WRITERS, FilesSink
from connectors.formats.encode import AvroEncoder, Encoder, JsonEncoder, RawEncoder, Registering
from engine.types import UserError

DAY, MOMENT = dt.date(2020, 1, 2), dt.datetime(2020, 1, 2, 3, 4, 5)
SPAN = dt.timedelta(days=1, seconds=2)
KINDS: dict[str, pl.Series] = {
    str(kind): pl.Series("v", [value, None], dtype=kind) for value, kinds in (
        (1, (pl.Int8(), pl.Int16(), pl.Int32(), pl.Int64(), pl.Int128(), pl.UInt8(), pl.UInt16(),
             pl.UInt32(), pl.UInt64(), pl.UInt128(), pl.Float16(), pl.Float32(), pl.Float64())),
        (True, (pl.Boolean(),)), ("a", (pl.String(), pl.Categorical(), pl.Enum(["a"]))),
        (b"a", (pl.Binary(),)), (DAY, (pl.Date(),)), (dt.time(1, 2, 3), (pl.Time(),)),
        (MOMENT, (pl.Datetime("ms"), pl.Datetime("us"), pl.Datetime("ns"))),
        (SPAN, (pl.Duration("ms"), pl.Duration("us"), pl.Duration("ns"))),
        (Decimal("1.50"), (pl.Decimal(38, 2),)), (None, (pl.Null(),)),
        ([1], (pl.List(pl.Int64()), pl.Array(pl.Int64(), 1))), ([b"a"], (pl.List(pl.Binary()),)),
        ([SPAN], (pl.List(pl.Duration("us")),)), ([None], (pl.List(pl.Null()),)),
        ([[DAY]], (pl.List(pl.List(pl.Date())),)), ({"x": 1}, (pl.Struct({"x": pl.Int64()}),)),
        ({"x": b"a"}, (pl.Struct({"x": pl.Binary()}),)), ({}, (pl.Struct([]),)),
        ({"x": {}}, (pl.Struct({"x": pl.Struct([])}),)), ([{}], (pl.List(pl.Struct([])),)),
        ({"x": "a"}, (pl.Struct({"x": pl.Enum(["a"])}),)), (object(), (pl.Object(),)),
    ) for kind in kinds
}  # fmt: skip
KINDS["zoned"] = pl.Series("v", [MOMENT, None]).dt.replace_time_zone("Asia/Kolkata")
READERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    "csv": pl.read_csv, "ndjson": pl.read_ndjson, "parquet": pl.read_parquet, "arrow": pl.read_ipc,
}  # fmt: skip
REFUSED: dict[str, Callable[[str], bool]] = {
    "csv": lambda kind: kind.startswith(("List", "Array", "Struct", "Object")),
    "ndjson": lambda kind: kind == "Object" or ("Binary" in kind and kind != "Binary"),
    "parquet": lambda kind: kind == "Object" or "Struct({})" in kind,
    "arrow": lambda kind: kind == "Object",
    "raw": lambda kind: kind not in ("String", "Binary"),
    "avro": lambda kind: (
        kind.startswith(
            ("List", "Array", "Struct", "Object", "Duration", "Decimal", "Null", "Time", "Float16")
        )
        or kind.endswith("Int128")
    ),
}
REFUSED["json"] = REFUSED["ndjson"]


class Numbers:
    """A registry that gives numbers to schemas."""

    def register(self, topic: str, schema: Any) -> int:
        return 1


NUMBERS: Registering = Numbers()
ENCODERS: dict[str, Callable[[], Encoder]] = {
    "json": JsonEncoder, "avro": lambda: AvroEncoder(registry=NUMBERS, topic="t"),
    "raw": RawEncoder,
}  # fmt: skip


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("kind", KINDS)
def test_files_refuse_a_column_at_the_start_or_hold_it(
    kind: str, format: str, tmp_path: Path
) -> None:
    values = KINDS[kind]
    sink = FilesSink(FilesSink.Settings.model_validate({"path": str(tmp_path), "format": format}))
    frame = pl.DataFrame([pl.Series("n", [1, 2]), values])
    if REFUSED[format](kind):
        with pytest.raises(UserError, match=rf'"{format}" cannot hold column .v. of '):
            sink.bind(dict(frame.schema))
        return
    sink.bind(dict(frame.schema))
    sink.write(frame)
    sink.flush()
    (part,) = tmp_path.iterdir()
    back = READERS[format](part).get_column("v")
    assert (len(back), back.is_null().to_list()) == (2, values.is_null().to_list())
    if format in ("parquet", "arrow"):
        assert_series_equal(back, values)
    elif values.dtype.is_numeric():
        assert float(back[0]) == float(values[0])


@pytest.mark.parametrize("format", ENCODERS)
@pytest.mark.parametrize("kind", KINDS)
def test_encoders_refuse_a_column_at_the_start_or_write_it(kind: str, format: str) -> None:
    """A registry is asked by none of it."""
    values = KINDS[kind]
    frame = values.to_frame() if format == "raw" else pl.DataFrame([pl.Series("n", [1, 2]), values])
    encoder = ENCODERS[format]()
    if REFUSED[format](kind):
        with pytest.raises(UserError, match="olumn 'v'"):
            encoder.require(dict(frame.schema))
        return
    encoder.require(dict(frame.schema))
    there = frame.drop_nulls() if format == "raw" else frame
    assert len(encoder.encode(there)) == there.height


def test_values_that_json_has_not_are_told_once_a_column(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pl.DataFrame(
        {"a": [float("nan"), 1.0, float("-inf"), None], "b": [1.0, 2.0, 3.0, None]}
    )
    sink = FilesSink(FilesSink.Settings(path=str(tmp_path), format="ndjson"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            sink.write(frame)
            sink.flush()
        encoder = JsonEncoder()
        encoder.encode(frame)
    assert [record.getMessage() for record in caplog.records] == 2 * [
        "Column 'a' (float64) has NaN or an infinity in 2 rows so far, and JSON has neither: null "
        "is written for them; Parquet and Arrow keep them."
    ]
    assert pl.read_ndjson(tmp_path / "part-00000000.ndjson")["a"].to_list() == [
        None,
        1.0,
        None,
        None,
    ]
