"""Engines killed, groups rebalanced, brokers restarted on a real Apache Kafka; then every record is
accounted for. Bounded here; ``make crash`` runs it at full size."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.run import Run
from engine.running.totals import Totals
from tests.broker import Broker
from tests.crash.feed import row
from tests.crash.kit import (
    Disruption,
    Engine,
    Feed,
    account,
    caught_up,
    in_transaction,
)
from tests.pipelines.runs.test_crash import newest
from tests.waiting import until

FULL = os.environ.get("HEADRACE_CRASH") == "full"
REBALANCES = 50 if FULL else 6
RATES = (2_000, 1_000) if FULL else (250, 250)  # records a second, of each of two tests
KILLS = 25 if FULL else 2  # of each of two engines
RESTARTS = 5 if FULL else 2
ROWS = 40_000 if FULL else 6_000  # read alone to the end
ROW = "tests.crash.feed:row"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3_600)]

COMMON = """
name = "{name}"
folder = "{folder}"
[source]
kind = "kafka"
bootstrap_servers = "{bootstrap_servers}"
topics = "{topic}"
group_id = "{group}"
session_timeout = 6
rebalance_timeout = 5
{source}
[source.schema]
n = "int64"
a = "float64"
y = "float64"
[loader]
batch_rows = 200
max_delay = 0.1
[checkpoint]
interval = 0.5
"""
CLEAN = """
[sink]
kind = "kafka"
bootstrap_servers = "{bootstrap_servers}"
topic = "{sink}"
columns = ["n"]
transaction_timeout = 10
exactly_once = {exactly_once}
"""
TRAIN = """
[scrub.standardize]
columns = ["a"]
[model]
target = "y"
numeric = ["a"]
layers = [8]
[train]
replay_steps = 1
threads = 1
"""
INFER = """
[infer]
model = "{model}"
threads = 1
[sink]
kind = "kafka"
bootstrap_servers = "{bootstrap_servers}"
topic = "{sink}"
columns = ["n"]
transaction_timeout = 10
exactly_once = true
"""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker")) as made:
        yield made


@pytest.fixture
def pipeline(tmp_path: Path, broker: Broker) -> Callable[..., Path]:
    """Writes a pipeline file."""

    def write(
        name: str, topic: str, more: str, *, source: str = "subscribe = true", **keys: Any
    ) -> Path:
        file = tmp_path / f"{name}.toml"
        text = (COMMON + more).format(
            name=name, folder=tmp_path / name, bootstrap_servers=broker.bootstrap_servers,
            topic=topic,
            group=f"{name}-{topic}", source=source, **keys,
        )  # fmt: skip
        file.write_text(text)
        return file

    return write


def ended(engines: list[Engine]) -> None:
    for engine in engines:
        # One that was started last may not have begun: it has no handler yet, and nothing to save.
        assert engine.stop() in (0, -signal.SIGTERM), engine.records()[-5:]


@pytest.mark.slow(24)
@pytest.mark.parametrize("exactly_once", [pytest.param("false", marks=pytest.mark.full), "true"])
def test_every_record_through_rebalances(
    exactly_once: str, broker: Broker, pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    """Members of a group join, leave and are killed while records come in."""
    topic, sink = broker.topic(4), broker.topic(2)
    file = pipeline("clean", topic, CLEAN, sink=sink, exactly_once=exactly_once)
    engines = [
        Engine(file, [f"folder={tmp_path}/engine{i}"], tmp_path / f"engine{i}.log")
        for i in range(3)
    ]
    disruption = Disruption(engines, seed=1, pause=(1.0, 4.0))
    try:
        with Feed(broker.bootstrap_servers, topic, 4, ROW, rate=RATES[0]) as feed:
            engines[0].start()
            disruption.rebalance(REBALANCES)
        for engine in engines:
            engine.start()
        caught_up(broker.bootstrap_servers, f"clean-{topic}", [topic])
        ended(engines)
    finally:
        for engine in engines:
            engine.kill()
    found = account(broker.bootstrap_servers, [topic], sink)
    print(f"exactly_once={exactly_once}: {len(disruption.done)} changes, {found}")  # noqa: T201
    assert found.read == feed.sent > 0
    assert found.at_least_once, (str(found), disruption.done)
    if exactly_once == "true":
        assert found.exactly_once, (str(found), disruption.done)


@pytest.mark.full
@pytest.mark.slow(45)
def test_training_and_inference_through_kills_and_restarts(
    broker: Broker, pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    """A training engine and an exactly-once inference engine on one topic of four partitions,
    SIGKILLed in turn; the broker killed and started, twice in the middle of a transaction."""
    topic, sink = broker.topic(4), broker.topic(2)
    train = pipeline(
        "train", topic, TRAIN, source='subscribe = true\ngroup_instance_id = "trainer"'
    )
    model = exported(tmp_path)
    infer = pipeline("infer", topic, INFER, source='subscribe = true\ngroup_instance_id = "server"',
                     model=model, sink=sink)  # fmt: skip
    engines = [Engine(file, [], tmp_path / f"{file.stem}.log") for file in (train, infer)]
    disruption = Disruption(engines, seed=2, pause=(2.0, 5.0))
    cut = 0
    try:
        with Feed(broker.bootstrap_servers, topic, 4, ROW, rate=RATES[1]) as feed:
            for engine in engines:
                engine.start()
            for restart in range(RESTARTS):
                disruption.kill(2 * KILLS // RESTARTS)
                cut += restarted(broker, sink, in_the_middle=restart < 2)
        for group in ("train", "infer"):
            caught_up(broker.bootstrap_servers, f"{group}-{topic}", [topic])
        ended(engines)
    finally:
        for engine in engines:
            engine.kill()
    found = account(broker.bootstrap_servers, [topic], sink)
    print(f"{disruption.done}, {cut} restarts in mid-transaction: {found}")  # noqa: T201
    assert cut >= 2
    assert found.read == feed.sent > 0
    assert found.exactly_once, str(found)
    assert learned(train) == feed.sent


def exported(folder: Path) -> Path:
    """A small model that reads column `a`."""
    data = folder / "rows.ndjson"
    data.write_bytes(b"\n".join(row(n) for n in range(2_000)) + b"\n")
    file = folder / "offline.toml"
    text = f'name = "offline"\nfolder = "{folder}/offline"\n[source]\nkind = "files"\n'
    file.write_text(text + f'path = "{data}"\n' + TRAIN)
    run = Run(file)
    run.run()
    return run.export(folder / "model.onnx")


def restarted(broker: Broker, topic: str, *, in_the_middle: bool) -> int:
    """Kill the broker and start it on the same data; 1 if that was in the middle of a
    transaction."""
    if in_the_middle:
        until(lambda: in_transaction(broker.bootstrap_servers, topic), what="a transaction")
    broker.kill()
    broker.start()
    return int(in_the_middle)


def learned(file: Path) -> int:
    """Rows in the weights, by the newest checkpoint, whose positions must say the same."""
    run = Run(file)
    state = run.checkpoints.load(run.identity)
    assert state is not None
    totals = Totals.restore(state["totals"])
    assert totals.balanced
    assert totals.learned == totals.read == sum(state["positions"].values())
    return totals.learned


@pytest.mark.full
def test_weights_are_those_of_an_untroubled_run(
    broker: Broker, pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    """One partition, read alone to its end: SIGKILLed many times, and once not at all."""
    topic = broker.topic(1)
    broker.produce(topic, [row(n) for n in range(ROWS)], each=1_000)
    source = 'stop = "end"\nauto_offset_reset = "fail"'
    sets = ["loader.max_delay=60.0", "checkpoint.interval_batches=1"]
    weights = []
    for name, kills in (("untroubled", 0), ("killed", KILLS)):
        file = pipeline(name, topic, TRAIN, source=source)
        to_the_end(file, sets, tmp_path / name / "checkpoints", kills)
        run = Run(file, sets)
        state = run.checkpoints.load(run.identity)
        assert state is not None
        assert learned(file) == ROWS
        weights.append(state["work"]["learner"])
    same(*weights)


def to_the_end(file: Path, sets: list[str], checkpoints: Path, kills: int) -> None:
    """Run it; SIGKILL so many times, each one or two checkpoints further into its work."""
    rng = random.Random(3)
    engine = Engine(file, sets, file.with_suffix(".log"))
    for _ in range(kills):
        further = newest(checkpoints) + rng.randint(1, 2)
        engine.start()
        until(lambda: newest(checkpoints) >= further, process=engine.process)  # noqa: B023
        engine.kill()
    engine.start()
    assert engine.wait() == 0, engine.log.read_text()[-2_000:]


def same(a: Any, b: Any) -> None:
    """To the bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()
    else:
        assert a == b or (a != a and b != b)
