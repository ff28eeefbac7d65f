"""A pause of a busy machine is no idle batch."""

from __future__ import annotations

import pytest

from engine.loading.rebatch import RebatchNode
from engine.loading.shuffle import ShuffleNode
from tests.waiting import HANG


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """For modules that count batches: none comes because no other was full for a while; a test that
    waits for one undoes that."""
    monkeypatch.setattr(RebatchNode, "idle", HANG)
    monkeypatch.setattr(ShuffleNode, "idle", HANG)
    return monkeypatch
