"""``headrace folds``: cross-validation of a pipeline on data that ends.

The pipeline runs once for each fold. A row of the fold is predicted when it comes, by a model that
has learned the rows of all other folds that came before it, and is never learned: k-fold
cross-validation of a stream (Bifet, de Francisci Morales, Read, Holmes & Pfahringer, "Efficient
Online Evaluation of Big Data Stream Classifiers", KDD 2015). Every row is tested once.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from engine.config import Pipeline
from engine.quality.report import HEADLINE_METRICS
from engine.run import Run
from engine.running.loop import Loop
from engine.types import Batch, Mark, UserError

Watch = Callable[[Loop, Batch], None]
STAGE = "folds"
"""The stage that is added if the pipeline has no stage that splits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """The result of one fold.

    Attributes:
        number: from 0.
        rows: tested in it.
        figures: metric -> value over them.
        absent: classes that none of them has.
    """

    number: int
    rows: int
    figures: Mapping[str, float]
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Folds:
    """The result of a cross-validation.

    Attributes:
        folds: in order.
        stopped: a signal came before the last.
    """

    folds: tuple[Fold, ...]
    stopped: bool = False

    def mean(self, metric: str) -> float:
        """Return the mean over the folds where the metric is defined; NaN if it is in none."""
        values = self._defined(metric)
        return statistics.fmean(values) if values else math.nan

    def deviation(self, metric: str) -> float:
        """Return the standard deviation (n - 1) over those folds; NaN for fewer than two."""
        values = self._defined(metric)
        return statistics.stdev(values) if len(values) > 1 else math.nan

    def tables(self) -> Iterator[Table | str]:
        """Return tables for a terminal."""
        if not self.folds:
            return
        metrics = [name for name in HEADLINE_METRICS if all(name in f.figures for f in self.folds)]
        table = Table(title="cross-validation: predicted, never learned", title_justify="left")
        table.add_column("fold")
        for name in ("rows", *metrics):
            table.add_column(name, justify="right")
        for fold in self.folds:
            table.add_row(
                str(fold.number), f"{fold.rows:,}", *(f"{fold.figures[m]:.4f}" for m in metrics)
            )
        rows = f"{sum(fold.rows for fold in self.folds):,}"
        table.add_section()
        table.add_row("mean", rows, *(f"[bold]{self.mean(m):.4f}[/]" for m in metrics))
        table.add_row("deviation", "", *(f"{self.deviation(m):.4f}" for m in metrics))
        yield table
        for fold in self.folds:
            if fold.absent:
                yield (
                    f"Fold {fold.number} has no row of class {', '.join(map(repr, fold.absent))}: "
                    "what is said of it there counts for nothing; take fewer folds, or stratify "
                    "by the target."
                )

    def _defined(self, metric: str) -> list[float]:
        values = [fold.figures[metric] for fold in self.folds]
        return [value for value in values if math.isfinite(value)]


def folds(pipeline: Pipeline, count: int = 5, *, watch: Watch | None = None) -> Folds:
    """Run the pipeline once per fold, each in its own folder ``<folder>/folds/N``.

    Args:
        pipeline: one that trains. Its `split` stage with `folds` assigns the rows; without one, a
            stage that assigns them in turn is put first.
        count: the number of folds, if the pipeline does not set it.
        watch: as `Run` takes it.

    Raises: UserError if it does not train or its `split` has no folds, for a source without
        an end, and for what any run may find.
    """
    if pipeline.model is None:
        raise UserError(f"{pipeline.file} has no [model] to train: folds are for what learns.")
    table, stage = _dealt(pipeline, count)
    done: list[Fold] = []
    for number in range(table["scrub"][stage]["folds"]):
        run = Run(_fold(pipeline, table, stage, number), watch=_bounded(watch))
        summary = run.run(fresh=True)
        if summary.stopped:
            return Folds(folds=tuple(done), stopped=True)
        group = run.evaluation.report()["slices"].get("test", {})
        if group.get("rows"):
            done.append(_found(number, group, run.features.classes))
    return Folds(folds=tuple(done))


def _found(number: int, group: Mapping[str, Any], classes: tuple[str, ...]) -> Fold:
    absent: tuple[str, ...] = ()
    if "confusion" in group:
        counts = np.sum(group["confusion"], axis=1)
        absent = tuple(name for name, n in zip(classes, counts, strict=True) if not n)
    figures = {name: group[name] for name in HEADLINE_METRICS if name in group}
    return Fold(number=number, rows=group["rows"], figures=figures, absent=absent)


def _dealt(pipeline: Pipeline, count: int) -> tuple[dict[str, Any], str]:
    """Return the pipeline's table with a stage that assigns folds, and that stage's name."""
    table = pipeline.table()
    for name, stage in table["scrub"].items():
        if stage.get("kind", name) == "split":
            if "folds" not in stage:
                raise UserError(
                    f"[scrub.{name}] splits by share or time: expected folds = {count} there, or "
                    "no split stage at all."
                )
            return table, name
    if count < 2:
        raise UserError(f"Expected two folds or more, got {count}.")
    table["scrub"] = {STAGE: {"kind": "split", "folds": count}, **table["scrub"]}
    return table, STAGE


def _fold(pipeline: Pipeline, table: Mapping[str, Any], stage: str, number: int) -> Pipeline:
    """One fold's pipeline: its own folder, no service, no export, no results."""
    scrub = {**table["scrub"], stage: {**table["scrub"][stage], "fold": number}}
    apart = {key: table[key] for key in table if key not in ("sink", "service", "traces", "export")}
    folder = str(Path(pipeline.folder) / "folds" / str(number))
    checkpoint = {k: v for k, v in pipeline.checkpoint.items() if k != "path"}
    letters = {k: v for k, v in table.get("dead_letters", {}).items() if k != "path"}
    source = {
        k: v
        for k, v in table["source"].items()
        if k not in ("group_id", "subscribe", "group_instance_id")
    }
    return Pipeline.of(
        {
            **apart,
            "scrub": scrub,
            "folder": folder,
            "checkpoint": checkpoint,
            "dead_letters": {**letters, "kind": "files"},
            "source": source,
        },
        where=pipeline.file,
    )


def _bounded(watch: Watch | None) -> Watch:
    def look(loop: Loop, batch: Batch) -> None:
        if loop.source.progress(Mark()) is None:
            raise UserError(
                'Folds need a source that ends: files, or a topic with [source] stop = "end".'
            )
        if watch is not None:
            watch(loop, batch)

    return look


__all__ = ["Fold", "Folds", "folds"]
