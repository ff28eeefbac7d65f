"""How a test waits: for an event, never for a time; see README.md."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

Found = TypeVar("Found")

HANG = 600.0
"""Seconds after which what takes a moment is called hung. No verdict hangs on how fast the machine
is: a busy one may need a hundred times as long, most of all for a child of low priority."""


def until(
    look: Callable[[], Found], *, process: subprocess.Popen[Any] | None = None, what: str = "it"
) -> Found:
    """Look again and again until there is something, and return it.

    Args:
        look: whatever counts as false is nothing yet.
        process: which must run meanwhile.
        what: is awaited, in words.

    Raises: AssertionError once the process has ended without it, or nothing came within `HANG`.
    """
    end = time.monotonic() + HANG
    while True:
        begun = time.monotonic()
        ended = process is not None and process.poll() is not None  # before the last look
        if found := look():
            return found
        assert not ended, f"the process ended before {what} was there"
        assert time.monotonic() < end, f"{what} was not there within {HANG:.0f} s"
        # Between two looks; what is looked for needs the core more than one that takes its time.
        time.sleep(min(0.5, max(0.01, 19 * (time.monotonic() - begun))))
