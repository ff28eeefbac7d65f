"""The settings of a `join` stage, and what they are in ticks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field

from engine import types
from engine.columnar.event_time import EventTime
from engine.types import NANOSECONDS, Name, Names, UserError
from engine.types.changes import Neutral, Warned
from engine.types.settings import key_pairs

Length = str | int
LONGEST = 1 << 58
"""The ticks of the longest length."""
FAR = 64
"""How many times all lengths together a time may be ahead, unless `ahead` is given, and a day is
not more."""


class JoinSettings(types.Settings):
    """``[scrub.NAME]`` with ``kind = "join"``

    Attributes:
        source: where the events come from, with the keys of ``[source]``: ``[scrub.NAME.source]``.
            Every engine reads all of it, so it has no group; `start` says where a topic is begun.
        by: the key columns; or column = "column of the events" for each.
        columns: those of the events that are added, names or globs; all but the keys and the time
            unless given.
        prefix: put before their names.
        time: event time of the rows: a datetime, date or integer column.
        event_time: event time of the events; the column is called as that of the rows unless given.
        within: how long before the row its event may have happened: a duration ("10m"), or an
            integer where time is one.
        wait: how long after the row its event may still happen, where none did before; same form
            as within. Rows are held back until the events have come that far.
        lateness: how much older than the newest one before it in its partition an event may come,
            and a row, and still be joined exactly; same form as within. Rows are held back so much
            longer.
        ahead: a time that is so much after the newest one does not move the stream's time, unless
            eight in sequence are, or those before it were as far apart; same form as within.
            Unless given, 64 times `within`, `wait` and `lateness` together, and at least a day.
        missing: what becomes of rows without an event.
        events [events]: those that are kept; of more, the oldest are forgotten, counted as
            ``events_forgotten``. A run that resumes may have another number.
    """

    source: Neutral[dict[str, Any]]
    by: Names | dict[str, str]
    columns: Names = ("*",)
    prefix: str = ""
    time: Name
    event_time: Name | None = None
    within: Length
    wait: Length = 0
    lateness: Length = 0
    ahead: Length | None = None
    missing: Literal["null", "reject"] = "null"
    events: Neutral[Warned[int]] = Field(1_000_000, ge=1)

    @property
    def key_columns(self) -> dict[str, str]:
        """Key column of the rows -> that of the events."""
        return key_pairs(self.by)

    @property
    def time_of_events(self) -> str:
        """The time column of the events."""
        return self.event_time or self.time


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """The lengths of a join, in ticks of the rows' time.

    Attributes:
        within, wait, lateness, ahead: as in `JoinSettings`.
    """

    within: int
    wait: int
    lateness: int
    ahead: int

    @classmethod
    def of(cls, settings: JoinSettings, time: EventTime) -> Self:
        """Raises: UserError for a length that does not fit the time."""
        given = {key: getattr(settings, key) for key in ("within", "wait", "lateness", "ahead")}
        ticks = {k: _ticks(time, k, v) for k, v in given.items() if v is not None}
        if "ahead" not in ticks:
            day = 1 if time.nanoseconds is None else NANOSECONDS["d"] // time.nanoseconds
            ticks["ahead"] = min(max(day, FAR * sum(ticks.values())), LONGEST)
        if not ticks["ahead"]:
            raise UserError(f"{time.where} expects a positive 'ahead', got {settings.ahead!r}.")
        return cls(**ticks)


def _ticks(time: EventTime, key: str, value: Length) -> int:
    ticks = time.ticks(key, value)
    if ticks >= LONGEST:
        raise UserError(
            f"{time.where} expects a '{key}' of less than 2**58 ticks of column '{time.column}', "
            f"got {value!r}."
        )
    return ticks


__all__ = ["JoinSettings", "Lengths"]
