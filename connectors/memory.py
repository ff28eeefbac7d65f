"""Rows from a list, results to a list: for tests, notebooks and programs that bring their own."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl

from connectors.formats.values.columns import Columns
from engine import types
from engine.types import (
    EndOfStream,
    HeadraceError,
    Mark,
    Records,
    Schema,
    Sink,
    Snapshot,
    Source,
    UserError,
    expand_schema,
    nearest,
)
from engine.types.changes import Fixed, Free


class Fault:
    """An item that makes `read` raise its exception, once."""

    def __init__(self, exception: BaseException) -> None:
        self.exception = exception


class Pause:
    """An item that makes one `read` give None, as a silent topic does."""


class MemorySource(Source):
    """Frames, in order, as one partition; positions are row numbers.

    Attributes:
        commits: every mark it was given.
        reads: how often `read` was called.
    """

    class Settings(types.Settings):
        """Attributes:
        items: frames (each at least one `Records`), dict rows (one row each), `Fault`, `Pause`.
        partition: what the rows' partition is called.
        """

        items: Free[list[Any]]
        partition: Fixed[str] = "memory"

    def __init__(self, settings: MemorySource.Settings) -> None:
        self.format = Columns()
        self.partition = settings.partition
        self.items = [
            pl.DataFrame([item]) if isinstance(item, Mapping) else item for item in settings.items
        ]
        heights = [i.height if isinstance(i, pl.DataFrame) else 0 for i in self.items]
        self.starts = np.cumsum([0, *heights])
        self.commits: list[Mark] = []
        self.reads = 0
        self._item = self._row = 0

    @classmethod
    def of(cls, items: Iterable[Any], partition: str = "memory") -> MemorySource:
        """Without writing `Settings` out."""
        return cls(cls.Settings(items=list(items), partition=partition))

    def schema(self, declared: Schema) -> Schema:
        """Raises: UserError for a declared column that the first frame does not have."""
        columns = next((dict(i.schema) for i in self.items if isinstance(i, pl.DataFrame)), {})
        for column in declared:
            if column != "*" and columns and column not in columns:
                raise UserError(
                    f"[source.schema] names column '{column}', which the first frame does not "
                    f"have.{nearest(column, columns)}"
                )
        return expand_schema(declared, columns)

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        """The next rows of the current item. A `Pause` takes no time."""
        self.reads += 1
        while self._item < len(self.items):
            item = self.items[self._item]
            if isinstance(item, pl.DataFrame) and self._row < item.height:
                return self._rows(item, max_rows, max_bytes)
            self._item, self._row = self._item + 1, 0
            if isinstance(item, Fault):
                raise item.exception
            if isinstance(item, Pause):
                return None
        raise EndOfStream

    def _rows(self, item: pl.DataFrame, max_rows: int, max_bytes: int) -> Records:
        wide = item.estimated_size() // item.height + 8
        n = max(1, min(item.height - self._row, max_rows, int(max_bytes // wide)))
        first = int(self.starts[self._item]) + self._row
        values = item.slice(self._row, n)
        self._row += n
        return Records(
            partition=self.partition,
            positions=np.arange(first, first + n),
            next=first + n,
            values=values,
            arrived=time.monotonic(),
        )

    def seek(self, mark: Mark) -> None:
        position = int(mark.positions.get(self.partition, 0))
        # The first item whose end lies after it; at 0 the faults before the first frame count too.
        self._item = int(np.searchsorted(self.starts[1:], position, "right")) if position else 0
        self._row = position - int(self.starts[min(self._item, len(self.items))])

    def commit(self, mark: Mark) -> bool:
        self.commits.append(mark)
        return True

    def lag(self, mark: Mark) -> Mapping[str, int]:
        return {self.partition: int(self.starts[-1]) - mark.positions.get(self.partition, 0)}

    def lag_unit(self, partition: str) -> str:
        return "rows"

    def progress(self, mark: Mark) -> float | None:
        total = int(self.starts[-1])
        return min(1.0, mark.positions.get(self.partition, 0) / total) if total else 1.0

    def close(self) -> None:
        """Nothing to release."""


class MemorySink(Sink):
    """An in-memory sink; `flush` makes frames durable, `restore` drops later ones.

    Attributes:
        frames: what was written, the first `flushed` of it safe.
    """

    class Settings(types.Settings):
        """Attributes:
        fail_on_flush: the n-th flush (from 1) raises.
        """

        fail_on_flush: Free[int | None] = None

    def __init__(self, settings: MemorySink.Settings | None = None) -> None:
        self.settings = settings or self.Settings()
        self.frames: list[pl.DataFrame] = []
        self.flushed = self.flushes = 0

    @property
    def frame(self) -> pl.DataFrame:
        """All that is safe, in one frame."""
        safe = self.frames[: self.flushed]
        return pl.concat(safe) if safe else pl.DataFrame()

    def write(self, frame: pl.DataFrame, positions: pl.DataFrame | None = None) -> None:
        self.frames.append(frame)

    def flush(self) -> None:
        self.flushes += 1
        if self.flushes == self.settings.fail_on_flush:
            raise HeadraceError(f"[sink] fails on flush {self.flushes}, as it was told to.")
        self.flushed = len(self.frames)

    def snapshot(self) -> Snapshot:
        return self.flushed

    def restore(self, value: Snapshot) -> None:
        self.flushed = 0 if value is None else int(value)
        del self.frames[self.flushed :]

    def close(self) -> None:
        del self.frames[self.flushed :]


__all__ = ["Fault", "MemorySink", "MemorySource", "Pause"]
