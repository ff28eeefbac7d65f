"""The nouns of headrace. Everything else in the house is written in these words.

One batch, one direction::

    Source.read -> Records -> Format.decode -> Stage.apply ... -> collate -> Learner.learn |
    Predictor.predict -> Sink.write
                                                     commit(mark) <- the only arrow back

A position always means the NEXT one to read. A batch carries the `Mark` after its last row, so
nothing that still sits in a queue can be committed: only a batch in the consumer's hand has a mark
to give.

This module imports polars, numpy, pydantic, torch and of headrace `engine.errors` alone; every
other module may import it.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
import zoneinfo
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    Protocol,
    TypeAlias,
    cast,
    runtime_checkable,
)  # fmt: skip

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from engine.errors import HeadraceError, UserError, nearest

if TYPE_CHECKING:
    import torch

PARTITION = "_partition"
"""Column that says which partition a row came from (a file's path, ``topic/3``)."""
POSITION = "_position"
"""Column that says where in its partition a row starts (int64; a byte offset, a row number, a Kafka
offset)."""
RESERVED = (PARTITION, POSITION)
NO_TIMESTAMP = -1
"""Time of a record that has none (Kafka's own number for it; it is no second of 1969)."""
PART = "_part"
"""Column that a 'split' stage adds: whether a row is of the ``train``, ``validation`` or ``test``
part. Only training rows are learned from, by stages and by the model."""

Schema = dict[str, pl.DataType]
"""Column name -> polars type, in column order. The reserved columns are never part of it."""

Unit = Literal["ms", "us", "ns"]
"""Of a time or a duration."""

Snapshot = Any
"""A stage's state as a plain value: None, bool, int, float, str, bytes, numpy arrays, polars frames
and series, and lists, tuples and string-keyed dicts of those. It is never changed after it was
handed out; see `Stage.snapshot`."""


class EndOfStream(Exception):
    """Raised by `Source.read`, and by nothing else, when a bounded source has given its last
    row."""


def _only_number(annotation: str) -> bool:
    return bool(re.search(r"\b(int|float|ByteSize)\b", annotation)) and not re.search(
        r"\b(bool|Any)\b", annotation
    )


class Settings(BaseModel):
    """Base of every component's own small settings: frozen, keyword-only, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _check_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """True is a 1 to Python, and a slip in a pipeline file; TOML's whole numbers have 64
        bits."""
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and _only_number(repr(field.annotation)):
            raise ValueError("expected a number")
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, int) and not -(2**63) <= number < 2**63:
                raise ValueError("expected a whole number of 64 bits")
        return value

    def secrets(self) -> Iterator[str]:
        """What must never be shown; every `SecretStr` to begin with."""
        for _, value in self:
            if isinstance(value, SecretStr):
                yield value.get_secret_value()


def _some_text(text: str) -> str:
    if not text:
        raise ValueError("expected text that is not empty")
    if "\0" in text:  # neither a path nor a sentence can have it
        raise ValueError("expected text without a zero byte")
    return text


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if "" in names:
        raise ValueError("expected names that are not empty")
    if len(set(names)) < len(names):
        raise ValueError("expected every name once")
    return names


Name = Annotated[str, AfterValidator(_some_text)]
"""A setting that names a column, a file or a folder: an empty one names nothing."""
Names = Annotated[tuple[str, ...], AfterValidator(_each_once)]
"""Several of them."""
NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
    "w": 604_800_000_000_000,
}
"""Nanoseconds of each unit of a duration; months and years have no fixed length."""


def nanoseconds(text: str) -> int | None:
    """A duration such as "250ms", "1.5h" or "1h30m"; None for any other text."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h|d|w)", text)
    if not parts or "".join(n + unit for n, unit in parts) != text:
        return None
    return sum(int(Fraction(n) * NANOSECONDS[unit]) for n, unit in parts)


def _seconds(value: Any) -> float:
    """Raises: ValueError for what is neither a duration nor a finite number of seconds."""
    if isinstance(value, str) and (length := nanoseconds(value.replace(" ", ""))) is not None:
        return length / NANOSECONDS["s"]
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError('expected seconds or a duration like "250ms", "1s", "5m", "2h" or "7d"')
    return seconds


Duration = Annotated[float, BeforeValidator(_seconds, json_schema_input_type=float | str)]
"""Type of every setting that is a length of time: seconds, written as a number or as text with
units ("250ms", "1h30m")."""


