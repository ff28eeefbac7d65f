"""How much of the suite runs: `make test` does what shows a fault soon, CI all of it."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable
from typing import Any

import pytest

FULL = os.environ.get("HEADRACE_TESTS") == "full"
"""All tests, with all examples, kills and years."""


def examples(full: int) -> int:
    """How many examples Hypothesis tries where CI tries ``full``: a quarter, and 5 at least."""
    return full if FULL else min(full, max(5, full // 4))


def few(cases: Iterable[Any], kept: Container[Any]) -> list[Any]:
    """The cases as parameters of a test: all in CI, elsewhere those that are kept."""
    return [case if case in kept else pytest.param(case, marks=pytest.mark.full) for case in cases]
