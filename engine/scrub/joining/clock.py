"""The clock of a stream: the newest of its times, which one wrong time does not move."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numba
import numpy as np

from engine.scrub.event_time import NEVER
from engine.types import Snapshot
from engine.types.arrays import Bools, Ints, read_only

AGREE = 8
"""Times in sequence that are far from the clock until it goes there."""
AT, NEAR, FAR, LEAST, BACK, MOST = range(6)
"""Places in the state: the clock; how many times were near it, up to `AGREE`; how many in sequence
were far ahead, and the least of them; how many were far behind, and the newest of them."""


def _begun() -> Ints:
    return np.array([NEVER, 0, 0, -NEVER, 0, NEVER])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clock:
    """The newest time of a stream. A value: `walk` returns the clock that follows.

    A time that is more than `ahead` ticks after the clock moves it only where eight in sequence
    are. So many before it move it back, unless eight were near it: then they are late.

    Attributes:
        state: see `AT` and the others, shape (6,).
    """

    state: Ints = field(default_factory=_begun)

    @property
    def time(self) -> int:
        """The clock; NEVER before it has begun."""
        return int(self.state[AT])

    def walk(self, times: Ints, ahead: int, *, at_once: bool) -> tuple[Self, Ints, Bools]:
        """Return the clock after these times, the clock with each of them, and which are far ahead
        of it; shape (n,). A time of NEVER changes nothing.

        Args:
            at_once: whether the first time begins it; otherwise eight have to be there.
        """
        state, clocks, far = self.state.copy(), np.empty_like(times), np.zeros(len(times), np.bool_)
        _walk(read_only(times), ahead, at_once, state, clocks, far)
        return type(self)(state=state), clocks, far

    def snapshot(self) -> Snapshot:
        """Return plain values."""
        return self.state

    @classmethod
    def restore(cls, value: Snapshot) -> Self:
        """Return the clock of a `snapshot`."""
        return cls(state=value)


@numba.njit(nogil=True, cache=True)
def _walk(times, ahead, at_once, state, clocks, far):  # type: ignore[no-untyped-def]
    for i in range(times.shape[0]):
        time = times[i]
        if time != NEVER and state[AT] == NEVER and at_once:
            state[AT], state[NEAR] = time, 1
        elif time != NEVER and (state[AT] == NEVER or time - state[AT] > ahead):
            state[BACK], state[MOST] = 0, NEVER
            state[FAR], state[LEAST] = state[FAR] + 1, min(state[LEAST], time)
            if state[FAR] == AGREE:
                least = state[LEAST]
                state[AT] = time if time - least <= ahead else least
                state[NEAR], state[FAR], state[LEAST] = AGREE, 0, -NEVER
            far[i] = state[AT] != NEVER and time - state[AT] > ahead
        elif time != NEVER:
            state[FAR], state[LEAST] = 0, -NEVER
            if state[AT] - time > ahead and state[NEAR] < AGREE:
                state[BACK], state[MOST] = state[BACK] + 1, max(state[MOST], time)
            elif state[AT] - time <= ahead:
                state[BACK], state[MOST] = 0, NEVER
                state[AT], state[NEAR] = max(state[AT], time), min(state[NEAR] + 1, AGREE)
            if state[BACK] == AGREE:
                state[AT], state[NEAR] = state[MOST], AGREE
                state[BACK], state[MOST] = 0, NEVER
        clocks[i] = state[AT]


__all__ = ["Clock"]
