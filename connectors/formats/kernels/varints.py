"""Variable-length zigzag numbers of Avro and Kafka records, for compiled loops.

Seven bits a byte, the lowest first, the highest bit saying that more come; the sign is the lowest
bit. https://protobuf.dev/programming-guides/encoding/#signed-ints
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(nogil=True, cache=True)
def read_varint(raw, at):
    """Return the number at `at`, and where the next one begins; beyond the end for a broken one."""
    value, shift = np.uint64(0), np.uint64(0)
    while at < len(raw) and shift < 70:
        byte = raw[at]
        value |= np.uint64(byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1)), at
        shift += np.uint64(7)
    return np.int64(0), len(raw) + 1


@numba.njit(nogil=True, cache=True)
def _zigzag(number):
    return np.uint64(number << 1) ^ np.uint64(number >> 63)


@numba.njit(nogil=True, cache=True)
def varint_size(number):
    """Return the bytes of a number."""
    rest = _zigzag(number) >> np.uint64(7)
    size = 1
    while rest:
        rest >>= np.uint64(7)
        size += 1
    return size


@numba.njit(nogil=True, cache=True)
def write_varint(out, at, number):
    """Write a number; return where the next goes."""
    rest = _zigzag(number)
    while rest >= 128:
        out[at] = np.uint8((rest & np.uint64(127)) | np.uint64(128))
        rest >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(rest)
    return at + 1


__all__ = ["read_varint", "varint_size", "write_varint"]
