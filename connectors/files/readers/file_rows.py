"""Files that are one row each: images, documents."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from connectors.files.readers.text import BLOCK, Bytes, compression, readable
from connectors.formats.kernels.rows import TOO_LARGE
from engine.types import HeadraceError, Records, UnreadableFile, Values

UNREADABLE = "unreadable"
Content = tuple[NDArray[np.uint8], str]
"""A file's bytes, and the reason if there are none."""


class FileRows:
    """Reads many files as the rows of one partition, in the given order.

    The position of a file is its offset if all files were concatenated with one byte between
    them, so it shows whether the files before it are still those that were read. Files may be
    added after the last one at any time.

    The key of a row is the file's path. A file that cannot be read, or is too large, is a null
    whose header gives the reason (``reason: sentence``).

    Args:
        files: their names and paths.
        name: the partition.
        max_record: the largest accepted file, in bytes after decompression.
    """

    def __init__(self, files: Mapping[str, Path], name: str, *, max_record: int) -> None:
        self.name = name
        self._names = [shown.encode() for shown in files]
        self._paths = list(files.values())
        self._max_record = max_record
        sizes = [_size(path) + 1 for path in self._paths]
        self._starts = np.cumsum([0, *sizes]).astype(np.int64)
        self._row = 0
        self._held: Content | None = None
        """The content of file `_row`, if it was read but did not fit."""

    @property
    def next(self) -> int:
        """The position of the next row."""
        return int(self._starts[self._row])

    @property
    def total(self) -> int:
        """The last position."""
        return int(self._starts[-1])

    def skip_to(self, position: int) -> None:
        """Continue at the file that starts at `position`. Raises: UnreadableFile if none does."""
        row = int(np.searchsorted(self._starts, position))
        if row == len(self._starts) or self._starts[row] != position:
            raise UnreadableFile(
                f"The files of {self.name} are not those that were read before: a file "
                f"before position {position}, where to resume, was added, changed or deleted; "
                "put it back, or start over (--fresh)."
            )
        self._row, self._held = row, None

    def read(self, max_rows: int, max_bytes: int) -> Records | None:
        """Return the next files; None after the last."""
        start, room = self._row, max_bytes
        contents: list[Content] = []
        while self._row < len(self._paths) and len(contents) < max_rows:
            content = self._held or self._content(self._paths[self._row])
            self._held = None
            data, why = content
            room -= len(data) + len(why) + len(self._names[self._row])
            if contents and room < 0:
                self._held = content
                break
            contents.append(content)
            self._row += 1
        return self._records(start, contents) if contents else None

    def close(self) -> None:
        """Release a file that was read."""
        self._held = None

    def _content(self, path: Path) -> Content:
        """Return a file's content, never more than the limit in memory, however large it is
        unpacked."""
        file = None
        try:
            if compression(path) is None:
                return self._plain(path)
            file = Bytes(path, str(path))
            blocks, size = [], 0
            while len(block := file.read(BLOCK)):
                blocks.append(block)
                size += len(block)
                if size > self._max_record:
                    return self._too_large("more")
        except HeadraceError as error:
            return NOTHING, f"{UNREADABLE}: {error}"
        except OSError as error:
            why = f"{readable(str(path))} cannot be read: {error.strerror}."
            return NOTHING, f"{UNREADABLE}: {why}"
        finally:
            if file is not None:
                file.close()
        return _concat(blocks), ""

    def _plain(self, path: Path) -> Content:
        """Read a plain file in as few calls as possible, since there are many small ones."""
        file = os.open(
            path, os.O_RDONLY | os.O_NONBLOCK
        )  # O_NONBLOCK: a file replaced by a pipe must not block
        try:
            left = os.fstat(file).st_size
            if left > self._max_record:
                return self._too_large(f"{left:,}")
            parts = []
            while left and (part := os.read(file, left)):
                parts.append(np.frombuffer(part, np.uint8))
                left -= len(part)
        finally:
            os.close(file)
        return _concat(parts), ""

    def _too_large(self, got: str) -> Content:
        return NOTHING, (
            f"{TOO_LARGE}: Expected a file of at most {self._max_record:,} bytes, got {got}: "
            "raise [source] max_record_bytes."
        )

    def _records(self, start: int, contents: list[Content]) -> Records:
        stop = start + len(contents)
        whys = [why.encode() for _, why in contents]
        null = np.array([bool(why) for why in whys])
        return Records(
            partition=self.name,
            positions=self._starts[start:stop],
            next=int(self._starts[stop]),
            values=_values([data for data, _ in contents], null if null.any() else None),
            arrived=time.monotonic(),
            keys=_values([np.frombuffer(name, np.uint8) for name in self._names[start:stop]]),
            headers=_values([np.frombuffer(why, np.uint8) for why in whys], ~null)
            if null.any()
            else None,
        )


NOTHING = np.empty(0, np.uint8)


def unreadable(path: Path, name: str, position: int, end: int, why: str) -> Records:
    """Return one row without content that stands for the rest of a file; see `FileRows`.

    Args:
        name: the partition.
        end: the position to read after it.
        why: a sentence.
    """
    return Records(
        partition=name,
        positions=np.array([position]),
        next=end,
        values=_values([NOTHING], np.ones(1, np.bool_)),
        arrived=time.monotonic(),
        keys=_values([np.frombuffer(str(path).encode(), np.uint8)]),
        headers=_values([np.frombuffer(f"{UNREADABLE}: {why}".encode(), np.uint8)]),
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _concat(blocks: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return blocks[0] if len(blocks) == 1 else np.concatenate([NOTHING, *blocks])


def _values(parts: list[NDArray[np.uint8]], null: NDArray[np.bool_] | None = None) -> Values:
    bounds = np.cumsum([0, *map(len, parts)]).astype(np.int64)
    return Values(data=_concat(parts), bounds=bounds, null=null)


__all__ = ["UNREADABLE", "FileRows", "unreadable"]
