"""A topic to raw rows, and to clean standardized tensors: headrace against the clients people use.

``python -m tests.bench kafka``

2 M JSON records of about 200 bytes with 10 fields, 4 partitions, broker on the same cores. "raw"
counts records as they come off the wire; "typed" are clean, standardized float32 tensors. Peers are
measured where they are installed (``pip install confluent-kafka aiokafka quixstreams bytewax``):
they are no dependencies of headrace's. CPU seconds are the client process's own. Every figure
counts the start; what that takes alone is told beside them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import torch
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from connectors.kafka.client_internals import install_columnar_fetch
from connectors.kafka.source import KafkaSource
from engine.config import Pipeline
from engine.run import Run
from engine.types import EndOfStream, Mark
from tests.bench.measure import interleave, median, report
from tests.broker import Broker, shared_broker

PARTITIONS = 4
NUMBERS = [f"x{i}" for i in range(8)]
SCHEMA = {**dict.fromkeys(NUMBERS, "float64"), "id": "int64", "kind": "string"}


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/kafka.json``."""
    broker = shared_broker()
    count = 8_000 if quick else 2_000_000
    topic = filled(broker, count)
    runs: dict[str, Callable[[], int]] = {
        "headrace, raw": lambda: raw(broker, topic),
        "bare columnar fetch": lambda: fetch(broker, topic),
        "headrace, typed": lambda: typed(broker, topic),
    }
    slow: dict[str, Callable[[], int]] = {
        "kafka-python, raw": lambda: by_kafka_python(broker, topic)
    }
    if installed("confluent_kafka"):
        runs["confluent-kafka, raw"] = lambda: by_confluent(broker, topic, parse=False)
        runs["confluent-kafka + polars, typed"] = lambda: by_confluent(broker, topic, parse=True)
    if installed("aiokafka"):
        slow["aiokafka, raw"] = lambda: asyncio.run(by_aiokafka(broker, topic))
    if installed("quixstreams"):
        slow["Quix Streams, typed"] = lambda: by_quix(broker, topic, count)
    if installed("bytewax"):
        slow["Bytewax, typed"] = lambda: by_bytewax(broker, topic)
    cpu: dict[str, list[float]] = {name: [] for name in {**runs, **slow}}
    seconds = interleave(
        {name: _timed(run, cpu[name], count) for name, run in runs.items()},
        rounds=3 if quick else 5,
    )
    seconds |= interleave(
        {name: _timed(run, cpu[name], count) for name, run in slow.items()}, rounds=3
    )
    figures = starts(broker, rounds=3 if quick else 5)
    for name in seconds:
        figures[f"{name}, records/s"] = count / median(seconds[name])
        figures[f"{name}, records per CPU-second"] = count / median(cpu[name])
    for name, base in (
        ("headrace, raw", "bare columnar fetch"),
        ("headrace, raw", "kafka-python, raw"),
        ("headrace, raw", "confluent-kafka, raw"),
        ("headrace, raw", "aiokafka, raw"),
        ("headrace, typed", "confluent-kafka + polars, typed"),
        ("headrace, typed", "Quix Streams, typed"),
        ("headrace, typed", "Bytewax, typed"),
    ):
        if base in seconds:
            figures[f"{name} / {base}"] = median(seconds[base]) / median(seconds[name])
            figures[f"{name} / {base}, per CPU-second"] = median(cpu[base]) / median(cpu[name])
    report(
        "kafka",
        figures,
        seconds=seconds,
        goal="raw 0.9 of the bare fetch; typed 1.4 x confluent, 8 x Quix Streams and Bytewax",
    )


def starts(broker: Broker, rounds: int) -> dict[str, float]:
    """Seconds that a run over nothing to speak of takes: connections, probe, offsets."""
    topic = filled(broker, PARTITIONS)
    seconds = interleave(
        {
            "headrace, raw": lambda: raw(broker, topic),
            "bare columnar fetch": lambda: fetch(broker, topic),
            "headrace, typed": lambda: typed(broker, topic),
        },
        rounds=rounds,
    )
    return {f"{name}, start in seconds": median(took) for name, took in seconds.items()}


