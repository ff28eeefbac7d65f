"""Validates the footer and the page headers of a Parquet file before a reader trusts them.

Both are structs of Thrift's compact protocol; only some of their integers matter here.
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift,
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from connectors.formats.kernels.parquet_pages import (
    ABSENT,
    COMPRESSED_SIZE,
    DATA_OFFSET,
    DICTIONARY_OFFSET,
    VALUES,
    walk_footer,
    walk_pages,
)
from engine.types.arrays import Ints

TAIL = 8
"""Bytes behind the footer: its size in 4 bytes, and a magic word."""
CHUNK_FIELDS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """What a file says of its rows and of its g x c column chunks.

    Attributes:
        rows: of the file.
        group_rows: of each row group, shape (g,).
        chunks: fields of each chunk's metadata by their number, `ABSENT` where one is missing,
            shape (g, c, CHUNK_FIELDS).
    """

    rows: int
    group_rows: Ints
    chunks: Ints


def read_footer(file: BinaryIO, groups: int, columns: int) -> Footer | None:
    """The footer of a whole file; None for one that cannot be, or is of another shape."""
    end = file.seek(0, os.SEEK_END) - TAIL
    size = int.from_bytes(os.pread(file.fileno(), 4, end), "little")
    if size > end:
        return None
    rows = np.full(groups, ABSENT, np.int64)
    chunks = np.full((groups, columns, CHUNK_FIELDS), ABSENT, np.int64)
    total = int(walk_footer(_bytes(file, end - size, size), rows, chunks))
    # A sum of Python's integers does not wrap.
    if total < 0 or rows.min(initial=0) < 0 or sum(rows.tolist()) != total:
        return None
    return Footer(rows=total, group_rows=rows, chunks=chunks)


def first_bad_page(
    file: BinaryIO, footer: Footer, group: int, columns: Ints, flat: NDArray[np.bool_]
) -> tuple[int, int] | None:
    """The first of some column chunks with a page that cannot be: its index in `columns`, and where
    the page begins; None where all can.

    Pages are read, not mapped: a file that is cut while it is read would end the process.

    Args:
        columns: numbers of the columns, shape (c,).
        flat: whether a column has one value in each row, shape (c,).
    """
    chunks, end = footer.chunks[group, columns], os.fstat(file.fileno()).st_size
    offsets = chunks[:, DICTIONARY_OFFSET]
    starts = np.where(offsets == ABSENT, chunks[:, DATA_OFFSET], offsets)
    sizes, values = chunks[:, COMPRESSED_SIZE], chunks[:, VALUES]
    bad = (starts <= 0) | (starts > end) | (sizes < 0) | (sizes > end - starts)
    bad |= flat & (values != footer.group_rows[group])
    if bad.any():
        column = int(bad.argmax())
        return column, int(starts[column])
    column, at = walk_pages(file.fileno(), starts, starts + sizes, values)
    return None if column == len(columns) else (int(column), int(at))


def _bytes(file: BinaryIO, at: int, size: int) -> NDArray[np.uint8]:
    return np.frombuffer(os.pread(file.fileno(), size, at), np.uint8)


__all__ = ["Footer", "first_bad_page", "read_footer"]
