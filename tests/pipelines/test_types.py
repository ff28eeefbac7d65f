"""The columns of a run are those that it began with."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from connectors.files import inspection
from engine.config import Pipeline
from engine.preflight import preflight
from engine.progress import finish
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


@pytest.mark.parametrize("suffix", ["csv", "ndjson"])
def test_what_a_guess_costs_is_said(
    tmp_path: Path,
    suffix: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Types of text beyond what is looked at are a guess."""
    monkeypatch.setattr(inspection, "BUDGET", 1)
    monkeypatch.setattr(inspection, "LEAST", 1)
    monkeypatch.setattr(inspection, "PART", 60)
    values = ["1"] * 95 + ["2.5", "1e400", "n/k", "7", "8"]
    rows = [f"{i},{x}" for i, x in enumerate(values)]
    if suffix == "ndjson":
        numbers = ["1e400", "2.5"]
        quoted = [x if x.isdigit() or x in numbers else f'"{x}"' for x in values]
        rows = [f'{{"id":{i},"x":{x}}}' for i, x in enumerate(quoted)]
    head = "id,x\n" if suffix == "csv" else ""
    path = tmp_path / f"rows.{suffix}"
    path.write_text(head + "\n".join(rows) + "\n")
    pipeline = Pipeline.of(
        {
            "name": "t",
            "folder": str(tmp_path / "run"),
            "source": {"kind": "files", "path": str(path)},
        }
    )
    summary = Run(pipeline).run()
    assert (summary.totals.read, summary.totals.rejected) == (100, 3)
    said = "the type of column 'x' is a guess, int64, and '2.5' is none; declare \"x\" = \"string\""
    assert [said in remark for remark in summary.remarks] == [True]
    assert summary.remarks[0].startswith("3 rows")
    assert sum(said in record.message for record in caplog.records) == 1
    finish(summary)
    assert summary.remarks[0] in capsys.readouterr().out
    assert not preflight(Run(pipeline))
    assert said in capsys.readouterr().out
