"""A topic and files as one source."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from kafka import KafkaConsumer, TopicPartition

from engine.config import Pipeline
from engine.run import Run
from tests.broker import shared_broker


def test_a_topic_beside_files_goes_on_where_it_was(tmp_path: Path) -> None:
    """Each row once over two runs; the group knows how far the topic was read; a poisoned record
    is a dead letter that names its source and the topic."""
    broker = shared_broker()
    topic = broker.topic(partitions=2)
    pl.DataFrame({"n": range(1_000, 2_000)}).write_parquet(tmp_path / "rows.parquet")
    table = {
        "name": "mixed",
        "folder": str(tmp_path / "run"),
        "source": {
            "kind": "mix",
            "rows_per_turn": 10,
            "sources": {
                "live": {
                    "kind": "kafka",
                    "bootstrap_servers": broker.bootstrap_servers,
                    "topics": [topic],
                    "group_id": topic,
                    "stop": "end",
                    "weight": 2,
                },
                "old": {"kind": "files", "path": str(tmp_path / "rows.parquet")},
            },
            "schema": {"n": "int64"},
        },
        "loader": {"batch_rows": 64},
        "sink": {"kind": "files", "path": str(tmp_path / "out")},
    }

    broker.produce(topic, [b'{"n":%d}' % i for i in range(600)] + [b'{"n":"x"}'])
    first = Run(Pipeline.of(table)).run().totals
    assert (first.read, first.cleaned, first.rejected) == (1_601, 1_600, 1)
    broker.produce(topic, [b'{"n":%d}' % i for i in range(600, 1_000)], partition=1)
    second = Run(Pipeline.of(table)).run().totals
    assert second.read - first.read == 400
    assert second.balanced

    found = pl.read_parquet(tmp_path / "out" / "part-*.parquet")["n"]
    assert found.sort().to_list() == list(range(2_000))
    (letter,) = (tmp_path / "run" / "dead_letters").glob("*.ndjson")
    place = pl.read_ndjson(letter)["_partition"].item()
    assert place.startswith(f"live:{topic}/")
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, group_id=topic)
    places = [TopicPartition(topic, n) for n in range(2)]
    done = {place: consumer.committed(place) for place in places}
    assert done == consumer.end_offsets(places)
    consumer.close()
