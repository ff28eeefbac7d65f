"""Decides which partitions are read, and where each resumes: all of them, or a group's share."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from kafka import KafkaConsumer, TopicPartition

from connectors.kafka.reading.commits import Commits
from connectors.kafka.reading.connection import Connection, LogRange
from connectors.kafka.reading.membership import Membership, Owners, parse_partition, partition_name
from connectors.kafka.reading.positions import Positions
from connectors.kafka.reading.settings import KafkaSourceSettings
from connectors.kafka.reading.topics import Topics
from engine.types import Mark

log = logging.getLogger("headrace.kafka")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPosition:
    """Where a partition resumes, as far as known.

    Attributes:
        at: the offset; None if unknown.
        topic_id: the id of the offset's topic; "" if unknown.
        owners: the members that have read the partition; None without a committed offset.
    """

    at: int | None
    topic_id: str
    owners: Owners | None = None


@dataclass(eq=False)
class Assignment(ABC):
    """The partitions that this engine reads."""

    settings: KafkaSourceSettings
    connection: Connection
    topics: Topics
    positions: Positions
    commits: Commits

    @abstractmethod
    def seek(self, mark: Mark) -> None:
        """Continue at the mark."""

    @abstractmethod
    def commit(self, mark: Mark) -> bool:
        """Commit, or record for a later commit; return whether the group accepted."""

    @abstractmethod
    def has_changed(self) -> bool:
        """Return whether partitions were added or removed since the last `resume`."""

    @abstractmethod
    def _resumed(self, consumer: KafkaConsumer, mark: Mark) -> dict[str, int]:
        """Return the positions to resume from. Commit the start of partitions without a committed
        offset."""

    def resume(self, mark: Mark) -> Mark:
        """Return the mark to resume from, with the partitions that are assigned now."""
        self.commits.fence()
        with self.connection.translated_errors():
            positions = self._resumed(self.connection.consumer(), mark)
        return Mark(positions=positions, stages=mark.stages)

    def before_poll(self) -> None:
        """Prepare the membership for a poll."""
        return

    def on_starts_refused(self) -> None:
        """Handle a group that has not accepted the offsets to start over from."""
        return

    def reset_offsets(self) -> None:
        """Start over: commit the initial position of every partition."""
        settings = self.settings
        self.commits.starting_over = True
        log.info("starting over", extra={"at": settings.start, "group": settings.group_id})
        if settings.group_id is None:
            return
        self.commits.fence()
        with self.connection.translated_errors():
            consumer = self.connection.consumer()
            partitions = self.connection.with_retries(lambda: self.topics.partitions(consumer))
            self.topics.learn_ids(consumer, {tp.topic for tp in partitions})
            ranges = self.connection.ranges(consumer, partitions)
            at = {
                partition_name(tp): self.positions.initial(consumer, tp, ranges[tp])
                for tp in partitions
            }
            accepted = self.commits.claim(consumer, at)
            self.commits.unclaimed = {}  # partitions of other members stay unchanged
        if not accepted:
            self.on_starts_refused()

    def _start(
        self,
        consumer: KafkaConsumer,
        tp: TopicPartition,
        known: KnownPosition,
        ids: Mapping[str, str],
        log_range: LogRange,
    ) -> int:
        """Return where a partition starts.

        Args:
            ids: the current ids of the topics.
        """
        if known.topic_id and ids.get(tp.topic, known.topic_id) != known.topic_id:
            reason = (
                f"Topic '{tp.topic}' was deleted and created again: {partition_name(tp)} has "
                "other records now"
            )
            return self.positions.reset(tp, log_range.first, log_range, reason)
        if known.at is None:
            return self.positions.initial(consumer, tp, log_range)
        return self.positions.in_range(tp, known.at, log_range)

    def _begin(
        self, consumer: KafkaConsumer, tp: TopicPartition, at: int, log_range: LogRange
    ) -> None:
        self.positions.begin(consumer, tp, at, log_range)
        self.topics.begun = True

    def _foreign_positions(self, mark: Mark) -> dict[str, int]:
        """Return the positions of partitions not read here, for instance of a topic of dead
        letters."""
        return {text: at for text, at in mark.positions.items() if not self.topics.reads(text)}


@dataclass(eq=False)
class AllPartitions(Assignment):
    """Every partition of the topics, read by this engine alone."""

    _count: int = field(default=0, init=False)
    _counted_at: float = field(default=0.0, init=False)

    def seek(self, mark: Mark) -> None:
        consumer = self.connection.consumer()
        positions = self._resumed(consumer, mark)
        partitions = [parse_partition(text) for text in positions if self.topics.reads(text)]
        consumer.assign(partitions)
        ranges = self.connection.ranges(consumer, partitions)
        for tp in partitions:
            self._begin(consumer, tp, positions[partition_name(tp)], ranges[tp])
        self.positions.stops = {tp: ranges[tp].end for tp in partitions}
        self._count, self._counted_at = len(partitions), time.monotonic()

    def _resumed(self, consumer: KafkaConsumer, mark: Mark) -> dict[str, int]:
        partitions = self.connection.with_retries(lambda: self.topics.partitions(consumer))
        before, ids = self.topics.update_ids(consumer, partitions)
        ranges = self.connection.ranges(consumer, partitions)
        positions: dict[str, int] = {}
        started: dict[str, int] = {}
        for tp in partitions:
            text = partition_name(tp)
            known = self._known_position(tp, mark, before.get(tp.topic, ""), ranges[tp])
            at = positions[text] = self._start(consumer, tp, known, ids, ranges[tp])
            if (known.owners is None or at != known.at) and mark.positions.get(text) != at:
                started[text] = at
        self.commits.claim(consumer, self.commits.still_unclaimed(positions) | started)
        self.commits.starting_over = False
        return {**self._foreign_positions(mark), **positions}

    def _known_position(
        self, tp: TopicPartition, mark: Mark, topic_id: str, log_range: LogRange
    ) -> KnownPosition:
        text = partition_name(tp)
        at = mark.positions.get(text)
        if at is None and self._count and text not in self.positions.starts:
            at = log_range.first  # partitions added later are read from their beginning
        if at is None and (committed := self.commits.committed_to(tp)) is not None:
            owners = Owners.parse(committed.metadata)
            return KnownPosition(at=committed.offset, topic_id=owners.topic_id, owners=owners)
        return KnownPosition(at=at, topic_id=topic_id)

    def commit(self, mark: Mark) -> bool:
        """Record the mark; the fetch thread commits it with its next read, or at the end."""
        self.commits.note(mark)
        return True

    def has_changed(self) -> bool:
        """Return whether there are partitions not read yet; checked every
        `Connection.metadata_seconds`."""
        now = time.monotonic()
        if (
            self.settings.stop == "end"
            or not self._count
            or now - self._counted_at < self.connection.metadata_seconds
        ):
            return False
        if self.connection.health.unreachable_since is not None:
            return False  # the loop would wait for an answer
        self._counted_at = now
        return self.topics.partition_count(self.connection.consumer()) > self._count


@dataclass(eq=False)
class GroupShare(Assignment):
    """The partitions that the group assigns to this engine.

    Attributes:
        membership: the membership in the group; `seek` joins.
    """

    membership: Membership
    _seen: frozenset[TopicPartition] = field(default=frozenset(), init=False)

    def seek(self, mark: Mark) -> None:
        """Join the group; once joined, read the assigned partitions that the mark names."""
        consumer, membership = self.connection.consumer(), self.membership
        if not membership.joined:
            # Also because the client would wait for a topic that does not exist.
            partitions = self.connection.with_retries(lambda: self.topics.partitions(consumer))
            self._seen = frozenset(partitions)
            membership.join(consumer, self.settings.topics, self.topics.pattern)
            return
        self.positions.forget()
        assigned = [tp for tp in membership.assigned if partition_name(tp) in mark.positions]
        ranges = self.connection.ranges(consumer, assigned)
        membership.set_reading(assigned)
        for tp in assigned:
            self._begin(consumer, tp, mark.positions[partition_name(tp)], ranges[tp])
        self.positions.unpause()

    def resume(self, mark: Mark) -> Mark:
        """Return the mark to resume from. A partition that came starts at the group's committed
        offset; if this very engine committed last, at its own checkpoint."""
        return super().resume(mark) if self.membership.joined else mark

    def _resumed(self, consumer: KafkaConsumer, mark: Mark) -> dict[str, int]:
        assigned = sorted(self.membership.take_assignment())
        self.connection.with_retries(consumer.topics)
        self.topics.check(consumer)  # a deleted topic may show as a rebalance only
        before, ids = self.topics.update_ids(consumer, assigned)
        ranges = self.connection.ranges(consumer, assigned)
        positions: dict[str, int] = {}
        started: dict[str, int] = {}
        for tp in assigned:
            text = partition_name(tp)
            known = self._known_position(tp, mark, before.get(tp.topic, ""), ranges[tp])
            at = positions[text] = self._start(consumer, tp, known, ids, ranges[tp])
            if known.owners is None or at != known.at:
                started[text] = at
            if known.at is None or text not in self.positions.nexts:
                self.commits.take_over(text, known.owners, at)
        self.commits.claim(consumer, self.commits.still_unclaimed(positions) | started)
        self.commits.starting_over = self.commits.starting_over and not assigned
        return {**self._foreign_positions(mark), **positions}

    def _known_position(
        self, tp: TopicPartition, mark: Mark, topic_id: str, log_range: LogRange
    ) -> KnownPosition:
        text, own = partition_name(tp), self.settings.group_instance_id
        at = mark.positions.get(text)
        if at is not None and text in self.positions.nexts:  # read here so far
            return KnownPosition(at=at, topic_id=topic_id, owners=Owners())
        committed = self.commits.committed_to(tp)
        if committed is None:
            added = bool(self._seen) and tp not in self._seen  # since the start
            return KnownPosition(
                at=log_range.first if added else None, topic_id=self.topics.first_id_of(tp.topic)
            )
        owners = Owners.parse(committed.metadata)
        if at is None or own is None or owners.newest != own:
            at = int(committed.offset)
        return KnownPosition(at=at, topic_id=owners.topic_id, owners=owners)

    def commit(self, mark: Mark) -> bool:
        """Commit and wait for the answer, since the group may refuse."""
        return self.commits.commit(self.membership, mark)

    def has_changed(self) -> bool:
        return self.membership.is_rebalancing

    def before_poll(self) -> None:
        if self.membership.joined:
            self.membership.rejoin_if_joining()

    def on_starts_refused(self) -> None:
        log.warning(
            "starting over in part: the group has other members, which continue; only the "
            "partitions assigned to this engine start over: to start over with all, stop "
            "every engine of the group first",
            extra={"group": self.settings.group_id},
        )


__all__ = ["AllPartitions", "Assignment", "GroupShare"]
