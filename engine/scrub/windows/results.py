"""Columns of results out of what rows see: one result after the other, over all rows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np

from engine.scrub.windows.kernels import LOOP, NEVER
from engine.types.arrays import Floats, Ints

(
    AS_COUNT, AS_DISTINCT, AS_SUM, AS_RATE, AS_WORD, AS_NEGATED, AS_MEAN, AS_LAST, AS_SINCE,
    AS_DEVIATION, AS_FADING_DEVIATION, AS_RATIO, AS_RATIO_TO_WORD,
) = range(13)  # fmt: skip
"""What becomes of a word that a row sees. AS_WORD is the word itself, if the window has rows."""


class Results(NamedTuple):
    """What is made of what rows see.

    Attributes:
        columns: of each its row, its window, what it is, its word, its count's word and its column
            of values; shape (results, 6).
        spans: lengths of the windows in seconds, or in units of an integer time.
        tick: seconds of a tick.
        width: how many words rows see.
    """

    columns: Ints
    spans: Floats
    tick: float
    width: int


_njit: Any = numba.njit  # whose types know no `_nrt`
_compiled = _njit(**LOOP)
_inlined = _njit(**LOOP, no_cpython_wrapper=True, forceinline=True)


@_compiled
def write(results, origin, times, values, seen, out, whole, valid):
    """Write the results, a loop for each: what it is, is not asked for every row.

    Args:
        origin: the time that times in words count from.
        seen: see `kernels.walk`.
        out: shape (results, n); `whole` is the same memory as int64, for counts.
        valid: whether there is such a number.
    """
    for r in range(results.columns.shape[0]):
        row, window, what = results.columns[r, 0], results.columns[r, 1], results.columns[r, 2]
        w, c, own = results.columns[r, 3], results.columns[r, 4], results.columns[r, 5]
        span = results.spans[window]
        if what in (AS_COUNT, AS_DISTINCT):
            for i in range(times.shape[0]):
                valid[row, i] = times[i] != NEVER
                whole[row, i] = np.int64(seen[i, w]) if times[i] != NEVER else 0
        elif what == AS_SUM:
            for i in range(times.shape[0]):
                _put(out, valid, row, i, times, True, seen[i, w])
        elif what == AS_RATE:
            for i in range(times.shape[0]):
                _put(out, valid, row, i, times, True, seen[i, w] / span)
        elif what == AS_WORD:
            for i in range(times.shape[0]):
                _put(out, valid, row, i, times, seen[i, c] > 0, seen[i, w])
        elif what == AS_NEGATED:
            for i in range(times.shape[0]):
                _put(out, valid, row, i, times, seen[i, c] > 0, -seen[i, w])
        elif what == AS_MEAN:
            for i in range(times.shape[0]):
                _put(out, valid, row, i, times, seen[i, c] > 0, seen[i, w] / seen[i, c])
        elif what == AS_LAST:
            for i in range(times.shape[0]):
                _put(out, valid, row, i, times, seen[i, w] == seen[i, w], seen[i, w])
        elif what == AS_SINCE:
            for i in range(times.shape[0]):
                since = max(float(times[i] - origin) - seen[i, w], 0.0) * results.tick
                _put(out, valid, row, i, times, seen[i, w] > -math.inf, since)
        elif what == AS_DEVIATION:
            for i in range(times.shape[0]):
                x = math.sqrt(seen[i, w + 2] / (seen[i, c] - 1))
                _put(out, valid, row, i, times, seen[i, c] >= 2, x)
        elif what == AS_FADING_DEVIATION:
            for i in range(times.shape[0]):
                there = seen[i, c] >= 2 and seen[i, w] > 0
                _put(out, valid, row, i, times, there, math.sqrt(seen[i, w + 2] / seen[i, w]))
        else:
            for i in range(times.shape[0]):
                x, mean = values[i, own], seen[i, w]
                mean = mean / seen[i, c] if what == AS_RATIO else mean
                there = seen[i, c] > 0 and mean != 0 and x == x
                _put(out, valid, row, i, times, there, x / mean)


@_inlined
def _put(out, valid, row, i, times, there, x):
    there = there and times[i] != NEVER
    valid[row, i] = there
    out[row, i] = x if there else 0.0


__all__ = ["Results", "write"]
