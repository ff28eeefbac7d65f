"""What a model relies on and where it is wrong, on rows that it has not learned where there are
any."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from engine.assembly.parts import Parts
from engine.config import Pipeline
from engine.interpret.calibration import calibrations
from engine.interpret.figures import (
    Attribution,
    Calibration,
    Importance,
    Interpretation,
    Slice,
)
from engine.interpret.importance import importances
from engine.interpret.judging import Judge, Judged
from engine.interpret.rows import JudgedRows, Watch, kept_rows, read_once, rows_of_source
from engine.interpret.slices import MIN_ROWS, named_slices, worst_slices
from engine.interpret.subject import ServedModel, Subject, TrainedModel
from engine.interpret.worst import worst_rows
from engine.quality.evaluation import Evaluation
from engine.run import Run
from engine.types import UNEXPLAINED, UserError
from engine.types.arrays import Floats
from engine.types.plural import counted, short_number

ROWS, REPEATS = 10_000, 10
MIN_REPEATS = 3
FEW_ROWS = 200
"""Fewer rows make wide intervals."""
ATTRIBUTED_ROWS, ATTRIBUTED_VALUES = 256, 4_000_000
"""The most rows of integrated gradients, and the most pixels: they need memory for a gradient."""
UNITS: Mapping[str, str] = {
    "regression": "the unit of the target",
    "binary": "log odds",
    "multiclass": "log probability of the predicted class",
}
MAX_REST = 0.1
"""The share of the scores' movement that integrated gradients may leave unexplained."""


