"""Turns text into codes for an embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from engine.columnar.hashing import hashes
from engine.scrub.base import LearnSettings
from engine.scrub.columns import expand_columns
from engine.types import PART, Batch, Codes, Names, Schema, Snapshot, Stage, Transform, UserError


class Categories(Stage):
    """Replaces values by codes (Int64); code 0 is null, and every value that has no code.

    ``vocabulary``: values get the codes 1, 2, ... in order of first appearance, until `size` are
    taken. A value is learned after the batch it first stands in: there it is still unknown.
    ``hash``: a value's code is 1 + its hash modulo `size`, the same in every process; nothing is
    learned, values may share a code.

    Whole numbers, booleans, dates are taken as their text.
    """

    class Settings(LearnSettings):
        """``[scrub.NAME]`` with ``kind = "categories"``

        Attributes:
            columns: names or globs.
            method: vocabulary or hash.
            size: values that get a code of their own, or number of buckets; codes are 0 ... size.
        """

        columns: Names
        method: Literal["vocabulary", "hash"] = "vocabulary"
        size: int = Field(1_000, ge=1, le=1 << 31)

    def __init__(self, name: str, settings: Categories.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Categories.Settings = settings
        self._columns: tuple[str, ...] = ()
        self._rows = 0
        self._known: Mapping[str, pl.Series] = {}

    def bind(self, schema: Schema) -> Schema:
        self._columns = expand_columns(self.settings.columns, schema, where=self.where)
        for column in self._columns:
            if schema[column].is_float() or schema[column] == pl.Binary:
                raise UserError(
                    f"{self.where} expects text or whole numbers in column '{column}', got "
                    f"{schema[column]}: round it with a 'derive' stage, or take it out."
                )
        if not self._known:
            self._known = dict.fromkeys(self._columns, pl.Series(dtype=pl.String))
        return {**schema, **dict.fromkeys(self._columns, pl.Int64())}

    def vocabulary_sizes(self) -> dict[str, int]:
        """Return column -> number of its codes, 0 included."""
        return dict.fromkeys(self._columns, self.settings.size + 1)

    def apply(self, batch: Batch) -> Batch:
        texts = batch.frame.select(pl.col(self._columns).cast(pl.String)).get_columns()
        code = self._coded if self.settings.method == "vocabulary" else self._hashed
        codes = [code(text) for text in texts]
        if self.settings.method == "vocabulary":
            self._learn(*self._training_rows(batch.frame, texts, codes))
        unknown = sum(int((column == 0).sum()) for column in codes)
        frame = batch.frame.with_columns(codes)
        return batch.with_frame(frame).counted(self.name, unknown=unknown)

    def _coded(self, text: pl.Series) -> pl.Series:
        known = self._known[text.name]
        if not len(known):
            return pl.Series(text.name, np.zeros(len(text), np.int64))
        codes = np.arange(1, len(known) + 1)
        return text.replace_strict(known, codes, default=0, return_dtype=pl.Int64)

    def _hashed(self, text: pl.Series) -> pl.Series:
        buckets = hashes(text.to_frame()) % np.uint64(self.settings.size)
        codes = np.where(text.is_null().to_numpy(), 0, buckets.astype(np.int64) + 1)
        return pl.Series(text.name, codes)

    def _training_rows(
        self, frame: pl.DataFrame, texts: list[pl.Series], codes: list[pl.Series]
    ) -> tuple[list[pl.Series], list[pl.Series]]:
        """Return the training rows of both."""
        if PART not in frame.columns:
            return texts, codes
        keep = frame.get_column(PART) == "train"
        return [text.filter(keep) for text in texts], [code.filter(keep) for code in codes]

    def _learn(self, texts: Sequence[pl.Series], codes: Sequence[pl.Series]) -> None:
        left = self.settings.rows_left(self._rows)
        rows = len(texts[0]) if left is None else min(left, len(texts[0]))
        if not rows:
            return
        self._rows += rows
        self._known = {
            text.name: self._longer(text.head(rows), code.head(rows))
            for text, code in zip(texts, codes, strict=True)
        }

    def _longer(self, text: pl.Series, code: pl.Series) -> pl.Series:
        known = self._known[text.name]
        space = self.settings.size - len(known)
        if not space or bool((code > 0).all()):
            return known
        new = text.filter(code == 0).drop_nulls().unique(maintain_order=True).head(space)
        return pl.concat((known, new)).rename("") if len(new) else known

    def snapshot(self) -> Snapshot:
        """Return the rows seen and each column's values in the order of their codes; None for
        hash."""
        if self.settings.method == "hash":
            return None
        return {"rows": self._rows, "known": self._known}

    def restore(self, value: Snapshot) -> None:
        if value is not None:
            self._rows = value["rows"]
            self._known = {column: value["known"][column] for column in self._columns}

    def transforms(self) -> Sequence[Transform] | None:
        """Return one `Codes` per column; None for hash, which no model file can contain."""
        if self.settings.method == "hash":
            return None
        return [Codes(column=c, values=tuple(self._known[c].to_list())) for c in self._columns]


__all__ = ["Categories"]
