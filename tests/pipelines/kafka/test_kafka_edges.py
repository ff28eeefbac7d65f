"""Topics as they are found: that the engine itself writes to, with nothing in them, compacted, with
more partitions than there were; and engines that end before anything has come."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, errors
from kafka.admin import NewPartitions, NewTopic

from connectors.kafka import source
from connectors.kafka.reading.connection import Connection
from engine.run import Run
from engine.running.loop import Loop
from engine.types import Batch, Format, Mark, parse_schema
from tests.broker import Broker
from tests.pipelines.conftest import Headrace
from tests.pipelines.kafka.test_kafka_positions import (
    Write,
    broker,
    committed,
    places,
    reads,
    results,
    until_read,
    values,
    write,
)
from tests.pipelines.runs.test_service import started
from tests.waiting import HANG, until

__all__ = ["broker", "results", "write"]  # fixtures
Results = Callable[[], list[tuple[str, int]]]


@pytest.mark.parametrize("table", ["sink", "dead_letters", "pattern", "mix"])
def test_a_topic_that_is_read_is_not_written_to(
    table: str, broker: Broker, write: Write, headrace: Headrace
) -> None:
    """It would be read again and again; also where the broker goes by another name."""
    topic = broker.topic()
    broker.produce(topic, [*values(0, 10), b"broken"])
    file = write([topic])
    text = file.read_text()
    other = broker.bootstrap_servers.replace("localhost", "127.0.0.1")
    if other == broker.bootstrap_servers:
        other = broker.bootstrap_servers.replace("127.0.0.1", "localhost")
    to = f'kind = "kafka"\nbootstrap_servers = "{other}"\ntopic = "{topic}"\n'
    if table == "dead_letters":
        text += f"[dead_letters]\n{to}"
    else:
        head, tail = text.index("[sink]"), text.index("[service]")
        text = f"{text[:head]}[sink]\n{to}{text[tail:]}"
    if table == "pattern":
        text = text.replace(f'topics = ["{topic}"]', f'topics = "^{topic[:6]}.*"')
    if table == "mix":
        head, tail = text.index("[source]"), text.index("[source.schema]")
        one = text[head:tail].replace("[source]", "[source.sources.a]")
        text = f'{text[:head]}[source]\nkind = "mix"\n{one}{text[tail:]}'
    file.write_text(text)
    name = "dead_letters" if table == "dead_letters" else "sink"
    for command in ("check", "run"):
        code, _, err = headrace(command, file)
        assert code == 2
        assert f"[{name}] in {file} writes to topic '{topic}', and [source] reads it" in err


@pytest.mark.parametrize("way", ["", 'group_id = "{}"\nstart = "latest"'])
def test_a_topic_of_no_records_is_no_error(
    way: str, broker: Broker, write: Write, headrace: Headrace
) -> None:
    topic = broker.topic(partitions=2)
    file = write([topic], 'stop = "end"\n' + way.format(topic))
    for _ in range(2):
        code, out, err = headrace("run", file)
        assert code == 0, err
        assert "0 read = 0" in out
        assert "ottleneck" not in out + err


def test_a_compacted_topic_of_tombstones(
    broker: Broker, write: Write, results: Results, headrace: Headrace, tmp_path: Path
) -> None:
    """More keys are deleted than there are: that is what such topics are for, and no reason to
    stop."""
    admin = broker.admin()
    topic = f"compacted-{tmp_path.parent.name}-{tmp_path.name}"[-200:]
    admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"cleanup.policy": "compact"})])
    admin.close()
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    for n in range(100):
        producer.send(topic, json.dumps({"n": n}).encode(), key=f"{n % 50}".encode())
    for n in range(150):
        producer.send(topic, None, key=f"{n}".encode())
    producer.close()
    code, out, err = headrace("run", write([topic], 'stop = "end"'))
    assert code == 0, err
    assert "250 read = 100 cleaned + 150 rejected" in " ".join(out.split())
    assert results() == places(topic, (0, 0, 100))
    parts = (tmp_path / "run" / "dead_letters").glob("*.ndjson")
    letters = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    assert {letter["reason"] for letter in letters} == {"tombstone"}
    assert sorted(letter["_position"] for letter in letters) == list(range(100, 250))


@pytest.mark.parametrize("way", ["", 'group_id = "{}"', 'group_id = "{}"\nsubscribe = true'])
@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_partitions_that_are_added_are_read_from_their_beginning(
    way: str, start: str, broker: Broker, write: Write, results: Results,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whatever `start` says: nobody could have read them before."""
    monkeypatch.setattr(Connection, "metadata_seconds", 0.5)
    topic = broker.topic()
    broker.produce(topic, values(0, 10))
    skipped = 10 if start == "latest" else 0
    added = threading.Event()

    def watch(loop: Loop, batch: Batch) -> None:
        if not added.is_set() and reads(loop) and loop.totals.read >= 10 - skipped:
            added.set()
            admin = broker.admin()
            admin.create_partitions({topic: NewPartitions(3)})
            admin.close()
            for partition in range(3):
                broker.produce(topic, values(10, 20), partition=partition)
        if loop.totals.read >= 40 - skipped:
            loop.stop()

    file = write([topic], f'start = "{start}"\n' + way.format(topic))
    summary = Run(file, watch=watch).run()
    assert summary.totals.read == 40 - skipped
    expected = places(topic, (0, skipped, 20), (1, 0, 10), (2, 0, 10))
    assert results() == expected
    broker.produce(topic, values(0, 5), partition=2)
    until_read(45 - skipped, file)
    assert results() == sorted(expected + places(topic, (2, 10, 15)))


