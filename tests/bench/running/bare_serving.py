"""The least that answers a topic: kafka-python reads, ONNX Runtime answers, kafka-python writes.

``python -m tests.bench.running.bare_serving SERVERS TOPIC SINK MODEL``: what `bench_overhead`
compares an engine with. It answers what a poll gives in one call, as ``{"id": ..., "prediction":
...}``. It checks nothing, rejects nothing, and forgets its place when it ends.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import numpy as np
from kafka import KafkaConsumer, KafkaProducer

from models.export.model_files import SCORE
from models.serving.session import load


def main(servers: str, topic: str, sink: str, model: str) -> None:
    """Answer until SIGTERM comes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    session = load(Path(model), ("cpu",), 1)
    names = [put.name for put in session.get_inputs()]
    consumer = KafkaConsumer(topic, bootstrap_servers=servers, auto_offset_reset="earliest")
    producer = KafkaProducer(bootstrap_servers=servers, acks="all", linger_ms=0)
    while True:
        for records in consumer.poll(timeout_ms=1_000).values():
            rows = [json.loads(record.value) for record in records]
            feed = {name: np.array([row[name] for row in rows]) for name in names}
            (scores,) = session.run([SCORE], feed)
            for row, score in zip(rows, scores.ravel().tolist(), strict=True):
                producer.send(sink, json.dumps({"id": row["id"], "prediction": score}).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
