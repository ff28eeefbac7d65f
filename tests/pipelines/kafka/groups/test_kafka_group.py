"""Engines that share a topic, in one process: what moves, what stays, and what is refused."""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kafka import (
    ConsumerGroupMetadata,
    KafkaConsumer,
    KafkaProducer,
    OffsetAndMetadata,
    TopicPartition,
)
from kafka.admin import NewPartitions

from connectors.kafka.producer import TopicSettings, VerifiedProducer
from connectors.kafka.reading.membership import Owners
from connectors.kafka.sink import KafkaSink
from engine.run import Run
from engine.running.loop import Loop
from engine.running.totals import Totals
from engine.types import Batch, UserError
from tests.broker import Broker, shared_broker
from tests.crash.kit import account, caught_up
from tests.pipelines.conftest import Headrace
from tests.waiting import HANG, until

PIPELINE = """
name = "shared"
folder = "{folder}"
[source]
kind = "kafka"
bootstrap_servers = "{bootstrap_servers}"
topics = "{topic}"
group_id = "{group}"
{source}
[source.schema]
n = "int64"
a = "float64"
y = "float64"
[loader]
batch_rows = 100
max_delay = 0.05
{loader}
[checkpoint]
interval = 0.2
{more}
"""
TRAIN = """
[scrub.standardize]
columns = ["a"]
[model]
target = "y"
numeric = ["a"]
layers = [4]
[train]
replay_steps = 1
threads = 1
"""


@pytest.fixture
def broker() -> Broker:
    return shared_broker()


@pytest.fixture
def pipeline(tmp_path: Path, broker: Broker) -> Callable[..., Path]:
    """Writes a pipeline file that joins the topic's group."""

    def write(name: str, topic: str, more: str = "", source: str = "subscribe = true",
            loader: str = "",
              group: str = "") -> Path:  # fmt: skip
        file = tmp_path / f"{name}.toml"
        text = PIPELINE.format(
            folder=tmp_path / name, bootstrap_servers=broker.bootstrap_servers, topic=topic,
            more=more,
            group=group or topic, source=source, loader=loader,
        )  # fmt: skip
        file.write_text(text)
        return file

    return write


def rows(start: int, stop: int) -> list[bytes]:
    return [json.dumps({"n": n, "a": n % 7, "y": n % 5}).encode() for n in range(start, stop)]


def fill(broker: Broker, topic: str, partitions: int, n: int = 500) -> None:
    for partition in range(partitions):
        broker.produce(topic, rows(0, n), partition=partition, each=50)


@contextmanager
def running(file: Path, watch: Callable[[Loop, Batch], None] | None = None) -> Iterator[Ending]:
    """A run in a thread, stopped in good order at the end; what it raised is raised here."""
    run = Ending(file, watch=watch)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            run.run()
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)
        finally:
            run.ended.set()

    loop = run.loop
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield run
    finally:
        loop.stop()
        thread.join(HANG)
        assert not thread.is_alive()
    if failed:
        raise failed[0]


def state(file: Path) -> dict[str, Any]:
    run = Run(file)
    found = run.checkpoints.load(run.identity)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "source", ["subscribe = true", 'subscribe = true\ngroup_instance_id = "me"', ""]
)
def test_rows_of_an_aborted_transaction_are_done_again(
    broker: Broker, pipeline: Callable[..., Path], source: str
) -> None:
    """Also by a member without a name: it keeps its partitions, and only the group knows which of
    its rows count."""
    topic, sink = broker.topic(2), broker.topic()
    for partition in range(2):
        broker.produce(topic, rows(0, 400), partition=partition, each=50)
    out = (
        f'[sink]\nkind = "kafka"\nbootstrap_servers = "{broker.bootstrap_servers}"\n'
        f'topic = "{sink}"\nexactly_once = true\ncommit_interval = "1h"\n'
    )
    aborted: list[int] = []

    def watch(loop: Loop, batch: Batch) -> None:
        saved = loop.saver.mark.positions.values()
        if not aborted and any(saved) and loop.saver.unsaved:  # rows are in a transaction
            aborted.append(loop.totals.read)
            own = loop.outputs.sinks["sink"]
            assert isinstance(own, KafkaSink)
            other = KafkaProducer(
                bootstrap_servers=broker.bootstrap_servers,
                transactional_id=own.delivery.transaction,
            )
            other.init_transactions()  # which ends what is open under that name
            other.close()
        if list(saved) == [400, 400]:
            loop.stop()

    file = pipeline("fenced", topic, out, source=source)
    file.write_text(file.read_text().replace("interval = 0.2", "interval_batches = 3"))
    run = Run(file, watch=watch)
    done = run.run()
    assert aborted
    found = account(broker.bootstrap_servers, [topic], sink)
    assert found.exactly_once, str(found)
    assert (found.read, done.totals.read, done.totals.cleaned) == (800, 800, 800)


