"""Fuses stages on the same columns into one compiled call: column by column, each stage's result
is still in the CPU cache when the next stage reads it, and no intermediate column is made.

The outcome is that of the stages one after the other, to the bit: the same loops run over the same
numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numba
import numpy as np
import polars as pl
from numba.core import types
from numpy.typing import NDArray

from engine.columnar.batch_group import BatchGroup, StepFailed
from engine.columnar.buffer_pool import BufferPool
from engine.columnar.kernels import (
    bytes_of,
    clip_into,
    fill_into,
    places,
    pointer,
    scale_into,
    shared,
)
from engine.columnar.statistics import Extremes, Moments, extremes_into, moments_into
from engine.scrub.columns import replaced
from engine.scrub.too_large import too_large
from engine.types import Batch, Scale, Stage
from engine.types.arrays import Floats, Ints
from engine.user_code import calls

FLOATS = (pl.Float64, pl.Float32)
STEADY = time.CLOCK_MONOTONIC
OP_CODES = {"fill": 0, "clip": 1, "scale": 2}
FILLED_BEFORE_LEARNING = "filled_before_learning"
"""The count of values filled in columns without any learned value."""
STATISTICS: dict[type[Moments] | type[Extremes] | None, int] = {None: 0, Moments: 1, Extremes: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedOp:
    """The operation of a stage on its columns in one batch.

    Attributes:
        kind: fill null and NaN with `a`; clip to `a` ... `b`; or ``(x - a) * b``.
        a, b: a number for each column, shape (columns,).
        learns: the statistic of the columns as they come in that the stage wants, or None.
        counts: under which word the stage counts changed values, or None.
        unfitted: columns of which the stage has learned nothing yet, shape (columns,), or None:
            what changes in them is counted under `FILLED_BEFORE_LEARNING` as well.
        scale: what goes with the batch, where the numbers will be others for the next one.
    """

    kind: Literal["fill", "clip", "scale"]
    a: Floats
    b: Floats
    learns: type[Moments] | type[Extremes] | None
    counts: str | None = None
    unfitted: NDArray[np.bool_] | None = None
    scale: Scale | None = None


class RecordTime(Protocol):
    """Callback for a stage's time, see `engine.observing.timing.StageTimer.record`."""

    def __call__(
        self, stage: str, start: float, wall: float, cpu: float, rows: int = 0, batches: int = 1
    ) -> object:
        """Note that work began at `start` and took this many seconds of wall and CPU time."""
        ...


