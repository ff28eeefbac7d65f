"""Rejects records that are too long for the source to hold."""

from __future__ import annotations

import numpy as np
import polars as pl

from connectors.formats.kernels.rows import TOO_LARGE, binary, make_rejects, preview, select_records
from connectors.formats.wrapping import WrappingFormat
from engine.types import Format, Records, Rejects, Schema, Values


class SizeLimited(WrappingFormat):
    """Wraps a format for a source that keeps only the head of a record beyond its limit, as a
    null: such a record is rejected as ``too_large``.

    Args:
        inner: for all others.
        largest: bytes that the source accepts.
    """

    def __init__(self, inner: Format, largest: int) -> None:
        super().__init__(inner)
        self._largest = largest

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Decode the others with the inner format."""
        values = records.values
        assert isinstance(values, Values)
        if values.null is None or not values.null.any():
            return self.inner.decode(records, schema)
        lost = np.flatnonzero(values.null)
        reject = make_rejects(
            records,
            lost,
            TOO_LARGE,
            f"Expected a row of at most {self._largest:,} bytes, got a longer one: raise [source] "
            "max_record_bytes.",
            preview(binary(values).gather(lost)),
        )
        frame, rejects = self.inner.decode(
            select_records(records, np.flatnonzero(~values.null)), schema
        )
        return frame, [reject, *rejects]


__all__ = ["SizeLimited"]
