"""Rejects images similar to one seen before, in another size, quality or format."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import polars as pl
from pydantic import Field

from engine import types
from engine.columnar.hashing import Hashes
from engine.scrub.rows.perceptual import perceptual_hashes
from engine.types import (
    Batch,
    Name,
    Schema,
    Snapshot,
    Stage,
    Transform,
    UserError,
    require,
    type_name,
)
from engine.types.arrays import Ints
from engine.types.changes import Neutral


class NearDuplicateImages(Stage):
    """Keeps the first of similar images and rejects the others with reason ``near_duplicate``:
    those whose perceptual hash (`engine.scrub.rows.perceptual`) differs in at most
    `max_distance` of 64 bits from that of an image kept at most `window` rows before.

    Every hash in the window is compared, so none is missed, and which row is rejected does not
    depend on how the stream is cut. Found are copies that were scaled, compressed again, made grey,
    lighter or softer; not those that were turned, mirrored or cropped by much. Images of a single
    colour are all alike.

    Null and what is no whole image are let through and not remembered: it is for an 'image' stage
    behind this one to reject those.

    Memory for each image let through in the last `window` rows: 16 bytes.
    """

    single_pass = True
    learns_by_batch = False

    class Settings(types.Settings):
        """``[scrub.NAME]`` with ``kind = "near_duplicate_images"``

        Attributes:
            column: the encoded images (JPEG, PNG, ...), bytes.
            max_distance [bits]: bits that may differ; two images that have nothing in common differ
                in about 32, and in no more than 6 by chance once in some hundred million pairs.
            window [rows]: how many rows back an image is remembered.
            threads: that decode; as many as there are cores unless given.
        """

        column: Name
        max_distance: int = Field(6, ge=0, le=24)
        window: int = Field(50_000, ge=1)
        threads: Neutral[int | None] = Field(None, ge=1, le=256)

    def __init__(self, name: str, settings: NearDuplicateImages.Settings) -> None:
        super().__init__(name, settings)
        self.settings: NearDuplicateImages.Settings = settings
        self._seen = 0
        self._rows: Ints = np.empty(0, np.int64)
        self._hashes: Hashes = np.empty(0, np.uint64)

    def bind(self, schema: Schema) -> Schema:
        column = self.settings.column
        require(schema, [column], where=self.where)
        if schema[column] != pl.Binary:
            raise UserError(
                f"{self.where} expects encoded images (bytes) in column '{column}', got "
                f"{type_name(schema[column])}: use a 'near_duplicates' stage for text, "
                "'duplicates' for the "
                "rest."
            )
        return schema

    def apply(self, batch: Batch) -> Batch:
        if not len(batch):
            return batch
        images, settings = batch.frame.get_column(self.settings.column), self.settings
        hashes, readable = perceptual_hashes(images, settings.threads)
        n, rows = len(images), self._seen + np.flatnonzero(readable)
        known = self._rows >= self._seen - settings.window
        old = int(known.sum())
        memory = np.empty(old + len(rows), np.int64), np.empty(old + len(rows), np.uint64)
        memory[0][:old], memory[1][:old] = self._rows[known], self._hashes[known]
        like, bits = np.full(len(rows), -1), np.zeros(len(rows), np.int64)
        asked = (rows, hashes[readable], settings.window, settings.max_distance)
        kept = _compare(*asked, *memory, old, like, bits)
        self._rows, self._hashes = memory[0][:kept], memory[1][:kept]
        self._seen += n
        near, ago, off = np.zeros(n, np.bool_), np.zeros(n, np.int64), np.zeros(n, np.int64)
        near[readable], ago[readable], off[readable] = like >= 0, rows - like, bits
        details = pl.select(
            pl.format(
                "Differs in {} of 64 bits from an image {} rows before.",
                pl.Series(off),
                pl.Series(ago),
            )
        ).to_series()
        done = batch.reject(
            pl.Series(~near), stage=self.name, reason="near_duplicate", detail=details
        )
        return done.counted(self.name, duplicates=int(near.sum()))

    def snapshot(self) -> Snapshot:
        """Return the rows seen, and row number and hash of each remembered image."""
        return {"rows": self._seen, "images": self._rows, "hashes": self._hashes}

    def restore(self, value: Snapshot) -> None:
        self._seen, self._rows, self._hashes = value["rows"], value["images"], value["hashes"]

    def transforms(self) -> Sequence[Transform] | None:
        """Return no transform: it changes no value."""
        return ()


@numba.njit(nogil=True, cache=True)
def _compare(  # type: ignore[no-untyped-def]
    rows, hashes, window, max_distance, known_rows, known, count, like, bits
):
    """Compare in the order of the rows: write the nearest similar image (of equally near ones
    the newest) to `like` and the number of differing bits to `bits`; remember the others.

    Args:
        rows, hashes: of each, shape (n,).
        known_rows, known: the remembered ones, with room for n more; `count` of them are there.

    Returns:
        How many are remembered now.
    """
    first = 0
    for i in range(rows.shape[0]):
        while first < count and rows[i] - known_rows[first] > window:
            first += 1
        best = max_distance + 1
        for j in range(first, count):
            x = hashes[i] ^ known[j]
            x -= (x >> np.uint64(1)) & np.uint64(0x5555555555555555)
            x = (x & np.uint64(0x3333333333333333)) + (
                (x >> np.uint64(2)) & np.uint64(0x3333333333333333)
            )
            x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
            different = np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))
            if different <= best and different <= max_distance:
                best = different
                like[i] = known_rows[j]
        if like[i] < 0:
            known_rows[count] = rows[i]
            known[count] = hashes[i]
            count += 1
        else:
            bits[i] = best
    return count


__all__ = ["NearDuplicateImages"]
