"""What a model relies on and where it is wrong, on rows that it has not learned where there are
any."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from engine.assembly.parts import Parts
from engine.columnar.row_expressions import Condition
from engine.config import Pipeline
from engine.interpret.attribution import attributions
from engine.interpret.calibration import calibrations, quantile_calibrations
from engine.interpret.case import Case, judged_case
from engine.interpret.figures import Interpretation
from engine.interpret.importance import importances
from engine.interpret.rows import JudgedRows, Watch, kept_rows, read_once, rows_of_source
from engine.interpret.sentences import findings, left_out, without_gradients
from engine.interpret.slices import named_slices, worst_slices
from engine.interpret.subject import ServedModel, Subject, TrainedModel
from engine.interpret.worst import worst_rows
from engine.quality.evaluation import Evaluation
from engine.run import Run
from engine.types import DELAY, UserError
from engine.types.plural import counted

ROWS, REPEATS = 10_000, 10
MIN_REPEATS = 3
UNITS: Mapping[str, str] = {
    "regression": "the unit of the target",
    "binary": "log odds",
    "multiclass": "log probability of the predicted class",
}


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
        metric: what importance is measured by; MAE, pinball loss of quantiles, or log loss of
            classes, unless given.
        label: the column of the label, for a pipeline that serves; the one in the model file unless
            given.
        seed: of the permutations.
        watch: told what is done, and the share that is.

    Raises: UserError without a model, a label or rows to judge; HeadraceError for a source that
    fails.
    """
    _require_counts(rows, repeats)
    pipeline = target if isinstance(target, Pipeline) else Pipeline.load(target, overrides)
    case = judged_case(pipeline, *_subject_and_rows(pipeline, rows, label, watch))
    return _interpreted(case, metric, repeats=repeats, seed=seed, watch=watch)


def _interpreted(
    case: Case, metric: str | None, *, repeats: int, seed: int, watch: Watch
) -> Interpretation:
    subject, judge, frame, judged = case.subject, case.judge, case.frame, case.judged
    metric = judge.metric(metric)
    figures = judge.figures(judged)
    _require_defined(case, metric, figures)
    ranked, lost = importances(
        subject, frame, judged, judge.measure(metric), repeats=repeats, seed=seed, watch=watch
    )
    watch("integrated gradients", None)
    moved, rest = attributions(subject, frame, seed)
    losses = judge.losses(judged)
    named, lacking = named_slices(frame, losses, case.conditions)
    late = (DELAY,) if DELAY in frame.columns else ()  # of labels that come later
    worst, uncut = worst_slices(frame, losses, (*subject.columns, *late))
    groups, quantiles = calibrations(judge, judged), quantile_calibrations(judge, judged)
    return Interpretation(
        name=case.name,
        model=subject.model,
        rows=len(judged),
        which=case.chosen.which,
        target=subject.target,
        task=subject.features.task,
        classes=subject.features.classes,
        metric=metric,
        value=figures[metric],
        loss=judge.loss,
        figures=figures,
        importances=ranked,
        repeats=repeats,
        attributions=moved,
        unit=UNITS[subject.features.task] if moved else "",
        calibrations=groups,
        quantiles=quantiles,
        slices=(*named, *worst),
        worst_rows=worst_rows(judge, frame, judged, losses, ranked),
        sentences=tuple(findings(case, ranked, groups, quantiles, worst)),
        left_out=(
            *left_out(case, lost, lacking, uncut),
            *without_gradients(subject, moved, rest),
        ),
    )


def _require_counts(rows: int, repeats: int) -> None:
    if rows < 1:
        raise UserError(f"Expected --rows of 1 or more, got {rows}.")
    if repeats < MIN_REPEATS:
        raise UserError(f"Expected --repeats of {MIN_REPEATS} or more, got {repeats}.")


def _subject_and_rows(
    pipeline: Pipeline, rows: int, label: str | None, watch: Watch
) -> tuple[Subject, JudgedRows, Mapping[str, Condition]]:
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
    run.require_learned()
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


def _conditions(parts: Parts, served: ServedModel) -> Mapping[str, Condition]:
    """Return the conditions of [evaluation.slices] that a serving pipeline has from its `base`."""
    slices = {"slices": (parts.pipeline.evaluation or {}).get("slices", {})}
    settings = parts.pipeline.settings(Evaluation.Settings, slices, "evaluation")
    evaluation = Evaluation(settings, served.features)
    evaluation.bind(parts.scrub.schema)
    return evaluation.conditions


def _require_defined(case: Case, metric: str, figures: Mapping[str, float]) -> None:
    if math.isfinite(figures[metric]):
        return
    same = len(np.unique(case.judged.target)) == 1
    why = "whose labels are all the same" if same else "which are too few"
    raise UserError(
        f"--metric {metric} is not defined over {counted(len(case.judged), 'row')} {why}: choose "
        f"{case.judge.metrics[0]}."
    )


__all__ = ["REPEATS", "ROWS", "interpret"]
