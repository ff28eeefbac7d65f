"""Reads standard input as rows of text, once, to its end."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from connectors.files.readers.text import BLOCK, Bytes, TextFile
from engine.types import EndOfStream, HeadraceError, Records

STDIN = "-"
"""The path that names standard input; the partition too."""
DESCRIPTOR = 0
"""The descriptor of standard input."""
PEEK = 1 << 20
"""The bytes from which columns are inferred."""
QUIET = 0.3
"""The seconds without more bytes after which inference begins."""


class StdinBytes(Bytes):
    """The bytes of an open pipe. The first bytes are kept until rows are read, so that
    inspection loses nothing."""

    def __init__(self) -> None:
        self.name = "standard input"
        self.offset = 0
        self._descriptor = DESCRIPTOR
        self._head = b""
        self._peeking = True
        self._ended = False

    def rewind(self) -> None:
        """Start again at the first byte.

        Raises: HeadraceError if they are no longer kept.
        """
        if self.offset > len(self._head):
            raise HeadraceError("Standard input was read already: it can be read only once.")
        self.offset = 0

    def let_go(self) -> None:
        """Stop keeping what is read."""
        self._peeking = False

    @property
    def peeking(self) -> bool:
        """Return whether bytes read so far are buffered for a rewind."""
        return self._peeking

    def ready(self, timeout: float) -> bool:
        """Return whether a read would return at once, now or within so many seconds."""
        kept = self._peeking and self._head  # read again from its first byte
        if kept or self.offset < len(self._head) or self._ended:
            return True
        try:
            return bool(select.select([self._descriptor], [], [], max(0.0, timeout))[0])
        except OSError:
            return True  # closed: the read reports it

    def read(self, size: int) -> NDArray[np.uint8]:
        """Return the available bytes, at least one, or none at the end; during inspection only the
        first ones. See `Bytes`."""
        if self._peeking and not self._head:
            self._peek()
        block = self._head[self.offset : self.offset + size]
        if not block and not self._peeking:
            self._head = b""
            block = self._next(min(size, BLOCK))
        self.offset += len(block)
        return np.frombuffer(block, np.uint8)

    @property
    def compressed(self) -> bool:
        return False

    @property
    def total(self) -> int:
        return self.offset

    def skip_to(self, offset: int) -> None:
        while self.offset < offset and len(self.read(offset - self.offset)):
            pass

    def close(self) -> None:
        """Do nothing: the descriptor was not opened here."""

    def _peek(self) -> None:
        parts: list[bytes] = []
        size = 0
        while size < PEEK:
            parts.append(self._next(PEEK - size))
            size += len(parts[-1])
            if not parts[-1] or (any(b"\n" in part for part in parts) and not self.ready(QUIET)):
                break
        self._head = b"".join(parts)

    def _next(self, size: int) -> bytes:
        try:
            block = b"" if self._ended else os.read(self._descriptor, size)
        except OSError as error:
            raise HeadraceError(f"Standard input cannot be read on: {error.strerror}.") from error
        self._ended = not block
        return block


class StdinRows:
    """The rows of a pipe.

    Args:
        opened: its text, from the first byte, as rows of a partition of this name.
    """

    def __init__(self, piped: StdinBytes, opened: Callable[[str], TextFile]) -> None:
        self._piped = piped
        self._opened = opened
        self._text: TextFile | None = None
        self._name = STDIN

    def start(self, name: str) -> None:
        """Start as a partition with this name."""
        self._text, self._name = None, name

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        until = time.monotonic() + timeout
        if self._text is None:
            if not self._piped.ready(timeout):
                return None
            self._piped.let_go()
            self._text = self._opened(self._name)
        while self._text.exhausted:
            if self._text.ended:
                raise EndOfStream
            if not self._piped.ready(until - time.monotonic()):
                return None
            self._text.fill()
        return self._text.read(max_rows, max_bytes)


__all__ = ["STDIN", "StdinBytes", "StdinRows"]