def filled(broker: Broker, count: int) -> str:
    """A topic with that many records."""
    topic = broker.topic(PARTITIONS)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(min(count, 10_000), len(NUMBERS)))
    values = [
        json.dumps(
            {"id": i, "kind": "abcd"[i % 4], **dict(zip(NUMBERS, row, strict=True))}
        ).encode()
        for i, row in enumerate(np.round(x, 12).tolist())
    ]
    producer = KafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, linger_ms=50, batch_size=1 << 18, acks=1,
        enable_idempotence=False,
    )  # fmt: skip
    for i in range(count):
        producer.send(topic, values[i % len(values)], partition=i % PARTITIONS)
    producer.flush()
    producer.close()
    return topic


def source(broker: Broker, topic: str) -> KafkaSource:
    """To the end of the topic."""
    return KafkaSource(
        KafkaSource.Settings(
            bootstrap_servers=broker.bootstrap_servers, topics=(topic,), stop="end"
        )
    )


def raw(broker: Broker, topic: str) -> int:
    """As the loader's fetch thread gets them."""
    made, n = source(broker, topic), 0
    made.seek(Mark())
    while True:
        try:
            records = made.read(65_536, 32 << 20, 1.0)
        except EndOfStream:
            made.close()
            return n
        n += 0 if records is None else len(records)


def fetch(broker: Broker, topic: str) -> int:
    """The columnar consumer alone."""
    consumer = KafkaConsumer(
        bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest",
        metrics_enabled=False,
        fetch_max_bytes=16 << 20, max_partition_fetch_bytes=16 << 20, enable_auto_commit=False,
    )  # fmt: skip
    install_columnar_fetch(consumer, newline=True)
    partitions = [TopicPartition(topic, n) for n in range(PARTITIONS)]
    consumer.assign(partitions)
    left = sum(consumer.end_offsets(partitions).values())
    n = 0
    while n < left:
        for chunks in consumer.poll(1_000, max_records=256).values():
            n += sum(map(len, chunks))
    consumer.close()
    return n


def typed(broker: Broker, topic: str) -> int:
    """Through a pipeline's loader: decoded, standardized, float32 tensors of 8,192 rows."""
    table: dict[str, Any] = {
        "name": "kafka",
        "source": {"kind": "kafka", "bootstrap_servers": broker.bootstrap_servers,
        "topics": [topic], "stop": "end",
                   "schema": dict.fromkeys([*NUMBERS, "id"], "float64")},
        "loader": {"batch_rows": 8_192},
        "scrub": {"standardize": {"columns": NUMBERS, "freeze_after": 8_192}},
        "model": {"target": "id", "numeric": NUMBERS},
    }  # fmt: skip
    with Run(Pipeline.of(table)).loader() as batches:
        return sum(len(batch) for batch in batches)


def by_kafka_python(broker: Broker, topic: str) -> int:
    """Its own records."""
    consumer = KafkaConsumer(
        bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest",
        metrics_enabled=False,
        max_poll_records=10_000, max_partition_fetch_bytes=4 << 20, enable_auto_commit=False,
    )  # fmt: skip
    partitions = [TopicPartition(topic, n) for n in range(PARTITIONS)]
    consumer.assign(partitions)
    left = sum(consumer.end_offsets(partitions).values())
    n = 0
    while n < left:
        n += sum(map(len, consumer.poll(1_000).values()))
    consumer.close()
    return n


def by_confluent(broker: Broker, topic: str, *, parse: bool) -> int:
    """Records in lists, joined and parsed by polars, standardized, as tensors. With the settings
    that reach its best: a deep queue, and hardly a pause when that is full (a second by default).
    """
    import confluent_kafka as ck

    consumer = ck.Consumer(
        {"bootstrap.servers": broker.bootstrap_servers, "group.id": "bench",
        "enable.auto.commit": False,
         "auto.offset.reset": "earliest", "fetch.queue.backoff.ms": 2,
         "queued.min.messages": 1_000_000, "queued.max.messages.kbytes": 1 << 18}
    )  # fmt: skip
    consumer.assign([ck.TopicPartition(topic, n, 0) for n in range(PARTITIONS)])
    left = sum(
        consumer.get_watermark_offsets(ck.TopicPartition(topic, n))[1] for n in range(PARTITIONS)
    )
    n, values = 0, []
    while n < left:
        # A thousand at a time: three times as fast as 8,192, which wake Python's collector.
        messages = consumer.consume(min(1_000, left - n), 1.0)
        n += len(messages)
        if parse:
            values += [message.value() or b"" for message in messages]
            if len(values) >= 8_000 or n == left:
                tensors(values)
                values = []
    consumer.close()
    return n


