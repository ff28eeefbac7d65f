"""Marks rows as training, validation or test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from engine import types
from engine.columnar.hashing import Hashes, hashes
from engine.scrub.columns import extended
from engine.types import (
    PART,
    RESERVED,
    Batch,
    Name,
    Names,
    Schema,
    Snapshot,
    Stage,
    Transform,
    UserError,
    require,
    type_name,
)

PARTS = ("train", "validation", "test")
KIND = pl.Enum(PARTS)
WHOLE = np.float64(2**64)
ENOUGH = 1_000
"""The rows after which a part without any is told; `check` looks at no more."""


class Split(Stage):
    """Adds the column ``_part``: ``train``, ``validation`` or ``test``. Later stages and the
    model learn only from training rows; the others are transformed, predicted and reported
    separately.

    How a row gets its part:

    - by the hash of its key (``by``), or of its place in the source: the same key is always in the
      same part, on every machine, whatever comes before it. Shares are met only approximately;
    - ``stratify``: the rows of each value of that column are assigned in turn, so that the share of
      every value is exact to one row (as in scikit-learn's StratifiedKFold, without looking ahead);
    - ``time``: what is not earlier than ``test_from`` is test, of the rest what is not earlier than
      ``validation_from`` is validation;
    - ``folds`` and ``fold``: cross-validation; fold ``fold`` of so many is test. With ``by`` a
      key never crosses (GroupKFold), with ``stratify`` each fold has its share of every value
      (StratifiedKFold), else rows are assigned in turn (KFold; with as many folds as rows,
      leave-one-out).

    Put it first, or after the stage that makes its columns: stages before it learn from all rows.
    """

    learns_by_batch = False

    class Settings(types.Settings):
        """``[scrub.NAME]`` with ``kind = "split"``

        Attributes:
            test [share]: share (0-1) of the rows.
            validation [share]: share of the rows.
            by: columns whose values together are the key.
            stratify: column whose values are each split by the shares.
            values: distinct values of `stratify` that are counted; all further ones are assigned
                as one value.
            time: column of times or numbers that rows are split by.
            test_from: first time of the test rows; text is read as the column's type.
            validation_from: first time of the validation rows.
            folds: number of folds.
            fold: the fold to test on, from 0.
            seed: the seed of the hash; another one assigns keys differently.
        """

        test: float = Field(0.0, ge=0, lt=1)
        validation: float = Field(0.0, ge=0, lt=1)
        by: Names = ()
        stratify: Name | None = None
        values: int = Field(1_000, ge=1)
        time: Name | None = None
        test_from: float | str | None = None
        validation_from: float | str | None = None
        folds: int | None = Field(None, ge=2)
        fold: int = Field(0, ge=0)
        seed: int = Field(0, ge=0)

        @model_validator(mode="after")
        def _fitting(self) -> Self:
            shares = self.test + self.validation
            ways = [bool(shares), self.folds is not None, self.time is not None]
            if sum(ways) != 1:
                raise ValueError(
                    "expected one of test or validation (shares), folds, or time with test_from"
                )
            if shares >= 1:
                raise ValueError(f"expected test and validation below 1 together, got {shares:g}")
            if self.by and self.stratify:
                raise ValueError("expected by or stratify, got both: a key has one part")
            if self.time is not None and self.test_from is None and self.validation_from is None:
                raise ValueError("expected test_from or validation_from beside time")
            if self.folds is not None and self.fold >= self.folds:
                raise ValueError(f"expected a fold from 0 to {self.folds - 1}, got {self.fold}")
            return self

    def __init__(self, name: str, settings: Split.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Split.Settings = settings
        self._counts = pl.DataFrame(schema={"value": pl.UInt64(), "count": pl.Int64()})
        self._kind: pl.DataType = pl.Null()
        self._rows = np.zeros(len(PARTS), np.int64)

    def bind(self, schema: Schema) -> Schema:
        """Raises: UserError for a column that is not there, or a time that is none."""
        settings = self.settings
        needed = [*settings.by, *filter(None, (settings.stratify, settings.time))]
        require(schema, needed, where=self.where)
        if settings.time is not None:
            self._kind = schema[settings.time]
            for key in ("validation_from", "test_from"):
                self._bound(key)
        return extended(
            schema, {PART: KIND}, where=self.where, remedy="take out one of the two 'split' stages"
        )

    def apply(self, batch: Batch) -> Batch:
        frame = batch.frame
        parts = self._parts(frame)
        part = pl.Series(PART, PARTS, KIND).gather(parts)
        rows = np.bincount(parts, minlength=len(PARTS))
        self._rows += rows
        counts = dict(zip(PARTS[1:], rows[1:].tolist(), strict=True))
        return batch.with_frame(frame.hstack([part])).counted(self.name, **counts)

    def remarks(self) -> list[str]:
        """Return a sentence for each share that no row came to, of enough rows to tell."""
        total = int(self._rows.sum())
        return [
            f"{self.where} put none of {total:,} rows into {name}: all rows of a key go together, "
            "and there are few; another seed assigns them otherwise, 'folds' one after the other."
            for name, share, rows in zip(PARTS[1:], self._shares, self._rows[1:], strict=True)
            if self.settings.by and share and not rows and total > ENOUGH
        ]

    def snapshot(self) -> Snapshot:
        """Return the rows seen of each value, by its hash; None if parts need no counting."""
        return {"counts": self._counts} if self._counting else None

    def restore(self, value: Snapshot) -> None:
        if value is not None:
            self._counts = value["counts"]

    def transforms(self) -> Sequence[Transform] | None:
        """Return no transform: it changes no value."""
        return ()

    # -------------------------------------------------------------------------------------- inside

    @property
    def _counting(self) -> bool:
        settings = self.settings
        return settings.stratify is not None or (settings.folds is not None and not settings.by)

    def _parts(self, frame: pl.DataFrame) -> NDArray[np.int64]:
        """Return the part of each row as its index in `PARTS`, shape (n,)."""
        settings = self.settings
        if settings.time is not None:
            return self._by_time(frame.get_column(settings.time))
        if settings.folds is not None:
            number = self._turns(frame) if self._counting else self._hashes(frame)
            return np.where(number % np.uint64(settings.folds) == settings.fold, 2, 0)
        if self._counting:
            at = self._turns(frame).astype(np.float64)
            dealt = [np.floor((at + 1) * s) - np.floor(at * s) for s in self._shares]
            return np.where(dealt[1] > 0, 2, np.where(dealt[0] > 0, 1, 0))
        point = self._hashes(frame).astype(np.float64) / WHOLE
        validation, test = self._shares
        return np.where(point < test, 2, np.where(point < test + validation, 1, 0))

    @property
    def _shares(self) -> tuple[float, float]:
        return self.settings.validation, self.settings.test

    def _hashes(self, frame: pl.DataFrame) -> Hashes:
        """Return hashes of the key and the seed, shape (n,)."""
        keys = frame.select(self.settings.by or RESERVED)
        seed = pl.lit(self.settings.seed, dtype=pl.Int64).alias("_seed")
        return hashes(keys.with_columns(seed))

    def _turns(self, frame: pl.DataFrame) -> NDArray[np.uint64]:
        """Return how many rows with the same value came before each row, shape (n,)."""
        settings = self.settings
        n = frame.height
        if settings.stratify is None:
            value = np.zeros(n, np.uint64)
        else:
            value = hashes(frame.select(settings.stratify))
        rows = pl.DataFrame({"value": value})
        # In the order of their first rows, values get a count of their own while there is room; so
        # which do does not depend on where a batch ends.
        known = self._counts["value"].filter(self._counts["value"] != 0)
        seen = rows["value"].unique(maintain_order=True)
        fresh = seen.filter(~seen.is_in(known.implode())).head(settings.values - len(known))
        own = pl.concat([known, fresh])
        own_value = pl.when(pl.col("value").is_in(own.implode())).then(pl.col("value")).otherwise(0)
        rows = rows.select(own_value.cast(pl.UInt64).alias("value"))
        rows = rows.with_columns(pl.int_range(pl.len()).over("value").alias("turn"))
        before = rows.join(self._counts, on="value", how="left", maintain_order="left")
        turns = before["turn"] + before["count"].fill_null(0)
        new = rows.group_by("value", maintain_order=True).len("count").cast({"count": pl.Int64})
        both = pl.concat([self._counts, new]).group_by("value", maintain_order=True)
        self._counts = both.agg(pl.col("count").sum())
        return turns.cast(pl.UInt64).to_numpy()

    def _by_time(self, times: pl.Series) -> NDArray[np.int64]:
        test, validation = self._bound("test_from"), self._bound("validation_from")
        parts = np.zeros(len(times), np.int64)
        for number, first in ((1, validation), (2, test)):
            if first is not None:
                parts[(times >= first).fill_null(False).to_numpy()] = number
        return parts

    def _bound(self, key: str) -> Any:
        """Return a time in the column's units."""
        value = getattr(self.settings, key)
        if value is None:
            return None
        try:
            read = pl.Series([value])
            if isinstance(value, str) and self._kind.is_temporal():
                read = read.str.to_datetime(strict=True).cast(self._kind)
            else:
                read = read.cast(self._kind)
            return read.item()
        except pl.exceptions.PolarsError:
            raise UserError(
                f"{self.where} {key} expects a value of column '{self.settings.time}' "
                f"({type_name(self._kind)}), got '{value}'."
            ) from None


__all__ = ["KIND", "PARTS", "Split"]
