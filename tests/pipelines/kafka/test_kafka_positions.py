"""Where reading goes on, on a real broker: quiet partitions, recreated topics, retention, starting
over, a group that is somebody else's. Every record is counted."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import KafkaError

from connectors.kafka.client_internals import rejoin_if_joining
from connectors.kafka.reading.membership import Owners
from engine.artifacts import Summary
from engine.assembly.restoring import try_resume
from engine.run import Run
from engine.running.loop import Loop
from engine.types import Batch, HeadraceError, SharedSource, UserError
from tests.broker import Broker, shared_broker
from tests.pipelines.conftest import Headrace
from tests.pipelines.runs.test_service import started
from tests.waiting import until

PIPELINE = """
name = "positions"
folder = "{folder}/run"
[source]
kind = "kafka"
bootstrap_servers = "{bootstrap_servers}"
topics = [{topics}]
{source}
[source.schema]
n = "int64"
[loader]
batch_rows = 10
max_delay = 0.1
{loader}
[checkpoint]
interval_batches = 1
[sink]
kind = "files"
path = "{folder}/out"
format = "ndjson"
columns = ["_partition", "_position", "n"]
[service]
port = 0
"""
Write = Callable[..., Path]


@pytest.fixture
def broker() -> Broker:
    return shared_broker()


@pytest.fixture
def write(broker: Broker, tmp_path: Path) -> Write:
    """Writes the pipeline's file; `source` and `loader` are further lines."""

    def make(topics: Sequence[str], source: str = "", loader: str = "") -> Path:
        file = tmp_path / "positions.toml"
        file.write_text(
            PIPELINE.format(
                folder=tmp_path, bootstrap_servers=broker.bootstrap_servers, source=source,
                loader=loader,
                topics=", ".join(f'"{topic}"' for topic in topics),
            )
        )  # fmt: skip
        return file

    return make


@pytest.fixture
def results(tmp_path: Path) -> Callable[[], list[tuple[str, int]]]:
    """Reads where the sink's rows come from, in order."""

    def read() -> list[tuple[str, int]]:
        parts = sorted((tmp_path / "out").glob("*.ndjson"))
        rows = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
        return sorted((row["_partition"], row["_position"]) for row in rows)

    return read


def values(start: int, stop: int, pad: int = 0) -> list[bytes]:
    return [json.dumps({"n": n, "pad": "x" * pad}).encode() for n in range(start, stop)]


def places(topic: str, *spans: tuple[int, int, int]) -> list[tuple[str, int]]:
    """(partition, start, stop), each offset of them."""
    return sorted((f"{topic}/{p}", at) for p, a, b in spans for at in range(a, b))


def until_read(rows: int, file: Path) -> Summary:
    """Run until so many rows were read in all; an endless source must not give more."""

    def watch(loop: Loop, batch: Batch) -> None:
        if loop.totals.read >= rows and not batch.raw_rows and reads(loop):
            loop.stop()  # at the first empty batch behind them

    summary = Run(file, watch=watch).run()
    assert summary.totals.read == rows
    return summary


def reads(loop: Loop) -> bool:
    """Whether it is decided where it goes on."""
    assert isinstance(loop.source, SharedSource)
    return loop.source.unavailable_reason() is None


def until_assigned(file: Path) -> None:
    """Run until it is known where every partition starts."""
    Run(file, watch=lambda loop, _: loop.stop() if loop.mark.positions else None).run()


def again(broker: Broker, topic: str, partitions: int = 1) -> None:
    """Delete a topic and make it anew."""
    admin = broker.admin()
    admin.delete_topics([topic])

    def created() -> bool:
        with contextlib.suppress(KafkaError):  # the old one is still being deleted
            admin.create_topics([NewTopic(topic, partitions, 1)])
            return True
        return False

    until(created)
    admin.close()


def committed(broker: Broker, group: str, topic: str, partition: int = 0) -> Any:
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, group_id=group)
    found = consumer.committed(TopicPartition(topic, partition), metadata=True)
    consumer.close()
    return found


# ------------------------------------------------------------------------------------ quiet topics

