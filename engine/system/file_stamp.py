"""Tells a file from another one of the same path, without reading it."""

from __future__ import annotations

from pathlib import Path

FileStamp = tuple[int, int, int]
"""Inode, size in bytes, and time of the last change in ns."""


def file_stamp(path: Path) -> FileStamp:
    """Return what is another where a file was replaced or written to. Raises: OSError."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


__all__ = ["FileStamp", "file_stamp"]
