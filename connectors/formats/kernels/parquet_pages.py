"""A walk over what Parquet writes in Thrift: the footer and the headers of pages."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types

from connectors.formats.kernels.varints import read_varint

STOP, TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(13)
"""Types of Thrift's compact protocol."""
VALUES, COMPRESSED_SIZE, DATA_OFFSET, DICTIONARY_OFFSET = 5, 7, 9, 11
"""Fields of a column chunk's metadata."""
PAGE_FIELDS = 9
PAGE_UNCOMPRESSED, PAGE_COMPRESSED, DATA, DICTIONARY, DATA_2 = 2, 3, 5, 7, 8
"""Fields of a page's header: two sizes, and structs, of which a page has one."""
PAGE_VALUES, NULLS, ROWS, DEFINITION_BYTES, REPETITION_BYTES = 1, 2, 3, 5, 6
"""Fields of those structs; all but the first are of `DATA_2`."""
LARGEST = 2**31 - 1
"""The largest number of a page; readers cut larger ones to 32 bits, which may change the sign."""
DEPTH, MOST_FIELD = 32, 2**15 - 1
IN_STRUCT, ABSENT = -1, -1
END, BROKEN = -1, -2
"""Depths returned instead of one: after the last field, and for damage."""
WINDOW, MOST_WINDOW = 1 << 10, 1 << 20
"""Bytes in which a page's header is looked for: nearly all are of some 50, with statistics of long
texts in it one may be larger."""
_pread: Any = types.ExternalFunction(
    "pread", types.intp(types.intc, types.voidptr, types.uintp, types.int64)
)
"""The system's call: one from Python for each page would take a twentieth of the time of decoding
it."""


@numba.njit(nogil=True, cache=True)
def walk_footer(raw, rows, chunks):
    """Fill in what row groups and their chunks say; the rows of the file, `ABSENT` where it is
    broken."""
    path, left, element_types = _walk()
    total, wire_type, at, depth = np.int64(ABSENT), STOP, 0, 0
    while True:
        wire_type, number, at, depth = _next(raw, wire_type, at, depth, path, left, element_types)
        if depth < 0:
            return total if depth == END else np.int64(ABSENT)
        groups = path[0] == 4
        is_total = depth == 0 and path[0] == 3
        is_rows = groups and depth == 2 and path[2] == 3
        is_chunk = groups and depth == 5 and path[2] == 1 and path[4] == 3
        if is_chunk and path[5] not in (VALUES, COMPRESSED_SIZE, DATA_OFFSET, DICTIONARY_OFFSET):
            continue
        if not (is_total or is_rows or is_chunk):
            continue
        if wire_type != I64 or (groups and path[1] >= len(rows)):
            return np.int64(ABSENT)
        if is_total:
            total = number
        elif is_rows:
            rows[path[1]] = number
        elif path[3] >= chunks.shape[1]:
            return np.int64(ABSENT)
        else:
            chunks[path[1], path[3], path[5]] = number


@numba.njit(nogil=True, cache=True)
def walk_pages(file, starts, stops, values):
    """Walk the pages of chunks until they have their values; number of the chunk that has a bad
    page, and where it begins."""
    fields, window = np.zeros((2, PAGE_FIELDS), np.int64), np.empty(WINDOW, np.uint8)
    for i in range(len(starts)):
        at, stop, left = starts[i], stops[i], values[i]
        while left > 0:
            got = _pread(file, window.ctypes, min(len(window), stop - at), at)
            body, size = _header(window[: max(0, got)], fields)
            if body == BROKEN and got == len(window) <= MOST_WINDOW:
                window = np.empty(16 * got, np.uint8)
                continue
            size += fields[0, PAGE_COMPRESSED]
            if not _possible(body, fields) or size > stop - at:
                return i, at
            if body in (DATA, DATA_2):
                left -= fields[1, PAGE_VALUES]
            at += size
        if left != 0:
            return i, at
    return len(starts), np.int64(0)


@numba.njit(nogil=True, cache=True)
def _header(raw, fields):
    """Read the two sizes of a page's header into `fields[0]`, its struct into `fields[1]`; which
    struct it is, and where the header ends."""
    path, left, element_types = _walk()
    fields[:] = 0
    body, wire_type, at, depth = 0, STOP, 0, 0
    while True:
        wire_type, number, at, depth = _next(raw, wire_type, at, depth, path, left, element_types)
        if depth < 0:
            return (body if depth == END else BROKEN), at
        if depth == 0 and wire_type == STRUCT:
            if body:  # readers may believe either
                return BROKEN, at
            body = path[0]
        known = 0  # up to here, fields are numbers of 32 bits
        if depth == 0:
            known = PAGE_COMPRESSED
        elif depth == 1:
            known = REPETITION_BYTES if body == DATA_2 else PAGE_VALUES
        if known and path[depth] <= known:
            if wire_type != I32:
                return BROKEN, at
            fields[depth, path[depth]] = number


