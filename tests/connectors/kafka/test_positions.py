"""How much of a topic is read: of all of it, wherever this process began."""

from __future__ import annotations

from typing import Any

import pytest
from kafka import TopicPartition

from connectors.kafka.reading.connection import LogRange
from connectors.kafka.reading.positions import Positions
from connectors.kafka.source import KafkaSource
from engine.types import Mark


class Client:
    """Takes every seek."""

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Nothing is read here."""


@pytest.mark.parametrize(
    ("start", "shares"), [("earliest", [5 / 9, 7 / 9, 1.0]), ("latest", [0.0, 0.5, 1.0])]
)
def test_a_resumed_topic_counts_from_its_first_record(start: Any, shares: list[float]) -> None:
    """Where it began is known of its log alone; a start elsewhere is that of this process."""
    settings = KafkaSource.Settings(topics="t", stop="end", start=start)
    connection: Any = None
    client: Any = Client()
    positions = Positions(settings, connection)
    assert positions.progress(Mark()) == 0.0
    for number, at in enumerate((70, 50)):
        partition = TopicPartition("t", number)
        positions.begin(client, partition, at, LogRange(first=10, end=110 - 20 * number))
        positions.stops[partition] = 110 - 20 * number
    marks = [{}, {"t/0": 90, "t/1": 70}, {"t/0": 120, "t/1": 90}]
    assert [positions.progress(Mark(positions=each)) for each in marks] == pytest.approx(shares)