WAYS = {
    "alone": 'start = "latest"',
    "group": 'start = "latest"\ngroup_id = "{group}"',
    "joined": 'start = "latest"\ngroup_id = "{group}"\nsubscribe = true\nsession_timeout = 6',
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_what_comes_to_a_quiet_partition_while_no_engine_runs_is_read(
    broker: Broker, write: Write, results: Callable[[], list[tuple[str, int]]], tmp_path: Path,
    way: str, end: str,
) -> None:  # fmt: skip
    """The engine has read nothing: with `latest`, only a note of where it started knows that."""
    topic = broker.topic(partitions=2)
    for number in range(2):
        broker.produce(topic, values(0, 10), partition=number)
    file = write([topic], WAYS[way].format(group=topic))
    if end == "stopped":
        until_assigned(file)
    else:
        with started(file) as engine:  # is killed at the end of the block
            noted(engine, broker, topic, way, tmp_path)
    broker.produce(topic, values(10, 17), partition=0)
    broker.produce(topic, values(10, 15), partition=1)
    until_read(12, file)
    assert results() == places(topic, (0, 10, 17), (1, 10, 15))


def noted(engine: Any, broker: Broker, topic: str, way: str, tmp_path: Path) -> None:
    """Wait until both partitions' starts are where a start finds them."""
    if way != "joined":
        until(
            lambda: list((tmp_path / "run" / "checkpoints").glob("*.hrc")),
            process=engine.process,
            what="a checkpoint",
        )
    if way != "alone":
        until(
            lambda: None not in [committed(broker, topic, topic, p) for p in range(2)],
            process=engine.process,
            what="a commit of both",
        )


def test_a_quiet_topic_of_a_mix_is_noted_too(
    broker: Broker, write: Write, results: Callable[[], list[tuple[str, int]]]
) -> None:
    topic = broker.topic()
    broker.produce(topic, values(0, 10))
    file = write([topic])
    text = file.read_text()
    head, tail = text.index("[source]"), text.index("[source.schema]")
    one = text[head:tail].replace("[source]", "[source.sources.a]")
    mixed = '[source]\nkind = "mix"\n' + one + 'start = "latest"\n'
    file.write_text(text[:head] + mixed + text[tail:])
    until_assigned(file)
    broker.produce(topic, values(10, 15))
    until_read(5, file)
    assert results() == [(f"a:{topic}/0", at) for at in range(10, 15)]


# ------------------------------------------------------------------------------ recreated topics


@pytest.mark.parametrize("lost", ["fail", "earliest", "latest"])
@pytest.mark.parametrize("way", ["alone", "group", "joined"])
def test_a_topic_made_anew_between_two_runs(
    broker: Broker, write: Write, results: Callable[[], list[tuple[str, int]]],
    caplog: pytest.LogCaptureFixture, lost: str, way: str,
) -> None:  # fmt: skip
    """Longer than the old one was: by its offsets nothing would be to be seen."""
    topic = broker.topic()
    broker.produce(topic, values(0, 10))
    group = (
        ""
        if way == "alone"
        else f'group_id = "{topic}"\n' + "subscribe = true\n" * (way == "joined")
    )
    file = write([topic], group + f'auto_offset_reset = "{lost}"')
    until_read(10, file)
    again(broker, topic)
    broker.produce(topic, values(0, 30))
    if lost == "fail":
        if way != "joined":  # there only a member may ask where to go on
            with pytest.raises(HeadraceError, match="was deleted and created again"):
                try_resume(Run(file).parts)
        for _ in range(2):  # starting again is not the silent case
            told = f"Topic '{topic}' was deleted and created again: .*"
            do = "set .source. auto_offset_reset to 'earliest' or 'latest'"
            with pytest.raises(HeadraceError, match=told + do):
                until_read(40, file)
        assert results() == places(topic, (0, 0, 10))
        return
    until_read(40 if lost == "earliest" else 10, file)
    (said,) = [r for r in caplog.records if r.message == "records lost"]
    assert said.__dict__["skipped"] == (0 if lost == "earliest" else 30)
    broker.produce(topic, values(30, 35))
    until_read(45 if lost == "earliest" else 15, file)
    new = places(topic, (0, 0 if lost == "earliest" else 30, 35))
    assert results() == sorted(places(topic, (0, 0, 10)) + new)


def test_another_group_is_another_place_to_go_on_at_for_its_members_alone(
    broker: Broker, write: Write
) -> None:
    topic = broker.topic()
    broker.produce(topic, values(0, 10))
    file = write([topic], f'group_id = "{topic}"')
    until_read(10, file)
    try_resume(Run(file, ["source.group_id=another"]).parts)
    with pytest.raises(UserError, match=r"written with another \[source\] subscribe"):
        try_resume(Run(file, ["source.subscribe=true"]).parts)


def test_where_only_the_group_knows_its_commits_hold_the_id(
    broker: Broker, write: Write, tmp_path: Path
) -> None:
    """A commit of a member that had not heard yet arrives in the new topic."""
    topic = broker.topic()
    broker.produce(topic, values(0, 10))
    file = write([topic], f'group_id = "{topic}"\nsubscribe = true')
    until_read(10, file)
    old = committed(broker, topic, topic)
    assert old.offset == 10
    again(broker, topic)
    broker.produce(topic, values(0, 30))
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, group_id=topic)
    consumer.commit({TopicPartition(topic, 0): old})
    consumer.close()
    Run(file).checkpoints.delete_all()
    with pytest.raises(HeadraceError, match="was deleted and created again"):
        until_read(20, file)
    assert Owners.parse(old.metadata).topic_id


