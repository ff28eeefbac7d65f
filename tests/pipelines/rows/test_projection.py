"""What nobody reads never rejects a row: such columns are not decoded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from engine.config import Pipeline
from engine.explore import explore
from engine.run import Run
from engine.types import Stage

N = 40
SCHEMA = {"a": "float64", "note": "int64", "y": "float64"}
BAD = 25


def _csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = [",".join(map(str, row.values())) for row in rows]
    (path / "in.csv").write_text("\n".join(["a,note,y", *lines, ""]))
    return path / "in.csv"


def _ndjson(path: Path, rows: list[dict[str, Any]]) -> Path:
    (path / "in.ndjson").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path / "in.ndjson"


def _parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    frame = pl.DataFrame([{**row, "note": str(row["note"])} for row in rows])
    pq.write_table(frame.to_arrow(), path / "in.parquet")
    return path / "in.parquet"


def data() -> list[dict[str, Any]]:
    """One of whose notes is no number."""
    return [{"a": i / N, "note": "word" if i == BAD else i, "y": 2 * i / N} for i in range(N)]


def pipeline(path: Path, where: Path, **tables: Any) -> Pipeline:
    made = {
        "name": "small",
        "folder": str(where / "run"),
        "source": {"kind": "files", "path": str(path), "schema": dict(SCHEMA)},
        "dead_letters": {"limit": 1.0},
        **tables,
    }
    return Pipeline.of(made)


def rejected(path: Path, where: Path, tables: dict[str, Any]) -> int:
    text = json.dumps(tables).replace("OUT", str(where / "out"))
    totals = Run(pipeline(path, where, **json.loads(text))).run().totals
    assert totals.read == N
    return totals.rejected


MODEL: dict[str, Any] = {"model": {"target": "y", "numeric": ["a"], "layers": [2]}, "train": {}}


@pytest.mark.parametrize("write", [_csv, _ndjson, _parquet])
def test_a_column_that_nobody_reads_rejects_no_row_of_any_format(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    assert rejected(write(tmp_path, data()), tmp_path, MODEL) == 0


@pytest.mark.parametrize(
    "tables",
    [
        {**MODEL, "sink": {"kind": "files", "path": "OUT", "columns": ["a"]}},
        {"sink": {"kind": "files", "path": "OUT", "columns": ["y"]}},
        {**MODEL, "scrub": {"derive": {"columns": {"b": "a * 2"}}}},
        {**MODEL, "scrub": {"value": {"kind": "missing", "columns": ["a*"]}}},
    ],
)
def test_a_column_that_nobody_reads_rejects_no_row(tmp_path: Path, tables: dict[str, Any]) -> None:
    assert rejected(_csv(tmp_path, data()), tmp_path, tables) == 0


@pytest.mark.parametrize(
    "tables",
    [
        {"sink": {"kind": "files", "path": "OUT"}},
        {"sink": {"kind": "files", "path": "OUT", "columns": ["note"]}},
        {**MODEL, "model": {"target": "y", "numeric": ["a", "n*"], "layers": [2]}},
        {**MODEL, "scrub": {"derive": {"columns": {"b": "a + note"}}}},
        {**MODEL, "scrub": {"duplicates": {"by": ["note"]}}},
        {**MODEL, "evaluation": {"slices": {"big": "note > 3"}}},
        {**MODEL, "scrub": {"own": {"kind": "tests.pipelines.rows.test_projection:Own"}}},
    ],
)
def test_one_that_somebody_reads_does(tmp_path: Path, tables: dict[str, Any]) -> None:
    assert rejected(_csv(tmp_path, data()), tmp_path, tables) == 1


def test_a_guess_that_nobody_reads_rejects_no_row(tmp_path: Path) -> None:
    rows = [{"a": i, "note": "w" if i == BAD else i, "y": i} for i in range(N)]
    made = pipeline(_csv(tmp_path, rows), tmp_path, **MODEL).table()
    made["source"].pop("schema")
    made["source"]["schema"] = {"note": "int64"}
    assert Run(Pipeline.of(made)).run().totals.rejected == 0


def test_paths_of_columns_that_nobody_reads_are_left_out(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"a": 1.0, "y": 2.0, "in": {"note": "word"}}]
    rows.append({"a": 2.0, "y": 3.0, "in": 7})
    made = pipeline(_ndjson(tmp_path, rows), tmp_path, **MODEL).table()
    made["source"]["paths"] = {"note": "in.note"}
    assert Run(Pipeline.of(made)).run().totals.rejected == 0


def test_a_loop_of_ones_own_and_explore_see_all_columns(tmp_path: Path) -> None:
    rows = [row for row in data() if row["note"] != "word"]
    made = pipeline(_csv(tmp_path, rows), tmp_path, **MODEL)
    with Run(made).loader() as batches:
        assert {c for batch in batches for c in batch.frame.columns} >= {"a", "note", "y"}
    assert "note" in {column.name for column in explore(made).columns}


def test_columns_that_are_folders_alone(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "a=3"
    folder.mkdir(parents=True)
    (folder / "x.csv").write_text("note,z\n1,2\nword,3\n")
    out = tmp_path / "out"
    sink = {"kind": "files", "path": str(out), "columns": ["a"]}
    source = {"kind": "files", "path": str(tmp_path / "in"), "schema": {"note": "int64"}}
    run = Run(pipeline(folder, tmp_path, source=source, sink=sink))
    assert run.run().totals.rejected == 0
    assert pl.read_parquet(out / "*.parquet")["a"].to_list() == [3, 3]


class Own(Stage):
    """A user's stage, which may look at anything."""

    from engine.types import Settings

    def apply(self, batch: Any) -> Any:
        return batch

    def snapshot(self) -> Any:
        return None

    def restore(self, value: Any) -> None:
        assert value is None

    def transforms(self) -> Any:
        return None
