"""Figures by group: over all rows, over the rows with each target, and over each slice."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.columnar.row_expressions import Condition
from engine.quality.measures import (
    ClassificationSums,
    QuantileSums,
    RegressionSums,
    reliability,
)
from engine.quality.scored_rows import ScoredRows
from engine.types import Features, Schema, Snapshot, UserError
from engine.types.arrays import Bools, Ints

WHOLE = "all"
"""The group of all rows."""
Sums = RegressionSums | ClassificationSums
log = logging.getLogger("headrace.evaluation")


class Groups:
    """Sums over all rows, over the rows with each of several targets, and over each slice.

    Args:
        slices: name -> SQL condition.
        features: the task, the targets and the classes so far.
        baselines: the names of the baselines, in the order of their predictions.
        at_precision: the precision that the recall is reported at.

    Attributes:
        conditions: name -> bound condition of a slice.

    Raises: UserError for a slice with the name of another group.
    """

    def __init__(
        self,
        slices: Mapping[str, str],
        features: Features,
        baselines: Sequence[str],
        *,
        at_precision: float,
    ) -> None:
        if WHOLE in slices:
            raise UserError(
                f"[evaluation.slices] {WHOLE} is what all rows together are called: expected "
                "another name."
            )
        for name in features.targets:
            if name in slices:
                raise UserError(
                    f"[evaluation.slices] {name} is what the rows with that target are called: "
                    "expected another name."
                )
        self._slices = slices
        self._targets = features.targets
        self._baselines = list(baselines)
        self._at_precision = at_precision
        self._regression = features.task == "regression"
        self._power = features.deviance_power if self._regression else None
        self._quantiles = features.quantiles
        self._grows = features.max_classes > 0
        self._classes: tuple[str, ...] = tuple(features.classes)
        self._sums = {name: self._empty() for name in (WHOLE, *self._targets, *slices)}
        """Replaced, never changed."""
        self.conditions: dict[str, Condition] = {}
        self._failed = set[str]()

    def bind(self, schema: Schema) -> Collection[str]:
        """Return the columns that slices read. Raises: UserError for a condition that is none."""
        needed: dict[str, None] = {}
        for name, sql in self._slices.items():
            self.conditions[name] = Condition(sql, schema, where=f"[evaluation.slices] {name}")
            needed |= dict.fromkeys(sorted(self.conditions[name].columns))
        return needed

    def add(
        self,
        rows: ScoredRows,
        baselines: NDArray[Any],
        threshold: float,
        *,
        target: int,
        slices: Collection[str] | None = None,
    ) -> None:
        """Add rows with a label of one target.

        Args:
            baselines: their predictions, shape (n, p).
            threshold: of class 1.
            target: its number.
            slices: the only ones that these rows count for; None for all.
        """
        chosen: dict[str, Bools | None] = dict.fromkeys((WHOLE, *self._targets[target:][:1]))
        for name, condition in self.conditions.items():
            if slices is None or name in slices:
                chosen[name] = self._holds(name, condition, rows.frame)
        self._sums = self._sums | {
            name: _added(self._sums[name], rows, baselines, threshold, mask)
            for name, mask in chosen.items()
        }

    def _holds(self, name: str, condition: Condition, frame: pl.DataFrame) -> Bools:
        """Return which rows are in a slice; warn once if a row can not be told."""
        mask, failures = condition.holds(frame)
        if failures and name not in self._failed:
            self._failed.add(name)
            log.warning(
                "[evaluation.slices] %s fails on a row, which is left out of the slice, as others "
                "like it are: %s",
                name,
                next(iter(failures.values())),
            )
        holds: Bools = mask.to_numpy()
        return holds

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return name -> rows, the task's metrics, ``baselines`` and ``prior``; of all rows also
        ``reliability`` and ``by_class``."""
        groups = {
            name: figures if name in self._targets else self._pooled(figures)
            for name, sums in self._sums.items()
            for figures in [self._of(sums)]
        }
        whole = groups[WHOLE]
        if self._targets:
            each = [groups[name].get("r2", math.nan) for name in self._targets]
            whole["r2"] = sum(each) / len(each)
        if isinstance(sums := self._sums[WHOLE], ClassificationSums):
            whole["reliability"] = reliability(sums.histogram)
            figures = sums.by_class(self._at_precision)
            whole["by_class"] = dict(zip(self._classes, figures, strict=True))
        return groups

    def figures_of(
        self, rows: ScoredRows, baselines: NDArray[Any], threshold: float
    ) -> dict[str, Any]:
        """Return the task's metrics and ``baselines`` over these rows alone."""
        sums = _added(self._empty(), rows, baselines, threshold)
        figures = self._pooled(self._metrics(sums))
        return {**figures, "baselines": sums.baselines(self._baselines)}

    def set_classes(self, classes: Sequence[str], sources: Ints) -> None:
        """Count these classes from now on; see `engine.types.Learner.set_classes`."""
        self._sums = {
            name: sums.renumbered(sources) if isinstance(sums, ClassificationSums) else sums
            for name, sums in self._sums.items()
        }
        self._classes = tuple(classes)

    def snapshot(self) -> list[Snapshot]:
        """Return the sums as plain values."""
        return [
            {"name": name, "where": self._where(name), "sums": sums.snapshot()}
            for name, sums in self._sums.items()
        ]

    def restore(self, value: Sequence[Snapshot]) -> Collection[str] | None:
        """Restore a `snapshot`. A group continues if its name and condition are the same; others
        begin with the next row, with a warning. Return those that continue; None if all do."""
        sums_class = type(self._sums[WHOLE])
        saved = {(group["name"], group["where"]): group["sums"] for group in value}
        places = {name: (name, self._where(name)) for name in self._sums}
        same = {name: saved[place] for name, place in places.items() if place in saved}
        restored = {name: sums_class.restore(sums) for name, sums in same.items()}
        self._sums = {**self._sums, **restored}
        if len(same) == max(len(saved), len(self._sums)):
            return None
        _warn_of_changes([name for name, _ in saved], list(self._sums), list(same))
        return list(same)

    def _where(self, name: str) -> str:
        """Return the condition of a group."""
        return self._slices.get(name, "")

    def _empty(self) -> Sums:
        p = len(self._baselines)
        if self._quantiles:
            return QuantileSums.of(p + 1, self._quantiles)
        if self._regression:
            return RegressionSums.empty(p + 1, self._power)
        return ClassificationSums.empty(len(self._classes), p, grows=self._grows)

    def _of(self, sums: Sums) -> dict[str, Any]:
        baselines = sums.baselines(self._baselines)
        figures: dict[str, Any] = {
            "rows": sums.rows,
            **self._metrics(sums),
            "baselines": baselines,
        }
        if isinstance(sums, ClassificationSums):
            figures["prior"] = sums.prior_metrics()
        return figures

    def _metrics(self, sums: Sums) -> dict[str, Any]:
        if isinstance(sums, ClassificationSums):
            return sums.metrics(self._at_precision)
        return sums.metrics()

    def _pooled(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Return figures over several targets, without R2: how far apart the targets lie says
        nothing of the model."""
        return {k: v for k, v in metrics.items() if k != "r2"} if self._targets else metrics


def _added(
    sums: Sums,
    rows: ScoredRows,
    baselines: NDArray[Any],
    threshold: float,
    mask: Bools | None = None,
) -> Sums:
    target, scores = rows.target, rows.scores
    if mask is not None:
        target, scores, baselines = target[mask], scores[mask], baselines[mask]
    if isinstance(sums, RegressionSums):
        return sums.add(target.astype(np.float64), np.column_stack([scores, baselines]))
    return sums.add(target, scores, baselines, threshold)


def _warn_of_changes(before: Sequence[str], now: Sequence[str], same: Sequence[str]) -> None:
    for name in dict.fromkeys([*before, *now]):
        if name not in same:
            what = "has another condition than before: it begins anew"
            if name not in before:
                what = "is new: it begins"
            if name not in now:
                what = "is no longer there: its figures end"
            log.warning("[evaluation.slices] %s %s with the next row.", name, what)


__all__ = ["WHOLE", "Groups"]
