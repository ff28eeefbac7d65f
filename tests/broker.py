"""A real Apache Kafka broker of one's own: resolved by Maven, on free ports, for as long as it is
needed.

``python -m tests.broker`` (``make kafka``) leaves one running until Ctrl-C.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic

POM = Path(__file__).parents[1] / "deploy" / "kafka" / "pom.xml"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"
WAIT = 60.0
PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
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
"""


class Broker:
    """One broker on one folder of data; started again, it has what it had.

    Attributes:
        bootstrap: where clients find it.
    """

    def __init__(self, folder: Path) -> None:
        """Formats the folder; `start` runs the broker."""
        self.folder = folder
        port, controller = free_ports(2)
        self.bootstrap = f"127.0.0.1:{port}"
        self._config = folder / "server.properties"
        self._process: subprocess.Popen[bytes] | None = None
        self._jars = _jars()
        text = PROPERTIES.format(port=port, controller=controller, data=folder / "data")
        self._config.write_text(text)
        identity = str(uuid.uuid4())
        self._java(
            "kafka.tools.StorageTool", "format", "--standalone", "-t", identity, "-c"
        ).check_returncode()

    def start(self) -> Broker:
        """Run it, and return when it answers."""
        log = (self.folder / "broker.log").open("ab")
        options = ["-Xmx768m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        command = [*self._command(options), "kafka.Kafka", str(self._config)]
        self._process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
        )
        log.close()
        deadline = time.monotonic() + WAIT
        while not self._listens():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "broker.log").read_text()[-2_000:]
                raise RuntimeError(f"The broker did not come up: {said}")
        KafkaAdminClient(bootstrap_servers=self.bootstrap).close()
        return self

    def topic(self, partitions: int = 1) -> str:
        """A new topic; its name."""
        name = f"t-{uuid.uuid4().hex[:12]}"
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
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
            bootstrap_servers=self.bootstrap, linger_ms=60_000, batch_size=1 << 20, **settings
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

    def stop(self) -> None:
        """In good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """At once, as a power cut does."""
        self._end(signal.SIGKILL)

    def __enter__(self) -> Broker:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def _listens(self) -> bool:
        host, _, port = self.bootstrap.partition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return True
        return False

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(WAIT)

    def _java(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        command = [*self._command(["-Xmx256m", "-XX:TieredStopAtLevel=1"]), *words]
        return subprocess.run([*command, str(self._config)], check=False, capture_output=True)

    def _command(self, options: list[str]) -> list[str]:
        return ["java", *options, "-cp", f"{self._jars}/*"]


class There(Broker):
    """One that somebody else runs, at KAFKA_BOOTSTRAP_SERVERS."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap


@functools.cache
def shared_broker() -> Broker:
    """One for all tests of this process, started by the first that asks, gone with the process; or
    the one at KAFKA_BOOTSTRAP_SERVERS. What it needs must be there on CI, and is a reason to skip a
    test elsewhere."""
    if there := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        return There(there)
    testing = "PYTEST_CURRENT_TEST" in os.environ and os.environ.get("CI") != "true"
    if testing and (tools := missing_tools()):
        pytest.skip(f"no {' and no '.join(tools)} to run a broker with")
    folder = tempfile.mkdtemp(prefix="headrace-kafka-")
    broker = Broker(Path(folder)).start()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(broker.kill)  # first, then the folder goes
    return broker


def _jars() -> Path:
    """The broker's jars, resolved once a machine."""
    if missing := missing_tools():
        raise RuntimeError(
            f"A broker needs {' and '.join(missing)}: install Java 17 or newer and Maven (Debian: "
            "default-jre-headless, maven), or set KAFKA_BOOTSTRAP_SERVERS."
        )
    folder = CACHE / "kafka-4.3.1"
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
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def main() -> None:
    """Run one until Ctrl-C."""
    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder)) as broker:
        print(  # noqa: T201 - the answer of `make kafka`
            f"export KAFKA_BOOTSTRAP_SERVERS={broker.bootstrap}", flush=True
        )
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    main()
