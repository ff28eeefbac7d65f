"""The values of a category by their code, and those that wait for one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import polars as pl

from engine.types.arrays import Ints


def _no_values() -> pl.Series:
    return pl.Series(dtype=pl.String)


def _no_times() -> Ints:
    return np.empty(0, np.int64)


def _nothing() -> pl.DataFrame:
    return pl.DataFrame(schema={"value": pl.String, "count": pl.Int64, "seen": pl.Int64})


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """A value: learning makes a new one.

    Attributes:
        values: text, that of code i + 1 at i; null where a code is free.
        seen: the newest time at which each was seen, shape (values,).
        waiting: values without a code, in the order in which they came: ``value``, ``count`` of
            rows, ``seen``.
        left: values that have lost their code.
        reused: codes that another value had before.
        dropped: values that wait no more because too many did.
    """

    values: pl.Series = field(default_factory=_no_values)
    seen: Ints = field(default_factory=_no_times)
    waiting: pl.DataFrame = field(default_factory=_nothing)
    left: int = 0
    reused: int = 0
    dropped: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """What became of codes and of values that wait, so far."""
        return {"forgotten": self.left, "reused": self.reused, "dropped": self.dropped}

    def codes(self, text: pl.Series) -> pl.Series:
        """Return the code of each text, Int64; 0 for null and for one without a code."""
        values, numbers = self.values, np.arange(1, len(self.values) + 1)
        if values.null_count():
            there = values.is_not_null()
            values, numbers = values.filter(there), numbers[there.to_numpy()]
        if not len(values):
            return pl.Series(text.name, np.zeros(len(text), np.int64))
        return text.replace_strict(values, numbers, default=0, return_dtype=pl.Int64)

    def learned(
        self,
        text: pl.Series,
        codes: pl.Series,
        times: Ints,
        *,
        size: int,
        min_count: int,
        newest: int,
        idle: int | None,
    ) -> Vocabulary:
        """Return the vocabulary after some rows.

        Args:
            text, codes: of the rows.
            times: when each came, shape (n,).
            size: the most codes.
            min_count: rows of a value before it gets one.
            newest: the time by now; what was seen later was seen now.
            idle: values not seen for longer lose theirs; None keeps them.
        """
        oldest = None if idle is None else newest - idle
        full = len(self.values) >= size and not self.values.null_count()
        if oldest is None and (full or bool((codes > 0).all())):
            return self
        kept = self
        if oldest is not None:
            times = np.minimum(times, newest)
            kept = self._until(newest)._without_idle(codes.to_numpy(), times, oldest)
        unknown = (codes == 0) & text.is_not_null()
        came = pl.DataFrame({"value": text, "seen": times}).filter(unknown)
        if came.is_empty() and (oldest is None or kept.waiting.is_empty()):
            return kept
        return kept._with(came, size=size, min_count=min_count, oldest=oldest)

    def known(self) -> tuple[str, ...]:
        """Return the values in the order of their codes, for a table in which the last place of a
        value counts: a free code has a value of a higher code, and there is none at the end."""
        filled = self.values.fill_null(strategy="backward").drop_nulls()
        texts: list[str] = filled.to_list()
        return tuple(texts)

    def snapshot(self) -> dict[str, Any]:
        """Return the state as a plain value."""
        return {
            "values": self.values,
            "seen": self.seen,
            "waiting": self.waiting,
            "left": self.left,
            "reused": self.reused,
            "dropped": self.dropped,
        }

    @classmethod
    def restored(cls, value: Mapping[str, Any]) -> Self:
        """Return the vocabulary of a `snapshot`."""
        return cls(**value)

    def _until(self, newest: int) -> Vocabulary:
        """Return the vocabulary without times after the newest: they were wrong."""
        waiting = self.waiting.with_columns(pl.col("seen").clip(upper_bound=newest))
        return replace(self, seen=np.minimum(self.seen, newest), waiting=waiting)

    def _without_idle(self, codes: Ints, times: Ints, oldest: int) -> Vocabulary:
        """Return the vocabulary with the newest times, and without the values that are too old."""
        seen = self.seen.copy()
        has_code = codes > 0
        np.maximum.at(seen, codes[has_code] - 1, times[has_code])
        idle = (seen < oldest) & self.values.is_not_null().to_numpy()
        values = self.values.set(pl.Series(idle), None) if idle.any() else self.values
        return replace(self, values=values, seen=seen, left=self.left + int(idle.sum()))

    def _with(
        self, came: pl.DataFrame, *, size: int, min_count: int, oldest: int | None
    ) -> Vocabulary:
        """Return the vocabulary with values that had no code: those that came often enough get
        one, while there is any."""
        rows = came.with_columns(pl.lit(1, pl.Int64).alias("count"), pl.lit(True).alias("here"))
        known = self.waiting.with_columns(pl.lit(False).alias("here"))
        every = pl.concat([known, rows.select(known.columns)])
        every = every.group_by("value", maintain_order=True).agg(
            pl.col("count").sum(), pl.col("seen").max(), pl.col("here").any()
        )
        ready = pl.col("here") & (pl.col("count") >= min_count)
        free = np.flatnonzero(self.values.is_null().to_numpy())
        admitted = every.filter(ready).head(size - len(self.values) + len(free))
        waiting = every.drop("here").join(admitted, on="value", how="anti", maintain_order="left")
        if oldest is not None:
            waiting = waiting.filter(pl.col("seen") >= oldest)
        values, seen = self._filled(admitted, free, size)
        newest = waiting.sort("seen", maintain_order=True).tail(size if min_count > 1 else 0)
        return replace(
            self,
            values=values,
            seen=seen,
            waiting=newest,
            reused=self.reused + max(0, len(admitted) - (size - len(self.values))),
            dropped=self.dropped + (len(waiting) - len(newest) if min_count > 1 else 0),
        )

    def _filled(self, admitted: pl.DataFrame, free: Ints, size: int) -> tuple[pl.Series, Ints]:
        """Return values and times with these in new codes, and then in free ones: a code that
        another value had stands for what was learned of that."""
        new, room = len(admitted), size - len(self.values)
        values = pl.concat([self.values, admitted["value"].rename(self.values.name)])
        seen = np.append(self.seen, admitted["seen"].to_numpy())
        if new <= room:
            return values, seen
        at = np.arange(len(self.values) + room)
        at[free[: new - room]] = len(self.values) + room + np.arange(new - room)
        return values.gather(at), seen[at]


__all__ = ["Vocabulary"]
