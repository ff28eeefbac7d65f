"""Immutable stores of keys: whole batches are looked up and added at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numba
import numpy as np
from numpy.typing import NDArray

from engine.columnar.hashing import Hashes
from engine.types.arrays import Bools, Ints

NO_KEYS: Hashes = np.empty(0, np.uint64)
NO_ROWS: Ints = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SortedRun:
    """Keys in ascending order, each once.

    Attributes:
        keys: hashes, shape (n,).
        order: row number or time at which each was remembered, int64; what is forgotten by.
        values: what is remembered of it, any numpy type; shape (n, ...), may be empty of columns
            (shape (n, 0)).
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
        by_key = np.argsort(keys, kind="stable")
        keys = keys[by_key]
        last = np.append(keys[1:] != keys[:-1], True)
        kept = last & (order[by_key] >= oldest)
        at = by_key[kept]
        values = np.concatenate((self.values, newer.values))
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

        Shapes (n,), the values' (n, ...). The caller judges by `order` whether one is too old to
        count.
        """
        present = np.zeros(len(keys), np.bool_)
        order = np.zeros(len(keys), np.int64)
        shape = self.runs[0].values.shape[1:] if self.runs else ()
        dtype = np.result_type(*(run.values for run in self.runs)) if self.runs else np.float64
        values = np.zeros((len(keys), *shape), dtype)
        for run in self.runs:  # oldest first: the newer one overwrites
            here, at = run.find(keys)
            present |= here
            order = np.where(here, run.order[at], order)
            rows = np.flatnonzero(here)
            values[rows] = run.values[at[rows]]
        return present, order, values

    def newest(self, keys: Hashes) -> Ints:
        """Return the time of each key, shape (n,); -1 for those that are not stored."""
        order = np.full(len(keys), -1)
        for run in self.runs:
            here, at = run.find(keys)
            order = np.where(here, run.order[at], order)
        return order

    def between(self, first: int, last: int) -> tuple[Hashes, Ints]:
        """Return the keys added at the times first..last-1 and since then no more, and their
        times, ascending; shapes (n,)."""
        chosen = [(run, (first <= run.order) & (run.order < last)) for run in self.runs]
        keys = np.concatenate([NO_KEYS, *(run.keys[rows] for run, rows in chosen)])
        order = np.concatenate([NO_ROWS, *(run.order[rows] for run, rows in chosen)])
        current = np.flatnonzero(self.newest(keys) == order)
        current = current[np.argsort(order[current])]
        return keys[current], order[current]

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

    def since(self, oldest: int) -> Self:
        """Return the store without entries older than `oldest`, in O(n)."""
        kept = [(run, run.order >= oldest) for run in self.runs]
        runs = [
            SortedRun(keys=run.keys[rows], order=run.order[rows], values=run.values[rows])
            for run, rows in kept
            if rows.any()
        ]
        return dataclasses.replace(self, runs=tuple(runs))

    def snapshot(self) -> list[dict[str, Any]]:
        """Return plain values, O(runs)."""
        return [{"keys": r.keys, "order": r.order, "values": r.values} for r in self.runs]

    @classmethod
    def restore(cls, value: Sequence[Mapping[str, Any]]) -> Self:
        """Return the store from a `snapshot`."""
        return cls(runs=tuple(SortedRun(**run) for run in value))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Visit:
    """What the rows of a batch find of their keys.

    Attributes:
        keys: the m different ones, ascending.
        group: index of each row's key in `keys`, shape (n,).
        fresh: whether a row's key is not remembered at that row, shape (n,).
        values: of each key before the batch, shape (m, ...), writable; arbitrary if its first row
            is fresh.
        last: the row in which each key stands last, shape (m,).
        forgotten: how often a key was forgotten.
        oldest, count: of the `RecentKeys` after the batch.
    """

    keys: Hashes
    group: Ints
    fresh: Bools
    values: NDArray[Any]
    last: Ints
    forgotten: int
    oldest: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecentKeys:
    """The keys seen last in a stream, at most `size` of them, each with a value; the one not seen
    for the longest time is forgotten first.

    That is exact to the row: a key that is forgotten and comes again in the same batch starts anew,
    as it does in a later one. Rows are numbered through the stream, and a key is remembered exactly
    if it stood in row `oldest` or a later one; so forgetting costs nothing but a number.

    Attributes:
        size: most keys.
        store: the keys, and the row each stands in last.
        rows: rows seen.
        oldest: keys last seen before this row are forgotten.
        count: keys that are remembered.
    """

    size: int
    store: KeyStore = KeyStore()
    rows: int = 0
    oldest: int = 0
    count: int = 0

    def visit(self, keys: Hashes) -> Visit:
        """Return what each row finds, given the hash of its key, shape (n,)."""
        own, group = np.unique(keys, return_inverse=True)
        present, order, values = self.store.find(own)
        last = np.where(present, order, -1)
        fresh = np.zeros(len(keys), np.bool_)
        queue, queued = self._least_recent(own, last, len(keys))
        oldest, count, forgotten = _visit_rows(
            group, last, fresh, queue, queued, self.rows, self.size, self.oldest, self.count
        )
        return Visit(
            keys=own, group=group, fresh=fresh, values=values, last=last, forgotten=forgotten,
            oldest=oldest, count=count,
        )  # fmt: skip

    def updated(self, visit: Visit, values: NDArray[Any]) -> Self:
        """Return the keys after a visit, with the values of its keys, shape (m, ...)."""
        kept = visit.last >= visit.oldest
        store = self.store.add(
            visit.keys[kept], visit.last[kept], values[kept], oldest=visit.oldest
        )
        return dataclasses.replace(
            self,
            store=store,
            rows=self.rows + len(visit.group),
            oldest=visit.oldest,
            count=visit.count,
        )

    def _least_recent(self, own: Hashes, last: Ints, rows: int) -> tuple[Ints, Ints]:
        """Return the row in which the keys that may be forgotten in a batch stand last, ascending,
        and their index in `own`, -1 where the batch has none of it."""
        known = int(np.count_nonzero(last >= self.oldest))
        if self.count + len(own) - known <= self.size:
            return NO_ROWS, NO_ROWS
        needed: int = min(rows + known, self.count)  # as many as are forgotten or seen again
        window = 2 * needed
        keys, order = self.store.between(self.oldest, self.oldest + window)
        while len(order) < needed:
            window *= 2
            keys, order = self.store.between(self.oldest, self.oldest + window)
        at = np.minimum(np.searchsorted(own, keys), len(own) - 1)
        return order, np.where(own[at] == keys, at, -1)

    def snapshot(self) -> dict[str, Any]:
        """Return plain values, O(runs)."""
        return {
            "rows": self.rows,
            "oldest": self.oldest,
            "count": self.count,
            "store": self.store.snapshot(),
        }

    def restored(self, value: Mapping[str, Any]) -> Self:
        """Return the keys of a `snapshot`."""
        store = KeyStore.restore(value["store"])
        rest = {name: value[name] for name in ("rows", "oldest", "count")}
        return dataclasses.replace(self, store=store, **rest)


@numba.njit(nogil=True, cache=True)
def _visit_rows(group, last, fresh, queue, queued, rows, size, oldest, count):  # type: ignore[no-untyped-def]
    """Walk over the rows: set `fresh` and `last`, and forget keys where there are too many.

    What is forgotten comes first in the queue of all rows by their age, of those that are their
    key's last: those before the batch, in `queue`, then the batch's own.
    """
    at, own, forgotten = 0, 0, 0
    for i in range(group.shape[0]):
        key = group[i]
        if last[key] < oldest:
            fresh[i] = True
            count += 1
        last[key] = rows + i
        if count <= size:
            continue
        while at < queue.shape[0] and queued[at] >= 0 and last[queued[at]] != queue[at]:
            at += 1
        if at < queue.shape[0]:
            oldest = queue[at] + 1
            at += 1
        else:
            while last[group[own]] != rows + own:
                own += 1
            oldest = rows + own + 1
            own += 1
        count -= 1
        forgotten += 1
    return oldest, count, forgotten


__all__ = ["KeyStore", "RecentKeys", "SortedRun", "Visit"]
