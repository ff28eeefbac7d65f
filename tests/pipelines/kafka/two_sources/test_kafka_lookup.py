"""A lookup's table from a compacted topic, on a real broker: it follows the topic, and an engine
that is killed goes on with what the topic holds by then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewPartitions, NewTopic

from tests.broker import Broker, shared_broker
from tests.forks import Command
from tests.pipelines.conftest import Headrace
from tests.pipelines.kafka.groups.test_kafka_group import running
from tests.pipelines.kafka.test_kafka_quiet import toml
from tests.waiting import HANG, until


class Topics:
    """The rows, the table and the results of one pipeline, on a broker."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.rows, self.out = broker.topic(), broker.topic()
        self.table = f"{self.rows}-table"
        admin = broker.admin()
        compacted = {"cleanup.policy": "compact"}
        admin.create_topics([NewTopic(self.table, 2, 1, topic_configs=compacted)])
        admin.close()
        self._producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
        self._consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers)
        self._consumer.assign([TopicPartition(self.out, 0)])
        self._consumer.seek_to_beginning()
        self.results: dict[int, Any] = {}
        """Number of a row -> the value it got last."""
        self.sent = 0
        kafka = {"kind": "kafka", "bootstrap_servers": broker.bootstrap_servers}
        pipeline = {
            "name": "enriched",
            "folder": str(folder / "run"),
            "source": {
                **kafka, "topics": [self.rows], "schema": {"n": "int64", "who": "string"},
            },
            "scrub": {
                "people": {
                    "kind": "lookup", "by": {"who": "id"}, "columns": ["x"],
                    "source": {
                        **kafka, "topics": [self.table], "schema": {"x": "int64"},
                        "record": {"id": "key"},
                    },
                }
            },
            "sink": {**kafka, "topic": self.out, "columns": ["n", "x"]},
            "checkpoint": {"interval_batches": 1},
        }  # fmt: skip
        self.file = folder / "enriched.toml"
        self.file.write_text(toml(pipeline))

    def change(self, **values: int | bytes | None) -> None:
        """Write records of the table, and wait until they are there."""
        for key, x in values.items():
            value = x if x is None or isinstance(x, bytes) else json.dumps({"x": x}).encode()
            self._producer.send(self.table, value, key=key.encode())
        self._producer.flush()

    def ask(self, *keys: str) -> list[Any]:
        """Send a row for each key; what they got."""
        first = self.sent
        for who in keys:
            row = json.dumps({"n": self.sent, "who": who}).encode()
            self._producer.send(self.rows, row, partition=0)
            self.sent += 1
        self._producer.flush()
        until(lambda: self._read() and set(range(first, self.sent)) <= set(self.results))
        return [self.results[n] for n in range(first, self.sent)]

    def _read(self) -> bool:
        for records in self._consumer.poll(timeout_ms=100).values():
            for record in records:
                row = json.loads(record.value)
                self.results[row["n"]] = row["x"]
        return True

    def close(self) -> None:
        self._producer.close()
        self._consumer.close()


@pytest.fixture
def topics(tmp_path: Path) -> Iterator[Topics]:
    topics = Topics(shared_broker(), tmp_path)
    yield topics
    topics.close()


def test_it_follows_its_topic_and_an_engine_that_was_killed_goes_on(topics: Topics) -> None:
    topics.change(a=1, b=2, **{f"k{i}": i for i in range(500)})
    with Command(["run", str(topics.file)]) as engine:
        try:
            assert topics.ask("a", "b", "c", "k7", "k499") == [1, 2, None, 7, 499]
            topics.change(a=3, b=None, c=4)
            until(lambda: topics.ask("a", "b", "c") == [3, None, 4], process=engine)
        finally:
            engine.kill()
            engine.wait(HANG)
    topics.change(a=5, c=b"{", d=6)
    with Command(["run", str(topics.file)]) as engine:
        try:
            # Nothing is to be waited for: the first row sees all that was there.
            assert topics.ask("a", "b", "c", "d", "k7") == [5, None, None, 6, 7]
        finally:
            engine.terminate()
            assert engine.wait(HANG) == 0


def test_partitions_that_are_added_are_read_from_their_beginning(
    topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it runs, and by the next run."""
    monkeypatch.setattr("connectors.kafka.reading.connection.Connection.metadata_seconds", 0.5)
    broker = shared_broker()
    topics.change(a=1)
    with running(topics.file):
        assert topics.ask("a", "k") == [1, None]
        admin = broker.admin()
        admin.create_partitions({topics.table: NewPartitions(3)})
        admin.close()
        broker.produce(topics.table, [b'{"x": 7}', b'{"x": 8}'], partition=2)  # their key is k
        until(lambda: topics.ask("a", "k") == [1, 8])
        topics.change(a=2)
        broker.produce(topics.table, [b'{"x": 9}'], partition=2)
        until(lambda: topics.ask("a", "k") == [2, 9])
    with running(topics.file):
        assert topics.ask("a", "k") == [2, 9]


def test_check_says_what_is_wrong_with_the_topic(topics: Topics, headrace: Headrace) -> None:
    topics.change(a=1, b=b"{")
    topics._producer.send(topics.rows, json.dumps({"n": 0, "who": "a"}).encode(), partition=0)
    topics._producer.flush()
    code, out, err = headrace("check", topics.file)
    assert code == 2, err
    assert "[scrub.people.source] had 1 unreadable record" in out.replace("\n", " ")
    missing = f'scrub.people.source.topics=["{topics.table}-no"]'
    code, _, err = headrace("check", topics.file, "--set", missing)
    assert code == 2
    assert f"{topics.table}-no" in err
    assert "[scrub.people.source]" in err