def interpret(
    target: str | Path | Pipeline,
    overrides: Iterable[str] = (),
    *,
    rows: int = ROWS,
    repeats: int = REPEATS,
    metric: str | None = None,
    label: str | None = None,
    seed: int = 0,
    watch: Watch = lambda what, share: None,
) -> Interpretation:
    """Interpret the model of a pipeline: that of its newest checkpoint, or the one it serves.

    Rows are those that the run held out ([export], [model] threshold); without any, the source is
    read: of a `split` stage, the rows that are not learned, else the newest. Nothing is written, no
    group is joined, nothing is learned.

    Args:
        target: a pipeline, or its file.
        overrides: "a.b=c" texts, for a file.
        rows: the most rows to judge, the newest.
        repeats: permutations per column.
        metric: what importance is measured by; MAE, or log loss of classes, unless given.
        label: the column of the label, for a pipeline that serves; the one in the model file unless
            given.
        seed: of the permutations.
        watch: told what is done, and the share that is.

    Raises: UserError without a model, a label or rows to judge; HeadraceError for a source that
    fails.
    """
    _require_counts(rows, repeats)
    pipeline = target if isinstance(target, Pipeline) else Pipeline.load(target, overrides)
    subject, chosen, conditions = _subject_and_rows(pipeline, rows, label, watch)
    case = _case(pipeline, subject, chosen)
    judge, frame, judged = case.judge, case.frame, case.judged
    metric = judge.metric(metric)
    figures = judge.figures(judged)
    _require_defined(case, metric, figures)
    ranked, lost = importances(
        subject, frame, judged, judge.measure(metric), repeats=repeats, seed=seed, watch=watch
    )
    watch("integrated gradients", None)
    attributions, rest = _attributions(subject, frame, seed)
    losses = judge.losses(judged)
    named, lacking = named_slices(frame, losses, conditions)
    worst, uncut = worst_slices(frame, losses, subject.columns)
    groups = calibrations(judge, judged)
    return Interpretation(
        name=pipeline.name,
        model=subject.model,
        rows=len(judged),
        which=chosen.which,
        target=subject.target,
        task=subject.features.task,
        classes=subject.features.classes,
        metric=metric,
        value=figures[metric],
        loss=judge.loss,
        figures=figures,
        importances=ranked,
        repeats=repeats,
        attributions=attributions,
        unit=UNITS[subject.features.task] if attributions else "",
        calibrations=groups,
        slices=(*named, *worst),
        worst_rows=worst_rows(judge, frame, judged, losses, ranked),
        sentences=tuple(_sentences(case, ranked, groups, worst)),
        left_out=(
            *_left_out(case, lost, lacking, uncut),
            *_without_gradients(subject, attributions, rest),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """Rows with a label and a score.

    Attributes:
        chosen: the rows they are among.
        frame, judged: the rows, and their labels and scores.
        judge: measures them.
    """

    chosen: JudgedRows
    frame: pl.DataFrame
    judged: Judged
    judge: Judge

    @property
    def unlabelled(self) -> int:
        """The rows without a label or a score."""
        return self.chosen.frame.height - self.frame.height

    @property
    def only_class(self) -> str | None:
        """The class of all rows, if it is one."""
        present = np.unique(self.judged.target)
        if self.judge.regression or len(present) > 1:
            return None
        return self.judge.features.classes[int(present[0])]


def _case(pipeline: Pipeline, subject: Subject, chosen: JudgedRows) -> _Case:
    """Judge the rows. Raises: UserError if none has a label and a score."""
    judged = subject.judge(chosen.frame)
    if not len(judged):
        raise UserError(
            f"None of the {counted(chosen.frame.height, 'row')} of {pipeline.file} has a label in "
            f"'{subject.target}' and a score: expected rows with a label to judge the model on."
        )
    features, scores = subject.features, judged.scores
    probabilistic = features.task != "regression" and subject.gives_probabilities(scores)
    return _Case(
        chosen=chosen,
        frame=chosen.frame[judged.rows],
        judged=Judged(rows=np.arange(len(judged)), target=judged.target, scores=scores),
        judge=Judge(features=features, probabilistic=probabilistic),
    )


def _require_counts(rows: int, repeats: int) -> None:
    if rows < 1:
        raise UserError(f"Expected --rows of 1 or more, got {rows}.")
    if repeats < MIN_REPEATS:
        raise UserError(f"Expected --repeats of {MIN_REPEATS} or more, got {repeats}.")


def _subject_and_rows(
    pipeline: Pipeline, rows: int, label: str | None, watch: Watch
) -> tuple[Subject, JudgedRows, Mapping[str, pl.Expr]]:
    """Return the model, the rows to judge it on, and the conditions of slices."""
    if pipeline.infer is not None:
        parts = Run(read_once(pipeline)).parts
        served = ServedModel(parts, label)
        conditions = _conditions(parts, served)
        return served, rows_of_source(parts, rows, (served.target,), watch), conditions
    if pipeline.model is None:
        raise UserError(
            f"{pipeline.file} has neither [model] nor [infer]: there is no model to interpret."
        )
    run = Run(pipeline)
    run.require_checkpoint()
    if several := run.features.targets:
        raise UserError(
            f"interpret explains the predictions of one target, and [model] target in "
            f"{pipeline.file} names {len(several)}: its report has the figures of each."
        )
    if label not in (None, run.features.target):
        raise UserError(
            f"The model of {pipeline.file} predicts '{run.features.target}', got --target {label}: "
            "the option is for pipelines that serve."
        )
    trained = TrainedModel(run.parts, f"the newest checkpoint in {run.checkpoints.settings.path}")
    chosen = kept_rows(run.parts, rows)
    if chosen is None:
        chosen = rows_of_source(Run(read_once(pipeline)).parts, rows, (), watch)
    return trained, chosen, run.evaluation.conditions


def _conditions(parts: Parts, served: ServedModel) -> Mapping[str, pl.Expr]:
    """Return the conditions of [evaluation.slices] that a serving pipeline has from its `base`."""
    slices = {"slices": (parts.pipeline.evaluation or {}).get("slices", {})}
    settings = parts.pipeline.settings(Evaluation.Settings, slices, "evaluation")
    evaluation = Evaluation(settings, served.features)
    evaluation.bind(parts.scrub.schema)
    return evaluation.conditions


def _require_defined(case: _Case, metric: str, figures: Mapping[str, float]) -> None:
    if math.isfinite(figures[metric]):
        return
    same = len(np.unique(case.judged.target)) == 1
    why = "whose labels are all the same" if same else "which are too few"
    raise UserError(
        f"--metric {metric} is not defined over {counted(len(case.judged), 'row')} {why}: choose "
        f"{case.judge.metrics[0]}."
    )


def _attributions(
    subject: Subject, frame: pl.DataFrame, seed: int
) -> tuple[tuple[Attribution, ...], float]:
    """Return the features by how far they move the score, and the share that none explains."""
    pixels = sum(math.prod(shape) for shape in subject.features.images.values())
    most = min(ATTRIBUTED_ROWS, max(8, ATTRIBUTED_VALUES // max(1, pixels)), frame.height)
    chosen = np.sort(np.random.default_rng(seed).choice(frame.height, most, replace=False))
    moved = dict(subject.attributions(frame[chosen]))
    rest = moved.pop(UNEXPLAINED, np.zeros(1))
    found = [Attribution(feature=name, moves=_size(each)) for name, each in moved.items()]
    found.sort(key=lambda each: -each.moves)
    whole = sum(moved.values(), start=np.zeros(1)) + rest
    return tuple(found), _size(rest) / (_size(whole) or 1.0)


def _size(values: Floats) -> float:
    return float(np.abs(values).mean())


def _sentences(
    case: _Case,
    ranked: tuple[Importance, ...],
    groups: tuple[Calibration, ...],
    worst: list[Slice],
) -> Iterator[str]:
    """Yield what a reader should know, the most important first."""
    if case.chosen.learned:
        yield (
            "The model has learned these rows, so every figure here flatters it: an [export] "
            "section or a 'split' stage holds rows out."
        )
    if len(case.judged) < FEW_ROWS:
        yield f"Only {counted(len(case.judged), 'row is', 'rows are')} judged: intervals are wide."
    if case.only_class is not None:
        yield f"All rows have the label '{case.only_class}': other classes are not judged."
    yield from _of_columns(ranked)
    yield from _of_calibration(case.judge, groups)
    bad = [one for one in worst if one.worse]
    if bad:
        yield (
            f"The {case.judge.loss} is highest where {bad[0].name}: {short_number(bad[0].loss)} "
            f"over {counted(bad[0].rows, 'row')}."
        )


def _of_columns(ranked: tuple[Importance, ...]) -> Iterator[str]:
    idle = [each for each in ranked if not each.tells]
    if len(ranked) > 1 and ranked[0].tells:
        yield f"The model relies most on '{ranked[0].column}'."
    if not idle:
        return
    names = ", ".join(f"'{each.column}'" for each in idle[:6])
    more = f" and {len(idle) - 6:,} more" if len(idle) > 6 else ""
    yield (
        f"{len(idle):,} of {counted(len(ranked), 'column')} may tell the model nothing here: "
        f"{names}{more}."
    )


def _of_calibration(judge: Judge, groups: tuple[Calibration, ...]) -> Iterator[str]:
    off = [group for group in groups if not group.fits]
    if len(off) <= max(1, len(groups) // 10):  # one of twenty is off by chance
        return
    high = sum(group.predicted > group.observed for group in off)
    way = "too high" if high == len(off) else "too low" if not high else "too high or too low"
    what = "Values" if judge.regression else "Probabilities"
    yield f"{what} are not calibrated: {len(off)} of {len(groups)} groups of rows are {way}."


def _left_out(
    case: _Case, lost: Mapping[str, int], lacking: list[str], uncut: list[str]
) -> Iterator[str]:
    """Yield what was not looked at, or not exactly."""
    if case.unlabelled:
        yield f"{counted(case.unlabelled, 'row has', 'rows have')} no label or no score."
    for column, n in lost.items():
        yield (
            f"With '{column}' permuted, {counted(n, 'row')} in all had no score and "
            f"{'counts' if n == 1 else 'count'} nowhere."
        )
    if not case.judge.regression and not case.judge.probabilistic:
        yield "The model gives no probabilities of classes: nothing is said about reliability."
    for name in lacking:
        yield f"[evaluation.slices] {name} reads columns that these rows do not have."
    if len(case.judged) < 2 * MIN_ROWS:
        yield f"Slices of columns need {MIN_ROWS} rows each."
    if uncut:
        names = ", ".join(f"'{name}'" for name in uncut)
        yield f"Columns whose type has no slices: {names}."


def _without_gradients(
    subject: Subject, attributions: tuple[Attribution, ...], rest: float
) -> Iterator[str]:
    """Yield why integrated gradients are missing or incomplete."""
    if not attributions:
        why = (
            "a served model file has none"
            if isinstance(subject, ServedModel)
            else "this kind of model has none"
        )
        yield f"Integrated gradients need gradients, and {why}."
    elif rest > MAX_REST:
        yield (
            f"Integrated gradients leave {rest:.0%} of the scores' movement unexplained: part of "
            "the network has jumps, or reads features in a way that no gradient leads through."
        )


__all__ = ["REPEATS", "ROWS", "interpret"]
