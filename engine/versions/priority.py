"""Threads that others go before."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

NICENESS = 10


def lower_priority() -> None:
    """Lower the priority of this thread, and of those that it starts."""
    if sys.platform == "linux":  # elsewhere a priority is the whole process's
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def run_with_low_priority(function: Callable[[], None]) -> None:
    """Run a function in a thread of low priority, and wait for it."""

    def run() -> None:
        lower_priority()
        function()

    thread = threading.Thread(target=run, name="headrace-version", daemon=True)
    thread.start()
    thread.join()


__all__ = ["lower_priority", "run_with_low_priority"]
