"""Rows that are predicted and never learned, to calibrate and judge a model with."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.scrub.hashing import place_hashes
from engine.types import RESERVED, Snapshot

SALT = 0x60A7
"""Of the hash that holds rows out, so that it has nothing to do with a `split` stage's."""
TURN = "_turn"
"""The number of the batch that a held-out row came with."""
MAX_FRAMES = 64
"""Held-out rows of so many batches are put together, each row once."""


class Holdout:
    """Rows that are predicted and never learned, raw, to calibrate and judge a model with.

    A row is chosen by a hash of its partition and position, so the same rows are held out in every
    epoch and after every restart, and no batch size changes which.

    Args:
        share: of the rows (0-1).
        rows: how many are kept, the newest; of a row that is read again, the newest reading.
    """

    def __init__(self, share: float, rows: int) -> None:
        self.share = share
        self.rows = rows
        self._kept = pl.DataFrame()
        self._new: list[tuple[int, pl.DataFrame]] = []
        self._turn = 0

    def takes(self, frame: pl.DataFrame) -> NDArray[np.bool_]:
        """Which of the rows are held out, shape (n,)."""
        chosen: NDArray[np.bool_] = place_hashes(frame, SALT) < np.uint64(self.share * 2**64)
        return chosen

    def add(self, raw: pl.DataFrame) -> None:
        """Keep those of a batch's raw rows that are held out; forget the oldest beyond the
        bound."""
        self._turn += 1
        self._new = [*self._new, (self._turn, raw[np.flatnonzero(self.takes(raw))])]
        if len(self._new) >= MAX_FRAMES:
            self._kept, self._new = self._newest(), []

    def frame(self) -> pl.DataFrame | None:
        """The rows, oldest first, each once; None before the first."""
        return self._newest().drop(TURN) if self._turn else None

    @property
    def nbytes(self) -> int:
        """Bytes they hold."""
        frames = [self._kept, *(rows for _, rows in self._new)]
        return sum(int(frame.estimated_size()) for frame in frames)

    def snapshot(self) -> Snapshot:
        """As a plain value."""
        new = [list(part) for part in self._new]
        return {"kept": self._kept, "new": new, "turn": self._turn}

    def restore(self, value: Snapshot) -> None:
        """From what `snapshot` gave."""
        self._kept, self._turn = value["kept"], value["turn"]
        self._new = [(turn, rows) for turn, rows in value["new"]]

    def _newest(self) -> pl.DataFrame:
        """The newest rows with the number of their batch; of a row that came again the last."""
        frames = [self._kept] if self._kept.width else []
        if self._new:
            heights = [rows.height for _, rows in self._new]
            turns = np.repeat([turn for turn, _ in self._new], heights).astype(np.int64)
            rows = pl.concat([rows for _, rows in self._new])
            frames.append(rows.hstack([pl.Series(TURN, turns)]))
        last = pl.col(TURN).max().over(RESERVED)
        return pl.concat(frames).filter(pl.col(TURN) == last).tail(self.rows)


__all__ = ["Holdout"]
