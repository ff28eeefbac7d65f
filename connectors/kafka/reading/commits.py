"""Commits offsets to the group, and fetches those it has."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition, errors

from connectors.kafka.client import SILENT_SECONDS, translated_errors
from connectors.kafka.reading.connection import Connection
from connectors.kafka.reading.membership import Membership, Owners, parse_partition, partition_name
from connectors.kafka.reading.positions import Positions
from connectors.kafka.reading.settings import KafkaSourceSettings
from connectors.kafka.reading.topics import Topics
from engine.types import HeadraceError, Mark, UserError

log = logging.getLogger("headrace.kafka")
CLOSE_SECONDS = 1.5
"""The most seconds for the last commit, and then for leaving the group: a stop must be done
within 5 s."""
COMMIT_SECONDS = 2.0
"""The seconds a member waits for the answer to a commit."""
CLAIM_SECONDS = 0.5
"""The seconds between two attempts to commit the start positions of new partitions."""
EVICTED = (
    errors.CommitFailedError,
    errors.UnknownMemberIdError,
    errors.IllegalGenerationError,
)
"""Answers to a commit that tell a member that it was evicted."""
PASSING = (*EVICTED, errors.RebalanceInProgressError)
"""Those, and answers during a rebalance, after which the member rejoins."""
NOT_A_MEMBER = (*EVICTED, errors.FencedInstanceIdError)
"""Answers to a commit from outside the group: the group has members."""


class Commits:
    """The offsets of a source in its group. The main thread calls `offsets`, `note` and `commit`,
    the fetch thread the rest.

    Attributes:
        fence_producer: called before committed offsets are fetched, if transactions commit them:
            it ends the transaction that an earlier process of this engine left open.
        starting_over: whether to ignore the group's committed offsets.
        unclaimed: partition -> its start, until the group has accepted it.
        failed: the number of commits that failed.
    """

    def __init__(
        self,
        settings: KafkaSourceSettings,
        connection: Connection,
        topics: Topics,
        positions: Positions,
        membership: Membership | None,
    ) -> None:
        self.fence_producer: Callable[[], object] | None = None
        self.starting_over = False
        self.unclaimed: dict[str, int] = {}
        self.failed = 0
        self._settings = settings
        self._connection = connection
        self._topics = topics
        self._positions = positions
        self._membership = membership
        self._owners: dict[str, Owners] = {}
        self._claimed_at = 0.0
        self._marks: deque[Mark] = deque(maxlen=1)
        self._failing = False
        self._failing_since: float | None = None

    def fence(self) -> None:
        """End a transaction that an earlier process of this engine left open, if any."""
        if self.fence_producer is not None:
            self.fence_producer()

    # ----------------------------------------------------------------------- what is committed

    def offsets(self, mark: Mark) -> dict[TopicPartition, OffsetAndMetadata]:
        """Return the offsets of a mark to commit: those of partitions read here."""
        return {
            parse_partition(text): self._offset(text, position)
            for text, position in mark.positions.items()
            if text in self._positions.nexts
            and self._topics.is_current(parse_partition(text).topic)
        }

    def group_metadata(self) -> Any:
        """Return the group metadata for a transactional offset commit."""
        return self._connection.consumer().group_metadata()

    def _offset(self, text: str, position: int) -> OffsetAndMetadata:
        owners = Owners()
        if self._settings.group_instance_id is not None:
            owners = self._owners.get(text, owners)
        known = replace(owners, topic_id=self._topics.id_of(parse_partition(text).topic))
        return OffsetAndMetadata(position, known.text(), -1)

    def take_over(self, text: str, owners: Owners | None, at: int) -> None:
        """Record that this engine reads a partition from `at`, after these owners."""
        own = self._settings.group_instance_id
        if own is not None:
            self._owners[text] = (owners or Owners()).with_owner(own, at)

    # -------------------------------------------------------------------- while this reads alone

    def note(self, mark: Mark) -> None:
        """Record a mark, which the next `send_noted` commits."""
        self._marks.append(mark)

    def send_noted(self) -> None:
        """Send the newest mark, if there is one."""
        if (offsets := self._noted()) is not None and offsets:
            self._connection.consumer().commit_async(offsets, self._on_commit)

    def send_last(self, consumer: KafkaConsumer) -> None:
        """Send the newest mark, if there is one, and wait for the answer: it is the last."""
        try:
            with translated_errors(self._settings, "[source] commit"):
                if (offsets := self._noted()) is not None:
                    consumer.commit(offsets, timeout_ms=int(CLOSE_SECONDS * 1000))
        except HeadraceError as error:
            self.failed += 1
            cause = error.__cause__
            self._warn_failing(cause if isinstance(cause, Exception) else error)

    def _noted(self) -> dict[TopicPartition, OffsetAndMetadata] | None:
        if self._settings.group_id is None or not self._marks:
            return None
        return self.offsets(self._marks.popleft())

    def _on_commit(self, _: object, answer: object) -> None:
        """Handle the answer to an asynchronous commit, on the client's own thread."""
        if isinstance(answer, Exception):
            self._on_failed(answer)
            return
        self._failing_since = None
        if self._failing:
            self._failing = False
            log.info("commits arrive again", extra={"group": self._settings.group_id})

    def _on_failed(self, error: Exception) -> None:
        """Count a failed commit, and warn unless the next one may succeed. `BrokerHealth` reports
        an unreachable broker."""
        self.failed += 1
        now = time.monotonic()
        passing = isinstance(error, errors.KafkaError) and error.retriable
        if passing and self._connection.health.unreachable_since is not None:
            self._failing_since = None
            return
        self._failing_since = self._failing_since or now
        if not passing or now - self._failing_since >= SILENT_SECONDS:
            self._warn_failing(error)

    def _warn_failing(self, error: Exception) -> None:
        """Warn once that commits fail; reset by the next success."""
        if self._membership is not None or self._failing:
            return
        self._failing = True
        foreign = isinstance(error, NOT_A_MEMBER)
        log.warning(
            "commits fail: the group has members that joined it, and this engine only "
            "commits under its name; its checkpoints hold its positions, and the group's offsets "
            "are not its own: use another group for one of them"
            if foreign
            else "commits fail; the checkpoints hold the positions",
            extra={"group": self._settings.group_id, "reason": type(error).__name__},
        )

    # ----------------------------------------------------------------------------- as a member

    def commit(self, membership: Membership, mark: Mark) -> bool:
        """Commit as a member and wait for the answer; return whether the group accepted."""
        offsets = self.offsets(mark)
        if not offsets:
            return True
        if membership.partitions_lost:
            return False
        try:
            with self._connection.translated_errors():
                return self._committed(membership, offsets)
        except UserError:
            raise
        except HeadraceError as error:  # the next commit includes these offsets
            cause = error.__cause__ or error
            log.warning("commit failed", extra={"reason": f"{type(cause).__name__}: {cause}"})
            self.failed += 1
            return False

    def _committed(
        self, membership: Membership, offsets: dict[TopicPartition, OffsetAndMetadata]
    ) -> bool:
        consumer = self._connection.consumer()
        try:
            consumer.commit(offsets, timeout_ms=int(COMMIT_SECONDS * 1000))
        except EVICTED as error:
            log.warning("commit refused", extra={"reason": type(error).__name__})
            self.failed += 1
            membership.on_evicted()
            return False
        except errors.RebalanceInProgressError:
            log.info("commit waits for the rebalance to end")
            return False
        return True

    # -------------------------------------------------------------------- where partitions start

    def claim(self, consumer: KafkaConsumer, positions: Mapping[str, int]) -> bool:
        """Commit the start of partitions without a committed offset; otherwise the next owner
        would choose its own start and skip records. Return whether the group accepted; nothing is
        read until it has."""
        self.unclaimed, self._claimed_at = dict(positions), time.monotonic()
        if self._settings.group_id is None or not positions:
            self.unclaimed = {}
            return True
        started = {parse_partition(text): self._offset(text, at) for text, at in positions.items()}
        try:
            consumer.commit(started, timeout_ms=int(COMMIT_SECONDS * 1000))
        except errors.KafkaError as error:
            self._on_failed(error)
            joins = self._membership is not None and isinstance(error, PASSING)
            if not (error.retriable or joins):
                self.unclaimed = {}  # as with foreign members: warn and continue
            return False
        self.unclaimed = {}
        return True

    def still_unclaimed(self, positions: Mapping[str, int]) -> dict[str, int]:
        """Return the starts that the group has not accepted, of partitions still read here."""
        return {text: at for text, at in self.unclaimed.items() if positions.get(text) == at}

    def claim_again(self, consumer: KafkaConsumer) -> None:
        """Retry rejected starts; for a revoked partition the new owner commits it."""
        if not self.unclaimed or time.monotonic() - self._claimed_at < CLAIM_SECONDS:
            return
        kept = self.unclaimed
        if self._membership is not None:
            assigned = {partition_name(tp) for tp in self._membership.assigned}
            kept = {text: at for text, at in kept.items() if text in assigned}
        self.claim(consumer, kept)

    # ----------------------------------------------------------------------- what the group has

    def committed_to(self, tp: TopicPartition) -> OffsetAndMetadata | None:
        """Return the group's committed offset, if there is a group and its offsets count."""
        if self._settings.group_id is None or self.starting_over:
            return None
        return self._ask_committed(tp)

    def _ask_committed(self, tp: TopicPartition) -> OffsetAndMetadata | None:
        wait = int(self._settings.timeout * 1000)
        committed = self._connection.with_retries(
            lambda: self._connection.consumer().committed(tp, metadata=True, timeout_ms=wait)
        )
        assert committed is None or isinstance(committed, OffsetAndMetadata)
        return committed

    def were_committed(self, positions: Mapping[str, int]) -> bool | None:
        """Return whether a checkpoint at these positions was committed, see
        `KafkaSource.was_committed`; None if the group has no record of this engine."""
        agreements: list[bool] = []
        self.fence()
        with self._connection.translated_errors():
            consumer = self._connection.consumer()
            self._connection.with_retries(consumer.topics)
            topics = {parse_partition(text).topic for text in positions}
            now = self._topics.ids_now(consumer, topics)
            for text, position in positions.items():
                tp = parse_partition(text)
                current = now.get(tp.topic, "")
                if current != (self._topics.id_of(tp.topic) or current):
                    # the group no longer has it: `resume_after_rebalance` handles that
                    agreements.append(True)
                elif (agrees := self._agrees(tp, position)) is not None:
                    agreements.append(agrees)
        return all(agreements) if agreements else None

    def _agrees(self, tp: TopicPartition, position: int) -> bool | None:
        """Return whether the group's offset, or the end of this member's part in its metadata, is
        the position; None if the metadata does not have this member. Without a name it has no
        part: others may have gone on, so the offset must have reached the position."""
        committed = self._ask_committed(tp)
        if committed is None:
            return False
        own = self._settings.group_instance_id
        if self._membership is None:
            return bool(committed.offset == position)
        if own is None:
            return bool(committed.offset >= position)
        end = Owners.parse(committed.metadata).end(own, committed.offset)
        return None if end is None else end == position


__all__ = ["Commits"]
