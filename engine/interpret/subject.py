"""The model that is interpreted: one in training, as of its newest checkpoint, or one that serves.

Neither learns anything here: stages are applied with `learn = false`, and a state that changes all
the same is put back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.assembly.parts import Parts
from engine.interpret.judging import Judged, are_probabilities
from engine.quality.measures import finite_rows
from engine.scrub.base import LearnSettings, restore, snapshots
from engine.types import (
    POSITION,
    Batch,
    Features,
    Fill,
    Mark,
    Predictor,
    Stage,
    UserError,
    class_indexes,
    require,
    type_name,
)
from engine.types.arrays import Floats
from engine.user_code import calls

CHUNK_ROWS, CHUNK_BYTES = 1_024, 16 << 20
"""The most rows that are judged at a time: a network makes much more of a row than its bytes."""


class Subject(ABC):
    """A model, and the rows that it reads: those before the stages inside its file.

    Attributes:
        model: which model it is, in words.
        features: its task, classes and threshold.
        target: the column of the label.
        columns: the columns that it reads.
    """

    model: str
    features: Features
    target: str
    columns: tuple[str, ...]

    def judge(self, frame: pl.DataFrame) -> Judged:
        """Return the rows that have a label and a score, with both; of several quantiles
        the scores are the medians."""
        fitting = CHUNK_BYTES * frame.height // max(1, int(frame.estimated_size()))
        size = max(1, min(CHUNK_ROWS, fitting))
        starts = range(0, max(1, frame.height), size)
        parts = [(start, self._judge(frame[start : start + size])) for start in starts]
        scores = np.concatenate([part.scores for _, part in parts])
        return Judged(
            rows=np.concatenate([part.rows + start for start, part in parts]),
            target=np.concatenate([part.target for _, part in parts]),
            scores=self.features.points(scores),
            quantiles=scores if self.features.quantiles else None,
        )

    def gives_probabilities(self, scores: Floats) -> bool:
        """Return whether its scores of classes are probabilities."""
        return True

    def attributions(self, frame: pl.DataFrame) -> Mapping[str, Floats]:
        """Return what `Learner.attributions` says of the rows; {} for a model that cannot tell."""
        return {}

    @abstractmethod
    def _judge(self, frame: pl.DataFrame) -> Judged:
        """Return the rows of one chunk."""


class TrainedModel(Subject):
    """The learner of a pipeline, restored, behind the stages that its model file would contain.

    Args:
        parts: of the pipeline, restored from a checkpoint.
    """

    def __init__(self, parts: Parts, model: str) -> None:
        collate = parts.collate
        assert collate is not None, "a pipeline that trains collates"
        _require_no_state(parts, carries=parts.model.features.state is not None)
        self.model = model
        learner, threshold = parts.model.learner, parts.judging.threshold.value
        self.features = replace(learner.features, threshold=threshold)  # and the classes it has met
        self.target = str(self.features.target)
        self.columns = _columns_read(parts)
        self._stages = _frozen_stages(parts)
        self._kept = snapshots(s for s in self._stages if not isinstance(s.settings, LearnSettings))
        self._collate = collate
        self._learner = learner

    def attributions(self, frame: pl.DataFrame) -> Mapping[str, Floats]:
        batch = self._collated(frame)
        assert batch.tensors is not None, "it is collated"
        with calls.Calling("model", self._learner):
            return self._learner.attributions(batch.tensors)

    def _judge(self, frame: pl.DataFrame) -> Judged:
        batch = self._collated(frame)
        assert batch.tensors is not None, "it is collated"
        target, scores = self._target(batch), calls.predict(self._learner, batch.tensors)
        judged = Judged(rows=batch.frame[POSITION].to_numpy(), target=target, scores=scores)
        known = np.isfinite(target) if self.features.task == "regression" else target >= 0
        return judged.only(known & finite_rows(scores))

    def _target(self, batch: Batch) -> NDArray[Any]:
        """Return the labels of collated rows; -1 for a class that the model has not met."""
        assert batch.tensors is not None, "it is collated"
        if batch.tensors.target is None:  # classes that appear are numbered by whoever learns
            return class_indexes(batch.frame[self.target], self.features.classes)
        target = batch.tensors.target.numpy()
        return target.astype(np.float64) if self.features.task == "regression" else target

    def _collated(self, frame: pl.DataFrame) -> Batch:
        """Return the rows as tensors; positions are the numbers of the rows."""
        batch = _numbered(frame)
        for stage in self._stages:
            batch = calls.apply(stage, batch)
        restore([stage for stage in self._stages if stage.name in self._kept], self._kept)
        return self._collate(batch)


class ServedModel(Subject):
    """The model file of [infer], beside a column of labels.

    Args:
        parts: of the pipeline.
        target: the column of the label; the one that the file names unless given.

    Raises: UserError if there is no label, or no answer to compare it with.
    """

    def __init__(self, parts: Parts, target: str | None) -> None:
        predictor = parts.predictor
        assert predictor is not None, "a pipeline that serves has a predictor"
        _require_no_state(parts, carries=predictor.carries_state)
        file, path = parts.pipeline.file, (parts.pipeline.infer or {}).get("model")
        self.model = f"the model file {path}"
        self.target = _label(predictor, parts, target)
        features = predictor.judged
        if features is None:
            raise UserError(
                f"No answer of [infer] model '{path}' in {file} can be compared with a label: "
                'expected an output with answer = "value", "classes" (with their names) or '
                '"probabilities".'
            )
        dtype = parts.scrub.schema[self.target]
        numbers = dtype.is_numeric() or dtype == pl.Boolean
        if not numbers and (features.task == "regression" or dtype.is_nested()):
            answer = "a number" if features.task == "regression" else "a class"
            raise UserError(
                f"[infer] model '{path}' answers with {answer}, and '{self.target}' holds "
                f"{type_name(dtype)}: expected a column of labels."
            )
        self.features = features
        self.columns = tuple(predictor.columns_read(parts.scrub.schema))
        self._predictor = predictor

    def gives_probabilities(self, scores: Floats) -> bool:
        return are_probabilities(scores)

    def _judge(self, frame: pl.DataFrame) -> Judged:
        scores = self._predictor.scores(frame).astype(np.float64)
        label = frame[self.target]
        if self.features.task == "regression":
            target = label.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
            known = np.isfinite(target)
        else:
            target = class_indexes(label, self.features.classes)
            known = target >= 0
        judged = Judged(rows=np.arange(frame.height), target=target, scores=scores)
        return judged.only(known & finite_rows(scores))


def _require_no_state(parts: Parts, *, carries: bool) -> None:
    """Raises: UserError for a model whose answer depends on earlier rows."""
    if carries:
        raise UserError(
            f"The model of {parts.pipeline.file} carries a state from row to row of a key "
            "([model.state]), and interpret looks at rows by themselves: the report of its run has "
            "its quality."
        )


def _label(predictor: Predictor, parts: Parts, target: str | None) -> str:
    """Return the column of the label. Raises: UserError if there is none."""
    file, schema = parts.pipeline.file, parts.scrub.schema
    if target is None and not predictor.target:
        raise UserError(
            f"{file} serves a model whose label is not known: name its column with --target."
        )
    if target is None and predictor.target not in schema:
        raise UserError(
            f"The rows of {file} have no label: expected the column '{predictor.target}', which "
            "the model predicts; --target names another."
        )
    target = target or predictor.target
    require(schema, [target], where="--target")
    return target


def _columns_read(parts: Parts) -> tuple[str, ...]:
    """Return the columns that the model file would read: the features, and for an indicator the
    column whose gaps it marks."""
    fills = [t for t in parts.scrub.transforms if isinstance(t, Fill) and t.indicator]
    marked = {str(fill.indicator): fill.column for fill in fills}
    features = parts.model.features
    names = (*features.numeric, *features.categories, *features.nested)
    return tuple(dict.fromkeys(marked.get(name, name) for name in names))


def _frozen_stages(parts: Parts) -> Sequence[Stage]:
    """Return the stages inside the model file that change values, as they are now, learning no
    more."""
    tables = {name: dict(table) for name, table in parts.pipeline.scrub.items()}
    for stage in parts.scrub.stages:
        if isinstance(stage.settings, LearnSettings):
            tables[stage.name]["learn"] = False
    frozen = parts.other_stages(tables).stages
    restore(frozen, snapshots(parts.scrub.stages))
    return [stage for stage in frozen[parts.scrub.export_from :] if stage.transforms() != ()]


def _numbered(frame: pl.DataFrame) -> Batch:
    """Return the rows as a batch, whose positions are their numbers."""
    numbered = frame.with_columns(pl.int_range(pl.len()).alias(POSITION))
    return Batch(frame=numbered, mark=Mark(), arrived=0.0, raw_rows=frame.height)


__all__ = ["ServedModel", "Subject", "TrainedModel"]
