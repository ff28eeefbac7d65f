"""A pause of a busy machine is no idle batch."""

from __future__ import annotations

import pytest

from engine.rebatch import RebatchNode
from engine.shuffle import ShuffleNode
from tests.waiting import HANG


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No batch comes because none was full for a while; a test that waits for one asks for this
    fixture and undoes it."""
    monkeypatch.setattr(RebatchNode, "idle", HANG)
    monkeypatch.setattr(ShuffleNode, "idle", HANG)
    return monkeypatch