class Fusible(Stage):
    """A stage that may be done together with its neighbours."""

    @property
    @abstractmethod
    def columns(self) -> Sequence[str]:
        """The columns it works on, all in the same way."""

    @property
    @abstractmethod
    def kinds(self) -> Sequence[pl.DataType]:
        """Their types afterwards."""

    @abstractmethod
    def fused_op(self, batch: Batch) -> FusedOp | None:
        """What it would do to this batch, its columns being floats afterwards; its numbers are as
        their types hold them. None where it must be asked itself."""

    @abstractmethod
    def learn(self, statistic: Any, rows: int) -> None:
        """Learn from `rows` rows that have this statistic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnBlock:
    """Columns of a frame as Float64, and room for the results.

    Attributes:
        at: the addresses of the columns, see `engine.columnar.kernels.places`.
        held: references that keep these addresses valid.
        values: the results, shape (columns, n).
        dtypes: the types of the results, Float64 or Float32.
    """

    at: NDArray[np.int64]
    held: object
    values: Floats
    dtypes: Sequence[pl.DataType]

    def accepts(self, links: Sequence[FusedOp | None]) -> bool:
        """Return whether all stages can be fused, and no null reaches one that cannot have it."""
        fills = links[0] is not None and links[0].kind == "fill"
        return None not in links and (fills or not self.at[:, 1].any())

    def frame(self, before: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
        """Return the frame with the first rows of these columns in place of those of `before`;
        Float64 columns share memory."""
        pairs = zip(shared(self.values, columns, before.height), self.dtypes, strict=True)
        return replaced(before, (x if x.dtype == dtype else x.cast(dtype) for x, dtype in pairs))


class FusedStages:
    """Adjacent stages that work on the same columns.

    Args:
        stages: in order, one or more.
    """

    def __init__(self, stages: Sequence[Fusible]) -> None:
        self.stages = stages
        self._columns = list(stages[0].columns)
        self._floats = all(dtype in FLOATS for stage in stages for dtype in stage.kinds)
        self._buffers = BufferPool()
        _compile()

    def apply(
        self,
        batch_group: BatchGroup,
        record_time: RecordTime,
        learned: Callable[[], object] = lambda: None,
    ) -> BatchGroup:
        """Apply the stages, as if one after the other, to one batch after the other.

        Args:
            learned: called when a batch has gone through all stages.

        Raises: as `BatchGroup.each`.
        """
        first = self._in_one_block(batch_group, record_time, learned)
        if first is not None and len(first) == len(batch_group):
            return first
        done = [] if first is None else list(first.batches)
        for batch in batch_group.batches[len(done) :]:
            try:
                done.append(self._in_runs(batch, record_time))
            except BaseException as error:
                if not done:
                    raise
                raise StepFailed(BatchGroup.concat(done)) from error
            learned()
        return BatchGroup.concat(done)

    def _in_one_block(
        self, batch_group: BatchGroup, record_time: RecordTime, learned: Callable[[], object]
    ) -> BatchGroup | None:
        """Apply the first batches that fit in one block; None if none do."""
        start, cpu = time.perf_counter(), time.thread_time()
        if batch_group.frame is None:
            return None
        block: ColumnBlock | None = None
        done: list[Batch] = []
        spent = np.zeros(len(self.stages))
        for row, batch in zip(batch_group.ends, batch_group.batches, strict=False):
            links = [stage.fused_op(batch) for stage in self.stages]
            if block is None and None not in links:
                block = self._block(batch_group.frame, self.stages)
            if block is None or not block.accepts(links):
                break
            made = _run_batch(block, row, batch, self.stages, links, spent)
            if made is None:
                break
            done.append(made)
            learned()
        if block is None or not done:
            return None
        frame = block.frame(batch_group.frame.head(batch_group.ends[len(done)]), self._columns)
        _record_times(record_time, self.stages, start, cpu, spent, len(done))
        return BatchGroup(batches=tuple(done)).with_frame(frame)

    def _in_runs(self, batch: Batch, record_time: RecordTime) -> Batch:
        """Apply those together that can be, the others one by one."""
        links = [stage.fused_op(batch) for stage in self.stages]
        pairs = zip(self.stages, links, strict=True)
        for linked, group in itertools.groupby(pairs, lambda pair: pair[1] is not None):
            stages, own = zip(*group, strict=True)
            start, cpu = time.perf_counter(), time.thread_time()
            block = self._block(batch.frame, stages) if linked else None
            if block is None or not block.accepts(own):
                batch = _one_by_one(batch, stages, record_time)
                continue
            spent = np.zeros(len(stages))
            done = _run_batch(block, 0, batch, stages, own, spent)
            if done is None:
                batch = _one_by_one(batch, stages, record_time)
                continue
            batch = done.with_frame(block.frame(batch.frame, self._columns))
            _record_times(record_time, stages, start, cpu, spent, 1)
        return batch

    def _block(self, frame: pl.DataFrame, stages: Sequence[Fusible]) -> ColumnBlock | None:
        """Return a block for these stages' results; None if those are not of `FLOATS`, or there
        are no rows."""
        if not frame.height or not self._floats:
            return None
        columns = frame[self._columns]
        if any(dtype != pl.Float64 for dtype in columns.dtypes):
            columns = columns.cast(pl.Float64)
        at, held = places(columns)
        out = self._buffers.empty((len(self._columns), frame.height), np.float64)
        return ColumnBlock(at=at, held=held, values=out, dtypes=stages[-1].kinds)


def fuse(stages: Iterable[Stage]) -> Iterator[Stage | FusedStages]:
    """Return the stages, adjacent ones that can be fused as one; all are bound."""
    for columns, group in itertools.groupby(stages, _columns):
        run: list[Any] = list(group)
        if columns is None:
            yield from run
        else:
            yield FusedStages(run)


def _columns(stage: Stage) -> tuple[str, ...] | None:
    return tuple(stage.columns) if isinstance(stage, Fusible) else None


def _one_by_one(batch: Batch, stages: Sequence[Fusible], record_time: RecordTime) -> Batch:
    for stage in stages:
        start, cpu = time.perf_counter(), time.thread_time()
        batch = calls.apply(cast(Stage, stage), batch)
        record_time(stage.name, start, time.perf_counter() - start, time.thread_time() - cpu)
    return batch


def _run_batch(
    block: ColumnBlock,
    row: int,
    batch: Batch,
    stages: Sequence[Fusible],
    links: Sequence[FusedOp | None],
    spent: Floats,
) -> Batch | None:
    """Return the batch with what the stages counted; its columns are in the block from `row` on,
    and the stages have learned from them. None if a number is too large for one of them to learn
    from, which the stage itself counts: then nothing has happened.

    Args:
        spent: gets the seconds of each stage added, shape (stages,).
    """
    some = [fused_op for fused_op in links if fused_op is not None]
    learned = np.empty((len(some), len(block.at), 3))
    changed = np.zeros((len(some), len(block.at)), np.int64)
    nanoseconds = np.zeros(len(some), np.int64)
    _run_ops(
        block.at,
        row,
        len(batch),
        np.array([OP_CODES[fused_op.kind] for fused_op in some]),
        np.array([STATISTICS[fused_op.learns] for fused_op in some]),
        np.stack([fused_op.a for fused_op in some]),
        np.stack([fused_op.b for fused_op in some]),
        block.values,
        learned,
        changed,
        nanoseconds,
    )
    if _ignores_numbers(batch, stages[0].columns, some, learned[:, :, 0]):
        return None
    spent += nanoseconds * 1e-9
    counts = dict(batch.counts)
    for stage, fused_op, sums, values in zip(stages, some, learned, changed, strict=True):
        if fused_op.learns is not None:
            stage.learn(fused_op.learns.from_sums(sums), len(batch))
        if fused_op.counts is not None:
            _count(counts, stage.name, fused_op.counts, values)
        if fused_op.unfitted is not None and values[fused_op.unfitted].any():
            _count(counts, stage.name, FILLED_BEFORE_LEARNING, values[fused_op.unfitted])
    scales = tuple(fused_op.scale for fused_op in some if fused_op.scale is not None)
    return dataclasses.replace(batch, counts=counts, scales=(*batch.scales, *scales))


def _ignores_numbers(
    batch: Batch, columns: Sequence[str], links: Sequence[FusedOp], kept: Floats
) -> bool:
    """Return whether a statistic ignored a number that is too large for it; `kept` is how many it
    counted, shape (stages, columns). Only where these are fewer than there are values, NaN among
    them, are the columns looked at."""
    learning = [link.learns is not None for link in links]
    if not (kept[learning] < len(batch)).any():
        return False
    nulls = [batch.frame.get_column(column).null_count() for column in columns]
    # Nulls reach only a first stage that fills them.
    values = np.full(kept.shape, len(batch))
    values[0] -= nulls
    if not (kept[learning] < values[learning]).any():
        return False
    limit = min(link.learns.limit for link in links if link.learns is not None)
    return bool(too_large(batch.frame[list(columns)], limit))


def _count(counts: dict[tuple[str, str], int], stage: str, name: str, values: Ints) -> None:
    counts[stage, name] = counts.get((stage, name), 0) + int(values.sum())


def _record_times(
    record_time: RecordTime,
    stages: Sequence[Fusible],
    start: float,
    cpu: float,
    spent: Floats,
    batches: int,
) -> None:
    """Record the time of each stage: its loops, and an equal part of the rest."""
    wall = time.perf_counter() - start
    share = (time.thread_time() - cpu) / max(wall, 1e-12)
    rest = max(0.0, wall - float(spent.sum())) / len(stages)
    for stage, own in zip(stages, (spent + rest).tolist(), strict=True):
        record_time(stage.name, start, own, own * share, batches=batches)
        start += own


@functools.cache
def _compile() -> None:
    """Run the loop over no columns to compile it now: without a cache that takes seconds, and
    the first batch should not wait."""
    whole, number = np.empty(0, np.int64), np.empty((0, 0))
    learned, changed = np.empty((0, 0, 3)), np.empty((0, 0), np.int64)
    _run_ops(
        np.empty((0, 3), np.int64), 0, 0, whole, whole, number, number, number, learned, changed,
        whole,
    )  # fmt: skip


TILE = 1_024
"""Values that pass through several stages while they are in the first-level CPU cache."""
_types: Any = types  # whose calls make signatures
_clock = _types.ExternalFunction("clock_gettime", _types.int32(_types.int32, _types.voidptr))
_carray: Any = numba.carray  # type: ignore[attr-defined]


@numba.njit(nogil=True, cache=True)
def _now(room):  # type: ignore[no-untyped-def]
    """Return nanoseconds of the system's monotonic clock; `room` holds two numbers."""
    _clock(np.int32(STEADY), room.ctypes)
    return room[0] * 1_000_000_000 + room[1]


