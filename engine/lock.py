"""Folders that one engine at a time may write to."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from engine.types import UserError

log = logging.getLogger("headrace.lock")


@contextlib.contextmanager
def locked(folders: Iterable[Path]) -> Iterator[None]:
    """Hold these folders for as long as the block runs; makes those that are not there.

    The lock is the kernel's own (flock, on the folder itself): it ends with its process, however
    that ends, and leaves no file behind.

    Raises: UserError where another engine holds one of them.
    """
    with contextlib.ExitStack() as held:
        for folder in dict.fromkeys(folder.resolve() for folder in folders):
            file = _opened(folder)
            if file is not None:
                held.callback(os.close, file)
        yield


def _opened(folder: Path) -> int | None:
    """The open folder that holds the lock; None where this file system has no locks, which is
    said."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        _unlocked(folder, error)
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        if not isinstance(error, BlockingIOError):
            _unlocked(folder, error)
            return None
        raise UserError(
            f"Another engine works in {folder}: expected one at a time; stop that one, or give "
            "each its own folder, [sink] path and [dead_letters] path."
        ) from None
    return file


def _unlocked(folder: Path, error: OSError) -> None:
    log.warning(
        "folder cannot be locked: a second engine on it would not be noticed",
        extra={"folder": str(folder), "why": error.strerror or str(error)},
    )


__all__ = ["locked"]
