"""Test-then-train evaluation: the error of predictions made before the row was learned, beside
no-change baselines.

Gama, Sebastiao & Rodrigues, "On Evaluating Stream Learning Algorithms" (Machine Learning, 2013). A
model that cannot beat "the same as last time" has learned nothing worth serving, so that always
stands beside it.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PolarsError
from pydantic import Field

from engine import types
from engine.columnar.expressions import expression
from engine.quality.baselines import Baselines, new_numbers
from engine.quality.history import add_errors, mean_errors
from engine.quality.measures import (
    ClassificationSums,
    RegressionSums,
    finite_rows,
    reliability,
)
from engine.types import (
    Features,
    Name,
    Schema,
    Snapshot,
    UserError,
    first_line,
    predicted_classes,
    require,
)
from engine.types.arrays import Floats, Ints
from engine.types.changes import Free, Learned

FLUSH_ROWS = 16_384
"""Rows are buffered up to this number and summed together, which makes evaluation nearly free
per batch."""
WHOLE = "all"
"""The group of all rows."""
log = logging.getLogger("headrace.evaluation")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRows:
    """Buffered rows: a frame of the required columns, targets (n,), scores (n,) or (n, k). Of
    several targets both are (n, k), a target NaN where a row has none."""

    frame: pl.DataFrame
    target: NDArray[Any]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.target)


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
        self._grows = features.max_classes > 0
        self._regression = features.task == "regression"
        self._power = features.deviance_power if self._regression else None
        self._classes = len(features.classes)
        self._names = features.classes
        self._targets = features.targets
        self.threshold = features.threshold
        if settings.baselines and not self._regression:
            raise UserError("[evaluation] baselines are columns of numbers: they fit a regression.")
        if WHOLE in settings.slices:
            raise UserError(
                f"[evaluation.slices] {WHOLE} is what all rows together are called: expected "
                "another name."
            )
        for name in self._targets:
            if name in settings.slices:
                raise UserError(
                    f"[evaluation.slices] {name} is what the rows with that target are called: "
                    "expected another name."
                )
        if settings.baselines and self._targets:
            raise UserError(
                "[evaluation] baselines are predictions of one target, and [model] target names "
                f"{len(self._targets)}: take them out."
            )
        classes = None if self._regression else self._classes
        self._baselines = tuple(
            Baselines(settings.baselines, baselines, classes=classes)
            for _ in self._targets or (features.target,)
        )
        groups = (WHOLE, *self._targets, *settings.slices)
        self._groups = {name: self._empty() for name in groups}
        self._history = pl.DataFrame()
        self._pending: list[ScoredRows] = []
        self._window: list[ScoredRows] = []
        self._rows = 0
        self._slices: dict[str, pl.Expr] = {}
        self._needed: list[str] = []

    def bind(self, schema: Schema) -> None:
        """Raises: UserError for a column that is not there, or a condition that is none."""
        settings = self.settings
        require(schema, settings.baselines.values(), where="[evaluation] baselines")
        needed = dict.fromkeys(settings.baselines.values())
        for name, sql in settings.slices.items():
            self._slices[name] = _condition(name, sql, schema)
            needed |= dict.fromkeys(self._slices[name].meta.root_names())
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
    def conditions(self) -> Mapping[str, pl.Expr]:
        """The bound conditions of the slices."""
        return self._slices

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
                that of the row before it, unless given. Always or never given.
        """
        if not len(target):
            return
        seen = frame.select(self._needed)
        if raw is not None:
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
        groups = {
            name: figures if name in self._targets else self._pooled(figures)
            for name, sums in now._groups.items()
            for figures in [now._group(sums)]
        }
        whole = groups.pop(WHOLE)
        if self._targets:
            each = [groups[name].get("r2", math.nan) for name in self._targets]
            whole["r2"] = sum(each) / len(each)
        if isinstance(sums := now._groups[WHOLE], ClassificationSums):
            whole["reliability"] = reliability(sums.histogram)
            figures = sums.by_class(self.settings.at_precision)
            whole["by_class"] = dict(zip(self._names, figures, strict=True))
        return {
            "rows": now._rows,
            "all": whole,
            "window": now._newest(),
            "slices": groups,
            "classes": list(self._names),
            "at_precision": self.settings.at_precision,
            "threshold": self.threshold,
        }

    def history(self) -> pl.DataFrame:
        """Return the error per step: columns ``time`` (or first row), ``rows``, ``model`` and
        one per baseline, with the mean absolute error or the share of wrong classes."""
        return mean_errors(self._flushed()._history, ["model", *self._baselines[0].names])

    def set_classes(self, classes: Sequence[str], sources: Sequence[int]) -> None:
        """Count these classes from now on; see `engine.types.Learner.set_classes`."""
        before, moved = self._classes, np.asarray(sources, np.int64)
        only_added = len(moved) >= before and (moved[:before] == np.arange(before)).all()
        if not only_added:
            if self._pending:
                self._flush()
            self._window = [_renumbered(rows, moved, before) for rows in self._window]
        self._baselines[0].set_classes(moved, before)
        self._groups = {
            name: sums.renumbered(moved) if isinstance(sums, ClassificationSums) else sums
            for name, sums in self._groups.items()
        }
        self._names, self._classes = tuple(classes), len(classes)

    @property
    def nbytes(self) -> int:
        """The bytes of the window and of buffered rows."""
        rows = [*self._window, *self._pending]
        return sum(r.target.nbytes + r.scores.nbytes + int(r.frame.estimated_size()) for r in rows)

    def state_dict(self) -> dict[str, Snapshot]:
        """Return the state as a plain value."""
        return {
            "groups": [
                {"name": name, "where": self._where(name), "sums": sums.snapshot()}
                for name, sums in self._groups.items()
            ],
            "history": self._history,
            "aside": _plain(self._pending),
            "window": _plain(self._window),
            "rows": self._rows,
            **self._baselines[0].snapshot(),
            **(
                {"others": [one.snapshot() for one in self._baselines[1:]]} if self._targets else {}
            ),
        }

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Restore a state. A slice continues if its name and condition are the same; others
        begin with the next row, with a warning."""
        sums_class = RegressionSums if self._regression else ClassificationSums
        saved = {(group["name"], group["where"]): group["sums"] for group in state["groups"]}
        places = {name: (name, self._where(name)) for name in self._groups}
        same = {name: saved[place] for name, place in places.items() if place in saved}
        self._groups |= {name: sums_class.restore(sums) for name, sums in same.items()}
        self._history = state["history"]
        self._pending, self._window = _rows(state["aside"]), _rows(state["window"])
        self._rows = state["rows"]
        for own, saved_one in zip(self._baselines, (state, *state.get("others", ())), strict=True):
            own.restore(saved_one)
        if len(same) < max(len(saved), len(self._groups)):
            _warn_of_changes([name for name, _ in saved], list(self._groups), list(same))
            if self._pending:  # they have the columns of the slices of then
                self._flush(list(same))

    # -------------------------------------------------------------------------------------- inside

    def _empty(self) -> RegressionSums | ClassificationSums:
        p = len(self._baselines[0].names)
        return (
            RegressionSums.empty(p + 1, self._power)
            if self._regression
            else ClassificationSums.empty(self._classes, p, grows=self._grows)
        )

    def _where(self, name: str) -> str:
        """Return the condition of a group."""
        return self.settings.slices.get(name, "")

    def _flushed(self) -> Evaluation:
        """Return a copy with everything summed; the original is unchanged."""
        if not self._pending:
            return self
        now = Evaluation.__new__(Evaluation)
        now.__dict__ = dict(self.__dict__)
        now._pending, now._window = list(self._pending), list(self._window)
        now._groups = dict(self._groups)
        now._baselines = tuple(map(copy.copy, self._baselines))
        now._flush()
        return now

    def _flush(self, slices: Collection[str] | None = None) -> None:
        """Sum the buffered rows, for these slices or for all."""
        rows = _concat(self._pending, self._classes)
        chosen = {n: e for n, e in self._slices.items() if slices is None or n in slices}
        added = [
            self._sum(
                _of_target(rows, number), number, (WHOLE, *self._targets[number:][:1]), chosen
            )
            for number in range(len(self._baselines))
        ]
        self._rows += max(added)
        self._pending = []

    def _sum(
        self, rows: ScoredRows, number: int, groups: Sequence[str], slices: Mapping[str, pl.Expr]
    ) -> int:
        """Sum rows with a label of one target; return how many had a score.

        Args:
            number: of the target.
            groups: that all of them are in.
        """
        if not len(rows):
            return 0
        baselines = self._baselines[number].predictions(rows.frame, rows.target)
        rows, baselines = _scored(rows, baselines)
        masks = rows.frame.select(e.alias(name) for name, e in slices.items())
        for name in groups:
            self._groups[name] = self._add(self._groups[name], rows, baselines, None)
        for name in slices:
            mask = masks[name].to_numpy()
            self._groups[name] = self._add(self._groups[name], rows, baselines, mask)
        self._remember(rows, baselines)
        return len(rows)

    def _add(
        self,
        sums: RegressionSums | ClassificationSums,
        rows: ScoredRows,
        baselines: NDArray[Any],
        mask: NDArray[np.bool_] | None,
    ) -> RegressionSums | ClassificationSums:
        target, scores = rows.target, rows.scores
        if mask is not None:
            target, scores, baselines = target[mask], scores[mask], baselines[mask]
        if isinstance(sums, RegressionSums):
            return sums.add(target.astype(np.float64), np.column_stack([scores, baselines]))
        return sums.add(target, scores, baselines, self.threshold)

    def _remember(self, rows: ScoredRows, baselines: NDArray[Any]) -> None:
        """Add errors to the history, rows to the window."""
        guesses = pl.DataFrame(baselines, schema=list(map(str, range(baselines.shape[1]))))
        self._window.append(ScoredRows(frame=guesses, target=rows.target, scores=rows.scores))
        while sum(map(len, self._window[1:])) >= self.settings.window:
            self._window = self._window[1:]
        steps, errors = self._steps(rows), self._errors(rows, baselines)
        names = ["model", *self._baselines[0].names]
        self._history = add_errors(self._history, steps, errors, names)

    def _errors(self, rows: ScoredRows, baselines: NDArray[Any]) -> NDArray[np.float64]:
        """Return the error of model and baselines, NaN where there is none, shape (n, 1 + p)."""
        if self._regression:
            predictions = np.column_stack([rows.scores, baselines])
            errors: NDArray[np.float64] = np.abs(predictions - rows.target[:, None])
            return errors
        predicted = predicted_classes(rows.scores, self.threshold)
        wrong = np.where(baselines >= 0, baselines != rows.target[:, None], np.nan)
        return np.column_stack([predicted != rows.target, wrong]).astype(np.float64)

    def _steps(self, rows: ScoredRows) -> pl.Series:
        every = self.settings.every
        if self.settings.time is None:
            assert isinstance(every, int)
            numbers = pl.int_range(self._rows, self._rows + len(rows), eager=True)
            return numbers // every * every
        return rows.frame.get_column(self.settings.time).dt.truncate(str(every))

    def _group(self, sums: RegressionSums | ClassificationSums) -> dict[str, Any]:
        baselines = sums.baselines(self._baselines[0].names)
        figures = self._metrics(sums)
        result: dict[str, Any] = {"rows": sums.rows, **figures, "baselines": baselines}
        if isinstance(sums, ClassificationSums):
            result["prior"] = sums.prior_metrics()
        return result

    def _metrics(self, sums: RegressionSums | ClassificationSums) -> dict[str, Any]:
        if isinstance(sums, ClassificationSums):
            return sums.metrics(self.settings.at_precision)
        return sums.metrics()

    def _pooled(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Return figures over several targets, without R2: how far apart the targets lie says
        nothing of the model."""
        return {k: v for k, v in metrics.items() if k != "r2"} if self._targets else metrics

    def _newest(self) -> dict[str, Any]:
        if not self._window:
            return {}
        rows = _concat(self._window, self._classes)
        n = self.settings.window
        newest = ScoredRows(
            frame=rows.frame.tail(n), target=rows.target[-n:], scores=rows.scores[-n:]
        )
        sums = self._add(self._empty(), newest, newest.frame.to_numpy(), None)
        return {
            **self._pooled(self._metrics(sums)),
            "baselines": sums.baselines(self._baselines[0].names),
        }


