"""The last rows of a key from a file to a file, and to a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

Headrace = Callable[..., tuple[int, str, str]]
PIPELINE = """
name = "visits"
folder = {run}
[source]
kind = "files"
path = {data}
[loader]
batch_rows = 2
[scrub.visits]
kind = "history"
columns = ["x"]
by = ["user"]
rows = 2
"""
SINK = """
[sink]
kind = "files"
path = {out}
format = "{format}"
"""
MODEL = """
[model]
target = "x"
task = "regression"
[model.inputs.past]
columns = ["visits"]
layers = [{kind = "pooling", how = "last"}]
"""


@pytest.fixture
def table(tmp_path: Path) -> str:
    users = ["a", "b", "a", "a", "b", "a"]
    rows = pl.DataFrame({"user": users, "x": [1.0, 2.0, None, 4.0, 5.0, 6.0]})
    rows.write_csv(tmp_path / "rows.csv")
    return PIPELINE.format(
        run=json.dumps(str(tmp_path / "run")), data=json.dumps(str(tmp_path / "rows.csv"))
    )


@pytest.mark.parametrize("written", ["parquet", "ndjson"])
def test_arrays_are_written_with_their_gaps(
    tmp_path: Path, table: str, headrace: Headrace, written: str
) -> None:
    out = tmp_path / "out"
    file = tmp_path / "visits.toml"
    file.write_text(table + SINK.format(out=json.dumps(str(out)), format=written))
    code, _, err = headrace("run", file)
    assert code == 0, err
    parts = sorted(out.glob(f"*.{written}"))
    arrays: list[Any]
    if written == "parquet":
        arrays = pl.concat([pl.read_parquet(part) for part in parts])["visits"].to_list()
    else:
        lines = [line for part in parts for line in part.read_text().splitlines()]
        arrays = [json.loads(line)["visits"] for line in lines]
    assert arrays == [
        [None, None], [None, None], [[1], None], [[1], None], [[2], None], [None, [4]],
    ]  # fmt: skip


def test_a_network_learns_from_them(tmp_path: Path, table: str, headrace: Headrace) -> None:
    file = tmp_path / "visits.toml"
    file.write_text(table + MODEL + "[train]\nthreads = 1\n[dead_letters]\nlimit = 1.0\n")
    code, out, err = headrace("check", file)
    assert code == 0, out + err
    code, out, err = headrace("run", file)
    assert code == 0, err
    assert "6 read = 5 learned + 1 rejected" in out


def test_a_second_epoch_is_refused(tmp_path: Path, table: str, headrace: Headrace) -> None:
    file = tmp_path / "visits.toml"
    file.write_text(table.replace("[loader]", "epochs = 2\n[loader]") + MODEL + "[train]\n")
    code, _, err = headrace("check", file)
    assert code == 2
    assert "[scrub.visits] would treat it as a duplicate, as late or as its own past" in err
