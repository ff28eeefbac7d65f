"""A column of times, as ticks, and the clock of a stream: the newest of its times, which wrong ones
do not move."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numba
import numpy as np
import polars as pl

from engine.types import NANOSECONDS, Schema, Snapshot, UserError, nanoseconds, require, type_name
from engine.types.arrays import Ints, read_only

PER_TICK = {"ns": 1, "us": 1_000, "ms": 1_000_000}
NEVER = -(1 << 62)
"""A time before all times."""
AGREE = 8
"""Times in sequence that are far from the clock until it goes there."""
SPARSE = 4
"""A step of the clock is no surprise where it is up to so many times as long as those before it."""
AT, BEGUN, TOLD, LONGEST, SINCE, WAITING, FIRST = range(7)
"""Places in the state: the clock; whether eight times have come; how many of those were told to be
far ahead; the longest of the last steps that were longer than `ahead`, and how many times came
since such a step; how many in sequence are far ahead, or came before it had begun, and the first of
those."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventTime:
    """A datetime, date or integer column.

    Attributes:
        column: its name.
        dtype: its type.
        where: how error sentences name its stage.
    """

    column: str
    dtype: pl.DataType
    where: str

    @property
    def nanoseconds(self) -> int | None:
        """The length of a tick; None for integers, of which it is unknown.

        Raises: UserError for a column of another type.
        """
        if isinstance(self.dtype, pl.Datetime):
            return PER_TICK[self.dtype.time_unit]
        if self.dtype == pl.Date:
            return NANOSECONDS["d"]
        if self.dtype.is_integer():
            return None
        raise UserError(
            f"{self.where} time expects a datetime, date or integer column, got "
            f"'{self.column}' of type {type_name(self.dtype)}: make a time of it with a "
            "'derive' stage."
        )

    def ticks(self, key: str, value: str | int) -> int:
        """Return a duration, which the setting `key` has, in ticks."""
        tick = self.nanoseconds
        if tick is not None:
            return self._whole(key, value, tick)
        if isinstance(value, int) and value >= 0:
            return value
        raise UserError(
            f"{self.where} expects whole numbers for '{key}', as column '{self.column}' holds "
            f"integers, got {value!r}."
        )

    def _whole(self, key: str, value: str | int, tick: int) -> int:
        length = 0 if value == 0 else nanoseconds(str(value))
        if length is None:
            raise UserError(
                f'{self.where} expects a duration like "1h", "15m" or "1d" for \'{key}\', got '
                f"{value!r}; months and years have no fixed length."
            )
        if length % tick:
            raise UserError(
                f"{self.where} '{key}' = {value!r} is finer than column '{self.column}': "
                "take a longer one."
            )
        return length // tick

    def read(self, frame: pl.DataFrame) -> Ints:
        """Return the times in ticks, shape (n,); NEVER for null and for what is too far away."""
        return times_in_ticks(frame.get_column(self.column))


def bound_idle(
    idle: str | int | None, time: str | None, schema: Schema, where: str
) -> tuple[EventTime | None, int | None]:
    """Return the time column, and how long something may go unseen: in ticks of that, or in rows
    without one. None for what is not set.

    Args:
        idle, time: the settings of these names.
        where: how error sentences name what they belong to.

    Raises: UserError if they do not fit each other, or the schema.
    """
    if idle is None:
        if time is not None:
            raise UserError(f"{where} time is for 'idle': set that, or take time out.")
        return None, None
    column = None
    if time is not None:
        require(schema, [time], where=where)
        column = EventTime(column=time, dtype=schema[time], where=where)
        length = column.ticks("idle", idle)
    elif isinstance(idle, int):
        length = idle
    else:
        raise UserError(
            f"{where} expects a number of rows for 'idle' without a 'time', got {idle!r}: name the "
            "column of the time."
        )
    if length < 1:
        raise UserError(f"{where} expects a positive 'idle', got {idle!r}.")
    return column, length


