"""Atomic file writes. The only module that writes output, and that checks in advance whether it
can.

A file is written under a temporary name, synced, renamed, and its folder synced. Where any of that
fails, nothing is left behind and what was there before is as it was. A link stays a link. What is
no file (a pipe, a terminal) cannot be renamed: it is written as it is.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.errors import HeadraceError, UserError

SUFFIX = ".tmp"
"""The ending of an unfinished file; the next write of the same name replaces it."""
PRIVATE = 0o600


def write(path: Path, data: bytes | str, *, private: bool = False) -> Path:
    """Write a file atomically; text as UTF-8. Its folder exists. Raises: OSError."""
    return write_parts(path, [data.encode() if isinstance(data, str) else data], private=private)


def write_parts(path: Path, parts: Iterable[bytes | memoryview], *, private: bool = False) -> Path:
    """Write a file atomically, in parts. Raises: OSError.

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
    """Give a temporary name, for libraries that write files themselves; it becomes `path` at the
    end. Raises: OSError."""
    path = path.resolve()
    temporary = path.with_name(f"{path.stem}{SUFFIX}{path.suffix}")  # its ending says what it is
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
    except BaseException:
        discard(temporary)
        raise
    publish({temporary: path})


def stage(temporary: Path, parts: Iterable[bytes | memoryview], *, private: bool = False) -> None:
    """Do the first half of `write_parts`: the parts are safe on disk under this name. Raises:
    OSError."""
    try:
        with open(temporary, "wb", opener=_private if private else None) as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        discard(temporary)
        raise


def publish(names: Mapping[Path, Path]) -> None:
    """Do the second half: rename the temporary files of one folder. Raises: OSError."""
    for temporary, path in names.items():
        try:
            temporary.replace(path)
        except BaseException:
            discard(temporary)
            raise
    for folder in {path.parent for path in names.values()}:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def require_folder(path: Path, named: str) -> None:
    """Check that a folder is writable or can be created. Creates nothing.

    Args:
        named: what the user calls it, such as ``[sink] path``.

    Raises: UserError
    """
    what = f"{named} '{_printable(path)}'"
    _require(_existing(path, path, what), what, "a folder")


def require_file(path: Path, named: str) -> None:
    """Check that a file can be written, and its folder created if missing. Writes nothing.

    Raises: UserError
    """
    what = f"{named} '{_printable(path)}'"
    place = _existing(path.parent, path.with_name(path.name + SUFFIX), what)
    if path.is_dir():
        raise UserError(
            f"{what} cannot be a file: '{_printable(path)}' is a folder; choose another path."
        )
    if not _is_device(path):
        _require(place, what, "a file")


def _existing(folder: Path, longest: Path, what: str) -> Path:
    """Return the folder, or its nearest existing parent.

    Args:
        longest: the longest name that is written.

    Raises: UserError for names that the system does not take.
    """
    try:
        place = folder.absolute()
        while not os.path.lexists(place) and place != place.parent:
            place = place.parent
        for part in longest.absolute().relative_to(place).parts if place.is_dir() else ():
            with suppress(FileNotFoundError):
                os.lstat(place / part)
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(longest.absolute())  # all of it together
    except (OSError, ValueError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise UserError(f"{what} cannot be used: {why}; choose another path.") from None
    return place


def _require(place: Path, target: str, expected: str) -> None:
    """Check that a file can be created in an existing folder."""
    if not place.is_dir():
        raise UserError(
            f"{target} cannot be {expected}: '{_printable(place)}' is a file; choose another path."
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(
            f"{target} cannot be written: no permission at '{_printable(place)}'; grant it, or "
            f"choose "
            "another path."
        )
    refused = _probe_create(place)
    if refused is not None:
        raise UserError(
            f"{target} cannot be written: the system makes no file in '{_printable(place)}' "
            f"({refused}); "
            "choose another path."
        )


def _probe_create(folder: Path) -> str | None:
    """Return why the system creates no file in a folder although permissions allow it:
    read-only, or not a disk (/proc, /sys). Tries a file without a name, which leaves no trace;
    if the file system has none, a hidden one."""
    try:
        # Linux alone has O_TMPFILE.
        os.close(os.open(folder, os.O_WRONLY | getattr(os, "O_TMPFILE", os.O_CREAT), PRIVATE))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return error.strerror
    else:
        return None
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".headrace-"):
            return None
    except OSError as error:
        return error.strerror


def _printable(path: Path) -> str:
    """Return a path for a sentence, in one line."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Folder:
    """An output folder; detects that it was deleted or replaced while the engine runs.

    Args:
        path: it need not be there yet.
        named: what the user calls it, such as ``[sink] path``.
    """

    def __init__(self, path: Path, named: str) -> None:
        self.path = path
        self.named = named
        self._known: tuple[int, int] | None = None

    def note(self) -> None:
        """Remember the identity of the folder, if it exists."""
        self._known = self._there()

    def make(self) -> None:
        """Create the folder if missing, and remember its identity. Raises: OSError."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._known = self._known or self._there()

    @property
    def gone(self) -> bool:
        """Whether the remembered folder is gone, or another one is in its place."""
        return self._known is not None and self._known != self._there()

    def require(self) -> None:
        """Raises: HeadraceError if it is gone."""
        if self.gone:
            raise HeadraceError(
                f"{self.named} '{self.path}' was removed or replaced while the engine ran: put it "
                "back as it was and start again, or start over with --fresh."
            )

    def _there(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file()


def _private(path: str, flags: int) -> int:
    handle = os.open(path, flags, PRIVATE)
    os.fchmod(handle, PRIVATE)  # a file of that name may be left from before
    return handle


def discard(temporary: Path) -> None:
    """Remove a temporary file, if it is there; if that fails, the next write does it."""
    try:
        temporary.unlink(missing_ok=True)
    except OSError:
        return


__all__ = [
    "SUFFIX",
    "Folder",
    "discard",
    "publish",
    "require_file",
    "require_folder",
    "stage",
    "write",
    "write_parts",
    "written",
]
