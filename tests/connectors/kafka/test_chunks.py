"""Columns off the wire equal the records that kafka-python makes, one by one."""

from __future__ import annotations

import functools
import itertools
import select
import socket
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import CorruptRecordError, KafkaConnectionError, UnsupportedCodecError
from kafka.protocol.consumer.fetch import FetchRequest, FetchResponse
from kafka.protocol.parser import KafkaProtocol
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from connectors.kafka import client_internals
from connectors.kafka.chunks import Chunk
from connectors.kafka.client_internals import (
    ColumnarRecords,
    batches,
    decode,
    install_columnar_fetch,
)
from engine.types import EndOfStream, Mark, Values
from tests.broker import shared_broker
from tests.connectors.conftest import drain, kafka_source, take
from tests.size import examples

BYTES = st.none() | st.binary(max_size=200)
HEADER = st.tuples(st.text(max_size=5), BYTES)
RECORD = st.tuples(BYTES, BYTES, st.lists(HEADER, max_size=3), st.integers(0, 2**40))
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}


def batch(records: list[Any], codec: int = 0, offset: int = 100) -> bytes:
    """A record batch as a producer writes it."""
    builder = MemoryRecordsBuilder(
        magic=2, compression_type=codec, batch_size=1 << 24, offset=offset
    )
    for key, value, headers, timestamp in records:
        builder.append(timestamp=timestamp, key=key, value=value, headers=headers)
    builder.close()
    return bytes(builder.buffer())


def values(chunk: Chunk, *, newline: bool) -> list[bytes | None]:
    raw = chunk.data.tobytes()
    ends = chunk.bounds[1:] - int(newline)
    return [
        None if null else raw[start:end]
        for start, end, null in zip(chunk.bounds[:-1], ends, chunk.null, strict=True)
    ]


@settings(max_examples=examples(80), deadline=None)
@given(
    records=st.lists(RECORD, min_size=1, max_size=20),
    codec=st.sampled_from(list(CODECS.values())),
    skip=st.integers(0, 25),
    newline=st.booleans(),
)
def test_a_batch_as_columns_is_the_batch_record_by_record(
    records: list[Any], codec: int, skip: int, newline: bool
) -> None:
    raw = batch(records, codec)
    expected = [r for r in MemoryRecords(raw).next_batch() if r.offset >= 100 + skip]
    chunk = decode(next(batches(MemoryRecords(raw))), 100 + skip, newline=newline)
    assert chunk.offsets.tolist() == [r.offset for r in expected]
    assert chunk.timestamps.tolist() == [r.timestamp for r in expected]
    assert values(chunk, newline=newline) == [r.value for r in expected]
    assert chunk.next == 100 + len(records)
    if newline and len(chunk):
        assert (chunk.data[chunk.bounds[1:] - 1] == 10).all()


