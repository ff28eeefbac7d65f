"""Sends records to a topic's partitions in turn until its standard input ends. It says "begun" once
the first are there, and how many there were at the end:
``python -m tests.crash.feed BOOTSTRAP TOPIC PARTITIONS RATE MODULE:FUNCTION``.

A process of its own, because kafka-python leaves the sockets that a broker refused to the
collector.
"""

from __future__ import annotations

import importlib
import json
import select
import sys

from kafka import KafkaProducer


def main() -> None:
    """A broker that is away holds it up for five minutes at most."""
    bootstrap_servers, topic, partitions, rate, function = sys.argv[1:]
    module, _, name = function.partition(":")
    record = getattr(importlib.import_module(module), name)
    producer = KafkaProducer(
        bootstrap_servers=bootstrap_servers, acks="all", enable_idempotence=True,
        delivery_timeout_ms=300_000, max_block_ms=300_000, reconnect_backoff_max_ms=500,
    )  # fmt: skip
    step = max(1, int(rate) // 20)
    sent = 0
    while not select.select([sys.stdin], [], [], step / int(rate))[0]:
        for _ in range(step):
            producer.send(topic, record(sent), partition=sent % int(partitions))
            sent += 1
        if sent == step:
            producer.flush()
            print("begun", flush=True)  # noqa: T201 - the answer
    producer.flush()
    producer.close()
    print(sent)  # noqa: T201 - the answer


def row(n: int) -> bytes:
    """Of these tests: what `a` is, and that the target is twice as much."""
    return json.dumps({"n": n, "a": (n % 97) / 10, "y": (n % 97) / 5}).encode()


if __name__ == "__main__":
    main()
