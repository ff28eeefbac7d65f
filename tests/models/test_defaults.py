"""With nothing set, a model learns: the floors of `python -m tests.bench learning`."""

from __future__ import annotations

import pytest

from tests.bench.bench_learning import FLOORS, headrace, stream


@pytest.mark.full
@pytest.mark.parametrize("name", ["Phishing", "Bananas", "ImageSegments"])
def test_accuracy_with_nothing_set(name: str) -> None:
    assert headrace(*stream(name)) >= FLOORS[name]


def test_error_with_nothing_set() -> None:
    assert headrace(*stream("TrumpApproval")) < FLOORS["TrumpApproval"]
