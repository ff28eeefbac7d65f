"""File fingerprints: recognise a file by its content and inode, whatever its path.

A partition is named by the path at which its file was first seen. Later the file may be moved,
named by another path, rotated, compressed, truncated or replaced. So a checkpoint contains a
`Fingerprint` of each file, and `match_files` assigns the current files to partitions.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from connectors.files.readers.text import BLOCK, Bytes, compression, readable
from connectors.formats.kernels.datums import AVRO_MAGIC
from engine.types import HeadraceError, Records, UserError, Values
from engine.types.plural import counted

HEAD_BYTES = 4_096
"""The bytes of a file's beginning in its fingerprint."""
ROW_BYTES = 256
"""The bytes of a row in its fingerprint."""
MAX_NOTED_ROWS = 1_024
"""The last rows of reads that are remembered until a checkpoint asks for one."""

Span = tuple[int, int]
"""An offset and a length in bytes."""
Policy = Literal["fail", "read"]

log = logging.getLogger("headrace.files")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """The fingerprint of a file. Offsets are in its (decompressed) text if it has lines.

    Attributes:
        device, inode: the identity of the file in the file system.
        size: bytes on the disk.
        head: how many bytes of its beginning are known.
        head_digest: the digest of these bytes.
        row: the span of the last row read, or the end of a file that cannot grow.
        row_digest: the digest of that row.
        whole: whether the file cannot grow; one of another size is another file, unless it is an
            Avro file with more blocks.
        position: the next position to read.
        unread: whether the file continued after that position.
        unfinished: whether the row had no line end, so it may be incomplete.
    """

    device: int
    inode: int
    size: int
    head: int
    head_digest: str
    row: Span = (0, 0)
    row_digest: str = ""
    whole: bool = False
    position: int = 0
    unread: bool = False
    unfinished: bool = False

    def snapshot(self) -> list[Any]:
        """Return a plain value, small because there may be many files. See `restore`."""
        return [getattr(self, field.name) for field in fields(self)]

    @classmethod
    def restore(cls, value: Sequence[Any]) -> Fingerprint:
        """Return the fingerprint from a `snapshot`."""
        return cls(**{field.name: part for field, part in zip(fields(cls), value, strict=True)})

    def same_inode(self, stat: os.stat_result) -> bool:
        """Return whether a file has the same inode."""
        return (self.device, self.inode) == (stat.st_dev, stat.st_ino)

    def matches_file(self, path: Path) -> bool:
        """Return whether a file begins with the rows read from this one."""
        try:
            stat = path.stat()
            if self.whole and stat.st_size != self.size and not self._is_longer(path, stat):
                return False
            places = [(0, self.head), self.row, (self.position - 1, 1)]
            same = self.same_inode(stat) and self.size == stat.st_size
            if self.whole or not self.position or (same and compression(path)):
                places.pop()  # spares decompressing up to there
            if same and compression(path) and not self.whole:
                places.pop()
            chunks = segments(path, places, raw=self.whole)
        except (HeadraceError, OSError):  # truncated or gone
            return False
        known = (self.head_digest, self.row_digest)
        matches_file = all(
            digest(data) == d for data, d in zip(chunks[:2], known, strict=False) if d
        )
        return matches_file and (len(chunks) < 3 or len(chunks[2]) == 1)

    def _is_longer(self, path: Path, stat: os.stat_result) -> bool:
        """Return whether a file may be this one with more blocks behind its end, which of those
        that are read as a whole only an Avro file can have."""
        longer = stat.st_size > self.size
        return longer and segments(path, [(0, len(AVRO_MAGIC))], raw=True) == [AVRO_MAGIC]

    def has_beginning_of(self, path: Path | int) -> bool:
        """Return whether a file of lines still has the beginning and the row. Raises: OSError,
        HeadraceError."""
        head, row = segments(path, [(0, self.head), self.row], raw=False)
        return digest(head) == self.head_digest and self.row_digest in ("", digest(row))

    def line_end_in(self, path: Path | int) -> int | None:
        """Return the bytes of the line end that now completes the last row; None if the row
        continues."""
        if not self.unfinished:
            return 0
        (rest,) = segments(path, [(self.position, 2)], raw=False)
        if rest[:1] not in (b"", b"\n", b"\r"):
            return None
        return 2 if rest == b"\r\n" else len(rest[:1])


