"""The pipeline of payments that is shipped: windows by card, and reports of fraud that come hours
later."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from engine.config import Pipeline
from engine.run import Run

PIPELINES = Path(__file__).parents[4] / "deploy" / "pipelines"
ROWS = 4_000
SETS = [
    "service.port=0", "export.compress=false", "model.num_trees=10", "model.threshold=0.5",
    "evaluation.window=2000",
]  # fmt: skip


@pytest.mark.full
def test_fraud_is_learned_from_late_reports_and_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make = [sys.executable, str(PIPELINES / "fraud.py"), "runs/payments", str(ROWS)]
    subprocess.run(make, check=True)
    reports = pl.read_parquet("runs/payments/reports.parquet")
    payments = pl.read_parquet("runs/payments/payments.parquet")

    summary = Run(PIPELINES / "fraud.toml", SETS).run()
    assert summary.totals.balanced
    learned = pl.read_parquet("runs/fraud/answers/*.parquet")
    newest = pl.lit(pl.concat([payments["at"], reports["at"]]).max())
    due = payments.filter(pl.col("at") < newest - pl.duration(days=1, hours=4))
    known = pl.concat([due["payment"], reports["payment"]]).unique()
    assert set(known) <= set(learned["payment"])
    assert learned["payment"].is_unique().all()
    newest_figures = summary.report["window"]  # at first only fraud is known
    assert newest_figures["average_precision"] > 0.5

    Run(PIPELINES / "fraud-serve.toml", SETS).run()
    answers = pl.read_parquet("runs/fraud-serve/answers/*.parquet")
    assert answers["payment"].sort().to_list() == list(range(ROWS))
    alerts = answers.filter(prediction="yes")
    right = alerts.filter(pl.col("payment").is_in(reports["payment"].implode())).height
    assert right > 0.8 * alerts.height
    assert right > 0.8 * reports.height


def test_the_words_for_alerts_are_right() -> None:
    """Those in the file that serves."""
    file = PIPELINES / "fraud-serve.toml"
    (said,) = re.findall(r'--set "(.*)"$', file.read_text(), re.MULTILINE)
    pipeline = Pipeline.load(file, [said.replace('\\"', '"')])
    assert pipeline.sink_where == "prediction = 'yes'"
    assert pipeline.sink is not None
    assert pipeline.sink["topic"] == "alerts"
