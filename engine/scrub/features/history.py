"""Adds the last rows of the same key, as an array."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from engine import types
from engine.columnar.hashing import Hashes, hashes
from engine.scrub.columns import expand_columns, extended
from engine.scrub.key_store import RecentKeys
from engine.types import Batch, Names, Schema, Snapshot, Stage, Transform, UserError, type_name
from engine.types.arrays import Bools

Rows = NDArray[np.float32]

EMPTY = np.float32(np.inf)
"""In the first column of a remembered row that is none yet; NaN there is a row with a gap."""


class History(Stage):
    """Adds a column of the stage's name: the last `rows` rows of the same key that stand before a
    row in the stream, oldest first, as an array of Float32 of shape (rows, columns).

    A row of the array is null where there is none yet, at the end; and where a value was missing
    (null, NaN, or too large for Float32), so that the others keep their distance. A network reads
    it as numbers and a mask. A row without an earlier one has an array of nulls.

    At most `keys` keys are remembered, those seen last; how many left is counted as ``forgotten``,
    and a key that returns starts anew. Rows with a missing value are counted as ``gaps``. All that
    is exact to the row and does not depend on how the stream is cut. Keys are compared by a 64-bit
    hash: two collide with probability keys**2 / 2**65. Null is a key like others.

    Memory: 16 bytes and 4 for each remembered number, for each key; at most twice of that.
    """

    single_pass = True
    learns_by_batch = False

    class Settings(types.Settings):
        """``[scrub.NAME]`` with ``kind = "history"``

        Attributes:
            columns: columns of numbers or bools, in the order of the array's columns; names or
                globs.
            by: the key columns, names or globs; none means one sequence.
            rows [rows]: the most rows of a key.
            own: the row itself is the newest of its own array.
            keys: how many keys are remembered.
        """

        columns: Names
        by: Names = ()
        rows: int = Field(32, ge=1, le=10_000)
        own: bool = False
        keys: int = Field(10_000, ge=1, le=1 << 31)

    def __init__(self, name: str, settings: History.Settings) -> None:
        super().__init__(name, settings)
        self.settings: History.Settings = settings
        self._columns: tuple[str, ...] = ()
        self._by: tuple[str, ...] = ()
        self._keys = RecentKeys(size=settings.keys)

    def bind(self, schema: Schema) -> Schema:
        settings = self.settings
        self._columns = expand_columns(settings.columns, schema, where=self.where)
        self._by = (
            expand_columns(settings.by, schema, where=f"{self.where} by") if settings.by else ()
        )
        for column in self._columns:
            if not (schema[column].is_numeric() or schema[column] == pl.Boolean):
                raise UserError(
                    f"{self.where} expects numbers in column '{column}', got "
                    f"{type_name(schema[column])}: "
                    "encode it with a 'categories' stage, or take it out."
                )
        shape = (settings.rows, len(self._columns))
        new = {self.name: pl.Array(pl.Float32(), shape)}
        return extended(schema, new, where=self.where, remedy="give the stage another name")

    def apply(self, batch: Batch) -> Batch:
        numbers, gaps = self._read(batch.frame)
        visit = self._keys.visit(self._hashes(batch.frame))
        shape = (self.settings.rows, len(self._columns))
        remembered: Rows = (
            visit.values if self._keys.store.runs else np.empty((len(visit.keys), *shape), "f4")
        )
        arrays = np.zeros((len(batch), *shape), np.float32)
        present = np.zeros(arrays.shape[:2], np.bool_)
        _walk(numbers, visit.group, visit.fresh, self.settings.own, remembered, arrays, present)
        self._keys = self._keys.updated(visit, remembered)
        frame = batch.frame.with_columns(_series(self.name, arrays, present))
        done = batch.with_frame(frame)
        return done.counted(self.name, gaps=gaps, forgotten=visit.forgotten)

    def _hashes(self, frame: pl.DataFrame) -> Hashes:
        return hashes(frame, self._by) if self._by else np.zeros(frame.height, np.uint64)

    def _read(self, frame: pl.DataFrame) -> tuple[Rows, int]:
        """Return the numbers, shape (n, columns), rows with a gap all NaN, and how many have
        one."""
        numbers = np.empty((frame.height, len(self._columns)), np.float32)
        with np.errstate(over="ignore"):  # becomes infinite, and is a gap
            for i, name in enumerate(self._columns):
                column = frame.get_column(name)
                numbers[:, i] = column.cast(pl.Float64, strict=False).to_numpy()
        gaps: Bools = np.asarray((~np.isfinite(numbers)).any(axis=1))
        numbers[gaps] = np.nan
        return numbers, int(gaps.sum())

    def snapshot(self) -> Snapshot:
        """Return the last rows of each key."""
        return self._keys.snapshot()

    def restore(self, value: Snapshot) -> None:
        self._keys = self._keys.restored(value)

    def transforms(self) -> list[Transform] | None:
        """Return None: it reads other rows."""
        return None


def _series(name: str, arrays: Rows, present: Bools) -> pl.Series:
    """Return arrays, shape (n, rows, columns), as a column; rows that are not present are null."""
    rows, columns = arrays.shape[1:]
    absent: Any = None if present.all() else pa.array(~present.reshape(-1))
    inner = pa.FixedSizeListArray.from_arrays(pa.array(arrays.reshape(-1)), columns, mask=absent)
    return pl.Series(name, pa.FixedSizeListArray.from_arrays(inner, rows))


@numba.njit(nogil=True, cache=True)
def _walk(numbers, group, fresh, own, remembered, arrays, present):  # type: ignore[no-untyped-def]
    """Copy what is remembered of each row's key to `arrays`, and remember the row.

    Meanwhile a full table is a ring, so that a row costs one write.
    """
    keys, rows, columns = remembered.shape
    first, count = np.zeros(keys, np.int64), np.zeros(keys, np.int64)
    for key in range(keys):
        while count[key] < rows and not math.isinf(remembered[key, count[key], 0]):
            count[key] += 1
    for i in range(group.shape[0]):
        key = group[i]
        if fresh[i]:
            remembered[key] = EMPTY
            first[key] = count[key] = 0
        if own:
            _append(remembered[key], numbers[i], first, count, key)
        for j in range(count[key]):
            at = first[key] + j
            at = at if at < rows else at - rows
            if not math.isnan(remembered[key, at, 0]):
                present[i, j] = True
                for k in range(columns):
                    arrays[i, j, k] = remembered[key, at, k]
        if not own:
            _append(remembered[key], numbers[i], first, count, key)
    for key in range(keys):
        if first[key]:
            ring = remembered[key].copy()
            remembered[key, : rows - first[key]] = ring[first[key] :]
            remembered[key, rows - first[key] :] = ring[: first[key]]


@numba.njit(nogil=True, inline="always")
def _append(table, row, first, count, key):  # type: ignore[no-untyped-def]
    """Put a row at the end of a key's table; if it is full, over its first row."""
    at = count[key]
    if at < table.shape[0]:
        count[key] += 1
    else:
        at = first[key]
        first[key] = at + 1 if at + 1 < table.shape[0] else 0
    for k in range(row.shape[0]):
        table[at, k] = row[k]


__all__ = ["History"]