def digest(data: bytes) -> str:
    """Return a short digest of the bytes."""
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def segments(path: Path | int, places: Sequence[Span], *, raw: bool) -> list[bytes]:
    """Return the bytes at these offsets of a file, or of an open uncompressed one; fewer at its
    end; of compressed text, unless `raw`, the unpacked bytes.

    Raises: OSError, HeadraceError if it cannot be read.
    """
    if isinstance(path, int):
        return [os.pread(path, size, start) for start, size in places]
    if raw or compression(path) is None:
        with path.open("rb", buffering=0) as file:
            return segments(file.fileno(), places, raw=True)
    parts = [bytearray() for _ in places]
    end = max(start + size for start, size in places)
    text = Bytes(path, str(path))
    try:
        while text.offset < end and len(block := text.read(min(BLOCK, end - text.offset))):
            begin = text.offset - len(block)
            for (start, size), part in zip(places, parts, strict=True):
                part += block[max(0, start - begin) : max(0, start + size - begin)].tobytes()
    finally:
        text.close()
    return [bytes(part) for part in parts]


class FingerprintTracker:
    """Collects the fingerprint of a file while it is read.

    Args:
        whole: whether the file cannot grow.
        before: the fingerprint known before, if any.
    """

    def __init__(self, path: Path | int, *, whole: bool, before: Fingerprint | None = None) -> None:
        self._whole = whole
        self._rows: deque[tuple[int, Span, str, bool]] = deque(maxlen=MAX_NOTED_ROWS)
        """The position on a mark after a row, the row's offset, its digest, whether it lacks its
        line end."""
        if before is not None and before.row_digest and not whole:
            at = before.position
            self._rows.append((at, before.row, before.row_digest, before.unfinished))
        self._last: Fingerprint | None = None
        self._last_key: tuple[int, int | None] = (0, None)
        self.fingerprint = self._looked(path)

    def refresh(self, path: Path | int) -> None:
        """Read more of the beginning of a file that has grown."""
        before, now = self.fingerprint, self._looked(path)
        (head,) = segments(path, [(0, before.head)], raw=self._whole)
        if digest(head) == before.head_digest:  # or was just overwritten
            self.fingerprint, self._last = now, None

    def record(self, records: Records, *, unfinished: bool = False) -> None:
        """Remember the last of the rows."""
        values = records.values
        if self._whole or not isinstance(values, Values):
            return
        n = len(values) - 1
        if values.null is not None and values.null[n]:  # incomplete
            return
        start, stop = values.bounds[n : n + 2].tolist()
        row = values.data[start : min(stop, start + ROW_BYTES)].tobytes()
        place = (int(records.positions[n]), len(row))
        self._rows.append((records.next, place, digest(row), unfinished))

    def at(self, position: int, total: int | None, epoch_stride: int) -> Fingerprint:
        """Return the fingerprint for a mark that resumes at `position`.

        Args:
            total: the last position of the file; None if unknown.
            epoch_stride: the number added to positions on a mark per epoch.
        """
        asked = (position, total)
        if self._last is None or self._last_key != asked:
            self._last, self._last_key = self._known(position, total, epoch_stride), asked
        return self._last

    def _known(self, position: int, total: int | None, epoch_stride: int) -> Fingerprint:
        known = replace(
            self.fingerprint,
            position=position % epoch_stride,
            unread=total is None or position % epoch_stride < total,
        )
        for marked, place, row_digest, unfinished in reversed(list(self._rows)):
            if marked <= position:
                unfinished = unfinished and marked == position
                return replace(known, row=place, row_digest=row_digest, unfinished=unfinished)
        return known

    def _looked(self, path: Path | int) -> Fingerprint:
        stat = os.stat(path)  # noqa: PTH116 - or a descriptor
        end = (max(0, stat.st_size - HEAD_BYTES), HEAD_BYTES) if self._whole else (0, 0)
        head, tail = segments(path, [(0, HEAD_BYTES), end], raw=self._whole)
        return Fingerprint(
            device=stat.st_dev,
            inode=stat.st_ino,
            size=stat.st_size,
            head=len(head),
            head_digest=digest(head),
            row=(end[0], len(tail)) if self._whole else end,
            row_digest=digest(tail) if self._whole else "",
            whole=self._whole,
        )


MAX_COPY_WARNINGS = 4
"""The most warnings about copies of a file."""
REPLAYED = "dead letters"
"""The name, beside a source's own partitions, of the fingerprint of replayed files."""


