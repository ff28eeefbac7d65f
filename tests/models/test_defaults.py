"""With nothing set, a model learns: the floors of `python -m tests.bench learning`."""

from __future__ import annotations

import pytest

from tests.bench.models.bench_learning import FLOORS, headrace, judged, stream


@pytest.mark.full
@pytest.mark.parametrize("name", ["Phishing", "Bananas", "ImageSegments"])
def test_accuracy_with_nothing_set(name: str) -> None:
    assert headrace(*stream(name)) >= FLOORS[name]


def test_error_with_nothing_set() -> None:
    assert headrace(*stream("TrumpApproval")) < FLOORS["TrumpApproval"]


@pytest.mark.full
def test_a_step_for_each_row_follows_a_small_stream() -> None:
    """Of the settings that models/README.md recommends: as good as River's best model (0.273)."""
    errors = judged(*stream("TrumpApproval"), training={"step_rows": 1, "lr": 3e-3})
    assert errors[1:].mean() < 0.29  # nothing can be said of the first row
