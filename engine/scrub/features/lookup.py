"""Adds columns of a table by key."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from engine import types
from engine.columnar.hashing import hashes
from engine.scrub.columns import expand_columns, extended
from engine.scrub.event_time import NEVER, EventTime
from engine.scrub.features.lookup_table import Table, key_column, read_table, stamp
from engine.system.file_stamp import FileStamp
from engine.types import (
    NANOSECONDS,
    Batch,
    Duration,
    Name,
    Names,
    Schema,
    Stage,
    Transform,
    UserError,
    require,
)
from engine.types.arrays import Ints
from engine.types.changes import Free, Neutral
from engine.types.plural import counted

log = logging.getLogger("headrace.scrub")


class Lookup(Stage):
    """Adds columns of a table in a file: those of the row that has the same key.

    With `as_of` the table holds several rows of a key, each valid from a time on, and a row of the
    stream gets the newest that is valid at its own time (`time`), never a later one. Without it a
    key stands in the table once.

    A row without a match (``unmatched``), or whose match is older than `max_age` (``stale``), gets
    nulls or is rejected. A key with a null matches nothing. With `reload` the file is looked at
    again while the engine runs, and read again between two batches when it is another (counted as
    ``reloaded``); a file that cannot be read leaves the table as it was, with a warning.

    Keys are compared by a 64-bit hash: two of the table collide with probability keys**2 / 2**65,
    which is refused as a key that stands in it twice. Memory: the table, and 32 to 64 bytes per
    key.
    """

    class Settings(types.Settings):
        """``[scrub.NAME]`` with ``kind = "lookup"``

        Attributes:
            path: the table: a Parquet, CSV, TSV, NDJSON or Arrow file.
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
            reload [seconds]: how often to look whether the file is another; never unless given, and
                then a run resumes only with the same file.
        """

        path: Neutral[Name]
        by: Names | dict[str, str]
        columns: Names = ("*",)
        prefix: str = ""
        time: Name | None = None
        as_of: Name | None = None
        known: Name | None = None
        max_age: Duration | None = Field(None, gt=0)
        missing: Literal["null", "reject"] = "null"
        reload: Neutral[Free[Duration | None]] = Field(None, gt=0)

    def __init__(self, name: str, settings: Lookup.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Lookup.Settings = settings
        by = settings.by
        self._by = dict(by) if isinstance(by, dict) else {column: column for column in by}
        self._schema: Schema = {}
        self._time: EventTime | None = None
        self._max_age: float | None = None
        self._file: FileStamp | None = None
        self._table: Table | None = None
        self._looked = 0.0
        self._rows = self._found = 0
        if not self._by:
            raise UserError(f"{self.where} names no key columns: set 'by'.")
        together = [settings.time is not None, settings.as_of is not None]
        if any(together) != all(together):
            raise UserError(f"{self.where} expects both 'time' and 'as_of', or neither.")
        timed = {"known": settings.known, "max_age": settings.max_age}
        for key, value in timed.items():
            if value is not None and settings.as_of is None:
                raise UserError(f"{self.where} '{key}' needs 'as_of' and 'time'.")

    # ------------------------------------------------------------------------------------- binding

    def bind(self, schema: Schema) -> Schema:
        require(schema, self._by, where=f"{self.where} by")
        if self.settings.time is not None:
            self._bind_time(self.settings.time, schema)
        file = stamp(Path(self.settings.path), self.where)
        if self._table is None or file != self._file or schema != self._schema:
            self._schema, self._file = dict(schema), file
            self._table = self._read()
        self._looked = time.monotonic()
        return extended(schema, dict(self._table.columns.schema), where=self.where)

    def _bind_time(self, column: str, schema: Schema) -> None:
        require(schema, [column], where=f"{self.where} time")
        self._time = EventTime(column=column, dtype=schema[column], where=self.where)
        tick, most = self._time.nanoseconds, self.settings.max_age
        self._max_age = most if most is None or tick is None else most * NANOSECONDS["s"] / tick

    def _read(self) -> Table:
        """Raises: UserError if the file cannot be read or does not fit the stream."""
        path = Path(self.settings.path)
        where = f"{self.where} path '{path}'"
        dtypes = {column: self._schema[mine] for mine, column in self._by.items()}
        table = read_table(path, dtypes, where)
        require(table.schema, dtypes, where=where)
        times = self._times_of(table, where)
        keys = table.select(
            key_column(table.get_column(column), dtype, where).alias(column)
            for column, dtype in dtypes.items()
        )
        whole = ~keys.select(pl.any_horizontal(pl.all().is_null())).to_series()
        if times is not None:
            whole &= pl.Series((times[0] != NEVER) & (times[1] != NEVER))
        if gone := int((~whole).sum()):
            log.warning(
                "%s: %s without a key or time: they match nothing", where, counted(gone, "row")
            )
        columns = table.select(self._chosen(table.schema, where)).filter(whole)
        columns = columns.rename({c: self.settings.prefix + c for c in columns.columns})
        kept = whole.to_numpy()
        valid, known = (None, None) if times is None else (t[kept] for t in times)
        return Table.of(keys.filter(whole), columns, valid, known, where)

    def _chosen(self, schema: pl.Schema, where: str) -> list[str]:
        settings = self.settings
        hidden = {*self._by.values(), settings.as_of, settings.known}
        given = settings.columns == ("*",)
        chosen = expand_columns(settings.columns, dict(schema), where=where)
        chosen = tuple(c for c in chosen if not (given and c in hidden))
        if not chosen:
            raise UserError(f"{where} has no column beside its keys: nothing can be added.")
        return list(chosen)

    def _times_of(self, table: pl.DataFrame, where: str) -> tuple[Ints, Ints] | None:
        """Return when each row is valid and when it is known, in ticks of the stream's time."""
        settings, clock = self.settings, self._time
        if settings.as_of is None or clock is None:
            return None
        require(table.schema, [settings.as_of], where=where)
        valid = _ticks_of(table.get_column(settings.as_of), clock, where)
        if settings.known is None:
            return valid, valid
        require(table.schema, [settings.known], where=where)
        return valid, _ticks_of(table.get_column(settings.known), clock, where)

    # ------------------------------------------------------------------------------------ applying

    def apply(self, batch: Batch) -> Batch:
        reloaded = self._reloaded()
        table = self._table
        assert table is not None, "a stage is bound before it is applied"
        frame = batch.frame
        keys = frame.select(list(self._by))
        place = table.index.find(hashes(keys))
        if any(column.null_count() for column in keys.get_columns()):
            null = keys.select(pl.any_horizontal(pl.all().is_null())).to_series()
            place[null.to_numpy()] = -1
        if table.valid is not None and self._time is not None:
            times = self._time.read(frame)
            place = table.newest(place, times)
            stale = self._stale(table.valid, place, times)
            place[stale] = -1
        else:
            stale = np.zeros(len(batch), np.bool_)
        found = place >= 0
        self._rows, self._found = self._rows + len(batch), self._found + int(found.sum())
        added = table.columns.select(pl.all().gather(_indices(place)))
        done = batch.with_frame(frame.hstack(added.get_columns()))
        old = int(stale.sum())
        done = done.counted(
            self.name,
            unmatched=int(len(batch) - found.sum()) - old,
            stale=old,
            reloaded=int(reloaded),
        )
        if self.settings.missing == "null" or found.all():
            return done
        detail = f"No row of '{self.settings.path}' has its key: {', '.join(self._by)}."
        return done.reject(found, stage=self.name, reason="unmatched", detail=detail)

    def _stale(self, valid: Ints, place: Ints, times: Ints) -> Any:
        if self._max_age is None or not len(valid):
            return np.zeros(len(place), np.bool_)
        return (place >= 0) & (times - valid[place] > self._max_age)

    def _reloaded(self) -> bool:
        """Read the file again if it is another one; return whether it was."""
        every = self.settings.reload
        if every is None or time.monotonic() - self._looked < every:
            return False
        self._looked = time.monotonic()
        old, added = self._file, self._table.columns.schema if self._table else None
        try:
            self._file = stamp(Path(self.settings.path), self.where)
            if self._file == old:
                return False
            table = self._read()
            if table.columns.schema != added:
                raise UserError(f"{self.where} path '{self.settings.path}' has other columns now.")
        except UserError as error:
            log.warning("%s The table stays as it was.", error)
            return False
        self._table = table
        return True

    def digest(self) -> str | None:
        """Return the digest of the file, which must match the checkpoint's; None with `reload`."""
        if self.settings.reload is not None:
            return None
        with Path(self.settings.path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def remarks(self) -> Sequence[str]:
        if not self._rows or self._found:
            return ()
        return (
            f"{self.where}: of {counted(self._rows, 'row')} none has a match in "
            f"'{self.settings.path}': look at its keys.",
        )

    def transforms(self) -> Sequence[Transform] | None:
        """Return None: no model file can contain it."""
        return None


def _ticks_of(column: pl.Series, clock: EventTime, where: str) -> Ints:
    """Return times of the table in ticks of the stream's. A time without a zone is in UTC, as a
    source reads it."""
    wanted, got = clock.dtype, column.dtype
    if not (got.is_integer() if wanted.is_integer() else got in (pl.Date, pl.Datetime)):
        raise UserError(
            f"{where} expects times like those of column '{clock.column}' ({wanted}) in column "
            f"'{column.name}', got {got}."
        )
    known = column
    if isinstance(got, pl.Datetime) and got.time_zone is not None:
        known = known.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    if isinstance(wanted, pl.Datetime):
        known = known.cast(pl.Datetime(wanted.time_unit), strict=False)
    elif wanted == pl.Date:
        known = known.cast(wanted, strict=False)
    return clock.read(known.rename(clock.column).to_frame())


def _indices(place: Ints) -> pl.Series:
    """Return rows to gather; null for none."""
    series = pl.Series(place)
    return series if (place >= 0).all() else series.set(pl.Series(place < 0), None)


__all__ = ["Lookup"]