# --------------------------------------------------------------------------------------------- data


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
        """What several engines have done that share a source's partitions, for any number of them
        to go on from.

        Raises: UserError where one has a stage with a state, which is not shared.
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
    """Raw values back to back in one buffer: value i is ``data[bounds[i]:bounds[i + 1]]``.

    Attributes:
        data: the bytes, shape (total,), uint8, C-contiguous.
        bounds: shape (n + 1,), int64, not decreasing.
        null: where there is no value, which is not an empty one, shape (n,); None where all are.
        tail: bytes at the end of each that are not its own (a line end put there for a parser).
    """

    data: NDArray[np.uint8]
    bounds: NDArray[np.int64]
    null: NDArray[np.bool_] | None = None
    tail: int = 0

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def nbytes(self) -> int:
        return int(self.bounds[-1] - self.bounds[0])

    def slice(self, start: int, stop: int) -> Values:
        """Values start..stop-1, sharing the buffer."""
        null = None if self.null is None else self.null[start:stop]
        bounds = self.bounds[start : stop + 1]
        return Values(data=self.data, bounds=bounds, null=null, tail=self.tail)

    def take(self, at: NDArray[np.int64]) -> list[bytes | None]:
        """Some of the values, as they came. A copy each: for the few, not for the many."""
        values: list[bytes | None] = []
        for i in at.tolist():
            if self.null is not None and self.null[i]:
                values.append(None)
            else:
                values.append(self.data[self.bounds[i] : self.bounds[i + 1] - self.tail].tobytes())
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Raw rows of one partition as fetched, columnar.

    Attributes:
        partition: where they come from.
        positions: where each row starts, shape (n,), int64, increasing.
        next: the position to read after the last row.
        values: undecoded bytes (text files, Kafka) or, from a source that is columnar itself
            (Parquet, Arrow), a frame.
        arrived: `time.monotonic` seconds when the oldest row was read.
        timestamps: broker's or file's own time of each row, ms since the epoch, `NO_TIMESTAMP` for none,
            shape (n,), or None.
        keys: of each row, or None where the source has none or was not asked for them.
        headers: of each row, in the source's own bytes, or None.
        epoch_offset: added to positions on a mark, and in `next` already: of rows that are read again, so
            that a mark tells one time from another.
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
        """What is on a mark after them."""
        end_positions = {self.partition: self.next}
        if self.counter:
            end_positions[self.counter] = self.counted + len(self)
        return end_positions

    def mark_position(self, row: int) -> int:
        """The position on a mark that says to go on at `row`."""
        return self.next if row >= len(self) else int(self.positions[row]) + self.epoch_offset

    @property
    def nbytes(self) -> int:
        """Bytes these rows hold in memory (shared buffers count by the part used)."""
        values = self.values
        size = values.nbytes if isinstance(values, Values) else int(values.estimated_size())
        size += 8 * len(self.positions)
        for more in (self.keys, self.headers):
            size += 0 if more is None else more.nbytes
        return size

    def slice(self, start: int, stop: int) -> Records:
        """Rows start..stop-1, sharing memory; `next` is the position of row `stop`, or this one's
        at the end."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejects:
    """Rows that left the stream, all for one reason in one stage.

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


TensorFunction: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"


def tensor(array: NDArray[Any]) -> torch.Tensor:
    """An array as a tensor that shares its memory. Only whoever learns imports torch: it takes half
    a GiB and two seconds."""
    import torch

    return torch.from_numpy(array)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ragged:
    """Rows of different lengths: row i is ``values[offsets[i]:offsets[i + 1]]``, as EmbeddingBag
    takes them (``include_last_offset=True``).

    Attributes:
        values: shape (total,); int64, or float32.
        offsets: shape (n + 1,), int64, from 0, not decreasing.
    """

    values: torch.Tensor
    offsets: torch.Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: NDArray[np.int64]) -> Ragged:
        """Some of the rows; see `Tensors.take`."""
        at, offsets = _gathered(self.offsets, rows)
        return Ragged(values=self.values[at], offsets=offsets)

    def slice(self, start: int, stop: int) -> Ragged:
        """Rows start..stop-1, sharing the values."""
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        offsets = self.offsets[start : stop + 1] - first
        return Ragged(values=self.values[first:last], offsets=offsets)

    def map(self, each: TensorFunction) -> Ragged:
        """The same of other tensors."""
        return Ragged(values=each(self.values), offsets=each(self.offsets))


@dataclass(frozen=True, slots=True, kw_only=True)
class Padded:
    """Rows of different lengths, filled up with 0 to one length, which is one of a few.

    Attributes:
        values: shape (n, length); int64, or float32.
        mask: shape (n, length), bool: true where there is a value.
    """

    values: torch.Tensor
    mask: torch.Tensor

    def take(self, rows: NDArray[np.int64]) -> Padded:
        """Some of the rows, at the same length; see `Tensors.take`."""
        at = tensor(rows)
        return Padded(values=self.values[at], mask=self.mask[at])

    def slice(self, start: int, stop: int) -> Padded:
        """Rows start..stop-1, at the same length, sharing memory."""
        return Padded(values=self.values[start:stop], mask=self.mask[start:stop])

    def map(self, each: TensorFunction) -> Padded:
        """The same of other tensors."""
        return Padded(values=each(self.values), mask=each(self.mask))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparse:
    """Rows of mostly zeros: the numbers of row i that are not 0 are ``weights[a:b]`` in the columns
    ``indices[a:b]``, which ascend, with ``a, b = offsets[i], offsets[i + 1]``. As EmbeddingBag
    takes them (``include_last_offset=True``, weights ``per_sample_weights``).

    Attributes:
        indices: shape (total,), int64.
        offsets: shape (n + 1,), int64.
        weights: shape (total,), float32.
        width: number of columns.
    """

    indices: torch.Tensor
    offsets: torch.Tensor
    weights: torch.Tensor
    width: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: NDArray[np.int64]) -> Sparse:
        """Some of the rows; see `Tensors.take`."""
        at, offsets = _gathered(self.offsets, rows)
        indices, weights = self.indices[at], self.weights[at]
        return Sparse(indices=indices, offsets=offsets, weights=weights, width=self.width)

    def slice(self, start: int, stop: int) -> Sparse:
        """Rows start..stop-1, sharing the numbers."""
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        return Sparse(
            indices=self.indices[first:last],
            offsets=self.offsets[start : stop + 1] - first,
            weights=self.weights[first:last],
            width=self.width,
        )

    def map(self, each: TensorFunction) -> Sparse:
        """The same of other tensors."""
        parts = (each(part) for part in (self.indices, self.offsets, self.weights))
        indices, offsets, weights = parts
        return Sparse(indices=indices, offsets=offsets, weights=weights, width=self.width)

    def csr(self) -> torch.Tensor:
        """As one of torch's sparse tensors, shape (n, width), float32; shares memory."""
        import torch

        size = (len(self), self.width)
        return torch.sparse_csr_tensor(
            self.offsets, self.indices, self.weights, size, check_invariants=False
        )


