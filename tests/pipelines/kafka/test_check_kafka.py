"""`headrace check` on topics: it looks without the group, at whatever there is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.broker import Broker, shared_broker
from tests.pipelines.conftest import Headrace, Rows, Small
from tests.pipelines.kafka.test_kafka import committed

FILES = 'kind = "files"\npath = '


@pytest.fixture
def broker() -> Broker:
    return shared_broker()


@pytest.fixture
def reading(small: Small, broker: Broker) -> Callable[..., Path]:
    """The small pipeline's file, on a topic that it reads in a group, without an end."""

    def write(topic: str, *changes: tuple[str, str]) -> Path:
        source = (
            f'kind = "kafka"\nbootstrap_servers = "{broker.bootstrap_servers}"\ngroup_id = '
            f'"{topic}"\ntopics = '
        )
        return small(Path(topic), (FILES + f'"{topic}"', source + f'"{topic}"'), *changes)

    return write


def test_what_the_group_has_finished_is_a_sample_too(
    reading: Callable[..., Path], broker: Broker, rows: Rows, headrace: Headrace
) -> None:
    topic = broker.topic()
    file = reading(topic)
    broker.produce(topic, [line.encode() for line in rows(300).write_ndjson().splitlines()])
    for _ in range(2):
        code, out, err = headrace("check", file, "--set", "source.start=latest")
        assert code == 0, out + err
        assert "is ready to run." in out.replace("\n", " ")
        assert "300 records through the stages" in out
    assert committed(broker, topic) is None  # a look moves no group
    assert headrace("run", file, "--set", "source.stop=end")[0] == 0
    assert committed(broker, topic) == 300
    assert headrace("check", file)[0] == 0
    assert committed(broker, topic) == 300


def test_a_topic_made_as_documented_and_empty_is_no_mistake(
    reading: Callable[..., Path], broker: Broker, headrace: Headrace
) -> None:
    topic = f"{broker.topic()}-made"
    readme = (Path(__file__).parents[3] / "connectors" / "kafka" / "README.md").read_text()
    (line,) = [line for line in readme.splitlines() if "kafka-python admin" in line]
    words = line.replace("HOST:PORT", broker.bootstrap_servers).replace("scored", topic).split()
    made = subprocess.run(
        [sys.executable, "-m", "kafka.admin", *words[2:]], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    code, out, err = headrace("check", reading(topic))
    assert code == 0, out + err
    assert "The source has no records yet" in out


@pytest.mark.parametrize("declared", ["", '"*" = "float64"\n'])
def test_a_topic_without_a_schema(
    reading: Callable[..., Path], headrace: Headrace, declared: str
) -> None:
    text = reading("any").read_text()
    begin, end = text.index("[source.schema]\n") + len("[source.schema]\n"), text.index("[loader]")
    file = reading("any", (text[begin:end], declared))
    code, _, err = headrace("check", file)
    assert code == 2
    assert "A topic has no schema of its own: name every column" in err
    assert json.loads(err.split("such as amount = ")[1].split()[0]) == "float64"
