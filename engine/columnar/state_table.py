"""A table of states per key, and the order in which the rows of a batch go through it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numba
import numpy as np
from numpy.typing import NDArray

from engine.columnar.event_time import NEVER
from engine.columnar.hashing import Hashes
from engine.types.arrays import Ints

States = NDArray[np.float32]

FOREVER = 1 << 62
"""More rows than any stream has, and longer than any time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rounds:
    """The rows of a batch, arranged so that one step takes many of them: the first round has the
    first row of each sequence, the second round the second rows, and so on. A sequence is the rows
    of one key, in their order.

    Attributes:
        order: the rows, round after round, shape (n,). Every round has its sequences in the same
            order, the longest ones first.
        place: where each row stands in `order`, shape (n,).
        before: the row before each in its sequence, -1 for the first, shape (n,).
        sizes: rows of each round, never increasing, shape (rounds,).
    """

    order: Ints
    place: Ints
    before: Ints
    sizes: Ints

    @classmethod
    def of(cls, before: Ints) -> Self:
        """Return the rounds of rows, given the row before each in its sequence, or -1."""
        order, place, sizes = _rounds(before)
        return cls(order=order, place=place, before=before, sizes=sizes)

    @property
    def first(self) -> Ints:
        """The first row of each sequence, shape (sequences,)."""
        return self.order[: self.sizes[0]] if len(self.sizes) else self.order

    def states_before(self, start: States, states: States) -> States:
        """Return the state before each row, shape (n, width).

        Args:
            start: before the first row of each sequence, shape (sequences, width).
            states: after each row, shape (n, width).
        """
        found = states[self.before]
        found[self.first] = start
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """What rows find in the table.

    Attributes:
        row: the number of the first row, counted through the stream.
        slots: the place of each row's key, shape (n,).
        previous: the number of the row in which the key stood before, -1 where it starts anew;
            shape (n,).
        forgotten: how often a key was forgotten because there were too many.
        expired: how often one was forgotten because it had not come for too long.
    """

    row: int
    slots: Ints
    previous: Ints
    forgotten: int
    expired: int

    @property
    def counts(self) -> dict[str, int]:
        """What left the table, by name; without zeros."""
        counts = {"forgotten": self.forgotten, "expired": self.expired}
        return {name: count for name, count in counts.items() if count}


