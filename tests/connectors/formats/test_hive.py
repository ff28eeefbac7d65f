"""Folders like ``year=2026/month=07`` are columns of the files in them."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from connectors.files.source import FilesSource
from connectors.formats.values.hive import infer_type, partition_values
from engine.types import EndOfStream, UserError, parse_schema
from tests.connectors.files.test_follow import Reader

ROWS = pl.DataFrame({"x": [1, 2]})


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def put(folder: str, name: str, rows: pl.DataFrame = ROWS) -> None:
    path = Path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        rows.write_csv(path)
    elif path.suffix == ".ndjson":
        rows.write_ndjson(path)
    else:
        rows.write_parquet(path)


def read(path: str, declared: dict[str, str] | None = None, **own: Any) -> pl.DataFrame:
    source = FilesSource(FilesSource.Settings(path=path, **own))
    schema = source.schema(parse_schema(declared or {}))
    frames = []
    while True:
        try:
            records = source.read(1_000, 1 << 20, 0.0)
        except EndOfStream:
            break
        assert records is not None
        frame, rejects = source.format.decode(records, schema)
        assert not rejects
        frames.append(frame.drop("_partition", "_position"))
    frame = pl.concat(frames)
    assert dict(frame.schema) == schema
    return frame


@pytest.mark.parametrize("suffix", [".csv", ".ndjson", ".parquet"])
@pytest.mark.parametrize("path", ["d", "d/*/*", "d/**/*", "./d"])
def test_folders_are_columns(suffix: str, path: str) -> None:
    put("d/k=1", f"a{suffix}")
    put("d/k=2", f"a{suffix}", pl.DataFrame({"x": [3]}))
    assert read(path).to_dicts() == [{"x": 1, "k": 1}, {"x": 2, "k": 1}, {"x": 3, "k": 2}]


def test_several_levels_and_their_types() -> None:
    put("d/day=2026-07-01/store=007/kind=a%3Ab", "a.csv")
    put("d/day=__HIVE_DEFAULT_PARTITION__/store=012/kind=c", "a.csv")
    frame = read("d")
    assert frame["day"].to_list() == [date(2026, 7, 1)] * 2 + [None] * 2
    assert frame["store"].to_list() == ["007", "007", "012", "012"]
    assert frame["kind"].to_list() == ["a:b", "a:b", "c", "c"]


@pytest.mark.parametrize("suffix", [".csv", ".ndjson", ".parquet"])
def test_declared_types_hold_for_folders(suffix: str) -> None:
    put("d/k=1/m=x", f"a{suffix}")
    frame = read("d", {"k": "string", "x": "float64", "*": "drop"})
    assert frame.to_dicts() == [{"x": 1.0, "k": "1"}, {"x": 2.0, "k": "1"}]
    frame = read("d", {"k": "float64"})
    assert frame.to_dicts() == [{"x": 1, "k": 1.0, "m": "x"}, {"x": 2, "k": 1.0, "m": "x"}]
    put("d/k=b/m=x", f"a{suffix}")
    with pytest.raises(UserError, match="A folder is named 'k=b', and column 'k' is float64"):
        read("d", {"k": "float64"})


def test_a_folder_stands_before_the_file() -> None:
    put("d/k=1", "a.csv", pl.DataFrame({"k": [9], "x": [1]}))
    assert read("d").to_dicts() == [{"x": 1, "k": 1}]


def test_pieces_have_their_folders() -> None:
    put("d/k=1", "a.parquet")
    put("d/k=2", "a.parquet")
    frames = [read("d", shards=2, shard=shard) for shard in (0, 1)]
    assert [frame["k"].to_list() for frame in frames] == [[1, 1], [2, 2]]


def test_folders_that_come_are_followed() -> None:
    put("d/k=1", "a.csv")
    reader = Reader("d/*/*.csv")
    assert reader.rows() == ["1", "2"]
    put("d/k=2", "a.csv", pl.DataFrame({"x": [3]}))
    records = None
    while records is None:
        records = reader.source.read(10, 1 << 20, 0.0)
    frame, _ = reader.source.format.decode(records, reader.schema)
    assert frame.select("x", "k").rows() == [(3, 2)]
    reader.source.close()


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (["1", "-2", "0"], pl.Int64()),
        (["1", "01"], pl.String()),
        (["2026-02-28"], pl.Date()),
        (["2026-02-30"], pl.String()),
        (["1", None], pl.Int64()),
        ([None], pl.String()),
        (["1" * 25], pl.String()),
    ],
)
def test_types_are_guessed(values: list[str | None], dtype: pl.DataType) -> None:
    assert infer_type(values) == dtype


def test_only_folders_with_a_name_and_a_value() -> None:
    assert partition_values(Path("/data/k=1/=2/3=x/plain/a=b=c/f=1.csv")) == {"k": "1", "a": "b=c"}
