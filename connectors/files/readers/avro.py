"""Reads the rows of an Avro object container file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from connectors.files.readers.table import OPEN_FILES, TableFile, require_once
from connectors.formats.avro import parsed
from connectors.formats.kernels.datums import FINE
from connectors.formats.values.avro_columns import AvroColumns, known_logical_types
from connectors.formats.walks.avro_blocks import (
    CODECS,
    BlockIndex,
    Header,
    read_blocks,
    read_header,
    read_index,
)
from connectors.formats.walks.datums import FATE_REASONS, WalkResult
from engine.system.file_stamp import FileStamp, file_stamp
from engine.types import Records, UserError
from engine.types.arrays import Ints

CHUNK_ROWS = 65_536
"""The rows decoded at a time."""
CHUNK_BYTES = 512 << 10
"""The packed bytes of the blocks that are decoded together; a larger block is unpacked alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """What is known of a file of b blocks before its rows are read.

    Attributes:
        schema: of its records.
        first: the first block of each group of blocks that are unpacked together, and b, shape
            (groups + 1,).
        bounds: rows at which chunks start, and the end, shape (chunks + 1,).
        groups: the group of each chunk, shape (chunks + 1,).
    """

    header: Header
    schema: Any
    index: BlockIndex
    first: Ints
    bounds: Ints
    groups: Ints


@lru_cache(maxsize=OPEN_FILES)
def _opened(path: Path, name: str, stamp: FileStamp) -> _Opened:
    """Open a file; splits of one file open it once.

    Args:
        name: of the file, in sentences.
        stamp: of the file.

    Raises: UserError for a codec or a schema that is not read; ArrowInvalid where the header is
        damaged.
    """
    with path.open("rb", buffering=0) as file:
        header = read_header(file)
        if header.codec not in CODECS:
            raise UserError(
                f"{name} has blocks of codec {header.codec[:40]!r}: expected {', '.join(CODECS)}; "
                "write it with one of them."
            )
        index = read_index(file, header)
    try:
        schema = parsed(known_logical_types(header.schema))
    except (ValueError, RecursionError) as error:
        why = str(error)[:200]
        raise pa.ArrowInvalid(f"its schema is no Avro schema of records, {why}") from None
    require_once([field["name"] for field in schema["fields"]], name)
    if not schema["fields"]:
        raise UserError(f"{name} has records without a field: expected columns; leave it out.")
    first = _grouped(index)
    ends = np.concatenate([[0], np.cumsum(index.rows)])[first]
    inner = [np.arange(a, b, CHUNK_ROWS) for a, b in pairwise(ends.tolist())]
    bounds = np.concatenate([*inner, ends[-1:]]).astype(np.int64)
    groups = np.searchsorted(ends, bounds, "right") - 1
    return _Opened(
        header=header, schema=schema, index=index, first=first, bounds=bounds, groups=groups
    )


def _grouped(index: BlockIndex) -> Ints:
    """Return the first block of each group, and how many blocks there are. Groups depend on the
    blocks before them only, so that they stay as they are when blocks are added."""
    first, rows, size = [0], 0, 0
    blocks = zip(index.rows.tolist(), index.sizes.tolist(), strict=True)
    for block, (own_rows, own_size) in enumerate(blocks):
        rows, size = rows + own_rows, size + own_size
        if block > first[-1] and (rows > CHUNK_ROWS or size > CHUNK_BYTES):
            first.append(block)
            rows, size = own_rows, own_size
    return np.array([*first, len(index.rows)] if len(index.rows) else [0], np.int64)


class AvroFile(TableFile):
    """Blocks that are found by their headers, and decoded in groups by one compiled walk.

    A row is known to be whole only where the block's last record ends where the block does; a block
    for which this does not hold ends the file. A value that its column does not hold, text that is
    not UTF-8 for one, rejects its row.
    """

    format_name = "avro"

    def _open(self, path: Path, columns: Sequence[str] | None) -> None:
        opened = _opened(path, self.name, file_stamp(path))
        index = opened.index
        if index.damage and not self.may_grow:
            raise pa.ArrowInvalid(index.damage)
        self.waits = index.damage if index.cut else ""
        self._path, self._file = path, opened
        try:
            self._columns = AvroColumns(opened.schema, columns)
        except RecursionError:
            raise pa.ArrowInvalid("its schema nests too deep") from None
        self.schema, self.bounds = self._columns.schema, opened.bounds
        self._group = -1
        """The group whose blocks are unpacked."""
        self._walked = 0
        """The chunk of that group to walk next."""

    def read(self, max_rows: int, max_bytes: int) -> Records | None:
        records = super().read(max_rows, max_bytes)
        if records is None and self._file.index.damage and not self.waits:
            raise self._error(pa.ArrowInvalid(self._file.index.damage))
        return records

    def _decode(self, number: int) -> pl.DataFrame:
        group = int(self._file.groups[number])
        if group != self._group or number < self._walked:
            self._unpack(group)
            self._walked = int(np.searchsorted(self._file.groups, group))
        while True:
            walked = self._walk(self._walked)
            self._walked += 1
            if self._walked > number:
                return self._columns.frame(self._data, walked)

    def _unpack(self, group: int) -> None:
        self._group = -1
        first, stop = self._file.first[group : group + 2].tolist()
        with self._path.open("rb", buffering=0) as file:
            self._data, self._starts, self._stops = read_blocks(
                file, self._file.header, self._file.index, first, stop
            )
        self._group = group

    def _walk(self, number: int) -> WalkResult:
        """Walk the records of a chunk: all blocks of a group, or some rows of a large one."""
        first, stop = self._file.first[self._group : self._group + 2].tolist()
        rows = self._file.index.rows[first:stop]
        chunk = np.diff(self.bounds[number : number + 2])
        ended = int(self._file.groups[number + 1]) != self._group
        walked, ends, (fate, block) = self._columns.program.walk_blocks(
            self._data, self._starts, self._stops, rows if stop > first + 1 else chunk
        )
        left = np.flatnonzero(ended & (ends != self._stops))
        if fate == FINE and not len(left):
            self._starts = ends
            return walked
        said = "it has bytes behind its last record"
        if fate != FINE:
            said = FATE_REASONS[fate].rstrip(".").replace("Expected", "expected")
        at, self._group = first + int(left[0] if fate == FINE else block), -1
        begin = int(self._file.index.offsets[at])
        raise pa.ArrowInvalid(f"block {at + 1:,}, at byte {begin:,}, is damaged: {said}")

    def close(self) -> None:
        super().close()
        self._group = -1
        self._data = np.zeros(0, np.uint8)


__all__ = ["AvroFile"]
