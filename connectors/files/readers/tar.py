"""Reads samples of a WebDataset shard: adjacent members of a tar with the same base name form a
row."""

from __future__ import annotations

import tarfile
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from connectors.files.readers.text import BLOCK, Bytes
from connectors.formats.values.columns import PROBLEM
from connectors.formats.webdataset import KEY
from engine.types import HeadraceError, Records, UnreadableFile

HEADER = tarfile.BLOCKSIZE
ZEROS = bytes(HEADER)
LONGEST_NAME = 1 << 16
"""The longest extended header that is read; a longer one is damage, or malice."""
UNSUPPORTED_MEMBERS = {
    tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a link", tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}  # fmt: skip


@dataclass(slots=True)
class TarMember:
    """A file in the archive.

    Attributes:
        offset: the offset of its first header.
        key: the key of its sample.
        extension: the name after the key and a dot, in lower case.
        data: the offset of its bytes.
        problem: why it cannot be used (``reason: sentence``), or empty.
    """

    offset: int
    key: str
    extension: str
    data: int
    size: int
    problem: str = ""


@dataclass(slots=True)
class TarSample:
    """The members read so far of one sample."""

    offset: int
    key: str
    parts: dict[str, bytes] = field(default_factory=dict)
    size: int = 0
    problem: str = ""


class TarShard:
    """Reads a tar; see `TextFile` for the methods. A position is the offset of a sample's first
    header in the (decompressed) archive. Records are frames: `KEY`, a column of bytes per
    extension, and `PROBLEM`. Nothing is written to disk; names are only names.

    A sample with a name that leads out of its folder, a link, a device, or an extension twice, or
    of more than `max_record` bytes, is a problem of its own; a member without an extension, too.
    Folders are skipped.

    Args:
        path: the file; compressed ones are decompressed.
        name: the partition.
        extensions: the extensions to read; others are skipped; None reads all.
        max_record: the largest accepted sample, in bytes.

    Raises (all methods): UnreadableFile if reading fails, with file and offset.
    """

    def __init__(
        self, path: Path, name: str, extensions: Collection[str] | None, *, max_record: int
    ) -> None:
        self.name = name
        self.next = 0
        self._extensions = None if extensions is None else frozenset(extensions)
        self._max_record = max_record
        self._bytes = Bytes(path, name)
        self._member: TarMember | None = None
        """The first member of the next sample, already read."""
        self._held: TarSample | None = None
        self._behind = 0
        """The offset of the next unread header."""
        self._started = 0
        """The offset of the current sample."""
        self._ended = False
        self._error: HeadraceError | None = None

    @property
    def total(self) -> int:
        """The last position, estimated while a compressed archive is not read to its end."""
        return self.next if self._ended and self._held is None else self._bytes.total

    def skip_to(self, position: int) -> None:
        """Continue at the sample that starts at `position`; never back."""
        if position > self.next:
            self._bytes.skip_to(position)
            self.next = self._behind = position

    def read(self, max_rows: int, max_bytes: int) -> Records | None:
        """Return the next samples; None at the end of the file."""
        if self._error is not None:
            raise self._error
        samples: list[TarSample] = []
        room = max_bytes
        while len(samples) < max_rows:
            try:
                sample = self._held or self._sample()
            except HeadraceError as error:
                if not samples:
                    raise
                self._error = error  # after what lies before it
                break
            self._held = sample
            if sample is None:
                break
            room -= sample.size
            if samples and room < 0:
                break
            samples.append(sample)
            self._held = None
        if not samples:
            self.next = self._behind
            return None
        self.next = self._next_position()
        extensions: Iterable[str] = self._extensions or ()
        if self._extensions is None:
            extensions = dict.fromkeys(e for s in samples for e in s.parts)
        return Records(
            partition=self.name,
            positions=np.array([sample.offset for sample in samples], np.int64),
            next=self.next,
            values=pl.DataFrame(
                [
                    pl.Series(KEY, [s.key for s in samples], pl.String),
                    *(
                        pl.Series(e, [s.parts.get(e) for s in samples], pl.Binary)
                        for e in extensions
                    ),
                    pl.Series(PROBLEM, [s.problem or None for s in samples], pl.String),
                ]
            ),
            arrived=time.monotonic(),
        )

    def close(self) -> None:
        self._bytes.close()

    def sample(self, rows: int) -> list[str]:
        """Return the extensions in the first samples, up to the bytes that one may have."""
        records = self.read(rows, self._max_record)
        if records is None:
            return []
        assert isinstance(records.values, pl.DataFrame)
        return [c for c in records.values.columns if c not in (KEY, PROBLEM)]

    def _next_position(self) -> int:
        """Return where the first header of the next sample is."""
        if self._held is not None:
            return self._held.offset
        if self._member is not None:
            return self._member.offset
        return self._behind if self._error is None else self._started

    # --------------------------------------------------------------------------------- samples

    def _sample(self) -> TarSample | None:
        """Return the next row, of adjacent members with one key."""
        self._started = self._behind if self._member is None else self._member.offset
        member = self._member or self._next_member()
        if member is None:
            return None
        sample = TarSample(member.offset, member.key, size=len(member.key))
        while member is not None and member.key == sample.key:
            self._member = None
            self._take(sample, member)
            member = self._next_member()
            if not sample.key:  # each such member is a reject of its own
                break
        self._member = member
        if sample.problem:
            sample.parts = {}
        return sample

    def _take(self, sample: TarSample, member: TarMember) -> None:
        problem = member.problem
        if not problem and member.extension in sample.parts:
            problem = (
                f"twice: Expected each extension once in a sample, got "
                f"'{member.key}.{member.extension}' twice."
            )
        wanted = self._extensions is None or member.extension in self._extensions
        if wanted and not problem:
            sample.size += member.size
            if sample.size > self._max_record:
                problem = (
                    f"too_large: Expected a sample of at most {self._max_record:,} bytes, got "
                    f"{sample.size:,} or more: raise [source] max_record_bytes."
                )
        sample.problem = sample.problem or problem
        if wanted and not sample.problem:
            self._go_to(member.data)
            sample.parts[member.extension] = self._exactly(member.size)
        elif not wanted:
            sample.parts.setdefault(member.extension, b"")

    def _go_to(self, offset: int) -> None:
        if offset > self._bytes.offset:
            try:
                self._bytes.skip_to(offset)
            except HeadraceError as error:
                raise self._damaged("it ends within a file") from error

    # --------------------------------------------------------------------------------- headers

    def _next_member(self) -> TarMember | None:
        """Return the header of the next member that is not a folder; its data are not read."""
        offset: int | None = None
        name: str | None = None
        size: int | None = None
        sparse = False
        while not self._ended:
            self._go_to(self._behind)
            start = self._bytes.offset
            header = self._exactly(HEADER, may_end=True)
            if not header:
                if not self._bytes.compressed and start > self._bytes.total:
                    raise self._damaged("it was cut while it was read")
                self._ended = True
                break
            if header == ZEROS:  # the end, unless archives were concatenated
                self._behind += HEADER
                continue
            info = self._parsed(header, start)
            offset = start if offset is None else offset
            data = self._bytes.offset
            if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE):
                fields = _extended(self._short(info, start))
                if info.type != tarfile.XGLTYPE:
                    name, size = fields.get("path", name), _number(fields.get("size"), size)
                    sparse = sparse or any(key.startswith("GNU.sparse") for key in fields)
            elif info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                long = self._short(info, start).rstrip(b"\0")
                if info.type == tarfile.GNUTYPE_LONGNAME:
                    name = long.decode("utf-8", "backslashreplace")
            else:
                real = info.size if size is None else size
                empty = info.isdir() or info.type in UNSUPPORTED_MEMBERS.keys() - {
                    tarfile.GNUTYPE_SPARSE
                }
                self._behind = data + _padded(0 if empty else real)
                if not info.isdir():
                    shown = info.name if name is None else name
                    return _member(
                        offset, shown, data, real, UNSUPPORTED_MEMBERS.get(info.type), sparse
                    )
                offset, name, size, sparse = None, None, None, False
                continue
            self._behind = data + _padded(info.size)
        return None

    def _parsed(self, header: bytes, at: int) -> tarfile.TarInfo:
        info = _plain(header)
        if info is not None:
            return info
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "backslashreplace")
        except tarfile.HeaderError as error:
            raise self._damaged(f"expected the header of a file, got none ({error})", at) from None
        if info.size < 0:
            raise self._damaged("a file would have less than no bytes", at)
        return info

    def _short(self, info: tarfile.TarInfo, at: int) -> bytes:
        if info.size > LONGEST_NAME:
            raise self._damaged(f"the name of a file would have {info.size:,} bytes", at)
        return self._exactly(info.size)

    def _exactly(self, size: int, *, may_end: bool = False) -> bytes:
        parts, left = [], size
        while left and len(block := self._bytes.read(min(left, BLOCK))):
            parts.append(block.tobytes())
            left -= len(block)
        if left and not (may_end and left == size):
            raise self._damaged("it ends within a file")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _damaged(self, problem: str, at: int | None = None) -> UnreadableFile:
        return UnreadableFile(
            f"{self.name} cannot be read on as a tar at offset "
            f"{self._bytes.offset if at is None else at}: {problem}; the file is cut short, "
            f"damaged "
            "or of another format: replace it, or set [source] format."
        )