@numba.njit(nogil=True, cache=True)
def _run_ops(at, row, n, kinds, learns, a, b, out_columns, learned, changed, spent):  # type: ignore[no-untyped-def]
    """Run all operations over all columns, n rows from `row` on.

    Args:
        at: of the columns, as `engine.columnar.kernels.places` gives it.
        kinds, learns: of each link, as in `OP_CODES` and `STATISTICS`.
        a, b: shape (links, columns).
        out_columns: gets the columns, shape (columns, rows).
        learned: gets the statistics, shape (links, columns, 3).
        changed: gets how many values each link has changed, shape (links, columns).
        spent: gets nanoseconds of each link.
    """
    columns = len(out_columns)
    links = len(kinds)
    room = np.empty(2, np.int64)
    none = np.empty(0, np.uint8)
    # A loop that writes what it reads is not put on the processor's lanes: links take turns.
    turns = np.empty((2, n))
    now = _now(room)
    for j in range(columns):
        x, mask_bytes = _carray(pointer(at[j, 0] + 8 * row), (n,), np.float64), none
        if at[j, 1]:
            bit = at[j, 2] + row
            mask_bytes = bytes_of(
                _carray(pointer(at[j, 1]), ((bit + n + 7) >> 3,), np.uint8), bit, n
            )
        first = 0
        while first < links:
            # A statistic is of a whole column; links without go on while a tile of it is at hand.
            if learns[first] == 1:
                moments_into(x, mask_bytes, learned[first, j])
            elif learns[first] == 2:
                extremes_into(x, mask_bytes, learned[first, j])
            last = first + 1
            while last < links and learns[last] == 0:
                last += 1
            for start in range(0, n, TILE):
                part, mask = x[start : start + TILE], mask_bytes[start : start + TILE]
                for i in range(first, last):
                    out = out_columns[j, row : row + n] if i == links - 1 else turns[i & 1]
                    out = out[start : start + TILE]
                    changed[i, j] += _run_op(part, mask, kinds[i], a[i, j], b[i, j], out)
                    part, mask = out, none
                    before, now = now, _now(room)
                    spent[i] += now - before
            x, mask_bytes, first = turns[(last - 1) & 1], none, last


@numba.njit(nogil=True, cache=True)
def _run_op(x, mask, op, a, b, out):  # type: ignore[no-untyped-def]
    """Run one operation over values, into `out`; return how many changed."""
    if op == 0:
        return fill_into(x, mask, a, out)
    if op == 1:
        return clip_into(x, a, b, out)
    scale_into(x, a, b, out)
    return 0


__all__ = ["FusedOp", "FusedStages", "Fusible", "fuse"]
