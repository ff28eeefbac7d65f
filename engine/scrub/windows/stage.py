"""Adds what a row's key did in a window of time before it."""

from __future__ import annotations

import numpy as np
import polars as pl

from engine.columnar.event_time import EventTime
from engine.columnar.hashing import Hashes, hashes
from engine.scrub.columns import expand_columns, extended
from engine.scrub.windows.aggregates import ANY_TYPE, NOT_FADING, Aggregate, layout, result_type
from engine.scrub.windows.kernels import SLOTS
from engine.scrub.windows.planning import SHAPES, Planner
from engine.scrub.windows.settings import WindowSettings
from engine.scrub.windows.state import WindowState
from engine.types import Batch, Schema, Snapshot, Stage, Transform, UserError, require, type_name
from engine.types.arrays import Bools, Floats


class Window(Stage):
    """Adds ``<column>_<aggregate>_<length>``: what the same key did in a window of time before a
    row.

    A row sees the rows of its key that stand before it in the stream, in the same batch too, and
    never itself unless `own`. It sees those of the times (t - length, t]: exactly, where the
    resolution is one tick of the time column; otherwise in panes of the resolution, that stand on
    whole multiples of it, so that the window is between length - resolution and length long. Null
    and NaN do not count.

    Rows may come out of order. A late row sees the window before its own time, and counts for later
    rows whose window holds it; that is promised for rows at most `lateness` older than the newest
    of their key. An older one sees what is remembered, and is counted as ``late``.

    Memory: 8 bytes and 8 for each kept number, for each pane that has rows, with room for more up
    to a half more, and as much again for the mark; 170 bytes for each key. A key is forgotten once
    the stream's time has moved on by `idle` since its last row, or when it is the one not seen for
    the longest time of more than `keys` keys, or `panes` panes; the latter is counted as
    ``forgotten``. A row more than `ahead` after the stream's time does not move that, unless
    eight in sequence are, and is counted as ``ahead``: one time far in the future does not forget
    everything, nor make later rows late (`engine.columnar.event_time.Clock`). All that
    is exact to the row and does not depend on how the stream is cut. Keys are compared by a 64-bit
    hash.
    """

    Settings = WindowSettings
    single_pass = True
    learns_by_batch = False

    def __init__(self, name: str, settings: WindowSettings) -> None:
        super().__init__(name, settings)
        self.settings: WindowSettings = settings
        self._by: tuple[str, ...] = ()
        self._time: EventTime | None = None
        self._nulls: dict[str, pl.Series] = {}
        self._layout = layout(settings.aggregates, SHAPES.index(settings.shape))
        self._state: WindowState | None = None

    # ------------------------------------------------------------------------------------- binding

    def bind(self, schema: Schema) -> Schema:
        settings = self.settings
        require(schema, [settings.time, *settings.aggregates], where=self.where)
        self._by = (
            expand_columns(settings.by, schema, where=f"{self.where} by") if settings.by else ()
        )
        for column, names in settings.aggregates.items():
            self._check(column, names, schema[column])
        self._time = EventTime(column=settings.time, dtype=schema[settings.time], where=self.where)
        planner = Planner(settings, self._layout, self._time)
        plan = planner.plan()
        fading = settings.shape == "fading"
        new: Schema = {
            f"{settings.prefix}{column}_{name}_{length}": result_type(name, fading=fading)
            for length in planner.lengths
            for column, names in settings.aggregates.items()
            for name in names
        }
        self._nulls = {name: pl.Series([None], dtype=dtype) for name, dtype in new.items()}
        if self._state is None:
            self._state = WindowState(plan, planner.results(), len(self._layout.sources))
        return extended(schema, new, where=self.where, remedy="set another 'prefix'")

    def _check(self, column: str, names: tuple[Aggregate, ...], dtype: pl.DataType) -> None:
        """Check that a column has such aggregates."""
        if not names:
            raise UserError(f"{self.where} wants nothing of column '{column}': name an aggregate.")
        if len(set(names)) < len(names):
            raise UserError(
                f"{self.where} names an aggregate of '{column}' twice in {list(names)}."
            )
        fading = [name for name in names if name in NOT_FADING]
        if fading and self.settings.shape == "fading":
            raise UserError(
                f"{self.where} expects aggregates that can fade, got '{fading[0]}' of column "
                f"'{column}': take it from a window of another shape."
            )
        numeric = [name for name in names if name not in ANY_TYPE]
        if numeric and not (dtype.is_numeric() or dtype == pl.Boolean):
            raise UserError(
                f"{self.where} expects numbers in column '{column}' for '{numeric[0]}', got "
                f"{type_name(dtype)}: take {', '.join(ANY_TYPE)} of it."
            )

    # ------------------------------------------------------------------------------------ applying

    def apply(self, batch: Batch) -> Batch:
        assert self._state is not None
        assert self._time is not None
        frame = batch.frame
        times = self._time.read(frame)
        seen, valid, counts = self._state.walk(self._hashes(frame), times, self._values(frame))
        done = batch.with_frame(frame.hstack(self._columns(seen, valid)))
        return done.counted(self.name, **counts)

    def _hashes(self, frame: pl.DataFrame) -> Hashes:
        return hashes(frame, self._by) if self._by else np.zeros(frame.height, np.uint64)

    def _values(self, frame: pl.DataFrame) -> Floats:
        """Return the values to keep, NaN where missing, shape (n, sources): numbers, 1 for a value
        of another type, or slots."""
        sources = self._layout.sources
        values = np.empty((frame.height, len(sources)))
        for i, source in enumerate(sources):
            column = frame.get_column(source.column)
            numbers = column.dtype.is_numeric() or column.dtype == pl.Boolean
            if numbers and not source.slots:
                values[:, i] = column.cast(pl.Float64, strict=False).to_numpy()
                continue
            values[:, i] = 1.0
            if source.slots:
                values[:, i] = hashes(column.to_frame()) & np.uint64(SLOTS - 1)
            if column.dtype.is_float():
                own = column.to_numpy()  # NaN where null, too
                np.copyto(values[:, i], np.nan, where=own != own)
            elif column.null_count():
                values[column.is_null().to_numpy(), i] = np.nan
        return values

    def _columns(self, seen: Floats, valid: Bools) -> list[pl.Series]:
        """Return the new columns, null where not valid. Of the ways to make them this one runs the
        least code, which the walk has driven out of the caches."""
        counts, columns = seen.view(np.int64), []
        for i, (name, null) in enumerate(self._nulls.items()):
            column = pl.Series(name, counts[i] if null.dtype == pl.Int64 else seen[i])
            columns.append(column if valid[i].all() else column.zip_with(pl.Series(valid[i]), null))
        return columns

    def snapshot(self) -> Snapshot:
        """Return what is remembered of each key, and the rows since."""
        return None if self._state is None else self._state.snapshot()

    def restore(self, value: Snapshot) -> None:
        assert self._state is not None
        self._state.restore(value)

    def merge(self, value: Snapshot) -> None:
        """Remember what another instance of this stage remembers, from its snapshot: its keys as
        if they had been seen last."""
        assert self._state is not None
        self._state.merge(value)

    def transforms(self) -> list[Transform] | None:
        """Return None: it reads other rows."""
        return None


__all__ = ["Window"]
