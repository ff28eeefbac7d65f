"""Reads topics: columns from the wire, offsets as positions."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import TypeAlias

from connectors.kafka.client import same_broker
from connectors.kafka.producer import TopicSettings
from connectors.kafka.reading.assignment import AllPartitions, Assignment, GroupShare
from connectors.kafka.reading.commits import CLOSE_SECONDS, Commits
from connectors.kafka.reading.connection import Connection
from connectors.kafka.reading.decoding import TopicDecoding
from connectors.kafka.reading.membership import Membership
from connectors.kafka.reading.positions import Positions
from connectors.kafka.reading.reader import Reader
from connectors.kafka.reading.settings import KafkaSourceSettings
from connectors.kafka.reading.topics import Topics
from engine.types import (
    Buffered,
    EndOfStream,
    Format,
    Mark,
    Records,
    Schema,
    SharedSource,
    Sink,
    Snapshot,
)


class KafkaSource(SharedSource, Buffered):
    """Reads topics. A partition is named ``topic/3``; positions are offsets.

    Without `subscribe`, this process reads all partitions of the topics. A partition resumes at the
    checkpoint's position; one that is not in the checkpoint starts at the group's committed offset,
    if there is a `group_id`, else at `start`. Partitions added later are read from their beginning.
    Marks and commits also hold the ids of topics, because offsets mean nothing in a topic that was
    recreated under the same name.

    With `subscribe`, the partitions are shared with the other members of the group, and each
    resumes at the group's committed offset. An engine that keeps a state (it trains, or a stage
    learns) has its own name in the group, `group_instance_id`. Rows it has read stay in its state
    when a partition moves; the next owner continues after them. The metadata of a committed offset
    lists the owners, so that a returning engine knows which of its checkpoints were committed.

    Attributes:
        commits: the offsets in the group; a sink's transaction uses them.
    """

    Settings: TypeAlias = KafkaSourceSettings

    def __init__(self, settings: KafkaSourceSettings) -> None:
        """Raises: UserError for settings that do not fit together."""
        self.settings: KafkaSourceSettings = settings
        self._decoding = TopicDecoding(settings)
        self.format: Format = self._decoding.format
        self._connection = Connection(settings, self._decoding)
        self._topics = Topics(settings, self._connection)
        self._positions = Positions(settings, self._connection)
        self._membership = Membership(settings.rebalance_timeout) if settings.subscribe else None
        self.commits = Commits(
            settings, self._connection, self._topics, self._positions, self._membership
        )
        self._assignment = self._assigned()
        self._reader = Reader(self._connection, self._decoding, self._topics, self._positions)
        self._mark = Mark()

    def _assigned(self) -> Assignment:
        parts = self.settings, self._connection, self._topics, self._positions, self.commits
        if self._membership is None:
            return AllPartitions(*parts)
        return GroupShare(*parts, self._membership)

    # ---------------------------------------------------------------------- before it is read

    def keep_metadata(self) -> None:
        self._connection.with_metadata = True

    def unbounded(self) -> bool:
        return self.settings.stop == "never"

    def schema(self, declared: Schema) -> Schema:
        """Raises: UserError if nothing is declared: a topic does not say what it holds."""
        return self._decoding.schema(declared)

    @property
    def has_lines(self) -> bool:
        """Whether the format expects one line per value."""
        return self._decoding.has_lines

    def origin_columns(self) -> Collection[str]:
        """Return what [source.record] requests."""
        return self._decoding.record_schema.keys()

    def reads_output_of(self, sink: Sink) -> str | None:
        """Return the sink's topic if this source reads it, under any of its brokers' names."""
        written = sink.settings
        if not isinstance(written, TopicSettings):
            return None
        if not self._topics.reads(f"{written.topic}/0") or not same_broker(self.settings, written):
            return None
        return f"topic '{written.topic}'"

    def limit_memory(self, nbytes: int) -> None:
        if "fetch_max_bytes" not in self.settings.model_fields_set:
            # The client asks for the next answer when it gives the last: it holds two.
            limit = min(self._connection.fetch_bytes, nbytes // 2)
            self._connection.fetch_bytes = max(1 << 16, limit)

    # -------------------------------------------------------------------------- while it is read

    def seek(self, mark: Mark) -> None:
        """Seek. In a group, only partitions named by the mark are read: `resume_after_rebalance`
        names them.

        Raises: UserError for a topic that is not there, or an offset the log has not.
        """
        self._mark = mark
        self._reader.clear()
        with self._connection.translated_errors():
            self._assignment.seek(mark)

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        if self._connection.opened is None:
            self.seek(self._mark)
        self.commits.send_noted()
        self._positions.pause(bool(self.commits.unclaimed))
        if self._reader.is_empty:
            if self._positions.ended():
                raise EndOfStream
            self._poll(timeout)
        return self._reader.take(max_rows, max_bytes)

    def _poll(self, timeout: float) -> None:
        with self._connection.translated_errors():
            consumer = self._connection.consumer()
            self._assignment.before_poll()
            self._reader.poll(consumer, timeout)
            self.commits.claim_again(consumer)
            self._connection.check(consumer)
            self._topics.check(consumer)

    def keep_alive(self) -> None:
        """Poll with all partitions paused, as a member."""
        consumer = self._connection.opened
        if consumer is None:
            return
        if self._membership is None:
            self.commits.send_noted()
            with self._connection.translated_errors():
                self._connection.check(consumer)
            return
        self._positions.pause(True)
        with self._connection.translated_errors():
            self._assignment.before_poll()
            self._reader.poll(consumer, 0.01)
            self._connection.check(consumer)
            self._topics.check(consumer)

    @property
    def nbytes(self) -> int:
        """The bytes fetched and not returned yet, as of the last read."""
        return self._reader.nbytes

    def commit(self, mark: Mark) -> bool:
        """Commit. A member waits for the answer, since the commit may be refused. Otherwise the
        reading thread sends it with its next read or at the end."""
        return self._assignment.commit(mark)

    def lag(self, mark: Mark) -> Mapping[str, int]:
        """Return partition -> records after the mark, for partitions read here."""
        return self._positions.lag(mark)

    def unread(self, mark: Mark) -> Mapping[str, int]:
        """Return the same without what no reader gets: markers, and aborted transactions."""
        passed = self._reader.passed()
        ends = self._positions.ends
        return {
            text: max(0, ends[text] - passed[text]) if text in passed else behind
            for text, behind in self.lag(mark).items()
        }

    def progress(self, mark: Mark) -> float | None:
        """Return the share of the offsets between start and stop."""
        return self._positions.progress(mark)

    def counts(self) -> Mapping[str, int]:
        return {"skipped": self._positions.skipped, "commit_failures": self.commits.failed}

    def unavailable_reason(self) -> str | None:
        if (since := self._connection.health.unreachable_since) is not None:
            return f"no broker is in reach since {time.monotonic() - since:.0f} s"
        if self.commits.unclaimed:
            return "the group has not taken yet where its partitions are begun"
        return None if self._positions.nexts else "no partition is assigned"

    def close(self) -> None:
        """Send the last commit and close. May be called twice."""
        consumer = self._connection.detach()
        if consumer is None:
            return
        self.release_partitions()
        try:
            self.commits.send_last(consumer)
        finally:
            consumer.close(autocommit=False, timeout_ms=int(CLOSE_SECONDS * 1000))

    # ---------------------------------------------------------------------- partitions that move

    @property
    def shares_partitions(self) -> bool:
        return self.settings.subscribe

    @property
    def tracks_owners(self) -> bool:
        """Whether its `group_instance_id` identifies it in the group."""
        return self.settings.group_instance_id is not None

    def is_rebalancing(self) -> bool:
        """Return whether partitions moved; without `subscribe`, whether there are more than are
        read, checked every `Connection.metadata_seconds`."""
        return bool(self._topics.recreated) or self._assignment.has_changed()

    @property
    def partitions_lost(self) -> bool:
        return self._membership is not None and self._membership.partitions_lost

    @property
    def is_revoking(self) -> bool:
        return self._membership is not None and self._membership.is_revoking

    def release_partitions(self) -> None:
        if self._membership is not None:
            self._membership.release()

    def resume_after_rebalance(self, mark: Mark) -> Mark:
        """Resume. An assigned partition starts where the group committed; if this engine
        committed last, at its own checkpoint."""
        return self._assignment.resume(mark)

    def reset_offsets(self) -> None:
        """Reset the group's offsets at once, so that a start that is killed now does not resume
        in the middle; if the group has members, with the first assignment."""
        self._assignment.reset_offsets()

    def was_committed(self, positions: Mapping[str, int]) -> bool | None:
        """Return, for a member with a name, whether it ended at these positions, by the offsets'
        metadata; for one without, whether the group's offsets have reached them; otherwise, whether
        they are the group's offsets."""
        positions = {text: at for text, at in positions.items() if self._topics.reads(text)}
        if self.settings.group_id is None or not positions:
            return True
        return self.commits.were_committed(positions)

    def in_effect(self) -> Mapping[str, Snapshot]:
        """Return the group: only members resume from its offsets."""
        return {} if self.settings.subscribe else {"group_id": None}

    def identities(self, mark: Mark) -> Mapping[str, Snapshot]:
        """Return partition -> the id of its topic; partitions not read here keep theirs."""
        return self._topics.identities(mark)

    def match_identities(self, identities: Mapping[str, Snapshot]) -> None:
        """Match the topics' ids to a checkpoint's; `resume_after_rebalance` acts on the result."""
        self._topics.match_identities(identities)


__all__ = ["KafkaSource"]
