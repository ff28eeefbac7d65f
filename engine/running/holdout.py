"""The held-out rows: predicted, never learned, used to calibrate and evaluate a model."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.columnar.hashing import Hashes, content_hashes, place_hashes
from engine.types import DELAY, PART, POSITION, RESERVED, Snapshot

SALT = 0x60A7
"""The salt of the hash that holds rows out, which makes it independent of a `split` stage's."""
BATCH_NUMBER = "_turn"
"""The column with the number of a held-out row's batch."""
MAX_FRAMES = 64
"""The batches whose held-out rows are joined, each row once."""
COMMON_SAMPLE_ROWS = 1_000
"""The first rows, which show the frequent contents."""
COMMON_COUNT = 3
"""A content that this many of the first rows have is frequent."""
NOTES = {"content": pl.UInt64(), "place": pl.UInt64()}


class Holdout:
    """Rows that are predicted and never learned, unprocessed, to calibrate and evaluate a model.

    A row is chosen by a hash of its content, so the same rows are held out in every epoch and after
    every restart, whatever the batches are. An equal row (sent twice, replayed, or from a renamed
    file) is held out as well, so no row is both learned and evaluated.

    Frequent rows are an exception: in a stream of four distinct rows, one of them would never be
    learned. So rows with a content that `COMMON_COUNT` of the first `COMMON_SAMPLE_ROWS` rows have
    are held out in part: from the third such row on by a hash of partition and position. The model
    meets such rows again and again, so the error on rows it has learned is the honest one there.

    Args:
        share: the share of held-out rows (0-1).
        rows: the number of newest rows kept; of a row read again, the newest reading.
        ignored: columns that are not content: unread ones, and those with the origin of a row.
        by_content: False chooses all rows by partition and position: for rows whose content
            changes from epoch to epoch, because a stage that learns has made it.
        needed: columns required in every row.
    """

    def __init__(
        self,
        share: float,
        rows: int,
        *,
        ignored: Collection[str] = (),
        by_content: bool = True,
        needed: Collection[str] = (),
    ) -> None:
        self.share = share
        self.rows = rows
        self._besides = {*ignored, *RESERVED, PART, DELAY}
        self._by_content = by_content
        self._needed = needed
        self._kept = pl.DataFrame()
        self._new: list[tuple[int, pl.DataFrame]] = []
        self._batches = 0
        self._note(pl.DataFrame(schema=NOTES))

    def select(self, raw: pl.DataFrame) -> NDArray[np.bool_]:
        """Return which of a batch's raw rows are held out, shape (n,). Called for each batch in
        turn."""
        place = place_hashes(raw, SALT)
        content = self._contents(raw, place)
        if self._by_content and self._first.height < COMMON_SAMPLE_ROWS:
            self._look(content, place)
        chosen: NDArray[np.bool_] = self._keys(content, place) < np.uint64(self.share * 2**64)
        return chosen

    def add(self, raw: pl.DataFrame, held: NDArray[np.bool_]) -> None:
        """Keep the rows that are `held` out; drop the oldest beyond the limit."""
        self._batches += 1
        self._new = [*self._new, (self._batches, raw[np.flatnonzero(held)])]
        if len(self._new) >= MAX_FRAMES:
            self._kept, self._new = self._newest(), []

    def frame(self) -> pl.DataFrame | None:
        """Return the rows, oldest first, each once; None before the first."""
        return self._newest().drop(BATCH_NUMBER) if self._batches else None

    @property
    def nbytes(self) -> int:
        """The bytes held."""
        frames = [self._kept, *(rows for _, rows in self._new)]
        return sum(int(frame.estimated_size()) for frame in frames)

    def snapshot(self) -> Snapshot:
        """Return a plain value."""
        new = [list(part) for part in self._new]
        return {"kept": self._kept, "new": new, "turn": self._batches, "first": self._first}

    def restore(self, value: Snapshot) -> None:
        """Restore a `snapshot`. Raises: ValueError for rows that lack a column."""
        frames = [value["kept"], *(rows for _, rows in value["new"])]
        for rows in frames:
            lacking = [column for column in self._needed if column not in rows.columns]
            if rows.width and lacking:
                raise ValueError(f"held-out rows lack column '{lacking[0]}'")
        self._kept, self._batches = value["kept"], value["turn"]
        self._new = [(turn, rows) for turn, rows in value["new"]]
        self._note(value["first"])

    def _contents(self, raw: pl.DataFrame, place: Hashes) -> Hashes:
        """Return one hash per row, shape (n,); the same for all rows from one record."""
        if not self._by_content:
            return place
        own = content_hashes(raw.drop(self._besides, strict=False))
        if (np.diff(raw[POSITION].to_numpy()) > 0).all():
            return own
        rows = pl.DataFrame({"place": place, "content": own})
        return rows.select(pl.col("content").min().over("place")).to_series().to_numpy()

    def _keys(self, content: Hashes, place: Hashes) -> Hashes:
        """Return one hash per row: of its content, or of its position where the content is
        frequent."""
        if not len(self._common):
            return content
        common = _among(content, self._common) & ~_among(place, self._early)
        return np.where(common, place, content)

    def _look(self, content: Hashes, place: Hashes) -> None:
        """Count new rows, up to `COMMON_SAMPLE_ROWS` in all."""
        rows = pl.DataFrame({"content": content, "place": place}, schema=NOTES)
        rows = pl.concat([self._first, rows]).unique("place", keep="first", maintain_order=True)
        self._note(rows.head(COMMON_SAMPLE_ROWS))

    def _note(self, first: pl.DataFrame) -> None:
        """Count the contents of the first rows. A content is frequent from its third row on; its
        earlier rows are chosen by content for good."""
        self._first = first
        turns = first.with_columns(turn=pl.int_range(pl.len()).over("content"))
        self._common = np.unique(turns.filter(turn=COMMON_COUNT - 1)["content"].to_numpy())
        self._early = np.unique(turns.filter(pl.col("turn") < COMMON_COUNT - 1)["place"].to_numpy())

    def _newest(self) -> pl.DataFrame:
        """Return the newest rows with the number of their batch, each row once: the last of
        repeated ones."""
        frames = [self._kept] if self._kept.width else []
        if self._new:
            heights = [rows.height for _, rows in self._new]
            turns = np.repeat([turn for turn, _ in self._new], heights).astype(np.int64)
            rows = pl.concat([rows for _, rows in self._new], how="diagonal")
            frames.append(rows.hstack([pl.Series(BATCH_NUMBER, turns)]))
        both = pl.concat(frames, how="diagonal")  # an unread column may come and go
        raw = both.drop(BATCH_NUMBER)
        place = place_hashes(raw, SALT)
        keys = self._keys(self._contents(raw, place), place)
        when = pl.struct(BATCH_NUMBER, *RESERVED)
        last = both.select(when == when.last().over(pl.Series(keys)))
        return both.filter(last.to_series()).tail(self.rows)


def _among(hashes: Hashes, known: Hashes) -> NDArray[np.bool_]:
    """Return which hashes are among the sorted `known` ones, shape (n,)."""
    at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    mask: NDArray[np.bool_] = known[at] == hashes
    return mask


__all__ = ["Holdout"]
