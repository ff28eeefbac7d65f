"""Rejects texts that share most of their shingles with one seen before."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from engine import types
from engine.columnar.hashing import Hashes, mix, utf8_buffer
from engine.scrub.key_store import KeyStore
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

Signatures = NDArray[np.uint32]

MISSED = 0.01
"""The probability that a pair as similar as the threshold is never compared."""
SEED = np.uint64(0x5EED)
BITS = 255.0
"""The inverse probability that two different minima have the same last byte."""


class NearDuplicates(Stage):
    """Keeps the first of similar texts and rejects the others with reason ``near_duplicate``:
    those that share at least `threshold` of their shingles with a text kept at most `window`
    rows before (Jaccard similarity of the sets of all `shingle_size` successive bytes).

    The similarity is estimated by MinHash (Broder, "On the Resemblance and Containment of
    Documents", 1997): standard error sqrt(t * (1 - t) / hashes), 0.035 for the defaults. What is
    compared is found by bands of hashes (Indyk and Motwani, 1998), of which each leads to the
    newest text that shares it: a pair as similar as the threshold is missed with probability 0.01
    by that, a more similar one more rarely. Which row is rejected does not depend on how the stream
    is cut.

    Null is let through and not remembered. Upper case, spaces and the like count: a 'derive' stage
    can take them away first.

    Memory for each text let through in the last `window` rows: a byte a hash (Li and Konig, "b-bit
    Minwise Hashing", 2010) and 17 bytes a band, up to twice: 0.9 kB for the defaults.
    """

    single_pass = True
    learns_by_batch = False

    class Settings(types.Settings):
        """``[scrub.NAME]`` with ``kind = "near_duplicates"``

        Attributes:
            column: the column of text.
            threshold [share]: share (0-1) of pieces from which on two texts are duplicates.
            window [rows]: how many rows back a text is remembered.
            shingle_size [bytes]: bytes of a piece; a shorter text is one piece.
            num_hashes: more estimate better and take longer.
        """

        column: Name
        threshold: float = Field(0.8, ge=0.1, le=1)
        window: int = Field(50_000, ge=1)
        shingle_size: int = Field(5, ge=1, le=8)
        num_hashes: int = Field(128, ge=16, le=1_024)

    def __init__(self, name: str, settings: NearDuplicates.Settings) -> None:
        super().__init__(name, settings)
        self.settings: NearDuplicates.Settings = settings
        self._band = band_of(settings.threshold, settings.num_hashes)
        drawn = mix(SEED + np.arange(2 * settings.num_hashes, dtype=np.uint64))
        self._factors = drawn[: settings.num_hashes] | np.uint64(1)
        self._terms = drawn[settings.num_hashes :]
        self._seen = 0
        self._bands = KeyStore()
        self._rows: Ints = np.empty(0, np.int64)
        self._bytes: NDArray[np.uint8] = np.empty((0, settings.num_hashes), np.uint8)

    def bind(self, schema: Schema) -> Schema:
        column = self.settings.column
        require(schema, [column], where=self.where)
        if schema[column] != pl.String:
            other = "near_duplicate_images" if schema[column] == pl.Binary else "duplicates"
            raise UserError(
                f"{self.where} expects text in column '{column}', got "
                f"{type_name(schema[column])}: use a "
                f"'{other}' stage."
            )
        return schema

    def apply(self, batch: Batch) -> Batch:
        column = batch.frame.get_column(self.settings.column)
        present = column.is_not_null().to_numpy()
        like, shared = self._compared(column.filter(column.is_not_null()), np.flatnonzero(present))
        near = np.zeros(len(column), np.bool_)
        near[present] = like >= 0
        ago, share = np.zeros(len(column), np.int64), np.zeros(len(column))
        ago[present] = self._seen + np.flatnonzero(present) - like
        share[present] = shared
        self._seen += len(column)
        details = pl.select(
            pl.format(
                "Shares {} of its pieces with a row {} before.",
                pl.Series(share, dtype=pl.Float64).round(2),
                pl.Series(ago),
            )
        ).to_series()
        done = batch.reject(
            pl.Series(~near), stage=self.name, reason="near_duplicate", detail=details
        )
        return done.counted(self.name, duplicates=int(near.sum()))

    def _compared(self, texts: pl.Series, places: Ints) -> tuple[Ints, NDArray[np.float64]]:
        """Return for each text the row it is similar to, -1 for none, and the similarity;
        remember the others."""
        n, settings = len(texts), self.settings
        like, shared = np.full(n, -1), np.zeros(n)
        if not n:
            return like, shared
        minima = np.empty((n, settings.num_hashes), np.uint32)
        _minima(*utf8_buffer(texts), settings.shingle_size, self._factors, self._terms, minima)
        rows, short = self._seen + places, minima.astype(np.uint8)
        keys, group = np.unique(_banded(minima, self._band), return_inverse=True)
        seen, since, _ = self._bands.find(keys)
        newest = np.where(seen, since, -1)
        known = self._rows >= self._seen - settings.window
        self._rows, self._bytes = self._rows[known], self._bytes[known]
        # The least number of equal bytes that says `threshold`, chance taken off.
        least = (settings.threshold * BITS + 1) / (BITS + 1) * settings.num_hashes
        memory = (self._rows, self._bytes)
        group = group.reshape(n, -1)
        _compare(rows, short, group, newest, *memory, settings.window, least, like, shared)
        fresh = like < 0
        self._rows = np.concatenate((self._rows, rows[fresh]))
        self._bytes = np.concatenate((self._bytes, short[fresh]))
        added = np.unique(group[fresh])
        self._bands = self._bands.add(
            keys[added],
            newest[added],
            np.zeros(len(added), np.bool_),
            oldest=int(rows[-1]) + 1 - settings.window,
        )
        return like, shared

    def snapshot(self) -> Snapshot:
        """Return the rows seen, band hashes, and the texts' rows with a byte of each of their
        hashes."""
        memory = {"texts": self._rows, "bytes": self._bytes}
        return {"rows": self._seen, "bands": self._bands.snapshot(), **memory}

    def restore(self, value: Snapshot) -> None:
        self._seen = value["rows"]
        self._bands = KeyStore.restore(value["bands"])
        self._rows, self._bytes = value["texts"], value["bytes"]

    def transforms(self) -> Sequence[Transform] | None:
        """Return no transform: it changes no value."""
        return ()


def band_of(threshold: float, num_hashes: int) -> int:
    """Return the largest number of hashes per band with which a pair as similar as the threshold
    shares a band with probability 1 - `MISSED`, so that the fewest other pairs are compared."""
    sizes = range(1, num_hashes + 1)
    fits = (r for r in sizes if (1 - threshold**r) ** (num_hashes // r) <= MISSED)
    return max(fits, default=1)


def _banded(minima: Signatures, band: int) -> Hashes:
    """Return a hash of each band of each row, shape (n, bands); different bands never collide."""
    bands = minima.shape[1] // band
    wide = minima[:, : bands * band].astype(np.uint64).reshape(len(minima), bands, band)
    total = np.broadcast_to(mix(np.arange(bands, dtype=np.uint64)), wide.shape[:2])
    for i in range(band):
        total = mix(total * np.uint64(31) + wide[:, :, i])
    return total


@numba.njit(nogil=True, cache=True)
def _minima(data, bounds, shingle_size, factors, terms, out):  # type: ignore[no-untyped-def]
    """Write the smallest value of each hash over the shingles of each text to `out`, shape (n,
    hashes).

    A hash is the upper half of ``factor * piece + term`` (Dietzfelbinger, 1996) of the mixed piece.
    """
    num_hashes = factors.shape[0]
    low = np.empty(num_hashes, np.uint64)
    for i in range(out.shape[0]):
        start, stop = bounds[i], bounds[i + 1]
        low[:] = np.uint64(0xFFFFFFFFFFFFFFFF)
        last = max(stop - shingle_size, start)
        for at in range(start, last + 1):
            word = np.uint64(min(stop - at, shingle_size))
            for k in range(at, min(at + shingle_size, stop)):
                word = (word << np.uint64(8)) ^ (word >> np.uint64(56)) ^ np.uint64(data[k])
            z = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
            for h in range(num_hashes):
                hashed = factors[h] * z + terms[h]
                low[h] = hashed if hashed < low[h] else low[h]  # min() keeps it off the lanes
        for h in range(num_hashes):
            out[i, h] = low[h] >> np.uint64(32)


@numba.njit(nogil=True, cache=True)
def _compare(  # type: ignore[no-untyped-def]
    rows, short, group, newest, old_rows, old_short, window, least, like, shared
):
    """Compare in the order of the rows: write the similar row to `like` and the similarity to
    `shared`; rows similar to none become the newest of their bands.

    Args:
        rows: number of each, shape (n,).
        short: bytes of hashes, shape (n, hashes).
        group: of each band, shape (n, bands).
        newest: row number that last had a group, -1 for none; changed.
        old_rows, old_short: what is remembered, by row number, ascending.
    """
    num_hashes = short.shape[1]
    for i in range(rows.shape[0]):
        best = least
        for b in range(group.shape[1]):
            other = newest[group[i, b]]
            if other < 0 or rows[i] - other > window:
                continue
            equal = 0
            if other >= rows[0]:
                bytes_ = short[np.searchsorted(rows, other)]
            else:
                bytes_ = old_short[np.searchsorted(old_rows, other)]
            for h in range(num_hashes):
                equal += bytes_[h] == short[i, h]
            if equal >= best and (equal > best or like[i] < other):
                best = equal
                like[i] = other
        if like[i] >= 0:
            shared[i] = (best / num_hashes * (BITS + 1) - 1) / BITS
        else:
            for b in range(group.shape[1]):
                newest[group[i, b]] = rows[i]


__all__ = ["NearDuplicates", "band_of"]
