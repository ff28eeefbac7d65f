"""Holds the consumer of a source: creates it on demand, retries while no broker is reachable."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from kafka import KafkaConsumer, TopicPartition, errors

from connectors.kafka.client import BrokerHealth, is_answering, translated_errors
from connectors.kafka.client_internals import auth_failure, install_columnar_fetch
from connectors.kafka.reading.decoding import TopicDecoding
from connectors.kafka.reading.membership import consumer_settings
from connectors.kafka.reading.settings import KafkaSourceSettings
from engine.types import UserError

T = TypeVar("T")
BROKER_UNAVAILABLE = (
    errors.KafkaConnectionError,
    errors.KafkaTimeoutError,
    errors.RequestTimedOutError,
)
"""The client's errors for a broker that becomes unreachable, or hangs, during a request."""
RETRY_SECONDS = 0.1
"""The seconds between two requests to an unreachable broker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRange:
    """The offsets in a partition's log.

    Attributes:
        first: the offset of the oldest record.
        end: the offset after the newest record.
    """

    first: int
    end: int


class Connection:
    """The connection of one source to the brokers.

    Attributes:
        with_metadata: whether to fetch keys and headers of records; set before the first read.
        fetch_bytes: the most bytes of one response of a broker.
        health: whether a broker is reachable.
        metadata_seconds: the seconds between two updates of topics and partitions.
    """

    metadata_seconds: ClassVar[float] = 30.0

    def __init__(self, settings: KafkaSourceSettings, decoding: TopicDecoding) -> None:
        self.with_metadata = bool(settings.record)
        self.fetch_bytes = int(settings.fetch_max_bytes)
        self.health = BrokerHealth.of(settings.bootstrap_servers)
        self._settings = settings
        self._decoding = decoding
        self._consumer: KafkaConsumer | None = None
        self._lock = threading.Lock()

    @property
    def opened(self) -> KafkaConsumer | None:
        """The consumer, if it exists."""
        return self._consumer

    def consumer(self) -> KafkaConsumer:
        """Return the consumer; create it if there is none."""
        if self._consumer is None:
            make = functools.partial(
                KafkaConsumer, **self._settings.config(), **self._consumer_settings()
            )
            self._consumer = self.with_retries(make)
            install_columnar_fetch(
                self._consumer,
                newline=self._decoding.has_lines,
                with_metadata=self.with_metadata,
            )
            if self._settings.stop == "never":
                self._decoding.warm_up(with_metadata=self.with_metadata)
        return self._consumer

    def _consumer_settings(self) -> dict[str, Any]:
        settings = self._settings
        assert settings.group_id is not None or not settings.subscribe
        group: dict[str, Any] = {"group_id": settings.group_id}
        if settings.subscribe and settings.group_id:
            group = consumer_settings(
                settings.group_id,
                settings.group_instance_id,
                settings.assignor,
                settings.session_timeout,
                settings.rebalance_timeout,
            )
        return group | {
            "enable_auto_commit": False,
            "auto_offset_reset": "none",  # `Reader` resets offsets, and logs it
            "isolation_level": settings.isolation_level,
            "fetch_max_bytes": self.fetch_bytes,
            "max_partition_fetch_bytes": self.fetch_bytes,
            "allow_auto_create_topics": False,
            "metadata_max_age_ms": int(self.metadata_seconds * 1000),
            "metrics_enabled": False,
        }

    def detach(self) -> KafkaConsumer | None:
        """Detach the consumer and return it, for closing; None if there is none."""
        with self._lock:
            consumer, self._consumer = self._consumer, None
        self.health.forget(self)
        return consumer

    def with_retries(self, ask: Callable[[], T]) -> T:
        """Return the broker's answer, retried if the connection breaks: kafka-python (3.0) raises
        an error instead.

        Raises: the client's error if the broker is unreachable for longer than a start may wait.
        """
        deadline = time.monotonic() + self._settings.hang
        with self.health.watching(ask):
            while True:
                try:
                    return ask()
                except BROKER_UNAVAILABLE:
                    if time.monotonic() >= deadline:
                        raise
                    time.sleep(RETRY_SECONDS)

    def ranges(
        self, consumer: KafkaConsumer, partitions: list[TopicPartition]
    ) -> dict[TopicPartition, LogRange]:
        """Return the current offset ranges of the partitions' logs."""
        if not partitions:
            return {}
        first = self.with_retries(lambda: consumer.beginning_offsets(partitions))
        end = self.with_retries(lambda: consumer.end_offsets(partitions))
        return {tp: LogRange(first=first[tp], end=end[tp]) for tp in partitions}

    def check(self, consumer: KafkaConsumer) -> None:
        """Report whether a broker is reachable.

        Raises: the client's error if a broker is reachable but refuses this client.
        """
        reachable = is_answering(consumer, again=self.health.unreachable_since is not None)
        if not reachable and (why := auth_failure(consumer)) is not None:
            raise why
        self.health.report(self, reachable)

    @contextlib.contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Translate the client's errors into one sentence, as `client.translated_errors` does, and
        also those of a group."""
        settings = self._settings
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
                    f"Group '{settings.group_id}' has members with another assignor than "
                    f"'{settings.assignor}': set [source] assignor to theirs, or use another "
                    "group."
                ) from error
            except errors.UnknownMemberIdError as error:
                raise UserError(
                    f"Group '{settings.group_id}' has members that joined it, and this engine "
                    "reads alone: set [source] subscribe = true, or use another group."
                ) from error


__all__ = ["Connection", "LogRange"]
