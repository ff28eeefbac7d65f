"""Rows from a topic, and their labels from another one."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from engine.commands.preflight import preflight
from engine.config import Pipeline
from engine.run import Run
from tests.broker import shared_broker


def test_each_label_of_a_topic_is_learned_once_over_two_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broker = shared_broker()
    rows, labels = broker.topic(partitions=2), broker.topic()
    kafka = {"kind": "kafka", "bootstrap_servers": broker.bootstrap_servers, "stop": "end"}
    table = {
        "name": "late",
        "folder": str(tmp_path / "run"),
        "source": {
            **kafka, "topics": [rows], "group_id": rows,
            "schema": {"id": "int64", "at": "int64", "x": "float64"},
        },
        "labels": {
            "by": ["id"], "time": "at", "horizon": 1_000,
            "source": {
                **kafka, "topics": [labels],
                "schema": {"id": "int64", "at": "int64", "y": "float64"},
            },
        },
        "model": {"kind": "linear", "target": "y", "numeric": ["x"]},
        "loader": {"batch_rows": 64},
        "sink": {"kind": "files", "path": str(tmp_path / "out")},
    }  # fmt: skip

    def produce(topic: str, column: str, ids: range, delay: int, partition: int = 0) -> None:
        lines = [json.dumps({"id": i, "at": i + delay, column: i / 100}) for i in ids]
        broker.produce(topic, [line.encode() for line in lines], partition=partition)

    produce(rows, "x", range(400), 0)
    produce(rows, "x", range(400, 600), 0, partition=1)
    produce(labels, "y", range(300), 150)
    assert preflight(Run(Pipeline.of(table)))
    assert "300 of 300 sampled labels belong to a sampled row" in capsys.readouterr().out
    first = Run(Pipeline.of(table)).run().totals
    assert (first.read, first.learned, first.waiting) == (900, 300, 300)
    produce(labels, "y", range(290, 500), 150)
    second = Run(Pipeline.of(table)).run().totals
    assert (second.read, second.learned, second.waiting) == (1_110, 500, 100)
    assert second.reasons == {("labels", "duplicate"): 10}
    found = pl.read_parquet(tmp_path / "out" / "part-*.parquet")
    assert found["id"].sort().to_list() == list(range(500))
    assert (
        found["_partition"].str.starts_with(f"rows:{rows}/").all() if "_partition" in found else 1
    )