@pytest.mark.parametrize("lost", ["fail", "earliest"])
@pytest.mark.parametrize("way", ["alone", "joined"])
def test_a_topic_made_anew_while_it_is_read(
    broker: Broker, write: Write, results: Callable[[], list[tuple[str, int]]], lost: str, way: str
) -> None:
    topic = broker.topic()
    broker.produce(topic, values(0, 10))
    group = f'group_id = "{topic}"\nsubscribe = true\n' * (way == "joined")
    file = write([topic], group + f'auto_offset_reset = "{lost}"')
    made: list[bool] = []

    def watch(loop: Loop, batch: Batch) -> None:
        if loop.totals.read == 10 and not made:
            made.append(True)
            again(broker, topic)
            broker.produce(topic, values(0, 30))
        if loop.totals.read >= 40:
            loop.stop()

    run = Run(file, watch=watch)
    if lost == "fail":
        with pytest.raises(
            HeadraceError, match=f"Topic '{topic}' was deleted.*set .source. auto_offset_reset"
        ):
            run.run()
        for _ in range(2):
            with pytest.raises(HeadraceError, match="deleted and created again"):
                until_read(40, file)
        assert results() == places(topic, (0, 0, 10))
    else:
        assert run.run().totals.read == 40
        assert results() == sorted(places(topic, (0, 0, 10)) + places(topic, (0, 0, 30)))


@pytest.mark.parametrize("way", ["alone", "joined"])
def test_one_of_several_topics_is_deleted_in_mid_run(
    broker: Broker, write: Write, way: str
) -> None:
    kept, gone = broker.topic(), broker.topic()
    for topic in (kept, gone):
        broker.produce(topic, values(0, 10))
    group = f'group_id = "{kept}"\nsubscribe = true\n' * (way == "joined")
    deleted: list[bool] = []

    def watch(loop: Loop, batch: Batch) -> None:
        if loop.totals.read == 20 and not deleted:
            deleted.append(True)
            admin = broker.admin()
            admin.delete_topics([gone])
            admin.close()

    with pytest.raises(HeadraceError) as told:
        Run(write([kept, gone], group), watch=watch).run()
    assert f"Topic '{gone}' was deleted while it was read" in str(told.value)
    assert kept not in str(told.value)


# ------------------------------------------------------------------------------------- retention


