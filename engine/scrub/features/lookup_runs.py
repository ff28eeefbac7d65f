"""A table that changes while it is looked up: sorted runs, merged as they grow.

Changes come in order and become one immutable run, as in a log-structured merge tree (O'Neil et
al., 1996). A run that is more than an eighth as large as the one before it is merged into that, so
there are few of them, and a change costs a constant number of copies of its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from engine.columnar.event_time import NEVER
from engine.columnar.hash_index import HashIndex
from engine.columnar.hashing import Hashes
from engine.scrub.features.lookup_table import Table
from engine.types.arrays import Bools, Ints

MERGED = 8
"""A run is merged into one that is not this many times as large."""
DEAD = np.iinfo(np.int64).max
"""When a row becomes known that was replaced or deleted: never."""
NEWEST = DEAD - 1
"""The time of rows that ask for what is newest."""
SPARE = 16
"""One of so many rows is forgotten when there are too many, so that this is not done each time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Changes:
    """Records of a changing table, in their order: rows, and deletions.

    Attributes:
        records: identifies each row's record: a later one with the same replaces it. Shape (n,).
        keys: the hash of each row's key, shape (n,).
        valid, known: when each row is valid and known, in ticks, shape (n,); None without times.
        columns: n rows.
        order: the place of each row among all records, increasing, shape (n,).
        written: when each record was written, ms since the epoch, the same for all if unknown;
            shape (n,). Says which of two partitions' records is the newest, however they are read.
        deleted: records that are deleted, shape (m,), and their place among all.
        deleted_order: as `order`.
    """

    records: Hashes
    keys: Hashes
    valid: Ints | None
    known: Ints | None
    columns: pl.DataFrame
    order: Ints
    written: Ints
    deleted: Hashes
    deleted_order: Ints


class Applied(NamedTuple):
    """What changes did to a table.

    Attributes:
        shared: rows whose key is that of another record, of which the newest counts.
        forgotten: rows forgotten because there were too many.
    """

    shared: int
    forgotten: int


