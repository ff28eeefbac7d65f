"""Names that no column of a file can have: they are left out, and told; a path reads them."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import ipc

from engine.types import UserError
from tests.connectors.conftest import decoded, drain, files

NAMES = ("_position", "_partition", "_part", "_problem", "*", "", "^a.*$", "^$")


def write(folder: Path, kind: str, name: str) -> Path:
    """Two rows of this column and of "a"."""
    place, table = folder / f"in.{kind}", pa.table({name: [1, 2], "a": [3, 4]})
    if kind == "csv":
        place.write_text(f"{name},a\n1,3\n2,4\n")
    elif kind == "ndjson":
        place.write_text(f'{{"{name}": 1, "a": 3}}\n{{"a": 4, "{name}": 2}}\n')
    elif kind == "parquet":
        pq.write_table(table, place)
    else:
        with ipc.new_file(place, table.schema) as out:
            out.write_table(table)
    return place


@pytest.mark.parametrize("kind", ["csv", "ndjson", "parquet", "arrow"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_cannot_be_is_left_out_and_told(
    tmp_path: Path, kind: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = files(write(tmp_path, kind, name))
    schema = source.schema({})
    rows = decoded(source, drain(source), schema)
    if kind == "csv" and not name:
        assert rows.to_dict(as_series=False) == {"column_1": [1, 2], "a": [3, 4]}
        return
    assert rows.to_dict(as_series=False) == {"a": [3, 4]}
    source.schema({})
    (told,) = [r.getMessage() for r in caplog.records if "is left out" in r.getMessage()]
    assert told.startswith(f"Column '{name}' of {tmp_path / 'in'}.{kind} is left out, as ")


@pytest.mark.parametrize("kind", ["ndjson", "parquet", "arrow"])
@pytest.mark.parametrize("name", [n for n in NAMES if n[:1] not in ("*", "^") and n != "_problem"])
def test_a_path_gives_it_another_name(
    tmp_path: Path, kind: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = files(write(tmp_path, kind, name), paths={"other": name})
    schema = source.schema({"other": pl.Int8()})
    rows = decoded(source, drain(source), schema).select("a", "other")
    assert rows.to_dict(as_series=False) == {"a": [3, 4], "other": [1, 2]}
    assert "is left out" not in caplog.text


def test_keys_of_several_kinds_beside_one_without_a_name(tmp_path: Path) -> None:
    place = tmp_path / "in.ndjson"
    place.write_text('{"": 1, "a": 2}\n{"": "x", "a": 3, "column_0": 1}\n')
    source = files(place)
    assert source.schema({}) == {"a": pl.Int64(), "column_0": pl.Int64()}


def test_a_folder_of_such_a_name_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "in" / "_position=7"
    folder.mkdir(parents=True)
    (folder / "x.csv").write_text("a\n1\n")
    source = files(folder / "x.csv")
    assert source.schema({}) == {"a": pl.Int64()}
    assert "Column '_position' of" in caplog.text


def test_a_name_of_its_own_that_is_asked_for_is_refused(tmp_path: Path) -> None:
    source = files(write(tmp_path, "parquet", "_problem"))
    with pytest.raises(UserError, match="_problem"):
        source.schema({"_problem": pl.Int64()})
