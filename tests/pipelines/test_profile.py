"""The verdict names what is slow, and the setting it advises helps by the figure it says."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from engine.config import Pipeline
from engine.profile import profile
from engine.run import Run
from tests.pipelines.conftest import Headrace, Rows, Small

SLOW = "tests.pipelines.slow"
QUICK: dict[str, Any] = {
    "source": {"kind": f"{SLOW}:Source"},
    "loader": {"batch_rows": 200, "read_rows": 1_000},
}
ROWS = {"decode": 700_000, "source": 80_000}
"""So that a run takes three seconds."""
SCRIPTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "source": (
        {"source": {"kind": f"{SLOW}:Source", "seconds": 0.02}, "loader": {"read_rows": 500}},
        "fetch",
        "loader.read_rows=2000",
    ),
    "decode": (
        {
            "source": {"kind": f"{SLOW}:Source", "decode": 4e-6},
            "loader": {"batch_rows": 4_096, "read_rows": 8_192, "decode_threads": 1},
        },
        "decode",
        "loader.decode_threads=2",
    ),
    "scrub": (
        {"scrub": {"sleepy": {"kind": f"{SLOW}:Stage", "seconds": 0.01}}},
        "sleepy",
        "loader.batch_rows=800",
    ),
    "model": (
        {"model": {"kind": f"{SLOW}:Learner", "seconds": 0.01, "target": "y", "numeric": ["a"]}},
        "learn",
        "loader.batch_rows=800",
    ),
    "sink": (
        {"sink": {"kind": f"{SLOW}:Sink", "seconds": 0.01}},
        "write",
        "loader.batch_rows=800",
    ),
}


def script(folder: Path, name: str, *overrides: str) -> Pipeline:
    table: dict[str, Any] = {"name": name, "folder": str(folder / name)}
    for section, values in (QUICK | SCRIPTS[name][0]).items():
        table[section] = {**QUICK.get(section, {}), **values}
    return Pipeline.of(table, overrides)


def seconds(pipeline: Pipeline) -> float:
    """Of a whole run."""
    start = time.perf_counter()
    Run(pipeline).run(fresh=True)
    return time.perf_counter() - start


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_it_names_the_culprit_and_the_setting_helps_as_much_as_it_says(
    name: str, tmp_path: Path
) -> None:
    _, stage, setting = SCRIPTS[name]
    count = f"source.rows={ROWS.get(name, 60_000)}"
    found = profile(script(tmp_path, name, count), seconds=1.5)
    assert found.verdict is not None
    assert (found.verdict.part, found.verdict.stage) == (name, stage)
    assert found.verdict.resource == "I/O"  # a sleep is no work for a processor
    assert found.verdict.share > 0.7
    assert found.verdict.limit > 2
    trial = found.trials[0]
    assert trial.setting == setting
    assert trial.gain > 1.5
    # A run of its own, longer than the sample, is as much faster as was said.
    alone = seconds(script(tmp_path, name, count))
    helped = seconds(script(tmp_path, name, count, setting))
    assert alone / helped == pytest.approx(trial.gain, rel=0.25)


@pytest.fixture
def file(small: Small, rows: Rows, tmp_path: Path) -> Path:
    """The small pipeline on 10,000 rows."""
    data = tmp_path / "rows.ndjson"
    rows(10_000).write_ndjson(data)
    return small(data)


def test_the_command_tells_all_of_it(file: Path, headrace: Headrace, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    code, out, _ = headrace("profile", file, "--seconds", 1, "--no-trials", "--trace", trace)
    assert code == 0
    for words in ("work by stage", "memory at its peak", "learn", "prepared", "a second"):
        assert words in out
    events = json.loads(trace.read_text())["traceEvents"]
    assert {event["tid"] for event in events} >= {
        "headrace-fetch",
        "headrace-prepare",
        "MainThread",
    }
    assert {"fetch", "decode", "standardize", "learn"} <= {event["name"] for event in events}
    assert all(event["dur"] >= 0 <= event["ts"] for event in events)


def test_a_profile_leaves_nothing_behind(file: Path, headrace: Headrace, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert headrace("profile", file, "--seconds", 0.1, "--no-trials")[0] == 0
    assert sorted(tmp_path.rglob("*")) == before