@numba.njit(nogil=True, cache=True)
def _possible(body, fields):
    """Return whether the numbers of a header are consistent."""
    fields[0, 1] = 0  # a type, which the struct tells as well
    size, values = fields[0, PAGE_COMPRESSED], fields[1, PAGE_VALUES]
    if body < DATA or body > DATA_2 or fields.min() < 0 or fields.max() > LARGEST:
        return False
    if body == DICTIONARY:  # a value takes a byte at least
        return values <= fields[0, PAGE_UNCOMPRESSED]
    if body == DATA_2:
        levels = fields[1, DEFINITION_BYTES] + fields[1, REPETITION_BYTES]
        return levels <= size and max(fields[1, NULLS], fields[1, ROWS]) <= values
    return True


@numba.njit(nogil=True, cache=True)
def _walk():
    """The state of a walk: at each depth the field or element (`path`), the elements to come or
    `IN_STRUCT` (`left`), and their type (`element_types`)."""
    return np.zeros(DEPTH, np.int64), np.full(DEPTH, IN_STRUCT), np.zeros(DEPTH, np.int64)


@numba.njit(nogil=True, cache=True)
def _next(raw, wire_type, at, depth, path, left, element_types):
    """Return the next field or element after one of a type at a depth: its type, its number if it
    is an integer, where it ends (a struct or list: begins), and its depth, `END` after the last."""
    if wire_type == STRUCT:
        depth += 1
        path[depth], left[depth] = 0, IN_STRUCT
    elif wire_type in (LIST, SET):
        depth += 1
        element_types[depth], left[depth], at = _list(raw, at)
        path[depth] = -1
    while at < len(raw) and depth < DEPTH - 1:
        inside = left[depth] != IN_STRUCT
        if inside and left[depth] == 0:
            depth -= 1
            continue
        if inside:
            left[depth] -= 1
            path[depth] += 1
            wire_type = element_types[depth]
        else:
            if raw[at] == STOP:
                depth, at = depth - 1, at + 1
                if depth == END:
                    return STOP, np.int64(0), at, END
                continue
            wire_type, field, at = _field(raw, at, path[depth])
            # Writers write fields in their order; of one that comes twice, readers believe either.
            if not path[depth] < field <= MOST_FIELD:
                break
            path[depth] = field
        number = np.int64(0)
        if I16 <= wire_type <= I64:
            number, at = read_varint(raw, at)
        elif wire_type == BINARY:
            number, at = _size(raw, at)
            at += number
        elif wire_type == DOUBLE:
            at += 8
        elif wire_type == BYTE or (inside and wire_type in (TRUE, FALSE)):
            at += 1
        elif wire_type not in (TRUE, FALSE, STRUCT, LIST, SET):  # Parquet has no maps
            break
        if at > len(raw):
            break
        return wire_type, number, at, depth
    return STOP, np.int64(0), at, BROKEN


@numba.njit(nogil=True, cache=True)
def _field(raw, at, before):
    """Type and number of the field at a place, and where its value begins."""
    wire_type, step = np.int64(raw[at] & 15), np.int64(raw[at] >> 4)
    if step:
        return wire_type, before + step, at + 1
    number, at = read_varint(raw, at + 1)
    return wire_type, number, at


@numba.njit(nogil=True, cache=True)
def _list(raw, at):
    """Type and count of a list's elements, and where they begin."""
    if at >= len(raw):
        return np.int64(MAP), np.int64(0), at
    wire_type, count = np.int64(raw[at] & 15), np.int64(raw[at] >> 4)
    if count < 15:
        return wire_type, count, at + 1
    count, at = _size(raw, at + 1)
    return wire_type, count, at


@numba.njit(nogil=True, cache=True)
def _size(raw, at):
    """A size, which has no sign, and where it ends; beyond the end where it cannot be."""
    value, shift = np.int64(0), 0
    while at < len(raw) and shift < 35:
        value |= np.int64(raw[at] & 127) << shift
        at += 1
        if raw[at - 1] < 128:
            return value, at if value <= LARGEST else len(raw) + 1
        shift += 7
    return np.int64(0), len(raw) + 1


__all__ = [
    "ABSENT",
    "COMPRESSED_SIZE",
    "DATA_OFFSET",
    "DICTIONARY_OFFSET",
    "VALUES",
    "walk_footer",
    "walk_pages",
]
