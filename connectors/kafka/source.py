"""Topics as a source: columns from the wire, positions that are offsets."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition, errors
from kafka.errors import IllegalStateError
from pydantic import ByteSize, Field, SecretStr, field_validator

from connectors.formats.avro import Avro, schema_file
from connectors.formats.csv import Csv
from connectors.formats.ndjson import Ndjson
from connectors.formats.own import Describing, is_own, must_be_known, own
from connectors.formats.text import Text
from connectors.formats.xml import Xml
from connectors.kafka.client import KafkaSettings, Reach, answers, refusal, speaking
from connectors.kafka.group import Membership, Owners, consumer_settings, name, partition
from connectors.kafka.record import WithRecord, record_schema
from connectors.kafka.registry import Registry
from connectors.kafka.wire import Chunk, columnar, prefetched
from engine.types import (
    Duration,
    EndOfStream,
    Format,
    HeadraceError,
    Mark,
    Records,
    Schema,
    SharedSource,
    UserError,
    Values,
    nearest,
    only_named,
)

log = logging.getLogger("headrace.kafka")
FORMATS = ("ndjson", "csv", "avro", "xml", "text")
CHUNKS = 8
"""Asked of the client at a time: about as many MiB."""
T = TypeVar("T")
CLOSE_SECONDS = 1.5
"""How long the last commit, and then the goodbye, may take: a stop is to be done within 5 s."""
COMMIT_SECONDS = 2.0
"""How long a member waits for the answer to a commit."""
AWAY = (errors.KafkaConnectionError, errors.KafkaTimeoutError, errors.RequestTimedOutError)
"""What the client makes of a broker that goes away, or hangs, while it waits for its answer."""
ASK_SECONDS = 0.1
"""Between two questions to a broker that is away."""
GROWN_SECONDS = 30.0
"""How often the client asks for new topics and partitions."""
OUT = (
    errors.CommitFailedError,
    errors.UnknownMemberIdError,
    errors.IllegalGenerationError,
)
"""Answers to a commit by which a member learns that it is none any more."""


class KafkaSource(SharedSource):
    """See `engine.types.Source`. A partition is named ``topic/3``; positions are offsets.

    Without `join`, all partitions of the topics are read by this one process. Where a checkpoint
    says where to go on, that counts; a partition it does not name starts where the group has
    committed, if there is a `group`, else at `start`. Partitions that are added later are read from
    their beginning.

    With `join`, the partitions are shared with the other members of the group, and the group says
    where to go on: at the offset it has committed. An engine that keeps a state (it trains, or a
    stage learns) has a name of its own in the group, `member`. What it has read of a partition is
    in its state, and stays there when the partition moves; the next owner goes on behind it. The
    committed offset's metadata remembers the owners, so that an engine which comes back knows which
    of its checkpoints the group has counted.

    Attributes:
        whole: whether records are to come with their keys and headers; set before the first read.
        fence: called before committed offsets are asked for, where transactions commit them: what
            an earlier self of this engine has left open is then decided.
    """

    class Settings(KafkaSettings):
        """``[source] kind = "kafka"``

        Attributes:
            topics: their names; one that begins with ``^`` is a pattern for all that it matches.
            format: of the values: ndjson (a JSON object each), csv (with `columns`), avro (with
                `registry` or `schema_file`), xml (a document each), text (one column ``value``), or
                a class of your own, ``package.module:Class``.
            columns: names of the fields of a csv value.
            record: further columns, of what a record has besides its value: name -> ``key``,
                ``key bytes``, ``timestamp``, ``topic``, ``partition``, ``offset`` or
                ``header NAME``.
            paths: column -> where its value is: ``user.address.city`` in ndjson and avro,
                ``address/city`` or ``@id`` in xml.
            registry: of avro's schemas, with Confluent's API: its address, http(s)://...; values
                begin with the number of the schema that wrote them.
            registry_user: of the registry, where it asks for one.
            registry_password: better from the environment: ``HEADRACE_SOURCE__REGISTRY_PASSWORD``.
                Never logged.
            registry_patience: how long to ask again when the registry is down in mid-run.
            schema_file: an Avro schema (.avsc) that wrote all values; they are plain datums then.
            start: earliest, latest, or ms since the epoch: where to begin without a checkpoint.
            stop: end: read what is there at the start, then end; never: wait for more.
            group: offsets of finished records are committed under this name, for others to see the
                lag and for a start without a checkpoint; nothing is committed unless given.
            join: share the partitions with the group's other members.
            member: this engine's own name in the group (static membership): it gets its partitions
                back when it returns within `session`. Needed by engines that keep a state.
            assignor: how the group shares: cooperative-sticky, sticky, range or roundrobin; the
                same for all of its members.
            session: time without a sign of life after which the group gives up on an engine.
            patience: how long a rebalance waits for the batch in hand.
            lost: what to do where the log no longer has the offset to go on at: fail, earliest or
                latest (records skipped are counted and logged).
            isolation: read_committed leaves out what transactions aborted or have not finished.
            fetch_bytes: of one answer of a broker; the client holds up to twice as much.
        """

        topics: tuple[str, ...] = Field(min_length=1)
        format: str = "ndjson"
        columns: tuple[str, ...] = ()
        record: dict[str, str] = Field(default_factory=dict)
        paths: Mapping[str, str] = Field(default_factory=dict)
        registry: str | None = None
        registry_user: str | None = None
        registry_password: SecretStr | None = None
        registry_patience: Duration = Field(60.0, ge=0)
        schema_file: str | None = None
        start: Literal["earliest", "latest"] | int = "earliest"
        stop: Literal["end", "never"] = "never"
        group: str | None = None
        join: bool = False
        member: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]{1,100}$")
        assignor: Literal["cooperative-sticky", "sticky", "range", "roundrobin"] = (
            "cooperative-sticky"
        )
        session: Duration = Field(45.0, gt=0)
        patience: Duration = Field(30.0, gt=0)
        lost: Literal["fail", "earliest", "latest"] = "fail"
        isolation: Literal["read_committed", "read_uncommitted"] = "read_committed"
        fetch_bytes: ByteSize = Field(ByteSize(16 << 20), ge=1 << 16)

        @field_validator("topics", mode="before", json_schema_input_type=str | tuple[str, ...])
        @classmethod
        def _one(cls, topics: Any) -> Any:
            return (topics,) if isinstance(topics, str) else topics

    def __init__(self, settings: KafkaSource.Settings) -> None:
        """Raises: UserError for settings that do not fit together."""
        self.settings = settings
        self._values = _format(settings)
        self._extra = record_schema(settings.record)
        self.format: Format = (
            WithRecord(self._values, settings.record) if settings.record else self._values
        )
        self._pattern = _pattern(settings)
        self._membership = Membership(settings.patience) if settings.join else None
        self.whole = bool(settings.record)
        self.fence: Callable[[], object] | None = None
        self._consumer: KafkaConsumer | None = None
        self._waiting: deque[Records] = deque()
        self._fetch_bytes = int(settings.fetch_bytes)
        self._nbytes = 0
        self._held = False
        self._stops: dict[TopicPartition, int] = {}
        self._starts: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        self._nexts: dict[str, int] = {}
        self._owners: dict[str, Owners] = {}
        self._mark = Mark()
        self._marks: deque[Mark] = deque(maxlen=1)
        self._counted = 0
        self._seen: frozenset[TopicPartition] = frozenset()
        self._looked = 0.0
        self._reach = Reach.of(settings.bootstrap)
        self._lock = threading.Lock()

    # ---------------------------------------------------------------------------- the protocol

    def endless(self) -> bool:
        """See `engine.types.Source`."""
        return self.settings.stop == "never"

    def schema(self, declared: Schema) -> Schema:
        """Raises: UserError where nothing is declared: a topic does not say what it holds."""
        declared = only_named(declared)
        for column in self._extra:
            if column in declared:
                raise UserError(
                    f"Column '{column}' is in [source.schema] and in [source.record]: rename one."
                )
        return self._schema(declared) | self._extra

    def _schema(self, declared: Schema) -> Schema:
        if isinstance(self._values, Describing) and not isinstance(self._values, Ndjson):
            return self._values.schema(declared)
        named = {c: kind for c, kind in declared.items() if c != "*"}
        if not named or "*" in declared:
            raise UserError(
                "[source.schema] must name every column of a Kafka source, and not '*': a topic "
                "does not say what it holds."
            )
        if isinstance(self.format, Ndjson):
            return self.format.schema(named)
        if self.settings.format == "csv":
            for column in named:
                if column not in self.settings.columns:
                    raise UserError(
                        f"[source.schema] names column '{column}', which [source] columns does not."
                        f"{nearest(column, self.settings.columns)}"
                    )
        return named

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        """See `engine.types.Source`."""
        if self._consumer is None:
            self.seek(self._mark)
        self._commit_noted()
        self._hold(False)
        if not self._waiting:
            if self._ended():
                raise EndOfStream
            self._poll(timeout)
        if not self._waiting:
            return None
        records = self._waiting.popleft()
        fit = int(np.searchsorted(_bounds(records), _bounds(records)[0] + max_bytes, "right")) - 1
        n = max(1, min(len(records), max_rows, fit))
        if n < len(records):
            self._waiting.appendleft(records.slice(n, len(records)))
            records = records.slice(0, n)
        self._nexts[records.partition] = records.next
        held = 0 if self._consumer is None else prefetched(self._consumer)
        self._nbytes = held + sum(waiting.nbytes for waiting in self._waiting)
        return records

    @property
    def nbytes(self) -> int:
        """Bytes that were fetched and not given yet, as of the last read."""
        return self._nbytes

    def bound(self, nbytes: int) -> None:
        """See `engine.types.Buffered`."""
        if "fetch_bytes" not in self.settings.model_fields_set:
            # The client asks for the next answer when it gives the last: it holds two.
            self._fetch_bytes = max(1 << 16, min(self._fetch_bytes, nbytes // 2))

    def seek(self, mark: Mark) -> None:
        """Of a group's partitions, only those that the mark names are read: `settle` names them.

        Raises: UserError for a topic that is not there, or an offset the log has not.
        """
        self._mark = mark
        self._waiting.clear()
        with self._speaking():
            if self._membership is None:
                self._seek_all(self._connected(), mark)
            else:
                self._seek_assigned(self._membership, mark)

    def commit(self, mark: Mark) -> bool:
        """A member's commit is waited for: it may be refused. Otherwise it is noted, and sent by
        the thread that reads, with its next read or at the end."""
        if self._membership is None:
            self._marks.append(mark)
            return True
        return self._commit_member(self._membership, self.offsets(mark))

    def offsets(self, mark: Mark) -> dict[TopicPartition, OffsetAndMetadata]:
        """What there is to commit of a mark: the partitions that are read here."""
        owners = self._owners if self.settings.member is not None else {}
        return {
            partition(text): OffsetAndMetadata(position, owners.get(text, Owners()).text(), -1)
            for text, position in mark.positions.items()
            if text in self._nexts
        }

    def group_metadata(self) -> Any:
        """Who this is in the group, for a transaction that commits in its name."""
        return self._connected().group_metadata()

    # ---------------------------------------------------------------------- partitions that move

    @property
    def shares(self) -> bool:
        """See `engine.types.SharedSource`."""
        return self.settings.join

    @property
    def remembers(self) -> bool:
        """See `engine.types.SharedSource`: with a name of its own in the group."""
        return self.settings.member is not None

    def moving(self) -> bool:
        """See `engine.types.SharedSource`. Without `join`: whether there are more partitions than
        are read, looked at every `GROWN_SECONDS`."""
        if self._membership is not None:
            return self._membership.moving
        now = time.monotonic()
        if self.settings.stop == "end" or not self._counted or now - self._looked < GROWN_SECONDS:
            return False
        if self._reach.since is not None:
            return False  # the loop would wait for an answer
        self._looked = now
        return self._count_partitions(self._connected()) > self._counted

    def trouble(self) -> str | None:
        """See `engine.types.SharedSource`."""
        if (since := self._reach.since) is not None:
            return f"no broker is in reach since {time.monotonic() - since:.0f} s"
        return None if self._nexts else "no partition is assigned"

    @property
    def lost(self) -> bool:
        """See `engine.types.SharedSource`."""
        return self._membership is not None and self._membership.lost

    @property
    def leaving(self) -> bool:
        """See `engine.types.SharedSource`."""
        return self._membership is not None and self._membership.leaving

    def release(self) -> None:
        """See `engine.types.SharedSource`."""
        if self._membership is not None:
            self._membership.release()

    def settle(self, mark: Mark) -> Mark:
        """See `engine.types.SharedSource`. A partition that came starts where the group has
        committed; where this very engine committed last, at its own checkpoint."""
        if self._membership is None:
            return mark
        positions = {}
        if self.fence is not None:
            self.fence()
        with self._speaking():
            consumer = self._connected()
            assigned = sorted(self._membership.settle())
            first, end = self._ranges(consumer, assigned)
            unclaimed = []
            for tp in assigned:
                at, claimed = self._settled(consumer, tp, mark, first, end)
                positions[name(tp)] = self._within(tp, at, first[tp], end[tp])
                unclaimed += [] if claimed else [name(tp)]
            self._claim(consumer, {text: positions[text] for text in unclaimed})
        return Mark(positions=positions, stages=mark.stages)

    def agrees(self, positions: Mapping[str, int]) -> bool | None:
        """See `engine.types.SharedSource`. Of a member: whether it ended where the positions are,
        by the offsets' metadata; otherwise, whether they are the group's offsets."""
        member = self.settings.member if self._membership is not None else None
        if self.settings.group is None or not positions or (self.shares and not self.remembers):
            return True
        positions = {text: at for text, at in positions.items() if self._named(text)}
        found = []
        if self.fence is not None:
            self.fence()  # what an earlier self has left open is decided now
        with self._speaking():
            for text, position in positions.items():
                committed = self._ask_committed(partition(text))
                if committed is None:
                    found.append(False)
                elif member is None:
                    found.append(committed.offset == position)
                else:
                    end = Owners.parse(committed.metadata).end(member, committed.offset)
                    found += [] if end is None else [end == position]
        return all(found) if found else None

    def beat(self) -> None:
        """See `engine.types.SharedSource`: polls, with everything paused."""
        if self._consumer is None:
            return
        if self._membership is None:
            self._commit_noted()
            with self._speaking():
                self._look(self._consumer)
            return
        self._hold(True)
        with self._speaking():
            consumer = self._connected()
            self._membership.tend()
            self._keep(self._polled(consumer, 0.01))
            self._look(consumer)

    def lag(self, mark: Mark) -> Mapping[str, int]:
        """Partition -> records behind the mark, of those that are read here."""
        starts, ends, done = dict(self._starts), dict(self._ends), mark.positions
        return {
            text: max(0, end - done.get(text, starts.get(text, end))) for text, end in ends.items()
        }

    def progress(self, mark: Mark) -> float | None:
        """Share of the offsets between start and stop."""
        if self.settings.stop == "never":
            return None
        if not self._starts:
            return 0.0
        total = sum(self._stops.values()) - sum(self._starts.values())
        done = sum(
            min(mark.positions.get(text, start), self._stops[partition(text)]) - start
            for text, start in self._starts.items()
        )
        return done / total if total > 0 else 1.0

    def close(self) -> None:
        """Sends the last commit. May be called twice."""
        with self._lock:
            consumer, self._consumer = self._consumer, None
        self._reach.forget(self)
        if consumer is None:
            return
        self.release()
        try:
            with speaking(self.settings, "[source] commit"):
                self._commit_noted(consumer)
        except HeadraceError as error:
            log.warning("%s", error)  # a checkpoint has the position too
        finally:
            consumer.close(autocommit=False, timeout_ms=int(CLOSE_SECONDS * 1000))

    # ---------------------------------------------------------------------------------- inside

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        settings = self.settings
        with speaking(settings, f"[source] topics {', '.join(settings.topics)}"):
            try:
                yield
            except errors.FencedInstanceIdError as error:
                raise UserError(
                    f"Another engine has joined group '{settings.group}' as member "
                    f"'{settings.member}': give each engine a [source] member of its own."
                ) from error
            except errors.InconsistentGroupProtocolError as error:
                raise UserError(
                    f"Group '{settings.group}' has members that share by another way than "
                    f"'{settings.assignor}': set [source] assignor to theirs, or take another "
                    "group."
                ) from error
            except errors.UnknownMemberIdError as error:
                raise UserError(
                    f"Group '{settings.group}' has members that joined it, and this engine reads "
                    "alone: set [source] join = true, or take another group."
                ) from error

    def _connected(self) -> KafkaConsumer:
        if self._consumer is None:
            settings = self.settings
            assert settings.group is not None or not settings.join
            make = functools.partial(
                KafkaConsumer,
                **settings.config(),
                **(
                    consumer_settings(
                        settings.group,
                        settings.member,
                        settings.assignor,
                        settings.session,
                        settings.patience,
                    )
                    if settings.join and settings.group
                    else {"group_id": settings.group}
                ),
                enable_auto_commit=False,
                auto_offset_reset="none" if settings.lost == "fail" else settings.lost,
                isolation_level=settings.isolation,
                fetch_max_bytes=self._fetch_bytes,
                max_partition_fetch_bytes=self._fetch_bytes,
                allow_auto_create_topics=False,
                metadata_max_age_ms=int(GROWN_SECONDS * 1000),
                metrics_enabled=False,
            )
            self._consumer = self._asked(make)
            columnar(self._consumer, newline=bool(self._tail), whole=self.whole)
        return self._consumer

    def _seek_all(self, consumer: KafkaConsumer, mark: Mark) -> None:
        partitions = self._asked(lambda: self._partitions(consumer))
        grown = bool(self._counted)  # what came since the first look is read from its beginning
        consumer.assign(partitions)
        first, end = self._ranges(consumer, partitions)
        for tp in partitions:
            at = mark.positions.get(name(tp))
            if at is None and grown and name(tp) not in self._starts:
                at = first[tp]
            if at is None:
                committed = None if self.settings.group is None else self._ask_committed(tp)
                at = self._first(consumer, tp, first, end, committed)
            self._go(consumer, tp, self._within(tp, at, first[tp], end[tp]), end[tp])
        self._stops = end
        self._counted, self._looked = len(partitions), time.monotonic()

    def _seek_assigned(self, membership: Membership, mark: Mark) -> None:
        consumer = self._connected()
        if not membership.joined:
            # Also because a topic that is not there would be waited for.
            self._seen = frozenset(self._asked(lambda: self._partitions(consumer)))
            membership.join(consumer, self.settings.topics, self._pattern)
            return
        self._nexts, self._ends = {}, {}
        there = [tp for tp in membership.assigned if name(tp) in mark.positions]
        _, end = self._ranges(consumer, there)
        membership.reading(there)
        for tp in there:
            self._go(consumer, tp, mark.positions[name(tp)], end[tp])
        self._held = True
        self._hold(False)

    def _ranges(
        self, consumer: KafkaConsumer, partitions: list[TopicPartition]
    ) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        """First offsets, and those behind the last."""
        if not partitions:
            return {}, {}
        return (
            self._asked(lambda: consumer.beginning_offsets(partitions)),
            self._asked(lambda: consumer.end_offsets(partitions)),
        )

    def _asked(self, ask: Callable[[], T]) -> T:
        """What a broker answers, also where it goes away just then: kafka-python (3.0) makes an
        error of a connection that breaks while it waits.

        Raises: the client's error where it breaks, or hangs, for longer than a start may wait.
        """
        deadline = time.monotonic() + self.settings.hang
        with self._reach.waiting(ask):
            while True:
                try:
                    return ask()
                except AWAY:
                    if time.monotonic() >= deadline:
                        raise
                    time.sleep(ASK_SECONDS)

    def _go(self, consumer: KafkaConsumer, tp: TopicPartition, at: int, end: int) -> None:
        consumer.seek(tp, at)
        self._starts.setdefault(name(tp), at)
        self._nexts[name(tp)] = at
        self._ends[name(tp)] = end

    def _partitions(self, consumer: KafkaConsumer) -> list[TopicPartition]:
        found = []
        there = consumer.topics()
        topics: Sequence[str] = self.settings.topics
        if self._pattern is not None:
            topics = sorted(topic for topic in there if re.match(self._pattern, topic))
            if not topics:
                raise UserError(
                    f"[source] no topic at {self.settings.bootstrap} matches '{self._pattern}'."
                    f"{nearest('', there)}"
                )
        for topic in topics:
            if topic not in there:
                raise UserError(
                    f"[source] topic '{topic}' is not there at {self.settings.bootstrap}."
                    f"{nearest(topic, there)}"
                )
            numbers = consumer.partitions_for_topic(topic) or ()
            found += [TopicPartition(topic, number) for number in sorted(numbers)]
        return found

    def _count_partitions(self, consumer: KafkaConsumer) -> int:
        try:
            with self._speaking():
                return len(self._partitions(consumer))
        except UserError as error:
            log.warning("%s", error)
        except HeadraceError as error:
            log.debug("%s", error)  # it is away, and looked at again; `Reach` says it once
        return 0

    def _settled(
        self,
        consumer: KafkaConsumer,
        tp: TopicPartition,
        mark: Mark,
        first: Mapping[TopicPartition, int],
        end: Mapping[TopicPartition, int],
    ) -> tuple[int, bool]:
        """Where a partition of the group's goes on, and whether the group knows; whose it is from
        there is noted."""
        member = self.settings.member
        at = mark.positions.get(name(tp))
        if at is not None and name(tp) in self._nexts:
            return at, True  # it was read here until now
        committed = self._ask_committed(tp)
        claimed = committed is not None
        if committed is None and self._seen and tp not in self._seen:
            committed = OffsetAndMetadata(first[tp], "", -1)  # it was added since the start
        owners = Owners.parse(committed.metadata) if committed is not None else Owners()
        if at is None or member is None or owners.newest != member:
            at = self._first(consumer, tp, first, end, committed)
        if member is not None:
            self._owners[name(tp)] = owners.taken(member, at)
        return at, claimed

    def _named(self, text: str) -> bool:
        """Whether a partition is of a topic that is read here."""
        topic = partition(text).topic if "/" in text else text
        if self._pattern is not None:
            return re.match(self._pattern, topic) is not None
        return topic in self.settings.topics

    def _claim(self, consumer: KafkaConsumer, positions: Mapping[str, int]) -> None:
        """Tell the group where partitions start that nobody has committed yet: another member that
        gets them next would decide anew, and skip what came meanwhile."""
        started = {
            partition(text): OffsetAndMetadata(at, self._owners.get(text, Owners()).text(), -1)
            for text, at in positions.items()
        }
        with contextlib.suppress(errors.KafkaError):  # a rebalance: the next commit says it
            if started:
                consumer.commit(started, timeout_ms=int(COMMIT_SECONDS * 1000))

    def _ask_committed(self, tp: TopicPartition) -> OffsetAndMetadata | None:
        wait = int(self.settings.timeout * 1000)
        found = self._asked(lambda: self._connected().committed(tp, metadata=True, timeout_ms=wait))
        assert found is None or isinstance(found, OffsetAndMetadata)
        return found

    def _first(
        self,
        consumer: KafkaConsumer,
        tp: TopicPartition,
        first: Mapping[TopicPartition, int],
        end: Mapping[TopicPartition, int],
        committed: OffsetAndMetadata | None,
    ) -> int:
        """Where a partition starts that no checkpoint names."""
        start = self.settings.start
        if committed is not None:
            return int(committed.offset)
        if isinstance(start, int):
            found = self._asked(lambda: consumer.offsets_for_times({tp: start}))[tp]
            return end[tp] if found is None else int(found.offset)
        return first[tp] if start == "earliest" else end[tp]

    def _within(self, tp: TopicPartition, at: int, first: int, end: int) -> int:
        """The position, or where to go instead when the log no longer, or not yet, has it."""
        if first <= at <= end:
            return at
        lost = self.settings.lost
        what = f"{name(tp)} has offsets {first} to {end}, and {at} is where to go on"
        if lost == "fail":
            raise HeadraceError(
                f"{what}: records are gone (retention?), or it is another topic; set [source] lost "
                "to 'earliest' or 'latest' to go on without them."
            )
        to = first if lost == "earliest" else end
        log.warning("records lost", extra={"partition": name(tp), "skipped": to - at, "why": what})
        return to

    def _poll(self, timeout: float) -> None:
        with self._speaking():
            consumer = self._connected()
            if self._membership is not None and self._membership.joined:
                self._membership.tend()
            self._keep(self._polled(consumer, timeout))
            self._look(consumer)

    def _polled(
        self, consumer: KafkaConsumer, timeout: float
    ) -> Mapping[TopicPartition, Sequence[Chunk]]:
        """What has come; nothing where no broker is in reach, which kafka-python (3.0) makes an
        error of when it looks for the group's coordinator just then."""
        try:
            found: Mapping[TopicPartition, Sequence[Chunk]] = consumer.poll(
                timeout_ms=int(timeout * 1000), max_records=CHUNKS
            )
        except errors.KafkaConnectionError as error:
            log.debug("poll failed", extra={"why": str(error)})
            return {}
        return found

    def _look(self, consumer: KafkaConsumer) -> None:
        """Note whether a broker is in reach.

        Raises: the client's error where one is, and does not let it in any more.
        """
        there = answers(consumer, again=self._reach.since is not None)
        if not there and (why := refusal(consumer)) is not None:
            raise why
        self._reach.says(self, there)

    def _keep(self, found: Mapping[TopicPartition, Sequence[Chunk]]) -> None:
        arrived = time.monotonic()
        for tp, chunks in found.items():
            if name(tp) not in self._nexts:
                continue  # it came, and nobody has said yet where it starts
            for chunk in chunks:
                self._waiting += _records(name(tp), chunk, arrived, self._stop(tp), self._tail)
            with contextlib.suppress(IllegalStateError):  # it may have gone since
                if (high := self._connected().highwater(tp)) is not None:
                    self._ends[name(tp)] = high

    def _hold(self, held: bool) -> None:
        """Pause what is read, or resume it."""
        consumer = self._consumer
        if held == self._held or consumer is None:
            return
        self._held = held
        read = [tp for tp in consumer.assignment() if name(tp) in self._nexts]
        (consumer.pause if held else consumer.resume)(*read)

    @property
    def _tail(self) -> int:
        return int(self.settings.format in ("ndjson", "csv"))

    def _stop(self, tp: TopicPartition) -> int | None:
        return self._stops[tp] if self.settings.stop == "end" else None

    def _ended(self) -> bool:
        if self.settings.stop == "never":
            return False
        consumer = self._connected()
        return all(consumer.position(tp) >= stop for tp, stop in self._stops.items())

    def _commit_noted(self, consumer: KafkaConsumer | None = None) -> None:
        """Send the newest mark, if there is one; waiting for the answer only at the end."""
        if self.settings.group is None or self._membership is not None or not self._marks:
            return
        offsets = self.offsets(self._marks.popleft())
        if consumer is not None:
            consumer.commit(offsets, timeout_ms=int(CLOSE_SECONDS * 1000))
        elif offsets:
            self._connected().commit_async(offsets)

    def _commit_member(
        self, membership: Membership, offsets: dict[TopicPartition, OffsetAndMetadata]
    ) -> bool:
        if not offsets:
            return True
        if membership.lost:
            return False
        try:
            with self._speaking():
                return self._committed(membership, offsets)
        except UserError:
            raise
        except HeadraceError as error:  # the next commit says it all again
            cause = error.__cause__ or error
            log.warning("commit failed", extra={"why": f"{type(cause).__name__}: {cause}"})
            return False

    def _committed(
        self, membership: Membership, offsets: dict[TopicPartition, OffsetAndMetadata]
    ) -> bool:
        try:
            self._connected().commit(offsets, timeout_ms=int(COMMIT_SECONDS * 1000))
        except OUT as error:
            log.warning("commit refused", extra={"why": type(error).__name__})
            membership.gone()
            return False
        except errors.RebalanceInProgressError:
            log.info("commit waits for the rebalance to end")
            return False
        return True


