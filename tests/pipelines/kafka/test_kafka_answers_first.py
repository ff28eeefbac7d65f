"""One engine on a topic that answers rows and learns them afterwards."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer

from engine.run import Run
from engine.types import Batch, Step
from models.learners.tabular import TabularLearner
from tests.broker import Broker, shared_broker
from tests.crash.killed import Killed
from tests.crash.kit import account
from tests.pipelines.conftest import Rows, Small
from tests.waiting import HANG, until

FILES = 'kind = "files"\npath = '
Engine = Callable[[bool], Path]


@pytest.fixture
def broker() -> Broker:
    return shared_broker()


@pytest.fixture
def topics(broker: Broker, rows: Rows) -> tuple[str, str]:
    """A topic of rows, of which a third has no label; and that of the answers."""
    topic, frame = broker.topic(), rows(600)
    lines = [
        json.dumps(row if row["n"] % 3 != 1 else {k: v for k, v in row.items() if k != "y"})
        for row in frame.iter_rows(named=True)
    ]
    broker.produce(topic, [line.encode() for line in lines])
    return topic, broker.topic()


@pytest.fixture
def engine(small: Small, broker: Broker, topics: tuple[str, str], tmp_path: Path) -> Engine:
    """Writes the file of an engine that reads the topic to its end."""
    kafka = f'kind = "kafka"\nbootstrap_servers = "{broker.bootstrap_servers}"\n'

    def write(exactly_once: bool) -> Path:
        topic, answers = topics
        source = f'{kafka}stop = "end"\ngroup_id = "{topic}"\ntopics = "{topic}"'
        sink = f'{kafka}topic = "{answers}"\nanswer = "first"\ncolumns = ["n"]\n'
        if exactly_once:
            sink += 'exactly_once = true\ntransaction_timeout = 5\ncommit_interval = "1h"'
        out = json.dumps(str(tmp_path / "out"))
        return small(Path(topic), (f'{FILES}"{topic}"', source), (f"{FILES}{out}", sink))

    return write


@pytest.mark.parametrize("exactly_once", [False, True])
def test_answers_are_on_the_topic_before_their_rows_are_learned(
    exactly_once: bool, broker: Broker, topics: tuple[str, str], engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Learning waits until a reader has seen the answers to its batch."""
    reader = KafkaConsumer(
        topics[1], bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest"
    )
    answered: set[int] = set()
    waits: list[int] = []
    learn = TabularLearner.learn

    def read(numbers: set[int]) -> bool:
        for records in reader.poll(timeout_ms=100).values():
            answered.update(json.loads(record.value)["n"] for record in records)
        return numbers <= answered

    def learned(self: TabularLearner, batch: Batch) -> Step:
        numbers = set(batch.frame["n"])
        until(lambda: read(numbers), what="the answers")
        waits.append(len(batch))
        return learn(self, batch)

    monkeypatch.setattr(TabularLearner, "learn", learned)
    totals = Run(engine(exactly_once)).run().totals
    reader.close()
    assert sum(waits) == totals.learned == 400
    assert totals.predicted == 200


@pytest.mark.slow(6)
@pytest.mark.parametrize("exactly_once", [False, True])
def test_a_kill_between_answer_and_learning_loses_no_row_and_learns_none_twice(
    exactly_once: bool, broker: Broker, topics: tuple[str, str], engine: Engine
) -> None:
    file = engine(exactly_once)
    words: list[Any] = [
        "models.challenge.challenger:ChampionChallenger.learn",
        "6",
        "run",
        str(file),
    ]
    process = Killed(words, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == -signal.SIGKILL, errors.decode()
    run = Run(file)
    totals = run.run().totals
    assert run.loop.resumed
    assert (totals.read, totals.learned, totals.predicted, totals.rejected) == (600, 400, 200, 0)
    assert run.loop.work.state_dict()["learner"]["rows"] == 400
    found = account(broker.bootstrap_servers, [topics[0]], topics[1])
    assert found.read == 600
    assert found.exactly_once if exactly_once else found.at_least_once, str(found)
