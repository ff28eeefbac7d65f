"""An exactly-once engine is SIGKILLed at each step of a commit; each row counts once.

The steps: the checkpoint is saved, the offsets are in the transaction, the transaction is
committed.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition

from engine.run import Run
from engine.running.loop import Loop
from engine.types import Batch
from tests.broker import Broker, shared_broker
from tests.crash.killed import Killed
from tests.crash.kit import account
from tests.pipelines.conftest import Headrace
from tests.waiting import HANG

PIPELINE = """
name = "killed"
folder = "{folder}"
[source]
kind = "kafka"
bootstrap_servers = "{servers}"
topics = "{topic}"
group_id = "{topic}"
session_timeout = 6
{source}
[source.schema]
n = "int64"
[loader]
batch_rows = 100
max_delay = 0.05
[checkpoint]
interval_batches = 3
[sink]
kind = "kafka"
bootstrap_servers = "{servers}"
topic = "{sink}"
exactly_once = true
commit_interval = "1h"
transaction_timeout = 5
"""
WAYS = {
    "nameless": "subscribe = true",
    "named": 'subscribe = true\ngroup_instance_id = "me"',
    "alone": "",
}
STEPS = {  # the call before which it is killed, its number, whether the checkpoint is ahead then
    "saved": ("connectors.kafka.producer:VerifiedProducer.commit", 3, True),
    "offsets sent": ("kafka:KafkaProducer.commit_transaction", 2, True),
    "committed": ("engine.running.saving.checkpoint:Checkpoints.save", 3, False),
}
ROWS = 400


@pytest.fixture
def broker() -> Broker:
    return shared_broker()


@pytest.fixture
def topics(broker: Broker) -> tuple[str, str]:
    """A topic of rows, and the sink's."""
    topic = broker.topic(2)
    for partition in range(2):
        rows = [json.dumps({"n": n}).encode() for n in range(ROWS)]
        broker.produce(topic, rows, partition=partition)
    return topic, broker.topic()


@pytest.fixture
def pipeline(broker: Broker, topics: tuple[str, str], tmp_path: Path) -> Callable[[str], Path]:
    """Writes a pipeline file."""

    def write(source: str) -> Path:
        file = tmp_path / "killed.toml"
        text = PIPELINE.format(
            folder=tmp_path, servers=broker.bootstrap_servers, topic=topics[0], sink=topics[1],
            source=source,
        )  # fmt: skip
        file.write_text(text)
        return file

    return write


def stop_at_the_end(loop: Loop, _: Batch) -> None:
    """Stop once all rows are committed."""
    if list(loop.saver.mark.positions.values()) == [ROWS, ROWS]:
        loop.stop()


def killed(file: Path, target: str, number: int) -> None:
    """Run until it is killed there."""
    process = Killed([target, str(number), "run", str(file)], stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == -signal.SIGKILL, errors.decode()


def is_ahead(file: Path, broker: Broker, topic: str) -> bool:
    """Whether the newest checkpoint is ahead of what the group has committed."""
    run = Run(file)
    state = run.checkpoints.load(run.identity)
    assert state is not None
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, group_id=topic)
    places = [TopicPartition(topic, partition) for partition in range(2)]
    committed = sum(consumer.committed(place) for place in places)
    consumer.close()
    return bool(sum(state["positions"].values()) > committed)


@pytest.mark.slow(4)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("way", WAYS)
def test_each_row_counts_once_after_a_kill(
    way: str, step: str, broker: Broker, topics: tuple[str, str], pipeline: Callable[[str], Path]
) -> None:
    topic, sink = topics
    file = pipeline(WAYS[way])
    target, number, ahead = STEPS[step]
    killed(file, target, number)
    assert is_ahead(file, broker, topic) == ahead
    run = Run(file, watch=stop_at_the_end)
    totals = run.run().totals
    assert run.loop.resumed
    assert (totals.read, totals.cleaned) == (2 * ROWS, 2 * ROWS)
    found = account(broker.bootstrap_servers, [topic], sink)
    assert found.exactly_once, str(found)
    assert found.read == 2 * ROWS


def test_offsets_that_were_set_back_are_not_guessed_at(
    broker: Broker, topics: tuple[str, str], pipeline: Callable[[str], Path], headrace: Headrace
) -> None:
    """No checkpoint fits them; under another path the engine goes on from them."""
    topic, _ = topics
    file = pipeline(WAYS["nameless"])
    sets = ["checkpoint.interval_batches=1"]
    Run(file, sets, watch=stop_at_the_end).run()
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, group_id=topic)
    back = {TopicPartition(topic, n): OffsetAndMetadata(50, "", -1) for n in range(2)}
    consumer.commit(back)
    consumer.close()
    code, _, err = headrace("run", file)
    assert code == 1
    assert "ends where the group's committed offsets are: were they reset" in err
    assert (
        "To go on from them, without what the checkpoints hold, set another [checkpoint] pa" in err
    )
    sets.append(f"checkpoint.path={file.parent}/again")
    assert Run(file, sets, watch=stop_at_the_end).run().totals.read == 2 * (ROWS - 50)
