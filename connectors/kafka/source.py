"""Reads topics: columns from the wire, offsets as positions."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition, errors
from kafka.errors import IllegalStateError
from pydantic import ByteSize, Field, SecretStr, field_validator

from connectors.formats.avro import schema_file
from connectors.formats.custom import is_custom, load_custom, require_known_format
from connectors.formats.ndjson import Ndjson
from connectors.formats.options import FormatOptions
from connectors.formats.registry import TOPICS, require_option, spec_of
from connectors.formats.values.casts import Coerce
from connectors.kafka.chunks import Chunk
from connectors.kafka.client import (
    SILENT_SECONDS,
    BrokerHealth,
    KafkaSettings,
    is_answering,
    same_broker,
    translated_errors,
)
from connectors.kafka.client_internals import (
    auth_failure,
    install_columnar_fetch,
    is_forbidden,
    metadata_time_ms,
    offsets_out_of_range,
    prefetched_bytes,
    topic_ids,
    truncated_to,
    warm_up_chunk,
)
from connectors.kafka.producer import TopicSettings
from connectors.kafka.reading.membership import (
    Membership,
    Owners,
    consumer_settings,
    parse_partition,
    partition_name,
)
from connectors.kafka.record_columns import RecordColumns, record_schema
from connectors.kafka.schema_registry import Registry
from connectors.kafka.value_checks import ValueFilter
from engine.types import (
    Buffered,
    Duration,
    EndOfStream,
    Format,
    HeadraceError,
    Mark,
    Name,
    Names,
    Records,
    Schema,
    SharedSource,
    Sink,
    Snapshot,
    UserError,
    Values,
    nearest,
    only_named,
)
from engine.types.changes import Fixed, Free, Meaning, Warned

log = logging.getLogger("headrace.kafka")
KEYS_OF_FORMATS = (
    "columns", "paths", "registry", "registry_user", "registry_password", "schema_file",
)  # fmt: skip
"""Settings for some formats only."""
POLL_CHUNKS = 8
"""The chunks requested from the client at a time: about as many MiB."""
T = TypeVar("T")
Offsets = Mapping[TopicPartition, int]
CLOSE_SECONDS = 1.5
"""The most seconds for the last commit, and then for leaving the group: a stop must be done
within 5 s."""
COMMIT_SECONDS = 2.0
"""The seconds a member waits for the answer to a commit."""
BROKER_UNAVAILABLE = (
    errors.KafkaConnectionError,
    errors.KafkaTimeoutError,
    errors.RequestTimedOutError,
)
"""The client's errors for a broker that becomes unreachable, or hangs, while it waits for an
answer."""
RETRY_SECONDS = 0.1
"""The seconds between two requests to an unreachable broker."""
CLAIM_SECONDS = 0.5
"""The seconds between two attempts to commit the start positions of new partitions."""
METADATA_SECONDS = 30.0
"""The seconds between two updates of topics and partitions."""
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


class KafkaSource(SharedSource, Buffered):
    """Reads topics. A partition is named ``topic/3``; positions are offsets.

    Without `subscribe`, all partitions of the topics are read by this one process. Where a
    checkpoint says where to go on, that counts; a partition it does not name starts where the group
    has committed, if there is a `group_id`, else at `start`. Partitions that are added later are
    read from their beginning. Marks and commits hold the topics' ids, too: an offset is none in a
    topic that was made anew under the same name.

    With `subscribe`, the partitions are shared with the other members of the group, and the group
    says where to go on: at the offset it has committed. An engine that keeps a state (it trains, or
    a stage learns) has a name of its own in the group, `group_instance_id`. What it has read of a
    partition is in its state, and stays there when the partition moves; the next owner goes on
    behind it. The committed offset's metadata remembers the owners, so that an engine which comes
    back knows which of its checkpoints the group has counted.

    Attributes:
        with_metadata: whether records are to come with their keys and headers; set before the first
            read.
        fence_producer: called before committed offsets are asked for, where transactions commit
            them: what an earlier self of this engine has left open is then decided.
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
            registry_retry_timeout: how long to ask again when the registry is down in mid-run.
            schema_file: an Avro schema (.avsc) that wrote all values; they are plain datums then.
            start: earliest, latest, or ms since the epoch: where to begin without a checkpoint.
            stop: end: read what is there at the start, then end; never: wait for more.
            subscribe: share the partitions with the group's other members.
            group_id: offsets of finished records are committed under this name, for others to see
                the lag and for a start without a checkpoint; nothing is committed unless given.
            group_instance_id: this engine's own name in the group (static membership): it gets its
                partitions back when it returns within `session_timeout`. Needed by engines that
                keep a state.
            assignor: how the group shares: cooperative-sticky, sticky, range or roundrobin; the
                same for all of its members.
            session_timeout: time without a sign of life after which the group gives up on an
                engine.
            rebalance_timeout: how long a rebalance waits for the batch in hand.
            auto_offset_reset: what to do where the log no longer has the offset to go on at
                (retention, also while it is read), or the topic was deleted and made anew: fail,
                earliest or latest (records skipped are counted and logged).
            isolation_level: read_committed leaves out what transactions aborted or have not
                finished.
            fetch_max_bytes: of one answer of a broker; the client holds up to twice as much.
            coerce: of ndjson, csv and avro: "lossless" takes every value that equals one of the
                declared type, however it is written; "strict" only what is written as that type.
        """

        topics: Free[Names] = Field(min_length=1)
        format: Meaning[str] = "ndjson"
        columns: Meaning[Names] = ()
        record: Meaning[dict[str, str]] = Field(default_factory=dict)
        paths: Meaning[Mapping[str, str]] = Field(default_factory=dict)
        registry: Free[str | None] = None
        registry_user: Free[str | None] = None
        registry_password: Free[SecretStr | None] = None
        registry_retry_timeout: Free[Duration] = Field(60.0, ge=0)
        schema_file: Meaning[Name | None] = None
        start: Free[Literal["earliest", "latest"] | int] = "earliest"
        stop: Free[Literal["end", "never"]] = "never"
        subscribe: Fixed[bool] = False
        group_id: Fixed[str | None] = None
        group_instance_id: Free[str | None] = Field(None, pattern=r"^[A-Za-z0-9._-]{1,100}$")
        assignor: Free[Literal["cooperative-sticky", "sticky", "range", "roundrobin"]] = (
            "cooperative-sticky"
        )
        session_timeout: Free[Duration] = Field(45.0, gt=0)
        rebalance_timeout: Free[Duration] = Field(30.0, gt=0)
        auto_offset_reset: Free[Literal["fail", "earliest", "latest"]] = "fail"
        isolation_level: Warned[Literal["read_committed", "read_uncommitted"]] = "read_committed"
        fetch_max_bytes: Free[ByteSize] = Field(ByteSize(16 << 20), ge=1 << 16)
        coerce: Meaning[Coerce] = "lossless"

        @field_validator("topics", mode="before", json_schema_input_type=str | tuple[str, ...])
        @classmethod
        def _one(cls, topics: Any) -> Any:
            return (topics,) if isinstance(topics, str) else topics

    def __init__(self, settings: KafkaSource.Settings) -> None:
        """Raises: UserError for settings that do not fit together."""
        self.settings: KafkaSource.Settings = settings
        self._values = _format(settings)
        self._record_schema = record_schema(settings.record)
        self.format: Format = self._values
        if not is_custom(settings.format):  # one's own may make something of a deletion
            text = spec_of(settings.format).plain_text
            self.format = ValueFilter(self._values, text=text)
        if settings.record:
            self.format = RecordColumns(self.format, settings.record)
        self._columns: Schema = {}
        self._pattern = _pattern(settings)
        self._membership = Membership(settings.rebalance_timeout) if settings.subscribe else None
        self.with_metadata = bool(settings.record)
        self.fence_producer: Callable[[], object] | None = None
        self._consumer: KafkaConsumer | None = None
        self._waiting: deque[Records] = deque()
        self._fetch_bytes = int(settings.fetch_max_bytes)
        self._nbytes = 0
        self._paused = False
        self._stops: dict[TopicPartition, int] = {}
        self._starts: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        self._nexts: dict[str, int] = {}
        self._owners: dict[str, Owners] = {}
        self._unclaimed: dict[str, int] = {}
        self._claimed_at = 0.0
        self._ids: dict[str, str] = {}
        self._foreign_identities: dict[str, Snapshot] = {}
        self._first_ids: dict[str, str] = {}
        self._recreated: set[str] = set()
        self._deleted: set[str] = set()
        self._topics_at = 0.0
        self._starting_over = False
        self._skipped = self._refused = 0
        self._commits_failing = False
        self._failing_since: float | None = None
        self._mark = Mark()
        self._marks: deque[Mark] = deque(maxlen=1)
        self._counted = 0
        self._seen: frozenset[TopicPartition] = frozenset()
        self._looked = 0.0
        self._health = BrokerHealth.of(settings.bootstrap_servers)
        self._lock = threading.Lock()

    # ---------------------------------------------------------------------------- the protocol

    def keep_metadata(self) -> None:
        self.with_metadata = True

    def unbounded(self) -> bool:
        return self.settings.stop == "never"

    def schema(self, declared: Schema) -> Schema:
        """Raises: UserError where nothing is declared: a topic does not say what it holds."""
        declared = only_named(declared)
        for column in self._record_schema:
            if column in declared:
                raise UserError(
                    f"Column '{column}' is in [source.schema] and in [source.record]: rename one."
                )
        self._columns = self._schema(declared) | self._record_schema
        return self._columns

    def reads_output_of(self, sink: Sink) -> str | None:
        """Return the sink's topic if this source reads it, under any of its brokers' names."""
        written = sink.settings
        if not isinstance(written, TopicSettings):
            return None
        if not self._is_read_here(f"{written.topic}/0") or not same_broker(self.settings, written):
            return None
        return f"topic '{written.topic}'"

    def origin_columns(self) -> Collection[str]:
        """Return what [source.record] requests."""
        return self._record_schema.keys()

    def _schema(self, declared: Schema) -> Schema:
        if not isinstance(self._values, Ndjson):  # which has a say in files only
            described = self._values.schema(declared)
            if described is not None:
                return described
        named = {c: dtype for c, dtype in declared.items() if c != "*"}
        if not named or "*" in declared:
            raise UserError(
                "A topic does not say what its records hold: name every column that the pipeline "
                'uses in [source.schema], a line each, such as amount = "float64" or '
                'country = "string"; "*" cannot stand for them.'
            )
        if isinstance(self._values, Ndjson):
            return self._values.schema(named)
        if self.settings.format == "csv":
            for column in named:
                if column not in self.settings.columns:
                    raise UserError(
                        f"[source.schema] names column '{column}', which [source] columns does not."
                        f"{nearest(column, self.settings.columns)}"
                    )
        return named

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        if self._consumer is None:
            self.seek(self._mark)
        self._commit_noted()
        self._pause(bool(self._unclaimed))
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
        held = 0 if self._consumer is None else prefetched_bytes(self._consumer)
        self._nbytes = held + sum(waiting.nbytes for waiting in self._waiting)
        return records

    @property
    def nbytes(self) -> int:
        """The bytes fetched and not returned yet, as of the last read."""
        return self._nbytes

    def limit_memory(self, nbytes: int) -> None:
        if "fetch_max_bytes" not in self.settings.model_fields_set:
            # The client asks for the next answer when it gives the last: it holds two.
            self._fetch_bytes = max(1 << 16, min(self._fetch_bytes, nbytes // 2))

    def seek(self, mark: Mark) -> None:
        """Seek. In a group, only partitions named by the mark are read: `resume_after_rebalance`
        names them.

        Raises: UserError for a topic that is not there, or an offset the log has not.
        """
        self._mark = mark
        self._waiting.clear()
        with self._translated_errors():
            if self._membership is None:
                self._seek_all(self._connected(), mark)
            else:
                self._seek_assigned(self._membership, mark)

    def commit(self, mark: Mark) -> bool:
        """Commit. A member waits for the answer, since the commit may be refused. Otherwise the
        reading thread sends it with its next read or at the end."""
        if self._membership is None:
            self._marks.append(mark)
            return True
        return self._commit_member(self._membership, self.offsets(mark))

    def offsets(self, mark: Mark) -> dict[TopicPartition, OffsetAndMetadata]:
        """Return the offsets of a mark to commit: those of partitions read here."""
        return {
            parse_partition(text): self._offset(text, position)
            for text, position in mark.positions.items()
            if text in self._nexts
            and parse_partition(text).topic not in self._recreated | self._deleted
        }

    def group_metadata(self) -> Any:
        """Return the group metadata for a transactional offset commit."""
        return self._connected().group_metadata()

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
        read, checked every `METADATA_SECONDS`."""
        if self._recreated or (self._membership is not None and self._membership.is_rebalancing):
            return True
        if self._membership is not None:
            return False
        now = time.monotonic()
        if (
            self.settings.stop == "end"
            or not self._counted
            or now - self._looked < METADATA_SECONDS
        ):
            return False
        if self._health.unreachable_since is not None:
            return False  # the loop would wait for an answer
        self._looked = now
        return self._count_partitions(self._connected()) > self._counted

    def unavailable_reason(self) -> str | None:
        if (since := self._health.unreachable_since) is not None:
            return f"no broker is in reach since {time.monotonic() - since:.0f} s"
        if self._unclaimed:
            return "the group has not taken yet where its partitions are begun"
        return None if self._nexts else "no partition is assigned"

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
        if self._membership is not None and not self._membership.joined:
            return mark
        if self.fence_producer is not None:
            self.fence_producer()
        with self._translated_errors():
            consumer = self._connected()
            if self._membership is None:
                positions = self._resume_all(consumer, mark)
            else:
                positions = self._resume_assigned(consumer, self._membership, mark)
        return Mark(positions=positions, stages=mark.stages)

    def in_effect(self) -> Mapping[str, Snapshot]:
        """Return the group: only members resume from its offsets."""
        return {} if self.settings.subscribe else {"group_id": None}

    def identities(self, mark: Mark) -> Mapping[str, Snapshot]:
        """Return partition -> the id of its topic; partitions not read here keep theirs."""
        own = {
            text: parse_partition(text).topic for text in mark.positions if self._is_read_here(text)
        }
        ids = {text: self._ids[topic] for text, topic in own.items() if topic in self._ids}
        return {**self._foreign_identities, **ids}

    def match_identities(self, identities: Mapping[str, Snapshot]) -> None:
        """Match the topics' ids to a checkpoint's; `resume_after_rebalance` acts on the result."""
        for text, known in identities.items():
            if self._is_read_here(text):
                self._ids[parse_partition(text).topic] = str(known)
            else:
                self._foreign_identities[text] = known

    def reset_offsets(self) -> None:
        """Reset the group's offsets at once, so that a start that is killed now does not resume
        in the middle; if the group has members, with the first assignment."""
        settings = self.settings
        self._starting_over = True
        log.info("starting over", extra={"at": settings.start, "group": settings.group_id})
        if settings.group_id is None:
            return
        if self.fence_producer is not None:
            self.fence_producer()
        with self._translated_errors():
            consumer = self._connected()
            partitions = self._with_retries(lambda: self._partitions(consumer))
            self._ids |= self._known_ids(consumer, {tp.topic for tp in partitions})
            first, end = self._ranges(consumer, partitions)
            at = {
                partition_name(tp): self._initial_position(consumer, tp, first, end)
                for tp in partitions
            }
            accepted, self._unclaimed = (
                self._commit_starts(consumer, at),
                {},
            )  # what others read stays theirs
        if not accepted and self._membership is not None:
            log.warning(
                "starting over in part: the group has other members, which go on; only the "
                "partitions that this engine is given start over: to start over with all, stop "
                "every engine of the group first",
                extra={"group": settings.group_id},
            )

    def was_committed(self, positions: Mapping[str, int]) -> bool | None:
        """Return, for a member, whether it ended at these positions, by the offsets' metadata;
        otherwise, whether they are the group's offsets."""
        group_instance_id = (
            self.settings.group_instance_id if self._membership is not None else None
        )
        positions = {text: at for text, at in positions.items() if self._is_read_here(text)}
        if (
            self.settings.group_id is None
            or not positions
            or (self.shares_partitions and not self.tracks_owners)
        ):
            return True
        agreements = []
        if self.fence_producer is not None:
            self.fence_producer()  # what an earlier self has left open is decided now
        with self._translated_errors():
            consumer = self._connected()
            self._with_retries(consumer.topics)
            now = self._known_ids(consumer, {parse_partition(text).topic for text in positions})
            for text, position in positions.items():
                topic = parse_partition(text).topic
                if now.get(topic) != self._ids.get(topic, now.get(topic)):
                    agreements.append(
                        True
                    )  # no group knows of it any more: `resume_after_rebalance` acts on it
                    continue
                committed = self._ask_committed(parse_partition(text))
                if committed is None:
                    agreements.append(False)
                elif group_instance_id is None:
                    agreements.append(committed.offset == position)
                else:
                    end = Owners.parse(committed.metadata).end(group_instance_id, committed.offset)
                    agreements += [] if end is None else [end == position]
        return all(agreements) if agreements else None

    def counts(self) -> Mapping[str, int]:
        return {"skipped": self._skipped, "commit_failures": self._refused}

    def keep_alive(self) -> None:
        """Poll with all partitions paused."""
        if self._consumer is None:
            return
        if self._membership is None:
            self._commit_noted()
            with self._translated_errors():
                self._check_brokers(self._consumer)
            return
        self._pause(True)
        with self._translated_errors():
            consumer = self._connected()
            self._membership.rejoin_if_joining()
            self._buffer(self._polled(consumer, 0.01))
            self._check_brokers(consumer)
            self._check_topics(consumer)

    def lag(self, mark: Mark) -> Mapping[str, int]:
        """Return partition -> records after the mark, for partitions read here."""
        starts, ends, done = dict(self._starts), dict(self._ends), mark.positions
        return {
            text: max(0, end - done.get(text, starts.get(text, end))) for text, end in ends.items()
        }

    def progress(self, mark: Mark) -> float | None:
        """Return the share of the offsets between start and stop."""
        if self.settings.stop == "never":
            return None
        if not self._starts:
            return 0.0
        total = sum(self._stops.values()) - sum(self._starts.values())
        done = sum(
            min(mark.positions.get(text, start), self._stops[parse_partition(text)]) - start
            for text, start in self._starts.items()
        )
        return done / total if total > 0 else 1.0

    def close(self) -> None:
        """Send the last commit and close. May be called twice."""
        with self._lock:
            consumer, self._consumer = self._consumer, None
        self._health.forget(self)
        if consumer is None:
            return
        self.release_partitions()
        try:
            with translated_errors(self.settings, "[source] commit"):
                self._commit_noted(consumer)
        except HeadraceError as error:
            self._refused += 1  # and none comes after it
            self._warn_commits_failing(
                error.__cause__ if isinstance(error.__cause__, Exception) else error
            )
        finally:
            consumer.close(autocommit=False, timeout_ms=int(CLOSE_SECONDS * 1000))

    # ---------------------------------------------------------------------------------- inside

    @contextlib.contextmanager
    def _translated_errors(self) -> Iterator[None]:
        settings = self.settings
        with translated_errors(settings, f"[source] topics {', '.join(settings.topics)}"):
            try:
                yield
            except errors.FencedInstanceIdError as error:
                raise UserError(
                    f"Another engine has joined group '{settings.group_id}' as member "
                    f"'{settings.group_instance_id}': give each engine a [source] "
                    f"group_instance_id of its own."
                ) from error
            except errors.InconsistentGroupProtocolError as error:
                raise UserError(
                    f"Group '{settings.group_id}' has members that share by another way than "
                    f"'{settings.assignor}': set [source] assignor to theirs, or take another "
                    "group."
                ) from error
            except errors.UnknownMemberIdError as error:
                raise UserError(
                    f"Group '{settings.group_id}' has members that joined it, and this engine "
                    f"reads "
                    "alone: set [source] subscribe = true, or take another group."
                ) from error

    def _connected(self) -> KafkaConsumer:
        if self._consumer is None:
            settings = self.settings
            assert settings.group_id is not None or not settings.subscribe
            make = functools.partial(
                KafkaConsumer,
                **settings.config(),
                **(
                    consumer_settings(
                        settings.group_id,
                        settings.group_instance_id,
                        settings.assignor,
                        settings.session_timeout,
                        settings.rebalance_timeout,
                    )
                    if settings.subscribe and settings.group_id
                    else {"group_id": settings.group_id}
                ),
                enable_auto_commit=False,
                auto_offset_reset="none",  # `_on_out_of_range` does it, and says so
                isolation_level=settings.isolation_level,
                fetch_max_bytes=self._fetch_bytes,
                max_partition_fetch_bytes=self._fetch_bytes,
                allow_auto_create_topics=False,
                metadata_max_age_ms=int(METADATA_SECONDS * 1000),
                metrics_enabled=False,
            )
            self._consumer = self._with_retries(make)
            install_columnar_fetch(
                self._consumer, newline=bool(self._tail), with_metadata=self.with_metadata
            )
            if self.unbounded() and self._columns:
                self._warm_up()
        return self._consumer

    def _warm_up(self) -> None:
        """Decode an empty object before the first record comes. Loops compile at their first
        use, which takes seconds without a cache, and the first record would wait for that."""
        if not spec_of(self.settings.format).plain_text:
            return  # of a registry, or somebody's own, nothing is asked that did not come
        chunk = warm_up_chunk(b"{}", newline=bool(self._tail), with_metadata=self.with_metadata)
        for records in _records("rehearsal/0", chunk, time.monotonic(), None, self._tail):
            self.format.decode(records, self._columns)

    def _seek_all(self, consumer: KafkaConsumer, mark: Mark) -> None:
        positions = self._resume_all(consumer, mark)
        partitions = [parse_partition(text) for text in positions if self._is_read_here(text)]
        consumer.assign(partitions)
        _, end = self._ranges(consumer, partitions)
        for tp in partitions:
            self._seek_to(consumer, tp, positions[partition_name(tp)], end[tp])
        self._stops = end
        self._counted, self._looked = len(partitions), time.monotonic()

    def _resume_all(self, consumer: KafkaConsumer, mark: Mark) -> dict[str, int]:
        """Return where to resume all existing partitions."""
        partitions = self._with_retries(lambda: self._partitions(consumer))
        before, ids = self._update_topic_ids(consumer, partitions)
        first, end = self._ranges(consumer, partitions)
        positions: dict[str, int] = {}
        started: dict[str, int] = {}
        for tp in partitions:
            text, was = partition_name(tp), before.get(tp.topic, "")
            at = mark.positions.get(text)
            committed = None
            if at is None and self._counted and text not in self._starts:
                at = first[tp]  # what came since the first look is read from its beginning
            elif at is None and (committed := self._committed_to(tp)) is not None:
                at, was = committed.offset, Owners.parse(committed.metadata).topic_id
            positions[text] = self._start_position(consumer, tp, at, was, ids, first, end)
            if committed is None or positions[text] != at:
                started[text] = positions[text]
        unnoted = {text: at for text, at in started.items() if mark.positions.get(text) != at}
        self._commit_starts(consumer, self._still_unclaimed(positions) | unnoted)
        self._starting_over = False
        return {**self._foreign_positions(mark), **positions}

    def _resume_assigned(
        self, consumer: KafkaConsumer, membership: Membership, mark: Mark
    ) -> dict[str, int]:
        """Return where to resume the partitions that the group assigned; commit the start of
        those without a committed offset."""
        assigned = sorted(membership.take_assignment())
        self._with_retries(consumer.topics)
        self._check_topics(consumer)  # a rebalance may be all that a deleted topic comes to
        before, ids = self._update_topic_ids(consumer, assigned)
        first, end = self._ranges(consumer, assigned)
        positions: dict[str, int] = {}
        unclaimed: dict[str, int] = {}
        for tp in assigned:
            text = partition_name(tp)
            at, was, owners = self._assigned_at(tp, mark, before, first)
            positions[text] = self._start_position(consumer, tp, at, was, ids, first, end)
            if owners is None or positions[text] != at:
                unclaimed[text] = positions[text]
            if self.settings.group_instance_id is not None and (
                at is None or text not in self._nexts
            ):
                taken = (owners or Owners()).with_owner(
                    self.settings.group_instance_id, positions[text]
                )
                self._owners[text] = taken
        self._commit_starts(consumer, self._still_unclaimed(positions) | unclaimed)
        self._starting_over = self._starting_over and not assigned
        return {**self._foreign_positions(mark), **positions}

    def _assigned_at(
        self, tp: TopicPartition, mark: Mark, ids: Mapping[str, str], first: Offsets
    ) -> tuple[int | None, str, Owners | None]:
        """Return where a partition of the group resumes, its topic's id, and its owner; None if
        nobody knows."""
        at, group_instance_id = (
            mark.positions.get(partition_name(tp)),
            self.settings.group_instance_id,
        )
        if at is not None and partition_name(tp) in self._nexts:
            return at, ids.get(tp.topic, ""), Owners()  # it was read here until now
        committed = self._committed_to(tp)
        if committed is None:
            new = bool(self._seen) and tp not in self._seen  # it was added since the start
            return first[tp] if new else None, self._first_ids.get(tp.topic, ""), None
        owners = Owners.parse(committed.metadata)
        if at is None or group_instance_id is None or owners.newest != group_instance_id:
            at = int(committed.offset)
        return at, owners.topic_id, owners

    def _foreign_positions(self, mark: Mark) -> dict[str, int]:
        """Return the positions of partitions not read here, for instance of a topic of dead
        letters."""
        return {text: at for text, at in mark.positions.items() if not self._is_read_here(text)}

    def _update_topic_ids(
        self, consumer: KafkaConsumer, partitions: Sequence[TopicPartition]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Return the previous and current ids of the topics."""
        topics = {tp.topic for tp in partitions} | self._ids.keys()
        before, now = dict(self._ids), self._known_ids(consumer, topics)
        self._first_ids = {**now, **before, **self._first_ids}
        self._ids |= now
        self._deleted -= now.keys()
        self._recreated -= now.keys()
        return before, now

    def _known_ids(self, consumer: KafkaConsumer, topics: Iterable[str]) -> dict[str, str]:
        ids = topic_ids(consumer, topics)
        return {topic: known for topic, known in ids.items() if known}

    def _seek_assigned(self, membership: Membership, mark: Mark) -> None:
        consumer = self._connected()
        if not membership.joined:
            # Also because a topic that is not there would be waited for.
            self._seen = frozenset(self._with_retries(lambda: self._partitions(consumer)))
            membership.join(consumer, self.settings.topics, self._pattern)
            return
        self._nexts, self._ends = {}, {}
        assigned = [tp for tp in membership.assigned if partition_name(tp) in mark.positions]
        _, end = self._ranges(consumer, assigned)
        membership.set_reading(assigned)
        for tp in assigned:
            self._seek_to(consumer, tp, mark.positions[partition_name(tp)], end[tp])
        self._paused = True
        self._pause(False)

    def _ranges(
        self, consumer: KafkaConsumer, partitions: list[TopicPartition]
    ) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        """Return the first offsets, and those after the last."""
        if not partitions:
            return {}, {}
        return (
            self._with_retries(lambda: consumer.beginning_offsets(partitions)),
            self._with_retries(lambda: consumer.end_offsets(partitions)),
        )

    def _with_retries(self, ask: Callable[[], T]) -> T:
        """What a broker answers, also where it goes away just then: kafka-python (3.0) makes an
        error of a connection that breaks while it waits.

        Raises: the client's error where it breaks, or hangs, for longer than a start may wait.
        """
        deadline = time.monotonic() + self.settings.hang
        with self._health.watching(ask):
            while True:
                try:
                    return ask()
                except BROKER_UNAVAILABLE:
                    if time.monotonic() >= deadline:
                        raise
                    time.sleep(RETRY_SECONDS)

    def _seek_to(self, consumer: KafkaConsumer, tp: TopicPartition, at: int, end: int) -> None:
        consumer.seek(tp, at)
        self._starts.setdefault(partition_name(tp), at)
        self._nexts[partition_name(tp)] = at
        self._ends[partition_name(tp)] = end

    def _partitions(self, consumer: KafkaConsumer) -> list[TopicPartition]:
        partitions = []
        topics_there = consumer.topics()
        topics: Sequence[str] = self.settings.topics
        if self._pattern is not None:
            topics = sorted(topic for topic in topics_there if re.match(self._pattern, topic))
            if not topics:
                raise UserError(
                    f"[source] no topic at {self.settings.bootstrap_servers} matches "
                    f"'{self._pattern}'."
                    f"{nearest('', topics_there)}"
                )
        for topic in topics:
            if topic not in topics_there:
                raise UserError(
                    f"[source] topic '{topic}' is not there at {self.settings.bootstrap_servers}."
                    f"{nearest(topic, topics_there)}"
                )
            numbers = consumer.partitions_for_topic(topic) or ()
            partitions += [TopicPartition(topic, number) for number in sorted(numbers)]
        return partitions

    def _count_partitions(self, consumer: KafkaConsumer) -> int:
        try:
            with self._translated_errors():
                return len(self._partitions(consumer))
        except UserError as error:
            log.warning("%s", error)
        except HeadraceError as error:
            log.debug("%s", error)  # it is away, and looked at again; `BrokerHealth` says it once
        return 0

    def _is_read_here(self, text: str) -> bool:
        """Whether a partition is of a topic that is read here."""
        topic, _, number = text.rpartition("/")
        if not number.isdigit():
            return False
        if self._pattern is not None:
            return re.match(self._pattern, topic) is not None
        return topic in self.settings.topics

    def _commit_starts(self, consumer: KafkaConsumer, positions: Mapping[str, int]) -> bool:
        """Tell the group where partitions start that nobody has committed yet: whoever gets them
        next would decide anew, and skip what came meanwhile. Whether it took that; where a
        rebalance or a broker is in the way, nothing is read until it did."""
        self._unclaimed, self._claimed_at = dict(positions), time.monotonic()
        if self.settings.group_id is None or not positions:
            self._unclaimed = {}
            return True
        started = {parse_partition(text): self._offset(text, at) for text, at in positions.items()}
        try:
            consumer.commit(started, timeout_ms=int(COMMIT_SECONDS * 1000))
        except errors.KafkaError as error:
            self._on_commit_failed(error)
            joins = self._membership is not None and isinstance(error, PASSING)
            if not (error.retriable or joins):
                self._unclaimed = {}  # as with members that are strangers: told, and read on
            return False
        self._unclaimed = {}
        return True

    def _still_unclaimed(self, positions: Mapping[str, int]) -> dict[str, int]:
        """What the group has not taken, and is read from there."""
        return {text: at for text, at in self._unclaimed.items() if positions.get(text) == at}

    def _claim_again(self, consumer: KafkaConsumer) -> None:
        """What the group has not taken; of a partition that went meanwhile, others tell."""
        if not self._unclaimed or time.monotonic() - self._claimed_at < CLAIM_SECONDS:
            return
        kept = self._unclaimed
        if self._membership is not None:
            assigned = {partition_name(tp) for tp in self._membership.assigned}
            kept = {text: at for text, at in kept.items() if text in assigned}
        self._commit_starts(consumer, kept)

    def _offset(self, text: str, position: int) -> OffsetAndMetadata:
        """As it is committed."""
        owners = (
            self._owners.get(text, Owners())
            if self.settings.group_instance_id is not None
            else Owners()
        )
        known = replace(owners, topic_id=self._ids.get(parse_partition(text).topic, ""))
        return OffsetAndMetadata(position, known.text(), -1)

    def _on_commit(self, _: object, answer: object) -> None:
        """The answer to a commit that nobody waits for. The client's own thread calls it."""
        if isinstance(answer, Exception):
            self._on_commit_failed(answer)
            return
        self._failing_since = None
        if self._commits_failing:
            self._commits_failing = False
            log.info("commits arrive again", extra={"group": self.settings.group_id})

    def _on_commit_failed(self, error: Exception) -> None:
        """A commit was refused: counted, and told unless the next one may arrive. Of a broker that
        is out of reach, `BrokerHealth` tells."""
        self._refused += 1
        now = time.monotonic()
        passing = isinstance(error, errors.KafkaError) and error.retriable
        if passing and self._health.unreachable_since is not None:
            self._failing_since = None
            return
        self._failing_since = self._failing_since or now
        if not passing or now - self._failing_since >= SILENT_SECONDS:
            self._warn_commits_failing(error)

    def _warn_commits_failing(self, error: Exception) -> None:
        """Warn once that commits fail; reset by the next success."""
        if self._membership is not None or self._commits_failing:
            return
        self._commits_failing = True
        foreign = isinstance(error, NOT_A_MEMBER)
        log.warning(
            "commits do not arrive: the group has members that joined it, and this engine only "
            "commits under its name; its checkpoints hold its positions, and the group's offsets "
            "are not its own: give one of both another group"
            if foreign
            else "commits do not arrive; the checkpoints hold the positions",
            extra={"group": self.settings.group_id, "reason": type(error).__name__},
        )

    def _committed_to(self, tp: TopicPartition) -> OffsetAndMetadata | None:
        """Return the group's committed offset, if a group is set."""
        return (
            None
            if self.settings.group_id is None or self._starting_over
            else self._ask_committed(tp)
        )

    def _ask_committed(self, tp: TopicPartition) -> OffsetAndMetadata | None:
        wait = int(self.settings.timeout * 1000)
        committed = self._with_retries(
            lambda: self._connected().committed(tp, metadata=True, timeout_ms=wait)
        )
        assert committed is None or isinstance(committed, OffsetAndMetadata)
        return committed

    def _start_position(
        self,
        consumer: KafkaConsumer,
        tp: TopicPartition,
        at: int | None,
        was: str,
        ids: Mapping[str, str],
        first: Offsets,
        end: Offsets,
    ) -> int:
        """Where a partition starts.

        Args:
            at: where to go on, if somebody knows that.
            was: id of the topic that `at` is in, "" where nobody knows.
            ids: the topics' ids now.
        """
        if was and ids.get(tp.topic, was) != was:
            reason = (
                f"Topic '{tp.topic}' was deleted and made anew: {partition_name(tp)} has "
                f"other records now"
            )
            return self._reset_position(tp, first[tp], first[tp], end[tp], reason)
        if at is None:
            return self._initial_position(consumer, tp, first, end)
        return self._in_range(tp, at, first[tp], end[tp])

    def _initial_position(
        self, consumer: KafkaConsumer, tp: TopicPartition, first: Offsets, end: Offsets
    ) -> int:
        """Where a partition starts that nobody knows of."""
        start = self.settings.start
        if isinstance(start, int):
            offset = self._with_retries(lambda: consumer.offsets_for_times({tp: start}))[tp]
            return end[tp] if offset is None else int(offset.offset)
        return first[tp] if start == "earliest" else end[tp]

    def _in_range(self, tp: TopicPartition, at: int, first: int, end: int) -> int:
        """The position, or where to go instead when the log no longer, or not yet, has it."""
        if first <= at <= end:
            return at
        reason = (
            f"{partition_name(tp)} has offsets {first} to {end}, and {at} is where to go on: "
            f"records are "
            "gone (retention?)"
        )
        return self._reset_position(tp, at, first, end, reason)

    def _reset_position(
        self, tp: TopicPartition, at: int, first: int, end: int, reason: str
    ) -> int:
        """Where to go on by `auto_offset_reset`. Raises: HeadraceError where that is ``fail``."""
        if self.settings.auto_offset_reset == "fail":
            raise HeadraceError(
                f"{reason}; set [source] auto_offset_reset to 'earliest' or 'latest' to go on with "
                f"what is there "
                "now."
            )
        to = first if self.settings.auto_offset_reset == "earliest" else end
        self._skipped += max(0, to - at)
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

    def _poll(self, timeout: float) -> None:
        with self._translated_errors():
            consumer = self._connected()
            if self._membership is not None and self._membership.joined:
                self._membership.rejoin_if_joining()
            self._buffer(self._polled(consumer, timeout))
            self._claim_again(consumer)
            self._check_brokers(consumer)
            self._check_topics(consumer)

    def _polled(
        self, consumer: KafkaConsumer, timeout: float
    ) -> Mapping[TopicPartition, Sequence[Chunk]]:
        """Poll the consumer; return nothing while no broker is reachable."""
        try:
            fetched: Mapping[TopicPartition, Sequence[Chunk]] = consumer.poll(
                timeout_ms=int(timeout * 1000), max_records=POLL_CHUNKS
            )
        except errors.KafkaConnectionError as error:
            log.debug("poll failed", extra={"reason": str(error)})
            return {}
        except errors.OffsetOutOfRangeError as error:
            for tp, at in offsets_out_of_range(error).items():
                self._on_out_of_range(consumer, tp, at)
            return {}
        except errors.LogTruncationError as error:
            for tp, to in truncated_to(error).items():
                self._on_truncation(consumer, tp, to)
            return {}
        return fetched

    def _on_out_of_range(self, consumer: KafkaConsumer, tp: TopicPartition, at: int) -> None:
        """The log no longer has the offset that was asked for: retention has passed the reader, or
        it is another topic."""
        if self._is_recreated(consumer, tp.topic):
            return
        first, end = self._ranges(consumer, [tp])
        self._seek_and_mark(consumer, tp, self._in_range(tp, at, first[tp], end[tp]))

    def _on_truncation(
        self, consumer: KafkaConsumer, tp: TopicPartition, to: OffsetAndMetadata | None
    ) -> None:
        """The log has other records now behind `to`, or behind an offset that nobody knows; or it
        is another topic, which looks the same."""
        if self._is_recreated(consumer, tp.topic):
            return
        first, end = self._ranges(consumer, [tp])
        reason = (
            f"{partition_name(tp)} has lost records that were read (an unclean leader election?)"
        )
        instead = self._reset_position(tp, end[tp], first[tp], end[tp], reason)
        self._seek_and_mark(consumer, tp, instead if to is None else int(to.offset))

    def _is_recreated(self, consumer: KafkaConsumer, topic: str) -> bool:
        """Whether the topic is gone or made anew, by what a broker says now."""
        self._with_retries(consumer.topics)
        self._check_topics(consumer)
        return topic in self._recreated | self._deleted

    def _seek_and_mark(self, consumer: KafkaConsumer, tp: TopicPartition, to: int) -> None:
        """Go on there; no record says so, but a mark must."""
        consumer.seek(tp, to)
        nothing = Values(data=np.empty(0, np.uint8), bounds=np.zeros(1, np.int64), tail=self._tail)
        self._waiting.append(
            Records(
                partition=partition_name(tp), positions=np.empty(0, np.int64), next=to,
                values=nothing,
                arrived=time.monotonic(),
            )
        )  # fmt: skip

    def _check_topics(self, consumer: KafkaConsumer) -> None:
        """Notice topics that are gone, or others under the same name, whenever the client has
        heard from a broker what there is.

        Raises: HeadraceError where `auto_offset_reset` says so.
        """
        if not self._starts or (heard := metadata_time_ms(consumer)) == self._topics_at:
            return
        self._topics_at = heard
        for topic, now in topic_ids(consumer, self._ids).items():
            if now != self._ids[topic] and topic not in self._recreated:
                self._with_retries(consumer.topics)  # a broker may not know yet
                now = topic_ids(consumer, [topic]).get(topic, "")
                if not now and self._with_retries(lambda: is_forbidden(consumer, topic)):  # noqa: B023
                    raise errors.TopicAuthorizationFailedError({topic})
                self._on_topic_changed(topic, now)

    def _on_topic_changed(self, topic: str, now: str) -> None:
        """A topic that is read has this id now, or none: it is not there."""
        if now == self._ids[topic]:
            self._deleted.discard(topic)
        elif now:
            event = f"Topic '{topic}' was deleted and made anew while it was read"
            if self.settings.auto_offset_reset == "fail":
                raise HeadraceError(
                    f"{event}: nothing of what is in it now was read; set [source] "
                    f"auto_offset_reset to "
                    "'earliest' or 'latest' to go on with it."
                )
            self._recreated.add(topic)
        elif topic not in self._deleted:
            event = f"Topic '{topic}' was deleted while it was read"
            if self.settings.auto_offset_reset == "fail" and self._pattern is None:
                raise HeadraceError(
                    f"{event}: make it again and set [source] auto_offset_reset to 'earliest' to "
                    f"read what comes "
                    "there, or take it out of [source] topics."
                )
            self._deleted.add(topic)
            log.warning("%s: the others go on", event, extra={"topic": topic})

    def _check_brokers(self, consumer: KafkaConsumer) -> None:
        """Note whether a broker is in reach.

        Raises: the client's error where one is, and does not let it in any more.
        """
        reachable = is_answering(consumer, again=self._health.unreachable_since is not None)
        if not reachable and (why := auth_failure(consumer)) is not None:
            raise why
        self._health.report(self, reachable)

    def _buffer(self, fetched: Mapping[TopicPartition, Sequence[Chunk]]) -> None:
        arrived = time.monotonic()
        for tp, chunks in fetched.items():
            if partition_name(tp) not in self._nexts or tp.topic in self._recreated:
                continue  # it came, and nobody has said yet where it starts
            for chunk in chunks:
                self._waiting += _records(
                    partition_name(tp), chunk, arrived, self._stop(tp), self._tail
                )
            with contextlib.suppress(IllegalStateError):  # it may have gone since
                if (high := self._connected().highwater(tp)) is not None:
                    self._ends[partition_name(tp)] = high

    def _pause(self, held: bool) -> None:
        """Pause what is read, or resume it."""
        consumer = self._consumer
        if held == self._paused or consumer is None:
            return
        self._paused = held
        read = [tp for tp in consumer.assignment() if partition_name(tp) in self._nexts]
        (consumer.pause if held else consumer.resume)(*read)

    @property
    def has_lines(self) -> bool:
        """Whether the format takes a line a value."""
        return spec_of(self.settings.format).newline

    @property
    def _tail(self) -> int:
        return int(self.has_lines)

    def _stop(self, tp: TopicPartition) -> int | None:
        return self._stops[tp] if self.settings.stop == "end" else None

    def _ended(self) -> bool:
        if self.settings.stop == "never":
            return False
        consumer = self._connected()
        return all(consumer.position(tp) >= stop for tp, stop in self._stops.items())

    def _commit_noted(self, consumer: KafkaConsumer | None = None) -> None:
        """Send the newest mark, if there is one; waiting for the answer only at the end."""
        if self.settings.group_id is None or self._membership is not None or not self._marks:
            return
        offsets = self.offsets(self._marks.popleft())
        if consumer is not None:
            consumer.commit(offsets, timeout_ms=int(CLOSE_SECONDS * 1000))
        elif offsets:
            self._connected().commit_async(offsets, self._on_commit)

    def _commit_member(
        self, membership: Membership, offsets: dict[TopicPartition, OffsetAndMetadata]
    ) -> bool:
        if not offsets:
            return True
        if membership.partitions_lost:
            return False
        try:
            with self._translated_errors():
                return self._committed(membership, offsets)
        except UserError:
            raise
        except HeadraceError as error:  # the next commit says it all again
            cause = error.__cause__ or error
            log.warning("commit failed", extra={"reason": f"{type(cause).__name__}: {cause}"})
            self._refused += 1
            return False

    def _committed(
        self, membership: Membership, offsets: dict[TopicPartition, OffsetAndMetadata]
    ) -> bool:
        try:
            self._connected().commit(offsets, timeout_ms=int(COMMIT_SECONDS * 1000))
        except EVICTED as error:
            log.warning("commit refused", extra={"reason": type(error).__name__})
            self._refused += 1
            membership.on_evicted()
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
    format = require_known_format(settings.format, TOPICS)
    for key in KEYS_OF_FORMATS:
        if getattr(settings, key):
            require_option(key, format, TOPICS)
    if is_custom(format):
        return load_custom(format)
    if format == "csv" and not settings.columns:
        raise UserError('[source] format = "csv" of a topic needs the fields\' names: columns.')
    options = FormatOptions(
        paths=settings.paths,
        coerce=settings.coerce,
        headers=defaultdict(lambda: settings.columns),
        schemas=_schemas(settings) if format == "avro" else None,
        topics=settings.topics if settings.registry is not None else (),
    )
    return spec_of(format).format(options)


def _schemas(settings: KafkaSource.Settings) -> Registry | Mapping[str, Any]:
    """What knows the schemas of Avro records."""
    if (settings.registry is None) == (settings.schema_file is None):
        raise UserError(
            '[source] format = "avro" needs the address of a schema registry, registry, or the '
            "schema of plain values, schema_file: one of them."
        )
    if settings.registry is None:
        assert settings.schema_file is not None
        schema: Mapping[str, Any] = schema_file(settings.schema_file)
        return schema
    return Registry(
        settings.registry,
        user=settings.registry_user,
        password=settings.registry_password,
        timeout=settings.timeout,
        retry_timeout=settings.registry_retry_timeout,
    )


def _pattern(settings: KafkaSource.Settings) -> str | None:
    """The pattern of the topics' names, if that is what they are given by.

    Raises: UserError for one that is none, and for settings that a group needs.
    """
    if settings.subscribe and settings.group_id is None:
        raise UserError("[source] subscribe needs the name of the group to join: group.")
    if settings.subscribe and settings.stop == "end":
        raise UserError(
            '[source] subscribe shares an endless stream: stop = "end" is for an engine that reads '
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