class StateTable:
    """A vector of float32 per key, for the keys that came last.

    One more than `keys` of them, and the key that has not come for the longest time is forgotten;
    so is a key that comes again more than `idle` rows later, or more than that after the newest
    time of its rows; a row without a time is no older than that. Both are exact to the row, and do
    not depend on how the stream is cut. Keys are 64-bit hashes: two collide with probability
    keys**2 / 2**65.

    Memory: 24 bytes, 8 more with times, and 8 to 16 for finding it, and 4 for each number, for each
    key that is there: none is taken for those to come.

    Args:
        width: numbers of a state.
        keys: the most keys that are remembered, below 2**31.
        idle: in rows, or in ticks of their times. None never forgets a key for its age.
        timed: whether rows come with times.
    """

    def __init__(
        self, *, width: int, keys: int, idle: int | None = None, timed: bool = False
    ) -> None:
        self.width = width
        self.size = keys
        self._idle = FOREVER if idle is None else idle
        self._timed = timed
        self._clear()

    def _clear(self) -> None:
        # Zeros take no memory before they are written to.
        size = self.size
        self._values: States = np.zeros((size, self.width), np.float32)
        self._keys: Hashes = np.zeros(size, np.uint64)
        self._last: Ints = np.zeros(size, np.int64)
        self._seen = np.zeros(size, np.int64) if self._timed else self._last
        self._index = np.zeros(1 << (2 * size - 1).bit_length(), np.int32)
        self._links = np.zeros((size + 1, 2), np.int32)
        self._rows = self._count = 0

    def __len__(self) -> int:
        """The number of keys that are remembered."""
        return self._count

    @property
    def nbytes(self) -> int:
        """The bytes taken."""
        key = 32 if self._timed else 24
        return self._count * (key + 4 * self.width) + min(self._index.nbytes, 4_096 * self._count)

    def enter(self, keys: Hashes, times: Ints | None = None) -> Entry:
        """Let rows with these keys in, in their order. Their states are as before until `put` is
        called.

        Args:
            keys: shape (n,).
            times: in ticks, shape (n,), of a table that is timed; `NEVER` where there is none.
        """
        slots, previous = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
        row = self._rows
        self._count, forgotten, expired = _enter(
            keys, self._moments(keys, times), slots, previous, self._keys, self._last, self._seen,
            self._index, self._links, row, self._count, self._idle,
        )  # fmt: skip
        self._rows += len(keys)
        return Entry(row=row, slots=slots, previous=previous, forgotten=forgotten, expired=expired)

    def states(self, entry: Entry, rows: Ints) -> States:
        """Return the states that these of the rows begin with, shape (rows, width): 0 where a key
        starts anew."""
        states = self._values[entry.slots[rows]]
        fresh = entry.previous[rows] < 0
        if fresh.any():
            states[fresh] = 0
        return states

    def put(self, slots: Ints, states: States) -> None:
        """Store the state after each row; of several rows of a key, the last one's.

        Args:
            slots: of rows, in the order of the stream, shape (n,).
            states: shape (n, width).
        """
        self._values[slots] = states

    def _moments(self, keys: Hashes, times: Ints | None) -> Ints:
        """Return what the age of rows is counted by, shape (n,)."""
        assert (times is not None) == self._timed, "times come with each row, or with none"
        return np.arange(self._rows, self._rows + len(keys)) if times is None else times

    def look_up(self, keys: Hashes, times: Ints | None = None) -> tuple[Rounds, States]:
        """Return the rounds of rows that would come next, and the states that their sequences would
        begin with, shape (sequences, width). Changes nothing; no key is forgotten for another.

        Args:
            keys, times: as of `enter`.
        """
        own, group = np.unique(keys, return_inverse=True)
        slots = _find(own, self._keys, self._index)
        seen = np.where(slots < 0, NEVER, self._seen[slots])
        before, anew = _follow(group, self._moments(keys, times), slots < 0, seen, self._idle)
        rounds = Rounds.of(before)
        states = self._values[slots[group[rounds.first]]]
        states[anew[rounds.first]] = 0
        return rounds, states

    def snapshot(self) -> dict[str, Any]:
        """Return a plain value, copied."""
        used = slice(self._count)
        return {
            "rows": self._rows,
            "keys": self._keys[used].copy(),
            "last": self._last[used].copy(),
            "seen": self._seen[used].copy() if self._timed else None,
            "values": self._values[used].copy(),
        }

    def restore(self, value: Mapping[str, Any]) -> None:
        """Restore a `snapshot` of a table of the same size."""
        self._clear()
        self._rows, self._count = value["rows"], len(value["keys"])
        for own, name in ((self._keys, "keys"), (self._last, "last"), (self._values, "values")):
            own[: self._count] = value[name]
        if self._timed:
            self._seen[: self._count] = value["seen"]
        _restore(self._keys, self._index, self._links, np.argsort(self._last[: self._count]))


# The index is a hash table with linear probing: the slot of a key, plus 1, at the first free place
# from the key's own on; 0 is free. The links are a ring of all slots by their last row: of slot s,
# the one before it and the one after it, plus 1 each, at s + 1; place 0 is where the ring begins.


@numba.njit(nogil=True, cache=True)
def _enter(  # type: ignore[no-untyped-def]
    keys, moments, slots, previous, own, last, seen, index, links, row, count, idle
):  # fmt: skip
    forgotten = expired = 0
    for i in range(keys.shape[0]):
        at = _place(keys[i], own, index)
        slot = index[at] - 1
        if slot >= 0:
            previous[i] = last[slot]
            if _too_old(moments[i], seen[slot], idle):
                previous[i] = -1
                expired += 1
            _unlink(links, slot)
        else:
            previous[i] = -1
            if count < own.shape[0]:
                slot = count
                count += 1
            else:
                slot = links[0, 1] - 1
                _unlink(links, slot)
                _take_out(_place(own[slot], own, index), own, index)
                at = _place(keys[i], own, index)
                forgotten += 1
            own[slot] = keys[i]
            index[at] = slot + 1
        _append(links, slot)
        newest = moments[i] if previous[i] < 0 else max(seen[slot], moments[i])
        last[slot] = row + i
        seen[slot] = newest  # of rows that are counted, the same number in the same place
        slots[i] = slot
    return count, forgotten, expired