def test_offsets_that_a_group_refused_are_not_committed_later(broker: Broker) -> None:
    """With the next transaction, of other partitions: rows before them were aborted."""
    topic, group = broker.topic(2), uuid.uuid4().hex
    settings = TopicSettings(bootstrap_servers=broker.bootstrap_servers, topic=topic)
    refused, taken = (TopicPartition(topic, partition) for partition in range(2))
    producer = VerifiedProducer(settings, "[sink]")
    producer.transaction = group
    stranger = ConsumerGroupMetadata(group, generation_id=7, member_id="gone")
    offsets = {refused: OffsetAndMetadata(5, "", -1), taken: OffsetAndMetadata(4, "", -1)}
    assert not producer.commit(offsets, stranger)
    assert producer.commit({taken: OffsetAndMetadata(3, "", -1)}, ConsumerGroupMetadata(group))
    producer.close()
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, group_id=group)
    assert [consumer.committed(tp) for tp in (refused, taken)] == [None, 3]
    consumer.close()


def owners(broker: Broker, group: str, topic: str, partition: int) -> Owners:
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, group_id=group)
    found = consumer.committed(TopicPartition(topic, partition), metadata=True)
    consumer.close()
    return Owners.parse(found.metadata)


@pytest.mark.slow(15)
def test_two_engines_share_and_one_takes_over(
    broker: Broker, pipeline: Callable[..., Path]
) -> None:
    topic, sink = broker.topic(4), broker.topic()
    out = (
        f'[sink]\nkind = "kafka"\nbootstrap_servers = "{broker.bootstrap_servers}"\ntopic = '
        f'"{sink}"\n'
    )
    files = [pipeline(name, topic, out) for name in ("one", "two")]
    fill(broker, topic, 4)
    with running(files[0]) as one:
        until(lambda: len(one.loop.mark.positions) == 4)
        with running(files[1]) as two:
            until(lambda: len(two.loop.mark.positions) == len(one.loop.mark.positions) == 2)
            assert not two.loop.mark.positions.keys() & one.loop.mark.positions.keys()
            for partition in range(4):
                broker.produce(topic, rows(500, 600), partition=partition)
            caught_up(broker.bootstrap_servers, topic, [topic])
            assert two.loop.totals.read >= 200
        until(lambda: len(one.loop.mark.positions) == 4)
        for partition in range(4):
            broker.produce(topic, rows(600, 650), partition=partition)
        caught_up(broker.bootstrap_servers, topic, [topic])
        assert one.metrics.source_rebalances._value.get() >= 3
    found = account(broker.bootstrap_servers, [topic], sink)
    assert found.read == 4 * 650
    assert found.exactly_once, str(found)  # every hand-over was in good order


@pytest.mark.slow(14)
def test_a_moved_partition_stays_in_the_weights_of_who_learned_it(
    broker: Broker, pipeline: Callable[..., Path]
) -> None:
    """Two training engines; one leaves, the other goes on behind it, and when it comes back it
    knows that its checkpoint counts."""
    topic = broker.topic(2)
    files = {
        name: pipeline(
            name,
            topic,
            TRAIN,
            f'subscribe = true\ngroup_instance_id = "{name}"\nsession_timeout = 6',
        )
        for name in ("anna", "bert")
    }
    fill(broker, topic, 2)
    with running(files["anna"]) as anna:
        until(lambda: anna.loop.totals.learned == 1_000)
        with running(files["bert"]) as bert:
            until(lambda: len(bert.loop.mark.positions) == len(anna.loop.mark.positions) == 1)
            for partition in range(2):
                broker.produce(topic, rows(500, 600), partition=partition)
            until(lambda: bert.loop.totals.learned == 100 and anna.loop.totals.learned == 1_100)
    (moved,) = state(files["bert"])["positions"]
    number = int(moved.rpartition("/")[2])
    assert owners(broker, topic, topic, number).owners == (("bert", 500), ("anna", 0))
    assert owners(broker, topic, topic, 1 - number).owners == (("anna", 0),)
    assert [Totals.restore(state(f)["totals"]).learned for f in files.values()] == [1_100, 100]
    # Static members that are gone for longer than their session: bert is first to come back.
    with running(files["bert"]) as bert:
        until(lambda: len(bert.loop.mark.positions) == 2)
        for partition in range(2):
            broker.produce(topic, rows(600, 650), partition=partition)
        until(lambda: bert.loop.totals.learned == 200)
    with running(files["anna"]) as anna:
        until(lambda: anna.loop.resumed)  # the mark is there before the weights are
        until(lambda: anna.loop.mark.positions)
        assert anna.loop.totals.learned == 1_100  # nothing of bert's, nothing twice
    assert sum(Totals.restore(state(f)["totals"]).learned for f in files.values()) == 1_300


