"""Rows of a text file, in blocks: where each ends, without a Python object for any."""

from __future__ import annotations

import gzip
import io
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

import numba
import numpy as np
import zstandard
from numpy.typing import NDArray

from engine.types import HeadraceError, Records, Values

BLOCK = 4 << 20
"""Bytes read at a time."""
BOM = b"\xef\xbb\xbf"


@numba.njit(nogil=True, cache=True)
def _row_ends(data, quotes):  # type: ignore[no-untyped-def]
    """Where each complete row ends (after its newline), and whether it has anything in it.

    With `quotes`, a newline between quotes is text.
    """
    ends = np.empty(len(data), np.int64)
    filled = np.empty(len(data), np.bool_)
    n = 0
    quoted = False
    something = False
    for at in range(len(data)):
        byte = data[at]
        if quotes and byte == 34:
            quoted = not quoted
            something = True
        elif byte == 10 and not quoted:
            ends[n] = at + 1
            filled[n] = something
            n += 1
            something = False
        elif byte not in (13, 32, 9):
            something = True
    return ends[:n].copy(), filled[:n].copy()


class TextFile:
    """One text file as rows; positions are byte offsets into the (decompressed) text.

    Args:
        path: the file; ``.gz`` and ``.zst`` are decompressed.
        name: the partition.
        quotes: whether a newline between double quotes is text (CSV) or always ends a row (NDJSON).
        max_record: bytes of the longest row that is accepted.

    Raises (all methods): HeadraceError where the file cannot be read on, naming file and offset.
    """

    def __init__(self, path: Path, name: str, *, quotes: bool, max_record: int) -> None:
        self.name = name
        self._path = path
        self._quotes = quotes
        self._max_record = max_record
        self._file = self._open()
        self._offset = 0
        """Of the buffer's first byte."""
        self._buffer: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._starts: NDArray[np.int64] = np.empty(0, np.int64)
        self._ends: NDArray[np.int64] = np.empty(0, np.int64)
        self._row = 0
        self._ended = False
        self.first = 0
        """Offset of the first row that is data."""

    @property
    def next(self) -> int:
        """Position of the next row."""
        if self._row < len(self._ends):
            return self._offset + int(self._starts[self._row])
        return self._offset + (int(self._ends[-1]) if len(self._ends) else 0)

    def header(self) -> str | None:
        """The first row as text, taken off; None when the file is empty."""
        records = self.read(1, self._max_record)
        if records is None:
            return None
        assert isinstance(records.values, Values)
        raw = records.values.data[records.values.bounds[0] : records.values.bounds[1]].tobytes()
        self.first = self.next
        try:
            return raw.decode("utf-8").strip("\r\n")
        except UnicodeDecodeError as error:
            raise HeadraceError(f"The header of {self.name} is not UTF-8: {error}.") from None

    def skip_to(self, position: int) -> None:
        """Go on at a position that a row starts at. Seeks in plain text; reads over what is
        compressed."""
        if position <= self.next:
            return
        if self._file.seekable() and not self._compressed:
            self._file.seek(position)
        else:
            self._discard(position - self._read_so_far)
        self._offset = position
        self._buffer, self._row = self._buffer[:0], 0
        self._starts = self._ends = self._ends[:0]
        self._ended = False

    def read(self, max_rows: int, max_bytes: int) -> Records | None:
        """The next rows; None at the end of the file."""
        while self._row >= len(self._ends):
            if self._ended:
                return None
            self._fill(max_bytes)
        start = self._row
        limit = self._starts[start] + max_bytes
        fitting = int(np.searchsorted(self._ends, limit, side="right"))
        stop = max(start + 1, min(start + max_rows, fitting))
        self._row = stop
        starts, ends = self._starts[start:stop], self._ends[start:stop]
        return Records(
            partition=self.name,
            positions=self._offset + starts,
            next=self.next,
            values=self._values(starts, ends),
            arrived=time.monotonic(),
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _values(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Values:
        if (starts[1:] == ends[:-1]).all():
            return Values(data=self._buffer, bounds=np.append(starts, ends[-1]))
        # Blank lines lie between: copy the rows together.
        rows = [self._buffer[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
        bounds = np.concatenate([[0], np.cumsum(ends - starts)])
        return Values(data=np.concatenate(rows), bounds=bounds)

    def _fill(self, max_bytes: int) -> None:
        """Read a block behind the unfinished row, and find the rows in it."""
        done = int(self._ends[-1]) if len(self._ends) else 0
        rest = self._buffer[done:]
        if len(rest) > self._max_record:
            raise HeadraceError(
                f"A row of {self.name} at offset {self._offset + done} is longer than "
                f"{self._max_record} bytes: raise [source] max_record_bytes, or mend the file."
            )
        block = self._get(max(1 << 16, min(BLOCK, max_bytes), len(rest)))
        self._offset += done
        if not block:
            self._ended = True
            # The last row may lack its newline.
            block = b"\n" if len(rest) else b""
        self._buffer = np.concatenate([rest, np.frombuffer(block, np.uint8)])
        ends, filled = _row_ends(self._buffer, self._quotes)
        if self._ended and len(self._buffer) and (not len(ends) or ends[-1] < len(self._buffer)):
            # A quote that is never closed: what is left is one broken row.
            ends, filled = np.append(ends, len(self._buffer)), np.append(filled, True)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)[: len(ends)]
        self._starts, self._ends, self._row = starts[filled], ends[filled], 0
        if not filled.all() and not filled.any() and len(ends):
            # Nothing but blank lines: they are done with.
            self._buffer = self._buffer[ends[-1] :]
            self._offset += int(ends[-1])

    _read_so_far = 0

    def _get(self, size: int) -> bytes:
        try:
            block = self._file.read(size)
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise HeadraceError(
                f"{self.name} cannot be read beyond offset {self._read_so_far} of its text: {error}; "
                "the file is cut short or damaged: replace it, the rows before are done."
            ) from error
        if not self._read_so_far and block.startswith(BOM):
            block = block[len(BOM) :] or b""
            self._offset += len(BOM)
            self._read_so_far += len(BOM)
        self._read_so_far += len(block)
        return block

    def _discard(self, size: int) -> None:
        while size > 0:
            block = self._get(min(size, BLOCK))
            if not block:
                raise HeadraceError(
                    f"{self.name} ends {size} bytes before the position to resume at: expected the "
                    "same file as before, got a shorter one."
                )
            size -= len(block)

    @property
    def _compressed(self) -> bool:
        return self._path.suffix in OPENERS

    def _open(self) -> IO[bytes]:
        try:
            file = self._path.open("rb")
        except OSError as error:
            raise HeadraceError(f"{self.name} cannot be opened: {error.strerror}.") from error
        return OPENERS[self._path.suffix](file) if self._compressed else file


def _gunzip(file: IO[bytes]) -> IO[bytes]:
    return cast(IO[bytes], gzip.GzipFile(fileobj=file))


class _Zstd(io.RawIOBase):
    """zstandard's reader ends quietly on a file that is cut short; this one says so."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = 0
        self._reader = zstandard.ZstdDecompressor().stream_reader(
            file, read_across_frames=True, closefd=True
        )

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._reader.read(size)

    def close(self) -> None:
        self._reader.close()  # type: ignore[no-untyped-call]
        super().close()


def _unzstd(file: IO[bytes]) -> IO[bytes]:
    return cast(IO[bytes], _Zstd(file))


OPENERS: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {".gz": _gunzip, ".zst": _unzstd}

__all__ = ["OPENERS", "TextFile"]