def _records(
    partition: str, chunk: Chunk, arrived: float, stop: int | None, tail: int
) -> Iterator[Records]:
    """A chunk up to the offset `stop`; nothing where all lies beyond."""
    records = Records(
        partition=partition,
        positions=chunk.offsets,
        next=chunk.next,
        values=Values(
            data=chunk.data,
            bounds=chunk.bounds,
            null=chunk.null if chunk.null.any() else None,
            tail=tail,
        ),
        arrived=arrived,
        timestamps=chunk.timestamps,
        keys=chunk.keys,
        headers=chunk.headers,
    )
    if stop is None or records.next <= stop:
        yield records
    elif kept := int(np.searchsorted(chunk.offsets, stop)):
        yield records.slice(0, kept)


def _bounds(records: Records) -> Any:
    assert isinstance(records.values, Values)
    return records.values.bounds


def _format(settings: KafkaSource.Settings) -> Format:
    kind = must_be_known(settings.format, FORMATS)
    of = {"columns": ("csv",), "paths": ("ndjson", "avro", "xml")}
    of |= dict.fromkeys(
        ("registry", "registry_user", "registry_password", "schema_file"), ("avro",)
    )
    for key, formats in of.items():
        if getattr(settings, key) and kind not in formats:
            raise UserError(
                f"[source] {key} is for {' and '.join(formats)}, and format is '{kind}'."
            )
    if kind == "csv":
        if not settings.columns:
            raise UserError('[source] format = "csv" of a topic needs the fields\' names: columns.')
        return Csv(defaultdict(lambda: settings.columns))
    if kind == "avro":
        return _avro(settings)
    if is_own(kind):
        return own(kind)
    if kind == "xml":
        return Xml(settings.paths)
    return Ndjson(settings.paths) if kind == "ndjson" else Text()


