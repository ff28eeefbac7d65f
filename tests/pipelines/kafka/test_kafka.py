"""The same pipeline with topics in place of files, on a real broker."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaConnectionError

from connectors.kafka.source import KafkaSource
from engine.run import Run
from engine.running.loop import Loop
from engine.types import Batch, Mark
from tests.broker import Broker, shared_broker
from tests.connectors.conftest import drain
from tests.pipelines.conftest import Headrace, Rows, Small
from tests.pipelines.runs.test_service import Engine, learned
from tests.waiting import HANG

FILES = 'kind = "files"\npath = '


@pytest.fixture
def broker() -> Broker:
    return shared_broker()


@pytest.fixture
def topic(broker: Broker, rows: Rows) -> str:
    """1,000 of the small pipeline's rows as JSON, in one partition."""
    name = broker.topic()
    broker.produce(name, [line.encode() for line in rows(1_000).write_ndjson().splitlines()])
    return name


@pytest.fixture
def on_kafka(small: Small, broker: Broker, tmp_path: Path) -> Callable[..., Path]:
    """The small pipeline's file, reading a topic to its end."""

    def write(topic: str, *changes: tuple[str, str], more: str = "", name: str = "small") -> Path:
        source = f'kind = "kafka"\nbootstrap_servers = "{broker.bootstrap_servers}"\nstop = "end"\n'
        source += f'group_id = "{topic}"\ntopics = '
        return small(Path(topic), (FILES + f'"{topic}"', source + f'"{topic}"'), *changes,
                     more=more, name=name)  # fmt: skip

    return write


def consumed(broker: Broker, topic: str) -> list[Any]:
    """All records of a topic, by kafka-python alone."""
    consumer = KafkaConsumer(
        topic, bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest",
        consumer_timeout_ms=2_000,
    )  # fmt: skip
    found = list(consumer)
    consumer.close()
    return found


def committed(broker: Broker, topic: str) -> int | None:
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, group_id=topic)
    offset: int | None = consumer.committed(TopicPartition(topic, 0))
    consumer.close()
    return offset


def test_training_on_a_topic_is_training_on_its_file(
    topic: str, on_kafka: Callable[..., Path], small: Small, broker: Broker,
    results: Callable[[], pl.DataFrame], rows: Rows, tmp_path: Path,
) -> None:  # fmt: skip
    """Stopped in the middle and started again, too; and the group knows how far it is."""

    def stop(loop: Loop, batch: Batch) -> None:
        if loop.totals.read >= 500:
            loop.stop()

    file = on_kafka(topic)
    first = Run(file, watch=stop).run()
    assert (first.totals.read, first.stopped) == (500, True)
    assert committed(broker, topic) == 500
    second = Run(file).run()
    assert second.resumed
    assert (second.totals.read, second.totals.learned) == (1_000, 1_000)
    assert committed(broker, topic) == 1_000
    by_topic = results()
    assert by_topic["_position"].to_list() == list(range(1_000))
    assert set(by_topic["_partition"]) == {f"{topic}/0"}

    rows(1_000).write_ndjson(tmp_path / "data.ndjson")
    Run(small(tmp_path / "data.ndjson")).run(fresh=True)
    by_file = results()
    assert by_topic["prediction"].equals(by_file["prediction"])


def test_a_topic_is_cleaned_into_another(
    topic: str, on_kafka: Callable[..., Path], broker: Broker, headrace: Headrace
) -> None:
    to = broker.topic(partitions=2)
    file = on_kafka(topic)
    text = file.read_text()
    start, end = text.index("[model]"), text.index("[checkpoint]")
    sink = text.index("[sink]")
    text = text[:start] + text[end:sink]
    text += f'[sink]\nkind = "kafka"\nbootstrap_servers = "{broker.bootstrap_servers}"\n'
    text += f'topic = "{to}"\n'
    file.write_text(text + 'key = "n"\ncolumns = ["_partition", "_position", "n", "a", "key"]\n')
    code, out, err = headrace("run", file)
    assert code == 0, err
    assert "1,000 read = 1,000 cleaned" in out
    found = consumed(broker, to)
    assert len(found) == 1_000
    assert {r.partition for r in found} == {0, 1}
    for record in found:
        row = json.loads(record.value)
        assert record.key == str(row["n"]).encode()
        assert dict(record.headers) == {
            "headrace.pipeline": b"small",
            "headrace.topic": topic.encode(),
            "headrace.partition": b"0",
            "headrace.offset": str(row["n"]).encode(),
        }
        assert row["a"] is not None
    assert sorted(json.loads(r.value)["n"] for r in found) == list(range(1_000))