def _condition(name: str, sql: str, schema: Schema) -> pl.Expr:
    """Return a slice's condition. Raises: UserError where it is none."""
    try:
        expr = expression(sql, f"[evaluation.slices] {name}")
        require(schema, expr.meta.root_names(), where=f"[evaluation.slices] {name}")
        dtype = pl.DataFrame(schema=schema).select(expr).dtypes[0]
    except PolarsError as error:
        reason = first_line(error)
        raise UserError(
            f"[evaluation.slices] {name} = '{sql}' is no condition: {reason}."
        ) from None
    if dtype != pl.Boolean:
        raise UserError(f"[evaluation.slices] {name} = '{sql}' expects true or false, got {dtype}.")
    return expr.fill_null(False)


def _warn_of_changes(before: Sequence[str], now: Sequence[str], same: Sequence[str]) -> None:
    for name in dict.fromkeys([*before, *now]):
        if name not in same:
            what = "has another condition than before: it begins anew"
            if name not in before:
                what = "is new: it begins"
            if name not in now:
                what = "is no longer there: its figures end"
            log.warning("[evaluation.slices] %s %s with the next row.", name, what)


def _concat(parts: list[ScoredRows], classes: int) -> ScoredRows:
    """Return all rows; their classes are more now, where some came later."""
    return ScoredRows(
        frame=pl.concat([part.frame for part in parts]),
        target=np.concatenate([part.target for part in parts]),
        scores=np.concatenate([_widened(part.scores, classes) for part in parts]),
    )


