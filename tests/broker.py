"""A real Apache Kafka broker of one's own: resolved by Maven, on free ports, for as long as it is
needed.

``python -m tests.broker`` (``make kafka``) leaves one running until Ctrl-C.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import functools
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic

from tests.java import CACHE, LIGHT, classes
from tests.server import Server
from tests.waiting import HANG

POM = Path(__file__).parents[1] / "deploy" / "kafka" / "pom.xml"
PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
num.partitions=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.retention.ms=-1
metadata.max.idle.interval.ms=0
num.network.threads=1
num.io.threads=2
"""
"""Small, and asleep while nobody asks for anything."""
VERSION = "4.3.1"


class Broker(Server):
    """One broker; see `Server`.

    Attributes:
        bootstrap_servers: where clients find it.
    """

    title = "broker"

    def __init__(self, folder: Path, options: Sequence[str] = ()) -> None:
        """Copies formatted data into the folder; `start` runs the broker.

        Args:
            options: of Java's; by default, those of classes that are ready.
        """
        super().__init__(folder)
        port, controller = free_ports(2)
        self.bootstrap_servers = f"127.0.0.1:{port}"
        self._config = folder / "server.properties"
        self._jars = _jars()
        self._options = options or classes(f"kafka-{VERSION}", Broker)
        text = PROPERTIES.format(port=port, controller=controller, data=folder / "data")
        self._config.write_text(self._properties(text))
        shutil.copytree(self._formatted(text), folder / "data")

    def start(self) -> Self:
        """Run it, and return when it answers."""
        command = [*self._command("-Xmx768m"), "kafka.Kafka", str(self._config)]
        self._run(command, cwd=self.folder)
        self.admin().close()
        return self

    def admin(self) -> KafkaAdminClient:
        """A client that waits for the broker as long as a busy machine may need."""
        return KafkaAdminClient(
            bootstrap_servers=self.bootstrap_servers, bootstrap_timeout_ms=int(1000 * HANG)
        )

    def topic(self, partitions: int = 1, name: str | None = None) -> str:
        """A new topic; its name, a random one unless given."""
        name = name or f"t-{uuid.uuid4().hex[:12]}"
        admin = self.admin()
        made = NewTopic(name=name, num_partitions=partitions, replication_factor=1)
        admin.create_topics([made])
        admin.close()
        return name

    def produce(
        self,
        topic: str,
        values: Sequence[bytes | None],
        *,
        each: int = 100,
        partition: int = 0,
        **settings: Any,
    ) -> None:
        """Send values to a partition, `each` of them a record batch, and wait until they are there.

        Args:
            settings: of kafka-python's producer (compression_type, ...).
        """
        # A batch is sent when it is full, lingers too long, or is flushed: only the last happens.
        producer = KafkaProducer(
            bootstrap_servers=self.bootstrap_servers,
            linger_ms=60_000,
            batch_size=1 << 20,
            **settings,
        )
        for start in range(0, len(values), each):
            sent = [
                producer.send(
                    topic, value, key=b"k", partition=partition, timestamp_ms=1_000 + start + i
                )
                for i, value in enumerate(values[start : start + each])
            ]
            producer.flush()
            for future in sent:
                future.get(0)
        producer.close()

    def _properties(self, text: str) -> str:
        """The server's; a further kind of broker adds its own."""
        return text

    def _formatted_with(self) -> list[str]:
        """Further words for the storage tool."""
        return []

    def _answers(self) -> bool:
        host, _, port = self.bootstrap_servers.partition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return True
        return False

    def _formatted(self, text: str) -> Path:
        """Data that is formatted, once a machine: where the quorum is stands in the properties, and
        the storage tool starts as slowly as a broker, 2 s of a core."""
        words = self._formatted_with()
        digest = hashlib.sha256(repr((PROPERTIES, words)).encode()).hexdigest()[:12]
        made = CACHE / f"kafka-{VERSION}-{digest}.data"
        if not made.is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                config = Path(folder) / "server.properties"
                config.write_text(text.replace(str(self.folder / "data"), f"{folder}/data"))
                command = [*self._command("-Xmx256m"), "kafka.tools.StorageTool", "format", "-t"]
                command += [str(uuid.uuid4()), *words, "-c", str(config)]
                subprocess.run(command, check=True, capture_output=True)
                with contextlib.suppress(OSError):  # another process was faster
                    (Path(folder) / "data").rename(made)
        return made

    def _command(self, memory: str) -> list[str]:
        return ["java", memory, *LIGHT, *self._options, "-cp", f"{self._jars}/*"]


class There(Broker):
    """One that somebody else runs, at KAFKA_BOOTSTRAP_SERVERS."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers


@functools.cache
def shared_broker() -> Broker:
    """One for all tests of this process, started by the first that asks, gone with the process; or
    the one at KAFKA_BOOTSTRAP_SERVERS. What it needs must be there on CI, and is a reason to skip a
    test elsewhere."""
    if there := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        return There(there)
    skip_without_tools()
    folder = tempfile.mkdtemp(prefix="headrace-kafka-")
    broker = Broker(Path(folder)).start()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(broker.kill)  # first, then the folder goes
    return broker


def skip_without_tools() -> None:
    """Skip the test that asks, unless this is CI."""
    testing = "PYTEST_CURRENT_TEST" in os.environ and os.environ.get("CI") != "true"
    if testing and (tools := missing_tools()):
        import pytest

        pytest.skip(f"no {' and no '.join(tools)} to run a broker with")


def _jars() -> Path:
    """The broker's jars, resolved once a machine."""
    if missing := missing_tools():
        raise RuntimeError(
            f"A broker needs {' and '.join(missing)}: install Java 17 or newer and Maven (Debian: "
            "default-jre-headless, maven), or set KAFKA_BOOTSTRAP_SERVERS."
        )
    folder = CACHE / f"kafka-{VERSION}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as made:
            command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
            command += ["-DincludeScope=runtime", f"-DoutputDirectory={made}/jars"]
            subprocess.run(command, check=True)
            if not folder.is_dir():  # or another process was faster
                (Path(made) / "jars").rename(folder)
    return folder


def missing_tools() -> list[str]:
    """What a broker needs to run, and is not installed here."""
    return [tool for tool in ("java", "mvn") if shutil.which(tool) is None]


def free_ports(count: int) -> list[int]:
    """That nothing listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def main() -> None:
    """Run one until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.broker",
        description="Run a broker until Ctrl-C, and print the variable that names it to tests.",
    )
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help="made at its start")
    topics = parser.parse_args().topics
    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder)) as broker:
        for topic in topics:
            broker.topic(name=topic)
        print(  # noqa: T201 - the answer of `make kafka`
            f"export KAFKA_BOOTSTRAP_SERVERS={broker.bootstrap_servers}", flush=True
        )
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    main()