def test_poison_costs_its_own_record(
    on_kafka: Callable[..., Path], broker: Broker, headrace: Headrace, rows: Rows,
    letters: Callable[[], pl.DataFrame],
) -> None:  # fmt: skip
    poison = [b"", b"{", b"[1]", b'"text"', b'{"a":"x"}', b'{"n":1.5}', b"\xff\xfe", None,
              b'{"n":99999999999999999999}', b'{"y":[1]}']  # fmt: skip
    values: list[bytes | None] = [line.encode() for line in rows(1_000).write_ndjson().splitlines()]
    for i, bad in enumerate(poison):
        values[50 + i * 100] = bad
    topic = broker.topic()
    broker.produce(topic, values)
    code, out, err = headrace("run", on_kafka(topic))
    assert code == 0, err
    assert "1,000 read = 990 learned + 10 rejected" in out.replace("\n", " ")
    found = letters()
    assert found["_position"].to_list() == [50 + i * 100 for i in range(10)]
    assert set(found["_partition"]) == {f"{topic}/0"}
    reasons = {"broken", "wrong_type", "byte_order_mark", "out_of_range", "tombstone"}
    assert set(found["reason"]) == reasons


def test_the_lag_is_on_the_page(topic: str, on_kafka: Callable[..., Path], tmp_path: Path) -> None:
    Run(on_kafka(topic)).run()
    page = (tmp_path / "run" / "metrics.prom").read_text()
    assert f'headrace_source_lag_records{{partition="{topic}/0"}} 0.0' in page


def test_records_from_the_future_are_told_and_not_believed(
    on_kafka: Callable[..., Path], broker: Broker, headrace: Headrace, rows: Rows, tmp_path: Path
) -> None:
    topic = broker.topic()
    lines = [line.encode() for line in rows(200).write_ndjson().splitlines()]
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    soon = int((time.time() + 3_000) * 1000)
    for i, line in enumerate(lines):
        producer.send(topic, line, timestamp_ms=soon if i == 150 else 1_000_000 + i)
    producer.flush()
    producer.close()
    code, _, err = headrace("run", on_kafka(topic))
    assert code == 0
    assert "records are from the future: a producer's clock is wrong, or this one" in err
    page = (tmp_path / "run" / "metrics.prom").read_text()
    (shown,) = re.findall(r"(?m)^headrace_source_event_timestamp_seconds (\S+)", page)
    assert time.time() - 60 < float(shown) <= time.time()


# ---------------------------------------------------------------------------------------- bad input


def test_a_topic_that_is_not_there(
    topic: str, on_kafka: Callable[..., Path], headrace: Headrace
) -> None:
    code, _, err = headrace("run", on_kafka(topic + "x"))
    assert code == 2
    assert f"topic '{topic}x' does not exist at " in err
    assert f"Did you mean '{topic}'?" in err


