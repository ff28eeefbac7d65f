"""Settings that reach the client: each value arrives where it works."""

from __future__ import annotations

from typing import Literal

import polars as pl
import pytest

from connectors.kafka.reading.membership import ASSIGNORS, consumer_settings
from connectors.kafka.sink import KafkaSink
from connectors.kafka.source import KafkaSource
from engine.types import HeadraceError
from tests.connectors.conftest import records

ADDRESS = "localhost:1"
Assignor = Literal["cooperative-sticky", "sticky", "range", "roundrobin"]


@pytest.mark.parametrize("assignor", ["cooperative-sticky", "sticky", "range", "roundrobin"])
def test_the_group_shares_by_the_assignor_of_that_name(assignor: Assignor) -> None:
    settings = KafkaSource.Settings(
        topics=["a"], bootstrap_servers=ADDRESS, group_id="g", assignor=assignor
    )
    made = consumer_settings("g", None, settings.assignor, 30.0, 30.0)
    assert [kind.name for kind in made["partition_assignment_strategy"]] == [assignor]
    assert len({ASSIGNORS[name] for name in ASSIGNORS}) == len(ASSIGNORS)


@pytest.mark.parametrize("seconds", [0.25, 5.0])
def test_a_transaction_is_as_long_as_asked(seconds: float) -> None:
    source = KafkaSource(
        KafkaSource.Settings(topics=["a"], bootstrap_servers=ADDRESS, group_id="g")
    )
    sink = KafkaSink(
        KafkaSink.Settings(
            topic="b", bootstrap_servers=ADDRESS, exactly_once=True, commit_interval=seconds
        )
    )
    transaction = sink.transaction(source)
    assert transaction is not None
    assert transaction.every == seconds


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_a_registry_that_is_down_is_asked_again_as_long_as_that(
    seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    source = KafkaSource(
        KafkaSource.Settings(
            topics=["a"],
            bootstrap_servers=ADDRESS,
            format="avro",
            registry=f"http://{ADDRESS}",
            registry_retry_timeout=seconds,
        )
    )
    with pytest.raises(HeadraceError, match="does not answer"):
        source.format.decode(records(b"\0\0\0\0\5x"), {"id": pl.Int64()})
    again = [vars(r)["seconds"] for r in caplog.records if r.name == "headrace.registry"]
    assert len(again) == (seconds > 0)
    assert all(0 < left <= seconds for left in again)
