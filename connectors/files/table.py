"""Rows of a file that is columnar itself: Parquet or Arrow IPC."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from engine.types import HeadraceError, Records

CHUNK_ROWS = 131_072
"""Rows decoded at a time: enough to keep all cores busy, little enough to be held twice."""


class TableFile:
    """One Parquet or Arrow file as slices; positions are row numbers.

    A chunk is decoded at once and handed out in slices that share its memory. What lies before the
    position is
    skipped by row groups or record batches.

    Args:
        path: the file.
        name: the partition.
        kind: ``parquet`` or ``arrow``.
        columns: to decode; None decodes all.

    Raises (all methods): HeadraceError for a file that is none of its kind, is cut short or
    damaged.
    """

    def __init__(self, path: Path, name: str, kind: str, columns: list[str] | None = None) -> None:
        self.name = name
        self._kind = kind
        scan = pl.scan_parquet if kind == "parquet" else pl.scan_ipc
        try:
            frame = scan(path, glob=False) if kind == "parquet" else scan(path)
            self.schema = dict(frame.collect_schema())
            self.rows = int(frame.select(pl.len()).collect().item())
        except (PolarsError, OSError) as error:
            raise self._error(error) from None
        wanted = [c for c in columns if c in self.schema] if columns is not None else None
        self._frame = frame if wanted is None else frame.select(wanted)
        self._row_bytes = max(1, path.stat().st_size // max(1, self.rows))
        self._chunk = pl.DataFrame()
        self._at = 0
        self.next = 0

    def skip_to(self, position: int) -> None:
        """Go on at a row number."""
        self.next = position
        self._chunk, self._at = self._chunk.clear(), 0

    def read(self, max_rows: int, max_bytes: int) -> Records | None:
        """The next rows; None at the end of the file."""
        if self._at >= self._chunk.height:
            if self.next >= self.rows:
                return None
            self._decode(max_bytes)
        part = self._chunk.slice(self._at, max_rows)
        size = int(part.estimated_size())
        if size > max_bytes:
            part = part.head(max(1, part.height * max_bytes // size))
        self._at += part.height
        start, self.next = self.next, self.next + part.height
        return Records(
            partition=self.name,
            positions=np.arange(start, self.next),
            next=self.next,
            values=part,
            arrived=time.monotonic(),
        )

    def whole(self) -> pl.DataFrame:
        """All rows at once."""
        try:
            return self._frame.collect()
        except (PolarsError, OSError) as error:
            raise self._error(error) from None

    def close(self) -> None:
        """Let go of the chunk."""
        self._chunk = self._chunk.clear()

    def _decode(self, max_bytes: int) -> None:
        rows = max(1, min(CHUNK_ROWS, max_bytes // self._row_bytes))
        try:
            self._chunk = self._frame.slice(self.next, rows).collect()
        except (PolarsError, OSError) as error:
            raise self._error(error) from None
        self._at = 0
        assert self._chunk.height, f"{self.name} has {self.rows} rows, none at {self.next}"
        self._row_bytes = max(1, int(self._chunk.estimated_size()) // self._chunk.height)

    def _error(self, error: Exception) -> HeadraceError:
        reason = str(error).splitlines()[0]
        return HeadraceError(
            f"{self.name} cannot be read as {self._kind}: {reason}; expected a whole "
            "file: replace it."
        )


__all__ = ["TableFile"]
