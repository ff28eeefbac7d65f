"""Looks for files that grow or appear, and reads their new rows."""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from connectors.files.fingerprint import (
    HEAD_BYTES,
    CopyDetector,
    Fingerprint,
    FingerprintTracker,
    Policy,
    digest,
    report_continued_line,
    segments,
    unique_name,
)
from connectors.files.readers.text import TextFile, compression
from connectors.files.splits import EPOCH_STRIDE, Readable
from engine.types import HeadraceError, Records, UserError

MAX_OPEN_FILES = 256
"""The most files kept open, the last that grew, so that they are read to their ends even after
they are renamed or deleted."""
SETTLE_SECONDS = 10.0
"""The seconds without a change after which an unreadable file is reported."""

FileId = tuple[int, int]
"""The system's identity of a file: device and inode."""
Open = Callable[[Path, str], Readable | None]

log = logging.getLogger("headrace.files")


@dataclass(slots=True, eq=False)
class Tail:
    """A partition that is followed.

    Attributes:
        path: where its file was when it was last seen.
        file_id: the system's number of it; None where no file that is there is this one.
        known: what was known of it when the run began; None for what came since.
        position: the next to read.
        size: bytes of it that were seen.
        reported: what it lacks was told.
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
        """Return whether the open file still begins with what was read of it."""
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

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()
            self.file = None


@dataclass(frozen=True, slots=True)
class SeenFile:
    """A file seen by the last directory scan.

    Attributes:
        shown: its path as found.
        changed: when, in ns.
    """

    shown: str
    path: Path
    file_id: FileId
    size: int
    changed: int


class Follower:
    """Follows files that grow or appear and yields their new rows.

    Args:
        find: the files there are now.
        opened: a file as rows of a partition; None where it cannot be read yet.
        lines: whether they have lines, so that those that are not compressed may grow; others are
            there whole, once they have not changed between two looks.
        interval: seconds between two looks.
        policy: what becomes of rows that are lost.
    """

    def __init__(
        self,
        find: Callable[[], Mapping[str, Path]],
        opened: Open,
        *,
        lines: bool,
        interval: float,
        policy: Policy,
    ) -> None:
        self._find = find
        self._opened = opened
        self._lines = lines
        self._interval = interval
        self._policy = policy
        self._tails: dict[str, Tail] = {}
        self._ready: OrderedDict[str, Tail] = OrderedDict()
        self._open: OrderedDict[str, Tail] = OrderedDict()
        self._seen: dict[FileId, SeenFile] = {}
        self._waiting: dict[FileId, float] = {}
        """Unread new files, and since when they have not changed."""
        self._contents = CopyDetector()
        self._copies: dict[FileId, float | None] = {}
        """New files that look like copies -> since when; None once that was reported."""
        self._next_look = 0.0

    def start(self, positions: Mapping[str, int], known: Mapping[str, Fingerprint]) -> None:
        """Restore the read positions from a mark."""
        self.close()
        names = {**known, **dict.fromkeys(self._tails), **dict.fromkeys(positions)}
        before = {name: tail.fingerprint(positions.get(name)) for name, tail in self._tails.items()}
        self._tails = {
            name: Tail(
                name,
                Path(name),
                known=before.get(name) or known.get(name),
                position=positions[name],
            )
            for name in names
            if name in positions
        }
        self._ready.clear()
        self._seen, self._waiting, self._next_look = {}, {}, 0.0

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        until = time.monotonic() + timeout
        while True:
            if time.monotonic() >= self._next_look:
                self._look()
                self._next_look = time.monotonic() + self._interval
            while self._ready:
                _, tail = self._ready.popitem(last=False)
                records = self._next(tail, max_rows, max_bytes)
                if records is not None:
                    self._ready[tail.name] = tail  # the others first: none has to wait for its end
                    return records
            now = time.monotonic()
            if now >= until:
                return None
            time.sleep(max(0.0, min(until, self._next_look) - now))

    def identities(self, positions: Mapping[str, int]) -> Iterator[tuple[str, Fingerprint]]:
        """Return the identities of the partitions on a mark."""
        for name, tail in list(self._tails.items()):
            known = tail.fingerprint(positions[name]) if name in positions else None
            if known is not None:
                yield name, known

    def lag(self, positions: Mapping[str, int]) -> dict[str, int]:
        """Return partition -> bytes or rows after a mark, of existing files."""
        return {
            tail.name: max(0, (tail.total or 0) - positions.get(tail.name, 0))
            for tail in list(self._tails.values())
            if tail.file_id is not None or tail.file is not None
        }

    def close(self) -> None:
        """Close all files."""
        for tail in self._open.values():
            tail.close()
        self._open.clear()

    # ------------------------------------------------------------------------------------- to read

    def _next(self, tail: Tail, max_rows: int, max_bytes: int) -> Records | None:
        """Return its next rows; None if there are no more, now or ever."""
        file = tail.file or self._reopened(tail)
        if file is None:
            return None
        text = tail.text
        fills = text is not None and text.exhausted
        if text is not None and fills:
            text.go_on()
            if not tail.intact():
                self._detach(tail)
                return None
        records = file.read(max_rows, max_bytes)
        if fills and not tail.intact():  # cut while it was read: who knows whose rows they are
            self._detach(tail)
            return None
        if text is None:
            tail.total = file.total
        elif fills:
            tail.total = os.fstat(text.fileno()).st_size
            if tail.watched is not None and tail.watched.fingerprint.head < min(
                HEAD_BYTES, tail.total
            ):
                tail.watched.refresh(text.fileno())
        if records is not None:
            tail.position = records.next
            if tail.watched is not None:
                tail.watched.record(records)
        elif text is None:
            tail.total = tail.position
            self._close(tail)
        return records

    def _reopened(self, tail: Tail) -> Readable | None:
        """Open its file at the last read position; return None if that is impossible now."""
        if tail.file_id is None:
            return None
        try:
            file = self._opened(tail.path, tail.name)
        except OSError:
            return None  # it went, or has another name now: the next look tells
        except HeadraceError:
            if tail.path.exists() and time.monotonic() - tail.since >= SETTLE_SECONDS:
                raise
            file = None
        if file is None:
            tail.retry = True
            return None
        tail.file, text = file, tail.text
        try:
            if text is not None:
                stat = os.fstat(text.fileno())
                if (stat.st_dev, stat.st_ino) != tail.file_id:
                    tail.close()
                    return None
            if tail.watched is None:
                at = tail.path if text is None else text.fileno()
                tail.watched = FingerprintTracker(at, whole=not self._lines, before=tail.known)
        except OSError:
            tail.close()
            return None
        if not tail.intact():
            self._detach(tail)
            return None
        self._finish_line(tail)
        file.skip_to(tail.position)
        self._open[tail.name] = tail
        self._open.move_to_end(tail.name)
        while len(self._open) > MAX_OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return file

    def _finish_line(self, tail: Tail) -> None:
        """Skip the line end of a last line that an earlier run read as a row without one.

        Raises: UserError where it goes on instead, and the policy is to fail.
        """
        known = tail.known
        if known is None or not known.unfinished or known.position != tail.position:
            return
        end = known.line_end_in(tail.path)
        if end is None:
            report_continued_line(self._policy, tail.name, known)
        tail.position = known.row[0] if end is None else tail.position + end
        tail.known = replace(known, unfinished=end == 0)

    def _detach(self, tail: Tail) -> None:
        """Handle a file whose content was replaced."""
        tail.file_id, tail.since = None, time.monotonic()
        self._close(tail)
        self._next_look = 0.0

    def _close(self, tail: Tail) -> None:
        self._open.pop(tail.name, None)
        tail.close()

    # ------------------------------------------------------------------------------------- to look

    def _grows(self, path: Path) -> bool:
        return self._lines and compression(path) is None

    def _look(self) -> None:
        """Scan for files, and find which have more to read."""
        files = self._scan()
        for tail in list(self._tails.values()):
            if tail.file_id is not None:
                self._changed(tail, files.get(tail.file_id))
        held = {tail.file_id for tail in self._tails.values()}
        new = [file for file_id, file in files.items() if file_id not in held and file.size]
        if new:
            self._assign_new(new)
        self._drain()
        self._seen = files
        self._waiting = {n: since for n, since in self._waiting.items() if n in files}

    def _scan(self) -> dict[FileId, SeenFile]:
        try:
            paths = self._find()
        except UserError:  # none, for now
            return {}
        files: dict[FileId, SeenFile] = {}
        for shown, path in paths.items():
            try:
                stat = path.stat()
            except OSError:
                continue
            file_id = stat.st_dev, stat.st_ino
            files[file_id] = SeenFile(shown, path, file_id, stat.st_size, stat.st_mtime_ns)
        return files

    def _changed(self, tail: Tail, file: SeenFile | None) -> None:
        """Update a tail from the file now at its path: unchanged, grown, moved or truncated."""
        if file is None:
            tail.file_id, tail.since = None, time.monotonic()
            return  # it is read to its end, where it is open
        tail.path = file.path
        if (file.size, file.changed) != (tail.size, tail.changed):
            known = tail.fingerprint() if tail.watched is not None else None
            if (
                not self._grows(file.path)
                and known is not None
                and not known.matches_file(file.path)
            ):
                self._detach(tail)
                return
            tail.since = time.monotonic()
        elif not tail.retry:
            return
        self._follow(tail, file)

    def _follow(self, tail: Tail, file: SeenFile) -> None:
        """Note that there may be more to read of it."""
        tail.path, tail.file_id, tail.reported, tail.retry = file.path, file.file_id, False, False
        tail.size, tail.changed = file.size, file.changed
        if self._grows(file.path):
            tail.total = max(file.size, tail.total or 0)  # less, if it was cut: that is seen later
        self._ready[tail.name] = tail

    def _assign_new(self, new: list[SeenFile]) -> None:
        """Assign new files: renamed known ones, copies, and others."""
        lost = [tail for tail in self._tails.values() if tail.file_id is None]
        numbers = {(tail.known.device, tail.known.inode) for tail in lost if tail.known is not None}
        # Those with a known number first, and copies that are compressed last.
        for file in sorted(new, key=lambda f: (f.file_id not in numbers, not self._grows(f.path))):
            tail = self._match_lost(file, lost)
            if tail is not None:
                lost.remove(tail)
                self._close(tail)
            elif self._must_wait(file):
                continue
            else:
                tail = Tail(unique_name(file.shown, self._tails), file.path)
                if not self._lines:
                    self._contents.note(file.path, tail.name)
                self._tails[tail.name] = tail
                log.info("following %s", tail.name)
            tail.since = time.monotonic()
            self._waiting.pop(file.file_id, None)
            self._follow(tail, file)

    def _match_lost(self, file: SeenFile, lost: list[Tail]) -> Tail | None:
        """Return which of the lost tails a file is, by content; of several, the one with its
        inode or name."""
        try:
            (head,) = segments(file.path, [(0, HEAD_BYTES)], raw=not self._lines)
        except (OSError, HeadraceError):
            return None
        digests: dict[int, str] = {}
        fitting: list[Tail] = []
        for tail in lost:
            known = tail.fingerprint()
            if known is None:  # a mark without identities goes by names
                if tail.name == file.shown:
                    return tail
            elif known.head <= len(head):
                if known.head not in digests:
                    digests[known.head] = digest(head[: known.head])
                if known.head_digest == digests[known.head] and known.matches_file(file.path):
                    fitting.append(tail)
        return min(fitting, key=lambda tail: not _is_same_file(tail, file), default=None)

    def _must_wait(self, file: SeenFile) -> bool:
        """Return whether a new file may be a copy, or is still being written although it cannot
        grow."""
        before, now = self._seen.get(file.file_id), time.monotonic()
        same = before is not None and (before.size, before.changed) == (file.size, file.changed)
        if not same:
            self._waiting[file.file_id] = now
            if not self._grows(file.path):
                return True
        if not self._lines:
            return False
        try:
            (head,) = segments(file.path, [(0, HEAD_BYTES)], raw=False)
        except (OSError, HeadraceError):
            return now - self._waiting.get(file.file_id, now) < SETTLE_SECONDS
        tails = (tail for tail in self._tails.values() if tail.file or tail.file_id)
        twin = next((tail for tail in tails if self._is_copy(file, head, tail)), None)
        if twin is not None:
            self._report_copy(file, twin)
        return twin is not None or not head

    def _report_copy(self, file: SeenFile, twin: Tail) -> None:
        """Report a possible copy: first that it is held back, later that it is skipped."""
        now = time.monotonic()
        since = self._copies.setdefault(file.file_id, now)
        if since == now:
            log.info("%s holds what %s does: it waits as a copy of it", file.shown, twin.name)
        elif since is not None and now - since >= SETTLE_SECONDS:
            self._copies[file.file_id] = None
            log.warning(
                "%s holds what %s does, so it is taken for a copy of it: its rows are not read "
                "unless that file goes, or this one goes on otherwise.", file.shown, twin.name,
            )  # fmt: skip

    def _is_copy(self, file: SeenFile, head: bytes, tail: Tail) -> bool:
        """Return whether a file holds what a tail's does, or the beginning of it."""
        known = tail.fingerprint()
        if known is None:
            return False
        if known.head <= len(head) and digest(head[: known.head]) != known.head_digest:
            return False
        at = tail.path if tail.text is None else tail.text.fileno()
        end = (max(0, file.size - HEAD_BYTES), min(HEAD_BYTES, file.size))
        try:
            if not known.has_beginning_of(at):
                return True  # it was cut just now: the next look tells whose copy this is
            if compression(file.path) is not None:
                (beginning,) = segments(at, [(0, len(head))], raw=False)
                return beginning == head
            own = segments(file.path, [(0, len(head)), end], raw=False)
            return own == segments(at, [(0, len(head)), end], raw=False)
        except (OSError, HeadraceError):
            return True  # one of them goes just now

    def _drain(self) -> None:
        """Read the rest of files that left the folder; report what is lost of unreadable ones."""
        now = time.monotonic()
        for tail in list(self._tails.values()):
            if tail.file_id is not None or tail.reported:
                continue
            if tail.text is not None:
                size = os.fstat(tail.text.fileno()).st_size
                if size != tail.size:
                    tail.size, tail.since = size, now
                self._ready[tail.name] = tail
            if now - tail.since >= SETTLE_SECONDS:
                self._report_lost(tail)

    def _report_lost(self, tail: Tail) -> None:
        """Report a tail whose file has not come back.

        Raises: UserError where rows are lost and the policy is to fail.
        """
        known = tail.fingerprint()
        watched = tail.text is not None
        tail.reported = True
        self._close(tail)
        if known is None or not known.unread:
            if watched:
                log.info("%s is gone, it was read to its end", tail.name)
            else:
                log.warning(
                    "%s is gone, and was not watched to its end: it was read up to position %d; "
                    "what came behind that is read only if [source] path matches its new name too",
                    tail.name, tail.position,
                )  # fmt: skip
            return
        problem = (
            f"'{tail.name}', which was read up to position {tail.position}, was cut, replaced or "
            "taken away before it was read to its end"
        )
        if self._policy == "fail":
            raise UserError(
                f"[source] {problem}: put it back, start over with --fresh, or set on_replaced = "
                '"read": then what was not read of it is lost.'
            )
        log.warning("%s: the rest is lost.", problem)


def _is_same_file(tail: Tail, file: SeenFile) -> bool:
    known = tail.known
    file_id = None if known is None else (known.device, known.inode)
    return file.file_id == file_id or file.shown == tail.name


__all__ = ["Follower"]
