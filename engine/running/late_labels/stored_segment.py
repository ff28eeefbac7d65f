"""Rows that came one after another, some of which still wait: on disk.

The file is an Arrow IPC stream of small batches. In memory are the number of each row, whether it
waits, and of each batch where it lies, its checksum, and the earliest time of a row that waits. So
a look-up reads the batches that it needs, and what leaves is found by reading those in which
something leaves.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from engine.running.late_labels.segment import Frames, HeldSegment
from engine.running.saving.codec import FileBeside
from engine.running.saving.segment_files import FilePart, SegmentFiles
from engine.types.arrays import Bools, Ints

BATCH_BYTES = 1 << 13
"""Bytes of a batch in memory, about: what is read for one row. Each costs 1 KiB more on disk."""
STORED_ROW_BYTES = 6
"""Memory of a row: its number in 32 bits, and two flags."""
TIME = "time"
END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""The end of an Arrow IPC stream."""
NEVER_OLD = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, eq=False)
class Batches:
    """Where the batches of a file lie.

    Attributes:
        file: the file.
        starts: where the batches begin, and where the last one ends, shape (batches + 1,). What
            stands before the first one, the schema, is needed with each.
        checksums: CRC-32 of the schema, and of each batch, shape (batches + 1,).
        rows: of each batch but the last one, which may be shorter.
    """

    file: FileBeside
    starts: Ints
    checksums: Ints
    rows: int

    @classmethod
    def write(cls, files: SegmentFiles, kind: str, frame: pl.DataFrame, rows: int) -> Batches:
        """Write a frame. Raises: HeadraceError"""
        streams = [_stream(frame[at : at + rows]) for at in range(0, frame.height, rows)]
        schema = 8 + int.from_bytes(streams[0][4:8], "little")  # of the first message
        parts = [streams[0][:schema], *(stream[schema : -len(END)] for stream in streams)]
        checksums = np.array([zlib.crc32(part) for part in parts], np.int64)
        starts = np.cumsum([len(part) for part in parts])
        return cls(files.write(kind, [*parts, END]), starts, checksums, rows)

    def __len__(self) -> int:
        return len(self.checksums) - 1

    def read(self, files: SegmentFiles, batches: Ints) -> pl.DataFrame:
        """Return some batches, ascending, as one frame. Raises: HeadraceError"""
        parts = files.read(self.file, self._parts(batches))
        return pl.read_ipc_stream(io.BytesIO(b"".join([*parts, END])))

    def _parts(self, batches: Ints) -> Iterator[FilePart]:
        ends = np.concatenate(([0], self.starts)).tolist()
        checksums = self.checksums.tolist()
        for at in (0, *(batches + 1).tolist()):
            size = ends[at + 1] - ends[at]
            yield FilePart(start=ends[at], nbytes=size, checksum=checksums[at])


