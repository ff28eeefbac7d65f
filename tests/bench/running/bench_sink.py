"""Rows to a topic: headrace's sink against the producers people use.

``python -m tests.bench sink``

Batches of 8,192 rows with 10 columns, as JSON objects of about 200 bytes, to 4 partitions of a
broker on the same cores: idempotent, acks=all, lz4, until all is acknowledged. The peers write the
lines with polars as well, and send them one by one, which is what they offer. confluent-kafka is
measured where it is installed. CPU seconds are the client process's own.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl
from kafka import KafkaProducer

from connectors.kafka.sink import KafkaSink
from tests.bench.measure import interleave, median, report
from tests.broker import Broker, shared_broker

PARTITIONS = 4
ROWS = 8_192
LINGER_MS = 20
BATCH = 1 << 18


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/sink.json``."""
    broker = shared_broker()
    count = 16_384 if quick else 262_144
    topic, frame = broker.topic(PARTITIONS), rows(count)
    runs: dict[str, Callable[[], None]] = {
        "headrace": lambda: by_headrace(broker, topic, frame),
        "headrace, with headers": lambda: by_headrace(broker, topic, frame, headers=True),
        "JSON alone": lambda: [None for _ in lines(frame)].clear(),
        "kafka-python": lambda: by_kafka_python(broker, topic, frame),
    }
    if importlib.util.find_spec("confluent_kafka"):
        runs["confluent-kafka"] = lambda: by_confluent(broker, topic, frame)
    cpu: dict[str, list[float]] = {name: [] for name in runs}

    def timed(name: str) -> Callable[[], None]:
        def run() -> None:
            start = time.process_time()
            runs[name]()
            cpu[name].append(time.process_time() - start)

        return run

    seconds = interleave({name: timed(name) for name in runs}, rounds=3 if quick else 7)
    figures: dict[str, Any] = {}
    for name in runs:
        figures[f"{name}, rows/s"] = count / median(seconds[name])
        figures[f"{name}, rows per CPU-second"] = count / median(cpu[name])
    for peer in ("kafka-python", "confluent-kafka"):
        if peer in runs:
            figures[f"headrace / {peer}"] = median(seconds[peer]) / median(seconds["headrace"])
            ratio = median(cpu[peer]) / median(cpu["headrace"])
            figures[f"headrace / {peer}, per CPU-second"] = ratio
    report("sink", figures, seconds=seconds, goal="faster than confluent-kafka")


def rows(count: int) -> pl.DataFrame:
    """Eight numbers of 12 places, a number and a letter each."""
    rng = np.random.default_rng(0)
    numbers = {f"x{i}": np.round(rng.normal(size=count), 12) for i in range(8)}
    kinds = pl.Series(["a", "b", "c", "d"]).gather(np.arange(count) % 4)
    return pl.DataFrame({"id": np.arange(count), "kind": kinds, **numbers})


def lines(frame: pl.DataFrame) -> Iterator[list[bytes]]:
    """Values of each batch."""
    for part in frame.iter_slices(ROWS):
        yield part.write_ndjson().encode().splitlines()


def by_headrace(broker: Broker, topic: str, frame: pl.DataFrame, *, headers: bool = False) -> None:
    """By columns; with `headers`, each record says where its row was read."""
    sink = KafkaSink(KafkaSink.Settings(bootstrap_servers=broker.bootstrap_servers, topic=topic))
    for part in frame.iter_slices(ROWS):
        places = part.select(pl.lit("in/0").alias("_partition"), pl.col("id").alias("_position"))
        sink.write(part, places if headers else None)
    sink.flush()
    sink.close()


def by_kafka_python(broker: Broker, topic: str, frame: pl.DataFrame) -> None:
    """Record by record."""
    producer = KafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, linger_ms=LINGER_MS, batch_size=BATCH,
        acks="all",
        enable_idempotence=True, compression_type="lz4",
    )  # fmt: skip
    for part in lines(frame):
        for value in part:
            producer.send(topic, value)
    producer.flush()
    producer.close()


def by_confluent(broker: Broker, topic: str, frame: pl.DataFrame) -> None:
    """Record by record into librdkafka's queue."""
    from confluent_kafka import Producer

    producer = Producer(
        {
            "bootstrap.servers": broker.bootstrap_servers, "linger.ms": LINGER_MS,
            "batch.size": BATCH,
            "enable.idempotence": True, "compression.type": "lz4",
            "queue.buffering.max.messages": 1_000_000,
        }
    )  # fmt: skip
    for part in lines(frame):
        for value in part:
            producer.produce(topic, value)
        producer.poll(0)
    assert producer.flush(60) == 0


__all__ = ["main"]
