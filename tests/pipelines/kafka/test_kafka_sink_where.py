"""`[sink] where` on topics: only some rows are written, exactly once where that is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.run import Run
from tests.broker import shared_broker
from tests.crash.kit import records

N = 300
CLEAN = """
name = "alerts"
folder = "{folder}/run"
[source]
{kafka}
stop = "end"
topics = "{topic}"
group_id = "{topic}"
[source.schema]
id = "int64"
a = "float64"
[loader]
batch_rows = 50
[sink]
{kafka}
topic = "{out}"
columns = ["id", "a"]
where = "a > 3"
{more}
"""
EXACTLY_ONCE = 'exactly_once = true\ncommit_interval = "1h"'


@pytest.mark.parametrize("more", ["", EXACTLY_ONCE])
def test_only_some_rows_go_to_a_topic(more: str, tmp_path: Path) -> None:
    broker = shared_broker()
    topic, out = broker.topic(), broker.topic()
    rows = [{"id": i, "a": float(i % 7)} for i in range(N)]
    broker.produce(topic, [json.dumps(row).encode() for row in rows])
    kafka = f'kind = "kafka"\nbootstrap_servers = "{broker.bootstrap_servers}"'
    file = tmp_path / "p.toml"
    file.write_text(CLEAN.format(folder=tmp_path, kafka=kafka, topic=topic, out=out, more=more))
    totals = Run(file).run().totals
    found = [json.loads(each.value)["id"] for each in records(broker.bootstrap_servers, out)]
    assert sorted(found) == [i for i in range(N) if i % 7 > 3]
    assert totals.cleaned == N
    assert totals.counts["sink", "not_written"] == N - len(found)
