"""Columns to Avro records."""

from __future__ import annotations

import numba
import numpy as np

from connectors.formats.kernels.varints import varint_size, write_varint

NUMBER, BITS4, BITS8, BYTE, SPAN, FIXED = range(6)
"""How a value is written: a zigzag number, four or eight bytes of a float, a bool, a length and
bytes, bytes alone."""


@numba.njit(nogil=True, cache=True)
def record_sizes(table, valid, numbers, sizes, head, bounds):
    """Return where each row's datum ends."""
    for row in range(valid.shape[1]):
        size = head
        for i in range(len(table)):
            how = table[i, 0]
            if table[i, 1] >= 0:
                size += 1
            if not valid[i, row]:
                continue
            if how == NUMBER:
                size += varint_size(numbers[i, row])
            elif how == BITS4:
                size += 4
            elif how == BITS8:
                size += 8
            elif how == BYTE:
                size += 1
            else:
                size += sizes[i, row]
                if how == SPAN:
                    size += varint_size(sizes[i, row])
        bounds[row + 1] = bounds[row] + size


@numba.njit(nogil=True, cache=True)
def write_records(table, valid, numbers, sizes, data, head, bounds, out):
    for row in range(valid.shape[1]):
        at = bounds[row]
        for byte in head:
            out[at] = byte
            at += 1
        for i in range(len(table)):
            how = table[i, 0]
            if table[i, 1] >= 0:
                at = write_varint(out, at, table[i, 2] if valid[i, row] else table[i, 1])
            if not valid[i, row]:
                continue
            number = numbers[i, row]
            if how == NUMBER:
                at = write_varint(out, at, number)
            elif how == BITS8:
                for j in range(8):  # as many as the compiler knows of: it makes one store of them
                    out[at + j] = np.uint8((number >> (8 * j)) & 255)
                at += 8
            elif how == BITS4:
                for j in range(4):
                    out[at + j] = np.uint8((number >> (8 * j)) & 255)
                at += 4
            elif how == BYTE:
                out[at] = np.uint8(number)
                at += 1
            else:
                if how == SPAN:
                    at = write_varint(out, at, sizes[i, row])
                for j in range(sizes[i, row]):
                    out[at] = data[number + j]
                    at += 1


__all__ = [
    "BITS4",
    "BITS8",
    "BYTE",
    "FIXED",
    "NUMBER",
    "SPAN",
    "record_sizes",
    "write_records",
]