def _gathered(offsets: torch.Tensor, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the values of these rows lie, one row behind the other, and their offsets."""
    bounds = offsets.numpy()
    starts, lengths = bounds[:-1][rows], np.diff(bounds)[rows]
    new_offsets = np.concatenate(([0], np.cumsum(lengths)))
    at = np.arange(new_offsets[-1]) + np.repeat(starts - new_offsets[:-1], lengths)
    return tensor(at), tensor(new_offsets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """A batch as the network takes it.

    Attributes:
        numeric: shape (n, d), float32, C-contiguous; column i is feature i of `Features.numeric`.
        categories: shape (n, c), int64; codes of `Features.categories`, 0 = unknown.
        target: shape (n,); float32 (regression), int64 class numbers (binary, multiclass), or None
            when serving. Of rows that augmentation has mixed, float32 shares: of class 1, shape
            (n,), or of each of k classes, shape (n, k).
        images: column -> shape (n, channels, height, width), uint8 (0 ... 255) or float32; in
            memory ``channels_last``. They may lie in the frame's own memory: make new ones, never
            write into these.
        ragged, padded, sparse: column -> its rows, of `Features` of the same names.
        on_device: the same on the model's device, where a loader copies them there; never of other
            rows: what is made of these has none.
    """

    numeric: torch.Tensor
    categories: torch.Tensor
    target: torch.Tensor | None = None
    images: Mapping[str, torch.Tensor] = field(default_factory=dict)
    ragged: Mapping[str, Ragged] = field(default_factory=dict)
    padded: Mapping[str, Padded] = field(default_factory=dict)
    sparse: Mapping[str, Sparse] = field(default_factory=dict)
    on_device: DeviceTensors | None = None

    def __len__(self) -> int:
        return int(self.numeric.shape[0])  # a tenth of what a tensor's len costs

    @property
    def nbytes(self) -> int:
        """Of all its tensors in this process's memory."""
        sizes: list[int] = []

        def size(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        self.map(size)
        return sum(sizes)

    def map(self, each: TensorFunction) -> Tensors:
        """The same of other tensors: `each` of every one, in the same order every time."""
        return Tensors(
            numeric=each(self.numeric),
            categories=each(self.categories),
            target=None if self.target is None else each(self.target),
            images={name: each(image) for name, image in self.images.items()},
            ragged={name: rows.map(each) for name, rows in self.ragged.items()},
            padded={name: rows.map(each) for name, rows in self.padded.items()},
            sparse={name: rows.map(each) for name, rows in self.sparse.items()},
        )

    def slice(self, start: int, stop: int) -> Tensors:
        """Rows start..stop-1, sharing memory."""
        if start == 0 and stop == len(self):
            return self
        rows = slice(start, stop)
        return Tensors(
            numeric=self.numeric[rows],
            categories=self.categories[rows],
            target=None if self.target is None else self.target[rows],
            images={name: image[rows] for name, image in self.images.items()},
            ragged={name: each.slice(start, stop) for name, each in self.ragged.items()},
            padded={name: each.slice(start, stop) for name, each in self.padded.items()},
            sparse={name: each.slice(start, stop) for name, each in self.sparse.items()},
        )

    def take(self, rows: NDArray[np.int64]) -> Tensors:
        """Some of the rows, in that order, copied; a row may come several times."""
        at = tensor(rows)
        return Tensors(
            numeric=self.numeric[at],
            categories=self.categories[at],
            target=None if self.target is None else self.target[at],
            images={name: image[at] for name, image in self.images.items()},
            ragged={name: each.take(rows) for name, each in self.ragged.items()},
            padded={name: each.take(rows) for name, each in self.padded.items()},
            sparse={name: each.take(rows) for name, each in self.sparse.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTensors:
    """Tensors on their way to a device.

    Attributes:
        tensors: there.
        copied: happens when they are; None where they are already.
    """

    tensors: Tensors
    copied: torch.cuda.Event | None = None

    def wait(self) -> Tensors:
        """The tensors, for the stream in use: what it is given from now on waits for the copy;
        this thread does not."""
        if self.copied is not None:
            import torch

            stream = torch.cuda.current_stream(self.tensors.numeric.device)
            stream.wait_event(self.copied)

            def used(tensor: torch.Tensor) -> torch.Tensor:
                tensor.record_stream(stream)  # its memory belongs to the stream of the copy
                return tensor

            return self.tensors.map(used)
        return self.tensors


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scale:
    """What a stage did to its columns in one batch: ``(x - shift) * factor``. Another batch may
    have got other numbers, so rows that are kept are brought back with these.

    Attributes:
        columns: names.
        shift, factor: a number for each, float64, shape (columns,). A shift of NaN: nothing was
            known of the column yet.
    """

    columns: tuple[str, ...]
    shift: NDArray[np.float64]
    factor: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows on their way, and where to resume after them. An empty batch is legal: it moves the
    mark.

    Attributes:
        frame: n rows; the reserved columns and the pipeline's.
        mark: after the last raw row that went into this batch.
        arrived: `time.monotonic` seconds when its oldest row was read.
        cut: `time.monotonic` seconds when it was closed: nothing more came into it; 0 before.
        ready: `time.monotonic` seconds when it left the scrub; 0 before.
        raw_rows: how many records the source gave for it.
        raw_bytes: and how many bytes.
        added: rows that stages added (unpivot) minus none taken away: taken rows are `rejects`.
        rejects: rows that left, by stage and reason.
        counts: what stages counted, (stage, what) -> n, e.g. ``("fill", "filled")``.
        tensors: after collation, for a learner.
        feed: after collation, for a predictor: input -> array, shape (n,).
        raw: the rows as they were before the stages that a model file can contain, where the
            pipeline keeps some aside to prove a compressed model with, or evaluates on what those
            stages change; else None.
        pieces: the records it was made of, where dead letters are to hold them as they came.
        scales: what stages scaled its columns with, in their order.

    Holds at every point: ``raw_rows + added == frame.height + sum(len(r) for r in rejects)``.
    """

    frame: pl.DataFrame
    mark: Mark
    arrived: float
    cut: float = 0.0
    ready: float = 0.0
    raw_rows: int = 0
    raw_bytes: int = 0
    added: int = 0
    rejects: tuple[Rejects, ...] = ()
    counts: Mapping[tuple[str, str], int] = field(default_factory=dict)
    tensors: Tensors | None = None
    feed: Mapping[str, NDArray[Any]] | None = None
    raw: pl.DataFrame | None = None
    pieces: tuple[Records, ...] = ()
    scales: tuple[Scale, ...] = ()

    def __len__(self) -> int:
        return self.frame.height

    @property
    def nbytes(self) -> int:
        """Bytes held in memory, rejects, tensors, feed and records included."""
        size = int(self.frame.estimated_size()) + sum(
            int(r.rows.estimated_size()) for r in self.rejects
        )
        size += sum(array.nbytes for array in (self.feed or {}).values())
        size += sum(piece.nbytes for piece in self.pieces)
        if self.tensors is None:
            return size
        return size + self.tensors.nbytes - _shared(self.frame, self.tensors.images)

    def with_frame(self, frame: pl.DataFrame, *, added: int = 0) -> Batch:
        """The same batch with other columns (same number of rows, unless `added` says how many were
        added)."""
        return dataclasses.replace(self, frame=frame, added=self.added + added)

    def with_scale(self, scale: Scale) -> Batch:
        """The same batch with this scale noted."""
        return dataclasses.replace(self, scales=(*self.scales, scale))

    def counted(self, stage: str, **counts: int) -> Batch:
        """The same batch with these counts added to the stage's."""
        merged = dict(self.counts)
        for name, n in counts.items():
            merged[stage, name] = merged.get((stage, name), 0) + int(n)
        return dataclasses.replace(self, counts=merged)

    def reject(
        self,
        keep: pl.Series | pl.Expr,
        *,
        stage: str,
        reason: str,
        detail: str | pl.Expr | pl.Series | None = None,
    ) -> Batch:
        """The batch without the rows where `keep` is not true; those become `Rejects` with their
        values as JSON.

        Args:
            keep: boolean, n rows; null counts as false.
            detail: a sentence for all of them, an expression over their columns, or a text for each
                of the n rows.
        """
        mask = self.frame.select(keep).to_series() if isinstance(keep, pl.Expr) else keep
        mask = mask.fill_null(False)
        if mask.all():
            return self
        out = self.frame.filter(~mask).rechunk()  # polars 2.1 may panic over rows in chunks
        columns = [_json_value(c, dtype) for c, dtype in out.schema.items() if c not in RESERVED]
        if isinstance(detail, pl.Series):
            detail = pl.lit(detail.filter(~mask))
        elif not isinstance(detail, pl.Expr):
            detail = pl.lit(detail, dtype=pl.String)
        rows = out.select(
            *RESERVED,
            detail.alias("detail"),
            (pl.struct(columns).struct.json_encode() if columns else pl.lit("{}")).alias("value"),
        )
        rejects = (*self.rejects, Rejects(stage=stage, reason=reason, rows=rows))
        raw = None if self.raw is None else self.raw.filter(mask)
        return dataclasses.replace(self, frame=self.frame.filter(mask), raw=raw, rejects=rejects)


def _shared(frame: pl.DataFrame, images: Mapping[str, torch.Tensor]) -> int:
    """Bytes of images that lie in the frame's memory."""
    shared = 0
    for name, image in images.items():
        if name in frame.columns and (column := frame.get_column(name)).n_chunks() == 1:
            place = column.to_numpy().__array_interface__["data"][0]
            shared += image.nbytes if place == image.data_ptr() else 0
    return shared


MAX_JSON_NUMBERS = 4_096
"""Numbers of an array that a rejected row's JSON shows; of a larger one it says what it is."""


def _json_value(column: str, dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, pl.Array) and math.prod(dtype.shape) > MAX_JSON_NUMBERS:
        return pl.lit(str(dtype)).alias(column)
    return bytes_as_hex(pl.col(column), dtype)


def bytes_as_hex(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Values for JSON, which has no bytes: those are told in hexadecimal digits, also inside lists
    and objects; times as in `in_utc`."""
    return _each(value, dtype, lambda v, k: v.bin.encode("hex") if k == pl.Binary else _utc(v, k))


def in_utc(frame: pl.DataFrame) -> pl.DataFrame:
    """Times without a zone are UTC's, and text says so: with a zone they are written as ISO 8601
    with T and offset, also inside lists and objects."""
    told = {c: _each(pl.col(c), kind, _utc) for c, kind in frame.schema.items()}
    return frame.with_columns(
        made.alias(c) for c, made in told.items() if not made.meta.eq(pl.col(c))
    )


def _utc(value: pl.Expr, kind: pl.DataType) -> pl.Expr:
    naive = isinstance(kind, pl.Datetime) and kind.time_zone is None
    return value.dt.replace_time_zone("UTC") if naive else value


def _each(
    value: pl.Expr, kind: pl.DataType, change: Callable[[pl.Expr, pl.DataType], pl.Expr]
) -> pl.Expr:
    """The same with the values at the bottom of lists and objects changed; `value` itself where
    there is nothing to change in lists and plain values."""
    if isinstance(kind, pl.List):
        made = _each(pl.element(), element_type(kind), change)
        return value if made.meta.eq(pl.element()) else value.list.eval(made)
    if isinstance(kind, pl.Struct):
        made_fields = [
            _each(value.struct.field(name), inner, change).alias(name)
            for name, inner in kind.to_schema().items()
            if isinstance(inner, pl.DataType)
        ]
        return pl.when(value.is_not_null()).then(pl.struct(made_fields)) if made_fields else value
    return change(value, kind)


# ------------------------------------------------------------------------------------ model's words


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What a model reads of a batch.

    Attributes:
        numeric: names of the numeric columns, in the order of the tensor's columns.
        categories: name -> number of codes, code 0 (unknown) included; the columns hold codes
            already.
        target: the label's column, or None when serving.
        task: ``regression``, ``binary`` or ``multiclass``.
        classes: for classification, the label's values in class order (as text: ``false``,
            ``true``, ...).
        images: name -> channels, height, width.
        ragged, padded: name of a column of lists -> number of its ids, 0 included; 0 where that is
            not known, or where the lists hold numbers that are no ids.
        sparse: name of a column of lists of ids -> number of ids; how often each is there.
        max_length: values of a list that are kept, from its start; None keeps all.
        buckets: lengths that padded lists are filled up to, ascending: a batch to the smallest that
            holds its longest row. None given: powers of two up to `max_length`.
        scaled: numeric columns that a stage has put on a scale that moves with the stream.
        threshold: of two classes, class 1 is predicted where its probability is above this.
        probabilities: whether answers hold every class's probability.
    """

    numeric: tuple[str, ...]
    categories: Mapping[str, int] = field(default_factory=dict)
    target: str | None = None
    task: str = "regression"
    classes: tuple[str, ...] = ()
    images: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    ragged: Mapping[str, int] = field(default_factory=dict)
    padded: Mapping[str, int] = field(default_factory=dict)
    sparse: Mapping[str, int] = field(default_factory=dict)
    max_length: int | None = None
    buckets: tuple[int, ...] = ()
    scaled: tuple[str, ...] = ()
    threshold: float = 0.5
    probabilities: bool = False

    @property
    def nested(self) -> tuple[str, ...]:
        """Names of the columns that hold arrays and lists."""
        return (*self.images, *self.ragged, *self.padded, *self.sparse)

    @property
    def outputs(self) -> int:
        """Width of the model's score: 1, or the number of classes."""
        return len(self.classes) if self.task == "multiclass" else 1

    def prediction_columns(self, scores: NDArray[np.floating[Any]]) -> list[pl.Series]:
        """A model's scores as columns: ``prediction`` (Float64, or the class as text), and for
        classification ``probability`` (of class 1 for binary, of the predicted class for
        multiclass; Float64); with `probabilities` also ``probability_CLASS`` of each.

        Args:
            scores: as in `Step.scores`, shape (n,) or (n, k).
        """
        scores = np.asarray(scores, np.float64)
        if self.task == "regression":
            return [pl.Series("prediction", scores)]
        two = scores.ndim == 1
        codes = (scores > self.threshold).astype(np.int64) if two else scores.argmax(axis=1)
        labels = pl.Series("prediction", self.classes, pl.String).gather(codes)
        probability = scores if two else scores.max(axis=1, initial=0.0)
        each = [1 - scores, scores] if two else list(scores.T)
        named = zip(self.prediction_names[2:], each, strict=False)
        return [
            labels, pl.Series("probability", probability), *(pl.Series(n, p) for n, p in named),
        ]  # fmt: skip

    @property
    def prediction_names(self) -> tuple[str, ...]:
        """The columns of `answers`."""
        if self.task == "regression":
            return ("prediction",)
        each = [f"probability_{name}" for name in self.classes] if self.probabilities else []
        return ("prediction", "probability", *each)


# What a stage does to single values, with the numbers it has learned, in words that can be written
# into a model file.
# Applied in the listed order to raw columns they give exactly what the stage's `apply` gives with
# the same snapshot.


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """Null becomes `value`; with `indicator`, a new column of that name holds 1.0 where it was
    null, else 0.0."""

    column: str
    value: float | str
    indicator: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Values below `low` become `low`, above `high` become `high` (either may be infinite); null
    stays null."""

    column: str
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """``(x - shift) * scale`` in float64; null stays null, and what is infinite so, also where the
    scale is 0."""

    column: str
    shift: float
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """From 0 on ``((1 + x)**above - 1) / above``, below it ``-((1 - x)**below - 1) / below``, in
    float64; for an exponent of 0 its limit, the logarithm: ``log(1 + |x|)`` with the sign of x.
    An exponent of 1 changes nothing. Null stays null.

    Yeo-Johnson's transform of parameter l has the exponents l and 2 - l.
    """

    column: str
    above: float
    below: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """Text to codes: value i of `values` becomes i + 1; anything else, and null, becomes 0."""

    column: str
    values: tuple[str, ...]


Transform = Fill | Clip | Affine | Power | Codes


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a learner did with one batch.

    Attributes:
        scores: what the model said of each row BEFORE it learned from it (test-then-train). Shape
            (n,) float64: the value (regression) or the probability of class 1 (binary); (n, k):
            class probabilities (multiclass).
        loss: mean training loss of the steps on new rows, nan where none was taken.
        steps: optimizer steps taken (replay included); 0 where the rows wait for more, to fill one.
        skipped: None, or why nothing was learned (``non_finite``, ``empty``).
        not_learned: rows that nothing can be learned from (their loss is not finite), bool, shape
            (n,); None where there are none.
        scored_only: how many of the rows were scored and not learned from, on purpose.
        augmented: name of an augment -> rows that it changed before they were learned, those
            learned again included.
        challenges: ``begun``, ``won`` or ``dropped`` -> challenges of the model by a new one.
    """

    scores: NDArray[np.float64]
    loss: float
    steps: int = 1
    skipped: str | None = None
    not_learned: NDArray[np.bool_] | None = None
    scored_only: int = 0
    augmented: Mapping[str, int] = field(default_factory=dict)
    challenges: Mapping[str, int] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------- protocols


SAMPLE_BYTES = 64 << 20
"""Bytes of one piece of a sample, at most."""


@runtime_checkable
class Source(Protocol):
    """A place rows come from. Bytes and positions only: it neither decodes nor cleans. A class that
    inherits it gets the defaults of the methods that have one.

    Built as ``Kind(settings)`` with its own nested ``Settings``. Leaves out: batching by rows (the
    loader's), retries of a decode (the format's), metrics (the loop's). Called from one thread, the
    loader's fetch thread, but for `commit`, `lag`, `progress` and `identities`, which the main
    thread calls.
    """

    format: Format
    """How its values are decoded; the prepare thread calls it."""

    def unbounded(self) -> bool:
        """Whether rows may come at any time, however long none has come: a batch then does not wait
        for ever to fill."""
        return False

    def can_be_reread(self) -> bool:
        """Whether what is read can be read again, by a look before a run."""
        return True

    def schema(self, declared: Schema) -> Schema:
        """The columns a decode will give: `declared`, with ``"*"`` spread over the columns it does
        not name, or, where nothing is declared, what the files say of themselves (a sample, for
        text).

        Raises: UserError when a declared column is not in the data, as far as that can be known
        before reading.
        """
        ...

    def schema_state(self) -> Mapping[str, Snapshot]:
        """What `schema` found beside the types, for the run that resumes this one; plain values."""
        return {}

    def remarks(self) -> Sequence[str]:
        """What should be said of it when a run ends, each a sentence: what guesses have cost."""
        return ()

    def reads_output_of(self, sink: Sink) -> str | None:
        """Where the sink writes that this source reads, in words: what is written would come again,
        without an end. None where that cannot be."""
        return None

    def reads_file(self, file: Path) -> bool:
        """Whether it would read a file of this path, now or when it is started again."""
        return False

    def origin_columns(self) -> Collection[str]:
        """Columns that say where a row comes from, not what it is: of an equal row that comes again
        they are others."""
        return ()

    def restore_schema_state(self, schema_state: Mapping[str, Snapshot]) -> None:
        """Before `schema`, in a run that resumes: what `schema_state` said in the first one; it holds,
        whatever would be found now."""
        return

    def parse_settings(self) -> Mapping[str, Any]:
        """How it reads cells, besides their types, as plain values: a model file keeps it, so that
        rows are read for predictions as those were that it learned."""
        return {}

    def use_parse_settings(self, parse_settings: Mapping[str, Any]) -> None:
        """Before `schema`: read cells as `parse_settings` of a source that a model learned from said. What
        this one's settings say, or what is not for its format, holds all the same."""
        return

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        """The next rows of one partition: at least 1 and at most `max_rows`, of `max_bytes` or less
        (one larger row comes alone); None when nothing came within `timeout` seconds.

        Raises: EndOfStream after the last row of a bounded source; HeadraceError for what cannot be
        read on.
        """
        ...

    def seek(self, mark: Mark) -> None:
        """Go to `mark.positions`: the next `read` starts there. Partitions not in it start at their
        beginning."""
        ...

    def sample(self, rows: int, timeout: float) -> Sequence[Records]:
        """About so many rows, from all over what there is, for a look before a run; none where
        nothing comes within `timeout` seconds. Where it is read next is undefined: `seek`.
        """
        self.seek(Mark())
        pieces: list[Records] = []
        left, until = rows, time.monotonic() + timeout
        while left > 0 and time.monotonic() < until:
            try:
                records = self.read(left, SAMPLE_BYTES, min(timeout, 1.0))
            except EndOfStream:
                break
            if records is None and pieces:
                break
            if records is not None and len(records):
                pieces.append(records)
                left -= len(records)
        return pieces

    def in_effect(self) -> Mapping[str, Snapshot]:
        """Settings that the files, or the environment, decide where they are left out: name ->
        value, as JSON has it. A change of one of these is a change; see `engine.types.changes`. Called
        after `schema`."""
        return {}

    def identities(self, mark: Mark) -> Mapping[str, Snapshot]:
        """Partition -> what it is known by beside its name, for a checkpoint; of those on the mark,
        as plain values."""
        return {}

    def match_identities(self, identities: Mapping[str, Snapshot]) -> None:
        """Before the `seek` of a resumed run: what `identities` said. What has another name now
        keeps its partition, what has other content is none that was read.

        Raises: UserError where rows were lost, or would be read twice.
        """
        return

    def commit(self, mark: Mark) -> bool:
        """Note outside that everything before `mark` is done (a Kafka group's offsets); whether it
        is, or will be, noted. Files: nothing to do."""
        ...

    def lag(self, mark: Mark) -> Mapping[str, int]:
        """Partition -> records (or, for text files, bytes) behind the mark, read ahead or not;
        empty where unknown."""
        ...

    def progress(self, mark: Mark) -> float | None:
        """Share (0-1) of a bounded source that lies before `mark`; None for an endless one."""
        ...

    def close(self) -> None:
        """Release what is open. May be called twice."""
        ...


@runtime_checkable
class SharedSource(Source, Protocol):
    """A source whose partitions come and go while it is read, for instance because it shares them
    with other engines. A move is a stop: what is in flight is dropped, what is done is saved and
    committed, and reading goes on with the partitions that there are now, from that mark.

    The loop, on its own thread: when `is_rebalancing`, save and commit (unless `partitions_lost`: then go back to what
    was saved last), `release_partitions`, end the loader's threads, `resume_after_rebalance`, start them again.
    """

    @property
    def shares_partitions(self) -> bool:
        """Whether other engines may read what this one leaves."""
        ...

    @property
    def tracks_owners(self) -> bool:
        """Whether `was_committed` can tell: an engine with a state needs that where it shares."""
        ...

    def is_rebalancing(self) -> bool:
        """Whether partitions came or went since the last `resume_after_rebalance`."""
        ...

    def unavailable_reason(self) -> str | None:
        """Why it cannot give records now, in a few words; None where it can."""
        ...

    @property
    def partitions_lost(self) -> bool:
        """Whether partitions went before what was read of them could be committed: somebody else
        reads it again."""
        ...

    @property
    def is_revoking(self) -> bool:
        """Whether partitions wait to go until they are released."""
        ...

    def release_partitions(self) -> None:
        """Nothing of what was read is in use any more: the partitions may go."""
        ...

    def resume_after_rebalance(self, mark: Mark) -> Mark:
        """Where to go on with the partitions that there are now, each of them named. No thread
        reads meanwhile. Called before the first read too: what comes to a partition that nothing
        was read of is then the next run's."""
        ...

    def reset_offsets(self) -> None:
        """Forget where others say that this engine is (a group's offsets). Called before anything
        else, where the checkpoints are forgotten."""
        ...

    def was_committed(self, positions: Mapping[str, int]) -> bool | None:
        """Whether a checkpoint that ends at these positions was committed, so that nobody reads
        again what it contains; None where that cannot be told (any more). `match_identities` comes
        before."""
        ...

    def counts(self) -> Mapping[str, int]:
        """Totals for the metrics: records ``skipped`` because they were gone before they were read,
        commits that were ``refused``."""
        ...

    def keep_alive(self) -> None:
        """Called about every second, on the thread that reads, while it waits for room downstream:
        says to others that this engine is alive. Returns at once."""
        ...


@runtime_checkable
class Format(Protocol):
    """Bytes to columns. Stateless. A poison record costs its own row, never the batch."""

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Columns of `schema` for the rows that fit, with the reserved columns `_partition` and
        `_position`; and the rows that do not, as `Rejects` of stage ``decode``. ``frame.height +
        sum(len(r)) == len(records)``.

        Infinity and NaN are values here; null is null. Nothing becomes null in silence.
        """
        ...


@runtime_checkable
class Interruptible(Protocol):
    """A format that may wait for somebody else (a schema registry that is down)."""

    def interrupt(self) -> None:
        """Let a decode that waits end soon, with an error, and wait no more until `resume`. Any
        thread may call it; a loader that ends does."""
        ...

    def resume(self) -> None:
        """Decodes may wait again: a loader that starts says so."""
        ...


class Stage(Protocol):
    """One step of scrubbing. Learning and applying are different verbs, in this order: a batch is
    transformed with what was learned from the batches before it, then learned from. So no row is
    changed by rows that come after it.

    State is a value: `apply` makes a new one and rebinds it, never edits the old, so that
    `snapshot` is a reference.
    """

    name: str
    """Name in the pipeline file, in metrics and in marks."""

    def bind(self, schema: Schema) -> Schema:
        """Check that the columns it needs are there with types it can use; the schema after it.

        Raises: UserError naming the column, the stage and the nearest column that exists. Changes
        no state.
        """
        ...

    def apply(self, batch: Batch) -> Batch:
        """The batch after this stage; learns from the batch. Never edits its input in place."""
        ...

    def snapshot(self) -> Snapshot:
        """The state, O(1), or None for a stateless stage."""
        ...

    def restore(self, value: Snapshot) -> None:
        """Go back to a state that `snapshot` gave (perhaps in another process)."""
        ...

    def transforms(self) -> Sequence[Transform] | None:
        """What it does now, as transforms to write into a model file; None where it cannot be
        written so (it looks at other rows or changes their number)."""
        ...


@runtime_checkable
class Learner(Protocol):
    """A model, first face."""

    features: Features

    def learn(self, batch: Batch) -> Step:
        """Score the rows, then learn from them. `batch.tensors` with target is required. An empty
        batch is legal."""
        ...

    def predict(self, tensors: Tensors) -> NDArray[np.float64]:
        """Scores as in `Step.scores`, without learning."""
        ...

    def state_dict(self) -> dict[str, Snapshot]:
        """Everything a restart needs, weights, optimizer, replay and random state, as a plain value
        of numpy arrays (torch tensors become arrays)."""
        ...

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Raises: UserError when the state belongs to a model of another shape."""
        ...


@runtime_checkable
class Predictor(Protocol):
    """A model, second face: raw columns in, the same columns and the model's out."""

    def bind(self, schema: Schema) -> None:
        """Raises: UserError when a column is not there, or not of a type that fits."""
        ...

    def collate(self, batch: Batch) -> Batch:
        """The batch with its `feed`. Called by the thread that prepares, so that the one which
        predicts need not."""
        ...

    def predict(self, batch: Batch) -> Batch:
        """The batch with the model's columns, without the rows that it cannot answer. Makes the
        feed where there is none."""
        ...


@runtime_checkable
class Sink(Protocol):
    """A place results go. Exactly once together with a checkpoint: what was written after the last
    `snapshot` that was saved is taken away again by `restore`.

    A sink may have `counts() -> Mapping[str, int]`, totals for the metrics. A class that inherits
    it gets the defaults of the methods that have one."""

    def on_wait(self, keep_alive: Callable[[], object]) -> None:
        """Called once, before anything is written. A sink that waits for somebody else, within a
        limit of its own, calls `keep_alive` every second meanwhile, on any thread: that is no stall."""
        return

    def bind(self, schema: Schema) -> None:
        """Say before the first row what could never be taken.

        Raises: UserError for a column that is of a type it cannot hold, or is not there.
        """
        return

    def probe(self) -> None:
        """Ask the place whether it would take rows, without writing one.

        Raises: UserError where it would not (a topic that is not there).
        """
        return

    def folders(self) -> Sequence[Path]:
        """Folders that are its own while it is used: a second engine that would write there is
        refused."""
        return ()

    def files(self) -> Sequence[Path]:
        """A path of each kind of file that it writes."""
        return ()

    def has_output(self) -> bool:
        """Whether there are results already that `restore(None)` would take away."""
        return False

    def write(self, frame: pl.DataFrame, positions: pl.DataFrame | None = None) -> Rejects | None:
        """Take the rows. They may be buffered, up to a bound; they are not safe yet. A frame of 0
        rows is legal. Rows that the place can never take are given back.

        Args:
            positions: where each row was read: the reserved columns, as many rows.
        """
        ...

    def flush(self) -> None:
        """Return only when everything written so far is safe (for a file: renamed into place and on
        the disk)."""
        ...

    def snapshot(self) -> Snapshot:
        """Cheap value that says what is safe. Call after `flush`."""
        ...

    def require(self, value: Snapshot) -> None:
        """Look whether `restore` could go on from that snapshot, and change nothing.

        Raises: UserError where it could not, as where results are gone.
        """
        return

    def restore(self, value: Snapshot) -> None:
        """Take away what lies after that snapshot; None takes away everything this pipeline wrote
        here."""
        ...

    def close(self) -> None:
        """Flush nothing, release what is open; what was not flushed is gone. May be called
        twice."""
        ...


@runtime_checkable
class Buffered(Protocol):
    """A component that keeps bytes in this process: a client that reads ahead, a sink that gathers
    rows. It counts in the one budget of the pipeline."""

    @property
    def nbytes(self) -> int:
        """What it holds now. Any thread may ask; neither waits nor raises."""
        ...

    def limit_memory(self, nbytes: int) -> None:
        """Hold no more than that, unless the settings say a number of their own. Called once,
        before anything is read or written."""
        ...


# ------------------------------------------------------------------------------------------ helpers

TYPES: Mapping[str, pl.DataType] = {
    "bool": pl.Boolean(),
    "int8": pl.Int8(),
    "int16": pl.Int16(),
    "int32": pl.Int32(),
    "int64": pl.Int64(),
    "uint8": pl.UInt8(),
    "uint16": pl.UInt16(),
    "uint32": pl.UInt32(),
    "uint64": pl.UInt64(),
    "float32": pl.Float32(),
    "float64": pl.Float64(),
    "string": pl.String(),
    "bytes": pl.Binary(),
    "date": pl.Date(),
    "time": pl.Time(),
    "datetime": pl.Datetime("us"),
    "duration": pl.Duration("us"),
}
"""Type names of the pipeline file -> polars types. `parse_type` reads those with parameters."""
BOOLEAN_VALUES = {"true": 1, "false": 0}
PARAMETRIC_TYPES = ("datetime", "duration", "decimal", "list")
"""Types that take parameters."""
MAX_NESTING = 16
"""Levels of lists in lists that may be declared, and of lists and objects that are guessed."""
TYPE_EXAMPLES = "datetime[ms], datetime[ns, Europe/Paris], duration[ms], decimal(12, 2), list[int64]"
"""Examples of types with parameters, for error sentences."""
WILDCARD = "*"
"""Stands for every column that a schema does not name; the columns are guessed unless it is
there."""
DROPPED = pl.Null()
"""Type of `WILDCARD` where the columns that a schema does not name are not read."""
_DATETIME = re.compile(r"datetime\[\s*(ms|us|ns)\s*(?:,\s*([\w/+-]+)\s*)?\]")
_DURATION = re.compile(r"duration\[\s*(ms|us|ns)\s*\]")
_DECIMAL = re.compile(r"decimal\(\s*(\d+)\s*,\s*(\d+)\s*\)")
_LIST = re.compile(r"list\[\s*(.+)\]")


def parse_type(text: str) -> pl.DataType:
    """The polars type of a type name: one of `TYPES`, ``datetime[UNIT]`` or ``datetime[UNIT,
    ZONE]``, ``duration[UNIT]``, ``decimal(PRECISION, SCALE)`` or ``list[TYPE]``, where a unit is
    ms, us or ns.

    Raises: ValueError for anything else.
    """
    name = text.strip()
    if name in TYPES:
        return TYPES[name]
    if match := _DATETIME.fullmatch(name):
        zone = match[2]
        if zone is not None:
            _known_zone(zone)
        return pl.Datetime(cast("Unit", match[1]), zone)
    if match := _DURATION.fullmatch(name):
        return pl.Duration(cast("Unit", match[1]))
    if match := _DECIMAL.fullmatch(name):
        precision, scale = int(match[1]), int(match[2])
        if not 1 <= precision <= 38 or scale > precision:
            raise ValueError("a decimal has 1 to 38 digits, and no more behind the point")
        return pl.Decimal(precision, scale)
    inner, levels = name, 0
    while match := _LIST.fullmatch(inner):
        inner, levels = match[1].strip(), levels + 1
        if levels > MAX_NESTING:
            raise ValueError(f"lists go at most {MAX_NESTING} levels deep")
    if not levels:
        raise ValueError("no such type")
    dtype = parse_type(inner)
    for _ in range(levels):
        dtype = pl.List(dtype)
    return dtype


def _known_zone(name: str) -> None:
    try:
        zoneinfo.ZoneInfo(name)
    except (OSError, ValueError, zoneinfo.ZoneInfoNotFoundError):
        raise ValueError(f"'{name}' is no time zone") from None


def element_type(dtype: pl.List) -> pl.DataType:
    """The type of a list's elements."""
    inner = dtype.inner
    return inner if isinstance(inner, pl.DataType) else inner()


def field_types(dtype: pl.Struct) -> Schema:
    """The types of an object's fields."""
    fields = dtype.to_schema()
    return {c: t if isinstance(t, pl.DataType) else t() for c, t in fields.items()}


def is_deep(dtype: pl.DataType) -> bool:
    """Whether lists and objects are nested in more than `MAX_NESTING` levels."""
    level = [dtype]
    for _ in range(MAX_NESTING + 1):
        level = [inner for outer in level for inner in _nested_types(outer)]
    return bool(level)


def _nested_types(dtype: pl.DataType) -> list[pl.DataType]:
    if isinstance(dtype, pl.List):
        return [element_type(dtype)]
    if isinstance(dtype, pl.Struct):
        return [*field_types(dtype).values()]
    return []


def type_name(dtype: pl.DataType) -> str:
    """The name of a type in a pipeline file, for `parse_type`; of a type that has none, what
    polars calls it."""
    for name, known in TYPES.items():
        if known == dtype:
            return name
    if isinstance(dtype, pl.Datetime):
        zone = "" if dtype.time_zone is None else f", {dtype.time_zone}"
        return f"datetime[{dtype.time_unit}{zone}]"
    if isinstance(dtype, pl.Duration):
        return f"duration[{dtype.time_unit}]"
    if isinstance(dtype, pl.Decimal):
        return f"decimal({dtype.precision}, {dtype.scale})"
    if isinstance(dtype, pl.List):
        return f"list[{type_name(element_type(dtype))}]"
    return str(dtype)


def training(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows to learn from: all, or where a 'split' stage has dealt them out, those of
    ``train``."""
    return frame.filter(pl.col(PART) == "train") if PART in frame.columns else frame


def is_pattern(name: str) -> bool:
    """Whether polars takes a column's name for a pattern of names, also where it stands for the
    column alone: no frame can have it."""
    return name == WILDCARD or (name.startswith("^") and name.endswith("$"))


def require_names(columns: Iterable[str], where: str) -> None:
    """Raises: UserError for a name that no column can have."""
    for column in columns:
        if is_pattern(column):
            raise UserError(
                f"{where} has a column '{column}', which would stand for all columns whose names "
                "match it: give it another name."
            )


def parse_schema(columns: Mapping[str, Any], *, where: str = "[source.schema]") -> Schema:
    """The schema of a pipeline file's ``column = "type"`` table. ``"*"`` (any other column) is kept
    under that name: with a type, or `DROPPED` for ``"drop"``; ``"guess"`` is the default and left
    out.

    Raises: UserError for an unknown type or a reserved name.
    """
    schema: Schema = {}
    for column, name in columns.items():
        if column in (*RESERVED, PART):
            raise UserError(
                f"{where} names column '{column}', which headrace itself adds: rename yours."
            )
        if column == WILDCARD and name in ("guess", "drop"):
            if name == "drop":
                schema[column] = DROPPED
            continue
        if column != WILDCARD:
            require_names([column], where)
        try:
            schema[column] = parse_type(str(name))
        except ValueError as error:
            why = f": {error}" if str(name).partition("[")[0].partition("(")[0] in PARAMETRIC_TYPES else ""
            raise UserError(
                f"Unknown type '{name}' of column '{column}' in {where}{why}."
                f"{nearest(str(name), [*TYPES, *PARAMETRIC_TYPES])} With parameters: {TYPE_EXAMPLES}."
            ) from None
    return schema


def only_named(declared: Schema) -> Schema:
    """The same without `WILDCARD` where that is `DROPPED`, for what gives no other columns anyway."""
    if declared.get(WILDCARD) != DROPPED:
        return declared
    return {c: dtype for c, dtype in declared.items() if c != WILDCARD}


def expand_schema(declared: Schema, available: Schema) -> Schema:
    """The columns of a source that holds `available`: the declared ones in their types, the others as
    `WILDCARD` says, as they are unless it is declared."""
    named = {c: dtype for c, dtype in declared.items() if c != WILDCARD}
    rest = declared.get(WILDCARD)
    if rest == DROPPED:
        return named
    return {c: named.get(c, dtype if rest is None else rest) for c, dtype in available.items()} | named


def class_indexes(column: pl.Series, classes: Sequence[str]) -> NDArray[np.int64]:
    """Which class each label is, shape (n,); -1 for none of them.

    A label is the class of its own text, or else the one class of the same value: 1, 1.0, "1.0" and
    true are equal, and so are 0, "0.0" and false.
    """
    texts = column.cast(pl.String)
    numbers = texts.cast(pl.Enum(list(classes)), strict=False).to_physical().cast(pl.Int64)
    left = numbers.is_null() & texts.is_not_null()
    if left.any():
        equal = _equal_classes(texts.filter(left).unique().to_list(), classes)
        indexes = texts.replace_strict(equal, default=None, return_dtype=pl.Int64)
        numbers = numbers.fill_null(indexes)
    return numbers.fill_null(-1).to_numpy(writable=True)


def _equal_classes(labels: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """Those of the labels that equal one class and no other."""
    values = [label_value(name) for name in classes]
    often = Counter(values)
    number = {v: i for i, v in enumerate(values) if v is not None and often[v] == 1}
    indexes = {}
    for label in labels:
        value = label_value(label)
        if value is not None and value in number:
            indexes[label] = number[value]
    return indexes


def label_value(text: str) -> int | float | None:
    """The number that a text, or a truth value, is; None for any other text."""
    word = text.strip().lower()
    if word in BOOLEAN_VALUES:
        return BOOLEAN_VALUES[word]
    try:
        return int(word)
    except ValueError:
        pass
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def require(schema: Schema, columns: Iterable[str], *, where: str) -> None:
    """Raises: UserError when a column is not in the schema, naming the nearest that is."""
    for column in columns:
        if column not in schema:
            raise UserError(
                f"{where} needs column '{column}', which is not there.{nearest(column, schema)}"
            )


class Component(Protocol):
    """Whatever a pipeline file names by ``kind``: a class with its own settings."""

    Settings: ClassVar[type[Settings]]


__all__ = [
    "DROPPED", "NANOSECONDS", "NO_TIMESTAMP", "PART", "PARTITION", "POSITION", "RESERVED", "WILDCARD",
    "TYPES", "Affine", "Batch", "Buffered", "Clip", "Codes", "Component", "Duration",
    "EndOfStream", "Features", "Fill", "Format", "HeadraceError", "Interruptible", "Learner",
    "Mark", "Name", "Names", "Padded", "DeviceTensors", "Power", "Predictor", "Ragged", "Records",
    "Rejects", "Schema", "Settings", "SharedSource", "Sink", "Snapshot", "Source", "Sparse",
    "Stage", "Step", "Tensors", "Transform", "Unit", "UserError", "Values", "class_indexes",
    "in_utc", "nanoseconds", "nearest", "only_named", "parse_schema", "parse_type", "require",
    "expand_schema", "tensor", "training", "type_name",
]  # fmt: skip
