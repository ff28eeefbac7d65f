"""The settings of a `window` stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine import types
from engine.scrub.windows.aggregates import Aggregate
from engine.types import Name, Names

Length = str | int


class WindowSettings(types.Settings):
    """``[scrub.NAME]`` with ``kind = "window"``

    Attributes:
        by: the key columns, names or globs; none means one window of all rows.
        time: a datetime, date or integer column; rows without a time see nothing, leave
            nothing, and are counted as ``no_time``.
        aggregates: column -> what of it: count, sum, mean, min, max, deviation (of a sample),
            last, time_since (seconds since its last value in the window), rate (count a
            second), ratio (of the row's own value to the window's mean), distinct (how many
            different values, by a sketch with a standard error of about 5 % up to 300; two of a
            few may count as one).
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
        ahead: a time that is so much after the newest one does not move the stream's time, unless
            eight in sequence are, or those before it were as far apart; same form as length; the
            longest window unless given.
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


__all__ = ["Length", "WindowSettings"]
