"""The table of a `lookup` from a source of its own, as a compacted topic.

It is what compaction leaves: of each record key the newest record, and nothing where that is a
tombstone. So a table that was read while it changed, and one that is read anew after compaction,
are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl

from engine.columnar.hashing import Hashes, hashes, mix, spans
from engine.scrub.features.lookup_fit import Fit
from engine.scrub.features.lookup_runs import Changes, Runs
from engine.scrub.odd_records import SHARED, OddRecords
from engine.scrub.side_source import SideSource
from engine.types import NO_TIMESTAMP, POSITION, Records, Rejects, Schema, Values
from engine.types.arrays import Bools, Ints


class SideTable:
    """A table whose rows come from a source, as long as the stage is applied.

    Args:
        side: the source.
        most: rows that are kept.

    Attributes:
        name: in sentences.
    """

    def __init__(self, side: SideSource, most: int) -> None:
        self.name = f"[{side.section}]"
        self._side, self._most = side, most
        self._fit: Fit | None = None
        self._schema: Schema = {}
        self._runs: Runs | None = None
        self._loaded = False
        self._order = 0
        self._odd = OddRecords(self.name)

    @property
    def columns(self) -> pl.DataFrame:
        """The columns that rows get."""
        assert self._runs is not None, "a stage is bound before it is applied"
        return self._runs.columns

    @property
    def rows(self) -> int:
        """The rows of the table."""
        return 0 if self._runs is None else len(self._runs)

    @property
    def nbytes(self) -> int:
        """The bytes held."""
        return 0 if self._runs is None else self._runs.nbytes

    def bind(self, fit: Fit) -> Schema:
        """Return the columns that it adds; nothing is read. Raises: UserError if the source's
        columns do not fit the stream."""
        schema = self._side.schema()
        added = fit.added(schema, self.name)
        if fit != self._fit or schema != self._schema:
            self._fit, self._schema = fit, schema
            self._begin()
        return added

    def refresh(self) -> Mapping[str, int]:
        """Read the source to its end before the first batch; then take in what has come. Return
        what was counted."""
        another = self._loaded and self._side.is_another()
        if self._loaded and not another:
            return self._taken(self._side.changes(), {})
        self._begin()
        counts = self._taken(self._side.whole(), dict(self._side.least))
        self._loaded = True
        return {**counts, "changed": 0, "reloaded": int(another)}

    def find(self, keys: Hashes, whole: Bools, times: Ints | None) -> tuple[Ints, Ints | None]:
        """Return the row of `columns` for each key, -1 for none, and when it became valid."""
        assert self._runs is not None, "a stage is bound before it is applied"
        return self._runs.find(keys, whole, times)

    def remarks(self) -> Iterator[str]:
        """Yield a sentence for each kind of odd record."""
        yield from self._odd.remarks()

    @property
    def is_mostly_odd(self) -> bool:
        """Whether at least half of the records that were read have no use."""
        return self._odd.are_most

    # ------------------------------------------------------------------------------------ inside

    def _begin(self) -> None:
        """Start with an empty table."""
        assert self._fit is not None
        rows = self._fit.rows(pl.DataFrame(schema=self._schema), self.name)
        self._runs = Runs(timed=self._fit.as_of is not None, most=self._most, columns=rows.columns)
        self._loaded, self._order = False, 0

    def _taken(self, pieces: Iterator[Records], before: Mapping[str, int]) -> dict[str, int]:
        """Take records in; return what was counted.

        Args:
            before: positions up to which bad records were counted in an earlier run.
        """
        assert self._runs is not None
        counts: Counter[str] = Counter()
        for records in pieces:
            self._odd.note_read(len(records))
            frame, rejects = self._side.decode(records, self._schema)
            changes, odd = self._changes(records, frame, rejects)
            applied = self._runs.apply(changes)
            counts["changed"] += len(records)
            counts["forgotten"] += applied.forgotten
            counts["shared"] += applied.shared
            since = before.get(records.partition, 0)
            counts["unreadable"] += int((records.positions[odd] >= since).sum())
            if applied.shared:
                first = f"in '{records.partition}': the newest counts"
                self._odd.warn(SHARED, applied.shared, first)
        return dict(counts)

    def _changes(
        self, records: Records, frame: pl.DataFrame, rejects: list[Rejects]
    ) -> tuple[Changes, Ints]:
        """Return what records change, and which of them cannot be used."""
        assert self._fit is not None
        rows, n = self._fit.rows(frame.select(list(self._schema)), self.name), len(records)
        kept = rows.whole
        at = np.searchsorted(records.positions, frame.get_column(POSITION).to_numpy())
        named, has_name = _record_hashes(records)
        keys = hashes(rows.keys)
        usable = np.zeros(n, np.bool_)
        usable[at] = True
        empty = _empty(records) & ~usable
        self._odd.note_rejects(rejects, records, empty)
        self._odd.note_keyless(records, at[~kept])
        usable[at] = kept
        # Of a record that cannot be used, compaction leaves nothing, as of a tombstone. Rows that
        # are valid from a time on stay beside it: it may not have been to replace them.
        gone = has_name & (empty if rows.valid is not None else ~usable)
        order = self._order + np.arange(n)
        self._order += n
        changes = Changes(
            # Without a record key, that of the row says which one it replaces.
            records=np.where(has_name[at], named[at], mix(keys))[kept],
            keys=keys[kept],
            valid=None if rows.valid is None else rows.valid[kept],
            known=None if rows.known is None else rows.known[kept],
            columns=rows.columns.filter(kept),
            order=order[at][kept],
            written=_written(records)[at][kept],
            deleted=named[gone],
            deleted_order=order[gone],
        )
        return changes, np.flatnonzero(~usable & ~empty)


def _record_hashes(records: Records) -> tuple[Hashes, Bools]:
    """Return the hash of each record's key, within its partition, and whether it has one; shape
    (n,)."""
    keys = records.keys
    if keys is None:
        return np.zeros(len(records), np.uint64), np.zeros(len(records), np.bool_)
    hashed = spans(keys.data, keys.bounds[:-1], keys.bounds[1:] - keys.tail)
    partition = hashes(pl.DataFrame({"partition": [records.partition]}))
    null = np.zeros(len(records), np.bool_) if keys.null is None else keys.null
    return mix(hashed + partition), ~null


def _written(records: Records) -> Ints:
    """Return when each record was written, ms since the epoch, shape (n,)."""
    if records.timestamps is None:
        return np.full(len(records), NO_TIMESTAMP)
    return records.timestamps


def _empty(records: Records) -> Bools:
    """Return which records have no value, as tombstones do, shape (n,)."""
    values = records.values
    if isinstance(values, Values) and values.null is not None:
        return values.null
    return np.zeros(len(records), np.bool_)


__all__ = ["SideTable"]