def _avro(settings: KafkaSource.Settings) -> Avro:
    if (settings.registry is None) == (settings.schema_file is None):
        raise UserError(
            '[source] format = "avro" needs the address of a schema registry, registry, or the '
            "schema of plain values, schema_file: one of them."
        )
    if settings.registry is None:
        assert settings.schema_file is not None
        return Avro(schema_file(settings.schema_file), paths=settings.paths)
    registry = Registry(
        settings.registry,
        user=settings.registry_user,
        password=settings.registry_password,
        timeout=settings.timeout,
        patience=settings.registry_patience,
    )
    return Avro(registry, topics=settings.topics, paths=settings.paths)


def _pattern(settings: KafkaSource.Settings) -> str | None:
    """The pattern of the topics' names, if that is what they are given by.

    Raises: UserError for one that is none, and for settings that a group needs.
    """
    if settings.join and settings.group is None:
        raise UserError("[source] join needs the name of the group to join: group.")
    if settings.join and settings.stop == "end":
        raise UserError(
            '[source] join shares an endless stream: stop = "end" is for an engine that reads '
            "alone."
        )
    if not any(topic.startswith("^") for topic in settings.topics):
        return None
    pattern = "|".join(f"(?:{topic})" for topic in settings.topics)
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"[source] topics '{pattern}' is no regular expression: {error}."
        ) from error
    return pattern


__all__ = ["KafkaSource"]
