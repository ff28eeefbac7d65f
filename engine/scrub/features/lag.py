"""Adds past values of the same key."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from engine import types
from engine.columnar.event_time import NEVER, Clock, EventTime
from engine.columnar.hashing import Hashes, hashes, mix
from engine.scrub.columns import RENAME, extended
from engine.scrub.key_store import KeyStore
from engine.types import (
    Batch,
    Name,
    Names,
    Schema,
    Snapshot,
    Stage,
    Transform,
    UserError,
    require,
    type_name,
)

Timestamps = NDArray[np.int64]


class Lag(Stage):
    """Adds ``<column>_lag_<k>``: the value the same key had at exactly ``time - k * every``.

    Never the future: a value counts only for rows that stand after it in the stream, in the same
    batch or a later one. Of several rows with the same key and time the first that has a value
    counts. Rows may come out of order: a row finds what is remembered, that is values no older than
    ``max(steps) * every + lateness`` before the clock, the newest time so far. All that is exact to
    the row and does not depend on how the stream is cut.

    A time that is further ahead than that moves the clock once others confirm it, so one wrong time
    does not make it forget everything (`engine.columnar.event_time.Clock`). Keys and times are
    compared by a 64-bit hash: a
    wrong value is found with probability remembered / 2**64.
    """

    single_pass = True
    learns_by_batch = False

    class Settings(types.Settings):
        """``[scrub.NAME]`` with ``kind = "lag"``

        Attributes:
            column: whose past is wanted.
            by: the key columns; none means one series.
            time: a datetime, date or integer column; rows without a time find and leave nothing.
            every: length of a step: a duration ("1h", "15m", "1d", "1h30m"), or an integer where
                time is one.
            steps [steps]: how many steps back, one new column each.
            lateness: how much later than newer rows a row may come and still find all its values;
                same form as every.
        """

        column: Name
        by: Names = ()
        time: Name
        every: str | int
        steps: tuple[int, ...] = Field(min_length=1)
        lateness: str | int = 0

    def __init__(self, name: str, settings: Lag.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Lag.Settings = settings
        self._kind: pl.DataType = pl.Null()
        self._back: Timestamps = np.empty(0, np.int64)
        self._horizon = 0
        self._clock = Clock()
        self._past = KeyStore()

    # ------------------------------------------------------------------------------------- binding

    def bind(self, schema: Schema) -> Schema:
        settings = self.settings
        require(schema, [settings.column, settings.time, *settings.by], where=self.where)
        self._kind = schema[settings.column]
        if self._kind.is_nested() or self._kind == pl.Binary:
            raise UserError(
                f"{self.where} expects single values in column '{settings.column}', got "
                f"{type_name(self._kind)}."
            )
        if min(settings.steps) < 1:
            raise UserError(f"{self.where} expects steps of 1 or more, got {min(settings.steps)}.")
        if len(set(settings.steps)) < len(settings.steps):
            raise UserError(f"{self.where} names a step twice in {list(settings.steps)}.")
        time = EventTime(column=settings.time, dtype=schema[settings.time], where=self.where)
        every = time.ticks("every", settings.every)
        if every < 1:
            raise UserError(f"{self.where} expects a positive 'every', got {settings.every!r}.")
        self._back = np.array(settings.steps, np.int64) * every
        late = time.ticks("lateness", settings.lateness)
        self._horizon = int(self._back.max()) + late
        new = dict.fromkeys(self._names, self._kind)
        return extended(schema, new, where=self.where, remedy=RENAME)

    @property
    def _names(self) -> list[str]:
        return [f"{self.settings.column}_lag_{k}" for k in self.settings.steps]

    # ------------------------------------------------------------------------------------ applying

    def apply(self, batch: Batch) -> Batch:
        keys, times, values, present = self._read(batch.frame)
        self._clock, newest, _ = self._clock.walk(times, self._horizon, at_once=True)
        pasts = times[:, None] - self._back
        wanted = mix(keys[:, None] ^ mix(pasts.view(np.uint64))).ravel()
        visible = (pasts >= (newest - self._horizon)[:, None]) & (times > NEVER)[:, None]
        visible_flat = visible.ravel()
        known, lagged = self._remembered(wanted, values.dtype)
        new, rows = self._new(mix(keys ^ mix(times.view(np.uint64))), present)
        here, lagged_here = _earlier(new, rows, values, wanted, len(self._back))
        lagged = np.where(known, lagged, lagged_here)
        known = (known | here) & visible_flat
        self._remember(new, times[rows], values[rows])
        return batch.with_frame(batch.frame.with_columns(self._columns(lagged, known)))

    def _read(
        self, frame: pl.DataFrame
    ) -> tuple[Hashes, Timestamps, NDArray[Any], NDArray[np.bool_]]:
        """Return hash of the key, time, value, and whether there is a value to remember; shapes
        (n,)."""
        settings = self.settings
        keys = hashes(frame, settings.by) if settings.by else np.zeros(frame.height, "u8")
        time = frame.get_column(settings.time).to_physical().cast(pl.Int64)
        times = time.fill_null(NEVER).to_numpy()
        column = frame.get_column(settings.column)
        if column.dtype.is_float():
            column = column.fill_nan(None)
        present = (column.is_not_null() & time.is_not_null()).to_numpy()
        return keys, times, _plain(column), present

    def _remembered(
        self, keys: Hashes, dtype: np.dtype[Any]
    ) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        known, _, values = self._past.find(keys)
        return known, values if self._past.runs else np.zeros(len(keys), dtype)

    def _new(self, keys: Hashes, present: NDArray[np.bool_]) -> tuple[Hashes, NDArray[np.int64]]:
        """Return the keys (with their time) to remember, ascending, and the first row of each."""
        rows = np.flatnonzero(present)
        new, first = np.unique(keys[rows], return_index=True)
        fresh = ~self._past.find(new)[0]
        return new[fresh], rows[first[fresh]]

    def _remember(self, keys: Hashes, times: Timestamps, values: NDArray[Any]) -> None:
        oldest = self._clock.time - self._horizon
        kept = times >= oldest
        self._past = self._past.add(keys[kept], times[kept], values[kept], oldest=oldest)

    def _columns(self, lagged: NDArray[Any], known: NDArray[np.bool_]) -> list[pl.Series]:
        shape = (-1, len(self._back))
        lagged, known = lagged.reshape(shape), known.reshape(shape)
        columns = []
        for i, name in enumerate(self._names):
            column = pl.Series(name, lagged[:, i])
            gaps = pl.Series(known[:, i])
            column = column.to_frame().select(pl.when(gaps).then(pl.col(name))).to_series()
            columns.append(column.cast(self._kind))
        return columns

    def snapshot(self) -> Snapshot:
        """Return the clock, and the remembered values by key and time."""
        return {"clock": self._clock.snapshot(), "past": self._past.snapshot()}

    def restore(self, value: Snapshot) -> None:
        self._clock = Clock.restore(value["clock"])
        self._past = KeyStore.restore(value["past"])

    def transforms(self) -> list[Transform] | None:
        """Return None: it reads other rows."""
        return None


def _earlier(
    keys: Hashes, rows: NDArray[np.int64], values: NDArray[Any], wanted: Hashes, steps: int
) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Return which wanted keys an earlier row of this batch has, and its value."""
    if not len(keys):
        return np.zeros(len(wanted), np.bool_), np.zeros(len(wanted), values.dtype)
    at = np.searchsorted(keys, wanted)
    at[at == len(keys)] = 0
    row = rows[at]
    here = (keys[at] == wanted) & (row < np.arange(len(wanted)) // steps)
    return here, values[row]


def _plain(column: pl.Series) -> NDArray[Any]:
    """Return the values as an array without objects; arbitrary for null."""
    if column.dtype == pl.String or isinstance(column.dtype, pl.Categorical | pl.Enum):
        return column.cast(pl.String).fill_null("").to_numpy().astype(np.str_)
    column = column.to_physical()
    return column.fill_null(False if column.dtype == pl.Boolean else 0).to_numpy()


__all__ = ["Lag"]