def combined_digest(paths: Iterable[Path]) -> str:
    """Return a digest of files whose rows are sorted together: their sizes, beginnings and ends."""
    looks = [FingerprintTracker(path, whole=True).fingerprint for path in paths]
    return digest(repr([(f.size, f.head_digest, f.row_digest) for f in looks]).encode())


class CopyDetector:
    """Detects copies of a file, compressed ones too, by the size, beginning and end of their
    content, and warns that their rows are read twice."""

    def __init__(self) -> None:
        self._by_beginning: dict[str, dict[str, Path]] = {}
        """The digest of a beginning -> the files that have it, by name."""
        self._digests: dict[str, str] = {}
        """Name -> `content_digest`, of files with the same beginning as another."""
        self._told = 0

    def note(self, path: Path, name: str) -> None:
        """Note a file that will be read. A compressed one is unpacked only if it begins like
        another."""
        try:
            (head,) = segments(path, [(0, HEAD_BYTES)], raw=False)
            alike = self._by_beginning.setdefault(digest(head), {})
            if name in alike or not head:
                return
            earlier, alike[name] = list(alike.items()), path
            first = next((other for other in earlier if self._same(other, (name, path))), None)
        except (OSError, HeadraceError):  # its reader reports it
            return
        if first is None or self._told == MAX_COPY_WARNINGS:
            return
        self._told += 1
        if self._told == MAX_COPY_WARNINGS:
            log.warning("More files may be copies; they are not listed.")
        else:
            unpacked = compression(path) is not None or compression(first[1]) is not None
            log.warning(
                "%s has the same size, beginning and end as %s%s: if it is a copy, its rows are "
                "read twice; leave one of the two out.",
                whereabouts(name, path), whereabouts(*first), " once unpacked" if unpacked else "",
            )  # fmt: skip

    def _same(self, *files: tuple[str, Path]) -> bool:
        for name, path in files:
            if name not in self._digests:
                self._digests[name] = content_digest(path)
        return len({self._digests[name] for name, _ in files}) == 1


def whereabouts(name: str, path: Path) -> str:
    """Return where a file is; and the name of its partition, if it was found there under another
    one."""
    return name if str(path) == name else f"{readable(str(path))} (read as {name})"


def content_digest(path: Path) -> str:
    """Return a digest of the size, beginning and end of a file's (unpacked) content.

    Raises: OSError, HeadraceError if it cannot be read.
    """
    if compression(path) is None:
        size = path.stat().st_size
        ends = [(0, HEAD_BYTES), (max(0, size - HEAD_BYTES), HEAD_BYTES)]
        return digest(repr((size, segments(path, ends, raw=True))).encode())
    head = tail = b""
    text = Bytes(path, str(path))
    try:
        while len(block := text.read(BLOCK)):
            if len(head) < HEAD_BYTES:
                head += block[:HEAD_BYTES].tobytes()
            tail = (tail + block[-HEAD_BYTES:].tobytes())[-HEAD_BYTES:]
    finally:
        text.close()
    return digest(repr((text.offset, [head[:HEAD_BYTES], tail])).encode())


def match_files(
    files: Mapping[str, Path], known: Mapping[str, Fingerprint]
) -> tuple[dict[str, Path], set[str]]:
    """Return partition -> file for matching files, in their order; and the known partitions
    without a file.

    A file belongs to the partition with its content; if several fit, to the one with its inode,
    then the one with its name. Other files are new partitions, named by their path, with a number
    if that name is taken.
    """
    stats = {name: path.stat() for name, path in files.items()}
    partition: dict[str, str] = {}
    left = dict(known)

    def match(candidates: Callable[[str, Fingerprint], Iterator[str]]) -> None:
        for name, fingerprint in list(left.items()):
            for shown in candidates(name, fingerprint):
                if shown not in partition and fingerprint.matches_file(files[shown]):
                    partition[shown] = name
                    del left[name]
                    break

    match(lambda name, known: (s for s in (name,) if s in files and known.same_inode(stats[s])))
    match(lambda _, known: (s for s in files if known.same_inode(stats[s])))
    match(lambda name, _: iter((name,) if name in files else ()))
    heads = _heads({s: path for s, path in files.items() if s not in partition}, left)
    match(lambda _, known: iter(heads.get((known.head, known.head_digest), ())))
    taken = {*known}
    for shown in files:
        if shown not in partition:
            partition[shown] = unique_name(shown, taken)
            taken.add(partition[shown])
    return {partition[shown]: path for shown, path in files.items()}, set(left)


