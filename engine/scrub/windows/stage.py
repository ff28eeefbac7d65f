"""Adds what a row's key did in a window of time before it."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field

from engine import types
from engine.columnar.hashing import Hashes, hashes
from engine.scrub.columns import expand_columns, extended
from engine.scrub.event_time import EventTime
from engine.scrub.windows.aggregates import ANY_TYPE, NOT_FADING, Aggregate, layout, result_type
from engine.scrub.windows.kernels import SLOTS, Plan, Spec, weigh
from engine.scrub.windows.results import AS_DISTINCT, Results
from engine.scrub.windows.state import WindowState
from engine.types import Batch, Name, Names, Schema, Snapshot, Stage, Transform, UserError, require
from engine.types.arrays import Bools, Floats, Ints

Length = str | int
SHAPES = ("sliding", "tumbling", "session", "fading")
LENGTH_KEY = {"sliding": "length", "tumbling": "length", "session": "gap", "fading": "halflife"}
"""The setting that says how long a window of each shape is."""
LONGEST = 1 << 60
"""More ticks than any duration has."""
PANES = 360
"""Panes of the shortest window where no resolution is set, or a few more, so that they fit."""
SESSIONS = 1_024
"""Gaps that a session lasts before a sketch may lose its first values."""
FADED = 32
"""Halflives after which a key is forgotten: little is left of it."""
WEIGHTS = 1 << 14
"""Panes after which a weight is computed, not looked up."""


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
    to a half more, and as much again for the mark; 220 bytes for each key. A key is forgotten once
    the stream's time has moved on by `idle` since its last row, or when it is the one not seen for
    the longest time of more than `keys` keys, or `panes` panes; the latter is counted as
    ``forgotten``. A row more
    than `ahead` after the stream's time moves that by `ahead` only, and is counted as ``ahead``, so
    that one time far in the future does not forget everything. All that is exact to the row and
    does not depend on how the stream is cut. Keys are compared by a 64-bit hash.
    """

    single_pass = True

    class Settings(types.Settings):
        """``[scrub.NAME]`` with ``kind = "window"``

        Attributes:
            by: the key columns, names or globs; none means one window of all rows.
            time: a datetime, date or integer column; rows without a time see nothing, leave
                nothing, and are counted as ``no_time``.
            aggregates: column -> what of it: count, sum, mean, min, max, deviation (of a sample),
                last, time_since (seconds since its last value in the window), rate (count a
                second), ratio (of the row's own value to the window's mean), distinct (how many
                different values, by a sketch: within about 5 % up to 300).
            shape: sliding (the `length` before a row), tumbling (since the last whole multiple of
                `length`), session (since a pause longer than `gap`) or fading (all earlier rows,
                each with weight 2 ** (-age / `halflife`)).
            length: of a sliding window, or of several that share one state, or of a tumbling one: a
                duration ("60m", "7d"), or an integer where time is one.
            gap: the pause that ends a session; same form as length.
            halflife: the age at which a row counts half; same form as length.
            resolution: length of a pane; same form as length; 1/360 of the shortest length unless
                given, and one tick of the time column for a session.
            lateness: how much older than the newest row of its key a row may come and still count
                exactly; same form as length, at most the shortest one.
            own: a row sees itself, too.
            ties: a row sees earlier rows of its own time; false only where the resolution is one
                tick.
            ahead: how far one row may move the stream's time; same form as length; the longest
                window unless given.
            idle: how far the stream's time moves on after a key's last row until the key is
                forgotten; same form as length; the longest window and the lateness unless given (32
                halflives where fading).
            keys: the most keys.
            panes: the most panes of all keys.
            prefix: put before the names of the new columns, to tell those of two stages apart.
        """

        by: Names = ()
        time: Name
        aggregates: dict[str, tuple[Aggregate, ...]] = Field(min_length=1)
        shape: Literal["sliding", "tumbling", "session", "fading"] = "sliding"
        length: Length | tuple[Length, ...] = ()
        gap: Length | None = None
        halflife: Length | None = None
        resolution: Length | None = None
        lateness: Length = 0
        own: bool = False
        ties: bool = True
        ahead: Length | None = None
        idle: Length | None = None
        keys: int = Field(100_000, ge=1, le=1 << 30)
        panes: int = Field(4_000_000, ge=1, le=1 << 30)
        prefix: str = ""

    def __init__(self, name: str, settings: Window.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Window.Settings = settings
        self._by: tuple[str, ...] = ()
        self._time: EventTime | None = None
        self._new: Schema = {}
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
        plan = self._plan(self._time)
        fading = settings.shape == "fading"
        self._new = {
            f"{settings.prefix}{column}_{name}_{length}": result_type(name, fading=fading)
            for length in self._lengths
            for column, names in settings.aggregates.items()
            for name in names
        }
        if self._state is None:
            results = self._results(self._time)
            self._state = WindowState(plan, results, len(self._layout.sources))
        return extended(schema, self._new, where=self.where)

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
                f"{dtype}: take {', '.join(ANY_TYPE)} of it."
            )

    @property
    def _lengths(self) -> tuple[Length, ...]:
        """What the windows are as long as, in the order given."""
        settings, key = self.settings, LENGTH_KEY[self.settings.shape]
        given: dict[str, Length | tuple[Length, ...] | None] = {
            "length": settings.length, "gap": settings.gap, "halflife": settings.halflife,
        }  # fmt: skip
        value = given.pop(key)
        for other, unused in given.items():
            if unused not in ((), None):
                raise UserError(
                    f"{self.where} has '{other}', which is not for shape '{settings.shape}': take "
                    f"it out, and set '{key}'."
                )
        if value in ((), None):
            raise UserError(f"{self.where} needs the key '{key}', for shape '{settings.shape}'.")
        lengths = value if isinstance(value, tuple) else (value,)
        if len(lengths) > 1 and settings.shape != "sliding":
            raise UserError(f"{self.where} expects one '{key}' for shape '{settings.shape}'.")
        return tuple(length for length in lengths if length is not None)

    def _plan(self, time: EventTime) -> Plan:
        settings = self.settings
        shape, fading = SHAPES.index(settings.shape), settings.shape == "fading"
        lengths = self._ticks(time)
        resolution = self._resolution(time, lengths)
        late = self._duration(time, "lateness", settings.lateness)
        if late > min(lengths) and settings.shape in ("sliding", "tumbling"):
            raise UserError(
                f"{self.where} expects a 'lateness' of at most the window's length, got "
                f"{settings.lateness!r}."
            )
        longest = max(lengths)
        whole = min(FADED * longest, LONGEST) + late if fading else longest + late
        idle = whole if settings.idle is None else self._duration(time, "idle", settings.idle)
        if idle < whole and not fading:
            raise UserError(
                f"{self.where} expects an 'idle' of at least the longest window and the lateness, "
                f"got {settings.idle!r}: a shorter one forgets rows that are still seen."
            )
        ahead = longest if settings.ahead is None else self._duration(time, "ahead", settings.ahead)
        if ahead < 1:
            raise UserError(f"{self.where} expects a positive 'ahead', got {settings.ahead!r}.")
        sessions = SESSIONS if settings.shape == "session" else 1
        sums, tops, lasts, words = self._layout.ends
        panes = np.sort(np.array(lengths, np.int64)) // resolution
        weights = np.empty(min(FADED * int(panes[0]) + 1, WEIGHTS) if fading else 0)
        weigh(panes[0], weights)
        spec = Spec(
            shape=shape,
            ties=settings.ties,
            late_panes=-(-late // resolution),
            lengths=panes,
            kept=self._layout.kept,
            sums=sums,
            tops=tops,
            lasts=lasts,
            words=words,
            weights=weights,
        )
        return Plan(
            spec=spec,
            resolution=resolution,
            lateness=late,
            ahead=ahead,
            idle=idle,
            keys=settings.keys,
            panes=settings.panes,
            own=settings.own,
            sketches=self._layout.sketches,
            shift=_shift(longest * sessions + late, resolution),
        )

    def _results(self, time: EventTime) -> Results:
        lengths = np.array(self._ticks(time), np.int64)
        each, (*_, words), sketches = self._layout.results, self._layout.ends, self._layout.sketches
        columns = np.empty((len(lengths), len(each), 6), np.int64)
        for window, at in enumerate(np.argsort(lengths, kind="stable")):
            what, word, count, column = each.T
            estimates = len(lengths) * words + window * len(sketches)
            first = np.where(what == AS_DISTINCT, estimates, window * words)
            row = at * len(each) + np.arange(len(each))
            windows = np.full(len(each), window)
            columns[window] = np.column_stack(
                (row, windows, what, first + word, window * words + count, column)
            )
        seconds = 1.0 if time.nanoseconds is None else time.nanoseconds / 1e9
        whole = math.log(2) if self.settings.shape == "fading" else 1.0
        return Results(
            columns=columns.reshape(-1, 6),
            spans=(np.sort(lengths) * seconds / whole).astype(np.float64),
            tick=seconds,
            width=len(lengths) * (words + len(sketches)),
        )

    def _ticks(self, time: EventTime) -> list[int]:
        key = LENGTH_KEY[self.settings.shape]
        ticks = [self._duration(time, key, length) for length in self._lengths]
        for length, given in zip(ticks, self._lengths, strict=True):
            if length < 1:
                raise UserError(f"{self.where} expects a positive '{key}', got {given!r}.")
        if len(set(ticks)) < len(ticks):
            raise UserError(f"{self.where} names a length twice in {list(self._lengths)}.")
        return ticks

    def _duration(self, time: EventTime, key: str, value: Length) -> int:
        ticks = time.ticks(key, value)
        if ticks >= LONGEST:
            raise UserError(
                f"{self.where} expects less than 2**60 ticks of column '{time.column}' for "
                f"'{key}', got {value!r}."
            )
        return ticks

    def _resolution(self, time: EventTime, lengths: list[int]) -> int:
        """Return the ticks of a pane."""
        settings = self.settings
        if settings.resolution is not None:
            resolution = self._duration(time, "resolution", settings.resolution)
            if resolution < 1 or any(length % resolution for length in lengths):
                raise UserError(
                    f"{self.where} expects lengths that are multiples of 'resolution', got "
                    f"{settings.resolution!r}, and {', '.join(map(repr, self._lengths))}."
                )
        elif settings.shape == "session":
            resolution = 1
        else:
            whole = math.gcd(*lengths)
            most = max(min(lengths) // PANES, 1)
            least = -(-whole // most)
            panes = range(least, max(10 * PANES, least + 1))
            resolution = next((whole // n for n in panes if not whole % n), 1)
        if resolution > 1 and not settings.ties:
            raise UserError(
                f"{self.where} has ties = false, which needs a 'resolution' of one tick of column "
                f"'{settings.time}'."
            )
        return resolution

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
        by = list(self._by)
        return hashes(frame[by]) if by else np.zeros(frame.height, np.uint64)

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
            if column.dtype.is_float():
                column = column.fill_nan(None)
            values[:, i] = 1.0
            if source.slots:
                values[:, i] = hashes(column.to_frame()) & np.uint64(SLOTS - 1)
            if column.null_count():
                values[column.is_null().to_numpy(), i] = np.nan
        return values

    def _columns(self, seen: Floats, valid: Bools) -> list[pl.Series]:
        return [
            _series(name, seen[i].view(np.int64) if dtype == pl.Int64 else seen[i], valid[i])
            for i, (name, dtype) in enumerate(self._new.items())
        ]

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


def _shift(length: int, resolution: int) -> int:
    """Return in how coarse units, 2 ** shift panes, 29 bits count to the end of a window."""
    return max((length // resolution).bit_length() - 29, 0)


def _series(name: str, numbers: Floats | Ints, valid: Bools) -> pl.Series:
    """Return a column that is null where not valid, in the memory of the numbers."""
    mask = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
    dtype, buffers = pa.from_numpy_dtype(numbers.dtype), [mask, pa.py_buffer(numbers)]
    return pl.Series(name, pa.Array.from_buffers(dtype, len(numbers), buffers))


__all__ = ["Window"]
