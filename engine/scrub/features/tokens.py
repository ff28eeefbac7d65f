"""Turns text into token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field

from engine import types
from engine.columnar.hashing import hashes, spans, utf8_buffer
from engine.scrub.columns import expand_columns, nulls, replaced
from engine.types import (
    Batch,
    Name,
    Names,
    Schema,
    Stage,
    Transform,
    UserError,
    first_line,
    type_name,
)
from engine.types.arrays import Ints
from engine.types.changes import Neutral

SPLITS = {"whitespace": r"\s+", "words": r"\W+", "characters": ""}
"""Name of a `split` -> the separators between tokens."""


class Tokens(Stage):
    """Replaces text by a list of its tokens' numbers (Int64). A list of texts or of whole numbers
    (tags, a set) is taken as its tokens.

    Without a vocabulary a token's number is 1 + its hash modulo `size`, the same in every process;
    tokens may share one (Weinberger et al., "Feature Hashing for Large Scale Multitask Learning",
    2009). With one it is the number of its line. 0 is what the vocabulary does not know, a null in
    a list, and what padding is filled with. Empty tokens are left out.

    A row without a text has no tokens: null gives an empty list, as "" does, and is counted as
    ``null``. Whoever wants no such rows drops them with a `missing` stage before this one.
    """

    class Settings(types.Settings):
        """``[scrub.NAME]`` with ``kind = "tokens"``

        Attributes:
            columns: names or globs.
            split: whitespace, words (letters, digits and _ together), characters, or a regular
                expression of what lies between tokens.
            lower: turn the text to lower case first.
            size: numbers that hashing gives: 1 ... size.
            vocabulary: a file, UTF-8, with a token a line; in place of hashing.
        """

        columns: Neutral[Names]
        split: str = "whitespace"
        lower: bool = True
        size: int = Field(65_536, ge=1, le=1 << 31)
        vocabulary: Neutral[Name | None] = None

    def __init__(self, name: str, settings: Tokens.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Tokens.Settings = settings
        self._between = SPLITS.get(settings.split, settings.split)
        self._columns: tuple[str, ...] = ()
        self._known: pl.Series | None = None
        if settings.vocabulary is not None:
            self._known = self._read(Path(settings.vocabulary))

    def bind(self, schema: Schema) -> Schema:
        self._columns = expand_columns(self.settings.columns, schema, where=self.where)
        for column in self._columns:
            dtype = schema[column]
            inner = dtype.inner if isinstance(dtype, pl.List) else dtype
            if not (inner == pl.String or (dtype != inner and inner.is_integer())):
                raise UserError(
                    f"{self.where} expects text, or lists of texts or whole numbers, in column "
                    f"'{column}', got {type_name(dtype)}."
                )
        try:
            self._split(pl.Series([""]))
        except pl.exceptions.ComputeError as error:
            reason = first_line(error)
            raise UserError(
                f"{self.where} split expects {', '.join(SPLITS)} or a regular expression: {reason}."
            ) from None
        return {**schema, **dict.fromkeys(self._columns, pl.List(pl.Int64()))}

    def vocabulary_sizes(self) -> dict[str, int]:
        """Return column -> number of ids, 0 included."""
        most = self.settings.size if self._known is None else len(self._known)
        return dict.fromkeys(self._columns, most + 1)

    def encoders(self) -> dict[str, Callable[[pl.Series], Ints]]:
        """Return column -> function that encodes single tokens as in its lists."""
        return dict.fromkeys(self._columns, self._encoded)

    def apply(self, batch: Batch) -> Batch:
        lists = [self._numbered(batch.frame.get_column(name)) for name in self._columns]
        unknown = sum(n for _, n in lists)
        absent = sum(nulls(batch.frame, self._columns).values())
        frame = replaced(batch.frame, [column_of_ids for column_of_ids, _ in lists])
        return batch.with_frame(frame).counted(self.name, unknown=unknown, null=absent)

    def digest(self) -> str | None:
        """Return the digest of the vocabulary, which must match the checkpoint's; None for
        hashing."""
        if self._known is None:
            return None
        return hashlib.sha256("\n".join(self._known.to_list()).encode()).hexdigest()

    def transforms(self) -> Sequence[Transform] | None:
        """Return None: no model file can contain it."""
        return None

    def _numbered(self, column: pl.Series) -> tuple[pl.Series, int]:
        """Return the lists of ids, and how many ids are 0."""
        text = column.dtype == pl.String
        if text:
            column = column.str.to_lowercase() if self.settings.lower else column
            if self.settings.split == "whitespace" and self._known is None:
                return self._walked(column)
            column = self._split(column)
        lists: Any = column.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
        bounds: Ints = np.asarray(lists.offsets)
        tokens = pl.Series(lists.values)[int(bounds[0]) : int(bounds[-1])]
        bounds = bounds - bounds[0]
        if text and not (full := (tokens.str.len_bytes() > 0).to_numpy()).all():
            tokens = tokens.filter(pl.Series(full))
            bounds = np.concatenate(([0], np.cumsum(full)))[bounds]
        elif not text and tokens.dtype == pl.String and self.settings.lower:
            tokens = tokens.str.to_lowercase()
        numbers = self._hashed(tokens) if self._known is None else self._looked_up(tokens)
        return _lists(column, bounds, numbers), int((numbers == 0).sum())

    def _walked(self, column: pl.Series) -> tuple[pl.Series, int]:
        """Return the same for whitespace and hashing, in one walk over the bytes, without making
        a string per token."""
        text, ends = utf8_buffer(column)
        starts = np.empty(len(text) // 2 + len(column) + 1, np.int64)
        stops, bounds = np.empty_like(starts), np.empty(len(column) + 1, np.int64)
        n = _split(text, ends, starts, stops, bounds)
        buckets = spans(text, starts[:n], stops[:n]) % np.uint64(self.settings.size)
        return _lists(column, bounds, buckets.astype(np.int64) + 1), 0

    def _encoded(self, tokens: pl.Series) -> Ints:
        if self.settings.lower and tokens.dtype == pl.String:
            tokens = tokens.str.to_lowercase()
        return self._hashed(tokens) if self._known is None else self._looked_up(tokens)

    def _split(self, column: pl.Series) -> pl.Series:
        parts = pl.col(column.name).str.split(self._between, literal=False)
        return column.to_frame().select(parts).to_series()

    def _hashed(self, tokens: pl.Series) -> Ints:
        buckets = hashes(tokens.to_frame()) % np.uint64(self.settings.size)
        return np.where(tokens.is_null().to_numpy(), 0, buckets.astype(np.int64) + 1)

    def _looked_up(self, tokens: pl.Series) -> Ints:
        assert self._known is not None
        lines = np.arange(1, len(self._known) + 1)
        numbers = tokens.cast(pl.String).replace_strict(
            self._known, lines, default=0, return_dtype=pl.Int64
        )
        return numbers.to_numpy()

    def _read(self, path: Path) -> pl.Series:
        """Raises: UserError if there is no vocabulary, or a token stands in it twice."""
        where = f"{self.where} vocabulary '{path}'"
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where} cannot be read: {error}.") from None
        known = pl.Series(lines, dtype=pl.String)
        if not len(known):
            raise UserError(f"{where} expects a token a line, got none.")
        if known.is_duplicated().any():
            twice = known.filter(known.is_duplicated())[0]
            raise UserError(f"{where} has the token '{twice}' twice: take one out.")
        return known


def _lists(column: pl.Series, bounds: Ints, numbers: Ints) -> pl.Series:
    """Return the ids as lists, named as the column."""
    return pl.Series(column.name, pa.LargeListArray.from_arrays(bounds, numbers))


@numba.njit(nogil=True, cache=True)
def _split(text, ends, starts, stops, bounds):  # type: ignore[no-untyped-def]
    """Return where whitespace-separated tokens start and stop, which of them are each row's, and
    their number."""
    n = 0
    for i in range(ends.shape[0] - 1):
        bounds[i] = n
        at, stop = ends[i], ends[i + 1]
        while at < stop:
            space = _space(text, at, stop)
            if space:
                at += space
                continue
            starts[n] = at
            at += 1
            while at < stop and not _space(text, at, stop):
                at += 1
            stops[n] = at
            n += 1
    bounds[-1] = n
    return n


@numba.njit(nogil=True, inline="always")
def _space(text, at, stop):  # type: ignore[no-untyped-def]
    """Return the bytes of the whitespace character that starts here, 0 if none does: Unicode's
    White_Space, in UTF-8."""
    a = text[at]
    if 0x20 < a < 0xC2:  # nearly all
        return 0
    if a <= 0x20:
        return 1 if a == 0x20 or 0x09 <= a <= 0x0D else 0
    if a > 0xE3 or at + 1 >= stop:
        return 0
    b = text[at + 1]
    if a == 0xC2:
        return 2 if b == 0x85 or b == 0xA0 else 0
    if a < 0xE1 or at + 2 >= stop:
        return 0
    c = text[at + 2]
    if a == 0xE1:
        return 3 if b == 0x9A and c == 0x80 else 0
    if a == 0xE3:
        return 3 if b == 0x80 and c == 0x80 else 0
    if b == 0x81:
        return 3 if c == 0x9F else 0
    return 3 if b == 0x80 and (c <= 0x8A or c == 0xA8 or c == 0xA9 or c == 0xAF) else 0


__all__ = ["SPLITS", "Tokens"]
