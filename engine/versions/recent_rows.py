"""Rows that came lately, to try a model on."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from engine.types import Batch

ROWS, BYTES = 256, 4 << 20
"""The most rows that are kept, and the most bytes of them: they are copied while a batch waits."""
SECONDS = 10.0
"""The seconds after which newer rows replace them."""
BATCH_BYTES = 64 << 20
"""The most bytes of a batch that is made of them."""


class RecentRows:
    """A copy of a few rows, and the sizes of the batches that came; one thread notes them."""

    def __init__(self) -> None:
        self._batch: Batch | None = None
        self._noted_at = 0.0
        self._sizes: set[int] = set()

    def note(self, batch: Batch) -> None:
        """Note the size of a batch, and copy some rows now and then."""
        if not len(batch):
            return
        self._sizes.add(1 << (len(batch) - 1).bit_length())
        now = time.monotonic()
        if self._batch is None or now - self._noted_at > SECONDS:
            count = min(len(batch), ROWS, max(1, BYTES // _row_bytes(batch)))
            frame = batch.frame[np.arange(count)]  # a slice would keep all of it
            self._batch = Batch(frame=frame, mark=batch.mark, arrived=now, raw_rows=count)
            self._noted_at = now

    @property
    def are_there(self) -> bool:
        """Whether a row has come."""
        return self._batch is not None

    def batch(self, size: int | None = None) -> Batch:
        """Return a batch of so many rows, repeated where they are fewer; of all unless given."""
        batch = self._batch
        assert batch is not None, "asked before"
        rows = np.resize(np.arange(len(batch)), size or len(batch))
        return replace(batch, frame=batch.frame[rows], raw_rows=len(rows))

    def sizes(self) -> list[int]:
        """Return the sizes of batches that came, rounded up to powers of two, in order; without
        those of many bytes."""
        batch = self._batch
        assert batch is not None, "asked before"
        row = _row_bytes(batch)
        return [size for size in sorted(self._sizes) if size * row <= BATCH_BYTES] or [1]


def _row_bytes(batch: Batch) -> int:
    return max(1, int(batch.frame.estimated_size()) // len(batch))


__all__ = ["RecentRows"]
