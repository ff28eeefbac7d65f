"""Adds columns of a table by key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from engine import types
from engine.columnar.event_time import EventTime
from engine.columnar.hashing import hashes
from engine.scrub.columns import extended, gathered
from engine.scrub.features.lookup_file import FileTable
from engine.scrub.features.lookup_fit import Fit, complete_rows, null_keys
from engine.scrub.features.lookup_side import SideTable
from engine.scrub.side_source import SideStage
from engine.types import (
    NANOSECONDS,
    Batch,
    Duration,
    Name,
    Names,
    Schema,
    Transform,
    UserError,
    require,
)
from engine.types.arrays import Bools, Ints
from engine.types.changes import Free, Neutral, Warned
from engine.types.plural import counted
from engine.types.settings import key_pairs


class Lookup(SideStage):
    """Adds columns of a table, in a file or from a compacted topic: those of the row that has the
    same key.

    With `as_of` the table holds several rows of a key, each valid from a time on, and a row of the
    stream gets the newest that is valid at its own time (`time`), never a later one. Without it a
    key stands in the table once.

    A row without a match (``unmatched``), or whose match is older than `max_age` (``stale``), gets
    nulls or is rejected. A key with a null (``no_key``) matches nothing, nor does a row without a
    time (``no_time``); those are the reasons of dead letters.

    A file is read once; with `reload` it is looked at again while the engine runs, and read again
    between two batches when it is another (counted as ``reloaded``); a file that cannot be read
    leaves the table as it was, with a warning.

    A `source` is read to its end before the first row, and what comes to it later is taken in
    before each batch (``changed``). Of each record key the newest record counts, with `as_of` of
    each record key and time; a record without a value deletes its key. One that cannot be used
    (``unreadable``) is told in the log. Only the place in the source is saved: a run that resumes
    reads it again, at least up to there.

    Keys are compared by a 64-bit hash: two of the table collide with probability keys**2 / 2**65,
    which is refused as a key that stands in it twice (in a file). Memory: the table, and 32 to 64
    bytes per key; with a source 64 more.
    """

    class Settings(types.Settings):
        """``[scrub.NAME]`` with ``kind = "lookup"``

        Attributes:
            path: the table in a file: Parquet, CSV, TSV, NDJSON or Arrow.
            source: or where its records come from, with the keys of ``[source]``:
                ``[scrub.NAME.source]``, as a rule a compacted topic. Every engine reads all of it,
                so it has no group.
            by: the key columns; or column = "column of the table" for each.
            columns: those of the table that are added, names or globs; all but the keys and times
                unless given.
            prefix: put before their names.
            time: event time column of the stream, with `as_of`.
            as_of: column of the table: when a row becomes valid.
            known: column of the table: when a row became known, if that can be later; it matches
                from then on.
            max_age [seconds]: how long after `as_of` a row of the table matches.
            missing: what becomes of rows without a match.
            reload [seconds]: how often to look whether the file is another; never unless given. A
                run that keeps a state (it trains, or a stage learns) then resumes only with the
                same file; one without says that the file is another, and goes on.
            keys [rows]: rows of a source that are kept; of more, those are forgotten that changed
                longest ago, counted as ``forgotten``. A run that resumes may have another number.
        """

        path: Neutral[Name | None] = None
        source: Neutral[dict[str, Any] | None] = None
        by: Names | dict[str, str]
        columns: Names = ("*",)
        prefix: str = ""
        time: Name | None = None
        as_of: Name | None = None
        known: Name | None = None
        max_age: Duration | None = Field(None, gt=0)
        missing: Literal["null", "reject"] = "null"
        reload: Neutral[Free[Duration | None]] = Field(None, gt=0)
        keys: Neutral[Warned[int]] = Field(1_000_000, ge=1)

    def __init__(self, name: str, settings: Lookup.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Lookup.Settings = settings
        self._by = key_pairs(settings.by)
        self._time: EventTime | None = None
        self._max_age: float | None = None
        self._table: FileTable | SideTable | None = None
        self._rows = self._found = 0
        if (settings.path is None) == (settings.source is None):
            raise UserError(
                f"{self.where} expects a table in a file, 'path', or from a source, "
                f"[scrub.{name}.source]: one of them."
            )
        if settings.source is not None and settings.reload is not None:
            raise UserError(f"{self.where} 'reload' is for a file: a source is read as it changes.")
        if not self._by:
            raise UserError(f"{self.where} names no key columns: set 'by'.")
        together = [settings.time is not None, settings.as_of is not None]
        if any(together) != all(together):
            raise UserError(f"{self.where} expects both 'time' and 'as_of', or neither.")
        timed = {"known": settings.known, "max_age": settings.max_age}
        for key, value in timed.items():
            if value is not None and settings.as_of is None:
                raise UserError(f"{self.where} '{key}' needs 'as_of' and 'time'.")

    @property
    def side_table(self) -> Mapping[str, Any] | None:
        return self.settings.source

    @property
    def nbytes(self) -> int:
        """The bytes of the table."""
        return 0 if self._table is None else self._table.nbytes

    @property
    def rows(self) -> int:
        """The rows of the table."""
        return 0 if self._table is None else self._table.rows

    @property
    def is_mostly_odd(self) -> bool:
        return isinstance(self._table, SideTable) and self._table.is_mostly_odd

    # ------------------------------------------------------------------------------------- binding

    def bind(self, schema: Schema) -> Schema:
        settings = self.settings
        require(schema, self._by, where=f"{self.where} by")
        if settings.time is not None:
            self._bind_time(settings.time, schema)
        fit = Fit(
            keys={column: schema[mine] for mine, column in self._by.items()},
            columns=settings.columns,
            prefix=settings.prefix,
            clock=self._time,
            as_of=settings.as_of,
            known=settings.known,
        )
        if self._table is None:
            self._table = self._made()
        return extended(schema, self._table.bind(fit), where=self.where, remedy=fit.remedy)

    def _bind_time(self, column: str, schema: Schema) -> None:
        require(schema, [column], where=f"{self.where} time")
        self._time = EventTime(column=column, dtype=schema[column], where=self.where)
        tick, most = self._time.nanoseconds, self.settings.max_age
        self._max_age = most if most is None or tick is None else most * NANOSECONDS["s"] / tick

    def _made(self) -> FileTable | SideTable:
        settings = self.settings
        if settings.path is not None:
            return FileTable(settings.path, self.where, settings.reload)
        assert self.side is not None, "the engine sets the source before bind"
        return SideTable(self.side, settings.keys)

    # ------------------------------------------------------------------------------------ applying

    def apply(self, batch: Batch) -> Batch:
        table = self._table
        assert table is not None, "a stage is bound before it is applied"
        counts = table.refresh()
        frame = batch.frame
        keys = frame[list(self._by)]
        times = None if self._time is None else self._time.read(frame)
        place, valid = table.find(hashes(keys), ~null_keys(keys), times)
        stale = self._stale(place, valid, times)
        place[stale] = -1
        found = place >= 0
        self._rows, self._found = self._rows + len(batch), self._found + int(found.sum())
        added = gathered(table.columns, place)
        done = batch.with_frame(frame.hstack(added))
        old = int(stale.sum())
        done = done.counted(
            self.name, unmatched=int(len(batch) - found.sum()) - old, stale=old, **counts
        )
        if self.settings.missing == "null" or found.all():
            return done
        column = self.settings.time
        done, kept = complete_rows(done, self._by, column, times, stage=self.name)
        fresh, found = ~stale[kept], found[kept]
        detail = f"Its row of {table.name} is older than 'max_age' = {self.settings.max_age} s."
        done = done.reject(fresh, stage=self.name, reason="stale", detail=detail)
        as_of = "" if column is None else f" that is valid at its time ({column})"
        detail = f"No row of {table.name}{as_of} has its key: {', '.join(self._by)}."
        return done.reject(found[fresh], stage=self.name, reason="unmatched", detail=detail)

    def _stale(self, place: Ints, valid: Ints | None, times: Ints | None) -> Bools:
        if self._max_age is None or valid is None or times is None:
            return np.zeros(len(place), np.bool_)
        stale: Bools = (place >= 0) & (times - valid > self._max_age)
        return stale

    def digest(self) -> str | None:
        """Return the digest of the file, which must match the checkpoint's where a state is kept;
        None with `reload`, and for a source."""
        if self.settings.path is None:
            return None
        return FileTable(self.settings.path, self.where, self.settings.reload).digest()

    def remarks(self) -> Sequence[str]:
        table = self._table
        if table is None:
            return ()
        odd = tuple(table.remarks())
        if not self._rows or self._found:
            return odd
        return (
            *odd,
            f"{self.where}: of {counted(self._rows, 'row')} of this run none has a match in "
            f"{table.name}: look at its keys.",
        )

    def transforms(self) -> Sequence[Transform] | None:
        """Return None: no model file can contain it."""
        return None


__all__ = ["Lookup"]
