"""An immutable store of keys: whole batches are looked up and added at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from engine.columnar.hashing import Hashes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SortedRun:
    """Keys in ascending order, each once.

    Attributes:
        keys: hashes, shape (n,).
        order: row number or time at which each was remembered, int64; what is forgotten by.
        values: what is remembered of it, any numpy type; may be empty of columns (shape (n, 0)).
    """

    keys: Hashes
    order: NDArray[np.int64]
    values: NDArray[Any]

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: Hashes) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Return which of `keys` are here, and their index (0 for the others)."""
        at = np.searchsorted(self.keys, keys)
        at[at == len(self.keys)] = 0
        present = self.keys[at] == keys
        return present, np.where(present, at, 0)

    def merge(self, newer: SortedRun, oldest: int) -> SortedRun:
        """Merge both, without entries older than `oldest`; of equal keys the newer one stays."""
        keys = np.concatenate((self.keys, newer.keys))
        order = np.concatenate((self.order, newer.order))
        values = np.concatenate((self.values, newer.values))
        by_key = np.argsort(keys, kind="stable")
        keys = keys[by_key]
        last = np.append(keys[1:] != keys[:-1], True)
        kept = last & (order[by_key] >= oldest)
        at = by_key[kept]
        return SortedRun(keys=keys[kept], order=order[at], values=values[at])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeyStore:
    """Keys with the time and value they were added with, as a few sorted runs.

    A new batch is one more run; neighbours of similar size are merged (O'Neil et al., "The
    Log-Structured Merge-Tree", 1996), so that adding costs O(log n) a key and looking up looks into
    O(log n) runs. What is forgotten leaves with a merge: in memory is up to twice of what is
    remembered.
    """

    runs: tuple[SortedRun, ...] = ()

    def __len__(self) -> int:
        return sum(len(run) for run in self.runs)

    def find(self, keys: Hashes) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[Any]]:
        """Return which of `keys` are stored, their time and their value (both 0 for the others).

        Shapes (n,). The caller judges by `order` whether one is too old to count.
        """
        present = np.zeros(len(keys), np.bool_)
        order = np.zeros(len(keys), np.int64)
        values = np.zeros(len(keys), self.runs[0].values.dtype if self.runs else np.float64)
        for run in self.runs:  # oldest first: the newer one overwrites
            here, at = run.find(keys)
            present |= here
            order = np.where(here, run.order[at], order)
            values = np.where(here, run.values[at], values)
        return present, order, values

    def add(
        self, keys: Hashes, order: NDArray[np.int64], values: NDArray[Any], *, oldest: int
    ) -> Self:
        """Return the store with these keys added, each once, without entries older than
        `oldest`."""
        runs = [run for run in self.runs if run.order.max() >= oldest]
        if len(keys):
            by_key = np.argsort(keys)
            runs.append(SortedRun(keys=keys[by_key], order=order[by_key], values=values[by_key]))
        while len(runs) > 1 and len(runs[-2]) <= 4 * len(runs[-1]):
            newer, older = runs.pop(), runs.pop()
            merged = older.merge(newer, oldest)
            runs += [merged] if len(merged) else []
        return dataclasses.replace(self, runs=tuple(runs))

    def snapshot(self) -> list[dict[str, Any]]:
        """Return plain values, O(runs)."""
        return [{"keys": r.keys, "order": r.order, "values": r.values} for r in self.runs]

    @classmethod
    def restore(cls, value: Sequence[Mapping[str, Any]]) -> Self:
        """Return the store from a `snapshot`."""
        return cls(runs=tuple(SortedRun(**run) for run in value))


__all__ = ["KeyStore", "SortedRun"]
