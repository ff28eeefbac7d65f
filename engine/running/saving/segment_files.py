"""Files of rows beside the checkpoints, written once and whole; a checkpoint names those that it
counts on.

A file is safe on disk before anything names it, and it stays as it was written: it goes when no
checkpoint names it any longer. What is read of it is checked against the checksum of each part.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.running.saving.codec import FileBeside
from engine.system import atomic
from engine.types import HeadraceError, UserError

FILE = re.compile(rf"[a-z]+-(\d{{8}})\.arrows(?:{re.escape(atomic.SUFFIX)})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePart:
    """Bytes of a file: from where, how many, and their CRC-32."""

    start: int
    nbytes: int
    checksum: int


class SegmentFiles:
    """The files of rows in the folder of the checkpoints.

    Args:
        folder: made with the first file.
        private: whether only the user who runs headrace may read them.
    """

    def __init__(self, folder: Path, *, private: bool = False) -> None:
        self.folder = folder
        self._private = private

    def write(self, kind: str, parts: Sequence[bytes]) -> FileBeside:
        """Write a file; it is safe on disk when this returns.

        Args:
            kind: what is in it, which its name begins with.

        Raises: HeadraceError when the disk is full or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            numbers = [int(match[1]) for match in map(FILE.fullmatch, self._names()) if match]
            path = self.folder / f"{kind}-{max(numbers, default=0) + 1:08d}.arrows"
            atomic.write_parts(path, parts, private=self._private)
        except OSError as error:
            raise HeadraceError(
                f"The {kind} that wait for each other cannot be written to {self.folder}: "
                f"{error.strerror or error}; free some space, or shorten [labels] horizon, and "
                "start again: the run goes on from its last checkpoint, and nothing is lost."
            ) from error
        return FileBeside(path.name, sum(map(len, parts)))

    def read(self, file: FileBeside, parts: Iterable[FilePart]) -> list[bytes]:
        """Return parts of a file. Raises: UserError if it is not as it was written,
        HeadraceError if it cannot be read."""
        path, read = self.folder / file.name, []
        try:
            with path.open("rb") as opened:
                for part in parts:
                    opened.seek(part.start)
                    read.append(opened.read(part.nbytes))
                    if zlib.crc32(read[-1]) != part.checksum:
                        raise UserError(
                            f"{path} {_WAITING} is damaged: its checksum differs; put it back as "
                            f"it was, or {_AFRESH}"
                        )
        except OSError as error:
            raise HeadraceError(
                f"{path} {_WAITING} cannot be read: {error.strerror or error}; put it back, or "
                f"{_AFRESH}"
            ) from error
        return read

    def why_lacking(self, files: Iterable[FileBeside]) -> str | None:
        """Return which of some files is not there whole, as words; None if all are."""
        for file in files:
            try:
                nbytes = (self.folder / file.name).stat().st_size
            except OSError as error:
                return f"{file.name} {_WAITING} cannot be read: {error.strerror or error}"
            if nbytes != file.nbytes:
                return f"{file.name} {_WAITING} has {nbytes:,} bytes and not {file.nbytes:,}"
        return None

    def there(self) -> bool:
        """Whether there is any file. Raises: OSError"""
        return any(map(FILE.fullmatch, self._names()))

    def discard_all_but(self, names: Collection[str]) -> None:
        """Remove the files without one of these names, unfinished ones too. Raises: OSError"""
        for name in self._names():
            if FILE.fullmatch(name) and name not in names:
                (self.folder / name).unlink(missing_ok=True)

    def _names(self) -> list[str]:
        return [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []


_WAITING = "with rows or labels that wait for each other"
_AFRESH = "start over with --fresh."

__all__ = ["FilePart", "SegmentFiles"]
