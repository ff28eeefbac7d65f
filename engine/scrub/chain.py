"""Neighbouring stages over the same numbers, done column by column: what one stage has made of a
column is still in the processor's cache when the next one takes it, and no column is made in
between.

The outcome is that of the stages one after the other, to the bit: the same loops run over the same
numbers.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numba
import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.kernels import ALL, buffers, clip_into, fill_into, scale_into
from engine.scrub.columns import replaced
from engine.statistics import Extremes, Moments, extremes_into, moments_into
from engine.types import Batch, Stage

Floats = NDArray[np.float64]
Took = Callable[[str, float, float, float], object]
"""Hears of each stage's work: name, `time.perf_counter` when it began, seconds by the wall, seconds
on a processor."""
KINDS = {"fill": 0, "clip": 1, "scale": 2}
STATISTICS: dict[type[Moments] | type[Extremes] | None, int] = {None: 0, Moments: 1, Extremes: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What a stage does to its columns in one batch.

    Attributes:
        kind: fill null and NaN with `a`; clip to `a` ... `b`; or ``(x - a) * b``.
        a, b: a number for each column, shape (columns,).
        learns: the statistic of the columns as they come in that the stage wants, or None.
        counts: under which word the stage counts changed values, or None.
    """

    kind: Literal["fill", "clip", "scale"]
    a: Floats
    b: Floats
    learns: type[Moments] | type[Extremes] | None
    counts: str | None = None


@runtime_checkable
class Linked(Protocol):
    """A stage that may be done together with its neighbours."""

    name: str

    @property
    def columns(self) -> Sequence[str]:
        """That it works on, all of them the same way."""
        ...

    def link(self, batch: Batch) -> Link | None:
        """What it would do to this batch, its columns being Float64; None where it must be asked
        itself."""
        ...

    def learn(self, statistic: Any, rows: int) -> None:
        """Learn from `rows` rows that have this statistic."""
        ...

    def apply(self, batch: Batch) -> Batch:
        """See `engine.types.Stage`."""
        ...


class Chain:
    """Neighbours that work on the same columns.

    Args:
        stages: in order, two or more.
    """

    def __init__(self, stages: Sequence[Linked]) -> None:
        self._stages = stages

    def apply(self, batch: Batch, took: Took) -> Batch:
        """As applying the stages one after the other."""
        links = [stage.link(batch) for stage in self._stages]
        pairs = zip(self._stages, links, strict=True)
        for linked, group in itertools.groupby(pairs, lambda pair: pair[1] is not None):
            run = list(group)
            if linked and len(run) > 1 and _suits(batch.frame, run[0][0].columns, run[0][1]):
                batch = _together(batch, run, took)
            else:
                batch = _apart(batch, [stage for stage, _ in run], took)
        return batch


def chained(stages: Iterable[Stage]) -> Iterator[Stage | Chain]:
    """The stages, neighbours that can be done together as one `Chain`; all are bound."""
    for columns, group in itertools.groupby(stages, _columns):
        run: list[Any] = list(group)
        if columns is None or len(run) == 1:
            yield from run
        else:
            yield Chain(run)


def _columns(stage: Stage) -> tuple[str, ...] | None:
    return tuple(stage.columns) if isinstance(stage, Linked) else None


def _suits(frame: pl.DataFrame, columns: Sequence[str], first: Link | None) -> bool:
    """Whether the columns are Float64 and have no null that the first link leaves."""
    assert first is not None
    given = [frame.get_column(c) for c in columns]
    fills = first.kind == "fill"
    return frame.height > 0 and all(
        c.dtype == pl.Float64 and (fills or not c.null_count()) for c in given
    )


def _apart(batch: Batch, stages: Sequence[Linked], took: Took) -> Batch:
    for stage in stages:
        start, cpu = time.perf_counter(), time.thread_time()
        batch = stage.apply(batch)
        took(stage.name, start, time.perf_counter() - start, time.thread_time() - cpu)
    return batch


def _together(batch: Batch, run: Sequence[tuple[Linked, Link | None]], took: Took) -> Batch:
    begin, cpu = time.perf_counter(), time.thread_time()
    stages, links = [s for s, _ in run], [link for _, link in run if link is not None]
    columns, frame, n = stages[0].columns, batch.frame, len(batch)
    made = np.empty((len(columns), n))
    learned = np.empty((len(links), len(columns), 3))
    changed, walls = [0] * len(links), [0.0] * len(links)
    steps = [
        (KINDS[link.kind], link.a.tolist(), link.b.tolist(), STATISTICS[link.learns])
        for link in links
    ]
    start = begin
    for j, name in enumerate(columns):
        x, there = buffers(frame.get_column(name))
        out = made[j]
        for i, (kind, a, b, learns) in enumerate(steps):
            changed[i] += _link(x, there, kind, a[j], b[j], learns, out, learned[i, j])
            x, there = out, ALL
            now = time.perf_counter()
            walls[i] += now - start
            start = now
    batch = batch.with_frame(replaced(frame, _series(columns, made)))
    for stage, link, parts, n_changed in zip(stages, links, learned, changed, strict=True):
        if link.learns is not None:
            stage.learn(link.learns.from_sums(parts), n)
        if link.counts is not None:
            batch = batch.counted(stage.name, **{link.counts: n_changed})
    walls[-1] += time.perf_counter() - start
    share = (time.thread_time() - cpu) / max(sum(walls), 1e-12)
    for stage, wall in zip(stages, walls, strict=True):
        took(stage.name, begin, wall, wall * share)
        begin += wall
    return batch


def _series(columns: Sequence[str], block: Floats) -> Iterator[pl.Series]:
    """Columns that share the block's memory, shape (columns, n)."""
    n = block.shape[1]
    whole = pl.Series(block.reshape(-1))
    return (whole.slice(j * n, n).alias(name) for j, name in enumerate(columns))


@numba.njit(nogil=True, cache=True)
def _link(x, there, kind, a, b, learns, made, learned):  # type: ignore[no-untyped-def]
    """One link over one column: the statistic of x into `learned`, shape (3,), the result into
    `made`, which may be x itself; how many values changed."""
    if learns == 1:
        moments_into(x, there, learned)
    elif learns == 2:
        extremes_into(x, there, learned)
    if kind == 0:
        return fill_into(x, there, a, made)
    if kind == 1:
        return clip_into(x, a, b, made)
    scale_into(x, a, b, made)
    return 0


__all__ = ["Chain", "Link", "Linked", "chained"]