@pytest.mark.parametrize(
    "way", ["", 'group_id = "{}"', 'group_id = "{}"\nsubscribe = true\nsession_timeout = 6']
)
def test_an_engine_that_was_ready_and_is_killed_has_noted_where_it_began(
    way: str, broker: Broker, write: Write, results: Results
) -> None:
    """Ready means that what comes now is read, whatever becomes of the engine."""
    topic = broker.topic(partitions=2)
    broker.produce(topic, values(0, 10))
    file = write([topic], 'start = "latest"\n' + way.format(topic))
    with started(file) as engine:
        until(lambda: engine.page("/readyz").status_code == 200, process=engine.process)
        engine.process.kill()
        engine.process.wait(HANG)
    broker.produce(topic, values(10, 14), partition=0)
    broker.produce(topic, values(10, 13), partition=1)
    until_read(7, file)
    assert results() == places(topic, (0, 10, 14), (1, 0, 3))


@pytest.mark.parametrize("way", ["", "subscribe = true"])
def test_what_the_group_does_not_take_is_told_again_before_anything_is_read(
    way: str, broker: Broker, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then the engine is not ready: killed now, it would leave no trace of where it began."""
    topic = broker.topic()
    broker.produce(topic, values(0, 10))
    busy, commit = [6], KafkaConsumer.commit
    said: set[str | None] = set()

    def refused(self: KafkaConsumer, *arguments: Any, **more: Any) -> Any:
        if busy[0]:
            busy[0] -= 1
            raise errors.CoordinatorNotAvailableError()
        return commit(self, *arguments, **more)

    def watch(loop: Loop, batch: Batch) -> None:
        assert isinstance(loop.source, source.KafkaSource)
        said.add(loop.source.unavailable_reason())
        if reads(loop) and None in said:
            assert committed(broker, topic, topic).offset == 10
            loop.stop()

    monkeypatch.setattr(KafkaConsumer, "commit", refused)
    Run(write([topic], f'start = "latest"\ngroup_id = "{topic}"\n{way}'), watch=watch).run()
    assert "the group has not taken yet where its partitions are begun" in said


def test_starting_over_beside_an_engine_of_the_group_is_told_to_be_in_part(
    broker: Broker, write: Write, results: Results, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The other one goes on with its partition; this one reads what it is given from the start."""
    topic = broker.topic(partitions=2)
    for partition in range(2):
        broker.produce(topic, values(0, 10), partition=partition)
    file = write([topic], f'group_id = "{topic}"\nsubscribe = true')
    first = tmp_path / "first.toml"
    first.write_text(file.read_text().replace('/run"', '/run-1"').replace('/out"', '/out-1"'))
    with started(first) as engine:
        until(lambda: committed(broker, topic, topic) is not None, process=engine.process)

        def watch(loop: Loop, batch: Batch) -> None:
            if loop.totals.read >= 10 and not batch.raw_rows and reads(loop):
                loop.stop()

        summary = Run(file, watch=watch).run(fresh=True)
    assert summary.totals.read == 10
    (number,) = {place for place, _ in results()}
    assert results() == [(number, at) for at in range(10)]
    (said,) = [r for r in caplog.records if r.message.startswith("starting over in part")]
    assert said.__dict__["group"] == topic


@pytest.mark.parametrize(
    ("words", "schema"),
    [
        ({}, {"n": "int64", "s": "string", "t": "datetime", "l": "list[float64]"}),
        ({"paths": {"n": "a.n"}, "record": {"k": "key", "h": "header x"}}, {"n": "int64"}),
        ({"format": "csv", "columns": ("n", "s")}, {"n": "int64", "s": "string"}),
        ({"format": "text"}, {}),
        ({"format": "xml", "paths": {"n": "a/n"}}, {"n": "int64"}),
    ],
)
def test_a_record_is_decoded_before_the_first_one_comes(
    words: dict[str, Any], schema: dict[str, str], broker: Broker
) -> None:
    """Whatever is compiled at its first use is there then; and nothing of it is a row."""
    topic = broker.topic()
    decoded: list[int] = []

    reader = source.KafkaSource(
        source.KafkaSource.Settings(
            bootstrap_servers=broker.bootstrap_servers, topics=(topic,), **words
        )
    )

    class Counting(Format):
        def decode(self, *given: Any) -> Any:
            frame, rejects = reader.format.decode(*given)
            decoded.append(frame.height + sum(len(r) for r in rejects))
            return frame, rejects

    reader._decoding.format = Counting()
    reader.schema(parse_schema(schema))
    reader.seek(Mark())
    assert decoded == [1]
    assert reader.read(10, 1 << 20, 0.1) is None
    assert reader.lag(Mark()) == {f"{topic}/0": 0}
    reader.close()
