"""What `headrace profile` runs, tries, tells and leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.commands.profile import Profile, SettingTrial, profile
from engine.config import Pipeline
from engine.running import bottleneck, reporter
from tests.pipelines.conftest import Headrace, Rows, Small

SLOW = "tests.pipelines.slow"
TABLE: dict[str, Any] = {
    "name": "slow",
    "source": {"kind": f"{SLOW}:Source", "rows": 20_000},
    "loader": {"batch_rows": 200, "read_rows": 1_000},
    "model": {"kind": f"{SLOW}:Learner", "seconds": 0.005, "target": "y", "numeric": ["a"]},
}


@pytest.mark.full
def test_the_advised_setting_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it names the right part, and gains are as it says, is measured by the benchmark
    `bottleneck`: a busy machine holds a run elsewhere than a quiet one."""
    monkeypatch.setattr(reporter, "RUN_SECONDS", 0.0)
    monkeypatch.setattr(bottleneck, "MIN_SECONDS", 0.0)
    found = profile(Pipeline.of(TABLE | {"folder": str(tmp_path)}), seconds=0.1)
    assert found.bottleneck is not None
    assert found.bottleneck.stage in found.calls
    advised = [advice.setting for advice in found.bottleneck.advice if advice.setting]
    assert [trial.setting for trial in found.trials] == advised
    assert all(trial.rate > 0 and trial.gain > 0 for trial in found.trials)
    assert {"fetch", "decode", "collate", "learn"} <= found.calls.keys()
    assert found.calls["learn"] > 0 < found.seconds["learn"]
    assert found.records <= 20_000


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (0.25, "Tried, and not advised: --set a.b=1 is slower, 0.25 times the records."),
        (1.01, "Tried, and not advised: --set a.b=1 gains nothing, 1.01 times the records."),
        (2.0, "Measured: --set a.b=1 gives 2.00 times the records."),
    ],
)
def test_only_a_setting_that_gains_is_advised(gain: float, said: str) -> None:
    advice = bottleneck.Advice(setting="a.b=1", why="more of it")
    held = bottleneck.Bottleneck(
        part="decode", stage="decode", resource="CPU", share=0.9, limit=2.0, advice=(advice,)
    )
    trial = SettingTrial(setting="a.b=1", rate=1.0, gain=gain)
    found = Profile(records=1, rate=1.0, bottleneck=held, trials=(trial,))
    texts = [part for part in found.tables() if isinstance(part, str)]
    assert texts[-1] == said
    assert ("Try --set a.b=1" in texts[-2]) is (gain == 2.0)


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
