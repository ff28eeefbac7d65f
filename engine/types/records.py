"""Records from a source, and their positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import (
    TYPE_CHECKING,
    Any,
)  # fmt: skip

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.errors import UserError

if TYPE_CHECKING:
    pass
from engine.types.arrays import read_only
from engine.types.settings import _each

Snapshot = Any
"""A stage's state as a plain value: None, bool, int, float, str, bytes, numpy arrays, polars
frames and series, and lists, tuples and string-keyed dicts of those. It never changes after it
was returned; see `Stage.snapshot`."""


class EndOfStream(Exception):
    """Raised only by `Source.read`, after the last row of a bounded source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Where to resume so that nothing before it is needed again.

    Attributes:
        positions: partition -> NEXT position to read. Partitions not named are read from their
            start.
        stages: stage name -> snapshot after the batch that carries this mark (stateful stages
            only).
    """

    positions: Mapping[str, int] = field(default_factory=dict)
    stages: Mapping[str, Snapshot] = field(default_factory=dict)

    @classmethod
    def joined(cls, marks: Iterable[Mark]) -> Mark:
        """Return the combined mark of several engines that share a source's partitions; any
        number of engines can resume from it.

        Raises: UserError if one has a stage with a state, which is not shared.
        """
        positions: dict[str, int] = {}
        for mark in marks:
            if mark.stages:
                raise UserError(
                    f"Stage '{next(iter(mark.stages))}' has learned apart in each engine: expected "
                    "stages without a state, or as many engines as before."
                )
            for partition, position in mark.positions.items():
                positions[partition] = max(position, positions.get(partition, 0))
        return cls(positions=positions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """Raw values in sequence in one buffer: value i is ``data[bounds[i]:bounds[i + 1]]``.

    Attributes:
        data: the bytes, shape (total,), uint8, C-contiguous, not to be written to.
        bounds: shape (n + 1,), int64, not decreasing, not to be written to.
        null: where there is no value, which is not an empty one, shape (n,); None where all are.
        tail: bytes at the end of each that are not its own (a line end put there for a parser).
    """

    data: NDArray[np.uint8]
    bounds: NDArray[np.int64]
    null: NDArray[np.bool_] | None = None
    tail: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", read_only(self.data))
        object.__setattr__(self, "bounds", read_only(self.bounds))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def nbytes(self) -> int:
        return int(self.bounds[-1] - self.bounds[0])

    def slice(self, start: int, stop: int) -> Values:
        """Return the values start..stop-1, sharing the buffer."""
        null = None if self.null is None else self.null[start:stop]
        bounds = self.bounds[start : stop + 1]
        return Values(data=self.data, bounds=bounds, null=null, tail=self.tail)

    def is_before(self, other: Values) -> bool:
        """Return whether the other ones follow these in the same buffer."""
        same = self.data is other.data and self.tail == other.tail
        return same and bool(self.bounds[-1] == other.bounds[0])

    @classmethod
    def joined(cls, parts: Sequence[Values]) -> Values:
        """Return the values of all parts, which have the same `tail`; copied unless they follow
        each other in one buffer."""
        nulls = [np.zeros(len(one), np.bool_) if one.null is None else one.null for one in parts]
        null = None if all(one.null is None for one in parts) else np.concatenate(nulls)
        if all(one.is_before(other) for one, other in pairwise(parts)):
            data = parts[0].data
            bounds = [parts[0].bounds, *(one.bounds[1:] for one in parts[1:])]
        else:
            data = np.concatenate([one.data[one.bounds[0] : one.bounds[-1]] for one in parts])
            starts = accumulate((one.nbytes for one in parts[:-1]), initial=0)
            bounds = [
                np.zeros(1, np.int64),
                *(
                    one.bounds[1:] - one.bounds[0] + start
                    for one, start in zip(parts, starts, strict=True)
                ),
            ]
        return cls(data=data, bounds=np.concatenate(bounds), null=null, tail=parts[0].tail)

    def take(self, at: NDArray[np.int64]) -> list[bytes | None]:
        """Return some of the values, each copied: for the few, not for the many."""
        values: list[bytes | None] = []
        for i in at.tolist():
            if self.null is not None and self.null[i]:
                values.append(None)
            else:
                values.append(self.data[self.bounds[i] : self.bounds[i + 1] - self.tail].tobytes())
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Raw rows of one partition, columnar.

    Attributes:
        partition: where they come from.
        positions: where each row starts, shape (n,), int64, increasing.
        next: the position to read after the last row.
        values: undecoded bytes (text files, Kafka) or, from a source that is columnar itself
            (Parquet, Arrow), a frame.
        arrived: `time.monotonic` seconds when the oldest row was read.
        timestamps: broker's or file's own time of each row, ms since the epoch, `NO_TIMESTAMP` for
            none, shape (n,), or None.
        keys: of each row, or None where the source has none or was not asked for them.
        headers: of each row, in the source's own bytes, or None.
        epoch_offset: added to positions on a mark, and in `next` already: of rows that are read
            again, so that a mark tells one time from another.
        origins: the reserved columns as they were when each row was read first, n rows, from a
            source that gives again what another gave; None where this is the first time.
        counter, counted: a number on the mark that grows by one a row, and what it is before the
            first of these; empty for none.
    """

    partition: str
    positions: NDArray[np.int64]
    next: int
    values: Values | pl.DataFrame
    arrived: float
    timestamps: NDArray[np.int64] | None = None
    keys: Values | None = None
    headers: Values | None = None
    origins: pl.DataFrame | None = None
    epoch_offset: int = 0
    counter: str = ""
    counted: int = 0

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def end_positions(self) -> dict[str, int]:
        """The positions of a mark after these rows."""
        end_positions = {self.partition: self.next}
        if self.counter:
            end_positions[self.counter] = self.counted + len(self)
        return end_positions

    def mark_position(self, row: int) -> int:
        """Return the position on a mark that resumes at `row`."""
        return self.next if row >= len(self) else int(self.positions[row]) + self.epoch_offset

    @property
    def nbytes(self) -> int:
        """The bytes of these rows in memory (of shared buffers, the part in use)."""
        values = self.values
        size = values.nbytes if isinstance(values, Values) else int(values.estimated_size())
        size += 8 * len(self.positions)
        for more in (self.keys, self.headers):
            size += 0 if more is None else more.nbytes
        return size

    def slice(self, start: int, stop: int) -> Records:
        """Return the rows start..stop-1, sharing memory; `next` is the position of row `stop`,
        or this one's at the end."""
        values = self.values
        return Records(
            partition=self.partition,
            positions=self.positions[start:stop],
            next=self.mark_position(stop),
            values=values.slice(start, stop)
            if isinstance(values, Values)
            else values.slice(start, stop - start),
            arrived=self.arrived,
            timestamps=None if self.timestamps is None else self.timestamps[start:stop],
            keys=None if self.keys is None else self.keys.slice(start, stop),
            headers=None if self.headers is None else self.headers.slice(start, stop),
            origins=None if self.origins is None else self.origins.slice(start, stop - start),
            epoch_offset=self.epoch_offset,
            counter=self.counter,
            counted=self.counted + start,
        )


