"""An immutable index from 64-bit hashes to numbers, by open addressing."""

from __future__ import annotations

import numba
import numpy as np

from engine.columnar.hashing import Hashes
from engine.columnar.intrinsics import prefetch
from engine.types.arrays import Ints

AHEAD = 16
"""Hashes whose place is fetched before it is looked at."""


class HashIndex:
    """Finds hashes among given ones in one memory access each, mostly.

    Memory: 32 to 64 bytes per hash.

    Args:
        hashes: all different, shape (n,).
    """

    def __init__(self, hashes: Hashes) -> None:
        slots = 1 << max(1, (2 * len(hashes)).bit_length())
        # A hash beside its number plus 1, 0 for a free slot: one cache line for both.
        self._slots = np.zeros((slots, 2), np.uint64)
        _fill(hashes, self._slots)

    @property
    def nbytes(self) -> int:
        """The bytes held."""
        return int(self._slots.nbytes)

    def find(self, hashes: Hashes) -> Ints:
        """Return the number of each hash, its place among the given ones; -1 if it is none of
        them. Shape (n,)."""
        found = np.empty(len(hashes), np.int64)
        _find(hashes, self._slots, found)
        return found


@numba.njit(nogil=True, cache=True)
def _fill(hashes, slots):  # type: ignore[no-untyped-def]
    last = np.uint64(slots.shape[0] - 1)
    for i in range(hashes.shape[0]):
        at = hashes[i] & last
        while slots[at, 1]:
            at = (at + np.uint64(1)) & last
        slots[at, 0] = hashes[i]
        slots[at, 1] = np.uint64(i + 1)


@numba.njit(nogil=True, cache=True)
def _find(hashes, slots, found):  # type: ignore[no-untyped-def]
    last, n = np.uint64(slots.shape[0] - 1), hashes.shape[0]
    for i in range(n):
        prefetch(slots, np.int64(hashes[min(i + AHEAD, n - 1)] & last), 0)
        at = hashes[i] & last
        while slots[at, 1] and slots[at, 0] != hashes[i]:
            at = (at + np.uint64(1)) & last
        found[i] = np.int64(slots[at, 1]) - 1


__all__ = ["HashIndex"]
