"""``lag``: what the same key's value was a while ago, in event time."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
from polars.exceptions import PolarsError
from pydantic import Field

from engine.scrub.base import Base, spread
from engine.types import Batch, Schema, Settings, Snapshot, UserError, require

ROW = "_row"
TIME = "_time"


class Lag(Base):
    """Adds ``<column>_lag_<k>`` for each k of `steps`: the value of the same key at exactly time -
    k * every.

    Never the future: a row sees only rows that came before it in the stream, whatever their event
    times, so the result
    does not depend on how the stream is cut into batches. Null where nothing was seen; nulls are
    not remembered; of
    several values at one key and time the first counts.

    State: the rows of the newest max(steps) * every + lateness of event time.
    """

    class Settings(Settings):
        """
        Attributes:
            column: whose past is wanted.
            by: key columns; may be empty.
            time: the event time; datetime, date or integer.
            every: one step; a duration ("1h", "1d") or, for integer times, a number.
            steps: how many steps back, each.
            lateness: how much longer values are remembered for rows that come late; like `every`.
        """

        column: str
        by: tuple[str, ...] = ()
        time: str
        every: str | int
        steps: tuple[int, ...] = Field(min_length=1)
        lateness: str | int = 0

    settings: Lag.Settings

    def bind(self, schema: Schema) -> Schema:
        """Raises: UserError for a column that is not there, or a step that is not in the past."""
        settings = self.settings
        require(schema, [settings.column, settings.time], where=self.where)
        self._by = spread(settings.by, schema, where=f"{self.where} by")
        kind = schema[settings.time]
        if not (kind.is_temporal() or kind.is_integer()):
            raise UserError(
                f"{self.where} time expects a datetime, date or integer column, got "
                f"'{settings.time}' of type {kind}."
            )
        if min(settings.steps) < 1:
            raise UserError(f"{self.where} expects steps of 1 or more, got {min(settings.steps)}.")
        self._ticks = pl.col(settings.time)
        if kind.is_temporal():
            self._ticks = self._ticks.cast(pl.Datetime("us")).cast(pl.Int64)
        self._every = self._span(settings.every, temporal=kind.is_temporal())
        if self._every < 1:
            raise UserError(f"{self.where} every expects a positive span, got {settings.every!r}.")
        late = self._span(settings.lateness, temporal=kind.is_temporal())
        self._memory = max(settings.steps) * self._every + late
        self._back = np.array(settings.steps, np.int64) * self._every
        self._names = [f"{settings.column}_lag_{k}" for k in settings.steps]
        keys = {c: schema[c] for c in self._by}
        self._state = pl.DataFrame(
            schema={**keys, TIME: pl.Int64(), settings.column: schema[settings.column]}
        )
        return {**schema, **dict.fromkeys(self._names, schema[settings.column])}

    def apply(self, batch: Batch) -> Batch:
        """Look back, then remember."""
        rows = batch.frame.select(*self._by, self._ticks.alias(TIME), self.settings.column)
        if not rows.height:
            return batch.with_frame(
                batch.frame.with_columns(
                    pl.lit(None).cast(rows.dtypes[-1]).alias(n) for n in self._names
                )
            )
        rows = rows.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias(ROW))
        known = pl.concat(
            [self._state.with_columns(pl.lit(-1, dtype=pl.Int64).alias(ROW)), rows]
        ).drop_nulls(self.settings.column)
        known = known.unique([*self._by, TIME], keep="first", maintain_order=True)
        lags = self._look_back(rows, known)
        self._remember(known)
        return batch.with_frame(batch.frame.with_columns(lags))

    def snapshot(self) -> Snapshot:
        """The rows remembered."""
        return self._state

    def restore(self, value: Snapshot) -> None:
        """Back to them."""
        self._state = value

    def _look_back(self, rows: pl.DataFrame, known: pl.DataFrame) -> list[pl.Series]:
        """One join for all steps: the rows stand one below the other, once a step."""
        n, k = rows.height, len(self._names)
        times = (rows[TIME].to_numpy()[None, :] - self._back[:, None]).reshape(-1)
        every_row = pl.concat([rows.select(*self._by, pl.col(ROW).alias("_at"))] * k)
        asked = every_row.with_columns(pl.Series(TIME, times))
        found = asked.join(
            known, on=[*self._by, TIME], how="left", nulls_equal=True, maintain_order="left"
        )
        past = pl.when(pl.col(ROW) < pl.col("_at")).then(pl.col(self.settings.column))
        values = found.select(past.alias("value")).to_series()
        return [values.slice(i * n, n).alias(name) for i, name in enumerate(self._names)]

    def _remember(self, known: pl.DataFrame) -> None:
        if known.height:
            newest = known[TIME].max()
            assert isinstance(newest, int)
            known = known.filter(pl.col(TIME) > newest - self._memory - self._every)
        self._state = known.drop(ROW).rechunk()

    def _span(self, span: str | int, *, temporal: bool) -> int:
        """Microseconds, or for integer times the number itself."""
        if not temporal or span == 0:
            if isinstance(span, int):
                return span
            raise UserError(
                f"{self.where} expects whole numbers for an integer time, got {span!r}."
            )
        start = dt.datetime(2001, 1, 1)
        try:
            end = pl.Series([start]).dt.offset_by(str(span))[0]
        except PolarsError:
            end = None
        if end is None or isinstance(span, int):
            raise UserError(f"{self.where} expects a duration such as '1h' or '1d', got {span!r}.")
        return int((end - start) / dt.timedelta(microseconds=1))


__all__ = ["Lag"]
