"""One walk over Avro records: their bytes to columns."""

from __future__ import annotations

import numba
import numpy as np

from connectors.formats.kernels.swar import compiled, load

END, NULL, BOOL, INT, LONG, FLOAT, DOUBLE, BYTES, FIXED, ENUM = range(10)
UNION, JUMP, OPEN_LIST, CLOSE_LIST, CALL, RETURN, OPEN, CLOSE, FAIL = range(10, 19)
FINE, SHORT, LEFT, WRONG, DEEP = range(5)
"""The outcome of a record: it took its bytes; it needs more; some are left; an index or length
in it is invalid; it nests deeper than 256."""
STACK = 256
EMPTY_ELEMENTS = 65_536
"""The most elements of no bytes in a list that is kept, where each becomes an object; and the most
records of no bytes in a block."""
AVRO_MAGIC = b"Obj\x01"
"""The first bytes of a container file."""
SYNC = 16
"""The bytes of a sync marker."""
BLOCK_HEAD = 20
"""The most bytes of a block's count and size."""
DONE, MORE, BAD_SYNC, BAD_HEAD, CUT = range(5)
"""Why a search for blocks ended: at the end of the file; at the end of the window or the arrays; at
another sync marker; at a count or size that cannot be; at a block that is not all there."""


@compiled
def unscale(out, ends, numbers):
    for i in range(len(numbers)):
        value = np.int64(0)
        for at in range(ends[i], ends[i + 1]):
            byte = np.int64(out[at])
            if at == ends[i] and byte >= 128:
                byte -= 256
            value = value * 256 + byte
        numbers[i] = value


@compiled
def _long(data, at, stop):
    """Return the zigzag number at `at` and where the next begins; -1 if it does not end, -2 if
    it is longer than 64 bits."""
    value, shift = np.uint64(0), np.uint64(0)
    while at < stop:
        byte = data[at]
        value |= np.uint64(byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            if shift == 63 and byte > 1:
                return np.int64(0), -2
            return np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1)), at
        shift += np.uint64(7)
        if shift > 63:
            return np.int64(0), -2
    return np.int64(0), -1


@numba.njit(nogil=True, cache=True)
def walk_records(data, starts, stops, ops, jumps, fate, leaves, values, sizes):
    calls = np.empty(STACK, np.int64)
    counts = np.empty(STACK, np.int64)
    places = np.empty(STACK, np.int64)
    for row in range(len(starts)):
        fate[row], _ = _record(
            data, starts[row], stops[row], ops, jumps, row, leaves, values, sizes,
            calls, counts, places,
        )  # fmt: skip


@numba.njit(nogil=True, cache=True)
def walk_blocks(data, starts, stops, rows, ops, jumps, ends, leaves, values, sizes):
    """Walk the records of blocks, `rows` of each, and note where its last one ends. Return the
    outcome, and the block where it is another than `FINE`."""
    calls = np.empty(STACK, np.int64)
    counts = np.empty(STACK, np.int64)
    places = np.empty(STACK, np.int64)
    row = 0
    for block in range(len(starts)):
        at = starts[block]
        for _ in range(rows[block]):
            fate, at = _record(
                data, at, stops[block], ops, jumps, row, leaves, values, sizes,
                calls, counts, places,
            )  # fmt: skip
            if fate != FINE and fate != LEFT:
                return fate, block
            row += 1
        ends[block] = at
    return FINE, len(starts)


@compiled
def find_blocks(window, base, end, sync, ratio, offsets, sizes, rows):
    """Find blocks behind the sync marker with which a window of a file begins.

    Return how many were found, where in the window the last sync marker is, and why no more were.

    Args:
        base: where the window is in the file.
        end: of the file.
        ratio: the bits by which a block may be larger once it is unpacked.
    """
    at, n, room = 0, 0, len(window)
    while True:
        if at + SYNC > room:
            return n, at, MORE
        for i in range(SYNC):
            if window[at + i] != sync[i]:
                return n, at, BAD_SYNC
        begin = at + SYNC
        if base + begin == end:
            return n, at, DONE
        last = base + room == end
        if n == len(offsets) or (begin + BLOCK_HEAD > room and not last):
            return n, at, MORE
        count, size = np.int64(0), np.int64(0)
        count, begin = _long(window, begin, room)
        if begin >= 0:
            size, begin = _long(window, begin, room)
        if begin < 0:
            return n, at, (CUT if begin == -1 and last else BAD_HEAD)
        if count < 0 or size < 0 or count >> ratio > max(size, EMPTY_ELEMENTS):
            return n, at, BAD_HEAD
        if size > end - base - begin - SYNC:
            return n, at, CUT
        offsets[n], sizes[n], rows[n] = base + begin, size, count
        n += 1
        at = begin + size


