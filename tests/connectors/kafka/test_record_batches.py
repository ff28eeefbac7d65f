"""Records that are written from columns equal those that kafka-python writes one by one."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.cluster import ClusterMetadata
from kafka.net.manager import KafkaConnectionManager
from kafka.partitioner import default
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from connectors.formats.kernels import rows
from connectors.kafka.client_internals import ProducedBatch
from connectors.kafka.producer import ProducerSettings, VerifiedProducer
from connectors.kafka.record_batches import (
    OVERHEAD,
    OutgoingRecords,
    encode_headers,
    murmur2,
    plan_batches,
)
from engine.types import HeadraceError, Values
from tests.broker import Broker, shared_broker, skip_without_tools
from tests.crash import kit
from tests.size import examples
from tests.waiting import HANG, until

BYTES = st.none() | st.binary(max_size=200)
HEADERS = st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=80)), max_size=3)
RECORD = st.tuples(BYTES, BYTES, st.none() | st.binary(max_size=70), HEADERS, st.integers(0, 2**45))
"""Key, value, header "h", headers that the record had, time."""
ALWAYS = [("pipeline", b"p"), ("ö", b"")]


def binary(values: list[bytes | None]) -> pl.Series:
    return pl.Series(values, dtype=pl.Binary)


def own(headers: list[list[tuple[str, bytes]]]) -> Values:
    """As they were read: what `encode_headers` writes for one record each, with others around
    it."""
    made: list[bytes | None] = []
    for head in headers:
        made += encode_headers(1, head, {}).take(np.arange(1)) if head else [None]
    return rows.values(binary(made))


def outgoing(records: list[Any]) -> OutgoingRecords:
    keys, values, others, headers, times = map(list, zip(*records, strict=True))
    return OutgoingRecords(
        values=rows.values(binary(values)),
        keys=rows.values(binary(keys)),
        headers=encode_headers(len(records), ALWAYS, {"h": binary(others)}, own(headers)),
        times=np.array(times, np.int64),
    )


@settings(max_examples=examples(100), deadline=None)
@given(
    records=st.lists(RECORD, min_size=1, max_size=30),
    codec=st.sampled_from([0, 1, 2, 3, 4]),
    cut=st.integers(0, 30),
)
def test_a_batch_of_columns_is_the_batch_record_by_record(
    records: list[Any], codec: int, cut: int
) -> None:
    """Every byte of it, in two pieces of any size."""
    batch = ProducedBatch(TopicPartition("t", 0), codec, 1 << 20)
    at = np.arange(len(records))
    for piece in (at[:cut], at[cut:]):
        for _, some, nbytes in plan_batches(made := outgoing(records), piece, 1, 0, 1 << 30)[0]:
            batch.put(made, some, nbytes)
    builder = MemoryRecordsBuilder(2, codec, 1 << 20)
    for key, value, other, headers, moment in records:
        whole = [*headers, *ALWAYS, *([] if other is None else [("h", other)])]
        builder.append(moment, b"" if key is None and value is None else key, value, whole)
    for written in (batch.records, builder):
        written.set_producer_state(7, 1, 3, False)
        written.close()
    assert bytes(batch.records.buffer()) == bytes(builder.buffer())
    assert batch.record_count == len(records)


def test_records_without_keys_and_headers() -> None:
    batch = ProducedBatch(TopicPartition("t", 0), 0, 1 << 20)
    values = rows.values(pl.Series(["a", "öß"]))
    batch.put(OutgoingRecords(values=values, times=np.array([5, 4])), np.arange(2), 100)
    batch.records.close()
    (found,) = MemoryRecords(batch.records.buffer())
    assert [(r.key, r.value, r.headers, r.timestamp) for r in found] == [
        (None, b"a", [], 5),
        (None, "öß".encode(), [], 4),
    ]


@settings(max_examples=examples(200), deadline=None)
@given(st.binary(max_size=40))
def test_keys_are_hashed_as_kafka_does(key: bytes) -> None:
    found = murmur2(np.frombuffer(b"x" + key, np.uint8), 1, len(key))
    assert found == default.murmur2(key) & 0x7FFFFFFF


@settings(max_examples=examples(100), deadline=None)
@given(
    keys=st.lists(st.none() | st.binary(max_size=3), max_size=60),
    partitions=st.integers(1, 5),
    size=st.integers(1, 300),
    turn=st.integers(0, 9),
)
def test_every_record_goes_to_one_partition_in_its_order(
    keys: list[bytes | None], partitions: int, size: int, turn: int
) -> None:
    n = len(keys)
    records = OutgoingRecords(
        values=rows.values(binary([b"v" * (i % 9) for i in range(n)])),
        keys=rows.values(binary(keys)),
        times=np.zeros(n, np.int64),
    )
    at = np.arange(n)[::2]
    batches, later = plan_batches(records, at, partitions, turn, size)
    chosen = [i for _, some, _ in batches for i in some.tolist()]
    assert sorted(chosen) == at.tolist()
    assert later >= turn
    for number in range(partitions):
        here = [i for partition, some, _ in batches if partition == number for i in some.tolist()]
        assert here == sorted(here)
    for partition, some, nbytes in batches:
        assert nbytes == (records.sizes()[some] + OVERHEAD).sum()
        assert len(some) == 1 or nbytes <= size
        for i in some.tolist():
            key = keys[i]
            if key is not None:
                assert partition == (default.murmur2(key) & 0x7FFFFFFF) % partitions


def test_a_batch_goes_with_its_last_reference() -> None:
    """Not with the next round of the garbage collector, which may be long in coming."""
    gc.disable()
    try:
        batch = ProducedBatch(TopicPartition("t", 0), 0, 1 << 20)
        batch.put(plain([b"x"]), np.arange(1), 100)
        gone = weakref.ref(batch)
        del batch
        assert gone() is None
    finally:
        gc.enable()


@pytest.fixture
def sent() -> Any:
    """A function: records of a topic, as a reader has them."""
    broker = shared_broker()

    def read(topic: str) -> list[Any]:
        consumer = KafkaConsumer(
            bootstrap_servers=broker.bootstrap_servers, consumer_timeout_ms=20_000
        )
        places = [TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic) or ()]
        consumer.assign(places)
        consumer.seek_to_beginning()
        left = sum(consumer.end_offsets(places).values())
        found = [next(consumer) for _ in range(left)]
        consumer.close()
        return found

    return read


def delivery(**settings: Any) -> VerifiedProducer:
    bootstrap_servers = shared_broker().bootstrap_servers
    return VerifiedProducer(
        ProducerSettings(bootstrap_servers=bootstrap_servers, **settings), "[sink] t"
    )


def plain(values: list[bytes | None]) -> OutgoingRecords:
    return OutgoingRecords(values=rows.values(binary(values)), times=np.full(len(values), 7))


def test_what_is_sent_arrives(sent: Any) -> None:
    """From columns and, beside them, by kafka-python: to the same partitions by key."""
    broker = shared_broker()
    ours, theirs = broker.topic(partitions=3), broker.topic(partitions=3)
    keys: list[bytes | None] = [f"k{i % 50}".encode() for i in range(2_000)]
    values: list[bytes | None] = [b"v%d" % i for i in range(2_000)]
    records = OutgoingRecords(
        values=rows.values(binary(values)),
        keys=rows.values(binary(keys)),
        headers=encode_headers(
            2_000, [("a", b"1")], {"n": pl.Series([str(i) for i in range(2_000)])}
        ),
        times=np.arange(2_000) + 1_000,
    )
    out = delivery()
    for start in range(0, 2_000, 300):
        out.send(ours, records, np.arange(start, min(start + 300, 2_000)))
    out.flush()
    assert out.nbytes == 0
    out.close()
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    for i, (key, value) in enumerate(zip(keys, values, strict=True)):
        head = [("a", b"1"), ("n", str(i).encode())]
        producer.send(theirs, value, key=key, headers=head, timestamp_ms=1_000 + i)
    producer.flush()
    producer.close()
    shown = [
        sorted((r.partition, r.offset, r.key, r.value, r.headers, r.timestamp) for r in sent(topic))
        for topic in (ours, theirs)
    ]
    assert shown[0] == shown[1]


def test_records_without_keys_are_spread(sent: Any) -> None:
    topic = shared_broker().topic(partitions=3)
    out = delivery()
    for _ in range(6):
        out.send(topic, plain([b"x" * 100] * 50), np.arange(50))
        out.flush()
    out.close()
    found = [r.partition for r in sent(topic)]
    assert [found.count(n) for n in range(3)] == [100, 100, 100]


def test_a_full_buffer_waits_for_answers(sent: Any) -> None:
    topic = shared_broker().topic()
    out = delivery(buffer_memory=1 << 20, compression_type="none")
    highest = 0
    for i in range(40):
        out.send(topic, plain([bytes([i]) * 1_000] * 200), np.arange(200))
        highest = max(highest, out.nbytes)
    assert 0 < highest <= 1 << 20
    out.flush()
    out.close()
    assert [r.value[0] for r in sent(topic)] == [i for i in range(40) for _ in range(200)]


def test_a_batch_that_the_broker_calls_too_large_is_split(sent: Any) -> None:
    broker = shared_broker()
    topic = broker.topic()
    admin = broker.admin()
    limit = ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": "3000"})
    admin.alter_configs([limit])
    admin.close()
    values: list[bytes | None] = [b"%04d" % i * 100 for i in range(100)]
    out = delivery(compression_type="none")
    out.send(topic, plain(values), np.arange(100))
    out.flush()
    assert [r.value for r in sent(topic)] == values
    out.send(topic, plain([b"x" * 5_000, b"y"]), np.arange(2))
    with pytest.raises(HeadraceError, match=r"of 2 records were not delivered.*restart the engine"):
        out.flush()
    out.close()
    assert out.nbytes == 0


@pytest.fixture(scope="module")
def frail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that may be stopped."""
    skip_without_tools()
    with Broker(tmp_path_factory.mktemp("own")) as broker:
        yield broker


