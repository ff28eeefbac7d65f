"""What a log says of a run while it goes on."""

from __future__ import annotations

import logging

import polars as pl
import pytest

from engine.commands.progress import IDLE_SECONDS, LOG_SECONDS, Progress
from engine.types import Batch, Mark


def batch(rows: int) -> Batch:
    return Batch(frame=pl.DataFrame(), mark=Mark(), arrived=0.0, raw_rows=rows)


def test_an_idle_run_says_a_line_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten minutes in steps of a second; rows come in the first of them."""
    now = 0.0
    monkeypatch.setattr("engine.commands.progress.time.monotonic", lambda: now)
    with caplog.at_level(logging.INFO, "headrace.progress"), Progress() as shown:
        said = []
        for second in range(600):
            now += 1.0
            shown.look(batch(5 if second < 60 else 0), None)
            said.append(len(caplog.records))
    assert said[59] == 60 / LOG_SECONDS
    assert said[-1] == said[59] + 540 / IDLE_SECONDS