@pytest.mark.slow(14)
def test_a_checkpoint_that_the_group_has_not_counted_is_passed_over(
    broker: Broker, pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    """As when the process is killed between its checkpoint and its commit, and another takes
    over."""
    topic = broker.topic(1)
    anna = pipeline(
        "anna", topic, TRAIN, 'subscribe = true\ngroup_instance_id = "anna"\nsession_timeout = 6'
    )
    bert = pipeline(
        "bert", topic, TRAIN, 'subscribe = true\ngroup_instance_id = "bert"\nsession_timeout = 6'
    )
    broker.produce(topic, rows(0, 300))
    with running(anna) as run:
        until(lambda: run.loop.totals.learned == 300)
    counted = state(anna)
    saver = Run(anna)
    newer = {**counted, "positions": {f"{topic}/0": 400}}
    saver.checkpoints.save(newer, saver.identity)
    broker.produce(topic, rows(300, 500))
    with running(bert) as run:
        until(lambda: run.loop.totals.learned == 200)
    with running(anna) as run:
        until(lambda: run.loop.resumed)
        until(lambda: run.loop.mark.positions == {f"{topic}/0": 500})
        assert run.loop.totals.learned == 300


@pytest.mark.parametrize("source", ["subscribe = true", ""])
def test_topics_by_pattern_and_partitions_that_are_added(
    source: str, broker: Broker, pipeline: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone and in a group: what comes later is read from its beginning."""
    monkeypatch.setattr("connectors.kafka.reading.connection.Connection.metadata_seconds", 0.5)
    topic = broker.topic(1)
    file = pipeline("grown", f"^{topic[:-1]}.$", "", f'{source}\nstart = "latest"', group=topic)
    with running(file) as run:
        until(lambda: run.source.lag(run.loop.mark))
        broker.produce(topic, rows(0, 50))
        until(partial(_cleaned, run, 50))
        admin = broker.admin()
        admin.create_partitions({topic: NewPartitions(2)})
        admin.close()
        broker.produce(topic, rows(0, 70), partition=1)
        until(partial(_at, run, f"{topic}/1", 70))
    assert run.loop.totals.cleaned == 120


def _cleaned(run: Run, n: int) -> bool:
    return run.loop.totals.cleaned >= n


def _at(run: Run, partition: str, position: int) -> bool:
    return run.loop.mark.positions.get(partition) == position


# ---------------------------------------------------------------------------------------- bad input


def test_what_keeps_a_state_needs_a_name(
    broker: Broker, pipeline: Callable[..., Path], headrace: Headrace
) -> None:
    code, _, err = headrace("run", pipeline("nameless", broker.topic(), TRAIN))
    assert code == 2
    assert "give this engine a fixed name in its group, [source] group_instance_id" in err


def test_join_needs_a_group_and_no_end(
    broker: Broker, pipeline: Callable[..., Path], headrace: Headrace
) -> None:
    file = pipeline("wrong", broker.topic(), "", 'subscribe = true\nstop = "end"')
    code, _, err = headrace("run", file)
    assert code == 2
    assert "[source] subscribe shares an endless stream" in err


def test_a_group_that_shares_in_another_way(
    broker: Broker, pipeline: Callable[..., Path], headrace: Headrace
) -> None:
    topic = broker.topic()
    first = pipeline("first", topic)
    second = pipeline("second", topic, "", 'subscribe = true\nassignor = "range"')
    with running(first) as run:
        until(lambda: run.loop.mark.positions)
        code, _, err = headrace("run", second)
    assert code == 2
    assert f"Group '{topic}' has members with another assignor than 'range'" in err


def test_two_engines_of_one_name(
    broker: Broker, pipeline: Callable[..., Path], headrace: Headrace
) -> None:
    topic = broker.topic()
    source = 'subscribe = true\ngroup_instance_id = "twin"\nsession_timeout = 6'
    first, second = (pipeline(name, topic, "", source) for name in ("first", "second"))
    with (
        pytest.raises(UserError, match=r"Another engine has joined group .* as member 'twin'"),
        contextlib.ExitStack() as stack,
    ):
        twins(stack, first, second)


def twins(stack: contextlib.ExitStack, first: Path, second: Path) -> None:
    """Start one, then the other, and see the first one end."""
    run = stack.enter_context(running(first))
    until(lambda: run.loop.mark.positions)
    with running(second):
        until(run.ended.is_set)


class Ending(Run):
    """A run that says when it is over."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.ended = threading.Event()