@compiled
def _record(data, at, stop, ops, jumps, row, leaves, values, sizes, calls, counts, places):
    pc = 0
    called = 0
    listed = 0
    rich = False
    while True:
        op = ops[pc, 0]
        a = ops[pc, 1]
        value = np.int64(0)
        size = np.int64(0)
        if op in (BYTES, INT, LONG, ENUM, UNION):
            value, at = _long(data, at, stop)
            if at < 0:
                return (SHORT if at == -1 else WRONG), at
        if op == BYTES:
            if value < 0:
                return WRONG, at
            size = value
            value = at
            if size > stop - at:
                return SHORT, at
            at += size
        elif op == UNION:
            if value < 0 or value >= a:
                return WRONG, at
            pc = jumps[ops[pc, 2] + value]
            continue
        elif op == JUMP:
            pc = a
            continue
        elif op == INT:
            if value < -2147483648 or value > 2147483647:
                return WRONG, at
        elif op == ENUM:
            if value < 0 or value >= ops[pc, 3]:
                return WRONG, at
        elif op == BOOL:
            if at >= stop:
                return SHORT, at
            value = np.int64(data[at])
            if value > 1:
                return WRONG, at
            at += 1
        elif op in (FLOAT, DOUBLE, FIXED):
            size = ops[pc, 3]
            if size > stop - at:
                return SHORT, at
            if op == FIXED:
                value = at
            elif op == DOUBLE and at + 8 <= len(data):
                value = np.int64(load(data, at))
            else:
                bits = np.uint64(0)
                for i in range(size):
                    bits |= np.uint64(data[at + i]) << np.uint64(8 * i)
                value = np.int64(bits)
            at += size
        elif op == OPEN:
            value = at
            rich = True
        elif op == CLOSE:
            rich = False
            sizes[a, row] = at - values[a, row]
            pc += 1
            continue
        elif op == OPEN_LIST:
            count, at = _block(data, at, stop)
            if at < 0:
                return (SHORT if at == -1 else WRONG), at
            if count == 0:
                pc = a
                continue
            if listed == STACK:
                return DEEP, at
            counts[listed] = count
            places[listed] = at
            listed += 1
        elif op == CLOSE_LIST:
            counts[listed - 1] -= 1
            if at == places[listed - 1]:  # elements of no bytes: all of them are the same
                if rich and counts[listed - 1] > EMPTY_ELEMENTS:
                    return WRONG, at
                counts[listed - 1] = 0
            if counts[listed - 1] > 0:
                places[listed - 1] = at
                pc = a + 1
            else:
                listed -= 1
                pc = a
            continue
        elif op == CALL:
            if called == STACK:
                return DEEP, at
            calls[called] = pc + 1
            called += 1
            pc = a
            continue
        elif op == RETURN:
            called -= 1
            pc = calls[called]
            continue
        elif op == END:
            return (FINE if at == stop else LEFT), at
        if a >= 0 and op != OPEN_LIST:
            leaves[a, row] = ops[pc, 2]
            values[a, row] = value
            if op == BYTES or op == FIXED:
                sizes[a, row] = size
        pc += 1


@compiled
def _block(data, at, stop):
    """Return how many elements follow, and where; a negative count is followed by their bytes."""
    count, at = _long(data, at, stop)
    if at >= 0 and count < 0:
        count = -count
        _, at = _long(data, at, stop)
    if at >= 0 and count < 0:
        return count, -2
    return count, at


__all__ = [
    "AVRO_MAGIC",
    "BAD_HEAD",
    "BAD_SYNC",
    "BOOL",
    "BYTES",
    "CALL",
    "CLOSE",
    "CLOSE_LIST",
    "CUT",
    "DEEP",
    "DONE",
    "DOUBLE",
    "END",
    "ENUM",
    "FINE",
    "FIXED",
    "FLOAT",
    "INT",
    "JUMP",
    "LEFT",
    "LONG",
    "MORE",
    "NULL",
    "OPEN",
    "OPEN_LIST",
    "RETURN",
    "SHORT",
    "SYNC",
    "UNION",
    "WRONG",
    "find_blocks",
    "unscale",
    "walk_blocks",
    "walk_records",
]