async def by_aiokafka(broker: Broker, topic: str) -> int:
    """Its own records, many at a time."""
    import aiokafka

    consumer = aiokafka.AIOKafkaConsumer(
        bootstrap_servers=broker.bootstrap_servers, enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=4 << 20, fetch_max_bytes=16 << 20,
    )  # fmt: skip
    await consumer.start()
    partitions = [aiokafka.TopicPartition(topic, n) for n in range(PARTITIONS)]
    consumer.assign(partitions)
    left = sum((await consumer.end_offsets(partitions)).values())
    n = 0
    while n < left:
        found = await consumer.getmany(timeout_ms=1_000, max_records=10_000)
        n += sum(map(len, found.values()))
    await consumer.stop()
    return n


def by_quix(broker: Broker, topic: str, count: int) -> int:
    """A streaming frame of JSON, standardized row by row, into tensors of 8,192."""
    import quixstreams

    app = quixstreams.Application(
        broker_address=broker.bootstrap_servers, consumer_group=uuid.uuid4().hex, loglevel="ERROR",
        auto_offset_reset="earliest", auto_create_topics=False,
        consumer_extra_config={"queued.min.messages": 1_000_000},
    )  # fmt: skip
    made = Rows()
    frame = app.dataframe(app.topic(topic, value_deserializer="json"))
    frame.update(made.add)
    app.run(count=count)
    return made.finish()


def by_bytewax(broker: Broker, topic: str) -> int:
    """A dataflow of JSON, standardized row by row, into tensors of 8,192."""
    import bytewax.operators as op
    from bytewax.connectors.kafka import KafkaSource as Input
    from bytewax.dataflow import Dataflow
    from bytewax.testing import TestingSink, run_main

    made = Rows()
    flow = Dataflow("bench")
    records = op.input(
        "in", flow, Input([broker.bootstrap_servers], [topic], tail=False, batch_size=1_000)
    )
    rows = op.map("parse", records, lambda record: made.add(json.loads(record.value)))
    op.output("out", op.filter("none", rows, lambda row: row is not None), TestingSink([]))
    run_main(flow)
    return made.finish()


class Rows:
    """Rows one by one into float32 tensors."""

    def __init__(self) -> None:
        self.count = 0
        self._rows: list[list[float]] = []

    def add(self, row: Any) -> None:
        """Take a row, standardized."""
        self._rows.append([(row[name] - 0.01) * 0.99 for name in NUMBERS])
        self.count += 1
        if len(self._rows) == 8_192:
            self.finish()

    def finish(self) -> int:
        """The rest, and how many there were."""
        torch.tensor(self._rows, dtype=torch.float32)
        self._rows = []
        return self.count


def installed(module: str) -> bool:
    """Whether a peer is here; says so where it is not."""
    there = importlib.util.find_spec(module) is not None
    if not there:
        print(f"{module} is not installed here: left out")
    return there


def tensors(values: list[bytes]) -> None:
    """By polars, in one call each."""
    schema = dict.fromkeys([*NUMBERS, "id"], pl.Float64)
    frame = pl.read_ndjson(io.BytesIO(b"\n".join(values)), schema=schema)
    clean = frame.select(((pl.col(NUMBERS) - 0.01) * 0.99).cast(pl.Float32))
    torch.from_numpy(clean.to_numpy(order="c", writable=True))


def _timed(run: Callable[[], int], cpu: list[float], count: int) -> Callable[[], None]:
    def timed() -> None:
        start = time.process_time()
        assert run() == count
        cpu.append(time.process_time() - start)

    return timed


if __name__ == "__main__":
    main()
