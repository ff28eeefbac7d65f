"""What takes a minute on a real broker, all within the same one: a batch that takes longer than the
client's longest pause between two polls, a broker that is away, and one that hangs."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from engine.run import Run
from engine.running.loop import Loop
from engine.types import Batch
from tests.broker import Broker, shared_broker
from tests.crash.kit import records
from tests.pipelines.kafka.groups.test_kafka_group import TRAIN, broker, fill, pipeline, running
from tests.pipelines.kafka.test_kafka import LIVE, until_learned
from tests.pipelines.kafka.test_kafka_quiet import answers
from tests.pipelines.runs.test_service import Engine, samples, started
from tests.waiting import HANG, until

__all__ = ["broker", "pipeline"]  # fixtures
MINUTE = 62.0
"""Longer than the max.poll.interval of 60 s, and than the session of 45 s."""
BUDGET = 256 << 10
ROWS = 4_000
ENGINE = """
name = "{name}"
folder = "{folder}/{name}"
[source]
kind = "kafka"
bootstrap_servers = "{bootstrap_servers}"
topics = "{topic}"
group_id = "{topic}"
timeout = "1h"
[source.schema]
a = "float64"
y = "float64"
[service]
port = 0
[sink]
kind = "kafka"
bootstrap_servers = "{bootstrap_servers}"
topic = "{sink}"
timeout = "1h"
delivery_timeout = "1h"
{more}
"""
TRAINS = """
[model]
target = "y"
numeric = ["a"]
layers = [8]
[train]
replay_steps = 1
threads = 1
"""
MEMORY = "process_resident_memory_bytes"


@pytest.mark.full
@pytest.mark.slow(95)
def test_a_minute_of_work_and_a_minute_without_a_broker(
    pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    """The slow learner stays in its group, its memory within the budget; the engine whose broker is
    away says so once, waits, and goes on with nothing lost or learned twice."""
    shared = shared_broker()
    topic = shared.topic(2)
    fill(shared, topic, 2, ROWS)
    begun, done = threading.Event(), threading.Event()
    used: list[int] = []

    def slow(loop: Loop, batch: Batch) -> None:
        if len(batch) and not begun.is_set():
            begun.set()
            done.wait(MINUTE)  # the work itself
            used.append(loop.loader.budget.peak)
            done.set()

    loader = f"memory_budget = {BUDGET}\nread_rows = 100"
    file = pipeline("slow", topic, TRAIN, 'subscribe = true\ngroup_instance_id = "slow"', loader)
    with (
        running(file, watch=slow) as run,
        Broker(tmp_path) as own,
        hanging(tmp_path / "hanging") as check_all,
    ):
        live = tmp_path / "live.toml"
        lost = own.topic(partitions=2)
        live.write_text(
            LIVE.format(
                folder=tmp_path / "run", bootstrap_servers=own.bootstrap_servers, topic=lost
            )
        )
        for partition in range(2):
            own.produce(lost, lines(0, 1_000), partition=partition)
        with started(live) as made:
            until_learned(made, 2_000)
            before = samples(made.page("/metrics").text)[MEMORY]
            assert begun.wait(HANG)
            own.kill()
            gone = time.monotonic()
            until(lambda: made.page("/readyz").status_code == 503)
            assert "no broker is in reach" in made.page("/readyz").text
            assert done.wait(MINUTE + HANG)
            time.sleep(max(0.0, gone + 60 - time.monotonic()))  # what was started later
            assert made.page("/readyz").status_code == 503
            assert made.page("/livez").status_code == 200
            assert samples(made.page("/metrics").text)[MEMORY] < before + (64 << 20)
            own.start()
            own.produce(lost, lines(1_000, 1_300))
            until_learned(made, 2_300)
            until(lambda: made.page("/readyz").status_code == 200)
            check_all()
            made.stop(signal.SIGTERM)
            said = [line["message"] for line in made.log]
            assert said.count("no broker is in reach") == 1
            assert said.count("a broker is in reach again") == 1
        ended = Run(live)
        state = ended.checkpoints.load(ended.identity)
        assert state is not None
        assert state["positions"] == {f"{lost}/0": 1_300, f"{lost}/1": 1_000}
        assert state["totals"]["learned"] == state["totals"]["read"] == 2_300
        # And the slow one: in its group ever since its first assignment.
        until(lambda: run.loop.totals.learned == 2 * ROWS)
        assert run.metrics.source_rebalances._value.get() == 1
        assert max(used) <= BUDGET * 1.5


ENGINES = {
    "clean": "",
    "clean once": "exactly_once = true",
    "train": TRAINS,
    "train once": "exactly_once = true" + TRAINS,
    "late once": "exactly_once = true",
}


@contextmanager
def hanging(folder: Path) -> Iterator[Callable[[], None]]:
    """Engines of every kind in the middle of their work, and one that starts, while their broker
    hangs; the function that is given ends that, and looks at what they made of it."""
    folder.mkdir()
    with Broker(folder) as broker, ExitStack() as stack:
        topics = {name: (broker.topic(), broker.topic()) for name in ENGINES}
        engines: dict[str, Engine] = {}

        def written(name: str) -> Path:
            topic, sink = topics[name]
            file = folder / f"{name}.toml"
            text = ENGINE.format(
                folder=folder, name=name.replace(" ", "-"), topic=topic, sink=sink,
                bootstrap_servers=broker.bootstrap_servers, more=ENGINES[name],
            )  # fmt: skip
            file.write_text(text)
            return file

        def answered(name: str, rows: int) -> None:
            with answers(broker, topics[name][1]) as found:
                until(lambda: found() >= rows)

        for topic, _ in topics.values():
            broker.produce(topic, lines(0, 100))
        *early, late = ENGINES
        with ThreadPoolExecutor() as pool:
            at_once = pool.map(stack.enter_context, [started(written(name)) for name in early])
            engines.update(zip(early, at_once, strict=True))
        for name in early:
            answered(name, 100)
        for name in early:
            broker.produce(topics[name][0], lines(100, 200))
        broker.freeze()
        engines[late] = stack.enter_context(started(written(late)))

        def check() -> None:
            assert {made.page("/livez").status_code for made in engines.values()} == {200}
            assert {made.page("/readyz").status_code for made in engines.values()} == {503}
            broker.thaw()
            for name, made in engines.items():
                rows = 100 if name == late else 200
                broker.produce(topics[name][0], lines(rows, 300))
                answered(name, 300)
                until(lambda made=made: made.page("/readyz").status_code == 200)  # type: ignore[misc]
            for name, made in engines.items():
                made.stop(signal.SIGTERM)
                told = [line["message"] for line in made.log if line["level"] != "info"]
                assert told == ["no broker is in reach", "a broker is in reach again"], (name, told)
                values = [
                    json.loads(r.value)["a"]
                    for r in records(broker.bootstrap_servers, topics[name][1])
                ]
                if "once" in name:
                    assert sorted(values) == [i / 10 for i in range(300)], name
                assert set(values) == {i / 10 for i in range(300)}, name

        yield check


def lines(start: int, stop: int) -> list[bytes]:
    return [json.dumps({"a": i / 10, "y": i / 5}).encode() for i in range(start, stop)]
