"""Batch: rows that pass through the engine together, with the mark after the last row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import (
    TYPE_CHECKING,
    Any,
)  # fmt: skip

import numpy as np
import polars as pl
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
from engine.errors import HeadraceError
from engine.types.plural import counted
from engine.types.records import Mark, Records, Rejects, _utc
from engine.types.scale import Scale, Scales, scales_of_rows
from engine.types.schema import POSITION, RESERVED, type_name
from engine.types.settings import _each
from engine.types.tensors import Tensors

MISSING_VALUES = "missing "
"""Begins the names of counts of values that a served model lacks; the column follows."""
TimedWork = tuple[str, float, float]
"""Stage, `time.perf_counter` seconds when it began, seconds it took."""


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
        raw: the rows as they were before the stages that a model file can contain, if the
            pipeline holds rows out to test a compressed model, or evaluates on columns those
            stages change; else None.
        pieces: the records it was made of, where dead letters are to hold them as they came.
        scales: what stages scaled its columns with, in their order.
        labels: decoded labels that came for earlier rows, or for its own: records, too, that no
            stage sees. None where labels come with their rows.
        work: what its preparation took, if the batch is traced; else None.

    Holds at every point: ``raw_rows + added == frame.height + sum(len(r) for r in rejects)``, and
    the height of `labels` on the right, if there are any.
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
    scales: Scales = ()
    labels: pl.DataFrame | None = None
    work: tuple[TimedWork, ...] | None = None

    def __len__(self) -> int:
        return self.frame.height

    @property
    def nbytes(self) -> int:
        """The bytes in memory, including rejects, tensors, feed and records."""
        size = int(self.frame.estimated_size()) + sum(
            int(r.rows.estimated_size()) for r in self.rejects
        )
        size += sum(array.nbytes for array in (self.feed or {}).values())
        size += sum(piece.nbytes for piece in self.pieces)
        size += 0 if self.labels is None else int(self.labels.estimated_size())
        if self.tensors is None:
            return size
        return size + self.tensors.nbytes - _shared(self.frame, self.tensors.images)

    def with_frame(
        self, frame: pl.DataFrame, *, added: int = 0, scale: Scale | None = None
    ) -> Batch:
        """Return the same batch with other columns (and the same number of rows, unless `added`
        says how many were added), and the scale that changed them recorded. Scales by row that are
        not those of as many rows become that of the last."""
        scales = self.scales if scale is None else (*self.scales, scale)
        if frame.height != len(self):
            scales = tuple(
                one if one.part is None or len(one.part) == frame.height else one.last
                for one in scales
            )
        return dataclasses.replace(self, frame=frame, added=self.added + added, scales=scales)

    def counted(self, stage: str, **counts: int) -> Batch:
        """Return the same batch with these counts added to the stage's.

        Raises: ValueError if one is negative
        """
        if not counts:
            return self
        merged = dict(self.counts)
        for name, n in counts.items():
            if n < 0:
                raise ValueError(f"Stage '{stage}' counted {n:,} {name}: expected 0 or more.")
            merged[stage, name] = merged.get((stage, name), 0) + int(n)
        return dataclasses.replace(self, counts=merged)

    def reject(
        self,
        keep: pl.Series | pl.Expr | NDArray[np.bool_],
        *,
        stage: str,
        reason: str,
        detail: str | pl.Expr | pl.Series | None = None,
    ) -> Batch:
        """Return the batch without the rows where `keep` is not true; those become `Rejects`
        with their values as JSON.

        Args:
            keep: boolean, n rows; null counts as false. A polars series, a numpy array, or an
                expression over the columns.
            detail: a sentence for all of them, an expression over their columns, or a text for each
                of the n rows.

        Raises: HeadraceError where `keep` is anything else.
        """
        mask = self._mask(keep, stage)
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
        scales = scales_of_rows(self.scales, mask)
        return dataclasses.replace(
            self, frame=self.frame.filter(mask), raw=raw, rejects=rejects, scales=scales
        )

    def _mask(self, keep: Any, stage: str) -> pl.Series:
        """Return `keep` as a series of the n rows, without nulls."""
        mask = keep
        if isinstance(keep, pl.Expr):  # beside a column, so that one value counts for every row
            mask = self.frame.select(POSITION, keep.alias("keep")).to_series(1)
        elif isinstance(keep, np.ndarray) and keep.ndim == 1:
            mask = pl.Series(keep)
        if isinstance(mask, pl.Series) and len(mask) == len(self):
            if mask.dtype == pl.Boolean:
                return mask.fill_null(False)
            if mask.dtype == pl.Null:
                return pl.repeat(False, len(self), eager=True)
        what = f"a {type(keep).__module__}.{type(keep).__qualname__}"
        if isinstance(mask, pl.Series):
            what = f"{type_name(mask.dtype)} of {counted(len(mask), 'row')}"
        raise HeadraceError(
            f"[scrub.{stage}] rejects by {what}: batch.reject expects keep to be a polars series, "
            f"a numpy array or an expression, of one bool for each of {counted(len(self), 'row')}."
        )


def _shared(frame: pl.DataFrame, images: Mapping[str, torch.Tensor]) -> int:
    """Return the bytes of images that lie in the frame's memory."""
    shared = 0
    for name, image in images.items():
        if name in frame.columns and (column := frame.get_column(name)).n_chunks() == 1:
            place = column.to_numpy().__array_interface__["data"][0]
            shared += image.nbytes if place == image.data_ptr() else 0
    return shared


MAX_JSON_NUMBERS = 4_096
"""The numbers of an array that a rejected row's JSON shows; a larger array is only described."""


def _json_value(column: str, dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, pl.Array) and math.prod(dtype.shape) > MAX_JSON_NUMBERS:
        return pl.lit(str(dtype)).alias(column)
    return bytes_as_hex(pl.col(column), dtype).alias(column)  # an object has its first field's


def bytes_as_hex(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Return values for JSON: bytes as hexadecimal digits, also inside lists and objects; times
    as in `in_utc`."""
    return _each(value, dtype, lambda v, k: v.bin.encode("hex") if k == pl.Binary else _utc(v, k))
