"""Rejects rows seen before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from engine import types
from engine.columnar.hashing import Hashes, hashes
from engine.scrub.columns import expand_columns
from engine.scrub.key_store import KeyStore
from engine.types import Batch, Names, Schema, Snapshot, Stage, Transform


class Duplicates(Stage):
    """Keeps the first row of each key and rejects the others with reason ``duplicate``.

    A row is a duplicate when one with the same key was let through at most `window` rows before it.
    That is exact to the row and does not depend on how the stream is cut into batches.

    Keys are remembered by a 64-bit hash (16 bytes a key, at most twice `window` of them): a row is
    taken for another's duplicate with probability window / 2**64, that is 5e-14 at a million. Null
    is a value like others; NaN equals NaN.
    """

    single_pass = True
    learns_by_batch = False

    class Settings(types.Settings):
        """``[scrub.NAME]`` with ``kind = "duplicates"``

        Attributes:
            by: the key columns; names or globs.
            window [rows]: how many rows back a key is remembered.
        """

        by: Names = Field(min_length=1)
        window: int = Field(50_000, ge=1)

    def __init__(self, name: str, settings: Duplicates.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Duplicates.Settings = settings
        self._by: tuple[str, ...] = ()
        self._rows = 0
        self._seen = KeyStore()

    def bind(self, schema: Schema) -> Schema:
        self._by = expand_columns(self.settings.by, schema, where=self.where)
        return schema

    def apply(self, batch: Batch) -> Batch:
        keys = hashes(batch.frame, self._by)
        window = self.settings.window
        # Within `window` rows a key can be let through only once, which `_first` relies on.
        parts = [self._first(keys[at : at + window]) for at in range(0, len(keys), window)]
        first = np.concatenate(parts) if parts else np.empty(0, np.bool_)
        batch = batch.reject(pl.Series(first), stage=self.name, reason="duplicate")
        return batch.counted(self.name, duplicates=int((~first).sum()))

    def _first(self, keys: Hashes) -> NDArray[np.bool_]:
        """Return which of at most `window` rows are first; remember them."""
        rows = self._rows + np.arange(len(keys))
        seen, since, _ = self._seen.find(keys)
        fresh = np.flatnonzero(~(seen & (rows - since <= self.settings.window)))
        _, at = np.unique(keys[fresh], return_index=True)
        first = np.zeros(len(keys), np.bool_)
        first[fresh[at]] = True
        self._rows += len(keys)
        self._seen = self._seen.add(
            keys[first],
            rows[first],
            np.zeros(np.count_nonzero(first), np.bool_),
            oldest=self._rows - self.settings.window,
        )
        return first

    def snapshot(self) -> Snapshot:
        """Return the rows seen, and the remembered hashes."""
        return {"rows": self._rows, "seen": self._seen.snapshot()}

    def restore(self, value: Snapshot) -> None:
        self._rows = value["rows"]
        self._seen = KeyStore.restore(value["seen"])

    def transforms(self) -> Sequence[Transform] | None:
        """Return no transform: it changes no value."""
        return ()


__all__ = ["Duplicates"]