@dataclass(slots=True, eq=False)
class StoredSegment:
    """A segment on disk.

    Attributes:
        first: the number of the first row.
        offsets: by how much the rows' numbers exceed it, ascending, shape (n,).
        earliest: of each batch: no row that waits has an earlier time.
        earliest_sure: the same of the rows that are not assumed.
    """

    files: SegmentFiles
    batches: Batches
    first: int
    offsets: np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]
    alive: Bools
    assumed: Bools
    earliest: Ints
    earliest_sure: Ints
    waiting: int = 0
    row_bytes: float = STORED_ROW_BYTES

    def __post_init__(self) -> None:
        self.waiting = int(np.count_nonzero(self.alive))

    @classmethod
    def write(cls, files: SegmentFiles, kind: str, held: HeldSegment) -> StoredSegment:
        """Write rows that all wait. Raises: HeadraceError"""
        rows = max(1, int(BATCH_BYTES / held.row_bytes))
        columns = [
            frame.rename({column: f"{name}/{column}" for column in frame.columns})
            for name, frame in held.frames.items()
        ]
        times = pl.DataFrame({TIME: held.times})
        frame = pl.concat([times, *columns], how="horizontal")
        starts = np.arange(0, len(held.times), rows)
        sure = np.where(held.assumed, NEVER_OLD, held.times)
        offsets = held.numbers - held.first
        wide = offsets[-1] >= 1 << 32
        return cls(
            files,
            Batches.write(files, kind, frame, rows),
            held.first,
            offsets.astype(np.uint64 if wide else np.uint32),
            held.alive,
            held.assumed,
            np.minimum.reduceat(held.times, starts),
            np.minimum.reduceat(sure, starts),
        )

    @property
    def file(self) -> FileBeside:
        """The file that the rows are in."""
        return self.batches.file

    @property
    def numbers(self) -> Ints:
        """The numbers of the rows, ascending, shape (n,)."""
        return self.first + self.offsets.astype(np.int64)

    def find(self, numbers: Ints) -> Ints:
        """Return which rows have these numbers, shape (m,)."""
        return np.searchsorted(self.offsets, (numbers - self.first).astype(self.offsets.dtype))

    def older(self, oldest: int, *, sure: bool = False) -> Ints:
        """Return the rows that wait and are older, ascending."""
        earliest = self.earliest_sure if sure else self.earliest
        if not (earliest < oldest).any():
            return np.empty(0, np.int64)
        waits = self.alive & ~self.assumed if sure else self.alive
        starts = np.arange(0, len(waits), self.batches.rows)
        earliest[~np.logical_or.reduceat(waits, starts)] = NEVER_OLD
        due = np.flatnonzero(earliest < oldest)
        if not len(due):
            return np.empty(0, np.int64)
        rows = self._rows_of(due)
        times = self._read(due).get_column(TIME).to_numpy()
        old = waits[rows] & (times < oldest)
        left = np.where(waits[rows] & ~old, times, NEVER_OLD)
        earliest[due] = np.minimum.reduceat(left, np.searchsorted(rows, starts[due]))
        if sure:
            self.assumed[rows[old]] = True
        return rows[old]

    def gather(self, rows: Ints) -> Frames:
        """Return some of the rows, in this order."""
        needed, batch = np.unique(rows // self.batches.rows, return_inverse=True)
        at = batch * self.batches.rows + rows % self.batches.rows
        return _split(self._read(needed)[at])

    def leave(self, rows: Ints) -> None:
        """Let rows wait no longer."""
        self.alive[rows] = False
        self.waiting -= len(rows)

    def _rows_of(self, batches: Ints) -> Ints:
        rows = batches[:, None] * self.batches.rows + np.arange(self.batches.rows)
        return rows[rows < len(self.offsets)]

    def _read(self, batches: Ints) -> pl.DataFrame:
        return self.batches.read(self.files, batches)

    def snapshot(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "file": self.file,
            "starts": self.batches.starts,
            "checksums": self.batches.checksums,
            "batch_rows": self.batches.rows,
            "first": self.first,
            "offsets": self.offsets,
            "alive": self.alive.copy(),
            "assumed": self.assumed.copy(),
            "earliest": self.earliest.copy(),
            "earliest_sure": self.earliest_sure.copy(),
        }

    @classmethod
    def restore(cls, files: SegmentFiles, value: Mapping[str, Any]) -> StoredSegment:
        """Return the segment of a `snapshot`."""
        places = value["file"], value["starts"], value["checksums"], value["batch_rows"]
        names = "first", "offsets", "alive", "assumed", "earliest", "earliest_sure"
        return cls(files, Batches(*places), *(value[name] for name in names))


def _stream(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_ipc_stream(buffer)
    return buffer.getvalue()


def _split(frame: pl.DataFrame) -> Frames:
    """Return the frames that were written as one."""
    columns: dict[str, list[pl.Series]] = {}
    for series in frame.get_columns()[1:]:  # after the times
        name, _, column = series.name.partition("/")
        columns.setdefault(name, []).append(series.alias(column))
    return {name: pl.DataFrame(own) for name, own in columns.items()}


__all__ = ["StoredSegment"]