def _of_target(rows: ScoredRows, number: int) -> ScoredRows:
    """Return the rows that have a label of this target."""
    if rows.target.ndim == 1:
        return rows
    target, scores = rows.target[:, number], rows.scores[:, number]
    there = np.isfinite(target)
    frame = rows.frame.filter(there) if rows.frame.width else rows.frame
    return ScoredRows(frame=frame, target=target[there], scores=scores[there])


def _widened(scores: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
    if scores.ndim == 1 or scores.shape[1] >= classes:
        return scores
    return np.pad(scores, ((0, 0), (0, classes - scores.shape[1])))


def _renumbered(rows: ScoredRows, sources: Ints, before: int) -> ScoredRows:
    """Return the rows with the classes' new numbers, without those of classes that have left."""
    numbers = new_numbers(sources, before)
    predicted = predicted_classes(rows.scores)
    target = numbers[rows.target]
    keep = (target >= 0) & ((predicted < 0) | (numbers[predicted] >= 0))
    scores = np.pad(_widened(rows.scores, before)[keep], ((0, 0), (0, 1)))
    scores = scores[:, np.where(sources < 0, before, sources)]
    guesses = rows.frame.select(
        pl.Series(name, numbers[rows.frame.get_column(name).to_numpy()])
        for name in rows.frame.columns
    )
    return ScoredRows(frame=guesses.filter(keep), target=target[keep], scores=scores)


def _scored(rows: ScoredRows, baselines: NDArray[Any]) -> tuple[ScoredRows, NDArray[Any]]:
    """Return the rows with a finite score: model and baselines are compared on the same rows."""
    there = finite_rows(rows.scores)
    if there.all():
        return rows, baselines
    frame = rows.frame.filter(there) if rows.frame.width else rows.frame
    target = rows.target[there]
    return ScoredRows(frame=frame, target=target, scores=rows.scores[there]), baselines[there]


def _plain(parts: list[ScoredRows]) -> Snapshot:
    return [{"frame": p.frame, "target": p.target, "scores": p.scores} for p in parts]


def _rows(value: Snapshot) -> list[ScoredRows]:
    return [ScoredRows(**part) for part in value]


__all__ = ["Evaluation"]
