"""Scans for the files there are now."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from connectors.files.readers.text import compression
from engine.types import UserError

SETTLE_SECONDS = 10.0
"""The seconds without a change after which an unreadable file is reported."""

FileId = tuple[int, int]
"""The system's identity of a file: device and inode."""


@dataclass(frozen=True, slots=True)
class SeenFile:
    """A file seen by the last directory scan.

    Attributes:
        shown: its path as found.
        changed: the time of its last change, in ns.
        grows: whether rows may be added; other files are complete, or still being written.
    """

    shown: str
    path: Path
    file_id: FileId
    size: int
    changed: int
    grows: bool

    def is_there(self) -> bool:
        """Return whether it still has its path; what was read from there is of another file if
        not."""
        return is_at(self.path, self.file_id)

    def unchanged(self, size: int, changed: int) -> bool:
        """Return whether it has had this size since then."""
        return (self.size, self.changed) == (size, changed)


def scan(find: Callable[[], Mapping[str, Path]], *, lines: bool) -> dict[FileId, SeenFile]:
    """Return those files of `find` that exist.

    Args:
        lines: whether the files have lines, so that uncompressed ones may grow.
    """
    try:
        paths = find()
    except UserError:  # none, for now
        return {}
    files: dict[FileId, SeenFile] = {}
    for shown, path in paths.items():
        try:
            stat = path.stat()
        except OSError:
            continue
        file_id, grows = (stat.st_dev, stat.st_ino), lines and compression(path) is None
        files[file_id] = SeenFile(shown, path, file_id, stat.st_size, stat.st_mtime_ns, grows)
    return files


def is_at(path: Path | int, file_id: FileId) -> bool:
    """Return whether a path, or a descriptor, leads to a file."""
    try:
        stat = os.stat(path)  # noqa: PTH116 - or a descriptor
    except OSError:
        return False
    return (stat.st_dev, stat.st_ino) == file_id


def settled(since: float) -> bool:
    """Return whether enough time has passed since a time of the monotonic clock."""
    return time.monotonic() - since >= SETTLE_SECONDS


__all__ = ["FileId", "SeenFile", "is_at", "scan", "settled"]
