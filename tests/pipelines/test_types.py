"""The columns of a run are those that it began with."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from engine.config import Pipeline
from engine.run import Run


def test_a_resumed_run_keeps_its_columns_until_it_starts_over(tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    pipeline = Pipeline.of(
        {
            "name": "t",
            "folder": str(tmp_path / "run"),
            "source": {"kind": "files", "path": str(rows)},
            "sink": {"kind": "files", "path": str(tmp_path / "out")},
            "dead_letters": {"limit": 0.5},
        }
    )
    rows.write_text("id,x\n1,1\n2,2\n")
    assert Run(pipeline).run().totals.rejected == 0
    rows.write_text("id,x\n1,1\n2,2\n3,3.5\n4,4\n")
    again = Run(pipeline).run()
    assert (again.totals.read, again.totals.rejected) == (4, 1)
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    assert len(parts) == 2
    assert {pl.read_parquet_schema(part)["x"] for part in parts} == {pl.Int64()}
    Run(pipeline).run(fresh=True)
    assert pl.read_parquet(tmp_path / "out/*.parquet")["x"].to_list() == [1.0, 2.0, 3.5, 4.0]


def test_a_resumed_run_reads_as_the_first_one_found_the_file_to_be_written(tmp_path: Path) -> None:
    """Words for missing values, delimiter and decimal comma; what comes later says none of it."""
    rows = tmp_path / "rows.csv"
    out = tmp_path / "out"
    pipeline = Pipeline.of(
        {
            "name": "t",
            "folder": str(tmp_path / "run"),
            "source": {"kind": "files", "path": str(rows)},
            "sink": {"kind": "files", "path": str(out)},
            "dead_letters": {"limit": 0.5},
        }
    )
    head = "# export of today\nid;x\n1;1,5\n2;NA\n"
    rows.write_text(head)
    assert Run(pipeline).run().totals.rejected == 0
    rows.write_text(head + "3;NA\n4;2\n# 5;1\n")
    again = Run(pipeline).run()
    assert (again.resumed, again.totals.read, again.totals.rejected) == (True, 5, 1)
    made = pl.read_parquet(out / "*.parquet")
    assert made.select("id", "x").rows() == [(1, 1.5), (2, None), (3, None), (4, 2.0)]