@numba.njit(nogil=True, cache=True)
def _follow(group, moments, unknown, seen, idle):  # type: ignore[no-untyped-def]
    """Return the row before each of its sequence, or -1, and whether the others start anew. What is
    known of the keys is changed in place."""
    n = group.shape[0]
    last, before = np.full(seen.shape[0], -1), np.full(n, -1)
    anew = np.zeros(n, np.bool_)
    for i in range(n):
        key = group[i]
        anew[i] = unknown[key] or _too_old(moments[i], seen[key], idle)
        if not anew[i]:
            before[i] = last[key]
        seen[key] = moments[i] if anew[i] else max(seen[key], moments[i])
        last[key], unknown[key] = i, False
    return before, anew


@numba.njit(nogil=True, inline="always")
def _too_old(moment, seen, idle):  # type: ignore[no-untyped-def]
    return seen != NEVER and moment != NEVER and moment - seen > idle


@numba.njit(nogil=True, cache=True)
def _find(keys, own, index):  # type: ignore[no-untyped-def]
    slots = np.empty(keys.shape[0], np.int64)
    for i in range(keys.shape[0]):
        slots[i] = index[_place(keys[i], own, index)] - 1
    return slots


@numba.njit(nogil=True, cache=True)
def _restore(own, index, links, oldest_first):  # type: ignore[no-untyped-def]
    for slot in oldest_first:
        index[_place(own[slot], own, index)] = slot + 1
        _append(links, slot)


@numba.njit(nogil=True, inline="always")
def _place(key, own, index):  # type: ignore[no-untyped-def]
    """Return where the key is in the index, or where it would go."""
    mask = index.shape[0] - 1
    at = np.int64(key & np.uint64(mask))
    while index[at] and own[index[at] - 1] != key:
        at = (at + 1) & mask
    return at


@numba.njit(nogil=True, inline="always")
def _take_out(hole, own, index):  # type: ignore[no-untyped-def]
    """Take out what is there; move up those behind it that were pushed away from their place."""
    mask = index.shape[0] - 1
    at = (hole + 1) & mask
    while index[at]:
        home = np.int64(own[index[at] - 1] & np.uint64(mask))
        if (at - home) & mask >= (at - hole) & mask:
            index[hole] = index[at]
            hole = at
        at = (at + 1) & mask
    index[hole] = 0


@numba.njit(nogil=True, inline="always")
def _unlink(links, slot):  # type: ignore[no-untyped-def]
    before, after = links[slot + 1, 0], links[slot + 1, 1]
    links[before, 1], links[after, 0] = after, before


@numba.njit(nogil=True, inline="always")
def _append(links, slot):  # type: ignore[no-untyped-def]
    """Link a slot as the newest."""
    newest = links[0, 0]
    links[slot + 1, 0], links[slot + 1, 1] = newest, 0
    links[newest, 1] = links[0, 0] = slot + 1


@numba.njit(nogil=True, cache=True)
def _rounds(before):  # type: ignore[no-untyped-def]
    """Number the rows of each sequence, then sort by that number, and sequences by length."""
    n = before.shape[0]
    turn, sequence = np.empty(n, np.int64), np.empty(n, np.int64)
    length = np.zeros(n, np.int64)
    count = longest = 0
    for i in range(n):
        if before[i] < 0:
            turn[i], sequence[i] = 0, count
            count += 1
        else:
            turn[i], sequence[i] = turn[before[i]] + 1, sequence[before[i]]
        length[sequence[i]] = turn[i] + 1
        longest = max(longest, turn[i] + 1)
    sizes = np.zeros(longest, np.int64)
    for s in range(count):
        sizes[length[s] - 1] += 1
    for k in range(longest - 2, -1, -1):  # those that are longer have a row in it, too
        sizes[k] += sizes[k + 1]
    starts, next_rank = np.zeros(longest + 1, np.int64), np.zeros(longest + 1, np.int64)
    for k in range(longest):  # slices take seconds to compile: their sizes may differ
        starts[k + 1] = starts[k] + sizes[k]
        next_rank[k] = sizes[k + 1] if k + 1 < longest else 0
    rank = np.empty(count, np.int64)
    for s in range(count):
        rank[s] = next_rank[length[s] - 1]
        next_rank[length[s] - 1] += 1
    order, place = np.empty(n, np.int64), np.empty(n, np.int64)
    for i in range(n):
        place[i] = starts[turn[i]] + rank[sequence[i]]
        order[place[i]] = i
    return order, place, sizes


__all__ = ["Entry", "Rounds", "StateTable", "States"]
