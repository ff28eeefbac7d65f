"""Membership of a consumer group: assigned and revoked partitions, and their owners."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

from kafka import AsyncConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from kafka.errors import KafkaTimeoutError

from connectors.kafka.client_internals import Future, rejoin_if_joining, resolve, wait_for

log = logging.getLogger("headrace.kafka")
ASSIGNORS = {
    "cooperative-sticky": CooperativeStickyAssignor,
    "sticky": StickyPartitionAssignor,
    "range": RangePartitionAssignor,
    "roundrobin": RoundRobinPartitionAssignor,
}
MAX_OWNERS = 16
"""The owners of a partition remembered in its committed offset: brokers allow 4,096 bytes."""


class Membership(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    """Handles the group's rebalances. Its callbacks run on the client's thread; the reading
    thread waits meanwhile.

    A rebalance that revokes partitions in use waits until the loop has saved and committed finished
    work (`release`), at most `seconds`. Then they are revoked; if work was not committed, another
    member reads it again: `partitions_lost`.

    Attributes:
        assigned: the partitions assigned to this engine now.
        is_rebalancing: whether the assignment changed since the last `take_assignment`.
        partitions_lost: whether partitions were revoked before their work was committed.
    """

    def __init__(self, seconds: float) -> None:
        self.assigned: frozenset[TopicPartition] = frozenset()
        self.is_rebalancing = False
        self.partitions_lost = False
        self._seconds = seconds
        self._consumer: KafkaConsumer | None = None
        self._reading: frozenset[TopicPartition] = frozenset()
        self._released: Future | None = None
        self._lock = threading.Lock()

    @property
    def joined(self) -> bool:
        """Whether this engine has joined, or is joining, the group."""
        return self._consumer is not None

    def join(self, consumer: KafkaConsumer, topics: Iterable[str], pattern: str | None) -> None:
        """Join the group; later polls receive partitions."""
        self._consumer = consumer
        if pattern is None:
            consumer.subscribe(topics=list(topics), listener=self)
        else:
            consumer.subscribe(pattern=pattern, listener=self)

    def set_reading(self, partitions: Iterable[TopicPartition]) -> None:
        """Record that these partitions are being read, so they may be revoked only after a
        release."""
        with self._lock:
            self._reading = frozenset(partitions)

    def rejoin_if_joining(self) -> None:
        """Call before every poll; see `client_internals.rejoin_if_joining`."""
        assert self._consumer is not None
        rejoin_if_joining(self._consumer)

    @property
    def is_revoking(self) -> bool:
        """Whether partitions wait to be revoked."""
        return self._released is not None

    def release(self) -> None:
        """Allow pending revocations; no partition is being read."""
        with self._lock:
            self._reading = frozenset()
            released, self._released = self._released, None
        if released is not None:
            assert self._consumer is not None
            resolve(self._consumer, released)

    def take_assignment(self) -> frozenset[TopicPartition]:
        """Return the current assignment; nothing moves until it is read."""
        with self._lock:
            self.is_rebalancing = self.partitions_lost = False
            return self.assigned

    def on_evicted(self) -> None:
        """Handle a rejected commit: the group has evicted this member."""
        self.is_rebalancing = self.partitions_lost = True

    # ------------------------------------------------------------------- what the client calls

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Wait for the loop to release the partitions."""
        with self._lock:
            if not revoked & self.assigned:
                return
            self.assigned -= revoked
            self.is_rebalancing = True
            if not revoked & self._reading:
                return
            released = self._released = Future()
        assert self._consumer is not None
        try:
            await wait_for(self._consumer, released, self._seconds)
        except KafkaTimeoutError:
            self.partitions_lost, self._released = True, None
            log.warning(
                "partitions were revoked before their work was committed",
                extra={"partitions": names(revoked), "waited": self._seconds},
            )

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Pause the partitions until the loop sets their starts: kafka-python would start them
        itself."""
        assert self._consumer is not None
        with self._lock:
            new = assigned - self.assigned
            self.assigned |= assigned
            self.is_rebalancing = True
        for tp in new:
            self._consumer.pause(tp)
            self._consumer.seek(tp, 0)

    async def on_partitions_lost(self, lost: set[TopicPartition]) -> None:
        """Note that the partitions were lost: others read them already."""
        with self._lock:
            self.assigned -= lost
            self.is_rebalancing = True
            self.partitions_lost = self.partitions_lost or bool(lost & self._reading)
        log.warning("thrown out of the group", extra={"partitions": names(lost)})


@dataclass(frozen=True, slots=True)
class Owners:
    """The members that have read a partition, stored in the metadata of its committed offset.

    Attributes:
        owners: (member, offset at which it began), the newest first.
        topic_id: the id of the offset's topic; "" if unknown.
    """

    owners: tuple[tuple[str, int], ...] = ()
    topic_id: str = ""

    @classmethod
    def parse(cls, metadata: str | None) -> Self:
        """Parse a commit's metadata; no owners if another program wrote it."""
        try:
            value = json.loads(metadata or "{}")
            owners = tuple((str(m), int(at)) for m, at in value.get("owners", ()))
            return cls(owners, str(value.get("topic_id", "")))
        except (ValueError, TypeError, AttributeError):
            return cls()

    def text(self) -> str:
        """Return the metadata."""
        known = {"topic_id": self.topic_id, "owners": self.owners}
        return json.dumps({k: v for k, v in known.items() if v}, separators=(",", ":"))

    @property
    def newest(self) -> str | None:
        """The current owner."""
        return self.owners[0][0] if self.owners else None

    def with_owner(self, group_instance_id: str, at: int) -> Owners:
        """Return the owners with `group_instance_id` continuing at offset `at`."""
        if self.newest == group_instance_id:
            return self
        return replace(self, owners=((group_instance_id, at), *self.owners)[:MAX_OWNERS])

    def end(self, group_instance_id: str, committed: int) -> int | None:
        """Return where `group_instance_id` ended: the committed offset if it is the owner, else
        where the next one began; None if forgotten."""
        for i, (owner, _) in enumerate(self.owners):
            if owner == group_instance_id:
                return committed if i == 0 else self.owners[i - 1][1]
        return None


def names(partitions: Iterable[TopicPartition]) -> list[str]:
    """Return the partitions' names in headrace."""
    return sorted(partition_name(tp) for tp in partitions)


def partition_name(tp: TopicPartition) -> str:
    """Return ``topic/3``."""
    return f"{tp.topic}/{tp.partition}"


def parse_partition(text: str) -> TopicPartition:
    """Parse ``topic/3``."""
    topic, _, number = text.rpartition("/")
    return TopicPartition(topic, int(number))


def consumer_settings(
    group: str, group_instance_id: str | None, assignor: str, session_timeout: float, seconds: float
) -> dict[str, Any]:
    """Return the configuration of a member's consumer."""
    return {
        "group_id": group,
        "group_instance_id": group_instance_id,
        "partition_assignment_strategy": (ASSIGNORS[assignor],),
        "session_timeout_ms": int(session_timeout * 1000),
        "heartbeat_interval_ms": int(min(3.0, session_timeout / 3) * 1000),
        # Also how long the group waits for a member in a rebalance; this one polls all the time.
        "max_poll_interval_ms": int(max(60.0, 2 * seconds) * 1000),
    }


__all__ = [
    "ASSIGNORS",
    "Membership",
    "Owners",
    "consumer_settings",
    "names",
    "parse_partition",
    "partition_name",
]
