"""Identifies a file that appeared: a known file that had disappeared, a copy, or a new one."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from connectors.files.fingerprint import HEAD_BYTES, digest, segments, whereabouts
from connectors.files.readers.text import compression
from connectors.files.streams.follow.scan import FileId, SeenFile, settled
from connectors.files.streams.follow.tail import Tail
from engine.types import HeadraceError

log = logging.getLogger("headrace.files")


class Newcomers:
    """Files that have no partition yet.

    Args:
        lines: whether the files have lines, so that they may grow.
    """

    def __init__(self, *, lines: bool) -> None:
        self._lines = lines
        self._seen: Mapping[FileId, SeenFile] = {}
        self._waiting: dict[FileId, float] = {}
        """New files -> the time since when they have not changed."""
        self._copies: dict[FileId, tuple[float, str]] = {}
        """New files that look like copies, and were not reported as such -> the time since when,
        and the sentence that says so."""
        self._reported: set[FileId] = set()

    def seen(self, files: Mapping[FileId, SeenFile]) -> None:
        """Record the files of a scan, to compare with the next one."""
        self._seen = files
        self._waiting = {n: since for n, since in self._waiting.items() if n in files}
        self._copies = {n: copy for n, copy in self._copies.items() if n in files}

    def taken(self, file: SeenFile) -> None:
        """Record that a file has a partition now."""
        self._waiting.pop(file.file_id, None)
        self._copies.pop(file.file_id, None)

    def report_copies(self) -> None:
        """Report the copies that are held back, at the end of a run."""
        for _, sentence in self._copies.values():
            log.warning("%s", sentence)
        self._reported.update(self._copies)
        self._copies.clear()

    def match_lost(self, file: SeenFile, lost: Iterable[Tail]) -> Tail | None:
        """Return which of the lost tails a file is, by content; of several, the one with its
        inode or name."""
        digests: dict[tuple[int, bool], str] = {}
        fitting: list[Tail] = []
        for tail in lost:
            known = tail.fingerprint()
            if known is None:  # a mark without identities has only names
                if tail.name == file.shown:
                    return tail
                continue
            head = known.head, known.whole
            if head not in digests:
                digests[head] = _head_digest(file.path, *head)
            if known.head_digest == digests[head] and known.matches_file(file.path):
                fitting.append(tail)
        return min(fitting, key=lambda tail: not _is_same_file(tail, file), default=None)

    def must_wait(self, file: SeenFile, tails: Iterable[Tail]) -> bool:
        """Return whether a new file may be a copy of one of the tails, or is still being written
        although it cannot grow."""
        before, now = self._seen.get(file.file_id), time.monotonic()
        if before is None or not file.unchanged(before.size, before.changed):
            self._waiting[file.file_id] = now
            if not file.grows:
                return True
        if not self._lines:
            return False
        try:
            (head,) = segments(file.path, [(0, HEAD_BYTES)], raw=False)
        except (OSError, HeadraceError):
            return not settled(self._waiting.get(file.file_id, now))
        present = (tail for tail in tails if tail.file or tail.file_id)
        twin = next((tail for tail in present if _is_copy(file, head, tail)), None)
        if twin is not None:
            self._report_copy(file, twin)
        return twin is not None or not head

    def _report_copy(self, file: SeenFile, twin: Tail) -> None:
        """Report a possible copy: first that it is held back, later that it is skipped."""
        if file.file_id in self._reported:
            return
        where = whereabouts(twin.name, twin.path)
        if file.file_id not in self._copies:
            log.info("%s has the content of %s and is held back as a copy", file.shown, where)
            sentence = (
                f"{file.shown} has the content of {where}, or the beginning of it, and counts as a "
                "copy: its rows are not read unless that file disappears or the contents differ."
            )
            self._copies[file.file_id] = time.monotonic(), sentence
        since, sentence = self._copies[file.file_id]
        if settled(since):
            log.warning("%s", sentence)
            self._reported.add(file.file_id)
            del self._copies[file.file_id]


def _head_digest(path: Path, size: int, raw: bool) -> str:
    """Return the digest of so many bytes of a file's beginning; "" if it has fewer."""
    try:
        (head,) = segments(path, [(0, size)], raw=raw)
    except (OSError, HeadraceError):
        return ""
    return digest(head) if len(head) == size else ""


def _is_copy(file: SeenFile, head: bytes, tail: Tail) -> bool:
    """Return whether a file has the content of a tail's file, or the beginning of it."""
    known = tail.fingerprint()
    if known is None or known.whole:  # the latter could not be read
        return False
    if known.head <= len(head) and digest(head[: known.head]) != known.head_digest:
        return False
    at = tail.place
    end = (max(0, file.size - HEAD_BYTES), min(HEAD_BYTES, file.size))
    try:
        if not known.has_beginning_of(at):
            return True  # just truncated: the next scan finds whose copy this is
        if compression(file.path) is not None:
            (beginning,) = segments(at, [(0, len(head))], raw=False)
            same = beginning == head
        else:
            own = segments(file.path, [(0, len(head)), end], raw=False)
            same = own == segments(at, [(0, len(head)), end], raw=False)
    except (OSError, HeadraceError):
        return True  # one of them just disappeared
    # An open text is its own; any other may be renamed since the scan: the next one finds out.
    return same or not (tail.text or tail.is_there())


def _is_same_file(tail: Tail, file: SeenFile) -> bool:
    known = tail.known
    file_id = None if known is None else (known.device, known.inode)
    return file.file_id == file_id or file.shown == tail.name


__all__ = ["Newcomers"]