@pytest.mark.parametrize(
    "name",
    [
        "__init__", "topics", "partitions_for_topic", "beginning_offsets", "end_offsets",
        "committed", "offsets_for_times",
    ],
)  # fmt: skip
def test_a_connection_that_breaks_at_the_start_is_asked_again(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    topic = broker.topic()
    broker.produce(topic, [b'{"a": 1}'] * 10)
    asked, left = getattr(KafkaConsumer, name), [KafkaConnectionError(104, "ECONNRESET")] * 2

    def ask(*args: Any, **settings: Any) -> Any:
        if left:
            raise left.pop()
        return asked(*args, **settings)

    monkeypatch.setattr(KafkaConsumer, name, ask)
    source = KafkaSource(
        KafkaSource.Settings(
            bootstrap_servers=broker.bootstrap_servers,
            topics=(topic,),
            stop="end",
            group_id=topic,
            start=0,
        )
    )
    source.seek(Mark())
    records = drain(source)
    assert sum(map(len, records)) == 10
    assert not left
    source.close()


def test_a_client_that_gives_up_over_a_broker_that_is_away_is_asked_again(broker: Broker) -> None:
    topic = broker.topic()
    broker.produce(topic, [b'{"a": 1}'] * 10)
    source = KafkaSource(
        KafkaSource.Settings(
            bootstrap_servers=broker.bootstrap_servers, topics=(topic,), stop="end", group_id=topic
        )
    )
    source.seek(Mark())
    consumer = source._connection.consumer()
    refused = [KafkaConnectionError(111, "ECONNREFUSED")] * 2
    for name in ("poll", "committed"):
        asked, left = getattr(consumer, name), list(refused)

        def ask(*args: Any, asked: Any = asked, left: Any = left, **settings: Any) -> Any:
            if left:
                raise left.pop()
            return asked(*args, **settings)

        setattr(consumer, name, ask)
    assert source.read(100, 1 << 20, 1.0) is None
    assert source.was_committed({f"{topic}/0": 1}) is False
    assert sum(map(len, drain(source, 100))) == 10
    source.close()


def test_a_broker_that_is_not_there(topic: str, on_kafka: Callable[..., Path]) -> None:
    """In a process of its own: kafka-python leaves the refused sockets to the collector."""
    file = on_kafka(topic)
    command = [sys.executable, "-m", "engine.commands.cli", "run", str(file)]
    command += ["--set", "source.bootstrap_servers=127.0.0.1:1", "--set", "source.timeout=0.5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 1
    assert "at 127.0.0.1:1 failed: " in done.stderr
    assert "is the broker up and its address right?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("lost", "read"), [("fail", None), ("earliest", 400), ("latest", 0)])
def test_offsets_that_are_gone(
    topic: str, on_kafka: Callable[..., Path], broker: Broker, headrace: Headrace,
    lost: str, read: int | None,
) -> None:  # fmt: skip
    """A checkpoint at 500, and retention has taken everything before 600."""

    def stop(loop: Loop, batch: Batch) -> None:
        if loop.totals.read >= 500:
            loop.stop()

    Run(on_kafka(topic), watch=stop).run()
    admin = broker.admin()
    admin.delete_records({TopicPartition(topic, 0): 600})
    admin.close()
    code, out, err = headrace("run", on_kafka(topic), "--set", f"source.auto_offset_reset={lost}")
    if read is None:
        assert code == 1
        assert f"{topic}/0 has offsets 600 to 1000, and the next offset is 500" in err
        assert (
            "set [source] auto_offset_reset to 'earliest' or 'latest' to continue with the "
            "records that exist" in err
        )
    else:
        assert code == 0
        assert '"message": "records lost"' in err
        assert f"{500 + read:,} read" in out


# ------------------------------------------------------------------------------------------ failure

LIVE = """
name = "live"
folder = "{folder}"
[source]
kind = "kafka"
bootstrap_servers = "{bootstrap_servers}"
topics = "{topic}"
group_id = "live"
[source.schema]
a = "float64"
y = "float64"
[loader]
batch_rows = 64
max_delay = 0.2
[scrub.standardize]
columns = ["a"]
[model]
target = "y"
numeric = ["a"]
layers = [8]
[train]
replay_steps = 1
threads = 1
[checkpoint]
interval = 1
[service]
port = 0
"""


def until_learned(made: Engine, rows: int) -> None:
    learned(made, rows - 1)
