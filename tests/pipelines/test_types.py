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
