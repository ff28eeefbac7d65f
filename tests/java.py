"""Programs of Java that start at once."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.server import Server

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"
"""What is fetched or made once a machine."""
LIGHT = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""For one that lives for minutes, beside others."""


def classes(name: str, first: Callable[[Path, list[str]], Server]) -> list[str]:
    """The options of a program that finds its classes loaded and checked in a file: half of its
    start, 2 s of a core.

    Args:
        name: of the program, with its version.
        first: makes one that is not started yet, of a folder and these options; it is run once a
            machine, and leaves the file when it ends in good order.
    """
    java = shutil.which("java")
    assert java is not None
    made = f"{name}-{Path(java).resolve().stat().st_mtime_ns:x}.jsa"  # that of another is no use
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # processes that run tests begin at the same time
        if not (CACHE / made).exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                left = Path(folder) / made
                first(Path(folder), [f"-XX:ArchiveClassesAtExit={left}"]).start().stop()
                left.rename(CACHE / made)
    return [f"-XX:SharedArchiveFile={CACHE / made}"]