@pytest.mark.parametrize("lost", ["fail", "earliest"])
def test_retention_passes_a_running_engine(
    broker: Broker, write: Write, results: Callable[[], list[tuple[str, int]]],
    caplog: pytest.LogCaptureFixture, lost: str,
) -> None:  # fmt: skip
    """Its buffers are small, so that it is far behind when the oldest records go."""
    topic = broker.topic()
    broker.produce(topic, values(0, 200, pad=10_000), each=5)
    file = write(
        [topic],
        f'auto_offset_reset = "{lost}"\nfetch_max_bytes = 65536',
        'memory_budget = "256KiB"',
    )
    passed: list[bool] = []

    def watch(loop: Loop, batch: Batch) -> None:
        if loop.totals.read and not passed:
            passed.append(True)
            admin = broker.admin()
            admin.delete_records({TopicPartition(topic, 0): 150})
            admin.close()
        if loop.totals.read and batch.mark.positions[f"{topic}/0"] == 200:
            loop.stop()

    run = Run(file, watch=watch)
    if lost == "fail":
        with pytest.raises(
            HeadraceError, match=r"has offsets 150 to 200, and .* set .source. auto_offset_reset"
        ):
            run.run()
        assert results() == places(topic, (0, 0, len(results())))
        return
    read = run.run().totals.read
    before = read - 50
    assert 0 < before < 150
    assert results() == places(topic, (0, 0, before), (0, 150, 200))
    (said,) = [r for r in caplog.records if r.message == "records lost"]
    assert said.__dict__["skipped"] == 150 - before
    assert run.metrics.source_skipped_records._value.get() == 150 - before


# ------------------------------------------------------------------------------------ starting over


@pytest.mark.parametrize("way", ["group", "joined"])
def test_fresh_starts_over_whatever_the_group_has_committed(
    broker: Broker, write: Write, results: Callable[[], list[tuple[str, int]]], headrace: Headrace,
    caplog: pytest.LogCaptureFixture, way: str,
) -> None:  # fmt: skip
    topic = broker.topic(partitions=2)
    for number in range(2):
        broker.produce(topic, values(0, 10), partition=number)
    join = "subscribe = true\n" * (way == "joined")
    file = write([topic], f'group_id = "{topic}"\n' + join)
    until_read(20, file)

    def watch(loop: Loop, batch: Batch) -> None:
        if loop.totals.read >= 20 and not batch.raw_rows and reads(loop):
            loop.stop()

    caplog.set_level(logging.INFO)
    summary = Run(file, watch=watch).run(fresh=True)
    assert (summary.totals.read, summary.resumed) == (20, False)
    assert results() == places(topic, (0, 0, 10), (1, 0, 10))
    (said,) = [r for r in caplog.records if r.message == "starting over"]
    assert (said.__dict__["at"], said.__dict__["group"]) == ("earliest", topic)
    assert committed(broker, topic, topic).offset == 10


# ------------------------------------------------------------------------- somebody else's group


@contextlib.contextmanager
def stranger(broker: Broker, group: str, topic: str) -> Iterator[None]:
    """A plain consumer that has joined the group."""
    consumer = KafkaConsumer(
        topic, bootstrap_servers=broker.bootstrap_servers, group_id=group, enable_auto_commit=False
    )

    def assigned() -> object:
        rejoin_if_joining(consumer)
        return consumer.poll(100) or consumer.assignment()

    until(assigned)
    over = threading.Event()

    def poll() -> None:
        while not over.is_set():
            consumer.poll(100)

    thread = threading.Thread(target=poll)
    thread.start()
    yield
    over.set()
    thread.join()
    consumer.close()


def test_a_stranger_in_the_group_is_told_once_and_counted(
    broker: Broker, write: Write, results: Callable[[], list[tuple[str, int]]],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    topic = broker.topic()
    broker.produce(topic, values(0, 50))
    file = write([topic], f'group_id = "{topic}"')
    with stranger(broker, topic, topic):
        run = Run(file, watch=lambda loop, _: loop.stop() if loop.totals.read == 50 else None)
        run.run()
        assert committed(broker, topic, topic) is None
    assert results() == places(topic, (0, 0, 50))
    said = [r.message for r in caplog.records if r.message.startswith("commits fail")]
    assert len(said) == 1
    assert "the group has members that joined it" in said[0]
    assert run.metrics.source_commit_failures._value.get() >= 1
    broker.produce(topic, values(50, 55))
    until_read(55, file)
    assert results() == places(topic, (0, 0, 55))
    assert committed(broker, topic, topic).offset == 55
