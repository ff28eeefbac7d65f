"""Counts distinct values and duplicate rows in bounded memory."""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from engine.columnar.hashing import Hashes

BITS = 14
ERROR = 1.04 / math.sqrt(2**BITS)
"""The standard error of `DistinctCounter.count`: 0.8 %."""
SLOTS = 1 << 23
"""The slots of the largest table of `RowSet`: 64 MiB."""
LOAD = 0.7


class DistinctCounter:
    """Counts the distinct values of a column: HyperLogLog with 2**14 registers (Flajolet, Fusy,
    Gandouet & Meunier, "HyperLogLog: the analysis of a near-optimal cardinality estimation
    algorithm", 2007), small counts by linear counting (Whang, Vander-Zanden & Taylor, 1990). 16
    kB."""

    def __init__(self) -> None:
        self._registers = np.zeros(1 << BITS, np.uint8)

    def update(self, hashes: Hashes) -> None:
        """Add values by their hashes, shape (n,)."""
        _register(hashes, self._registers)

    def merge(self, other: DistinctCounter) -> None:
        """Add the values of another counter."""
        np.maximum(self._registers, other._registers, out=self._registers)

    @property
    def count(self) -> int:
        """Return the number of distinct values, with a standard error of `ERROR`; nearly exact
        up to a few thousand."""
        m = len(self._registers)
        zeros = int((self._registers == 0).sum())
        if zeros and (few := m * math.log(m / zeros)) <= 2.5 * m:
            return round(few)
        alpha = 0.7213 / (1 + 1.079 / m)
        return round(alpha * m * m / float(np.exp2(-self._registers.astype(np.float64)).sum()))


class RowSet:
    """Finds duplicate rows by their hashes: exact until `SLOTS` * `LOAD` distinct rows are
    stored; later rows are only looked up.

    Attributes:
        rows: looked up.
        repeated: of them that were there before.
        full: nothing more is remembered.
    """

    def __init__(self) -> None:
        self._table: NDArray[np.uint64] = np.zeros(1 << 16, np.uint64)
        self._used = 0
        self.rows = 0
        self.repeated = 0
        self.full = False

    def update(self, hashes: Hashes) -> None:
        """Look rows up and remember them."""
        keys = np.where(hashes == 0, np.uint64(1), hashes)
        while not self.full and self._used + len(keys) > LOAD * len(self._table):
            if len(self._table) >= SLOTS:
                self.full = True
                break
            table = np.zeros(2 * len(self._table), np.uint64)
            _insert(self._table[self._table != 0], table, False)
            self._table = table
        new, repeated = _insert(keys, self._table, self.full)
        self._used += new
        self.rows += len(keys)
        self.repeated += repeated


@numba.njit(nogil=True, cache=True)
def _register(hashes, registers):  # type: ignore[no-untyped-def]
    rest = np.uint64(64 - BITS)
    for i in range(hashes.shape[0]):
        h = hashes[i]
        at = h >> rest
        left = h << np.uint64(BITS)
        rank = 1
        while rank <= 64 - BITS and not left >> np.uint64(63):
            left <<= np.uint64(1)
            rank += 1
        if rank > registers[at]:
            registers[at] = rank


@numba.njit(nogil=True, cache=True)
def _insert(keys, table, full):  # type: ignore[no-untyped-def]
    """Insert keys into a table with open addressing; return how many were new and how many
    known."""
    mask = np.uint64(table.shape[0] - 1)
    new, repeated = 0, 0
    for i in range(keys.shape[0]):
        at = keys[i] & mask
        while table[at] != 0 and table[at] != keys[i]:
            at = (at + np.uint64(1)) & mask
        if table[at] == keys[i]:
            repeated += 1
        elif not full:
            table[at] = keys[i]
            new += 1
    return new, repeated


__all__ = ["ERROR", "DistinctCounter", "RowSet"]
