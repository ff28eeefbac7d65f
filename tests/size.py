"""How much of the suite runs: `make test` does what shows a fault soon, CI all of it."""

from __future__ import annotations

import os

FULL = os.environ.get("HEADRACE_TESTS") == "full"
"""All tests, with all examples, kills and years."""


def examples(full: int) -> int:
    """How many examples Hypothesis tries where CI tries ``full``: a quarter, and 5 at least."""
    return full if FULL else min(full, max(5, full // 4))