def times_in_ticks(column: pl.Series) -> Ints:
    """Return a datetime, date or integer column in ticks, as `EventTime.read` does."""
    if column.dtype.is_temporal():
        times: Ints = column.to_numpy().view(np.int64)  # null is the least number
    else:
        times = column.cast(pl.Int64, strict=False).fill_null(NEVER).to_numpy()
    if len(times) and times.min() > NEVER and times.max() < -NEVER:
        return times.copy()
    return np.where((times <= NEVER) | (times >= -NEVER), NEVER, times)


def _begun() -> Ints:
    state = np.zeros(FIRST + AGREE, np.int64)
    state[AT] = NEVER
    return state


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clock:
    """The newest time of a stream. A value: `walk` returns the clock that follows.

    A time that is more than `ahead` ticks after the clock waits until eight in sequence do. Then
    the clock goes to the newest that at least four of those after it confirm, as they are not
    earlier; the others are tried again. So up to four wrong ones among them, or seven in sequence
    elsewhere, move nothing. It never goes back.

    It begins with eight times in the same way; where that is far behind most of them, which are
    near each other, at the newest of those. Whoever needs a clock `at_once` has a guess before: the
    newest of the most times that are near each other, of the earliest of as many. One wrong first
    time rules until the second.

    Where the times of a stream are further apart than that, its first eight say so: from then on a
    step of up to four times the longest of the last ones is followed at once, until eight times in
    sequence are close to each other. The longest fades by an eighth with each such step.

    Attributes:
        state: see `AT` and the others, shape (FIRST + AGREE,).
    """

    state: Ints = field(default_factory=_begun)

    @property
    def time(self) -> int:
        """The clock, or the guess; NEVER before there is one."""
        return int(self.state[AT])

    @property
    def has_begun(self) -> bool:
        """Whether eight times have come."""
        return bool(self.state[BEGUN])

    def begins(self, times: Ints) -> int:
        """Return the first of these times with which it has begun: 0 if it has before, their number
        if it does not."""
        if self.has_begun:
            return 0
        timed = np.flatnonzero(times > NEVER)
        missing = AGREE - int(self.state[WAITING])
        return len(times) if len(timed) < missing else int(timed[missing - 1])

    def walk(self, times: Ints, ahead: int, *, at_once: bool) -> tuple[Self, Ints, int]:
        """Return the clock after these times, the clock with each of them, shape (n,), and how many
        are far ahead of it; with the eighth time of all, how many of the eight are that were not
        told before. A time of NEVER changes nothing.

        Args:
            at_once: whether there is a guess before it has begun.
        """
        state, clocks = self.state.copy(), np.empty_like(times)
        far = _walk(read_only(times), ahead, at_once, state, clocks)
        return type(self)(state=state), clocks, int(far)

    def snapshot(self) -> Snapshot:
        """Return plain values."""
        return self.state

    @classmethod
    def restore(cls, value: Snapshot) -> Self:
        """Return the clock of a `snapshot`."""
        return cls(state=value)


def without_future(times: Ints, ahead: int) -> Ints:
    """Return times with NEVER in place of those that are far ahead of the clock also when eight
    more have come. Times without as many after them stay, and so do those before which it had not
    begun."""
    timed = np.flatnonzero(times > NEVER)
    own = times[timed]
    _, clocks, _ = Clock().walk(own, ahead, at_once=False)
    later = clocks[AGREE:]
    wrong = (later > NEVER) & (own[: len(later)] - later > ahead)
    if not wrong.any():
        return times
    cleared = times.copy()
    cleared[timed[: len(later)][wrong]] = NEVER
    return cleared


@numba.njit(nogil=True, cache=True)
def _walk(times, ahead, at_once, state, clocks):  # type: ignore[no-untyped-def]
    clock, calm, far = state[AT], False, 0
    for i in range(times.shape[0]):
        time = times[i]
        if calm and -ahead <= time - clock <= ahead:  # as nearly always: only the clock moves
            clock = clocks[i] = max(clock, time)
            continue
        state[AT] = clock
        if time != NEVER:
            far += _see(state, time, ahead) if state[BEGUN] else _begin(state, time, ahead, at_once)
        clock = clocks[i] = state[AT]
        calm = state[BEGUN] == 1 and state[WAITING] + state[LONGEST] == 0
    state[AT] = clock
    return far