class Runs:
    """Rows by key; one of each record, or of each record and time.

    Args:
        timed: whether rows are valid from a time on: of one record there may be several.
        most: rows that are kept. Of more, those go first that a later one of their key has
            replaced since (only with times), then those that changed longest ago.
        columns: the columns of a row.
    """

    def __init__(self, *, timed: bool, most: int, columns: pl.DataFrame) -> None:
        self.columns = columns.clear()
        self._timed, self._most = timed, most
        self._runs: list[_Run] = []
        self._starts = np.zeros(0, np.int64)

    def __len__(self) -> int:
        """The number of rows that count."""
        return sum(run.live for run in self._runs)

    @property
    def nbytes(self) -> int:
        """The bytes held."""
        return sum(run.nbytes for run in self._runs)

    def apply(self, changes: Changes) -> Applied:
        """Take changes in."""
        new = _Run.of(_surviving(changes, timed=self._timed), timed=self._timed)
        for run in self._runs:
            run.kill(np.unique(changes.deleted), None)
            run.kill(new.records, new.table.valid if self._timed else None)
        shared = 0 if self._timed else self._shared(new)
        if len(new):
            self._runs.append(new)
        self._merge()
        forgotten = self._forget()
        self._runs = [run for run in self._runs if run.live]
        frames = [run.table.columns for run in self._runs] or [self.columns.clear()]
        self.columns = frames[0] if len(frames) == 1 else pl.concat(frames, rechunk=False)
        self._starts = np.cumsum([0, *map(len, self._runs)])
        return Applied(shared, forgotten)

    def find(self, keys: Hashes, whole: Bools, times: Ints | None) -> tuple[Ints, Ints]:
        """Return for each key the row of `columns` that is the newest valid and known at a time, or
        the newest without times; -1 for none. And when it became valid.

        Args:
            whole: which keys have no null, shape (n,).
        """
        rows, valid = np.full(len(keys), -1), np.full(len(keys), NEVER)
        times = np.full(len(keys), NEWEST) if times is None else times
        for run, start in zip(self._runs, self._starts, strict=False):
            place = run.table.index.find(keys)
            place[~whole] = -1
            found = run.table.newest(place, times)
            since = run.table.valid[np.maximum(found, 0)]  # type: ignore[index]
            newer = (found >= 0) & (since >= valid)
            rows[newer], valid[newer] = found[newer] + start, since[newer]
        return rows, valid

    def _shared(self, new: _Run) -> int:
        """Return how many rows of a run have the key of another record's."""
        keys = new.keys
        shared = np.append(np.zeros(min(1, len(keys)), np.bool_), keys[1:] == keys[:-1])
        for run in self._runs:
            place = run.table.index.find(keys)
            shared |= run.table.newest(place, np.full(len(keys), NEWEST)) >= 0
        return int(shared.sum())

    def _merge(self) -> None:
        runs = self._runs
        while len(runs) > 1 and len(runs[-1]) * MERGED > runs[-2].live:
            last = [runs.pop(), runs.pop()]
            runs.append(_Run.joined(last[::-1]))

    def _forget(self) -> int:
        """Forget rows if there are too many; return how many."""
        live = len(self)
        if live <= self._most:
            return 0
        run = _Run.joined(self._runs)
        gone = live - (self._most - self._most // SPARE)
        superseded = np.append(run.keys[1:] == run.keys[:-1], False)
        first = np.lexsort((run.order, ~superseded))[:gone]
        run.bury(first)
        self._runs = [_Run.joined([run])]
        return gone


def _surviving(changes: Changes, *, timed: bool) -> Changes:
    """Return the rows that no later record of the same changes replaces or deletes."""
    parts = (changes.valid,) if timed and changes.valid is not None else ()
    by = np.lexsort((changes.order, *parts, changes.records))
    last = np.ones(len(by), np.bool_)
    same = changes.records[by][1:] == changes.records[by][:-1]
    for part in parts:
        same &= part[by][1:] == part[by][:-1]
    last[:-1] = ~same
    kept = by[last]
    if len(changes.deleted):
        order = np.lexsort((changes.deleted_order, changes.deleted))
        deleted = changes.deleted[order]
        at = np.searchsorted(deleted, changes.records[kept], "right") - 1
        hit = (at >= 0) & (deleted[np.maximum(at, 0)] == changes.records[kept])
        later = changes.deleted_order[order][np.maximum(at, 0)] > changes.order[kept]
        kept = kept[~(hit & later)]
    kept = np.sort(kept)
    return Changes(
        records=changes.records[kept],
        keys=changes.keys[kept],
        valid=None if changes.valid is None else changes.valid[kept],
        known=None if changes.known is None else changes.known[kept],
        columns=changes.columns[kept],
        order=changes.order[kept],
        written=changes.written[kept],
        deleted=changes.deleted,
        deleted_order=changes.deleted_order,
    )


class _Run:
    """Rows in the order of keys, then of times, then of their records.

    Attributes:
        table: finds them.
        records, keys, order: as in `Changes`, in the order of the rows.
    """

    def __init__(
        self, table: Table, known: Ints, records: Hashes, keys: Hashes, order: Ints
    ) -> None:
        self.table, self.records, self.keys, self.order = table, records, keys, order
        self._known = known
        """The table's own array, in which rows that are replaced become `DEAD`."""
        self._by_record = np.argsort(records, kind="stable")
        self._sorted = records[self._by_record]
        self.live = len(records)

    @classmethod
    def of(cls, rows: Changes, *, timed: bool) -> _Run:
        """Return rows that all count. Without times the newest record is valid last."""
        valid = rows.valid if timed and rows.valid is not None else rows.written
        known = rows.known if timed and rows.known is not None else valid
        return cls._sorted_by_key(rows.records, rows.keys, valid, known, rows.order, rows.columns)

    @classmethod
    def joined(cls, runs: Sequence[_Run]) -> _Run:
        """Return the rows of several runs that count."""
        live = [run._known != DEAD for run in runs]
        kept = list(zip(runs, live, strict=True))
        return cls._sorted_by_key(
            np.concatenate([run.records[on] for run, on in kept]),
            np.concatenate([run.keys[on] for run, on in kept]),
            np.concatenate([run.table.valid[on] for run, on in kept]),  # type: ignore[index]
            np.concatenate([run._known[on] for run, on in kept]),
            np.concatenate([run.order[on] for run, on in kept]),
            pl.concat([run.table.columns.filter(on) for run, on in kept]),
        )

    @classmethod
    def _sorted_by_key(
        cls,
        records: Hashes,
        keys: Hashes,
        valid: Ints,
        known: Ints,
        order: Ints,
        columns: pl.DataFrame,
    ) -> _Run:
        by = np.lexsort((order, valid, keys))
        keys, valid, known = keys[by], valid[by], known[by].copy()
        new_key = np.append(np.ones(min(1, len(by)), np.bool_), keys[1:] != keys[:-1])
        starts = np.append(np.flatnonzero(new_key), len(by))
        index = HashIndex(keys[starts[:-1]])
        table = Table(columns[by].rechunk(), index, valid, known, starts)
        return cls(table, known, records[by], keys, order[by])

    def __len__(self) -> int:
        return len(self.records)

    @property
    def nbytes(self) -> int:
        """The bytes held: the columns, eight numbers for each row, and the index."""
        return int(self.table.columns.estimated_size()) + 64 * len(self) + self.table.index.nbytes

    def kill(self, records: Hashes, valid: Ints | None) -> None:
        """Let the rows of these records no longer count; with times only those of the same time."""
        if not len(records):
            return
        low = np.searchsorted(self._sorted, records, "left")
        n = np.searchsorted(self._sorted, records, "right") - low
        at = np.repeat(low - np.append(0, np.cumsum(n)[:-1]), n) + np.arange(n.sum())
        rows = self._by_record[at]
        if valid is not None:
            assert self.table.valid is not None
            rows = rows[self.table.valid[rows] == np.repeat(valid, n)]
        self.bury(rows)

    def bury(self, rows: Ints) -> None:
        """Let these rows no longer count."""
        rows = rows[self._known[rows] != DEAD]
        self._known[rows] = DEAD
        self.live -= len(rows)


__all__ = ["Applied", "Changes", "Runs"]
