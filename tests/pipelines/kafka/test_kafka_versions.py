"""Versions are swapped while a topic is answered, on a real broker: each record is answered once,
by one version that was current."""

from __future__ import annotations

import json
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from kafka import KafkaConsumer, TopicPartition

from engine.observing.metrics import SWAP_OUTCOMES
from engine.run import Run
from engine.running.loop import Loop
from engine.types import Batch
from engine.versions.pointers import Pointer
from engine.versions.store import Versions
from engine.versions.swapping import SwappingPredictor
from engine.versions.version import Details
from models.serving.predictor import OnnxPredictor
from tests.broker import Broker, shared_broker
from tests.models.serving.published import network, publish
from tests.size import FULL
from tests.waiting import until

RECORDS, BATCH, SWAPS = 3_000, 50, 20
BAD = ("non_finite", "other_schema", "torn")
"""Why a version cannot serve."""
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
        """Move the pointer after every other batch, and go on when that is ready: not before the
        first rows, without which a version waits."""
        if loop.totals.predicted and loop.totals.batches % 2 == 0 and len(current) <= SWAPS:
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


@pytest.mark.full
@pytest.mark.slow(300 if FULL else 15)
def test_hundreds_of_versions_some_of_them_bad_while_a_topic_is_answered(
    broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After every batch another version comes, one in four that cannot serve: with NaN in its
    weights, of another schema, torn. Each record is answered once, by the version before it where
    that is bad; each bad one is counted and told once."""
    count = 500 if FULL else 12
    versions = Versions(tmp_path / "versions")
    publish(versions, 0, folder=tmp_path)
    topic, answers = broker.topic(), broker.topic()
    rng = np.random.default_rng(0)
    values = rng.normal(size=((count + 4) * BATCH, 2)).tolist()
    rows = [{"n": n, "a": a, "b": b} for n, (a, b) in enumerate(values)]
    broker.produce(topic, [json.dumps(row).encode() for row in rows])
    file = tmp_path / "follow.toml"
    file.write_text(
        PIPELINE.format(
            place=tmp_path, servers=broker.bootstrap_servers, topic=topic, answers=answers,
            batch=BATCH,
        )
    )  # fmt: skip
    expected, bad = ["v0"], Counter[str]()
    kinds = [BAD[n // 4 % len(BAD)] if n % 4 == 3 else "" for n in range(count + 1)]
    models = [model_of(n, kind, tmp_path / f"{n}.onnx") for n, kind in enumerate(kinds)]

    def watch(loop: Loop, batch: Batch) -> None:
        """Publish the next version, and go on when it is ready or refused."""
        seed = len(expected)
        if seed > count or not len(batch):
            return
        kind = kinds[seed]
        number = published(versions, seed, kind, models[seed])
        if kind:
            bad[kind] += 1
            until(lambda: refused(run)[kind] == bad[kind], what=f"the refusal of {number}")
            expected.append(expected[-1])
        else:
            until(lambda: ready(run) == f"v{seed}", what=f"version {number}")
            expected.append(f"v{seed}")

    run = Run(file, watch=watch)
    done = run.run()
    assert (done.totals.predicted, done.totals.rejected) == (len(rows), 0)
    found = [json.loads(record.value) for record in consumed(broker, answers)]
    assert [row["n"] for row in found] == list(range(len(rows)))
    by = [row["model_version"] for row in found]
    assert by[::BATCH][: len(expected)] == expected
    assert sum(by[i] != by[i - 1] for i in range(1, len(by))) == count - bad.total()
    assert refused(run) == bad
    assert set(bad) == set(BAD)
    told = [r.getMessage() for r in caplog.records if "is not swapped in" in r.getMessage()]
    assert len(told) == len(set(told)) == bad.total()


def model_of(seed: int, kind: str, path: Path) -> Path:
    """Write a network that is bad in this way, or good."""
    changes: dict[str, Any] = {
        "non_finite": {"change": not_a_number},
        "other_schema": {"task": "several"},
    }
    return network(path, seed, **changes.get(kind, {}))


def published(versions: Versions, seed: int, kind: str, path: Path) -> int:
    """Add a version, tear it if it is to be torn, and point to it; return its number."""
    number = versions.add(path, Details(model_version=f"v{seed}")).number
    if kind == "torn":
        with versions.model(number).open("r+b") as file:
            file.truncate(100)
    versions.pointer.write(Pointer(number=number))
    versions.prune(5)
    return number


def not_a_number(model: Any) -> None:
    """Make the weights of a model NaN."""
    for weights in model.graph.initializer:
        if weights.data_type == onnx.TensorProto.FLOAT and len(weights.dims) == 2:
            nan = np.full(tuple(weights.dims), np.nan, np.float32)
            weights.CopyFrom(onnx.numpy_helper.from_array(nan, weights.name))


def refused(run: Run) -> Counter[str]:
    """Why versions were refused, and how many, as on /metrics."""
    swaps = run.metrics.model_swaps
    counts = {o: int(swaps.labels(outcome=o)._value.get()) for o in SWAP_OUTCOMES}
    return Counter({o: n for o, n in counts.items() if n and o != "swapped"})


def ready(run: Run) -> str:
    """The version that answers the next batch, as its rows say it."""
    predictor = run.parts.served.predictor
    assert isinstance(predictor, SwappingPredictor)
    return (predictor.pending or predictor.version).model_version
