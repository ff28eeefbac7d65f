"""What the stages have in common: names for error sentences, and state that is a value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
from pydantic import Field

from engine.statistics import Statistic
from engine.types import Settings, Snapshot


class LearnSettings(Settings):
    """Settings of every stage that learns.

    Attributes:
        learn: false applies what a checkpoint holds and learns nothing more.
        freeze_after: rows after which nothing more is learned; exact to the row.
    """

    learn: bool = True
    freeze_after: int | None = Field(None, ge=1)

    def open(self, rows: int) -> int | None:
        """How many more rows may be learned after `rows`; None for all."""
        if not self.learn:
            return 0
        return None if self.freeze_after is None else max(self.freeze_after - rows, 0)


class Stateless:
    """A stage without state."""

    def __init__(self, name: str, settings: Any) -> None:
        self.name = name
        self.settings = settings

    @property
    def where(self) -> str:
        """How error sentences name the stage."""
        return f"[scrub.{self.name}]"

    def snapshot(self) -> Snapshot:
        """None."""
        return None

    def restore(self, value: Snapshot) -> None:
        """Nothing to go back to."""
        assert value is None


class Learned(Stateless):
    """A stage whose state is one statistic over its columns and the number of rows it has seen.

    `bind` of the stage sets `_columns` and calls `_begin`; its `apply` ends with `_learn`.
    """

    _columns: Sequence[str] = ()
    _statistic: Statistic | None = None
    _rows = 0

    def _begin(self, statistic: Statistic | None) -> None:
        if self._statistic is None:
            self._statistic = statistic

    def _learn(self, frame: pl.DataFrame) -> None:
        if self._statistic is None:
            return
        left = self.settings.open(self._rows)
        rows = frame[list(self._columns)].head(frame.height if left is None else left)
        if rows.height:
            self._statistic = self._statistic.update(rows)
            self._rows += rows.height

    def snapshot(self) -> Snapshot:
        """``rows`` and the statistic's fields; None where nothing is ever learned."""
        return self._statistic and {"rows": self._rows, **self._statistic.snapshot()}

    def restore(self, value: Snapshot) -> None:
        """Go back to what `snapshot` gave; the stage must be bound."""
        if self._statistic is None:
            assert value is None
            return
        fields = dict(value)
        self._rows = fields.pop("rows")
        self._statistic = self._statistic.restore(fields)


__all__ = ["LearnSettings", "Learned", "Stateless"]
