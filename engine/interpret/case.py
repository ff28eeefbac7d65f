"""The model and the rows that it is judged on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from engine.columnar.row_expressions import Condition
from engine.config import Pipeline
from engine.interpret.judging import Judge, Judged
from engine.interpret.rows import JudgedRows
from engine.interpret.subject import Subject
from engine.types import UserError
from engine.types.plural import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, and rows with a label and a score of it.

    Attributes:
        name: of the pipeline.
        subject: the model.
        conditions: of the slices of the pipeline file.
        chosen: the rows they are among.
        frame, judged: the rows, and their labels and scores.
        judge: measures them.
    """

    name: str
    subject: Subject
    conditions: Mapping[str, Condition]
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


def judged_case(
    pipeline: Pipeline,
    subject: Subject,
    chosen: JudgedRows,
    conditions: Mapping[str, Condition],
) -> Case:
    """Judge the rows. Raises: UserError if none has a label and a score."""
    judged = subject.judge(chosen.frame)
    if not len(judged):
        raise UserError(
            f"None of the {counted(chosen.frame.height, 'row')} of {pipeline.file} has a label in "
            f"'{subject.target}' and a score: expected rows with a label to judge the model on."
        )
    features, scores = subject.features, judged.scores
    probabilistic = features.task != "regression" and subject.gives_probabilities(scores)
    return Case(
        name=pipeline.name,
        subject=subject,
        conditions=conditions,
        chosen=chosen,
        frame=chosen.frame[judged.rows],
        judged=replace(judged, rows=np.arange(len(judged))),
        judge=Judge(features=features, probabilistic=probabilistic),
    )


__all__ = ["Case", "judged_case"]