def _heads(
    files: Mapping[str, Path], known: Mapping[str, Fingerprint]
) -> dict[tuple[int, str], list[str]]:
    """Return the beginnings of files that may match known ones -> the files."""
    heads: dict[tuple[int, str], list[str]] = {}
    lengths = {fingerprint.head for fingerprint in known.values()}
    raw = any(fingerprint.whole for fingerprint in known.values())
    for shown, path in files.items() if lengths else ():
        try:
            (head,) = segments(path, [(0, HEAD_BYTES)], raw=raw)
        except (HeadraceError, OSError):
            continue
        for length in lengths:
            if length <= len(head):
                heads.setdefault((length, digest(head[:length])), []).append(shown)
    return heads


def unique_name(name: str, taken: Collection[str]) -> str:
    """Return the name, with a number if it is taken."""
    tries = itertools.chain([name], (f"{name}#{n}" for n in itertools.count(2)))
    return next(text for text in tries if text not in taken)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePlan:
    """The files and positions a run resumes with.

    Attributes:
        files: partition -> file, in their order.
        known: partition -> its fingerprint, also for files that are gone.
        moved: partitions that resume at another position than the mark's.
    """

    files: dict[str, Path]
    known: dict[str, Fingerprint]
    moved: dict[str, int]


def plan_resume(
    present: Mapping[str, Path], known: Mapping[str, Fingerprint], policy: Policy
) -> ResumePlan:
    """Match the files to the checkpoint and report moved, changed and missing ones.

    Raises: UserError if a file was replaced, truncated, deleted before its end, or continued
        within its last row, and the policy is to fail.
    """
    files, missing = match_files(present, known)
    new = {found_name for found_name, path in present.items() if path not in _paths(files, known)}
    known = dict(known)
    for name in sorted(missing):
        was = known[name]
        where = f"'{name}', which was read up to position {was.position},"
        if name in new:
            _fail_or_warn(
                policy,
                f"{where} has other content now, without the rows that were read: expected "
                "the same file, unchanged or longer. Put it back",
                "the current content is read from its start, as a new file",
            )
        elif was.unread:
            _fail_or_warn(
                policy,
                f"{where} is gone, and was not read to its end. Put it back",
                "the rows not yet read are lost",
            )
        known[name] = replace(was, unread=False)  # already reported, or nothing is lost
    gone = [name for name in missing if name not in new and not known[name].unread]
    if gone:
        many = counted(len(gone), "file that was read is", "files that were read are")
        log.warning("%s gone, '%s' for one.", many, min(gone))
    moved = {}
    for name in known.keys() & files.keys():
        was = known[name]
        end = was.line_end_in(files[name])
        if end is None:
            report_continued_line(policy, name, was)
        if end != 0:
            moved[name] = was.row[0] if end is None else was.position + end
    return ResumePlan(files=files, known=known, moved=moved)


def _paths(files: Mapping[str, Path], known: Mapping[str, Fingerprint]) -> set[Path]:
    return {path for name, path in files.items() if name in known}


def report_continued_line(policy: Policy, name: str, was: Fingerprint) -> None:
    """Report that a file continues within its last row. Raises: UserError if the policy is to
    fail."""
    _fail_or_warn(
        policy,
        f"'{name}' continues its last line, at position {was.row[0]}, which had no line end when "
        'it was read as a row; last_line = "wait" leaves such a line until it is complete. '
        "Remove what was added to it",
        "the whole line is read as another row",
    )


def _fail_or_warn(policy: Policy, problem: str, otherwise: str) -> None:
    """Warn. Raises: UserError if the policy is to fail."""
    if policy == "fail":
        raise UserError(
            f'[source] {problem}, start over with --fresh, or set on_replaced = "read": then '
            f"{otherwise}."
        )
    log.warning("%s; %s.", problem.rpartition(". ")[0], otherwise)


__all__ = [
    "CopyDetector",
    "Fingerprint",
    "FingerprintTracker",
    "Policy",
    "combined_digest",
    "content_digest",
    "digest",
    "match_files",
    "plan_resume",
    "report_continued_line",
    "segments",
    "unique_name",
    "whereabouts",
]
