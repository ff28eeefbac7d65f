"""Files that are there whole or not at all: the one place where headrace writes what it leaves.

A file is written under a temporary name, synced, renamed, and its folder synced. Where any of that
fails, nothing is left behind and what was there before is as it was. A link stays a link. What is
no file (a pipe, a terminal) cannot be renamed: it is written as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".tmp"
"""A file of this ending is not done; the next write of the same name takes its place."""
PRIVATE = 0o600


def write(path: Path, data: bytes | str, *, private: bool = False) -> Path:
    """Write a file; text as UTF-8. Its folder is there. Raises: OSError."""
    return write_parts(path, [data.encode() if isinstance(data, str) else data], private=private)


def write_parts(path: Path, parts: Iterable[bytes | memoryview], *, private: bool = False) -> Path:
    """Write a file in parts, one after the other. Raises: OSError.

    Args:
        private: whether its owner alone may read it, whatever the umask says.
    """
    if _is_device(path):
        with path.open("wb") as file:
            file.writelines(parts)
        return path
    place = path.resolve()
    temporary = place.with_name(place.name + SUFFIX)
    stage(temporary, parts, private=private)
    publish({temporary: place})
    return path


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary name for what can only write to a file by itself; it becomes `path` at the end.
    Raises: OSError."""
    path = path.resolve()
    temporary = path.with_name(f"{path.stem}{SUFFIX}{path.suffix}")  # its ending says what it is
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
    except BaseException:
        _discard(temporary)
        raise
    publish({temporary: path})


def stage(temporary: Path, parts: Iterable[bytes | memoryview], *, private: bool = False) -> None:
    """The first half of `write_parts`: the parts are safe on the disk under this name. Raises:
    OSError."""
    try:
        with open(temporary, "wb", opener=_private if private else None) as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        _discard(temporary)
        raise


def publish(names: Mapping[Path, Path]) -> None:
    """The second half: temporary files of one folder get their names. Raises: OSError."""
    for temporary, path in names.items():
        try:
            temporary.replace(path)
        except BaseException:
            _discard(temporary)
            raise
    for folder in {path.parent for path in names.values()}:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file()


def _private(path: str, flags: int) -> int:
    handle = os.open(path, flags, PRIVATE)
    os.fchmod(handle, PRIVATE)  # a file of that name may be left from before
    return handle


def _discard(temporary: Path) -> None:
    """Free the space at once; where even that fails, the next write does it."""
    try:
        temporary.unlink(missing_ok=True)
    except OSError:
        return


__all__ = ["SUFFIX", "publish", "stage", "write", "write_parts", "written"]