@pytest.mark.parametrize("call", ["connect", "send", "commit"])
def test_no_request_of_a_transaction_is_lost_while_the_broker_is_away(
    call: str, frail: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker goes when the client knows the transaction's coordinator, and comes back once the
    client was refused there."""
    refused = threading.Event()
    away, found = KafkaConnectionManager.update_backoff, ClusterMetadata.add_coordinator

    def failed(manager: Any, node: Any) -> Any:
        if node == "coordinator-1":
            refused.set()
        return away(manager, node)

    def stopped(*answer: Any) -> Any:
        monkeypatch.setattr(ClusterMetadata, "add_coordinator", found)
        frail.stop()
        return found(*answer)

    def back() -> None:
        if refused.wait(HANG):
            frail.start()

    monkeypatch.setattr(KafkaConnectionManager, "update_backoff", failed)
    if call == "connect":
        monkeypatch.setattr(ClusterMetadata, "add_coordinator", stopped)
    topic = frail.topic()
    out = VerifiedProducer(
        ProducerSettings(bootstrap_servers=frail.bootstrap_servers, delivery_timeout=20), "[sink] t"
    )
    out.transaction = topic
    returns = threading.Thread(target=back)
    returns.start()
    try:
        out.connect().partitions_for(topic)
        if call == "send":
            stop(frail, out)
        out.send(topic, plain([b"x"]), np.arange(1))
        out.flush()
        if call == "commit":
            stop(frail, out)
        assert out.commit({}, None)
    finally:
        out.close()
        returns.join()
    assert refused.is_set()
    # A committed transaction ends when the broker has written so into each partition.
    until(lambda: not kit.in_transaction(frail.bootstrap_servers, topic))
    assert [r.value for r in kit.records(frail.bootstrap_servers, topic)] == [b"x"]


def test_a_broker_that_hangs_takes_no_core(frail: Broker) -> None:
    """The sender, a record in hand and its connection gone, looks for the broker in intervals."""
    topic = frail.topic()
    out = VerifiedProducer(
        ProducerSettings(bootstrap_servers=frail.bootstrap_servers, delivery_timeout=60), "[sink] t"
    )
    try:
        out.send(topic, plain([b"x"]), np.arange(1))
        out.flush()
        client = out.connect()._sender._client
        polled: list[float] = []
        poll = client.poll
        enough = threading.Event()

        def watched(timeout_ms: float, future: Any = None) -> Any:
            if not client.is_ready(1):
                polled.append(timeout_ms)
            if len(polled) == 10:
                enough.set()
            return poll(timeout_ms=timeout_ms, future=future)

        frail.freeze()
        try:
            client.poll = watched
            client._manager._net.call_soon_threadsafe(lambda: client._manager.close(1))
            out.send(topic, plain([b"y"]), np.arange(1))
            assert enough.wait(HANG)
        finally:
            frail.thaw()
        out.flush()
    finally:
        out.close()
    assert min(polled) > 0
    assert [r.value for r in kit.records(frail.bootstrap_servers, topic)] == [b"x", b"y"]


def stop(broker: Broker, out: VerifiedProducer) -> None:
    """Return when the client has seen that its coordinator is gone."""
    seen = threading.Event()
    connection = out.connect()._sender._client._manager._conns["coordinator-1"]
    connection.close_future.add_both(lambda _: seen.set())
    broker.stop()
    assert seen.wait(HANG)


def test_records_after_a_lost_transaction_are_dropped_until_the_commit_says_so() -> None:
    """Also where the client has seen the loss before the next record: it names no reason then."""
    broker = shared_broker()
    topic, out = broker.topic(), delivery()
    out.transaction = f"headrace-{topic}"
    for value in (b"before", b"refused", b"after"):
        out.send(topic, plain([value]), np.arange(1))
        if value == b"before":
            out.flush()
            other = KafkaProducer(
                bootstrap_servers=broker.bootstrap_servers, transactional_id=out.transaction
            )
            other.init_transactions()
            other.close()
        if value == b"refused":
            until(out.connect()._transaction_manager.has_error, what="the refusal")
    assert not out.commit({}, None)
    assert out.nbytes == 0
    out.send(topic, plain([b"again"]), np.arange(1))
    assert out.commit({}, None)
    out.close()
    assert [r.value for r in kit.records(broker.bootstrap_servers, topic)] == [b"again"]


@pytest.mark.parametrize("then", ["send", "commit", "abort"])
@pytest.mark.parametrize("done", [False, True])
def test_a_transaction_that_the_client_gave_up_is_done_again(then: str, done: bool) -> None:
    """It asks for a new epoch after some refusals, which ends what is open; what comes next may
    meet it asking, or `done`. Nothing of the lost transaction is committed, and all goes on."""
    broker = shared_broker()
    topic, out = broker.topic(), delivery()
    out.transaction = f"headrace-{topic}"
    out.send(topic, plain([b"lost"]), np.arange(1))
    out.flush()
    producer = out.connect()
    manager = producer._transaction_manager
    manager.bump_producer_id_and_epoch()
    producer._sender.wakeup()
    if done:
        until(lambda: not manager.is_bumping_epoch(), what="the new epoch")
    if then == "send":
        out.send(topic, plain([b"late"]), np.arange(1))
    if then == "abort":
        out.abort()
    else:
        assert not out.commit({}, None)
    assert out.nbytes == 0
    out.send(topic, plain([b"again"]), np.arange(1))
    assert out.commit({}, None)
    out.close()
    assert [r.value for r in kit.records(broker.bootstrap_servers, topic)] == [b"again"]
