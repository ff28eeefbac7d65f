"""The demo's pipeline as an operator runs it: a process, its page, its signals."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.observing.metrics import METRICS
from tests.forks import Command
from tests.promtool import promtool
from tests.waiting import HANG, until

DEMO = Path(__file__).parents[3] / "deploy" / "pipelines" / "pedestrians.toml"


@dataclass
class Engine:
    """A running process, its log so far and where its page is."""

    process: subprocess.Popen[str]
    log: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def until(self, message: str) -> dict[str, Any]:
        """Read the log up to a line with this message."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(json.loads(line))
            if self.log[-1]["message"] == message:
                return self.log[-1]
        raise AssertionError(f"the log ended before '{message}': {self.log}")

    def page(self, path: str) -> httpx.Response:
        # There is no TLS, and loading whom to trust in it costs 25 ms of a core.
        return httpx.get(self.url + path, timeout=HANG, trust_env=False, verify=False)

    def stop(self, number: int) -> None:
        """Send the signal and see a good exit."""
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=HANG)
        self.log += [json.loads(line) for line in rest.splitlines()]
        assert self.process.returncode == 0, self.log


@contextmanager
def started(file: Path, *words: str) -> Iterator[Engine]:
    """A pipeline file's engine, once its page is there."""
    command = ["run", str(file), "--log-format", "json", *words]
    process = Command(command, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    made = Engine(process)
    try:
        made.url = made.until("service listens")["url"]
        yield made
    finally:
        process.kill()
        process.communicate()


@contextmanager
def engine(folder: Path) -> Iterator[Engine]:
    """The demo's pipeline, in a folder of the test's, on a free port."""
    sets = [f"folder={folder}", f"sink.path={folder / 'out'}", "service.port=0", "train.threads=1"]
    sets += ["checkpoint.interval=0.5"]
    with started(DEMO, *(word for text in sets for word in ("--set", text))) as made:
        yield made


def samples(page: str) -> dict[str, float]:
    """Series as printed -> value."""
    lines = (line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    return {series: float(value) for series, value in lines}


def learned(made: Engine, more_than: float = 0) -> str:
    """The page once more rows are learned than that; each look asks the engine anew."""

    def look() -> str:
        page = made.page("/metrics").text
        return page if samples(page)["headrace_learned_records_total"] > more_than else ""

    return until(look, process=made.process, what="anything learned")


@pytest.mark.full
@pytest.mark.slow
def test_the_demos_pipeline_under_watch_is_stopped_and_goes_on(tmp_path: Path) -> None:
    with engine(tmp_path) as first:
        page = learned(first)
        assert promtool("check", "metrics", page=page.encode()) == ""
        shown = set(re.findall(r"^# TYPE (headrace_\w+) ", page, re.MULTILINE))
        assert shown == set(METRICS)
        for path in ("/livez", "/readyz"):
            assert first.page(path).status_code == 200
        values = samples(page)
        assert values['headrace_memory_bytes{component="replay"}'] > 0
        assert values['headrace_memory_bytes{component="loader"}'] >= 0
        assert values["headrace_up"] == 1
        stages = set(re.findall(r'stage_seconds_count\{stage="(\w+)"\}', page))
        assert {"fetch", "decode", "unpivot", "lag", "collate", "learn", "write"} <= stages
        first.stop(signal.SIGTERM)
        assert any(line["message"] == "stopping" for line in first.log)  # and not at the data's end
    assert any((tmp_path / "checkpoints").iterdir())

    with engine(tmp_path) as second:
        assert second.until("resumed")["rows"] > 0
        learned(second)
        second.stop(signal.SIGINT)
        assert any(line["message"] == "stopping" for line in second.log)


STUCK = """
import polars as pl, threading
from connectors.memory import MemorySource
from engine.loading.loader import Loader
from engine.running.loop import Loop
from engine.running.work import Work
class Stuck(Work):
    stage = "learn"
    def process(self, batch):
        print("in hand", flush=True)
        while not loop.stopped:
            threading.Event().wait(0.01)
        print("asked to stop", flush=True)
        threading.Event().wait()
source = MemorySource.of([pl.DataFrame({"a": [1]})])
loop = Loop(source=source, loader=Loader(source, schema={"a": pl.Int64()}), work=Stuck())
loop.run()
"""


def test_a_second_signal_stops_at_once() -> None:
    """The first waits for the batch in hand, which here never ends."""
    command = [sys.executable, "-c", STUCK]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in hand\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked to stop\n"

        def ended() -> bool:  # another soon after the first is the same one
            process.send_signal(signal.SIGTERM)
            return process.poll() is not None

        until(ended, what="the end")
        assert process.wait(HANG) == 128 + signal.SIGTERM
