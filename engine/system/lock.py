"""Exclusive locks on output folders and files."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from engine.types import UserError

log = logging.getLogger("headrace.lock")
SUFFIX = ".lock"
"""The ending of the lock file beside a file, since each write replaces the file itself."""


@contextlib.contextmanager
def locked(folders: Iterable[Path], files: Iterable[Path] = ()) -> Iterator[None]:
    """Hold exclusive locks on these folders and files while the block runs. Missing folders are
    created, and those that are empty at its end go again: a run that is refused leaves none.

    The lock is the kernel's own (flock): it ends with its process, however that ends. A folder's is
    on itself and leaves nothing behind. A file's is on an empty file beside it, which goes with the
    block; one that a dead process left is taken over.

    Raises: UserError if another engine holds one of them, or a folder cannot be made.
    """
    with contextlib.ExitStack() as held:
        for folder in dict.fromkeys(folder.resolve() for folder in folders):
            _hold_folder(held, folder)
        for file in dict.fromkeys(file.resolve() for file in files):
            _hold_beside(held, file)
        yield


OWN_FOLDERS = "each its own folder, [sink] path, [dead_letters] path and [export] versions"
OWN_FILES = "each its own [export] path"


def _hold_folder(held: contextlib.ExitStack, folder: Path) -> None:
    flags, action = os.O_RDONLY | os.O_DIRECTORY, f"works in {folder}"
    while True:
        made = _make(folder)
        with contextlib.suppress(FileNotFoundError):
            lock = _hold(held, folder, flags, action, OWN_FOLDERS)
            if lock is None or _is(lock, folder):
                held.callback(_remove_empty, made)
                return
        # Another holder left it empty, and removed it meanwhile.


def _hold_beside(held: contextlib.ExitStack, file: Path) -> None:
    beside = file.with_name(file.name + SUFFIX)
    action = f"writes {file}"
    while True:
        held.callback(_remove_empty, _make(file.parent))
        with contextlib.suppress(FileNotFoundError):
            lock = _hold(held, beside, os.O_RDWR | os.O_CREAT, action, OWN_FILES)
            if lock is None:
                return
            if _is(lock, beside):
                held.callback(beside.unlink, missing_ok=True)
                return
        # The holder deleted the file between opening and locking: this one locks nothing.


def _make(folder: Path) -> list[Path]:
    """Create a folder; return those that were missing, the deepest first."""
    try:
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be created: {error.strerror}; choose another, or fix that."
        ) from error
    return missing


def _remove_empty(folders: Iterable[Path]) -> None:
    with contextlib.suppress(OSError):  # not empty, or gone
        for folder in folders:
            folder.rmdir()


def _hold(held: contextlib.ExitStack, path: Path, flags: int, action: str, own: str) -> int | None:
    """Lock for the lifetime of `held`; return None, with a warning, if this file system has no
    locks.

    Args:
        action, own: what another engine does that holds it; what to give each.

    Raises: UserError if another engine holds it; FileNotFoundError if it is gone.
    """
    try:
        lock = os.open(path, flags, 0o666)
    except FileNotFoundError:
        raise
    except OSError as error:
        _unlocked(path, error)
        return None
    held.callback(os.close, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"Another engine {action}: expected one at a time; stop that one, or give {own}."
        ) from None
    except OSError as error:
        _unlocked(path, error)
        return None
    return lock


def _is(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except OSError:
        return False


def _unlocked(path: Path, error: OSError) -> None:
    log.warning(
        "no lock can be had here: a second engine that writes there would not be noticed",
        extra={"path": str(path), "reason": error.strerror or str(error)},
    )


__all__ = ["locked"]