SMALL_BYTES = 1 << 16
"""Pieces of at most so many bytes are copied together: that is sooner done than decoding one more
piece."""


def joined(pieces: Iterable[Records]) -> list[Records]:
    """Return the pieces in their order, as few as are cheap to make: what is paid for each piece
    is paid once. Those that were cut out of one read and follow each other there share its memory;
    small ones of one partition are copied together. Rows of a replay, which have `origins`, stay as
    they are. They are for a format, which does not read the counter."""
    return _grouped(_grouped(pieces, _is_before), _are_small)


def _grouped(
    pieces: Iterable[Records], together: Callable[[Records, Records], bool]
) -> list[Records]:
    groups: list[list[Records]] = []
    for piece in pieces:
        if groups and together(groups[-1][-1], piece):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return [group[0] if len(group) == 1 else _joined(group) for group in groups]


def _is_before(a: Records, b: Records) -> bool:
    """Return whether the second piece follows the first one in all of its buffers."""
    return _are_alike(a, b) and all(
        isinstance(one, Values) and one.is_before(other)
        for one, other in zip(_parts(a), _parts(b), strict=True)
        if one is not None
    )


def _are_small(a: Records, b: Records) -> bool:
    """Return whether the second piece may be copied behind the first one, as both are small."""
    return (
        max(a.nbytes, b.nbytes) <= SMALL_BYTES
        and _are_alike(a, b)
        and a.epoch_offset == b.epoch_offset
        and bool(a.positions[-1:] < b.positions[:1])
    )


def _are_alike(a: Records, b: Records) -> bool:
    """Return whether two pieces are of one partition, have the same parts, and no origins."""
    if a.origins is not None or b.origins is not None:
        return False
    if a.partition != b.partition or (a.timestamps is None) != (b.timestamps is None):
        return False
    for one, other in zip(_parts(a), _parts(b), strict=True):
        if type(one) is not type(other):
            return False
        if isinstance(one, pl.DataFrame) and (one.columns, one.dtypes) != (
            other.columns,
            other.dtypes,
        ):
            return False
        if isinstance(one, Values) and one.tail != other.tail:
            return False
    return True


def _parts(records: Records) -> tuple[Any, Any, Any]:
    return records.values, records.keys, records.headers


def _joined(pieces: Sequence[Records]) -> Records:
    times = [piece.timestamps for piece in pieces if piece.timestamps is not None]
    parts = zip(*map(_parts, pieces), strict=True)
    values, keys, headers = map(_joined_values, parts)
    assert values is not None
    return replace(
        pieces[-1],
        positions=np.concatenate([piece.positions for piece in pieces]),
        arrived=min(piece.arrived for piece in pieces),
        values=values,
        keys=keys,
        headers=headers,
        timestamps=np.concatenate(times) if times else None,
        counted=pieces[0].counted,
    )


def _joined_values(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, pl.DataFrame):
        return pl.concat(parts)
    return None if first is None else Values.joined(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejects:
    """Rows that left the stream for one reason in one stage.

    Attributes:
        stage: the stage's name (``decode`` for a format's).
        reason: one of a small set of words the component declares, e.g. ``wrong_type``; a metric
            label.
        rows: `_partition`, `_position`, ``detail`` (a sentence, or null) and ``value`` (the row as
            text; JSON for rows that were already columns), n rows.
    """

    stage: str
    reason: str
    rows: pl.DataFrame

    def __len__(self) -> int:
        return self.rows.height


def in_utc(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame with times in UTC if they have no zone, so that text output is ISO 8601
    with T and offset, also inside lists and objects."""
    timed = {c: dtype for c, dtype in frame.schema.items() if dtype.is_nested() or _is_naive(dtype)}
    columns = {c: _each(pl.col(c), dtype, _utc) for c, dtype in timed.items()}
    changed = [
        converted.alias(c) for c, converted in columns.items() if not converted.meta.eq(pl.col(c))
    ]
    return frame.with_columns(changed) if changed else frame


def _utc(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    return value.dt.replace_time_zone("UTC") if _is_naive(dtype) else value


def _is_naive(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.Datetime) and dtype.time_zone is None
