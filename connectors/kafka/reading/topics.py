"""Tracks which topics and partitions a source reads, and whether they are still the same."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence

from kafka import KafkaConsumer, TopicPartition, errors

from connectors.kafka.client_internals import is_forbidden, metadata_time_ms, topic_ids
from connectors.kafka.reading.connection import Connection
from connectors.kafka.reading.membership import parse_partition
from connectors.kafka.reading.settings import KafkaSourceSettings
from engine.types import HeadraceError, Mark, Snapshot, UserError, nearest

log = logging.getLogger("headrace.kafka")


class Topics:
    """The topics of a source, each with the id from its creation.

    Attributes:
        pattern: the pattern of their names, if they are given by one.
        recreated: topics deleted and created again while they were read.
        deleted: topics that are gone.
        begun: whether a partition has been read; changes are noticed only then.
    """

    def __init__(self, settings: KafkaSourceSettings, connection: Connection) -> None:
        """Raises: UserError for an invalid pattern, and for settings that a group lacks."""
        self.pattern = _pattern(settings)
        self.recreated: set[str] = set()
        self.deleted: set[str] = set()
        self.begun = False
        self._settings = settings
        self._connection = connection
        self._ids: dict[str, str] = {}
        self._first_ids: dict[str, str] = {}
        self._foreign_identities: dict[str, Snapshot] = {}
        self._checked_at = 0.0

    def reads(self, text: str) -> bool:
        """Return whether a partition belongs to a topic read here."""
        topic, _, number = text.rpartition("/")
        if not number.isdigit():
            return False
        if self.pattern is not None:
            return re.match(self.pattern, topic) is not None
        return topic in self._settings.topics

    def partitions(self, consumer: KafkaConsumer) -> list[TopicPartition]:
        """Return all partitions of the topics.

        Raises: UserError if a topic does not exist.
        """
        partitions = []
        topics_there = consumer.topics()
        topics: Sequence[str] = self._settings.topics
        if self.pattern is not None:
            topics = sorted(topic for topic in topics_there if re.match(self.pattern, topic))
            if not topics:
                raise UserError(
                    f"[source] no topic at {self._settings.bootstrap_servers} matches "
                    f"'{self.pattern}'.{nearest('', topics_there)}"
                )
        for topic in topics:
            if topic not in topics_there:
                raise UserError(
                    f"[source] topic '{topic}' does not exist at "
                    f"{self._settings.bootstrap_servers}: create it, or correct its name."
                    f"{nearest(topic, topics_there)}"
                )
            numbers = consumer.partitions_for_topic(topic) or ()
            partitions += [TopicPartition(topic, number) for number in sorted(numbers)]
        return partitions

    def partition_count(self, consumer: KafkaConsumer) -> int:
        """Return the number of partitions; 0 if it cannot be known now."""
        try:
            with self._connection.translated_errors():
                return len(self.partitions(consumer))
        except UserError as error:
            log.warning("%s", error)
        except HeadraceError as error:
            log.debug("%s", error)  # unreachable: retried, and `BrokerHealth` reports it once
        return 0

    # ------------------------------------------------------------------------------------- ids

    def id_of(self, topic: str) -> str:
        """Return the last known id of a topic; "" if unknown."""
        return self._ids.get(topic, "")

    def first_id_of(self, topic: str) -> str:
        """Return the first known id of a topic; "" if unknown."""
        return self._first_ids.get(topic, "")

    def ids_now(self, consumer: KafkaConsumer, topics: Iterable[str]) -> dict[str, str]:
        """Return the ids of those topics that exist now."""
        ids = topic_ids(consumer, topics)
        return {topic: known for topic, known in ids.items() if known}

    def learn_ids(self, consumer: KafkaConsumer, topics: Iterable[str]) -> None:
        """Accept the current ids of these topics."""
        self._ids |= self.ids_now(consumer, topics)

    def update_ids(
        self, consumer: KafkaConsumer, partitions: Sequence[TopicPartition]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Return the previous and current ids of the topics."""
        topics = {tp.topic for tp in partitions} | self._ids.keys()
        before, now = dict(self._ids), self.ids_now(consumer, topics)
        self._first_ids = {**now, **before, **self._first_ids}
        self._ids |= now
        self.deleted -= now.keys()
        self.recreated -= now.keys()
        return before, now

    def identities(self, mark: Mark) -> Mapping[str, Snapshot]:
        """Return partition -> the id of its topic; what is not read here, unchanged."""
        own = {text: parse_partition(text).topic for text in mark.positions if self.reads(text)}
        ids = {text: self._ids[topic] for text, topic in own.items() if topic in self._ids}
        return {**self._foreign_identities, **ids}

    def match_identities(self, identities: Mapping[str, Snapshot]) -> None:
        """Take over the ids from an earlier run's `identities`."""
        for text, known in identities.items():
            if self.reads(text):
                self._ids[parse_partition(text).topic] = str(known)
            else:
                self._foreign_identities[text] = known

    # --------------------------------------------------------------------------------- changes

    def is_current(self, topic: str) -> bool:
        """Return whether a topic is still the one whose records were read."""
        return topic not in self.recreated | self.deleted

    def is_recreated(self, consumer: KafkaConsumer, topic: str) -> bool:
        """Ask a broker whether a topic is gone or was recreated."""
        self._connection.with_retries(consumer.topics)
        self.check(consumer)
        return not self.is_current(topic)

    def check(self, consumer: KafkaConsumer) -> None:
        """Notice topics that are gone, or others under the same name, whenever the client has
        heard from a broker what there is.

        Raises: HeadraceError if `auto_offset_reset` says so.
        """
        if not self.begun or (heard := metadata_time_ms(consumer)) == self._checked_at:
            return
        self._checked_at = heard
        for topic, now in topic_ids(consumer, self._ids).items():
            if now != self._ids[topic] and topic not in self.recreated:
                self._on_changed(topic, self._asked_id(consumer, topic))

    def _asked_id(self, consumer: KafkaConsumer, topic: str) -> str:
        """Ask once more for a topic's id: a broker may not know it yet."""
        self._connection.with_retries(consumer.topics)
        now = topic_ids(consumer, [topic]).get(topic, "")
        if not now and self._connection.with_retries(lambda: is_forbidden(consumer, topic)):
            raise errors.TopicAuthorizationFailedError({topic})
        return now

    def _on_changed(self, topic: str, now: str) -> None:
        """A topic that is read has this id now, or none: it is not there."""
        if now == self._ids[topic]:
            self.deleted.discard(topic)
        elif now:
            event = f"Topic '{topic}' was deleted and created again while it was read"
            if self._settings.auto_offset_reset == "fail":
                raise HeadraceError(
                    f"{event}: nothing of what is in it now was read; set [source] "
                    "auto_offset_reset to 'earliest' or 'latest' to go on with it."
                )
            self.recreated.add(topic)
        elif topic not in self.deleted:
            event = f"Topic '{topic}' was deleted while it was read"
            if self._settings.auto_offset_reset == "fail" and self.pattern is None:
                raise HeadraceError(
                    f"{event}: make it again and set [source] auto_offset_reset to 'earliest' to "
                    "read what comes there, or take it out of [source] topics."
                )
            self.deleted.add(topic)
            log.warning("%s: the others go on", event, extra={"topic": topic})


def _pattern(settings: KafkaSourceSettings) -> str | None:
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


__all__ = ["Topics"]
