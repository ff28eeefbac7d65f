"""Finds files that grow or appear, and reads their new rows."""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

from connectors.files.fingerprint import HEAD_BYTES, CopyDetector, Policy, unique_name
from connectors.files.readers.file_rows import unreadable
from connectors.files.readers.text import compression
from connectors.files.splits import EPOCH_STRIDE, Readable
from connectors.files.streams.follow.newcomers import Newcomers
from connectors.files.streams.follow.scan import SeenFile, scan, settled
from connectors.files.streams.follow.tail import Open, Tail
from connectors.files.streams.row_stream import RowStream
from engine.types import HeadraceError, Records, Snapshot

MAX_OPEN_FILES = 256
"""The most files kept open, the last that grew, so that they are read to their ends even after
they are renamed or deleted."""

GIVEN_UP = EPOCH_STRIDE - 1
"""The position after a file that cannot be read."""

log = logging.getLogger("headrace.files")


class Follower(RowStream):
    """Follows files that grow or appear and yields their new rows.

    Args:
        find: returns the current files.
        opened: opens a file as rows of a partition; None if it cannot be read yet.
        lines: whether the files have lines, so that uncompressed ones may grow; others are read
            once they have not changed between two scans.
        interval: seconds between two scans.
        policy: what to do about lost rows.
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
        super().__init__()
        self._find = find
        self._opened = opened
        self._lines = lines
        self._interval = interval
        self._policy = policy
        self._tails: dict[str, Tail] = {}
        self._ready: OrderedDict[str, Tail] = OrderedDict()
        self._open: OrderedDict[str, Tail] = OrderedDict()
        self._newcomers = Newcomers(lines=lines)
        self._contents = CopyDetector()
        self._next_look = 0.0

    def seek(self, positions: Mapping[str, int]) -> None:
        self.close()
        names = {**self.known, **dict.fromkeys(self._tails), **dict.fromkeys(positions)}
        before = {name: tail.fingerprint(positions.get(name)) for name, tail in self._tails.items()}
        self._tails = {
            name: Tail(
                name,
                Path(name),
                known=before.get(name) or self.known.get(name),
                position=positions[name],
            )
            for name in names
            if name in positions
        }
        self._ready.clear()
        self._newcomers.seen({})
        self._next_look = 0.0

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
                    self._ready[tail.name] = (
                        tail  # other files first, so that none waits for the end of this one
                    )
                    return records
            now = time.monotonic()
            if now >= until:
                return None
            time.sleep(max(0.0, min(until, self._next_look) - now))

    def identities(self, positions: Mapping[str, int]) -> dict[str, Snapshot]:
        identities = super().identities(positions)
        for name, tail in list(self._tails.items()):
            known = tail.fingerprint(positions[name]) if name in positions else None
            if known is not None:
                identities[name] = known.snapshot()
        return identities

    def lag(self, positions: Mapping[str, int]) -> dict[str, int]:
        """Return partition -> bytes or rows after a mark, of existing files."""
        return {
            tail.name: max(0, (tail.total or 0) - positions.get(tail.name, 0))
            for tail in list(self._tails.values())
            if tail.file_id is not None or tail.file is not None
        }

    def close(self) -> None:
        self._newcomers.report_copies()
        for tail in self._open.values():
            tail.close()
        self._open.clear()

    # ------------------------------------------------------------------------------------- to read

    def _next(self, tail: Tail, max_rows: int, max_bytes: int) -> Records | None:
        """Return its next rows; None if there are no more, now or ever. A file that cannot grow and
        cannot be read either ends with a row that says why."""
        try:
            return self._more(tail, max_rows, max_bytes)
        except HeadraceError as error:
            grows = self._lines and compression(tail.path) is None
            if not grows and not settled(tail.since):  # it may still be written, or be another's
                self._close(tail)
                tail.retry = True
                return None
            if grows or self._policy == "fail":
                raise
            return self._given_up(tail, str(error))

    def _more(self, tail: Tail, max_rows: int, max_bytes: int) -> Records | None:
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
        if (
            fills and not tail.intact()
        ):  # truncated during the read: the rows may be of either content
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

    def _given_up(self, tail: Tail, why: str) -> Records | None:
        """Return a row in place of the rest of its file; None if that has just gone."""
        self._close(tail)
        if not tail.identify():
            return None
        position, tail.position, tail.total = tail.position, GIVEN_UP, GIVEN_UP
        log.warning("%s It is a dead letter, and what is left of it is not read.", why)
        return unreadable(tail.path, tail.name, position, GIVEN_UP, why)

    def _reopened(self, tail: Tail) -> Readable | None:
        """Open its file at the last read position; return None if that is impossible now."""
        if tail.position >= GIVEN_UP:
            tail.total = GIVEN_UP
            return None
        file = tail.open(self._opened, lines=self._lines)
        if file is None:
            return None
        if not tail.intact():
            self._detach(tail)
            return None
        tail.finish_line(self._policy)
        file.skip_to(tail.position)
        self._open[tail.name] = tail
        self._open.move_to_end(tail.name)
        while len(self._open) > MAX_OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return file

    def _detach(self, tail: Tail) -> None:
        """Handle a file whose content was replaced."""
        log.info("%s was truncated or replaced: what it holds now is a new file", tail.name)
        tail.file_id, tail.since = None, time.monotonic()
        self._close(tail)
        self._next_look = 0.0

    def _close(self, tail: Tail) -> None:
        self._open.pop(tail.name, None)
        tail.close()

    # ------------------------------------------------------------------------------------- to look

    def _look(self) -> None:
        """Scan for files, and find which have more to read."""
        files = scan(self._find, lines=self._lines)
        for tail in list(self._tails.values()):
            if tail.file_id is not None:
                self._changed(tail, files.get(tail.file_id))
        held = {tail.file_id for tail in self._tails.values()}
        new = [file for file_id, file in files.items() if file_id not in held and file.size]
        if new:
            self._assign_new(new)
        self._drain()
        self._newcomers.seen(files)

    def _changed(self, tail: Tail, file: SeenFile | None) -> None:
        """Update a tail from the file now at its path: unchanged, grown, moved or truncated."""
        if file is None:
            tail.file_id, tail.since = None, time.monotonic()
            return  # read to its end while open
        tail.path = file.path
        if not file.unchanged(tail.size, tail.changed):
            known = tail.fingerprint() if tail.watched is not None else None
            if not file.grows and known is not None and not known.matches_file(file.path):
                self._detach(tail)
                return
            if not file.grows:  # opened again, it has what was added
                self._close(tail)
            tail.since = time.monotonic()
        elif not tail.retry:
            return
        self._follow(tail, file)

    def _follow(self, tail: Tail, file: SeenFile) -> None:
        """Note that there may be more to read of it."""
        tail.path, tail.file_id, tail.reported, tail.retry = file.path, file.file_id, False, False
        tail.size, tail.changed = file.size, file.changed
        if file.grows:
            tail.total = max(
                file.size, tail.total or 0
            )  # less if truncated, which is noticed later
        self._ready[tail.name] = tail

    def _assign_new(self, new: list[SeenFile]) -> None:
        """Assign new files: renamed known ones, copies, and others."""
        lost = [tail for tail in self._tails.values() if tail.file_id is None]
        numbers = {(tail.known.device, tail.known.inode) for tail in lost if tail.known is not None}
        # Those with a known inode first, compressed copies last.
        for file in sorted(new, key=lambda f: (f.file_id not in numbers, not f.grows)):
            tail = self._newcomers.match_lost(file, lost)
            if tail is None and self._newcomers.must_wait(file, self._tails.values()):
                continue
            if not file.is_there():  # what was compared is not its content: the next scan finds it
                continue
            if tail is not None:
                lost.remove(tail)
                self._close(tail)
            else:
                tail = Tail(unique_name(file.shown, self._tails), file.path)
                if not self._lines:
                    self._contents.note(file.path, tail.name)
                self._tails[tail.name] = tail
                log.info("following %s", tail.name)
            tail.since = time.monotonic()
            self._newcomers.taken(file)
            self._follow(tail, file)

    def _drain(self) -> None:
        """Read the rest of files that left the folder; report rows lost in unreadable ones."""
        now = time.monotonic()
        for tail in list(self._tails.values()):
            if tail.file_id is not None or tail.reported:
                continue
            if tail.text is not None:
                size = os.fstat(tail.text.fileno()).st_size
                if size != tail.size:
                    tail.size, tail.since = size, now
                self._ready[tail.name] = tail
            if settled(tail.since):
                watched, tail.reported = tail.text is not None, True
                self._close(tail)
                tail.report_gone(self._policy, watched=watched)


__all__ = ["Follower"]