@settings(max_examples=examples(80), deadline=None)
@given(records=st.lists(RECORD, min_size=1, max_size=5), data=st.data())
def test_a_broken_batch_is_an_error_and_no_crash(records: list[Any], data: st.DataObject) -> None:
    raw = bytearray(batch(records))
    at = data.draw(st.integers(61, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    found = next(batches(MemoryRecords(bytes(raw))))
    assert not found.validate_crc()
    try:
        chunk = decode(found, 0, newline=True)
    except CorruptRecordError:
        return
    assert chunk.bounds[-1] == len(chunk.data)


@pytest.mark.parametrize(
    ("codec", "error", "said"),
    [(6, UnsupportedCodecError, "Unrecognized compression type: 6"),
     (1, CorruptRecordError, "at offset 0 cannot be decompressed"),
     (4, CorruptRecordError, "at offset 0 cannot be decompressed")],
)  # fmt: skip
def test_a_codec_that_is_unknown_or_not_what_it_says(
    codec: int, error: type[Exception], said: str
) -> None:
    raw = bytearray(batch([(b"k", b"v", [], 1_000)] * 3))
    raw[22] |= codec
    with pytest.raises(error, match=said):
        decode(next(batches(MemoryRecords(bytes(raw)))), 0, newline=True)


def answer(*parts: bytes) -> ColumnarRecords:
    """An answer of a broker that holds these record batches."""
    return ColumnarRecords(0, TopicPartition("t", 0), MemoryRecords(b"".join(parts)))


def three(offset: int) -> bytes:
    """A batch of three records from this offset on, which a broker writes in front."""
    made = batch([(b"k", b"v%d" % i, [], i) for i in range(3)], offset=0)
    return offset.to_bytes(8, "big") + made[8:]


@pytest.mark.parametrize(("together", "sizes"), [(1 << 20, [9]), (1, [3, 3, 3])])
def test_neighbouring_batches_are_one_chunk_up_to_a_size(
    together: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_internals, "CHUNK_BYTES", together)
    chunks = answer(three(0), three(10), three(20)).take(100)
    assert [len(chunk) for chunk in chunks] == sizes
    offsets = [offset for chunk in chunks for offset in chunk.offsets.tolist()]
    assert offsets == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert [v for chunk in chunks for v in values(chunk, newline=False)] == [
        b"v0",
        b"v1",
        b"v2",
    ] * 3
    assert chunks[-1].next == 23


def test_what_comes_before_a_damaged_batch_is_whole() -> None:
    damaged = bytearray(three(20))
    damaged[-1] ^= 1
    part = answer(three(0), three(10), bytes(damaged), three(30))
    (chunk,) = part.take(100)
    assert chunk.offsets.tolist() == [0, 1, 2, 10, 11, 12]
    assert (chunk.next, part.next_fetch_offset) == (13, 13)
    with pytest.raises(CorruptRecordError, match="at offset 20 of t/0 fails its checksum"):
        part.take(100)


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
def test_every_codec_through_a_real_broker(codec: str | None) -> None:
    broker = shared_broker()
    topic = broker.topic()
    sent = [f'{{"n":{i}}}'.encode() for i in range(500)]
    broker.produce(topic, sent, each=90, compression_type=codec)
    source = kafka_source(broker, topic)
    pieces = drain(source, 1_000)
    source.close()
    got = [p.values for p in pieces if isinstance(p.values, Values)]
    lines = b"".join(v.data[v.bounds[0] : v.bounds[-1]].tobytes() for v in got)
    assert lines.splitlines() == sent
    assert np.concatenate([p.positions for p in pieces]).tolist() == list(range(500))
    stamps = [p.timestamps for p in pieces if p.timestamps is not None]
    assert np.concatenate(stamps).tolist() == [1_000 + i for i in range(500)]


def fetched(records: bytes) -> tuple[FetchRequest, bytes]:
    """A request, and a broker's answer to it."""
    version = 12
    response = FetchResponse[version]
    topic = response.FetchableTopicResponse
    part = topic.PartitionData(partition_index=3, high_watermark=9, records=records)
    made = response(responses=[topic(topic="t", partitions=[part])])
    made.with_header(correlation_id=7)
    return FetchRequest[version](topics=[]), bytes(made.encode(framed=True, header=True))


@settings(max_examples=examples(40), deadline=None)
@given(
    sizes=st.lists(st.integers(0, 5_000), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 4_000), min_size=1, max_size=6),
)
def test_answers_that_come_in_pieces_are_the_answers(sizes: list[int], cuts: list[int]) -> None:
    # What is large is read in another way; here that is much less.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_internals, "RECEIVE_BYTES", 2_000)
        _in_pieces(sizes, cuts)


def _in_pieces(sizes: list[int], cuts: list[int]) -> None:
    records = [bytes(range(256)) * 20 for _ in sizes]
    answers = [fetched(r[:size]) for r, size in zip(records, sizes, strict=True)]
    parser, expected = KafkaProtocol(client_id="t"), KafkaProtocol(client_id="t")
    for request, _ in answers:
        parser.send_request(request, correlation_id=7)
        expected.send_request(request, correlation_id=7)
    stream = b"".join(text for _, text in answers)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    transport = SimpleNamespace(_sock=ours, _protocol=SimpleNamespace(parser=parser))
    got, at = [], 0
    for cut in itertools.cycle(cuts):
        theirs.sendall(stream[at : at + cut])
        while (found := client_internals._received(transport)) != (b"", None) or _more(ours):
            assert found[1] is None
            got += parser.receive_bytes(found[0])
        at += cut
        if at >= len(stream):
            break
    assert [a.to_dict() for _, a in got] == [a.to_dict() for _, a in expected.receive_bytes(stream)]
    assert [a.responses[0].partitions[0].records for _, a in got] == [
        r[:size] for r, size in zip(records, sizes, strict=True)
    ]
    theirs.close()
    data, error = client_internals._received(transport)
    assert data == b""
    assert isinstance(error, KafkaConnectionError)
    ours.close()


def _more(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def test_what_comes_is_taken_in_large_pieces() -> None:
    broker = shared_broker()
    topic = broker.topic()
    broker.produce(topic, [b"x" * 100_000] * 30, each=5)
    consumer = KafkaConsumer(
        bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest"
    )
    install_columnar_fetch(consumer, newline=False)
    consumer.assign([TopicPartition(topic, 0)])
    sizes: list[int] = []
    while len(sizes) < 30:
        for chunks in consumer.poll(1_000).values():
            sizes += [size for chunk in chunks for size in np.diff(chunk.bounds).tolist()]
    transports = [conn.transport for conn in consumer._manager._conns.values() if conn.connected]
    assert any(isinstance(transport._sock_recv, functools.partial) for transport in transports)
    assert sizes == [100_000] * 30
    consumer.close()


def test_tombstones_and_empty_values_shift_nothing() -> None:
    broker = shared_broker()
    topic = broker.topic()
    broker.produce(topic, [b'{"n":0}', None, b"", b'{"n":3}'])
    source = kafka_source(broker, topic)
    (piece,) = drain(source, 10)
    source.close()
    assert piece.positions.tolist() == [0, 1, 2, 3]
    frame, rejects = source.format.decode(piece, {"n": pl.Int64()})
    assert frame.select("_position", "n").rows() == [(0, 0), (3, 3)]
    assert sorted(p for r in rejects for p in r.rows["_position"]) == [1, 2]


@pytest.mark.parametrize("isolation", ["read_committed", "read_uncommitted"])
def test_aborted_transactions_are_left_out_and_positions_go_on(isolation: str) -> None:
    broker = shared_broker()
    topic = broker.topic()
    producer = KafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, transactional_id=f"x-{topic}"
    )
    producer.init_transactions()
    for number, keep in enumerate([True, False, True]):
        producer.begin_transaction()
        for i in range(3):
            producer.send(topic, f"{number}{i}".encode(), partition=0)
        producer.flush()
        if keep:
            producer.commit_transaction()
        else:
            producer.abort_transaction()
    producer.close()
    source = kafka_source(broker, topic, isolation_level=isolation, format="text")
    schema = source.schema({})
    pieces = drain(source, 100)
    frames = [source.format.decode(piece, schema)[0] for piece in pieces]
    got = [value for frame in frames for value in frame["value"]]
    kept = ["00", "01", "02", "20", "21", "22"]
    aborted = ["10", "11", "12"] if isolation == "read_uncommitted" else []
    assert sorted(got) == sorted(kept + aborted)
    # Records and markers: 3 x (3 + 1); the end is behind the last marker.
    assert pieces[-1].next <= 12
    mark = Mark(positions={f"{topic}/0": pieces[-1].next})
    for _ in range(2):
        with pytest.raises(EndOfStream):
            take(source, 1, 1_000)
    assert source.lag(mark) == {f"{topic}/0": 12 - pieces[-1].next}
    assert source.unread(mark) == {f"{topic}/0": 0}
    source.seek(Mark(positions={f"{topic}/0": 9}))
    assert source.unread(Mark(positions={f"{topic}/0": 9})) == {f"{topic}/0": 3}
    rest = [source.format.decode(piece, schema)[0]["value"].to_list() for piece in drain(source)]
    assert rest == [["21", "22"]]
    source.close()


def test_a_topic_partition_has_its_name() -> None:
    broker = shared_broker()
    topic = broker.topic(partitions=3)
    for number in range(3):
        broker.produce(topic, [b"{}"] * (number + 1), partition=number)
    source = kafka_source(broker, topic)
    found = {piece.partition: len(piece) for piece in drain(source)}
    source.close()
    assert found == {f"{topic}/{number}": number + 1 for number in range(3)}
    assert TopicPartition(topic, 0) in source._positions.stops
