"""Test-then-train evaluation: the error of predictions made before the row was learned, beside
no-change baselines.

Gama, Sebastiao & Rodrigues, "On Evaluating Stream Learning Algorithms" (Machine Learning, 2013). A
model that cannot beat "the same as last time" has learned nothing worth serving, so that always
stands beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from engine import types
from engine.columnar.row_expressions import Condition
from engine.quality.baselines import Baselines
from engine.quality.groups import WHOLE, Groups
from engine.quality.history import ErrorHistory
from engine.quality.scored_rows import ScoredRows, concatenated
from engine.types import Features, Name, Schema, Snapshot, UserError, require
from engine.types.arrays import Floats, Ints
from engine.types.changes import Free, Learned

FLUSH_ROWS = 16_384
"""Rows are buffered up to this number and summed together, which makes evaluation nearly free
per batch."""


class Evaluation:
    """Sums over all rows, over each slice and over time, and the newest rows for the window.

    Of several targets each label of a row counts: over all of them, and over each target, which is
    reported as a slice of its name.

    What is summed when depends on the batches alone, not on who asks when, so a resumed run ends
    with the same bits.

    Args:
        settings: baselines, slices, window, time.
        features: task and classes.
        baselines: the learner's own, see `engine.types.Learner.baselines`.

    Attributes:
        threshold: of class 1, for the rows that are summed from now on.
    """

    class Settings(types.Settings):
        """``[evaluation]``

        Attributes:
            window [rows]: newest rows that "window" figures are over.
            baselines: name -> column with that baseline's prediction (regression), as it is before
                the stages that a model file contains. The last value is always among them; for
                classes, the majority class and the last class.
            slices: name -> SQL condition over the batch's columns, as they are before those
                stages; figures for the rows where it holds.
            time: event time column of the history; rows are counted unless given.
            every: a history step: a duration ("7d") with `time`, else a number of rows.
            at_precision: the precision that ``recall_at_precision`` is reported at.
        """

        window: Free[int] = Field(10_000, ge=1)
        baselines: Learned[dict[str, str]] = Field(default_factory=dict)
        slices: Free[dict[str, str]] = Field(default_factory=dict)
        time: Learned[Name | None] = None
        every: Learned[str | int] = 10_000
        at_precision: Free[float] = Field(0.5, gt=0, le=1)

    def __init__(
        self, settings: Evaluation.Settings, features: Features, baselines: Sequence[str] = ()
    ) -> None:
        self.settings = settings
        self._features = features
        self._regression = features.task == "regression"
        self._classes = features.classes
        self._several = bool(features.targets)
        self.threshold = features.threshold
        if settings.baselines and not self._regression:
            raise UserError("[evaluation] baselines are columns of numbers: they fit a regression.")
        if settings.baselines and self._several:
            raise UserError(
                "[evaluation] baselines are predictions of one target, and [model] target names "
                f"{len(features.targets)}: take them out."
            )
        classes = None if self._regression else len(self._classes)
        self._baselines = tuple(
            Baselines(settings.baselines, baselines, classes=classes)
            for _ in features.targets or (features.target,)
        )
        names = self._baselines[0].names
        self._groups = Groups(settings.slices, features, names, at_precision=settings.at_precision)
        self._history = ErrorHistory(["model", *names], settings.time, settings.every)
        self._pending: list[ScoredRows] = []
        self._window: list[ScoredRows] = []
        self._rows = 0
        self._needed: list[str] = []

    def bind(self, schema: Schema) -> None:
        """Raises: UserError for a column that is not there, or a condition that is none."""
        settings = self.settings
        require(schema, settings.baselines.values(), where="[evaluation] baselines")
        needed = dict.fromkeys([*settings.baselines.values(), *self._groups.bind(schema)])
        if settings.time is not None:
            require(schema, [settings.time], where="[evaluation] time")
            needed[settings.time] = None
        if (settings.time is None) != isinstance(settings.every, int):
            raise UserError(
                "[evaluation] every expects a duration ('7d') where time is given, else a number "
                f"of rows; got {settings.every!r}."
            )
        self._needed = list(needed)

    @property
    def needed(self) -> Sequence[str]:
        """The columns that baselines, slices and time read."""
        return self._needed

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """The bound conditions of the slices."""
        return self._groups.conditions

    def update(
        self,
        frame: pl.DataFrame,
        target: NDArray[Any],
        scores: NDArray[np.float64],
        raw: pl.DataFrame | None = None,
        baselines: Mapping[str, Ints] = MappingProxyType({}),
        before: Floats | None = None,
    ) -> None:
        """Add rows with their labels and the scores they had before they were learned.

        Args:
            frame: n rows with the bound columns.
            target: float32 numbers or int64 class numbers, shape (n,).
            scores: as in `engine.types.Step`; a row without a finite one counts nowhere.
            raw: the rows as `Batch.raw` has them: what is there is taken from there.
            baselines: as in `engine.types.Step`.
            before: the newest label that was known when each row came, NaN for none, shape (n,);
                that of the row before it, unless given.
        """
        if not len(target):
            return
        if self._pending and self._pending[-1].knows_before != (before is not None):
            self._flush()
        seen = frame[self._needed] if self._needed else pl.DataFrame()  # [] would select no rows
        if raw is not None and self._needed:
            seen = seen.with_columns(raw.select(c for c in self._needed if c in raw.columns))
        seen = self._baselines[0].beside(seen, baselines, len(target), before)
        self._pending.append(ScoredRows(frame=seen, target=target, scores=scores))
        if sum(map(len, self._pending)) >= FLUSH_ROWS:
            self._flush()

    def report(self) -> dict[str, Any]:
        """Return ``{"rows", "all": {...}, "window": {...}, "slices": {name: {...}},
        "classes"}``; each with its rows, the task's metrics, ``baselines`` and ``prior`` (the
        window without rows and prior); over all rows also ``reliability`` and ``by_class``."""
        now = self._flushed()
        groups = now._groups.figures()
        return {
            "rows": now._rows,
            "all": groups.pop(WHOLE),
            "window": now._newest(),
            "slices": groups,
            "classes": list(self._classes),
            "at_precision": self.settings.at_precision,
            "threshold": self.threshold,
        }

    def history(self) -> pl.DataFrame:
        """Return the error per step: columns ``time`` (or first row), ``rows``, ``model`` and
        one per baseline, with the mean absolute error or the share of wrong classes."""
        return self._flushed()._history.means()

    def set_classes(self, classes: Sequence[str], sources: Sequence[int]) -> None:
        """Count these classes from now on; see `engine.types.Learner.set_classes`."""
        before, moved = len(self._classes), np.asarray(sources, np.int64)
        only_added = len(moved) >= before and (moved[:before] == np.arange(before)).all()
        if not only_added:
            if self._pending:
                self._flush()
            self._window = [rows.renumbered(moved, before) for rows in self._window]
        self._baselines[0].set_classes(moved, before)
        self._groups.set_classes(classes, moved)
        self._classes = tuple(classes)

    @property
    def newest_label(self) -> float | None:
        """The label of the newest row, as a number or that of its class; NaN before the first, None
        of several targets."""
        if self._several:
            return None
        return float(self._pending[-1].target[-1]) if self._pending else self._baselines[0].last

    @property
    def nbytes(self) -> int:
        """The bytes of the window and of buffered rows."""
        return sum(rows.nbytes for rows in (*self._window, *self._pending))

    def state_dict(self) -> dict[str, Snapshot]:
        """Return the state as a plain value."""
        return {
            "groups": self._groups.snapshot(),
            "history": self._history.sums,
            "aside": [rows.snapshot() for rows in self._pending],
            "window": [rows.snapshot() for rows in self._window],
            "rows": self._rows,
            **self._baselines[0].snapshot(),
            **(
                {"others": [one.snapshot() for one in self._baselines[1:]]} if self._several else {}
            ),
        }

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Restore a state. A slice continues if its name and condition are the same; others
        begin with the next row, with a warning."""
        kept = self._groups.restore(state["groups"])
        self._history.sums = state["history"]
        self._pending = list(map(ScoredRows.restore, state["aside"]))
        self._window = list(map(ScoredRows.restore, state["window"]))
        self._rows = state["rows"]
        for own, saved in zip(self._baselines, (state, *state.get("others", ())), strict=True):
            own.restore(saved)
        if kept is not None and self._pending:  # they have the columns of the slices of then
            self._flush(kept)

    # -------------------------------------------------------------------------------------- inside

    def _flushed(self) -> Evaluation:
        """Return a copy with everything summed; the original is unchanged."""
        if not self._pending:
            return self
        now = copy.copy(self)
        now._groups, now._history = copy.copy(self._groups), copy.copy(self._history)
        now._baselines = tuple(map(copy.copy, self._baselines))
        now._flush()
        return now

    def _flush(self, slices: Collection[str] | None = None) -> None:
        """Sum the buffered rows, for these slices or for all."""
        rows = concatenated(self._pending, len(self._classes))
        added = [
            self._sum(rows.of_target(number), number, slices)
            for number in range(len(self._baselines))
        ]
        self._rows += max(added)
        self._pending = []

    def _sum(self, rows: ScoredRows, target: int, slices: Collection[str] | None) -> int:
        """Sum rows with a label of one target; return how many had a score.

        Args:
            target: its number.
        """
        if not len(rows):
            return 0
        baselines = self._baselines[target].predictions(rows.frame, rows.target)
        if not (scored := rows.scored).all():  # model and baselines are compared on the same rows
            rows, baselines = rows.only(scored), baselines[scored]
        self._groups.add(rows, baselines, self.threshold, target=target, slices=slices)
        self._remember(rows, baselines)
        errors = rows.errors(baselines, self._features, self.threshold)
        self._history.add(rows, errors, self._rows)
        return len(rows)

    def _remember(self, rows: ScoredRows, baselines: NDArray[Any]) -> None:
        """Add rows to the window, with the baselines' predictions for a frame."""
        guesses = pl.DataFrame(baselines, schema=list(map(str, range(baselines.shape[1]))))
        window = [
            *self._window,
            ScoredRows(frame=guesses, target=rows.target, scores=rows.scores),
        ]
        while sum(map(len, window[1:])) >= self.settings.window:
            window = window[1:]
        self._window = window

    def _newest(self) -> dict[str, Any]:
        """Return the figures of the window; {} before the first row."""
        if not self._window:
            return {}
        rows = concatenated(self._window, len(self._classes)).newest(self.settings.window)
        return self._groups.figures_of(rows, rows.frame.to_numpy(), self.threshold)


__all__ = ["Evaluation"]
