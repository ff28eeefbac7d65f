"""What a row sees of its key, by definition: slow, row by row, with lists of rows."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from engine.columnar.event_time import Clock
from engine.columnar.hashing import hashes

NAMES = (
    "count", "sum", "mean", "min", "max", "deviation", "last", "time_since", "rate", "ratio",
    "distinct",
)  # fmt: skip
Row = tuple[Any, int | None, float | None]
"""Key, time and value."""
Seen = list[dict[str, float | None]]
"""For each length what a row sees."""


@dataclass(slots=True)
class Key:
    """What is remembered of a key: its panes, ascending, each with its rows (pane, time, value)."""

    newest: int | None
    seen: int
    panes: dict[int, list[tuple[int, int, float | None]]] = field(default_factory=dict)
    slots: dict[int, int] = field(default_factory=dict)


@dataclass(kw_only=True)
class Reference:
    """The stage, over an integer time."""

    lengths: Sequence[int]
    shape: str = "sliding"
    resolution: int = 1
    lateness: int = 0
    own: bool = False
    ties: bool = True
    ahead: int | None = None
    idle: int | None = None
    keys: int = 1 << 30
    panes: int = 1 << 30
    names: Sequence[str] = NAMES
    memory: OrderedDict[Any, Key] = field(default_factory=OrderedDict)
    event_time: Clock = field(default_factory=Clock)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("late", "ahead", "forgotten", "no_time"), 0)
    )

    def __post_init__(self) -> None:
        longest = max(self.lengths)
        whole = (32 if self.shape == "fading" else 1) * longest + self.lateness
        self.idle = whole if self.idle is None else self.idle
        self.ahead = longest if self.ahead is None else self.ahead
        self.late = -(-self.lateness // self.resolution)
        self.spans = [length // self.resolution for length in self.lengths]

    def see(self, row: Row) -> Seen | None:
        """Return what the row sees, and remember it."""
        key, time, value = row
        if time is None:
            self.counts["no_time"] += 1
            return None
        value = None if value is None or math.isnan(value) else value
        self._move_clock(time)
        if key not in self.memory:
            if len(self.memory) == self.keys:
                self.memory.popitem(last=False)
                self.counts["forgotten"] += 1
            self.memory[key] = Key(None, self.clock)
        state = self.memory[key]
        self.memory.move_to_end(key)
        state.seen = self.clock
        newest_time = time if state.newest is None else max(state.newest, time)
        if not self._is_ahead(time):
            state.newest = newest_time
        elif state.newest is not None:
            newest_time = state.newest
        newest_time = min(newest_time, self.clock)
        self.counts["late"] += time < newest_time - self.lateness
        pane, newest = time // self.resolution, newest_time // self.resolution
        own = (pane, time, value)
        seen = []
        for length, span in zip(self.lengths, self.spans, strict=True):
            rows = self._rows(state, pane, span) + [own] * self.own
            numbers = self._aggregates(rows, own, length)
            numbers["distinct"] = self._distinct(state, rows, own, span, newest)
            seen.append({name: numbers[name] for name in self.names})
        horizon = newest - self.late
        if self.shape != "sliding" or pane > horizon - max(self.spans):
            state.panes.setdefault(pane, []).append(own)
            state.panes = dict(sorted(state.panes.items()))
            if value is not None:
                state.slots[slot(value)] = max(state.slots.get(slot(value), pane), pane)
        self._expire(state, horizon)
        self._bound(key, state)
        return seen

    @property
    def clock(self) -> int:
        """The stream's time, which has its own tests."""
        return self.event_time.time

    def _move_clock(self, time: int) -> None:
        assert self.ahead is not None
        assert self.idle is not None
        times = np.array([time], np.int64)
        begun = self.event_time.has_begun
        self.event_time, _, ahead = self.event_time.walk(times, self.ahead, at_once=True)
        self.counts["ahead"] += ahead
        if not self.event_time.has_begun:
            return
        for key in [k for k, v in self.memory.items() if begun and self.clock - v.seen > self.idle]:
            del self.memory[key]
        if not begun:
            for state in self.memory.values():
                state.seen = self.clock
                if state.newest is not None and self._is_ahead(state.newest):
                    state.newest = None

    def _is_ahead(self, time: int) -> bool:
        assert self.ahead is not None
        return time - self.clock > self.ahead

    def _joined(self, older: int, newer: int, span: int) -> bool:
        if self.shape == "tumbling":
            return older // span == newer // span
        return self.shape == "fading" or newer - older <= span

    def _rows(self, state: Key, pane: int, span: int) -> list[tuple[int, int, float | None]]:
        past = [p for p in state.panes if p < pane + self.ties]
        if self.shape == "sliding":
            past = [p for p in past if p > pane - span]
        else:
            newer, joined = pane, []
            for p in reversed(past):
                if not self._joined(p, newer, span):
                    break
                joined.append(p)
                newer = p
            past = joined[::-1]
        return [row for p in past for row in state.panes[p]]

    def _expire(self, state: Key, horizon: int) -> None:
        if self.shape == "sliding":
            span = max(self.spans)
            state.panes = {p: v for p, v in state.panes.items() if p > horizon - span}
            return
        panes = list(state.panes)
        while len(panes) > 1 and panes[1] <= horizon:
            self._fold(state, panes.pop(0), panes[0])

    def _fold(self, state: Key, older: int, newer: int) -> None:
        rows = state.panes.pop(older)
        if self._joined(older, newer, self.spans[0]):
            state.panes[newer] = rows + state.panes[newer]

    def _bound(self, key: Any, state: Key) -> None:
        while sum(len(k.panes) for k in self.memory.values()) > self.panes:
            self.counts["forgotten"] += 1
            oldest = next(iter(self.memory))
            if oldest != key:
                del self.memory[oldest]
                continue
            older, *others = state.panes
            if self.shape == "sliding" or not others:
                del state.panes[older]
            else:
                self._fold(state, older, others[0])

    def _distinct(
        self,
        state: Key,
        rows: list[tuple[int, int, float | None]],
        own: Any,
        span: int,
        newest: int,
    ) -> int:
        pane, _, value = own
        late = newest - self.late
        start = max(pane - span, late - max(self.spans))
        if self.shape == "tumbling":
            start = max(pane, late) // span * span - 1
        elif self.shape == "session":
            times = [t for _, t, v in rows if v is not None]
            start = min(times) // self.resolution - 1 if times else pane
        end = pane if self.ties else pane - 1
        seen = {s for s, last in state.slots.items() if start < last <= end}
        if self.own and value is not None:
            seen.add(slot(value))
        return round(-256 * math.log1p(-len(seen) / 256))

    def _aggregates(
        self, rows: list[tuple[int, int, float | None]], own: Any, length: int
    ) -> dict[str, float | None]:
        pane, time, x = own
        present = [(p, t, v) for p, t, v in rows if v is not None]
        values = [v for *_, v in present]
        weights = [1.0] * len(present)
        fading = self.shape == "fading"
        if fading:
            weights = [2.0 ** (-(pane - p) / self.spans[0]) for p, *_ in present]
        total = math.fsum(weights)
        summed = plain_sum(w * v for w, v in zip(weights, values, strict=True))
        mean = summed / total if total else None
        squares = None
        if len(values) > 1 and mean is not None:
            squares = plain_sum(w * (v - mean) ** 2 for w, v in zip(weights, values, strict=True))
        span = length / math.log(2) if fading else length
        out: dict[str, float | None] = {
            "count": total,
            "sum": summed,
            "mean": mean,
            "min": min(values, default=None),
            "max": max(values, default=None),
            "deviation": None if squares is None
            else math.sqrt(squares / total if fading else squares / (total - 1)),
            "last": values[-1] if values else None,
            "time_since": max(time - max(t for _, t, _ in present), 0) if present else None,
            "rate": total / span,
            "ratio": None if x is None or not mean else x / mean,
        }  # fmt: skip
        return out


@lru_cache
def slot(value: float) -> int:
    """Return which of 256 slots a value has."""
    return int(hashes(pl.DataFrame({"x": [value]}))[0] % 256)


def plain_sum(values: Iterable[float]) -> float:
    """A sum that goes on over infinities."""
    numbers = list(values)
    return math.fsum(numbers) if all(map(math.isfinite, numbers)) else sum(numbers)


def close(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-7)
