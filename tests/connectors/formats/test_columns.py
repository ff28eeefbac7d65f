"""Columns that only need their types checked."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from connectors.formats.ndjson import Ndjson
from connectors.formats.values.columns import Columns
from connectors.memory import MemorySource
from engine.types import TYPES, Batch, HeadraceError, Mark, Schema, UserError
from tests.connectors.conftest import decoded, drain, files, records, told

UTC = datetime.UTC
DAY = datetime.datetime(2024, 1, 2, 3, tzinfo=UTC)


def decode(frame: pl.DataFrame, schema: Schema) -> tuple[pl.DataFrame, list[Any]]:
    raw = MemorySource.of([frame]).read(1_000, 1 << 20, 0.0)
    assert raw is not None
    return Columns().decode(raw, schema)


def test_the_right_types_are_handed_through() -> None:
    frame = pl.DataFrame({"a": [1.0, float("nan")], "b": ["x", None]})
    made, rejects = decode(frame, {"b": pl.String(), "a": pl.Float64()})
    assert made.columns == ["_partition", "_position", "b", "a"]
    assert made["a"].is_nan().to_list() == [False, True]
    assert not rejects


@pytest.mark.parametrize(
    ("values", "kind", "expected", "reason"),
    [
        (pl.Series([1.0, 2.5]), "int64", [1], "wrong_type"),
        (pl.Series([1.0, 1e300]), "int64", [1], "out_of_range"),
        (pl.Series([1, 1 << 40]), "int32", [1], "out_of_range"),
        (pl.Series([0.5, 1e300]), "float32", [0.5], "out_of_range"),
        (pl.Series(["1.5", "abc"]), "float64", [1.5], "wrong_type"),
        (pl.Series([1, 5]), "bool", [True], "wrong_type"),
        (pl.Series(["2024-01-02", "no"]), "date", [datetime.date(2024, 1, 2)], "wrong_type"),
        (pl.Series(["7", "x"], dtype=pl.Categorical), "int32", [7], "wrong_type"),
    ],
)
def test_what_does_not_fit_costs_its_row(
    values: pl.Series, kind: str, expected: list[object], reason: str
) -> None:
    made, rejects = decode(values.alias("v").to_frame(), {"v": TYPES[kind]})
    assert made["v"].to_list() == expected
    assert made["_position"].to_list() == [0]
    ((found, position, detail, _),) = told(rejects)
    assert (found, position) == (reason, 1)
    assert detail.startswith(f"Expected {kind}, got '")
    assert detail.endswith("in column 'v'.")


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (pl.Series([1, None, 3]), "float64", [1.0, None, 3.0]),
        (pl.Series([1.0, None]), "int64", [1, None]),
        (pl.Series([0.1, float("inf")]), "float32", [pytest.approx(0.1), float("inf")]),
        (pl.Series([DAY]), "datetime", [DAY.replace(tzinfo=None)]),
        (pl.Series([5, None]), "string", ["5", None]),
        (pl.Series([True, False]), "int32", [1, 0]),
        (pl.Series([1, (1 << 53) + 2]), "float64", [1.0, 2.0**53 + 2]),
    ],
)
def test_what_fits_is_cast(values: pl.Series, kind: str, expected: list[object]) -> None:
    made, rejects = decode(values.alias("v").to_frame(), {"v": TYPES[kind]})
    assert made["v"].to_list() == expected
    assert made["v"].dtype == TYPES[kind]
    assert not rejects


@pytest.mark.parametrize("values", [[[1], [2]], [{"a": 1}, {"a": 2}]])
def test_types_without_a_way_between_them_reject_every_row(values: list[object]) -> None:
    made, rejects = decode(pl.DataFrame({"v": values}), {"v": pl.Float64()})
    assert made.height == 0
    assert [reason for reason, *_ in told(rejects)] == ["wrong_type"] * 2


def test_a_number_is_no_moment_as_its_unit_is_unknown() -> None:
    made, rejects = decode(pl.DataFrame({"v": [1_700_000_000]}), {"v": pl.Datetime("us")})
    assert (made.height, len(rejects)) == (0, 1)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (datetime.datetime(2500, 1, 1), pl.Datetime("ns")),
        (datetime.datetime(2500, 1, 1, tzinfo=UTC), pl.Datetime("ns", "Asia/Tokyo")),
        (datetime.date(1, 1, 1), pl.Datetime("ns")),
        ("2500-01-01T00:00:00Z", pl.Datetime("ns")),
        ([datetime.datetime(2500, 1, 1)], pl.List(pl.Datetime("ns"))),
        (datetime.timedelta(days=200_000), pl.Duration("ns")),
        ("P200000D", pl.Duration("ns")),
    ],
)
def test_a_time_that_another_unit_holds_is_out_of_range(value: object, kind: pl.DataType) -> None:
    made, rejects = decode(pl.DataFrame({"v": [value]}), {"v": kind})
    assert (made.height, [reason for reason, *_ in told(rejects)]) == (0, ["out_of_range"])


@pytest.mark.parametrize("coerce", ["lossless", "strict"])
def test_a_time_in_json_that_another_unit_holds_is_out_of_range(coerce: Any) -> None:
    made = Ndjson(coerce=coerce).decode(
        records(b'{"v": "2500-01-01T00:00:00"}', b'{"v": "noon"}', b'{"v": 5}'),
        {"v": pl.Datetime("ns")},
    )
    assert sorted(reason for reason, *_ in told(made[1])) == ["out_of_range", *["wrong_type"] * 2]


@pytest.mark.parametrize(("text", "seconds"), [("P2DT1S", 172_801), ("-00:00:02", -2)])
def test_one_duration_alone_is_read(text: str, seconds: int) -> None:
    made, rejects = decode(pl.DataFrame({"v": [text]}), {"v": pl.Duration("ms")})
    assert (made["v"].to_list(), rejects) == ([datetime.timedelta(seconds=seconds)], [])


@pytest.mark.parametrize("kind", [pl.Boolean(), pl.Date(), pl.List(pl.Int64())])
def test_a_duration_that_is_no_value_costs_its_row(kind: pl.DataType) -> None:
    made, rejects = decode(pl.DataFrame({"v": [datetime.timedelta(days=2)]}), {"v": kind})
    assert made.height == 0
    ((reason, _, detail, _),) = told(rejects)
    assert reason == "wrong_type"
    assert "got 'P2D' in column 'v'" in detail


def test_a_row_with_two_faults_is_rejected_once() -> None:
    frame = pl.DataFrame({"a": ["x", "1"], "b": ["y", "2"]})
    made, rejects = decode(frame, {"a": pl.Int64(), "b": pl.Int64()})
    assert made.select("a", "b").rows() == [(1, 2)]
    assert [at for _, at, _, _ in told(rejects)] == [0]


def test_a_missing_column_names_the_nearest() -> None:
    with pytest.raises(HeadraceError, match=r"memory has no column 'ab'.*Did you mean 'a'"):
        decode(pl.DataFrame({"a": [1]}), {"ab": pl.Int64()})


def test_bytes_beside_a_value_that_does_not_fit() -> None:
    """JSON has none, and the dead letter is JSON."""
    frame = pl.DataFrame({"y": [b"\xff", b"a"], "n": ["x", "1"]})
    made, rejects = decode(frame, {"y": pl.Binary(), "n": pl.Int64()})
    assert made.select("y", "n").rows() == [(b"a", 1)]
    assert [value for *_, value in told(rejects)] == [r'{"y":"\\xff","n":"x"}']


def test_bytes_that_are_no_text_cost_their_row() -> None:
    made, rejects = decode(pl.DataFrame({"y": [b"a", b"\xff", None]}), {"y": pl.String()})
    assert made["y"].to_list() == ["a", None]
    assert [(reason, at) for reason, at, _, _ in told(rejects)] == [("wrong_type", 1)]


def test_a_stage_rejects_a_row_with_bytes() -> None:
    frame, _ = decode(pl.DataFrame({"y": [b"\xff"], "n": [1]}), {"y": pl.Binary(), "n": pl.Int64()})
    batch = Batch(frame=frame, mark=Mark(), arrived=0.0, raw_rows=1)
    (reject,) = batch.reject(pl.col("n") > 1, stage="s", reason="small").rejects
    assert reject.rows["value"].to_list() == ['{"y":"ff","n":1}']


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv", "ndjson"])
def test_what_a_sink_wrote_is_read_without_its_places(tmp_path: Path, suffix: str) -> None:
    frame = pl.DataFrame({"_partition": ["p"], "_position": [7], "x": [2]})
    path = tmp_path / f"out.{suffix}"
    write = {"arrow": "write_ipc"}.get(suffix, f"write_{suffix}")
    getattr(frame, write)(path)
    for declared in ({}, {"*": pl.Int64()}):
        source = files(path)
        schema = source.schema(dict(declared))
        assert schema == {"x": pl.Int64()}
        made, rejects = source.format.decode(drain(source)[0], schema)
        assert (made.rows(), rejects) == ([(str(path), int(made["_position"][0]), 2)], [])


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_images_in_columns(tmp_path: Path, kind: str) -> None:
    """Bytes as a column, and as Hugging Face's datasets write them: {bytes, path}."""
    images = [b"\xff\xd8" + bytes([i]) * i for i in range(5)] + [None]
    frame = pl.DataFrame(
        {
            "plain": images,
            "image": [{"bytes": raw, "path": f"{i}.jpg"} for i, raw in enumerate(images)],
            "label": range(6),
        },
        schema_overrides={"plain": pl.Binary},
    )
    path = tmp_path / f"images.{kind}"
    frame.write_parquet(path) if kind == "parquet" else frame.write_ipc(path)
    paths = {"raw": "image.bytes", "name": "image.path"}
    declared: Schema = {
        "raw": pl.Binary(), "name": pl.String(), "label": pl.Int64(), "plain": pl.Binary(),
    }  # fmt: skip
    source = files(path, paths=paths)
    made = decoded(source, drain(source, 4), source.schema(declared))
    assert made["raw"].to_list() == made["plain"].to_list() == images
    assert made["name"][5] == "5.jpg"
    found = files(path, paths=paths).schema({"label": pl.Int64(), "*": pl.Int64()})
    assert found["raw"] == pl.Int64()
    assert files(path, paths=paths).schema({})["raw"] == pl.Binary()
    with pytest.raises(UserError, match=r"begins at a column that .* does not have.* 'image'"):
        files(path, paths={"raw": "imag.bytes"}).schema({})
    with pytest.raises(UserError, match=r"leads to nothing: column 'image' of .* is Struct"):
        files(path, paths={"raw": "image.byte"}).schema({})