def _plain(header: bytes) -> tarfile.TarInfo | None:
    """Return name, size and type of a usual header, in a third of tarfile's time; None leaves it
    to tarfile."""
    size, type_flag = header[124:135], header[156:157]
    check = header[148:154]
    usual = (
        header[257:262] == b"ustar"
        and type_flag in (b"0", tarfile.XHDTYPE)
        and not (size + check).strip(b"01234567")
        and header[345] == 0  # no prefix
        and int(check, 8) == 256 + sum(header) - sum(header[148:156])
    )
    if not usual:
        return None
    name = header[:100].partition(b"\0")[0]
    info = tarfile.TarInfo(name.decode("utf-8", "backslashreplace"))
    info.size, info.type = int(size, 8), type_flag
    return info


def _member(
    offset: int, name: str, data: int, size: int, defect: str | None, sparse: bool
) -> TarMember:
    folder, slash, file = name.rpartition("/")
    base, dot, extension = file.partition(".")
    key = f"{folder}{slash}{base}" if base and dot and extension else ""
    problem = ""
    if not key:
        problem = (
            f"no_sample: Expected files like 'key.jpg', got '{name}', whose name has no extension "
            "or nothing before it."
        )
    elif name.startswith("/") or ".." in folder.split("/"):
        problem = f"unsafe_name: Expected a name within the archive, got '{name}'."
    elif defect or sparse:
        problem = f"no_file: Expected a file, got {defect or 'a sparse file'}, '{name}'."
    return TarMember(offset, key, extension.lower(), data, size, problem)


def _extended(raw: bytes) -> dict[str, str]:
    """Return the fields of a pax header, ``length key=value`` per line; any other line ends
    them."""
    fields = {}
    while raw:
        length, _, _ = raw.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(raw):
            break
        line = raw[len(length) + 1 : int(length) - 1]
        key, _, value = line.partition(b"=")
        fields[key.decode("utf-8", "replace")] = value.decode("utf-8", "backslashreplace")
        raw = raw[int(length) :]
    return fields


def _number(text: str | None, otherwise: int | None) -> int | None:
    return int(text) if text is not None and text.isdigit() and len(text) < 19 else otherwise


def _padded(size: int) -> int:
    return -(-size // HEADER) * HEADER


__all__ = ["TarShard"]
