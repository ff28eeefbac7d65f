"""Reads the rows of a text file in blocks, as offsets, without a Python object per row."""

from __future__ import annotations

import gzip
import lzma
import os
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from connectors.formats.kernels.lines import quoted_ends
from engine.types import Records, UnreadableFile, UserError, Values

BLOCK = 4 << 20
"""The bytes read at a time."""
BOM = b"\xef\xbb\xbf"
COMPRESSIONS = {
    ".gz": "gzip", ".tgz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".tbz2": "bz2", ".xz": "xz",
    ".txz": "xz",
}  # fmt: skip
"""Extension in lower case -> compression; see `compression`."""
QUOTE, NEWLINE, RETURN = 34, 10, 13
GZIP_END = bytes(8)
"""The last bytes of a gzip that is padded: no checksum and size of a member with content."""
PREVIEW_BYTES = 2_000
"""The bytes kept of a row that is too long."""


def compression(path: Path) -> str | None:
    """Return the compression of a file, by its extension in any case; None without one."""
    return COMPRESSIONS.get(path.suffix.lower())


def _is_padded(path: Path) -> bool:
    """Return whether zeros follow the last member of a gzip, as on a tape or a block device; a
    member ends with a checksum and a size."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(GZIP_END)))
        return size > len(GZIP_END) and file.read() == GZIP_END


def readable(name: str) -> str:
    r"""Return a file's name as text; bytes that are not UTF-8 as ``\xff``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class Bytes:
    """The (decompressed) bytes of a file, read forward.

    Attributes:
        offset: the offset of the next byte to read.

    Raises (all methods): UnreadableFile if the file cannot be read on, naming file and offset.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.offset = 0
        self._known_size = 0
        self._compression = compression(path)
        try:
            self._raw = pa.OSFile(os.fsencode(path))
            self._file = self._raw
            if self._compression == "xz":  # which Arrow does not know
                self._file = pa.PythonFile(lzma.LZMAFile(self._raw), mode="r")  # noqa: SIM115
            elif self._compression == "gzip" and _is_padded(path):  # damage, to Arrow
                padded = gzip.GzipFile(fileobj=self._raw, mode="rb")
                self._file = pa.PythonFile(padded, mode="r")
            elif self._compression is not None:
                self._file = pa.CompressedInputStream(self._raw, self._compression)
        except OSError as error:
            raise UnreadableFile(f"{name} cannot be opened: {error}.") from error

    def read(self, size: int) -> NDArray[np.uint8]:
        """Return up to `size` bytes, none at the end."""
        try:
            block = np.frombuffer(self._file.read_buffer(size), np.uint8)
        except (OSError, lzma.LZMAError, zlib.error, EOFError) as error:
            raise UnreadableFile(
                f"{self.name} cannot be read on at offset {self.offset} of its text: {error}; the "
                "file is cut short or damaged: replace it and start again."
            ) from error
        self.offset += len(block)
        return block

    @property
    def compressed(self) -> bool:
        """Whether its size is unknown before its end."""
        return self._compression is not None

    @property
    def total(self) -> int:
        """The total bytes; for compressed files estimated from the ratio so far."""
        if self._compression is None:
            return self._size
        return self._size * self.offset // max(1, int(self._raw.tell()))

    @property
    def _size(self) -> int:
        """Return the current size of the file, which may grow."""
        return os.fstat(self._raw.fileno()).st_size

    def fileno(self) -> int:
        """Return the file's descriptor."""
        return int(self._raw.fileno())

    def skip_to(self, offset: int) -> None:
        """Continue at `offset`: by a seek in plain text, by reading in compressed text."""
        if self._compression is None:
            if offset > self._known_size:
                self._known_size = self._size
            self._file.seek(min(offset, self._known_size))
            self.offset = int(self._file.tell())
        while self.offset < offset:
            if not len(self.read(min(offset - self.offset, BLOCK))):
                raise UnreadableFile(
                    f"{self.name} ends at offset {self.offset}, before {offset}, where to resume: "
                    "expected the same file as before, got a shorter one."
                )

    def close(self) -> None:
        self._file.close()
        self._raw.close()