@numba.njit(nogil=True, cache=True)
def _begin(state, time, ahead, at_once):  # type: ignore[no-untyped-def]
    """Take one of the first eight times; return whether it is far ahead of the guess, or with the
    last one how many of the eight are that were not told."""
    state[FIRST + state[WAITING]] = time
    state[WAITING] += 1
    if state[WAITING] == AGREE:
        first = state[FIRST:].copy()
        state[BEGUN] = 1
        _agree(state, ahead)
        newest, near = _most(np.sort(first), ahead)
        if near > AGREE // 2 and newest - state[AT] > ahead:  # held back by a time of the past
            state[FIRST:], state[LONGEST] = first, 0
            _go(state, newest, ahead)
        return max(np.count_nonzero(first - state[AT] > ahead) - state[TOLD], 0)
    if not at_once:
        return 0
    state[AT], _ = _most(np.sort(state[FIRST : FIRST + state[WAITING]]), ahead)
    far = np.int64(time - state[AT] > ahead)
    state[TOLD] += far
    return far


@numba.njit(nogil=True, cache=True)
def _most(times, ahead):  # type: ignore[no-untyped-def]
    """Return the newest of the most times, ascending, whose steps are no longer than `ahead`, and
    how many they are."""
    newest, most, start = times[0], 0, 0
    for i in range(times.shape[0]):
        if times[i] - times[max(i - 1, 0)] > ahead:
            start = i
        if i + 1 - start > most:
            newest, most = times[i], i + 1 - start
    return newest, most


@numba.njit(nogil=True, cache=True)
def _see(state, time, ahead):  # type: ignore[no-untyped-def]
    """Follow one time, or let it wait, and go where eight are; return whether it is far ahead."""
    _follow(state, time, ahead)
    if state[WAITING] == AGREE:
        _agree(state, ahead)
    return time - state[AT] > ahead


@numba.njit(nogil=True, cache=True)
def _follow(state, time, ahead):  # type: ignore[no-untyped-def]
    """Follow one time, or let it wait."""
    step = time - state[AT]
    longest = state[LONGEST]
    expected = step <= ahead or (longest > 0 and step // SPARSE <= longest)
    if not expected:
        state[FIRST + state[WAITING]] = time
        state[WAITING] += 1
        return
    state[WAITING] = 0
    if step > ahead:
        state[LONGEST], state[SINCE] = max(step, longest - longest // AGREE), 0
    elif step >= -ahead and longest > 0:
        state[SINCE] += 1
        if state[SINCE] == AGREE:
            state[LONGEST] = 0
    state[AT] = max(state[AT], time)


@numba.njit(nogil=True, cache=True)
def _agree(state, ahead):  # type: ignore[no-untyped-def]
    """Go where eight times in sequence are."""
    lowest = state[FIRST:].copy()  # of each and those after it
    for i in range(AGREE - 2, -1, -1):
        lowest[i] = min(lowest[i], lowest[i + 1])
    confirmed = AGREE // 2
    longest = 0
    for i in range(1, confirmed):
        longest = max(longest, lowest[i] - lowest[i - 1])
    state[LONGEST], state[SINCE] = longest if longest > ahead else 0, 0
    _go(state, lowest[confirmed - 1], ahead)


@numba.njit(nogil=True, cache=True)
def _go(state, time, ahead):  # type: ignore[no-untyped-def]
    """Go to a time, and try those again that waited."""
    waiting = state[FIRST:].copy()
    state[AT], state[WAITING] = time, 0
    for i in range(AGREE):
        _follow(state, waiting[i], ahead)


__all__ = [
    "AGREE",
    "NEVER",
    "Clock",
    "EventTime",
    "bound_idle",
    "times_in_ticks",
    "without_future",
]
