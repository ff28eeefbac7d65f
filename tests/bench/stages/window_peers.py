"""Windows by key as two stream processors of Python compute them, row by row."""

from __future__ import annotations

import importlib.util
import json
import tempfile
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
from kafka import KafkaProducer

from tests.broker import Broker

HOUR, LATENESS = timedelta(hours=1), timedelta(minutes=5)
State = tuple[int, float, float, float]


def installed(module: str) -> bool:
    """Whether a peer is here; says so where it is not."""
    there = importlib.util.find_spec(module) is not None
    if not there:
        print(f"{module} is not installed here: left out")
    return there


def bytewax(frame: pl.DataFrame) -> int:
    """Tumbling windows of an hour: count, sum, least and greatest, once a window ends."""
    import bytewax.operators as op
    from bytewax.dataflow import Dataflow
    from bytewax.operators.windowing import EventClock, TumblingWindower, fold_window
    from bytewax.testing import TestingSink, TestingSource, run_main

    times = [datetime.fromtimestamp(at / 1e6, UTC) for at in frame["at"].dt.epoch("us")]
    rows = list(zip(frame["card"], zip(times, frame["amount"], strict=True), strict=True))
    done: list[Any] = []
    flow = Dataflow("bench")
    keyed = op.input("in", flow, TestingSource(rows, batch_size=1_000))
    seen = fold_window(
        "windows", keyed,
        EventClock(lambda row: row[0], LATENESS, to_system_utc=lambda _: None),
        TumblingWindower(length=HOUR, align_to=datetime(2020, 1, 1, tzinfo=UTC)),
        lambda: (0, 0.0, float("inf"), float("-inf")), _folded, _merged,
    )  # fmt: skip
    op.output("out", seen.down, TestingSink(done))
    run_main(flow)
    return sum(count for _, (_, (count, *_)) in done)


def _folded(state: State, row: tuple[datetime, float]) -> State:
    count, total, low, high = state
    return count + 1, total + row[1], min(low, row[1]), max(high, row[1])


def _merged(a: State, b: State) -> State:
    return a[0] + b[0], a[1] + b[1], min(a[2], b[2]), max(a[3], b[3])


def filled(broker: Broker, frame: pl.DataFrame) -> str:
    """A topic with the rows as JSON, by key, at their times."""
    topic = broker.topic(1)
    producer = KafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, linger_ms=50, batch_size=1 << 18, acks=1,
        enable_idempotence=False,
    )  # fmt: skip
    times = frame["at"].dt.epoch("ms")
    for card, at, amount in zip(frame["card"], times, frame["amount"], strict=True):
        value = json.dumps({"amount": amount}).encode()
        producer.send(topic, value, key=card.encode(), timestamp_ms=at)
    producer.flush()
    producer.close()
    return topic


def quix(broker: Broker, topic: str, count: int) -> None:
    """Sliding windows of an hour, on RocksDB: five aggregates after each row."""
    import quixstreams
    from quixstreams.dataframe.windows.aggregations import Count, Max, Mean, Min, Sum

    with tempfile.TemporaryDirectory() as folder:
        app = quixstreams.Application(
            broker_address=broker.bootstrap_servers, consumer_group=uuid.uuid4().hex,
            loglevel="ERROR", auto_offset_reset="earliest", state_dir=folder,
        )  # fmt: skip
        frame = app.dataframe(app.topic(topic, value_deserializer="json"))
        frame.sliding_window(HOUR, LATENESS).agg(
            count=Count(), sum=Sum("amount"), mean=Mean("amount"), min=Min("amount"),
            max=Max("amount"),
        ).current()  # fmt: skip
        app.run(count=count, collect=False)


__all__ = ["bytewax", "filled", "installed", "quix"]
