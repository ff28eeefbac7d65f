"""From the settings of a `window` stage to what its loops do, in ticks and panes."""

from __future__ import annotations

import math

import numpy as np

from engine.columnar.event_time import EventTime
from engine.scrub.windows.aggregates import Layout
from engine.scrub.windows.kernels import Plan, Spec, weigh
from engine.scrub.windows.results import AS_DISTINCT, Results
from engine.scrub.windows.settings import Length, WindowSettings
from engine.types import UserError

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


class Planner:
    """What settings mean for a column of times.

    Args:
        settings: of the stage.
        layout: what is kept of each column.
        time: the column; says how sentences name the stage.
    """

    def __init__(self, settings: WindowSettings, layout: Layout, time: EventTime) -> None:
        self._settings = settings
        self._layout = layout
        self._time = time
        self._where = time.where

    @property
    def lengths(self) -> tuple[Length, ...]:
        """What the windows are as long as, in the order given. Raises: UserError unless that is
        clear."""
        settings, key = self._settings, LENGTH_KEY[self._settings.shape]
        given: dict[str, Length | tuple[Length, ...] | None] = {
            "length": settings.length, "gap": settings.gap, "halflife": settings.halflife,
        }  # fmt: skip
        value = given.pop(key)
        for other, unused in given.items():
            if unused not in ((), None):
                raise UserError(
                    f"{self._where} has '{other}', which is not for shape '{settings.shape}': take "
                    f"it out, and set '{key}'."
                )
        if value in ((), None):
            raise UserError(f"{self._where} needs the key '{key}', for shape '{settings.shape}'.")
        lengths = value if isinstance(value, tuple) else (value,)
        if len(lengths) > 1 and settings.shape != "sliding":
            raise UserError(f"{self._where} expects one '{key}' for shape '{settings.shape}'.")
        return tuple(length for length in lengths if length is not None)

    def plan(self) -> Plan:
        """Return what the loops do. Raises: UserError for a setting that does not fit."""
        settings = self._settings
        shape, fading = SHAPES.index(settings.shape), settings.shape == "fading"
        lengths = self._ticks()
        resolution = self._resolution(lengths)
        late = self._duration("lateness", settings.lateness)
        if late > min(lengths) and settings.shape in ("sliding", "tumbling"):
            raise UserError(
                f"{self._where} expects a 'lateness' of at most the window's length, got "
                f"{settings.lateness!r}."
            )
        longest = max(lengths)
        whole = min(FADED * longest, LONGEST) + late if fading else longest + late
        idle = whole if settings.idle is None else self._duration("idle", settings.idle)
        if idle < whole and not fading:
            raise UserError(
                f"{self._where} expects an 'idle' of at least the longest window and the lateness, "
                f"got {settings.idle!r}: a shorter one forgets rows that are still seen."
            )
        ahead = longest if settings.ahead is None else self._duration("ahead", settings.ahead)
        if ahead < 1:
            raise UserError(f"{self._where} expects a positive 'ahead', got {settings.ahead!r}.")
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

    def results(self) -> Results:
        """Return what is made of what rows see."""
        lengths = np.array(self._ticks(), np.int64)
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
        seconds = 1.0 if self._time.nanoseconds is None else self._time.nanoseconds / 1e9
        whole = math.log(2) if self._settings.shape == "fading" else 1.0
        return Results(
            columns=columns.reshape(-1, 6),
            spans=(np.sort(lengths) * seconds / whole).astype(np.float64),
            tick=seconds,
            width=len(lengths) * (words + len(sketches)),
        )

    def _ticks(self) -> list[int]:
        key = LENGTH_KEY[self._settings.shape]
        ticks = [self._duration(key, length) for length in self.lengths]
        for length, given in zip(ticks, self.lengths, strict=True):
            if length < 1:
                raise UserError(f"{self._where} expects a positive '{key}', got {given!r}.")
        if len(set(ticks)) < len(ticks):
            raise UserError(f"{self._where} names a length twice in {list(self.lengths)}.")
        return ticks

    def _duration(self, key: str, value: Length) -> int:
        ticks = self._time.ticks(key, value)
        if ticks >= LONGEST:
            raise UserError(
                f"{self._where} expects less than 2**60 ticks of column '{self._time.column}' for "
                f"'{key}', got {value!r}."
            )
        return ticks

    def _resolution(self, lengths: list[int]) -> int:
        """Return the ticks of a pane."""
        settings = self._settings
        if settings.resolution is not None:
            resolution = self._duration("resolution", settings.resolution)
            if resolution < 1 or any(length % resolution for length in lengths):
                raise UserError(
                    f"{self._where} expects lengths that are multiples of 'resolution', got "
                    f"{settings.resolution!r}, and {', '.join(map(repr, self.lengths))}."
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
                f"{self._where} has ties = false, which needs a 'resolution' of one tick of column "
                f"'{settings.time}'."
            )
        return resolution


def _shift(length: int, resolution: int) -> int:
    """Return in how coarse units, 2 ** shift panes, 21 bits count to the end of a window."""
    return max((length // resolution).bit_length() - 21, 0)


__all__ = ["SHAPES", "Planner"]