class TextFile:
    """Reads one text file as rows; positions are byte offsets into the (decompressed) text.
    Blank lines are not rows.

    Args:
        path: the file; ``.gz``, ``.zst``, ``.bz2`` and ``.xz`` are decompressed.
        name: the partition.
        delimiter: CSV's, whose quoted fields may hold newlines; None where every newline ends a row
            (NDJSON).
        quote, comment: those of a CSV, as byte values; -1 for none.
        max_record: the longest accepted row, in bytes.
        keep_blank: whether a blank line is a row (a CSV of one column: its null).
        shorten: turns a longer row into a null, with its beginning as bytes, instead of an error.
        wait: leaves a last line without a line end unread, because the file may grow.
        opened: bytes to read instead of the file's.

    Attributes:
        unfinished: whether the last row read has no line end.

    Raises (all methods): UnreadableFile if the file cannot be read on, naming file and offset.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        *,
        delimiter: str | None,
        quote: int | np.uint8 = QUOTE,
        comment: int = -1,
        max_record: int,
        keep_blank: bool = False,
        shorten: bool = False,
        wait: bool = False,
        opened: Bytes | None = None,
    ) -> None:
        self._shorten = shorten
        self._wait = wait
        self._open_end = False
        """Whether the last row in the buffer lacks its line end."""
        self._null: NDArray[np.bool_] | None = None
        """Which rows in the buffer were too long; None without any."""
        self.name = name
        self._keep_blank = keep_blank
        self._bytes = opened or Bytes(path, name)
        self._delimiter = delimiter
        self._quote = quote
        self._comment = comment
        self._max_record = max_record
        self._ended = False
        self._buffer = np.empty(0, np.uint8)
        self._bounds = np.zeros(1, np.int64)
        """The bounds of the complete rows in the buffer, shape (rows + 1,)."""
        self._starts = np.zeros(1, np.int64)
        """The offset in the file of each of those rows and of what follows, shape (rows + 1,)."""
        self._row = 0

    @property
    def next(self) -> int:
        """The position of the next row."""
        return int(self._starts[self._row])

    @property
    def compressed(self) -> bool:
        return self._bytes.compressed

    @property
    def offset(self) -> int:
        """The bytes read from the file."""
        return self._bytes.offset

    @property
    def exhausted(self) -> bool:
        """Whether the next rows are not in the buffer yet."""
        return self._row == len(self._bounds) - 1

    @property
    def ended(self) -> bool:
        """Whether the end of the file was reached."""
        return self._ended

    def fileno(self) -> int:
        """Return the descriptor of the open file."""
        return self._bytes.fileno()

    def go_on(self) -> None:
        """Continue after the end, where rows may have been added."""
        self._ended = False

    @property
    def unfinished(self) -> bool:
        return self._open_end and self._row == len(self._bounds) - 1

    @property
    def waiting(self) -> int:
        """The bytes after the last row at the end of the file: a line without its end."""
        return len(self._buffer) - int(self._bounds[-1]) if self._ended else 0

    @property
    def total(self) -> int:
        """The last position, estimated while compressed text is not read to its end."""
        return int(self._starts[-1]) if self._ended else self._bytes.total

    def header(self) -> tuple[bytes | None, int]:
        """Remove and return the first row, or None without one; and the offset where it ends."""
        records = self.read(1, self._max_record)
        if records is None:
            return None, self.next
        assert isinstance(records.values, Values)
        bounds = records.values.bounds
        raw = records.values.data[bounds[0] : bounds[1]].tobytes()
        return raw, int(records.positions[0]) + len(raw)

    def skip_to(self, position: int) -> None:
        """Continue at the first row at or after `position`; never back."""
        if position <= self.next:
            return
        if position < self._bytes.offset:  # within the buffer, perhaps at a blank line
            self._row = min(int(np.searchsorted(self._starts, position)), len(self._starts) - 1)
            within = position - self._starts[-1]
            if within > 0:  # inside a row that ends later, or that is several rows
                self._buffer = self._buffer[self._bounds[-1] + within :]
                self._bounds, self._starts = np.zeros(1, np.int64), np.full(1, position)
                self._row = 0
            return
        self._bytes.skip_to(position)
        self._buffer, self._row = self._buffer[:0], 0
        self._bounds, self._starts = np.zeros(1, np.int64), np.full(1, position)

    def read(self, max_rows: int, max_bytes: int) -> Records | None:
        """Return the next rows; None at the end of the file."""
        while self._row == len(self._bounds) - 1:
            if self._ended:
                return None
            self.fill()
        start, bounds = self._row, self._bounds
        fitting = int(np.searchsorted(bounds, bounds[start] + max_bytes, "right")) - 1
        stop = self._row = max(start + 1, min(start + max_rows, fitting))
        return Records(
            partition=self.name,
            positions=self._starts[start:stop],
            next=int(self._starts[stop]),
            values=Values(
                data=self._buffer,
                bounds=bounds[start : stop + 1],
                null=None if self._null is None else self._null[start:stop],
            ),
            arrived=time.monotonic(),
        )

    def close(self) -> None:
        self._bytes.close()

    def fill(self) -> None:
        """Read a block after the unfinished row, and find the rows in it."""
        rest = self._buffer[self._bounds[-1] :]
        offset = int(self._starts[-1])
        block = self._bytes.read(max(BLOCK, len(rest)))
        self._ended = not len(block)
        self._buffer = np.concatenate([rest, block]) if len(rest) else block
        if offset == 0 and self._buffer[:3].tobytes() == BOM:
            self._buffer, offset = self._buffer[3:], 3
        ends = self._row_ends()
        self._bounds = np.concatenate([np.zeros(1, np.int64), ends])
        self._starts = self._bounds + offset
        self._row = 0
        self._null = None
        longest = np.diff(self._bounds).max(initial=len(self._buffer) - self._bounds[-1])
        if longest > self._max_record:
            if not self._shorten:
                raise self._too_long()
            self._pass_over_tail()
            self._shorten_rows()
        if not self._keep_blank or self._comment >= 0:
            self._drop_lines()

    def _row_ends(self) -> NDArray[np.int64]:
        data = self._buffer
        final = self._ended and not self._wait
        if self._delimiter is not None and (data == self._quote).any():
            ends = quoted_ends(
                data, ord(self._delimiter), self._quote, self._comment, self._max_record, final
            )
        else:
            ends = np.flatnonzero(data == NEWLINE) + 1
        rest = len(data) > (ends[-1] if len(ends) else 0)
        if final and rest:
            ends = np.append(ends, len(data))  # the last row lacks its newline, or closing quote
            self._open_end = True
        return np.asarray(ends, np.int64)

    def _drop_lines(self) -> None:
        """Remove blank lines and comments from the buffer; positions stay the same."""
        sizes = np.diff(self._bounds)
        if not len(sizes) or (self._comment < 0 and sizes.min() > 2):
            return
        first = self._buffer[self._bounds[:-1]]
        blank = first == self._comment
        if not self._keep_blank:
            blank |= (sizes == 1) & (first == NEWLINE)
            blank |= (sizes == 2) & (first == RETURN)
        if not blank.any():
            return
        tail = len(self._buffer) - int(self._bounds[-1])
        keep = np.repeat(np.append(~blank, True), np.append(sizes, tail))
        self._buffer = self._buffer[keep]
        if self._null is not None:
            self._null = self._null[~blank]
        self._starts = self._starts[np.append(~blank, True)]
        self._bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes[~blank])])

    def _pass_over_tail(self) -> None:
        """Complete an unfinished row that is already too long, with only its head in memory."""
        begun = int(self._bounds[-1])
        if len(self._buffer) - begun <= self._max_record:
            return
        block = self._bytes.read(BLOCK)
        while len(block) and not (block == NEWLINE).any():
            block = self._bytes.read(BLOCK)
        rest = block[int(np.argmax(block == NEWLINE)) + 1 :] if len(block) else block
        self._buffer = np.concatenate([self._buffer[: begun + self._max_record + 1], rest])
        self._bounds = np.append(self._bounds, begun + self._max_record + 1)
        self._starts = np.append(self._starts, self._bytes.offset - len(rest))
        self._ended = not len(block)

    def _shorten_rows(self) -> None:
        """Keep only the heads of rows that are too long."""
        sizes = np.diff(self._bounds)
        self._null = sizes > self._max_record
        kept = np.where(self._null, np.minimum(sizes, min(PREVIEW_BYTES, self._max_record)), sizes)
        within = np.arange(int(self._bounds[-1])) - np.repeat(self._bounds[:-1], sizes)
        keep = np.append(
            within < np.repeat(kept, sizes),
            np.ones(len(self._buffer) - int(self._bounds[-1]), np.bool_),
        )
        self._buffer = self._buffer[keep]
        self._bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])

    def _too_long(self) -> UserError:
        sizes = np.append(np.diff(self._bounds), len(self._buffer) - self._bounds[-1])
        at = int(self._starts[int(np.argmax(sizes > self._max_record))])
        quote = " or a quote is not closed" if self._delimiter else ""
        return UserError(
            f"A row of {self.name} at offset {at} is longer than {self._max_record} bytes{quote}: "
            "fix the file, or raise [source] max_record_bytes."
        )


__all__ = ["Bytes", "TextFile", "compression", "readable"]
