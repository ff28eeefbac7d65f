"""Drift detectors as immutable values: columns in, the rows at which one changed out.

Each looks at every number of every column in the order of the rows, in compiled loops, so what it
finds does not depend on how the stream is cut into batches. What is no number (null, NaN, infinity)
or too large for its arithmetic (`MAX_ABS`) is passed over, but for `Psi`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import numba
import numpy as np
import polars as pl

from engine.columnar.kernels import MAX_ABS, buffers
from engine.columnar.statistics import matrix
from engine.types.arrays import Floats, Ints
from engine.types.snapshots import FieldsSnapshot

Drifts = list[tuple[int, int]]
"""Column and row of the block, both from 0, of each detection; column by column."""

ADWIN_DEVIATIONS = 4.0
"""The deviations that `Adwin` uses as its unit: nearly all numbers then lie within the interval
its bound assumes, and heavy tails raise a tenth of the false alarms."""
LEVELS = 44
"""The bucket sizes that `Adwin` keeps: 1, 2, 4, ... numbers."""


class Detector(FieldsSnapshot):
    """The interface of every detector."""

    __slots__ = ()

    def update(self, block: pl.DataFrame) -> tuple[Self, Drifts]:
        """Return the detector after these rows, and where it detected drift in them."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adwin(Detector):
    """A window per column that grows until two parts of it have different means, and then starts
    anew.

    Bifet and Gavalda, "Learning from Time-Changing Data with Adaptive Windowing" (2007), in the
    form with buckets (ADWIN2): O(log n) sums stand for a window of n numbers, and every `clock`
    numbers it is cut between each two of them. Where the paper goes on with the newer part, this
    starts with nothing, as River's does: so a change is told once.

    Attributes:
        window: per column numbers in the window, their sum and squared deviations, shape
            (columns, 3).
        used: buckets of 1, 2, 4, ... numbers, shape (columns, LEVELS).
        sums: of each bucket's numbers, oldest first, shape (columns, LEVELS, buckets + 1).
        warm: what the unit is learned by: count, mean, squared deviations; shape (columns, 3).
        confidence: probability of a false alarm at a check, for numbers within 0 ... 1.
        clock: numbers between checks.
        warmup: numbers whose deviation, four times, becomes the unit before anything is looked
            for; 0 takes numbers as they are.
        shortest: numbers a part of the window must have to be compared.
        grace: numbers a window must have to be checked.
    """

    window: Floats
    used: Ints
    sums: Floats
    warm: Floats
    confidence: float = 0.002
    clock: int = 32
    warmup: int = 0
    shortest: int = 5
    grace: int = 10

    @classmethod
    def empty(cls, columns: int, *, buckets: int = 5, **options: Any) -> Self:
        """Return a detector without rows; `buckets` of each size are kept before two merge into
        the next."""
        return cls(
            window=np.zeros((columns, 3)),
            used=np.zeros((columns, LEVELS), np.int64),
            sums=np.zeros((columns, LEVELS, buckets + 1)),
            warm=np.zeros((columns, 3)),
            **options,
        )

    def update(self, block: pl.DataFrame) -> tuple[Self, Drifts]:
        state = {name: getattr(self, name).copy() for name in ("window", "used", "sums", "warm")}
        options = (self.confidence, self.clock, self.warmup, self.shortest, self.grace)
        drifts: Drifts = []
        kernel: Any = _adwin
        for j, column in enumerate(block.get_columns()):
            rows = np.empty(len(column) // self.clock + 1, np.int64)
            given: list[Any] = [*buffers(column), *(array[j] for array in state.values()), *options]
            n = kernel(*given, rows)
            drifts += [(j, row) for row in rows[:n].tolist()]
        return dataclasses.replace(self, **state), drifts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PageHinkley(Detector):
    """Sums of deviations from the running mean; drift is detected when one rises `threshold`
    above its minimum, or the other falls as far below its maximum. Then all starts anew.

    Page, "Continuous Inspection Schemes" (1954), and Hinkley (1971), on both sides, with the
    forgetting of Sebastiao and Fernandes (2017); without forgetting false alarms are rarer by far.

    Attributes:
        state: per column count, mean, rising and falling sum, lowest and highest of them, shape
            (columns, 6).
        warm: as in `Adwin`.
        slack: what a number may lie beyond the mean without counting.
        threshold: how far a sum must go.
        keep: share of a sum that the next number leaves.
        least: numbers before drift can be detected.
        warmup: numbers whose deviation becomes the unit before anything is looked for; 0 takes
            numbers as they are.
    """

    state: Floats
    warm: Floats
    slack: float = 0.005
    threshold: float = 50.0
    keep: float = 0.9999
    least: int = 30
    warmup: int = 0

    @classmethod
    def empty(cls, columns: int, **options: Any) -> Self:
        """Return a detector without rows."""
        return cls(state=np.tile(_START, (columns, 1)), warm=np.zeros((columns, 3)), **options)

    def update(self, block: pl.DataFrame) -> tuple[Self, Drifts]:
        state, warm = self.state.copy(), self.warm.copy()
        options = (self.slack, self.threshold, self.keep, self.least, self.warmup)
        drifts: Drifts = []
        for j, column in enumerate(block.get_columns()):
            rows = np.empty(len(column) // self.least + 1, np.int64)
            n = _page_hinkley(*buffers(column), state[j], warm[j], *options, rows)
            drifts += [(j, row) for row in rows[:n].tolist()]
        return dataclasses.replace(self, state=state, warm=warm), drifts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Psi(Detector):
    """The population stability index of each window of rows against a reference window: ``sum((p
    - q) * log(p / q))`` over the shares of the reference's quantiles (Siddiqi, "Credit Risk
    Scorecards", 2006). Drift is detected at a window's last row, and that window becomes the
    reference; the first window is the initial one.

    What is no number, or too large, is a bin of its own. Half a row is added to each bin, so that
    an empty one has a logarithm. Without drift the index is about ``2 * bins / window``.

    Attributes:
        rows: of the window that is not full yet, shape (n, columns), NaN for what is in that bin.
        edges: of the bins, ascending, shape (columns, bins - 1); NaN before the first window.
        counts: rows of the reference in each bin, shape (columns, bins + 1).
        newest: the index of the last full window, shape (columns,); NaN before.
        window: rows.
        threshold: the index above which it is drift.
    """

    rows: Floats
    edges: Floats
    counts: Floats
    newest: Floats
    window: int = 1_000
    threshold: float = 0.2

    @classmethod
    def empty(cls, columns: int, *, bins: int = 10, **options: Any) -> Self:
        """Return a detector without rows."""
        return cls(
            rows=np.empty((0, columns)),
            edges=np.full((columns, bins - 1), np.nan),
            counts=np.zeros((columns, bins + 1)),
            newest=np.full(columns, np.nan),
            **options,
        )

    def update(self, block: pl.DataFrame) -> tuple[Self, Drifts]:
        rows = np.concatenate((self.rows, matrix(block).T))
        before = len(self.rows)
        edges, counts, newest = self.edges, self.counts, self.newest
        drifts: Drifts = []
        full = len(rows) // self.window * self.window
        for start in range(0, full, self.window):
            part = rows[start : start + self.window].T
            first = np.isnan(newest) & (counts.sum(axis=1) == 0)
            now = np.stack([_binned(x, e) for x, e in zip(part, edges, strict=True)])
            newest = np.where(first, np.nan, _index(counts, now))
            drifted = newest > self.threshold
            row = start + self.window - 1 - before
            drifts += [(int(j), row) for j in np.flatnonzero(drifted)]
            edges, counts = edges.copy(), counts.copy()
            for j in np.flatnonzero(first | drifted):
                edges[j] = _quantiles(part[j], edges.shape[1])
                counts[j] = _binned(part[j], edges[j])
        left = rows[full:].copy()
        updated = dataclasses.replace(self, rows=left, edges=edges, counts=counts, newest=newest)
        return updated, sorted(drifts)


# ------------------------------------------------------------------------------------------ helpers


def _quantiles(x: Floats, n: int) -> Floats:
    known = x[~np.isnan(x)]
    if not len(known):
        return np.zeros(n)
    return np.asarray(np.quantile(known, np.arange(1, n + 1) / (n + 1)))


def _binned(x: Floats, edges: Floats) -> Floats:
    """Return the numbers in each bin, and non-numbers last; shape (edges + 2,)."""
    bins = np.searchsorted(edges, x, side="left")
    bins[np.isnan(x)] = len(edges) + 1
    return np.bincount(bins, minlength=len(edges) + 2).astype(np.float64)


def _index(reference: Floats, now: Floats) -> Floats:
    """Return the population stability index of each column; `now` and `reference` are counts."""
    p, q = now + 0.5, reference + 0.5
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    psi: Floats = ((p - q) * np.log(p / q)).sum(axis=1)
    return psi


_START = np.array([0.0, 0.0, 0.0, 0.0, np.inf, -np.inf])


@numba.njit(nogil=True, cache=True, inline="always")
def _there(x, mask, i):  # type: ignore[no-untyped-def]
    known = mask.shape[0] == 0 or mask[i] != 0
    return known and abs(x[i]) < MAX_ABS


@numba.njit(nogil=True, cache=True)
def _warmed(value, warm, warmup):  # type: ignore[no-untyped-def]
    """Return whether the unit was known before this value; learn it otherwise."""
    if warm[0] >= warmup:
        return True
    warm[0] += 1
    off = value - warm[1]
    warm[1] += off / warm[0]
    warm[2] += off * (value - warm[1])
    return False


@numba.njit(nogil=True, cache=True)
def _scaled(value, warm, warmup):  # type: ignore[no-untyped-def]
    """Return the value in the learned unit; for a column that did not vary, the distance itself."""
    if warmup == 0:
        return value
    deviation = np.sqrt(warm[2] / warm[0])
    return (value - warm[1]) / deviation if deviation > 0 else value - warm[1]


@numba.njit(nogil=True, cache=True)
def _page_hinkley(x, mask, state, warm, slack, threshold, keep, least, warmup, rows_out):  # type: ignore[no-untyped-def]
    """Write the rows of drift to `rows_out`; return how many."""
    count, mean, rising, falling, lowest, highest = state
    n = 0
    for i in range(x.shape[0]):
        if not _there(x, mask, i) or not _warmed(x[i], warm, warmup):
            continue
        value = _scaled(x[i], warm, warmup)
        count += 1
        mean += (value - mean) / count
        off = value - mean
        rising = keep * rising + off - slack
        falling = keep * falling + off + slack
        lowest = min(lowest, rising)
        highest = max(highest, falling)
        beyond = max(rising - lowest, highest - falling)
        if count >= least and beyond > threshold:
            rows_out[n] = i
            n += 1
            count, mean, rising, falling, lowest, highest = 0.0, 0.0, 0.0, 0.0, np.inf, -np.inf
            warm[:] = 0.0
    state[:] = count, mean, rising, falling, lowest, highest
    return n


@numba.njit(nogil=True, cache=True)
def _adwin(  # type: ignore[no-untyped-def]
    x, mask, window, used, sums, warm, confidence, clock, warmup, shortest, grace, rows_out
):
    """Write the rows of drift to `rows_out`; return how many."""
    n = 0
    for i in range(x.shape[0]):
        if not _there(x, mask, i) or not _warmed(x[i], warm, warmup):
            continue
        value = _scaled(x[i], warm, warmup)
        _insert(value / ADWIN_DEVIATIONS if warmup else value, window, used, sums)
        due = window[0] % clock == 0 and window[0] > grace
        if due and _differs(window, used, sums, confidence, shortest):
            rows_out[n] = i
            n += 1
            window[:], used[:], warm[:] = 0.0, 0, 0.0
    return n


@numba.njit(nogil=True, cache=True)
def _insert(value, window, used, sums):  # type: ignore[no-untyped-def]
    """Insert a bucket for the value; if there are too many of a size, merge the two oldest."""
    if window[0] > 0:
        off = value - window[1] / window[0]
        window[2] += off * off * window[0] / (window[0] + 1)
    window[0] += 1
    window[1] += value
    sums[0, used[0]] = value
    used[0] += 1
    level = 0
    while used[level] == sums.shape[1] and level + 1 < used.shape[0]:
        sums[level + 1, used[level + 1]] = sums[level, 0] + sums[level, 1]
        used[level + 1] += 1
        used[level] -= 2
        for k in range(used[level]):
            sums[level, k] = sums[level, k + 2]
        level += 1


@numba.njit(nogil=True, cache=True)
def _differs(window, used, sums, confidence, shortest):  # type: ignore[no-untyped-def]
    """Return whether two parts of the window have different means by the paper's bound, in which
    a part's count excludes the shortest window, as in the authors' code."""
    width = window[0]
    if width < 2 * shortest:
        return False
    log_confidence = np.log(2 * np.log(width) / confidence)
    variance = window[2] / width
    n, total = 0.0, 0.0
    for level in range(used.shape[0] - 1, -1, -1):
        size = 2.0**level
        for k in range(used[level]):
            n += size
            total += sums[level, k]
            rest = width - n
            if n < shortest or rest < shortest:
                continue
            apart = abs(total * rest - (window[1] - total) * n) / (n * rest)
            a, b = n - shortest + 1, rest - shortest + 1
            parts = (a + b) / (a * b)  # 1 / a + 1 / b
            beyond = apart - 2 / 3 * parts * log_confidence
            if beyond > 0 and beyond * beyond > 2 * parts * variance * log_confidence:
                return True
    return False


__all__ = ["Adwin", "Detector", "Drifts", "PageHinkley", "Psi"]
