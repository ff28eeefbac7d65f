"""SIMD within a register: eight bytes at a time, for compiled loops over raw bytes.

A word is the eight bytes at a place, the first of them lowest. `load` may read over the end of a
piece: whoever calls it sees to it that the buffer goes on for eight bytes.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

ONES = np.uint64(0x0101010101010101)
HIGH = np.uint64(0x8080808080808080)
ZEROS = np.uint64(0x3030303030303030)
"""The digit 0, eight times."""


_njit: Any = numba.njit
_intrinsic: Any = intrinsic  # whose types are those of the code, not of the call
compiled = _njit(nogil=True, cache=True, _nrt=False)
"""A loop that allocates nothing, so numba need not count references to its arrays; with a call
per value the counting would cost more than the work."""


def _place(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
    """Return the address of byte `at` of an array."""
    array_struct = context.make_array(array_type)(context, builder, array)
    return builder.gep(array_struct.data, [at])


@_intrinsic  # type: ignore[untyped-decorator]
def load(typing: Any, data: Any, at: Any) -> Any:
    """Load the word at a place of a byte array."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place = _place(context, builder, signature.args[0], given[0], given[1])
        return builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(data, types.int64), code


@_intrinsic  # type: ignore[untyped-decorator]
def copy(typing: Any, data: Any, start: Any, size: Any, out: Any, to: Any) -> Any:
    """Copy `size` bytes from one byte array to another one."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        source = _place(context, builder, signature.args[0], given[0], given[1])
        place = _place(context, builder, signature.args[3], given[3], given[4])
        cgutils.raw_memcpy(builder, place, source, given[2], 1)  # type: ignore[no-untyped-call]
        return context.get_dummy_value()

    return types.void(data, types.int64, types.int64, out, types.int64), code


@_intrinsic  # type: ignore[untyped-decorator]
def first(typing: Any, word: Any) -> Any:
    """Return the index of a word's first nonzero byte; 8 if all are zero."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        bits = builder.cttz(given[0], ir.Constant(ir.IntType(1), 0))
        return builder.lshr(bits, ir.Constant(ir.IntType(64), 3))

    return types.int64(types.uint64), code


@compiled
def equal(word, byte):
    """Set a bit where a byte equals that one; beyond the first such byte, bits may be wrong."""
    other = word ^ byte
    return (other - ONES) & ~other & HIGH


@compiled
def occurrences(word, byte):
    """Return how many bytes equal that one (eight times in `byte`)."""
    other = word ^ byte
    same = ~(((other & ~HIGH) + ~HIGH) | other) & HIGH
    return np.int64(((same >> np.uint64(7)) * ONES) >> np.uint64(56))


@compiled
def digits(word):
    """Return how many of the first bytes are digits."""
    other = word ^ ZEROS
    return first(((other + np.uint64(0x7676767676767676)) | other) & HIGH)


@compiled
def number(word, n):
    """Return the integer of the first n bytes, which are digits; n is 1 to 8.

    D. Lemire, "Quickly parsing eight digits", 2018: two, then four, then eight at once.
    """
    x = (word ^ ZEROS) << np.uint64(64 - 8 * n)
    x = x * np.uint64(10) + (x >> np.uint64(8))
    x = (
        (x & np.uint64(0x000000FF000000FF)) * np.uint64(0x000F424000000064)
        + ((x >> np.uint64(16)) & np.uint64(0x000000FF000000FF)) * np.uint64(0x0000271000000001)
    ) >> np.uint64(32)
    return np.int64(x)


__all__ = [
    "HIGH", "ONES", "compiled", "copy", "digits", "equal", "first", "load", "number",
    "occurrences",
]  # fmt: skip
