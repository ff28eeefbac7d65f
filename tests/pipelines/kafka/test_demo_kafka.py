"""What ``make demo-kafka`` shows, on the broker that the tests share."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.broker import shared_broker
from tests.pipelines.test_readme import counted
from tests.size import FULL

DEMO = Path(__file__).parents[3] / "deploy" / "kafka" / "demo.py"
SENSORS = 21


@pytest.mark.full
@pytest.mark.slow(47 if FULL else 25)
def test_make_demo_kafka(tmp_path: Path) -> None:
    """Both engines end with an error below every baseline's, and the frozen one predicts every row
    from 2024 on once: four months, or two years where the demo is full."""
    here = {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": shared_broker().bootstrap_servers,
        "COLUMNS": "160",
    }
    here["PYTHONPATH"] = str(DEMO.parents[2])
    # Three weeks at once, and one step on kept rows in place of six: half of the processor's time.
    small = ["loader.batch_rows=504", "train.replay_steps=1", "service.port=0"]
    path = counted("" if FULL else "2023-07-01", tmp_path)
    if not FULL:  # half a year before what counts: longer steps, or too little is learned of it
        here["HEADRACE_SOURCE__PATH"] = str(path)
        small += ["train.lr=3e-3"]
    done = subprocess.run(
        [sys.executable, str(DEMO), *small], env=here, cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3_000:]
    table = done.stdout[done.stdout.index("mean absolute error over 2024-2025") :]
    rows = re.findall(r"│ (.+?) +│ +([\d,]+) │ +[\d,]* │ +([\d.]+) │", table)
    errors = {what: float(error) for what, _, error in rows}
    learned, predicted = errors.pop("learned hour by hour"), errors.pop("model of 2023, predicting")
    assert {"last hour", "same hour yesterday", "same hour last week"} <= errors.keys()
    assert max(learned, predicted) < 0.7 * min(errors.values())
    hours = pl.read_csv(path, columns=["date", "hour"]).filter(pl.col("date") >= "2024")
    count = SENSORS * hours.unique().height
    assert {what: n for what, n, _ in rows}["model of 2023, predicting"] == f"{count:,}"
