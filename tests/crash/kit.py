"""Engines that are killed, brokers that go, groups that rebalance; and an account of every record.

Nothing here knows what a pipeline does: it needs a file with a Kafka source and a Kafka sink. The
account is taken with kafka-python alone, from the headers that say where each record was read.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from tests.forks import Command
from tests.waiting import HANG, until

Place = tuple[str, int, int]
"""Topic, partition, offset."""


class Engine:
    """A process that runs a pipeline file, again and again.

    Attributes:
        starts: how often it was started.
    """

    def __init__(self, file: Path, overrides: Sequence[str], log: Path) -> None:
        self.file, self.log = file, log
        self.starts = 0
        self._overrides = overrides
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it, unless it runs."""
        if self.running:
            return
        words = ["run", str(self.file), "--log-format", "json"]
        words += [word for text in self._overrides for word in ("--set", text)]
        with self.log.open("ab") as log:
            self._process = Command(words, stdout=subprocess.DEVNULL, stderr=log)
        self.starts += 1

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """That was started last and not ended by us."""
        return self._process

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL: no handler, no flush."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM: the batch in hand, a checkpoint, goodbye. The exit code."""
        return self._end(signal.SIGTERM)

    def wait(self) -> int:
        """Until it has done its work. The exit code."""
        assert self._process is not None
        return self._process.wait(HANG)

    def records(self) -> list[dict[str, Any]]:
        """Its log so far, all starts together."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return [json.loads(line) for line in lines if line.startswith("{")]

    def said(self, message: str) -> int:
        """How many lines of its log say this."""
        return sum(record["message"] == message for record in self.records())

    def _end(self, number: int) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(HANG)
        except subprocess.TimeoutExpired:
            process.kill()  # or it runs on beside other tests
            process.wait()
            raise


class Feed:
    """A process that sends records to a topic's partitions in turn until it is left; see `feed.py`.
    Entered, it has sent some.

    Args:
        record: "module:function" that makes a number a value.
        rate: records a second.

    Attributes:
        sent: how many, once it was left.
    """

    def __init__(
        self, bootstrap_servers: str, topic: str, partitions: int, record: str, rate: int
    ) -> None:
        self.sent = 0
        self._command = [sys.executable, "-m", "tests.crash.feed"]
        self._command += [bootstrap_servers, topic, str(partitions), str(rate), record]

    def __enter__(self) -> Self:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "begun\n", "the feed failed"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        out, _ = self._process.communicate(timeout=2 * HANG)
        assert self._process.returncode == 0, "the feed failed"
        self.sent = int(out)


@dataclass
class Disruption:
    """What is done to engines and broker, at random moments, one thing at a time.

    Attributes:
        done: what was done, in order.
    """

    engines: Sequence[Engine]
    seed: int
    pause: tuple[float, float] = (0.5, 3.0)
    done: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def kill(self, times: int) -> None:
        """SIGKILL an engine, start it again; so many times, whichever it hits."""
        for _ in range(times):
            self._wait()
            engine = self._random.choice([e for e in self.engines if e.running])
            engine.kill()
            self.done.append(f"killed {engine.log.stem}")
            engine.start()

    def rebalance(self, times: int) -> None:
        """Members leave, are killed and join: so many changes of the group. One always stays."""
        for _ in range(times):
            self._wait()
            running = [e for e in self.engines if e.running]
            idle = [e for e in self.engines if not e.running]
            if idle and (len(running) == 1 or self._random.random() < 0.5):
                engine = self._random.choice(idle)
                engine.start()
                self.done.append(f"joined {engine.log.stem}")
            elif self._random.random() < 0.5:
                engine = self._random.choice(running)
                engine.kill()
                self.done.append(f"killed {engine.log.stem}")
            else:
                engine = self._random.choice(running)
                # In its first seconds a process has no handler yet, and nothing to save.
                assert engine.stop() in (0, -signal.SIGTERM), f"{engine.log} did not stop well"
                self.done.append(f"left {engine.log.stem}")

    def _wait(self) -> None:
        time.sleep(self._random.uniform(*self.pause))  # not for anything: the moment is the point


@dataclass(frozen=True)
class Account:
    """Every record of the source's topics, and what became of it.

    Attributes:
        read: records there are.
        missing: of them, those that are neither in the sink's topic nor a dead letter.
        doubled: those that are there more than once, and how often.
        foreign: answers to records that there are not.
    """

    read: int
    missing: tuple[Place, ...]
    doubled: dict[Place, int]
    foreign: tuple[Place, ...]

    @property
    def at_least_once(self) -> bool:
        """Nothing is lost, nothing invented."""
        return not self.missing and not self.foreign

    @property
    def exactly_once(self) -> bool:
        """Nor is anything there twice."""
        return self.at_least_once and not self.doubled

    def __str__(self) -> str:
        lost = f"{len(self.missing)} missing {list(self.missing[:3])}"
        twice = f"{len(self.doubled)} doubled {dict(list(self.doubled.items())[:3])}"
        return f"{self.read} records: {lost}, {twice}, {len(self.foreign)} foreign"


def account(
    bootstrap_servers: str,
    sources: Sequence[str],
    sink: str,
    letters: Iterable[Place] = (),
    isolation: str = "read_committed",
) -> Account:
    """Compare what is in the source's topics with what is in the sink's, by a reader of committed
    records unless told otherwise. Waits until no transaction is open: those of killed engines end
    by their timeout.

    Args:
        letters: places of dead letters.
    """
    until(lambda: not in_transaction(bootstrap_servers, sink), what="the end of a transaction")
    places = {
        (r.topic, r.partition, r.offset)
        for topic in sources
        for r in records(bootstrap_servers, topic, isolation)
    }
    answers = Counter(letters)
    answers.update(origin(record) for record in records(bootstrap_servers, sink, isolation))
    return Account(
        read=len(places),
        missing=tuple(sorted(places - answers.keys())),
        doubled={place: n for place, n in answers.items() if n > 1},
        foreign=tuple(sorted(answers.keys() - places)),
    )


def origin(record: Any) -> Place:
    """Where the record that this one answers was read, by its headers."""
    headers = dict(record.headers)
    where = (headers[f"headrace.{part}"].decode() for part in ("topic", "partition", "offset"))
    topic, partition, offset = where
    return topic, int(partition), int(offset)


def records(bootstrap_servers: str, topic: str, isolation: str = "read_committed") -> list[Any]:
    """All records of a topic that a reader of this isolation sees, by kafka-python alone."""
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap_servers, isolation_level=isolation, enable_auto_commit=False,
        max_partition_fetch_bytes=8 << 20, max_poll_records=10_000,
    )  # fmt: skip
    partitions = [TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic) or ()]
    consumer.assign(partitions)
    consumer.seek_to_beginning()
    ends = consumer.end_offsets(partitions)
    found: list[Any] = []
    while any(consumer.position(tp) < ends[tp] for tp in partitions):
        for some in consumer.poll(timeout_ms=500).values():
            found += some
    consumer.close()
    return found


def in_transaction(bootstrap_servers: str, topic: str) -> bool:
    """Whether records lie in a topic that no transaction has committed or aborted yet."""
    ends = []
    for isolation in ("read_uncommitted", "read_committed"):
        consumer = KafkaConsumer(bootstrap_servers=bootstrap_servers, isolation_level=isolation)
        partitions = [TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic) or ()]
        ends.append(consumer.end_offsets(partitions))
        consumer.close()
    return bool(ends[0] != ends[1])


def caught_up(
    bootstrap_servers: str, group: str, topics: Sequence[str], seconds: float = HANG
) -> None:
    """Return when the group has committed all there is. Raises: TimeoutError."""
    deadline = time.monotonic() + seconds
    left: dict[Any, Any] = {}
    while time.monotonic() < deadline:
        try:
            left = _left(bootstrap_servers, group, topics)
        except KafkaError as error:
            left = {"broker": str(error)}
        if not left:
            return
        time.sleep(0.25)  # between two questions
    raise TimeoutError(f"group {group} has not caught up within {seconds} s: {left}")


def _left(bootstrap_servers: str, group: str, topics: Sequence[str]) -> dict[Any, Any]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap_servers, group_id=group)
    try:
        partitions = [
            TopicPartition(topic, n)
            for topic in topics
            for n in consumer.partitions_for_topic(topic) or ()
        ]
        ends = consumer.end_offsets(partitions)
        done = {tp: consumer.committed(tp, timeout_ms=5_000) or 0 for tp in partitions}
        return {tp: (done[tp], end) for tp, end in ends.items() if done[tp] < end}
    finally:
        consumer.close()
