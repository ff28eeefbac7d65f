"""A topic that is quiet, on a real broker: with the defaults, every record is answered and nothing
looks stuck."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from tests.broker import Broker, shared_broker
from tests.pipelines.runs.test_service import Engine, samples, started
from tests.pipelines.test_readme import blocks
from tests.waiting import HANG, until

RECORDS = 10


@pytest.fixture
def broker() -> Broker:
    return shared_broker()


def payment(n: int) -> dict[str, Any]:
    return {"amount": 10.0 * n, "age": 20 + n, "country": f"c{n}", "fraud": n % 3 == 0}


def toml(table: dict[str, Any], path: str = "") -> str:
    """A table as a pipeline file has it."""
    values = {k: v for k, v in table.items() if not isinstance(v, dict)}
    lines = [f"[{path}]"] if path else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    for key, value in table.items():
        if isinstance(value, dict):
            lines.append(toml(value, f"{path}.{key}" if path else key))
    return "\n".join(lines)


def newcomers(mode: str, broker: Broker, topic: str, scored: str, folder: Path) -> Path:
    """The README's pipeline with the README's Kafka example in it, as one writes it; and the same
    without a model, which only cleans."""
    pipeline, *others = (tomllib.loads(text) for text in blocks("toml"))
    kafka = next(table for table in others if table.get("source", {}).get("kind") == "kafka")
    made = pipeline | kafka | {"folder": str(folder / "run"), "service": {"port": 0}}
    made["source"] |= {
        "topics": [topic],
        "group_id": topic,
        "bootstrap_servers": broker.bootstrap_servers,
    }
    made["sink"] |= {"topic": scored, "bootstrap_servers": broker.bootstrap_servers}
    del made["export"]  # an endless run has no end to export at
    if mode != "train":
        del made["model"], made["train"], made["scrub"]["categories"]
    made["checkpoint"] = {"interval": "1s"}  # by when the lag is 0
    if mode == "clean once":
        made["sink"]["exactly_once"] = True
        made["checkpoint"] = {"interval": "1h"}  # what is committed sooner is not due to it
    file = folder / "fraud.toml"
    file.write_text(toml(made))
    return file


class Answers:
    """What a reader of committed records has seen so far."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self._consumer = KafkaConsumer(
            bootstrap_servers=broker.bootstrap_servers, isolation_level="read_committed"
        )
        self._consumer.assign([TopicPartition(topic, 0)])
        self._consumer.seek_to_beginning()
        self.values: list[dict[str, Any]] = []

    def __call__(self) -> int:
        """How many, after another look."""
        for records in self._consumer.poll(timeout_ms=100).values():
            self.values += [json.loads(record.value) for record in records]
        return len(self.values)

    def close(self) -> None:
        self._consumer.close()


@contextmanager
def answers(broker: Broker, topic: str) -> Iterator[Answers]:
    made = Answers(broker, topic)
    try:
        yield made
    finally:
        made.close()


def health(made: Engine) -> tuple[int, int]:
    return made.page("/livez").status_code, made.page("/readyz").status_code


def lag(made: Engine, topic: str) -> float | None:
    page = samples(made.page("/metrics").text)
    return page.get(f'headrace_source_lag_records{{partition="{topic}/0"}}')


@pytest.mark.slow(12)
@pytest.mark.parametrize("mode", ["train", "clean once"])
def test_ten_records_are_ten_answers(mode: str, broker: Broker, tmp_path: Path) -> None:
    """One after the other is answered before the next is sent. The lag is 0 only when a reader has
    all answers and the group has all offsets, and the engine is live and ready all the while."""
    topic, scored = broker.topic(), broker.topic()
    file = newcomers(mode, broker, topic, scored, tmp_path)
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    group = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, group_id=topic)
    there = TopicPartition(topic, 0)
    with started(file) as made, answers(broker, scored) as found:
        until(lambda: made.page("/readyz").status_code == 200)
        for n in range(RECORDS):
            producer.send(topic, json.dumps(payment(n)).encode()).get(HANG)
            until(lambda n=n: found() > n)  # type: ignore[misc]
            assert health(made) == (200, 200)
        settled(made, topic)
        assert group.committed(there) == RECORDS
        for n in range(RECORDS, 2 * RECORDS):
            producer.send(topic, json.dumps(payment(n)).encode())
        until(lambda: found() == 2 * RECORDS)
        settled(made, topic)
        assert group.committed(there) == 2 * RECORDS
    producer.close()
    group.close()
    if mode != "train":
        assert [value["country"] for value in found.values] == [f"c{n}" for n in range(2 * RECORDS)]


def settled(made: Engine, topic: str) -> None:
    """Wait for a lag of 0, live and ready."""

    def look() -> bool:
        assert health(made) == (200, 200)
        return lag(made, topic) == 0.0

    until(look)
