"""Keys, headers, times and places of records as columns, on a real broker."""

from __future__ import annotations

import datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import KafkaProducer
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

from connectors.formats.text import RawText
from connectors.kafka.chunks import headers
from connectors.kafka.client_internals import decode
from connectors.kafka.record_columns import RecordColumns, record_schema
from engine.types import Records, UserError, Values
from tests.broker import shared_broker
from tests.connectors.conftest import drain, kafka_source
from tests.size import examples

BYTES = st.binary(max_size=6)
HEADERS = st.lists(st.tuples(st.sampled_from(["a", "b", "ab", "ö"]), BYTES), max_size=4)


def test_what_a_record_has_is_columns() -> None:
    broker = shared_broker()
    topic = broker.topic(2)
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    sent = [
        (b'{"n":0}', b"k0", [("id", b"x"), ("other", b"o"), ("id", b"second")]),
        (b'{"n":1}', None, []),
        (b"{", b"bad", [("id", b"lost")]),
        (b'{"n":3}', b"", [("id", b"\xff")]),
        (b'{"n":4}', b"\xff", [("id", b"")]),
    ]
    for i, (value, key, head) in enumerate(sent):
        producer.send(topic, value, key=key, headers=head, partition=1, timestamp_ms=1_500 + i)
    producer.flush()
    producer.close()
    record = {"k": "key", "raw": "key bytes", "at": "timestamp", "t": "topic", "p": "partition",
              "o": "offset", "id": "header id"}  # fmt: skip
    source = kafka_source(broker, topic, record=record)
    schema = source.schema({"n": pl.Int64()})
    (piece,) = drain(source)
    source.close()
    frame, rejects = source.format.decode(piece, schema)
    assert frame.columns == ["_partition", "_position", "n", *record]
    assert dict(frame.schema) | {"_partition": None, "_position": None} == {
        "_partition": None, "_position": None, **schema,
    }  # fmt: skip
    assert frame["n"].to_list() == [0, 1, 3, 4]
    assert frame["k"].to_list() == ["k0", None, "", None]
    assert frame["raw"].to_list() == [b"k0", None, b"", b"\xff"]
    assert frame["id"].to_list() == ["x", None, None, ""]
    assert frame["o"].to_list() == [0, 1, 3, 4]
    assert set(frame["t"]) == {topic}
    assert set(frame["p"]) == {1}
    assert frame["at"][2] == datetime.datetime(1970, 1, 1, 0, 0, 1, 503_000)
    assert [len(r) for r in rejects] == [1]


@settings(max_examples=examples(100), deadline=None)
@given(rows=st.lists(st.tuples(st.none() | BYTES, HEADERS), min_size=1, max_size=8))
def test_every_key_and_header_is_kafkas_own_readers(
    rows: list[tuple[bytes | None, list[tuple[str, bytes]]]],
) -> None:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    for i, (key, head) in enumerate(rows):
        builder.append(i, 1_000 + i, key, b"v", head)
    raw = bytes(builder.build())
    expected = list(MemoryRecords(raw).next_batch())
    chunk = decode(MemoryRecords(raw).next_batch(), 0, newline=False, with_metadata=True)
    assert chunk.keys is not None
    assert chunk.headers is not None
    everything = pl.Series(range(len(rows))).to_numpy()
    assert chunk.keys.take(everything) == [r.key for r in expected]
    found = chunk.headers.take(everything)
    assert [headers(one or b"") for one in found] == [r.headers for r in expected]
    records = Records(
        partition="t/0", positions=chunk.offsets, next=chunk.next, arrived=0.0,
        values=Values(data=chunk.data, bounds=chunk.bounds), timestamps=chunk.timestamps,
        keys=chunk.keys, headers=chunk.headers,
    )  # fmt: skip
    record = {"k": "key bytes", "a": "header a", "o": "header ö"}
    schema = {"value": pl.Binary(), **record_schema(record)}
    frame, _ = RecordColumns(RawText(), record).decode(records, schema)
    assert frame["k"].to_list() == [r.key for r in expected]
    for column, name in (("a", "a"), ("o", "ö")):
        first = [next((v for k, v in r.headers if k == name), None) for r in expected]
        assert frame[column].to_list() == [text(value) for value in first]


def text(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def test_what_a_record_has_not() -> None:
    with pytest.raises(
        UserError, match=r"k = 'keey' is nothing that a record has. Did you mean 'key'"
    ):
        record_schema({"k": "keey"})
    with pytest.raises(UserError, match="'_position' is headrace's own"):
        record_schema({"_position": "offset"})
    source = kafka_source(shared_broker(), "t", record={"n": "key"})
    with pytest.raises(
        UserError, match=r"Column 'n' is in \[source.schema\] and in \[source.record\]"
    ):
        source.schema({"n": pl.Int64()})


def test_a_record_larger_than_a_fetch_is_read_all_the_same() -> None:
    broker = shared_broker()
    topic = broker.topic()
    sent = [b"x" * 900_000, b"y", b"z" * 900_000]
    broker.produce(topic, sent, each=1)
    source = kafka_source(broker, topic, format="text", fetch_max_bytes=1 << 16)
    schema = source.schema({})
    frames = [source.format.decode(piece, schema)[0] for piece in drain(source)]
    source.close()
    assert pl.concat(frames)["value"].str.len_bytes().to_list() == [900_000, 1, 900_000]
