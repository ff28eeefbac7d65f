"""Versions are swapped while a topic is answered, on a real broker: each record is answered once,
by one version that was current."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from kafka import KafkaConsumer, TopicPartition

from engine.run import Run
from engine.running.loop import Loop
from engine.types import Batch
from engine.versions.store import Versions
from engine.versions.swapping import SwappingPredictor
from models.serving.predictor import OnnxPredictor
from tests.broker import Broker, shared_broker
from tests.models.serving.published import publish
from tests.waiting import until

RECORDS, BATCH, SWAPS = 3_000, 50, 20
PIPELINE = """
name = "follow"
folder = "{place}/run"
[source]
kind = "kafka"
bootstrap_servers = "{servers}"
topics = "{topic}"
group_id = "{topic}"
stop = "end"
[source.schema]
n = "int64"
a = "float64"
b = "float64"
[loader]
batch_rows = {batch}
[infer]
model = "{place}/versions"
poll_interval = "1ms"
threads = 1
max_slowdown = 1000
[sink]
kind = "kafka"
bootstrap_servers = "{servers}"
topic = "{answers}"
exactly_once = true
"""


@pytest.fixture
def broker() -> Broker:
    return shared_broker()


def consumed(broker: Broker, topic: str) -> list[Any]:
    """The committed records of a topic."""
    consumer = KafkaConsumer(
        bootstrap_servers=broker.bootstrap_servers, isolation_level="read_committed"
    )
    place = TopicPartition(topic, 0)
    consumer.assign([place])
    consumer.seek_to_beginning()
    end = consumer.end_offsets([place])[place]
    records: list[Any] = []

    def all_are_here() -> bool:
        for part in consumer.poll(timeout_ms=100).values():
            records.extend(part)
        return bool(consumer.position(place) >= end)

    until(all_are_here)
    consumer.close()
    return records


@pytest.mark.slow(12)
def test_swaps_while_a_topic_is_answered(broker: Broker, tmp_path: Path) -> None:
    versions = Versions(tmp_path / "versions")
    numbers = [publish(versions, seed, folder=tmp_path) for seed in range(4)]
    versions.promote(numbers[0])
    topic, answers = broker.topic(), broker.topic()
    rng = np.random.default_rng(0)
    rows = [{"n": n, "a": float(rng.normal()), "b": float(rng.normal())} for n in range(RECORDS)]
    broker.produce(topic, [json.dumps(row).encode() for row in rows])
    file = tmp_path / "follow.toml"
    file.write_text(
        PIPELINE.format(
            place=tmp_path, servers=broker.bootstrap_servers, topic=topic, answers=answers,
            batch=BATCH,
        )
    )  # fmt: skip
    current = ["v0"]

    def watch(loop: Loop, batch: Batch) -> None:
        """Move the pointer after every other batch, and go on when that is ready."""
        if loop.totals.batches % 2 == 0 and len(current) <= SWAPS:
            seed = len(current) % 4
            versions.promote(numbers[seed])
            until(lambda: ready(run).startswith(f"v{seed}"))
            current.append(f"v{seed}")

    run = Run(file, watch=watch)
    done = run.run()
    assert (done.totals.predicted, done.totals.rejected) == (RECORDS, 0)
    found = consumed(broker, answers)
    values = [json.loads(record.value) for record in found]
    assert [value["n"] for value in values] == list(range(RECORDS))
    by = [value["model_version"] for value in values]
    assert [name for name, _ in groupby(by)] == current  # each in its turn, and no other
    assert {len(list(rows)) % BATCH for _, rows in groupby(by)} == {0}  # between two batches
    assert not any("headrace.model" in dict(record.headers) for record in found)
    assert run.metrics.model_swaps.labels(outcome="swapped")._value.get() == SWAPS
    frame = pl.DataFrame(rows)
    for seed, number in enumerate(numbers):
        model = OnnxPredictor(OnnxPredictor.Settings(model=str(versions.model(number)), threads=1))
        mine = [value for value in values if value["model_version"] == f"v{seed}"]
        wanted = model.scores(frame[[value["n"] for value in mine]])
        got = [value["prediction"] for value in mine]
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def ready(run: Run) -> str:
    """The version that answers the next batch, as its rows say it."""
    predictor = run.parts.served.predictor
    assert isinstance(predictor, SwappingPredictor)
    return (predictor.pending or predictor.version).model_version
