"""Tracks where each partition starts, continues, and ends."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from kafka import KafkaConsumer, TopicPartition

from connectors.kafka.reading.connection import Connection, LogRange
from connectors.kafka.reading.membership import parse_partition, partition_name
from connectors.kafka.reading.settings import KafkaSourceSettings
from engine.types import HeadraceError, Mark

log = logging.getLogger("headrace.kafka")


class Positions:
    """The offsets of the partitions read here. The fetch thread writes them; the main thread
    calls `lag` and `progress`.

    Attributes:
        nexts: partition -> the offset to read next.
        starts: partition -> the offset at which this process started.
        stops: partition -> the offset at which reading ends, if it is bounded.
        skipped: the number of records deleted before they were read.
    """

    def __init__(self, settings: KafkaSourceSettings, connection: Connection) -> None:
        self.nexts: dict[str, int] = {}
        self.starts: dict[str, int] = {}
        self.stops: dict[TopicPartition, int] = {}
        self.skipped = 0
        self._ends: dict[str, int] = {}
        self._begins: dict[str, int] = {}
        """Partition -> the offset that progress is counted from."""
        self._paused = False
        self._settings = settings
        self._connection = connection

    # ----------------------------------------------------------------------- where one starts

    def initial(self, consumer: KafkaConsumer, tp: TopicPartition, log_range: LogRange) -> int:
        """Return where a partition without a known position starts."""
        start = self._settings.start
        if isinstance(start, int):
            offsets = self._connection.with_retries(lambda: consumer.offsets_for_times({tp: start}))
            offset = offsets[tp]
            return log_range.end if offset is None else int(offset.offset)
        return log_range.first if start == "earliest" else log_range.end

    def in_range(self, tp: TopicPartition, at: int, log_range: LogRange) -> int:
        """Return the position, or its replacement if the log no longer, or not yet, has it."""
        first, end = log_range.first, log_range.end
        if first <= at <= end:
            return at
        reason = (
            f"{partition_name(tp)} has offsets {first} to {end}, and the next offset is {at}: "
            "records were deleted (retention?)"
        )
        return self.reset(tp, at, log_range, reason)

    def reset(self, tp: TopicPartition, at: int, log_range: LogRange, reason: str) -> int:
        """Return where `auto_offset_reset` continues. Raises: HeadraceError if it is ``fail``."""
        if self._settings.auto_offset_reset == "fail":
            raise HeadraceError(
                f"{reason}; set [source] auto_offset_reset to 'earliest' or 'latest' to continue "
                "with the records that exist."
            )
        to = log_range.first if self._settings.auto_offset_reset == "earliest" else log_range.end
        self.skipped += max(0, to - at)
        log.warning(
            "records lost",
            extra={
                "partition": partition_name(tp),
                "skipped": max(0, to - at),
                "at": to,
                "reason": reason,
            },
        )
        return to

    # ------------------------------------------------------------------------- while it is read

    def begin(
        self, consumer: KafkaConsumer, tp: TopicPartition, at: int, log_range: LogRange
    ) -> None:
        """Read a partition from offset `at`."""
        consumer.seek(tp, at)
        text, earliest = partition_name(tp), self._settings.start == "earliest"
        self.starts.setdefault(text, at)
        self._begins.setdefault(text, min(at, log_range.first) if earliest else at)
        self.nexts[text] = at
        self._ends[text] = log_range.end

    def forget(self) -> None:
        """Stop reading all partitions."""
        self.nexts, self._ends = {}, {}

    def saw_end(self, tp: TopicPartition, end: int) -> None:
        """Record the end of a log as reported by a broker."""
        self._ends[partition_name(tp)] = end

    def stop_of(self, tp: TopicPartition) -> int | None:
        """Return the offset at which to stop reading a partition, if any."""
        return self.stops[tp] if self._settings.stop == "end" else None

    def ended(self) -> bool:
        """Return whether all partitions are read up to their stops."""
        if self._settings.stop == "never":
            return False
        consumer = self._connection.consumer()
        return all(consumer.position(tp) >= stop for tp, stop in self.stops.items())

    def pause(self, held: bool) -> None:
        """Pause the partitions that are read, or resume them."""
        consumer = self._connection.opened
        if held == self._paused or consumer is None:
            return
        self._paused = held
        read = [tp for tp in consumer.assignment() if partition_name(tp) in self.nexts]
        (consumer.pause if held else consumer.resume)(*read)

    def unpause(self) -> None:
        """Resume the partitions read here, which the client has paused."""
        self._paused = True
        self.pause(False)

    def lag(self, mark: Mark) -> Mapping[str, int]:
        """Return partition -> records after the mark, for partitions read here."""
        starts, ends, done = dict(self.starts), dict(self._ends), mark.positions
        return {
            text: max(0, end - done.get(text, starts.get(text, end))) for text, end in ends.items()
        }

    @property
    def ends(self) -> Mapping[str, int]:
        """Partition -> the end of its log, as of the last answer."""
        return self._ends

    def progress(self, mark: Mark) -> float | None:
        """Return the share of the offsets between start and stop. A resumed topic began with the
        first record of its log, or, where it was to start elsewhere, with what is read first."""
        if self._settings.stop == "never":
            return None
        if not self._begins:
            return 0.0
        total = sum(self.stops.values()) - sum(self._begins.values())
        done = sum(
            min(mark.positions.get(text, self.starts[text]), self.stops[parse_partition(text)])
            - begin
            for text, begin in self._begins.items()
        )
        return done / total if total > 0 else 1.0


__all__ = ["Positions"]
