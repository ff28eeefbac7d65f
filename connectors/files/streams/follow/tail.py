"""A followed partition: its file, and the position reached in it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from connectors.files.fingerprint import (
    Fingerprint,
    FingerprintTracker,
    Policy,
    report_continued_line,
)
from connectors.files.readers.text import TextFile
from connectors.files.splits import EPOCH_STRIDE, Readable
from connectors.files.streams.follow.scan import FileId, is_at, settled
from engine.types import HeadraceError, UserError

Open = Callable[[Path, str], Readable | None]
"""Opens a file as rows of a partition; None if it cannot be read yet."""

log = logging.getLogger("headrace.files")


@dataclass(slots=True, eq=False)
class Tail:
    """A followed partition.

    Attributes:
        path: the last known path of its file.
        file_id: device and inode; None while the file is missing.
        known: the fingerprint at the start of the run; None for a newer file.
        position: the next position to read.
        size: the size at the last scan, in bytes.
        reported: whether missing rows were reported.
    """

    name: str
    path: Path
    file_id: FileId | None = None
    known: Fingerprint | None = None
    watched: FingerprintTracker | None = None
    file: Readable | None = None
    position: int = 0
    size: int = 0
    changed: int = 0
    retry: bool = False
    total: int | None = None
    reported: bool = False
    since: float = field(default_factory=time.monotonic)

    def fingerprint(self, position: int | None = None) -> Fingerprint | None:
        """Return the fingerprint of the file for a mark at `position`."""
        if self.watched is None:
            return self.known
        return self.watched.at(
            self.position if position is None else position, self.total, EPOCH_STRIDE
        )

    def intact(self) -> bool:
        """Return whether the open file still begins with the rows read from it."""
        text, known = self.text, self.fingerprint()
        if text is None or known is None:
            return True
        size = os.fstat(text.fileno()).st_size
        return size >= max(self.position, text.offset) and known.has_beginning_of(text.fileno())

    @property
    def text(self) -> TextFile | None:
        """The open file, if it can grow."""
        file = self.file
        return file if isinstance(file, TextFile) and not file.compressed else None

    @property
    def place(self) -> Path | int:
        """What to read its file by: an open one that can grow by its descriptor, as its path may
        be another file's by now; see `is_at`."""
        return self.path if self.text is None else self.text.fileno()

    def is_there(self) -> bool:
        """Return whether what is read at its `place` is its file."""
        return self.file_id is not None and is_at(self.place, self.file_id)

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def open(self, opened: Open, *, lines: bool) -> Readable | None:
        """Open its file, and begin its fingerprint; return None if that is impossible now.

        Raises: HeadraceError if it exists but cannot be read, even after a while.
        """
        if self.file_id is None:
            return None
        try:
            file = opened(self.path, self.name)
        except OSError:
            return None  # gone or renamed: the next scan finds out
        except HeadraceError:
            if self.path.exists() and settled(self.since):
                raise
            file = None
        if file is None:
            self.retry = True
            return None
        self.file = file
        # It may have been renamed since the scan, and another one have its path.
        opened_at = file.fileno() if isinstance(file, TextFile) else self.path
        if is_at(opened_at, self.file_id) and self._begin(whole=not lines):
            return file
        self.close()
        self.retry = True
        return None

    def identify(self) -> bool:
        """Begin the fingerprint of a file that cannot be read; return whether it is there."""
        self.retry = not self._begin(whole=True)
        return not self.retry

    def _begin(self, *, whole: bool) -> bool:
        """Begin the fingerprint, unless that was done; return whether there is one.

        Raises: HeadraceError if its file cannot be read.
        """
        if self.watched is not None:
            return True
        try:
            watched = FingerprintTracker(self.place, whole=whole, before=self.known)
        except OSError:
            return False
        except HeadraceError:
            if self.is_there():
                raise
            return False
        if not self.is_there():
            return False
        self.watched = watched
        return True

    def finish_line(self, policy: Policy) -> None:
        """Skip the line end of a last line that an earlier run read as a row without one.

        Raises: UserError if the line continues instead, and the policy is to fail.
        """
        known = self.known
        if known is None or not known.unfinished or known.position != self.position:
            return
        end = known.line_end_in(self.place)
        if end is None:
            report_continued_line(policy, self.name, known)
        self.position = known.row[0] if end is None else self.position + end
        self.known = replace(known, unfinished=end == 0)

    def report_gone(self, policy: Policy, *, watched: bool) -> None:
        """Report that its file has not come back.

        Args:
            watched: whether it was open, so that it was read to its end.

        Raises: UserError if rows are lost and the policy is to fail.
        """
        known = self.fingerprint()
        if known is None or not known.unread:
            seen_is_read = self.total is not None and self.position >= self.total
            if watched or seen_is_read or (known is not None and known.whole):
                log.info("%s is gone; it was read to its end", self.name)
            else:
                log.warning(
                    "%s is gone, and was not read to its end: it was read up to position %d; the "
                    "rest is read only if [source] path also matches its new name",
                    self.name, self.position,
                )  # fmt: skip
            return
        problem = (
            f"'{self.name}', which was read up to position {self.position}, was truncated, "
            "replaced or deleted before it was read to its end"
        )
        if policy == "fail":
            raise UserError(
                f"[source] {problem}: put it back, start over with --fresh, or set on_replaced = "
                '"read": then the rows not yet read are lost.'
            )
        log.warning("%s: the rest is lost.", problem)


__all__ = ["Open", "Tail"]
