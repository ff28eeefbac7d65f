"""Text to the numbers of its tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from engine import types
from engine.scrub.columns import replaced, spread
from engine.scrub.hashing import hashes
from engine.scrub.stage import Stateless
from engine.types import Batch, Schema, Snapshot, Transform, UserError

Ints = NDArray[np.int64]

SPLITS = {"whitespace": r"\s+", "words": r"\W+", "characters": ""}
"""Names of `split` -> what lies between tokens."""


class Tokens(Stateless):
    """Replaces text by a list of its tokens' numbers (Int64). A list of texts or of whole numbers
    (tags, a set) is taken as its tokens.

    Without a vocabulary a token's number is 1 + its hash modulo `size`, the same in every process;
    tokens may share one (Weinberger et al., "Feature Hashing for Large Scale Multitask Learning",
    2009). With one it is the number of its line. 0 is what the vocabulary does not know, a null in
    a list, and what padding is filled with. Empty tokens are left out; null stays null.
    """

    class Settings(types.Settings):
        """``[scrub.NAME]`` with ``kind = "tokens"``

        Attributes:
            columns: names or globs.
            split: whitespace, words (letters, digits and _ together), characters, or a regular
                expression of what lies between tokens.
            lower: lower-case first.
            size: numbers that hashing gives: 1 ... size.
            vocabulary: a file, UTF-8, with a token a line; in place of hashing.
        """

        columns: tuple[str, ...]
        split: str = "whitespace"
        lower: bool = True
        size: int = Field(65_536, ge=1, le=1 << 31)
        vocabulary: str | None = None

    def __init__(self, name: str, settings: Tokens.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Tokens.Settings = settings
        self._between = SPLITS.get(settings.split, settings.split)
        self._columns: tuple[str, ...] = ()
        self._known: pl.Series | None = None
        if settings.vocabulary is not None:
            self._known = self._read(Path(settings.vocabulary))

    def bind(self, schema: Schema) -> Schema:
        self._columns = spread(self.settings.columns, schema, where=self.where)
        for column in self._columns:
            kind = schema[column]
            inner = kind.inner if isinstance(kind, pl.List) else kind
            if not (inner == pl.String or (kind != inner and inner.is_integer())):
                raise UserError(
                    f"{self.where} expects text, or lists of texts or whole numbers, in column "
                    f"'{column}', got {kind}."
                )
        try:
            self._split(pl.Series([""]))
        except pl.exceptions.ComputeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self.where} split expects {', '.join(SPLITS)} or a regular expression: {reason}."
            ) from None
        return {**schema, **dict.fromkeys(self._columns, pl.List(pl.Int64()))}

    def sizes(self) -> dict[str, int]:
        """Column -> how many numbers tokens can have, 0 included."""
        most = self.settings.size if self._known is None else len(self._known)
        return dict.fromkeys(self._columns, most + 1)

    def encoders(self) -> dict[str, Callable[[pl.Series], Ints]]:
        """Column -> what numbers single tokens as those in its lists."""
        return dict.fromkeys(self._columns, self._encoded)

    def apply(self, batch: Batch) -> Batch:
        lists = [self._numbered(batch.frame.get_column(name)) for name in self._columns]
        unknown = sum(n for _, n in lists)
        frame = replaced(batch.frame, [made for made, _ in lists])
        return batch.with_frame(frame).counted(self.name, unknown=unknown)

    def snapshot(self) -> Snapshot:
        """The vocabulary's digest; None for hashing."""
        if self._known is None:
            return None
        text = "\n".join(self._known.to_list())
        return {"vocabulary": hashlib.sha256(text.encode()).hexdigest()}

    def restore(self, value: Snapshot) -> None:
        """Raises: UserError where the vocabulary is not the one it was."""
        if value != self.snapshot():
            raise UserError(
                f"{self.where} vocabulary '{self.settings.vocabulary}' has changed since the "
                "checkpoint: put the old one back, or start over (--fresh)."
            )

    def transforms(self) -> Sequence[Transform] | None:
        """None: no model file can contain it."""
        return None

    def _numbered(self, column: pl.Series) -> tuple[pl.Series, int]:
        """The lists of numbers, and how many of them are 0."""
        text = column.dtype == pl.String
        if text:
            column = column.str.to_lowercase() if self.settings.lower else column
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
        null = column.is_null().to_numpy()
        made = pa.LargeListArray.from_arrays(bounds, numbers, mask=pa.array(null))
        return pl.Series(column.name, made), int((numbers == 0).sum())

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
        """Raises: UserError where there is no vocabulary, or a token stands in it twice."""
        where = f"{self.where} vocabulary '{path}'"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where} cannot be read: {error}.") from None
        known = pl.Series(lines, dtype=pl.String)
        if not len(known):
            raise UserError(f"{where} expects a token a line, got none.")
        if known.is_duplicated().any():
            twice = known.filter(known.is_duplicated())[0]
            raise UserError(f"{where} has the token '{twice}' twice: take one out.")
        return known


__all__ = ["SPLITS", "Tokens"]
